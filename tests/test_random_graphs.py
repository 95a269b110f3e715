"""Random graphs of operations, drawn by Hypothesis: values and gradients are PyTorch's, whatever the shape of the graph.

A graph is a list of steps (operation, first operand, second operand, a number more). Operands are any of the values so
far, so that subexpressions are shared and values used many times; what does not fit together is skipped.
"""
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import tinypeft as tp  # noqa: E402
from tests.oracles.against_torch import leaves  # noqa: E402
from tinypeft import functional as F  # noqa: E402

SHAPES = [(), (1,), (4,), (3, 1), (3, 4), (1, 4), (2, 3, 4), (2, 1, 1), (0, 4)]
ROWS = np.array([0, 2, 2, 1, 0])


class Ours:
    maximum, concatenate, stack = staticmethod(tp.maximum), staticmethod(tp.concatenate), staticmethod(tp.stack)
    softmax, gelu = staticmethod(F.softmax), staticmethod(F.gelu)
    where = staticmethod(lambda a, b: tp.where(np.arange(a.size).reshape(a.shape) % 3 == 0, a, b))
    sum = staticmethod(lambda a, axis, keep: a.sum(axis, keepdims=keep))
    max = staticmethod(lambda a, axis: a.max(axis))
    turn = staticmethod(lambda a: a.transpose())


class Theirs:
    maximum, concatenate, stack = torch.maximum, torch.cat, torch.stack
    softmax = staticmethod(lambda a: torch.softmax(a, -1))
    gelu = staticmethod(lambda a: torch.nn.functional.gelu(a, approximate="tanh"))
    where = staticmethod(lambda a, b: torch.where(torch.arange(a.numel()).reshape(a.shape) % 3 == 0, a, b))
    sum = staticmethod(lambda a, axis, keep: a.sum(axis, keepdim=keep))
    max = staticmethod(lambda a, axis: a.amax(axis))
    turn = staticmethod(lambda a: a.permute(*range(a.ndim)[::-1]))


# (lib, a, b, n) → value. Divisors and arguments of log stay away from 0; tanh keeps what would explode within bounds.
OPERATIONS = {
    "add": lambda lib, a, b, n: a + b,
    "sub": lambda lib, a, b, n: a - b,
    "mul": lambda lib, a, b, n: a * b,
    "div": lambda lib, a, b, n: a / (1.5 + b.tanh()),
    "matmul": lambda lib, a, b, n: a @ b,
    "gram": lambda lib, a, b, n: (a @ lib.turn(a)).tanh(),
    "maximum": lambda lib, a, b, n: lib.maximum(a, b),
    "where": lambda lib, a, b, n: lib.where(a, b),
    "scale": lambda lib, a, b, n: 0.5 * a - n,
    "neg": lambda lib, a, b, n: -a,
    "power": lambda lib, a, b, n: a.tanh() ** (2 + n % 2),
    "exp": lambda lib, a, b, n: a.tanh().exp(),
    "log": lambda lib, a, b, n: (2 + a.tanh()).log(),
    "sqrt": lambda lib, a, b, n: (2 + a.tanh()).sqrt(),
    "sigmoid": lambda lib, a, b, n: a.sigmoid(),
    "relu": lambda lib, a, b, n: a.relu(),
    "abs": lambda lib, a, b, n: a.abs(),
    "gelu": lambda lib, a, b, n: lib.gelu(a),
    "softmax": lambda lib, a, b, n: lib.softmax(a),
    "sum": lambda lib, a, b, n: lib.sum(a, n % a.ndim, bool(n % 2)),
    "mean": lambda lib, a, b, n: a.mean(n % a.ndim),
    "max": lambda lib, a, b, n: lib.max(a, n % a.ndim),
    "sum all": lambda lib, a, b, n: a.sum().tanh(),
    "flatten": lambda lib, a, b, n: a.reshape(-1),
    "turn": lambda lib, a, b, n: lib.turn(a),
    "rows": lambda lib, a, b, n: a[ROWS[:n + 1] % max(1, a.shape[0])],
    "slice": lambda lib, a, b, n: a[n % 2:],
    "last": lambda lib, a, b, n: a[..., -1],
    "new axis": lambda lib, a, b, n: a[None],
    "concatenate": lambda lib, a, b, n: lib.concatenate([a, b if a.ndim == b.ndim else a, a]),  # PyTorch joins (0,) to anything
    "stack": lambda lib, a, b, n: lib.stack([a, b]),
}

step = st.tuples(st.sampled_from(list(OPERATIONS)), st.integers(0, 63), st.integers(0, 63), st.integers(0, 4))
steps = st.lists(step, min_size=1, max_size=25)
shapes = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)


def run(lib, values, graph, fits):
    """All values of a graph; `fits`, filled in the first run, says of each step whether it could be taken."""
    values = list(values)
    for i, (name, j, k, n) in enumerate(graph):
        if fits.get(i, True):
            try:
                y = OPERATIONS[name](lib, values[j % len(values)], values[k % len(values)], n)
            except (RuntimeError, IndexError, ValueError, ZeroDivisionError, TypeError):
                assert i not in fits, f"{name} can be done by PyTorch and not by tinypeft"
                fits[i] = False
                continue
            if i not in fits and (y.numel() > 500 or not torch.isfinite(y).all()): fits[i] = False
            else:
                fits[i] = True
                values.append(y)
    return values


def close(got, expected, tolerance):
    """Relative to the largest number, or to 1, the size of the leaves: a sum that cancels leaves only rounding."""
    expected = expected.detach().numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= tolerance * max(1.0, np.abs(expected).max(initial=0))


def agree(graph, shapes, frozen, dtype, tolerance):
    rng = np.random.default_rng(0)
    xs, ts = leaves([rng.standard_normal(shape).astype(dtype) for shape in shapes], frozen)
    fits = {}
    theirs = run(Theirs, ts, graph, fits)
    ours = run(Ours, xs, graph, fits)
    for y, z in zip(ours, theirs, strict=True):
        close(y.data, z, tolerance)
        assert y.requires_grad == z.requires_grad and y.dtype == dtype
    y, z = ours[-1], theirs[-1]                          # and one value that depends on the last three
    for a, b in zip(ours[-3:-1], theirs[-3:-1], strict=True):
        y, z = y.sum() + (a * a).sum(), z.sum() + (b * b).sum()
    if not z.requires_grad: return
    dy = rng.standard_normal(z.shape).astype(dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    for x, t in zip(xs, ts, strict=True):
        assert (x.grad is None) == (t.grad is None)
        if x.grad is not None:
            assert x.grad.dtype == dtype
            close(x.grad, t.grad, tolerance)


@settings(max_examples=200)
@given(steps, shapes, st.sets(st.integers(0, 2)))
def test_random_graphs_agree_with_pytorch(graph, shapes, frozen):
    agree(graph, shapes, frozen, np.float64, 1e-8)


@settings(max_examples=50)
@given(steps, shapes)
def test_random_graphs_agree_in_float32(graph, shapes):
    agree(graph, shapes, (), np.float32, 1e-4)           # 25 operations deep


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_takes_part(name):
    """Each fits some shapes, so that the graphs above are not empty; each alone agrees on all of them."""
    taken = 0
    for shape in SHAPES:
        for other in (shape, (4,)):
            taken += len(run(Theirs, leaves([np.ones(shape), np.ones(other)])[1], [(name, 0, 1, 1)], {})) == 3
            agree([(name, 0, 1, 1)], [shape, other], (), np.float64, 1e-10)
    assert taken >= 2
