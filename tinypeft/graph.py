"""A picture of the graph that `backward` walks: each value, its operation, and its gradient.

    graph(lambda a, b, c: (a * b + c).tanh(), a=2.0, b=-3.0, c=6.9)       # .save(path) writes it

An operation is a circle. The box behind it shows the value, as a number or as an array's shape, and
the gradient under it. Frozen parents and constants are not drawn, because they are never recorded.
The column of a box is its distance from the result. Within a column, boxes stand as near to their
users as they can. The picture is SVG and needs no other program.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .hints import Array
from .markup import drawing
from .tensor import Tensor, tape, topological_order

__all__ = ["Graph", "graph"]

LARGEST = 200                                            # operations and leaves in a picture
SYMBOLS = {"add": "+", "mul": "×", "truediv": "÷", "neg": "−", "pow": "^", "matmul": "@",
           "getitem": "[ ]"}
LETTER, LINE = 6.63, 15                                  # width of a letter of 11 px, line height


def graph(y: Callable[..., Tensor] | Tensor, /, **tensors: Tensor | Array | float) -> Graph:
    """The graph of a function, `graph(fn, a=2.0, W=array)`, or of a result, `graph(loss, a=a)`.

    A function is called with the keyword arguments; arrays and numbers become tensors that require
    gradients. Its result is differentiated (an array in the direction of ones), so that all values
    and gradients are shown. A computed Tensor shows the values of the named tensors and the shapes
    of all others, because a graph holds no values. It can still be walked afterwards.
    Raises ValueError for a result that no gradient reaches, or a graph of over 200 operations.
    """
    made, owned = [y, *tensors.values()], not isinstance(y, Tensor)
    if owned:
        tensors = {name: x if isinstance(x, Tensor) else Tensor(x, requires_grad=True)
                   for name, x in tensors.items()}
        with tape() as made: y = y(**tensors)
        made = [*made, *tensors.values(), y]
    if not y.requires_grad:
        raise ValueError("graph: nothing is recorded, because no tensor that this was computed "
                         "from requires a gradient")
    order = topological_order(y.node or y)
    if len(order) > LARGEST:
        raise ValueError(f"graph: {len(order)} operations and leaves are too many for a picture; "
                         f"expected at most {LARGEST}")
    values = {id(x.node or x): x.data for x in made}
    names = {id(x.node or x): name for name, x in tensors.items()}
    grads = gradients(order, np.ones_like(y.data)) if owned else {}
    known = lambda node: (table.get(id(node)) for table in (names, values, grads))
    return Graph([Box(node, *known(node)) for node in order])


def gradients(order, dy):
    """id(node) → ∂L/∂value for every node. Each vjp runs, so that the graph is used up."""
    grads = {id(order[-1]): dy}
    for node in reversed(order):
        given = node.vjp(grads[id(node)]) if node.parents else ()
        for parent, dx in zip(node.parents, given, strict=True):
            if parent: grads[id(parent[0])] = grads.get(id(parent[0]), 0) + dx
    return grads


class Box:
    """A value as it is drawn: its lines of text, its operation, and the nodes it was made from."""

    def __init__(self, node, name, value, grad):
        self.node, self.parents = node, [parent[0] for parent in node.parents if parent]
        self.operation = operation(node) if self.parents else None
        if value is None and isinstance(node, Tensor): value = node.data
        if grad is None and isinstance(node, Tensor): grad = node.grad
        self.lines = [f"data {show(value, node.shape)}"]
        if grad is not None: self.lines.append(f"grad {show(grad, node.shape)}")
        if name: self.lines.insert(0, name)
        self.named, self.height = bool(name), LINE * len(self.lines) + 8
        self.width = LETTER * max(map(len, self.lines)) + 14


def show(array, shape):
    """A single number itself; any other array by its shape."""
    if array is not None and array.size == 1: return f"{array.item():.4g}"
    return f"({', '.join(map(str, shape))})"


def operation(node):
    """The operation's name: that of the function which recorded it."""
    fs = [c.cell_contents for c in node.vjp.__closure__ or () if isinstance(c.cell_contents, list)]
    f = next(filter(None, fs[0])) if node.vjp.__qualname__.startswith("Tensor.op.") else node.vjp
    name = f.__qualname__.split(".<locals>")[0].rsplit(".", 1)[-1].strip("_")
    return SYMBOLS.get(name, name)


