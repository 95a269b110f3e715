"""A decoder: the parts of a language model that GPT-2, the Llama family and Gemma share.

    x = embed(E[tokens])           where a subclass may add positions
    x = block(x)                   in every block
    logits = final_norm(x) Eᵀ      the head is tied to E, or `lm_head` is a matrix of its own

Three seams let a method work without touching the model. Two add *virtual tokens*: `prompt=` takes
vectors that enter before the first token or between tokens, and `prefix=` takes keys and values
that each layer's attention sees before its own. The generation cache is a prefix that grows.
`hook=` takes a function that changes the states behind each block.
"""
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from ..common.hints import Array, Rng
from ..engine import functional as F
from ..engine.nn import Embedding, Linear, Module
from ..engine.recompute import run_block
from ..engine.tensor import GraphError, Tensor, concatenate
from .assembly import assembled, unfilled
from .cache import KVCache, LayerCache
from .in_words import InWords

__all__ = ["SHIPPED", "Block", "Decoder", "Hook", "LayerPrefix", "Prefix", "attend", "heads",
           "past_length", "require_free", "residual_std"]

LayerPrefix = tuple[Tensor, Tensor]                      # keys and values of virtual tokens
Prefix = list[LayerPrefix]
Hook = Callable[[int, Tensor, Array], Tensor]            # block, states, places of the tokens
TUNINGS = weakref.WeakKeyDictionary()                    # base → the PeftModels made of it
SHIPPED = "the shipped base"                             # the `source` of that model


