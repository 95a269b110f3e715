"""Classification: which package does a docstring's first sentence document, when it does not say so itself?

The test rows come from the validation and test parts of the corpora, and no sentence of their training parts is among
them: pretraining saw none. Validation is split off from the training parts, by near-duplicate family like the corpora.
"""
import functools
import re
from collections import Counter

import numpy as np

from ... import functional as F
from .. import corpus
from .sentences import first_sentences
from .task import Rows, context_of, pad, tokenizer_of

__all__ = ["CLASSES", "Classification", "classify"]

CLASSES = ("numpy.ma", "numpy.polynomial", "scipy.interpolate", "scipy.io", "scipy.optimize", "scipy.signal",
           "scipy.sparse", "scipy.special", "scipy.stats",
           "matplotlib.axes", "matplotlib.backends", "matplotlib.patches")


def classify(model=None, context=None, classes=CLASSES, per_class=160, held_out=40):
    """Name the package of a docstring's first sentence → `Classification`.

    model: as in `domain`; for the head, `attach(model, method, head=len(task.classes))`. context: tokens a row may have
    (default 64); longer sentences are cut. per_class, held_out: at most so many rows of a class in train, and in
    validation and in test, evenly spaced over the package's files. Names of packages are masked by "_".
    """
    tokenizer, context = tokenizer_of(model), context_of(model, context, 64)
    caps = {"train": per_class, "validation": held_out, "test": held_out}
    rows = {}
    for split, documents in sentences(tuple(classes)).items():
        of = {c: [d for d in documents if package(d) == c] for c in classes}
        rows[split] = [(d.text, label) for label, c in enumerate(classes) for d in evenly(of[c], caps[split])]
        if missing := [c for c in classes if not of[c]]:
            raise ValueError(f"classify: no sentence for {split} in {', '.join(missing)}; leave it out of `classes`")
    sha256 = {"base": corpus.base_corpus().sha256, "domain": corpus.domain_corpus().sha256}
    return Classification(rows, classes, tokenizer, context, sha256)


@functools.cache
def sentences(classes):
    """split → `Document`s of the classes, their text being the first sentence, masked."""
    base, domain = corpus.base_corpus(), corpus.domain_corpus()
    ours = lambda documents: [d for d in documents if package(d) in classes]
    train, validation, _ = corpus.split(ours(base.train + domain.train), fractions=(0.15, 0), seed=1)
    test = ours(base.validation + base.test + domain.validation + domain.test)
    edit = lambda sentence: package_words(classes).sub("_", sentence)
    train, validation, _, test = first_sentences(train, validation, base.train + domain.train, test, edit=edit)
    return {"train": train, "validation": validation, "test": test}


def package(document):
    """"scipy.stats" of "scipy.stats.norm.pdf"."""
    return ".".join(document.name.split(".")[:2])


@functools.cache
def package_words(classes):
    """A pattern for what is masked: dotted names that start with a library, and the words that the classes' names are
    made of, in singular and plural."""
    libraries = "numpy|scipy|matplotlib|mpl_toolkits|np|mpl|plt"
    stems = "|".join(sorted({re.sub("e?s$", "", part) for name in classes for part in name.split(".")}))
    return re.compile(rf"\b(?:(?:{libraries})(?:\.\w+)*|(?:{stems})(?:e?s)?)\b", re.IGNORECASE)


def evenly(rows, most):
    """At most `most` of the rows, evenly spaced."""
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))] if rows else []


