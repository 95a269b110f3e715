"""Lesson 01: the check of a gradient."""
from pathlib import Path

import numpy as np

from .. import plot
from ..stored import load

__all__ = ["gradient_check"]


def gradient_check(results: Path) -> plot.Drawing:
    r = load(results, "gradient_check")
    steps = np.array(r.record["settings"]["steps"])
    fig, ax = plot.figure()
    looks = {"float32": ("vermillion", "s"), "float64": ("sky", "o"), "float64, fourth order": ("blue", "^")}
    best = []
    for condition, look in looks.items():
        error = np.exp(np.log(r.values(condition, "error")).mean(0))
        ax.plot(steps, error, ms=4, **plot.line(look))
        i = error.argmin()
        best.append(f"{condition} 10^{np.log10(error[i]):.0f} at h = {steps[i]:.0e}")
        if condition == "float32": plot.note(ax, (steps[-1], error[-1]), condition, (-1, 8), look[0])
        else: plot.note(ax, (steps[i], error[i]), condition, (0, -8), look[0])
    ax.set(xlabel="step h of the finite difference", ylabel="relative error of the derivative", ylim=(1e-15, 10))
    ax.invert_xaxis()
    for axis in (ax.xaxis, ax.yaxis): plot.plain_log(axis)
    return plot.Drawing(
        fig,
        "A large step has a truncation error and a small step a rounding error. In float32 even the best step is too inexact "
        "to tell a right gradient from a slightly wrong one.",
        "Finite differences through layer norm, linear, GELU and softmax, in random directions; geometric mean over "
        f"{len(r.seeds)} seeds. `gradcheck` uses float64, h = 10⁻³ and the fourth order.",
        f"Relative error against the step h, both logarithmic: V-shaped curves. Smallest error: {'; '.join(best)}.")
