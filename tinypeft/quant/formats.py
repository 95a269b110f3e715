"""Floating point of a few bits: FP16, BF16, FP8 (E4M3, E5M2), FP4 (E2M1, and bitsandbytes' own).

Weights are divided by a scale and rounded to the nearest float of the format. Sources: "FP8 Formats
for Deep Learning" (Micikevicius et al., arXiv 2209.05433), "Microscaling Data Formats" (Rouhani et
al., MX, arXiv 2310.10537), and the specification of the Open Compute Project.

    E = max(⌊log₂|x|⌋, 1 − bias)      n = round(|x| / 2^(E−m)), half to even
    code = (E + bias − 1)·2^m + n     x̂ = ± n · 2^(E−m)

    symbol   here         what
    e, m     name         bits of the exponent and of the mantissa: "E4M3" has e = 4, m = 3
    bias     bias         2^(e−1) − 1
    V        max_value    the largest finite value; `codebooks.py` lists all values

A subnormal has E = 1 − bias and code n. If n rounds up to 2^(m+1), it carries into the exponent.

Where formats and libraries differ: beyond V. `saturate=True` gives ±V, as PyTorch ≥ 2.12 does for
E4M3, even for ∞. `saturate=False` gives ±∞ in FP16, BF16 and E5M2, as ml_dtypes and PyTorch do. In
E4M3, which has no ∞, it gives NaN above 464, as ml_dtypes does. (464 is midway between V = 448 and
the next value of the grid, and 448 is the even one.) E2M1 has neither, and always saturates.
"""
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array
from ..common.hyper import Limit, declared, flag, one_of
from .codebooks import codebook, float_layout
from .nf4 import even, quantize_4bit
from .packing import pack
from .qtensor import QTensor, blocks_of
from .scheme import Scheme, checked
from .uniform import LARGEST, TINY, bounded


def is_format(name: str) -> bool:
    """Tell whether `FloatFormat` knows the format."""
    try:
        return name == "FP4" or bool(float_layout(name))
    except (ValueError, TypeError):
        return False


FORMAT = Limit(is_format, "'FP4', 'FP16', 'BF16' or an 'ExMy' of at most 8 bits, such as 'E4M3'")


