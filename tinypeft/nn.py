"""Modules: parameters with names, arranged in a tree.

A module's attributes say what it is made of: a `Parameter` is trained or frozen, an ndarray is a
buffer (saved, never trained) and so is a `Packed` (several arrays that make one value, such as a
quantized weight), a `Module` or a list of them is a child. Nothing is registered and nothing is
hidden; `vars(module)` is the whole truth.
"""
import math
import re

import numpy as np

from . import functional as F
from . import markup
from .tensor import Tensor

__all__ = ["Dropout", "Embedding", "LayerNorm", "Linear", "Module", "Packed", "Parameter",
           "replace_modules"]


class Parameter(Tensor):
    """A tensor that a module owns. Frozen (`requires_grad=False`) or not, it stays a parameter.

    `update_mask`, when a method sets it, is a boolean array that broadcasts to the parameter; an
    optimizer then touches neither the numbers outside it nor their moments.
    """
    __slots__ = ("update_mask",)

    def __init__(self, data, requires_grad=True):
        super().__init__(data, requires_grad)
        self.update_mask = None


class Packed:
    """A value that a module keeps in several arrays: `arrays()` names them, `repacked(arrays)` is the same with others."""


class Module:
    training = False

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def children(self):
        """(name, module) of direct children; those in a list are named `list.index`."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", m) for i, m in enumerate(value) if isinstance(m, Module))

    def named_modules(self, prefix=""):
        """(path, module) of this module (path "") and all below it, in order of construction."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _named(self, kind):
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kind):
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(self):
        """(path, Parameter); one that occurs twice (tied weights) is given once, under its first path."""
        seen = set()
        for path, p in self._named(Parameter):
            if id(p) not in seen:
                seen.add(id(p))
                yield path, p

    def parameters(self):
        return [p for _, p in self.named_parameters()]

    def get(self, path):
        """The module at a path such as "blocks.0.mlp.up". KeyError lists what there is."""
        modules = dict(self.named_modules())
        if path not in modules:
            raise KeyError(f"no module {path!r}; there are: {', '.join(p for p in modules if p)}")
        return modules[path]

    def state_dict(self):
        """name → ndarray of every parameter and buffer. The arrays are the module's own, not copies."""
        state = {name: p.data for name, p in self.named_parameters()}
        state.update(self._named(np.ndarray))
        for name, packed in self._named(Packed):
            state |= {f"{name}.{part}": array for part, array in packed.arrays().items()}
        return state

    def n_parameters(self):
        """How many numbers the parameters hold; of a quantized weight, how many it stands for."""
        return sum(p.size for p in self.parameters()) + sum(packed.size for _, packed in self._named(Packed))

    def load_state_dict(self, state, strict=True):
        """Copy arrays into the parameters and buffers of the same names, and into nothing if any does not fit.

        Raises KeyError for missing or (`strict`) unknown names and ValueError for wrong shapes.
        """
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if strict and (missing or unknown):
            raise KeyError(f"load_state_dict: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
        for name in own:
            if name in state and np.shape(state[name]) != own[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {np.shape(state[name])}, expected {own[name].shape}")
        for name, p in self.named_parameters():
            if name in state:
                p.assign(np.array(state[name], dtype=p.dtype))
        for path, module in self.named_modules():
            for name, value in list(vars(module).items()):
                full = f"{path}.{name}" if path else name
                if isinstance(value, np.ndarray) and full in state:
                    setattr(module, name, np.array(state[full], dtype=value.dtype))
                if isinstance(value, Packed):
                    parts = {k: np.array(state.get(f"{full}.{k}", a), dtype=a.dtype) for k, a in value.arrays().items()}
                    setattr(module, name, value.repacked(parts))
        return self

    def train(self, training=True):
        """Switch dropout on (or off), here and below."""
        for _, module in self.named_modules():
            module.training = training
        return self

    def eval(self):
        return self.train(False)

    def to(self, dtype):
        """Cast every parameter to float32 or float64, in place."""
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"to: expected float32 or float64, got {np.dtype(dtype)}; tinypeft.quantize gives fewer bits")
        for p in self.parameters():
            p.assign(p.data.astype(dtype))
            p.grad = None
        return self

    # What keeps a method going during training hangs on these three; `train` calls them for every model.
    def before_step(self, step, total):
        """Before the forward pass of step 0 … total − 1."""

    def penalty(self):
        """A term to add to the loss: a Tensor, or None."""

    def after_step(self, step, total):
        """After the optimizer's step."""

    def __repr__(self):
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()]
        return type(self).__name__ + self.describe() + ("(\n" + "\n".join(lines) + "\n)" if lines else "")

    def describe(self):
        """What stands after the class name when the module is printed."""
        return ""

    def _repr_html_(self):
        parts = {id(a): (name, a) for name, a in self._named((Parameter, np.ndarray, Packed))}         # tied weights once
        rows = {}                                        # what is alike in several blocks is one row
        for name, a in parts.values():
            tick = "✔" if getattr(a, "requires_grad", False) else ""
            a = a.data if isinstance(a, Parameter) else a
            block = re.search(r"\.(\d+)\.", name)
            stored = f"{a.bits} bits" if isinstance(a, Packed) else str(a.dtype)
            key = (re.sub(r"\.\d+\.", ".*.", name, count=1), " × ".join(map(str, a.shape)), stored, tick)
            rows.setdefault(key, []).append((block and int(block[1]), a.nbytes))
        trained = sum(p.size for p in self.parameters() if p.requires_grad)
        total = sum(n for found in rows.values() for _, n in found)
        return markup.table(
            [(name.replace("*", _ranges(i for i, _ in found)), *rest, f"{sum(n for _, n in found):,}")
             for (name, *rest), found in rows.items()],
            ("layer", "shape of each", "stored as", "trained", "bytes in all"), type(self).__name__ + self.describe(), (1, 4),
            f"{self.n_parameters():,} parameters, {trained:,} of them trained; {total:,} bytes")


