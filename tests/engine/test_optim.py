"""optim/: trajectories against PyTorch's optimizers, groups, masks, clipping, and schedules at their corners."""
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tinypeft.engine import functional as F
from tinypeft.engine import plain
from tinypeft.engine.nn import Parameter
from tinypeft.engine.optim import SGD, AdamW, AdamW8bit, GaLore, clip_grad_norm, schedule
from tinypeft.engine.tensor import GraphError
from tinypeft.training.rates import make_optimizer

STEPS = 50


def batches(n=STEPS):
    rng = np.random.default_rng(2)
    for _ in range(n):
        tokens = rng.integers(0, 37, (3, 8))
        yield tokens[:, :-1], tokens[:, 1:]


# -- trajectories ----------------------------------------------------------------------------------
def same_trajectory(gpt, torch, ours, theirs, clip, kind):
    """50 steps of the same GPT on the same batches by both: losses, norms and at the end every parameter agree."""
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    copy = torch_copy(model)
    names = dict(copy.named_parameters())
    a, b = ours(model.named_parameters()), theirs(names.items())
    for step, (tokens, targets) in enumerate(batches()):
        factor = schedule(kind, step, STEPS, warmup=5, floor=0.1)
        a.zero_grad(); b.zero_grad()
        loss = F.cross_entropy(model(tokens), targets)
        loss.backward()
        expected = torch.nn.functional.cross_entropy(copy(tokens).flatten(0, 1), torch.tensor(targets).flatten())
        expected.backward()
        assert_close(loss, expected, 1e-8, f"loss at step {step}")
        if clip:
            norm = clip_grad_norm(model.parameters(), clip)
            assert_close(norm, torch.nn.utils.clip_grad_norm_(copy.parameters(), clip), 1e-8, f"norm at step {step}")
            assert norm > clip
        a.scale_lr(factor)
        for g in b.param_groups: g["lr"] = g.setdefault("base_lr", g["lr"]) * factor
        a.step(); b.step()
    start = gpt().state_dict()
    for name, p in model.named_parameters():
        if ".key.bias" in name: continue                 # its gradient is 0 but for rounding, which Adam divides by itself
        assert_close(p, names[name], 1e-8, name)
        assert not np.allclose(p.data, start[name], rtol=0.01)


