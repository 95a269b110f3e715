"""A decoder: the parts of a language model that GPT-2, the Llama family and Gemma share.

    x = embed(E[tokens])           where a subclass may add positions
    x = block(x)                   in every block
    logits = final_norm(x) Eᵀ      the head is tied to E, or `lm_head` is a matrix of its own

Two seams let a method add *virtual tokens* without touching the model: `prompt=` takes vectors that
enter before the first token or between tokens, and `prefix=` takes keys and values that each
layer's attention sees before its own. The generation cache is a prefix that grows.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from ..common.hints import Array, Rng
from ..engine import functional as F
from ..engine.nn import Embedding, Linear, Module, Parameter, check_names, shapes_only
from ..engine.recompute import run_block
from ..engine.tensor import GraphError, Tensor, concatenate
from .generation import KVCache, LayerCache, generate

__all__ = ["Block", "Decoder", "Prefix", "attend", "heads", "require_free"]

Prefix = list[tuple[Tensor, Tensor]]                     # one (K, V) per layer


class Block(Module):
    """x + attention(norm1(x)), and to that + mlp(norm2(·)); a family of models gives the parts."""

    def __init__(self, norm1: Module, attention: Module, norm2: Module, mlp: Module):
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None,
                cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), prefix, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(Module):
    """What a language model does with its parts; a subclass makes them, with random weights.

    config: a `Config`, with vocab_size, context_length, d_model, n_layers, n_kv_heads, d_head.
    blocks: modules, called as block(x, prefix, cache)."""
    Config: ClassVar[type]
    tokenizer: Any = None
    attachment: Any = None                               # what `peft.attach` changed here
    blocks: list[Module]
    final_norm: Module
    lm_head: Linear | None = None                        # None: tied to the token embedding
    head: Module | None = None                           # a classifier, where a task needs one

    def __init__(self, config: Any, rng: Rng):
        if not isinstance(config, self.Config):
            raise TypeError(f"{type(self).__name__}: expected a {self.Config.__name__}, "
                            f"got {type(config).__name__}")
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.d_model, rng)

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """name → shape of every parameter of a model without a classifier. It takes no memory."""
        return {name: p.shape for name, p in cls._unfilled(config).named_parameters()}

    @classmethod
    def _unfilled(cls, config):
        """A model whose parameters have shapes and no memory."""
        try:
            with shapes_only(): return cls(config)
        except (ValueError, OverflowError) as e:
            raise ValueError(f"no array has the shapes of {config}") from e

    @classmethod
    def from_arrays(cls, config: Any, arrays: Mapping[str, Array],
                    layers: Mapping[str, Module] | None = None) -> Self:
        """A model whose parameters are `arrays`, which have the names of `state_dict`.

        It takes no memory beside the arrays. layers: path → the layer to have there in place of a
        `Linear`, with its weight and bias. The model has a head if there is a "head.weight".
        Raises KeyError for names missing or unknown, ValueError for shapes that do not fit
        `config`, and for arrays that are not all float32, or all float64."""
        layers, d = layers or {}, config.d_model
        if 2 * config.n_layers > len(arrays):            # its norms alone are 2 arrays per block
            raise ValueError(f"{len(arrays)} arrays are too few for {config.n_layers} layers")
        model = cls._unfilled(config)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        for path, layer in layers.items():
            expected, _ = shapes.pop(f"{path}.weight", None), shapes.pop(f"{path}.bias", None)
            if (layer.d_out, layer.d_in) != expected:
                kind = f"none: a {cls.__name__} has no such layer"
                raise ValueError(f"{path} has a weight of shape {(layer.d_out, layer.d_in)}, "
                                 f"expected {expected or kind}")
        if "head.weight" in arrays:
            shapes["head.weight"] = (*arrays["head.weight"].shape[:1], d)
            if "head.bias" in arrays: shapes["head.bias"] = shapes["head.weight"][:1]
            with shapes_only(): model.head = Linear(d, 1, bias="head.bias" in arrays)
        check_names(shapes, arrays)
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
        if (kinds := {a.dtype.name for a in arrays.values()}) not in ({"float32"}, {"float64"}):
            raise ValueError(f"the arrays are {' and '.join(sorted(kinds))}, expected float32 or "
                             "float64 for all")
        modules = dict(model.named_modules())
        for name, part in [*layers.items(), *((n, Parameter(a)) for n, a in arrays.items())]:
            path, _, kind = name.rpartition(".")
            setattr(modules[path], kind, part)
        return model

    @property
    def attached(self) -> Any:
        """The method on this model, or None."""
        return self.attachment and self.attachment.method

    def embed(self, x: Tensor, past: int) -> Tensor:
        """What enters the first block; x (B, n, d) are embedded tokens and virtual vectors at
        positions past … past + n − 1."""
        return x

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
        """Hidden states (…, d) → logits (…, V), by `lm_head` or the transposed embedding."""
        return F.linear(hidden, (self.lm_head or self.token_embedding).weight)

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
        who = type(self).__name__
        if isinstance(tokens, Tensor):
            raise TypeError(f"{who}: tokens are integers, got a Tensor of floats")
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(f"{who}: tokens must have shape (B, T), B and T ≥ 1, "
                             f"got {tokens.shape}")
        B, T = tokens.shape
        self._check_virtual(B, prompt, prefix, cache)
        x, read = self.token_embedding(tokens), None                    # (B, T, d)
        if prompt is not None:
            x, read = _interleave(_expand(prompt, B, 3), x, prompt_at)  # (B, P + T, d)
        past = prefix[0][0].shape[-2] if prefix else cache.length if cache else 0
        end, context = past + x.shape[1], self.config.context_length
        if end > context:
            raise ValueError(f"{who}: {end} positions ({T} tokens, {x.shape[1] - T} prompt "
                             f"vectors, {past} of prefix or cache) exceed the context of {context}")
        x = self.embed(x, past)
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, prefix and prefix[i], cache and cache.layers[i])
        x = self.final_norm(x)
        return x if read is None else x[np.arange(B)[:, None], read]    # drops the virtual tokens

    def _check_virtual(self, B, prompt, prefix, cache):
        c, d, who = self.config, self.config.d_model, type(self).__name__
        fits = lambda t, *shape: t.shape in (shape, (B, *shape))
        if prompt is not None and not (prompt.ndim > 1 and fits(prompt, prompt.shape[-2], d)):
            raise ValueError(f"{who}: prompt must have shape (P, {d}) or ({B}, P, {d}), "
                             f"got {prompt.shape}")
        if prefix is None: return
        if cache is not None and cache.length:
            raise ValueError(f"{who}: a prefix comes first, but the cache holds {cache.length} "
                             "positions already")
        if len(prefix) != c.n_layers:
            raise ValueError(f"{who}: one (K, V) for each of the {c.n_layers} layers, "
                             f"got {len(prefix)}")
        shape = c.n_kv_heads, prefix[0][0].shape[-2], c.d_head
        for i, (k, v) in enumerate(prefix):
            if not (fits(k, *shape) and fits(v, *shape)):
                raise ValueError(f"{who}: the prefix of layer {i} must have shapes {shape} or "
                                 f"{(B, *shape)}, got {k.shape} and {v.shape}")

    def generate(self, tokens: Array, max_new_tokens: int, **options: Any) -> Array:
        """Continue `tokens` (B, T) by up to `max_new_tokens`; options as in `tinypeft.generate`."""
        return generate(self, tokens, max_new_tokens, **options)

    def describe(self) -> str: return f"({self.n_parameters():,} parameters)"


def require_free(model: Any, verb: str) -> None:
    """Raise ValueError if a method is on `model`, or returns to it, because `verb` would change the
    model below it. Raise TypeError for anything but a `Decoder`."""
    base = getattr(model, "model", model)                # of a PeftModel
    mark = getattr(base, "attachment", None)
    if mark is not None:
        raise mark.error(f"{verb}: {mark.reason}")
    if not isinstance(model, Decoder):
        raise TypeError(f"{verb}: expected a language model, got {type(model).__name__}")


def heads(x: Tensor, n: int) -> Tensor:
    """(B, T, n d_head) → (B, n, T, d_head); head h takes columns h d_head … (h + 1) d_head."""
    B, T, _ = x.shape
    return x.reshape(B, T, n, -1).transpose(0, 2, 1, 3)


def attend(q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None,
           cache: LayerCache | None, **options: Any) -> Tensor:
    """Attention over a prefix or the cached past, and over k and v themselves.

    q (B, H, T, d_head), k and v (B, n_kv_heads, T, d_head) → (B, T, H d_head). options: of
    `functional.attention`. Appends k and v to the cache."""
    B, H, T, d = q.shape
    if prefix is not None:
        K, V = (_expand(p, B, 4) for p in prefix)
        k, v = concatenate([K, k], axis=2), concatenate([V, v], axis=2)
    if cache is not None and (k.requires_grad or v.requires_grad):
        raise GraphError("a cache keeps numbers without their history, so gradients would be "
                         "lost; use no_grad() or no cache")
    attention = F.attention if cache is None else cache.attend
    return attention(q, k, v, **options).transpose(0, 2, 1, 3).reshape(B, T, H * d)


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
