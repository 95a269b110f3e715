"""Integer matrix products, exactly, and W8A8: layers whose weights and inputs are both integers of 8 bits.

    y = x Wᵀ + b  ≈  s_x · s_w · (q_x q_wᵀ) + b          q = round(x/s),   s = max|x|/127

The product of integers is exact, as in an int8 kernel with int32 accumulators, though it is computed by a float32 GEMM,
which is two orders of magnitude faster here than NumPy's integer `@`. A float32 holds every integer up to 2²⁴, so if
Σ|aᵢbᵢ| ≤ 2²⁴ then every partial sum is an integer that float32 holds, in whatever order the BLAS adds them up:

    codes −127 … 127     127² K ≤ 2²⁴  ⇔  K ≤ 1040
    codes −128 … 127     128² K ≤ 2²⁴  ⇔  K ≤ 1024        which is where the sum over K is cut here

Longer sums are cut into pieces of 1024, which are added in float64, exact up to 2⁵³.

What shares a scale decides how well this works (Dettmers et al., arXiv 2208.07339, Table 1):

    symbol   here                    "tensor"    "token" (inputs) or "channel" (weights)
    s_x      max|X|/127              one         one per row of X, a token
    s_w      max|W|/127              one         one per row of W, an output channel

tensor × tensor is their "absmax", token × tensor "row-wise", token × channel "vector-wise" quantization. An outlier in
a token's vector makes its step s_x coarse for everything else in that token (in the batch, with one scale for all):
LLM.int8() (`llm_int8.py`) and SmoothQuant (`smoothquant.py`) are two ways out.

Gradient: rounding has none, so it is passed over (straight-through): dX = dY Ŵ, Ŵ = s_w q_w. The weight has none.
Stored: 8 bits per weight, and 32 per scale. Inputs are quantized anew in every call and stored nowhere.
"""
from dataclasses import dataclass, replace

import numpy as np

from ..hyper import one_of
from ..nn import replace_modules
from ..tensor import Tensor
from .calibration import capture
from .linear import QuantizedLinear
from .scheme import Scheme
from .uniform import Uniform

CHUNK = 1024                                             # 128² · 1024 = 2²⁴


def int8_matmul(A, B):
    """A (M, K), B (N, K) → A Bᵀ (M, N), exact.

    A and B are int8, or float32 holding integers in [−128, 127]. The result is float32, or float64 for K > 1024, where
    float32 could not hold it. Raises TypeError for other dtypes, ValueError when the shapes do not fit.
    """
    for X in (A, B):
        if X.dtype not in (np.int8, np.float32):
            raise TypeError(f"int8_matmul: expected int8, or float32 that holds int8 values, got {X.dtype}")
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1]:
        raise ValueError(f"int8_matmul: expected A (M, K) and B (N, K), got {A.shape} and {B.shape}")
    piece = lambda X, k: X[:, k:k + CHUNK].astype(np.float32, copy=False)
    C = piece(A, 0) @ piece(B, 0).T
    if A.shape[1] > CHUNK:
        C = C.astype(np.float64)
        for k in range(CHUNK, A.shape[1], CHUNK): C += piece(A, k) @ piece(B, k).T
    return C


def int8_inputs(X, activations, scale=None):
    """X (M, d) → integers −127 … 127 as float32 (M, d), and their scale: (M, 1) for "token", () for the others.

    "token" and "tensor" take it from X itself; "static" is given it, and clips what lies outside.
    """
    if activations == "static":
        s = X.dtype.type(scale)
        return np.clip(np.rint(X / s), -127, 127).astype(np.float32, copy=False), s
    s = step(np.abs(X).max(axis=1 if activations == "token" else None, keepdims=activations == "token"))
    return rounded_quotient(X, s), s


def rounded_quotient(X, s):
    """round(X/s), float32."""
    Q = X / s
    return np.rint(Q, out=Q).astype(np.float32, copy=False)


def step(m):
    """The scale m/127 of a range [−m, m], an array; 1 where m is zero (or so small that m/127 is no normal float32)."""
    s = m / m.dtype.type(127)
    return np.where(s < np.finfo(np.float32).tiny, s.dtype.type(1), s)


