"""One style for every picture: colours that colour-blind readers tell apart, labels at the data, sober axes.

The eight colours are Okabe and Ito's (2008). A method has one colour and one marker, everywhere.
"""
from pathlib import Path

__all__ = ["COLOURS", "figure", "label_points", "mark", "save"]

COLOURS = {"black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442",
           "blue": "#0072B2", "vermillion": "#D55E00", "purple": "#CC79A7", "grey": "#8A8A8A"}

MARKS = {                                                # name in METHODS or SCHEMES → (colour, marker)
    "full": ("black", "s"), "lora": ("blue", "o"), "adalora": ("blue", "^"), "dylora": ("blue", "D"),
    "adapter": ("vermillion", "o"), "parallel_adapter": ("vermillion", "^"), "prefix": ("green", "o"),
    "ptuning_v2": ("green", "^"), "prompt": ("purple", "o"), "ptuning": ("purple", "^"),
    "uniform": ("sky", "o"), "nf4": ("blue", "o"), "float": ("orange", "o"), "gguf": ("orange", "^"),
    "gptq": ("vermillion", "o"), "awq": ("green", "o"), "llm_int8": ("purple", "o"), "zeroquant": ("purple", "^"),
    "smoothquant": ("purple", "D"), "w8a8": ("purple", "s"), "fake_quant": ("black", "o"), "llm_qat": ("black", "^"),
    "peqa": ("black", "D"),
}

STYLE = {
    "figure.figsize": (6.4, 3.6), "figure.dpi": 120, "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.5, "lines.markersize": 6,
    "legend.frameon": False, "svg.hashsalt": "tinypeft", "svg.fonttype": "none", "savefig.bbox": "tight",
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
}


def figure(rows=1, columns=1, size=None):
    """(figure, axes) in the house style, drawn without a display."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    with rc_context(STYLE):
        fig = Figure(figsize=size or (STYLE["figure.figsize"][0], STYLE["figure.figsize"][1] * rows), layout="constrained")
        FigureCanvasAgg(fig)
        return fig, fig.subplots(rows, columns)


def mark(name):
    """Keyword arguments for a scatter point of the method or scheme `name`."""
    colour, marker = MARKS.get(name, ("grey", "x"))
    return {"color": COLOURS[colour], "marker": marker}


def label_points(ax, points, size=8):
    """Write each label beside its point, pushed apart vertically until none overlaps. points: (x, y, text, colour)."""
    ax.figure.canvas.draw()
    height = size * ax.figure.dpi / 72 * 1.25
    to_screen, back = ax.transData.transform, ax.transData.inverted().transform
    placed = []
    for x, y, text, colour in sorted(points, key=lambda p: p[1]):
        sx, sy = to_screen((x, y))
        width = len(text) * size * ax.figure.dpi / 72 * 0.62
        right = sx + 8 + width < ax.bbox.x1 + 4
        left_edge = sx + 8 if right else sx - 8 - width
        ly = sy
        while any(abs(ly - py) < height and left_edge < pr and pl < left_edge + width for pl, pr, py in placed):
            ly += height / 4
        placed.append((left_edge, left_edge + width, ly))
        ax.annotate(text, (x, y), xytext=back((sx + 8 if right else sx - 8, ly)), textcoords="data", fontsize=size,
                    color=colour, ha="left" if right else "right", va="center",
                    arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "lw": 0.5} if abs(ly - sy) > height / 2 else None)


def save(fig, path, alt):
    """Write the picture (SVG or PNG by its ending) with `alt` as its description; the same input gives the same bytes."""
    from matplotlib import rc_context
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Description": alt, "Date": None} if path.suffix == ".svg" else {"Description": alt}
    with rc_context(STYLE):
        fig.savefig(path, metadata=metadata)
    return path
