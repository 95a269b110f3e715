"""checkpoints.py: resuming loses no bit, a crash loses no checkpoint, and another run's is refused."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.methods import SMALL
from tests.stress.attacks import save_raw
from tests.toys import Noise, same, small
from tinypeft.commands.cli import main
from tinypeft.files import disk, load_arrays, save_arrays

N = 9                                                    # steps of most runs below


def plain(): return small()
def with_dropout(): return small(dropout=0.2)
def with_lora(): return tp.attach(small(), tp.LoRA(rank=2, dropout=0.3), rng=0)
def with_adalora(): return tp.attach(small(), tp.AdaLoRA(t_init=1, t_final=2, delta_t=1), rng=0)
def with_prefix(): return tp.attach(tp.GPT(tp.GPTConfig(37, 24, 32, 3, 4)), tp.PrefixTuning(6))       # W2 is a transpose


@pytest.mark.parametrize("make", [plain, with_dropout, with_lora, with_adalora, with_prefix])
def test_resuming_is_never_having_stopped(make, tmp_path):
    task, options = Noise(), dict(eval_every=4, weight_decay=0.1, checkpoint_every=N, progress=False)
    whole = make()
    expected = tp.train(whole, task, N, **options)
    for stop in (1, 5, N - 1, N):                        # at any step, and with another model object each time
        path = tmp_path / f"{stop}.npz"
        first = make()
        tp.train(first, task, N, checkpoint=path, stop_after=stop, **options)
        assert stop == N or not same(first.state_dict(), whole.state_dict())
        second = make()
        history = tp.train(second, task, N, checkpoint=path, **options)
        assert same(second.state_dict(), whole.state_dict())
        assert history.loss == expected.loss and history.evals == expected.evals


@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
def test_a_step_adds_nothing_to_the_state(method):
    """What holds for one step, such as AdaLoRA's weights before it, is no array that a checkpoint keeps."""
    tuned = tp.attach(small(), method, rng=0)
    names = set(tuned.state_dict())

    class Looking(Noise):
        def loss(self, model, batch):
            assert set(model.state_dict()) == names
            return super().loss(model, batch)

    tp.train(tuned, Looking(), 4, workers=1, progress=False)
    assert set(tuned.state_dict()) == names


class Falling(Noise):
    """Random tokens, and given validation losses: the third is the lowest. done: how many came in an earlier run."""
    def __init__(self, done=0):
        super().__init__()
        self.losses = [5.0, 4.0, 3.0, 3.5, 3.0, 9.0, 8.0, 7.0, 6.0][done:]

    def finish(self, means, split): return {"loss": self.losses.pop(0)}


@pytest.mark.parametrize("make", [plain, with_lora, with_adalora, with_prefix])
@pytest.mark.parametrize("patience", [None, 3])
def test_the_best_parameters_survive_a_stop(make, patience, tmp_path):
    """However often a run is stopped, it ends with the same parameters, and gives up at the same step."""
    options = dict(eval_every=1, checkpoint_every=N, keep_best=True, patience=patience, progress=False)
    whole = make()
    expected = tp.train(whole, Falling(), N, **options)
    assert expected.best[0] == 3 and len(expected.loss) == (6 if patience else N)
    for stop in (1, 3, 5, 6, N):
        path = tmp_path / f"{stop}"
        tp.train(make(), Falling(), N, checkpoint=path, stop_after=stop, **options)
        for _ in range(2):                               # the second time there is nothing left to do
            second = make()
            history = tp.train(second, Falling(stop), N, checkpoint=path, **options)
            assert same(second.state_dict(), whole.state_dict()), stop
            assert (history.loss, history.evals, history.stopped) == (expected.loss, expected.evals, expected.stopped)


def test_more_patience_goes_on_where_less_gave_up(tmp_path):
    path, whole, resumed = tmp_path / "c", small(), small()
    options = dict(eval_every=1, progress=False)
    first = tp.train(small(), Falling(), N, checkpoint=path, patience=2, **options)
    assert len(first.loss) == 5 and first.stopped
    history = tp.train(resumed, Falling(5), N, checkpoint=path, **options)
    tp.train(whole, Falling(), N, **options)
    assert len(history.loss) == N and history.stopped is None and same(resumed.state_dict(), whole.state_dict())


