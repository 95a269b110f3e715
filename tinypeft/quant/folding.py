"""Moving a scale from the input of linear layers into the layer that computes that input.

    (x / s) (W ⊙ s)ᵀ = x Wᵀ
    x / s = (γ/s) x̂ + β/s      for x = γ x̂ + β, the output of a layer norm; an RMS norm has no β
    x / s = (V/s) h + c/s      for x = V h + c, the output of a linear layer (V is divided by rows)

So a positive s_j per channel j can move from γ_j and β_j into column j of every W that reads the
norm (`readers.py`), and the function stays the same. SmoothQuant and AWQ choose s to make
quantization easy; `plant_outliers` chooses it to make quantization hard, in a model of any size.
Gemma stores w = γ − 1, which becomes (1 + w)/s − 1.

A scale passes through attention, where every channel of the result is a mean of the same channel of
the values (not those of a trained prefix). With grouped heads, several heads of the result are
means of one head of the values, so they share its s: column c of `attention.output` is multiplied
by s_k, k = `channels`[c]. A scale passes through a gated MLP from `mlp.up`,

    silu(g(x)) ⊙ (U x) / s = silu(g(x)) ⊙ (U/s) x                      (U is divided by rows)

but neither through its gate nor through the GELU of a plain MLP. It does not pass through a norm:
what Gemma's norms after attention and MLP are given has the same direction, whatever its scale, but
s differs from channel to channel. Norms of queries and keys stand in no scale's way.
"""
import numpy as np

from ..common.hints import Array, Seed
from ..engine.nn import LayerNorm, Linear, Module, RMSNorm
from ..models.decoder import Decoder, require_free
from .readers import readers

NORMS = LayerNorm, RMSNorm


def followers(model: Decoder) -> dict[str, list[str]]:
    """Map the path of each layer norm in the blocks to the paths of the linear layers that read
    it."""
    paths = {}
    for i, block in enumerate(model.blocks):
        for norm in "norm1", "norm2":
            paths[f"blocks.{i}.{norm}"] = [f"blocks.{i}.{name}" for name in readers(block)[norm]]
    return paths


def fold_scale(source: Module, linears: list[Linear], s: Array, columns: Array | None = None
               ) -> None:
    """Set γ ← γ/s, β ← β/s, and W ← W ⊙ s for every layer of `linears`, s (d_in,) > 0.
    source: the norm or Linear whose output they read. columns: its `channels`, where it has fewer
    than d_in; columns of one channel have one s. ValueError when a layer is not a plain Linear any
    more, because its weight cannot take up s."""
    for linear in linears if isinstance(source, NORMS) else [source, *linears]:
        if not isinstance(linear, Linear):
            raise ValueError("fold_scale: all layers that read an input must change together, but "
                             f"one is a {type(linear).__name__} already; fold before quantizing")
    of_source = s
    if columns is not None:
        of_source = s[np.unique(columns, return_index=True)[1]]

    def divided(a):
        return (a.T / of_source.astype(a.dtype)).T
    weight = source.weight
    offset = getattr(source, "offset", 0)
    if offset:
        weight.assign(divided(weight.data + offset) - offset)             # γ = w + offset
    else:
        weight.assign(divided(weight.data))
    bias = getattr(source, "bias", None)
    if bias is not None:
        bias.assign(divided(bias.data))
    for linear in linears:
        linear.weight.assign(linear.weight.data * s.astype(linear.weight.dtype))


def plant_outliers(model: Decoder, channels: int = 3, factor: float = 32.0,
                   rng: Seed = 0) -> Array:
    """Make `channels` channels of the blocks' norms `factor` times larger; return their numbers.

    Large models grow such channels by themselves, the same ones in all blocks; small models do not
    (LLM.int8(), §4). The function stays the same, bit for bit if the factor is a power of two (and
    norms do not store γ − 1, as Gemma's do)."""
    require_free(model, "plant_outliers")
    d = model.config.d_model
    if not 1 <= channels <= d:
        raise ValueError(f"plant_outliers: channels must lie in 1 … {d}, got {channels}")
    if not 0 < factor < np.inf:
        raise ValueError(f"plant_outliers: the factor must be positive and finite, got {factor}")
    planted = np.sort(np.random.default_rng(rng).choice(d, channels, replace=False))
    s = np.ones(d)
    s[planted] = 1 / factor
    for norm, paths in followers(model).items():
        fold_scale(model.get(norm), [model.get(path) for path in paths], s)
    return planted
