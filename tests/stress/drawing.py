"""What a search over configurations draws at random: values of declared classes, small models, and a task for them.

Every field of a method or scheme is drawn from what its own limit allows, so that a new field or class is tried without
a change here.
"""
import dataclasses
import re

import numpy as np

from tests.conftest import make_gpt
from tinypeft.engine import functional as F

__all__ = ["NAMES", "Task", "drawn", "drawn_model"]

# What a field may be offered; its limit chooses.
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 0.01, 0.1, 0.3, 0.5, 0.8, 0.9, 1.0, 2.0, 60.0, 99.0)
NAMES = ("all", ("query",), ("query", "value"), ("key", "down"), ("up", "down"), ("output", "blocks.0.mlp.up"),
         ("bias",), ("norm1", "final_norm"), ("mlp",), ("blocks.0.attention.value",))
OTHERS = (None, True, False, *NAMES, (2, "context", 1, "target"), ("context", 2, "target"), (1, "a", 1, "b", 1, "c"),
          (3, 1), (5,), {"query": 3}, {"value": 1, "blocks.0.mlp.down": 2}, {"up": 4.0},
          "FP4", "FP16", "BF16", "E4M3", "E5M2", "E2M1", "E3M2")


def drawn(cls, rng, chance=0.4):
    """An instance of a class of declared fields: each keeps its default, or takes what its limit holds, at random."""
    while True:
        fields = {}
        for f in dataclasses.fields(cls):
            limit = f.metadata["limit"]
            named = re.findall(r"'([^']+)'", limit.expected)                   # of `one_of`
            legal = [x for x in (*NUMBERS, *OTHERS, *named) if limit.holds(x)]
            if (cls.__name__, f.name) == ("GGUF", "importance"): legal = [True, False]        # a str is the name of a file
            if legal and rng.random() < chance: fields[f.name] = legal[rng.integers(len(legal))]
        try:
            return cls(**fields)
        except cls.error:                                                      # a rule for several fields
            pass


def drawn_model(rng):
    """A GPT with random sizes, whose every parameter is random."""
    heads, d_head = int(rng.choice([1, 2, 4])), int(rng.choice([2, 4, 8]))
    return make_gpt(rng.choice([np.float32, np.float64]), int(rng.integers(1e6)), n_heads=heads, d_model=heads * d_head,
                    n_layers=int(rng.choice([1, 1, 2, 2, 3])), vocab_size=int(rng.integers(5, 60)),
                    context_length=int(rng.integers(6, 25)), dropout=float(rng.choice([0, 0, 0.1])))


class Task:
    """Random tokens and next tokens or, for a model with a head, random classes; separators where they are needed."""

    def __init__(self, tuned, rng):
        self.V, self.head = tuned.config.vocab_size, getattr(tuned, "head", None)
        virtual = getattr(tuned, "virtual", None)
        self.separator, self.needed = getattr(virtual, "separator", None), len(getattr(virtual, "counts", [0])) - 1
        room = tuned.config.context_length - getattr(tuned, "virtual_length", 0)
        self.T = int(rng.integers(1, min(room, 8) + 1)) if self.separator is None else min(room, 8)

    def tokens(self, rows, rng):
        x = rng.integers(0, self.V, (rows, self.T))
        if self.separator is not None: x[:, :min(self.needed, self.T)] = self.separator
        return x

    def batch(self, split, rows, rng):
        x = self.tokens(rows, rng)
        if self.head is None: return x, rng.integers(0, self.V, x.shape)
        lengths = rng.integers(min(max(self.needed, 1), self.T), self.T + 1, rows)
        return x, lengths, rng.integers(0, self.head.d_out, rows)

    def batches(self, split, rows):
        yield self.batch(split, rows, np.random.default_rng(0))

    def count(self, batch): return batch[0].size if self.head is None else len(batch[0])

    def loss(self, model, batch):
        if self.head is None: return F.cross_entropy(model(batch[0]), batch[1])
        return F.cross_entropy(model.class_logits(*batch[:2]), batch[2])

    def metrics(self, model, batch): return {"loss": self.loss(model, batch).item()}
    def finish(self, means, split): return means
