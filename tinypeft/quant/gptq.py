"""GPTQ: round column after column, and let the columns still to come make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
ICLR 2023 (arXiv 2210.17323). Like OBQ (`obq.py`), GPTQ minimises ‖WX − ŴX‖², whose Hessian is
H = 2XXᵀ for every row of W, but it rounds all rows in the same order. Then one Cholesky factor U
contains all the matrices H_F⁻¹ (step 3), and the corrections of a block of B columns can be
applied to later columns at once (step 2). Algorithm 1:

    for i = 0, B, 2B, …:   for j = i … i+B−1:
        Q_:j = quant(W_:j)     E_:j = (W_:j − Q_:j)/U_jj
        W_:k ← W_:k − E_:j U_jk         for all k > j in the block
    W_:k ← W_:k − Σ_j E_:j U_jk         for all k after the block

    paper              here         shape
    W_:j, E_:j         W[j], E[j]   (d_out,): transposed in this file; a column is contiguous
    Q                  q            (d_in, d_out), its codes
    H                  H            (d_in, d_in); λI is added, λ = damping · mean(diag H)
    Cholesky(H⁻¹)ᵀ     U            (d_in, d_in), upper: H⁻¹ = UᵀU
    B                  block_size   columns at a time

`plain.gptq` is this loop; read it first. Here a block is halved again and again: the first half is
rounded, then corrects the second at once, then the second is rounded. These are the same
corrections in matrix products, which take less time than one product of a vector and a matrix per
column. The work is float64, so that rounding does not make the codes depend on B. Layers that read
one input share H and U, so their rows are rounded in one go. Bits per weight: b + (16 + b)/g with
float16 scales and a b-bit zero point per group of g columns; b + 16/g if symmetric.

Where implementations differ:
 *  Scales of groups. `group_scales="lazy"`, the default, ignores corrections made inside the block,
    as the authors' code and GPTQModel do: unless every group begins a block, the result depends on
    B. "fresh" includes them: a block then also ends before every group.
 *  Order. The paper takes columns as they come. `act_order=True` (AutoGPTQ's `desc_act`) takes them
    by falling diagonal of H and must store the order, 32 bits per column. `static_groups=True`
    chooses all scales beforehand, from the original columns; then no order is stored.
 *  Grid. The default is asymmetric, as in the paper. `symmetric=True` has s = 2 max|w|/(2ᵇ−1), as
    in the authors' code, but in theirs a row without a negative weight gets half this step, so that
    half of its range is clipped. `clipping="mse"` is their search in steps of 1 % and the norm 2.4;
    it ends at 0.20 of the range, theirs at 0.21. GPTQModel's damping is 0.05.
 *  Dead inputs (H_jj = 0) first get weight 0. In the authors' code they can widen a row's range.
 *  Inputs. The paper takes the inputs of all layers of a block before it quantizes one;
    `true_sequential=True` takes those of its later layers with the earlier ones quantized.
"""
import contextlib
import itertools
import math
import warnings
from dataclasses import dataclass, replace

import numpy as np

