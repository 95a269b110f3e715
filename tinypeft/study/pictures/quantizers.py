"""Lesson 10: rounding numbers to a few levels, computed by the package's own quantizers."""
from pathlib import Path

import numpy as np

from ...quant import Uniform
from .. import plot

__all__ = ["clipping", "staircase"]


def staircase(results: Path) -> plot.Drawing:
    low, high, bits = -0.6, 1.4, 3
    x = np.linspace(-0.8, 1.6, 2401, dtype=np.float32)
    fig, axes = plot.figure(2, 2, height=4.4, sharex=True, sharey="row", height_ratios=(2, 1))
    steps, worst = [], []
    for column, symmetric, name in zip(axes.T, (True, False), ("symmetric", "asymmetric"), strict=True):
        grid = Uniform(bits, symmetric).grid(low, high)
        rounded, s, zero = grid.round(x[None])[0], grid.scale.item(), int(np.ravel(grid.zero)[0])
        inside = (x >= low) & (x <= high)
        above, below = column
        for ax in column: ax.axvspan(low, high, color="#F2F2F2", lw=0, zorder=0)
        above.plot(x, x, color="#999999", lw=1)
        above.plot(x, rounded, color=plot.COLOURS["blue"])
        above.set_title(f"{name}: s = {s:.3f}, z = {zero}", fontsize=9)
        below.plot(x, rounded - x, color=plot.COLOURS["vermillion"], lw=1)
        for e in (-s / 2, s / 2): below.axhline(e, color="#999999", lw=0.8, ls="--")
        below.set(ylim=(-0.42, 0.42), xlabel="x")
        used = np.unique(rounded[inside]).size
        above.text(0.04, 0.93, f"{used} of {2**bits} levels in use", transform=above.transAxes, va="top")
        steps.append(s)
        worst.append((used, np.abs(rounded - x)[inside].max()))
    axes[0, 0].set_ylabel("rounded x̂")
    axes[1, 0].set_ylabel("error x̂ − x")
    axes[1, 0].text(0.52, steps[0] / 2 + 0.03, "s/2", transform=axes[1, 0].get_yaxis_transform(), va="bottom")
    return plot.Drawing(
        fig,
        "Inside the range no error exceeds half a step. With a zero point all levels serve a lopsided range.",
        f"Numbers between {low:g} and {high:g} (shaded) rounded to {bits} bits; numbers beyond the ends of a grid are "
        "clipped. A symmetric grid must reach as far to the left as to the right.",
        f"Staircases and their sawtooth errors. Symmetric: step {steps[0]:.3f}, {worst[0][0]} of {2**bits} levels used, "
        f"largest error {worst[0][1]:.3f}. Asymmetric: step {steps[1]:.3f}, {worst[1][0]} levels, largest error "
        f"{worst[1][1]:.3f}.")


def clipping(results: Path) -> plot.Drawing:
    x = bell_curve()[None]
    limits = np.linspace(0.6, 4.5, 79)
    fig, (left, right) = plot.figure(1, 2, height=3.4)
    best = {}
    for bits, colour, marker in ((2, "orange", "^"), (3, "vermillion", "s"), (4, "blue", "o")):
        cost = np.array([parts(x, Uniform(bits).grid(-c, c), c) for c in limits])
        total, i = cost.sum(1), cost.sum(1).argmin()
        best[bits] = limits[i], total[i]
        left.semilogy(limits, total, color=plot.COLOURS[colour], marker=marker, ms=4, markevery=[i, 78])
        left.annotate(f"{bits} bits", (limits[-1], total[-1]), xytext=(0, 4), textcoords="offset points", ha="right",
                      color=plot.ink(plot.COLOURS[colour]))
        if bits == 3:
            right.semilogy(limits, cost[:, 0], color="#555555", ls="--")
            right.semilogy(limits, cost[:, 1], color="#555555", ls=":")
            right.semilogy(limits, total, color=plot.COLOURS[colour])
            right.annotate("clipping", (limits[20], cost[20, 1]), xytext=(-6, -10), textcoords="offset points", ha="right")
            right.annotate("rounding", (limits[30], cost[30, 0]), xytext=(6, -10), textcoords="offset points")
            right.annotate("their sum", (limits[12], total[12]), xytext=(8, 4), textcoords="offset points",
                           color=plot.ink(plot.COLOURS[colour]))
    left.set(xlabel="largest level c, in standard deviations", ylabel="mean squared error")
    right.set(xlabel="largest level c, in standard deviations", ylim=(1e-4, 1))
    right.set_title("3 bits: the two parts", fontsize=9)
    left.set_title("total, and where it is least", fontsize=9)
    return plot.Drawing(
        fig,
        "The fewer the bits, the more it pays to clip the tails.",
        "Normal numbers of variance 1 rounded to a symmetric grid that ends at ±c. A wide grid has large steps and a narrow "
        f"grid clips more; computed from {x.size:,} numbers.",
        "Mean squared error over the clipping limit, U-shaped for every number of bits: least at " + ", ".join(
            f"c = {c:.2f} ({bits} bits, error {e:.4f})" for bits, (c, e) in best.items()) + ".")


def bell_curve(n: int = 2**18) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(n).astype(np.float32)


def parts(x: np.ndarray, grid, limit: float) -> tuple[float, float]:
    """Mean squared error of the numbers inside ±limit (rounding) and of those outside (clipping)."""
    error, inside = (grid.round(x) - x) ** 2, np.abs(x) <= limit
    return (error * inside).sum() / x.size, (error * ~inside).sum() / x.size