class Block(Module):
    """x + attention(norm1(x)), and to that + mlp(norm2(·)); a family of models gives the parts."""

    def __init__(self, norm1: Module, attention: Module, norm2: Module, mlp: Module):
        self.norm1 = norm1
        self.attention = attention
        self.norm2 = norm2
        self.mlp = mlp

    def forward(self, x: Tensor, prefix: LayerPrefix | None = None,
                cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), prefix, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(InWords, Module):
    """What a language model does with its parts; a subclass makes them, with random weights.

    config: a `Config`, with vocab_size, context_length, d_model, n_layers, n_kv_heads, d_head.
    blocks: modules, called as block(x, prefix, cache)."""
    Config: ClassVar[type]
    source: str | None = None                            # what it was loaded by: "smollm2", a path
    origin: Any = None                                   # what else its GGUF file said
    attached: Any = None                                 # inside a PeftModel: the methods on it
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
        """Return name → shape of every parameter of a model without a classifier, without one."""
        return {name: p.shape for name, p in unfilled(cls, config).named_parameters()}

    @classmethod
    def from_arrays(cls, config: Any, arrays: Mapping[str, Array],
                    layers: Mapping[str, Module] | None = None) -> Self:
        """Make a model whose parameters are `arrays`, which have the names of `state_dict`.

        It takes no memory beside the arrays. layers: path → the layer to have there in place of a
        `Linear`, with its weight and bias. The model has a head if there is a "head.weight".
        Raises KeyError for names missing or unknown, ValueError for shapes that do not fit
        `config`, and for arrays that are not all float32, or all float64."""
        return assembled(cls, config, arrays, layers or {})

    @property
    def dtype(self) -> np.dtype:
        """Return the type of the parameters."""
        return self.final_norm.weight.dtype

    def embed(self, x: Tensor, past: int) -> Tensor:
        """Return what enters the first block; x (B, n, d) are embedded tokens and virtual vectors
        at positions past … past + n − 1."""
        return x

    def forward(self, tokens: Array, prompt: Tensor | None = None, prompt_at: Array | None = None,
                prefix: Prefix | None = None, cache: KVCache | None = None,
                last: bool = False, hook: Hook | None = None) -> Tensor:
        """tokens (B, T) integers → logits (B, T, V); position t predicts token t + 1.

        prompt: Tensor (P, d) or (B, P, d), vectors that enter like embedded tokens.
        prompt_at: their places (P,) or (B, P) in the lengthened sequence (default 0 … P−1, before
            all tokens). They get no logits; token t + 1 is predicted at the last place before it.
        prefix: one (K, V) per layer, each Tensor (H, P, d_head) or (B, H, P, d_head). Token
            positions then start at P.
        cache: a `KVCache` that holds the past; this call appends its keys and values.
        last: return only the logits of the last position, (B, 1, V). Generation needs no others.
        hook: x = hook(i, x, places) behind block i. x (B, n, d) are the states of tokens and
            prompt vectors; places (B, T) says where in x the tokens are.
        """
        h = self.hidden(tokens, prompt, prompt_at, prefix, cache, hook)
        return self.logits(h[:, -1:] if last else h)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, d) → logits (…, V), by `lm_head` or the transposed embedding."""
        if self.lm_head is None:
            return self.token_embedding.scores(hidden)
        return self.lm_head(hidden)

    def loss(self, tokens: Array, targets: Array, ignore_index: int = F.IGNORED,
             **virtual: Any) -> Tensor:
        """Return the mean cross-entropy of `targets` (B, T), nats, as `functional.cross_entropy` of
        `forward` would. A plain head holds few logits at a time.

        virtual: prompt, prompt_at, prefix or hook, as for `forward`.
        """
        h = self.hidden(tokens, **virtual)
        head = self.token_embedding if self.lm_head is None else self.lm_head
        if type(head) in (Embedding, Linear) and getattr(head, "bias", None) is None:
            return F.linear_cross_entropy(h, head.weight, targets, ignore_index)
        return F.cross_entropy(self.logits(h), targets, ignore_index)     # adapted or quantized

    def class_logits(self, tokens: Array, lengths: Array, **virtual: Any) -> Tensor:
        """tokens (B, T), of which row b has lengths[b] → class logits (B, C).

        `head` reads the last token of the row, the only position that has seen the whole row.
        virtual: prompt, prompt_at, prefix or hook, as for `forward`.
        """
        if self.head is None:
            raise ValueError("class_logits: this model has no classification head; "
                             "attach(model, method, head=n_classes) adds one")
        B, T = np.shape(tokens)
        lengths = np.asarray(lengths)
        if lengths.shape != (B,) or lengths.min() < 1 or lengths.max() > T:
            raise ValueError(f"class_logits: lengths must be {B} numbers in [1, {T}], got "
                             f"{lengths}")
        h = self.hidden(tokens, **virtual)
        return self.head(h[np.arange(B), lengths - 1])

    def hidden(self, tokens: Array, prompt: Tensor | None = None, prompt_at: Array | None = None,
               prefix: Prefix | None = None, cache: KVCache | None = None,
               hook: Hook | None = None) -> Tensor:
        """Compute as `forward`, but return the final hidden states (B, T, d)."""
        who = type(self).__name__
        if isinstance(tokens, Tensor):
            raise TypeError(f"{who}: tokens are integers, got a Tensor of floats")
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(f"{who}: tokens must have shape (B, T), B and T ≥ 1, "
                             f"got {tokens.shape}")
        B, T = tokens.shape
        self._check_virtual(B, prompt, prefix, cache)
        x = self.token_embedding(tokens)                                # (B, T, d)
        places = np.broadcast_to(np.arange(T), (B, T))
        if prompt is not None:
            x, places = _interleave(_expand(prompt, B, 3), x, prompt_at)  # (B, P + T, d)
        past = past_length(prefix and prefix[0], cache)
        end = past + x.shape[1]
        if end > self.config.context_length:
            raise ValueError(f"{who}: {end} positions ({T} tokens, {x.shape[1] - T} prompt "
                             f"vectors, {past} of prefix or cache) exceed the context of "
                             f"{self.config.context_length}")
        x = self.embed(x, past)
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, prefix and prefix[i], cache and cache.layers[i])
            if hook is not None:
                x = hook(i, x, places)
        x = self.final_norm(x)
        if prompt is not None:
            read = np.full_like(places, x.shape[1] - 1)
            read[:, :-1] = places[:, 1:] - 1             # before the next token, or the last place
            x = x[np.arange(B)[:, None], read]                          # drops the virtual tokens
        return x

    def _check_virtual(self, B, prompt, prefix, cache):
        c = self.config
        who = type(self).__name__
        if prompt is not None:
            P = prompt.shape[-2] if prompt.ndim > 1 else -1
            if not _fits(prompt, B, P, c.d_model):
                raise ValueError(f"{who}: prompt must have shape (P, {c.d_model}) or "
                                 f"({B}, P, {c.d_model}), got {prompt.shape}")
        if prefix is None:
            return
        if cache is not None and cache.length:
            raise ValueError(f"{who}: a prefix comes first, but the cache holds {cache.length} "
                             "positions already")
        if len(prefix) != c.n_layers:
            raise ValueError(f"{who}: one (K, V) for each of the {c.n_layers} layers, "
                             f"got {len(prefix)}")
        shape = c.n_kv_heads, prefix[0][0].shape[-2], c.d_head
        for i, (k, v) in enumerate(prefix):
            if not (_fits(k, B, *shape) and _fits(v, B, *shape)):
                raise ValueError(f"{who}: the prefix of layer {i} must have shapes {shape} or "
                                 f"{(B, *shape)}, got {k.shape} and {v.shape}")

    def before_training(self, task: Any) -> None:
        """Say that a PeftModel made of this model does not learn with it."""
        if TUNINGS.get(self):
            warnings.warn("train: this model is the base of a PeftModel, which computes with the "
                          "base as it was; train(tuned, …) trains the methods", stacklevel=4)

    def describe(self) -> str:
        return f"({self.n_parameters():,} parameters)"


def residual_std(config: Any) -> float:
    """Return the start of a layer whose output joins the residual stream, to which 2 L add."""
    return 0.02 / (2 * config.n_layers) ** 0.5


def require_free(model: Any, verb: str) -> None:
    """Raise ValueError for a model inside a PeftModel, TypeError for anything but a `Decoder`."""
    if not isinstance(model, Decoder):
        first = "the model comes first"
        hint = "its base is what detach() returns" if hasattr(model, "parts") else first
        raise TypeError(f"{verb}: expected a language model, got {type(model).__name__}; {hint}")
    if model.attached is not None:
        inside = f"with {model.attached} attached" if model.attached else "as it was at attach"
        raise ValueError(f"{verb}: this is the model inside a PeftModel, {inside}; give the base, "
                         "which detach() returns, or the model that merge() makes")


def heads(x: Tensor, n: int) -> Tensor:
    """Cut (B, T, n d_head) into heads (B, n, T, d_head); head h takes the h-th d_head columns."""
    B, T, _ = x.shape
    return x.reshape(B, T, n, -1).transpose(0, 2, 1, 3)


def attend(q: Tensor, k: Tensor, v: Tensor, prefix: LayerPrefix | None,
           cache: LayerCache | None, **options: Any) -> Tensor:
    """Attention over a prefix or the cached past, and over k and v themselves.

    q (B, H, T, d_head), k and v (B, n_kv_heads, T, d_head) → (B, T, H d_head). options: of
    `functional.attention`. Appends k and v to the cache."""
    B, H, T, d = q.shape
    if prefix is not None:
        K, V = (_expand(p, B, 4) for p in prefix)
        k = concatenate([K, k], axis=2)
        v = concatenate([V, v], axis=2)
    if cache is not None and (k.requires_grad or v.requires_grad):
        raise GraphError("a cache keeps numbers without their history, so gradients would be "
                         "lost; use no_grad() or no cache")
    attention = F.attention if cache is None else cache.attend
    o = attention(q, k, v, **options)
    return o.transpose(0, 2, 1, 3).reshape(B, T, H * d)


def past_length(prefix: LayerPrefix | None, cache: KVCache | LayerCache | None) -> int:
    """Count the positions of a layer's prefix, or of a cache, that stand before the tokens."""
    if prefix is not None:
        return prefix[0].shape[-2]
    return 0 if cache is None else cache.length


