"""A tensor that remembers how it was made, and reverse-mode differentiation.

Every operation computes its value with NumPy. For each parent it also records a *vector–Jacobian
product* (vjp): a function that takes dy = ∂L/∂y, the gradient of the loss L with respect to the
result y, and returns ∂L/∂parent, written `dx` for a parent `x`. `backward` walks the recorded graph
from the loss to the leaves and adds these gradients up. That is the chain rule. Six rules:

* A frozen parent costs nothing: its vjp is dropped when the operation is recorded. An operation on
  frozen parents alone records nothing. Here fine-tuning few parameters saves its time and memory.
* The graph holds no values. A vjp holds the arrays that it needs and never a tensor, so that there
  is no reference cycle. Every other value is freed as soon as the forward pass is done with it.
* Gradients live in a dictionary during the walk, and only leaves keep `.grad`. A vjp runs once. It
  may overwrite the arrays it saved, and each piece of the graph is freed after its use.
* `unbroadcast` undoes broadcasting. Each gradient must have its tensor's shape and dtype.
* What relu, abs, max, maximum, where and dropout do not pass on gets the gradient 0, even if dy is
  infinite there, where a product with 0 would give NaN.
* Work is float32, checks are float64, and the two never mix: constants take the tensor's dtype.
"""
from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.show import tables

Vjp = Callable[[Array], Any]                             # dy ↦ dx, or for `fused` one per parent

__all__ = ["GraphError", "RowGradient", "Tensor", "accepts_arrays", "concatenate", "enable_grad",
           "gated", "maximum", "no_grad", "recording", "split", "stack", "tape", "unbroadcast",
           "where", "within"]


class GraphError(RuntimeError):
    """The recorded graph cannot be walked: it was used before, or its inputs have changed since."""


# Each thread has its own values; threads.parallel_map hands the caller's on to its workers.
_recording = contextvars.ContextVar("recording", default=True)
_tape = contextvars.ContextVar("tape", default=None)


@contextlib.contextmanager
def within(variable: contextvars.ContextVar, value: Any) -> Iterator[Any]:
    """Inside `with within(variable, value):` the variable has this value in this thread."""
    before = variable.get()
    variable.set(value)
    try:
        yield value
    finally:
        variable.set(before)


def no_grad() -> contextlib.AbstractContextManager[bool]:
    """Inside `with no_grad():` this thread's operations compute values and record nothing."""
    return within(_recording, False)


def enable_grad() -> contextlib.AbstractContextManager[bool]:
    """Inside `with enable_grad():` operations record, even within a surrounding `no_grad()`."""
    return within(_recording, True)


def recording() -> bool:
    """Tell if this thread's operations record what a gradient needs."""
    return _recording.get()


