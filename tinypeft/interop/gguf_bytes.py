"""Write a QTensor as the bytes of a GGUF file; `gguf_types.py` reads them."""
import numpy as np

from ..common.hints import Array
from ..quant.qtensor import QTensor

__all__ = ["file_bytes", "known_type", "type_of"]

HALF = "float16"                                       # numbers, one a block
# bits, block size, zero, codebook, the scales and the offsets → type
TYPES = {(4, 32, 8, None, HALF, None): "Q4_0", (4, 32, 0, None, HALF, HALF): "Q4_1",
         (5, 32, 16, None, HALF, None): "Q5_0", (5, 32, 0, None, HALF, HALF): "Q5_1",
         (8, 32, 128, None, HALF, None): "Q8_0", (4, 32, 0, "IQ4_NL", HALF, None): "IQ4_NL",
         (4, 32, 0, "E2M1", "E8M0", None): "MXFP4",
         (2, 16, 0, None, (4, 16, 0), (4, 16, 0)): "Q2_K",
         (3, 16, 4, None, (6, 16, 32), None): "Q3_K",
         (4, 32, 0, None, (6, 8, 0), (6, 8, 0)): "Q4_K",
         (5, 32, 0, None, (6, 8, 0), (6, 8, 0)): "Q5_K",
         (6, 16, 32, None, (8, 16, 128), None): "Q6_K"}


def type_of(q: QTensor) -> str:
    """Return the GGUF type that holds q. ValueError if none does."""
    kind = known_type(q)
    if kind is None:
        raise ValueError(f"no type of GGUF holds {q}; tinypeft.GGUF quantizes to its types: blocks "
                         "of 32 weights with float16 scales, or superblocks of 256")
    return kind


def known_type(q: QTensor) -> str | None:
    """Return the GGUF type that holds q, or None."""
    zero = q.zero if isinstance(q.zero, int) else "one a block"
    layout = q.bits, q.block_size, zero, q.codebook, _layout(q.scale), _layout(q.offset)
    return None if q.order is not None else TYPES.get(layout)


def _layout(part):
    """Return how the scales or the offsets of a QTensor are stored."""
    if part is None: return None
    if not isinstance(part, QTensor): return str(part.dtype)
    if part.codebook: return part.codebook if part.scale is None else "scaled"
    halves = getattr(part.scale, "dtype", None) == np.float16 and part.offset is None
    return (part.bits, part.block_size, part.zero) if halves else "other"


def file_bytes(q: QTensor) -> Array:
    """Write q as the bytes of a GGUF file: uint8 (n_blocks, octets of a block). ValueError for a
    QTensor that no type holds."""
    writers = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q45_k, "Q5_K": _q45_k, "Q6_K": _q6_k,
               "MXFP4": _mxfp4}
    return writers.get(type_of(q), _plain)(q)


def _plain(q):
    """Scale, offset, if any, and codes: int8, or 16 bytes with the low four bits of element i of
    the block in the low half and those of element i + 16 in the high half. In types of 5 bits, the
    fifth bits of all elements stand before these bytes."""
    codes = q.unpack().reshape(-1, 32)
    octets = [_half(q.scale)]
    if q.offset is not None: octets.append(_half(q.offset))
    if q.bits == 8: return np.concatenate([*octets, codes ^ 128], axis=1)
    if q.bits == 5: octets.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
    return np.concatenate([*octets, _nibbles(codes)], axis=1)


def _nibbles(codes):
    """Put the low four bits of elements i and i + 16 of a block into byte i."""
    low = codes & 15
    return low[:, :16] | low[:, 16:] << 4


def _mxfp4(q):
    """The exponent, and 16 bytes of codes."""
    codes = q.unpack().reshape(-1, 32)
    return np.concatenate([q.scale.codes[:, None], _nibbles(codes)], axis=1)


def _pairs(codes):
    """Put the low two bits of elements i, i + 32, i + 64 and i + 96 of each half into byte i."""
    pairs = (codes.reshape(-1, 2, 4, 32) & 3) << np.uint8([0, 2, 4, 6])[:, None]
    return np.bitwise_or.reduce(pairs, axis=2).reshape(-1, 64)


def _high_bits(blocks):
    """Put the bits of eight parts of 32 elements, (n, 8, 32), into 32 bytes: part j in bit j."""
    bits = np.packbits(blocks.swapaxes(1, 2), axis=2, bitorder="little")
    return bits.reshape(-1, 32)


def _q2_k(q):
    """16 bytes with sc in the low and mn in the high half, 64 of codes, d, e."""
    sm = q.scale.unpack() | q.offset.unpack() << 4
    parts = sm.reshape(-1, 16), _pairs(q.unpack()), _half(q.scale.scale), _half(-q.offset.scale)
    return np.concatenate(parts, axis=1)


def _q3_k(q):
    """The third bits, 64 bytes of low bits, 12 of sc, d. Of sc_j and sc_{j+8}, the low four bits
    are the halves of byte j; the high two bits of sc_j are bits 2 ⌊j/4⌋ of byte 8 + j mod 4."""
    codes = q.unpack()
    sc = q.scale.unpack().reshape(-1, 16)
    low = sc[:, :8] & 15 | (sc[:, 8:] & 15) << 4
    top = (sc >> 4).reshape(-1, 4, 4) << np.uint8([0, 2, 4, 6])[:, None]
    third = _high_bits((codes >> 2).reshape(-1, 8, 32))
    parts = third, _pairs(codes), low, np.bitwise_or.reduce(top, axis=1), _half(q.scale.scale)
    return np.concatenate(parts, axis=1)


def _q45_k(q):
    """d, e, 12 bytes of sc and mn, the fifth bits (32 bytes, Q5_K only), and 128 bytes of low bits:
    sub-block 2j in the low halves, 2j + 1 in the high halves. sc and mn of the first four
    sub-blocks fill the low six bits of bytes 0–3 and 4–7. Those of the last four have their low
    four bits in bytes 8–11, and their high two bits on top of bytes 0–3 and 4–7."""
    blocks = q.unpack().reshape(-1, 8, 32)
    sc = q.scale.unpack().reshape(-1, 8)
    mn = q.offset.unpack().reshape(-1, 8)
    parts = [_half(q.scale.scale), _half(-q.offset.scale)]
    parts += [sc[:, :4] | sc[:, 4:] >> 4 << 6, mn[:, :4] | mn[:, 4:] >> 4 << 6]
    parts.append(sc[:, 4:] & 15 | (mn[:, 4:] & 15) << 4)
    if q.bits == 5: parts.append(_high_bits(blocks >> 4))
    low = blocks & 15
    parts.append((low[:, 0::2] | low[:, 1::2] << 4).reshape(-1, 128))
    return np.concatenate(parts, axis=1)


def _q6_k(q):
    """128 bytes of low four bits, 64 of the high two, the 16 sc, d. Of each half of 128 weights,
    32 bytes hold the weights i and i + 64, and 32 the weights i + 32 and i + 96."""
    halves = q.unpack().reshape(-1, 2, 4, 32)
    low, high = halves & 15, halves >> 4
    low = low[:, :, :2] | low[:, :, 2:] << 4
    sc = (q.scale.unpack() ^ 128).reshape(-1, 16)
    parts = low.reshape(-1, 128), _pairs(high), sc, _half(q.scale.scale)
    return np.concatenate(parts, axis=1)


def _half(numbers):
    """Return the bytes of float16 numbers, uint8 (n, 2)."""
    return np.ascontiguousarray(numbers, "<f2").view(np.uint8).reshape(-1, 2)
