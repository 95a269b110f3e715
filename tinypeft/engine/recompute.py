"""Activation checkpointing: keep a block's input alone, and compute the rest again on the way back.

A graph holds what every operation needs for its gradient, for a transformer's block many times the
block's input. Chen et al. (arXiv 1604.06174) run each block without a graph. Backward runs it once
more, this time with one, and walks that small graph at once: one block's arrays are in memory at a
time. A step costs one more forward pass, and its gradients are the same, bit for bit.

    y = block(x)                   without a graph
    dx, dw = the gradients of block(x), computed again, for dy        x, w: input, trained weights

Dropout must draw the same masks again: each generator in the block is set back for the second run.
"""
import contextlib
import contextvars
from typing import Any

import numpy as np

from .nn import Module
from .tensor import GraphError, Tensor, enable_grad, no_grad, within

__all__ = ["recomputed", "recomputing", "run_block"]

_recomputing = contextvars.ContextVar("recomputing", default=False)


def recomputing(on: bool = True) -> contextlib.AbstractContextManager[bool]:
    """Inside `with recomputing():` this thread's decoders compute each block again in backward."""
    return within(_recomputing, on)


def run_block(block: Module, x: Tensor, prefix: tuple[Tensor, Tensor] | None, cache: Any) -> Tensor:
    """Return block(x, prefix, cache), by `recomputed` inside `recomputing()`. A cache has no
    gradients."""
    if cache is not None or not _recomputing.get():
        return block(x, prefix, cache)
    return recomputed(lambda x, *prefix: block(x, prefix or None), block, x, *prefix or ())


def recomputed(run: Any, module: Module, *inputs: Tensor) -> Tensor:
    """Return run(*inputs), a Tensor that keeps nothing but `inputs` and runs again in backward.

    module: holds all trained parameters that `run` reads, and all generators that it draws from.
    Backward raises GraphError if a trained parameter of `module`, or an input, has no part in the
    result, or if the result depends on another trained tensor."""
    weights = [p for p in module.parameters() if p.requires_grad]
    rngs = {id(m.rng): m.rng for _, m in module.named_modules()
            if isinstance(getattr(m, "rng", None), np.random.Generator)}
    before = _states(rngs.values())
    with no_grad():
        y = run(*inputs)
    arrays = [(x.data, x.requires_grad) for x in inputs]

    def vjp(dy):
        again = [Tensor(*a) for a in arrays]
        now = _states(rng for rng, _ in before)
        try:
            _set(before)
            with enable_grad(), recomputing(False):
                z = run(*again)
        finally:
            _set(now)
        gradients = {id(x): dx for x, dx in z.gradients(dy)}
        parents = [*again, *weights]
        expected = {id(x) for x in parents if x.requires_grad}
        if gradients.keys() != expected:
            raise GraphError(f"recomputed: {type(module).__name__} has {len(expected)} inputs and "
                             f"parameters that are trained, but its result depends on "
                             f"{len(gradients.keys() & expected)} of them and on "
                             f"{len(gradients.keys() - expected)} others; train it without "
                             "checkpoint_activations")
        return [gradients.get(id(x)) for x in parents]
    return Tensor.fused(y.data, [*inputs, *weights], vjp)


def _states(generators):
    return [(rng, rng.bit_generator.state) for rng in generators]


def _set(states):
    """Let each generator go on from its state in `states`."""
    for rng, state in states:
        rng.bit_generator.state = state
