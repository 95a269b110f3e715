"""GPT-2's architecture (Radford et al. 2019).

    h₀ = E[tokens] + P[positions]
    h ← h + Attention(LayerNorm(h)),   h ← h + MLP(LayerNorm(h))          in every block
    logits = LayerNorm(h) Eᵀ                                              the head is tied to E

Query, key and value are three projections and not one fused matrix, so that a method can adapt each
separately. Two seams let a method add *virtual tokens* without touching the model: `prompt=` takes
vectors that enter before the first token or between tokens, and `prefix=` takes keys and values
that each layer's attention sees before its own. The generation cache is a prefix that grows.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import functional as F
from .generate import KVCache, LayerCache, generate
from .hints import Array, Seed
from .hyper import Checked, real, whole
from .nn import Dropout, Embedding, LayerNorm, Linear, Module, Parameter, check_names
from .tensor import GraphError, Tensor, concatenate

__all__ = ["GPT", "GPTConfig", "parameter_shapes"]


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

    # The start of a layer whose output joins the residual stream, to which 2 L layers add.
    residual_std = property(lambda self: 0.02 / (2 * self.n_layers) ** 0.5)

    def check(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"GPTConfig: d_model {self.d_model} does not divide into "
                             f"{self.n_heads} heads")


Prefix = list[tuple[Tensor, Tensor]]                     # one (K, V) per layer


class Attention(Module):
    """Multi-head causal self-attention; head h takes columns h·d_head … (h+1)·d_head of q, k, v."""

    def __init__(self, c, rng):
        self.n_heads, d = c.n_heads, c.d_model
        self.query, self.key, self.value = (Linear(d, d, rng=rng) for _ in range(3))
        self.output = Linear(d, d, rng=rng, std=c.residual_std)
        self.dropout, self.residual_dropout = Dropout(c.dropout), Dropout(c.dropout)

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None,
                cache: LayerCache | None = None) -> Tensor:
        B, T, d = x.shape
        heads = lambda t: t.reshape(B, T, self.n_heads, -1).transpose(0, 2, 1, 3)  # (B, H, T, d_h)
        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        if prefix is not None:
            K, V = (_expand(p, B, 4) for p in prefix)
            k, v = concatenate([K, k], axis=2), concatenate([V, v], axis=2)
        if cache is not None:
            if k.requires_grad or v.requires_grad:
                raise GraphError("GPT: a cache keeps numbers without their history, so gradients "
                                 "would be lost; use no_grad() or no cache")
            k, v = cache.append(k, v)                                              # (B, H, S, d_h)
        drop = self.dropout
        o = F.attention(q, k, v, dropout=drop.p if drop.training else 0.0, rng=drop.rng)
        return self.residual_dropout(self.output(o.transpose(0, 2, 1, 3).reshape(B, T, d)))


class MLP(Module):
    """down(GELU(up(x))), GELU in its tanh form."""

    def __init__(self, c, rng):
        self.up = Linear(c.d_model, 4 * c.d_model, rng=rng)
        self.down = Linear(4 * c.d_model, c.d_model, rng=rng, std=c.residual_std)
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(x))))


class Block(Module):
    """x + Attention(LayerNorm(x)), and to that + MLP(LayerNorm(·))."""

    def __init__(self, c, rng):
        self.norm1, self.attention = LayerNorm(c.d_model, c.norm_eps), Attention(c, rng)
        self.norm2, self.mlp = LayerNorm(c.d_model, c.norm_eps), MLP(c, rng)

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None,
                cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), prefix, cache)
        return x + self.mlp(self.norm2(x))


class GPT(Module):
    """A GPT with random weights. `interop/gpt2.py` adds `from_huggingface` and `to_huggingface`."""

    def __init__(self, config: GPTConfig, rng: Seed = 0):
        if not isinstance(config, GPTConfig):
            raise TypeError(f"GPT: expected a GPTConfig, got {type(config).__name__}")
        rng = np.random.default_rng(rng)
        self.config, self.tokenizer = config, None
        self.attachment = None                           # what `peft.attach` changed here
        d = config.d_model
        self.token_embedding = Embedding(config.vocab_size, d, rng=rng)
        self.position_embedding = Embedding(config.context_length, d, rng=rng, std=0.01)
        self.dropout = Dropout(config.dropout)
        self.blocks = [Block(config, rng) for _ in range(config.n_layers)]
        self.final_norm = LayerNorm(d, config.norm_eps)
        self.head = None                                 # a classifier, where a task needs one

    @property
    def attached(self) -> Any:
        """The method on this model, or None."""
        return self.attachment and self.attachment.method

    def check_free(self, verb: str) -> None:
        """Raise ValueError if a method is on this model, or is to return to it: nothing else may
        change the model then. verb: who asks, for the message."""
        if self.attachment is not None: self.attachment.refuse(verb)

    @classmethod
    def from_arrays(cls, config: GPTConfig, arrays: Mapping[str, Array],
                    layers: Mapping[str, Module] | None = None) -> GPT:
        """A GPT whose parameters are `arrays`, which have the names of `state_dict`.

        It takes no memory beside the arrays. layers: path → the layer to have there in place of a
        `Linear`, with its weight and bias. The model has a head if there is a "head.weight".
        Raises KeyError for names missing or unknown, ValueError for shapes that do not fit
        `config`, and for arrays that are not all float32, or all float64."""
        layers = layers or {}
        if 4 * config.n_layers > len(arrays):            # its norms alone are 4 arrays per block
            raise ValueError(f"{len(arrays)} arrays are too few for {config.n_layers} layers")
        shapes = parameter_shapes(config)
        for path, layer in layers.items():
            expected, _ = shapes.pop(f"{path}.weight", None), shapes.pop(f"{path}.bias", None)
            if (layer.d_out, layer.d_in) != expected:
                raise ValueError(f"{path} has a weight of shape {(layer.d_out, layer.d_in)}, "
                                 f"expected {expected or 'none: a GPT has no such layer'}")
        if "head.weight" in arrays:
            shapes["head.weight"] = (*arrays["head.weight"].shape[:1], config.d_model)
            if "head.bias" in arrays: shapes["head.bias"] = shapes["head.weight"][:1]
        check_names(shapes, arrays)
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
        if (kinds := {a.dtype.name for a in arrays.values()}) not in ({"float32"}, {"float64"}):
            raise ValueError(f"the arrays are {' and '.join(sorted(kinds))}, expected float32 or "
                             "float64 for all")
        model = cls(replace(config, vocab_size=1, context_length=1, d_model=1, n_heads=1))
        model.config = config                            # a tiny model costs next to nothing
        for block in model.blocks: block.attention.n_heads = config.n_heads
        if "head.weight" in arrays: model.head = Linear(1, 1, bias="head.bias" in arrays)
        modules = dict(model.named_modules())
        for name, part in [*layers.items(), *((n, Parameter(a)) for n, a in arrays.items())]:
            path, _, kind = name.rpartition(".")
            setattr(modules[path], kind, part)
        return model

    def forward(self, tokens: Array, prompt: Tensor | None = None, prompt_at: Array | None = None,
                prefix: Prefix | None = None, cache: KVCache | None = None,
                last: bool = False) -> Tensor:
        """tokens (B, T) integers → logits (B, T, V); position t predicts token t + 1.

        prompt: Tensor (P, d) or (B, P, d), vectors that enter like embedded tokens.
        prompt_at: their places (P,) or (B, P) in the lengthened sequence (default 0 … P−1, before
            all tokens). They get no logits; token t + 1 is predicted at the last place before it.
        prefix: one (K, V) per layer, each Tensor (H, P, d_head) or (B, H, P, d_head). Token
            positions then start at P.
        cache: a `KVCache` that holds the past; this call appends its keys and values.
        last: return only the logits of the last position, (B, 1, V). Generation needs no others.
        """
        h = self.hidden(tokens, prompt, prompt_at, prefix, cache)
        return self.logits(h[:, -1:] if last else h)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, d) → logits (…, V), by the transposed token embedding."""
        return F.linear(hidden, self.token_embedding.weight)

    def classify(self, tokens: Array, lengths: Array, **virtual: Any) -> Tensor:
        """tokens (B, T), of which row b has lengths[b] → class logits (B, C).

        `head` reads the last token of the row, the only position that has seen the whole row.
        virtual: prompt, prompt_at or prefix, as for `forward`.
        """
        if self.head is None:
            raise ValueError("classify: this model has no classification head; "
                             "attach(model, method, head=n_classes) adds one")
        (B, T), lengths = np.shape(tokens), np.asarray(lengths)
        if lengths.shape != (B,) or lengths.min() < 1 or lengths.max() > T:
            raise ValueError(f"classify: lengths must be {B} numbers in [1, {T}], got {lengths}")
        return self.head(self.hidden(tokens, **virtual)[np.arange(B), lengths - 1])

    def hidden(self, tokens: Array, prompt: Tensor | None = None, prompt_at: Array | None = None,
               prefix: Prefix | None = None, cache: KVCache | None = None) -> Tensor:
        """As `forward`, but returns the final hidden states (B, T, d)."""
        if isinstance(tokens, Tensor):
            raise TypeError("GPT: tokens are integers, got a Tensor of floats")
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(f"GPT: tokens must have shape (B, T), B and T ≥ 1, got {tokens.shape}")
        B, T = tokens.shape
        self._check_virtual(B, prompt, prefix, cache)
        x, read = self.token_embedding(tokens), None                    # (B, T, d)
        if prompt is not None:
            x, read = _interleave(_expand(prompt, B, 3), x, prompt_at)  # (B, P + T, d)
        past = prefix[0][0].shape[-2] if prefix else cache.length if cache else 0
        end, context = past + x.shape[1], self.config.context_length
        if end > context:
            raise ValueError(f"GPT: {end} positions ({T} tokens, {x.shape[1] - T} prompt vectors, "
                             f"{past} of prefix or cache) exceed the context of {context}")
        x = self.dropout(x + self.position_embedding(np.arange(past, end)))
        for i, block in enumerate(self.blocks):
            x = block(x, prefix and prefix[i], cache and cache.layers[i])
        x = self.final_norm(x)
        return x if read is None else x[np.arange(B)[:, None], read]    # drops the virtual tokens

    def _check_virtual(self, B, prompt, prefix, cache):
        L, H, d = self.config.n_layers, self.config.n_heads, self.config.d_model
        fits = lambda t, *shape: t.shape in (shape, (B, *shape))
        if prompt is not None and not (prompt.ndim > 1 and fits(prompt, prompt.shape[-2], d)):
            raise ValueError(f"GPT: prompt must have shape (P, {d}) or ({B}, P, {d}), "
                             f"got {prompt.shape}")
        if prefix is None: return
        if cache is not None and cache.length:
            raise ValueError(f"GPT: a prefix comes first, but the cache holds {cache.length} "
                             "positions already")
        if len(prefix) != L:
            raise ValueError(f"GPT: one (K, V) for each of the {L} layers, got {len(prefix)}")
        shape = H, prefix[0][0].shape[-2], d // H
        for i, (k, v) in enumerate(prefix):
            if not (fits(k, *shape) and fits(v, *shape)):
                raise ValueError(f"GPT: the prefix of layer {i} must have shapes {shape} or "
                                 f"{(B, *shape)}, got {k.shape} and {v.shape}")

    def generate(self, tokens: Array, max_new_tokens: int, **options: Any) -> Array:
        """Continue `tokens` (B, T) by up to `max_new_tokens`; options as in `tinypeft.generate`."""
        return generate(self, tokens, max_new_tokens, **options)

    def describe(self) -> str: return f"({self.n_parameters():,} parameters)"


