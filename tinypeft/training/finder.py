"""Which learning rate? One short run in which the rate rises from step to step.

Smith (arXiv 1506.01186, section 3.3) trains while the rate rises and looks at where the accuracy
grows, stalls and falls. Here the rate rises in equal ratios. After each step the loss is measured
on the same validation rows, so that neither the draw of a batch nor a method's penalty moves the
curve. The curve is smoothed: a single low loss at the edge of divergence is chance. The suggestion
is the rate at the lowest point: beyond it, a step does more harm than good.

Trust it within a factor of three. On the shipped base it was between 0.3 and 3 times the rate that
is best for 150 steps, for full fine-tuning, LoRA, AdaLoRA, IA³ and adapters. Other seeds give other
batches and move it by up to three times. A much longer run wants a smaller rate.
"""
import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.show.curves import draw_rates, svg
from ..common.show.markup import captioned
from ..engine.nn import Module
from ..engine.optim import schedule
from .diagnosis import DivergedError
from .evaluation import require_task
from .history import Step
from .loop import train

__all__ = ["RateSearch", "find_rate"]

SET = {"lr", "lr_floor", "schedule_kind", "warmup", "eval_every", "patience", "keep_best",
       "callbacks", "checkpoint", "checkpoint_every", "stop_after"}


@dataclass(frozen=True, eq=False)
class RateSearch:
    """What `find_rate` measured. rates: learning rates, ascending (n,). losses: nats on the same
    validation rows after the step at each rate (n,)."""
    rates: Array
    losses: Array

    @property
    def smoothed(self) -> Array:
        """The mean of each loss and its two neighbours (n,); at an end the loss counts twice."""
        losses = np.pad(self.losses, 1, mode="edge")
        return (losses[:-2] + losses[1:-1] + losses[2:]) / 3

    @property
    def suggestion(self) -> float:
        """The rate at the lowest smoothed loss."""
        return float(self.rates[self.smoothed.argmin()])

    @property
    def largest(self) -> float:
        """The largest safe rate: up to it, the smoothed loss stayed below the first loss."""
        lowest = self.smoothed.argmin()
        is_worse = self.smoothed[lowest:] >= self.losses[0]
        n_safe = is_worse.argmax() if is_worse.any() else len(is_worse)
        return float(self.rates[lowest + max(n_safe, 1) - 1])

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss over the rate on Matplotlib axes (default: new ones); return the axes."""
        return draw_rates(self.rates, self.losses, self.suggestion, ax)

    def svg(self) -> str:
        """Return the picture that `plot` draws, as the text of an SVG."""
        return svg(draw_rates, self.rates, self.losses, self.suggestion)

    def __repr__(self):
        lowest = self.smoothed.argmin()
        note = f"loss {self.losses[0]:.3f} → {self.losses[lowest]:.3f}"
        if lowest == 0:
            note = "the loss only rises: try a smaller `lowest`"
        elif lowest == len(self.rates) - 1:
            note = "the loss still falls: try a larger `highest`"
        return (f"RateSearch(suggestion {self.suggestion:.2g}, {len(self.rates)} rates from "
                f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}, safe up to {self.largest:.2g}; "
                f"{note})")

    def _repr_html_(self):
        return captioned(self.svg(), repr(self))


def find_rate(model: Module, task: Any, *, lowest: float = 1e-5, highest: float = 1.0,
              steps: int = 60, **options: Any) -> RateSearch:
    """Train a copy of `model` for `steps` steps at rates from `lowest` to `highest`; return a
    `RateSearch`, whose `suggestion` is for `train(…, lr=…)`.

    The search ends before `highest` when the loss is twice the lowest one and above the first, or
    not finite. Each step costs a step of `train` and a pass over 16 validation rows. The model
    stays as it is; frozen arrays are shared. options: of `train`, such as batch_size, rates and
    seed. Raises ValueError for the ones that a search sets
    itself, for a task without validation loss, and as `train` does.
    """
    require_task(task, "find_rate", "batch", "count", "loss")
    if not 0 < lowest < highest < np.inf:
        raise ValueError("find_rate: expected 0 < lowest < highest, both finite, got "
                         f"{lowest!r} and {highest!r}")
    taken = sorted(SET & options.keys())
    if taken:
        raise ValueError(f"find_rate sets {', '.join(taken)} itself; leave it out")
    frozen = {id(p.data): p.data for p in model.parameters() if not p.requires_grad}
    rising = dict(lr=highest, lr_floor=lowest / highest, schedule_kind="exponential", warmup=0)
    losses = []

    def note(step: Step) -> bool:
        if "loss" not in step.metrics:
            raise ValueError(f"find_rate: expected a metric 'loss' of {task}, got "
                             f"{', '.join(step.metrics)}")
        losses.append(step.metrics["loss"])
        return losses[-1] > max(2 * min(losses), losses[0])

    with contextlib.suppress(DivergedError), np.errstate(all="ignore"):
        train(copy.deepcopy(model, frozen), task, steps, eval_every=1, callbacks=[note],
              **{"eval_batches": 1, **rising, **options})
    factors = [schedule("exponential", i, steps, 0, lowest / highest) for i in range(len(losses))]
    rates, finite = highest * np.array(factors), np.isfinite(losses)
    if not finite.any():
        raise ValueError("find_rate: the loss was not finite after a step at the lowest rate, "
                         f"{lowest:g}; try a smaller `lowest`, or look at the task's data")
    return RateSearch(rates[finite], np.array(losses)[finite])
