"""LLM.int8(): 8-bit integers for almost all of a matrix product, floating point for the few columns that need it.

Large transformers have a handful of input features of great magnitude, always the same ones. Those columns of X, and
the columns of W that meet them, are multiplied in floating point; the rest in integers, with one step for every row
of X and of W (Dettmers et al., arXiv 2208.07339, equation (8)):

    X Wᵀ ≈ Σ_{h∈O} X_h W_hᵀ + s_x s_w · Σ_{h∉O} q_x,h q_w,hᵀ        O = {h : any |X_h| ≥ threshold}

    paper    here          shape
    O, α     O, threshold  columns of this call's X, found at run time
    X_f16    X             (tokens, d_in), in the model's own precision
    X_i8     Q             (tokens, d_in) integers, s_x = max|X_∉O|/127 per token
    W_i8     weight        QTensor (d_out, d_in), s_w = max|W|/127 per output channel
    W_f16    kept          float16 (d_out, |columns|)

How the weight is stored. O depends on the input, so equation (8) taken literally needs a float16 copy of all of W
beside the codes, 24 bits per weight, and nobody stores that. The paper counts 0.1 % of extra memory, because outliers
keep to at most seven features: so here. `columns` are those seen at or above the threshold in calibration; they are
kept in float16, exact but for its rounding. Without calibration the model is shown one row of tokens spread over
its vocabulary, which finds them as well, outliers being a property of the features and not of the text. A column that
becomes an outlier later, in some other input, is read from its codes.
Bits per weight: 8 + 32/d_in + (16 + 32/d_out)·|columns|/d_in.

    variant="bitsandbytes"   as that library computes (0.50): W and X go through float16 before they are quantized;
        multiplied by 127/max instead of divided by max/127; below-threshold entries of outlier columns count towards
        s_x; every outlier column is read from its codes (no float16 copy); and on a CPU 1/127² is 6.200124e-05, which
        is 1.8e-5 too large. Its layer in train mode on a CPU does none of this: X meets the dequantized weight.

threshold=6 is the paper's. `float("inf")` gives vector-wise quantization alone. Gradient: dX = dY Ŵ, nothing for W.
"""
from dataclasses import dataclass

import numpy as np

from ..nn import replace_modules
from .calibration import capture
from .int8 import int8_matmul, integers, rounded_quotient, step, straight_through
from .linear import QuantizedLinear
from .packing import pack
from .qtensor import QTensor
from .scheme import Scheme, check_choice, checked
from .uniform import Uniform


@dataclass(frozen=True)
class LLMInt8(Scheme):
    """threshold: from which magnitude on an input is an outlier, > 0. variant: "paper" or "bitsandbytes"."""
    threshold: float = 6.0
    variant: str = "paper"
    shown = ("threshold",)

    def __post_init__(self):
        check_choice("variant", self.variant, ("paper", "bitsandbytes"))
        if not self.threshold > 0:
            raise ValueError(f"LLMInt8: the threshold must be positive, got {self.threshold!r}")

    def quantize(self, W):
        if self.variant == "paper":
            return Uniform(8, granularity="channel").quantize(W)
        with np.errstate(over="ignore"):
            W = checked(checked(W).astype(np.float16))
        Q, m = bitsandbytes_rows(W.reshape(-1, W.shape[-1]))
        codes = pack(Q.astype(np.int16) + 128, 8)
        return QTensor(codes, 8, W.shape, W.shape[-1], (m / np.float32(127)).reshape(-1), 128)

    def layer(self, linear, columns=()):
        """`columns`: those to keep in float16, integers in 0 … d_in − 1."""
        columns = np.array(columns if self.variant == "paper" else (), np.int32)
        kept = linear.weight.data[:, columns].astype(np.float16)
        return LLMInt8Linear(self.quantize(linear.weight.data), linear.bias, self, columns, kept)

    def apply(self, model, layers, batches):
        seen = capture(model, batches or [spread(model.config)], list(layers))
        replace_modules(model, {path: self.layer(linear, np.flatnonzero(seen[path].max_abs >= self.threshold))
                                for path, linear in layers.items()})


def spread(config):
    """One row of tokens (1, T) that lie evenly over the vocabulary."""
    return np.linspace(0, config.vocab_size - 1, config.context_length).astype(int)[None]


class LLMInt8Linear(QuantizedLinear):
    """The product above. `columns` int32 (k,) are kept in float16, `kept` (d_out, k)."""

    def __init__(self, weight, bias, scheme, columns, kept):
        super().__init__(weight, bias)
        self.threshold, self.variant, self.columns, self.kept = scheme.threshold, scheme.variant, columns, kept

    def dense_weight(self):
        """Ŵ float32 (d_out, d_in): the decoded codes, and in the kept columns what was kept."""
        W = super().dense_weight()
        W[:, self.columns] = self.kept
        return W

    def forward(self, x):
        if x.shape[-1] != self.d_in:
            raise ValueError(f"LLM.int8(): x {x.shape} does not fit a weight of shape {self.weight.shape}")
        return straight_through(x, self.bias, self.product, self.dense_weight)

    def product(self, X):
        """X (M, d_in) → (M, d_out)."""
        Q, s, O = (inputs if self.variant == "paper" else bitsandbytes_inputs)(X, self.threshold)
        W, s_w = integers(self.weight), self.weight.scales()
        Y = int8_matmul(Q, W).astype(X.dtype, copy=False)
        Y *= s
        Y *= s_w
        if len(O):
            W_O = W[:, O] * s_w[:, None]
            _, at, of = np.intersect1d(O, self.columns, assume_unique=True, return_indices=True)
            W_O[:, at] = self.kept[:, of]
            Y += X[:, O] @ W_O.T.astype(X.dtype, copy=False)
        return Y

    def describe(self):
        return f"{super().describe()[:-1]}, {len(self.columns)} columns in float16)"


def inputs(X, threshold):
    """X (M, d) → integers float32 (M, d), 0 in outlier columns; their scales s_x (M, 1); O, the outlier columns."""
    A = np.abs(X)
    O = np.flatnonzero(A.max(0) >= threshold)
    A[:, O] = 0
    s = step(A.max(1, keepdims=True))
    Q = rounded_quotient(X, s)
    Q[:, O] = 0
    return Q, s, O


def bitsandbytes_inputs(X, threshold):
    """As `inputs`, in that library's arithmetic."""
    X = X.astype(np.float16).astype(np.float32)
    outlier = np.abs(X) >= threshold
    O = np.flatnonzero(outlier.any(0))
    X[outlier] = 0
    Q, m = bitsandbytes_rows(X)
    Q[:, O] = 0
    return Q, m * np.float32(127 * 6.200124e-05), O


def bitsandbytes_rows(X):
    """X (M, d) → integers float32 (M, d) and max|X| of every row (M, 1), 127 if it is zero."""
    m = np.abs(X).max(1, keepdims=True)
    m[m == 0] = 127
    return np.rint(X * (np.float32(127) / m)), m
