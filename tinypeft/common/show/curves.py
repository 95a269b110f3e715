"""Curves of training: losses over steps, and losses over learning rates.

Matplotlib and SciPy are imported when something is drawn.
"""
from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..hints import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_losses", "draw_rates", "smooth", "svg"]

BLUE, ORANGE = "#0072B2", "#D55E00"                          # Okabe and Ito's, as in all pictures
SIZE = 6.4, 3.2                                              # inches
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


def draw_losses(losses: Sequence[float], points: Sequence[tuple[int, float]] = (),
                best: tuple[int, float] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the loss of each step, smoothed over it, and the validation losses: points (step, loss).

    best: the point that carries its step. Raises ValueError if there are no steps.
    """
    if not len(losses):
        raise ValueError("plot: the history has no steps; train first")
    ax = _axes(ax)
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=BLUE, alpha=0.25, lw=0.8)
    ax.plot(steps, smooth(losses, len(losses) / 25), color=BLUE, label="training, smoothed")
    if len(points):
        ax.plot(*np.transpose(points), color=ORANGE, marker="o", ms=4, label="validation")
    if best:
        step, loss = best
        ax.plot(step, loss, "o", color=ORANGE, ms=9, mfc="none",
                label=f"best: {loss:.3f} at step {step}")
    ax.set(xlabel="step", ylabel="loss (nats)")
    ax.legend()
    return ax


def draw_rates(rates: Array, losses: Array, suggestion: float, ax: Axes | None = None) -> Axes:
    """Draw the validation loss after a step at each rate, and the rate that is suggested."""
    ax = _axes(ax)
    ax.plot(rates, losses, color=BLUE)
    ax.axvline(suggestion, color=ORANGE, ls="--")
    ax.annotate(f"{suggestion:.2g}", (suggestion, 1), (4, -2), color=ORANGE, va="top",
                xycoords=("data", "axes fraction"), textcoords="offset points")
    ax.set(xscale="log", xlabel="learning rate", ylabel="validation loss (nats)")
    low = min(losses)
    fall = losses[0] - low
    if fall > 0:
        ax.set_ylim(low - 0.1 * fall, low + 2 * fall)        # the climb goes out of the picture
    return ax


def _axes(ax):
    """Return `ax`, or the axes of a new figure of pyplot, which a notebook shows by itself."""
    if ax is not None:
        return ax
    from matplotlib import pyplot
    with pyplot.rc_context(STYLE):
        return pyplot.subplots(figsize=SIZE, layout="constrained")[1]


def svg(draw: Callable[..., Axes], *shown: Any) -> str:
    """Return the picture that draw(*shown, ax=axes) makes, as the text of an SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context(STYLE):
        fig: Figure = Figure(figsize=SIZE, layout="constrained")
        draw(*shown, ax=fig.subplots())
        fig.savefig(content := io.StringIO(), format="svg", metadata={"Date": None})
    return content.getvalue()
