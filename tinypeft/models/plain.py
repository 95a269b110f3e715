"""Generation as one reads it: what `generation.py` computes without a sort of all tokens for each
draw, and without reading the whole text again for each token. Read this file first."""
from typing import Any

import numpy as np

from ..common.hints import Array, Rng, Seed
from ..engine.tensor import no_grad

__all__ = ["generate", "sample"]


def sample(logits: Array, rng: Rng, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None) -> Array:
    """Draw one token per row from logits (B, V) → (B,); temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    z = logits.astype(np.float64) / temperature
    return np.array([_drawn(row, rng, top_k, top_p) for row in z])


def _drawn(z: Array, rng: Rng, top_k: int | None, top_p: float | None) -> int:
    """Draw a token from p = softmax(z), z (V,): of the k likeliest, and of the smallest set of
    likely tokens whose probabilities reach `top_p`."""
    order = np.argsort(-z, kind="stable")                    # the likeliest first
    p = np.exp(z[order] - z.max())
    if top_k is not None:
        p[top_k:] = 0
    p /= p.sum()
    if top_p is not None:
        before = p.cumsum() - p                              # the probability of likelier tokens
        p[before >= top_p] = 0
        p /= p.sum()
    i = np.searchsorted(p.cumsum(), rng.random())            # token i is as wide as its p
    return order[min(i, np.count_nonzero(p) - 1)]


def generate(model: Any, tokens: Array, max_new_tokens: int, temperature: float = 0.0,
             top_k: int | None = None, top_p: float | None = None, rng: Seed = 0) -> Array:
    """Continue tokens (B, T) by `max_new_tokens`; temperature 0 is greedy."""
    rng = np.random.default_rng(rng)
    with no_grad():
        for _ in range(max_new_tokens):
            logits = model(tokens).data[:, -1]               # (B, V)
            new = sample(logits, rng, temperature, top_k, top_p)
            tokens = np.concatenate([tokens, new[:, None]], axis=1)
    return tokens
