"""DyLoRA: every rank is its truncation, training touches what the mask holds and nothing else, and the curve is flat."""
import dataclasses
from typing import ClassVar

import numpy as np
import pytest

import tinypeft as tp
from tests import protocol
from tests.conftest import make_gpt
from tests.oracles import assert_close
from tests.protocol import move
from tests.toys import Distil, Noise, linear_paths, planted
from tinypeft.files import load_arrays, save_arrays

FIVE = tp.DyLoRA(rank=5, alpha=3.0, targets=("query", "up"))
QUERY = "blocks.0.attention.query"


def learned(model, method=FIVE):
    return protocol.learned(model, method)


@dataclasses.dataclass(frozen=True)
class Watched(tp.DyLoRA):
    """Notes the rank of every step, and what its first layer is after it."""
    ranks_drawn: ClassVar[list] = []
    A: ClassVar[list] = []
    B: ClassVar[list] = []

    def after_step(self, layers, step, total):
        layer = next(iter(layers.values()))
        self.ranks_drawn.append(layer.rank_drawn)
        self.A.append(layer.A.data.copy())
        self.B.append(layer.B.data.copy())
        super().after_step(layers, step, total)


def watch(method, **options):
    for seen in (Watched.ranks_drawn, Watched.A, Watched.B): seen.clear()
    return Watched(**{**dataclasses.asdict(method), **options})


# -- one model, every rank -----------------------------------------------------------------------
def test_a_fresh_dylora_is_the_identity_bit_for_bit(gpt, tokens):
    model = gpt(np.float32)
    before = model(tokens).data
    tuned = tp.attach(model, FIVE)
    for b in range(1, 6): assert np.array_equal(tuned.set_rank(b)(tokens).data, before)


@pytest.mark.parametrize("rescale", [True, False])
def test_at_every_rank_it_is_the_explicit_truncation_numerical(rescale, gpt, tokens):
    model = gpt()
    tuned = learned(model, dataclasses.replace(FIVE, rescale=rescale))
    state, logits = tuned.state_dict(), [tuned.set_rank(b)(tokens).data for b in range(1, 6)]
    merged = [tuned.set_rank(b).merge()(tokens).data for b in range(1, 6)]
    for b in range(1, 6):
        lora = tp.LoRA(rank=b, alpha=3.0 if rescale else 3.0 * b / 5, targets=FIVE.targets)
        lora = tp.attach(model, {"DyLoRA": lora})                                # so that its arrays have the same names
        lora.load_state_dict({n: a[:b] if n.endswith("A") else a[:, :b] for n, a in state.items()
                              if n.endswith((".A", ".B"))})
        assert_close(logits[b - 1], lora(tokens), 1e-12)
        assert_close(merged[b - 1], lora(tokens), 1e-12)
    assert len({a.tobytes() for a in logits}) == 5


def test_ranks_and_svd_are_those_of_the_rank_in_use(gpt):
    tuned = learned(gpt())
    layer = tuned.set_rank(2).wrappers[QUERY]
    assert set(tuned.ranks().values()) == {2} and np.linalg.matrix_rank(layer.delta()) == 2
    U, S, Vt = layer.svd()
    assert S.shape == (2,)
    assert_close((U * S) @ Vt, layer.delta(), 1e-12)
    assert set(tuned.set_rank(5).ranks().values()) == {5}


def test_a_file_holds_its_rank(gpt, tokens, tmp_path):
    tuned = learned(gpt(np.float32)).set_rank(2)
    tuned.save(tmp_path / "at2")
    logits = tuned(tokens).data
    assert load_arrays(tmp_path / "at2" / "adapter.safetensors")[0][f"DyLoRA/{QUERY}.b"] == 2
    loaded = tp.load_adapter(gpt(np.float32), tmp_path / "at2")
    assert set(loaded.ranks().values()) == {2} and np.array_equal(loaded(tokens).data, logits)


