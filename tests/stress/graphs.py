"""Random graphs of operations: values and gradients are PyTorch's, whatever the shape of the graph.

    python -m tests.stress.graphs --count 50000 --record

A graph is drawn from its seed. It is a list of leaves and a list of steps, and a step is an operation of `OPERATIONS`
with the places of its operands and its parameters. Operands are leaves or earlier results, so that values are shared.
Every operation of `Tensor` and of `functional` takes part. Axes have 0, 1 or a few elements; operands broadcast, are
views and are frozen at random; rows are masked altogether; work is in float32 or in float64.

How close is close. PyTorch computes each graph again several times, with every value off by a few roundings. The
spread of these results is what rounding can do to each number, and `SLACK` times the spread is allowed. Where the graph
is extreme (values of 1e±38 or 1e±300, zeros and infinities, also in the gradient that comes from above), an order of
evaluation decides what overflows. There a number is right if it is PyTorch's, or if it is what PyTorch finds in float64.
Not compared in extreme graphs: what is infinite or NaN on both sides; what PyTorch says is NaN, in float64 or beside a
product of matrices; gradients that are NaN once some value is, or once PyTorch's gradient of the same leaf has a NaN; an
infinite value where PyTorch's number has no digit left. Differences below the smallest normal number pass.
PyTorch's own formula is replaced where it overflows or is undefined: abs, max, dropout, the slope of the sigmoid, GELU
beyond 50, the norms beyond 1e15, rows that do not count in cross-entropy, c / a, attention beyond 1e10. Constant powers
that are fractions are left out of extreme graphs.
"""
import argparse
import collections
import functools
import json
import math
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import tinypeft as tp
from tests.stress import record
from tinypeft.engine import functional as F
from tinypeft.engine.tensor import Tensor

SLACK, ROUNDINGS = 300, 6                                # spreads allowed; runs that measure the spread
LARGEST = 300                                           # elements of a value that is used again
KINDS = ("value", "gradient", "shape or dtype", "presence", "error", "shared memory", "written", "walked twice")


class Fault(AssertionError):
    """What is wrong with a graph. kind: one of `KINDS`."""

    def __init__(self, kind, says):
        super().__init__(f"{kind}: {says}")
        self.kind = kind


# -- drawing --------------------------------------------------------------------------------------
@dataclass
class Graph:
    seed: int
    dtype: type
    extreme: bool
    leaves: list = field(default_factory=list)          # arrays
    trained: list = field(default_factory=list)         # which leaves require a gradient
    steps: list = field(default_factory=list)           # (name, places of the operands, parameters)
    places: list = field(default_factory=list)          # of each value: ("leaf", i) or ("step", i)

    def __str__(self):
        lines = [f"seed {self.seed}, {self.dtype.__name__}{', extreme' if self.extreme else ''}"]
        for i, (where, j) in enumerate(self.places):
            if where == "step":
                name, operands, parameters = self.steps[j]
                lines.append(f"  v{i} = {name}({', '.join(f'v{k}' for k in operands)}, {parameters!r})")
            else: lines.append(f"  v{i} = {self.leaves[j]!r}{'' if self.trained[j] else ', frozen'}")
        return "\n".join(lines)


