"""Generation: one token after another.

The model predicts a distribution over the next token. `generate` takes the likeliest, or samples
(with a temperature, from the k likeliest, or from the smallest set of probability p), and appends
the choice. A cache of keys and values (`cache.py`) makes each step read one token.

Prompts of unequal lengths go on together: the model reads as many tokens as the shortest has, and
then one of each row at a time. A row whose prompt goes on takes the next token of its prompt, and
no guess.

`plain.py` has `sample` and `generate` as one reads them; read it first. What takes text is in
`in_words.py`.
"""
import contextvars
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Array, Rng, Seed
from ..common.hyper import Checked, flag, real, whole
from ..engine.memo import keeping
from ..engine.tensor import no_grad, within
from .cache import KVCache

__all__ = ["GenerateOptions", "batches", "continuations", "generate", "prompt_lengths", "prompted",
           "sample", "steps"]

ROWS = 16                                                    # prompts that are continued together,
LATER = 16                                                   # and how much longer one may be
_prompt_lengths = contextvars.ContextVar("prompt_lengths", default=None)


def prompted(lengths: Array) -> AbstractContextManager[Array]:
    """Inside `with prompted(lengths):` the first lengths[b] tokens of row b are a prompt; the model
    wrote the others, or learns to. A method that treats a prompt differently asks for this."""
    return within(_prompt_lengths, lengths)


def prompt_lengths(tokens: Array) -> Array:
    """Return how many tokens of each row of `tokens` (B, T) are its prompt, (B,): all, unless
    `prompted` says otherwise."""
    lengths = _prompt_lengths.get()
    B, T = tokens.shape
    return np.full(B, T) if lengths is None else lengths


@dataclass(frozen=True)
class GenerateOptions(Checked):
    """What `generate` can be told. Raises ValueError for a value out of range, TypeError for a name
    that is no option.

    temperature: 0 takes the likeliest token. top_k, top_p: draw from the k likeliest, or from the
    smallest set of likely tokens whose probabilities reach p. rng: what draws, a seed or a
    Generator.
    stop: a token id; a row that has produced it repeats it, and generation ends when all rows have.
    cache: a `KVCache` in place of a fresh one, such as one that quantizes.
    use_cache: False computes all positions anew for each token, and writes the same tokens, unless
    the model rounds inputs by what all tokens of a call hold: W8A8 and SmoothQuant with activations
    "tensor", and LLMInt8. There the rows of a batch depend on each other, too.
    """
    max_new_tokens: int = whole(64)
    temperature: float = real(0.0, least=0)
    top_k: int | None = whole(None, least=1, or_none=True)
    top_p: float | None = real(None, above=0, most=1, or_none=True)
    rng: Seed = 0
    stop: int | None = None
    use_cache: bool = flag(True)
    cache: KVCache | None = None


def sample(logits: Array, rng: Rng, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None) -> Array:
    """Draw one token per row from logits (B, V) → (B,); temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max(-1, keepdims=True))
    u = rng.random(len(z))
    return np.array([_drawn(*row, top_k, top_p) for row in zip(p, u, strict=True)])


def _drawn(p, u, top_k, top_p):
    """Return the token at u, uniform in [0, 1), where tokens lie side by side, the likeliest first,
    each as wide as its share of p (V,). Only the likeliest are sorted, as many as it takes: of
    SmolLM2's 49,152 tokens that takes a sixth of the time."""
    n = top_k or 64
    while True:
        order = _likeliest(p, n)
        share = p[order] / (p[order] if top_k else p).sum()
        mass = share.cumsum()
        if top_k or n >= len(p) or mass[-1] >= (top_p or u):
            break
        n *= 8
    if top_p is not None:
        share = share[mass - share < top_p]              # keep while the mass before is < top_p
        mass = (share / share.sum()).cumsum()
    return order[min(np.searchsorted(mass, u), np.count_nonzero(share) - 1)]


def _likeliest(p, n):
    """Return the places of the n largest of p, the largest first; of equal ones the first first."""
    places = np.arange(len(p))
    if n < len(p):
        places = np.flatnonzero(~(p < np.partition(p, -n)[-n]))
    return places[np.argsort(-p[places], kind="stable")][:n]


def generate(model: Any, tokens: Array, max_new_tokens: int = 64, temperature: float = 0.0,
             **options: Any) -> Array:
    """Continue `tokens` (B, T); return integers (B, T + n), n ≤ max_new_tokens.

    model: a Decoder or a PeftModel, called as model(tokens, cache=…, last=True). options: see
    `GenerateOptions`. Raises ValueError if the sequence would exceed the context."""
    new = steps(model, tokens, max_new_tokens, temperature=temperature, **options)
    columns = [step[:, None] for step in new]
    return np.concatenate([np.asarray(tokens), *columns], axis=1)


