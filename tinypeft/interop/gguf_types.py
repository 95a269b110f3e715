"""The types of tensors in GGUF files: how a block of bytes decodes to weights, x̂ = s (q − z) + m.

    type         weights  bytes of a block             sub-blocks  q − z        s        m
    F32 F16 BF16       1  the number itself
    Q4_0              32  d, qs[16]                     1 × 32     0…15 − 8     d
    Q4_1              32  d, m, qs[16]                  1 × 32     0…15         d        m
    Q5_0              32  d, qh[4], qs[16]              1 × 32     0…31 − 16    d
    Q5_1              32  d, m, qh[4], qs[16]           1 × 32     0…31         d        m
    Q8_0              32  d, qs[32]                     1 × 32     −128…127     d
    Q4_K             256  d, e, sm[12], qs[128]         8 × 32     0…15         d sc_j   −e mn_j
    Q5_K             256  d, e, sm[12], qh[32], qs[128] 8 × 32     0…31         d sc_j   −e mn_j
    Q6_K             256  qs[128], qh[64], sc[16], d    16 × 16    0…63 − 32    d sc_j

d, e and m are float16. qs holds the low four bits of a code (all eight in Q8_0), qh the rest. The
K types quantize the scales themselves: each sub-block has an integer scale sc_j and an integer
minimum mn_j, of 6 bits in Q4_K and Q5_K (packed in sm) and of 8 bits in Q6_K. There is no paper on
them; llama.cpp's ggml-quants.c defines them, and pull request 1684 of llama.cpp describes them.

A `QTensor` holds the same codes and scales in its own order (`as_qtensor`). The K types are double
quantization there: the scale, and the offset m, are QTensors with a scale d or −e per 256 weights.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..common.hints import Array
from ..quant.packing import pack
from ..quant.qtensor import QTensor

__all__ = ["TYPES", "BlockType", "as_qtensor", "decode"]

CHUNK = 1 << 17                                        # weights at a time: they stay in cache


class Parts(NamedTuple):
    """What n blocks hold: x̂ = d sc (q − z) + m mn."""
    q: Array                                           # uint8 (n, weights), or numbers
    d: Array | None = None                             # float16 (n,); None for numbers
    sc: Array | None = None                            # (n, k), uint8 or int8; None for 1
    m: Array | None = None                             # float16 (n,); None for 0
    mn: Array | None = None                            # (n, k), uint8; None for 1


@dataclass(frozen=True)
class BlockType:
    """A type: a block of `octets` bytes holds `weights` numbers, as codes of `bits` bits, or as
    numbers (bits = 0). parts: octets (n, octets) uint8 → `Parts`. zero: z."""
    name: str
    weights: int
    octets: int
    parts: Callable
    bits: int = 0
    zero: int = 0


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
        with np.errstate(invalid="ignore"):                                     # a scale of ∞
            s, o = _product(d, sc), _product(m, mn)
            x = x.reshape(*s.shape, -1)                                         # (n, k, weights/k)
            np.multiply(q.reshape(x.shape), s[..., None], out=x, casting="same_kind")
            if o is not None: x += o[..., None]
    return out


def _product(d, sc):
    """d sc, float32 (n, k)."""
    if d is None: return None
    d = d.astype(np.float32)[:, None]
    return d if sc is None else d * sc


def as_qtensor(kind: BlockType, octets: Array, shape: tuple[int, ...]) -> QTensor:
    """Return the same codes and scales as a QTensor. It decodes to the numbers of `decode`, bit for
    bit.

    ValueError for the types without codes, and for scales that are not finite."""
    if not kind.bits:
        raise ValueError(f"{kind.name} holds numbers, not codes; a QTensor needs codes")
    q, d, sc, m, mn = kind.parts(octets.reshape(-1, kind.octets))
    if not all(np.isfinite(a).all() for a in (d, m) if a is not None):
        raise ValueError("a scale is not finite")
    width = kind.weights if sc is None else kind.weights // sc.shape[1]
    return QTensor(pack(q, kind.bits), kind.bits, shape, width, _factors(d, sc), kind.zero,
                   offset=_factors(m, mn))


def _factors(d, sc):
    """d sc of every sub-block: the numbers d, or a QTensor."""
    if sc is None: return d
    bits, zero = (8, 128) if sc.dtype == np.int8 else (6, 0)
    codes = sc.view(np.uint8) ^ np.uint8(zero)
    return QTensor(pack(codes, bits), bits, (sc.size,), sc.shape[1], d, zero)


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
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.uint8([0, 2, 4, 6])[:, None] & 3
    q = _nibbles(b[:, :128], 64) | high.reshape(-1, 256) << 4
    return Parts(q, _half(b[:, 208:]), np.ascontiguousarray(b[:, 192:208]).view(np.int8))


def _number(kind, widen=lambda a: a):
    """Parts of a type without codes."""
    return lambda b: Parts(widen(np.ascontiguousarray(b).view(kind)))


TYPES = {0: BlockType("F32", 1, 4, _number("<f4")), 1: BlockType("F16", 1, 2, _number("<f2")),
         2: BlockType("Q4_0", 32, 18, _q4_0, 4, 8), 3: BlockType("Q4_1", 32, 20, _q4_1, 4),
         6: BlockType("Q5_0", 32, 22, _q5_0, 5, 16), 7: BlockType("Q5_1", 32, 24, _q5_1, 5),
         8: BlockType("Q8_0", 32, 34, _q8_0, 8, 128), 12: BlockType("Q4_K", 256, 144, _q4_k, 4),
         13: BlockType("Q5_K", 256, 176, _q5_k, 5), 14: BlockType("Q6_K", 256, 210, _q6_k, 6, 32),
         30: BlockType("BF16", 1, 2, _number("<u2", lambda a: (a.astype("<u4") << 16).view("<f4")))}
