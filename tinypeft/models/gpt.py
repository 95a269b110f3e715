"""GPT-2's architecture (Radford et al. 2019).

    h₀ = E[tokens] + P[positions]
    h ← h + Attention(LayerNorm(h)),   h ← h + MLP(LayerNorm(h))          in every block
    logits = LayerNorm(h) Eᵀ                                              the head is tied to E

Query, key and value are three projections and not one fused matrix, so that a method can adapt each
separately. `decoder.py` has what a GPT shares with other language models.
"""
import functools
from dataclasses import dataclass

import numpy as np

from ..common.hints import Seed
from ..common.hyper import Checked, real, whole
from ..engine import functional as F
from ..engine.nn import Dropout, Embedding, LayerNorm, Linear, Module
from ..engine.tensor import Tensor
from .cache import LayerCache
from .decoder import Block, Decoder, LayerPrefix, attend, heads, residual_std

__all__ = ["GPT", "GPTConfig"]


@dataclass(frozen=True)
class GPTConfig(Checked):
    """The sizes of a GPT. d_model must divide into n_heads; the MLP is 4 d_model wide."""
    vocab_size: int = whole(1024, least=1)
    context_length: int = whole(256, least=1, also=("n_positions", "n_ctx", "block_size"))
    d_model: int = whole(128, least=1, also=("n_embd", "hidden_size"))
    n_layers: int = whole(6, least=1, also=("n_layer", "num_hidden_layers"))
    n_heads: int = whole(4, least=1, also=("n_head", "num_attention_heads"))
    dropout: float = real(0.0, least=0, below=1)
    norm_eps: float = real(1e-5, least=0, most=1, also=("layer_norm_epsilon",))

    d_head = property(lambda self: self.d_model // self.n_heads)
    n_kv_heads = property(lambda self: self.n_heads)

    def check(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"GPTConfig: d_model {self.d_model} does not divide into "
                             f"{self.n_heads} heads")


class Attention(Module):
    """Multi-head causal self-attention."""

    def __init__(self, c, rng):
        d = c.d_model
        self.n_heads = c.n_heads
        self.query = Linear(d, d, rng=rng)
        self.key = Linear(d, d, rng=rng)
        self.value = Linear(d, d, rng=rng)
        self.output = Linear(d, d, rng=rng, std=residual_std(c))
        self.dropout = Dropout(c.dropout)
        self.residual_dropout = Dropout(c.dropout)

    def forward(self, x: Tensor, prefix: LayerPrefix | None = None,
                cache: LayerCache | None = None) -> Tensor:
        q = heads(self.query(x), self.n_heads)
        k = heads(self.key(x), self.n_heads)
        v = heads(self.value(x), self.n_heads)
        p = self.dropout.p if self.dropout.training else 0.0
        o = attend(q, k, v, prefix, cache, dropout=p, rng=self.dropout.rng)
        return self.residual_dropout(self.output(o))


class MLP(Module):
    """down(GELU(up(x))), GELU in its tanh form."""

    def __init__(self, c, rng):
        self.up = Linear(c.d_model, 4 * c.d_model, rng=rng)
        self.down = Linear(4 * c.d_model, c.d_model, rng=rng, std=residual_std(c))
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(x))))


class GPT(Decoder):
    """A GPT with random weights."""

    Config = GPTConfig

    def __init__(self, config: GPTConfig, rng: Seed = 0):
        rng = np.random.default_rng(rng)
        super().__init__(config, rng)
        norm = functools.partial(LayerNorm, config.d_model, config.norm_eps)
        self.position_embedding = Embedding(config.context_length, config.d_model, rng, std=0.01)
        self.dropout = Dropout(config.dropout)
        self.blocks = []
        for _ in range(config.n_layers):
            attention = Attention(config, rng)
            self.blocks.append(Block(norm(), attention, norm(), MLP(config, rng)))
        self.final_norm = norm()

    def embed(self, x: Tensor, past: int) -> Tensor:
        positions = np.arange(past, past + x.shape[1])
        return self.dropout(x + self.position_embedding(positions))

