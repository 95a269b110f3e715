"""functional.py: every fused operation against finite differences, its composition from primitives, and PyTorch."""
import contextlib
import inspect
import math
import tracemalloc
import weakref

import numpy as np
import pytest

import tinypeft as tp
from tests.engine.test_tensor import layouts, normal, positive
from tests.oracles import assert_close
from tinypeft.engine import functional as F
from tinypeft.engine import plain
from tinypeft.engine.plain import attention, cross_entropy, gelu, layer_norm, linear, log_softmax, softmax
from tinypeft.engine.tensor import Tensor, no_grad

IDS = np.array([[3, 0, 3], [3, 5, 0]])                   # repeated, and some rows of the table never looked up
TARGETS = np.array([[3, 0, F.IGNORED, 4], [F.IGNORED, 1, 4, 4]])


PHI = np.random.default_rng(3).uniform(-4, 4, (5, 3))
ANGLES = np.cos(PHI), np.sin(PHI)

# name → (arrays, fused, composed, PyTorch's, given torch.nn.functional)
qkv = normal(2, 3, 5, 4), normal(2, 3, 5, 4) + 1, normal(2, 3, 5, 4) - 1
CASES = {
    "linear": (
        (normal(2, 3, 4), normal(5, 4), normal(5)), F.linear, linear, lambda f: f.linear),
    "linear, no bias": (
        (normal(3, 4), normal(5, 4)), F.linear, linear, lambda f: f.linear),
    "linear, a vector": (
        (normal(4), normal(5, 4), normal(5)), F.linear, linear, lambda f: f.linear),
    "linear, no rows": (
        (normal(2, 0, 4), normal(5, 4), normal(5)), F.linear, linear, lambda f: f.linear),
    "linear, one output": (
        (normal(3, 4), normal(1, 4), normal(1)), F.linear, linear, lambda f: f.linear),
    "linear, no outputs": (
        (normal(2, 3), normal(0, 3), normal(0)), F.linear, linear, lambda f: f.linear),
    "linear, no inputs": (
        (normal(2, 0), normal(4, 0), normal(4)), F.linear, linear, lambda f: f.linear),
    "layer norm": (
        (3 + normal(2, 3, 4), positive(4), normal(4)), F.layer_norm, layer_norm,
        lambda f: lambda x, g, b: f.layer_norm(x, (4,), g, b)),
    "layer norm, a vector": (
        (normal(8), positive(8), normal(8)), F.layer_norm, layer_norm,
        lambda f: lambda x, g, b: f.layer_norm(x, (8,), g, b)),
    "layer norm, large ε": (
        (normal(2, 5), positive(5), normal(5)), lambda *a: F.layer_norm(*a, eps=0.5), lambda *a: layer_norm(*a, eps=0.5),
        lambda f: lambda x, g, b: f.layer_norm(x, (5,), g, b, 0.5)),
    "layer norm, no rows": (
        (normal(0, 4), positive(4), normal(4)), F.layer_norm, layer_norm,
        lambda f: lambda x, g, b: f.layer_norm(x, (4,), g, b)),
    "rms norm": (
        (3 + normal(2, 3, 4), positive(4)), F.rms_norm, plain.rms_norm, lambda f: lambda x, g: f.rms_norm(x, (4,), g, 1e-6)),
    "rms norm, large ε": (
        (normal(2, 5), positive(5)), lambda *a: F.rms_norm(*a, eps=0.5), lambda *a: plain.rms_norm(*a, eps=0.5),
        lambda f: lambda x, g: f.rms_norm(x, (5,), g, 0.5)),
    "rotary": (
        (normal(2, 3, 5, 6),), lambda x: F.rotary(x, *ANGLES), lambda x: plain.rotary(x, *ANGLES), None),
    "swiglu": (
        (3 * normal(2, 3, 5), normal(2, 3, 5)), F.swiglu, plain.swiglu, lambda f: lambda g, u: f.silu(g) * u),
    "geglu": (
        (3 * normal(2, 3, 5), normal(2, 3, 5)), F.geglu, plain.geglu,
        lambda f: lambda g, u: f.gelu(g, approximate="tanh") * u),
    "layer norm, no columns": (
        (normal(3, 0), normal(0), normal(0)), F.layer_norm, None, lambda f: lambda x, g, b: f.layer_norm(x, (0,), g, b)),
    "gelu": (
        (2 * normal(3, 5),), F.gelu, gelu, lambda f: lambda x: f.gelu(x, approximate="tanh")),
    "gelu 0-d": (
        (normal(),), F.gelu, gelu, lambda f: lambda x: f.gelu(x, approximate="tanh")),
    "gelu, erf": (
        (2 * normal(3, 5),), lambda x: F.gelu(x, "none"), None, lambda f: f.gelu),
    "softmax": (
        (normal(2, 3, 4),), F.softmax, softmax, lambda f: lambda x: f.softmax(x, -1)),
    "softmax, axis 1": (
        (normal(2, 3, 4),), lambda x: F.softmax(x, 1), lambda x: softmax(x, 1), lambda f: lambda x: f.softmax(x, 1)),
    "log softmax": (
        (normal(2, 3, 4),), F.log_softmax, log_softmax, lambda f: lambda x: f.log_softmax(x, -1)),
    "log softmax, axis 0": (
        (normal(3, 4),), lambda x: F.log_softmax(x, 0), lambda x: log_softmax(x, 0), lambda f: lambda x: f.log_softmax(x, 0)),
    "softmax of nothing": (
        (normal(3, 0),), F.softmax, None, lambda f: lambda x: f.softmax(x, -1)),
    "log softmax of nothing": (
        (normal(3, 0),), F.log_softmax, None, lambda f: lambda x: f.log_softmax(x, -1)),
    "log softmax 0-d": (
        (normal(),), F.log_softmax, None, lambda f: lambda x: f.log_softmax(x, -1)),
    "attention": (
        qkv, F.attention, attention, lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "attention, as FlashAttention does it": (
        qkv, plain.flash_attention, attention,
        lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "attention, as FlashAttention does it, after a prefix": (
        (normal(2, 3, 4), normal(2, 8, 4), normal(2, 8, 4) + 1), plain.flash_attention, attention, None),
    "attention, everything seen": (
        (normal(2, 5, 4), normal(2, 3, 4), normal(2, 3, 4) + 1), lambda *a: F.attention(*a, causal=False),
        lambda *a: attention(*a, causal=False), lambda f: f.scaled_dot_product_attention),
    "attention, after a prefix": (
        (normal(2, 3, 4), normal(2, 8, 4), normal(2, 8, 4) + 1), F.attention, attention,
        lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v, seen(3, 8))),
    "attention, grouped": (
        (normal(2, 6, 5, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4) + 1), F.attention, plain.grouped_attention,
        lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)),
    "attention, grouped, a window after a prefix": (
        (normal(4, 5, 3), normal(2, 7, 3), normal(2, 7, 3) + 1), lambda *a: F.attention(*a, window=3), None,
        lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v, seen(5, 7).triu(), enable_gqa=True)),
    "attention, one query": (
        (normal(1, 4), normal(6, 4), normal(6, 4) + 1), F.attention, attention, lambda f: f.scaled_dot_product_attention),
    "attention, many blocks": (
        (normal(3, 150, 2), normal(3, 161, 2), normal(3, 161, 2) + 1), F.attention, attention,
        lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v, seen(150, 161))),
    "attention, no rows": (
        [a[:0] for a in qkv], F.attention, attention, lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v)),
    "attention, no queries": (
        (normal(2, 0, 4), normal(2, 3, 4), normal(2, 3, 4)), F.attention, None,
        lambda f: lambda q, k, v: f.scaled_dot_product_attention(q, k, v)),
    "attention, no keys": (
        (normal(2, 3, 4), normal(2, 0, 4), normal(2, 0, 4)), lambda *a: F.attention(*a, causal=False), None,
        lambda f: lambda q, k, v: f.softmax(q @ k.mT, -1) @ v),
    "attention, heads of width 0": (
        (normal(2, 3, 0), normal(2, 3, 0), normal(2, 3, 0)), F.attention, None,
        lambda f: lambda q, k, v: f.softmax(q @ k.mT, -1) @ v),
    "cross entropy": (
        (3 * normal(6, 5),), lambda z: F.cross_entropy(z, IDS.ravel() % 4), lambda z: cross_entropy(z, IDS % 4),
        lambda f: lambda z: f.cross_entropy(z, long(IDS.ravel() % 4))),
    "cross entropy, one row": (
        (normal(5),), lambda z: F.cross_entropy(z, 2), None, lambda f: lambda z: f.cross_entropy(z, long(2))),
    "cross entropy, ignored": (
        (3 * normal(2, 4, 5),), lambda z: F.cross_entropy(z, TARGETS), lambda z: cross_entropy(z, TARGETS),
        lambda f: lambda z: f.cross_entropy(z.reshape(-1, 5), long(TARGETS.ravel()))),
    "cross entropy, smoothed": (
        (3 * normal(2, 4, 5),), lambda z: F.cross_entropy(z, TARGETS, label_smoothing=0.1),
        lambda z: cross_entropy(z, TARGETS, label_smoothing=0.1),
        lambda f: lambda z: f.cross_entropy(z.reshape(-1, 5), long(TARGETS.ravel()), label_smoothing=0.1)),
    "linear and cross entropy": (
        (normal(2, 4, 3), 2 * normal(5, 3)), lambda x, W: F.linear_cross_entropy(x, W, TARGETS),
        lambda x, W: plain.linear_cross_entropy(x, W, TARGETS),
        lambda f: lambda x, W: f.cross_entropy((x @ W.mT).reshape(-1, 5), long(TARGETS.ravel()))),
    "embedding": (
        (normal(6, 4),), lambda E: F.embedding(IDS, E), lambda E: plain.embedding(IDS, E),
        lambda f: lambda E: f.embedding(long(IDS), E)),
    "embedding, nothing": (
        (normal(6, 4),), lambda E: F.embedding(IDS[:0], E), lambda E: plain.embedding(IDS[:0], E),
        lambda f: lambda E: f.embedding(long(IDS[:0]), E)),
    "embedding, one id": (
        (normal(6, 4),), lambda E: F.embedding(3, E), lambda E: plain.embedding(3, E),
        lambda f: lambda E: f.embedding(long(3), E)),
    "embedding, no columns": (
        (normal(6, 0),), lambda E: F.embedding(IDS, E), lambda E: plain.embedding(IDS, E),
        lambda f: lambda E: f.embedding(long(IDS), E)),
    "dropout 0-d": (
        (normal(),), lambda x: F.dropout(x, 0.3, rng=7), lambda x: x * mask((), 0.3), None),
    "dropout": (
        (normal(40, 5),), lambda x: F.dropout(x, 0.3, rng=7), lambda x: x * mask((40, 5), 0.3), None),
    "attention, dropout": (
        (normal(2, 5, 4), normal(2, 6, 4), normal(2, 6, 4) + 1), lambda *a: F.attention(*a, causal=False, dropout=0.4, rng=7),
        lambda *a: attention(*a, causal=False, drop=mask((2, 5, 6), 0.4)), None),
}


