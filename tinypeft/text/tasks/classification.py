"""Classification: which package does a docstring's first sentence document? The names are masked.

Test rows come from the validation and test parts of the corpora, without any sentence of the
training parts: pretraining saw none. Validation is split off the training parts, by family.
"""
from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ...common.hints import Array
from ...common.progress import watched
from ...common.wording import brief, shortened
from ...engine import functional as F
from ...engine.nn import Module
from ...engine.tensor import Tensor, no_grad
from .. import corpus
from ..tokenizer import Tokenizer
from .bags import bag_of_words
from .sentences import first_sentences
from .task import Batch, Metrics, Rows, by_length, checked_texts, context_of, pad, tokenizer_of

__all__ = ["CLASSES", "Classification", "classify"]

READS = "newline", "end"
CLASSES = ("numpy.ma", "numpy.polynomial", "scipy.interpolate", "scipy.io", "scipy.optimize",
           "scipy.signal", "scipy.sparse", "scipy.special", "scipy.stats",
           "matplotlib.axes", "matplotlib.backends", "matplotlib.patches")


def classify(model: Module | Tokenizer | None = None, context: int | None = None,
             classes: Sequence[str] = CLASSES, per_class: int = 160,
             held_out: int = 40) -> Classification:
    """Make the task of naming the package that a docstring's first sentence documents.

    model: as in `domain`; `attach(model, method, head=len(task.classes))` gives it a head. context:
    the most tokens of a row (default 64); longer sentences are cut. per_class, held_out: the most
    rows of a class in train, and in validation or test, evenly spaced over the package's files. "_"
    masks the names of packages. Raises ValueError if a class has no sentence."""
    tokenizer, context = tokenizer_of(model), context_of(model, context, 64)
    caps, rows = {"train": per_class, "validation": held_out, "test": held_out}, {}
    for split, documents in sentences(tuple(classes)).items():
        by_class = {c: [d.text for d in documents if package(d) == c] for c in classes}
        if missing := ", ".join(c for c in classes if not by_class[c]):
            raise ValueError(f"classify: no sentence for {split} in {missing}; change `classes`")
        rows[split] = [(text, label) for label, c in enumerate(classes)
                       for text in evenly(by_class[c], caps[split])]
    sha256 = {"base": corpus.base_corpus().sha256, "domain": corpus.domain_corpus().sha256}
    task = Classification(rows, classes, tokenizer, context, sha256)
    task.nouns = "packages", "sentences"
    return task


@functools.cache
def sentences(classes):
    """split → `Document`s of the classes, whose text is the masked first sentence."""
    base, domain = corpus.base_corpus(), corpus.domain_corpus()
    of_classes = lambda documents: [d for d in documents if package(d) in classes]
    seen = base.train + domain.train
    train, validation, _ = corpus.split(of_classes(seen), fractions=(0.15, 0), seed=1)
    test = of_classes(base.validation + base.test + domain.validation + domain.test)
    mask = lambda sentence: package_words(classes).sub("_", sentence)
    train, validation, _, test = first_sentences(train, validation, seen, test, edit=mask)
    return {"train": train, "validation": validation, "test": test}


def package(document):
    """Return the first two parts of a document's name: "scipy.stats.norm.pdf" → "scipy.stats"."""
    return ".".join(document.name.split(".")[:2])


@functools.cache
def package_words(classes):
    """Compile what is masked: libraries' dotted names; the classes' words, singular or plural."""
    libraries = "numpy|scipy|matplotlib|mpl_toolkits|np|mpl|plt"
    parts = {part for name in classes for part in name.split(".")}
    stems = "|".join(sorted({re.sub("e?s$", "", part) for part in parts}))
    return re.compile(rf"\b(?:(?:{libraries})(?:\.\w+)*|(?:{stems})(?:e?s)?)\b", re.IGNORECASE)


