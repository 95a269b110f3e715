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
    looks = {"float32": ("vermillion", "s", "float32"), "float64": ("sky", "o", "float64"),
             "float64, fourth order": ("blue", "^", "float64,\nfourth order")}
    least = {}
    for condition, (colour, marker, text) in looks.items():
        error = np.exp(np.log(r.values(condition, "error")).mean(0))
        ax.loglog(steps, error, color=plot.COLOURS[colour], marker=marker, ms=4)
        i = error.argmin()
        least[condition] = steps[i], error[i]
        i, offset = (-1, 8) if condition == "float32" else (i, -8)
        ax.annotate(text, (steps[i], error[i]), xytext=(0, offset), textcoords="offset points",
                    va="bottom" if offset > 0 else "top", ha="right" if offset > 0 else "center",
                    color=plot.ink(plot.COLOURS[colour]))
    ax.set(xlabel="step h of the finite difference", ylabel="relative error of the derivative", ylim=(1e-15, 10))
    ax.invert_xaxis()
    for axis in (ax.xaxis, ax.yaxis): plot.plain_log(axis)
    best = {c: f"10^{np.log10(e):.0f} at h = {h:.0e}" for c, (h, e) in least.items()}
    return plot.Drawing(
        fig,
        "A large step has a truncation error and a small step a rounding error. In float32 even the best step is too inexact "
        "to tell a right gradient from a slightly wrong one.",
        "Finite differences through layer norm, linear, GELU and softmax, in random directions; geometric mean over "
        f"{len(r.seeds)} seeds. `gradcheck` uses float64, h = 10⁻³ and the fourth order.",
        f"Relative error against the step h, both logarithmic: V-shaped curves. Smallest error: float32 {best['float32']}, "
        f"float64 {best['float64']}, float64 of fourth order {best['float64, fourth order']}.")
