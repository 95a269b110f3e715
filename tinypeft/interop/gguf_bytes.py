"""Write a QTensor as the bytes of a GGUF file; `gguf_types.py` reads them."""
import numpy as np

from ..common.hints import Array
from ..quant.gguf_blocks import BLOCK, LAYOUTS
from ..quant.k_quants import BITS
from ..quant.qtensor import QTensor

__all__ = ["file_bytes", "type_of"]

PLAIN = {layout: name for name, layout in LAYOUTS.items()}
# bits, block size, zero → name; bits, block size, zero of the scales
K_TYPES = {(4, 32, 0): ("Q4_K", (6, 8, 0)), (5, 32, 0): ("Q5_K", (6, 8, 0)),
           (6, 16, 32): ("Q6_K", (8, 16, 128))}


def type_of(q: QTensor) -> str:
    """Return the GGUF type that holds q. ValueError if none does."""
    scales = [q.scale] if q.offset is None else [q.scale, q.offset]
    zero = q.zero if isinstance(q.zero, int) else None
    name = None
    if q.codebook is None and q.order is None:
        if all(isinstance(part, QTensor) for part in scales):
            name, kind = K_TYPES.get((q.bits, q.block_size, zero), (None, None))
            exact = name is not None and (len(scales) == 1) == (name == "Q6_K")
            if not exact or any((part.bits, part.block_size, part.zero) != kind for part in scales):
                name = None
            scales = [part.scale for part in scales]
        elif q.block_size == BLOCK:
            name = PLAIN.get((q.bits, zero, q.offset is not None))
    if name is None or any(getattr(part, "dtype", None) != np.float16 for part in scales):
        raise ValueError("expected blocks of 32 with float16 scales, as "
                         f"{', '.join(LAYOUTS)} have them, or superblocks of 256, as "
                         f"{', '.join(BITS)} have them, got {q}")
    return name


def file_bytes(q: QTensor) -> Array:
    """Write q as the bytes of a GGUF file: uint8 (n_blocks, octets of a block). ValueError for a
    QTensor that no type holds."""
    return {"Q4_K": _with_minima, "Q5_K": _with_minima, "Q6_K": _q6_k}.get(type_of(q), _plain)(q)


def _plain(q):
    """Scale, offset, if any, and codes: int8, or 16 bytes with the low four bits of element i of
    the block in the low half and those of element i + 16 in the high half. In types of 5 bits, the
    fifth bits of all elements stand before these bytes."""
    codes = q.unpack().reshape(-1, BLOCK)
    octets = [_half(q.scale)]
    if q.offset is not None: octets.append(_half(q.offset))
    if q.bits == 8: return np.concatenate([*octets, codes ^ 128], axis=1)
    if q.bits == 5: octets.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
    low = codes & 15
    return np.concatenate([*octets, low[:, :16] | low[:, 16:] << 4], axis=1)


def _with_minima(q):
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
    if q.bits == 5:                                      # bit j of byte i: sub-block j, element i
        fifth = np.packbits((blocks >> 4).swapaxes(1, 2), axis=2, bitorder="little")
        parts.append(fifth.reshape(-1, 32))
    low = blocks & 15
    parts.append((low[:, 0::2] | low[:, 1::2] << 4).reshape(-1, 128))
    return np.concatenate(parts, axis=1)


def _q6_k(q):
    """128 bytes of low four bits, 64 of the high two, the 16 sc, d. Of each half of 128 weights,
    32 bytes hold the weights i and i + 64, and 32 the weights i + 32 and i + 96."""
    halves = q.unpack().reshape(-1, 2, 4, 32)
    low, high = halves & 15, halves >> 4
    low = low[:, :, :2] | low[:, :, 2:] << 4
    high = np.bitwise_or.reduce(high << np.uint8([0, 2, 4, 6])[:, None], axis=2)
    sc = (q.scale.unpack() ^ 128).reshape(-1, 16)
    parts = low.reshape(-1, 128), high.reshape(-1, 64), sc, _half(q.scale.scale)
    return np.concatenate(parts, axis=1)


def _half(numbers):
    """Return the bytes of float16 numbers, uint8 (n, 2)."""
    return np.ascontiguousarray(numbers, "<f2").view(np.uint8).reshape(-1, 2)
