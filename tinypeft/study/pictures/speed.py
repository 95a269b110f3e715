"""What a training step costs as the work grows."""
from pathlib import Path

import numpy as np

from .. import plot
from ..speed import crossover, halves, runs

__all__ = ["scaling"]

LOOKS = {"time": ("blue", "o"), "peak memory": ("vermillion", "s")}
SLOPE = {"parameters": 1, "batch": 1, "context": 2, "rank": 1, "vocabulary": 1, "cores": -1}      # of time, for large sizes


def scaling(results: Path) -> plot.Drawing:
    newest, *_ = runs(results, "scaling")
    series = newest["series"]
    fig, axes = plot.figure(2, 3, height=4.6)
    upper = {}
    for ax, (name, s) in zip(axes.flat, series.items(), strict=True):
        x = np.array(s["x"], float)
        for (colour, marker), kind in zip(LOOKS.values(), ("seconds", "bytes"), strict=True):
            y = np.array(s[kind]) / s[kind][0]
            ax.loglog(x, y, color=plot.COLOURS[colour], marker=marker, ms=4)
            upper[name, kind] = halves(s["x"], s[kind])[1]
        grid, end = np.geomspace(x[0], x[-1]), 0 if SLOPE[name] < 0 else -1                      # where the law touches
        law = (grid / x[end]) ** SLOPE[name] * s["seconds"][end] / s["seconds"][0]
        ax.loglog(grid[law > 0.49], law[law > 0.49], color=plot.COLOURS["grey"], ls="--", lw=1)
        said = [f"{upper[name, kind]:.2f}".replace("-", "−") for kind in ("seconds", "bytes")]
        ax.set_title(f"{name}\n{said[0]} and {said[1]}", fontsize=9)
        plot.count_axis(ax.xaxis, 2 if name in ("batch", "cores") else 10)
        plot.plain_log(ax.yaxis)
    for ax in axes[:, 0]: ax.set_ylabel("× the smallest")
    plot.key(fig, {**LOOKS, "time in theory": ("grey", "", "--")})
    meet, of = crossover(series["context"]["x"], series["context"]["seconds"]), lambda name: upper[name, "seconds"]
    ends = ", ".join(f"{name} from {s['x'][0]:,} to {s['x'][-1]:,}: time × {s['seconds'][-1] / s['seconds'][0]:.2f}, memory × "
                     f"{s['bytes'][-1] / s['bytes'][0]:.2f}" for name, s in series.items())
    return plot.Drawing(
        fig,
        f"The time of a training step grows as the number of parameters to the power {of('parameters'):.2f}, as the batch to "
        f"the power {of('batch'):.2f}, and as the context, where attention is quadratic, to the power {of('context'):.2f}.",
        "Time and peak memory of a step as one thing grows, both as multiples of the smallest; under each name the exponents "
        "of time and of memory over the upper half of the sizes. The part that is quadratic in the context takes half "
        f"of a step at {meet:,.0f} tokens. A rank and a vocabulary cost little until their products come near the rest. "
        f"Measured on {newest['machine']}; the numbers are in "
        "[the page on speed](../tests/benchmarks/README.md#cost-as-work-grows).",
        f"Six panels with logarithmic axes, time and peak memory as multiples of the smallest: {ends}.")
