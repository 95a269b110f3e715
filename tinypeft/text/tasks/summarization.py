"""Summarization: a signature → the first sentence of its documentation.

It stands for the table-to-text tasks of prefix tuning's paper. A row is a prompt,
"name(signature)\\n", and an answer, the sentence and the end of text. The rows come from the domain
corpus and keep its splits; the base has seen none of them.
"""
from __future__ import annotations

import re

import numpy as np

from ...engine.nn import Module
from .. import corpus
from ..docstrings import Document
from ..tokenizer import Tokenizer
from .answering import Answering, rouge_l
from .sentences import first_sentences
from .task import SPLITS, Metrics, context_of, tokenizer_of

__all__ = ["Summarization", "summarize"]


def summarize(model: Module | Tokenizer | None = None,
              context: int | None = None) -> Summarization:
    """Make the task of writing a Matplotlib docstring's first sentence, given the signature.

    model: as in `domain`. context: the most tokens of prompt and answer together, by default 128 or
    half of the model's context; longer rows are left out."""
    text, tokenizer = corpus.domain_corpus(), tokenizer_of(model)
    parts = first_sentences(*([d for d in getattr(text, split) if d.signature] for split in SPLITS))
    documents, context = dict(zip(SPLITS, parts, strict=True)), context_of(model, context, 128)
    return Summarization(documents, tokenizer, context, {"domain": text.sha256})


class Summarization(Answering):
    """Write each document's text, given its header.

    documents: split → `Document`s; those above `context` tokens are left out. Otherwise as
    `Answering`."""

    def __init__(self, documents: dict[str, list[Document]], tokenizer: Tokenizer, context: int,
                 sha256: dict[str, str] | None = None):
        rows = {split: [(d.header, d.text) for d in part] for split, part in documents.items()}
        super().__init__(rows, tokenizer, context, sha256, name="summarize")
        kept = {split: set(part) for split, part in self.rows.items()}
        self.documents = {split: [d for d in part if (d.header, d.text) in kept[split]]
                          for split, part in documents.items()}

    def write(self, model: Module, split: str = "test", limit: int = 64,
              max_new_tokens: int = 48) -> list[str]:
        """Let `model` answer the first `limit` prompts greedily; keep each first line."""
        written = super().write(model, split, limit, max_new_tokens)
        return [answer.split("\n")[0] for answer in written]

    def measure_baselines(self) -> dict[str, Metrics]:
        """Measure what `Answering` does, and the name's words as an answer (ROUGE-L)."""
        words = [rouge_l(" ".join(words_of(d.name)), d.text) for d in self.documents["test"]]
        return super().measure_baselines() | {"words of the name": {
            "rouge_l": float(np.mean(words))}}

    def describe(self) -> str:
        return f"signature → first sentence, {self.sizes()}"


def words_of(name):
    """Split the last two parts of a name: "axes.Axes.set_xlabel" → ["Axes", "set", "xlabel"]."""
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", " ".join(name.split(".")[-2:]))
