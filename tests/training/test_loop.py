"""loop.py: the loop is what it says, with any number of workers, and evaluation weights what counts."""
import csv
import io
import math
import sys
import time
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.toys import Distil, Noise, same, small
from tinypeft.common import threads
from tinypeft.common.progress import Progress
from tinypeft.engine import functional as F
from tinypeft.engine.nn import Linear
from tinypeft.engine.optim import AdamW, clip_grad_norm, schedule
from tinypeft.training import backward as backward_of_a_batch
from tinypeft.training import plain
from tinypeft.training.backward import backward
from tinypeft.training.rates import HEAD_LR

N = 9                                                    # steps of most runs below


class Counting(Noise):
    """The next token is the last one plus 1: something to learn."""
    def batch(self, split, size, rng):
        tokens = (rng.integers(0, 37, (size, 1)) + np.arange(9)) % 37
        return tokens[:, :-1], tokens[:, 1:]


class Ragged(Noise):
    """Rows in which different numbers of targets count, in some none at all."""
    def batch(self, split, size, rng):
        tokens, targets = super().batch(split, size, rng)
        targets = np.where(np.arange(self.T) < rng.integers(1, self.T + 1, (size, 1)), targets, F.IGNORED)
        targets[size // 2 + 1:] = F.IGNORED
        return tokens, targets

    def count(self, batch):
        return int((batch[1] != F.IGNORED).sum())


class Classes(Noise):
    """Rows of random tokens, all of them read, and random classes of three."""
    def batch(self, split, size, rng): return rng.integers(0, 37, (size, 6)), np.full(size, 6), rng.integers(0, 3, size)
    def count(self, batch): return len(batch[0])
    def loss(self, model, batch): return F.cross_entropy(model.class_logits(*batch[:2]), batch[2])


# -- the loop --------------------------------------------------------------------------------------
def test_it_learns():
    model = small()
    history = tp.train(model, Counting(), 150, batch_size=16, lr=1e-2, progress=False)
    assert history.loss[0] > 3.5 and np.mean(history.loss[-10:]) < 0.2 and len(history.loss) == 150
    assert model.generate([[5, 6, 7]], 4).tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert repr(history).startswith(f"History(150 steps, loss {history.loss[0]:.3f} → ")


def test_it_is_the_loop_one_would_write():
    """Bit for bit: AdamW on matrices with decay and on vectors without, clipped, scheduled, batches from (seed, step)."""
    options = dict(batch_size=4, lr=1e-2, weight_decay=0.1, schedule_kind="cosine", warmup=2, lr_floor=0.1, clip=0.5, seed=3)
    trained, ours, task = small(), small(), Noise()
    history = tp.train(trained, task, N, workers=1, progress=False, **options)
    params = ours.parameters()
    optimizer = AdamW([{"params": [p for p in params if p.ndim > 1]}, {"params": [p for p in params if p.ndim == 1],
                       "weight_decay": 0.0}], lr=1e-2, weight_decay=0.1)
    for step in range(N):
        optimizer.scale_lr(schedule("cosine", step, N, 2, 0.1))
        optimizer.zero_grad()
        loss = task.loss(ours, task.batch("train", 4, np.random.default_rng([3, step])))
        assert loss.item() == history.loss[step]
        loss.backward()
        clip_grad_norm(params, 0.5)
        optimizer.step()
    assert same(trained.state_dict(), ours.state_dict())


@pytest.mark.parametrize("method", [tp.LoRA(rank=2), tp.IA3(), tp.PromptTuning(3), tp.FullFineTuning()], ids=str)
def test_the_plain_loop_has_the_same_bits(method):
    """training/plain.py: one worker, nothing that draws, no penalty and no hook."""
    fast, plainly, task = tp.attach(small(), method, rng=0), tp.attach(small(), method, rng=0), Noise()
    history = tp.train(fast, task, N, lr=1e-2, batch_size=4, seed=3, workers=1, progress=False)
    assert plain.train(plainly, task, N, 1e-2, batch_size=4, seed=3) == history.loss
    assert same(fast.state_dict(), plainly.state_dict()) and len(set(history.loss)) == N


def test_options_have_names():
    with pytest.raises(TypeError, match="TrainOptions has no field 'callback'; did you mean callbacks?"):
        tp.train(small(), Noise(), 3, callback=print)


def test_only_matrices_decay():
    class Nothing(Noise):
        def loss(self, model, batch): return super().loss(model, batch) * 0
    model = small()
    for p in model.parameters(): p.data += 1
    before = {n: a.copy() for n, a in model.state_dict().items()}
    tp.train(model, Nothing(), 1, lr=0.1, weight_decay=0.5, warmup=0, progress=False)
    for name, p in model.named_parameters():
        assert_close(p, before[name] * np.float32(1 - 0.1 * 0.5 if p.ndim > 1 else 1), 1e-6, name)


def test_only_what_requires_a_gradient_is_trained():
    model = small()
    before = {n: a.copy() for n, a in model.state_dict().items()}
    tuned = tp.attach(model, tp.LoRA(rank=2), rng=0)
    start = {n: a.copy() for n, a in tuned.state_dict().items()}
    tp.train(tuned, Noise(), N, progress=False)
    assert not any(np.array_equal(start[n], a) for n, a in tuned.state_dict().items())
    assert same(tuned.detach().state_dict(), before)
    assert all(p.grad is None for p in model.parameters())


def test_the_learning_rate_is_the_methods_own():
    seen = []
    options = dict(optimizer=lambda *a, lr, **k: seen.append(lr) or AdamW(*a, lr=lr, **k), progress=False)
    for width in (128, 32):
        base = tp.GPT(tp.GPTConfig(37, 24, width, 1, 4))
        tp.train(base, Noise(), 1, **options)
        tp.train(tp.attach(base, tp.LoRA()), Noise(), 1, **options)
    tp.train(tp.attach(small(), tp.LoRA()), Noise(), 1, lr=0.5, **options)
    assert seen == [1e-3, tp.LoRA.learning_rate, 2e-3, 2 * tp.LoRA.learning_rate, 0.5]


class Paced(tp.LoRA):
    """A method whose rate depends on its fields."""
    @property
    def learning_rate(self): return 1e-2 / self.rank


PACED = 2.5e-3 * math.sqrt(128 / 16)


@pytest.mark.parametrize("rates, expected", [
    ({}, (PACED, HEAD_LR)), ({"lr": 0.5}, (0.5, 0.5)), ({"head_lr": 0.1}, (PACED, 0.1)),
    ({"lr": 0.5, "head_lr": 0.1}, (0.5, 0.1)), ({"lr": 0.5, "head_lr": 0.0}, (0.5, 0.0))])
def test_a_head_has_a_rate_of_its_own(rates, expected):
    made = []
    def optimizer(groups, **options):
        made.append(AdamW(groups, **options))
        return made[0]
    tuned = tp.attach(small(), Paced(rank=4), head=3, rng=0)
    before = tuned.head.weight.data.copy()
    tp.train(tuned, Classes(), 1, optimizer=optimizer, progress=False, **rates)
    matrices, head = made[0].groups
    assert (matrices["base_lr"], head["base_lr"]) == expected
    assert {id(p) for p in head["params"]} == {id(p) for p in tuned.head.parameters()}
    assert np.array_equal(tuned.head.weight.data, before) == (expected[1] == 0)


def test_the_hooks_of_a_method():
    """before_step, the loss with its penalty, after_step, in this order, in every step."""
    class Hooked(tp.GPT):
        calls = []
        def before_step(self, step, total): self.calls.append(("before", step, total))
        def after_step(self, step, total): self.calls.append(("after", step, total))
        def penalty(self):
            self.calls.append("penalty")
            return (self.final_norm.weight ** 2).sum()
    model = Hooked(small().config)
    history = tp.train(model, Noise(), 2, workers=1, progress=False)
    assert model.calls == [("before", 0, 2), "penalty", ("after", 0, 2), ("before", 1, 2), "penalty", ("after", 1, 2)]
    batch = Noise().batch("train", 8, np.random.default_rng([0, 0]))
    assert_close(history.loss[0], Noise().loss(Hooked(small().config), batch).item() + 16, 1e-6)
    assert (model.final_norm.weight.data < 1).all()      # its gradient counts


def test_training_mode_is_on_and_then_off():
    class Asking(Noise):
        modes = []
        def loss(self, model, batch):
            self.modes.append(all(m.training for _, m in model.named_modules()))
            return super().loss(model, batch)
    task, model = Asking(), small(dropout=0.1)
    tp.train(model, task, 4, eval_every=2, progress=False)
    assert task.modes == [True] * 2 + [False] * 4 + [True] * 2 + [False] * 4
    assert not any(m.training for _, m in model.named_modules())


def test_evaluations_on_the_way():
    model, task = small(), Noise()
    history = tp.train(model, task, 7, eval_every=3, progress=False)
    assert [step for step, _ in history.evals] == [3, 6, 7]
    assert history.evals[-1][1] == tp.evaluate(model, task, "validation")
    assert history.evals[-1][1] != tp.evaluate(model, task, "validation", max_batches=1)
    history = tp.train(model, task, 4, eval_every=4, eval_batches=1, progress=False)
    assert history.evals[-1][1] == tp.evaluate(model, task, "validation", max_batches=1)


# -- when to stop, and what to keep ----------------------------------------------------------------
class Scripted(Noise):
    """Random tokens to train on; the validation losses are given."""
    def __init__(self, *losses):
        super().__init__()
        self.losses = list(losses)

    def metrics(self, model, batch): return {"count": 1.0}
    def finish(self, means, split): return {"loss": self.losses.pop(0)}


@pytest.mark.parametrize("patience, losses, steps, best", [
    (1, [3, 2, 2, 9], 6, [4, 2]), (2, [3, 2, 4, 1, 5, 1, 9], 12, [8, 1]), (3, [1, 2, 2, 2], 8, [2, 1]), (2, [1, 2], 4, [2, 1]),
    (2, [math.nan, math.inf, 9], 4, None), (2, [math.nan, 3, math.nan, 2, 1, 0], 12, [12, 0]), (None, [1, 2, 3, 4], 8, [2, 1])])
def test_patience_ends_a_run_that_brings_nothing(patience, losses, steps, best):
    """Evaluations come after steps 2, 4, …; equal is not lower, and NaN is never the lowest."""
    total = 2 * len(losses)
    history = tp.train(small(), Scripted(*losses), total, eval_every=2, patience=patience, progress=False)
    assert len(history.loss) == steps and (history.best and [history.best[0], history.best[1]["loss"]]) == best
    assert (history.stopped is None) == (steps == total)
    if steps < total:
        says = f"the lowest, {best[1]:.4f}, came at step {best[0]}" if best else "none is finite"
        waited = "1 evaluation" if patience == 1 else f"{patience} evaluations"
        assert history.stopped == f"{waited} without a lower validation loss; {says}"
        assert f", stopped: {history.stopped})" in repr(history)


@pytest.mark.parametrize("make", [
    small, lambda: tp.attach(small(dropout=0.1), tp.LoRA(rank=2, dropout=0.1), rng=0, head=3),
    lambda: tp.attach(small(), tp.AdaLoRA(t_init=2, t_final=2, delta_t=2), rng=0),
    lambda: tp.attach(small(), tp.PrefixTuning(4), rng=0)], ids=["model", "lora", "adalora", "prefix"])
def test_the_best_parameters_are_kept(make):
    """They are, bit for bit, those that a run has after the best evaluation's step; buffers such as AdaLoRA's too."""
    losses, expected = [5, 3, 4, 3, 6], make()
    tp.train(expected, Noise(), 10, stop_after=4, progress=False)
    for keep in (False, True):
        model = make()
        history = tp.train(model, Scripted(*losses), 10, eval_every=2, keep_best=keep, progress=False)
        assert history.best == [4, {"loss": 3}] and len(history.loss) == 10
        assert same(model.state_dict(), expected.state_dict()) == keep


def test_what_is_kept_needs_an_evaluation_and_a_loss():
    model, expected = small(), small()
    tp.train(model, Scripted(math.nan), 2, eval_every=2, keep_best=True, progress=False)       # there is no best one
    tp.train(expected, Noise(), 2, progress=False)
    assert same(model.state_dict(), expected.state_dict())
    for option in ({"patience": 2}, {"keep_best": True}):
        with pytest.raises(ValueError, match="patience and keep_best need evaluations; give eval_every"):
            tp.train(small(), Noise(), 3, progress=False, **option)
        class Lossless(Noise):
            def finish(self, means, split): return {"accuracy": 1.0}
        with pytest.raises(ValueError, match="the evaluation after step 1 has only accuracy; add a loss to the task's metrics"):
            tp.train(small(), Lossless(), 3, eval_every=1, progress=False, **option)


# -- callbacks -------------------------------------------------------------------------------------
def test_a_callback_sees_every_step():
    """In evaluation mode, before the gradients go; and what it does there changes no number of the run."""
    seen, model, alone = [], tp.attach(small(dropout=0.2), tp.DyLoRA(rank=2), rng=0), tp.attach(
        small(dropout=0.2), tp.DyLoRA(rank=2), rng=0)

    def look(step):
        assert step.model is model and not any(m.training for _, m in model.named_modules())
        assert any(p.grad is not None for p in model.trainable_parameters())
        model.generate([[1, 2]], 3, temperature=1.0, rng=0)
        seen.append((step.step, step.total, step.loss, step.metrics, len(step.history.loss)))
    history = tp.train(model, Noise(), 5, eval_every=2, callbacks=[look], progress=False)
    evals = dict(history.evals)
    assert seen == [(s, 5, history.loss[s - 1], evals.get(s), s) for s in range(1, 6)] and evals.keys() == {2, 4, 5}
    assert tp.train(alone, Noise(), 5, eval_every=2, progress=False).loss == history.loss
    assert same(model.state_dict(), alone.state_dict())


@pytest.mark.parametrize("answer, stops", [
    (True, True), (np.True_, True), (False, False), (np.False_, False), (None, False), (1, False), ("stop", False)])
def test_a_callback_that_returns_true_stops_training(answer, stops, tmp_path):
    """Nothing else does: `writerow` returns a number. All callbacks are called, and the state is written."""
    called = []
    def at_three(step): return answer if step.step == 3 else None
    history = tp.train(small(), Noise(), 5, callbacks=[at_three, lambda step: called.append(step.step)],
                       checkpoint=tmp_path / "c", checkpoint_every=99, progress=False)
    assert len(called) == len(history.loss) == (3 if stops else 5)
    assert history.stopped == ("at_three returned True after step 3" if stops else None)
    whole, resumed = small(), small()
    tp.train(resumed, Noise(), 5, checkpoint=tmp_path / "c", progress=False)
    tp.train(whole, Noise(), 5, progress=False)
    assert same(resumed.state_dict(), whole.state_dict())


def test_what_callbacks_are_for(tmp_path):
    """A log in CSV, text on the way, and a rule of one's own for when to stop."""
    texts, log = [], tmp_path / "log.csv"

    def sample(step):
        if step.step % 4 == 0: texts.append(step.model.generate([[1, 2]], 3).tolist())
    def low(step): return np.mean(step.history.loss[-3:]) < 2.0
    with log.open("w", newline="") as file:
        rows = csv.writer(file)
        history = tp.train(small(), Counting(), 150, batch_size=16, lr=1e-2, progress=False,
                           callbacks=[lambda step: rows.writerow([step.step, step.loss]), sample, low])
    n = len(history.loss)
    assert 4 < n < 150 and len(texts) == n // 4 and history.stopped == f"low returned True after step {n}"
    assert [[int(s), float(loss)] for s, loss in csv.reader(log.open())] == [[i + 1, x] for i, x in enumerate(history.loss)]


def test_an_error_in_a_callback_ends_training_cleanly():
    model = small()
    with pytest.raises(ZeroDivisionError): tp.train(model, Noise(), 3, callbacks=[lambda step: 1 / 0], progress=False)
    assert not model.training and all(p.grad is None for p in model.parameters())


# -- several workers -------------------------------------------------------------------------------
@pytest.mark.parametrize("task", [Noise(), Ragged()], ids=["equal", "ragged"])
def test_workers_change_rounding_only(task):
    runs = []
    for workers in (1, 2, 3):
        model = small().to(np.float64)
        history = tp.train(model, task, N, batch_size=5, workers=workers, progress=False)
        runs.append((history.loss, model.state_dict()))
    for loss, state in runs[1:]:
        assert_close(loss, runs[0][0], 1e-10)
        for name in state:
            if "key.bias" not in name: assert_close(state[name], runs[0][1][name], 1e-8, name)


@pytest.mark.parametrize("cores", [1, 4, 16])
def test_the_machines_cores_change_rounding_only(cores, monkeypatch):
    """Five rows: a worker for each, four workers, or one."""
    expected = small().to(np.float64)
    tp.train(expected, Noise(), 4, batch_size=5, workers=1, progress=False)
    monkeypatch.setattr(threads, "cores", lambda: cores)
    monkeypatch.setattr(backward_of_a_batch, "ENOUGH", 1)
    runs = []
    for _ in range(2):
        model = small().to(np.float64)
        tp.train(model, Noise(), 4, batch_size=5, progress=False)
        runs.append(model.state_dict())
    for name, w in expected.state_dict().items():
        assert np.array_equal(runs[0][name], runs[1][name]), name
        if "key.bias" not in name: assert_close(runs[0][name], w, 1e-8, name)


@pytest.mark.parametrize("cores, rows, length, workers", [
    (2, 8, 16, 1), (2, 4, 128, 1), (2, 8, 128, 2), (2, 1, 256, 1), (4, 8, 128, 1), (4, 8, 256, 4), (16, 64, 256, 16),
    (16, 8, 256, 1)])
def test_workers_have_enough_to_do(cores, rows, length, workers, monkeypatch):
    """A part has 512 tokens 128 wide or more, or one worker takes the batch."""
    parts = []
    monkeypatch.setattr(threads, "cores", lambda: cores)
    monkeypatch.setattr(backward_of_a_batch, "cut", lambda task, batch, n: parts.append(n) or [batch])
    monkeypatch.setattr(backward_of_a_batch, "add_parts", lambda *args: [0.0])
    model = tp.GPT(tp.GPTConfig(8, 256, 128, 1, 4))
    backward(model, Noise(), (np.zeros((rows, length), int),) * 2, workers=None)
    backward(model, Noise(), (np.zeros((rows, length), int),) * 2, workers=None, accumulate=rows)
    assert parts == [workers, rows]


def test_parts_are_weighted_by_what_counts_in_them():
    """The gradient of a batch in three parts is that of the batch, however unevenly its targets are spread."""
    task, whole, parts = Ragged(), small().to(np.float64), small().to(np.float64)
    batch = task.batch("train", 6, np.random.default_rng(0))
    loss = task.loss(whole, batch)
    loss.backward()
    assert_close(backward(parts, task, batch, workers=3), loss, 1e-12)
    for p, q in zip(parts.parameters(), whole.parameters(), strict=True):
        assert np.allclose(p.grad, q.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("task", [Noise(), Ragged(), Classes(), Distil(small(rng=1).to(np.float64))],
                         ids=["equal", "ragged", "classes", "distillation"])
def test_accumulation_changes_rounding_only(task, workers):
    """A step whose batch is cut into parts, one after another, is the step on the batch; 50 parts are one per row."""
    runs = []
    for accumulate in (1, 2, 3, 50):
        model = tp.attach(small().to(np.float64), tp.FullFineTuning(), rng=0, head=3)
        history = tp.train(model, task, 4, batch_size=7, workers=workers, accumulate=accumulate, lr=1e-3, progress=False)
        runs.append((history.loss, model.state_dict()))
    for loss, state in runs[1:]:
        assert_close(loss, runs[0][0], 1e-10)
        for name in state:
            if "key.bias" not in name: assert_close(state[name], runs[0][1][name], 1e-8, name)


@pytest.mark.parametrize("name", ["domain", "classify", "summarize", "invented"])
def test_accumulation_changes_rounding_only_on_every_task(name):
    """The gradient of a batch of each of the package's tasks, in float64, whose parts have different counts."""
    model = tp.load_pretrained().to(np.float64)
    task = getattr(tp.tasks, name)(model)
    tuned = tp.attach(model, tp.LoRA(rank=2, init="gaussian"), rng=0, head=len(task.classes) if name == "classify" else None)
    batch, runs = task.batch("train", 5, np.random.default_rng(0)), []
    for accumulate in (1, 2, 5):
        for p in tuned.trainable_parameters(): p.grad = None
        runs.append((backward(tuned, task, batch, accumulate=accumulate), [p.grad for p in tuned.trainable_parameters()]))
    for loss, grads in runs[1:]:
        assert_close(loss, runs[0][0], 1e-12)
        for g, expected in zip(grads, runs[0][1], strict=True): assert_close(g, expected, 1e-9)


def test_accumulation_takes_the_memory_of_a_part_and_adds_a_penalty_once():
    task, model = Noise(T=24), tp.attach(small().to(np.float64), tp.AdaLoRA(), rng=0)
    batch, found = task.batch("train", 32, np.random.default_rng(0)), []
    for accumulate in (1, 8):
        for p in model.parameters(): p.grad = None
        tracemalloc.start()
        loss = backward(model, task, batch, accumulate=accumulate)
        found.append((loss, [p.grad for p in model.trainable_parameters()], tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    (a, before, whole), (b, after, part) = found
    assert_close(b, a, 1e-12)
    for x, y in zip(before, after, strict=True): assert np.allclose(y, x, rtol=1e-9, atol=1e-14)
    assert part < 0.3 * whole


def test_dropout_draws_the_same_for_any_number_of_workers():
    states = []
    for workers in (1, 2):
        model = small(dropout=0.2)
        tp.train(model, Noise(), 3, workers=workers, progress=False)
        states.append(model.state_dict())
    assert same(*states)


# -- evaluation ------------------------------------------------------------------------------------
class Fixed(Ragged):
    """Three batches of different sizes, and two metrics."""
    def batches(self, split, size):
        rng = np.random.default_rng(0)
        for n in (size, size, 3): yield self.batch(split, n, rng)

    def metrics(self, model, batch):
        return {"loss": self.loss(model, batch).item(), "count": self.count(batch)}

    def finish(self, means, split):
        return {**means, "split": split}


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluate_weights_batches_by_what_counts(workers):
    model, task = small(dropout=0.5).to(np.float64).train(), Fixed()
    got = tp.evaluate(model, task, "test", batch_size=4, workers=workers)
    batches = list(task.batches("test", 4))
    everything = tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert_close(got["loss"], task.loss(model, everything), 1e-12)                         # dropout is off
    n = [task.count(b) for b in batches]
    assert len(set(n)) > 1 and got["count"] == pytest.approx(np.dot(n, n) / sum(n)) and got["split"] == "test"
    assert tp.evaluate(model, task, batch_size=4, max_batches=1)["count"] == n[0]
    assert all(p.grad is None for p in model.parameters())


def test_evaluate_needs_something():
    class Empty(Noise):
        def batches(self, split, size): return iter(())
    with pytest.raises(ValueError, match="evaluate: the split 'test' of .*Empty.* is empty"):
        tp.evaluate(small(), Empty())


# -- misuse, progress ------------------------------------------------------------------------------
def frozen():
    model = small()
    for p in model.parameters(): p.requires_grad = False
    return model


class Silent(Noise):
    def batch(self, split, size, rng): return rng.integers(0, 37, (size, 5)), np.full((size, 5), F.IGNORED)
    def count(self, batch): return int((batch[1] != F.IGNORED).sum())


@pytest.mark.parametrize("misuse, says", [
    (lambda: tp.train(small(), Noise(), 0), "TrainOptions: steps must be a positive integer, got 0"),
    (lambda: tp.train(frozen(), Noise(), 3), "nothing to train, every parameter is frozen"),
    (lambda: tp.train(small(), Noise(), 3, callbacks=len), "TrainOptions: callbacks must be a list of functions, got"),
    (lambda: tp.train(small(), Noise(), 3, callbacks=[3]), "callbacks must be a list of functions, got"),
    (lambda: tp.train(small(), Silent(), 3, progress=False), "nothing counts in a batch of 8 rows"),
    (lambda: tp.train(small(), Noise(vocab_size=38), 30, progress=False), r"must lie in \[0, 37\), got 37"),
])
def test_misuse(misuse, says):
    with pytest.raises(ValueError, match=says):
        misuse()


def test_progress_is_one_line(capsys):
    tp.train(small(), Noise(), 2, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("\r") and err.endswith("\n") and err.count("\n") == 1
    assert "training 2/2  loss 3." in err
    tp.train(small(), Noise(), 2)
    assert capsys.readouterr() == ("", "")               # in a pipe: silent
    with Progress(5, "nothing", show=True): pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stream", [None, "closed", "gone"])
def test_a_terminal_that_is_not_there_ends_no_training(stream, monkeypatch):
    class Gone(io.StringIO):
        def isatty(self): return True
        def write(self, text): raise OSError("input/output error")
    gone = None if stream is None else Gone()
    if stream == "closed": gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    assert len(tp.train(small(), Noise(), 2).loss) == 2


def test_a_classifier_trains_through_classify():
    class Parity(Noise):
        def batch(self, split, size, rng):
            tokens, lengths = rng.integers(0, 37, (size, 6)), rng.integers(1, 7, size)
            return tokens, lengths, tokens[np.arange(size), lengths - 1] % 2
        def count(self, batch): return len(batch[0])
        def loss(self, model, batch): return F.cross_entropy(model.class_logits(*batch[:2]), batch[2])
    tuned = tp.attach(small(), tp.FullFineTuning(), head=2, rng=0)
    history = tp.train(tuned, Parity(), 120, batch_size=16, lr=1e-2, progress=False)
    assert np.mean(history.loss[-10:]) < 0.1 and isinstance(tuned.head, Linear)


def test_the_seconds_are_those_of_the_steps():
    start = time.perf_counter()
    history = tp.train(small(), Noise(), 3, progress=False)
    assert 0 < history.seconds < time.perf_counter() - start
