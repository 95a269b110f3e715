"""What all tasks share: named splits, baselines measured on first use, rows of unequal length."""
from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.hints import Array
from ...common.wording import brief, in_one_line, shortened
from ...engine.nn import Module
from ..tokenizer import BPETokenizer, Tokenizer

__all__ = ["Rows", "Task", "tokenizer_of"]

Batch = tuple[Array, ...]
Metrics = dict[str, float]
SPLITS = "train", "validation", "test"
SHIPPED = Path(__file__).parents[2] / "pretrained" / "tokenizer.json"


def tokenizer_of(model: Module | Tokenizer | None) -> Tokenizer:
    """Return a model's or PeftModel's tokenizer, a tokenizer itself, or for None the shipped one.

    Raises ValueError if the model has none, or a smaller vocabulary than its tokenizer."""
    if model is None: return BPETokenizer.load(SHIPPED)
    if isinstance(model, (str, Path)):
        raise TypeError(f"expected a model or a tokenizer, got {str(model)[:80]!r}; "
                        "tinypeft.load_model gives a model")
    if hasattr(model, "encode"): return model
    if not hasattr(model, "config"):
        raise TypeError(f"expected a model or a tokenizer, got a {type(model).__name__}; where a "
                        "task takes data, they come first, and then the model")
    tokenizer, config = getattr(model, "tokenizer", None), getattr(model, "config", None)
    if tokenizer is None:
        raise ValueError(f"{type(model).__name__} carries no tokenizer, but a task needs one: "
                         "set model.tokenizer, or pass a BPETokenizer instead of a model")
    if (size := tokenizer.vocab_size) > config.vocab_size:
        raise ValueError(f"the tokenizer has {size} tokens, the model only {config.vocab_size}")
    return tokenizer


def context_of(model, context, default):
    """Check `context` against the model's. None means `default`, or half the model's context if
    that is less: the other half is left to virtual tokens."""
    longest = model.config.context_length if hasattr(model, "config") else None
    if context is None:
        return min(default, longest // 2) if longest else default
    if context < 2 or (longest and context > longest):
        raise ValueError(f"context must lie in [2, {longest or '…'}], got {context}")
    return context


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Return a list of texts; TypeError for one text alone, which is a sequence of letters, or
    others, such as a model in their place."""
    if isinstance(texts, Module):
        raise TypeError("predict: the model comes first, and then the texts")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"predict: expected a list of texts, got {brief(texts)}")
    return list(texts)


class Task:
    """name: a short one, in one line. splits: split → data. sha256: corpus, or file → hash of what
    was read. notes: facts about one's own data, a sentence each; "look:" begins what needs a look.
    form: what prediction needs beside the model, for `save_task`."""
    notes: tuple[str, ...] = ()
    form: dict[str, Any]

    def __init__(self, name: str, splits: dict[str, Sequence],
                 sha256: dict[str, str] | None = None):
        self.name, self.splits, self.sha256 = shortened(in_one_line(name)), splits, sha256

    def data(self, split: str) -> Sequence:
        """Return a split's data. Raises ValueError for an unknown split."""
        if split in self.splits: return self.splits[split]
        names = ", ".join(self.splits) or "none, only what prediction needs"
        raise ValueError(f"{self.name}: there is no split {split!r}; there are {names}")

    def count(self, batch: Batch) -> int:
        """Count the terms in the mean of `loss`: tokens or examples."""
        return len(batch[0])

    def metrics(self, model: Module, batch: Batch) -> Metrics:
        """Means over the batch; by default only the loss."""
        return {"loss": self.loss(model, batch).item()}

    def finish(self, means: Metrics, split: str = "test") -> Metrics:
        """Derive the reported metrics from the means over a split."""
        return means

    @functools.cached_property
    def baselines(self) -> dict[str, Metrics]:
        """name → metrics on the test split, named as in `evaluate`. Measured once."""
        return self.measure_baselines()

    def __repr__(self):
        if not self.splits: return f"{self.name}: without data, for predict"
        numbers = lambda metrics: ", ".join(f"{k} {v:.3f}" for k, v in metrics.items())
        measured = vars(self).get("baselines", {})
        baselines = "; ".join(f"{name}: {numbers(metrics)}" for name, metrics in measured.items())
        said = "; ".join([self.describe(), *self.notes])
        return f"{self.name}: {said}; test baselines: {baselines or 'see .baselines'}"


class Rows(Task):
    """A task whose splits are lists of examples; `collate(examples)` makes a batch of them."""

    def batch(self, split: str, size: int, rng: np.random.Generator) -> Batch:
        """Draw a random batch, with replacement."""
        rows = self.data(split)
        return self.collate([rows[i] for i in rng.integers(0, len(rows), size)])

    def batches(self, split: str, size: int) -> Iterator[Batch]:
        """Go through a split once, in order."""
        rows = self.data(split)
        for i in range(0, len(rows), size): yield self.collate(rows[i:i + size])

    def batches_by_length(self, split: str, size: int, most: int | None = None) -> list[Batch]:
        """Make batches of rows of similar length, so that little of a batch is padding. They hold
        the rows of `batches`, or of its first `most` ones."""
        rows = self.data(split)
        if most is not None:
            rows = rows[:most * size]
        return [self.collate([rows[i] for i in places]) for places in by_length(rows, size)]


def by_length(rows: Sequence, size: int) -> list[list[int]]:
    """Return the places of rows of ids, or of (ids, …), in batches of similar length, the longest
    first."""
    lengths = [sum(map(np.size, row)) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    return [order[i:i + size] for i in range(0, len(rows), size)]


def pad(rows, fill):
    """Pad sequences of ids on the right → (array (B, T), lengths (B,)). Attention is causal, so no
    position that counts sees the padding."""
    lengths = np.array([len(row) for row in rows])
    padded = np.full((len(rows), lengths.max()), fill)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return padded, lengths
