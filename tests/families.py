"""One tiny random model of each family, of `conftest.TINY`'s sizes: 37 tokens, a context of 24, 2 layers."""
import numpy as np

from tests.conftest import make_gpt
from tinypeft.llama import Llama, LlamaConfig

__all__ = ["FAMILIES", "make"]

LLAMA = LlamaConfig(37, 24, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=20, d_head=6, rope_theta=1e3)
FAMILIES = {"GPT": {}, "Llama": {},
            "Qwen3": {"d_model": 16, "d_head": 10, "qk_norm": True, "tied": False}}    # heads wider than d_model / n_heads


def make(family, dtype=np.float64, rng=0, **sizes):
    """A model whose every parameter, norms included, is random and large enough to matter."""
    if family == "GPT": return make_gpt(dtype, rng, **sizes)
    return filled(Llama(LlamaConfig(**{**vars(LLAMA), **FAMILIES[family], **sizes})), dtype, rng)


def filled(model, dtype, rng):
    model, rng = model.to(dtype), np.random.default_rng(rng)
    for name, p in model.named_parameters():
        p.data[...] = 0.3 * rng.standard_normal(p.shape) + ("norm" in name and name.endswith("weight"))
    return model
