"""Interpolated modified Kneser–Ney: the best counting language model, a baseline for neural ones.

Source: Chen & Goodman (1998), "An Empirical Study of Smoothing Techniques for Language Modeling",
TR-10-98, Harvard. h is a context of k − 1 tokens, h′ is h without its first token. From k = n to 1,

    p_k(w | h) = (c(hw) − D(c(hw))) / c(h•)  +  γ(h) p_{k−1}(w | h′),      p_0(w) = 1 / V
    γ(h)       = (D₁ N₁(h•) + D₂ N₂(h•) + D₃₊ N₃₊(h•)) / c(h•)

and p_k(w | h) = p_{k−1}(w | h′) for an unseen context. γ(h) is the mass that the discounts removed,
so Σ_w p = 1. D(c) is D₁, D₂ or D₃₊ for a count of one, two or more; each order has its own three.
Kneser & Ney's idea: below the highest order, c(hw) is not how often hw occurs but how many
different tokens precede it ("Francisco" is frequent, but only after "San").

| paper    | here            | shape | meaning                                                     |
|----------|-----------------|-------|-------------------------------------------------------------|
| c(hw)    | `count[k]`      | (G_k,)| occurrences at order n, distinct predecessors below         |
| c(h•)    | `total[k]`      | (G_{k−1},) | sum of a context's counts                              |
| N_i(h•)  | `kinds[k]`      | (G_{k−1}, 3) | tokens seen once, twice, more often after a context  |
| D₁ D₂ D₃₊| `discounts[k-1]`| (3,)  | first from the paper's closed formula; `tune` improves them |

A k-gram is stored as one integer, (index of its first k − 1 tokens) · V + last token, in a sorted
array. This is a trie whose edges are found by binary search, exact for any order and vocabulary.
The text is one stream, with end-of-text as a token like any other. Order 1 is the smoothed unigram
model.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..common.hints import Array

_MARGIN = 1e-3                                                # keeps 0 < D_i < i, so that p > 0


class KneserNey:
    """An n-gram model: `KneserNey(order=5).fit(ids, vocab_size)`, then `tune`, `loss` and so on."""

    def __init__(self, order: int = 5):
        if not isinstance(order, (int, np.integer)) or order < 1:
            raise ValueError(f"order must be an integer ≥ 1, got {order!r}")
        self.order, self.vocab_size = int(order), None

    def __repr__(self):
        return f"KneserNey(order={self.order})"

    def fit(self, ids: Array | Sequence[int], vocab_size: int) -> KneserNey:
        """Count the n-grams of a stream of ids (n,) in 0 … vocab_size − 1; return self.

        Raises `ValueError` if the stream is shorter than the order, or an id is out of range."""
        self.vocab_size = V = int(vocab_size)
        if len(ids := self._checked(ids)) < self.order:
            raise ValueError(f"{len(ids)} tokens are too few for order {self.order}")
        self.keys, gram, count, suffix = [None], np.zeros(len(ids), np.int64), [None], [None]
        for k in range(1, self.order + 1):
            last, shorter = ids[k - 1:], gram                 # gram[t]: the k-gram starting at t
            keys, gram, occurrences = np.unique(shorter[:len(last)] * V + last,
                                                return_inverse=True, return_counts=True)
            after = np.zeros(len(keys), np.int64)
            after[gram] = shorter[1:] if k > 1 else 0         # the k-gram without its first token
            self.keys.append(keys); count.append(occurrences); suffix.append(after)
        for k in range(1, self.order):                        # distinct predecessors
            count[k] = np.bincount(suffix[k + 1], minlength=len(count[k]))
        self.count = count
        self.total, self.kinds = [None], [None]
        for k in range(1, self.order + 1):
            context, contexts = self.keys[k] // V, len(self.keys[k - 1]) if k > 1 else 1
            self.total.append(np.bincount(context, count[k], contexts))
            seen = np.minimum(count[k], 3)
            kinds = [np.bincount(context, seen == i, contexts) for i in (1, 2, 3)]
            self.kinds.append(np.stack(kinds, axis=1))
        self.discounts = np.array([_closed_form(c) for c in self.count[1:]])            # (order, 3)
        return self

    def tune(self, validation_ids: Array | Sequence[int]) -> float:
        """Choose the 3 · order discounts, 0 < D_i < i, that minimize the loss on held-out ids (n,),
        by quasi-Newton steps with exact gradients; return that loss, nats/token."""
        from scipy.optimize import minimize
        evidence = self._evidence(self._checked(validation_ids))

        def objective(d):
            p, gradient = self._probabilities(evidence, d.reshape(-1, 3), with_gradient=True)
            return -np.log(p).mean(), gradient.ravel()

        bounds = [(_MARGIN, i - _MARGIN) for _ in range(self.order) for i in (1, 2, 3)]
        best = minimize(objective, self.discounts.ravel(), jac=True, method="L-BFGS-B",
                        bounds=bounds)
        self.discounts = best.x.reshape(-1, 3)
        return float(best.fun)

    def log_probabilities(self, ids: Array | Sequence[int]) -> Array:
        """ln p of each of ids (n,) after the first, given all before it → (n − 1,), nats."""
        return np.log(self._probabilities(self._evidence(self._checked(ids)), self.discounts))

    def loss(self, ids: Array | Sequence[int]) -> float:
        """Mean −ln p of ids (n,) after the first, nats/token, as a GPT's loss."""
        return -float(self.log_probabilities(ids).mean())

    def distribution(self, context: Array | Sequence[int] = ()) -> Array:
        """p(· | context) → (V,), with sum 1. Only the last order − 1 ids of the context matter."""
        context, V = self._checked(context).tolist(), self.vocab_size
        p = np.full(V, 1 / V)
        for k in range(1, min(self.order, len(context) + 1) + 1):
            h = 0
            for j, token in enumerate(context[len(context) - k + 1:], 1):
                h = int(_find(self.keys[j], np.array([h * V + token]))[0])
                if h < 0:
                    return p                                  # longer contexts are unseen too
            if self.total[k][h] > 0:
                edges = slice(*np.searchsorted(self.keys[k], (h * V, (h + 1) * V)))
                D, c = np.concatenate([[0], self.discounts[k - 1]]), self.count[k][edges]
                p *= self.kinds[k][h] @ D[1:] / self.total[k][h]
                p[self.keys[k][edges] % V] += (c - D[np.minimum(c, 3)]) / self.total[k][h]
        return p

    def _evidence(self, ids):
        """Look up (positions of predicted tokens with c(h•) > 0, c(hw), c(h•), N(h•)) per order."""
        if len(ids) < 2:
            raise ValueError(f"at least 2 tokens are needed to predict one, got {len(ids)}")
        evidence, gram = [len(ids) - 1], np.zeros(len(ids), np.int64)
        for k in range(1, self.order + 1):
            last, context = ids[k - 1:], gram[:len(ids) - k + 1]          # context −1: never seen
            gram = np.where(context < 0, -1, _find(self.keys[k], context * self.vocab_size + last))
            known = (context >= 0) & (self.total[k][context] > 0)
            if k == 1: known[0] = False                       # the first token is not predicted
            at = np.flatnonzero(known)
            c, h = np.where(gram[at] < 0, 0, self.count[k][gram[at]]), context[at]
            evidence.append((at + k - 2, c, self.total[k][h], self.kinds[k][h]))
        return evidence

    def _probabilities(self, evidence, discounts, with_gradient=False):
        """p of each predicted token, and if asked ∂(mean −ln p)/∂D (order, 3), backward."""
        n, *orders = evidence
        p, tape = np.full(n, 1 / self.vocab_size), []
        for (at, c, total, kinds), d in zip(orders, discounts, strict=True):
            D = np.concatenate([[0], d])
            gamma, lower = kinds @ d / total, p[at]
            p[at] = (c - D[np.minimum(c, 3)]) / total + gamma * lower
            tape.append((gamma, lower))
        if not with_gradient:
            return p
        gradient, dp = np.zeros((self.order, 3)), -1 / (n * p)
        for k in reversed(range(self.order)):
            (at, c, total, kinds), (gamma, lower) = orders[k], tape[k]
            g = dp[at] / total
            gradient[k] = (g * lower) @ kinds - np.bincount(np.minimum(c, 3), g, 4)[1:]
            dp[at] *= gamma
        return p, gradient

    def _checked(self, ids):
        if self.vocab_size is None:
            raise ValueError("the model has no counts yet: call fit(ids, vocab_size) first")
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"expected integer ids (n,), got shape {ids.shape}, {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise ValueError(f"ids must be in 0 … {self.vocab_size - 1}, "
                             f"got {ids.min()} … {ids.max()}")
        return ids.astype(np.int64)


def _find(keys, wanted):
    """Return the index of each wanted integer in the sorted `keys`, or −1."""
    i = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[i] == wanted, i, -1)


def _closed_form(count):
    """Chen & Goodman's estimate: Y = n₁ / (n₁ + 2 n₂), D_i = i − (i + 1) Y n_{i+1} / n_i.

    n_i is the number of k-grams with count i. D_i = i / 2 if the formula leaves (0, i)."""
    n = np.bincount(np.minimum(count, 5), minlength=6)
    Y = n[1] / (n[1] + 2 * n[2]) if n[1] else math.nan
    D = [i - (i + 1) * Y * n[i + 1] / n[i] if n[i] else math.nan for i in (1, 2, 3)]
    return [d if _MARGIN <= d <= i - _MARGIN else i / 2 for i, d in enumerate(D, 1)]