class Pen:
    """Draws a graph: chooses shapes, numbers, operands and parameters, and computes the values of both sides."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        dtype = np.float32 if self.chance(0.45) else np.float64
        self.graph = Graph(seed, dtype, self.chance(0.35))
        self.ours, self.theirs, self.usable = [], [], []

    def chance(self, p): return self.rng.random() < p
    def one(self, of): return of[int(self.rng.integers(len(of)))]
    def whole(self, low, high): return int(self.rng.integers(low, high))

    def shape(self, ndim=None):
        ndim = self.one((0, 1, 1, 2, 2, 2, 3, 3, 4)) if ndim is None else ndim
        empty = self.chance(0.12)
        return tuple(self.one((0, 1, 2, 3) if empty else (1, 1, 2, 3, 4, 5)) for _ in range(ndim))

    def numbers(self, shape):
        x = np.asarray(self.rng.standard_normal(shape))
        if self.chance(0.2): x = np.round(x)                                # ties and zeros
        if self.graph.extreme:
            top = 37 if self.graph.dtype is np.float32 else 300
            scale = 10.0 ** self.rng.uniform(-top, top, shape) if self.chance(0.5) else 10.0 ** self.rng.uniform(-top, top)
            x = x * scale
            if self.chance(0.4): x = np.where(self.rng.random(shape) < 0.3, self.one((0, np.inf, -np.inf, 1, 0)), x)
        with np.errstate(over="ignore"): return np.asarray(x, self.graph.dtype)

    def layout(self, a):
        how = self.one(("rows", "rows", "columns", "backwards", "gaps")) if a.ndim else "rows"
        if how == "columns": return np.asfortranarray(a)
        if how == "backwards": return a[::-1].copy()[::-1]
        return np.repeat(a, 2, axis=-1)[..., ::2] if how == "gaps" else a

    def leaf(self, shape, positive=False):
        a = self.numbers(shape)
        if positive: a = np.abs(a) + (0 if self.graph.extreme else self.graph.dtype(0.1))
        a, trained = self.layout(a), self.chance(0.75)
        self.graph.leaves.append(a); self.graph.trained.append(trained)
        self.ours.append(Tensor(a, requires_grad=trained))
        self.theirs.append(torch_leaf(a, trained))
        return self.place("leaf", len(self.graph.leaves) - 1)

    def place(self, where, i, usable=True):
        self.graph.places.append((where, i))
        if usable: self.usable.append(len(self.graph.places) - 1)
        return len(self.graph.places) - 1

    def value(self, ndim=0, wanted=lambda a: True):
        """A value with at least ndim axes, rather a late one; a new leaf if there is none."""
        found = [i for i in self.usable if self.ours[i].ndim >= ndim and wanted(self.ours[i])]
        if not found or self.chance(0.1):
            while not wanted(a := np.empty(shape := self.shape(max(ndim, self.whole(ndim, 4))))): del a
            return self.leaf(shape)
        return found[-1] if self.chance(0.5) else self.one(found)

    def positive(self):
        """A value of positive numbers, or any in an extreme graph."""
        if self.graph.extreme: return self.value()
        found = [i for i in self.usable if (self.ours[i].data > 0.05).all()]
        return self.one(found) if found and self.chance(0.7) else self.leaf(self.shape(), positive=True)

    def exactly(self, shape):
        found = [i for i in self.usable if self.ours[i].shape == shape]
        return self.one(found) if found and self.chance(0.7) else self.leaf(shape)

    def fitting(self, i, positive=False):
        """A value that broadcasts with value i, into something not too large."""
        shape = self.ours[i].shape

        def fits(x):
            try: return math.prod(np.broadcast_shapes(shape, x.shape)) <= LARGEST
            except ValueError: return False
        found = [j for j in self.usable if fits(self.ours[j]) and not (positive and (self.ours[j].data <= 0.05).any())]
        if found and self.chance(0.6): return self.one(found)
        narrow = tuple(1 if self.chance(0.25) else n for n in shape[self.whole(0, len(shape) + 1) if self.chance(0.5) else 0:])
        return self.leaf(narrow, positive)

    def axis(self, i):
        n = self.ours[i].ndim
        return self.whole(-n, n)

    def axes(self, i):
        """An axis, some, or None for all."""
        n = self.ours[i].ndim
        if n == 0 or self.chance(0.25): return None
        if self.chance(0.7): return self.axis(i)
        some = self.rng.permutation(n)[:self.whole(1, n + 1)]
        return tuple(int(a) - (n if self.chance(0.5) else 0) for a in some)

    def index(self, shape):
        """What may stand in x[…]: slices, numbers, None, … , arrays of places, a mask."""
        if shape and self.chance(0.15): return self.rng.random(shape[:self.whole(1, len(shape) + 1)]) < 0.5
        if shape and shape[0] and self.chance(0.15):
            return self.rng.integers(-shape[0], shape[0], self.shape(self.whole(0, 3)))
        if len(shape) > 1 and min(shape[:2]) and self.chance(0.1):
            return tuple(self.rng.integers(0, n, 4) for n in shape[:2])
        parts = []
        for n in shape[:self.whole(0, len(shape) + 1)]:
            if n and self.chance(0.3): parts.append(self.whole(-n, n))
            else: parts.append(slice(self.one((None, 0, 1, -2)), self.one((None, None, n, -1)), self.one((None, 1, 2, -1))))
            if self.chance(0.1): parts.append(None)
        if self.chance(0.3): parts.append(...)
        if not any(p is ... for p in parts) and self.chance(0.1): parts.append(None)
        return tuple(parts) if len(parts) != 1 or self.chance(0.5) else parts[0]


# -- PyTorch's side -------------------------------------------------------------------------------
def torch_leaf(a, trained, dtype=None):
    return torch.tensor(np.array(a, dtype or a.dtype), requires_grad=trained)


class Chosen(torch.autograd.Function):
    """y, a function of x with the given slope: dx = slope dy, and 0 where the slope is 0 even if dy is infinite.

    PyTorch itself gives NaN there in abs, amax and dropout, and 0 in relu, maximum and where.
    """
    @staticmethod
    def forward(ctx, x, y, slope):
        ctx.save_for_backward(slope)
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        (slope,) = ctx.saved_tensors
        return torch.where(slope == 0, torch.zeros_like(slope), dy * slope), None, None


class Sloped(torch.autograd.Function):
    """y, a function of x with the given slope: dx = slope dy."""
    forward = staticmethod(Chosen.forward)

    @staticmethod
    def backward(ctx, dy): return dy * ctx.saved_tensors[0], None, None


def torch_abs(a): return Chosen.apply(a, a.detach().abs(), a.detach().sgn())


def over(a, axis): return tuple(range(a.ndim)) if axis is None else axis


def torch_max(a, axis, keep):
    axis, x = over(a, axis), a.detach()
    y = x.amax(axis, keepdim=True)
    largest = x == y
    share = largest.to(x.dtype) / largest.sum(axis, keepdim=True).to(x.dtype)
    y = Chosen.apply(a, y, share)
    return y if keep else y.squeeze(axis)


def torch_sigmoid(a):
    """σ′(a) = σ(a) σ(−a): PyTorch's y (1 − y) is 0 from a = 17 on in float32, and has lost its digits before."""
    x = a.detach()
    return Sloped.apply(a, x.sigmoid(), x.sigmoid() * (-x).sigmoid())


