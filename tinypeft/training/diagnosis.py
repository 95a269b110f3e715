"""Where did training go wrong? Names the place where a loss or a gradient stops being finite."""
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.nn import Module, replace_modules
from ..engine.optim import Optimizer
from ..engine.tensor import Tensor, no_grad

__all__ = ["DivergedError", "check_finite", "diverged", "first_nonfinite"]


class DivergedError(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


def diverged(model: Module, task: Any, batch: tuple, loss: float, step: int, lr: float,
             checkpoint: str | Path | None) -> DivergedError:
    """Return the error to raise: where the loss, or else a gradient, is not finite."""
    if math.isfinite(loss):
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        places = ", ".join(nonfinite(gradients)) or "its norm"
        problem = f"the gradient is not finite, in {places}"
    else:
        place = first_nonfinite(model, lambda: task.loss(model, batch))
        problem = f"the loss is {loss}; the first value that is not finite comes out of {place}"
    return error_at(step, problem, lr, checkpoint)


def check_finite(model: Module, optimizer: Optimizer, step: int, lr: float,
                 checkpoint: str | Path | None) -> None:
    """Raise DivergedError if the last update left a number that is not finite, in a weight or in
    the optimizer. The next step would notice a weight, but a run may have no next step."""
    moments = {f"the optimizer's {name}": a for name, a in optimizer.state_arrays().items()}
    names = nonfinite(model.state_dict() | moments)
    if names:
        places = ", ".join(names[:3])
        problem = f"after the update {places} holds a number that is not finite"
        raise error_at(step, problem, lr, checkpoint)


def nonfinite(arrays: dict) -> list[str]:
    """Return the names of the arrays that hold a number that is not finite."""
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def error_at(step: int, problem: str, lr: float, checkpoint: str | Path | None) -> DivergedError:
    """Return the error with its step, and with what to try."""
    saved = checkpoint is not None and Path(checkpoint).exists()
    kept = f" The last saved state is in {checkpoint}." if saved else ""
    return DivergedError(f"step {step}: {problem}. Try a smaller learning rate than {lr:g}.{kept}")


def first_nonfinite(model: Module, run: Callable[[], Any]) -> str:
    """Call `run`; return the path of the first module in `model` whose output is not finite."""
    places = []
    modules = {path: module for path, module in model.named_modules() if path}
    deepest_first = sorted(modules, key=lambda path: path.count("."), reverse=True)
    watched = {path: Watched(modules[path], path, places) for path in deepest_first}
    try:
        replace_modules(model, watched)
        with no_grad(), np.errstate(all="ignore"), contextlib.suppress(ArithmeticError):
            run()
    finally:
        for path in reversed(deepest_first):
            replace_modules(model, {path: modules[path]})
    return places[0] if places else "the loss itself"


class Watched(Module):
    """A module that appends its path to `places` when its output is not finite."""

    def __init__(self, base: Module, path: str, places: list[str]):
        self.base, self.path, self.places, self.training = base, path, places, base.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = self.base(*args, **kwargs)
        if isinstance(y, Tensor) and nonfinite({self.path: y.data}):
            self.places.append(self.path)
        return y

    def __getattr__(self, name):                         # everything else comes from the module
        return getattr(vars(self)["base"], name)
