"""One fine-tuning run, as the study's experiments make it: from the base, in one thread, on the study's tasks."""
from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..peft import Method, PeftModel, attach
from ..pretrained import load_base
from ..text import tasks
from ..train import HEAD_LR, History, evaluate, train

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..text.tasks import Task

__all__ = ["Arm", "classify", "domain", "fine_tune", "pretrained", "test_loss"]

_pretrained = functools.cache(load_base)
classify = functools.cache(tasks.classify)


@dataclass(frozen=True)
class Arm:
    """A condition of an experiment: a method, its learning rate (None: the method's own), and the base it is put on (a name
    in `bases.SIZES`)."""
    method: Method
    lr: float | None = None
    base: str = "base"


def pretrained() -> GPT:
    """A copy of the shipped base."""
    return copy.deepcopy(_pretrained())


@functools.cache
def domain(context: int = 128, held_out: int = 16384) -> Task:
    """Matplotlib's documentation in the base's tokens; about `held_out` tokens of validation and of test."""
    return tasks.domain(_pretrained(), context=context, held_out=held_out)


def fine_tune(method: Method, seed: int, settings: dict, model: GPT | None = None, task: Task | None = None,
              head: int | None = None, lr: float | None = None) -> tuple[PeftModel, History]:
    """Train `method` on a model (default: the base) for settings["steps"] steps of settings["batch_size"] rows of `task`
    (default: domain). The seed draws the initialisation and the batches. head: classes of a classification head, which
    keeps its own learning rate. lr: the method's learning rate (default: the method's own, whatever the base's width)."""
    tuned = attach(pretrained() if model is None else model, method, rng=seed, head=head)
    history = train(tuned, task or domain(), settings["steps"], batch_size=settings["batch_size"], seed=seed,
                    lr=method.learning_rate if lr is None else lr, head_lr=HEAD_LR, workers=1, progress=False)
    return tuned, history


def test_loss(model: GPT | PeftModel, task: Task | None = None, split: str = "test") -> float:
    """Nats/token on the test split of `task` (default: domain)."""
    return evaluate(model, task or domain(), split, workers=1)["loss"]
