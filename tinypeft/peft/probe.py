"""A linear probe: a classifier on the frozen model's last hidden state, solved and not trained.

The rows go through the model once. What the head reads there, h (N, d), is standardized, and a
logistic regression is fitted to it (Alain & Bengio, arXiv 1610.01644, probe every layer so):

    x = (h − μ) / σ            μ, σ: mean and standard deviation of each feature over the rows
    p = softmax(W x + b)       W, b minimize mean(−log p(label)) + λ/2 ‖W‖²

Five-fold cross-validation chooses λ and says how well the probe does on rows that it has not seen.
The head then learns from all rows, and μ and σ are folded into it: W/σ and b − (W/σ) μ. So it is a
head as any other: `save`, `classify` and PEFT's folders take it as it is.

On small tables of sentences no training of SmolLM2's inside beat this clearly, and it takes the
time of one forward pass. A method that trains the inside can start its head at the probe:

    tuned = fit_probe(model, task, LoRA())
    train(tuned, task, steps, lr=1e-3)           also the head's rate; its own, 1e-2, is for a head
                                                 that starts from nothing, and destroys this one

The head is solved for what it reads at the method's start. A LoRA changes nothing there, so its
head is the probe's, bit for bit. A prompt or a prefix changes h, and its head fits the changed h.
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from ..common.hints import Array, Calibration, Seed
from ..common.progress import Progress
from ..engine.tensor import no_grad
from ..files import cached_rows, fingerprint
from ..models.decoder import Decoder, require_free
from ..text.tasks.classification import Classification
from ..text.tasks.logistic import cross_validate, fit
from .full import LinearProbe
from .method import Method
from .model import PeftModel, attach

__all__ = ["fit_probe", "hidden_states", "learned_rows"]

LEARNED = "train", "validation"
PENALTIES = 1000, 300, 100, 30, 10, 3, 1     # λ N: scikit-learn's 1/C


def fit_probe(model: Decoder, task: Classification, *methods: Method | Mapping[str, Method],
              rng: Seed = 0, splits: Sequence[str] = LEARNED, n_folds: int = 5,
              head_bias: bool = True, batch_size: int = 16, progress: bool | None = None,
              seed: int = 0, cache: bool = False, calibration: Calibration = None) -> PeftModel:
    """Attach a head to the frozen `model` and solve it for the rows of `task`.

    It learns from the splits `splits`. `.validated` of the result says what cross-validation
    measured on these rows, and `.n_read` how many the model read. methods, rng, calibration: as of
    `attach`, for a head that a method starts with; by default `LinearProbe()`, the head alone. rng
    (a seed or a Generator) draws the method's start, and seed (a whole number) the folds, so that
    what is measured beside the probe has the same folds.
    head_bias: with an offset for each class, which transformers' heads lack. progress: show one
    line (default: on a terminal and in a notebook).
    cache: keep what the head alone reads of each row in the user's cache, and take it from there.
    Raises ValueError for a class with fewer than two rows, and MethodError as `attach`.
    """
    require_free(model, "fit_probe")
    if not isinstance(task, Classification):
        raise TypeError("fit_probe: expected a task with classes, as tasks.labelled makes one of "
                        f"rows (text, label), got a {type(task).__name__}")
    rows = [row for split in splits if split in task.splits for row in task.data(split)]
    labels = np.array([label for _, label in rows], int)
    counts = np.bincount(labels, minlength=len(task.classes))
    if counts.min() < 2:
        rare = task.classes[int(counts.argmin())]
        raise ValueError(f"fit_probe: the class {rare!r} has {counts.min()} rows to learn from, "
                         "expected two or more; add rows, or join classes")
    tuned = attach(model, *(methods or [LinearProbe()]), rng=rng, head=len(task.classes),
                   head_bias=head_bias, calibration=calibration)
    if cache and not methods:                            # a method may change what the head reads
        h, tuned.n_read = cached_states(model, task, rows, batch_size, progress)
    else:
        h, tuned.n_read = hidden_states(tuned, task, rows, batch_size, progress), len(rows)
    solve(tuned, h, labels, n_folds, seed)
    tuned.before_training(task)
    return tuned


def solve(tuned: PeftModel, h: Array, labels: Array, n_folds: int, seed: int = 0) -> None:
    """Set the head of `tuned` to the solution for h (N, d) and labels (N,)."""
    head = tuned.head
    offset = head.bias is not None
    n_classes = head.d_out

    def design(learned, held_out):
        mean, deviation = moments(h[learned], offset)
        return (h[learned] - mean) / deviation, (h[held_out] - mean) / deviation

    strengths = [penalty / len(h) for penalty in PENALTIES]
    validated = cross_validate(design, labels, n_classes, strengths, n_folds, seed, offset)
    mean, deviation = moments(h, offset)
    W = fit((h - mean) / deviation, labels, n_classes, validated.strength, offset=offset)
    weight = W[:-1] / deviation[:, None]                                     # (d, C)
    head.weight.assign(weight.T.astype(head.weight.dtype))
    if offset:
        head.bias.assign((W[-1] - mean @ weight).astype(head.bias.dtype))
    tuned.validated = validated


def learned_rows(task: Classification) -> tuple[list[str], Array]:
    """Return the texts and the labels (N,) of the rows that a probe learns from."""
    rows = [row for split in LEARNED if split in task.splits for row in task.rows[split]]
    return [text for text, _ in rows], np.array([label for _, label in rows])


def moments(h: Array, centred: bool) -> tuple[Array, Array]:
    """Return μ and σ of each feature, (d,). Without an offset in the head, μ is 0. A feature that
    never changes has σ = 1."""
    mean = h.mean(0) if centred else np.zeros(h.shape[1])
    deviation = h.std(0)
    return mean, np.where(deviation > 0, deviation, 1)


def hidden_states(model: Decoder | PeftModel, task: Classification, rows: list,
                  batch_size: int = 16, progress: bool | None = None) -> Array:
    """Return what a head reads of each row, float64 (N, d). Rows of similar length go through the
    model together, so that little of a batch is padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    h = np.empty((len(rows), model.config.d_model))
    base = getattr(model, "model", model)                # of a PeftModel
    virtual = getattr(model, "virtual", None)
    model.eval()
    with no_grad(), Progress(len(rows), "reading", progress) as bar:
        for start in range(0, len(rows), batch_size):
            places = order[start:start + batch_size]
            tokens, lengths, _ = task.collate([rows[i] for i in places])
            seams = virtual.seams(tokens, lengths) if virtual is not None else {}
            states = base.hidden(tokens, **seams).data
            h[places] = states[np.arange(len(places)), lengths - 1]
            bar(start + len(places))
    return h


def cached_states(model: Decoder, task: Classification, rows: list, batch_size: int = 16,
                  progress: bool | None = None) -> tuple[Array, int]:
    """Return what `hidden_states` does, and how many rows were read: those that this model has read
    before come from the cache. Their last digits may be others, because they stood in another
    batch."""
    dtype, read = model.dtype, []

    def compute(places):
        missing = [rows[i] for i in places]
        read.extend(missing)
        return hidden_states(model, task, missing, batch_size, progress).astype(dtype)

    keys = [hashlib.sha256(ids.astype("<i4")).digest() for ids, _ in rows]   # the last one is read
    h = cached_rows(identity(model), keys, model.config.d_model, compute)
    return h.astype(float), len(read)


def identity(model: Decoder) -> str:
    """Return a hash of the model without its head: of its weights, and of what it computes for some
    tokens. That depends also on quantized layers, and on the code."""
    model.eval()
    tokens = np.arange(min(32, model.config.vocab_size, model.config.context_length))
    with no_grad():
        states = model.hidden(tokens[None]).data
    weights = {name: a for name, a in model.state_dict().items() if not name.startswith("head.")}
    return fingerprint(weights | {"states": states})
