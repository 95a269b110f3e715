"""Modules: parameters with names, arranged in a tree.

The attributes of a module are its parts; `vars(module)` shows all of them. A `Parameter` is trained
or frozen. An ndarray is a buffer: saved, never trained; so is a `Packed`, several arrays that make
one value, such as a quantized weight. A `Module`, or a list of them, is a child.
"""
from __future__ import annotations

import contextvars
import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

import numpy as np

from ..common.hints import Array, Seed
from ..common.show import tables
from . import functional as F
from .tensor import Tensor, within

__all__ = ["Dropout", "Embedding", "LayerNorm", "Linear", "Module", "Packed", "Parameter",
           "RMSNorm", "are_twins", "check_names", "check_state", "copy_modules", "own_arrays",
           "replace_modules", "set_parameter", "shapes_only", "twin"]


class Parameter(Tensor):
    """A tensor that a module owns, trained or frozen.

    `update_mask`: None, or a boolean array that broadcasts to the parameter; an optimizer changes
    neither the numbers outside it nor their moments. Each step may have another mask, but the first
    one is set before the optimizer is made. is_shared: may a twin read this array, too?
    """
    __slots__ = ("is_shared", "update_mask")

    def __init__(self, data: Array, requires_grad: bool = True):
        super().__init__(data, requires_grad)
        self.update_mask = None
        self.is_shared = False

    def twin(self, requires_grad: bool = False) -> Parameter:
        """Make a Parameter around the same array; whichever of the two is written copies it."""
        new = Parameter(self.data, requires_grad)
        new.is_shared = self.is_shared = True
        return new

    def writable(self) -> Array:
        """Return the array, to be written in place: a copy of it if a twin reads it, too."""
        if self.is_shared:
            self.data = np.copy(self.data)               # in its layout: BLAS sums by it
            self.is_shared = False
        return self.data


class Packed:
    """Arrays that form a value. `arrays()` gives them by name, `repacked(arrays)` takes others."""


