"""Tasks for the tests of training: milliseconds per step, and the truth is known."""
import copy

import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F


def small(dropout=0.0, rng=0):
    """A tiny GPT as it is initialised."""
    return tp.GPT(tp.GPTConfig(37, 24, 16, 2, 4, dropout=dropout), rng=rng)


def same(a, b):
    """Are two dicts of arrays equal, bit for bit?"""
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def linear_paths(model):
    """Paths of the linear layers in the blocks."""
    return [path for path, module in model.named_modules() if path.startswith("blocks.") and hasattr(module, "d_in")]


def planted(model, ranks, seed=0, size=1.0):
    """A copy of `model` whose weight at each path of `ranks` is changed by U Vᵀ, all its singular values `size`."""
    changed, rng = copy.deepcopy(model), np.random.default_rng([seed, 2])
    for path, r in ranks.items():
        W = changed.get(path).weight
        U, V = (np.linalg.qr(rng.standard_normal((n, r)))[0] for n in W.shape)
        W.data = (W.data + size * U @ V.T).astype(W.dtype)
    return changed


class Noise:
    """Random tokens (rows, T) and random next tokens: nothing to learn, and gradients are general."""

    def __init__(self, vocab_size=37, T=7):
        self.vocab_size, self.T = vocab_size, T

    def batch(self, split, size, rng):
        return rng.integers(0, self.vocab_size, (size, self.T)), rng.integers(0, self.vocab_size, (size, self.T))

    def batches(self, split, size):
        rng = np.random.default_rng(len(split))
        for _ in range(4): yield self.batch(split, size, rng)

    def count(self, batch):
        return batch[0].size

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def metrics(self, model, batch):
        return {"loss": self.loss(model, batch).item()}

    def finish(self, means, split):
        return means


class Distil(Noise):
    """Random tokens and a teacher's distribution over the next one; the loss is KL(teacher ‖ model), 0 at best."""

    def __init__(self, teacher, T=12):
        super().__init__(teacher.config.vocab_size, T)
        self.teacher = teacher

    def batch(self, split, size, rng):
        tokens = rng.integers(0, self.vocab_size, (size, self.T))
        with tp.no_grad(): return tokens, F.log_softmax(self.teacher(tokens)).data

    def loss(self, model, batch):
        tokens, log_p = batch
        p = np.exp(log_p)
        return ((F.log_softmax(model(tokens)) * -p).sum() + float((p * log_p).sum())) * (1 / tokens.size)
