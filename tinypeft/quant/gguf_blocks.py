"""Q8_0 and Q4_0, the two plain block formats of GGUF files (llama.cpp), bit for bit.

    x̂ = d·(q − z), per block of 32 elements of a row, d in float16

    Q8_0    d = max|x|/127    q − 128 = round(x·(1/d)), halves away from 0      z = 128     8 + 16/32 = 8.5 bits/weight
    Q4_0    d = −m/8          q = ⌊x·(1/d) + 8.5⌋, at most 15                   z = 8       4 + 16/32 = 4.5 bits/weight
            m: the element of largest magnitude, with its sign (the first of several)

How they differ from `uniform.py`: Q4_0 spends the extra negative code on the largest element, of whichever sign, so d
may be negative. And codes are rounded with the float32 d, while float16(d) is what is stored and multiplies them:
|x − x̂| can exceed |d|/2 by the rounding of d, up to 127·2⁻¹¹ of a step.
"""
from dataclasses import dataclass

import numpy as np

from .packing import pack
from .qtensor import QTensor
from .scheme import Scheme, check_choice, checked
from .uniform import group_width

BLOCK = 32


@dataclass(frozen=True)
class GGUF(Scheme):
    """name: "Q8_0" or "Q4_0". Raises ValueError for a last axis that 32 does not divide, or a scale beyond float16."""
    name: str = "Q4_0"

    shown = ("name",)

    def __post_init__(self):
        check_choice("name", self.name, ("Q8_0", "Q4_0"))

    def quantize(self, W: np.ndarray) -> QTensor:
        W = checked(W)
        x = W.reshape(-1, group_width(W.shape[-1], BLOCK))
        if self.name == "Q8_0":
            d, bits = np.abs(x).max(axis=1) / np.float32(127), 8
        else:
            d, bits = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0] / np.float32(-8), 4
        v = x * np.divide(1, d, out=np.zeros_like(d), where=np.abs(d) >= np.finfo(np.float32).tiny)[:, None]
        if self.name == "Q8_0":
            whole = np.trunc(v)
            codes = whole + np.where(np.abs(v - whole) >= 0.5, np.sign(v), 0) + 128
        else:
            codes = np.minimum(np.trunc(v + np.float32(8.5)), 15)
        with np.errstate(over="ignore"):
            scale = d.astype(np.float16)
        if not np.isfinite(scale).all():
            raise ValueError(f"a scale of {np.abs(d).max():g} overflows float16, in which GGUF stores it")
        return QTensor(pack(codes.astype(np.uint8), bits), bits, W.shape, BLOCK, scale, 2**(bits - 1))


def block_bytes(q: QTensor) -> np.ndarray:
    """The bytes of a GGUF file: per block the scale, then the codes: int8, or 16 bytes with element i of the block in
    the low half and i + 16 in the high half. q: what `GGUF` made → uint8 (n_blocks, 34 or 18)."""
    if q.block_size != BLOCK or q.bits not in (4, 8) or getattr(q.scale, "dtype", None) != np.float16:
        raise ValueError(f"block_bytes needs blocks of {BLOCK} with float16 scales and 4 or 8 bits, got {q}")
    codes = q.unpack().reshape(-1, BLOCK)
    octets = codes ^ 128 if q.bits == 8 else codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate([q.scale.astype("<f2").view(np.uint8).reshape(-1, 2), octets], axis=1)