def matrices_and_vectors(named):
    params = [p for _, p in named]
    return [{"params": [p for p in params if p.ndim >= 2]}, {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]


def test_adamw_follows_pytorch(gpt, torch):
    options = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    same_trajectory(gpt, torch, lambda n: AdamW(matrices_and_vectors(n), **options),
                    lambda n: torch.optim.AdamW(matrices_and_vectors(n), **options), clip=0.5, kind="cosine")


@pytest.mark.parametrize("options", [dict(lr=0.05), dict(lr=0.02, momentum=0.9, weight_decay=0.01)])
def test_sgd_follows_pytorch(options, gpt, torch):
    same_trajectory(gpt, torch, lambda n: SGD([p for _, p in n], **options),
                    lambda n: torch.optim.SGD([p for _, p in n], **options), clip=None, kind="linear")


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (900, 700)])                 # the last is cut into slices
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-14), (np.float32, 2e-6)])
def test_adamw_is_its_plain_twin(shape, dtype, tolerance):
    rng = np.random.default_rng(0)
    start, g = (np.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    p, w = Parameter(start.copy()), start
    m = v = np.zeros(shape, dtype)
    optimizer = AdamW([p], lr=0.1, betas=(0.8, 0.9), eps=0.01, weight_decay=0.2)
    for t in (1, 2, 3):
        p.grad = np.asarray(t * g, dtype)
        optimizer.step()
        w, m, v = plain.adamw(w, p.grad, m, v, t, 0.1, 0.8, 0.9, 0.01, 0.2)
        assert w.dtype == dtype
        ours = p.data, *optimizer.state[id(p)].values()
        for array, twin in zip(ours, (w, m, v), strict=True): assert_close(array, twin, tolerance)
    assert np.array_equal(p.grad, np.asarray(3 * g, dtype))                      # the gradient is left as it is


def test_the_plain_adamw_is_the_papers():
    """Two numbers by hand: m̂ = g and v̂ = g² in the first step, and the decay does not go through the gradient."""
    w, m, v = plain.adamw(np.array([1.0, -2.0]), np.array([0.5, -3.0]), 0.0, 0.0, 1, 0.1, 0.8, 0.9, 0.0, 0.2)
    assert_close(w, [1 - 0.02 - 0.1, -2 + 0.04 + 0.1], 1e-14)
    assert_close(m, [0.1, -0.6], 1e-14)
    assert_close(v, [0.025, 0.9], 1e-14)


def test_a_parameter_without_axes(torch):
    """A single number, such as a quantizer's step: gradients add up, are clipped, and both optimizers follow PyTorch."""
    for ours, theirs in ((SGD, torch.optim.SGD), (AdamW, torch.optim.AdamW)):
        p, q = Parameter(np.array(2.0)), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        a, b = ours([p], lr=0.1, weight_decay=0.1), theirs([q], lr=0.1, weight_decay=0.1)
        for _ in range(3):
            a.zero_grad(); b.zero_grad()
            for _ in range(2):
                (p * p).backward()
                (q * q).backward()
            assert isinstance(p.grad, np.ndarray) and p.grad.shape == ()
            clip_grad_norm([p], 1.0); torch.nn.utils.clip_grad_norm_([q], 1.0)
            a.step(); b.step()
            assert_close(p, q, 1e-12)


# -- parameters, groups, masks ---------------------------------------------------------------------
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.1)])
def test_updates_are_in_place_and_counted(make):
    p, other = Parameter(np.ones(3, np.float32)), Parameter(np.ones(2, np.float32))
    array = p.data
    optimizer = make([p, other])
    p.grad = np.ones(3, np.float32)
    optimizer.step()
    assert p.data is array and (array < 1).all() and p.version == 1
    assert np.array_equal(other.data, [1, 1]) and other.version == 0                       # no gradient, no change
    optimizer.zero_grad()
    assert p.grad is None


def test_groups_have_settings_of_their_own():
    a, b, c = (Parameter(np.ones(1)) for _ in range(3))
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": 0.5}, {"params": [c], "weight_decay": 1.0}], lr=0.1)
    for p in (a, b, c): p.grad = np.ones(1)
    optimizer.step()
    assert [p.data.item() for p in (a, b, c)] == [0.9, 0.5, 0.8]
    optimizer.scale_lr(0.5)
    optimizer.scale_lr(0.1)                              # factors on the learning rate given, not on each other
    assert [g["lr"] for g in optimizer.groups] == [0.1 * 0.1, 0.5 * 0.1, 0.1 * 0.1]


@pytest.mark.parametrize("mask", [np.array([[True], [False], [True]]), np.eye(3, 2, dtype=bool)])
@pytest.mark.parametrize("kind", [partial(SGD, momentum=0.9), AdamW, partial(AdamW8bit, min_8bit_size=0), GaLore])
def test_an_update_mask_keeps_numbers_and_their_moments_still(kind, mask, rng):
    masked, free = (Parameter(np.ones((3, 2))) for _ in range(2))
    masked.update_mask = free.update_mask = np.ones((1, 1), bool)
    a, b = (kind([p], lr=0.1, weight_decay=0.1) for p in (masked, free))
    inside = np.broadcast_to(mask, (3, 2))
    for step in range(3):
        if step: masked.update_mask = mask               # the first step moves everything
        masked.grad = rng.standard_normal((3, 2))
        free.grad = masked.grad.copy()
        arrays = lambda optimizer, p: [p.data, *optimizer.state[id(p)].values()]
        before = [x.copy() for x in arrays(a, masked)]
        a.step(); b.step()
        for old, new, unmasked in zip(before, arrays(a, masked), arrays(b, free), strict=True):
            assert np.array_equal(new[inside], unmasked[inside])
            if step: assert np.array_equal(new[~inside], old[~inside]) and not np.array_equal(new, unmasked)


