"""Uniform quantization: the grid of equally spaced numbers s·(q − z), and how to choose s and z.

    q = clip(round(x/s) + z, q_low, 2ᵇ − 1)     x̂ = s·(q − z)     |x − x̂| ≤ s/2 inside the range

    asymmetric   range [l, h], made to contain 0 so that 0 stays exact:
                 s = (h − l)/(2ᵇ − 1),  z = round(−l/s)
    symmetric    range [−m, m], z = 2ᵇ⁻¹, and either of two steps:
      "absmax"   s = m/(2ᵇ⁻¹ − 1), without code −2ᵇ⁻¹ (survey §5.4, LLM.int8(), SmoothQuant, AWQ)
      "full"     s = 2m/(2ᵇ − 1), with code −2ᵇ⁻¹ (GPTQ's and torchao's "symmetric"; 4 bits: m/7.5).
                 Only a number at −m takes that code, so rows without one do not use it.

Signed codes are stored with 2ᵇ⁻¹ added, so that one formula serves both (`QTensor.integers()` gives
them signed). The survey (Zhao et al. 2023) writes −z as Z (`qtensor.py`).

Where libraries differ. PyTorch multiplies by 1/s, so a tie, here rounded half to even, may fall on
the other side. A float16 scale is rounded *up* here, then divides x, so |x − x̂| ≤ s/2 holds for
the stored s. ("full" rounds it down where the bound allows that: −m keeps its code.) Libraries
round it to nearest, which can leave the end of the range more than half a step outside the grid. On
an asymmetric grid of a range [−l, l], both ends lie half a step beyond the outermost levels, so a
step that is a little too large leaves one level unused. `awq.py` cuts ranges, not numbers: those
beyond a range take its outermost levels.

Edges. A block of zeros or of subnormal s takes s = 1 and decodes to zeros. A block of one number c
decodes to c within rounding; under "full", without a point at m, at 4 bits to c·14/15 or c·16/15.
Where a level would exceed float32's largest number, s is the largest that avoids it. One end of
such a range then errs by up to s.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..common.hints import Array
from ..common.hyper import flag, one_of, real, whole
from .packing import pack
from .qtensor import QTensor
from .scheme import Scheme, checked, code_bits, weights_per_scale

TINY = np.finfo(np.float32).tiny                         # float32's smallest normal number
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, eq=False)
class Grid:
    """For every row of x (n, B) the numbers s·(q − z), q = low … 2**bits − 1. It stores nothing:
    GPTQ, AWQ and quantization-aware training round on a grid without making a QTensor."""
    scale: Array                    # float32 (n, 1): s, a value that the storage dtype represents
    zero: int | Array               # or float32 (n, 1): z, an integer
    bits: int
    low: int = 0                    # the smallest code in use

    def __getitem__(self, rows: slice) -> Grid:
        """Return the grid of some of the rows of x."""
        zero = self.zero if isinstance(self.zero, int) else self.zero[rows]
        return replace(self, scale=self.scale[rows], zero=zero)

    def _codes(self, x):
        """Return q = clip(round(x/s) + z, low, 2**bits − 1), in floating point."""
        q = x / self.scale
        np.rint(q, out=q)
        q += self.zero
        np.maximum(q, self.low, out=q)
        return np.minimum(q, 2**self.bits - 1, out=q)

    def encode(self, x: Array) -> Array:
        """Return the codes q of the grid points nearest to x float32 (n, B), uint8 (n, B)."""
        return self._codes(x).astype(np.uint8)

    def decode(self, q: Array) -> Array:
        """Return s·(q − z), float32 (n, B)."""
        return self.scale * (q - np.float32(self.zero))

    def round(self, x: Array) -> Array:
        """Return the grid points nearest to x, float32 (n, B): decode(encode(x)), without uint8 in
        between."""
        return self.decode(self._codes(x))


def make_grid(low: Array, high: Array, bits: int, symmetric: bool = True,
              convention: str = "absmax", dtype: str | type = np.float32) -> Grid:
    """Make the grid of range [low, high], or if symmetric [−m, m] with m = max(|low|, |high|), per
    row (n,). dtype: scales will be stored in it; ValueError if one overflows."""
    low = np.minimum(low, np.float32(0))
    high = np.maximum(high, np.float32(0))
    if not symmetric:
        n = 2**bits - 1
        with np.errstate(over="ignore"):
            width = high / np.float32(n) - low / np.float32(n)            # high − low may overflow
        s = stored(width, dtype)
        z = np.clip(np.rint(-low / s), 0, n)
        s = bounded(s, np.maximum(z, n - z))
        return Grid(s[:, None], z[:, None], bits)
    m = np.maximum(-low, high)
    middle = 2**(bits - 1)
    if convention == "full":
        s = bounded(full_step(m, high, bits, dtype), middle)
        return Grid(s[:, None], middle, bits)
    s = bounded(stored(m / np.float32(middle - 1), dtype), middle - 1)
    return Grid(s[:, None], middle, bits, low=1)


def full_step(m: Array, high: Array, bits: int, dtype: str | type) -> Array:
    """Return 2m/(2ᵇ − 1) as `stored`, or the number below where rounding up made it too large for
    −m to reach its code, and where the smaller step still keeps m and `high` within s/2 of the
    grid."""
    half = np.float32((2**bits - 1) / 2)
    dtype = np.dtype(dtype)
    exact = m / half
    s = stored(exact, dtype)
    below = np.nextafter(s.astype(dtype), dtype.type(0)).astype(np.float32)
    end = half * below                                   # of the grid with the smaller step
    reached = (high <= end) & (end < m) & (m - end <= below)
    return np.where((s > exact) & reached, below, s)


def stored(scale: Array, dtype: str | type) -> Array:
    """Return the scales as `dtype` will hold them, never rounded down, back in float32; 1 in place
    of a scale below float32's smallest normal number. ValueError if float16 overflows."""
    dtype = np.dtype(dtype)
    scale = np.minimum(scale, LARGEST)
    with np.errstate(over="ignore"):
        nearest = scale.astype(dtype)
        above = np.nextafter(nearest, dtype.type(np.inf))
    s = np.where(nearest < scale, above, nearest)
    if not np.isfinite(s).all():
        raise ValueError(f"a scale of {scale.max():g} overflows {dtype}: use scale_dtype='float32'")
    return np.where(scale < TINY, np.float32(1), s.astype(np.float32))


