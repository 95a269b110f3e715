"""Summarization: a signature → the first sentence of its documentation.

It stands for the table-to-text tasks of prefix tuning's paper. A row is a prompt,
"name(signature)\\n", and an answer, the sentence and the end of text. The rows come from the domain
corpus and keep its splits; the base has seen none of them.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from ... import functional as F
from ...nn import Module
from ...tensor import Tensor
from .. import corpus
from ..docstrings import Document
from ..ngram import KneserNey
from ..tokenizer import Tokenizer
from .sentences import first_sentences
from .task import SPLITS, Batch, Metrics, Rows, context_of, pad, tokenizer_of

__all__ = ["Summarization", "rouge_l", "summarize"]

IGNORED = -100                                                # a target that the loss ignores


def summarize(model: Module | Tokenizer | None = None,
              context: int | None = None) -> Summarization:
    """Make the task of writing a Matplotlib docstring's first sentence, given the signature.

    model: as in `domain`. context: the most tokens of prompt and answer together, by default 128 or
    half of the model's context; longer rows are left out."""
    text, tokenizer = corpus.domain_corpus(), tokenizer_of(model)
    parts = first_sentences(*([d for d in getattr(text, split) if d.signature] for split in SPLITS))
    documents, context = dict(zip(SPLITS, parts, strict=True)), context_of(model, context, 128)
    return Summarization(documents, tokenizer, context, {"domain": text.sha256})


class Summarization(Rows):
    """Write each document's text, given its header.

    documents: split → `Document`s; those above `context` tokens are left out. A batch is (tokens
    (B, T), targets (B, T)), padded on the right; the loss ignores targets of −100."""

    def __init__(self, documents: dict[str, list[Document]], tokenizer: Tokenizer, context: int,
                 sha256: dict[str, str] | None = None):
        opening, end = [tokenizer.opening], [tokenizer.end_of_text]
        encode = lambda d: (np.concatenate([opening, tokenizer.encode(f"{d.header}\n")]),
                            np.concatenate([tokenizer.encode(d.text), end]))
        rows = {split: [(d, encode(d)) for d in part] for split, part in documents.items()}
        fits = lambda ids: len(ids[0]) + len(ids[1]) <= context
        self.documents = {s: [d for d, ids in part if fits(ids)] for s, part in rows.items()}
        splits = {s: [ids for _, ids in part if fits(ids)] for s, part in rows.items()}
        super().__init__("summarize", splits, sha256)
        self.tokenizer = tokenizer

    def collate(self, examples: Sequence) -> Batch:
        ids = [np.concatenate(example) for example in examples]
        targets = [np.concatenate([np.full(len(prompt), IGNORED), answer])
                   for prompt, answer in examples]
        tokens, _ = pad([row[:-1] for row in ids], self.tokenizer.end_of_text)
        return tokens, pad([row[1:] for row in targets], IGNORED)[0]

    def count(self, batch: Batch) -> int:
        return int((batch[1] != IGNORED).sum())

    def loss(self, model: Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], ignore_index=IGNORED)

    def finish(self, means: Metrics, split: str = "test") -> Metrics:
        """Add bits per byte of the sentences to the loss (nats per token, end of text included)."""
        n_tokens = sum(len(answer) for _, answer in self.data(split))
        n_bytes = sum(len(d.text.encode()) for d in self.documents[split])
        return {**means, "bits_per_byte": means["loss"] / math.log(2) * n_tokens / n_bytes}

    def write(self, model: Module, split: str = "test", limit: int = 64,
              max_new_tokens: int = 48) -> list[str]:
        """Let `model` answer the first `limit` prompts greedily; keep each first line."""
        prompts = [prompt for prompt, _ in self.data(split)[:limit]]
        lengths, end = np.array([len(prompt) for prompt in prompts]), self.tokenizer.end_of_text
        written = [""] * len(prompts)
        for T in np.unique(lengths):                          # equally long prompts make one batch
            rows = np.flatnonzero(lengths == T)
            tokens = model.generate(np.array([prompts[i] for i in rows]), max_new_tokens, stop=end)
            for i, row in zip(rows, tokens[:, T:].tolist(), strict=True):
                sentence = self.tokenizer.decode(row[:row.index(end)] if end in row else row)
                written[i] = sentence.strip().split("\n")[0]
        return written

    def rouge(self, model: Module, split: str = "test", limit: int = 64,
              max_new_tokens: int = 48) -> float:
        """Mean ROUGE-L of `write` against the documentation's sentences, in [0, 1]."""
        written = self.write(model, split, limit, max_new_tokens)
        pairs = zip(written, self.documents[split], strict=False)
        return float(np.mean([rouge_l(sentence, document.text) for sentence, document in pairs]))

    def measure_baselines(self) -> dict[str, Metrics]:
        """Measure the answers' unigrams, Kneser–Ney on whole rows, the name's words (ROUGE-L)."""
        def streams(split):                                 # ids (N,), is it part of an answer (N,)
            rows = self.data(split)
            return (np.concatenate([ids for row in rows for ids in row]),
                    np.repeat([False, True] * len(rows), [len(ids) for row in rows for ids in row]))
        (train, in_answer), (validation, _), (test, counted) = map(streams, SPLITS)
        unigram = KneserNey(1).fit(train[in_answer], self.tokenizer.vocab_size)
        five_gram = KneserNey(5).fit(train, self.tokenizer.vocab_size)
        five_gram.tune(validation)
        loss = lambda ngram: -float(ngram.log_probabilities(test)[counted[1:]].mean())
        words = [rouge_l(" ".join(words_of(d.name)), d.text) for d in self.documents["test"]]
        return {"unigram": self.finish({"loss": loss(unigram)}),
                "Kneser–Ney 5-gram": self.finish({"loss": loss(five_gram)}),
                "words of the name": {"rouge_l": float(np.mean(words))}}

    def describe(self) -> str:
        sizes = " / ".join(f"{len(rows):,}" for rows in self.splits.values())
        return f"signature → first sentence, {sizes} rows ({' / '.join(self.splits)})"


def words_of(name):
    """Split the last two parts of a name: "axes.Axes.set_xlabel" → ["Axes", "set", "xlabel"]."""
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", " ".join(name.split(".")[-2:]))


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L in [0, 1]: F₁ of the longest common subsequence of words, 0 if a text has no word.

    Case and punctuation are ignored. Lin (2004), "ROUGE: A Package for Automatic Evaluation of
    Summaries"."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    longest = np.zeros(len(b) + 1, int)                       # [j]: of a's words so far and b[:j]
    for word in a:
        longest[1:] = np.maximum(longest[1:], longest[:-1] + (np.array(b) == word))
        longest = np.maximum.accumulate(longest)
    return 2 * int(longest[-1]) / (len(a) + len(b)) if a and b else 0.0