def torch_gelu(a, approximate):
    """GELU, and its limits 0 and a beyond |a| = 50, where PyTorch's gradient becomes NaN in the end."""
    far = a.detach().abs() > 50
    near = gelu(torch.where(far, torch.zeros_like(a), a), approximate=approximate)
    return torch.where(far, a * (a.detach() > 0).to(a.dtype), near)


def torch_layer_norm(x, g, b, eps):
    """Beyond 1e15 as a composition on rows divided by their largest number, because PyTorch squares what it is given."""
    if not (x.detach().abs() > 1e15).any(): return nn.layer_norm(x, x.shape[-1:], g, b, eps)
    s = x.detach().abs().amax(-1, keepdim=True).clamp(1)
    x = x / s
    x = x - x.mean(-1, keepdim=True)
    return x / ((x * x).mean(-1, keepdim=True) + eps / s / s).sqrt() * g + b


def torch_rms_norm(x, g, eps):
    s = x.detach().abs().amax(-1, keepdim=True).clamp(1) if x.numel() else 1
    x = x / s
    return x / ((x * x).mean(-1, keepdim=True) + eps / s / s).sqrt() * g


def torch_rotary(x, cos, sin):
    (x1, x2), (cos, sin) = x.chunk(2, -1), (torch.as_tensor(a, dtype=x.dtype) for a in (cos, sin))
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def torch_gated(a, mask):
    return Chosen.apply(a, a.detach() * mask, torch.as_tensor(mask, dtype=a.dtype))


def torch_index(a, index):
    """By the places of the elements, which NumPy finds; PyTorch has no negative steps."""
    places = np.arange(math.prod(a.shape)).reshape(a.shape)[index]
    return a.reshape(-1)[torch.as_tensor(np.array(places, order="C"))]


def constant(c, a):
    """A number or array beside the tensor a, in its dtype."""
    return torch.as_tensor(np.asarray(c), dtype=a.dtype) if not isinstance(c, (int, float)) else c


def torch_attention(q, k, v, causal, mask, noise=None):
    """PyTorch's own for moderate numbers. Where all scores of a row are −∞ it gives 0; its softmax gives NaN, as here.

    noise: the error of dP − rowsum(P ⊙ dP), as a function of P.
    """
    moderate = noise is None and all((x.detach().abs() < 1e10).all() for x in (q, k))
    (T, d), S = q.shape[-2:], k.shape[-2]
    hidden = torch.ones(T, S, dtype=torch.bool).tril(S - T).logical_not() if causal else torch.zeros(T, S, dtype=torch.bool)
    if moderate and mask is None and min(T, S, d):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
    S = (q @ k.mT / math.sqrt(max(d, 1))).masked_fill(hidden, -math.inf)
    P = torch.softmax(S, -1)
    if noise is not None: P = P + noise(P) * P.detach() * slope(S)
    return (P if mask is None else P * torch.as_tensor(mask, dtype=P.dtype)) @ v


def torch_cross_entropy(z, targets, smoothing):
    """Of the positions that count: PyTorch's gradient is NaN at an ignored position with infinite logits."""
    z, targets = z.reshape(-1, z.shape[-1]), torch.as_tensor(targets).long().reshape(-1)
    counted = targets != F.IGNORED
    return torch.nn.functional.cross_entropy(z[counted], targets[counted], label_smoothing=smoothing)


# -- operations -----------------------------------------------------------------------------------
@dataclass
class Operation:
    """draw(pen) → (operands, parameters); ours(*operands, *parameters), theirs likewise; theirs is ours if not given.
    covers: the names of the operations of tinypeft that it calls."""
    covers: str
    draw: Any
    ours: Any
    theirs: Any = None


def unary(pen): return [pen.value()], ()
def binary(pen): return [i := pen.value(), pen.fitting(i)], ()


def with_constant(pen):
    i = pen.value()
    shape = pen.ours[i].shape
    return [i], (pen.one((2, -1.5, 0.5, 3, pen.rng.standard_normal(shape), pen.rng.standard_normal(shape[-1:]).tolist())),)


def of_power(pen):
    roots = () if pen.graph.extreme else (0.5, 3.5, -0.5)                   # of −∞, C and PyTorch differ
    n = pen.one((0, 1, 2, 3, -1, -2, 2.0, *roots))
    return [pen.positive() if n not in (0, 1, 2, 3) else pen.value()], (n,)


def reduction(pen, anything=False):
    i = pen.value()
    axis, x = pen.axes(i), pen.ours[i]
    over = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if not anything and any(x.shape[a] == 0 for a in over): i, axis = pen.leaf((2, 3)), 1       # nothing has no mean
    return [i], (axis, pen.chance(0.5))


def matrices(pen):
    i = pen.value(1)
    shape = pen.ours[i].shape
    inner, batch = shape[-1], shape[:-2]
    if pen.chance(0.25): return [i, pen.exactly((inner,))], ()
    if pen.chance(0.5): batch = tuple(1 if pen.chance(0.4) else n for n in batch)
    if pen.chance(0.4): batch = batch[pen.whole(0, len(batch) + 1):]
    return [i, pen.exactly((*batch, inner, pen.one((0, 1, 2, 3, 3))))], ()


def matrix_first(pen):
    """A constant array times a tensor."""
    i = pen.value(2)
    return [i], (pen.rng.standard_normal((pen.whole(1, 4), pen.ours[i].shape[-2])),)


