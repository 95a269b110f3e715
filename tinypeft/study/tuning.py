"""One fine-tuning run, as the study's experiments make it: from a base, in one thread, on the study's tasks."""
from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..engine.tensor import no_grad
from ..peft import Method, PeftModel, attach
from ..pretrained import load_base
from ..text.tasks import classification, language_modelling
from ..training.evaluation import evaluate
from ..training.history import History
from ..training.loop import train
from ..training.rates import HEAD_LR
from .bases import small_base

if TYPE_CHECKING:
    from ..models.gpt import GPT
    from ..text.tasks import Task

__all__ = ["Arm", "OnBoth", "WINDOWS", "classify", "domain", "fine_tune", "pretrained", "test_loss", "tested"]

_pretrained = functools.cache(load_base)
classify = functools.cache(classification.classify)
WINDOWS = {"loss": "nats/token, domain test", "loss_windows": "the same, one per window of the test text"}


@dataclass(frozen=True)
class Arm:
    """A condition of an experiment: a method, its learning rate (None: the method's own), the base it is put on (a name
    in `bases.SIZES`), and how many times longer than the experiment's steps it is trained."""
    method: Method
    lr: float | None = None
    base: str = "base"
    times: float = 1

    def start(self, seed: int, head: int | None = None) -> PeftModel:
        """The method on a fresh base, before training. head: classes of a classification head."""
        return attach(small_base(self.base), self.method, rng=seed, head=head)

    def train(self, seed: int, settings: dict, task: Task | None = None,
              head: int | None = None) -> tuple[PeftModel, History]:
        """Like `fine_tune`: start it and train it."""
        tuned = self.start(seed, head)
        return tuned, learn(tuned, seed, settings | {"steps": round(settings["steps"] * self.times)}, task,
                            self.method.learning_rate if self.lr is None else self.lr)


@dataclass(frozen=True)
class OnBoth(Arm):
    """An arm that is also trained on classify, at a rate of its own."""
    classify_lr: float | None = None


def pretrained() -> GPT:
    """A copy of the shipped base."""
    return copy.deepcopy(_pretrained())


@functools.cache
def domain(context: int = 128, held_out: int = 16384) -> Task:
    """Matplotlib's documentation in the base's tokens; about `held_out` tokens of validation and of test."""
    return language_modelling.domain(_pretrained(), context=context, held_out=held_out)


def fine_tune(method: Method, seed: int, settings: dict, model: GPT | None = None, task: Task | None = None,
              head: int | None = None, lr: float | None = None) -> tuple[PeftModel, History]:
    """Train `method` on a model (default: the base) for settings["steps"] steps of settings["batch_size"] rows of `task`
    (default: domain). The seed draws the initialisation and the batches. head: classes of a classification head, which
    keeps its own learning rate. lr: the method's learning rate (default: the method's own, whatever the base's width)."""
    tuned = attach(pretrained() if model is None else model, method, rng=seed, head=head)
    return tuned, learn(tuned, seed, settings, task, method.learning_rate if lr is None else lr)


def learn(tuned: PeftModel, seed: int, settings: dict, task: Task | None, lr: float) -> History:
    """Train what is attached."""
    return train(tuned, task or domain(), settings["steps"], batch_size=settings["batch_size"], seed=seed, lr=lr,
                 head_lr=HEAD_LR, workers=1, progress=False)


def test_loss(model: GPT | PeftModel, task: Task | None = None, split: str = "test") -> float:
    """Nats/token on the test split of `task` (default: domain)."""
    return evaluate(model, task or domain(), split, workers=1)["loss"]


def tested(model: GPT | PeftModel, name: str = "loss") -> dict:
    """{name: nats/token on domain's test text, name_windows: the same of every window, in order}. The last window may be
    shorter; it counts by its tokens."""
    losses, tokens = [], []
    with no_grad():
        for x, y in domain().batches("test", 16):
            logits = model.eval()(x).data.astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]
            losses += nats.mean(-1).tolist()
            tokens += [y.shape[-1]] * len(y)
    return {name: float(np.average(losses, weights=tokens)), f"{name}_windows": np.round(losses, 4).tolist()}
