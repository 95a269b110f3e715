"""Llama's architecture (Touvron et al., arXiv 2302.13971), of SmolLM2, TinyLlama and Qwen3, too.

    h₀ = E[tokens]
    h ← h + Attention(RMSNorm(h)),   h ← h + MLP(RMSNorm(h))              in every block
    logits = RMSNorm(h) Eᵀ                                                or a matrix of its own

    Attention: q and k are rotated by their positions; n_heads heads of queries share n_kv_heads
    heads of keys and values (grouped-query attention, Ainslie et al., arXiv 2305.13245)
    MLP: down(silu(gate(x)) ⊙ up(x)); no layer has a bias

*Rotary embeddings* (RoPE; Su et al., arXiv 2104.09864) take the place of learned positions. The
numbers x_i and x_{i + d/2} of a head form a pair, i = 0 … d/2 − 1. Position t rotates the pair by
the angle φ = t θ^(−2i/d). Then q·k depends only on the distance of the two positions.

Where things differ. The paper of RoPE, and GGUF files of this family, pair neighbours, x_{2i} and
x_{2i+1}. Hugging Face's files pair halves, as this file does. One becomes the other by reordering
the rows of W_q and W_k (`interop`). A model with the wrong pairing writes grammatical text that
ignores what came before. transformers computes the angles in float32; this file uses float64.
Qwen3 normalizes each head of q and k before the rotation (`qk_norm`), and its heads are wider than
d_model / n_heads (`d_head`).
"""
from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from . import functional as F
from .decoder import Block, Decoder, attend, heads
from .generate import LayerCache
from .hints import Array, Seed
from .hyper import Checked, flag, real, whole
from .nn import Linear, Module, RMSNorm
from .tensor import Tensor

__all__ = ["Llama", "LlamaConfig"]


@dataclass(frozen=True)
class LlamaConfig(Checked):
    """The sizes of a Llama. The defaults are SmolLM2-135M's.

    n_kv_heads divides n_heads. d_head: the width of a head, an even number. d_mlp: the width of the
    MLP. tied: the output head is the transposed token embedding. qk_norm: Qwen3's norms of q, k."""
    vocab_size: int = whole(49152, least=1)
    context_length: int = whole(8192, least=1, also=("max_position_embeddings",))
    d_model: int = whole(576, least=1, also=("hidden_size",))
    n_layers: int = whole(30, least=1, also=("num_hidden_layers",))
    n_heads: int = whole(9, least=1, also=("num_attention_heads",))
    n_kv_heads: int = whole(3, least=1, also=("num_key_value_heads",))
    d_mlp: int = whole(1536, least=1, also=("intermediate_size",))
    d_head: int = whole(64, least=2, also=("head_dim",))
    rope_theta: float = real(1e5, above=0)
    norm_eps: float = real(1e-5, least=0, also=("rms_norm_eps",))
    tied: bool = flag(True, also=("tie_word_embeddings",))
    qk_norm: bool = flag(False)

    residual_std = property(lambda self: 0.02 / (2 * self.n_layers) ** 0.5)

    def check(self) -> None:
        if self.n_heads % self.n_kv_heads or self.d_head % 2:
            raise ValueError(f"LlamaConfig: n_kv_heads {self.n_kv_heads} must divide n_heads "
                             f"{self.n_heads}, and d_head {self.d_head} must be even")


class Attention(Module):
    """Causal self-attention with rotated queries and keys, in groups of heads."""

    def __init__(self, c, rng):
        d, q, kv = c.d_model, c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        self.config = c
        self.query = Linear(d, q, bias=False, rng=rng)
        self.key, self.value = (Linear(d, kv, bias=False, rng=rng) for _ in range(2))
        self.output = Linear(q, d, bias=False, rng=rng, std=c.residual_std)
        self.query_norm, self.key_norm = (RMSNorm(c.d_head, c.norm_eps) if c.qk_norm else None
                                          for _ in range(2))

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None,
                cache: LayerCache | None = None) -> Tensor:
        c, n = self.config, x.shape[1]
        q = heads(self.query(x), c.n_heads)                            # (B, H, n, d_head)
        k, v = heads(self.key(x), c.n_kv_heads), heads(self.value(x), c.n_kv_heads)
        if self.query_norm is not None: q, k = self.query_norm(q), self.key_norm(k)
        past = prefix[0].shape[-2] if prefix else cache.length if cache else 0
        at = [a[past:past + n] for a in angles(c.rope_theta, c.d_head, c.context_length, x.dtype)]
        return self.output(attend(F.rotary(q, *at), F.rotary(k, *at), v, prefix, cache))


@functools.lru_cache(maxsize=8)
def angles(theta: float, d: int, n: int, dtype: np.dtype) -> tuple[Array, Array]:
    """cos φ and sin φ, (n, d/2) each, of the angles φ = t θ^(−2i/d) for positions t < n."""
    phi = np.arange(n)[:, None] * theta ** (-2 * np.arange(d // 2) / d)
    return np.cos(phi).astype(dtype), np.sin(phi).astype(dtype)


class MLP(Module):
    """down(silu(gate(x)) ⊙ up(x)): SwiGLU."""

    def __init__(self, c, rng):
        self.gate, self.up = (Linear(c.d_model, c.d_mlp, bias=False, rng=rng) for _ in range(2))
        self.down = Linear(c.d_mlp, c.d_model, bias=False, rng=rng, std=c.residual_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.swiglu(self.gate(x), self.up(x)))


class Llama(Decoder):
    """A Llama with random weights."""

    Config = LlamaConfig

    def __init__(self, config: LlamaConfig, rng: Seed = 0):
        rng = np.random.default_rng(rng)
        super().__init__(config, rng)
        norm = lambda: RMSNorm(config.d_model, config.norm_eps)
        self.blocks = [Block(norm(), Attention(config, rng), norm(), MLP(config, rng))
                       for _ in range(config.n_layers)]
        self.final_norm = norm()
        if not config.tied:
            self.lm_head = Linear(config.d_model, config.vocab_size, bias=False, rng=rng)
