"""Where did training go wrong? Names the place where a loss or a gradient stops being finite."""
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .nn import Module, replace_modules
from .tensor import Tensor, no_grad

__all__ = ["DivergedError", "describe_gradient", "describe_loss", "diverged", "first_nonfinite"]


class DivergedError(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


def diverged(what: str, step: int, lr: float, checkpoint: str | Path | None) -> DivergedError:
    """The error to raise: when it happened, what happened, and what to try."""
    saved = checkpoint is not None and Path(checkpoint).exists()
    kept = f" The last good state is in {checkpoint}." if saved else ""
    return DivergedError(f"step {step}: {what}. Try a smaller learning rate than {lr:g}.{kept}")


def describe_loss(model: Module, task: Any, batch: tuple, loss: float) -> str:
    """What is wrong with a loss that is not finite; repeats the forward pass to find the module."""
    where = first_nonfinite(model, lambda: task.loss(model, batch))
    return f"the loss is {loss}; the first value that is not finite comes out of {where}"


def describe_gradient(model: Module) -> str:
    """What is wrong with gradients whose norm is not finite."""
    bad = [name for name, p in model.named_parameters()
           if p.grad is not None and not np.isfinite(p.grad).all()]
    return f"the gradient is not finite, in {', '.join(bad) or 'its norm'}"


def first_nonfinite(model: Module, run: Callable[[], Any]) -> str:
    """Call `run`; return the path of the first module in `model` whose output is not finite.

    Meanwhile every module is wrapped in one that looks at its output, the deepest first.
    """
    found, modules = [], [(path, m) for path, m in model.named_modules() if path]
    modules.sort(key=lambda item: -item[0].count("."))
    for path, module in modules:
        replace_modules(model, {path: _Watched(module, path, found)})
    try:
        with no_grad(), np.errstate(all="ignore"), contextlib.suppress(ArithmeticError):
            run()
    finally:
        for path, module in reversed(modules):
            replace_modules(model, {path: module})
    return found[0] if found else "the loss itself"


class _Watched(Module):
    """A module that appends its path to `found` when its output is not finite."""

    def __init__(self, base, path, found):
        self.base, self.path, self.found, self.training = base, path, found, base.training

    def forward(self, *args, **kwargs):
        y = self.base(*args, **kwargs)
        if isinstance(y, Tensor) and not np.isfinite(y.data).all(): self.found.append(self.path)
        return y

    def __getattr__(self, name):                         # everything else comes from the module
        return getattr(vars(self)["base"], name)
