"""Where did training go wrong? When the loss or a gradient is no longer finite, name the place."""
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .nn import Module, replace_modules
from .tensor import Tensor, no_grad

__all__ = ["DivergedError", "diverged", "first_nonfinite", "nonfinite_gradients"]


class DivergedError(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


def diverged(step: int, what: str, lr: float, checkpoint: str | Path | None) -> DivergedError:
    """The error to raise: at which step, what happened, and what to do."""
    saved = checkpoint is not None and Path(checkpoint).exists()
    kept = f" The last good state is in {checkpoint}." if saved else ""
    return DivergedError(f"step {step}: {what}. Try a smaller learning rate than {lr:g}.{kept}")


def nonfinite_gradients(model: Module) -> str:
    """The names of the parameters whose gradients are not finite."""
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not np.isfinite(p.grad).all()]
    return ", ".join(bad) or "its norm"


def first_nonfinite(model: Module, run: Callable[[], Any]) -> str:
    """Call `run`; return the path of the first module in `model` whose output is not finite.

    Every module is replaced meanwhile by one that looks at its output, the deepest first, so that the
    modules above see the replacements.
    """
    found: list[str] = []
    modules = sorted(((path, m) for path, m in model.named_modules() if path),
                     key=lambda item: -item[0].count("."))
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

    def __getattr__(self, name):                         # everything else is asked of the module itself
        return getattr(vars(self)["base"], name)
