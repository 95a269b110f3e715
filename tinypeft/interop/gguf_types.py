"""The types of tensors in GGUF files: how a block of bytes decodes to weights, x̂ = s q + m.

    type         weights  bytes of a block             sub-blocks  q            s        m
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
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..hints import Array

__all__ = ["TYPES", "BlockType", "decode"]

CHUNK = 1 << 17                                        # weights at a time: they stay in cache


@dataclass(frozen=True)
class BlockType:
    """A type: a block of `octets` bytes holds `weights` numbers.

    parts: octets (n, octets) uint8 → q (n, k, weights / k), s (n, k), and m (n, k) or None."""
    name: str
    weights: int
    octets: int
    parts: Callable


def decode(kind: BlockType, octets: Array, shape: tuple[int, ...]) -> Array:
    """float32 array of `shape` from the bytes of its blocks, uint8 (n_blocks · kind.octets,)."""
    out = np.empty(shape, np.float32)
    blocks, flat = octets.reshape(-1, kind.octets), out.reshape(-1)
    for first in range(0, len(blocks), step := max(1, CHUNK // kind.weights)):
        q, s, m = kind.parts(blocks[first:first + step])
        x = flat[first * kind.weights:(first + len(q)) * kind.weights].reshape(q.shape)
        np.multiply(q, s[..., None], out=x, casting="same_kind")
        if m is not None: x += m[..., None]
    return out


def _half(octets):
    """Two bytes, little-endian float16, as float32: (n, 2) → (n, 1)."""
    return np.ascontiguousarray(octets).view("<f2").astype(np.float32)


def _nibbles(qs, width):
    """(n, k) → (n, 2k): the low halves of `width` bytes, then their high halves, and so on."""
    n, q = len(qs), qs.reshape(len(qs), -1, 1, width)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(n, -1)


def _bits(qh):
    """(n, k) → (n, 8k): bit i of the little-endian number in qh."""
    return np.unpackbits(qh, axis=1, bitorder="little")


def _one(q, s, m=None): return q[:, None], s, m


def _q4_0(b): return _one(_nibbles(b[:, 2:], 16).view(np.int8) - np.int8(8), _half(b[:, :2]))
def _q4_1(b): return _one(_nibbles(b[:, 4:], 16), _half(b[:, :2]), _half(b[:, 2:4]))


def _q5(qh, qs): return _nibbles(qs, 16) | _bits(qh) << 4
def _q5_0(b): return _one(_q5(b[:, 2:6], b[:, 6:]).view(np.int8) - np.int8(16), _half(b[:, :2]))
def _q5_1(b): return _one(_q5(b[:, 4:8], b[:, 8:]), _half(b[:, :2]), _half(b[:, 2:4]))


def _q8_0(b): return _one(b[:, 2:].view(np.int8), _half(b[:, :2]))


def _scales(b):
    """s and m (n, 8) of Q4_K and Q5_K.

    sm[0:4] and sm[4:8] hold sc_j and mn_j, j < 4, in their low six bits. For j ≥ 4 the low four
    bits are the two halves of sm[8:12], and the high two bits those of sm[0:4] and sm[4:8]."""
    a, c, low = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    sc = np.concatenate([a & 63, low & 15 | a >> 6 << 4], axis=1)
    mn = np.concatenate([c & 63, low >> 4 | c >> 6 << 4], axis=1)
    return _half(b[:, :2]) * sc, -(_half(b[:, 2:4]) * mn)


def _q4_k(b): return _nibbles(b[:, 16:], 32).reshape(-1, 8, 32), *_scales(b)


def _q5_k(b):
    high = _bits(b[:, 16:48]).reshape(-1, 32, 8).swapaxes(1, 2)          # bit j of byte i: 32 j + i
    return _nibbles(b[:, 48:], 32).reshape(-1, 8, 32) | high << 4, *_scales(b)


def _q6_k(b):
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.uint8([0, 2, 4, 6])[:, None] & 3
    q = _nibbles(b[:, :128], 64) | high.reshape(-1, 256) << 4
    sc = b[:, 192:208].view(np.int8)
    return (q.view(np.int8) - np.int8(32)).reshape(-1, 16, 16), _half(b[:, 208:]) * sc, None


def _number(kind, widen=lambda a: a):
    """Parts of a type without scales; s = 1."""
    def parts(b):
        x = widen(np.ascontiguousarray(b).view(kind))
        return x[:, None], np.ones((len(x), 1), np.float32), None
    return parts


TYPES = {0: BlockType("F32", 1, 4, _number("<f4")), 1: BlockType("F16", 1, 2, _number("<f2")),
         2: BlockType("Q4_0", 32, 18, _q4_0), 3: BlockType("Q4_1", 32, 20, _q4_1),
         6: BlockType("Q5_0", 32, 22, _q5_0), 7: BlockType("Q5_1", 32, 24, _q5_1),
         8: BlockType("Q8_0", 32, 34, _q8_0), 12: BlockType("Q4_K", 256, 144, _q4_k),
         13: BlockType("Q5_K", 256, 176, _q5_k), 14: BlockType("Q6_K", 256, 210, _q6_k),
         30: BlockType("BF16", 1, 2, _number("<u2", lambda a: (a.astype("<u4") << 16).view("<f4")))}