from ..common.hints import Array
from ..common.hyper import flag, one_of, real, whole
from ..engine.nn import Linear, Module, replace_modules
from ..engine.tensor import Tensor
from ..files import naming
from ..models.decoder import Decoder
from .calibration import CalibratedWeights, below, block_by_block, recording_inputs
from .linear import QuantizedLinear
from .packing import pack
from .qtensor import QTensor
from .readers import readers
from .scheme import checked
from .uniform import Grid, Uniform


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
        """Round W (d_out, d_in). H (d_in, d_in): (2/n) Σ x xᵀ over the inputs. Another factor
        changes nothing unless an input is dead: H_jj = 0 becomes 1, as in the authors' code.
        ValueError when H is missing, zero, or no such sum, or if groups do not divide d_in."""
        return self.together([W], H)[0]

    def together(self, weights: list[Array], H: Array | None) -> list[QTensor]:
        """`quantize` several W that see the same inputs. No row depends on another."""
        W = np.concatenate([checked(W) for W in weights])
        d = W.shape[1]
        H = self.hessian(H, d)
        g = self.width(d)
        dead = H.diagonal() == 0
        H[dead, dead] = 1
        W = np.where(dead, np.float32(0), W)
        order = np.arange(d)
        if self.act_order:
            order = np.argsort(-H.diagonal(), kind="stable")
            H = H[order][:, order]
        U = factor(H, self.damping)
        with np.errstate(over="ignore"):                 # corrected weights may exceed float32
            q, grids = self.round_columns(W.T.astype(np.float64), U, g, order)

        if self.static_groups:
            q[order] = q.copy()                          # back in the order of W
        stored_order = None
        if self.act_order and not self.static_groups:
            stored_order = order.astype(np.int32)
        scale = np.hstack([grid.scale for grid in grids]).astype(self.scale_dtype)
        zero = np.hstack([grid.zero for grid in grids]).astype(np.uint8)         # (Σ d_out, d_in/g)
        tensors = []
        for i, end in itertools.pairwise(np.cumsum([0, *map(len, weights)])):
            codes = q.T[i:end]
            z = grids[0].zero if self.symmetric else pack(zero[i:end], self.bits)
            tensors.append(QTensor(pack(codes, self.bits), self.bits, codes.shape, g,
                                   scale[i:end].reshape(-1), z, order=stored_order))
        return tensors

    def round_columns(self, W: Array, U: Array, g: int, order: Array
                      ) -> tuple[Array, list[Grid]]:
        """Algorithm 1 on the columns of W, one per row (d_in, d_out), taken in `order`. U is in
        that order already, W is not. Return the codes in that order (d_in, d_out), and the grid of
        every group.

        Each pair j < k is corrected once: where a block is cut so that j is in its first half and k
        in its second, or where j is in a block and k behind it."""
        d = len(W)
        grids = []
        group = np.arange(d) // g                        # of the column that is rounded as the j-th
        if self.static_groups:
            grids = self.grids(W, g)
            group = order // g
        starts = set(range(0, d, self.block_size))
        if self.group_scales == "fresh":
            starts |= set(range(0, d, g))
        W = W[order]
        q = np.empty(W.shape, np.uint8)
        E = np.empty_like(W)

        def correct(done, rest):                         # slices: columns rounded, columns to come
            W[rest] -= U[done, rest].T @ E[done]

        def round_halves(i, end):                        # the columns i … end − 1
            if end - i == 1:
                grid = grids[group[i]]
                codes = grid.encode(W[i, :, None].astype(np.float32))     # (d_out, 1)
                q[i] = codes[:, 0]
                Q = grid.decode(codes)[:, 0]
                E[i] = (W[i] - Q) / U[i, i]
                return
            middle = (i + end) // 2
            round_halves(i, middle)
            correct(slice(i, middle), slice(middle, end))
            round_halves(middle, end)

        for i, end in itertools.pairwise([*sorted(starts), d]):
            if not self.static_groups:                   # the scales of groups that begin here
                first = math.ceil(i / g)                 # of g = 8, from column 12: group 2
                after = math.ceil(end / g)
                grids += self.grids(W[first * g:after * g], g)
            round_halves(i, end)
            correct(slice(i, end), slice(end, d))
        return q, grids

    def grids(self, W: Array, g: int) -> list[Grid]:
        """Fit a grid to every g rows of W (n g, d_out), with a scale for each of its columns."""
        n = len(W) // g
        d_out = W.shape[1]
        x = W.reshape(n, g, d_out).swapaxes(1, 2).astype(np.float32, "C")        # (n, d_out, g)
        grid = self.nearest.fit(x.reshape(-1, g))
        return [grid[i * d_out:(i + 1) * d_out] for i in range(n)]

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        """Go block by block, each calibrated on the outputs of the quantized blocks before it."""
        for layer in layers.values():
            self.width(layer.d_in)                       # fail before any work
        n = sum(tokens.size for tokens in batches)
        d = max(layer.d_in for layer in layers.values())
        if n < d:
            warnings.warn(f"GPTQ: {n} calibration tokens, but layers with up to {d} inputs: H has "
                          f"rank ≤ {n}, damping decides the rest; give more tokens", stacklevel=3)
        for path, block, inputs in block_by_block(model, batches):
            linears = below(path, layers)
            groups = [[name for name in names if name in linears]
                      for names in readers(block).values()]
            groups = [names for names in groups if names]
            stages = [[names] for names in groups] if self.true_sequential else [groups]
            for stage in stages:
                with naming(path):
                    self.replace_groups(block, stage, linears, inputs)

    def replace_groups(self, block: Module, groups: list[list[str]], linears: dict[str, Linear],
                       inputs: list[Tensor]) -> None:
        """Run `block` once on its inputs, then quantize the layers of all groups. The layers of a
        group read the same input."""
        with recording_inputs(block, [names[0] for names in groups], hessian=True) as statistics:
            for h in inputs:
                block(h)
        for names in groups:
            weights = [linears[name].weight.data for name in names]
            tensors = self.together(weights, statistics[names[0]].H)
            replace_modules(block, {name: QuantizedLinear(q, linears[name].bias)
                                    for name, q in zip(names, tensors, strict=True)})


