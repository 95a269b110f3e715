"""Classification without training: which label does the model itself think comes next?

A template makes a beginning of a text, such as "Review: …\\nSentiment:", and a label continues it.
The score of a label is log p of its tokens after that beginning. Labels that say what they mean,
in a model that has read much, are needed: the shipped base cannot do this, SmolLM2 can. It tells
praise from blame, and does little better than chance where a label is a word for experts.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...common.hints import Array
from ...common.progress import watched
from ...engine import functional as F
from ...engine.nn import Module
from ...engine.tensor import no_grad
from ..tokenizer import Tokenizer
from .task import checked_texts, pad, tokenizer_of

__all__ = ["TEMPLATE", "Labels"]

# SmolLM2's accuracy on 100 reviews, 100 sources, 100 hedges and 50 mails of tests/stress/tables.py:
# 0.81, 0.49, 0.61 and 0.56, in the mean 0.62. With "Label:" or "Type:" the mean is 0.53, with
# "Category:" 0.49. Words of one's own are better: "Review: … Sentiment: …" 0.83 on 150 reviews. To
# divide each likelihood by that after an empty text changes the mean by less than 0.01.
TEMPLATE = "Text: {text}\nType of text: {label}"


class Labels:
    """Name one of some labels for a text, by their likelihood after it.

    labels: two or more different names. template: text with {text} and, at its end, {label}.
    context: the most tokens of a text with its label; longer texts are cut."""

    def __init__(self, labels: Sequence[str], model: Module | Tokenizer | None = None,
                 template: str = TEMPLATE, context: int = 256):
        if len(labels) < 2 or len(set(labels)) < len(labels) or not all(map(str.strip, labels)):
            raise ValueError("labels must be two or more different names, got "
                             f"{', '.join(map(repr, labels))}")
        head, text, middle = template.partition("{text}")
        middle, label, rest = middle.partition("{label}")
        if not text or not label or rest:
            raise ValueError("the template must have {text} and end with {label}, got "
                             f"{template!r}")
        self.classes, self.tokenizer, self.context = tuple(labels), tokenizer_of(model), context
        self.head, self.middle = head, middle.rstrip(" ")
        space = middle[len(self.middle):]                # a token begins with its space
        self.ends = [self.tokenizer.encode(f"{self.middle}{space}{name}") for name in labels]
        shared = self.tokenizer.encode(self.middle)
        self.n_shared = len(shared)
        if any(end[:len(shared)].tolist() != shared.tolist() for end in self.ends):
            raise ValueError(f"the template's {self.middle!r} and a label share a token; put a "
                             "space or a line end in front of {label}")

    def rows(self, text: str) -> list[Array]:
        """Return, for each label, the ids of the text and the label without its last token."""
        longest = max(map(len, self.ends))
        beginning = self.tokenizer.encode(f"{self.head}{text}")[:self.context - 1 - longest]
        return [np.concatenate([[self.tokenizer.opening], beginning, end[:-1]])
                for end in self.ends]

    def predict(self, model: Module, texts: Sequence[str], probabilities: bool = False,
                batch_size: int = 16) -> list[str] | tuple[list[str], Array]:
        """Return the likeliest label of each text; with `probabilities` also those of all, (N, C).

        They are the likelihoods, scaled to add up to one. model: without a head."""
        asked = {}                                       # row of ids → [(text, label)] that read it
        for i, text in enumerate(checked_texts(texts)):
            for j, ids in enumerate(self.rows(text)):    # labels of one token share a row
                asked.setdefault(tuple(ids), []).append((i, j))
        rows = sorted(asked, key=len)                    # so that little of a batch is padding
        log_p = np.zeros((len(texts), len(self.classes)))
        model.eval()
        with no_grad():
            for start in watched(range(0, len(rows), batch_size), "classifying"):
                batch = rows[start:start + batch_size]
                tokens, lengths = pad(batch, self.tokenizer.end_of_text)
                hidden = model.hidden(tokens)
                for b, row in enumerate(batch):
                    for i, j in asked[row]:
                        new = self.ends[j][self.n_shared:]
                        places = slice(lengths[b] - len(new), lengths[b])
                        scores = F.log_softmax(model.logits(hidden[b, places])).data
                        log_p[i, j] = scores[np.arange(len(new)), new].sum()
        p = np.exp(log_p - log_p.max(1, keepdims=True, initial=-np.inf))
        p /= p.sum(1, keepdims=True)
        names = [self.classes[i] for i in p.argmax(1)]
        return (names, p) if probabilities else names