def reshaped(pen):
    i = pen.value()
    shape = list(pen.ours[i].shape)
    for _ in range(pen.whole(1, 4)):
        if len(shape) > 1 and pen.chance(0.6):
            j = pen.whole(0, len(shape) - 1)
            shape[j:j + 2] = [shape[j] * shape[j + 1]]
        else: shape.insert(pen.whole(0, len(shape) + 1), 1)
    if pen.ours[i].size and shape and pen.chance(0.3): shape[pen.whole(0, len(shape))] = -1
    return [i], (tuple(shape),)


def permuted(pen):
    i = pen.value()
    n = pen.ours[i].ndim
    if not (pen.chance(0.7) and n): return [i], (None,)
    return [i], (tuple(int(a) - (n if pen.chance(0.3) else 0) for a in pen.rng.permutation(n)),)


def joined(pen):
    i = pen.value(1)
    shape, axis = pen.ours[i].shape, pen.axis(i)
    def other(): return (*shape[:axis % len(shape)], pen.one((0, 1, 2)), *shape[axis % len(shape) + 1:])
    rest = [pen.one((i, pen.exactly(shape), pen.exactly(other()))) for _ in range(pen.whole(0, 3))]
    return [i, *rest], (axis,)


def stacked(pen):
    i = pen.value()
    n = pen.ours[i].ndim
    return [i, *(pen.exactly(pen.ours[i].shape) for _ in range(pen.whole(0, 3)))], (pen.whole(-n - 1, n + 1),)


def cut(pen):
    i = pen.value(1)
    axis = pen.axis(i)
    n = pen.ours[i].shape[axis]
    if pen.chance(0.5):
        sections = pen.one([k for k in range(1, n + 1) if n % k == 0] or [1, 2, 3])
        return [i], (sections, axis, pen.whole(0, sections))
    at = sorted(pen.whole(0, n + 1) for _ in range(pen.whole(1, 3)))
    return [i], (at, axis, pen.whole(0, len(at) + 1))


def chosen(pen):
    i = pen.value()
    j = pen.fitting(i)
    return [i, j], (pen.rng.random(np.broadcast_shapes(pen.ours[i].shape, pen.ours[j].shape)) < 0.5,)


def masked(pen):
    """Rows of which a part, or all, is hidden."""
    i = pen.value(1)
    shape = pen.ours[i].shape
    hidden = pen.rng.random(shape) < 0.3
    if pen.chance(0.5): hidden |= pen.rng.random((*shape[:-1], 1)) < 0.3
    return [i], (~hidden,)


def of_linear(pen):
    i = pen.value(1)
    d_out = pen.one((0, 1, 2, 3, 4))
    return [i, pen.exactly((d_out, pen.ours[i].shape[-1])), *([pen.exactly((d_out,))] if pen.chance(0.6) else [])], ()


def of_layer_norm(pen):
    i = pen.value(1)
    d = pen.ours[i].shape[-1:]
    return [i, pen.exactly(d), pen.exactly(d)], (pen.one((1e-5, 1e-5, 1e-6, 0.5)),)


def of_rms_norm(pen):
    i = pen.value(1)
    return [i, pen.exactly(pen.ours[i].shape[-1:])], (pen.one((1e-5, 1e-5, 1e-6, 0.5)),)


