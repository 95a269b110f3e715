"""Greedy continuations of many prompts, which are of unequal lengths."""
from collections.abc import Sequence

import numpy as np

from ...common.hints import Array
from ...common.progress import watched
from ...engine.nn import Module
from ..tokenizer import Tokenizer

__all__ = ["written"]

ROWS = 64                                                     # prompts that are continued together


def written(model: Module, tokenizer: Tokenizer, prompts: Sequence[Array], stop: int,
            max_new_tokens: int) -> list[str]:
    """Continue each prompt (n,) by its likeliest tokens, up to `stop`; return the texts without it.

    Where the model's context has no room for max_new_tokens, a continuation is shorter. Raises
    ValueError for an empty prompt, and one that leaves no room at all."""
    texts, lengths = [""] * len(prompts), np.array([len(prompt) for prompt in prompts], int)
    config, virtual = getattr(model, "config", None), getattr(model, "virtual_length", 0)
    for T in watched(np.unique(lengths), "writing"):          # equally long prompts make one batch
        room = config.context_length - virtual - T if config else max_new_tokens
        rows = np.flatnonzero(lengths == T)
        if T == 0: raise ValueError(f"text {rows[0] + 1} is empty; give the model a beginning")
        if room < 1:
            raise ValueError(f"text {rows[0] + 1} has {T} tokens and the model takes {T + room}, "
                             "continuation included; shorten it")
        for i in range(0, len(rows), ROWS):
            batch = np.array([prompts[row] for row in rows[i:i + ROWS]])
            out = model.generate(batch, min(max_new_tokens, room), stop=stop)[:, T:]
            for row, ids in zip(rows[i:i + ROWS], out.tolist(), strict=True):
                ids = ids[:ids.index(stop)] if stop in ids else ids
                there = [id for id in ids if id < tokenizer.vocab_size]    # some are padded
                texts[row] = tokenizer.decode(there, continued=True)
    return texts