def mask(shape, p):
    """The mask that dropout draws from rng=7."""
    return F.dropout(Tensor(np.ones(shape)), p, rng=7).data


def seen(T, S):
    import torch
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


def long(array):
    import torch
    return torch.as_tensor(np.asarray(array)).long()


def of_pytorch(name):
    torch = pytest.importorskip("torch")
    make = CASES[name][3]
    return make and make(torch.nn.functional)


@pytest.mark.parametrize("name", CASES)
def test_finite_differences(name):
    arrays, fused, *_ = CASES[name]
    for layout in layouts(arrays[0]) if arrays[0].size < 100 else ("rows",):
        tp.gradcheck(fused, *(layouts(a)[layout] for a in arrays), tolerance=1e-8, directions=2)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c[2]])
def test_composition(name):
    """Values and gradients of the fused operation are those of the same formula spelled out in primitives."""
    arrays, fused, composed, _ = CASES[name]
    results = []
    for f in (fused, composed):
        xs = [Tensor(a, requires_grad=True) for a in arrays]
        y = f(*xs)
        y.backward(np.random.default_rng(0).standard_normal(y.shape))
        results.append([y, *(x.grad for x in xs)])
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected, 1e-10)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c[3]])
def test_pytorch(name, torch):
    from tests.oracles.against_torch import against_torch
    arrays, fused, *_ = CASES[name]
    for layout in layouts(arrays[0]):
        against_torch(fused, of_pytorch(name), *(layouts(a)[layout] for a in arrays))
    for i in range(len(arrays) if len(arrays) > 1 else 0):               # each alone trainable, the others frozen
        against_torch(fused, of_pytorch(name), *arrays, frozen=[j for j in range(len(arrays)) if j != i])
    against_torch(fused, of_pytorch(name), *(a.astype(np.float32) for a in arrays), tolerance=1e-5)



