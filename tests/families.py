"""One tiny random model of each family beside GPT, of `conftest.TINY`'s vocabulary, context and number of layers."""
from dataclasses import replace

import numpy as np

from tests.conftest import make_gpt
from tinypeft.models.gemma import Gemma, GemmaConfig
from tinypeft.models.llama import Llama, LlamaConfig

__all__ = ["FAMILIES", "make"]

LLAMA = LlamaConfig(37, 24, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=20, d_head=6, rope_theta=1e3)
QWEN = {"d_model": 16, "d_head": 10, "qk_norm": True, "tied": False}         # heads wider than d_model / n_heads
GEMMA = GemmaConfig(37, 24, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=20, d_head=6, window=4, global_every=2,
                    rope_theta=1e3, local_theta=1e2, query_scale=10)
FAMILIES = {"Llama": (Llama, LLAMA, {}), "Qwen3": (Llama, LLAMA, QWEN), "Gemma": (Gemma, GEMMA, {})}


def make(family, dtype=np.float64, rng=0, **sizes):
    """A model whose every parameter, norms included, is random and large enough to matter."""
    if family == "GPT": return make_gpt(dtype, rng, **sizes)
    cls, config, own = FAMILIES[family]
    model, rng = cls(replace(config, **own | sizes)).to(dtype), np.random.default_rng(rng)
    for name, p in model.named_parameters():
        p.data[...] = 0.3 * rng.standard_normal(p.shape) + ("norm" in name and cls is Llama)       # Gemma's: 1 + w
    return model
