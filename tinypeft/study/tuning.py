"""One fine-tuning run, as the study's experiments make it: from a base, in one thread, on the study's tasks."""
from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..engine import functional as F
from ..engine.optim import AdamW, Optimizer
from ..engine.tensor import no_grad
from ..peft import Method, PeftModel, attach
from ..pretrained import load_base
from ..quant import Scheme, loftq, quantize
from ..text.tasks import classification, language_modelling
from ..training.evaluation import evaluate
from ..training.history import History
from ..training.loop import train
from ..training.rates import HEAD_LR
from .bases import small_base

if TYPE_CHECKING:
    from ..models.gpt import GPT
    from ..text.tasks import Task

__all__ = ["Arm", "DOCUMENTS", "EIGHT", "SEEDS", "by_document", "classify", "domain", "fine_tune", "pretrained",
           "test_loss", "tested"]

SEEDS = 20, 21, 22, 23                                   # of trainings: 0 to 7 had been seen before the rule was fixed
EIGHT = *SEEDS, 24, 25, 26, 27                           # where the seeds are compared with each other
_pretrained = functools.cache(load_base)
classify = functools.cache(classification.classify)
DOCUMENTS = {"loss": "nats/token, domain test", "loss_documents": "nats, one sum per document of the test text"}


@dataclass(frozen=True)
class Arm:
    """A condition of an experiment: what is trained, on which base, and how.

    method, lr, classify_lr: what is trained, and its learning rates on domain and on classify. lr None: the method's own;
        classify_lr None: it is not trained on classify.
    base: a name that `bases.small_base` reads. scheme: rounds it. by_loftq: the LoRA starts from what rounding lost, else at
        zero. from_text: its start is calculated from text.
    times: how many times longer than the experiment's steps it is trained. rows: in a batch, if not the experiment's; as many
        times fewer steps are then taken. tokens: of domain's training text that may be read, if not all.
    optimizer: a class of `tp.optim`.
    """
    method: Method
    lr: float | None = None
    classify_lr: float | None = None
    base: str = "base"
    scheme: Scheme | None = None
    by_loftq: bool = False
    from_text: bool = False
    times: float = 1
    rows: int | None = None
    tokens: int | None = None
    optimizer: type[Optimizer] = AdamW

    def start(self, seed: int, head: int | None = None) -> PeftModel:
        """The method on a fresh base, before training. head: classes of a classification head."""
        model = small_base(self.base)
        if self.by_loftq: return loftq(model, self.method, self.scheme, rng=seed)
        if self.scheme: quantize(model, self.scheme)
        text = [domain().batch("train", 16, np.random.default_rng([seed, 8]))[0]] if self.from_text else None
        return attach(model, self.method, rng=seed, head=head, calibration=text)

    def train(self, seed: int, settings: dict) -> tuple[PeftModel, History]:
        """Start it and train it on domain, like `fine_tune`."""
        tuned, rows = self.start(seed), self.rows or settings["batch_size"]
        steps = max(1, round(settings["steps"] * self.times * settings["batch_size"] / rows))
        task = less_text(self.tokens) if self.tokens else domain()
        return tuned, learn(tuned, seed, {"steps": steps, "batch_size": rows}, task, self.rate(), self.optimizer)

    def train_on_classify(self, seed: int, settings: dict) -> tuple[PeftModel, History]:
        """Start it with a head for the classes, and train both on classify."""
        tuned = self.start(seed, len(classify().classes))
        return tuned, learn(tuned, seed, settings, classify(), self.classify_lr, self.optimizer)

    def rate(self) -> float:
        return self.method.learning_rate if self.lr is None else self.lr


def pretrained() -> GPT:
    """A copy of the shipped base."""
    return copy.deepcopy(_pretrained())


@functools.cache
def domain(context: int = 128, held_out: int | None = 16384) -> Task:
    """Matplotlib's documentation in the base's tokens; about `held_out` tokens of validation and of test (None: all)."""
    return language_modelling.domain(_pretrained(), context=context, held_out=held_out)


@functools.cache
def less_text(tokens: int) -> Task:
    """domain with the first `tokens` tokens of its training text."""
    task = copy.copy(domain())
    task.splits = task.streams = task.streams | {"train": task.data("train")[:tokens]}
    return task


def fine_tune(method: Method, seed: int, settings: dict, model: GPT | None = None, task: Task | None = None,
              head: int | None = None, lr: float | None = None) -> tuple[PeftModel, History]:
    """Train `method` on a model (default: the base) for settings["steps"] steps of settings["batch_size"] rows of `task`
    (default: domain). The seed draws the initialisation and the batches. head: classes of a classification head, which
    keeps its own learning rate. lr: the method's learning rate (default: the method's own, whatever the base's width)."""
    tuned = attach(pretrained() if model is None else model, method, rng=seed, head=head)
    return tuned, learn(tuned, seed, settings, task, method.learning_rate if lr is None else lr)


def learn(tuned: PeftModel, seed: int, settings: dict, task: Task | None, lr: float,
          optimizer: type[Optimizer] = AdamW) -> History:
    """Train what is attached."""
    return train(tuned, task or domain(), settings["steps"], batch_size=settings["batch_size"], seed=seed, lr=lr,
                 head_lr=HEAD_LR, workers=1, progress=False, optimizer=optimizer)


def test_loss(model: GPT | PeftModel, task: Task | None = None, split: str = "test") -> float:
    """Nats/token on a split of `task` (default: domain, all of its test text, a quarter of its validation text)."""
    if task is None: task = domain(held_out=None) if split == "test" else domain()
    return evaluate(model, task, split, workers=1)["loss"]


def tested(model: GPT | PeftModel, name: str = "loss", task: Task | None = None) -> dict:
    """{name: nats/token on the test text of `task` (default: all of domain's), name_documents: nats of every document}."""
    nats, documents = by_document(model, task or domain(held_out=None))
    return {name: float(nats.sum() / len(documents)), f"{name}_documents": np.round(nats, 2).tolist()}


def by_document(model: GPT | PeftModel, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Nats of every document of a test text (n,), each its tokens' sum, and for every token the number of its document."""
    ids, losses = task.data("test"), []
    with no_grad():
        for x, y in task.batches("test", 16):
            log_p = F.log_softmax(model.eval()(x)).data
            losses.append(-np.take_along_axis(log_p, y[..., None], -1).ravel())
    documents = np.cumsum(ids == task.tokenizer.end_of_text)[:-1] - 1        # an end of text opens the stream
    return np.bincount(documents, np.concatenate(losses)), documents