def tape() -> contextlib.AbstractContextManager[list[Tensor]]:
    """Inside `with tape() as made:` the list `made` collects, and keeps, every recorded tensor."""
    return within(_tape, [])


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum `dy` over the axes along which an array of `shape` was broadcast to `dy.shape`."""
    if dy.shape == shape:
        return dy
    new = dy.ndim - len(shape)                           # axes that broadcasting put in front
    stretched = [new + i for i, n in enumerate(shape) if n == 1 != dy.shape[new + i]]
    return dy.sum(axis=(*range(new), *stretched)).reshape(shape)


def gated(dy: Array, gate: Array) -> Array:
    """Return dy · gate, but 0 where the gate is 0 even if dy is infinite there (0·∞ is NaN)."""
    with np.errstate(invalid="ignore"):
        dx = dy * gate
    if np.isnan(dx).any():                               # rare, and `where` is slow
        return np.where(gate == 0, 0, dx)
    return dx


class Tensor:
    """An array, and how it was computed.

    data: a float32 or float64 array; integers, booleans, lists and Python numbers become float32.
    requires_grad: True makes a leaf; its `.grad` (None, or an array) sums ∂L/∂data over backwards.
    Raises TypeError for complex, half-precision and object arrays.
    """
    __slots__ = ("data", "requires_grad", "grad", "version", "node", "__weakref__")
    parents = ()                                         # a leaf is its own node and ends the walk
    __array_ufunc__ = None                               # ndarray * Tensor calls Tensor.__rmul__

    def __init__(self, data: Any, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("expected an array, got a Tensor; use x.detach() for a new leaf")
        array = np.asarray(data)
        is_python = not isinstance(data, (np.ndarray, np.generic))
        if array.dtype.kind in "biu" or is_python and array.dtype.kind == "f":
            array = array.astype(np.float32)
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"a Tensor holds float32 or float64, got {array.dtype}; cast it first, "
                            "for example with .astype(np.float32)")
        self.data = array
        self.requires_grad = requires_grad
        self.grad = None
        self.version = 0                                 # how often data was replaced or written to
        self.node = None                                 # how it was computed; None for a leaf

    # -- recording ------------------------------------------------------------------------------
    @staticmethod
    def op(data: Array, *edges: tuple[Tensor | None, Vjp]) -> Tensor:
        """Make the result of an operation: `data`, and one edge (parent, dy ↦ dparent) per parent.

        The functions run in this order. That of a frozen parent is dropped, with the arrays that
        only it holds. A parent may be None (an absent bias).
        """
        parents = [x for x, _ in edges if x is not None]
        if not _recording.get():
            return Tensor.fused(data, parents, None)
        fs = [f if x.requires_grad else None for x, f in edges if x is not None]
        return Tensor.fused(data, parents, lambda dy: [f and f(dy) for f in fs], fs)

    @staticmethod
    def fused(data: Array, parents: Sequence[Tensor], vjp: Vjp,
              fs: Sequence[Vjp | None] = ()) -> Tensor:
        """Make the result of an operation whose gradients share work: vjp(dy) gives one per parent.

        The gradient of a frozen parent is ignored and may be None. A vjp returns fresh arrays, `dy`
        itself or views of it, and never the same fresh array twice.
        fs: the functions of single parents that it calls, as `op` has them.
        """
        y = Tensor.__new__(Tensor)
        y.data = np.asarray(data)
        y.grad = y.node = None
        y.version = 0
        trained = False
        for x in parents:                                # a plain loop: generation runs this often
            trained = trained or x.requires_grad
            if x.data.dtype != y.data.dtype:
                raise TypeError(f"an operation on {', '.join(str(x.dtype) for x in parents)} gave "
                                f"{y.dtype}: float32 and float64 do not mix; cast one of them")
        y.requires_grad = trained and _recording.get()
        if y.requires_grad:
            y.node = Node(parents, vjp, fs, y.data)
            y.data = y.data.view()
            y.data.flags.writeable = False               # a gradient may depend on this value
            made = _tape.get()
            if made is not None:
                made.append(y)
        return y

    # -- backward -------------------------------------------------------------------------------
    def backward(self, dy: Array | None = None) -> None:
        """Add ∂L/∂x to `x.grad` for every leaf x that this tensor was computed from.

        dy: ∂L/∂self, an array of this tensor's shape; a single number needs none (dy = 1).
        Raises GraphError when there is no graph, when it was walked before, or when a leaf's data
        has changed since; ValueError for a missing `dy` or one of another shape.
        """
        for x, dx in list(self.gradients(dy)):           # all, or none if the walk fails
            x.grad = dx if x.grad is None else np.asarray(x.grad + dx)   # 0-d + 0-d is a scalar

    def gradients(self, dy: Array | None = None) -> Iterator[tuple[Tensor, Array]]:
        """Walk as `backward`, but give each (leaf, ∂L/∂leaf) as soon as it is complete, and leave
        every `.grad` alone."""
        if not self.requires_grad:
            raise GraphError("backward: nothing to differentiate; no tensor that this was computed "
                             "from requires a gradient, or it was computed under no_grad()")
        if dy is None and self.size == 1:
            dy = np.ones_like(self.data)
        if np.shape(dy) != self.shape:
            raise ValueError(f"backward: a tensor of shape {self.shape} needs its gradient dy in "
                             f"that shape, got {dy if dy is None else np.shape(dy)}")
        dy = np.asarray(dy.data if isinstance(dy, Tensor) else dy, dtype=self.dtype)
        root = self.node or self
        if isinstance(root, Tensor):
            yield root, np.array(dy)
            return
        order = topological_order(root)
        uses = Counter(id(x) for y in order for x in trained_parents(y))
        sums = Sums({id(root): dy})
        while order:
            y = order.pop()
            if isinstance(y, Tensor):                    # a leaf, which has left the walk already
                continue
            dy = sums.pop(id(y))
            for x, dx in y.walk(dy):
                sums.add(x, dx, fresh=dx is not dy)
                uses[id(x)] -= 1
                if isinstance(x, Tensor) and uses[id(x)] == 0:
                    yield x, sums.take(x)

    def assign(self, array: Array) -> None:
        """Replace a leaf's data by an array of this shape; older graphs then refuse backward."""
        array = np.asarray(array)
        if array.shape != self.shape or array.dtype not in (np.float32, np.float64):
            raise ValueError(f"assign: expected floats of shape {self.shape}, "
                             f"got {array.dtype} {array.shape}")
        self.data = array
        self.version += 1

    def writable(self) -> Array:
        """Return the data, to be written in place; `version` is to be raised then."""
        return self.data

    def detach(self) -> Tensor:
        """Make a new leaf with the same data (shared, not copied) and no history."""
        return Tensor(self.data)

    # -- what an array has ----------------------------------------------------------------------
    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    nbytes = property(lambda self: self.data.nbytes)
    T = property(lambda self: self.transpose())

    def __len__(self):
        return len(self.data)

    def __bool__(self):
        return bool(self.data)

    def item(self) -> float:
        return self.data.item()

    def __repr__(self):
        leaf = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data!r}{leaf})"

    def _repr_html_(self):
        grad = self.grad if self.requires_grad else None
        if self.node:
            grad = "passes on to the leaves it was computed from"
        elif self.requires_grad and grad is None:
            grad = "None: no backward yet"
        return tables.of_tensor(type(self).__name__, self.data, grad)

    def _no_inplace(self, *_):
        raise TypeError("writing into a Tensor is not recorded; build a new one, as in x = x + y "
                        "or with tinypeft.where or concatenate, or use x.assign on a leaf")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __imatmul__ = _no_inplace
    __setitem__ = _no_inplace

    def _constant(self, other):
        """Return `other` as a Tensor: numbers and arrays become constants of this dtype."""
        if isinstance(other, Tensor):
            if other.dtype == self.dtype:
                return other
            raise TypeError(f"{self.dtype} and {other.dtype} tensors do not mix; cast one of them")
        other = np.asarray(other)
        if other.dtype.kind not in "biuf":               # NumPy reads None as NaN and "3" as 3
            raise TypeError(f"a Tensor and {other.dtype} values do not mix; expected real numbers")
        return Tensor(other.astype(self.dtype, copy=False))

    # -- arithmetic -----------------------------------------------------------------------------
    def __add__(self, other):
        other = self._constant(other)
        A, B = self.shape, other.shape
        return Tensor.op(self.data + other.data,
                         (self,  lambda dy: unbroadcast(dy, A)),
                         (other, lambda dy: unbroadcast(dy, B)))

    def __mul__(self, other):
        other = self._constant(other)
        a, b = self.data, other.data
        A, B = a.shape, b.shape
        return Tensor.op(a * b,
                         (self,  lambda dy: unbroadcast(dy * b, A)),
                         (other, lambda dy: unbroadcast(dy * a, B)))

    def __truediv__(self, other):
        """y = a / b.    da = dy/b,   db = −dy y/b. (b² would leave float32's range at 1e±19.)"""
        other = self._constant(other)
        b = other.data
        y = self.data / b
        A, B = self.shape, b.shape
        return Tensor.op(y,
                         (self,  lambda dy: unbroadcast(dy / b, A)),
                         (other, lambda dy: unbroadcast(-dy * (y / b), B)))

    def __pow__(self, other):
        """y = a ** b, usually for a number b.    da = dy b aᵇ⁻¹,   db = dy y log a.

        da = 0 where b = 0, and db = 0 where a = 0 ≤ b, as in PyTorch: there aᵇ⁻¹ or log a may be
        infinite, and 0·∞ is NaN.
        """
        a = self.data
        if isinstance(other, (int, float)):
            n = int(other) if isinstance(other, int) else float(other)   # no NumPy scalar: it casts
            if n == 0:
                return Tensor.op(a ** n, (self, lambda dy: np.zeros_like(a)))
            return Tensor.op(a ** n, (self, lambda dy: dy * (n * a ** (n - 1))))
        other = self._constant(other)
        b = other.data
        A, B = a.shape, b.shape
        y = a ** b

        def da(dy):
            base = np.where(b == 0, 1, a)
            dy = np.where(b == 0, 0, dy)
            return unbroadcast(dy * (b * base ** (b - 1)), A)

        def db(dy):
            base = np.where((a == 0) & (b >= 0), 1, a)
            return unbroadcast(dy * (y * np.log(base)), B)
        return Tensor.op(y, (self, da), (other, db))

    def __matmul__(self, other):
        """a @ b over the last two axes. Axes before them broadcast; vectors work as in NumPy."""
        other = self._constant(other)
        if self.ndim == 1:                               # a row, whose axis is dropped again
            y = self.reshape(1, -1) @ other
            if other.ndim == 1:
                return y.reshape(())
            return y.reshape(y.shape[:-2] + y.shape[-1:])
        if other.ndim == 1:                              # a column, likewise
            y = self @ other.reshape(-1, 1)
            return y.reshape(y.shape[:-1])
        a, b = self.data, other.data
        A, B = a.shape, b.shape
        return Tensor.op(a @ b,
                         (self,  lambda dy: unbroadcast(dy @ b.swapaxes(-1, -2), A)),
                         (other, lambda dy: unbroadcast(a.swapaxes(-1, -2) @ dy, B)))

    def __neg__(self):
        return Tensor.op(-self.data, (self, lambda dy: -dy))

    def __sub__(self, other):
        return self + (-self._constant(other))

    def __rsub__(self, other):
        return self._constant(other) + (-self)

    def __rtruediv__(self, other):
        return self._constant(other) / self

    def __rpow__(self, other):
        return self._constant(other) ** self

    def __rmatmul__(self, other):
        return self._constant(other) @ self

    __radd__ = __add__
    __rmul__ = __mul__

    # -- elementwise ----------------------------------------------------------------------------
    def exp(self) -> Tensor:
        y = np.exp(self.data)
        return Tensor.op(y, (self, lambda dy: dy * y))

    def log(self) -> Tensor:
        x = self.data
        return Tensor.op(np.log(x), (self, lambda dy: dy / x))

    def sqrt(self) -> Tensor:
        y = np.sqrt(self.data)
        return Tensor.op(y, (self, lambda dy: dy * (0.5 / y)))

    def tanh(self) -> Tensor:
        y = np.tanh(self.data)
        return Tensor.op(y, (self, lambda dy: dy * (1 - y * y)))

    def sigmoid(self) -> Tensor:
        x = self.data
        z = np.exp(-np.abs(x))                           # no overflow, and exact in both tails
        y = np.where(x < 0, z, 1) / (1 + z)
        return Tensor.op(y, (self, lambda dy: dy * (z / (1 + z) ** 2)))

    def relu(self) -> Tensor:
        x = self.data
        y = np.maximum(x, 0)
        return Tensor.op(y, (self, lambda dy: gated(dy, ~(x <= 0))))

    def abs(self) -> Tensor:
        x = self.data
        y = np.abs(x)
        return Tensor.op(y, (self, lambda dy: gated(dy, np.sign(x))))

    # -- reductions -----------------------------------------------------------------------------
    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        shape = self.shape
        y = self.data.sum(axis=axis, keepdims=keepdims)

        def dx(dy):
            return np.broadcast_to(_with_axes(dy, axis, keepdims), shape)
        return Tensor.op(y, (self, dx))

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        y = self.sum(axis, keepdims)
        if y.size > self.size:
            raise ValueError(f"mean over nothing: a tensor of shape {self.shape}, axis {axis}")
        return y * (y.size / max(1, self.size))

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """The largest element. Equal ones share the gradient evenly."""
        x = self.data
        y = x.max(axis=axis, keepdims=True)

        def dx(dy):
            largest = x == y
            share = largest / largest.sum(axis=axis, keepdims=True)
            return gated(_with_axes(dy, axis, keepdims), share.astype(x.dtype))
        return Tensor.op(y if keepdims else y.squeeze(axis), (self, dx))

    # -- shape ----------------------------------------------------------------------------------
    def reshape(self, *shape: int | tuple[int, ...]) -> Tensor:
        before = self.shape
        y = self.data.reshape(_unpacked(shape))
        return Tensor.op(y, (self, lambda dy: dy.reshape(before)))

    def transpose(self, *axes: int | tuple[int, ...]) -> Tensor:
        """Permute the axes, as numpy.transpose: x.transpose(0, 2, 1). No argument reverses them."""
        n = self.ndim
        axes = _unpacked(axes) or range(n)[::-1]

        def dx(dy):
            return dy.transpose(np.argsort([i % n for i in axes]))
        return Tensor.op(self.data.transpose(axes), (self, dx))

    def __getitem__(self, index):
        """Index by slices, integers, integer arrays or a mask; repeated elements add up."""
        shape = self.shape
        indices = index if isinstance(index, tuple) else (index,)
        basic = all(i is None or i is ... or isinstance(i, (int, np.integer, slice))
                    for i in indices)

        def dx(dy):
            out = np.zeros(shape, dy.dtype)
            if basic:
                out[index] = dy
            else:
                np.add.at(out, index, dy)                # += keeps only one of repeated indices
            return out
        return Tensor.op(self.data[index], (self, dx))