class Module:
    """The base of layers and models: a subclass sets attributes and defines `forward`.

    is_table: does each row of its own parameters belong to one token or class?
    """
    training = False
    is_table: ClassVar[bool] = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Give (name, module) of the direct children; one in a list is named `list.index`."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value)
                            if isinstance(item, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Give (path, module) of this module (path "") and all below, in order of attributes."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(_joined(prefix, name))

    def attributes(self, kind: Any) -> Iterator[tuple[str, Module, str, Any]]:
        """Give (path, module, name, value) of every attribute of a class, or of several, here
        and below. What is tied comes once for each of its paths."""
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kind):
                    yield _joined(path, name), module, name, value

    def _named(self, kind):
        for path, _, _, value in self.attributes(kind):
            yield path, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Give (path, Parameter). A tied weight, which has two paths, comes once, as its first."""
        first = {}
        for path, p in self._named(Parameter):
            first.setdefault(id(p), (path, p))
        yield from first.values()

    def parameters(self) -> list[Parameter]:
        """Return all parameters, trained and frozen."""
        return [p for _, p in self.named_parameters()]

    def get(self, path: str) -> Module:
        """Return the module at a path such as "blocks.0.mlp.up". KeyError lists all paths."""
        module = self._below(path) if path else self
        if module is None:
            paths = ", ".join(p for p, _ in self.named_modules() if p)
            raise KeyError(f"no module {path!r}; there are: {paths}")
        return module

    def _below(self, path):
        """Find a module without a walk through all of them: a method asks for hundreds."""
        for name, child in self.children():
            if path == name:
                return child
            if path.startswith(f"{name}."):
                return child._below(path.removeprefix(f"{name}."))
        return None

    def state_dict(self) -> dict[str, Array]:
        """Return name → array of every parameter and buffer: the module's own, not copies."""
        state = {name: p.data for name, p in self.named_parameters()}
        state.update(self._named(np.ndarray))
        for path, packed in self._named(Packed):
            state |= {f"{path}.{name}": array for name, array in packed.arrays().items()}
        return state

    def n_parameters(self) -> int:
        """Count the numbers of the parameters. A quantized weight counts as its full matrix."""
        packed = sum(packed.size for _, packed in self._named(Packed))
        return sum(p.size for p in self.parameters()) + packed

    def load_state_dict(self, state: dict[str, Array], strict: bool = True) -> Self:
        """Copy arrays into the parameters and buffers of the same names; all of them, or none.

        Raises KeyError for missing or unknown names (`strict`), ValueError for a wrong shape, and
        for numbers that the parameter's type cannot hold, such as complex ones or NaN.
        """
        new = check_state(self.state_dict(), state, strict)
        buffers = []
        for path, module, name, value in self.attributes((np.ndarray, Packed)):
            if isinstance(value, Packed):                # may raise, so before anything is written
                arrays = {part: new.get(f"{path}.{part}", array)
                          for part, array in value.arrays().items()}
                buffers.append((module, name, value.repacked(arrays)))
            elif path in new:
                buffers.append((module, name, new[path]))
        for path, p in self.named_parameters():
            if path in new:
                p.assign(new[path])
        for module, name, value in buffers:
            setattr(module, name, value)
        return self

    def train(self, training: bool = True) -> Self:
        """Switch dropout on (or off) in this module and all below it."""
        for _, module in self.named_modules():
            module.training = training
        return self

    def eval(self) -> Self:
        return self.train(False)

    def to(self, dtype: Any) -> Self:
        """Cast every parameter to float32 or float64, in place. A module with a `dtype` of its own,
        which decodes codes, is told."""
        dtype = np.dtype(dtype)
        if dtype not in (np.float32, np.float64):
            raise TypeError(f"to: expected float32 or float64, got {dtype}; "
                            "for fewer bits use tinypeft.quantize")
        for p in self.parameters():
            p.assign(p.data.astype(dtype, copy=False))
            p.grad = None
        for _, module in self.named_modules():
            if "dtype" in vars(module):
                module.dtype = dtype.name
        return self

    def before_training(self, task: Any) -> None:
        """Runs when `train` begins on a task."""

    # Three hooks that `train` calls in every step; a method on a model overrides them.
    def before_step(self, step: int, total: int) -> None:
        """Runs before the forward pass of step 0 … total − 1."""

    def penalty(self) -> Tensor | None:
        """Return a term to add to the loss, or None."""

    def after_step(self, step: int, total: int) -> None:
        """Runs after the optimizer's step."""

    def __repr__(self):
        title = type(self).__name__ + self.describe()
        lines = [f"\n{line}".replace("\n", "\n  ") for line in self._lines()]
        return f"{title}({''.join(lines)}\n)" if lines else title

    def _lines(self):
        """Write the children, neighbours in a list that look alike only once."""
        for (_, text), alike in itertools.groupby(self.children(), _list_and_text):
            names = [name for name, _ in alike]
            if len(names) == 1:
                yield f"({names[0]}): {text}"
            else:
                yield f"({names[0]} … {names[-1]}): {len(names)} × {text}"

    def describe(self) -> str:
        """Return what follows the name in the repr."""
        return ""

    def _repr_html_(self):
        named = self._named((Parameter, np.ndarray, Packed))
        arrays = {id(a): (path, a) for path, a in named}         # a tied weight once
        rows = itertools.starmap(_row, arrays.values())
        n_trained = sum(p.size for p in self.parameters() if p.requires_grad)
        title = type(self).__name__ + self.describe()
        return tables.of_model(title, rows, self.n_parameters(), n_trained)


def _row(path, a):
    """Return what a table says of an array: (path, shape, how it is stored, trained, bytes)."""
    trained = getattr(a, "requires_grad", False)
    if isinstance(a, Parameter):
        a = a.data
    stored = f"{a.bits} bits" if isinstance(a, Packed) else str(a.dtype)
    return path, a.shape, stored, trained, a.nbytes


def _list_and_text(named_child):
    """Return the list that a child is in, or its own name, and its repr."""
    name, child = named_child
    return name.rpartition(".")[0] or name, repr(child)


def _joined(path, name):
    return f"{path}.{name}" if path else name


def check_state(own: Mapping[str, Array], state: Mapping[str, Array], strict: bool = True,
                optional: Collection[str] = ()) -> dict[str, Array]:
    """Copy the arrays named in `own` from `state`, cast to `own`'s dtypes; `optional` may be
    missing. Raises as `load_state_dict` does if they do not fit."""
    if strict:
        check_names(own, state, optional)
    return {name: _cast(name, np.asarray(state[name]), array)
            for name, array in own.items() if name in state}


