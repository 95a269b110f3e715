"""Calibration: tokens on which a model is run, only to look at what its layers read.

A quantization scheme and a start of LoRA may ask for them.
"""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..common.hints import Array, Calibration
from ..engine.nn import Module
from ..engine.tensor import Tensor, no_grad
from .decoder import Decoder

__all__ = ["Listener", "as_batches", "calibrating"]


class Listener(Module):
    """A module that calls `listen` with its input, an array, before it computes."""

    def __init__(self, base: Module, listen: Callable):
        self.base = base
        self.listen = listen

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        self.listen(x.data)
        return self.base(x, *more)


@contextlib.contextmanager
def calibrating(model: Module) -> Iterator[Module]:
    """Switch off gradients and dropout inside the block, and restore both after it."""
    training = {module: module.training for _, module in model.named_modules()}
    try:
        with no_grad():
            yield model.eval()
    finally:
        for module, before in training.items():
            module.training = before


def as_batches(model: Decoder, calibration: Calibration) -> list[Array]:
    """Return calibration tokens as integer arrays (B, T); [] for None. ValueError for others."""
    if calibration is None:
        return []
    if isinstance(calibration, Tensor):
        raise TypeError("calibration: expected integers (B, T), got a Tensor, which holds floats")
    if isinstance(calibration, np.ndarray):
        calibration = [calibration]
    longest = model.config.context_length
    batches = [np.asarray(tokens) for tokens in calibration]
    for tokens in batches:
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape[1] > longest:
            raise ValueError(f"calibration: expected integers (B, T) with T ≤ {longest}, the "
                             f"context length, got {tokens.dtype} {tokens.shape}")
    batches = [tokens for tokens in batches if tokens.size]
    if not batches:
        raise ValueError("calibration: there is not one token in it; give integers (B, T)")
    return batches