class Node:
    """What `backward` knows of an operation. Its value is not held, so that it can be freed early.

    A parent is (node, version), or None if it is frozen. A leaf is its own node: it keeps `.grad`.
    fs: the functions of single parents that `vjp` calls; of a fused operation none.
    """
    __slots__ = ("parents", "vjp", "fs", "shape", "dtype")
    version = 0

    def __init__(self, parents, vjp, fs, y):
        self.parents = [(x.node or x, x.version) if x.requires_grad else None for x in parents]
        self.vjp = vjp
        self.fs = fs
        self.shape = y.shape
        self.dtype = y.dtype

    def walk(self, dy):
        """Call the vjp, once, and let go of what it saved.
        Return (x, ∂L/∂x) for each parent x that is not frozen."""
        parents, vjp = self.parents, self.vjp
        self.parents = self.vjp = self.fs = None
        dxs = vjp(dy)
        return [(parent[0], dx) for parent, dx in zip(parents, dxs, strict=True) if parent]


class Sums(dict):
    """id(x) → the sum of the gradients of x that have come so far.

    One that came alone may be the array of another value, so that nothing is added into it. What is
    `own` is of no one else: a fresh array that is no view, or the result of an addition.
    """

    def __init__(self, first):
        super().__init__(first)
        self.own = set()

    def add(self, x, dx, fresh):
        """Add dx to the sum of x. fresh: dx is not the array that the vjp was given."""
        assert dx.shape == x.shape and dx.dtype == x.dtype, (
            f"a vjp returned {dx.dtype}{dx.shape} for a parent that is {x.dtype}{x.shape}")
        key = id(x)
        if key not in self:
            self[key] = np.asarray(dx)
            if fresh and self[key].base is None:
                self.own.add(key)
        elif key not in self.own:
            self[key] = self[key] + np.asarray(dx)
            self.own.add(key)
        elif isinstance(dx, RowGradient):
            dx.add_to(self[key])
        else:
            self[key] += dx

    def take(self, x):
        """Take out the sum for x, as an array that no one else has."""
        key = id(x)
        dx = self.pop(key)
        return np.asarray(dx) if key in self.own else np.array(dx)


