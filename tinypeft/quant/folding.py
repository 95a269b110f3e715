"""Moving a scale from the input of linear layers into the layer that computes that input.

    (x / s) (W ⊙ s)ᵀ = x Wᵀ
    x / s = (γ/s) x̂ + β/s      for x = γ x̂ + β, the output of a layer norm
    x / s = (V/s) h + c/s      for x = V h + c, the output of a linear layer (V is divided by rows)

So a positive s_j per channel j can move from γ_j and β_j into column j of every W that reads the
norm (`calibration.READERS`), and the function stays the same. SmoothQuant and AWQ choose s to make
quantization easy; `plant_outliers` chooses it to make quantization hard, in a model of any size.

A scale passes through attention, where every channel of the result is a mean of the same channel of
the values (not those of a trained prefix). It does not pass through the GELU before `mlp.down`.
"""
import numpy as np

from ..decoder import Decoder
from ..hints import Array, Seed
from ..nn import LayerNorm, Linear, Module
from .calibration import READERS


def followers(model: Decoder) -> dict[str, list[str]]:
    """Path of a layer norm in the blocks → paths of the linear layers that read it."""
    return {f"blocks.{i}.{norm}": [f"blocks.{i}.{reader}" for reader in READERS[norm]]
            for i in range(len(model.blocks)) for norm in ("norm1", "norm2")}


def fold_scale(source: Module, linears: list[Linear], s: Array) -> None:
    """γ ← γ/s, β ← β/s, and W ← W ⊙ s for every layer of `linears`, s (d,) > 0.
    source: the LayerNorm or Linear whose output they read. ValueError when a layer is not a plain
    Linear any more, because its weight cannot take up s."""
    for linear in linears if isinstance(source, LayerNorm) else [source, *linears]:
        if not isinstance(linear, Linear):
            raise ValueError("fold_scale: all layers that read an input must change together, but "
                             f"one is a {type(linear).__name__} already; fold before quantizing")
    for p in (source.weight, source.bias):
        if p is not None: p.assign((p.data.T / s.astype(p.dtype)).T)
    for linear in linears:
        linear.weight.assign(linear.weight.data * s.astype(linear.weight.dtype))


def plant_outliers(model: Decoder, channels: int = 3, factor: float = 32.0, rng: Seed = 0) -> Array:
    """Make `channels` channels of every norm's output `factor` times larger; return their numbers.

    Large models grow such channels by themselves, the same ones in all blocks; small models do not
    (LLM.int8(), §4). The function stays the same, bit for bit if the factor is a power of two."""
    model.check_free("plant_outliers")
    d = model.config.d_model
    if not 1 <= channels <= d:
        raise ValueError(f"plant_outliers: channels must lie in 1 … {d}, got {channels}")
    if not 0 < factor < np.inf:
        raise ValueError(f"plant_outliers: the factor must be positive and finite, got {factor}")
    planted = np.sort(np.random.default_rng(rng).choice(d, channels, replace=False))
    s = np.ones(d)
    s[planted] = 1 / factor
    for norm, readers in followers(model).items():
        fold_scale(model.get(norm), [model.get(path) for path in readers], s)
    return planted
