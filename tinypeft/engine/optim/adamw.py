"""AdamW (Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2, in PyTorch's form: the decay is lr·λ):

    w ← w − lr λ w
    m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
    w ← w − lr m̂ / (√v̂ + ε),   m̂ = m/(1 − β₁ᵗ),   v̂ = v/(1 − β₂ᵗ)

`engine/plain.py`'s `adamw` is one step of it as one reads it; read it first. The other optimizers
of this folder take this step, too: with moments of 8 bits, with a projected gradient, and for what
is no matrix.
"""
import math
from collections.abc import Iterable

import numpy as np

from ...common.hints import Array
from ...common.threads import slices
from ..tensor import Tensor
from .optimizer import Optimizer

__all__ = ["AdamW", "adamw_step"]


class AdamW(Optimizer):
    """Adam with decoupled weight decay; the equations stand at the head of this file."""
    slots = "m", "v"
    squares = ("v",)

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01):
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict) -> None:
        adamw_step(w, g, state["m"], state["v"], self.t, group)

    def described(self) -> str | None:
        """Return None for the usual ε: a run has this optimizer if nothing is said."""
        eps = self.defaults["eps"]
        return None if eps == 1e-8 else f"AdamW(eps={eps!r})"


def adamw_step(w: Array, g: Array, m: Array, v: Array, t: int, group: dict) -> None:
    """Compute `plain.adamw` in place: `scratch` is the only new array, of a slice's size.

    group: its lr, betas, eps and weight_decay.
    """
    lr, (b1, b2) = group["lr"], group["betas"]
    arrays = [np.atleast_1d(a) for a in (w, g, m, v)]                # views; a number has no slices
    for s in slices(arrays[0].shape, 1 << 18):
        w, g, m, v = (a[s] for a in arrays)
        if group["weight_decay"]:
            w *= 1 - lr * group["weight_decay"]
        scratch = g * (1 - b1)
        m *= b1
        m += scratch
        np.multiply(g, g, out=scratch)
        scratch *= 1 - b2
        v *= b2
        v += scratch
        np.sqrt(v, out=scratch)
        scratch *= 1 / math.sqrt(1 - b2 ** t)
        scratch += group["eps"]                                      # √v̂ + ε
        np.divide(m, scratch, out=scratch)
        scratch *= lr / (1 - b1 ** t)                                # lr m̂ / (√v̂ + ε)
        w -= scratch
