"""AdamW whose two moments have 8 bits for each number: a quarter of the memory.

Dettmers et al. (arXiv 2110.02861, sections 2.1 and 2.2) store a moment in blocks of numbers. Of a
block x they keep the largest magnitude, in float32, and for each number the code of the entry of a
table q that is nearest to its share of it:

    a = max |x|,   code_i = argmin_j |x_i / a − q_j|,   x̂_i = a q[code_i]

A step unpacks m and v of one parameter, takes AdamW's step in full precision, and packs them again.
One large number spoils its own block alone.

The table is the dynamic type: its numbers lie close where the moments are small, over seven powers
of ten. m has both signs and v none, so that v has twice as many numbers in a power of ten.

    2 + 2 · 4/256 = 2.03 bytes for each number; AdamW has 8          (blocks of 256 numbers)

As in bitsandbytes and torchao, a parameter of fewer than `min_8bit_size` numbers, such as a bias or
a small LoRA, has moments in its own type. torchao lets `a` be no less than 1e-12, too coarse for v
where gradients are below 1e-6; here any `a` serves. bitsandbytes' CPU kernel (0.50) does not take
the nearest entry for v: 0 becomes code 7.
"""
import functools
from collections.abc import Iterable

import numpy as np

from ...common.hints import Array
from ..tensor import Tensor
from .adamw import adamw_step
from .optimizer import Optimizer

__all__ = ["AdamW8bit", "dynamic_map", "pack", "unpack"]

BLOCK = 256                                              # numbers that share a maximum


class AdamW8bit(Optimizer):
    """`AdamW` with moments of 8 bits; the equations stand at the head of this file."""
    slots = "m", "v"
    squares = "v", "m_absmax", "v_absmax"

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01, min_8bit_size: int = 4096):
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                         min_8bit_size=min_8bit_size)

    def allocate(self, p: Tensor, group: dict) -> dict[str, Array]:
        moments = super().allocate(p, group)
        return moments if p.size < group["min_8bit_size"] else packed(moments)

    def _update(self, p, state, group):
        if "m" in state:
            return super()._update(p, state, group)
        moments = {}
        for slot in self.slots:
            numbers = unpack(state[f"{slot}_codes"], state[f"{slot}_absmax"], signed=slot == "m")
            moments[slot] = numbers.astype(p.dtype, copy=False).reshape(p.shape)
        super()._update(p, moments, group)
        for name, array in packed(moments).items():
            state[name][...] = array

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict) -> None:
        adamw_step(w, g, state["m"], state["v"], self.t, group)


def packed(moments: dict[str, Array]) -> dict[str, Array]:
    """Pack m and v, of any shape: return codes and maxima by name."""
    arrays = {}
    for slot, array in moments.items():
        numbers = array.astype(np.float32, copy=False).reshape(-1)
        arrays[f"{slot}_codes"], arrays[f"{slot}_absmax"] = pack(numbers, signed=slot == "m")
    return arrays


def pack(x: Array, signed: bool) -> tuple[Array, Array]:
    """Return the codes, uint8 (n,), and the maxima, float32 (⌈n/256⌉,), of x, float32 (n,)."""
    starts = np.arange(0, x.size, BLOCK)
    absmax = np.maximum.reduceat(np.abs(x), starts)
    scale = np.maximum(absmax, np.finfo(np.float32).tiny)            # not 0
    x = x / np.repeat(scale, BLOCK)[:x.size]
    table = dynamic_map(signed)
    edges = (table[:-1] + table[1:]) / 2                 # code: how many of these are at most x
    codes = np.zeros(x.size, np.intp)
    for half in 128, 64, 32, 16, 8, 4, 2, 1:             # a search in all places at once
        codes += half * (x >= edges.take(codes + (half - 1)))
    return codes.astype(np.uint8), absmax


def unpack(codes: Array, absmax: Array, signed: bool) -> Array:
    """Return the numbers, float32 (n,), that codes and maxima stand for."""
    return dynamic_map(signed)[codes] * np.repeat(absmax, BLOCK)[:codes.size]


@functools.cache
def dynamic_map(signed: bool = True) -> Array:
    """Return the 256 values of the 8-bit dynamic type, ascending, float32, read-only.

    The number of leading zero bits is a decimal exponent; the other bits are a linear fraction.
    Signed, numbers near 1 get 64 steps per sign, and those near 1e-6 get one:

        ± 10^(i−6) · midpoints of 2^i equal parts of [0.1, 1], i = 0 … 6;  0;  1

    There is no −1; the smallest value is −0.99297. Unsigned, there are 2^(i+1) parts. The edges are
    float32, spaced from both ends as in bitsandbytes: exact edges would change a quarter of the
    last bits.
    """
    low = np.float32(0.1)
    width = np.float32(1) - low
    values = [np.float32([0, 1])]
    for i in range(7):
        n_parts = 2**i if signed else 2**(i + 1)
        t = np.arange(n_parts + 1) / n_parts
        edges = np.where(t < 0.5, low + width * t, 1 - width * (1 - t))
        edges = edges.astype(np.float32)
        midpoints = (edges[:-1] + edges[1:]) / np.float32(2)
        positive = np.float32(10.0**(i - 6)) * midpoints
        values.append(positive)
        if signed:
            values.append(-positive)
    values = np.sort(np.concatenate(values))
    values.flags.writeable = False
    return values
