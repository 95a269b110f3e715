"""What lessons show: the package's own source, the study's pictures, figures.

    show(F.linear)              the source of a function or class, as it is now: prose beside it cannot drift
    show(F.linear, "y = ")      the lines with that text and their neighbours
    show("rank")                a picture of the study, drawn from the stored results, with its caption
"""
import inspect
import io
import textwrap
from pathlib import Path

import numpy as np

from ..markup import drawing
from .png import palette_png

__all__ = ["show"]

FIGURES = Path(__file__).parents[2] / "figures"


def show(what, around=None):
    """Display a function's or class' source, or the study's picture of that name. Returns nothing.

    Raises KeyError for a picture that does not exist; says which command measures what is not measured yet."""
    if isinstance(what, str): _picture(what)
    else:                     _source(what, around)


def _source(what, around):
    path = Path(inspect.getsourcefile(what))
    lines = textwrap.dedent(inspect.getsource(what)).rstrip().split("\n")
    if around is not None:
        near = {j for i, line in enumerate(lines) if around in line for j in (i - 1, i, i + 1) if 0 <= j < len(lines)}
        if not near: raise KeyError(f"show: {around!r} does not occur in the source of {what.__qualname__}")
        kept = sorted({0} | near)
        lines = [text for i, j in zip([None, *kept], kept, strict=False)
                 for text in (["    …"] if i is not None and j > i + 1 else []) + [lines[j]]]
    where = path.relative_to(Path(__file__).parents[2]).as_posix()
    _display("\n".join([f"# {where}", *lines]))


def _picture(name):
    from ..study import pictures
    if name not in pictures.PICTURES:
        print(f"show: there is no picture {name!r}; there are {', '.join(pictures.PICTURES)}")
        return
    absent = pictures.missing(FIGURES, name)
    if absent:
        print(f"not measured in this checkout: python -m tinypeft figures {' '.join(absent)} --rerun")
        return
    drawn = pictures.drawing(FIGURES, name)
    from IPython.display import Image, Markdown, display
    if isinstance(drawn.figure, str):
        image = drawing(drawn.figure, drawn.alt)
        display({"image/svg+xml": drawn.figure, "text/html": image, "text/plain": drawn.alt}, raw=True)
    else:
        display(Image(_png(drawn.figure), alt=drawn.alt))
    display(Markdown(f"**{drawn.sentence}** {drawn.detail}"))


def _display(code):
    from IPython.display import display
    display({"text/plain": code, "text/markdown": f"```python\n{code}\n```"}, raw=True)


# -- figures as a cell's value -------------------------------------------------------------------
def _png(figure):
    """A figure as PNG, 100 dots per inch, without a date, in few colours and bytes."""
    from matplotlib.image import imread

    from ..study import plot
    buffer = io.BytesIO()
    with plot.style(): figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    buffer.seek(0)
    return palette_png(np.round(255 * imread(buffer)[..., :3]).astype(np.uint8))


def _figures_are_pictures():
    """In a notebook, let a Matplotlib figure that is a cell's value be shown, without pyplot, and in the house style."""
    import sys
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from matplotlib import rcParams

        from ..study.plot import STYLE
        rcParams.update(STYLE)
        shell.display_formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", _png)
        shell.display_formatter.formatters["text/plain"].for_type_by_name(
            "matplotlib.figure", "Figure", lambda figure, printer, cycle: printer.text("a figure"))
        shell.display_formatter.formatters["text/html"].for_type_by_name("matplotlib.figure", "Figure", lambda figure: None)


_figures_are_pictures()
