"""Stochastic gradient descent with momentum."""
from collections.abc import Iterable

from ...common.hints import Array
from ..tensor import Tensor
from .optimizer import Optimizer

__all__ = ["SGD"]


class SGD(Optimizer):
    """w ← w − lr u,  u ← μ u + (g + λ w): momentum μ, decay λ, as in PyTorch (u starts as g)."""
    slots = ("velocity",)

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float, momentum: float = 0.0,
                 weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict) -> None:
        u = state["velocity"]
        if group["weight_decay"]:
            g = g + group["weight_decay"] * w
        u *= group["momentum"]
        u += g
        w -= group["lr"] * u
