"""The layer that quantization leaves behind, and the one backward pass of all such layers.

    y = x Ŵᵀ + b        dx = dy Ŵ,   db = Σ dy        Ŵ is stored as codes and has no gradient

An embedding of a GGUF file may be codes, too. Of these, a look-up decodes the rows that it takes.

A layer may round its inputs too (`int8.py`). Rounding has derivative 0 almost everywhere, so such a
layer takes the gradient above instead: the straight-through estimator (Bengio et al., 1308.3432).
"""
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..engine import functional as F
from ..engine.memo import kept
from ..engine.nn import Embedding, Module, Parameter
from ..engine.tensor import Tensor
from .qtensor import QTensor

__all__ = ["QuantizedEmbedding", "QuantizedLinear", "quantized_linear", "straight_through"]


class QuantizedLinear(Module):
    """y = x Ŵᵀ + b. The weight is a QTensor (d_out, d_in), never trained; b is a Parameter or None.
    Subclasses also quantize their input. `save_quantized` can write their further attributes if
    these are arrays, QTensors, Parameters, numbers, strings or None; `parts` says what a file must
    hold of a layer: attribute → type, or types."""

    parts: ClassVar[dict[str, Any]] = {"weight": QTensor, "bias": (Parameter, None)}

    def __init__(self, weight: QTensor, bias: Parameter | None):
        self.weight = weight
        self.bias = bias

    def check_parts(self) -> None:
        """ValueError unless `parts`, each of its type, fit together: a file is not believed."""
        q = self.weight
        if len(q.shape) != 2:
            raise ValueError(f"the weight has shape {q.shape}, not two axes")
        bias = self.bias
        if bias is not None and bias.shape != (self.d_out,):
            raise ValueError(f"the bias has shape {bias.shape}, expected {(self.d_out,)}")
        q.check_finite()

    @property
    def d_in(self) -> int:
        return self.weight.shape[1]

    @property
    def d_out(self) -> int:
        return self.weight.shape[0]

    @property
    def is_affine(self) -> bool:
        """As in `Linear`. A subclass with a `forward` of its own says so if it rounds nothing."""
        return type(self).forward is QuantizedLinear.forward

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, self.bias)

    def dense_weight(self) -> Array:
        """Ŵ, float32 (d_out, d_in)."""
        return self.weight.dequantize()

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays of the layer but its bias."""
        return sum(array.nbytes for name, array in self.state_dict().items() if name != "bias")

    def describe(self) -> str:
        bits = 8 * self.nbytes / self.weight.size
        return f"({self.d_in} → {self.d_out}, {bits:.2f} bits/weight)"


class QuantizedEmbedding(Embedding):
    """A table (n, d) of vectors, a QTensor whose rows are whole blocks; it is never trained. As a
    tied head, it is a layer of d inputs and n outputs. scale: as in `Embedding`. dtype: the name of
    the type of the vectors that are looked up."""

    parts: ClassVar[dict[str, Any]] = {"weight": QTensor, "scale": float, "dtype": str}
    bias = None
    d_in = QuantizedLinear.d_in
    d_out = QuantizedLinear.d_out
    dense_weight = QuantizedLinear.dense_weight

    def __init__(self, weight: QTensor, scale: float = 1.0, dtype: str = "float32"):
        self.weight = weight
        self.scale = scale
        self.dtype = dtype

    def check_parts(self) -> None:
        """ValueError unless `parts`, each of its type, fit together: a file is not believed."""
        QuantizedLinear.check_parts(self)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"the vectors are {self.dtype!r:.80}, expected float32 or float64")
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale is {self.scale}")
        self.weight.take(np.arange(0))

    def vectors(self, ids: Array) -> Tensor:
        ids = F.checked_ids(ids, self.d_out, "token ids")
        rows = self.weight.take(ids.reshape(-1)).dequantize()
        return Tensor(rows.reshape(*ids.shape, self.d_in).astype(self.dtype, copy=False))

    def scores(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, None)


def quantized_linear(x: Tensor, q: QTensor, b: Tensor | None) -> Tensor:
    """y = x Ŵᵀ + b.    dx = dy Ŵ,   db = Σ dy.    x (…, d_in), q (d_out, d_in), b (d_out,) or None

    Ŵ is decoded for y, dropped, and decoded again for dx: memory holds one layer's Ŵ at a time.
    (`generate` keeps up to 8 MiB of them until it returns.)"""
    dtype = x.dtype

    def dense():
        return kept(q, q.dequantize).astype(dtype, copy=False)
    return straight_through(x, q, b, lambda X: X @ dense().T, dense)


def straight_through(x: Tensor, q: QTensor, b: Tensor | None, product: Callable, dense: Callable,
                     *more: tuple) -> Tensor:
    """y = product(X) + b.    dX = dY Ŵ,  Ŵ = dense(),    db = Σ dY.

    X (M, d_in) are the rows of x, product(X) is (M, d_out). more: further edges of `Tensor.op`.
    Raises ValueError unless x is (…, d_in)."""
    if x.shape[-1:] != q.shape[1:]:
        raise ValueError(f"x {x.shape} does not fit a weight of shape {q.shape}; "
                         f"expected x (…, {q.shape[1]})")
    shape = x.shape
    dtype = x.dtype

    def dx(dy):
        W = dense().astype(dtype, copy=False)
        return (rows(dy) @ W).reshape(shape)

    def db(dy):
        dY = rows(dy)
        return np.ones(len(dY), dY.dtype) @ dY           # as in `functional.linear`
    Y = product(rows(x.data)).astype(dtype, copy=False)
    if b is not None:
        Y += b.data
    Y = Y.reshape(*shape[:-1], -1)
    return Tensor.op(Y, (x, dx), (b, db), *more)


def rows(x: Array) -> Array:
    """Reshape x (…, d) to (M, d)."""
    return x.reshape(-1, x.shape[-1])
