"""Is a picture legible? Its faults as sentences; a test demands that no picture has one."""
from itertools import combinations

from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Text

from tinypeft.study import plot

__all__ = ["faults", "texts"]

PAGE, SMALLEST = 6.4, 9.0                                # inches, and points on a page that wide
DISTINCT = 0.15                                          # least difference of luminance; black to white is 1


def faults(fig):
    """Texts that are cut, overlap, are crossed by a line or leave the picture; losses without a unit; letters below 9 points
    at page width; and series that look alike in grey."""
    found = []
    shown = texts(fig)
    width, height = fig.canvas.get_width_height()
    for text, box in shown:
        size = text.get_fontsize() * PAGE / fig.get_figwidth()
        if size < SMALLEST - 0.01: found.append(f"{text.get_text()!r} has {size:.1f} points, expected {SMALLEST:g}")
        if text.get_text().endswith("…"): found.append(f"{text.get_text()!r} is cut")
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            found.append(f"{text.get_text()!r} leaves the picture")
    for (a, p), (b, q) in combinations(shown, 2):
        across, down = min(p.x1, q.x1) - max(p.x0, q.x0), min(p.y1, q.y1) - max(p.y0, q.y0)
        if across > 1 and down > 0.15 * min(p.height, q.height): found.append(f"{a.get_text()!r} overlaps {b.get_text()!r}")
    for label in (label for ax in fig.axes for label in (ax.get_xlabel(), ax.get_ylabel())):
        if "loss" in label and "nats" not in label: found.append(f"{label!r} has no unit")
    for ax in filter(lambda ax: ax.axison, fig.axes):    # a drawing without axes has lines, but no series
        for text, box in shown:
            if text in ax.texts and any(path.intersects_bbox(box, filled=False) for path in plot.paths(ax)):
                found.append(f"a line crosses {text.get_text()!r}")
            if any(leader.intersects_bbox(box, filled=False) for leader in leaders(ax)):
                found.append(f"the line to a point crosses {text.get_text()!r}")
        for (name, a), (other, b) in combinations(series(ax), 2):
            if a[:2] == b[:2] and abs(a[2] - b[2]) < DISTINCT:
                found.append(f"in grey, {name} looks like {other}: same marker and line, luminances {a[2]:.2f}, {b[2]:.2f}")
    return found


def texts(fig):
    """[(Text, its box in pixels)] for every text that is drawn. Tick labels beyond an axis' limits exist but are not drawn."""
    drawn, draw = {}, Text.draw

    def note(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip(): drawn[id(self)] = self
        return draw(self, renderer, *args, **kwargs)
    Text.draw = note
    try:
        fig.canvas.draw()
    finally:
        Text.draw = draw
    renderer = fig.canvas.get_renderer()
    return [(text, Text.get_window_extent(text, renderer)) for text in drawn.values()]


def leaders(ax):
    """The thin lines from labels to their points, in pixels: a text is as near to its own as can be, and does not touch it."""
    arrows = [text.arrow_patch for text in ax.texts if getattr(text, "arrow_patch", None) is not None]
    return [arrow.get_transform().transform_path(arrow.get_path()) for arrow in arrows]


def series(ax):
    """[(name, (marker, line style, luminance))] of the lines and scatters of an axes, one entry for each look."""
    looks = {}
    for line in ax.lines:
        if isinstance(line, Line2D) and line.get_visible() and line.get_marker() not in ("|", "_"):      # caps of error bars
            style = line.get_linestyle() if line.get_linestyle() == "None" else str(line._dash_pattern)
            looks.setdefault((str(line.get_marker()), style, grey(line.get_color())), f"line {len(looks)}")
    for points in (c for c in ax.collections if isinstance(c, PathCollection)):      # what scatter draws
        if len(points.get_offsets()) and len(points.get_paths()) == 1 and len(points.get_facecolor()) <= 1:
            face = points.get_facecolor() if len(points.get_facecolor()) else points.get_edgecolor()
            if len(face):
                looks.setdefault((points.get_paths()[0].vertices.tobytes(), "points", grey(face[0])), f"points {len(looks)}")
    return [(name, look) for look, name in looks.items()]


def grey(colour):
    """The luminance of a colour in a grey print: 0 is black, 1 is white."""
    r, g, b = to_rgb(colour)
    return 0.299 * r + 0.587 * g + 0.114 * b