def factor(H: Array, damping: float) -> Array:
    """Return U, upper, with UᵀU = (H + λI)⁻¹, λ = damping · mean(diag H); float64 (d, d). While H +
    λI is not positive definite up to rounding, raise the damping tenfold, and to 0.001 at least,
    with a warning.

    A is H + λI with rows and columns backwards, and A = C Cᵀ with C lower. Backwards again, C is
    an upper R with H + λI = R Rᵀ, so (H + λI)⁻¹ = R⁻ᵀ R⁻¹, and U = R⁻¹ is C⁻¹ backwards. This
    saves the inverse of H."""
    while damping < 1e3:
        A = H[::-1, ::-1].copy()
        A.flat[::len(A) + 1] += damping * H.diagonal().mean()
        with contextlib.suppress(np.linalg.LinAlgError):
            C_inverse = inverse_cholesky(A)
            smallest_pivot = C_inverse.diagonal().max()**-2              # of A: the least C_jj²
            if smallest_pivot > len(A) * np.finfo(float).eps * A.diagonal().max():
                return C_inverse[::-1, ::-1]
        larger = max(10 * damping, 1e-3)
        warnings.warn(f"GPTQ: H is not positive definite with damping {damping:g} (fewer tokens "
                      f"than inputs?); taking {larger:g}", stacklevel=4)
        damping = larger
    raise ValueError("GPTQ: H is not positive definite whatever the damping; it is no sum of x xᵀ")


def inverse_cholesky(A: Array) -> Array:
    """Return C⁻¹ (d, d), lower, with C Cᵀ = A. LinAlgError unless A is positive definite.

    By halves:  A = [P Bᵀ; B D],  C = [X 0; Y Z]:  X Xᵀ = P,  Y = B X⁻ᵀ,  Z Zᵀ = D − Y Yᵀ,  and C⁻¹
    = [X⁻¹ 0; −Z⁻¹ Y X⁻¹ Z⁻¹]. Nearly all of it is matrix products, in NumPy's own BLAS: SciPy's has
    threads of its own, and while either's wait for work they take the core from the other's."""
    h = len(A) // 2
    if h < 32:
        return np.tril(np.linalg.inv(np.linalg.cholesky(A)))
    X_inverse = inverse_cholesky(A[:h, :h])
    Y = lower_times(X_inverse, A[:h, h:]).T
    Z_inverse = inverse_cholesky(A[h:, h:] - Y @ Y.T)
    C_inverse = np.zeros(A.shape)
    C_inverse[:h, :h] = X_inverse
    C_inverse[h:, h:] = Z_inverse
    C_inverse[h:, :h] = -lower_times(Z_inverse, Y @ X_inverse)
    return C_inverse


def lower_times(L: Array, B: Array) -> Array:
    """Return L B for a lower triangular L, without the quarter of the products that is zero."""
    h = len(L) // 2
    product = np.empty(B.shape)
    np.matmul(L[:h, :h], B[:h], out=product[:h])
    np.matmul(L[h:], B, out=product[h:])
    return product