# -- gradients -----------------------------------------------------------------------------------
def gradients(tuned, tokens, b):
    """name → gradient of A and B in a training step at rank b, for a fixed upstream gradient."""
    tuned.train()
    for w in tuned.wrappers.values(): w.start_step(b)
    for p in tuned.trainable_parameters(): p.grad = None
    y = tuned(tokens)
    y.backward(np.random.default_rng(9).standard_normal(y.shape))
    return {f"{path}.{n}": p.grad for path, w in tuned.wrappers.items() for n, p in (("A", w.A), ("B", w.B))}


@pytest.mark.parametrize("b", [1, 3, 5])
def test_gradients_of_every_trainable_tensor_at_every_rank_numerical(b, gpt, tokens):
    tuned = learned(gpt())
    tuned.train()
    for w in tuned.wrappers.values(): w.start_step(b)
    tp.gradcheck(lambda *_: tuned(tokens), *tuned.trainable_parameters(), directions=2)
    for name, g in gradients(tuned, tokens, b).items():
        rows = g if name.endswith("A") else g.T
        assert not rows[b:].any() and rows[:b].any(axis=1).all()


@pytest.mark.parametrize("block", [1, 2])
def test_frozen_gradients_are_the_unfrozen_ones_of_the_last_block_numerical(block, gpt, tokens):
    six = dataclasses.replace(FIVE, rank=6, block_size=block)
    free, frozen = (learned(gpt(), dataclasses.replace(six, frozen=f)) for f in (False, True))
    for b in six.ranks:
        want, got = gradients(free, tokens, b), gradients(frozen, tokens, b)
        for name in want:
            w, g = (a[name] if name.endswith("A") else a[name].T for a in (want, got))
            assert_close(g[b - block:b], w[b - block:b], 1e-12, name)
            assert not g[:b - block].any() and not g[b:].any()


# -- training ------------------------------------------------------------------------------------
TRAIN = dict(lr=1e-2, schedule_kind="constant", warmup=0, clip=None, workers=1)


@pytest.mark.parametrize("options", [{}, dict(frozen=True), dict(rank=6, block_size=2, frozen=True),
                                     dict(rank_min=3, frozen=True),
                                     dict(distribution="geometric", p=0.4, rank_min=2)], ids=str)
def test_20_steps_of_adamw_equal_explicit_truncation_in_pytorch_numerical(options, gpt, tokens):
    pytest.importorskip("torch")
    from tests.oracles import torch_dylora
    method = watch(FIVE, **options)
    tuned = learned(gpt(), method)
    model, layers = torch_dylora.dylora(tuned, method.alpha)
    assert_close(tuned(tokens), model(tokens), 1e-12)
    ours = tp.train(tuned, Noise(), 20, weight_decay=0.1, **TRAIN)
    assert set(method.ranks_drawn) <= set(method.ranks) and len(set(method.ranks_drawn)) > 2
    losses = torch_dylora.train(model, layers, Noise(), method.ranks_drawn, 8, 1e-2, weight_decay=0.1,
                                block=method.block_size if method.frozen else None, smallest=method.ranks[0])
    assert_close(ours.loss, losses, 1e-10)
    for path, m in layers.items():
        assert_close(tuned.wrappers[path].A, m.A, 1e-8, path)
        assert_close(tuned.wrappers[path].B, m.B, 1e-8, path)


@pytest.mark.parametrize("options", [{}, dict(frozen=True), dict(rank=6, block_size=3, frozen=True)], ids=str)
def test_rows_outside_the_mask_do_not_move_by_moments_or_decay(options, gpt):
    method = watch(FIVE, **options)
    tuned = learned(gpt(np.float32), method)
    start = tuned.wrappers[QUERY].A.data.copy(), tuned.wrappers[QUERY].B.data.copy()
    tp.train(tuned, Noise(), 25, lr=1e-2, weight_decay=0.1)
    for before, seen in zip(start, (method.A, [*method.B]), strict=True):
        for b, old, new in zip(method.ranks_drawn, [before, *seen], seen, strict=False):
            moved = (old != new).any(axis=int(old.shape[0] == method.rank))       # A moves by rows, B by columns
            first = b - method.block_size if method.frozen else 0
            assert np.array_equal(np.flatnonzero(moved), np.arange(first, b)), b
    assert {1, 5} <= set(method.ranks_drawn) or method.rank == 6


