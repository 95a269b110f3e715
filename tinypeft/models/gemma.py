"""Gemma 3's architecture (Gemma Team, arXiv 2503.19786), of its models for text. It differs from
`llama.py`, on which this file builds, in these points:

    h₀ = √d E[tokens]
    h ← h + norm(Attention(norm(h))),   h ← h + norm(MLP(norm(h)))        four norms a block
    norm(x) = (1 + w) x / √(mean x² + ε)                                  w starts at 0
    MLP: down(GELU(gate(x)) ⊙ up(x)), GELU in its tanh form               GeGLU
    P = softmax(q kᵀ / √s)                                                s may differ from d_head

Five of six layers see the last positions only, the sliding *window*: 512 in the models of 270M and
1B, 1,024 in larger ones. Every sixth layer sees all. The two kinds have their own base θ for the
angles of positions. Each head of q and k is normalized, as in Qwen3. A trained prefix takes
positions like those of tokens: it leaves a window that has passed it, as in transformers and PEFT.

Where things differ. GGUF files hold 1 + w, Hugging Face's files hold w, as this file does.
transformers rounds √d to the model's type and computes norms in float32; this file does not.
Gemma 2 squashes scores and logits by tanh ("softcapping"); that is not here.
"""
import functools
import math
from dataclasses import dataclass

import numpy as np

from ..common.hints import Seed
from ..common.hyper import real, whole
from ..engine import functional as F
from ..engine.nn import RMSNorm
from ..engine.tensor import Tensor
from .cache import LayerCache
from .decoder import Block, Decoder, LayerPrefix
from .llama import MLP, Attention, Grouped
from .rotary import Rotary

__all__ = ["Gemma", "GemmaConfig"]


@dataclass(frozen=True)
class GemmaConfig(Grouped):
    """The sizes of a Gemma 3. The defaults are Gemma-3-270M's.

    n_kv_heads divides n_heads. d_head: the width of a head, an even number. d_mlp: the width of the
    MLP. window: the positions that a layer sees, its own among them; every `global_every`-th layer
    sees all. rope_theta, local_theta: the angles' base in layers that see all, and in the others.
    query_scale: s above."""
    vocab_size: int = whole(262144, least=1)
    context_length: int = whole(32768, least=1, also=("max_position_embeddings",))
    d_model: int = whole(640, least=1, also=("hidden_size",))
    n_layers: int = whole(18, least=1, also=("num_hidden_layers",))
    n_heads: int = whole(4, least=1, also=("num_attention_heads",))
    n_kv_heads: int = whole(1, least=1, also=("num_key_value_heads",))
    d_mlp: int = whole(2048, least=1, also=("intermediate_size",))
    d_head: int = whole(256, least=2, also=("head_dim",))
    window: int = whole(512, least=1, most=1 << 31, also=("sliding_window",))
    global_every: int = whole(6, least=1, also=("sliding_window_pattern",))
    rope_theta: float = real(1e6, above=0)
    local_theta: float = real(1e4, above=0, also=("rope_local_base_freq",))
    query_scale: float = real(256, above=0, also=("query_pre_attn_scalar",))
    norm_eps: float = real(1e-6, least=0, also=("rms_norm_eps",))


class GemmaBlock(Block):
    """x + post_norm1(attention(norm1(x))), and to that + post_norm2(mlp(norm2(·)))."""

    def __init__(self, c, rng, is_global):
        norm = functools.partial(RMSNorm, eps=c.norm_eps, offset=1.0)
        theta = c.rope_theta if is_global else c.local_theta
        window = None if is_global else c.window
        scale = 1 / math.sqrt(c.query_scale)
        rotary = Rotary(theta, c.d_head)
        attention = Attention(c, rng, rotary, norm, scale=scale, window=window)
        mlp = MLP(c, rng, F.geglu)
        super().__init__(norm(c.d_model), attention, norm(c.d_model), mlp)
        self.post_norm1 = norm(c.d_model)
        self.post_norm2 = norm(c.d_model)

    def forward(self, x: Tensor, prefix: LayerPrefix | None = None,
                cache: LayerCache | None = None) -> Tensor:
        a = self.attention(self.norm1(x), prefix, cache)
        x = x + self.post_norm1(a)
        return x + self.post_norm2(self.mlp(self.norm2(x)))


class Gemma(Decoder):
    """A Gemma 3 with random weights."""
    Config = GemmaConfig

    def __init__(self, config: GemmaConfig, rng: Seed = 0):
        rng = np.random.default_rng(rng)
        super().__init__(config, rng)
        self.token_embedding.scale = math.sqrt(config.d_model)
        self.blocks = []
        for i in range(1, config.n_layers + 1):
            is_global = i % config.global_every == 0
            self.blocks.append(GemmaBlock(config, rng, is_global))
        self.final_norm = RMSNorm(config.d_model, config.norm_eps, offset=1.0)
