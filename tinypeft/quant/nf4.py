"""NF4, the 4-bit NormalFloat of QLoRA, and double quantization of its scales.

Each block of weights is divided by its largest magnitude and rounded to the nearest of 16 fixed
values, which are quantiles of N(0, 1) (Dettmers et al., "QLoRA", 2023, arXiv 2305.14314, §3):

    s = max |x| of the block        q = argmin_i |x/s − c_i|        x̂ = s · c_q      (`plain.nf4`)
    double quantization:            s_i ≈ t · d_{r_i} + o,   o = mean(s),   t = max |s − o|

    paper        here                     what
    q_i          c: `codebook("nf4")`     16 values in [−1, 1]: eight above an exact 0, seven below
    X^NF4        q: codes                 4 bits per weight
    c₂^FP32      s: scale                 float32, one per block of `block_size` weights
    c₂^FP8       r: scale.codes           8 bits per block, into d, `codebook("dynamic")`
    c₁^FP32      t: scale.scale           float32, one per 256 scales
                 o: scale.offset          float32, one in all

`tests/quant/test_codebooks.py` derives c. If x/s were normal, each code would be used equally
often; dividing by the block's maximum makes that only approximate. Bits per weight: 4 + 32/64 =
4.5; with double quantization 4 + 8/64 + 32/(64·256) = 4.127, and 32/N for o.

How this file differs. The paper leaves the bits open (its scales are "8-bit floats"), so they
follow bitsandbytes on the CPU: d is the dynamic map; x is multiplied by 1/s, which is not always
x/s; a number midway between two values gets the lower one; the first of two codes is in the high
half of a byte; a zero block is 0 · code 7; a short last block is divided by s. Three things differ.
bitsandbytes finds the nearest d through a table of 65,536 equal steps of [−1, 1], so a few of its
codes r are not the nearest. (None differ if a test emulates the table.) o is the mean rounded
once, from float64; PyTorch's float32 sum can differ in the last bit. The scale of a short last
block is at least 1e-38 there, and max|x| here. By default, `quantize_4bit` of bitsandbytes means
FP4. torchao's NF4Tensor has linear int8 scales.
"""
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.hyper import Limit, declared, flag
from .codebooks import codebook
from .packing import pack, packed_size
from .qtensor import QTensor, blocks_of
from .scheme import Scheme, checked
from .uniform import LARGEST

CHUNK = 2**16                              # weights compared at a time, in a core's L2 cache
TINY = np.float32(1e-38)                   # the least divisor: bitsandbytes' guard for zero blocks


def is_even(n: Any) -> bool:
    return isinstance(n, int) and n >= 2 and n % 2 == 0


EVEN = Limit(is_even, "a positive even integer")


def even(default: int, **options: Any) -> Any:
    """Declare a block size: even, so that the 4-bit codes of every block begin with a byte."""
    return declared(default, EVEN, **options)


@dataclass(frozen=True)
class NF4(Scheme):
    """4-bit NormalFloat in blocks of `block_size` consecutive weights, each with a float32 scale.
    double_quant: True stores the scales in 8 bits, as QLoRA does. The last block may be short."""
    block_size: int = even(64, also=("blocksize", "group_size", "q_group_size"))
    double_quant: bool = flag(False, also=("bnb_4bit_use_double_quant", "compress_statistics"))

    def quantize(self, W: Array) -> QTensor:
        W = checked(W)
        codes, scale = quantize_4bit(W, self.block_size, "nf4")
        if self.double_quant:
            scale = quantize_scales(scale)
        return QTensor(codes, 4, W.shape, self.block_size, scale, codebook="nf4")


def quantize_4bit(W: Array, block_size: int, name: str) -> tuple[Array, Array]:
    """W float32 → packed codes of the 4-bit codebook `name`, and max|x| of every block, float32.

    Whole blocks are taken by chunks, whose arrays stay in the cache."""
    B = block_size
    whole = W.size // B                                              # the number of whole blocks
    W = W.reshape(-1)
    blocks = W[:whole * B].reshape(whole, B)
    rest = W[whole * B:]
    codes = np.empty(packed_size(W.size, 4), np.uint8)
    scale = np.empty(-(-W.size // B), np.float32)
    step = max(1, CHUNK // B)
    for i in range(0, whole, step):
        x = blocks[i:i + step]
        end = i + len(x)
        v = np.abs(x)
        s = v.max(axis=1, out=scale[i:end])
        np.multiply(x, 1 / np.maximum(s, TINY)[:, None], out=v)
        codes[i * B // 2:end * B // 2] = pack(nearest(v, name), 4)
    if len(rest):
        s = np.abs(rest).max()
        scale[-1] = s
        v = rest / np.maximum(s, TINY)
        if len(v) % 2:
            v = np.append(v, np.float32(0))                          # its code fills the last byte
        codes[whole * B // 2:] = pack(nearest(v, name), 4)
    return codes, scale


def nearest(v: Array, name: str) -> Array:
    """Return the code of the codebook value nearest to each v, uint8; midway, the code of the lower
    value.

    A value's rank is the number of midpoints below v: 15 comparisons, summed. A binary search takes
    four, but each of its steps gathers numbers one by one, which takes longer in NumPy than all 15
    comparisons of the whole array."""
    values = codebook(name)
    order = np.argsort(values, kind="stable").astype(np.uint8)
    rank = np.zeros(v.shape, np.uint8)
    for midpoint in midpoints(values[order]):
        rank += v > midpoint
    return order[rank] if name == "FP4" else rank                        # nf4's codes are its ranks


def midpoints(values: Array) -> Array:
    """Return the numbers midway between neighbours, float32 (n − 1,)."""
    return (values[:-1] + values[1:]) / np.float32(2)


def quantize_scales(scale: Array, block_size: int = 256) -> QTensor:
    """Quantize scales, float32 (n,), to 8-bit codes of the dynamic map, around their mean."""
    n = len(scale)
    offset = np.float32(scale.mean(dtype=np.float64))
    x = blocks_of(scale - offset, block_size)
    most = np.nextafter(LARGEST - offset, np.float32(0))             # so that t + o is finite
    absmax = np.minimum(np.abs(x).max(axis=1), most)
    v = x * (1 / np.maximum(absmax, TINY))[:, None]
    codes = np.searchsorted(midpoints(codebook("dynamic")), v).astype(np.uint8)
    return QTensor(codes.reshape(-1)[:n], 8, (n,), block_size, absmax, codebook="dynamic",
                   offset=offset)