def _cast(name, array, own):
    """Copy an array, cast to the dtype of `own`. Raises ValueError if it does not fit."""
    if array.shape != own.shape:
        raise ValueError(f"load_state_dict: {name} has shape {array.shape}, expected {own.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"load_state_dict: {name} is {array.dtype}, expected real numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        new = copied(array, own)
    is_float = own.dtype.kind == "f"
    if not (np.isfinite(new).all() if is_float else np.array_equal(new, array)):
        raise ValueError(f"load_state_dict: {name} has numbers that {own.dtype} cannot hold")
    return new


def check_names(own: Collection[str], state: Collection[str],
                optional: Collection[str] = ()) -> None:
    """Raise KeyError unless the names are the same; `optional` may be missing."""
    own, state = set(own), set(state)
    missing = own - state - set(optional)
    unknown = state - own
    if missing or unknown:
        raise KeyError(f"load_state_dict: matched {len(own & state)} tensors, "
                       f"missing {_listed(missing)}, unknown {_listed(unknown)}")


def _listed(names):
    """Write the first eight names for a message."""
    more = ", …" if len(names) > 8 else ""
    return f"{sorted(names)[:8]}{more}" if names else "nothing"


def copied(array: Array, like: Array) -> Array:
    """Copy `array` to the dtype and the memory layout of `like`, which has its shape.

    BLAS may sum a transposed matrix in another order. A run that is resumed from a file therefore
    rounds as one that never stopped only if each array is laid out as before.
    """
    new = np.empty_like(like)
    new[...] = array
    return new


def replace_modules(root: Module, new: dict[str, Module]) -> dict[str, Module]:
    """Put each module of `new` (path → module) in its place under `root`; return the old ones."""
    old = {path: root.get(path) for path in new}
    for path, module in new.items():
        above, _, name = path.rpartition(".")
        if name.isdigit():                               # an item of a list
            above, _, items = above.rpartition(".")
            getattr(root.get(above), items)[int(name)] = module
        else:
            setattr(root.get(above), name, module)
    return old


def set_parameter(root: Module, name: str, p: Parameter) -> None:
    """Put a Parameter in the place of the one called `name` under `root`."""
    path, _, attribute = name.rpartition(".")
    setattr(root.get(path), attribute, p)


def copy_modules(value: Any, made: dict[int, Any],
          parameter: Callable[[Parameter], Parameter] = lambda p: p) -> Any:
    """Make the same modules once more, around the same arrays, with generators of their own.

    made: id → what takes its place; it collects all that is made. parameter: makes the new
    Parameters; by default they are the same."""
    if isinstance(value, list):
        return [copy_modules(item, made, parameter) for item in value]
    if not isinstance(value, (Module, Parameter, np.random.Generator)):
        return value
    if id(value) not in made:
        if isinstance(value, Module):
            new = made[id(value)] = copy.copy(value)
            vars(new).update({name: copy_modules(item, made, parameter)
                              for name, item in vars(value).items()})
        elif isinstance(value, Parameter):
            made[id(value)] = parameter(value)
        else:
            made[id(value)] = copy.deepcopy(value)
    return made[id(value)]


def twin(module: Module) -> Module:
    """Make the same modules once more, with frozen Parameters, around the same arrays. What is
    written into either is not seen by the other."""
    return copy_modules(module, {}, Parameter.twin)


def are_twins(a: Module, b: Module) -> bool:
    """Do both read the very same arrays? So does a twin until one of the two is written. A single
    number, such as NF4's offset, is no array that they could share: it is compared."""
    a, b = a.state_dict(), b.state_dict()
    if a.keys() != b.keys():
        return False
    return all(array is b[name] or (array.ndim == 0 and array == b[name])
               for name, array in a.items())


def own_arrays(module: Module) -> None:
    """Give every parameter and buffer of a twin an array that nothing else reads."""
    for _, below, name, value in list(module.attributes((np.ndarray, Packed))):
        setattr(below, name, copy.deepcopy(value))
    for p in module.parameters():
        p.writable()


# -- layers --------------------------------------------------------------------------------------
_shapes_only = contextvars.ContextVar("shapes_only", default=False)


def shapes_only() -> AbstractContextManager[bool]:
    """Inside `with shapes_only():` the parameters of the layers below have shapes and no memory.

    Each is a read-only view of a single 0, and nothing is drawn: a model made so says which
    parameters it needs, and each is to be replaced. Raises ValueError or OverflowError for a shape
    that no array can have."""
    return within(_shapes_only, True)


def _normal(shape, std, rng):
    """Make a parameter that starts at N(0, std²)."""
    if _shapes_only.get():
        return _full(shape, 0)
    W = std * np.random.default_rng(rng).standard_normal(shape)
    return Parameter(W.astype(np.float32))


def _full(shape, value):
    """Make a parameter whose numbers all start at `value`."""
    if _shapes_only.get():
        return Parameter(np.broadcast_to(np.float32(0), shape))
    return Parameter(np.full(shape, value, np.float32))


class Linear(Module):
    """y = x Wᵀ + b, W (d_out, d_in). W starts at N(0, std²) and b at 0, as in GPT-2."""

    def __init__(self, d_in: int, d_out: int, bias: bool = True, rng: Seed | None = None,
                 std: float = 0.02):
        self.weight = _normal((d_out, d_in), std, rng)
        self.bias = _full(d_out, 0) if bias else None

    d_in = property(lambda self: self.weight.shape[1])
    d_out = property(lambda self: self.weight.shape[0])

    @property
    def is_affine(self) -> bool:
        """Is the layer y = x Wᵀ + b with W = `dense_weight()`, and no more? Needed to merge."""
        return type(self).forward is Linear.forward

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def dense_weight(self) -> Array:
        """Return the weight as an array (d_out, d_in); a quantized layer dequantizes it."""
        return self.weight.data

    def describe(self) -> str:
        no_bias = ", no bias" if self.bias is None else ""
        return f"({self.d_in} → {self.d_out}{no_bias})"


class LayerNorm(Module):
    """y = γ (x − mean)/√(var + ε) + β; γ is `weight`, β is `bias`."""

    def __init__(self, d: int, eps: float = 1e-5):
        self.weight = _full(d, 1)
        self.bias = _full(d, 0)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)

    def describe(self) -> str:
        return f"({self.weight.size})"


