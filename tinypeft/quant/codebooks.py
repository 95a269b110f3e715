"""Codebooks: the value that each code of a b-bit format stands for.

`codebook(name)` returns the 2ᵇ values of a format, in the order of its codes, as float32:

    "nf4"                      4-bit NormalFloat, ascending (QLoRA, arXiv 2305.14314, appendix E)
    "FP4"                      bitsandbytes' FP4, in the order of its table
    "dynamic"                  8-bit dynamic map, signed (arXiv 2110.02861, §2.2)
    "IQ4_NL"                   16 integers, denser around 0: GGUF's type IQ4_NL (ggml-common.h)
    "E4M3" "E5M2" "E2M1" …     floats with E exponent and M mantissa bits; also "FP16", "BF16"
    "E8M0"                     unsigned powers of two, 2^(code − 127), and NaN: scales of MX formats

Three formats are called "FP4". "E2M1" is OCP's: 0 .5 1 1.5 2 3 4 6. "FP4" is bitsandbytes', whose
magnitudes are 12 8 6 4 3 2 0.0625 and 0 twelfths; no 2-bit exponent and 1-bit mantissa give these
values, although its source says so. The third, E3M0, is in QLoRA's table 2 beside E2M1.
"""
import re
from functools import lru_cache

import numpy as np

from ..common.hints import Array
from ..engine.optim import dynamic_map

NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0)

FP4 = (0, 0.0625, 8, 12, 4, 6, 2, 3)                 # ÷ 12; codes 8 … 15 are the negatives

IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10,
          1, 13, 25, 38, 53, 69, 89, 113)

IEEE_NAMES = {"FP16": "E5M10", "BF16": "E8M7"}
HAS_INFINITY = {"E5M10", "E8M7", "E5M2"}             # IEEE 754: the top exponent is ±∞ and NaN
HAS_NAN = {"E4M3"}                                   # OCP: only the code of all ones is NaN


@lru_cache
def codebook(name: str) -> Array:
    """Return the values of a format, one per code: float32 (2**bits,), read-only. Raises
    ValueError."""
    if name == "nf4":
        values = np.array(NF4)
    elif name == "FP4":
        magnitudes = np.array(FP4) / 12
        values = np.concatenate([magnitudes, 0 - magnitudes])   # 0 − 0 = +0: bitsandbytes has no −0
    elif name == "IQ4_NL":
        values = np.array(IQ4_NL)
    elif name == "dynamic":
        values = dynamic_map()
    elif name == "E8M0":
        values = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan)
    else:
        values = float_values(*float_layout(name))
    values = values.astype(np.float32)
    values.flags.writeable = False
    return values


def float_layout(name: str) -> tuple[int, int, str | None]:
    """"E4M3" → exponent bits, mantissa bits, what the top codes are: "inf", "nan" or None."""
    name = IEEE_NAMES.get(name, name)
    e = m = 8                                            # too many bits
    if match := re.fullmatch(r"E([1-8])M(\d|10)", name):
        e, m = map(int, match.groups())
    if name in HAS_INFINITY:
        return e, m, "inf"
    if 1 + e + m > 8:
        raise ValueError(f"unknown format {name!r}: expected 'nf4', 'FP4', 'dynamic', 'FP16', "
                         "'BF16', 'E8M0', or 'ExMy' of at most 8 bits, such as 'E4M3'")
    return e, m, "nan" if name in HAS_NAN else None


def float_values(e: int, m: int, special: str | None) -> Array:
    """Return all values of a float of e exponent and m mantissa bits, by bit pattern (float64).

        x = (−1)^sign · 2^(E − bias) · (1 + M/2^m)       E ≥ 1: normal            bias = 2^(e−1) − 1
        x = (−1)^sign · 2^(1 − bias) · (    M/2^m)       E = 0: subnormal
    """
    bias = 2**(e - 1) - 1
    E, M = np.divmod(np.arange(2**(e + m)), 2**m)
    x = np.ldexp((E > 0) + M / 2**m, np.maximum(E, 1) - bias)
    if special == "inf":
        top = E == 2**e - 1
        x[top] = np.where(M[top] == 0, np.inf, np.nan)
    elif special == "nan":
        x[-1] = np.nan
    return np.concatenate([x, -x])
