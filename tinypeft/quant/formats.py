"""Floating point of a few bits: FP16, BF16, FP8 (E4M3, E5M2), FP4 (E2M1, and bitsandbytes' own).

Micikevicius et al., "FP8 Formats for Deep Learning", 2022. Open Compute Project, "Microscaling Formats (MX)", 2023.

A float of e exponent and m mantissa bits is (−1)^sign · 2^(E−bias) · (1 + M/2^m), subnormal when E = 0; `codebooks.py`
lists the values. Encoding a number |x| with exponent E = max(⌊log₂|x|⌋, 1 − bias):

    n = round(|x| / 2^(E−m)), half to even           code = (E + bias − 1)·2^m + n

One formula serves all cases: a subnormal has E = 1 − bias and code n, and when n rounds up to 2^(m+1) the carry is the
next exponent.

Beyond the largest value V the formats, and libraries, differ. `saturate=True`: ±V, which is what PyTorch ≥ 2.12 does
for E4M3, even for ∞. `saturate=False`: ±∞ in FP16, BF16 and E5M2 (ml_dtypes, and PyTorch too); NaN in E4M3, which has
no ∞ (ml_dtypes; above 464, not 448, since 464 is midway to the next value there would have been, and 448 the even
one). E2M1 has neither, and always saturates.
"""
from dataclasses import dataclass

import numpy as np

from .codebooks import codebook, float_layout
from .nf4 import check_block_size, quantize_4bit
from .packing import pack
from .qtensor import QTensor, blocks_of
from .scheme import Scheme, check_choice, checked


@dataclass(frozen=True)
class FloatFormat(Scheme):
    """W rounded to the floats of `name`, after division by a scale.

    name          "E4M3", "E5M2", "E2M1", "FP16", "BF16", any "ExMy" of at most 8 bits; "FP4", which is bitsandbytes'
    scaling       what shares a scale, amax/V: "none", "tensor", "channel" (a row), "block" (`block_size` consecutive
                  elements; the last may be short). None: what is usual: none for 16 bits, tensor for 8, block below
    scale_format  "float32", or as scales of blocks "E8M0": 2^(⌊log₂ amax⌋ − ⌊log₂ V⌋) as in MX, where the largest
                  elements may saturate; "E4M3": as in NVFP4, with one float32 for the tensor, amax/(448·V)
    saturate      see the top of the file; without it, only "none" and "E8M0" can overflow

    MXFP4 is FloatFormat("E2M1", block_size=32, scale_format="E8M0"), 4.25 bits per weight; NVFP4 has blocks of 16 and
    "E4M3", 4.5 bits. ValueError for a field or an array that does not fit.
    """
    name: str = "E4M3"
    scaling: str | None = None
    block_size: int = 64
    scale_format: str = "float32"
    saturate: bool = True

    shown = ("name",)

    def __post_init__(self):
        if self.name != "FP4":
            float_layout(self.name)                                       # ValueError for an unknown name
        check_choice("scaling", self.shared, ("none", "tensor", "channel", "block"))
        check_choice("scale_format", self.scale_format, ("float32", "E8M0", "E4M3"))
        check_choice("saturate", self.saturate, (False, True))
        check_block_size(self.block_size)
        if self.shared != "block" and (self.scale_format != "float32" or self.name == "FP4"):
            raise ValueError(f"{self.name} with scale_format={self.scale_format!r} needs scaling='block', "
                             f"got {self.shared!r}")
        if self.name == "FP4" and self.scale_format != "float32":
            raise ValueError(f"bitsandbytes' FP4 has float32 scales, got scale_format={self.scale_format!r}")

    @property
    def bits(self) -> int:
        return int(codebook(self.name).size).bit_length() - 1

    @property
    def shared(self) -> str:
        """`scaling`, or what is usual for this many bits."""
        return self.scaling or {16: "none", 8: "tensor"}.get(self.bits, "block")

    def quantize(self, W: np.ndarray) -> QTensor:
        """W: any floating-point array of ≥ 1 axes."""
        W = checked(W)
        if self.name == "FP4":
            codes, scale = quantize_4bit(W, self.block_size, "FP4")
            return QTensor(codes, 4, W.shape, self.block_size, scale, codebook="FP4")
        B = {"channel": W.shape[-1], "block": self.block_size}.get(self.shared, W.size)
        x = blocks_of(W, B)
        scale = None if self.shared == "none" else self.scales(np.abs(x).max(axis=1))
        if scale is not None:
            x = x / (scale.dequantize() if isinstance(scale, QTensor) else scale)[:, None]
        codes = encode(x, self.name, self.saturate).reshape(-1)[:W.size]
        codes = codes if self.bits == 16 else pack(codes, self.bits)
        return QTensor(codes, self.bits, W.shape, B, scale, codebook=self.name)

    def scales(self, amax: np.ndarray) -> np.ndarray | QTensor:
        """The stored scale of every block, from the block's largest magnitude (n_blocks,). Zero blocks get a nonzero
        one: 1 (float32), 2⁻¹²⁷ (E8M0), 2⁻⁶ of the tensor's (E4M3)."""
        V, n = max_value(self.name), len(amax)
        if self.scale_format == "E8M0":
            exponent = np.frexp(amax)[1] - np.frexp(np.float32(V))[1]
            codes = np.where(amax > 0, np.clip(exponent + 127, 0, 254), 0).astype(np.uint8)
            return QTensor(codes, 8, (n,), n, None, codebook="E8M0")
        if self.scale_format == "E4M3":
            top = np.float32(amax.max() / (448 * V)) or np.float32(1)
            codes = encode(np.maximum(amax / np.float32(V) / top, np.float32(2**-6)), "E4M3")
            return QTensor(codes, 8, (n,), n, top.reshape(1), codebook="E4M3")
        scale = amax / np.float32(V)
        return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)


def max_value(name: str) -> float:
    """V, the largest finite value of the format: 448 for E4M3, 57344 for E5M2, 6 for E2M1."""
    values = codebook(name)
    return float(values[np.isfinite(values)].max())


def encode(x: np.ndarray, name: str, saturate: bool = True) -> np.ndarray:
    """The bit patterns of the floats `name` nearest to x (float32, any shape): uint8, or uint16 for FP16 and BF16.

    Ties go to the even code (with no mantissa bits, to the larger magnitude). −0 keeps its sign. NaN becomes a NaN;
    ValueError if the format has none.
    """
    e, m, special = float_layout(name)
    bias, top = 2**(e - 1) - 1, 2**(e + m) - 1                            # top: the code of all ones but the sign
    largest = top - {"inf": 2**m, "nan": 1, None: 0}[special]             # the code of V
    nan, a = np.isnan(x), np.abs(x)
    if special is None and nan.any():
        raise ValueError(f"{name} has no NaN, and x has {nan.sum()}")
    a = np.where(nan | np.isinf(a), np.float32(0), a)
    E = np.frexp(np.maximum(a, np.float32(2.0**(1 - bias))))[1] - 1
    code = (E + (bias - 1)) * 2**m + np.rint(np.ldexp(a, m - E)).astype(np.int32)
    over = (code > largest) | np.isinf(x)
    code = np.where(over, largest if saturate or special is None else largest + 1, code)
    code = np.where(nan, top, code) | np.signbit(x).astype(np.int32) << (e + m)
    return code.astype(np.uint8 if e + m < 8 else np.uint16)


def decode(codes: np.ndarray, name: str) -> np.ndarray:
    """The values that bit patterns stand for, float32: the inverse of `encode` on every value the format has."""
    return codebook(name)[codes]
