"""A cache of the keys and values that attention has seen, one for each layer.

With it each step of generation feeds one token instead of all; the result is the same.
"""
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine import functional as F
from ..engine.tensor import Tensor

__all__ = ["KVCache", "LayerCache"]


class LayerCache:
    """Keys and values of one layer, (B, H, S, d_head), in buffers that double when full. What a
    window has passed is dropped: the next call may write over it, and frees buffers that are more
    than four times too large."""

    def __init__(self):
        self.k = self.v = None
        self.start = self.stop = 0                           # of the positions held, in the buffers
        self.dropped = 0                                     # positions in no buffer any more

    @property
    def length(self) -> int:
        """Count the positions so far, also those that were dropped."""
        return self.dropped + self.stop

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add Tensors (B, H, T, d_head); return Tensors of everything held."""
        T = k.shape[2]
        n = self.stop - self.start + T
        room = 0 if self.k is None else self.k.shape[2]
        if not self.stop + T <= room <= 4 * n:
            self.k = self._moved(self.k, k.data, n)
            self.v = self._moved(self.v, v.data, n)
            self.dropped += self.start
            self.start = 0
            self.stop = n - T
        new = np.s_[:, :, self.stop:self.stop + T]
        self.k[new] = k.data
        self.v[new] = v.data
        self.stop += T
        held = np.s_[:, :, self.start:self.stop]
        return Tensor(self.k[held]), Tensor(self.v[held])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Attention of q (B, H, T, d_head) over everything held and k, v, which are added.
        options: of `functional.attention`. A window w leaves the last w − 1 positions."""
        o = F.attention(q, *self.append(k, v), **options)
        window = options.get("window")
        if window:
            self.start = max(self.start, self.stop + 1 - window)
        return o

    @property
    def nbytes(self) -> int:
        """Count the bytes of the keys and values held; the buffers take more."""
        return 0 if self.k is None else 2 * self.k[:, :, self.start:self.stop].nbytes

    def _moved(self, old, new, n):
        """Make a buffer for 2 n positions of the shape of `new`; copy those held into it."""
        B, H, _, d = new.shape
        buffer = np.empty((B, H, 2 * n, d), new.dtype)
        held = self.stop - self.start
        if held:
            buffer[:, :, :held] = old[:, :, self.start:self.stop]
        return buffer


class KVCache:
    """One cache per layer. length: positions so far, virtual ones too; nbytes: of what is held.
    `length` cannot be set: a window drops what it has passed."""

    def __init__(self, n_layers: int, layer: Callable[[], LayerCache] = LayerCache):
        self.layers = [layer() for _ in range(n_layers)]

    @property
    def length(self) -> int:
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)