def continuations(model: Any, prompts: list[Array], max_new_tokens: int, rng: Seed = 0,
                  stop: int | None = None, **options: Any) -> list[Array]:
    """Return what each prompt (T_b,) is continued by, (n_b,); several prompts at a time."""
    options |= dict(stop=stop, rng=np.random.default_rng(rng))
    for i, prompt in enumerate(prompts, 1):
        if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
            raise ValueError(f"generate: prompt {i} must be integers (T,) with T ≥ 1, got "
                             f"{prompt.dtype} {prompt.shape}")
    lengths = np.array([len(prompt) for prompt in prompts])
    # The vectors of a virtual module may depend on where a prompt ends.
    later = LATER if getattr(model, "virtual", None) is None else 0
    new = [None] * len(prompts)
    for rows in batches(lengths, ROWS, later):
        n = lengths[rows]
        tokens = np.zeros((len(rows), n.max()), int)
        for i, row in enumerate(rows):
            tokens[i, :n[i]] = prompts[row]
        columns = list(steps(model, tokens, max_new_tokens, lengths=n, **options))
        written = np.array(columns, int).reshape(len(columns), len(rows)).T
        for i, row in enumerate(rows):
            start = n[i] - n.min()
            ids = written[i, start:start + max_new_tokens]
            ends = np.flatnonzero(ids == stop)
            new[row] = ids[:ends[0] + 1] if ends.size else ids
    return new


def batches(lengths: Array, n_rows: int, later: int) -> Iterator[Array]:
    """Yield the places of all `lengths` (N,): at most `n_rows` at a time, sorted, none of which is
    longer by more than `later` than the first."""
    rows = np.argsort(lengths, kind="stable")
    while rows.size:
        n_near = np.searchsorted(lengths[rows], lengths[rows[0]] + later, side="right")
        n = min(n_rows, n_near)
        yield rows[:n]
        rows = rows[n:]


def steps(model: Any, tokens: Array, max_new_tokens: int, lengths: Array | None = None,
          **options: Any) -> Iterator[Array]:
    """Check the arguments of `generate`, and return an iterator of what each step adds, (B,).

    lengths (B,): how many tokens of each row are there; the others are written. Steps then start
    behind the shortest row, and give the tokens of longer rows again."""
    chosen = GenerateOptions(max_new_tokens, **options)
    tokens = np.asarray(tokens)
    _check(model, tokens, max_new_tokens)
    if lengths is None:
        lengths = np.full(len(tokens), tokens.shape[1])
    return _steps(model, tokens, lengths, prompt_lengths(tokens), chosen)


def _steps(model, tokens, lengths, prompts, chosen):
    """Yield what each step adds: where a prompt goes on, its next token."""
    rng = np.random.default_rng(chosen.rng)
    cache = None
    if chosen.use_cache:
        cache = chosen.cache or KVCache(model.config.n_layers)
    arrays = {}                                              # decoded weights
    fed = 0                                                  # tokens that the cache has seen
    done = np.zeros(len(tokens), bool)
    whole = tokens.shape[1]
    for length in range(lengths.min(), whole + chosen.max_new_tokens):
        # Between two steps the caller's own code runs, so the settings of a step end with it:
        # nothing is recorded, decoded weights are kept.
        with no_grad(), keeping(arrays), prompted(prompts):
            logits = model(tokens[:, fed:length], cache=cache, last=True)
        if cache is not None:
            fed = length
        new = sample(logits.data[:, -1], rng, chosen.temperature, chosen.top_k, chosen.top_p)
        new = new.astype(tokens.dtype)
        if chosen.stop is not None:
            new = np.where(done, chosen.stop, new).astype(tokens.dtype)
        is_prompt = length < lengths
        if length < whole:
            new = np.where(is_prompt, tokens[:, length], new)
        if chosen.stop is not None:
            done |= ~is_prompt & (new == chosen.stop)
        yield new
        if (done | (length + 1 - lengths >= chosen.max_new_tokens)).all():
            break
        before = tokens[:, :length]
        rest = tokens[:, length + 1:]
        tokens = np.concatenate([before, new[:, None], rest], axis=1)


def _check(model, tokens, n_new):
    """Raise ValueError for tokens that cannot be read, or if the text would exceed the context; the
    last token need not be fed."""
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype.kind not in "iu":
        raise ValueError("generate: tokens must be a text, or integers (B, T) with T ≥ 1, got "
                         f"{tokens.dtype} {tokens.shape}")
    virtual = getattr(model, "virtual_length", 0)
    context = model.config.context_length
    n_tokens = tokens.shape[1]
    if virtual + n_tokens + n_new > context + 1:
        more = f" beside {virtual} virtual ones" if virtual else ""
        raise ValueError(f"generate: {n_tokens} tokens and {n_new} new ones{more} exceed the "
                         f"context of {context}; ask for fewer new tokens")