@pytest.mark.parametrize("kind", [partial(AdamW8bit, min_8bit_size=0), GaLore])
def test_a_mask_that_comes_after_shared_moments_is_refused(kind):
    p, q = (Parameter(np.ones((3, 2))) for _ in range(2))
    optimizer = kind([p, q], lr=0.1)
    q.update_mask = np.array([[True], [False], [True]])
    p.grad = q.grad = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"shape \(3, 2\) has an update_mask, .*; set the mask before the optimizer is made"):
        optimizer.step()
    assert optimizer.t == 0 and (p.data == 1).all()


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.1)])
def test_state_goes_out_and_in(make, rng):
    gradients = rng.standard_normal((6, 4))
    def run(optimizer, p, gs):
        for g in gs:
            p.grad = g.copy()
            optimizer.step()
    whole, half, rest = (Parameter(np.ones(4)) for _ in range(3))
    run(make([whole]), whole, gradients)
    first = make([half])
    run(first, half, gradients[:3])
    rest.data[...] = half.data
    second = make([rest])
    second.load_state_arrays({k: a.copy() for k, a in first.state_arrays().items()})
    run(second, rest, gradients[3:])
    assert np.array_equal(rest.data, whole.data) and second.t == 6
    with pytest.raises(ValueError, match="belongs to other parameters"):
        make([Parameter(np.ones(5))]).load_state_arrays(first.state_arrays())
    with pytest.raises(ValueError, match="belongs to other parameters"):
        make([Parameter(np.ones(4)), Parameter(np.ones(4))]).load_state_arrays(first.state_arrays())


P = Parameter(np.ones(2))


@pytest.mark.parametrize("misuse, error, says", [
    (lambda: AdamW([]), ValueError, "AdamW: no parameters"),
    (lambda: SGD([{"params": []}], lr=0.1), ValueError, "SGD: no parameters"),
    (lambda: AdamW(P), TypeError, "expected a list of parameters, got one Tensor"),
    (lambda: AdamW([P.data]), TypeError, "expected Parameters, got ndarray"),
    (lambda: AdamW([P, P]), ValueError, "occurs twice"),
    (lambda: AdamW([{"params": [P]}, {"params": [P]}]), ValueError, "occurs twice"),
    (lambda: AdamW([{"params": [P], "learning_rate": 1}]), ValueError, "'learning_rate'; expected 'params' and any of 'lr'"),
    (lambda: AdamW([P], lr=-1), ValueError, "lr must be finite and at least 0, got -1"),
    (lambda: AdamW([P], lr=float("nan")), ValueError, "lr must be finite and at least 0, got nan"),
    (lambda: AdamW([P], lr=math.inf), ValueError, "lr must be finite and at least 0, got inf"),
    (lambda: AdamW([P], betas=(0.9, 1.0)), ValueError, r"betas must lie in \[0, 1\)"),
    (lambda: schedule("step", 0, 10, warmup=5), ValueError,
     "expected 'constant', 'linear', 'cosine' or 'exponential', got 'step'"),
])
def test_misuse(misuse, error, says):
    with pytest.raises(error, match=says):
        misuse()


# -- clipping --------------------------------------------------------------------------------------
def test_clipping_scales_all_gradients_together():
    a, b, c = (Parameter(np.ones(2)) for _ in range(3))
    a.grad, b.grad = np.array([3.0, 0.0]), np.array([0.0, -4.0])
    assert clip_grad_norm([a, b, c], 10) == 5 and np.array_equal(a.grad, [3, 0]) and c.grad is None    # short enough: untouched
    assert clip_grad_norm([a, b, c], 1) == 5
    assert_close(a.grad, [0.6, 0], 1e-6)
    assert_close(b.grad, [0, -0.8], 1e-6)
    assert clip_grad_norm([a, b], math.inf) == pytest.approx(1) and clip_grad_norm([c], 1) == 0


def test_clipping_reports_what_is_not_finite():
    a = Parameter(np.ones(2))
    for bad in (np.nan, np.inf):
        a.grad = np.array([bad, 1.0])
        assert not math.isfinite(clip_grad_norm([a], math.inf))