class Classification(Rows):
    """rows: split → [(sentence, label)], label an index of `classes`.

    A row of tokens is a document as in pretraining, the sentence (cut to fit the context) between two ends of text; the
    head reads at the last. A batch is (tokens (B, T), filled up on the right, lengths (B,), labels (B,))."""

    def __init__(self, rows, classes, tokenizer, context, sha256=None):
        end = [tokenizer.end_of_text]
        encode = lambda sentence: np.concatenate([end, tokenizer.encode(f"{sentence}\n")[:context - 2], end])
        super().__init__("classify", {s: [(encode(text), label) for text, label in r] for s, r in rows.items()}, sha256)
        self.rows, self.classes, self.end_of_text = rows, tuple(classes), tokenizer.end_of_text

    def collate(self, examples):
        tokens, lengths = pad([ids for ids, _ in examples], self.end_of_text)
        return tokens, lengths, np.array([label for _, label in examples])

    def logits(self, model, batch):
        tokens, lengths, _ = batch
        return model.classify(tokens, lengths)                                    # (B, C)

    def loss(self, model, batch):
        return F.cross_entropy(self.logits(model, batch), batch[2])

    def metrics(self, model, batch):
        """Cross-entropy in nats, and the share of rows whose class is named right."""
        logits = self.logits(model, batch)
        right = logits.data.argmax(-1) == batch[2]
        return {"loss": F.cross_entropy(logits, batch[2]).item(), "accuracy": float(right.mean())}

    def measure_baselines(self):
        """The most frequent class of train, and logistic regression on bags of words, L2 tuned on validation."""
        labels = np.array([label for _, label in self.rows["test"]])
        majority = Counter(label for _, label in self.rows["train"]).most_common(1)[0][0]
        return {"majority class": {"accuracy": float((labels == majority).mean())},
                "bag of words": bag_of_words(self.rows, len(self.classes))}

    def describe(self):
        sizes = " / ".join(f"{len(rows):,}" for rows in self.rows.values())
        return f"{len(self.classes)} packages, {sizes} sentences ({' / '.join(self.rows)})"


def bag_of_words(rows, n_classes, strengths=(1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
    """Multinomial logistic regression on tf–idf weighted words → {"loss", "accuracy"} on test.

    x is 1 + ln((1 + N)/(1 + n)) for a word in n of train's N sentences, scaled so that a sentence has ‖x‖ = 1. W
    minimizes mean NLL + λ/2 ‖W‖² on train, and λ is the one of `strengths` with the least NLL on validation."""
    from scipy.optimize import minimize
    from scipy.sparse import csr_array
    words = lambda sentence: sorted(set(re.findall(r"\w+", sentence.lower())))
    n = Counter(word for sentence, _ in rows["train"] for word in words(sentence))
    column = {word: j for j, word in enumerate(n)}
    idf = 1 + np.log((1 + len(rows["train"])) / (1 + np.array(list(n.values()))))

    def design(split):                                                            # (X (N, words), labels (N,))
        at = [np.array([column[w] for w in words(sentence) if w in column], int) for sentence, _ in rows[split]]
        values = [idf[a] / max(np.linalg.norm(idf[a]), 1e-9) for a in at]
        X = csr_array((np.concatenate(values), np.concatenate(at), np.cumsum([0, *map(len, at)])), (len(at), len(n)))
        return X, np.array([label for _, label in rows[split]])

    def log_probabilities(W, X):                                                  # W's last row is the bias
        Z = X @ W[:-1] + W[-1]
        Z -= Z.max(1, keepdims=True)
        return Z - np.log(np.exp(Z).sum(1, keepdims=True))

    nll = lambda log_p, y: -log_p[np.arange(len(y)), y].mean()
    (X, y), validation, (X_test, y_test) = map(design, ("train", "validation", "test"))
    shape = len(n) + 1, n_classes

    def objective(w, strength):
        W = w.reshape(shape)
        log_p = log_probabilities(W, X)
        dZ = np.exp(log_p)
        dZ[np.arange(len(y)), y] -= 1
        dW = np.vstack([X.T @ dZ, dZ.sum(0)]) / len(y)
        dW[:-1] += strength * W[:-1]
        return nll(log_p, y) + strength / 2 * (W[:-1] ** 2).sum(), dW.ravel()

    w, tried = np.zeros(shape).ravel(), []
    for strength in strengths:                                                    # each starts from the stronger one's
        w = minimize(objective, w, (strength,), jac=True, method="L-BFGS-B").x
        tried.append((nll(log_probabilities(w.reshape(shape), validation[0]), validation[1]), w))
    log_p = log_probabilities(min(tried, key=lambda pair: pair[0])[1].reshape(shape), X_test)
    return {"loss": float(nll(log_p, y_test)), "accuracy": float((log_p.argmax(1) == y_test).mean())}
