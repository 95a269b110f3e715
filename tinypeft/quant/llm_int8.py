"""LLM.int8(): integers for most of a matrix product, floating point for a few outlier features.

Large transformers have a few outlier features: input features of great magnitude, the same for all
tokens. Their columns of X and W are multiplied in floating point. All others are multiplied as
integers, with one scale per row of X and of W (Dettmers et al., arXiv 2208.07339, equation (8)):

    X Wᵀ ≈ Σ_{h∈O} X_h W_hᵀ + s_x s_w · Σ_{h∉O} q_x,h q_w,hᵀ        O = {h : any |X_h| ≥ threshold}

    paper    here          shape
    O, α     O, threshold  columns of X, found anew in every call
    X_f16    X             (tokens, d_in), in the model's precision
    X_i8     Q             (tokens, d_in) integers, s_x = max|X_∉O|/127 per token
    W_i8     weight        QTensor (d_out, d_in), s_w = max|W|/127 per output channel
    W_f16    kept          float16 (d_out, |columns|)

`plain.llm_int8` is this equation alone; read it first.

Where the paper and its implementation differ. O depends on the input, so equation (8) needs a
float16 copy of all of W: 24 bits per weight. The paper counts only 0.1 % of extra memory, because
outliers are confined to at most seven features. We do the same: only `columns`, the features that
reach the threshold in calibration, are kept in float16. An outlier feature that first appears in a
later input is read from its codes. Without calibration tokens, the model sees tokens at equal
distances over its vocabulary. It finds the same columns, because outliers belong to the features,
not to the text. Bits per weight: 8 + 32/d_in + (16 + 32/d_out)·|columns|/d_in. Gradient: dX = dY Ŵ.

variant="bitsandbytes" computes as that library does (version 0.50). W and X are rounded to float16
first, and multiplied by 127·(1/max) instead of divided by max/127. The entries of outlier columns
that lie below the threshold count towards s_x. Every outlier column is read from its codes; there
is no float16 copy. On a CPU the constant 1/127² is 6.200124e-05, which is 1.8e-5 too large. (In
train mode on a CPU that library's layer multiplies X by the dequantized weight instead.)
"""
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..common.hyper import FINITE, Limit, declared, one_of
from ..engine.nn import Linear, Parameter, replace_modules
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from .calibration import capture
from .int8 import check_integers, int8_matmul, rounded, row_max, scale_of, scaled, signed_codes
from .linear import QuantizedLinear, straight_through
from .qtensor import QTensor
from .scheme import Scheme, checked
from .uniform import Uniform

MOST_TOKENS = 1024                                       # that a model sees without calibration
NONE = np.empty(0, int)                                  # outlier columns


def is_positive(x: Any) -> bool:
    is_number = isinstance(x, (int, float, np.number)) and x is not True
    return is_number and x > 0 and not (isinstance(x, int) and x > FINITE)


POSITIVE = Limit(is_positive, "a positive number or inf")


@dataclass(frozen=True)
class LLMInt8(Scheme):
    """threshold: the magnitude from which an input is an outlier, 6 in the paper. With inf there
    are none, which is vector-wise quantization alone. variant: "paper", or "bitsandbytes", which
    the module's docstring describes. O is that of all tokens of one call, so what a row of a batch
    gives depends a little on the other rows, and what `generate` writes on its cache."""
    threshold: float = declared(6.0, POSITIVE, also=("llm_int8_threshold", "alpha"))
    variant: str = one_of("paper", "bitsandbytes")
    shown = ("threshold",)

    def quantize(self, W: Array) -> QTensor:
        if self.variant == "paper":
            return Uniform(8, granularity="channel").quantize(W)
        W = half(checked(W)).astype(np.float32)
        d_in = W.shape[-1]
        Q, m = bitsandbytes_rows(W.reshape(-1, d_in))
        codes = (Q + 128).astype(np.uint8).reshape(-1)
        scale = (m / np.float32(127)).reshape(-1)
        return QTensor(codes, 8, W.shape, d_in, scale, 128)

    def layer(self, linear: Linear, columns: Array = ()) -> "LLMInt8Linear":
        """Make the layer that replaces `linear`. columns: the input features whose weights stay in
        float16, integers in [0, d_in)."""
        if self.variant != "paper":
            columns = ()
        columns = np.array(columns, np.int32)
        W = linear.weight.data
        return LLMInt8Linear(self.quantize(W), linear.bias, self, columns, half(W[:, columns]))

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        if not batches:
            n = min(model.config.context_length, MOST_TOKENS)
            tokens = np.linspace(0, model.config.vocab_size - 1, n)
            batches = [tokens.astype(int)[None]]
        new = {}
        for path, statistics in capture(model, batches, list(layers)).items():
            outliers = np.flatnonzero(statistics.max_abs >= self.threshold)
            new[path] = self.layer(layers[path], outliers)
        replace_modules(model, new)


