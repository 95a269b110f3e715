"""Exact integer matrix products, and W8A8: linear layers with 8-bit weights and 8-bit inputs.

W8A8 rounds both factors of a matrix product to integers, multiplies the integers, and scales the
result (Dettmers et al., LLM.int8(), arXiv 2208.07339, §2):

    y = x Wᵀ + b  ≈  s_x · s_w · (q_x q_wᵀ) + b          q = round(x/s),   s = max|x|/127

    symbol   here                    "tensor"    "token" (inputs) or "channel" (weights)
    s_x      max|X|/127              one         one per row of X, a token
    s_w      max|W|/127              one         one per row of W, an output channel

The paper's Table 1 calls tensor × tensor "absmax", token × tensor "row-wise" and token × channel
"vector-wise" quantization. An outlier makes s_x large, so the token's other features (per tensor:
the whole batch's) are rounded coarsely. `llm_int8.py` and `smoothquant.py` have two remedies.

How this differs from an int8 kernel. A kernel adds products in int32. Here a float32 GEMM adds
them, because NumPy's integer `@` uses no BLAS and is far slower. A float32 holds every
integer up to 2²⁴, so if Σ|aᵢbᵢ| ≤ 2²⁴, every partial sum is exact, in any order. This holds for
K ≤ 1024 terms of codes −128 … 127. It holds for longer sums if Σ|aᵢ| ≤ 2¹⁷ in every row of A, as
in most layers. All others are cut into pieces of 1024, added in float64, exact up to 2⁵³.

Gradient: dX = dY Ŵ (`linear.py`). Stored: 8 bits per weight and 32 per scale; no inputs.
"""
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..common.hyper import one_of
from ..common.wording import brief
from ..engine.memo import kept
from ..engine.nn import Linear, Parameter, replace_modules
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from .calibration import capture
from .linear import QuantizedLinear, straight_through
from .qtensor import QTensor
from .scheme import Scheme
from .uniform import TINY, Uniform

INTEGERS = {np.dtype(np.int8), np.dtype(np.float32)}
CHUNK, MOST = 1024, 2**17                                # 128² · 1024 = 128 · 2¹⁷ = 2²⁴


def int8_matmul(A: Array, B: Array) -> Array:
    """A (M, K), B (N, K) → A Bᵀ (M, N), exact. A and B are int8, or float32 that holds integers in
    [−128, 127]. The result is float32, or float64 if that needs pieces. Raises TypeError for other
    dtypes and ValueError for other shapes."""
    if not {A.dtype, B.dtype} <= INTEGERS:
        raise TypeError("int8_matmul: expected int8, or float32 of int8 values, got "
                        f"{A.dtype} and {B.dtype}")
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1]:
        raise ValueError(f"int8_matmul: expected A (M, K), B (N, K), got {A.shape} and {B.shape}")
    K = A.shape[1]
    A = A.astype(np.float32, copy=False)
    B = B.astype(np.float32, copy=False)
    if K <= CHUNK or (np.abs(A).sum(1) <= MOST).all():
        return A @ B.T
    C = np.zeros((len(A), len(B)))
    for k in range(0, K, CHUNK):
        C += A[:, k:k + CHUNK] @ B[:, k:k + CHUNK].T
    return C


def int8_inputs(X: Array, activations: str, scale: Array | None = None
                ) -> tuple[Array, Array]:
    """Quantize X (M, d) → integers in [−127, 127] as float32 (M, d), and their scale s_x. "token"
    and "tensor" compute s_x from X, (M, 1), or () for one token, and (). "static" uses `scale` and
    clips X."""
    if activations == "static":
        s = X.dtype.type(scale)
        return np.clip(rounded(X, s), -127, 127), s
    A = np.abs(X)
    s = scale_of(row_max(A) if activations == "token" else A.max())
    return rounded(X, s), s


def rounded(X: Array, s: Array) -> Array:
    """Return round(X/s), integers as float32."""
    Q = X / s
    return np.rint(Q, out=Q).astype(np.float32, copy=False)


def row_max(A: Array) -> Array:
    """Return the largest number of each row of a C-contiguous A (M, d), (M, 1), or () for a single
    row; 0 if d = 0. `A.max(1)` is slower where rows are short."""
    M, d = A.shape
    if not A.size:
        return np.zeros((M, 1), A.dtype)
    if M == 1:
        return A.max()
    starts = np.arange(0, A.size, d)
    return np.maximum.reduceat(A.reshape(-1), starts)[:, None]


def scale_of(m: Array) -> Array:
    """Return the scale m/127 of a range [−m, m]; 1 where m/127 is less than a normal float32."""
    number = m.dtype.type
    s = m / number(127)
    if s.ndim:
        return np.where(s < TINY, number(1), s)
    return number(1) if s < TINY else s                  # a scalar: np.where would make it an array


def signed_codes(q: QTensor) -> Array:
    """Return q − z of a symmetric QTensor of at most 8 bits, float32, of its shape; to be read
    only."""
    def codes():
        Q = np.empty(q.shape, np.float32)
        q.look_up(0, Q.reshape(-1))
        return Q
    return kept((q, "codes"), codes)


