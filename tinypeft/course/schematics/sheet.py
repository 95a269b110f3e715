"""A sheet of paper for schematics: boxes, cells, arrows and text, written as SVG.

    sheet = Sheet(300, 120)
    sheet.box(20, 20, 80, 80, "W₀", FROZEN)
    sheet.arrow((110, 60), (180, 60))
    sheet.box(180, 45, 80, 30, "x W₀ᵀ", DATA)
    sheet.svg                                    # the text of the SVG

One unit is one pixel, and y grows downwards. A colour says what a thing is: grey is frozen, orange
is trained, blue is computed. Text stays text, so that it can be found and read aloud. The sheet has
a light background of its own, so that it can be read on a dark page.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from math import hypot
from typing import Any

__all__ = ["DATA", "FROZEN", "INK", "PALE", "SOFT", "TRAINED", "WARM", "WHITE", "Sheet"]

WHITE, PALE, FROZEN, TRAINED, DATA = "#FFF", "#F5F5F5", "#E4E4E4", "#F7C88A", "#DCEBF7"
INK, SOFT, WARM = "#222", "#777", "#B34700"      # lines and letters: strong, weak, of a gradient
FONT = "DejaVu Sans,Verdana,Arial,sans-serif"


class Sheet:
    """A drawing of `width` × `height` pixels. `svg` is its text."""

    def __init__(self, width: float, height: float):
        self.width, self.height, self.parts = width, height, []

    @property
    def svg(self) -> str:
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
                f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" '
                f'font-family="{FONT}" font-size="12" text-anchor="middle" fill="{INK}">\n'
                f'<rect width="{self.width}" height="{self.height}" fill="#FFF"/>\n'
                + "\n".join(self.parts) + "\n</svg>\n")

    # -- text ------------------------------------------------------------------------------------
    def text(self, x: float, y: float, words: str, side: str = "middle", size: float = 12,
             colour: str = INK, bold: bool = False) -> None:
        """Words whose first line's middle is at height y. side: x is their start, middle or end.
        Lines are separated by a line feed."""
        look = {"text-anchor": None if side == "middle" else side,
                "fill": None if colour == INK else colour,
                "font-size": None if size == 12 else size, "font-weight": "bold" if bold else None}
        for i, line in enumerate(words.split("\n")):
            place = {"x": x, "y": y + 0.36 * size + 1.3 * size * i}
            self.parts.append(_tag("text", place | look, escape(line, quote=False)))

    # -- shapes ----------------------------------------------------------------------------------
    def box(self, x: float, y: float, w: float, h: float, words: str = "", fill: str = WHITE,
            edge: str | None = SOFT, round: float = 0, **text: Any) -> None:
        """A rectangle with words in its middle. x, y: its corner at the top left."""
        self.parts.append(_tag("rect", {"x": x, "y": y, "width": w, "height": h, "fill": fill,
                                        "stroke": edge, "rx": round or None}))
        if words:
            size = text.get("size", 12)
            middle = y + h / 2 - 0.65 * size * words.count("\n")
            self.text(x + w / 2, middle, words, **text)

    def cells(self, x: float, y: float, rows: Sequence[Sequence[str]], w: float, h: float,
              fills: Sequence[Sequence[str]] | None = None, edge: str | None = SOFT,
              **text: Any) -> None:
        """A grid of cells of w × h with words in them. fills: the colours, in the same order."""
        drawn = {}                                       # colour → its cells
        for i, row in enumerate(fills or [[WHITE] * len(row) for row in rows]):
            for j, fill in enumerate(row):
                corner = f"M{_short(x + j * w)} {_short(y + i * h)}"
                drawn[fill] = f"{drawn.get(fill, '')}{corner}h{_short(w)}v{_short(h)}h{_short(-w)}z"
        for fill, d in drawn.items():
            self.parts.append(_tag("path", {"d": d, "fill": fill, "stroke": edge}))
        for i, row in enumerate(rows):
            for j, words in enumerate(row):
                if words: self.text(x + (j + 0.5) * w, y + (i + 0.5) * h, words, **text)

    def polygon(self, points: Iterable[Sequence[float]], fill: str = FROZEN,
                edge: str | None = SOFT) -> None:
        """A closed shape through the points."""
        self.parts.append(_tag("path", {"d": _path(points) + "z", "fill": fill, "stroke": edge}))

    # -- lines -----------------------------------------------------------------------------------
    def line(self, *points: Sequence[float], colour: str = SOFT, width: float = 1) -> None:
        """A line through the points (x, y)."""
        self.parts.append(_tag("path", {"d": _path(points), "fill": "none", "stroke": colour,
                                        "stroke-width": None if width == 1 else width}))

    def arrow(self, *points: Sequence[float], colour: str = SOFT, width: float = 1) -> None:
        """A line through the points (x, y), with a head at the last."""
        (x0, y0), (x1, y1) = points[-2:]
        length = hypot(x1 - x0, y1 - y0)
        u, v = (x1 - x0) / length, (y1 - y0) / length
        back = x1 - 7 * u, y1 - 7 * v
        self.line(*points[:-1], back, colour=colour, width=width)
        head = [(x1, y1), (back[0] - 3.5 * v, back[1] + 3.5 * u),
                (back[0] + 3.5 * v, back[1] - 3.5 * u)]
        self.polygon(head, colour, edge=None)

    def key(self, x: float, y: float, entries: Iterable[tuple[str, str]], step: float) -> None:
        """What the colours mean: (fill, words) side by side, `step` apart."""
        for i, (fill, words) in enumerate(entries):
            self.box(x + i * step, y - 6, 12, 12, fill=fill)
            self.text(x + i * step + 18, y, words, "start", size=11)


def _tag(name, attributes, words=None):
    """One element of SVG. Attributes that are None are left out, and numbers are written short."""
    written = "".join(f' {key}="{_short(value)}"' for key, value in attributes.items()
                      if value is not None)
    return f"<{name}{written}/>" if words is None else f"<{name}{written}>{words}</{name}>"


def _short(value):
    return value if isinstance(value, str) else re.sub(r"\.0$", "", f"{value:.1f}")


def _path(points):
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
