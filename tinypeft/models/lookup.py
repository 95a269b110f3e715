"""Prompt lookup: guess the next tokens from the text itself, and check them all in one pass.

A text that quotes, repeats or edits what stands before it writes the same tokens again. So the
tokens that followed an earlier place of its last N tokens are a *draft* of what comes next
(Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding). The model reads the draft in
one pass, which gives its own greedy token behind each token of the draft. The draft is right up to
the first place where the two differ:

    text      … the cat sat on the mat and the cat sat
    draft                                               on the mat  and
    greedy                                              on the rug  …
    new                                                 on the rug

The tokens are those of `plain.generate`: a wrong draft costs time and changes nothing. (Of a base
that rounds its inputs, a token may depend on those that are read with it.) A pass over 2 to 16
tokens takes about twice the time of a pass over one, hence K = 16; on a free text, where drafts are
wrong, generation takes 1.05 of the time, and on a repeated one about a third.
"""
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..common.hints import Array

__all__ = ["draft", "looked_up"]

PLACES = 3, 2                                                # N: longer matches first


def draft(text: Array, k: int) -> Array:
    """Return up to k tokens: those behind an earlier place of the last tokens of text (T,), the
    latest that k tokens follow, or else the first."""
    for n in PLACES:
        if len(text) <= n:
            continue
        earlier = np.lib.stride_tricks.sliding_window_view(text[:-1], n)
        places = np.flatnonzero((earlier == text[-n:]).all(1))
        if places.size:
            whole = places[places + n + k <= len(text)]
            place = whole[-1] if whole.size else places[0]
            return text[place + n:place + n + k]
    return text[:0]


def looked_up(feed: Callable[..., Array], cache: Any, tokens: Array, max_new_tokens: int,
              stop: int | None, k: int) -> Iterator[Array]:
    """Yield the greedy tokens behind tokens (1, T), (1,) at a time, with drafts of up to k tokens.

    feed(tokens, last) gives the logits (1, n, V) of tokens (1, n) behind those in the cache."""
    text = fed = tokens[0]
    guess = text[:0]
    left = max_new_tokens
    while left:
        greedy = feed(fed[None], last=not guess.size)[0].argmax(-1)
        is_wrong = guess != greedy[:-1]
        n_right = is_wrong.argmax() if is_wrong.any() else len(guess)
        new = greedy[:n_right + 1].astype(text.dtype)
        for token in new:
            yield token[None]
            if token == stop:
                return
        for layer in cache.layers:
            layer.take_back(len(guess) - n_right)
        left -= len(new)
        text = np.concatenate([text, new])
        guess = draft(text, min(k, left - 1))
        fed = np.concatenate([text[-1:], guess])
