"""Baselines of a classification: logistic regression on the words of a text, or on its letters.

A text is a bag of terms, in no order. x of a term is 1 + ln((1 + N)/(1 + n)) if it is in n of the N
texts to learn from, scaled so that a text has ‖x‖ = 1 (tf–idf, each term counted once).
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...common.hints import Array
from .logistic import Validated, cross_validate, fit, log_probabilities, mean_loss

__all__ = ["bag_of_words", "letters", "validated_bag", "words"]

Terms = Callable[[str], list[str]]
STRENGTHS = 1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6


def words(text: str) -> list[str]:
    """Return the different words of a text, in small letters."""
    return sorted(set(re.findall(r"\w+", text.lower())))


def letters(text: str) -> list[str]:
    """Return the different runs of two to five characters inside words, their edges marked."""
    padded = [f" {word} " for word in text.lower().split()]
    return sorted({word[i:i + n] for word in padded for n in range(2, 6)
                   for i in range(len(word) - n + 1)})


class Bag:
    """The terms of some texts. `design` makes the matrix X (N, terms) of any texts from them."""

    def __init__(self, texts: Sequence[str], terms: Terms):
        self.terms = terms
        count = Counter(term for text in texts for term in terms(text))
        self.column = {term: j for j, term in enumerate(count)}
        self.idf = 1 + np.log((1 + len(texts)) / (1 + np.array(list(count.values()))))

    def design(self, texts: Sequence[str]) -> Any:
        """Return X, sparse. Terms that the bag does not know are left out."""
        from scipy.sparse import csr_array
        columns = [np.array([self.column[term] for term in self.terms(text)
                             if term in self.column], int) for text in texts]
        values = [self.idf[js] / max(np.linalg.norm(self.idf[js]), 1e-9) for js in columns]
        starts = np.cumsum([0, *map(len, columns)])
        entries = np.concatenate(values), np.concatenate(columns), starts
        return csr_array(entries, (len(texts), len(self.idf)))


def bag_of_words(rows: dict, n_classes: int, terms: Terms = words) -> dict[str, float]:
    """Fit words on train, choose λ on validation; return {"loss", "accuracy"} on test. terms:
    `letters` for a bag of these."""
    texts = {split: [text for text, _ in part] for split, part in rows.items()}
    labels = {split: np.array([label for _, label in part]) for split, part in rows.items()}
    bag = Bag(texts["train"], terms)
    X = {split: bag.design(part) for split, part in texts.items()}
    W, tried = None, []
    for strength in STRENGTHS:                               # each starts at the solution before it
        W = fit(X["train"], labels["train"], n_classes, strength, W)
        tried.append(W)

    def log_p(W, split):
        return log_probabilities(W, X[split])

    best = min(tried, key=lambda W: mean_loss(log_p(W, "validation"), labels["validation"]))
    accuracy = float((log_p(best, "test").argmax(1) == labels["test"]).mean())
    return {"loss": float(mean_loss(log_p(best, "test"), labels["test"])), "accuracy": accuracy}


def validated_bag(texts: Sequence[str], labels: Array, n_classes: int, terms: Terms,
                  n_folds: int = 5, seed: int = 0) -> Validated:
    """Measure a bag of `terms` by cross-validation, on the same folds as a probe of this seed."""
    texts = np.array(texts, object)

    def design(learned, held_out):
        bag = Bag(texts[learned], terms)
        return bag.design(texts[learned]), bag.design(texts[held_out])

    return cross_validate(design, labels, n_classes, STRENGTHS, n_folds, seed)