@pytest.mark.parametrize("rows", [1, 2, 3, 24, 32, 33])
def test_few_rows_without_gradients_are_multiplied_from_the_other_side(rng, rows):
    """The same numbers up to the order of sums, in the order of memory that other results have."""
    x, W, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 256), (300, 256), (300,)))
    recorded = F.linear(Tensor(x), Tensor(W), Tensor(b)).data
    with no_grad(): alone = F.linear(Tensor(x), Tensor(W), Tensor(b)).data
    assert_close(alone, recorded, 1e-6)
    assert alone.flags.c_contiguous and alone.shape == (rows, 300)


# -- arrays ----------------------------------------------------------------------------------------
ARGUMENTS = {
    "linear": dict(x=normal(3, 4), W=normal(5, 4), b=normal(5)),
    "layer_norm": dict(x=normal(3, 4), gamma=normal(4), beta=normal(4)),
    "rms_norm": dict(x=normal(3, 4), gamma=normal(4)), "rotary": dict(x=normal(5, 6), cos=ANGLES[0], sin=ANGLES[1]),
    "gelu": dict(x=normal(3)), "swiglu": dict(gate=normal(3), up=normal(3)), "geglu": dict(gate=normal(3), up=normal(3)),
    "softmax": dict(x=normal(3, 4)), "log_softmax": dict(x=normal(3, 4)), "attention": dict(zip("qkv", qkv, strict=True)),
    "flash_attention": dict(zip("qkv", qkv, strict=True)),
    "linear_cross_entropy": dict(x=normal(6, 3), W=normal(5, 3), targets=IDS.ravel() % 4),
    "grouped_attention": dict(q=normal(4, 3, 2), k=normal(2, 3, 2), v=normal(2, 3, 2)),
    "cross_entropy": dict(logits=normal(6, 5), targets=IDS.ravel() % 4), "embedding": dict(ids=IDS, E=normal(6, 4)),
    "dropout": dict(x=normal(3, 4), p=0.3, rng=7)}
