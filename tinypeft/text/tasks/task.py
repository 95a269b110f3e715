"""What the tasks have in common: splits with names, baselines measured when somebody looks, rows of unequal length."""
import functools
from pathlib import Path

import numpy as np

from ..tokenizer import BPETokenizer

__all__ = ["Rows", "Task", "tokenizer_of"]

SPLITS = "train", "validation", "test"
SHIPPED = Path(__file__).parents[2] / "pretrained" / "tokenizer.json"


def tokenizer_of(model):
    """The tokenizer that `model` (GPT or PeftModel) carries, `model` itself if it is one, for None the shipped base's.

    Raises ValueError for a model without one or with a smaller vocabulary than its tokenizer's."""
    if model is None:
        return BPETokenizer.load(SHIPPED)
    if hasattr(model, "encode"):
        return model
    tokenizer, config = getattr(model, "tokenizer", None), getattr(model, "config", None)
    if tokenizer is None:
        raise ValueError(f"{type(model).__name__} carries no tokenizer, which a task on text needs: "
                         "set model.tokenizer, or give the task a BPETokenizer instead of a model")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}")
    return tokenizer


def context_of(model, context, default):
    """`context` checked against the model's; by default `default`, or half the model's context if that is less, which
    leaves the other half to virtual tokens."""
    longest = model.config.context_length if hasattr(model, "config") else None
    if context is None:
        return min(default, longest // 2) if longest else default
    if context < 2 or (longest and context > longest):
        raise ValueError(f"context must lie in [2, {longest or '…'}], got {context}")
    return context


class Task:
    """A task's `name`, its `splits` (split → data), `sha256` (corpus → hash of what was read), and `baselines`."""

    def __init__(self, name, splits, sha256=None):
        self.name, self.splits, self.sha256 = name, splits, sha256

    def data(self, split):
        if split not in self.splits:
            raise ValueError(f"{self.name}: there is no split {split!r}; there are {', '.join(self.splits)}")
        return self.splits[split]

    def count(self, batch):
        """How many terms the mean of `loss` has: tokens or examples."""
        return len(batch[0])

    def metrics(self, model, batch):
        return {"loss": self.loss(model, batch).item()}

    def finish(self, means, split="test"):
        return means

    @functools.cached_property
    def baselines(self):
        """name → metrics on the test split, under the names `evaluate` uses. Measured at the first look, then kept."""
        return self.measure_baselines()

    def __repr__(self):
        told = "see .baselines"
        if "baselines" in vars(self):
            told = "; ".join(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items())
                             for name, metrics in self.baselines.items())
        return f"{self.name}: {self.describe()}; test baselines: {told}"


class Rows(Task):
    """A task whose splits are lists of examples; `collate(examples)` makes a batch of some."""

    def batch(self, split, size, rng):
        rows = self.data(split)
        return self.collate([rows[i] for i in rng.integers(0, len(rows), size)])

    def batches(self, split, size):
        rows = self.data(split)
        for i in range(0, len(rows), size):
            yield self.collate(rows[i:i + size])


def pad(rows, fill):
    """Sequences of ids → (array (B, T), lengths (B,)), filled up on the right to the longest, T.

    Attention is causal: no position that counts ever sees the filling."""
    lengths = np.array([len(row) for row in rows])
    padded = np.full((len(rows), lengths.max()), fill)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return padded, lengths
