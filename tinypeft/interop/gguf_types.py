"""The types of tensors in GGUF files: how a block of bytes decodes to weights, x̂ = s (q − z) + m.

    type         weights  bytes of a block             sub-blocks  q − z        s        m
    F32 F16 BF16       1  the number itself
    Q4_0              32  d, qs[16]                     1 × 32     0…15 − 8     d
    Q4_1              32  d, m, qs[16]                  1 × 32     0…15         d        m
    Q5_0              32  d, qh[4], qs[16]              1 × 32     0…31 − 16    d
    Q5_1              32  d, m, qh[4], qs[16]           1 × 32     0…31         d        m
    Q8_0              32  d, qs[32]                     1 × 32     −128…127     d
    IQ4_NL            32  d, qs[16]                     1 × 32     c[q]         d
    MXFP4             32  E, qs[16]                     1 × 32     E2M1[q]      2^(E − 127)
    Q2_K             256  sm[16], qs[64], d, e         16 × 16     0…3          d sc_j   −e mn_j
    Q3_K             256  qh[32], qs[64], sc[12], d    16 × 16     0…7 − 4      d sc_j
    Q4_K             256  d, e, sm[12], qs[128]         8 × 32     0…15         d sc_j   −e mn_j
    Q5_K             256  d, e, sm[12], qh[32], qs[128] 8 × 32     0…31         d sc_j   −e mn_j
    Q6_K             256  qs[128], qh[64], sc[16], d    16 × 16    0…63 − 32    d sc_j

d, e and m are float16, E is an exponent of 8 bits. qs holds the low bits of a code (four; two in
Q2_K and Q3_K; all eight in Q8_0), qh the rest. c is a table of 16 levels, "IQ4_NL". The K types
quantize the scales themselves: each sub-block has an integer scale sc_j and an integer minimum
mn_j, of 4 bits in Q2_K, of 6 bits in Q3_K, Q4_K and Q5_K, and of 8 bits in Q6_K; those of Q3_K and
Q6_K have a sign. There is no paper on them; llama.cpp's ggml-quants.c defines them, and pull
request 1684 of llama.cpp describes them. `quant/k_quants.py` says how they are chosen.

A `QTensor` holds the same codes and scales in its own order (`as_qtensor`). The K types are double
quantization there: the scale, and the offset m, are QTensors with a scale d or −e per 256 weights.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..common.hints import Array
from ..quant.codebooks import codebook
from ..quant.packing import pack
from ..quant.qtensor import QTensor

__all__ = ["TYPES", "BlockType", "as_qtensor", "decode"]

CHUNK = 1 << 17                                        # weights at a time: they stay in cache


class Parts(NamedTuple):
    """What n blocks hold: x̂ = d sc (q − z) + m mn."""
    q: Array                                           # uint8 (n, weights), or numbers
    d: Array | None = None                             # (n,), float16, uint8 for E; None for 1
    sc: Array | None = None                            # uint8 (n, k), the scale's z not subtracted
    m: Array | None = None                             # float16 (n,); None for 0
    mn: Array | None = None                            # uint8 (n, k); None for 1


@dataclass(frozen=True)
class BlockType:
    """A type: a block of `octets` bytes holds `weights` numbers, as codes of `bits` bits, or as
    numbers (bits = 0). parts: octets (n, octets) uint8 → `Parts`; None if it cannot be read. zero:
    z. scale: bits and z of the integer scales. codebook: the table of c, None for q itself."""
    name: str
    weights: int
    octets: int
    parts: Callable | None
    bits: int = 0
    zero: int = 0
    scale: tuple[int, int] = (6, 0)
    codebook: str | None = None


def decode(kind: BlockType, octets: Array, shape: tuple[int, ...]) -> Array:
    """float32 array of `shape` from the bytes of its blocks, uint8 (n_blocks · kind.octets,)."""
    out = np.empty(shape, np.float32)
    blocks, flat = octets.reshape(-1, kind.octets), out.reshape(-1)
    for first in range(0, len(blocks), step := max(1, CHUNK // kind.weights)):
        q, d, sc, m, mn = kind.parts(blocks[first:first + step])
        x = flat[first * kind.weights:(first + len(q)) * kind.weights]
        if d is None:
            x[:] = q.reshape(-1)
            continue
        if kind.zero: q = (q - np.uint8(kind.zero)).view(np.int8)               # modulo 256
        if kind.codebook: q = codebook(kind.codebook)[q]
        with np.errstate(invalid="ignore", over="ignore"):                      # a scale of ∞
            s, o = _product(d, sc, kind.scale[1]), _product(m, mn)
            x = x.reshape(*s.shape, -1)                                         # (n, k, weights/k)
            np.multiply(q.reshape(x.shape), s[..., None], out=x, casting="same_kind")
            if o is not None: x += o[..., None]
    return out


def _product(d, sc, zero=0):
    """d (sc − zero), float32 (n, k)."""
    if d is None: return None
    d = codebook("E8M0")[d] if d.dtype == np.uint8 else d.astype(np.float32)
    return d[:, None] if sc is None else d[:, None] * (sc - np.float32(zero))


def as_qtensor(kind: BlockType, octets: Array, shape: tuple[int, ...]) -> QTensor:
    """Return the same codes and scales as a QTensor. It decodes to the numbers of `decode`, bit for
    bit.

    ValueError for the types without codes, and for scales that are not finite."""
    if not kind.bits:
        raise ValueError(f"{kind.name} holds numbers, not codes; a QTensor needs codes")
    q, d, sc, m, mn = kind.parts(octets.reshape(-1, kind.octets))
    if not all(np.isfinite(_product(a, None)).all() for a in (d, m) if a is not None):
        raise ValueError("a scale is not finite")
    width = kind.weights if sc is None else kind.weights // sc.shape[1]
    return QTensor(pack(q, kind.bits), kind.bits, shape, width, _factors(d, sc, *kind.scale),
                   kind.zero, kind.codebook, _factors(m, mn, kind.scale[0], 0))


def _factors(d, sc, bits, zero):
    """d (sc − zero) of every sub-block: the numbers d, or a QTensor."""
    if sc is not None: return QTensor(pack(sc, bits), bits, (sc.size,), sc.shape[1], d, zero)
    if d is None or d.dtype != np.uint8: return d
    return QTensor(d, 8, d.shape, d.size, None, codebook="E8M0")


def _half(octets):
    """Two bytes, little-endian float16: (n, 2) → (n,)."""
    return np.ascontiguousarray(octets).view("<f2").astype(np.float16, copy=False)[:, 0]


def _nibbles(qs, width):
    """(n, k) → (n, 2k): the low halves of `width` bytes, then their high halves, and so on."""
    n, q = len(qs), qs.reshape(len(qs), -1, 1, width)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(n, -1)


def _bits(qh):
    """(n, k) → (n, 8k): bit i of the little-endian number in qh."""
    return np.unpackbits(qh, axis=1, bitorder="little")


def _q4_0(b): return Parts(_nibbles(b[:, 2:], 16), _half(b[:, :2]))
def _q4_1(b): return Parts(_nibbles(b[:, 4:], 16), _half(b[:, :2]), m=_half(b[:, 2:4]))
def _q5_0(b): return Parts(_nibbles(b[:, 6:], 16) | _bits(b[:, 2:6]) << 4, _half(b[:, :2]))


def _q5_1(b):
    return Parts(_nibbles(b[:, 8:], 16) | _bits(b[:, 4:8]) << 4, _half(b[:, :2]),
                 m=_half(b[:, 2:4]))


def _q8_0(b): return Parts(b[:, 2:] ^ np.uint8(128), _half(b[:, :2]))          # int8 + 128


def _minima(b):
    """d, sc, m = −e and mn of Q4_K and Q5_K.

    sm[0:4] and sm[4:8] hold sc_j and mn_j, j < 4, in their low six bits. For j ≥ 4 the low four
    bits are the two halves of sm[8:12], and the high two bits those of sm[0:4] and sm[4:8]."""
    a, c, low = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    sc = np.concatenate([a & 63, low & 15 | a >> 6 << 4], axis=1)
    mn = np.concatenate([c & 63, low >> 4 | c >> 6 << 4], axis=1)
    return _half(b[:, :2]), sc, -_half(b[:, 2:4]), mn


def _q4_k(b): return Parts(_nibbles(b[:, 16:], 32), *_minima(b))


def _q5_k(b):
    high = _bits(b[:, 16:48]).reshape(-1, 32, 8).swapaxes(1, 2)          # bit j of byte i: 32 j + i
    return Parts(_nibbles(b[:, 48:], 32) | high.reshape(-1, 256) << 4, *_minima(b))


def _q6_k(b):
    q = _nibbles(b[:, :128], 64) | _pairs(b[:, 128:192]) << 4
    return Parts(q, _half(b[:, 208:]), b[:, 192:208] ^ np.uint8(128))         # int8 + 128


def _pairs(qs):
    """(n, k) → (n, 4k): bits 0 and 1 of 32 bytes, then their bits 2 and 3, and so on."""
    pairs = qs.reshape(len(qs), -1, 1, 32) >> np.uint8([0, 2, 4, 6])[:, None]
    return pairs.reshape(len(qs), -1) & 3


def _q2_k(b):
    return Parts(_pairs(b[:, 16:80]), _half(b[:, 80:82]), b[:, :16] & 15, -_half(b[:, 82:]),
                 b[:, :16] >> 4)


def _q3_k(b):
    """The low four bits of sc_j and sc_{j+8} are the halves of byte j; the high two bits of sc_j
    are bits 2 ⌊j/4⌋ of byte 8 + j mod 4."""
    high = _bits(b[:, :32]).reshape(-1, 32, 8).swapaxes(1, 2)            # bit j of byte i: 32 j + i
    low = np.concatenate([b[:, 96:104] & 15, b[:, 96:104] >> 4], axis=1)
    top = (b[:, None, 104:108] >> np.uint8([0, 2, 4, 6])[:, None] & 3).reshape(-1, 16)
    q = _pairs(b[:, 32:96]) | high.reshape(-1, 256) << 2
    return Parts(q, _half(b[:, 108:]), low | top << 4)


def _mxfp4(b): return Parts(_nibbles(b[:, 1:], 16), np.ascontiguousarray(b[:, 0]))


def _number(kind, widen=lambda a: a):
    """Parts of a type without codes."""
    return lambda b: Parts(widen(np.ascontiguousarray(b).view(kind)))


TYPES = {0: BlockType("F32", 1, 4, _number("<f4")), 1: BlockType("F16", 1, 2, _number("<f2")),
         2: BlockType("Q4_0", 32, 18, _q4_0, 4, 8), 3: BlockType("Q4_1", 32, 20, _q4_1, 4),
         6: BlockType("Q5_0", 32, 22, _q5_0, 5, 16), 7: BlockType("Q5_1", 32, 24, _q5_1, 5),
         8: BlockType("Q8_0", 32, 34, _q8_0, 8, 128),
         10: BlockType("Q2_K", 256, 84, _q2_k, 2, scale=(4, 0)),
         11: BlockType("Q3_K", 256, 110, _q3_k, 3, 4, scale=(6, 32)),
         12: BlockType("Q4_K", 256, 144, _q4_k, 4), 13: BlockType("Q5_K", 256, 176, _q5_k, 5),
         14: BlockType("Q6_K", 256, 210, _q6_k, 6, 32, scale=(8, 128)),
         20: BlockType("IQ4_NL", 32, 18, _q4_0, 4, codebook="IQ4_NL"),
         39: BlockType("MXFP4", 32, 17, _mxfp4, 4, codebook="E2M1"),
         30: BlockType("BF16", 1, 2, _number("<u2", lambda a: (a.astype("<u4") << 16).view("<f4")))}