@pytest.mark.parametrize("options", [dict(rank_min=4), dict(rank_min=3, block_size=2), dict(rank_min=8), {}], ids=str)
def test_frozen_training_reaches_every_row_and_column(options, gpt):
    """At the smallest rank no earlier row is held: below it, no other step would train them."""
    method = tp.DyLoRA(rank=8, frozen=True, **options)
    tuned = tp.attach(gpt(np.float32), method)
    start = {path: w.A.data.copy() for path, w in tuned.wrappers.items()}
    tp.train(tuned, Noise(), 40, lr=1e-2)
    for path, w in tuned.wrappers.items():
        assert w.B.data.any(0).all() and (w.A.data != start[path]).any(1).all(), path
    trained = [range(method.first_trained(b), b) for b in method.ranks]
    assert sorted(i for rows in trained for i in rows) == list(range(8))          # each row at one rank


@pytest.mark.parametrize("where", ["task", "forward", "after_step"])
def test_no_mask_is_left_when_training_is_interrupted(where, gpt, tokens, monkeypatch):
    def stop(*_): raise KeyboardInterrupt
    task, tuned = Noise(), learned(gpt(np.float32))
    if where == "task": task.batch = stop
    if where == "forward": task.loss = lambda model, batch: (model(batch[0]), stop())
    if where == "after_step": tuned.after_step = stop
    with pytest.raises(KeyboardInterrupt): tp.train(tuned, task, 3)
    layers = [m for m in tuned.wrappers.values()]
    assert all(p.update_mask.all() for w in layers for p in (w.A, w.B)) and {w.rank_drawn for w in layers} == {None}
    before = {n: a.copy() for n, a in tuned.state_dict().items() if n.endswith(("A", "B"))}
    optimizer = tp.optim.AdamW(tuned.trainable_parameters(), lr=1e-2)             # it trains all rows, as before
    tp.functional.cross_entropy(tuned(tokens), tokens).backward()
    optimizer.step()
    assert all((tuned.state_dict()[n] != a).any(int(n.endswith("A"))).all() for n, a in before.items())


def test_after_training_the_rank_is_the_full_one_and_nothing_is_masked(gpt, tokens):
    tuned = learned(gpt())
    tp.train(tuned, Noise(), 3)
    assert set(tuned.ranks().values()) == {5} and all(p.update_mask.all() for p in tuned.trainable_parameters())
    assert np.array_equal(tuned(tokens).data, tuned.set_rank(5)(tokens).data)
    tuned.set_rank(2)
    at_2 = tuned(tokens).data
    tuned.train().before_step(0, 1)                                           # a step that was never finished
    assert np.array_equal(tuned.eval()(tokens).data, at_2)
    tp.train(tuned, Noise(), 1, lr=0.0)
    assert np.array_equal(tuned(tokens).data, at_2)                           # set_rank outlasts training


def test_stopped_and_resumed_is_the_same_bit_for_bit(gpt, tmp_path):
    def run(**options):
        tuned = tp.attach(gpt(np.float32), FIVE, rng=0)
        tp.train(tuned, Noise(), 20, lr=1e-2, checkpoint_every=100, **options)
        return tuned.state_dict()
    whole, file = run(), tmp_path / "run.npz"
    run(checkpoint=file, stop_after=9)
    resumed = run(checkpoint=file)
    assert whole.keys() == resumed.keys() and all(np.array_equal(whole[n], resumed[n]) for n in whole)