class RowGradient:
    """A gradient of a table that is 0 but for the rows `ids` (n,), which differ: there it is `rows`
    (n, …). To add it to another gradient takes no array of the table's size."""

    def __init__(self, shape: tuple[int, ...], ids: Array, rows: Array):
        self.shape = shape
        self.dtype = rows.dtype
        self.ids = ids
        self.rows = rows

    def add_to(self, gradient: Array) -> None:
        gradient[self.ids] += self.rows

    def __array__(self, dtype=None, copy=None):
        dense = np.zeros(self.shape, dtype or self.dtype)
        dense[self.ids] = self.rows
        return dense


def trained_parents(y: Node | Tensor) -> list[Node | Tensor]:
    """List the parents of `y` that are not frozen, one as often as the operation takes it."""
    return [parent[0] for parent in y.parents if parent is not None]


def topological_order(root: Node | Tensor) -> list[Node | Tensor]:
    """List all nodes and leaves that `root` was computed from, each after its parents.

    In a = x·x; b = a + a; c = b + a, the gradient of `a` is complete only after both `b` and `c`
    have been visited. The walk is iterative, so that depth has no limit.
    """
    order = []
    visited = set()
    stack = [(root, False)]
    while stack:
        y, expanded = stack.pop()
        if expanded:
            order.append(y)
        elif id(y) not in visited:
            if y.parents is None:
                raise GraphError("backward: this graph, or a part, was walked already and its "
                                 "arrays are gone; run the forward pass again")
            visited.add(id(y))
            stack.append((y, True))
            for x, version in filter(None, y.parents):
                if x.version != version:
                    raise GraphError(f"backward: a leaf of shape {x.shape} was written to after "
                                     "the forward pass; call backward before the optimizer's step")
                stack.append((x, False))
    return order


