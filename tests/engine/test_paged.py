"""A paged AdamW: AdamW's trajectory bit for bit, its checkpoints, little memory, and no file left behind."""
import gc
import os
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.common.test_threads import forks, in_child
from tests.toys import Noise
from tinypeft.engine.nn import Parameter
from tinypeft.engine.optim import AdamW


def parameters(dtype=np.float32, n=70_000):
    rng = np.random.default_rng(0)
    return [Parameter(rng.standard_normal(shape).astype(dtype)) for shape in ((n // 100, 100), (7,), (3, 5, 2))]


def race(paged, plain, ours, theirs, steps=30):
    rng = np.random.default_rng(1)
    for _ in range(steps):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = rng.standard_normal(p.shape).astype(p.dtype) * (rng.random() > 0.2)
            q.grad = p.grad.copy()
        paged.step(); plain.step()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_the_trajectory_is_adamws(dtype, masked):
    """Bit-exact, 30 steps, parameters and moments; with a mask as DyLoRA sets it, too; skipped steps as well."""
    ours, theirs = parameters(dtype), parameters(dtype)
    for ps in (ours, theirs):
        if masked: ps[0].update_mask = np.arange(100) % 3 == 0
    groups = lambda ps: [{"params": ps[:1], "weight_decay": 0.1}, {"params": ps[1:], "lr": 3e-3}]
    paged, plain = tp.PagedAdamW(groups(ours), betas=(0.8, 0.95)), AdamW(groups(theirs), betas=(0.8, 0.95))
    race(paged, plain, ours, theirs)
    for p, q in zip(ours, theirs, strict=True): assert np.array_equal(p.data, q.data)
    a, b = paged.state_arrays(), plain.state_arrays()
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    assert paged.nbytes == 2 * sum(p.data.nbytes for p in ours)


def test_training_and_checkpoints_are_adamws(gpt, tmp_path):
    """Bit-exact: 6 steps of either; 3 of one and, from its checkpoint, 3 of the other, in both orders."""
    def run(name, *optimizers):
        model = gpt(np.float32)
        for i, optimizer in enumerate(optimizers):
            if i: model = gpt(np.float32)                                   # everything comes from the file
            tp.train(model, Noise(), 6, lr=1e-2, checkpoint=tmp_path / name, stop_after=6 if i or len(optimizers) == 1 else 3,
                     optimizer=optimizer, progress=False)
        return {n: a.tobytes() for n, a in model.state_dict().items()}
    expected = run("a", AdamW)
    assert run("b", tp.PagedAdamW) == expected
    assert run("c", tp.PagedAdamW, AdamW) == run("d", AdamW, tp.PagedAdamW) == expected


def test_no_file_is_left(tmp_path):
    """Nor is one to be seen meanwhile where the system can do without a name; the room it took is given back."""
    ours = parameters()
    optimizer = tp.PagedAdamW(ours, directory=tmp_path)
    ours[0].grad = ours[0].data.copy()
    optimizer.step()
    descriptor = optimizer.file.fileno()
    assert os.fstat(descriptor).st_size >= optimizer.nbytes
    if os.name == "posix": assert not list(tmp_path.iterdir())
    del optimizer
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError): os.fstat(descriptor)


def resident(optimizer):
    """Bytes of the optimizer's state that are in this process' memory now, or None where the system does not say."""
    smaps, found, counting = Path("/proc/self/smaps"), 0, False
    if not smaps.exists(): return None
    inode = str(os.fstat(optimizer.file.fileno()).st_ino)
    for line in smaps.read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"): counting = words[4] == inode
        elif counting and words[0] == "Rss:": found += 1024 * int(words[1])
    return found


def test_memory_holds_one_parameters_state_at_a_time(monkeypatch):
    """32 MiB of state for eight parameters: while one is updated, its 4 MiB are resident.

    AdamW's state is all resident all the time, which is what the same measurement says without letting go. (Where a
    system does not tell, the numbers alone are checked.)
    """
    plain_update, during = AdamW.update, []

    def watched(self, *args):
        plain_update(self, *args)
        during.append(resident(self))
    monkeypatch.setattr(AdamW, "update", watched)
    for letting_go in (True, False):
        if not letting_go: monkeypatch.setattr(tp.PagedAdamW, "_step_one", AdamW._step_one)
        during.clear()
        ours = [Parameter(np.zeros((512, 1024), np.float32)) for _ in range(8)]
        optimizer = tp.PagedAdamW(ours)
        for _ in range(2):
            for p in ours: p.grad = np.ones_like(p.data)
            optimizer.step()
        moments = optimizer.state_arrays()
        assert all(np.allclose(moments[f"m.{i}"], 0.19) for i in range(8)) and optimizer.nbytes == 32 * 2**20
        if during[0] is None: continue
        if letting_go: assert 4 * 2**20 <= min(during) and max(during) <= 5 * 2**20
        else:          assert during[-1] >= 32 * 2**20


def test_memory_after_a_step():
    """As it is, unwatched: after a step nothing of the state is resident, whether a mask was on or not."""
    ours = [Parameter(np.zeros((512, 1024), np.float32)) for _ in range(2)]
    ours[1].update_mask = np.arange(1024) < 100
    optimizer = tp.PagedAdamW(ours)
    for p in ours: p.grad = np.ones_like(p.data)
    optimizer.step()
    assert resident(optimizer) in (None, 0)
    assert optimizer.state[id(ours[0])]["v"].any() and optimizer.state[id(ours[1])]["v"].any()
    assert resident(optimizer) != 0


@forks
def test_a_forked_child_cannot_write_into_its_parents_moments():
    ours = parameters()
    optimizer = tp.PagedAdamW(ours)
    for p in ours: p.grad = np.ones_like(p.data)
    optimizer.step()
    before = {name: a.copy() for name, a in optimizer.state_arrays().items()}

    def child():
        with pytest.raises(RuntimeError, match="make a new PagedAdamW"): optimizer.step()
        tp.PagedAdamW(ours).step()
        return True
    in_child(child)
    after = optimizer.state_arrays()
    assert all(np.array_equal(after[name], a) for name, a in before.items())
    optimizer.step()


def test_errors(tmp_path):
    with pytest.raises(OSError): tp.PagedAdamW(parameters(), directory=tmp_path / "missing")
    with pytest.raises(ValueError, match="no parameters"): tp.PagedAdamW([])
    with pytest.raises(ValueError, match="betas"): tp.PagedAdamW(parameters(), betas=(1, 0.9))
