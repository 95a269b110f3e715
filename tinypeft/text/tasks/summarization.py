"""Summarization: a signature → the first sentence of its documentation, table-to-text as in prefix tuning's paper.

A row is "name(signature)\\n", which is given, then the sentence and the end of text, which are to be written. The rows
are Matplotlib's, in the parts of the domain corpus: the base has seen none of them.
"""
import itertools
import math
import re

import numpy as np

from ... import functional as F
from .. import corpus
from ..ngram import KneserNey
from .sentences import first_sentences
from .task import SPLITS, Rows, context_of, pad, tokenizer_of

__all__ = ["Summarization", "rouge_l", "summarize"]

IGNORED = -100                                                                    # a target that does not count


def summarize(model=None, context=None):
    """Write the first sentence of a Matplotlib function's documentation, given its signature → `Summarization`.

    model: as in `domain`. context: tokens of signature and sentence together (default 128, or half of the model's
    context); longer rows are left out, from all splits.
    """
    text, tokenizer, context = corpus.domain_corpus(), tokenizer_of(model), context_of(model, context, 128)
    parts = first_sentences(*([d for d in getattr(text, split) if d.signature] for split in SPLITS))
    return Summarization(dict(zip(SPLITS, parts, strict=True)), tokenizer, context, {"domain": text.sha256})


class Summarization(Rows):
    """documents: split → `Document`s, header given, text to be written; those beyond `context` tokens are left out.

    A batch is (tokens (B, T), targets (B, T)), filled up on the right; targets that do not count are −100."""

    def __init__(self, documents, tokenizer, context, sha256=None):
        end = [tokenizer.end_of_text]
        encode = lambda d: (np.concatenate([end, tokenizer.encode(f"{d.header}\n")]),
                            np.concatenate([tokenizer.encode(d.text), end]))
        self.documents, splits = {}, {}
        for split, part in documents.items():
            rows = [(d, *encode(d)) for d in part]
            rows = [row for row in rows if len(row[1]) + len(row[2]) <= context]
            self.documents[split], splits[split] = [row[0] for row in rows], [row[1:] for row in rows]
        super().__init__("summarize", splits, sha256)
        self.tokenizer = tokenizer

    def collate(self, examples):
        ids = [np.concatenate(example) for example in examples]
        aims = [np.concatenate([np.full(len(given), IGNORED), wanted]) for given, wanted in examples]
        tokens, _ = pad([row[:-1] for row in ids], self.tokenizer.end_of_text)
        return tokens, pad([row[1:] for row in aims], IGNORED)[0]

    def count(self, batch):
        return int((batch[1] != IGNORED).sum())

    def loss(self, model, batch):
        tokens, targets = batch
        return F.cross_entropy(model(tokens), targets, ignore_index=IGNORED)

    def finish(self, means, split="test"):
        """Adds bits per byte of the sentences to the loss (nats per token, the end of text being one)."""
        n_tokens = sum(len(wanted) for _, wanted in self.data(split))
        n_bytes = sum(len(d.text.encode()) for d in self.documents[split])
        return {**means, "bits_per_byte": means["loss"] / math.log(2) * n_tokens / n_bytes}

    def write(self, model, split="test", limit=64, max_new_tokens=48):
        """What `model` writes, greedily and on one line, for the first `limit` signatures of a split → list of str."""
        given = [row[0] for row in self.data(split)[:limit]]
        written, end = {}, self.tokenizer.end_of_text
        length = lambda i: len(given[i])
        for T, group in itertools.groupby(sorted(range(len(given)), key=length), length):
            rows = list(group)                                                    # equally long, so one batch
            tokens = model.generate(np.array([given[i] for i in rows]), max_new_tokens, stop=end)[:, T:]
            for i, row in zip(rows, tokens.tolist(), strict=True):
                sentence = self.tokenizer.decode(row[:row.index(end)] if end in row else row)
                written[i] = sentence.strip().split("\n")[0]
        return [written[i] for i in range(len(given))]

    def rouge(self, model, split="test", limit=64, max_new_tokens=48):
        """Mean ROUGE-L of what `write` gives against the documentation's own sentences, in [0, 1]."""
        written = self.write(model, split, limit, max_new_tokens)
        return float(np.mean([rouge_l(w, d.text) for w, d in zip(written, self.documents[split], strict=False)]))

    def measure_baselines(self):
        """The unigram model of the sentences, Kneser–Ney over whole rows; for ROUGE-L the words of the name."""
        def streams(split):                                                       # ids (N,), which are to be written
            rows = self.data(split)
            return (np.concatenate([ids for row in rows for ids in row]),
                    np.repeat([False, True] * len(rows), [len(ids) for row in rows for ids in row]))
        (train, written), (validation, _), (test, counted) = map(streams, SPLITS)
        unigram = KneserNey(1).fit(train[written], self.tokenizer.vocab_size)
        five = KneserNey(5).fit(train, self.tokenizer.vocab_size)
        five.tune(validation)
        loss = lambda counts: -float(counts.log_probabilities(test)[counted[1:]].mean())
        words = [rouge_l(" ".join(words_of(d.name)), d.text) for d in self.documents["test"]]
        return {"unigram": self.finish({"loss": loss(unigram)}),
                "Kneser–Ney 5-gram": self.finish({"loss": loss(five)}),
                "words of the name": {"rouge_l": float(np.mean(words))}}

    def describe(self):
        sizes = " / ".join(f"{len(rows):,}" for rows in self.splits.values())
        return f"signature → first sentence, {sizes} rows ({' / '.join(self.splits)})"


def words_of(name):
    """The words in the last two parts of a name: "axes.Axes.set_xlabel" → ["Axes", "set", "xlabel"]."""
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", " ".join(name.split(".")[-2:]))


def rouge_l(candidate, reference):
    """ROUGE-L: F₁ of the longest common subsequence of words (case and punctuation ignored), in [0, 1].

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". 0 if either text has no word."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    longest = np.zeros(len(b) + 1, int)                                           # of a's words so far and of b[:j]
    for word in a:
        longest[1:] = np.maximum(longest[1:], longest[:-1] + (np.array(b) == word))
        longest = np.maximum.accumulate(longest)
    return 2 * int(longest[-1]) / (len(a) + len(b)) if a and b else 0.0
