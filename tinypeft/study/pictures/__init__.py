"""Every picture of the study. `PICTURES`: name → what draws it, the results it reads, its lesson, its kind of file.

    draw("figures", "rank")          # figures/rank.svg from figures/results/rank.json → its `Drawing`

A picture is a function of the folder of results to a `plot.Drawing`, the figure with its words. It reads what was
measured and measures nothing; where there is nothing to measure, it computes exactly what it shows.
"""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import compare, plot, pretraining
from . import engine, quantizers, schematics

__all__ = ["PICTURES", "Picture", "draw", "drawing", "missing"]


@dataclass(frozen=True)
class Picture:
    """draw: folder of results → `Drawing`. title: what it is called. lesson: where it belongs. needs: names of results."""
    draw: Callable
    title: str
    lesson: str
    needs: tuple = ()
    ending: str = "svg"

    def file(self, name):
        return f"{name}.{self.ending}"


PICTURES = {
    "compare": Picture(compare.picture, "Every method and every scheme at a glance", "15", ("compare",)),
    "pretraining": Picture(pretraining.picture, "How the base was trained", "02"),
    "computation_graph": Picture(engine.computation_graph, "A computation graph", "01"),
    "gradient_check": Picture(engine.gradient_check, "Checking a gradient", "01", ("gradient_check",)),
    "methods_in_a_block": Picture(schematics.methods_in_a_block, "Where each method sits", "04"),
    "staircase": Picture(quantizers.staircase, "What rounding does", "10"),
    "clipping": Picture(quantizers.clipping, "Clipping against rounding", "10"),
    "levels": Picture(quantizers.levels, "Sixteen levels on a bell curve", "13"),
    "qlora_flow": Picture(schematics.qlora_flow, "QLoRA's data flow", "13"),
}


def missing(folder, name):
    """Those of the picture's results that are not in `folder`/results."""
    return [n for n in PICTURES[name].needs if not (Path(folder) / "results" / f"{n}.json").exists()]


def drawing(folder, name):
    """The picture as a `Drawing`, from what is stored in `folder`/results."""
    with plot.style():
        return PICTURES[name].draw(Path(folder) / "results")


def draw(folder, name):
    """Draw the picture into `folder` → its `Drawing`."""
    drawn = drawing(folder, name)
    plot.save(drawn, Path(folder) / PICTURES[name].file(name))
    return drawn