NO_TENSORS = {"cos", "sin", "targets", "ids", "p", "rng"}


@pytest.mark.parametrize("module, name", [(m, n) for m in (F, plain) for n in m.__all__ if n not in ("IGNORED", "adamw")],
                         ids=lambda value: getattr(value, "__name__", value).split(".")[-1])
def test_arrays_are_constants(module, name):
    """Each argument alone, and all together, as arrays, by place and by name: same values, and gradients of the others."""
    f, arguments = getattr(module, name), ARGUMENTS[name]
    names = [n for n in arguments if n not in NO_TENSORS]
    expected = f(*(Tensor(a) if n in names else a for n, a in arguments.items())).data
    for arrays in (*([n] for n in names), names):
        call = {n: Tensor(a, requires_grad=True) if n in names and n not in arrays else a for n, a in arguments.items()}
        for y in (f(*call.values()), f(**call)):
            assert isinstance(y, Tensor) and y.dtype == np.float64 and np.array_equal(y.data, expected)
        if len(arrays) < len(names): y.backward(np.ones_like(y.data))
        assert y.requires_grad == (arrays != names) and all(call[n].grad is not None for n in names if n not in arrays)
    small = f(*(Tensor(a.astype(np.float32)) if n == names[0] else a for n, a in arguments.items()))
    assert small.dtype == np.float32                     # constants take the tensor's dtype
    assert list(inspect.signature(f).parameters)[:len(arguments)] == list(arguments)


@pytest.mark.parametrize("call, says", [
    (lambda: F.softmax("x"), "a Tensor holds float32 or float64, got <U1"), (lambda: F.gelu(np.ones(2, complex)), "complex128"),
    (lambda: F.linear(Tensor([[1.0]]), [[None]]), "object values do not mix"), (lambda: F.linear([[1.0]]), "missing .*'W'"),
    (lambda: F.linear(Tensor(np.ones((1, 2))), Tensor([[1.0, 2.0]])), "float32 and float64 do not mix")])