def test_ranks_are_drawn_from_the_distribution_by_its_name(gpt):
    assert np.array_equal(FIVE.probabilities(), np.full(5, 0.2))
    geometric = tp.DyLoRA(rank=6, rank_min=3, distribution="geometric", p=0.25)
    assert geometric.ranks == [3, 4, 5, 6] and geometric.probabilities().sum() == pytest.approx(1)
    assert np.allclose(geometric.probabilities()[1:] / geometric.probabilities()[:-1], 0.75)
    assert tp.DyLoRA(rank=8, block_size=2, rank_min=3).ranks == [4, 6, 8]

    tuned = tp.attach(gpt(), geometric)
    tuned.rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        tuned.before_step(0, 1)
        drawn.append({w.rank_drawn for w in tuned.wrappers.values()})
    assert all(len(d) == 1 for d in drawn)                                    # one draw for all layers
    share = np.bincount([d.pop() for d in drawn], minlength=7)[3:] / 4000
    assert np.abs(share - geometric.probabilities()).max() < 4 * (0.25 / 4000) ** 0.5


def test_on_a_quantized_base(gpt, tokens):
    tuned = tp.attach(tp.quantize(gpt(np.float32), tp.NF4(block_size=16)), FIVE)
    tp.train(tuned, Noise(), 5, lr=1e-2)
    for b in (2, 5): assert_close(tuned.set_rank(b).merge()(tokens), tuned(tokens), 1e-5)


# -- search --------------------------------------------------------------------------------------
class Counted(Noise):
    """Counts how often a batch is read."""
    read = 0

    def batches(self, split, size):
        for batch in super().batches(split, size):
            self.read += 1
            yield batch


def test_search_measures_every_rank_in_one_pass_and_picks_the_best(gpt):
    tuned, task = learned(gpt()).set_rank(4), Counted()
    _, metrics = tp.search_rank(tuned, task)
    assert task.read == 4 and set(tuned.ranks().values()) == {4}
    for b in range(1, 6):
        assert metrics[b]["loss"] == pytest.approx(tp.evaluate(tuned.set_rank(b), Noise(), "validation")["loss"], rel=1e-12)

    task = Distil(tuned.set_rank(3).merge())                                  # at rank 3 there is nothing to improve
    best, metrics = tp.search_rank(tuned, task)
    loss = {b: m["loss"] for b, m in metrics.items()}
    assert best == 3 and abs(loss[3]) < 1e-12 and loss[1] > 0 and loss[2] > 0
    assert tp.search_rank(tuned, task, tolerance=1.001 * max(loss.values()))[0] == 1
    assert tp.search_rank(tuned, task, tolerance=(loss[1] + loss[2]) / 2)[0] == (2 if loss[2] < loss[1] else 1)


def test_search_beside_other_methods(gpt):
    """Their ranks are no ranks to search, and what is off is not searched."""
    tuned = tp.attach(gpt(), tp.LoRA(3, targets="all"), {"dylora": FIVE, "two": tp.DyLoRA(2, targets=("up",))}, tp.IA3())
    move(tuned, np.random.default_rng(0))
    with pytest.raises(tp.MethodError, match="search_rank: expected one method that learns at several ranks.*; 2 of"):
        tp.search_rank(tuned, Noise())
    tuned.detach("two")
    tuned.set_rank(4)
    part, logits = tuned.parts["dylora"], tuned(np.arange(6)[None]).data
    _, metrics = tp.search_rank(tuned, Noise())
    assert {w.rank for w in part.wrappers.values()} == {4} and np.array_equal(tuned(np.arange(6)[None]).data, logits)
    for b in part.method.ranks:
        assert metrics[b]["loss"] == pytest.approx(tp.evaluate(tuned.set_rank(b), Noise(), "validation")["loss"], rel=1e-12)
    tuned.detach("dylora")
    with pytest.raises(tp.MethodError, match="; 0 of those that are on do"): tp.search_rank(tuned, Noise())


