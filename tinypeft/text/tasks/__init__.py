"""The tasks: `train` draws batches, `evaluate` measures, and baselines stand beside.

    task = tp.tasks.domain(model)          # or classify, summarize, invented, planted
    task = tp.tasks.labelled("reviews.csv", model)           # or text, pairs: files of your own
    tp.train(tuned, task, steps=300); tp.evaluate(tuned, task); task.baselines
    task.predict(tuned, ["A text", "another"])

A task has `batch(split, size, rng)` (drawn at random), `batches(split, size)` (a whole split, in
order), `loss(model, batch)` (a Tensor, nats, the mean over `count(batch)` tokens or examples),
`metrics(model, batch)` (name → mean) and `finish(means, split)`, which derives what is reported.
`evaluate` prefers `batches_by_length(split, size, most)` where a task has it: its batches pad less.
Splits are "train", "validation" and "test". A batch is a tuple of arrays with one row per example.
`train` cuts it by rows; only its task reads the arrays.
"""
from .answering import Answering, rouge_l
from .classification import Classification, classify
from .invention import Invented, invented
from .language_modelling import LanguageModelling, domain
from .own import labelled, pairs, text
from .planting import Planted, planted
from .saved import load_task, save_task
from .summarization import Summarization, summarize
from .task import Task

__all__ = ["Answering", "Classification", "Invented", "LanguageModelling", "Planted",
           "Summarization", "Task", "classify", "domain", "invented", "labelled", "load_task",
           "pairs", "planted", "rouge_l", "save_task", "summarize", "text"]
