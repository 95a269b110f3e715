"""A slider: one picture for each value of a parameter, and a handle that chooses among them.

    slider("bits", {2: (x, y2), 3: (x, y3), 4: (x, y4)})                    # one line a value
    slider("bits", {b: {"weights": (x, y), "rounded": (x, yb[b])} for b in yb}, captions={…})
    slider("rank", {k: pictures[k] for k in pictures})                      # arrays (rows, columns)

All pictures are computed beforehand and stored with the notebook, so that it moves without a
kernel, without a network and in an exported page, too. The pictures share their axes, so that what
moves is the parameter's doing. Where no script may run, the picture in the middle is shown.
"""
from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from typing import Any

import numpy as np

from ..common.show.markup import drawing
from .png import palette_png
from .schematics.sheet import Sheet

__all__ = ["Slider", "power", "slider"]

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7"     # Okabe and Ito's, as in all pictures
BEHIND = "#A9A9A9"
WIDTH, HEIGHT = 600, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 586, 48, 254              # the axes' rectangle

SCRIPT = """<script>(() => {
const page = %s, told = %s, start = () => document.querySelectorAll("[data-slider='%s']").forEach(
box => {
  box.removeAttribute("data-slider"); box.innerHTML = page;
  const input = box.querySelector("input"), frames = box.querySelectorAll("g.frame"),
        value = box.querySelector("output"), words = box.querySelector("p");
  input.oninput = () => {
    frames.forEach((frame, i) => { frame.style.display = i == input.value ? "" : "none" });
    [value.textContent, words.textContent] = told[input.value];
    input.setAttribute("aria-valuetext", told[input.value].join(": "));
  };
  input.oninput();
});
start(); setTimeout(start);
})()</script>"""


def slider(label: str, frames: Mapping[Any, Any], *, captions: Mapping[Any, str] | None = None,
           behind: Mapping[str, tuple] | None = None, xlabel: str = "", ylabel: str = "",
           xlog: bool = False, ylog: bool = False, equal: bool = False,
           dots: bool = False) -> Slider:
    """A slider over the values of one parameter; as a cell's last line it is displayed.

    label: the parameter's name. frames: value → what is drawn there: (x, y), a line; {name: (x,
    y)}, several lines; an array (rows, columns), a picture in greys, black for the least number of
    all pictures; or the text of an SVG of 600 × 300. captions: value → a sentence. behind: name →
    line, drawn in grey behind every frame. equal: a unit is as long on both axes. dots: points that
    no line joins. Lines keep only the points that can be seen. ValueError if there are no frames.
    """
    if not frames: raise ValueError("slider: give at least one frame, {value: (x, y)}")
    return Slider(label, dict(frames), dict(captions or {}), dict(behind or {}), xlabel, ylabel,
                  xlog, ylog, equal, dots)


class Slider:
    """A parameter's values, each with its picture. A notebook shows it; `html` is its text."""

    def __init__(self, label: str, frames: dict, captions: dict, behind: dict, xlabel: str,
                 ylabel: str, xlog: bool, ylog: bool, equal: bool = False, dots: bool = False):
        self.label, self.words = label, [captions.get(value, "") for value in frames]
        self.values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in frames]
        self.start = len(frames) // 2
        self.back, self.drawn = _draw(list(frames.values()), behind, xlabel, ylabel, xlog, ylog,
                                      equal, _dots if dots else _lines)

    @property
    def html(self) -> str:
        start = self.start
        moving = self._svg("".join(f"<g class='frame'>{frame}</g>" for frame in self.drawn))
        look = f"role='img' aria-label='{escape(self.label)}' style='max-width:100%;height:auto'"
        moving = moving.replace("<svg ", f"<svg {look} ", 1)
        page = (f"{moving}<label style='display:flex;gap:.6em;max-width:{WIDTH}px' "
                f"data-lm-suppress-shortcuts='true'>{escape(self.label)} <input type='range' "
                f"min='0' max='{len(self.drawn) - 1}' value='{start}' style='flex:1'>"
                "<output></output></label><p></p>")
        told = list(zip(self.values, self.words, strict=True))
        name = sha256(repr((page, told)).encode()).hexdigest()[:12]
        still = drawing(self._svg(self.drawn[start]), self.line(start))
        code = [json.dumps(part, ensure_ascii=False).replace("</", "<\\/") for part in (page, told)]
        return (f"<div data-slider='{name}'>{still}<p>{escape(self.line(start))}</p></div>\n"
                + SCRIPT % (*code, name))

    def line(self, i: int) -> str:
        """The value and the caption of frame i."""
        return f"{self.label} = {self.values[i]}" + (f": {self.words[i]}" if self.words[i] else "")

    def _svg(self, frames):
        sheet = Sheet(WIDTH, HEIGHT)
        sheet.parts = [*self.back, frames]
        return sheet.svg.replace('"', "'")                          # in JSON, " takes two bytes

    def _repr_html_(self): return self.html
    def __repr__(self): return "\n".join(map(self.line, range(len(self.values))))


