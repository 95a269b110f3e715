"""Training: one loop for pretraining, full fine-tuning and every method.

    train       the loop
    step        what one step of it computes
    plain.py    the same without options, in a dozen lines: read it first
    run.py      what a run keeps beside the mathematics: evaluations, checkpoints, Ctrl-C

Everything random in step s is drawn from (seed, s): the batch from [seed, s], and what the i-th
module with a generator draws (dropout's masks, DyLoRA's rank) from [seed, s, i]. A checkpoint
therefore needs no random state: a run that was stopped and resumed has the same parameters, bit for
bit, as one that never stopped.
"""
import math
from typing import Any

import numpy as np

from ..engine.nn import Module
from ..engine.optim import Optimizer, clip_grad_norm
from ..engine.recompute import recomputing
from .backward import backward
from .diagnosis import diverged
from .evaluation import require_task
from .history import History
from .options import TrainOptions
from .rates import make_optimizer, peak_rate
from .run import Run

__all__ = ["step", "train"]


def train(model: Module, task: Any, steps: int, *, lr: float | None = None,
          batch_size: int = 8, seed: int = 0, **options: Any) -> History:
    """Train the parameters of `model` that require gradients on `task`; return a `History`.

    model: a Decoder or a PeftModel. task: from `tinypeft.tasks`, or any object that has its
        `batch`, `count` and `loss` (for evaluations also `batches`, `metrics` and `finish`).
    lr: peak learning rate (default: the method's own, at the model's width). batch_size: rows per
        step. seed: a whole number, which with the step's number draws each step anew, so that a run
        that goes on draws what it would have drawn. (`attach` takes `rng`, a seed or a Generator:
        it draws once.)
    options: any other field of `TrainOptions`, which describes them: rates of single parameters,
        evaluations, early stopping, callbacks, checkpoints, threads, memory.

    Raises ValueError for options out of range or a checkpoint of another run, and DivergedError,
    naming step and module, for a number that is not finite. Ctrl-C and SIGTERM act at the end of
    the step that they arrive in; Ctrl-C twice acts at once.
    """
    require_task(task, "train", "batch", "count", "loss")
    chosen = TrainOptions(steps=steps, lr=lr, batch_size=batch_size, seed=seed, **options)
    optimizer = make_optimizer(model, chosen)
    with Run(model, task, optimizer, chosen) as run:
        for s in run.steps():
            loss = step(model, task, optimizer, chosen, s)
            run.note(s, loss)
    return run.history


def step(model: Module, task: Any, optimizer: Optimizer, options: TrainOptions, s: int) -> float:
    """Take step `s`; return its loss, the batch's in nats and the method's penalty added up.

    The hooks `before_step` and `after_step`, and the penalty, are the method's: AdaLoRA and DyLoRA
    have some, other methods have none (`peft/method.py`). `backward` includes the forward pass.
    """
    reseed(model, options.seed, s)
    model.before_step(s, options.steps)
    optimizer.scale_lr(options.rate_factor(s))
    optimizer.zero_grad()
    batch = task.batch("train", options.batch_size, np.random.default_rng([options.seed, s]))
    with recomputing(options.checkpoint_activations):
        loss = backward(model, task, batch, options.workers, options.accumulate)
    if math.isfinite(loss):
        norm = clip_grad_norm(optimizer.parameters(), options.clip or math.inf)  # before clipping
    if not math.isfinite(loss) or not math.isfinite(norm):
        reseed(model, options.seed, s)               # dropout draws again what it drew
        rate = peak_rate(model, options.lr)
        raise diverged(model, task, batch, loss, s, rate, options.checkpoint)
    optimizer.step()
    model.after_step(s, options.steps)
    return loss


def reseed(model: Module, seed: int, s: int) -> None:
    """Give each module that draws random numbers a generator of its own for step `s`.

    They are numbered in the order of `named_modules`; of a `PeftModel` it is the first, and DyLoRA
    draws its rank from it. The numbers begin with 1, because NumPy takes [seed, s, 0] for the
    batch's [seed, s].
    """
    drawing = [module for _, module in model.named_modules()
               if isinstance(getattr(module, "rng", None), np.random.Generator)]
    for i, module in enumerate(drawing, 1):
        module.rng = np.random.default_rng([seed, s, i])
