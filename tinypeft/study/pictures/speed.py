"""What a training step costs as the work grows."""
from pathlib import Path

import numpy as np

from .. import plot
from ..speed import runs

__all__ = ["scaling"]

COLUMNS = {"time": "s", "peak memory": "bytes"}
LOOKS = {"time": ("blue", "o"), "peak memory": ("vermillion", "s")}
SLOPE = {"parameters": 1, "batch": 1, "context": 2, "rank": 1, "vocabulary": 1, "cores": -1}      # of time, for large sizes


def scaling(results: Path) -> plot.Drawing:
    newest, *_ = runs(results, "scaling")
    tables = newest["tables"]
    upper = lambda name, kind: tables["scaling"][name][f"{kind}: upper half"]
    fig, axes = plot.figure(2, 3, height=4.6)
    grown = {}                                           # name → time or memory → multiples of the smallest
    for ax, name in zip(axes.flat, tables["scaling"], strict=True):
        x = np.array([int(size) for size in tables[name]], float)
        grown[name] = {}
        for kind, column in COLUMNS.items():
            y = np.array([cells[column] for cells in tables[name].values()])
            y = y / y[0]
            colour, marker = LOOKS[kind]
            ax.loglog(x, y, color=plot.COLOURS[colour], marker=marker, ms=4)
            grown[name][kind] = y
        grid, end = np.geomspace(x[0], x[-1]), 0 if SLOPE[name] < 0 else -1                      # where the law touches
        law = (grid / x[end]) ** SLOPE[name] * grown[name]["time"][end]
        ax.loglog(grid[law > 0.49], law[law > 0.49], color=plot.COLOURS["grey"], ls="--", lw=1)
        said = [f"{upper(name, kind):.2f}".replace("-", "−") for kind in ("time", "memory")]
        ax.set_title(f"{name}\n{said[0]} and {said[1]}", fontsize=9)
        plot.count_axis(ax.xaxis, 2 if name in ("batch", "cores") else 10)
        plot.plain_log(ax.yaxis)
    for ax in axes[:, 0]: ax.set_ylabel("× the smallest")
    plot.key(fig, {**LOOKS, "time in theory": ("grey", "", "--")})
    half = newest["settings"]["scaling"]["context where half of a step is quadratic"]
    ends = ", ".join(f"{name} from {row['from']:,} to {row['to']:,}: time × {grown[name]['time'][-1]:.2f}, memory × "
                     f"{grown[name]['peak memory'][-1]:.2f}" for name, row in tables["scaling"].items())
    return plot.Drawing(
        fig,
        f"The time of a training step grows as the number of parameters to the power {upper('parameters', 'time'):.2f}, as the "
        f"batch to the power {upper('batch', 'time'):.2f}, and as the context, where attention is quadratic, to the power "
        f"{upper('context', 'time'):.2f}.",
        "Time and peak memory of a step as one thing grows, both as multiples of the smallest; under each name the exponents "
        "of time and of memory over the upper half of the sizes. The part that is quadratic in the context takes half "
        f"of a step at {half:,} tokens. A rank and a vocabulary cost little until their products come near the rest. "
        f"Measured on {newest['machine']}; the numbers are in "
        "[the page on speed](../tests/benchmarks/README.md#cost-as-work-grows).",
        f"Six panels with logarithmic axes, time and peak memory as multiples of the smallest: {ends}.")