def test_search_needs_a_method_on_the_model(gpt):
    tuned = tp.attach(gpt(), FIVE)
    tuned.merge("DyLoRA", in_place=True)
    with pytest.raises(tp.MethodError, match="no methods any more"): tp.search_rank(tuned, Noise())
    with pytest.raises(tp.MethodError, match="no methods any more"): tp.train(tuned, Noise(), 1, progress=False)
    with pytest.raises(tp.MethodError, match="no methods any more"): tp.find_rate(tuned, Noise())


@pytest.mark.long
def test_the_curve_over_b_is_below_truncated_loras_direction(seeds):
    """DyLoRA trained once, LoRA of rank 8 cut to b, rescaled to α/b or not (the better of the two); planted rank 4 everywhere.

    Measured over seeds 0–2, mean KL over b = 1 … 6: DyLoRA 0.064, 0.035, 0.093; truncated LoRA 0.165, 0.173, 0.255.
    """
    for seed in seeds:
        base = make_gpt(np.float32, rng=seed)
        task, curves = Distil(planted(base, dict.fromkeys(linear_paths(base), 4), seed)), {}
        for method in (tp.LoRA(rank=8, targets="all"), tp.DyLoRA(rank=8, targets="all")):
            tuned = tp.attach(base, {"either": method}, rng=seed)
            tp.train(tuned, task, 300, batch_size=16, lr=1e-2, seed=seed, workers=1)
            learned = {n: a for n, a in tuned.state_dict().items() if n.endswith((".A", ".B"))}
            for rescale in (True, False):
                tuned = tp.attach(base, {"either": tp.DyLoRA(rank=8, targets="all", rescale=rescale)})
                tuned.load_state_dict(learned, strict=False)
                _, metrics = tp.search_rank(tuned, task)
                curves[type(method), rescale] = np.array([metrics[b]["loss"] for b in range(1, 9)])
        dylora, cut = curves[tp.DyLoRA, True], np.minimum(curves[tp.LoRA, True], curves[tp.LoRA, False])
        assert (dylora[:6] < 0.85 * cut[:6]).all(), (dylora, cut)
        assert dylora[:6].mean() < 0.5 * cut[:6].mean(), (dylora, cut)
        assert dylora[0] / dylora[-1] < 0.5 * cut[0] / cut[-1]                # flatter


# -- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("make, words", [
    (lambda: tp.DyLoRA(rank=8, block_size=3), "block_size=3.: block_size does not divide rank 8"),
    (lambda: tp.DyLoRA(rank=4, rank_min=5), "rank_min 5 exceeds rank 4"),
    (lambda: tp.attach(make_gpt(), FIVE).set_rank(0), r"\[1, 2, 3, 4, 5\], not at 0"),
    (lambda: tp.attach(make_gpt(), FIVE).set_rank(6), "not at 6"),
    (lambda: tp.attach(make_gpt(), FIVE).set_rank(2.5), "not at 2.5"),
    (lambda: tp.attach(make_gpt(), tp.DyLoRA(block_size=4)).set_rank(5), r"\[4, 8\], not at 5")])
def test_what_makes_no_sense_raises_before_training_and_says_why(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_checkpoint_with_a_rank_that_it_does_not_train_is_refused(gpt, tokens, tmp_path):
    """As a folder is: what was loaded is given back."""
    file, fresh = tmp_path / "run", tp.attach(gpt(np.float32), FIVE)
    before = fresh(tokens).data
    tp.train(tp.attach(gpt(np.float32), FIVE), Noise(), 4, checkpoint=file, stop_after=2)
    arrays, meta = load_arrays(file)
    save_arrays(file, {n: np.full_like(a, 9) if n.endswith(f"{QUERY}.b") else a.copy() for n, a in arrays.items()}, meta)
    with pytest.raises(ValueError, match="cannot be resumed: b is 9, expected one of the ranks"):
        tp.train(fresh, Noise(), 4, checkpoint=file)
    assert np.array_equal(fresh(tokens).data, before) and fresh.wrappers[QUERY].rank == 5
