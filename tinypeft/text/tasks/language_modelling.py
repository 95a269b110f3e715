"""Language modelling: predict the next token of a stream of documents."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...common.hints import Array
from ...engine.nn import Module
from ...engine.tensor import Tensor
from .. import corpus
from ..corpus import Corpus
from ..ngram import KneserNey
from ..tokenizer import Tokenizer
from .task import SPLITS, Batch, Metrics, Task, checked_texts, context_of, tokenizer_of
from .writing import written

__all__ = ["LanguageModelling", "domain"]


def domain(model: Module | Tokenizer | None = None, context: int | None = None,
           held_out: int | None = None) -> LanguageModelling:
    """Make the task of language modelling on Matplotlib's documentation, which the base never saw.

    model: a model or PeftModel with a tokenizer, or a tokenizer; None means the shipped base's.
    context: tokens per window; by default 128, or half of the model's context if that is less.
    held_out: the approximate number of tokens of validation and of test (None: all); every k-th
    document is kept."""
    text, tokenizer = corpus.domain_corpus(), tokenizer_of(model)
    for split in SPLITS[1:] if held_out is not None else ():
        documents = getattr(text, split)
        every = max(1, round(len(tokenizer.encode_documents(documents)) / held_out))
        text = replace(text, **{split: documents[::every]})
    return LanguageModelling.of_corpus("domain", text, tokenizer, context_of(model, context, 128))


class LanguageModelling(Task):
    """Predict the next token of a stream of documents.

    streams: split → int array of token ids (N,). n_bytes: split → bytes of the encoded text.
    context: tokens per window. Training windows start anywhere. Evaluation windows lie end to end,
    so that every token but the first is predicted once."""

    def __init__(self, name: str, streams: dict[str, Array], n_bytes: dict[str, int], context: int,
                 sha256: dict[str, str] | None = None, tokenizer: Tokenizer | None = None):
        super().__init__(name, streams, sha256)
        self.streams, self.n_bytes, self.context = streams, n_bytes, context
        self.tokenizer, self.form = tokenizer, {"kind": "text", "context": context}
        for split, ids in streams.items():
            if len(ids) <= context:
                raise ValueError(f"{name}: {split} has {len(ids)} tokens, fewer than a window of "
                                 f"{context} + 1: give more text or a smaller context")

    @classmethod
    def of_corpus(cls, name: str, text: Corpus, tokenizer: Tokenizer, context: int,
                  splits: Sequence[str] = SPLITS) -> LanguageModelling:
        """Make the task of modelling a corpus, or some splits of it. name: also the corpus'."""
        streams = {split: tokenizer.encode_documents(getattr(text, split)) for split in splits}
        n_bytes = {split: text.n_bytes(split) for split in splits}
        return cls(name, streams, n_bytes, context, {name: text.sha256}, tokenizer)

    def batch(self, split: str, size: int, rng: np.random.Generator) -> Batch:
        """Draw windows at random: (tokens (B, T), next tokens (B, T))."""
        ids = self.data(split)
        start = rng.integers(0, len(ids) - self.context, size)
        windows = ids[start[:, None] + np.arange(self.context + 1)]               # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def batches(self, split: str, size: int) -> Iterator[Batch]:
        """Go through a split once, in windows laid end to end."""
        ids, T = self.data(split), self.context
        full, rest = divmod(len(ids) - 1, T)
        windows = ids[np.arange(full)[:, None] * T + np.arange(T + 1)]    # neighbours share a token
        for i in range(0, full, size):
            yield windows[i:i + size, :-1], windows[i:i + size, 1:]
        if rest:
            yield ids[None, -rest - 1:-1], ids[None, -rest:]

    def count(self, batch: Batch) -> int:
        return batch[1].size

    def loss(self, model: Module, batch: Batch) -> Tensor:
        return model.loss(batch[0], batch[1])

    def finish(self, means: Metrics, split: str = "test") -> Metrics:
        """Add perplexity (per token) and bits per byte of text to the loss (nats per token)."""
        tokens_per_byte = (len(self.data(split)) - 1) / self.n_bytes[split]
        return {**means, "perplexity": math.exp(means["loss"]),
                "bits_per_byte": means["loss"] / math.log(2) * tokens_per_byte}

    def predict(self, model: Module, texts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """Return the likeliest continuation of each text, token by token, up to the end of text.

        Raises ValueError for an empty text, or one that fills the model's context."""
        prompts = [self.tokenizer.encode_prompt(text) for text in checked_texts(texts)]
        return written(model, self.tokenizer, prompts, self.tokenizer.end_of_text, max_new_tokens)

    def measure_baselines(self) -> dict[str, Metrics]:
        """Fit the unigram and Kneser–Ney 5-gram models on train; tune them on validation."""
        vocab_size = 1 + max(int(ids.max()) for ids in self.streams.values())
        measured = {}
        for name, order in ("unigram", 1), ("Kneser–Ney 5-gram", 5):
            counts = KneserNey(order).fit(self.data("train"), vocab_size)
            counts.tune(self.data("validation"))
            measured[name] = self.finish({"loss": counts.loss(self.data("test"))})
        return measured

    def describe(self) -> str:
        sizes = " / ".join(f"{len(ids):,}" for ids in self.streams.values())
        return (f"language modelling, {sizes} tokens ({' / '.join(self.streams)}) "
                f"in windows of {self.context}")
