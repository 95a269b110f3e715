"""The readers in a block: the layers that share an input, and the layer that computes it.

    what is read      who reads it
    norm1             attention.query, attention.key, attention.value
    attention.value   attention.output: means over tokens; with grouped heads, several of each value
    norm2             mlp.up; in a gated MLP mlp.gate and mlp.up
    a GELU            mlp.down
    mlp.up            mlp.down in a gated MLP, which reads act(gate) ⊙ up

Layers that read one input are calibrated, scaled and rounded together (`gptq.py`, `awq.py`), and a
scale can move from an input into what computes it (`folding.py`).
"""
import numpy as np

from ..common.hints import Array
from ..engine.nn import Module

__all__ = ["channels", "readers"]


def readers(block: Module) -> dict[str | None, tuple[str, ...]]:
    """Map a norm or layer of `block` to the linear layers that read its output, in order.

    `mlp.down` reads a GELU, which lets no scale through: None. In a gated MLP it reads
    act(gate(x)) ⊙ up(x), a product, to which a scale can come from `mlp.up`."""
    attention = {"norm1": ("attention.query", "attention.key", "attention.value"),
                 "attention.value": ("attention.output",)}
    if hasattr(block.mlp, "gate"):
        return attention | {"norm2": ("mlp.gate", "mlp.up"), "mlp.up": ("mlp.down",)}
    return attention | {"norm2": ("mlp.up",), None: ("mlp.down",)}


def channels(block: Module, source: str | None) -> Array:
    """Number the output channels of `source` that the inputs of its readers carry: int (d_in,).

    These are 0 … d_in − 1, except in attention with grouped heads, where H/G consecutive heads of
    `attention.output` carry one head of the values."""
    d_in = block.get(readers(block)[source][0]).d_in
    d = block.attention.value.d_out
    if source != "attention.value" or d == d_in:
        return np.arange(d_in)
    heads = np.arange(d).reshape(-1, block.attention.config.d_head)               # (G, d_head)
    return np.repeat(heads, d_in // d, axis=0).reshape(-1)
