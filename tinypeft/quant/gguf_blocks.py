"""The plain block formats of GGUF files, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1, as llama.cpp writes them.

32 weights of a row share a float16 scale, and an offset in Q4_1 and Q5_1: x̂ = d·(q − z) + m.

    Q8_0   d = max|x|/127          q = 128 + round(x·(1/d)), half away from 0   z = 128   8.5 bits
    Q4_0   d = −p/8                q = min(⌊x·(1/d) + 8.5⌋, 15)                 z = 8     4.5 bits
    Q5_0   d = −p/16               q = min(⌊x·(1/d) + 16.5⌋, 31)                z = 16    5.5 bits
    Q4_1   d = (max x − min x)/15  q = ⌊(x − m)·(1/d) + 0.5⌋      m = min x     z = 0     5 bits
    Q5_1   d = (max x − min x)/31  the same                                     z = 0     6 bits

    d, m: float16    p: the element of largest magnitude, with its sign (the first of several)
    bits: per weight, with the scales

How they differ from `uniform.py`. Q4_0 gives the extra negative code to the largest element,
whatever its sign, so d may be negative. Codes are rounded with the float32 d, but decoded with
float16(d), so |x − x̂| can exceed |d|/2 by the rounding of d, up to 127·2⁻¹¹ of a step. The bytes
are llama.cpp's, except in blocks with |d| < 1.2e-38, a subnormal float32, whose values are all 0,
and for the sign of d and m in a block of nothing but 0 and −0.

With an importance matrix, the scales are searched for as in `k_quants.py`, by the weights
h √(mean(x²) + x²), the mean being that of the row. Q8_0 takes no notice of it, as in llama.cpp.
Source: llama.cpp's ggml-quants.c.
"""
import numpy as np

from ..common.hints import Array
from ..common.threads import parallel_map
from .k_quants import WEIGHED_TRIALS, fit_line, fit_scale, largest, steps, sub_blocks, total
from .packing import pack
from .qtensor import QTensor
from .uniform import TINY, group_width

BLOCK = 32
AT_ONCE = 1 << 16                                         # weights: a float32 of each fits in cache
LAYOUTS = {"Q4_0": (4, 8, False),                         # bits, z, has an offset per block
           "Q4_1": (4, 0, True),
           "Q5_0": (5, 16, False),
           "Q5_1": (5, 0, True),
           "Q8_0": (8, 128, False)}


def quantize_blocks(W: Array, name: str, importance: Array | None = None) -> QTensor:
    """Round W, float32 (…, d_in), to the type `name` of `LAYOUTS`. importance: h (d_in,).
    ValueError if 32 does not divide d_in, or if a scale overflows float16."""
    group_width(W.shape[-1], BLOCK)
    rows = W.reshape(-1, W.shape[-1])
    at_once = max(1, AT_ONCE // W.shape[-1])

    def of_chunk(start):
        return encode(rows[start:start + at_once], name, importance)
    chunks = parallel_map(of_chunk, range(0, len(rows), at_once))
    d, m, codes = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    bits, zero, has_offset = LAYOUTS[name]
    offset = m if has_offset else None
    return QTensor(pack(codes, bits), bits, W.shape, BLOCK, d, zero, offset=offset)


def encode(rows: Array, name: str, importance: Array | None) -> tuple[Array, Array, Array]:
    """Return d and m, float16 (n,), and the codes, uint8 (n, 32), of the blocks of whole rows. m is
    empty in a type without offsets."""
    x = rows.reshape(-1, BLOCK)
    bits, zero, has_offset = LAYOUTS[name]
    m = np.zeros(0, np.float32)
    if name == "Q8_0":
        d, codes = eight_bits(x)
    elif importance is not None:
        d, m, codes = searched(rows, name, importance)
    elif has_offset:
        d, m, codes = between_ends(x, 2**bits - 1)
    else:
        d, codes = from_largest(x, zero)
    return halves(d), halves(m), codes.astype(np.uint8)


def halves(numbers: Array) -> Array:
    """Round to float16. ValueError if one overflows."""
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise ValueError(f"a scale of {np.abs(numbers).max():g} overflows GGUF's float16")
    return rounded


def eight_bits(x: Array) -> tuple[Array, Array]:
    """Return d and the codes of Q8_0 for blocks x (n, 32)."""
    d = np.abs(x).max(axis=1) / 127
    v = x * reciprocal(d)[:, None]
    whole = np.trunc(v)
    away = np.abs(v - whole) >= 0.5
    codes = whole + np.where(away, np.sign(v), 0)
    return d, codes + 128


def from_largest(x: Array, zero: int) -> tuple[Array, Array]:
    """Return d and the codes of Q4_0 and Q5_0 for blocks x (n, 32)."""
    p = largest(x.T)
    d = p / -zero
    v = x * reciprocal(d)[:, None]
    codes = np.trunc(v + (zero + 0.5))
    return d, np.minimum(codes, 2 * zero - 1)


def between_ends(x: Array, most: int) -> tuple[Array, Array, Array]:
    """Return d, m and the codes of Q4_1 and Q5_1 for blocks x (n, 32)."""
    m = x.min(axis=1)
    d = (x.max(axis=1) - m) / most
    v = (x - m[:, None]) * reciprocal(d)[:, None]
    codes = np.trunc(v + 0.5)
    return d, m, np.minimum(codes, most)


def searched(rows: Array, name: str, importance: Array) -> tuple[Array, Array, Array]:
    """Return d, m and the codes of blocks whose scales are searched for by importance."""
    bits, zero, has_offset = LAYOUTS[name]
    most = 2**bits - 1
    square = rows * rows
    mean = total(square.T) / rows.shape[1]
    w = importance * np.sqrt(mean[:, None] + square)
    w = sub_blocks(w, BLOCK)
    x = sub_blocks(rows, BLOCK)
    if not has_offset:
        d, codes = fit_scale(x, w, zero)
        return d, np.zeros(0, np.float32), codes.T
    d, m, codes = fit_line(x, w, most, steps(*WEIGHED_TRIALS, most))
    return d, 0 - m, codes.T


def reciprocal(d: Array) -> Array:
    """Return 1/d, and 0 for d = 0 and subnormal d."""
    return np.divide(1, d, out=np.zeros_like(d), where=np.abs(d) >= TINY)
