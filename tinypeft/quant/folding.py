"""Moving scale between a layer norm and the linear layers it feeds, without changing what the model computes.

    (x / s) (W ⊙ s)ᵀ = x Wᵀ        and        x / s = (γ/s) x̂ + β/s     for x = γ x̂ + β, the output of a layer norm
                                              x / s = (V/s) h + c/s     for x = V h + c, of a linear layer, V by rows

so a positive number s_j per channel j goes from γ_j, β_j into column j of every W that reads the norm. SmoothQuant and
AWQ choose s to make quantization easy; `plant_outliers` chooses it to make quantization hard, in a model of any size.

`READS` says, for a block of the GPT, which layers read the same input and what computes it. A scale passes through
attention, where every channel of the result is a mean of the same channel of the values (values from elsewhere, such as
a trained prefix, do not know of it). It does not pass through the GELU before `mlp.down`.
"""
import numpy as np

from ..nn import LayerNorm, Linear

__all__ = ["READS", "fold", "followers", "plant_outliers"]

READS = (("norm1",           ("attention.query", "attention.key", "attention.value")),
         ("attention.value", ("attention.output",)),
         ("norm2",           ("mlp.up",)),
         (None,              ("mlp.down",)))


def followers(model):
    """Path of a layer norm → paths of all the linear layers that read it, for every norm in the blocks."""
    return {f"blocks.{i}.{norm}": [f"blocks.{i}.{reader}" for reader in readers]
            for i in range(len(model.blocks)) for norm, readers in READS if norm in ("norm1", "norm2")}


def fold(before, linears, s):
    """γ ← γ/s, β ← β/s, and W ← W ⊙ s for every one of `linears`, s (d,) > 0. Arrays are replaced, not written into.

    before: the LayerNorm, or a Linear, whose output they read. Raises ValueError when one of the layers is not a plain
    Linear any more: its weight cannot take up s.
    """
    for linear in linears if isinstance(before, LayerNorm) else [before, *linears]:
        if not isinstance(linear, Linear):
            raise ValueError(f"fold: all layers that read an input change together, but one is a "
                             f"{type(linear).__name__} already")
    for p in (before.weight, before.bias):
        if p is not None:
            p.data, p.version = (p.data.T / s.astype(p.dtype)).T, p.version + 1
    for linear in linears:
        W = linear.weight
        W.data, W.version = W.data * s.astype(W.dtype), W.version + 1


def plant_outliers(model, channels=3, factor=32.0, rng=0):
    """Give `channels` channels `factor` times their size at the output of every norm in the blocks; return which.

    Large models grow such channels by themselves, small ones do not (LLM.int8(), §4). The same channels are drawn for
    all blocks, as they are observed to be. The function stays the same: bit for bit when the factor is a power of two.
    """
    d = model.config.d_model
    if not 1 <= channels <= d:
        raise ValueError(f"plant_outliers: channels must lie in 1 … {d}, got {channels}")
    if not 0 < factor < np.inf:
        raise ValueError(f"plant_outliers: the factor must be positive and finite, got {factor}")
    planted = np.sort(np.random.default_rng(rng).choice(d, channels, replace=False))
    s = np.ones(d)
    s[planted] = 1 / factor
    for norm, readers in followers(model).items():
        fold(model.get(norm), [model.get(path) for path in readers], s)
    return planted
