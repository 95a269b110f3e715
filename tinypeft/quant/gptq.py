"""GPTQ: round column after column, and let the columns still to come make up for the error.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023 (arXiv 2210.17323). Minimise ‖WX − ŴX‖², of Hessian H = 2XXᵀ for every row of W, as OBQ does
(`obq.py`), but in one order for all rows. All its matrices H_F⁻¹ are then found in one Cholesky factor (§3.3, step 3),
and of what one column adds to a later one only the sum matters (step 2). Algorithm 1:

    for i = 0, B, 2B, …:   for j = i … i+B−1:
        Q_:j = quant(W_:j)      E_:j = (W_:j − Q_:j)/U_jj      W_:k ← W_:k − E_:j U_jk        for all k > j in the block
    W_:k ← W_:k − Σ_j E_:j U_jk                                                              for all k after the block

    paper              here          shape
    W_:j, E_:j         W[j], E[j]    (d_out,): the arrays are transposed, (d_in, d_out), which makes columns contiguous
    Q                  q             (d_in, d_out), its codes
    H                  H             (d_in, d_in), and λI is added, λ = damping · mean(diag H)
    Cholesky(H⁻¹)ᵀ     U             (d_in, d_in), upper: H⁻¹ = UᵀU
    B                  block_size

Inside a block this file sums what a column gets just before it is rounded, W_:k − Σ_j E_:j U_jk, instead of adding to
all that follow: the same numbers, with fewer memory writes. Work is float64, so that the codes do not depend on B.

Bits per weight: b + (16 + b)/g with float16 scales and a b-bit zero point per group of g (symmetric: b + 16/g).

Where implementations differ:
 *  Scales of groups inside a block. The authors' code, and GPTQModel, choose them from W as it stood before the block,
    without what the block's own columns add: `group_scales="lazy"`, the default. "fresh" takes what the columns have
    become. With "lazy" and g < B the result does depend on B.
 *  Order. The paper takes columns as they come; `act_order=True` (AutoGPTQ's `desc_act`) by falling diagonal of H, and
    has to store the order, 32 bits per column. `static_groups` chooses all scales beforehand, by the original columns;
    with `act_order`, nothing is stored then.
 *  The grid is asymmetric as in the paper. `symmetric=True` is the authors', s = 2 max|w|/(2ᵇ−1); `clipping="mse"` is
    their search, the best of 100 steps down to 0.2 of the range in the norm 2.4. Damping is 0.05 in GPTQModel.
 *  A dead input (H_jj = 0) gets weight 0 first of all; theirs lets it widen the range of a whole row.
 *  `true_sequential`: the inputs of a block's later layers are taken with its earlier ones quantized. The paper takes
    all of a block's inputs at once.
"""
import warnings
from dataclasses import dataclass

import numpy as np

from ..nn import replace_modules
from .calibration import checked_hessian, observed, walk
from .folding import READS
from .linear import QuantizedLinear
from .packing import pack
from .qtensor import QTensor
from .scheme import Scheme, check_choice, checked
from .uniform import Uniform, group_width