# -- drawing -------------------------------------------------------------------------------------
def _draw(frames, behind, xlabel, ylabel, xlog, ylog, equal, drawn):
    """(parts that all frames share, the parts of each frame)."""
    if isinstance(frames[0], str): return [], frames
    if isinstance(frames[0], np.ndarray) and frames[0].ndim == 2:
        low, high = min(f.min() for f in frames), max(f.max() for f in frames)
        return [], [_image(f, low, high) for f in frames]
    frames = [f if isinstance(f, Mapping) else {"": f} for f in frames]
    across = _Axis(_all(frames, behind, 0), LEFT, RIGHT, xlog)
    up = _Axis(_all(frames, behind, 1), BOTTOM, TOP, ylog)
    if equal:
        unit = max(across.unit, up.unit)
        across.widen(unit)
        up.widen(unit)
    sheet = Sheet(WIDTH, HEIGHT)
    for axis, label in ((across, xlabel), (up, ylabel)): _axis(sheet, axis, label, axis is up)
    names = list(dict.fromkeys(name for frame in frames for name in frame))
    look = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    back = drawn(behind, dict.fromkeys(behind, BEHIND), across, up)
    place = LEFT
    for name, colour in {**dict.fromkeys(behind, BEHIND), **look}.items():
        if name: sheet.key(place, 12, [(colour, name)], 0)
        place += max(130, 40 + 7 * len(name))
    return [*sheet.parts, *back], ["".join(drawn(f, look, across, up)) for f in frames]


def _all(frames, behind, axis):
    return np.concatenate([np.ravel(np.asarray(line[axis], float)) for frame in (*frames, behind)
                           for line in frame.values()])


class _Axis:
    """Numbers → pixels from `start` to `end`, the least and the largest number at the ends."""

    def __init__(self, numbers, start, end, log):
        self.log, self.start, self.end = log, start, end
        numbers = numbers[np.isfinite(numbers) & ((numbers > 0) | (not log))]
        a = np.log10(numbers) if log else numbers
        low, high = (a.min(), a.max()) if a.size else (0.0, 1.0)
        self.low, self.high = (low, high) if high > low else (low - 0.5, high + 0.5)

    @property
    def unit(self):
        """How much of the numbers' range one pixel shows."""
        return (self.high - self.low) / abs(self.end - self.start)

    def widen(self, unit):
        """Let one pixel show `unit`, with the same number in the middle."""
        middle, half = (self.low + self.high) / 2, unit * abs(self.end - self.start) / 2
        self.low, self.high = middle - half, middle + half

    def __call__(self, numbers):
        with np.errstate(divide="ignore", invalid="ignore"):
            a = np.log10(numbers) if self.log else np.asarray(numbers, float)
        return self.start + (a - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self):
        """(pixel, text) at four to eight round numbers, or at powers of ten."""
        span = self.high - self.low
        if self.log and span >= 1:
            powers = np.arange(np.ceil(self.low - 1e-9), self.high + 1e-9, max(1, round(span / 6)))
            return [(float(self(10.0 ** p)), power(int(p))) for p in powers]
        low, high = (10 ** self.low, 10 ** self.high) if self.log else (self.low, self.high)
        ten = 10.0 ** np.floor(np.log10((high - low) / 5))
        step = ten * min((1, 2, 2.5, 5, 10), key=lambda f: abs(f * ten - (high - low) / 5))
        numbers = np.arange(np.ceil(low / step - 1e-9), high / step + 1e-9) * step
        return [(float(self(n)), f"{round(n, 12) + 0.0:,.10g}".replace("-", "−")) for n in numbers]


