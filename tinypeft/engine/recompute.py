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
from collections.abc import Iterator
from typing import Any

import numpy as np

from .nn import Module
from .tensor import GraphError, Tensor, enable_grad, no_grad

__all__ = ["recomputed", "recomputing", "run_block"]

_recomputing = contextvars.ContextVar("recomputing", default=False)


@contextlib.contextmanager
def recomputing(on: bool = True) -> Iterator[None]:
    """Inside `with recomputing():` this thread's decoders compute each block again in backward."""
    before = _recomputing.set(on)
    try: yield
    finally: _recomputing.reset(before)


def run_block(block: Module, x: Tensor, prefix: tuple[Tensor, Tensor] | None, cache: Any) -> Tensor:
    """block(x, prefix, cache), by `recomputed` inside `recomputing()`. A cache has no gradients."""
    if cache is not None or not _recomputing.get(): return block(x, prefix, cache)
    return recomputed(lambda x, *prefix: block(x, prefix or None), block, x, *prefix or ())


def recomputed(run: Any, module: Module, *inputs: Tensor) -> Tensor:
    """run(*inputs) → a Tensor, which keeps nothing but `inputs` and runs again in backward.

    module: holds all trained parameters that `run` reads, and all generators that it draws from.
    Backward raises GraphError if a trained parameter of `module`, or an input, has no part in the
    result, or if the result depends on another trained tensor."""
    weights = [p for p in module.parameters() if p.requires_grad]
    generators = {id(m.rng): m.rng for _, m in module.named_modules()
                  if isinstance(getattr(m, "rng", None), np.random.Generator)}.values()
    before = [(g, g.bit_generator.state) for g in generators]
    with no_grad(): y = run(*inputs)
    drew = [(g, state) for g, state in before if str(state) != str(g.bit_generator.state)]
    arrays = [(t.data, t.requires_grad) for t in inputs]

    def vjp(dy):
        again = [Tensor(array, needed) for array, needed in arrays]
        with enable_grad(), recomputing(False), _set_back(drew): z = run(*again)
        found = {id(t): dt for t, dt in z.gradients(dy)}
        parents = [*again, *weights]
        expected = {id(t) for t in parents if t.requires_grad}
        if found.keys() != expected:
            raise GraphError(f"recomputed: {type(module).__name__} has {len(expected)} inputs and "
                             f"parameters that are trained, but its result depends on "
                             f"{len(found.keys() & expected)} of them and on "
                             f"{len(found.keys() - expected)} others; train it without "
                             "checkpoint_activations")
        return [found.get(id(t)) for t in parents]
    return Tensor.fused(y.data, [*inputs, *weights], vjp)


@contextlib.contextmanager
def _set_back(drew):
    """Inside, the generators draw what they drew before."""
    now = [(g, g.bit_generator.state) for g, _ in drew]
    try:
        for g, state in drew: g.bit_generator.state = state
        yield
    finally:
        for g, state in now: g.bit_generator.state = state
