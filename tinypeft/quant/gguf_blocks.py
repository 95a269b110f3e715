"""Q8_0 and Q4_0, the two plainest block formats of GGUF files, as llama.cpp writes them.

32 weights of a row share a float16 scale: x̂ = d·(q − z). Source: llama.cpp's ggml-quants.c.

    Q8_0   d = max|x|/127   q = 128 + round(x·(1/d)), half away from 0   z = 128   8.5 bits/weight
    Q4_0   d = −m/8         q = min(⌊x·(1/d) + 8.5⌋, 15)                 z = 8     4.5 bits/weight

    d: scale, float16    m: the element of largest magnitude, with its sign (the first of several)

How they differ from `uniform.py`. Q4_0 gives the extra negative code to the largest element,
whatever its sign, so d may be negative. Codes are rounded with the float32 d, but decoded with
float16(d), so |x − x̂| can exceed |d|/2 by the rounding of d, up to 127·2⁻¹¹ of a step. The bytes
are llama.cpp's, except in blocks with |d| < 1.2e-38, a subnormal float32, whose values are all 0.

`block_bytes` also writes Q4_1, Q5_0 and Q5_1, of weights that were read from a file. Q4_1 and Q5_1
store a float16 offset per block, x̂ = d q + m. A model whose file has such blocks, SmolLM2's for
one, is already rounded. What a 4-bit scheme loses on it says how well its grid fits d q + m (the
same grid loses nothing), and cannot rank schemes.
"""
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array
from ..common.hyper import one_of
from .packing import pack
from .qtensor import QTensor
from .scheme import Scheme, checked
from .uniform import TINY, group_width

BLOCK = 32
TYPES = {(4, 8, False): "Q4_0",                          # bits, z, has an offset per block
         (4, 0, True): "Q4_1",
         (5, 16, False): "Q5_0",
         (5, 0, True): "Q5_1",
         (8, 128, False): "Q8_0"}


@dataclass(frozen=True)
class GGUF(Scheme):
    """A block format of GGUF. name: "Q8_0" or "Q4_0". `quantize` raises ValueError if 32 does not
    divide the last axis or if a scale overflows float16."""
    name: str = one_of("Q4_0", "Q8_0", also=("qtype", "quant_type"))
    shown = ("name",)

    def quantize(self, W: Array) -> QTensor:
        W = checked(W)
        x = W.reshape(-1, group_width(W.shape[-1], BLOCK))
        if self.name == "Q8_0":
            bits = 8
            d = np.abs(x).max(axis=1) / np.float32(127)
        else:
            bits = 4
            m = x[np.arange(len(x)), np.abs(x).argmax(axis=1)]
            d = m / np.float32(-8)
        normal = np.abs(d) >= TINY
        inverse = np.divide(1, d, out=np.zeros_like(d), where=normal)
        v = x * inverse[:, None]
        if bits == 8:
            whole = np.trunc(v)
            away = np.abs(v - whole) >= 0.5
            codes = whole + np.where(away, np.sign(v), 0) + 128
        else:
            codes = np.minimum(np.trunc(v + np.float32(8.5)), 15)
        with np.errstate(over="ignore"):
            scale = d.astype(np.float16)
        if not np.isfinite(scale).all():
            raise ValueError(f"a scale of {np.abs(d).max():g} overflows GGUF's float16")
        codes = pack(codes.astype(np.uint8), bits)
        return QTensor(codes, bits, W.shape, BLOCK, scale, 2**(bits - 1))


def block_type(q: QTensor) -> str:
    """Return the GGUF type that holds q: blocks of 32 codes, each with float16 scales. ValueError
    if none of `TYPES` does."""
    numbers = [q.scale] if q.offset is None else [q.scale, q.offset]
    half = all(getattr(part, "dtype", None) == np.float16 for part in numbers)
    zero = q.zero if isinstance(q.zero, int) else None
    name = TYPES.get((q.bits, zero, q.offset is not None))
    plain = q.codebook is None and q.order is None and q.block_size == BLOCK
    if name is None or not plain or not half:
        raise ValueError("block_bytes needs blocks of 32 with float16 scales, as "
                         f"{', '.join(TYPES.values())} have them, got {q}")
    return name


def block_bytes(q: QTensor) -> Array:
    """Write q as the bytes of a GGUF file: uint8 (n_blocks, octets of a block).

    Every block is its scale, its offset, if any, and its codes: int8, or 16 bytes with the low four
    bits of element i of the block in the low half and those of element i + 16 in the high half. In
    types of 5 bits, the fifth bits of all elements stand before these bytes."""
    block_type(q)
    codes = q.unpack().reshape(-1, BLOCK)
    octets = [half_bytes(q.scale)]
    if q.offset is not None:
        octets.append(half_bytes(q.offset))
    if q.bits == 8:
        octets.append(codes ^ 128)
    else:
        if q.bits == 5:
            octets.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
        low = codes & 15
        octets.append(low[:, :16] | low[:, 16:] << 4)
    return np.concatenate(octets, axis=1)


def half_bytes(numbers: Array) -> Array:
    """Return the bytes of float16 numbers, uint8 (n, 2)."""
    return np.ascontiguousarray(numbers, "<f2").view(np.uint8).reshape(-1, 2)