def power(p: int) -> str:
    """10 ** p as text: 0.01 … 100, else 10⁻³."""
    if -2 <= p <= 2: return f"{10.0 ** p:g}"
    return "10" + str(p).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _axis(sheet, axis, label, upright):
    if upright:
        for y, text in axis.ticks():
            sheet.line((LEFT, y), (RIGHT, y), colour="#E6E6E6")
            sheet.text(LEFT - 6, y, text, "end", size=11)
        sheet.text(8, 32, label, "start", size=11)
        return
    sheet.line((LEFT, BOTTOM), (RIGHT, BOTTOM))
    for x, text in axis.ticks():
        sheet.line((x, BOTTOM), (x, BOTTOM + 4))
        sheet.text(x, BOTTOM + 14, text, size=11)
    sheet.text((LEFT + RIGHT) / 2, HEIGHT - 12, label, size=11)


def _lines(lines, look, across, up):
    """SVG polylines of name → (x, y), in the colours `look`. The first is thicker, so that it is
    seen under a line that coincides with it."""
    drawn = []
    for name, (x, y) in lines.items():
        width = 1.5 if drawn or len(lines) == 1 else 3
        points = np.stack([across(np.ravel(x)), up(np.ravel(y))], 1)
        points = _visible(points[np.isfinite(points).all(1)])
        path = " ".join(f"{a:.1f},{b:.1f}".replace(".0", "") for a, b in points)
        drawn.append(f"<polyline fill='none' stroke='{look[name]}' stroke-width='{width}' "
                     f"points='{path}'/>")
    return drawn


def _dots(groups, look, across, up):
    """SVG paths of name → (x, y), a dot for each point. Grey ones are larger, so that they are seen
    under others in the same place."""
    drawn = []
    for name, (x, y) in groups.items():
        places = " ".join(f"M{a:.1f},{b:.1f}h0" for a, b in zip(across(x), up(y), strict=True))
        size = 9 if look[name] == BEHIND else 5
        drawn.append(f"<path fill='none' stroke='{look[name]}' stroke-width='{size}' "
                     f"stroke-linecap='round' d='{places}'/>")
    return drawn


def _visible(points, tolerance=0.4):
    """The points (n, 2) of a line without those that lie within `tolerance` pixels of the line
    through the others (Ramer, Douglas and Peucker)."""
    keep, spans = np.zeros(len(points), bool), [(0, len(points) - 1)]
    keep[[0, -1]] = True
    while spans:
        i, j = spans.pop()
        if j - i < 2: continue
        along, between = points[j] - points[i], points[i + 1:j] - points[i]
        share = np.clip(between @ along / max(along @ along, 1e-9), 0, 1)
        far = np.hypot(*(between - share[:, None] * along).T)
        k = int(far.argmax())
        if far[k] > tolerance:
            keep[i + 1 + k] = True
            spans += [(i, i + 1 + k), (i + 1 + k, j)]
    return points[keep]


def _image(picture, low, high):
    """A picture in 32 greys, as large as the sheet allows."""
    grey = np.rint((picture - low) / max(high - low, 1e-30) * 31) * (255 / 31)
    png = palette_png(np.repeat(grey.astype(np.uint8)[..., None], 3, 2))
    scale = min((WIDTH - 20) / picture.shape[1], (HEIGHT - 20) / picture.shape[0])
    w, h = scale * picture.shape[1], scale * picture.shape[0]
    return (f"<image x='{(WIDTH - w) / 2:.1f}' y='{(HEIGHT - h) / 2:.1f}' width='{w:.1f}' "
            f"height='{h:.1f}' style='image-rendering:pixelated' "
            f"href='data:image/png;base64,{b64encode(png).decode()}'/>")
