"""Lesson 01: a computation graph, and the check of a gradient."""
from pathlib import Path

import numpy as np

from ...engine.graph import graph
from ...engine.tensor import Tensor
from .. import plot
from ..stored import load

__all__ = ["computation_graph", "gradient_check"]


def computation_graph(results: Path) -> plot.Drawing:
    values = {"x": 2.0, "w": -0.5, "b": 1.5, "t": 1.0}
    neuron = lambda x, w, b, t: ((x * w + b).tanh() - t) ** 2
    leaves = {name: Tensor(np.float64(value), requires_grad=True) for name, value in values.items()}
    loss = neuron(**leaves)
    drawn = graph(neuron, **{name: Tensor(np.float64(value), requires_grad=True) for name, value in values.items()})
    loss.backward()
    gradients = ", ".join(f"∂L/∂{name} = {x.grad.item():.4f}" for name, x in leaves.items())
    return plot.Drawing(
        drawn.svg,
        "Every value remembers the values it was computed from; backward walks this graph once, from right to left.",
        "L = (tanh(x·w + b) − t)². Each box shows a value, and under it the gradient of L. Drawn by `tp.graph`.",
        f"Computation graph of (tanh(x·w + b) − t)² at x = {values['x']:g}, w = {values['w']:g}, b = {values['b']:g}, "
        f"t = {values['t']:g}: the leaves on the left, the loss {loss.item():.4f} on the right; {gradients}.")


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
    best = {c: f"10^{np.log10(e):.0f} at h = {h:.0e}" for c, (h, e) in least.items()}
    return plot.Drawing(
        fig,
        "A large step has a truncation error and a small step a rounding error. In float32 even the best step is too inexact "
        "to tell a right gradient from a slightly wrong one.",
        "Finite differences through layer norm, linear, GELU and softmax, in random directions; geometric mean over "
        f"{len(r.seeds)} seeds. `gradcheck` uses float64, h = 10⁻³ and the fourth order.",
        f"Relative error against the step h, both logarithmic: V-shaped curves. Smallest error: float32 {best['float32']}, "
        f"float64 {best['float64']}, float64 of fourth order {best['float64, fourth order']}.")
