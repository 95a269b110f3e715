"""The tasks: what `train` draws batches from and `evaluate` measures on.

A task has `batch(split, size, rng)` (a random batch), `batches(split, size)` (all of a split, in order),
`loss(model, batch)` (a Tensor, nats, the mean over `count(batch)` tokens or examples), `metrics(model, batch)`
(name → mean) and `finish`, which derives what is reported. Batches are tuples of arrays that only their task looks into.
"""
import math

import numpy as np

from .. import functional as F

__all__ = ["LanguageModelling"]


class LanguageModelling:
    """Predict the next token of a stream of documents.

    streams: split → int array of token ids (N,). n_bytes: split → bytes of the text behind them.
    context: tokens a window holds. Training windows start anywhere; evaluation goes through the stream
    in windows laid end to end, so that every token but the first is predicted once.
    """

    def __init__(self, name, streams, n_bytes, context, baselines=None):
        self.name, self.streams, self.n_bytes, self.context = name, streams, n_bytes, context
        self.baselines = baselines or {}
        for split, ids in streams.items():
            if len(ids) <= context:
                raise ValueError(f"{name}: the split {split!r} has {len(ids)} tokens, fewer than a window of {context} + 1")

    def batch(self, split, size, rng):
        ids = self.streams[split]
        start = rng.integers(0, len(ids) - self.context, size)
        windows = ids[start[:, None] + np.arange(self.context + 1)]               # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def batches(self, split, size):
        ids, T = self.streams[split], self.context
        starts = np.arange(0, len(ids) - 1, T)
        for i in range(0, len(starts), size):
            rows = [ids[s:s + T + 1] for s in starts[i:i + size]]
            full = np.array([r for r in rows if len(r) == T + 1]).reshape(-1, T + 1)
            if len(full): yield full[:, :-1], full[:, 1:]
            if len(rows[-1]) < T + 1: yield rows[-1][None, :-1], rows[-1][None, 1:]

    def count(self, batch):
        return batch[1].size

    def loss(self, model, batch):
        tokens, targets = batch
        return F.cross_entropy(model(tokens), targets)

    def metrics(self, model, batch):
        return {"loss": self.loss(model, batch).item()}

    def finish(self, means, split="test"):
        """Adds perplexity (per token) and bits per byte of text to the loss (nats per token)."""
        per_byte = len(self.streams[split]) / self.n_bytes[split]
        return {**means, "perplexity": math.exp(means["loss"]),
                "bits_per_byte": means["loss"] / math.log(2) * per_byte}

    def __repr__(self):
        return f"LanguageModelling({self.name!r})"