class RMSNorm(Module):
    """y = γ x/√(mean x² + ε); γ is `weight`. Gemma stores γ − 1: `offset` 1 adds it."""

    def __init__(self, d: int, eps: float = 1e-6, offset: float = 0.0):
        self.weight = _full(d, 1 - offset)
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.weight + self.offset if self.offset else self.weight
        return F.rms_norm(x, gamma, self.eps)

    def describe(self) -> str:
        return f"({self.weight.size})"


class Embedding(Module):
    """A table (n, d) of vectors, looked up by integers. It starts at N(0, std²).
    scale: multiplies the vectors that are looked up; √d in Gemma."""
    is_affine = True                                     # x Wᵀ, of an x that is 0 but for one 1
    is_table = True

    def __init__(self, n: int, d: int, rng: Seed | None = None, std: float = 0.02,
                 scale: float = 1.0):
        self.weight = _normal((n, d), std, rng)
        self.scale = scale

    def forward(self, ids: Array) -> Tensor:
        x = self.vectors(ids)
        return x if self.scale == 1 else x * self.scale

    def vectors(self, ids: Array) -> Tensor:
        """Look up ids (…) → (…, d), without the scale."""
        return F.embedding(ids, self.weight)

    def scores(self, x: Tensor) -> Tensor:
        """Return x Eᵀ, (…, n): the product of x (…, d) and every vector, without the scale."""
        return F.linear(x, self.weight)

    def dense_weight(self) -> Array:
        """Return the table as an array (n, d)."""
        return self.weight.data

    def describe(self) -> str:
        n, d = self.weight.shape
        return f"({n} × {d})"


class Dropout(Module):
    """Dropout with probability p in training, the identity otherwise. `train` seeds `rng`."""

    def __init__(self, p: float, rng: Seed | None = None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: the probability must lie in [0, 1), got {p}")
        self.p = p
        self.rng = np.random.default_rng(rng)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.rng) if self.training else x

    def describe(self) -> str:
        return f"({self.p})"


def kaiming_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw (d_out, d_in) from U(−1/√d_in, 1/√d_in), as PyTorch starts a linear layer."""
    bound = 1 / math.sqrt(shape[-1])
    return rng.uniform(-bound, bound, shape).astype(np.float32)
