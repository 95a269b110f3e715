"""The tasks: `train` draws batches, `evaluate` measures, and baselines stand beside.

    task = tp.tasks.domain(model)          # or classify, summarize, invented, planted
    tp.train(tuned, task, steps=300); tp.evaluate(tuned, task); task.baselines

A task has `batch(split, size, rng)` (drawn at random), `batches(split, size)` (a whole split, in
order), `loss(model, batch)` (a Tensor, nats, the mean over `count(batch)` tokens or examples),
`metrics(model, batch)` (name → mean) and `finish(means, split)`, which derives what is reported.
Splits are "train", "validation" and "test". A batch is a tuple of arrays with one row per example.
`train` cuts it by rows; only its task reads the arrays.
"""
from .classification import Classification, classify
from .invention import Invented, invented
from .language_modelling import LanguageModelling, domain
from .planting import Planted, planted
from .summarization import Summarization, rouge_l, summarize
from .task import Task

__all__ = ["Classification", "Invented", "LanguageModelling", "Planted", "Summarization", "Task",
           "classify", "domain", "invented", "planted", "rouge_l", "summarize"]