def evenly(rows, most):
    """Keep at most `most` of the rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)
    return [rows[i] for i in np.unique(places)]


class Classification(Rows):
    """Name the class of a text. rows: split → [(text, label)]; label indexes `classes`.

    A row of tokens is a document as in pretraining: the text, cut to fit, after an end of text, or
    after the start of a tokenizer that has one. The head reads the last token. reads: which token
    that is, the "end" of text or the "newline" before it; SmolLM2 tells more there. A batch is
    (padded tokens (B, T), lengths (B,), labels (B,))."""
    nouns = "classes", "rows"

    def __init__(self, rows: dict[str, list[tuple[str, int]]], classes: Iterable[str],
                 tokenizer: Tokenizer, context: int, sha256: dict[str, str] | None = None,
                 name: str = "classify", reads: str = "end"):
        if reads not in READS:
            raise ValueError(f"reads must be {' or '.join(map(repr, READS))}, got {brief(reads)}")
        self.rows, self.classes, self.reads = rows, tuple(classes), reads
        self.tokenizer, self.context = tokenizer, context
        splits = {split: [(self.encode(text), label) for text, label in part]
                  for split, part in rows.items()}
        super().__init__(name, splits, sha256)
        self.form = {"kind": "labelled", "context": context, "classes": list(self.classes),
                     "reads": reads}

    def encode(self, text: str) -> Array:
        """Return the ids (n,) of a row, n ≤ context."""
        ids = self.tokenizer.encode(f"{text}\n")
        last = ids[-1] if self.reads == "newline" else self.tokenizer.end_of_text
        if self.reads == "newline":
            ids = ids[:-1]
        return np.concatenate([[self.tokenizer.opening], ids[:self.context - 2], [last]])

    def predict(self, model: Module, texts: Sequence[str], probabilities: bool = False,
                batch_size: int = 16) -> list[str] | tuple[list[str], Array]:
        """Return the likeliest class of each text; with `probabilities` also those of all classes,
        (N, C).

        model: with a head for the classes. Raises ValueError for another number of classes."""
        rows = [(self.encode(text), 0) for text in checked_texts(texts)]
        model.eval()
        p, order = [np.zeros((0, len(self.classes)), np.float32)], []
        with no_grad():
            for places in watched(by_length(rows, batch_size), "classifying"):
                logits = self.logits(model, self.collate([rows[i] for i in places]))
                p.append(np.exp(F.log_softmax(logits).data))
                order += places
        p = np.concatenate(p)[np.argsort(order)]
        labels = [self.classes[i] for i in p.argmax(-1)]
        return (labels, p) if probabilities else labels

    def collate(self, examples: Sequence) -> Batch:
        tokens, lengths = pad([ids for ids, _ in examples], self.tokenizer.end_of_text)
        return tokens, lengths, np.array([label for _, label in examples])

    def logits(self, model: Module, batch: Batch) -> Tensor:
        logits = model.class_logits(*batch[:2])                   # (B, C)
        if logits.shape[1] != len(self.classes):
            raise ValueError(f"{self.name}: the model's head has {logits.shape[1]} classes, the "
                             f"task {len(self.classes)}: {shortened(', '.join(self.classes), 80)}")
        return logits

    def loss(self, model: Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(model, batch), batch[2])

    def metrics(self, model: Module, batch: Batch) -> Metrics:
        """Cross-entropy in nats, and accuracy."""
        logits, labels = self.logits(model, batch), batch[2]
        accuracy = float((logits.data.argmax(-1) == labels).mean())
        return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": accuracy}

    def measure_baselines(self) -> dict[str, Metrics]:
        """Measure the most frequent class of train, and `bag_of_words`."""
        train, test = ([label for _, label in self.rows[split]] for split in ("train", "test"))
        majority = Counter(train).most_common(1)[0][0]
        return {"majority class": {"accuracy": test.count(majority) / len(test)},
                "bag of words": bag_of_words(self.rows, len(self.classes))}

    def describe(self) -> str:
        sizes = " / ".join(f"{len(rows):,}" for rows in self.rows.values())
        classes, rows = self.nouns
        return f"{len(self.classes)} {classes}, {sizes} {rows} ({' / '.join(self.rows)})"