class LLMInt8Linear(QuantizedLinear):
    """Equation (8). `kept` float16 (d_out, k): the weights of the features `columns` int32 (k,)."""
    parts: ClassVar[dict[str, Any]] = QuantizedLinear.parts | {
        "threshold": float, "variant": str, "columns": np.ndarray, "kept": np.ndarray}

    def __init__(self, weight: QTensor, bias: Parameter | None, scheme: LLMInt8, columns: Array,
                 kept: Array):
        super().__init__(weight, bias)
        self.threshold = scheme.threshold
        self.variant = scheme.variant
        self.columns = columns
        self.kept = kept

    def check_parts(self) -> None:
        super().check_parts()
        check_integers(self.weight)
        LLMInt8(self.threshold, self.variant)            # raises for values that it does not take
        d_in = self.d_in
        if self.weight.bits != 8 or self.weight.block_size != d_in:
            raise ValueError(f"expected 8 bits and a scale per row, got {self.weight}")
        columns = self.columns
        inside = (columns >= 0) & (columns < d_in)
        different = len(np.unique(columns)) == columns.size
        if columns.dtype != np.int32 or columns.ndim != 1 or not inside.all() or not different:
            raise ValueError(f"columns must be different int32 numbers below {d_in}, got {columns}")
        kept = self.kept
        shape = self.d_out, columns.size
        if kept.dtype != np.float16 or kept.shape != shape:
            raise ValueError(f"kept must be float16 {shape}, got {kept.dtype} {kept.shape}")

    def dense_weight(self) -> Array:
        """Return Ŵ float32 (d_out, d_in): the decoded codes, and the float16 columns in their
        place."""
        W = super().dense_weight()
        W[:, self.columns] = self.kept
        return W

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, self.weight, self.bias, self.product, self.dense_weight)

    def product(self, X: Array) -> Array:
        """X (M, d_in) → (M, d_out)."""
        quantized = inputs if self.variant == "paper" else bitsandbytes_inputs
        Q, s_x, O = quantized(X, self.threshold)
        W = signed_codes(self.weight)
        s_w = self.weight.scales()
        Y = scaled(int8_matmul(Q, W).astype(X.dtype, copy=False), s_x, s_w)
        if len(O):
            W_O = self.outlier_weight(O, W, s_w)
            Y += X[:, O] @ W_O.T.astype(X.dtype, copy=False)
        return Y

    def outlier_weight(self, O: Array, W: Array, s_w: Array) -> Array:
        """Return the columns O of Ŵ, float32 (d_out, |O|): those in `kept`, others from the codes W
        and their scales."""
        places = np.full(self.d_in, -1)                  # of every feature in `kept`, or −1
        places[self.columns] = np.arange(len(self.columns))
        places = places[O]
        is_kept = places >= 0
        if is_kept.all():
            return self.kept[:, places].astype(np.float32)
        W_O = W[:, O] * s_w[:, None]
        W_O[:, is_kept] = self.kept[:, places[is_kept]]
        return W_O

    def describe(self) -> str:
        return f"{super().describe()[:-1]}, {len(self.columns)} columns in float16)"


def half(W: Array) -> Array:
    """Return W as float16. ValueError for a weight beyond its largest number."""
    with np.errstate(over="ignore"):
        W_f16 = W.astype(np.float16)
    if not np.isfinite(W_f16).all():
        raise ValueError("LLMInt8 takes weights in float16 (outlier columns; as bitsandbytes does "
                         f"it, all): expected at most 65504, got {np.abs(W).max():g}, which is not "
                         "finite there; rescale the weights, or use tinypeft.W8A8()")
    return W_f16


def inputs(X: Array, threshold: float) -> tuple[Array, Array, Array]:
    """X (M, d) → Q, integers float32 (M, d), 0 in outlier columns; s_x (M, 1); O, these columns."""
    A = np.abs(X)
    m = row_max(A)
    if m.max(initial=0) < threshold:                     # no outlier: nothing to look for
        s = scale_of(m)
        return rounded(X, s), s, NONE
    O = np.flatnonzero(A.max(0) >= threshold)
    A[:, O] = 0
    s = scale_of(row_max(A))
    Q = rounded(X, s)
    Q[:, O] = 0
    return Q, s, O


def bitsandbytes_inputs(X: Array, threshold: float) -> tuple[Array, Array, Array]:
    """Do as `inputs`, in the arithmetic of bitsandbytes."""
    X = X.astype(np.float16).astype(np.float32)
    outlier = np.abs(X) >= threshold
    O = np.flatnonzero(outlier.any(0))
    X[outlier] = 0
    Q, m = bitsandbytes_rows(X)
    Q[:, O] = 0
    return Q, m * np.float32(127 * 6.200124e-05), O


def bitsandbytes_rows(X: Array) -> tuple[Array, Array]:
    """X (M, d) → integers float32 (M, d); max|X| of every row (M, 1), 127 for a row of zeros."""
    m = np.abs(X).max(1, keepdims=True)
    m[m == 0] = 127
    return np.rint(X * (np.float32(127) * (1 / m))), m                    # PyTorch's 127 / m