def test_what_is_no_tensor_and_no_numbers_is_refused(call, says):
    with pytest.raises(TypeError, match=says): call()


def test_lists_and_numbers_are_constants():
    assert np.array_equal(F.softmax([0.0, 0.0]).data, [0.5, 0.5]) and F.softmax([0.0]).dtype == np.float32
    assert plain.gelu(0.0).item() == 0 and F.linear([1, 2], [[3, 4]], b=None).data.tolist() == [11]


# -- numbers ---------------------------------------------------------------------------------------
def test_large_arrays_go_through_in_blocks(torch):
    """More numbers than one block holds, in gelu and cross_entropy."""
    from tests.oracles.against_torch import against_torch
    rng = np.random.default_rng(0)
    x, z, t = rng.standard_normal(200_001), rng.standard_normal((4001, 37)), rng.integers(0, 37, 4001)
    against_torch(F.gelu, lambda x: torch.nn.functional.gelu(x, approximate="tanh"), x)
    against_torch(lambda z: F.cross_entropy(z, t), lambda z: torch.nn.functional.cross_entropy(z, long(t)), z)


def test_extreme_logits():
    z = Tensor(np.array([[1e4, 0.0, -1e4]], np.float32), requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert np.array_equal(F.softmax(z).data, [[1, 0, 0]])
        assert np.array_equal(F.log_softmax(z).data, [[0, -1e4, -2e4]])
        loss = F.cross_entropy(z, [2])
        assert loss.item() == 2e4
        loss.backward()
    assert np.array_equal(z.grad, [[1, 0, -1]])


def test_layer_norm_far_from_zero():
    """E[x²] − E[x]² would lose every digit of a variance of 1e-4 at a mean of 100 in float32."""
    x = 100 + 0.01 * normal(4, 64)
    ones, zeros = (Tensor(np.full(64, c, np.float32)) for c in (1, 0))
    y = F.layer_norm(Tensor(x.astype(np.float32)), ones, zeros, eps=0.0)
    x = x.astype(np.float32).astype(np.float64)
    assert_close(y, (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True), 1e-3)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_layer_norm_of_numbers_whose_squares_overflow(dtype, tolerance):
    """Value and gradient are those of the row divided by 2¹⁰⁰ (2⁸⁰⁰). They were β and 0 without a word."""
    s = 2.0 ** (100 if dtype == np.float32 else 800)
    small, dy = normal(3, 5).astype(dtype), normal(3, 5).astype(dtype)[::-1]
    g, b = positive(5).astype(dtype), normal(5).astype(dtype)
    results = []
    for scale in (np.array([[s], [1], [s]], dtype), 1):
        xs = [Tensor(a, requires_grad=True) for a in (small * scale, g, b)]
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            y = F.layer_norm(*xs, eps=0.0)
            y.backward(dy)
        results.append([y.data, xs[0].grad * scale, xs[1].grad, xs[2].grad])
    for got, expected in zip(*results, strict=True): assert_close(got, expected, tolerance)


def test_norms_and_softmax_say_nothing_of_an_overflow_that_they_mend():
    x = np.float32([[3e38, -3e38, 1e20, 0], [1e20, 1e20, -1e20, 1e19]])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = F.rms_norm(Tensor(x), Tensor(np.ones(4, np.float32))).data
        p = F.softmax(Tensor(x)).data
    exact = x.astype(np.float64)
    assert_close(y, exact / np.sqrt(np.square(exact).mean(-1, keepdims=True)), 1e-6)
    assert p.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0]]


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_far_from_zero(approximate):
    """Its slope is 0 or 1 there; x³ overflows in float32 from 1e13 on, and the gradient was NaN."""
    x = Tensor(np.array([-1e30, -1e13, -60, 60, 1e13, 1e30], np.float32), requires_grad=True)
    with np.errstate(over="raise", invalid="raise"):
        y = F.gelu(x, approximate)
        y.backward(np.ones(6))
    assert np.array_equal(y.data, np.maximum(x.data, 0)) and np.array_equal(x.grad, [0, 0, 0, 1, 1, 1])


