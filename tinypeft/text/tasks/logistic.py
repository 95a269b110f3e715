"""Multinomial logistic regression: p = softmax(x W + b), and how well it does on rows not seen.

W and b minimize the mean of −log p(label) + λ/2 ‖W‖². The problem is convex, so L-BFGS finds the
one solution. Cross-validation cuts the rows into folds, fits on all but one fold, and measures that
one: each row is measured once, by a model that has not seen it.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.hints import Array
from ...common.progress import watched

__all__ = ["Validated", "confusions", "cross_validate", "fit", "folds_of", "interval",
           "log_probabilities", "mean_loss"]

Design = Callable[[Array, Array], tuple[Any, Any]]


def fit(X: Any, labels: Array, n_classes: int, strength: float, start: Array | None = None,
        offset: bool = True) -> Array:
    """Return W (d + 1, C), whose last row is b: zeros without `offset`. X (N, d), dense or sparse.
    strength: λ. start: a W to start from."""
    from scipy.optimize import minimize
    shape = X.shape[1] + 1, n_classes
    rows = np.arange(len(labels))

    def objective(w):
        W = w.reshape(shape)
        log_p = log_probabilities(W, X)
        dZ = np.exp(log_p)
        dZ[rows, labels] -= 1
        dW = np.vstack([X.T @ dZ, dZ.sum(0)]) / len(labels)
        dW[:-1] += strength * W[:-1]
        dW[-1] *= offset
        return mean_loss(log_p, labels) + strength / 2 * (W[:-1] ** 2).sum(), dW.ravel()

    w = np.zeros(shape) if start is None else start
    return minimize(objective, w.ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)


def log_probabilities(W: Array, X: Any) -> Array:
    """Return log p of every class, (N, C)."""
    from scipy.special import log_softmax
    return log_softmax(X @ W[:-1] + W[-1], axis=1)


def mean_loss(log_p: Array, labels: Array) -> float:
    """Return the mean of −log p(label), in nats."""
    return -log_p[np.arange(len(labels)), labels].mean()


@dataclass(frozen=True, eq=False)
class Validated:
    """What cross-validation measured.

    strength: the λ with the least loss. log_p: log-probabilities of each row (N, C), by a model
    that has not seen the row. labels (N,)."""
    strength: float
    log_p: Array
    labels: Array

    @property
    def loss(self) -> float:
        """The mean of −log p(label), in nats."""
        return float(mean_loss(self.log_p, self.labels))

    @property
    def accuracy(self) -> float:
        return float((self.log_p.argmax(1) == self.labels).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy on other rows of this kind."""
        hits = int((self.log_p.argmax(1) == self.labels).sum())
        return interval(hits, len(self.labels))

    def confusions(self) -> Array:
        """Return how many rows of class i were called j, (C, C)."""
        return confusions(self.labels, self.log_p.argmax(1), self.log_p.shape[1])


def interval(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of which n rows gave `hits` (Wilson, 1927)."""
    from scipy.stats import binomtest
    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return float(low), float(high)


def confusions(labels: Array, called: Array, n_classes: int) -> Array:
    """Return how many rows of class i were called j, (C, C). labels, called: (N,)."""
    counts = np.zeros((n_classes, n_classes), int)
    np.add.at(counts, (labels, called), 1)
    return counts


def folds_of(labels: Array, n: int, seed: int) -> Array:
    """Return the fold of each row, 0 … n − 1, (N,). Each class is spread evenly over the folds."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % n
    return fold


def cross_validate(design: Design, labels: Array, n_classes: int, strengths: Sequence[float],
                   n_folds: int = 5, seed: int = 0, offset: bool = True) -> Validated:
    """Try each λ on rows that the fit has not seen; return what the best one reaches.

    design: (rows to learn from, rows to measure) → their X, so that a mean, a scale or a count of
    words is taken from the first alone. The λ of `strengths` fall: each fit starts at the solution
    before it.
    """
    fold = folds_of(labels, n_folds, seed)
    log_p = np.empty((len(strengths), len(labels), n_classes))
    for i in watched(range(n_folds), "cross-validation"):
        learned, held_out = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
        X, X_held_out = design(learned, held_out)
        W = None
        for j, strength in enumerate(strengths):
            W = fit(X, labels[learned], n_classes, strength, W, offset)
            log_p[j, held_out] = log_probabilities(W, X_held_out)
    losses = [mean_loss(tried, labels) for tried in log_p]
    best = int(np.argmin(losses))
    return Validated(strengths[best], log_p[best], labels)
