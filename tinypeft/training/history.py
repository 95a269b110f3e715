"""What `train` says: the history of a run, and the step that a callback is given."""
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..common.show import tables
from ..common.show.curves import draw_losses, svg
from ..common.wording import counted
from ..engine.nn import Module
from ..files import write_atomically

__all__ = ["History", "Step"]


@dataclass
class History:
    """loss: nats, per step. evals: [step, metrics] per evaluation. seconds: time spent in steps.
    stopped: why training ended before its last step, in words; None if it did not. resumed: the
    steps that an earlier run had taken, by the checkpoint that this one went on from."""
    loss: list[float] = field(default_factory=list)
    evals: list[list] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str | None = None
    resumed: int = field(default=0, compare=False)

    @property
    def best(self) -> list | None:
        """The first [step, metrics] with the lowest validation loss; None if there is none. Raises
        ValueError if the task does not measure a loss."""
        for step, metrics in self.evals:
            if "loss" not in metrics:
                raise ValueError("the evaluation with the lowest loss is the best one, and the "
                                 f"evaluation after step {step} has only {', '.join(metrics)}; "
                                 "add a loss to the task's metrics")
        finite = [e for e in self.evals if math.isfinite(e[1]["loss"])]
        return min(finite, key=lambda e: e[1]["loss"], default=None)

    def in_vain(self, patience: int | None) -> str | None:
        """Return why to stop early, as a sentence, if `patience` evaluations in a row did not
        improve the loss; else None."""
        if patience is None:
            return None
        best_step, lowest = 0, "none is finite"
        if self.best:
            best_step, metrics = self.best
            lowest = f"the lowest, {metrics['loss']:.4f}, came at step {best_step}"
        waited = sum(step > best_step for step, _ in self.evals)
        if waited < patience:
            return None
        return f"{counted(waited, 'evaluation')} without a lower validation loss; {lowest}"

    def save(self, folder: str | Path) -> None:
        """Write two files to a folder: losses.csv, with a row for each step, and curve.svg, the
        picture that `plot` draws. ValueError for a history without steps."""
        names = list(self.evals[0][1]) if self.evals else []
        rows = [["step", "loss", *(f"validation_{name}" for name in names)]]
        measured = dict(self.evals)
        for step, loss in enumerate(self.loss, 1):
            metrics = measured.get(step, {})
            rows.append([step, loss, *(metrics.get(name, "") for name in names)])
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        picture = self.svg()
        write_atomically(Path(folder) / "losses.csv", text)
        write_atomically(Path(folder) / "curve.svg", picture)

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses on Matplotlib axes (default: new ones); return the axes."""
        return draw_losses(*self._curve(), ax=ax)

    def svg(self) -> str:
        """Return the picture that `plot` draws, as the text of an SVG."""
        return svg(draw_losses, *self._curve())

    def _curve(self):
        """Return the losses, the validation losses as points (step, loss), and the best point."""
        points = [(step, metrics["loss"]) for step, metrics in self.evals if "loss" in metrics]
        best = self.best if points else None
        return self.loss, points, best and (best[0], best[1]["loss"])

    def __repr__(self):
        n = len(self.loss)
        if not n:
            return "History()"
        last = np.mean(self.loss[-max(1, n // 10):])
        stopped = f", stopped: {self.stopped}" if self.stopped else ""
        return (f"History({counted(n, 'step')}, loss {self.loss[0]:.3f} → {last:.3f}, "
                f"{self.seconds:.1f} s{stopped})")

    def _repr_html_(self):
        return tables.of_run(repr(self), self.loss, self.evals)


@dataclass(frozen=True)
class Step:
    """What a callback of `train` is given after a step.

    step: how many are done, of `total`. loss: of this step, nats. metrics: of the evaluation after
    it, or None. model: in evaluation mode, its parameters still with this step's gradients.
    """
    step: int
    total: int
    loss: float
    metrics: dict | None
    model: Module
    history: History
