"""Uniform quantization: the grid of equally spaced numbers s·(q − z), and how to choose s and z.

    q = clip(round(x/s) + z, q_low, 2ᵇ − 1)          x̂ = s·(q − z)          |x − x̂| ≤ s/2 inside the range

    asymmetric   range [l, h], made to contain 0 so that 0 stays exact:   s = (h − l)/(2ᵇ − 1),  z = round(−l/s)
    symmetric    range [−m, m], z = 2ᵇ⁻¹, and either of two steps:
        "absmax"   s = m/(2ᵇ⁻¹ − 1), the code of −2ᵇ⁻¹ unused    Zhao et al. 2023 §5.4, LLM.int8(), SmoothQuant, AWQ
        "full"     s = 2m/(2ᵇ − 1), every code used              GPTQ's and torchao's "symmetric": for 4 bits, m/7.5

Signed codes are stored with 2ᵇ⁻¹ added, so that one formula serves both; `QTensor.integers()` gives them signed.
The sign of z is the libraries'; the survey's Z is its negative (`qtensor.py`).

Rounding is half to even, of the quotient x/s. PyTorch multiplies by 1/s instead: a tie may fall on the other side.
A scale stored as float16 is rounded *up*, and it is this scale that divides: rounded to nearest, it could leave the end
of the range outside the grid by more than half a step. Libraries differ here, and round it to nearest.

Exact behaviour at the edges: an all-zero block has s = 1 and decodes to zeros (so does one whose s would be subnormal).
A constant block c decodes to c within float rounding, except under "full", whose grid has no point at m: at 4 bits it
decodes to c·14/15 or c·16/15.
"""
from dataclasses import dataclass

import numpy as np

from .packing import pack
from .qtensor import QTensor
from .scheme import Scheme, check_choice, checked


@dataclass(frozen=True, eq=False)
class Grid:
    """For every row of x (n, B) the numbers s·(q − z), q = low … 2**bits − 1. A quantizer that is not yet storage:
    `round` alone is fake quantization, of which GPTQ and quantization-aware training are made."""
    scale: np.ndarray                    # float32 (n, 1): s, a value that the storage dtype represents
    zero: int | np.ndarray               # or float32 (n, 1): z, an integer
    bits: int
    low: int = 0                         # the smallest code in use

    def _codes(self, x):
        q = np.rint(x / self.scale)
        q += self.zero
        return np.clip(q, self.low, 2**self.bits - 1, out=q)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """x float32 (n, B) → the codes q of the nearest grid points, uint8 (n, B)."""
        return self._codes(x).astype(np.uint8)

    def decode(self, q: np.ndarray) -> np.ndarray:
        """q (n, B) → s·(q − z), float32 (n, B)."""
        return self.scale * (q - np.float32(self.zero))

    def round(self, x: np.ndarray) -> np.ndarray:
        """decode(encode(x)), without the detour through bytes: the nearest grid points, float32 (n, B)."""
        q = self._codes(x)
        q -= self.zero
        q *= self.scale
        return q


def make_grid(low, high, bits: int, symmetric: bool = True, convention: str = "absmax", dtype=np.float32) -> Grid:
    """The grid whose range is [low, high], per row (n,); low ≤ high. Symmetric: [−m, m], m = max(|low|, |high|).

    `dtype`: what the scales will be stored in. ValueError if a scale overflows it.
    """
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    if symmetric:
        m = np.maximum(-low, high)
        scale = m / np.float32(2**(bits - 1) - 1) if convention == "absmax" else m / np.float32((2**bits - 1) / 2)
    else:
        scale = high / np.float32(2**bits - 1) - low / np.float32(2**bits - 1)     # h − l itself may overflow
    scale = stored(scale, dtype)[:, None]
    if symmetric:
        return Grid(scale, 2**(bits - 1), bits, 1 if convention == "absmax" else 0)
    return Grid(scale, np.clip(np.rint(-low[:, None] / scale), 0, 2**bits - 1), bits)


def stored(scale: np.ndarray, dtype) -> np.ndarray:
    """The scales as `dtype` will hold them, back in float32: in float16 never rounded down, and 1 in place of a scale
    below float32's smallest normal number. ValueError on overflow."""
    dtype = np.dtype(dtype)
    with np.errstate(over="ignore"):
        kept = scale.astype(dtype)
    kept = np.where(kept < scale, np.nextafter(kept, dtype.type(np.inf)), kept)
    if not np.isfinite(kept).all():
        raise ValueError(f"a scale of {scale.max():g} overflows {dtype}: use scale_dtype='float32'")
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), kept.astype(np.float32))


