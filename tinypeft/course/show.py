"""What lessons show: the package's own source, the study's pictures, and figures.

    show(F.linear)              the source of a function or class, read when the cell runs
    show(F.linear, "y = ")      only the lines with that text, and their neighbours
    show(tp.LoRA)               a method or scheme: first its module's docstring (paper, equation,
                                symbols, differences between implementations), then the class
    show("rank")                a picture of the study, drawn from the stored results, with caption
    show("schematic:lora")      a schematic: what goes where, and of which shape
"""
from __future__ import annotations

import inspect
import io
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hyper import Hyperparameters
from ..common.show.markup import drawing
from .png import palette_png

__all__ = ["show"]

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "figures"


def show(shown: Callable | type | str, around: str | None = None) -> None:
    """Display the source of a function or class, the study's picture of that name, or after
    "schematic:" the schematic of that name.

    around: show only the lines that contain this text, with one line on either side; KeyError if
    none does. If there is no picture of that name, or its experiment was not run yet, a sentence
    says so.
    """
    if not isinstance(shown, str):       _display(source(shown, around))
    elif shown.startswith("schematic:"): _schematic(shown.removeprefix("schematic:").strip())
    else:                                _picture(shown)


def source(shown: Callable | type, around: str | None = None) -> str:
    """The text that `show` displays: the file's path, then the source."""
    path = Path(inspect.getsourcefile(inspect.unwrap(shown)))
    lines = textwrap.dedent(inspect.getsource(shown)).rstrip().split("\n")
    if around is not None:
        lines = _excerpt(lines, around, shown.__qualname__)
    elif isinstance(shown, type) and issubclass(shown, Hyperparameters):
        paper = sys.modules[shown.__module__].__doc__
        ours = shown.__module__.startswith("tinypeft.")          # not a class that a reader wrote
        if ours and paper: lines = [f'"""{paper.rstrip()}', '"""', "", "", *lines]
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return "\n".join([f"# {where}", *lines])


def _excerpt(lines, around, name):
    """The first line, and the lines with the text `around` and their neighbours; … where lines are
    left out."""
    found = [i for i, line in enumerate(lines) if around in line]
    if not found: raise KeyError(f"show: {around!r} does not occur in the source of {name}")
    near = {j for i in found for j in (i - 1, i, i + 1)} & set(range(len(lines)))
    excerpt, before = [], -1
    for i in sorted({0} | near):
        if i > before + 1: excerpt.append("    …")
        excerpt.append(lines[i])
        before = i
    return excerpt


def _picture(name):
    from ..study import pictures
    if name not in pictures.PICTURES:
        names = ", ".join(pictures.PICTURES)
        print(f"show: there is no picture {name!r}; the pictures are {names}")
        return
    absent = pictures.missing(FIGURES, name)
    if absent:
        print("not measured in this checkout; to measure it, run: "
              f"python -m tinypeft figures {' '.join(absent)} --rerun")
        return
    _present(pictures.drawing(FIGURES, name))


def _schematic(name):
    from .schematics import SCHEMATICS
    if name in SCHEMATICS:
        _present(SCHEMATICS[name]())
    else:
        names = ", ".join(SCHEMATICS)
        print(f"show: there is no schematic {name!r}; the schematics are {names}")


def _present(drawn):
    """A `Drawing` with its description and its caption."""
    from IPython.display import Image, Markdown, display
    if isinstance(drawn.figure, str):
        display({"image/svg+xml": drawn.figure, "text/html": drawing(drawn.figure, drawn.alt),
                 "text/plain": drawn.alt}, raw=True)
    else:
        display(Image(_png(drawn.figure), alt=drawn.alt))
    display(Markdown(f"**{drawn.sentence}** {drawn.detail}"))


FRAME = "<div style='font-family:monospace;border-left:4px solid #C8C8C8;padding-left:10px'>"


def _display(code):
    """The frame keeps a fixed pitch and an edge in exported HTML, too."""
    from IPython.display import display
    framed = f"{FRAME}\n\n```python\n{code}\n```\n\n</div>"
    display({"text/plain": code, "text/markdown": framed}, raw=True)


# -- a figure as a cell's value ------------------------------------------------------------------
def _png(figure: Any) -> bytes:
    """A figure as PNG: 100 dots per inch, without a date, in few colours and bytes."""
    from matplotlib.image import imread

    from ..study import plot
    buffer = io.BytesIO()
    with plot.style(): figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    buffer.seek(0)
    return palette_png(np.round(255 * imread(buffer)[..., :3]).astype(np.uint8))


def _figures_are_pictures():
    """In a notebook, display a Matplotlib figure that is a cell's value, without pyplot, in the
    house style. Its label, `fig.set_label("…")`, describes it to readers who cannot see it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None: return
    from matplotlib import rcParams

    from ..study.plot import STYLE
    rcParams.update(STYLE)
    formatters, figure = shell.display_formatter.formatters, ("matplotlib.figure", "Figure")
    described = lambda fig: (_png(fig), {"alt": fig.get_label() or "a figure"})
    formatters["image/png"].for_type_by_name(*figure, described)
    say = lambda fig, printer, cycle: printer.text(fig.get_label() or "a figure")
    formatters["text/plain"].for_type_by_name(*figure, say)
    formatters["text/html"].for_type_by_name(*figure, lambda fig: None)


_figures_are_pictures()
