"""checkpoints.py: resuming loses no bit, a crash loses no checkpoint, and another run's is refused."""
import pytest

import tinypeft as tp
from tests.toys import Noise, same, small
from tinypeft.files import disk, load_arrays, save_arrays

N = 9                                                    # steps of most runs below


def plain(): return small()
def with_dropout(): return small(dropout=0.2)
def with_lora(): return tp.attach(small(), tp.LoRA(rank=2, dropout=0.3), rng=0)
def with_prefix(): return tp.attach(tp.GPT(tp.GPTConfig(37, 24, 32, 3, 4)), tp.PrefixTuning(6))       # W2 is a transpose


@pytest.mark.parametrize("make", [plain, with_dropout, with_lora, with_prefix])
def test_resuming_is_never_having_stopped(make, tmp_path):
    task, options = Noise(), dict(eval_every=4, weight_decay=0.1, progress=False)
    whole = make()
    expected = tp.train(whole, task, N, **options)
    for stop in (1, 5, N):                               # at any step, and with another model object each time
        path = tmp_path / f"{stop}.npz"
        first = make()
        tp.train(first, task, N, checkpoint=path, stop_after=stop, **options)
        assert stop == N or not same(first.state_dict(), whole.state_dict())
        second = make()
        history = tp.train(second, task, N, checkpoint=path, **options)
        assert same(second.state_dict(), whole.state_dict())
        assert history.loss == expected.loss and history.evals == expected.evals


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
    tp.train(resumed, task, N, checkpoint=path, progress=False)
    assert task.steps == 3                               # steps 6, 7, 8 and no others
    tp.train(whole, Noise(), N, progress=False)
    assert same(resumed.state_dict(), whole.state_dict())


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    tp.train(small(), Noise(), N, checkpoint=path, stop_after=4, progress=False)
    before = path.read_bytes()

    def crash(file): raise OSError("no space left on device")
    monkeypatch.setattr(disk.os, "fsync", crash)
    with pytest.raises(OSError, match="no space left"):
        tp.train(small(), Noise(), N, checkpoint=path, progress=False)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_stopping(tmp_path):
    path, model = tmp_path / "c.npz", small()
    before = {n: a.copy() for n, a in model.state_dict().items()}
    assert tp.train(model, Noise(), N, checkpoint=path, stop_after=0, progress=False).loss == []
    assert same(model.state_dict(), before) and not path.exists()
    assert len(tp.train(model, Noise(), N, stop_after=99, progress=False).loss) == N
    assert len(tp.train(small(), Noise(), N, checkpoint=path, stop_after=2, progress=False).loss) == 2
    assert len(tp.train(small(), Noise(), N, checkpoint=path, stop_after=1, progress=False).loss) == 2      # already further


@pytest.mark.parametrize("changed, told", [
    ({"lr": 0.5}, "lr was 0.001, is 0.5"), ({"steps": 10}, "steps was 9, is 10"), ({"seed": 1}, "seed was 0, is 1"),
    ({"batch_size": 4}, "batch_size was 8, is 4"), ({"betas": (0.8, 0.9)}, r"betas was \[0.9, 0.999\], is \[0.8, 0.9\]"),
    ({"head_lr": 0.1}, "head_lr was None, is 0.1"),
    ({"model": tp.LoRA(alpha=1.0)}, r"method was None, is LoRA\(rank=8, alpha=1.0\)")])
def test_a_checkpoint_of_another_run_is_refused(changed, told, tmp_path):
    path, changed = tmp_path / "c.npz", dict(changed)
    tp.train(small(), Noise(), N, lr=1e-3, checkpoint=path, stop_after=2, progress=False)
    model = small()
    if "model" in changed: model = tp.attach(model, changed.pop("model"))
    before = {n: a.copy() for n, a in model.state_dict().items()}
    refused = rf"c.npz cannot be resumed: it belongs to another run \(.*{told}.*\); give another file or the same settings"
    with pytest.raises(ValueError, match=refused):
        tp.train(model, Noise(), **{"steps": N, "lr": 1e-3, "checkpoint": path, "progress": False, **changed})
    assert same(model.state_dict(), before)


def test_a_checkpoint_from_before_head_lr_is_resumed(tmp_path):
    path, whole, resumed = tmp_path / "c.npz", small(), small()
    tp.train(small(), Noise(), N, checkpoint=path, stop_after=4, progress=False)
    arrays, meta = load_arrays(path)
    assert meta["settings"].pop("head_lr") is None
    save_arrays(path, arrays, meta)
    tp.train(resumed, Noise(), N, checkpoint=path, progress=False)
    tp.train(whole, Noise(), N, progress=False)
    assert same(resumed.state_dict(), whole.state_dict())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "c.npz"
    tp.train(small(), Noise(), N, checkpoint=path, stop_after=2, progress=False)
    other = tp.GPT(tp.GPTConfig(37, 24, 8, 2, 4))
    with pytest.raises(ValueError, match=r"token_embedding.weight has shape \(37, 16\), expected \(37, 8\)"):
        tp.train(other, Noise(), N, checkpoint=path, progress=False)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="c.npz is not a file that tinypeft wrote"):
        tp.train(small(), Noise(), N, checkpoint=path, progress=False)
