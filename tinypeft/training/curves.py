"""Curves of training: losses over steps, and the loss over the rates that `find_rate` tried.

Matplotlib and SciPy are imported when something is drawn.
"""
from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.hints import Array
from ..common.markup import drawing
from ..common.progress import in_notebook

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LiveCurve", "draw_history", "draw_rates", "smooth", "svg"]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8A8A8A"         # Okabe and Ito's, as in all pictures
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
         "svg.fonttype": "none", "svg.hashsalt": "tinypeft"}


def smooth(losses: Sequence[float], width: float) -> Array:
    """The losses (n,), each averaged with its neighbours: Gaussian weights, `width` > 0 steps."""
    from scipy.ndimage import gaussian_filter1d
    if not len(losses):
        return np.zeros(0)
    inside = gaussian_filter1d(np.ones(len(losses)), width, mode="constant", truncate=3)
    return gaussian_filter1d(np.asarray(losses, float), width, mode="constant", truncate=3) / inside


def draw_history(history: Any, ax: Axes | None = None) -> Axes:
    """Draw a `History`: the loss of each step, smoothed over it, and the evaluations. Validation
    points carry the best one's step. Raises ValueError for a history without steps."""
    losses = history.loss
    if not losses:
        raise ValueError("plot: the history has no steps; train first")
    ax = _axes(ax)
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=BLUE, alpha=0.25, lw=0.8)
    ax.plot(steps, smooth(losses, len(losses) / 25), color=BLUE, label="training, smoothed")
    points = [(step, metrics["loss"]) for step, metrics in history.evals if "loss" in metrics]
    if points:
        ax.plot(*np.transpose(points), color=ORANGE, marker="o", ms=4, label="validation")
    if points and history.best:
        step, metrics = history.best
        ax.plot(step, metrics["loss"], "o", color=ORANGE, ms=9, mfc="none",
                label=f"best: {metrics['loss']:.3f} at step {step}")
    ax.set(xlabel="step", ylabel="loss (nats)")
    ax.legend()
    return ax


def draw_rates(search: Any, ax: Axes | None = None) -> Axes:
    """Draw a `RateSearch`: the validation loss after a step at each rate, and the suggestion."""
    ax = _axes(ax)
    ax.plot(search.rates, search.losses, color=BLUE)
    ax.axvline(search.suggestion, color=ORANGE, ls="--")
    ax.annotate(f"{search.suggestion:.2g}", (search.suggestion, 1), (4, -2), color=ORANGE, va="top",
                xycoords=("data", "axes fraction"), textcoords="offset points")
    ax.set(xscale="log", xlabel="learning rate", ylabel="validation loss (nats)")
    low, fall = min(search.losses), search.losses[0] - min(search.losses)
    if fall > 0:
        ax.set_ylim(low - 0.1 * fall, low + 2 * fall)        # the climb goes out of the picture
    return ax


def _axes(ax):
    """Return `ax`, or the axes of a new figure of pyplot, which a notebook shows by itself."""
    if ax is not None:
        return ax
    from matplotlib import pyplot
    with pyplot.rc_context(STYLE):
        return pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")[1]


def svg(draw: Any, shown: Any, size: tuple[float, float] = (6.4, 3.2)) -> str:
    """Return the picture that draw(shown, axes) makes, as the text of an SVG. size: in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context(STYLE):
        fig: Figure = Figure(figsize=size, layout="constrained")
        draw(shown, fig.subplots())
        fig.savefig(content := io.StringIO(), format="svg", metadata={"Date": None})
    return content.getvalue()


class LiveCurve:
    """A callback of `train`: in a notebook, the curve of the history, drawn again as it grows.

    seconds: the least time between two drawings; one takes about a tenth of a second. An evaluation
    and the last step are always drawn. Outside a notebook it does nothing.
    """

    def __init__(self, seconds: float = 2.0):
        self.seconds, self.drawn, self.handle = seconds, -np.inf, None

    def __call__(self, step: Any) -> None:
        soon = time.perf_counter() - self.drawn < self.seconds
        due = step.metrics is not None or step.step == step.total
        if not in_notebook() or soon and not due:
            return
        from IPython.display import display
        shown = {"text/html": drawing(svg(draw_history, step.history), "losses over steps")}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)
        self.drawn = time.perf_counter()
