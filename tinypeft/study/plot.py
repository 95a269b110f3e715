"""One style for every picture: colours that colour-blind readers can tell apart, labels at the data, plain axes.

The eight colours are Okabe and Ito's (2008). A method has the same colour and marker in every picture; `about.py` holds
them. Related methods share a colour. No two that meet in one picture share colour and marker, so a grey print can still
be read. A picture is 6.4 inches wide, the width of a page, with letters of 9 points.
"""
from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import replacing, write_atomically
from .about import about

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Curve

    from .experiment import Results

__all__ = ["COLOURS", "Drawing", "band", "figure", "ink", "key", "label_ends", "label_points", "line", "mark", "note",
           "plain_log", "reference_line", "save", "style"]

COLOURS = {"black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442",
           "blue": "#0072B2", "vermillion": "#D55E00", "purple": "#CC79A7", "grey": "#8A8A8A"}
GREY = "#606060"                                         # of notes

STYLE = {
    "figure.figsize": (6.4, 3.6), "figure.dpi": 120, "savefig.dpi": 150, "font.size": 9, "axes.titlesize": 10,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.5, "lines.markersize": 6,
    "errorbar.capsize": 2, "legend.frameon": False, "legend.fontsize": 9, "svg.hashsalt": "tinypeft", "svg.fonttype": "none",
    "axes.unicode_minus": True, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana"],
}


@dataclass(frozen=True)
class Drawing:
    """A picture and its words. figure: a Matplotlib figure, or the text of an SVG. sentence: the one thing to remember.
    detail: units, sizes, number of seeds. alt: a description for readers who cannot see the picture."""
    figure: Any
    sentence: str
    detail: str
    alt: str


def style() -> contextlib.AbstractContextManager:
    """A context with Matplotlib's defaults and the house style, whatever the reader's own settings are."""
    from matplotlib import rc_context, rcParamsDefault
    return rc_context({name: value for name, value in rcParamsDefault.items() if "backend" not in name} | STYLE)


def figure(rows: int = 1, columns: int = 1, height: float | None = None, width: float = 6.4, **subplots) -> tuple[Figure, Any]:
    """(figure, axes) in the house style, drawn without a display. height, width: inches. Draw inside `style()`, which sets
    the size of letters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    with style():
        fig = Figure(figsize=(width, height or 3.6 * rows), layout="constrained")
        FigureCanvasAgg(fig)
        return fig, fig.subplots(rows, columns, **subplots)


def mark(name: str) -> dict[str, str]:
    """Keyword arguments for a scatter point of the method, scheme or arm `name`. Raises KeyError if `about.py` lacks it."""
    colour, marker, *_ = about(name).look
    return {"color": COLOURS[colour], "marker": marker}


def line(look: tuple[str, ...]) -> dict[str, str]:
    """Keyword arguments for a line. look: (name of the colour, marker) and, if not solid, a line style."""
    colour, marker, style = (*look, "-")[:3]
    return {"color": COLOURS[colour], "marker": marker, "ls": style}


def ink(colour: str) -> str:
    """The colour, a name or a value, darkened until letters on white have a contrast of 4.5 (WCAG 2, AA)."""
    from matplotlib.colors import to_hex, to_rgb
    rgb = np.array(to_rgb(COLOURS.get(colour, colour)))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear *= min(1, 0.183 / max(linear @ (0.2126, 0.7152, 0.0722), 1e-9))
    return to_hex(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def band(ax: Axes, x, results: Results, conditions: str | Iterable[str], metric: str, look: tuple[str, ...],
         scale: float = 1, half: np.ndarray | None = None, **options) -> np.ndarray:
    """Draw a metric of `Results` over x: the mean over seeds as a line, its 95 % interval as a band. Returns the mean.

    conditions: one condition whose metric is a list as long as x, or one condition for each x. look: as for `line`. scale: a
    factor, such as 100 for per cent. half: of the intervals, if not `Results.interval`.
    """
    single = isinstance(conditions, str)
    over = lambda f: f(conditions, metric) if single else np.array([f(c, metric) for c in conditions])
    mean, half = (scale * x for x in (over(results.mean), over(results.interval) if half is None else half))
    ax.plot(x, mean, **line(look) | {"ms": 5} | options)
    if np.isfinite(half).all() and np.any(half > 0):
        ax.fill_between(x, mean - half, mean + half, color=COLOURS[look[0]], alpha=0.18, lw=0)
    return mean


def note(ax: Axes, point: tuple[float, float], text: str, offset: tuple[float, float], colour: str = GREY,
         **options) -> None:
    """Write a text beside a point, on the side to which `offset` (in points of 1/72 inch) leads. colour: a name or a value."""
    right, up = np.sign(offset).astype(int)
    sides = {"ha": ("center", "left", "right")[right], "va": ("center", "bottom", "top")[up]}
    ax.annotate(text, point, xytext=offset, textcoords="offset points", color=ink(colour), **sides | options)


def reference_line(ax: Axes, y: float, text: str, above: bool = False, colour: str = GREY) -> None:
    """Draw a dashed horizontal line at y with its name at the left end, below (or above) it."""
    ax.axhline(y, color=COLOURS.get(colour, COLOURS["grey"]), lw=1, ls="--")
    note(ax, (0, y), text, (4, 3 if above else -3), colour, xycoords=("axes fraction", "data"))


def plain_log(axis: Axis, ticks: Sequence[float] | None = None) -> None:
    """Make an axis logarithmic and write its ticks as plain numbers: 0.5, 20, 10 k, 1 M. ticks: where; None: at 1, 2 and 5, or
    over many decades at powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    def words(n, _):
        for unit, name in (1e9, " G"), (1e6, " M"), (1e3, " k"):
            if n >= unit: return f"{n / unit:g}{name}"
        return f"{n:g}"
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(10, (1, 2, 5) if high < 150 * low else (1,)) if ticks is None else FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(words))
    axis.set_minor_formatter(NullFormatter())
    if ticks is not None: axis.set_minor_locator(NullLocator())


