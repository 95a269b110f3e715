"""AdamW whose two moments have 8 bits for each number: a quarter of the memory.

Dettmers et al. (arXiv 2110.02861) keep m and v in codes of 8 bits, and for each block of them its
largest magnitude in float32 (`dynamic.py`). A step, for a part of a parameter at a time:

    m, v ← the numbers that codes and maxima stand for
    w, m, v ← AdamW's step, in full precision
    codes and maxima ← m, v

    2 + 2 · 4/256 = 2.03 bytes for each number; AdamW has 8

A block has 256 numbers, as in today's bitsandbytes and in torchao; the paper's had 2,048. As there,
a small parameter, such as a bias or a LoRA's factor, has moments in its own type. So has one with
an update mask: the numbers of a block share a maximum, so none of them could keep its moments. The
paper's stable embedding layer, which normalizes embeddings, is left out.
"""
from collections.abc import Iterable

import numpy as np

from ...common.hints import Array
from ..tensor import Tensor
from .adamw import adamw_step
from .dynamic import BLOCK, pack, unpack
from .optimizer import Optimizer, is_masked

__all__ = ["AdamW8bit"]


class AdamW8bit(Optimizer):
    """`AdamW` with moments of 8 bits, for parameters of at least `min_8bit_size` numbers."""
    slots = "m", "v"
    squares = "v", "m_absmax", "v_absmax"

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01, min_8bit_size: int = 4096):
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                         min_8bit_size=min_8bit_size)

    def allocate(self, p: Tensor, group: dict) -> dict[str, Array]:
        if p.size < group["min_8bit_size"] or is_masked(p):
            return super().allocate(p, group)
        return packed({slot: np.zeros(p.size) for slot in self.slots})

    def _update(self, w, g, mask, state, group):
        """Call `update` for 256 blocks at a time, between unpacking and packing their moments."""
        if "m" in state:
            return super()._update(w, g, mask, state, group)
        flat_w = w.reshape(-1)                           # a view, or a copy if w is a transpose
        flat_g = g.reshape(-1)
        for i in range(0, len(state["m_codes"]), 256):   # blocks; as it happens, BLOCK is 256, too
            arrays = {name: array[i:i + 256] for name, array in state.items()}
            s = slice(i * BLOCK, (i + 256) * BLOCK)
            moments = unpacked(arrays, flat_w[s])
            self.update(flat_w[s], flat_g[s], moments, group)
            for name, array in packed(moments).items():
                arrays[name][...] = array
        w[...] = flat_w.reshape(w.shape)

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict) -> None:
        adamw_step(w, g, state["m"], state["v"], self.t, group)


def packed(moments: dict[str, Array]) -> dict[str, Array]:
    """Pack m and v, each (n,): return codes and maxima by name."""
    arrays = {}
    for slot, numbers in moments.items():
        arrays[f"{slot}_codes"], arrays[f"{slot}_absmax"] = pack(numbers, signed=slot == "m")
    return arrays


def unpacked(arrays: dict[str, Array], like: Array) -> dict[str, Array]:
    """Return m and v, as many numbers as `like` (n,) and of its type, of what `packed` made."""
    moments = {}
    for slot in "m", "v":
        numbers = unpack(arrays[f"{slot}_codes"], arrays[f"{slot}_absmax"], signed=slot == "m")
        moments[slot] = numbers.reshape(-1)[:like.size].astype(like.dtype, copy=False)
    return moments
