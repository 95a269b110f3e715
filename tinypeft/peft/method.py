"""The protocol: what a fine-tuning method says of itself, and when `train` calls it.

Everything has a default that does nothing, so a method overrides only what it needs.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..common.hints import Array, Rng
from ..common.hyper import Hyperparameters
from ..engine.nn import Module
from ..engine.tensor import Tensor
from ..models.decoder import Decoder

__all__ = ["Layers", "Method", "MethodError", "VirtualTokens"]

Layers = Mapping[str, Module]                    # path → what `wrap` put there


class MethodError(ValueError):
    """A method cannot do what was asked; the message says why."""


class VirtualTokens(Module):
    """`length` vectors that enter a model by a seam, "prompt" or "prefix"."""
    length: int
    seam: ClassVar[str] = "prompt"

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        """Arguments of the model beside `tokens` (B, T). lengths (B,) is given to classify rows."""
        raise NotImplementedError


class Method(Hyperparameters):
    """A fine-tuning method: a frozen dataclass of hyperparameters that can be put on a model.

    It never changes. What training changes is in modules: Parameters, or ndarrays (not trained).
    learning_rate: for AdamW, used unless `train` is given another. It was chosen for the shipped
    base, which is 128 wide, and `train` multiplies it by √(128/d) for a model that is d wide
    (`training/rates.py` says how well that fits). Papers train longer, at smaller rates: LoRA's
    for GPT-2 is 2e-4. `find_rate` measures the rate for a model and a task.
    """
    error: ClassVar[type[ValueError]] = MethodError
    learning_rate: ClassVar[float] = 1e-3

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Module]:
        """path → wrapper, for every module of the model that the method adapts."""
        return {}

    def virtual(self, model: Decoder, rng: Rng) -> VirtualTokens | None:
        """The module that emits the method's virtual tokens, or None."""

    def fold(self, virtual: VirtualTokens | None) -> tuple[Method, VirtualTokens | None]:
        """(method, virtual module) without a reparameterization, if they have one."""
        return self, virtual

    def trained(self, model: Decoder) -> list[str]:
        """Names of the base's own parameters that the method trains."""
        return []

    def before_step(self, layers: Layers, step: int, total: int, rng: Rng) -> None:
        """Called before the forward pass of step 0 … total − 1. layers: the wrappers on the model.
        rng: it is seeded anew for each step."""

    def penalty(self, layers: Layers) -> Tensor | None:
        """A term to add to the loss, or None."""

    def after_step(self, layers: Layers, step: int, total: int) -> None:
        """Called after the optimizer's step."""

    def end_training(self, layers: Layers) -> None:
        """Called when training ends, also by an error or Ctrl-C: drop what held for one step."""