def test_an_ignored_position_changes_nothing_even_if_its_logits_are_infinite():
    """Its share of the loss was 0 · NaN."""
    z = normal(3, 4)
    for hidden in (np.inf, -np.inf, np.nan):
        z[1] = hidden
        x = Tensor(z, requires_grad=True)
        with np.errstate(invalid="ignore"): loss = F.cross_entropy(x, [2, F.IGNORED, 0])
        loss.backward()
        assert_close(loss, F.cross_entropy(Tensor(z[[0, 2]]), [2, 0]), 1e-14)
        assert np.isfinite(x.grad).all() and not x.grad[1].any() and x.grad[[0, 2]].all()


def test_a_hidden_key_changes_nothing_even_if_its_score_overflows():
    """∞ − ∞ made the row NaN."""
    q, k, v = (np.ones((1, 3, 2), np.float32) for _ in range(3))
    q[0, :2], k[0, 2], v[0] = 1e20, 1e20, [[1, 2], [3, 4], [5, 6]]
    with np.errstate(over="ignore", invalid="ignore"): y = F.attention(Tensor(q), Tensor(k), Tensor(v)).data
    assert np.array_equal(y[0, :2], [[1, 2], [2, 3]])
    k[0, 2] = np.nan
    with np.errstate(invalid="ignore"): z = F.attention(Tensor(q), Tensor(k), Tensor(v)).data
    assert np.array_equal(z[0, :2], y[0, :2])


def test_a_constant_row_is_normalized_to_beta():
    y = F.layer_norm(Tensor(np.full((1, 4), 7.0)), Tensor(np.ones(4)), Tensor(np.arange(4.0)))
    assert np.array_equal(y.data, [np.arange(4.0)])


def test_cross_entropy_counts_only_what_is_not_ignored():
    z = Tensor(normal(2, 4, 5), requires_grad=True)
    F.cross_entropy(z, TARGETS).backward()
    assert not z.grad[TARGETS == F.IGNORED].any() and z.grad[TARGETS != F.IGNORED].all()
    counted = TARGETS[TARGETS != F.IGNORED]
    assert_close(F.cross_entropy(z, TARGETS), F.cross_entropy(Tensor(z.data[TARGETS != F.IGNORED]), counted), 1e-14)
    padded = np.where(TARGETS < 0, 2, TARGETS)           # 2 occurs nowhere else
    assert_close(F.cross_entropy(z, TARGETS), F.cross_entropy(z, padded, ignore_index=2), 1e-14)
    assert not np.isclose(F.cross_entropy(z, TARGETS).item(), F.cross_entropy(z, padded).item())


def test_causal_attention_does_not_see_the_future():
    q, k, v = (normal(2, 70, 4) for _ in range(3))
    before = F.attention(Tensor(q), Tensor(k), Tensor(v)).data
    k[:, 40:], v[:, 40:] = 9, 9
    after = F.attention(Tensor(q), Tensor(k), Tensor(v)).data
    assert np.array_equal(before[:, :40], after[:, :40]) and not np.isclose(before[:, 40:], after[:, 40:]).any()


def test_without_a_gradient_the_values_are_the_same_bits():
    q, k, v = (normal(2, 70, 4).astype(np.float32) for _ in range(3))
    z, t = normal(7, 5).astype(np.float32), np.arange(7) % 5
    for f, arrays in ((F.attention, (q, k, v)), (lambda z: F.cross_entropy(z, t), (z,)), (F.gelu, (z,))):
        y = [f(*(Tensor(a, requires_grad=need) for a in arrays)).data for need in (True, False)]
        assert np.array_equal(*y)


# -- dropout ---------------------------------------------------------------------------------------
def test_dropout_keeps_the_mean_and_the_share():
    x = np.ones(100_000, np.float32)
    y = F.dropout(Tensor(x), 0.3, rng=0).data
    assert y.dtype == np.float32 and np.allclose(np.unique(y), [0, 1 / 0.7])
    assert abs((y == 0).mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.size)              # five standard deviations
    assert abs(y.mean() - 1) < 5 * math.sqrt(0.3 / 0.7 / x.size)


def test_dropped_numbers_have_gradient_zero_even_if_dy_is_infinite():
    x = Tensor(np.ones(50), requires_grad=True)
    y = F.dropout(x, 0.5, rng=0)
    y.backward(np.full(50, np.inf))
    assert np.array_equal(x.grad, np.where(y.data == 0, 0, np.inf))