@dataclass(frozen=True)
class GPTQ(Scheme):
    """bits 1 … 8 (symmetric: 2 … 8). group_size: columns that share a scale, None for whole rows. damping ≥ 0, in units
    of the mean of diag H. block_size ≥ 1 columns. The other fields are explained at the top of the file."""
    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    act_order: bool = False
    static_groups: bool = False
    group_scales: str = "lazy"
    damping: float = 0.01
    block_size: int = 128
    clipping: str = "minmax"
    scale_dtype: str = "float16"
    true_sequential: bool = False
    calibrated = True

    def __post_init__(self):
        check_choice("group_scales", self.group_scales, ("lazy", "fresh"))
        check_choice("clipping", self.clipping, ("minmax", "mse"))
        if self.group_size is not None and not self.group_size >= 1:
            raise ValueError(f"group_size must be at least 1, or None for whole rows, got {self.group_size!r}")
        if not self.block_size >= 1 or not self.damping >= 0:
            raise ValueError(f"need block_size ≥ 1 and damping ≥ 0, got {self.block_size!r} and {self.damping!r}")
        assert self.nearest                                               # ValueError for bits or dtypes it cannot have

    @property
    def nearest(self) -> Uniform:
        """The same grid without the corrections: round to nearest, which is what GPTQ is where H is the identity."""
        granularity = "group" if self.group_size else "channel"
        return Uniform(self.bits, self.symmetric, granularity, self.group_size, self.clipping, "full", self.scale_dtype,
                       norm=2.4)

    def quantize(self, W: np.ndarray, H: np.ndarray | None = None) -> QTensor:
        """W (d_out, d_in) and H (d_in, d_in), (2/n) Σ x xᵀ over the layer's inputs up to any factor → QTensor.

        ValueError when H is missing, zero, or no such sum, and for a group size that does not divide d_in.
        """
        W, d = checked(W), W.shape[1]
        H = checked_hessian(H, d, "GPTQ")
        g, B = group_width(d, self.group_size or d), self.block_size
        dead = H.diagonal() == 0
        H[dead, dead], W = 1, np.where(dead, np.float32(0), W)
        fit = self.nearest.fit
        grids = [fit(W[:, j:j + g]) for j in range(0, d, g)] if self.static_groups else []
        order = np.argsort(-H.diagonal(), kind="stable") if self.act_order else np.arange(d)
        U = factor(H[order][:, order] if self.act_order else H, self.damping)

        W = W.T[order].astype(np.float64)                                 # (d_in, d_out)
        q = np.empty(W.shape, np.uint8)
        for i in range(0, d, B):
            E = np.empty((min(B, d - i), W.shape[1]))
            for j in range(i, i + len(E)):
                if j % g == 0 and not self.static_groups:
                    group = W[j:j + g]
                    if self.group_scales == "fresh":
                        group = group - U[i:j, j:j + g].T @ E[:j - i]
                    grids.append(fit(group.T.astype(np.float32, "C")))
                grid = grids[(order[j] if self.static_groups else j) // g]
                w = W[j] - U[i:j, j] @ E[:j - i]
                q[j] = grid.encode(w.astype(np.float32)[:, None])[:, 0]
                E[j - i] = (w - grid.decode(q[j, :, None])[:, 0]) / U[j, j]
            W[i + B:] -= U[i:i + B, i + B:].T @ E

        if self.static_groups:
            q[order] = q.copy()                                           # back to the original columns
        scale, zero = np.hstack([grid.scale for grid in grids]), grids[0].zero              # (d_out, d_in/g)
        if not self.symmetric:
            zero = pack(np.hstack([grid.zero for grid in grids]).astype(np.uint8), self.bits)
        return QTensor(pack(q.T, self.bits), self.bits, q.T.shape, g, scale.reshape(-1).astype(self.scale_dtype), zero,
                       order=order.astype(np.int32) if self.act_order and not self.static_groups else None)

    def apply(self, model, layers, batches):
        """Block after block, each calibrated on what the quantized blocks before it put out."""
        for layer in layers.values():
            group_width(layer.d_in, self.group_size or layer.d_in)        # fail before any work is done
        stages = [readers for _, readers in READS]
        if not self.true_sequential:
            stages = [sum(stages, ())]
        n, d = sum(tokens.size for tokens in batches), max(layer.d_in for layer in layers.values())
        if n < d:
            warnings.warn(f"GPTQ: {n} calibration tokens, but layers with up to {d} inputs: H has rank {n} at most, "
                          "and where it is blind only the damping decides; give more tokens", stacklevel=3)
        for prefix, block, inputs in walk(model, batches):
            for names in stages:
                paths = [f"{prefix}.{name}" for name in names if f"{prefix}.{name}" in layers]
                if not paths: continue
                with observed(model, paths, hessian=True) as seen:
                    for h in inputs: block(h)
                replace_modules(model, {path: QuantizedLinear(self.quantize(layers[path].weight.data, seen[path].H),
                                                              layers[path].bias) for path in paths})


def factor(H, damping):
    """U, upper, with UᵀU = (H + λI)⁻¹, λ = damping · mean(diag H); float64 (d, d).

    Where H + λI is not positive definite, to rounding, λ is raised tenfold, and a warning says so.
    """
    from scipy.linalg.lapack import dpotrf, dtrtri
    while damping < 1e3:
        A = H[::-1, ::-1].copy()                                          # A = C Cᵀ, C lower; backwards, H + λI = R Rᵀ
        A.flat[::len(A) + 1] += damping * H.diagonal().mean()             # with R upper; so (H + λI)⁻¹ = R⁻ᵀ R⁻¹
        C, failed = dpotrf(A.T, lower=1)
        if not failed and C.diagonal().min()**2 > len(A) * np.finfo(float).eps * A.diagonal().max():
            return dtrtri(C, lower=1, overwrite_c=1)[0][::-1, ::-1]       # U = R⁻¹
        more = max(10 * damping, 1e-3)
        warnings.warn(f"GPTQ: H is not positive definite with damping {damping:g} (fewer tokens than inputs?); "
                      f"taking {more:g}", stacklevel=3)
        damping = more
    raise ValueError("GPTQ: H is not positive definite whatever the damping: it is no sum of x xᵀ")