def parameter_shapes(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """name → shape of every parameter of a GPT without a head."""
    d = c.d_model
    block = {"attention.query": (d, d), "attention.key": (d, d), "attention.value": (d, d),
             "attention.output": (d, d), "mlp.up": (4 * d, d), "mlp.down": (d, 4 * d),
             "norm1": (d,), "norm2": (d,)}
    layers = {f"blocks.{i}.{name}": shape for i in range(c.n_layers)
              for name, shape in block.items()} | {"final_norm": (d,)}
    shapes = {"token_embedding.weight": (c.vocab_size, d),
              "position_embedding.weight": (c.context_length, d)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _expand(virtual, B, ndim):
    """Give virtual tokens without a batch axis to every row: (P, d) → (B, P, d)."""
    return virtual if virtual.ndim == ndim else virtual + np.zeros((B,) + (1,) * virtual.ndim)


def _interleave(prompt, x, at):
    """Merge prompt (B, P, d) into x (B, T, d), vector j at place at[…, j].

    Also return the places to read, (B, T). Token t is read at the place before token t + 1, its
    own unless virtual tokens stand between. The last token is read at the last place.
    """
    (B, P, _), n = prompt.shape, prompt.shape[1] + x.shape[1]
    at = np.arange(P) if at is None else np.asarray(at)
    if at.shape not in ((P,), (B, P)):
        raise ValueError(f"prompt_at: expected shape ({P},) or ({B}, {P}), got {at.shape}")
    at, virtual = np.broadcast_to(at, (B, P)), np.zeros((B, n), bool)
    if at.size and (at.min() < 0 or at.max() >= n):
        raise ValueError(f"prompt_at: places must lie in [0, {n}) for {P} vectors and {n - P} "
                         f"tokens, got {at.tolist()}")
    np.put_along_axis(virtual, at, True, axis=1)
    if (virtual.sum(1) != P).any():
        raise ValueError(f"prompt_at: two vectors cannot take the same place, got {at.tolist()}")
    real = np.nonzero(~virtual)[1].reshape(B, -1)        # (B, T)
    source = np.empty((B, n), int)                       # place → row of [prompt; x]
    np.put_along_axis(source, at, np.arange(P)[None], axis=1)
    np.put_along_axis(source, real, np.arange(P, n)[None], axis=1)
    read = np.concatenate([real[:, 1:], np.full((B, 1), n)], axis=1) - 1
    return concatenate([prompt, x], axis=1)[np.arange(B)[:, None], source], read
