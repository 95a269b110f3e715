"""A run of `train`: what it keeps beside the mathematics, and when it ends.

After each step: the history, an evaluation, the callbacks, early stopping, a checkpoint, and the
signals that were held back while the step was computed.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..common.progress import Progress
from ..common.signals import HeldSignals
from ..common.wording import counted
from ..engine.nn import Module
from ..engine.optim import Optimizer
from .checkpoints import resume, save_checkpoint
from .diagnosis import check_finite
from .evaluation import evaluate
from .history import History, Step
from .options import TrainOptions
from .rates import peak_rate

__all__ = ["Run"]

SHOWN = 50                   # steps, the last ones, whose mean loss is shown


class Run:
    """Inside `with Run(…) as run:` a model is in training mode; after it, in evaluation mode.

    history: see `History`. best: the model's arrays at the best evaluation, if they are kept.
    first, last: the run takes the steps first … last − 1, unless something stops it.
    """

    def __init__(self, model: Module, task: Any, optimizer: Optimizer, options: TrainOptions):
        self.model, self.task, self.optimizer, self.options = model, task, optimizer, options
        self.history, self.best, self.first = History(), {}, 0
        self.rate = peak_rate(model, options.lr)
        if options.checkpoint is not None and Path(options.checkpoint).exists():
            self.first, self.history, self.best = resume(
                options.checkpoint, model, optimizer, self.settings)
            self.history.resumed = self.first
        self.last = options.steps
        if options.stop_after is not None:
            self.last = min(self.last, options.stop_after)
        if self.first < self.last:                   # a stored history may already be in vain
            self.history.stopped = self.history.in_vain(options.patience)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers of this run. A callback may have switched parts off."""
        off = getattr(self.model, "off", [])
        return self.options.settings(self.rate, getattr(self.model, "method", None), off,
                                     self.optimizer.described())

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.signals = stack.enter_context(HeldSignals())
            progress = Progress(self.options.steps, "training", self.options.progress, self.first)
            self.show = stack.enter_context(progress)
            stack.callback(self.model.eval)
            stack.callback(self.optimizer.zero_grad)
            self.model.before_training(self.task)
            self.model.train()
            self.exits = stack.pop_all()
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.exits.__exit__(kind, *error)
        if self.best and kind is None:
            self.model.load_state_dict(self.best)

    def steps(self) -> Iterator[int]:
        """Give the numbers of the steps to take, until the last one or a reason to stop."""
        for s in range(self.first, self.last):
            if self.history.stopped:
                break
            self.started = time.perf_counter()
            yield s

    def note(self, s: int, loss: float) -> None:
        """Do what follows step `s`: evaluate, call back, decide whether to stop, save."""
        done, history, options = s + 1, self.history, self.options
        history.loss.append(loss)
        history.seconds += time.perf_counter() - self.started
        last = history.loss[-SHOWN:]
        text = f"loss {np.mean(last):.3f}, mean of {counted(len(last), 'step')}"
        self.show(done, text, history.seconds)
        metrics = self.evaluated(done)
        reason = self.called(Step(done, options.steps, loss, metrics, self.model, history))
        if done < options.steps:
            history.stopped = reason or history.in_vain(options.patience)
        if done == self.last or history.stopped or self.saves_after(done):
            check_finite(self.model, self.optimizer, s, self.rate, options.checkpoint)
            if options.checkpoint is not None:
                save_checkpoint(options.checkpoint, self.model, self.optimizer, self.settings,
                                history, done, self.best)
        self.signals.deliver()

    def evaluated(self, done: int) -> dict | None:
        """Measure the validation split if it is due after `done` steps, and keep what is best."""
        every = self.options.eval_every
        if not every or done % every and done < self.options.steps:
            return None
        metrics = evaluate(self.model, self.task, "validation",
                           max_batches=self.options.eval_batches)
        self.history.evals.append([done, metrics])
        if self.options.keep_best and self.history.best == [done, metrics]:
            self.best = {name: a.copy() for name, a in self.model.state_dict().items()}
        self.model.train()
        return metrics

    def called(self, step: Step) -> str | None:
        """Call every callback. Return a sentence naming those that returned True, else None.
        Other return values are ignored."""
        callbacks = self.options.callbacks
        if not callbacks:
            return None
        self.model.eval()
        answers = [callback(step) for callback in callbacks]
        self.model.train()
        names = [getattr(callback, "__name__", type(callback).__name__)
                 for callback, answer in zip(callbacks, answers, strict=True)
                 if isinstance(answer, (bool, np.bool_)) and answer]
        return f"{', '.join(names)} returned True after step {step.step}" if names else None

    def saves_after(self, done: int) -> bool:
        """Is a checkpoint due after `done` steps, or must one be written for a signal?"""
        if self.options.checkpoint is None:
            return False
        every = self.options.checkpoint_every or max(1, min(500, self.options.steps // 10))
        return done % every == 0 or bool(self.signals.waiting)