# -- schedules -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, step, total, warmup, floor, factor", [
    ("constant", 0, 10, 0, 0.0, 1), ("constant", 9, 10, 0, 0.5, 1), ("constant", 0, 10, 4, 0.0, 0.25),
    ("linear", 0, 10, 0, 0.0, 1), ("linear", 5, 10, 0, 0.0, 0.5), ("linear", 9, 10, 0, 0.0, 0.1),
    ("linear", 9, 10, 0, 0.2, 0.28),
    ("linear", 0, 10, 2, 0.0, 0.5), ("linear", 1, 10, 2, 0.0, 1), ("linear", 2, 10, 2, 0.0, 1), ("linear", 6, 10, 2, 0.0, 0.5),
    ("linear", 10, 10, 0, 0.2, 0.2), ("linear", 99, 10, 0, 0.2, 0.2),
    ("cosine", 0, 10, 0, 0.0, 1), ("cosine", 5, 10, 0, 0.0, 0.5), ("cosine", 5, 10, 0, 0.2, 0.6),
    ("cosine", 10, 10, 0, 0.1, 0.1),
    ("cosine", 99, 10, 0, 0.0, 0), ("cosine", 2, 10, 5, 0.0, 0.6),
    ("linear", 0, 1, 1, 0.0, 1), ("linear", 0, 1, 0, 0.0, 1), ("cosine", 4, 5, 5, 0.0, 1), ("cosine", 0, 5, 10, 0.0, 0.1),
    ("exponential", 0, 4, 0, 1e-4, 1e-4), ("exponential", 1, 4, 0, 1e-4, 1e-3), ("exponential", 4, 4, 0, 1e-4, 1),
])
def test_schedule(kind, step, total, warmup, floor, factor):
    assert schedule(kind, step, total, warmup, floor) == pytest.approx(factor, abs=1e-15)


def test_without_warmup_and_floor_the_rate_falls_from_1_to_0():
    assert [schedule("linear", step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert schedule("cosine", 4, 4) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedules_rise_then_never_rise_again(kind):
    factors = [schedule(kind, s, 40, warmup=10, floor=0.1) for s in range(45)]
    assert np.all(np.diff(factors[:10]) > 0) and factors[9] == factors[10] == 1 and np.all(np.diff(factors[10:]) <= 1e-15)
    assert min(factors[10:]) >= 0.1 - 1e-15


def test_no_change_of_a_parameter_brings_an_old_version_back():
    """Replaced by `assign`, then stepped: a graph of before must still refuse, though both count versions."""
    p = Parameter(np.ones(3))
    y, seen = (p * p).sum(), [p.version]
    p.grad = np.ones(3)
    for change in (lambda: p.assign(np.full(3, 2.0)), SGD([p], 0.1).step, lambda: p.assign(np.ones(3))):
        change()
        seen.append(p.version)
    assert seen == sorted(set(seen))
    with pytest.raises(GraphError): y.backward()


def test_a_norm_at_its_limit_is_left_alone_bit_exact():
    p = Parameter(np.zeros(2))
    p.grad = np.array([3.0, 4.0])
    assert clip_grad_norm([p], 5.0) == 5 and np.array_equal(p.grad, [3, 4])


@pytest.mark.parametrize("make", [lambda ps: SGD(ps, 0.1, momentum=0.9), lambda ps: AdamW(ps, 0.1)])
def test_a_parameter_without_numbers_is_no_special_case(make):
    empty, full = Parameter(np.zeros((0, 3))), Parameter(np.ones(2))
    optimizer = make([empty, full])
    for _ in range(2):
        for p in (empty, full): p.grad = np.ones_like(p.data)
        optimizer.step()
    assert empty.shape == (0, 3) and (full.data < 1).all()


def test_the_page_states_the_bytes_that_each_optimizer_keeps():
    """Of a model of the base's size, tables by AdamW as `train` has it."""
    page = (Path(tp.__file__).parent / "engine" / "optim" / "README.md").read_text("utf-8")
    stated = {name: int(number.replace(",", "")) for name, number in re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", page, re.M)}
    model, kept = tp.GPT(tp.GPTConfig(1024, 256, 128, 5, 4)), {}
    for name in stated:
        optimizer = make_optimizer(model, tp.TrainOptions(steps=1, optimizer=getattr(tp.optim, name)))
        kept[name] = sum(a.nbytes for state in optimizer.state.values() for a in state.values())
    assert stated == kept and len(kept) == 5