def _fits(virtual, B, *shape):
    return virtual.shape in (shape, (B, *shape))


def _expand(virtual, B, ndim):
    """Give virtual tokens without a batch axis to every row: (P, d) → (B, P, d)."""
    if virtual.ndim == ndim:
        return virtual
    return virtual + np.zeros((B, *[1] * virtual.ndim))


def _interleave(prompt, x, places):
    """Merge prompt (B, P, d) into x (B, T, d), vector j at places[…, j].

    Also return the places of the tokens, (B, T).
    """
    B, P, _ = prompt.shape
    n = P + x.shape[1]
    places = np.arange(P) if places is None else np.asarray(places)
    if places.shape not in ((P,), (B, P)):
        raise ValueError(f"prompt_at: expected shape ({P},) or ({B}, {P}), got {places.shape}")
    places = np.broadcast_to(places, (B, P))
    if places.size and (places.min() < 0 or places.max() >= n):
        raise ValueError(f"prompt_at: places must lie in [0, {n}) for {P} vectors and {n - P} "
                         f"tokens, got {places.tolist()}")
    rows = np.arange(B)[:, None]
    source = np.full((B, n), -1)                         # place → its vector of [prompt; x]
    source[rows, places] = np.arange(P)
    is_token = source < 0
    if (is_token.sum(1) != n - P).any():
        raise ValueError("prompt_at: two vectors cannot take the same place, got "
                         f"{places.tolist()}")
    tokens = np.nonzero(is_token)[1].reshape(B, n - P)   # their places, (B, T)
    source[rows, tokens] = np.arange(P, n)
    return concatenate([prompt, x], axis=1)[rows, source], tokens