def check_integers(q: QTensor) -> None:
    """ValueError unless the products of this file can use q: q − z are integers of at most 8 bits,
    with one z for all where every row has one scale."""
    plain = q.codebook is None and q.order is None and q.offset is None
    scale_per_row = q.block_size % q.shape[-1] == 0
    one_zero = isinstance(q.zero, int)
    if not plain or q.bits > 8 or q.scale is None or scale_per_row and not one_zero:
        raise ValueError(f"expected a symmetric weight of at most 8 bits, got {q}")


def scaled_matmul(Q: Array, q: QTensor, dtype: np.dtype = np.float32) -> Array:
    """Integers Q (M, K) and a symmetric QTensor q (N, K) → Q Ŵᵀ (M, N). If every row of W has one
    scale, this is an exact integer product, then scaled: s_w (Q q_wᵀ). If a row has several, Q
    multiplies the decoded Ŵ; scaling sums of groups is no more exact."""
    N, K = q.shape
    if q.block_size % K:
        W = kept(q, q.dequantize).astype(dtype, copy=False)
        return Q.astype(dtype, copy=False) @ W.T
    s_w = q.scales()
    if q.block_size > K:
        s_w = np.repeat(s_w, q.block_size // K)[:N]
    return scaled(int8_matmul(Q, signed_codes(q)).astype(dtype, copy=False), s_w)


def scaled(Y: Array, *scales: Array) -> Array:
    """Multiply Y (M, N) in place by scales of its rows (M, 1) or columns (N,), in this order.

    NumPy passes operands that broadcast through a buffer, unless a row fills half of it: on the way
    to memory and back. A smaller buffer stays in a core's cache."""
    before = np.setbufsize(1024) if len(Y) > 1 else None
    try:
        for s in scales:
            Y *= s
    finally:
        if before:
            np.setbufsize(before)
    return Y


class Int8Linear(QuantizedLinear):
    """y = s_x · (q_x Ŵᵀ) + b. `scale`: s_x (), if `activations` is "static", else None."""
    parts: ClassVar[dict[str, Any]] = QuantizedLinear.parts | {"activations": str,
                                                               "scale": (np.ndarray, None)}

    def __init__(self, weight: QTensor, bias: Parameter | None, activations: str,
                 scale: Array | None = None):
        super().__init__(weight, bias)
        self.activations = activations
        self.scale = scale

    def check_parts(self) -> None:
        super().check_parts()
        check_integers(self.weight)
        if self.activations not in ("tensor", "token", "static"):
            raise ValueError(f"activations must be tensor, token or static, "
                             f"got {brief(self.activations)}")
        s = self.scale
        fits = s is None
        if self.activations == "static":
            fits = s is not None and s.shape == () and s > 0
        if not fits:
            raise ValueError(f"activations={self.activations!r} with the scale {s}; static ones "
                             "need one positive number, others none")

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, self.weight, self.bias, self.product, self.dense_weight)

    def product(self, X: Array) -> Array:
        """X (M, d_in) → s_x · (q_x Ŵᵀ), (M, d_out)."""
        Q, s = int8_inputs(X, self.activations, self.scale)
        return scaled(scaled_matmul(Q, self.weight, X.dtype), s)

    def describe(self) -> str:
        return f"{super().describe()[:-1]}, int8 inputs per {self.activations})"


@dataclass(frozen=True)
class W8A8(Scheme):
    """8-bit weights and inputs without any care for outliers: the baseline that outliers break.

    weights: "tensor" or "channel", the weights that share a scale. activations: "token", "tensor",
    or "static", which is one scale for all later inputs, from the largest in the calibration. With
    "tensor", what a row of a batch gives depends a little on the other rows, and what `generate`
    writes on its cache, because a scale is that of all tokens of one call."""
    weights: str = one_of("tensor", "channel", also=("weight_quant",))
    activations: str = one_of("tensor", "token", "static", also=("act_quant",))
    shown = ("weights", "activations")

    @property
    def calibrated(self) -> bool:
        return self.activations == "static"

    def quantize(self, W: Array) -> QTensor:
        return Uniform(8, granularity=self.weights).quantize(W)

    def layer(self, linear: Linear, largest: float | None = None) -> Int8Linear:
        """Make the layer that replaces `linear`. largest: max|x| over the inputs to expect; needed
        if activations are "static"."""
        scale = None
        if self.activations == "static":
            if largest is None:
                raise ValueError("activations='static' needs quantize(…, calibration=tokens)")
            scale = np.asarray(scale_of(np.float32(largest)))
        return Int8Linear(self.quantize(linear.weight.data), linear.bias, self.activations, scale)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        largest = {}
        if self.activations == "static":
            seen = capture(model, batches, list(layers))
            largest = {path: statistics.max_abs.max() for path, statistics in seen.items()}
        replace_modules(model, {path: self.layer(linear, largest.get(path))
                                for path, linear in layers.items()})
