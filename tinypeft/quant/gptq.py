"""GPTQ: round column after column, and let the columns still to come make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
ICLR 2023 (arXiv 2210.17323). Like OBQ (`obq.py`), GPTQ minimises ‖WX − ŴX‖², whose Hessian is
H = 2XXᵀ for every row of W, but it rounds all rows in the same order. Then one Cholesky factor U
contains all the matrices H_F⁻¹ (§3.3, step 3), and the corrections of a block of B columns can be
applied to later columns at once (step 2). Algorithm 1:

    for i = 0, B, 2B, …:   for j = i … i+B−1:
        Q_:j = quant(W_:j)     E_:j = (W_:j − Q_:j)/U_jj
        W_:k ← W_:k − E_:j U_jk         for all k > j in the block
    W_:k ← W_:k − Σ_j E_:j U_jk         for all k after the block

    paper              here         shape
    W_:j, E_:j         W[j], E[j]   (d_out,): arrays are transposed, which makes columns contiguous
    Q                  q            (d_in, d_out), its codes
    H                  H            (d_in, d_in); λI is added, λ = damping · mean(diag H)
    Cholesky(H⁻¹)ᵀ     U            (d_in, d_in), upper: H⁻¹ = UᵀU
    B                  block_size   columns at a time

Inside a block we apply a column's accumulated corrections, W_:k − Σ_j E_:j U_jk, just before
rounding it, rather than updating every later column at once: the same numbers, fewer memory writes.
The work is float64, so that the codes do not depend on B. Bits per weight: b + (16 + b)/g with
float16 scales and a b-bit zero point per group of g columns; b + 16/g if symmetric.

Where implementations differ:
 *  Scales of groups. `group_scales="lazy"`, the default, ignores corrections made inside the block,
    as the authors' code and GPTQModel do: if g < B, the result depends on B. "fresh" includes them.
 *  Order. The paper takes columns as they come. `act_order=True` (AutoGPTQ's `desc_act`) takes them
    by falling diagonal of H and must store the order, 32 bits per column. `static_groups=True`
    chooses all scales beforehand, from the original columns; then no order is stored.
 *  Grid. The default is asymmetric, as in the paper. `symmetric=True` has s = 2 max|w|/(2ᵇ−1), as
    in the authors' code, but there a row without a negative weight gets half this step, so that
    half of its range is clipped. `clipping="mse"` is their search in steps of 1 % and the norm 2.4;
    it ends at 0.20 of the range, theirs at 0.21. GPTQModel's damping is 0.05.
 *  Dead inputs (H_jj = 0) first get weight 0. In the authors' code they can widen a row's range.
 *  Inputs. The paper takes all inputs of a block at once; `true_sequential=True` takes those of its
    later layers with the earlier ones quantized.
"""
import warnings
from dataclasses import dataclass, replace

import numpy as np

from ..decoder import Decoder
from ..hints import Array
from ..hyper import flag, one_of, real, whole
from ..nn import Linear, replace_modules
from .calibration import CalibratedWeights, below, block_by_block, recording_inputs
from .linear import QuantizedLinear
from .packing import pack
from .qtensor import QTensor
from .readers import readers
from .scheme import checked
from .uniform import Uniform


@dataclass(frozen=True)
class GPTQ(CalibratedWeights):
    """group_size: columns that share a scale, None for whole rows. damping: in units of
    mean(diag H). block_size: columns at a time. For the rest see "Where implementations differ"."""
    act_order: bool = flag(False, also=("desc_act",))
    static_groups: bool = flag(False)
    group_scales: str = one_of("lazy", "fresh")
    damping: float = real(0.01, least=0, also=("percdamp", "damp_percent"))
    block_size: int = whole(128, least=1, also=("blocksize",))
    clipping: str = one_of("minmax", "mse")
    scale_dtype: str = one_of("float32", "float16", default="float16")
    true_sequential: bool = flag(False)

    @property
    def nearest(self) -> Uniform:
        """The same grid without corrections: GPTQ is round to nearest if H is the identity."""
        return replace(super().nearest, clipping=self.clipping, convention="full", norm=2.4)

    def quantize(self, W: Array, H: Array | None = None) -> QTensor:
        """W (d_out, d_in); H (d_in, d_in), (2/n) Σ x xᵀ over the inputs, up to any factor.
        ValueError when H is missing, zero, or no such sum, or if groups do not divide d_in."""
        W, d = checked(W), W.shape[1]
        H, g, B = self.hessian(H, d), self.width(d), self.block_size
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

        if self.static_groups: q[order] = q.copy()                        # back in their order
        scale, zero = np.hstack([grid.scale for grid in grids]), grids[0].zero     # (d_out, d_in/g)
        if not self.symmetric:
            zero = pack(np.hstack([grid.zero for grid in grids]).astype(np.uint8), self.bits)
        scale = scale.reshape(-1).astype(self.scale_dtype)
        order = order.astype(np.int32) if self.act_order and not self.static_groups else None
        return QTensor(pack(q.T, self.bits), self.bits, q.T.shape, g, scale, zero, order=order)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        """Block by block, each calibrated on the outputs of the quantized blocks before it."""
        for layer in layers.values(): self.width(layer.d_in)              # fail before any work
        n, d = sum(tokens.size for tokens in batches), max(layer.d_in for layer in layers.values())
        if n < d:
            warnings.warn(f"GPTQ: {n} calibration tokens, but layers with up to {d} inputs: H has "
                          f"rank ≤ {n}, damping decides the rest; give more tokens", stacklevel=3)
        for path, block, inputs in block_by_block(model, batches):
            inside, stages = below(path, layers), [*readers(block).values()]
            for stage in stages if self.true_sequential else [sum(stages, ())]:
                linears = {name: inside[name] for name in stage if name in inside}
                if not linears: continue
                with recording_inputs(block, linears, hessian=True) as seen:
                    for h in inputs: block(h)
                new = {name: QuantizedLinear(self.quantize(m.weight.data, seen[name].H), m.bias)
                       for name, m in linears.items()}
                replace_modules(block, new)


def factor(H: Array, damping: float) -> Array:
    """U, upper, with UᵀU = (H + λI)⁻¹, λ = damping · mean(diag H); float64 (d, d). While H + λI is
    not positive definite up to rounding, λ is raised tenfold, and a warning says so."""
    from scipy.linalg.lapack import dpotrf, dtrtri
    while damping < 1e3:
        A = H[::-1, ::-1].copy()                # A = C Cᵀ, C lower; backwards, H + λI = R Rᵀ with
        A.flat[::len(A) + 1] += damping * H.diagonal().mean()      # R upper: (H + λI)⁻¹ = R⁻ᵀ R⁻¹
        C, failed = dpotrf(A.T, lower=1)
        if not failed and C.diagonal().min()**2 > len(A) * np.finfo(float).eps * A.diagonal().max():
            return dtrtri(C, lower=1, overwrite_c=1)[0][::-1, ::-1]                       # U = R⁻¹
        more = max(10 * damping, 1e-3)
        warnings.warn(f"GPTQ: H is not positive definite with damping {damping:g} (fewer tokens "
                      f"than inputs?); taking {more:g}", stacklevel=3)
        damping = more
    raise ValueError("GPTQ: H is not positive definite whatever the damping; it is no sum of x xᵀ")