@dataclass(frozen=True)
class Uniform(Scheme):
    """Round to nearest on a uniform grid per tensor, channel or group.

    bits            1 … 8 (symmetric: 2 … 8)
    symmetric       z fixed at the middle, or one stored z per block
    granularity     what shares a scale. "tensor": everything; "channel": a row, which is an output channel of weights
                    (d_out, d_in) or a token of activations (tokens, d); "group": `group_size` elements of a row, 128
                    when not given
    clipping        how a block's range is chosen. "minmax": all of it; "percentile": without the outermost
                    100 − `percentile` percent (of |x| when symmetric, else half of it at either end); "mse": the
                    min-max range times that p of 1, 1 − 1/n, … ≥ 1 − `shrink`, n = `grid_steps`, whose Σ|x − x̂|^`norm`
                    is least (GPTQ's `mse` option is this with norm 2.4)
    convention      the symmetric step, "absmax" or "full": see the top of the file
    scale_dtype     "float32" or "float16", in which scales are stored

    Storage: bits + (bits of s + bits of z)/block per weight. ValueError for a field or an array that does not fit.
    """
    bits: int = 8
    symmetric: bool = True
    granularity: str = "channel"
    group_size: int | None = None
    clipping: str = "minmax"
    convention: str = "absmax"
    scale_dtype: str = "float32"
    percentile: float = 99.9
    grid_steps: int = 100
    shrink: float = 0.8
    norm: float = 2.0

    def __post_init__(self):
        check_choice("bits", self.bits, tuple(range(2 if self.symmetric else 1, 9)))
        check_choice("granularity", self.granularity, ("tensor", "channel", "group"))
        check_choice("clipping", self.clipping, ("minmax", "percentile", "mse"))
        check_choice("convention", self.convention, ("absmax", "full"))
        check_choice("scale_dtype", self.scale_dtype, ("float32", "float16"))
        if self.group_size is not None and (self.granularity != "group" or self.group_size < 1):
            raise ValueError(f"group_size={self.group_size!r} needs granularity='group' and a positive size, "
                             f"got granularity={self.granularity!r}")
        if not (50 < self.percentile <= 100 and self.grid_steps >= 1 and 0 <= self.shrink < 1 and self.norm > 0):
            raise ValueError("need 50 < percentile ≤ 100, grid_steps ≥ 1, 0 ≤ shrink < 1 and norm > 0, got "
                             f"{self.percentile}, {self.grid_steps}, {self.shrink}, {self.norm}")

    def quantize(self, W: np.ndarray, grid: Grid | None = None) -> QTensor:
        """W: any floating-point array of ≥ 1 axes. `grid`: a grid made before, from other data (static quantization),
        instead of W's own."""
        W = checked(W)
        x = self.blocks(W)
        grid = self.fit(x) if grid is None else grid
        scale = np.broadcast_to(grid.scale[:, 0], len(x)).astype(self.scale_dtype)
        zero = grid.zero
        if not isinstance(zero, int):
            zero = pack(np.broadcast_to(zero[:, 0], len(x)).astype(np.uint8), self.bits)
        return QTensor(pack(grid.encode(x), self.bits), self.bits, W.shape, x.shape[1], scale, zero)

    def blocks(self, W: np.ndarray) -> np.ndarray:
        """W as rows that share a scale, (n_blocks, block_size). ValueError if groups do not divide W's last axis."""
        if self.granularity == "tensor":
            return W.reshape(1, -1)
        return W.reshape(-1, group_width(W.shape[-1], self.group_size) if self.granularity == "group" else W.shape[-1])

    def fit(self, x: np.ndarray) -> Grid:
        """The grid for the rows of x, float32 (n_blocks, block_size)."""
        low, high = x.min(1), x.max(1)
        if self.clipping == "minmax":
            return self.grid(low, high)
        if self.clipping == "percentile":
            if self.symmetric:
                high = np.percentile(np.abs(x), self.percentile, axis=1)
                return self.grid(-high, high)
            out = (100 - self.percentile) / 2
            return self.grid(*np.percentile(x, [out, 100 - out], axis=1))
        best, least = np.ones(len(x), np.float32), np.full(len(x), np.inf, np.float32)
        for i in range(int(self.grid_steps * self.shrink) + 1):
            p = np.float32(1 - i / self.grid_steps)
            error = np.abs(self.grid(p * low, p * high).round(x) - x)
            error = (error * error if self.norm == 2 else error**self.norm).sum(1)
            best, least = np.where(error < least, p, best), np.minimum(error, least)
        return self.grid(best * low, best * high)

    def grid(self, low, high) -> Grid:
        """The grid for given ranges (n_blocks,): what a static range, calibrated beforehand, becomes."""
        low, high = np.float32(low).reshape(-1), np.float32(high).reshape(-1)
        return make_grid(low, high, self.bits, self.symmetric, self.convention, self.scale_dtype)


def group_width(d: int, group_size: int | None) -> int:
    """The group size (default 128) if it divides rows of length d, else ValueError."""
    g = 128 if group_size is None else group_size
    if d % g:
        largest = max(k for k in range(1, min(d, g) + 1) if d % k == 0)
        raise ValueError(f"group_size={g} does not divide the last axis, {d}; {largest} does")
    return g