def _ranges(numbers):
    """[0, 1, 2, 5] → "0–2,5"."""
    runs = []
    for i in numbers:
        if runs and runs[-1][1] == i - 1: runs[-1][1] = i
        else:                             runs.append([i, i])
    return ",".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


def replace_modules(root, new):
    """Put each module of `new` (path → module) in its place under `root`; return what was there, path → module."""
    old = {path: root.get(path) for path in new}
    for path, module in new.items():
        parent, name = root, path
        *above, name = path.split(".")
        for part in above:
            parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
        if isinstance(parent, list): parent[int(name)] = module
        else:                        setattr(parent, name, module)
    return old


class Linear(Module):
    """y = x Wᵀ + b, W (d_out, d_in); starts at N(0, 0.02²) and 0, as GPT-2's do."""

    def __init__(self, d_in, d_out, bias=True, rng=None, std=0.02):
        rng = np.random.default_rng(rng)
        self.weight = Parameter((std * rng.standard_normal((d_out, d_in))).astype(np.float32))
        self.bias = Parameter(np.zeros(d_out, np.float32)) if bias else None

    d_in = property(lambda self: self.weight.shape[1])
    d_out = property(lambda self: self.weight.shape[0])

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def dense_weight(self):
        """The weight as an array (d_out, d_in). Quantized layers have it too, dequantized."""
        return self.weight.data

    def describe(self):
        return f"({self.d_in} → {self.d_out}{'' if self.bias is not None else ', no bias'})"


class LayerNorm(Module):
    """y = γ (x − mean)/√(var + ε) + β; γ is `weight`, β is `bias`."""

    def __init__(self, d, eps=1e-5):
        self.weight, self.bias, self.eps = Parameter(np.ones(d, np.float32)), Parameter(np.zeros(d, np.float32)), eps

    def forward(self, x):
        return F.layer_norm(x, self.weight, self.bias, self.eps)

    def describe(self):
        return f"({self.weight.shape[0]})"


class Embedding(Module):
    """A table (n, d) of vectors, looked up by integers; starts at N(0, std²)."""

    def __init__(self, n, d, rng=None, std=0.02):
        self.weight = Parameter((std * np.random.default_rng(rng).standard_normal((n, d))).astype(np.float32))

    def forward(self, ids):
        return F.embedding(ids, self.weight)

    def describe(self):
        return f"({self.weight.shape[0]} × {self.weight.shape[1]})"


class Dropout(Module):
    """Dropout with probability p in training, nothing otherwise. `rng` is replaced by whoever trains."""

    def __init__(self, p, rng=None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: the probability must lie in [0, 1), got {p}")
        self.p, self.rng = p, np.random.default_rng(rng)

    def forward(self, x):
        return F.dropout(x, self.p, self.rng) if self.training and self.p else x

    def describe(self):
        return f"({self.p})"


def kaiming_uniform(shape, rng):
    """U(−1/√d_in, 1/√d_in) for (d_out, d_in): PyTorch's default start of a linear layer."""
    bound = 1 / math.sqrt(shape[-1])
    return rng.uniform(-bound, bound, shape).astype(np.float32)