@dataclass(frozen=True)
class FloatFormat(Scheme):
    """Divide W by a scale and round it to the floats of a format.

    name: "E4M3", "E5M2", "E2M1", "FP16", "BF16", any "ExMy" of ≤ 8 bits, or bitsandbytes' "FP4".
    scaling: the weights that share a scale max|x|/V: "none", "tensor", "channel" (a row) or "block"
    (`block_size` consecutive weights). None: "none" for 16 bits, "tensor" for 8, "block" below.
    scale_format: "float32". Blocks may also have "E8M0", the 2^(⌊log₂ max|x|⌋ − ⌊log₂ V⌋) of MX,
    with which the largest weights may saturate, or "E4M3" and one float32, max|x|/(448·V) of W.
    saturate: what becomes of weights beyond V, which exist only with "none", "E8M0" and "E4M3"; the
    module's docstring says more.
    MXFP4 is FloatFormat("E2M1", block_size=32, scale_format="E8M0"), 4.25 bits per weight; NVFP4
    has blocks of 16 and "E4M3", 4.5 bits."""
    name: str = declared("E4M3", FORMAT, also=("dtype", "quant_type", "bnb_4bit_quant_type"))
    scaling: str | None = one_of("none", "tensor", "channel", "block", default=None, or_none=True,
                                 also=("granularity",))
    block_size: int = even(64, also=("blocksize", "group_size"))
    scale_format: str = one_of("float32", "E8M0", "E4M3", also=("scale_dtype",))
    saturate: bool = flag(True)
    shown = ("name",)

    def check(self) -> None:
        is_fp4 = self.name == "FP4"
        coded_scales = self.scale_format != "float32"
        option = f"scale_format={self.scale_format!r}"
        if self.shared != "block" and (coded_scales or is_fp4):
            raise ValueError(f"{self.name} with {option} needs scaling='block', "
                             f"got {self.shared!r}")
        if is_fp4 and coded_scales:
            raise ValueError(f"bitsandbytes' FP4 has float32 scales, got {option}")

    @property
    def bits(self) -> int:
        return len(codebook(self.name)).bit_length() - 1

    @property
    def shared(self) -> str:
        """`scaling`, or the usual choice for this many bits."""
        return self.scaling or {16: "none", 8: "tensor"}.get(self.bits, "block")

    def quantize(self, W: Array) -> QTensor:
        W = checked(W)
        if self.name == "FP4":
            codes, scale = quantize_4bit(W, self.block_size, "FP4")
            return QTensor(codes, 4, W.shape, self.block_size, scale, codebook="FP4")
        B = {"channel": W.shape[-1], "block": self.block_size}.get(self.shared, W.size)
        x = blocks_of(W, B)
        scale = None
        if self.shared != "none":
            scale = self.scales(np.abs(x).max(axis=1))
            s = scale.dequantize() if isinstance(scale, QTensor) else scale
            with np.errstate(over="ignore"):              # `encode` takes ∞, too
                x = x / s[:, None]
        codes = encode(x, self.name, self.saturate).reshape(-1)[:W.size]
        if self.bits != 16:
            codes = pack(codes, self.bits)
        return QTensor(codes, self.bits, W.shape, B, scale, codebook=self.name)

    def scales(self, amax: Array) -> Array | QTensor:
        """Return the stored scales, from the largest magnitude of every block, amax (n_blocks,).
        That of a block of zeros is 1 (float32), 2⁻¹²⁷ (E8M0) or 2⁻⁶ of the tensor's (E4M3)."""
        n = len(amax)
        V = max_value(self.name)
        if self.scale_format == "E8M0":
            exponent = np.frexp(amax)[1] - np.frexp(V)[1]
            codes = np.clip(exponent + 127, 0, 254)
            codes = np.where(amax > 0, codes, 0).astype(np.uint8)
            return QTensor(codes, 8, (n,), n, None, codebook="E8M0")
        if self.scale_format == "E4M3":
            of_tensor = amax.max() / min(448 * V, float(LARGEST)) or np.float32(1)
            s = np.maximum(amax / V / of_tensor, np.float32(2**-6))
            return QTensor(encode(s, "E4M3"), 8, (n,), n, of_tensor.reshape(1), codebook="E4M3")
        scale = bounded(amax / V, V)
        return np.where(scale < TINY, np.float32(1), scale)


def max_value(name: str) -> float:
    """V, the largest finite value of the format: 448 for E4M3, 57344 for E5M2, 6 for E2M1."""
    values = codebook(name)
    return float(values[np.isfinite(values)].max())


def encode(x: Array, name: str, saturate: bool = True) -> Array:
    """Return the bit patterns of the floats `name` nearest to x (float32): uint8, or uint16 for 16
    bits. Ties go to the even code (with no mantissa bits, to the larger magnitude; between 0 and
    the smallest number, to 0). −0 keeps its sign. NaN stays a NaN; ValueError if the format has
    none."""
    e, m, special = float_layout(name)
    bias = 2**(e - 1) - 1
    all_ones = 2**(e + m) - 1                                             # but the sign
    largest = all_ones - {"inf": 2**m, "nan": 1, None: 0}[special]        # the code of V
    nan = np.isnan(x)
    infinite = np.isinf(x)
    if special is None and nan.any():
        raise ValueError(f"{name} has no NaN, and x has {nan.sum()}")
    a = np.where(nan | infinite, np.float32(0), np.abs(x))
    smallest_normal = np.float32(2.0**(1 - bias))
    E = np.frexp(np.maximum(a, smallest_normal))[1] - 1
    n = np.rint(np.ldexp(a, m - E)).astype(np.int32)
    code = (E + (bias - 1)) * 2**m + n
    beyond = largest if saturate or special is None else largest + 1
    code = np.where((code > largest) | infinite, beyond, code)
    code = np.where(nan, all_ones, code)
    sign = np.signbit(x).astype(np.int32) << (e + m)
    return (code | sign).astype(np.uint8 if e + m < 8 else np.uint16)


def decode(codes: Array, name: str) -> Array:
    """Return the values of bit patterns, float32. Inverts `encode` on every value of the format."""
    return codebook(name)[codes]