def test_best_parameters_that_do_not_fit_are_refused(tmp_path):
    path, options = tmp_path / "c", dict(eval_every=1, keep_best=True, progress=False)
    tp.train(small(), Falling(), N, checkpoint=path, stop_after=4, **options)
    arrays, meta = load_arrays(path)
    model = small()
    before = {n: a.copy() for n, a in model.state_dict().items()}
    name = "best/blocks.0.mlp.up.weight"
    without = {n: a for n, a in arrays.items() if not n.startswith("best/")}
    for broken, says in (({**arrays, name: arrays[name][:3]}, "the best model's blocks.0.mlp.up.weight has shape"),
                         (without, "it has 0 arrays of the best evaluation, which is after step 3")):
        save_arrays(path, broken, meta)
        with pytest.raises(ValueError, match=says): tp.train(model, Falling(4), N, checkpoint=path, **options)
        assert same(model.state_dict(), before)
    with pytest.raises(ValueError, match="keep_best was True, is False"):
        tp.train(model, Noise(), N, checkpoint=path, progress=False)


def test_a_run_that_crashed_goes_on_from_its_last_checkpoint(tmp_path):
    class Crashing(Noise):
        def batch(self, split, size, rng):
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == 8: raise KeyboardInterrupt
            return super().batch(split, size, rng)
    path, crashed, resumed, whole = tmp_path / "c.npz", small(), small(), small()
    with pytest.raises(KeyboardInterrupt):
        tp.train(crashed, Crashing(), N, checkpoint=path, checkpoint_every=3, progress=False)
    assert not any(m.training for _, m in crashed.named_modules())
    assert load_arrays(path)[1]["step"] == 6
    task = Crashing()
    tp.train(resumed, task, N, checkpoint=path, checkpoint_every=N, progress=False)
    assert task.steps == 3                               # steps 6, 7, 8 and no others
    tp.train(whole, Noise(), N, progress=False)
    assert same(resumed.state_dict(), whole.state_dict())


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    tp.train(small(), Noise(), N, checkpoint=path, stop_after=4, checkpoint_every=N, progress=False)
    before = path.read_bytes()

    def crash(file): raise OSError("no space left on device")
    monkeypatch.setattr(disk.os, "fsync", crash)
    with pytest.raises(OSError, match="no space left"):
        tp.train(small(), Noise(), N, checkpoint=path, progress=False)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


class Stopped(Noise):
    """A signal arrives in the sixth step (and, with `again`, a second one)."""
    def __init__(self, number, again=False):
        super().__init__()
        self.number, self.again, self.steps = number, again, 0

    def batch(self, split, size, rng):
        self.steps += split == "train"
        if self.steps == 6 and split == "train":
            for _ in range(1 + self.again): signal.raise_signal(self.number)
        return super().batch(split, size, rng)


@pytest.mark.parametrize("make", [with_dropout, with_lora])
def test_ctrl_c_acts_at_the_end_of_its_step_and_leaves_a_checkpoint(make, tmp_path):
    path, task, options = tmp_path / "c", Stopped(signal.SIGINT), dict(eval_every=3, progress=False)
    model, resumed, whole = make(), make(), make()
    with pytest.raises(KeyboardInterrupt):
        tp.train(model, task, N, checkpoint=path, checkpoint_every=100, **options)
    assert task.steps == 6 and load_arrays(path)[1]["step"] == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not model.training
    history, expected = tp.train(resumed, Noise(), N, checkpoint=path, **options), tp.train(whole, Noise(), N, **options)
    assert same(resumed.state_dict(), whole.state_dict())
    assert history.loss == expected.loss and history.evals == expected.evals


def test_ctrl_c_without_a_checkpoint_leaves_the_model_at_the_end_of_its_step():
    model, expected, task = small(), small(), Stopped(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): tp.train(model, task, N, workers=1, progress=False)
    tp.train(expected, Noise(), N, workers=1, stop_after=6, progress=False)
    assert same(model.state_dict(), expected.state_dict()) and all(p.grad is None for p in model.parameters())


def test_ctrl_c_twice_acts_at_once(tmp_path):
    model, path = small(), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        tp.train(model, Stopped(signal.SIGINT, again=True), N, checkpoint=path, checkpoint_every=4, workers=1, progress=False)
    assert load_arrays(path)[1]["step"] == 4 and not model.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM to catch")
