"""What a training step costs as the work grows."""
from pathlib import Path

import numpy as np

from .. import plot
from ..speed import runs

__all__ = ["scaling"]

COLUMNS = {"time": "s", "peak memory": "bytes"}
UNITS = {"batch": " (rows)", "context": " (tokens)", "vocabulary": " (tokens)"}
LOOKS = {"time": ("blue", "o"), "peak memory": ("vermillion", "s")}
SLOPE = {"parameters": 1, "batch": 1, "context": 2, "rank": 1, "vocabulary": 1, "cores": -1}      # of time, for large sizes


def scaling(results: Path) -> plot.Drawing:
    newest = runs(results, "scaling")[0]
    tables = newest["tables"]
    upper = lambda name, kind: tables["scaling"][name][f"{kind}: upper half"]
    fig, axes = plot.figure(2, 3, height=4.6)
    grown = {}                                           # name → time or memory → multiples of the smallest
    for ax, name in zip(axes.flat, tables["scaling"], strict=True):
        x = np.array([int(size) for size in tables[name]], float)
        grown[name] = {}
        for kind, column in COLUMNS.items():
            y = np.array([cells[column] for cells in tables[name].values()])
            grown[name][kind] = y / y[0]
            ax.plot(x, y / y[0], ms=4, **plot.line(LOOKS[kind]))
        grid, end = np.geomspace(x[0], x[-1]), 0 if SLOPE[name] < 0 else -1                      # where the law touches
        law = (grid / x[end]) ** SLOPE[name] * grown[name]["time"][end]
        ax.plot(grid[law > 0.49], law[law > 0.49], color=plot.COLOURS["grey"], ls="--", lw=1)
        powers = f"powers {upper(name, 'time'):.2f}, {upper(name, 'memory'):.2f}".replace("-", "−")
        ax.set_title(f"{name}{UNITS.get(name, '')}\n{powers}")
        plot.plain_log(ax.xaxis, x if name in ("batch", "cores") else None)
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
        "Time and peak memory of a step as one thing grows, both as multiples of the smallest. Under each name stand the "
        "powers by which time and memory grow over the upper half of the sizes. The part that is quadratic in the context "
        f"takes half of a step at {half:,} tokens. A rank and a vocabulary cost little until their products come near the "
        f"rest. Measured on {newest['machine']}; the numbers are in [the page on "
        "speed](../tests/benchmarks/README.md#cost-as-work-grows).",
        f"Six panels with logarithmic axes, time and peak memory as multiples of the smallest: {ends}.")