def test_attention_dropout_keeps_the_mean():
    q, k, v = (Tensor(normal(1, 6, 4) + i) for i in range(3))
    many = [Tensor(np.repeat(t.data, 4000, axis=0)) for t in (q, k, v)]
    assert_close(F.attention(*many, dropout=0.3, rng=0).data.mean(0), F.attention(q, k, v).data[0], 0.05)


def test_dropout_draws_from_the_rng_it_is_given():
    x = Tensor(np.ones(1000))
    rng = np.random.default_rng(3)
    first, second = (F.dropout(x, 0.5, rng).data for _ in range(2))
    assert not np.array_equal(first, second)                             # a Generator goes on,
    assert np.array_equal(first, F.dropout(x, 0.5, rng=3).data)          # a seed starts anew
    assert F.dropout(x, 0.0) is x
    zeros = Tensor(np.zeros((200, 200)))
    kept = F.attention(zeros, zeros, Tensor(np.eye(200)), causal=False, dropout=0.5, rng=3).data > 0
    assert len(np.unique(kept, axis=0)) == 200           # every query has a mask of its own, across blocks too


# -- what frozen weights cost ----------------------------------------------------------------------
def test_a_frozen_weight_frees_the_input_of_linear():
    """dW = dyᵀ x is all that needs x: with W frozen nothing keeps it."""
    for trainable in (True, False):
        x, W = Tensor(normal(3, 4), requires_grad=True), Tensor(normal(5, 4), requires_grad=trainable)
        h = x + 1
        held = weakref.ref(h.data.base)
        y = F.linear(h, W)
        del h
        assert (held() is not None) == trainable
        y.backward(normal(3, 5))
        assert_close(x.grad, normal(3, 5) @ W.data, 1e-12)
        assert (W.grad is not None) == trainable


def test_gelu_keeps_one_array():
    x = Tensor(normal(3, 4), requires_grad=True)
    h = x + 1
    y = F.gelu(h)
    held = [weakref.ref(t.data.base) for t in (h, y)]
    loss = y.sum()
    del h, y
    assert [r() for r in held] == [None, None]
    loss.backward()
    assert x.grad is not None


def test_the_loss_has_one_array_of_the_size_of_the_logits():
    """The softmax, which becomes the gradient; the logits go when the loss is known. Without gradients, there is none."""
    h, W = Tensor(np.ones((256, 2), np.float32), requires_grad=True), Tensor(np.ones((1 << 14, 2), np.float32))
    size, found = 256 * (1 << 14) * 4, []
    for context in (contextlib.nullcontext, tp.no_grad):
        tracemalloc.start()
        with context():
            loss = F.cross_entropy(F.linear(h, W), np.arange(256))
            found.append(tracemalloc.get_traced_memory()[0])
            if loss.requires_grad: loss.backward()
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    kept, peak, nothing, evaluation = np.array(found) / size
    assert 0.99 < kept < 1.05 and peak < 2.05 and nothing < 0.05 and evaluation < 1.3


@pytest.mark.parametrize("need, backward", [
    ((1, 1), {((3, 5), (5, 4)), ((5, 3), (3, 4))}),      # dy W and dyᵀ x
    ((1, 0), {((3, 5), (5, 4))}),                        # W frozen: dy W alone
    ((0, 1), {((5, 3), (3, 4))}),                        # x needs none: dyᵀ x alone
])
def test_the_products_of_linear(need, backward, products):
    x, W = Tensor(normal(3, 4), requires_grad=bool(need[0])), Tensor(normal(5, 4), requires_grad=bool(need[1]))
    products.watch(x, W)
    y = F.linear(x, W)
    assert products == [((3, 4), (4, 5))]
    products.clear()
    y.backward(normal(3, 5))
    assert len(products) == len(backward) and set(products) == backward


# -- misuse ----------------------------------------------------------------------------------------
def t(*shape):
    return Tensor(np.ones(shape))


def t32(*shape):
    return Tensor(np.ones(shape, np.float32))