class Graph:
    """A drawn graph. `.svg` is the picture's text, a notebook shows it, `.save(path)` writes it."""

    def __init__(self, boxes):
        self.boxes = {id(box.node): box for box in boxes}
        self.svg = draw(list(self.boxes.values()), self.place(boxes))

    def _repr_svg_(self): return self.svg
    def _repr_html_(self): return drawing(self.svg, repr(self))
    def __repr__(self): return f"Graph of {len(self.boxes)} values"

    def save(self, path: str | Path) -> str | Path:
        """Write the SVG file; returns its path."""
        Path(path).write_text(self.svg, encoding="utf-8")
        return path

    def place(self, boxes):
        """id(node) → (x, y) of its left middle; (id(node), id(user)) → points of a long edge."""
        column, users = {}, {id(box.node): [] for box in boxes}
        for box in reversed(boxes):                      # users come before what they use
            me = id(box.node)
            column[me] = max((column[id(u.node)] + 1 for u in users[me]), default=0)
            for x in box.parents: users[id(x)].append(box)
        slots = {}                                       # column → [(key, height)], in order
        y, ways = {}, {}
        for c in range(max(column.values()) + 1):
            here = [(me, self.boxes[me].height) for me in column if column[me] == c]
            here += [((me, id(u.node), c), 10) for me in column if column[me] > c
                     for u in users[me] if column[id(u.node)] < c]
            wish = {}
            for key, _ in here:
                me, last = (key, None) if isinstance(key, int) else key[:2]
                below = [u for u in users[me] if last in (None, id(u.node))]
                pulls = []                               # where its users are, spread by position
                for u in below:
                    place = [id(p) for p in u.parents].index(me) - (len(u.parents) - 1) / 2
                    pulls.append(y.get((me, id(u.node), c - 1), y[id(u.node)] + 60 * place))
                wish[key] = sum(pulls) / len(pulls) if pulls else 0
            slots[c] = sorted(here, key=lambda item: wish[item[0]])  # noqa: B023
            y |= apart([(key, height + 14, wish[key]) for key, height in slots[c]])
        span, right = {}, 10.0                           # column → x of operations, boxes, end
        for c in sorted(slots, reverse=True):
            drawn = [self.boxes[key] for key, _ in slots[c] if isinstance(key, int)]
            middle = right + max(map(circle, drawn))
            span[c] = right, middle, middle + max(box.width for box in drawn)
            right = span[c][2] + 26
        top = min(y[key] - height / 2 for c in slots for key, height in slots[c]) - 10
        at = {key: (span[c][1], y[key] - top) for c in slots for key, _ in slots[c]}
        for me in column:
            for u in users[me]:                          # straight across the columns between them
                between = range(column[me] - 1, column[id(u.node)], -1)
                ways[me, id(u.node)] = sorted((span[c][end], at[me, id(u.node), c][1])
                                              for end in (0, 2) for c in between)
        return at, ways


def circle(box):
    """The width that an operation takes in front of its box."""
    return 0 if box.operation is None else max(24, LETTER * len(box.operation) + 12) + 10


def apart(items):
    """key → y for ordered items (key, height, wish): the wish, but overlapping items give way."""
    runs = []                                            # [keys, heights, middle] of stacks
    for key, height, wish in items:
        runs.append([[key], [height], wish])
        half = lambda run: sum(run[1]) / 2
        while len(runs) > 1 and runs[-2][2] + half(runs[-2]) > runs[-1][2] - half(runs[-1]):
            (k2, h2, m2), (k1, h1, m1) = runs.pop(), runs.pop()
            n1, n2, s1, s2 = len(k1), len(k2), sum(h1), sum(h2)
            runs.append([k1 + k2, h1 + h2, (n1 * (m1 + s2 / 2) + n2 * (m2 - s1 / 2)) / (n1 + n2)])
    y = {}
    for keys, heights, middle in runs:
        top = middle - sum(heights) / 2
        for key, height in zip(keys, heights, strict=True):
            y[key], top = top + height / 2, top + height
    return y


def draw(boxes, placed):
    """The SVG text of placed boxes."""
    at, ways = placed
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    escape = lambda text: re.sub("[&<>]", lambda m: entities[m[0]], text)
    width = max(at[id(b.node)][0] + b.width for b in boxes) + 10
    bottoms = [at[id(b.node)][1] + b.height / 2 for b in boxes]
    height = max(bottoms + [y for way in ways.values() for _, y in way]) + 10
    edges, shapes = [], []
    for box in boxes:
        x, y = at[id(box.node)]
        for parent in {id(p): p for p in box.parents}.values():
            (px, py), p = at[id(parent)], next(b for b in boxes if b.node is parent)
            points = [(px + p.width, py), *ways[id(parent), id(box.node)], (x - circle(box), y)]
            path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
            for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
                middle = (x1 + x2) / 2
                path += f"C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
            edges.append(f'<path d="{path}"/>')
        if box.operation:
            left, right = x - circle(box), x - 10
            edges.append(f'<path d="M{right:.1f} {y:.1f}H{x:.1f}"/>')
            shapes.append(f'<rect x="{left:.1f}" y="{y - 12:.1f}" width="{right - left:.1f}" '
                          f'height="24" rx="12" fill="#FFF"/><text x="{(left + right) / 2:.1f}" '
                          f'y="{y + 4:.1f}" text-anchor="middle">{escape(box.operation)}</text>')
        fill = "#FFF" if box.operation else "#DCEBF7"
        shapes.append(f'<rect x="{x:.1f}" y="{y - box.height / 2:.1f}" width="{box.width:.1f}" '
                      f'height="{box.height}" rx="3" fill="{fill}"/>')
        for i, line in enumerate(box.lines):
            weight = ' font-weight="bold"' if box.named and i == 0 else ""
            colour = ' fill="#B34700"' if line.startswith("grad ") and i else ""
            top = y - box.height / 2 + LINE * i + 15
            shapes.append(f'<text x="{x + 7:.1f}" y="{top:.1f}"{weight}{colour}>'
                          f'{escape(line)}</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-size="11" '
            'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" stroke-width="1">\n'
            '<rect width="100%" height="100%" fill="#FFF"/>\n<g fill="none" stroke="#777">\n'
            + "\n".join(edges) + "\n</g>\n"
            + "\n".join(s.replace("<rect ", '<rect stroke="#333" ') for s in shapes) + "\n</svg>\n")
