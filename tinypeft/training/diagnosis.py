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

__all__ = ["DivergedError", "diverged", "first_nonfinite"]


class DivergedError(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


def diverged(model: Module, task: Any, batch: tuple, loss: float, step: int, lr: float,
             checkpoint: str | Path | None) -> DivergedError:
    """The error to raise: where the loss, or else a gradient, is not finite, and what to try."""
    if math.isfinite(loss):
        bad = [name for name, p in model.named_parameters()
               if p.grad is not None and not np.isfinite(p.grad).all()]
        what = f"the gradient is not finite, in {', '.join(bad) or 'its norm'}"
    else:
        where = first_nonfinite(model, lambda: task.loss(model, batch))
        what = f"the loss is {loss}; the first value that is not finite comes out of {where}"
    return _error(f"step {step}: {what}.", lr, checkpoint)


def check_finite(model: Module, optimizer: Optimizer, step: int, lr: float,
                 checkpoint: str | Path | None) -> None:
    """Raise DivergedError if the last update left a number that is not finite, in a weight or in
    the optimizer. The next step would notice a weight, but a run may have no next step."""
    moments = {f"the optimizer's {name}": a for name, a in optimizer.state_arrays().items()}
    state = model.state_dict() | moments
    bad = [name for name, a in state.items() if not np.isfinite(a).all()]
    if bad:
        raise _error(f"step {step}: after the update {', '.join(bad[:3])} holds a number that is "
                     "not finite.", lr, checkpoint)


def _error(what, lr, checkpoint):
    saved = checkpoint is not None and Path(checkpoint).exists()
    kept = f" The last good state is in {checkpoint}." if saved else ""
    return DivergedError(f"{what} Try a smaller learning rate than {lr:g}.{kept}")


def first_nonfinite(model: Module, run: Callable[[], Any]) -> str:
    """Call `run`; return the path of the first module in `model` whose output is not finite."""
    found = []
    modules = sorted(((path, m) for path, m in model.named_modules() if path),
                     key=lambda item: -item[0].count("."))               # the deepest first
    for path, module in modules: replace_modules(model, {path: _Watched(module, path, found)})
    try:
        with no_grad(), np.errstate(all="ignore"), contextlib.suppress(ArithmeticError): run()
    finally:
        for path, module in reversed(modules): replace_modules(model, {path: module})
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
