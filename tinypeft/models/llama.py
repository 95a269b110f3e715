"""Llama's architecture (Touvron et al., arXiv 2302.13971), of SmolLM2, TinyLlama and Qwen, too.

    h₀ = E[tokens]
    h ← h + Attention(RMSNorm(h)),   h ← h + MLP(RMSNorm(h))              in every block
    logits = RMSNorm(h) Eᵀ                                                or a matrix of its own

    Attention: q and k are rotated by their positions; n_heads heads of queries share n_kv_heads
    heads of keys and values (grouped-query attention, Ainslie et al., arXiv 2305.13245)
    MLP: down(silu(gate(x)) ⊙ up(x))

`rotary.py` has the angles of the rotary embeddings, which take the place of learned positions.

Where things differ. The paper of RoPE, and GGUF files of this family, pair neighbours, x_{2i} and
x_{2i+1}. Hugging Face's files pair halves, as this file does. One becomes the other by reordering
the rows of W_q and W_k (`interop`). A model with the wrong pairing writes grammatical text that
ignores what came before. Qwen 2.5 adds biases to q, k and v (`qkv_bias`). Qwen 3 normalizes each
head of q and k before the rotation (`qk_norm`), and its heads are wider than d_model / n_heads.
"""
import functools
from dataclasses import dataclass

import numpy as np

from ..common.hints import Seed
from ..common.hyper import Checked, flag, one_of, real, whole
from ..engine import functional as F
from ..engine.nn import Linear, Module, RMSNorm
from ..engine.tensor import Tensor
from .cache import LayerCache
from .decoder import Block, Decoder, LayerPrefix, attend, heads, past_length, residual_std
from .rotary import KINDS, Rotary, angles

__all__ = ["Llama", "LlamaConfig"]


class Grouped(Checked):
    """What the sizes of models with grouped heads and rotary embeddings must obey."""

    def check(self) -> None:
        if self.n_heads % self.n_kv_heads or self.d_head % 2:
            raise ValueError(f"{type(self).__name__}: n_kv_heads {self.n_kv_heads} must divide "
                             f"n_heads {self.n_heads}, and d_head {self.d_head} must be even")


@dataclass(frozen=True)
class LlamaConfig(Grouped):
    """The sizes of a Llama. The defaults are SmolLM2-135M's.

    n_kv_heads divides n_heads. d_head: the width of a head, an even number. d_mlp: the width of the
    MLP. tied: the output head is the transposed token embedding. qk_norm: Qwen3's norms of q, k.
    qkv_bias: Qwen 2.5's biases of q, k, v. rope_…: the fields of `Rotary`."""
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
    qkv_bias: bool = flag(False)
    rope_kind: str = one_of(*KINDS, also=("rope_type",))
    rope_factor: float = real(1.0, least=1)
    rope_context: int | None = whole(None, least=1, or_none=True)
    rope_low: float = real(1.0, above=0)
    rope_high: float = real(4.0, above=0)
    rope_magnitude: float = real(1.0, above=0)

    def check(self) -> None:
        super().check()
        kind = f"rope_kind={self.rope_kind!r}"
        if self.rope_kind in ("dynamic", "yarn", "llama3") and self.rope_context is None:
            raise ValueError(f"LlamaConfig: {kind} needs rope_context, the length of training")
        if self.rope_kind == "dynamic" and self.d_head == 2:
            raise ValueError(f"LlamaConfig: {kind} needs a d_head of 4 or more, got 2")
        if self.rope_low >= self.rope_high:
            raise ValueError(f"LlamaConfig: expected rope_low < rope_high, got {self.rope_low:g} "
                             f"and {self.rope_high:g}")

    @property
    def rotary(self) -> Rotary:
        return Rotary(self.rope_theta, self.d_head, self.rope_kind, self.rope_factor,
                      self.rope_context, self.rope_low, self.rope_high, self.rope_magnitude)


class Attention(Module):
    """Causal self-attention with rotated queries and keys, in groups of heads.

    norm: makes a norm of width d_head, or is None; each head of q and of k is then normalized
    first. bias: of q, k and v. options: of `functional.attention`."""

    def __init__(self, c, rng, rotary, norm=None, bias=False, **options):
        d = c.d_model
        d_q = c.n_heads * c.d_head
        d_kv = c.n_kv_heads * c.d_head
        linear = functools.partial(Linear, bias=bias, rng=rng)
        self.config = c
        self.rotary = rotary
        self.options = options
        self.query = linear(d, d_q)
        self.key = linear(d, d_kv)
        self.value = linear(d, d_kv)
        self.output = Linear(d_q, d, bias=False, rng=rng, std=residual_std(c))
        self.query_norm = norm and norm(c.d_head)
        self.key_norm = norm and norm(c.d_head)

    def forward(self, x: Tensor, prefix: LayerPrefix | None = None,
                cache: LayerCache | None = None) -> Tensor:
        c = self.config
        q = heads(self.query(x), c.n_heads)                            # (B, H, n, d_head)
        k = heads(self.key(x), c.n_kv_heads)
        v = heads(self.value(x), c.n_kv_heads)
        if self.query_norm is not None:
            q = self.query_norm(q)
            k = self.key_norm(k)
        past = past_length(prefix, cache)
        cos, sin = angles(self.rotary, past, past + x.shape[1], x.dtype)
        q = F.rotary(q, cos, sin)
        k = F.rotary(k, cos, sin)
        o = attend(q, k, v, prefix, cache, **self.options)
        return self.output(o)


class MLP(Module):
    """down(a(gate(x)) ⊙ up(x)): SwiGLU, or another function of the two, `gated`."""

    def __init__(self, c, rng, gated=F.swiglu):
        linear = functools.partial(Linear, bias=False, rng=rng)
        self.gate = linear(c.d_model, c.d_mlp)
        self.up = linear(c.d_model, c.d_mlp)
        self.down = linear(c.d_mlp, c.d_model, std=residual_std(c))
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gated(self.gate(x), self.up(x)))


class Llama(Decoder):
    """A Llama with random weights."""

    Config = LlamaConfig

    def __init__(self, config: LlamaConfig, rng: Seed = 0):
        rng = np.random.default_rng(rng)
        super().__init__(config, rng)
        c = config
        norm = functools.partial(RMSNorm, eps=c.norm_eps)
        self.blocks = []
        for _ in range(c.n_layers):
            attention = Attention(c, rng, c.rotary, norm if c.qk_norm else None, c.qkv_bias)
            mlp = MLP(c, rng)
            self.blocks.append(Block(norm(c.d_model), attention, norm(c.d_model), mlp))
        self.final_norm = norm(c.d_model)
        if not c.tied:
            self.lm_head = Linear(c.d_model, c.vocab_size, bias=False, rng=rng)
