"""A frozen linear layer whose weight is changed: the layer of LoRA and of its relatives.

    y = (W₀ + ΔW) x + b,      ΔW = change()

    here        shape
    base        the frozen layer with W₀ and b, quantized or not
    change()    (d_out, d_in), an expression of the layer's Parameters

A method of this kind is one class that says what ΔW is. It overrides `forward` only where that is
cheaper: LoRA never forms ΔW. Dropout acts on the input of ΔW, in training only.
"""
from __future__ import annotations

from typing import Any

from ..common.hints import Array, Rng
from ..engine import functional as F
from ..engine.nn import Dropout, Linear, Module, Parameter
from ..engine.tensor import Tensor, no_grad
from .method import Wrapper

__all__ = ["ChangedLinear", "linear_of"]

CHANGE = "change", "factors", "pair", "delta"            # each of them says what ΔW is


class ChangedLinear(Wrapper):
    """A frozen layer `base` beside a change of its weight."""
    merged_by = ("merge", *CHANGE)

    def __init__(self, base: Module, dropout: float, rng: Rng):
        self.base = base
        self.dropout = Dropout(dropout, rng)

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        own = vars(cls).keys()
        is_general = cls.forward is ChangedLinear.forward
        if not is_general and "forward" not in own and not own.isdisjoint(CHANGE):
            raise TypeError(f"{cls.__name__} overrides ΔW, but its `forward` does not read that; "
                            "override `forward`, too, or let it be ChangedLinear.forward")

    def change(self) -> Tensor:
        """Compute ΔW (d_out, d_in), with its gradients."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(self.dropout(x), self.change())

    def delta(self) -> Array:
        """Compute the numbers of ΔW, (d_out, d_in)."""
        with no_grad():
            return self.change().data

    def dense_weight(self) -> Array:
        """Compute W₀ + ΔW, (d_out, d_in); W₀ is dequantized if need be."""
        return self.base.dense_weight() + self.delta()

    def merge(self) -> Linear:
        """Make a Linear with weight W₀ + ΔW and the base's bias."""
        weight = self.dense_weight()
        bias = self.base.bias
        return linear_of(weight, None if bias is None else bias.data.copy())


def linear_of(weight: Array, bias: Array | None) -> Linear:
    """Make a Linear of its arrays, which are not copied."""
    layer = Linear.__new__(Linear)                       # `Linear` itself would draw a weight
    layer.weight = Parameter(weight)
    layer.bias = None if bias is None else Parameter(bias)
    return layer
