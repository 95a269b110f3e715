"""Greedy continuations of many prompts, which are of unequal lengths."""
from collections.abc import Sequence

import numpy as np

from ...common.hints import Array
from ...common.progress import watched
from ...engine.nn import Module
from ...models.generation import LATER, batches
from ..tokenizer import Tokenizer

__all__ = ["written"]

ROWS = 16                                                     # prompts that are continued together


def written(model: Module, tokenizer: Tokenizer, prompts: Sequence[Array], stop: int,
            max_new_tokens: int) -> list[str]:
    """Continue each prompt (n,) by its likeliest tokens, up to `stop`; return the texts without it.

    Where the model's context has no room for max_new_tokens, a continuation is shorter. Raises
    ValueError for an empty prompt, and one that leaves no room at all."""
    texts, lengths = [""] * len(prompts), np.array([len(prompt) for prompt in prompts], int)
    config, virtual = getattr(model, "config", None), getattr(model, "virtual_length", 0)
    most = config.context_length - virtual if config else np.inf
    for i, n in enumerate(lengths, 1):
        if n == 0: raise ValueError(f"text {i} is empty; give the model a beginning")
        if n >= most:
            raise ValueError(f"text {i} has {n} tokens and the model takes {most}, "
                             "continuation included; shorten it")
    for rows in watched([*_batches(lengths, most - max_new_tokens)], "writing"):
        n = lengths[rows].max()
        out = model.generate([prompts[i] for i in rows], min(max_new_tokens, most - n), stop=stop)
        for i, ids in zip(rows, out, strict=True):
            new = ids[lengths[i]:].tolist()
            new = new[:new.index(stop)] if stop in new else new
            there = [id for id in new if id < tokenizer.vocab_size]       # some are padded
            texts[i] = tokenizer.decode(there, continued=True)
    return texts


def _batches(lengths, longest):
    """Yield the places of prompts that are continued together. One above `longest`, whose
    continuation is shorter, is together with those of its own length only."""
    for near, later in (lengths <= longest, LATER), (lengths > longest, 0):
        places = np.flatnonzero(near)
        for rows in batches(lengths[near], ROWS, later): yield places[rows]
