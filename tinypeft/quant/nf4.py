"""NF4, the 4-bit NormalFloat of QLoRA, and double quantization of its scales.

Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, §3.

    s = max |x| of the block        q = argmin_i |x/s − c_i|        x̂ = s · c_q             c: `codebook("nf4")`

The 16 values c are quantiles of N(0, 1), scaled to [−1, 1] and with an exact 0: eight levels above it, seven below.
`tests/quant/test_codebooks.py` derives them. They would be used equally often if x/s were distributed as they are; as s is the
largest of 64 normal numbers, and varies, that holds only roughly.

Double quantization stores the scales in 8 bits too:   s_i ≈ t · d_{r_i} + o,   o = mean(s),   t = max |s − o| over 256
scales.   Bits per weight:   4 + 32/64 = 4.5   without it;   with it   4 + 8/64 + 32/(64·256) = 4.127,   and 32/N for o.

The paper leaves the bits open (its d is "8-bit floats"). This file has those of bitsandbytes on the CPU: d is the
dynamic map of `codebooks.py`; v = x·(1/s), which is not always x/s; a v midway between two levels goes to the lower; the
first of two codes sits in the high half of a byte; a zero block is 0 · code 7. A short last block is divided by s. Where
they differ:

 *  bitsandbytes finds d's nearest value through a table of 65,536 equal steps of [−1, 1], so that up to 1.5 percent of
    the codes r are a neighbour of the nearest one, which this file takes (none differ when a test emulates the table).
 *  o is the mean rounded once, from float64; PyTorch's float32 sum can differ in the last bit.
 *  the scale of an all-zero short last block is 1e-38 there, 0 here: both decode to 0.
 *  bitsandbytes' `quantize_4bit` defaults to FP4. torchao's NF4Tensor quantizes its scales to linear int8.
"""
from dataclasses import dataclass

import numpy as np

from .codebooks import codebook
from .packing import pack, packed_size
from .qtensor import QTensor, blocks_of
from .scheme import Scheme, check_choice, checked

CHUNK = 2**16                              # weights compared at a time: they stay in a core's L2 cache
TINY = np.float32(1e-38)                   # the least absmax that divides: bitsandbytes' guard of zero blocks


@dataclass(frozen=True)
class NF4(Scheme):
    """Blocks of `block_size` consecutive weights, running on from row to row, each with a float32 scale; with
    `double_quant` (the paper's QLoRA), the scales in 8 bits. Any number of weights: the last block may be short."""
    block_size: int = 64
    double_quant: bool = False

    def __post_init__(self):
        check_block_size(self.block_size)
        check_choice("double_quant", self.double_quant, (False, True))

    def quantize(self, W: np.ndarray) -> QTensor:
        W = checked(W)
        codes, scale = quantize_4bit(W, self.block_size, "nf4")
        return QTensor(codes, 4, W.shape, self.block_size, quantize_scales(scale) if self.double_quant else scale,
                       codebook="nf4")


def check_block_size(block_size):
    """ValueError unless blocks of 4-bit codes begin with a byte."""
    if not isinstance(block_size, int) or block_size < 2 or block_size % 2:
        raise ValueError(f"block_size must be a positive even integer, got {block_size!r}")


def quantize_4bit(W: np.ndarray, block_size: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """W float32 → (packed 4-bit codes of the nearest values of the codebook `name`, absmax float32 (n_blocks,))."""
    N, B = W.size, block_size
    whole = N // B                                                       # the number of whole blocks
    x, rest = W.reshape(-1)[:whole * B].reshape(whole, B), W.reshape(-1)[whole * B:]
    codes, scale = np.empty(packed_size(N, 4), np.uint8), np.empty(-(-N // B), np.float32)
    step = max(1, CHUNK // B)
    for i in range(0, whole, step):
        v, s = np.abs(x[i:i + step]), scale[i:min(i + step, whole)]
        v.max(axis=1, out=s)
        np.multiply(x[i:i + step], 1 / np.maximum(s, TINY)[:, None], out=v)
        codes[i * B // 2:(i + len(s)) * B // 2] = pack(nearest(v, name), 4)
    if len(rest):
        scale[-1] = np.abs(rest).max()
        if N % 2:
            rest = np.append(rest, np.float32(0))                        # whose code fills the last byte
        codes[whole * B // 2:] = pack(nearest(rest / np.maximum(scale[-1], TINY), name), 4)
    return codes, scale


def nearest(v: np.ndarray, name: str) -> np.ndarray:
    """The code of the value nearest to each v, uint8; of two equally near, the lower value's.

    Its rank is the number of midpoints below v: 15 comparisons, summed. A binary search takes four, but NumPy compares
    a whole array some 20 times faster than it takes one step of a search.
    """
    values = codebook(name)
    order = np.argsort(values, kind="stable").astype(np.uint8)
    rank = np.zeros(v.shape, np.uint8)
    for midpoint in (values[order[:-1]] + values[order[1:]]) / np.float32(2):
        rank += v > midpoint
    return order[rank] if name == "FP4" else rank                        # nf4's codes are its ranks


def quantize_scales(scale: np.ndarray, block_size: int = 256) -> QTensor:
    """float32 (n,) → 8-bit codes of the dynamic map, in blocks, around the mean: the second quantization."""
    values, n = codebook("dynamic"), len(scale)
    offset = np.float32(scale.mean(dtype=np.float64))
    x = blocks_of(scale - offset, block_size)
    absmax = np.abs(x).max(axis=1)
    v = x * (1 / np.maximum(absmax, TINY))[:, None]
    codes = np.searchsorted((values[:-1] + values[1:]) / np.float32(2), v).astype(np.uint8)
    return QTensor(codes.reshape(-1)[:n], 8, (n,), block_size, absmax, codebook="dynamic", offset=offset)