def bounded(s: Array, steps: float | Array) -> Array:
    """Return the scales s, float32; where steps·s is infinite, the largest for which it is not."""
    steps = np.float32(steps)
    with np.errstate(over="ignore"):
        finite = np.isfinite(steps * s)
    return np.where(finite, s, np.nextafter(LARGEST / steps, np.float32(0)))


@dataclass(frozen=True)
class Uniform(Scheme):
    """Round to nearest on a uniform grid per tensor, channel or group.

    bits            1 … 8 (symmetric: 2 … 8)
    symmetric       z fixed at the middle, or one stored z per block
    granularity     what shares a scale: "tensor", all; "channel", a row, which is an output channel
                    (d_in,) or a token (d,); "group", `group_size` elements of a row, by default 128
    clipping        the range of a block. "minmax": all of it. "percentile": without the outermost
                    100 − `percentile` percent (of |x| if symmetric, else half at either end).
                    "mse": p times all of it, p of 1, 1 − 1/`grid_steps`, … ≥ 1 − `shrink`, for the
                    least Σ|x − x̂|^`norm` (GPTQ's `mse`: norm 2.4)
    convention      the symmetric step, "absmax" or "full"
    scale_dtype     how scales are stored, "float32" or "float16"
    storage         bits + (bits of s + bits of z)/block per weight"""
    bits: int = code_bits(8)
    symmetric: bool = flag(True, also=("sym",))
    granularity: str = one_of("tensor", "channel", "group", default="channel")
    group_size: int | None = weights_per_scale()
    clipping: str = one_of("minmax", "percentile", "mse")
    convention: str = one_of("absmax", "full")
    scale_dtype: str = one_of("float32", "float16")
    percentile: float = real(99.9, above=50, most=100)
    grid_steps: int = whole(100, least=1)
    shrink: float = real(0.8, least=0, below=1)
    norm: float = real(2.0, above=0)

    def check(self) -> None:
        if self.symmetric and self.bits == 1:
            raise ValueError("Uniform: bits must be 2 … 8 if symmetric, got 1")
        if self.group_size is not None and self.granularity != "group":
            raise ValueError(f"Uniform: group_size={self.group_size} needs granularity='group', "
                             f"got granularity={self.granularity!r}")

    def quantize(self, W: Array, grid: Grid | None = None) -> QTensor:
        """Round W, any floating-point array of ≥ 1 axes. grid: made from other data, if ranges are
        static; of one row if all blocks share it."""
        W = checked(W)
        x = self.blocks(W)
        if grid is None:
            grid = self.fit(x)
        n_blocks, block_size = x.shape
        scale = np.broadcast_to(grid.scale[:, 0], n_blocks).astype(self.scale_dtype)
        zero = grid.zero
        if not isinstance(zero, int):
            zero = np.broadcast_to(zero[:, 0], n_blocks).astype(np.uint8)
            zero = pack(zero, self.bits)
        codes = pack(grid.encode(x), self.bits)
        return QTensor(codes, self.bits, W.shape, block_size, scale, zero)

    def blocks(self, W: Array) -> Array:
        """Cut W into (n_blocks, block_size), one scale per row. ValueError if groups do not divide
        W."""
        block_size = W.shape[-1]
        if self.granularity == "tensor":
            block_size = W.size
        elif self.granularity == "group":
            block_size = group_width(block_size, self.group_size)
        return W.reshape(-1, block_size)

    def fit(self, x: Array) -> Grid:
        """Make the grid for the rows of x, float32 (n_blocks, block_size)."""
        low = x.min(1)
        high = x.max(1)
        if self.clipping == "percentile":
            low, high = self.inner_range(x, low, high)
        if self.clipping == "mse":
            p = self.best_share(x, low, high)
            low = p * low
            high = p * high
        return self.grid(low, high)

    def inner_range(self, x: Array, low: Array, high: Array) -> Array:
        """Return the range without its outermost percents, (2, n_blocks); all of it, low … high,
        where the rest is zeros, which give no step."""
        if self.symmetric:
            m = np.percentile(np.abs(x), self.percentile, axis=1)
            inner = np.stack([-m, m])
        else:
            outside = (100 - self.percentile) / 2
            inner = np.percentile(x, [outside, 100 - outside], axis=1)
        return np.where(inner.any(0), inner, [low, high])

    def best_share(self, x: Array, low: Array, high: Array) -> Array:
        """Return the p (n_blocks,) whose range p·low … p·high has the least error. Errors are
        measured in units of 2³²ᵏ, of the order of the row, so that their powers are float32 numbers
        too."""
        exponent = np.frexp(np.maximum(-low, high))[1]
        k = np.rint(exponent / 32).clip(-3, 3).astype(int)
        unit = np.ldexp(np.float32(1), 32 * k)[:, None]
        best = np.ones(len(x), np.float32)
        least = np.full(len(x), np.inf, np.float32)
        for i in range(int(self.grid_steps * self.shrink) + 1):
            p = np.float32(1 - i / self.grid_steps)
            error = np.abs(self.grid(p * low, p * high).round(x) - x)
            if k.any():
                error /= unit
            error = error * error if self.norm == 2 else error**self.norm
            error = error.sum(1)
            best = np.where(error < least, p, best)
            least = np.minimum(error, least)
        return best

    def grid(self, low: Array, high: Array) -> Grid:
        """Make the grid for given ranges (n_blocks,), such as ranges that were calibrated
        beforehand."""
        low = np.float32(low).reshape(-1)
        high = np.float32(high).reshape(-1)
        return make_grid(low, high, self.bits, self.symmetric, self.convention, self.scale_dtype)


def group_width(d: int, group_size: int | None) -> int:
    """Return the group size (default 128) if it divides rows of length d, else ValueError."""
    g = 128 if group_size is None else group_size
    if d % g == 0:
        return g
    largest = max(k for k in range(1, min(d, g) + 1) if d % k == 0)
    raise ValueError(f"group_size={g} does not divide the last axis, {d}; {largest} does")