def _with_axes(dy, axis, keepdims):
    """Give a reduction's gradient back the axes of length 1 that the reduction dropped."""
    return dy if keepdims or axis is None else np.expand_dims(dy, axis)


def _unpacked(numbers):
    """Return the numbers of f(2, 3), f((2, 3)) or f([2, 3]) as a tuple."""
    if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)):
        return tuple(numbers[0])
    return numbers


# -- functions of several tensors ---------------------------------------------------------------
def _common(values):
    """Return the values as Tensors of the dtype of the first Tensor, or of the first array."""
    first = next((x for x in values if isinstance(x, Tensor)), None)
    if first is None:
        first = Tensor(next(iter(values), 0.0))
    return [first._constant(x) for x in values]


def accepts_arrays(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let `f` take arrays and numbers for its arguments of type Tensor: they become constants.

    The annotations of `f` state the types. Where all are Tensors already, to check them takes half
    a microsecond: `all` and `map` run in C.
    """
    types = {Tensor: Tensor, Tensor | None: (Tensor, type(None))}
    names = [name for name, kind in f.__annotations__.items() if kind in types]
    kinds = [types.get(kind, object) for kind in f.__annotations__.values()]

    @functools.wraps(f)
    def on_tensors(*args, **options):
        if all(map(isinstance, args, kinds)) and (
                not options or options.keys().isdisjoint(names)):
            return f(*args, **options)
        call = inspect.signature(f).bind(*args, **options)
        values = {name: x for name, x in call.arguments.items() if name in names and x is not None}
        call.arguments.update(zip(values, _common([*values.values()]), strict=True))
        return f(*call.args, **call.kwargs)
    return on_tensors


def maximum(a: Tensor | Array | float, b: Tensor | Array | float) -> Tensor:
    """The larger of a and b, elementwise. Equal elements share the gradient."""
    a, b = _common((a, b))
    p, q = a.data, b.data
    P, Q = p.shape, q.shape

    def share(x, y):
        """Return 1 where x > y or either is NaN, 1/2 where they are equal, 0 elsewhere."""
        return (~(x < y) - 0.5 * (x == y)).astype(x.dtype)
    return Tensor.op(np.maximum(p, q),
                     (a, lambda dy: unbroadcast(gated(dy, share(p, q)), P)),
                     (b, lambda dy: unbroadcast(gated(dy, share(q, p)), Q)))


def where(condition: Array, a: Tensor | Array | float, b: Tensor | Array | float) -> Tensor:
    """`a` where the boolean array `condition` holds, `b` elsewhere."""
    a, b = _common((a, b))
    A, B = a.shape, b.shape
    c = np.asarray(condition, dtype=bool)
    return Tensor.op(np.where(c, a.data, b.data),
                     (a, lambda dy: unbroadcast(np.where(c, dy, 0), A)),
                     (b, lambda dy: unbroadcast(np.where(c, 0, dy), B)))


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join along an existing axis."""
    tensors = _common(tensors)
    y = np.concatenate([x.data for x in tensors], axis)
    ends = np.cumsum([x.shape[axis] for x in tensors])[:-1]
    return Tensor.fused(y, tensors, lambda dy: np.split(dy, ends, axis))


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join along a new axis."""
    tensors = _common(tensors)
    return concatenate([x.reshape(np.expand_dims(x.data, axis).shape) for x in tensors], axis)


def split(x: Tensor, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cut into `sections` equal parts, or at the indices of a list, as numpy.split."""
    size = x.shape[axis]
    if isinstance(sections, (int, np.integer)):
        if sections < 1 or size % sections:
            raise ValueError(f"split: axis {axis} of length {size} does not divide into {sections}")
        sections = [i * size // sections for i in range(1, sections)]
    before = (slice(None),) * (axis % x.ndim)
    edges = [0, *sections, size]
    return [x[(*before, slice(*ends))] for ends in itertools.pairwise(edges)]