def of_rotary(pen):
    T, d = pen.one((0, 1, 2, 3)), pen.one((0, 2, 4))
    phi = pen.rng.uniform(-9, 9, (T, d // 2)).astype(pen.graph.dtype)
    return [pen.exactly((*pen.shape(pen.one((0, 1, 2))), T, d))], (np.cos(phi), np.sin(phi))


def pair(pen): return [i := pen.value(), pen.exactly(pen.ours[i].shape)], ()


def along(pen):
    i = pen.value()
    return [i], (pen.axis(i) if pen.ours[i].ndim else -1,)


def of_attention(pen):
    T, extra, d = pen.one((0, 1, 2, 3, 4)), pen.one((0, 0, 1, 3)), pen.one((0, 1, 2, 4, 4))
    if pen.chance(0.03): T = pen.whole(60, 140)                             # more than one block of queries
    batch, causal = pen.shape(pen.one((0, 1, 2))) if T < 60 else (), pen.chance(0.6)
    S = T + extra if causal or pen.chance(0.5) else pen.one((0, 1, 2, 5))
    q, k, v = pen.exactly((*batch, T, d)), pen.exactly((*batch, S, d)), pen.exactly((*batch, S, d))
    p = pen.one((0, 0, 0.4))
    if p and T <= 64:
        ones = Tensor(np.ones((math.prod(batch), T, S), pen.graph.dtype))
        return [q, k, v], (causal, p, seed := pen.whole(0, 99), F.dropout(ones, p, rng=seed).data.reshape(*batch, T, S))
    return [q, k, v], (causal, 0, 0, None)


def of_cross_entropy(pen):
    i = pen.value(1, lambda a: a.size > 0)
    *shape, V = pen.ours[i].shape
    targets = pen.rng.integers(0, V, shape)
    if pen.chance(0.4): targets = np.where(pen.rng.random(shape) < 0.4, F.IGNORED, targets)
    if not (targets != F.IGNORED).any(): targets = np.zeros(shape, int)
    return [i], (targets, pen.one((0.0, 0.0, 0.1)))


def of_embedding(pen):
    n, d = pen.one((1, 2, 5)), pen.one((0, 1, 3))
    return [pen.exactly((n, d))], (pen.rng.integers(0, n, pen.shape(pen.whole(0, 3))),)


def of_dropout(pen):
    i = pen.value()
    p, seed = pen.one((0.0, 0.3, 0.7)), pen.whole(0, 99)
    return [i], (p, seed, F.dropout(Tensor(np.ones(pen.ours[i].shape, pen.graph.dtype)), p, rng=seed).data)


def powers(pen): return [i := pen.positive(), pen.fitting(i)], ()
def of_number(pen): return [pen.value()], (pen.one((2, 0.5, 3.0, 1, 0, 0.0)),)
def divided(pen): return [i := pen.value(), pen.fitting(i, positive=not pen.graph.extreme)], ()
def divisor(pen): return [pen.positive()], (pen.one((1, -2.5, 3)),)
def indexed(pen): return [i := pen.value()], (pen.index(pen.ours[i].shape),)
def logarithm(pen): return [pen.positive()], ()
def nothing(pen): return reduction(pen, anything=True)


gelu, nn = torch.nn.functional.gelu, torch.nn.functional
OPERATIONS = {
    "a + b": Operation("add", binary, lambda a, b: a + b),
    "a + c": Operation("add", with_constant, lambda a, c: a + c, lambda a, c: a + constant(c, a)),
    "c + a": Operation("radd", with_constant, lambda a, c: c + a, lambda a, c: a + constant(c, a)),
    "a - b": Operation("sub", binary, lambda a, b: a - b),
    "c - a": Operation("rsub", with_constant, lambda a, c: c - a, lambda a, c: constant(c, a) - a),
    "a * b": Operation("mul", binary, lambda a, b: a * b),
    "a * a": Operation("mul", unary, lambda a: a * a),
    "c * a": Operation("rmul", with_constant, lambda a, c: c * a, lambda a, c: a * constant(c, a)),
    "a / b": Operation("truediv", divided, lambda a, b: a / b),
    "c / a": Operation("rtruediv", divisor, lambda a, c: c / a, lambda a, c: torch.as_tensor(c, dtype=a.dtype) / a),
    "a ** n": Operation("pow", of_power, lambda a, n: a ** n),
    "a ** b": Operation("pow", powers, lambda a, b: a ** b),
    "c ** a": Operation("rpow", of_number, lambda a, c: c ** a, lambda a, c: torch.pow(torch.tensor(c, dtype=a.dtype), a)),
    "a @ b": Operation("matmul", matrices, lambda a, b: a @ b),
    "C @ a": Operation("rmatmul", matrix_first, lambda a, C: C @ a, lambda a, C: constant(C, a) @ a),
    "-a": Operation("neg", unary, lambda a: -a),
    "a[index]": Operation("getitem", indexed, lambda a, i: a[i], torch_index),
    "exp": Operation("exp", unary, lambda a: a.exp()),
    "log": Operation("log", logarithm, lambda a: a.log()),
    "sqrt": Operation("sqrt", logarithm, lambda a: a.sqrt()),
    "tanh": Operation("tanh", unary, lambda a: a.tanh()),
    "sigmoid": Operation("sigmoid", unary, lambda a: a.sigmoid(), torch_sigmoid),
    "relu": Operation("relu", unary, lambda a: a.relu()),
    "abs": Operation("abs", unary, lambda a: a.abs(), torch_abs),
    "sum": Operation("sum", nothing, lambda a, axis, k: a.sum(axis, keepdims=k),
                     lambda a, axis, k: a.sum(over(a, axis), keepdim=k) if a.ndim else a.sum()),
    "mean": Operation("mean", reduction, lambda a, axis, k: a.mean(axis, keepdims=k),
                      lambda a, axis, k: a.mean(over(a, axis), keepdim=k) if a.ndim else a.mean()),
    "max": Operation("max", reduction, lambda a, axis, k: a.max(axis, keepdims=k), torch_max),
    "reshape": Operation("reshape", reshaped, lambda a, s: a.reshape(s)),
    "transpose": Operation("transpose", permuted, lambda a, axes: a.transpose(axes) if axes else a.transpose(),
                           lambda a, axes: a.permute(axes or tuple(range(a.ndim))[::-1])),
    "a.T": Operation("T", unary, lambda a: a.T, lambda a: a.permute(tuple(range(a.ndim))[::-1])),
    "detach": Operation("detach", unary, lambda a: a.detach()),
    "maximum": Operation("maximum", binary, tp.maximum, torch.maximum),
    "maximum of a and c": Operation("maximum", with_constant, tp.maximum, lambda a, c: torch.maximum(
        a, torch.as_tensor(np.asarray(c), dtype=a.dtype))),
    "where": Operation("where", chosen, lambda a, b, c: tp.where(c, a, b),
                       lambda a, b, c: torch.where(torch.as_tensor(c), a, b)),
    "concatenate": Operation("concatenate", joined, lambda *a: tp.concatenate(a[:-1], a[-1]),
                             lambda *a: torch.cat(a[:-1], a[-1])),
    "stack": Operation("stack", stacked, lambda *a: tp.stack(a[:-1], a[-1]), lambda *a: torch.stack(a[:-1], a[-1])),
    "split": Operation("split", cut, lambda a, s, axis, i: tp.split(a, s, axis)[i],
                       lambda a, s, axis, i: a.tensor_split(s, axis)[i]),
    "linear": Operation("linear", of_linear, F.linear, nn.linear),
    "layer_norm": Operation("layer_norm", of_layer_norm, F.layer_norm, torch_layer_norm),
    "rms_norm": Operation("rms_norm", of_rms_norm, F.rms_norm, torch_rms_norm),
    "rotary": Operation("rotary", of_rotary, F.rotary, torch_rotary),
    "swiglu": Operation("swiglu", pair, F.swiglu, lambda g, u: nn.silu(g) * u),
    "geglu": Operation("geglu", pair, F.geglu, lambda g, u: torch_gelu(g, "tanh") * u),
    "gelu": Operation("gelu", unary, F.gelu, lambda a: torch_gelu(a, "tanh")),
    "gelu, erf": Operation("gelu", unary, lambda a: F.gelu(a, "none"), lambda a: torch_gelu(a, "none")),
    "softmax": Operation("softmax", along, F.softmax, torch.softmax),
    "masked softmax": Operation("softmax where", masked, lambda a, seen: F.softmax(tp.where(seen, a, -math.inf)),
                                lambda a, seen: torch.softmax(a.masked_fill(torch.as_tensor(~seen), -math.inf), -1)),
    "log_softmax": Operation("log_softmax", along, F.log_softmax, torch.log_softmax),
    "masked log_softmax": Operation("log_softmax where", masked, lambda a, seen: F.log_softmax(tp.where(seen, a, -math.inf)),
                                    lambda a, seen: torch.log_softmax(a.masked_fill(torch.as_tensor(~seen), -math.inf), -1)),
    "attention": Operation("attention", of_attention,
                           lambda q, k, v, causal, p, seed, mask: F.attention(q, k, v, causal, p, seed),
                           lambda q, k, v, causal, p, seed, mask: torch_attention(q, k, v, causal, mask)),
    "cross_entropy": Operation("cross_entropy", of_cross_entropy, lambda z, t, e: F.cross_entropy(z, t, label_smoothing=e),
                               torch_cross_entropy),
    "embedding": Operation("embedding", of_embedding, lambda E, ids: F.embedding(ids, E),
                           lambda E, ids: nn.embedding(torch.as_tensor(ids).long(), E)),
    "dropout": Operation("dropout", of_dropout, lambda a, p, seed, mask: F.dropout(a, p, seed),
                         lambda a, p, seed, mask: torch_gated(a, mask) if p else a),
}


SUMS = {"a @ b", "C @ a", "sum", "mean", "linear", "layer_norm", "rms_norm", "rotary", "softmax", "masked softmax",
        "log_softmax", "masked log_softmax", "attention", "cross_entropy"}
FUSED = {"a @ b", "C @ a", "linear", "attention"}        # a product of matrices adds a·b before it rounds: ∞ or NaN
SOFTMAXES = {"softmax", "masked softmax", "log_softmax", "masked log_softmax"}
SATURATING = {"tanh", "sigmoid", "swiglu", "geglu", "gelu", "gelu, erf", *SOFTMAXES}
LOGARITHMS = {"log_softmax", "masked log_softmax", "cross_entropy"}


class Noise(np.random.Generator):
    """A generator, and the phase of the errors that depend on the number alone."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(seed))
        self.phase = self.uniform(0, 2 * math.pi)


def covered() -> set[str]:
    """The operations of tinypeft that take part."""
    return {name for operation in OPERATIONS.values() for name in operation.covers.split()}


# -- one graph ------------------------------------------------------------------------------------
def draw(seed: int) -> tuple[Graph, list, list]:
    """The graph of a seed, and its values on both sides. Raises `Fault` for a step that only PyTorch can take."""
    pen = Pen(seed)
    graph = pen.graph
    for _ in range(pen.whole(1, 3)): pen.leaf(pen.shape())
    for _ in range(pen.whole(1, 4) if graph.extreme else pen.whole(2, 11)):
        name = pen.one(list(OPERATIONS))
        operands, parameters = OPERATIONS[name].draw(pen)
        graph.steps.append((name, operands, parameters))
        try: pen.ours.append(apply(graph.steps[-1], [pen.ours[i] for i in operands], "ours"))
        except Exception as e:
            graph.places.append(("step", len(graph.steps) - 1))
            raise Fault("error", f"{name}: {type(e).__name__}: {e}\n{graph}") from e
        pen.theirs.append(apply(graph.steps[-1], [pen.theirs[i] for i in operands], "theirs"))
        y = pen.ours[-1]
        tame = graph.extreme or bool(np.isfinite(y.data).all() and np.abs(y.data).max(initial=0) < 1e4)
        pen.place("step", len(graph.steps) - 1, usable=y.size <= LARGEST and tame)
    return graph, pen.ours, pen.theirs


def apply(step, values, side):
    """The result of a step from the values of its operands."""
    name, _, parameters = step
    operation = OPERATIONS[name]
    function = operation.ours if side == "ours" or operation.theirs is None else operation.theirs
    return function(*values, *parameters)


def replay(graph, root, dy, dtype, rng=None):
    """PyTorch's values, and the gradients of the leaves under the gradient dy of value `root`, in dtype.

    rng: draws errors of a few roundings for every value. None: no errors.
    """
    values, leaves, finfo = [], [], np.finfo(graph.dtype)
    eps = 8 * float(finfo.eps)
    for where, i in graph.places:
        if where == "leaf":
            leaves.append(torch_leaf(graph.leaves[i], graph.trained[i], dtype))
            values.append(leaves[-1])
        else:
            operands = [values[j] for j in graph.steps[i][1]]
            if rng is None: values.append(apply(graph.steps[i], operands, "theirs"))
            else:           values.append(rounded(graph.steps[i], operands, eps, float(finfo.smallest_subnormal), rng))
        if rng is not None: values[-1] = off(values[-1], eps, rng.phase)
    gradients = [None] * len(leaves)
    if dy is not None:
        if rng is not None: dy = dy * (1 + eps * rng.standard_normal(dy.shape))
        values[root].backward(torch.as_tensor(dy.astype(dtype)))
        gradients = [leaf.grad for leaf in leaves]
    return [v.detach().numpy() for v in values], [None if g is None else g.numpy() for g in gradients]


def off(x, eps, phase):
    """x with small errors. Equal numbers have equal errors, so that what is the largest of a row stays so."""
    mantissa = torch.frexp(x.detach())[0].nan_to_num()
    return x * (1 + eps * torch.sin(mantissa * 1e5 + phase))


class Passed(torch.autograd.Function):
    """x itself; the gradient comes back with errors."""
    @staticmethod
    def forward(ctx, x, noise):
        ctx.save_for_backward(noise)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy): return dy * (1 + ctx.saved_tensors[0]), None


def slope(x):
    """0, with gradient 1."""
    return torch.where(x.isfinite(), x - x.detach(), 0)


def rounded(step, xs, eps, least, rng):
    """PyTorch's result of a step, with the errors that arise inside. least: the step from 0 to the next number."""
    name, _, parameters = step
    noise = lambda x: eps * torch.as_tensor(rng.standard_normal(x.shape), dtype=x.dtype)            # noqa: E731
    plain, xs = xs[0].detach(), [Passed.apply(x, noise(x)) for x in xs]
    if name in SUMS: xs = [x * (1 + noise(x)) for x in xs]               # a sum has its summands' errors
    if name == "attention": return torch_attention(*xs, parameters[0], parameters[3], noise)
    y, x = apply(step, xs, "theirs"), xs[0]
    if name in LOGARITHMS: y = y + noise(y)                              # log(1 + …) has the error of the 1,
    if name in SATURATING: y = y + noise(x) * slope(x)                   # as have 1 − y² and dy − p Σ dy,
    if "gelu" in name: y = y + noise(x) * x.clamp(-10, 10)               # 1 + erf(x),
    if name == "geglu": y = y + noise(x) * x.clamp(-10, 10) * xs[1]      # 1 + tanh,
    if name == "cross_entropy": y = y + (noise(x) * slope(x)).sum()      # p − onehot,
    if name in ("layer_norm", "rms_norm"):                               # and dx̂ − mean(dx̂), dx̂ − x̂ mean(dx̂ x̂)
        square = plain.var(-1, keepdim=True, correction=0) if name == "layer_norm" else (plain * plain).mean(-1, keepdim=True)
        scale = (square + parameters[0]).sqrt()
        largest = xs[1].detach().abs().sum()
        error = noise(y)
        y = y + error * (slope(x) * largest / scale).nan_to_num().sum(-1, keepdim=True)
        y = y + error / eps * least * xs[1].detach()                     # x̂ may lie below the smallest normal number
    return y


def check(seed: int) -> Graph:
    """Compare one graph. Raises `Fault`."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        graph, ours, theirs = draw(seed)
        rng = np.random.default_rng([seed, 1])
        root = next((i for i in reversed(range(len(ours))) if theirs[i].requires_grad), None)
        if root is None: root, dy = len(ours) - 1, None
        else:
            dy = np.asarray(rng.standard_normal(ours[root].shape), graph.dtype)
            if graph.extreme and rng.random() < 0.7:
                some = rng.random(dy.shape) < 0.5
                dy = np.where(some, [np.inf, np.inf, 0, 1e30, 1e-30][rng.integers(5)], dy).astype(graph.dtype)
        kept = [(y.data, y.data.tobytes()) for y in ours] + ([] if dy is None else [(dy, dy.tobytes())])
        leaves = [ours[i] for i, (where, _) in enumerate(graph.places) if where == "leaf"]

        structure(graph, ours, theirs)
        if dy is not None: ours[root].backward(dy)
        values, gradients = [y.data for y in ours], [x.grad for x in leaves]
        expected = replay(graph, root, dy, graph.dtype)
        others = [replay(graph, root, dy, np.float64)] if graph.extreme and graph.dtype is np.float32 else []
        wide = np.float64 if others else graph.dtype     # in float64 float32's errors, and nothing overflows
        noisy = functools.cache(lambda: [replay(graph, root, dy, wide, Noise([seed, r]))
                                         for r in range((1 + graph.extreme) * ROUNDINGS)])
        fused = any(name in FUSED for name, *_ in graph.steps)
        undefined = any(np.isnan(v).any() for v in values)
        for k, (kind, got) in enumerate((("value", values), ("gradient", gradients))):
            for i, a in enumerate(got):
                right = [run[k][i] for run in (expected, *others)]
                if (a is None) != (right[0] is None): raise Fault("presence", f"gradient of leaf {i} is {a}\n{graph}")
                if a is None: continue
                if a.shape != right[0].shape or a.dtype != graph.dtype:
                    raise Fault("shape or dtype", f"{kind} {i}: {a.dtype}{a.shape}, expected {right[0].shape}\n{graph}")
                if close(a, right).all(): continue       # as it nearly always is: no need to know the spread
                wrong = ~close(a, right, [run[k][i] for run in noisy()])
                if graph.extreme:                        # infinite or NaN may depend on the order of a sum
                    wrong &= np.isfinite(right[0]) | np.isfinite(a)
                    if kind == "gradient" and (undefined or np.isnan(right).any()):
                        wrong &= ~np.isnan(a)            # a NaN may spread, here or there
                    if fused or not others: wrong &= ~np.isnan(right[0])            # no float128 to ask
                if wrong.any():
                    expected = [r[wrong][:4] for r in right]
                    raise Fault(kind, f"{kind} {i}: {a[wrong][:4]}, PyTorch {expected}\n{graph}\n  dy = {dy!r}")
        memory(graph, leaves, dy, kept, ours[root])
    return graph


def structure(graph, ours, theirs):
    for i, (y, z) in enumerate(zip(ours, theirs, strict=True)):
        if y.requires_grad != z.requires_grad:
            raise Fault("presence", f"value {i} requires a gradient: {y.requires_grad}, PyTorch {z.requires_grad}\n{graph}")


def memory(graph, leaves, dy, kept, root):
    """Gradients have memory of their own, and nothing was written that was given."""
    arrays = [x.grad for x in leaves if x.grad is not None]
    others = [x.data for x in leaves] + ([] if dy is None else [dy])
    for i, a in enumerate(arrays):
        if any(np.may_share_memory(a, b) for b in arrays[:i] + others) or not a.flags.writeable:
            raise Fault("shared memory", f"gradient {i}\n{graph}")
    for i, (array, before) in enumerate(kept):
        if array.tobytes() != before: raise Fault("written", f"value {i}\n{graph}")
    if dy is not None and root.node is not None:
        try: root.backward(dy)
        except tp.GraphError: return
        raise Fault("walked twice", f"{graph}")


def close(got, right, noisy=()):
    """Which numbers of `got` are those of one of the arrays `right`, as far as rounding can tell (see the head)."""
    finfo, exact = np.finfo(got.dtype), right[-1]
    spread = np.zeros(got.shape)
    for run in noisy:
        difference = np.abs(np.asarray(run, np.float64) - exact)
        same = (run == exact) | np.isnan(run) & np.isnan(exact)
        spread = np.maximum(spread, np.where(same, 0, np.where(np.isnan(difference), np.inf, difference)))
    error = np.abs(np.float64(right[0]) - exact)         # that of PyTorch in this dtype, if `exact` is float64's
    spread = np.maximum(spread, np.where(np.isfinite(error), error, 0))
    good = np.isinf(spread)
    for r in right:
        allowed = SLACK * spread + 64 * finfo.eps * np.abs(np.float64(r)) + finfo.tiny
        r = r.astype(got.dtype)
        near = np.abs(got.astype(np.float64) - r) <= np.where(np.isfinite(r), allowed, -1)
        no_digit = (SLACK * spread > np.abs(exact)) & np.isinf(got)
        good |= near | no_digit | (got == r) | np.isnan(got) & np.isnan(r)
    return good


# -- the search -----------------------------------------------------------------------------------
def search(seeds) -> dict:
    """Check the graph of each seed → the figures: graphs, operations, failures by kind, examples."""
    operations, failures, examples = collections.Counter(), collections.Counter(dict.fromkeys(KINDS, 0)), []
    extreme = single = 0
    for seed in seeds:
        try:
            graph = check(seed)
            operations.update(name for name, *_ in graph.steps)
            extreme += graph.extreme
            single += graph.dtype is np.float32
        except Fault as fault:
            failures[fault.kind] += 1
            examples.append((seed, str(fault)))
    return {"graphs": len(seeds), "extreme": extreme, "float32": single, "operations": operations.total(),
            "by operation": dict(sorted(operations.items())), "failures": dict(failures), "examples": examples}


def merged(parts) -> dict:
    """The figures of several searches as those of one."""
    total = parts[0]
    for part in parts[1:]:
        for name, figure in part.items():
            if not isinstance(figure, dict): total[name] += figure
            else: total[name] = dict(sorted((collections.Counter(total[name]) + collections.Counter(figure)).items()))
    return total | {"failures": {kind: total["failures"].get(kind, 0) for kind in KINDS}}


def some(first, count):
    torch.set_num_threads(1)
    return search(range(first, first + count))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=10_000, help="the first seed; pytest's are 0, 1, …")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    start, end = time.perf_counter(), args.first + args.count
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(some, first, min(250, end - first)) for first in range(args.first, end, 250)]
        for done, job in enumerate(as_completed(jobs), 1):
            for _, fault in job.result()["examples"]: print(fault, "\n")
            if done % 4 == 0: print(f"{250 * done:,} of {args.count:,}", flush=True)
        figures = merged([job.result() for job in jobs])
    del figures["examples"]
    figures |= {"seeds": [args.first, end - 1], "seconds": round(time.perf_counter() - start), "torch": torch.__version__}
    print(json.dumps(figures, indent=1))
    if args.record: print(record("graphs", figures))


if __name__ == "__main__":
    main()