def integers(q):
    """The integers of a symmetric QTensor of at most 8 bits, as float32, of its shape."""
    if q.bits == 8:                                                                # nothing to unpack: one pass
        return np.subtract(q.codes, np.float32(q.zero), dtype=np.float32).reshape(q.shape)
    return replace(q, scale=None, block_size=q.shape[-1]).dequantize()


def scaled_matmul(Q, q, dtype=np.float32):
    """Integers Q (M, K) and a symmetric QTensor q (N, K) → Q Ŵᵀ, (M, N).

    Where every row of W has one scale, the sum is an exact integer, scaled: s_w (Q Wᵀ). Where a row has several, an
    integer kernel adds up scaled sums of groups in float32; one GEMM with the decoded Ŵ is as exact as that, and faster.
    """
    N, K = q.shape
    if q.block_size % K:
        return Q.astype(dtype, copy=False) @ q.dequantize().astype(dtype, copy=False).T
    Y = int8_matmul(Q, integers(q)).astype(dtype, copy=False)
    Y *= np.repeat(q.scales(), q.block_size // K)[:N]
    return Y


def straight_through(x, b, forward, dense):
    """y = forward(X) + b for the rows X (M, d_in) of x, with the gradient of a product by Ŵ = dense(): dX = dY Ŵ."""
    need, shape, dtype = [t is not None and t.requires_grad for t in (x, b)], x.shape, x.dtype
    Y = forward(x.data.reshape(-1, shape[-1])).astype(dtype, copy=False)
    if b is not None: Y += b.data

    def vjp(dy):
        dY = dy.reshape(-1, dy.shape[-1])
        dx = (dY @ dense().astype(dtype, copy=False)).reshape(shape) if need[0] else None
        db = dY.sum(0)                                               if need[1] else None
        return (dx,) if b is None else (dx, db)
    return Tensor.fused(Y.reshape(*shape[:-1], -1), (x,) if b is None else (x, b), vjp)


class Int8Linear(QuantizedLinear):
    """y = s_x · (q_x Ŵᵀ) + b. `scale`: s_x as an array of no axes when `activations` is "static", else None."""

    def __init__(self, weight, bias, activations, scale=None):
        super().__init__(weight, bias)
        self.activations, self.scale = activations, scale

    def forward(self, x):
        if x.shape[-1] != self.d_in:
            raise ValueError(f"int8 linear: x {x.shape} does not fit a weight of shape {self.weight.shape}")

        def product(X):
            Q, s = int8_inputs(X, self.activations, self.scale)
            Y = scaled_matmul(Q, self.weight, X.dtype)
            Y *= s
            return Y
        return straight_through(x, self.bias, product, self.dense_weight)

    def describe(self):
        return f"{super().describe()[:-1]}, int8 inputs per {self.activations})"


@dataclass(frozen=True)
class W8A8(Scheme):
    """8-bit weights and inputs and nothing else: what fails when inputs have outliers.

    weights: "tensor" or "channel". activations: "token", "tensor", or "static", one scale for all inputs to come, from
    the largest in `calibration`.
    """
    weights: str = one_of("tensor", "channel", also=("weight_quant",))
    activations: str = one_of("tensor", "token", "static", also=("act_quant",))
    shown = ("weights", "activations")

    calibrated = property(lambda self: self.activations == "static")

    def quantize(self, W):
        return Uniform(8, granularity=self.weights).quantize(W)

    def layer(self, linear, largest=None):
        """`largest`: max|x| of the inputs to expect, when they are quantized statically."""
        static = self.activations == "static"
        if static and largest is None:
            raise ValueError("activations='static' needs to know the inputs: quantize(…, calibration=tokens)")
        scale = step(np.array(largest, np.float32)) if static else None
        return Int8Linear(self.quantize(linear.weight.data), linear.bias, self.activations, scale)

    def apply(self, model, layers, batches):
        seen = capture(model, batches, list(layers)) if self.activations == "static" else {}
        replace_modules(model, {path: self.layer(linear, seen[path].max_abs.max() if seen else None)
                                for path, linear in layers.items()})