@pytest.mark.parametrize("misuse, error, says", [
    (lambda: F.linear(t(2, 3), t(4, 5)), ValueError, r"linear: x \(2, 3\), W \(4, 5\), b None"),
    (lambda: F.linear(t(2, 3), t(4, 3), t(3)), ValueError, r"b \(3,\)"),
    (lambda: F.linear(t(), t(4, 3)), ValueError, r"linear: x \(\)"),
    (lambda: F.linear(t(2, 3), t(3)), ValueError, r"W \(3,\)"),
    (lambda: F.linear(t32(2, 3), t(4, 3)), TypeError, "float32 and float64 do not mix"),
    (lambda: F.linear(t32(2, 3), t32(4, 3), t(4)), TypeError, "float32 and float64 do not mix"),
    (lambda: F.layer_norm(t(2, 3), t(2), t(3)), ValueError, r"layer_norm: x \(2, 3\), gamma \(2,\)"),
    (lambda: F.layer_norm(t(), t(), t()), ValueError, r"layer_norm: x \(\)"),
    (lambda: F.layer_norm(t(2, 3), t32(3), t(3)), TypeError, "do not mix"),
    (lambda: F.gelu(t(2), "sigmoid"), ValueError, "'tanh' or 'none', got 'sigmoid'"),
    (lambda: F.attention(t(2, 4), t(3, 5), t(3, 5)), ValueError, r"attention: q \(2, 4\), k \(3, 5\)"),
    (lambda: F.attention(t(2, 4), t(3, 4), t(2, 4)), ValueError, r"v \(2, 4\)"),
    (lambda: F.attention(t(4), t(4), t(4)), ValueError, r"attention: q \(4,\)"),
    (lambda: F.attention(t(3, 4), t(2, 4), t(2, 4)), ValueError, "3 queries but only 2 keys"),
    (lambda: F.attention(t(3, 4), t(3, 4), t(3, 4), dropout=0.1), ValueError, "dropout draws random numbers: give rng"),
    (lambda: F.attention(t(3, 4), t(3, 4), t(3, 4), dropout=1.0, rng=0), ValueError, r"must lie in \[0, 1\), got 1.0"),
    (lambda: F.attention(t(3, 4), t32(3, 4), t32(3, 4)), TypeError, "do not mix|Cannot cast"),
    (lambda: F.cross_entropy(t(2, 3), [0, 1, 2]), ValueError, r"logits \(2, 3\), targets \(3,\)"),
    (lambda: F.cross_entropy(t(), 0), ValueError, r"logits \(\)"),
    (lambda: F.cross_entropy(t(2, 3), [0.0, 1.0]), TypeError, "targets must be integers, got an array of float64"),
    (lambda: F.cross_entropy(t(2, 3), [0, 3]), ValueError, r"targets must lie in \[0, 3\), got 3"),
    (lambda: F.cross_entropy(t(2, 3), [0, -1]), ValueError, r"targets must lie in \[0, 3\), got -1"),
    (lambda: F.cross_entropy(t(2, 3), [-100, -100]), ValueError, "no target counts"),
    (lambda: F.cross_entropy(t(0, 3), np.zeros(0, int)), ValueError, "the batch is empty"),
    (lambda: F.cross_entropy(t(2, 3), [0, 1], label_smoothing=1.0), ValueError, r"must lie in \[0, 1\), got 1.0"),
    (lambda: F.embedding([0, 6], t(6, 4)), ValueError, r"token ids must lie in \[0, 6\), got 6"),
    (lambda: F.embedding([-1], t(6, 4)), ValueError, r"token ids must lie in \[0, 6\), got -1"),
    (lambda: F.embedding([0.0], t(6, 4)), TypeError, "token ids must be integers, got an array of float64"),
    (lambda: F.embedding([True], t(6, 4)), TypeError, "array of bool"),
    (lambda: F.dropout(t(2), 0.5), ValueError, "give rng"),
    (lambda: F.dropout(t(2), -0.5, rng=0), ValueError, r"must lie in \[0, 1\), got -0.5"),
])
def test_misuse(misuse, error, says):
    with pytest.raises(error, match=says):
        misuse()


@pytest.mark.parametrize("x", [[1000.0, 999.0, -1000.0], [-800.0, -800.0, -801.0]])
def test_the_plain_softmax_of_large_numbers_is_the_fused_one(x):
    """exp(1000) is no number: the largest is subtracted first."""
    for name in ("softmax", "log_softmax"):
        ours = getattr(plain, name)(Tensor(np.array([x])))
        assert np.isfinite(ours.data).all() and np.allclose(ours.data, getattr(F, name)(Tensor(np.array([x]))).data, 1e-12)