def key(fig: Figure, looks: dict[str, tuple[str, ...]], columns: int = 3, hollow: tuple[str, ...] = ()) -> None:
    """A legend above the panels, for lines that several panels share. looks: label → as for `line`. hollow: labels of marks
    that are not filled."""
    from matplotlib.lines import Line2D
    handles = [Line2D([], [], ms=5, label=label, mfc="white" if label in hollow else None, **line(look))
               for label, look in looks.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=columns)


def label_ends(ax: Axes, labels: Iterable[tuple], size: float = 9) -> None:
    """Write labels (x, y, text, colour) to the right of the ends of lines, moved apart vertically until none overlap."""
    from scipy.optimize import isotonic_regression
    ax.figure.draw_without_rendering()
    scale = 72 / ax.figure.dpi
    items = sorted([(ax.transData.transform(label[:2])[1] * scale, *label) for label in labels], key=lambda item: item[0])
    heights = size * 1.3 * np.array([1 + text.count("\n") for _, _, _, text, _ in items])
    apart = np.concatenate([[0], (heights[1:] + heights[:-1]).cumsum() / 2])          # of each label from the lowest
    places = isotonic_regression([item[0] for item in items] - apart).x + apart       # as near to the ends as can be
    for place, (here, x, y, text, colour) in zip(places, items, strict=True):
        note(ax, (x, y), text, (6, place - here), colour, va="center", fontsize=size, annotation_clip=False)


def label_points(ax: Axes, points: list[tuple], size: float = 9) -> None:
    """Write each label beside its point, where it covers no other text, no point, and no line or bar that the axes have.

    points: (x, y, text, colour). The places tried are right, left, above and below, then further and further away.
    A label far from its point gets a thin line to it, which crosses no other label.
    """
    from matplotlib.path import Path as Curve
    from matplotlib.transforms import Bbox
    fig = ax.figure
    fig.draw_without_rendering()
    renderer, dots, lines = fig.canvas.get_renderer(), fig.dpi / 72, paths(ax)
    pixels = lambda point: ax.transData.transform(point[:2])
    texts = [text.get_window_extent(renderer) for text in ax.texts]
    marks = [Bbox.from_bounds(x - 4 * dots, y - 4 * dots, 8 * dots, 8 * dots) for x, y in map(pixels, points)]
    for x, y, text, colour in sorted(points, key=lambda point: pixels(point)[0]):
        label = ax.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=ink(colour),
                            va="center", ha="center")
        box = label.get_window_extent(renderer)
        w, h = box.width / dots, box.height / dots
        beside, above = w / 2 + 7, h / 2 + 5
        places = [(x, y) for far in range(0, 140, 4) for side in (1, -1)
                  for x, y in ((beside, side * far), (-beside, side * far), (0, side * (above + far)))]
        for dx, dy in places:
            moved = Bbox.from_bounds(box.x0 + dx * dots, box.y0 + dy * dots, box.width, box.height)
            inside = ax.bbox.x0 <= moved.x0 and moved.x1 <= ax.bbox.x1 and ax.bbox.y0 <= moved.y0 and moved.y1 <= ax.bbox.y1
            end = np.array((dx - np.sign(dx) * w / 2, dy) if dx else (0, dy - np.sign(dy) * h / 2))
            far = abs(dy) > (h if dx else above + 8)
            leader = Curve([pixels((x, y)), pixels((x, y)) + end * dots])
            crossed = any(path.intersects_bbox(moved.padded(dots), filled=False) for path in lines)
            crossed |= far and any(leader.intersects_bbox(text, filled=False) for text in texts)
            if inside and not crossed and not moved.count_overlaps(marks + texts): break
        label.set_position((dx, dy))
        texts.append(moved)
        if far:
            lines.append(leader)
            ax.annotate("", (x, y), xytext=end, textcoords="offset points",
                        arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "lw": 0.6, "shrinkB": 4})


def paths(ax: Axes) -> list[Curve]:
    """Return the lines and bars that the axes have, in pixels."""
    from matplotlib.collections import LineCollection
    drawn = [(line, line.get_path()) for line in ax.lines if line.get_linestyle() != "None"]
    drawn += [(bars, path) for bars in ax.collections if isinstance(bars, LineCollection) for path in bars.get_paths()]
    return [artist.get_transform().transform_path(path) for artist, path in drawn]


def save(drawing: Drawing, path: str | Path) -> Path:
    """Write a `Drawing` as SVG or PNG, by the ending of `path`, with `alt` as its description. The same input gives the same
    bytes."""
    path, content = Path(path), io.BytesIO()
    if isinstance(drawing.figure, str):
        write_atomically(path, drawing.figure)
        return path
    metadata = {"Description": drawing.alt, "Date": None} if path.suffix == ".svg" else {"Description": drawing.alt}
    with style():
        drawing.figure.savefig(content, format=path.suffix[1:], metadata=metadata)
    if path.suffix == ".svg":
        write_atomically(path, shorter(content.getvalue().decode("utf-8")))
    else:
        with replacing(path) as f: f.write(content.getvalue())
    return path


def shorter(svg: str) -> str:
    """The same picture in fewer bytes: coordinates to a hundredth of a point, no indentation."""
    number = lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip(".")
    short = lambda m: re.sub(r"-?\d+\.\d+", number, re.sub(r"\s+", " ", m[0]))
    return re.sub(r"\n\s+", "\n", re.sub(r' (d|x|y|width|height|transform)="[^"]*"', short, svg))