def test_sigterm_ends_the_process_after_a_checkpoint(tmp_path):
    child = ("import sys, tinypeft as tp; from tests.training.test_checkpoints import *; "
             "tp.train(small(), Stopped(signal.SIGTERM), N, checkpoint=sys.argv[1], checkpoint_every=100, progress=False); "
             "print('it went on')")
    done = subprocess.run([sys.executable, "-c", child, tmp_path / "c"], cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == -signal.SIGTERM and not done.stdout and load_arrays(tmp_path / "c")[1]["step"] == 6


@pytest.mark.parametrize("steps, at", [(30, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]), (9, list(range(1, 10)))])
def test_at_default_settings_a_checkpoint_is_written_every_tenth_of_a_run(steps, at, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(sys.modules["tinypeft.training.run"], "save_checkpoint", lambda *args: found.append(args[5]))
    tp.train(small(), Noise(), steps, checkpoint=tmp_path / "c", progress=False)
    assert found == at


def test_the_command_line_writes_checkpoints_too(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(sys.modules["tinypeft.training.run"], "save_checkpoint", lambda *args: found.append(args[5]))
    assert main(["finetune", "prompt", "--quick", "--steps", "4", "--checkpoint", str(tmp_path / "c")]) == 0
    assert found == [1, 2, 3, 4]


# -- a checkpoint that is refused ------------------------------------------------------------------
def arrays_of(kind, change):
    """A change of the first array of a kind, such as "model/" or "optimizer/v"."""
    def damage(arrays, meta):
        name = next(name for name in arrays if name.startswith(kind))
        arrays[name] = change(arrays[name].copy())
    return damage


def first(value):
    def change(a):
        a.flat[0] = value
        return a
    return change


def history(**changes): return lambda arrays, meta: meta["history"].update(changes)
def described(**changes): return lambda arrays, meta: meta.update(changes)


DAMAGES = [
    (described(step=10**9), r"its step is 1000000000, expected an integer from 0 to 9"),
    (described(step=-1), "its step is -1"), (described(step=4.0), "its step is 4.0"),
    (described(step=True), "its step is True"), (described(step="4"), "its step is '4'"),
    (lambda arrays, meta: meta.pop("step"), "its step is None"),
    (described(step=5), "its history is not that of a run of . steps"),
    (arrays_of("optimizer/t", lambda t: t + 1), "its step is 4, but its optimizer took 5"),
    (arrays_of("optimizer/t", lambda t: -t), "t is -4, expected t ≥ 0"),
    (arrays_of("optimizer/t", lambda t: t.astype(float)), "t has dtype float64, expected int64"),
    (arrays_of("optimizer/v", first(-1)), "v.0 holds a number below 0"),
    (arrays_of("optimizer/m", lambda m: m[:1]), r"m.0 has shape \(1, 16\), expected \(37, 16\)"),
    (lambda arrays, meta: arrays.pop("optimizer/m.0"), r"arrays lack \['m.0'\]"),
    (lambda arrays, meta: arrays.pop("model/final_norm.bias"), r"the model's arrays lack \['final_norm.bias'\]"),
    (arrays_of("model/token_embedding", lambda a: a.astype(np.float64)), "weight has dtype float64, expected float32"),
    (arrays_of("model/token_embedding", lambda a: a.T.copy()), r"weight has shape \(16, 37\), expected \(37, 16\)"),
    (arrays_of("model/", first(np.nan)), "finite"), (arrays_of("optimizer/m", first(np.inf)), "finite"),
    (arrays_of("model/", lambda a: a + 1j), "numbers"),
    *((history(**change), "its history is not that of a run of 4 steps") for change in (
        {"loss": [1.0]}, {"loss": ["x"] * 4}, {"loss": 4}, {"loss": [10**400] * 4}, {"loss": {}}, {"loss": [1.0, 2, 1.0, 1.0]},
        {"evals": [3]}, {"evals": [[9, {}]]}, {"evals": [[2, {"loss": "x"}]]}, {"evals": [["2", {}]]}, {"evals": {}},
        {"seconds": "a"}, {"seconds": -1}, {"more": 1})),
    (described(history=[]), "its history is not that"), (lambda arrays, meta: meta.pop("history"), "its history is not that"),
    (described(settings=[]), "does not state the settings")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage, says", DAMAGES)
def test_a_checkpoint_that_is_damaged_changes_nothing(damage, says, tmp_path):
    path, model = tmp_path / "c", small()
    tp.train(small(), Noise(), N, checkpoint=path, stop_after=4, checkpoint_every=N, progress=False)
    arrays, meta = load_arrays(path)
    damage(arrays, meta)
    save_raw(path, arrays, meta)                         # `save_arrays` refuses some of these
    before = {n: a.copy() for n, a in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"checkpoint.*c cannot be resumed: .*{says}|c is not a file that .*{says}"):
        tp.train(model, Noise(), N, checkpoint=path, progress=False)
    assert same(model.state_dict(), before) and all(p.grad is None for p in model.parameters())


def test_an_interrupt_while_resuming_changes_nothing(tmp_path, monkeypatch):
    """Not even one in the middle of the arrays: those that were replaced are put back."""
    path, model = tmp_path / "c", small()
    tp.train(small(), Noise(), N, checkpoint=path, stop_after=4, checkpoint_every=N, progress=False)
    before, load, calls = {n: a.copy() for n, a in model.state_dict().items()}, tp.GPT.load_state_dict, []

    def interrupted(self, state, strict=True):
        calls.append(state)
        if len(calls) > 1: return load(self, state, strict)
        load(self, {k: state[k] for k in list(state)[:5]}, strict=False)
        raise KeyboardInterrupt
    monkeypatch.setattr(tp.GPT, "load_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt): tp.train(model, Noise(), N, checkpoint=path, progress=False)
    assert same(model.state_dict(), before) and len(calls) == 2


def test_stopping(tmp_path):
    path, model = tmp_path / "c.npz", small()
    before = {n: a.copy() for n, a in model.state_dict().items()}
    assert tp.train(model, Noise(), N, checkpoint=path, stop_after=0, progress=False).loss == []
    assert same(model.state_dict(), before) and not path.exists()
    assert len(tp.train(model, Noise(), N, stop_after=99, progress=False).loss) == N
    assert len(tp.train(small(), Noise(), N, checkpoint=path, stop_after=2, checkpoint_every=N, progress=False).loss) == 2
    assert len(tp.train(small(), Noise(), N, checkpoint=path, stop_after=1, progress=False).loss) == 2      # already further


@pytest.mark.parametrize("changed, told", [
    ({"lr": 0.5}, "lr was 0.001, is 0.5"), ({"steps": 10}, "steps was 9, is 10"), ({"seed": 1}, "seed was 0, is 1"),
    ({"batch_size": 4}, "batch_size was 8, is 4"), ({"betas": (0.8, 0.9)}, r"betas was \[0.9, 0.999\], is \[0.8, 0.9\]"),
    ({"head_lr": 0.1}, "head_lr was None, is 0.1"), ({"accumulate": 2}, "accumulate was 1, is 2"),
    ({"model": tp.LoRA(alpha=1.0)}, r"method was None, is LoRA\(rank=8, alpha=1.0\)")])
def test_a_checkpoint_of_another_run_is_refused(changed, told, tmp_path):
    path, changed = tmp_path / "c.npz", dict(changed)
    tp.train(small(), Noise(), N, lr=1e-3, checkpoint=path, stop_after=2, checkpoint_every=N, progress=False)
    model = small()
    if "model" in changed: model = tp.attach(model, changed.pop("model"))
    before = {n: a.copy() for n, a in model.state_dict().items()}
    refused = rf"c.npz cannot be resumed: it belongs to another run \(.*{told}.*\); give another file or the same settings"
    with pytest.raises(ValueError, match=refused):
        tp.train(model, Noise(), **{"steps": N, "lr": 1e-3, "checkpoint": path, "progress": False, **changed})
    assert same(model.state_dict(), before)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "c.npz"
    tp.train(small(), Noise(), N, lr=1e-3, checkpoint=path, stop_after=2, checkpoint_every=N, progress=False)
    other = tp.GPT(tp.GPTConfig(37, 24, 8, 2, 4))
    with pytest.raises(ValueError, match=r"token_embedding.weight has shape \(37, 16\), expected \(37, 8\)"):
        tp.train(other, Noise(), N, lr=1e-3, checkpoint=path, progress=False)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="c.npz is not a file that tinypeft wrote"):
        tp.train(small(), Noise(), N, checkpoint=path, progress=False)


def test_an_evaluation_after_the_first_step_is_kept(tmp_path):
    """And the method is named in the settings: null where there is none."""
    path, options = tmp_path / "c", dict(eval_every=1, checkpoint=tmp_path / "c", progress=False)
    first = tp.train(small(), Noise(), 3, stop_after=1, **options)
    whole = tp.train(small(), Noise(), 3, **options)
    assert [step for step, _ in whole.evals] == [1, 2, 3] and whole.evals[0] == first.evals[0]
    assert load_arrays(path)[1]["settings"]["method"] is None
