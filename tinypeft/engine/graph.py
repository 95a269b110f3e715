"""A picture of the graph that `backward` walks: each value, its operation, and its gradient.

    graph(lambda a, b, c: (a * b + c).tanh(), a=2.0, b=-3.0, c=6.9)       # .save(path) writes it

An operation is a circle. The box behind it shows the value, as a number or as an array's shape, and
the gradient under it. Frozen parents and constants are never recorded and therefore not drawn. The
column of a box is its distance from the result; in it, boxes stand as near to their users as they
can. The picture is SVG and needs no other program.
"""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..common.hints import Array
from ..common.markup import drawing
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
    of all others, because a graph holds no values; it can still be walked afterwards.
    Raises ValueError for a result that no gradient reaches, or more than 200 operations and leaves.
    """
    made, owned = [y, *tensors.values()], not isinstance(y, Tensor)
    if owned:
        leaf = lambda x: x if isinstance(x, Tensor) else Tensor(x, requires_grad=True)
        tensors = {name: leaf(x) for name, x in tensors.items()}
        with tape() as made: y = y(**tensors)
        made = [*made, *tensors.values(), y]
    if not y.requires_grad:
        raise ValueError("graph: nothing is recorded, because no input requires a gradient")
    order = topological_order(y.node or y)
    if len(order) > LARGEST:
        raise ValueError(f"graph: {len(order)} operations and leaves, expected at most {LARGEST}")
    values = {id(x.node or x): x.data for x in made}
    names = {id(x.node or x): name for name, x in tensors.items()}
    grads = gradients(order, np.ones_like(y.data)) if owned else {}
    boxes = {}
    for node in order:
        known = [table.get(id(node)) for table in (names, values, grads)]
        boxes[id(node)] = Box(node, [boxes[id(p[0])] for p in node.parents if p], *known)
    return Graph(list(boxes.values()))


def gradients(order, dy):
    """id(node) → ∂L/∂value for every node. Each vjp runs, so that the graph is used up."""
    grads = {id(order[-1]): dy}
    for node in reversed(order):
        given = node.vjp(grads[id(node)]) if node.parents else ()
        for parent, dx in zip(node.parents, given, strict=True):
            if parent: grads[id(parent[0])] = grads.get(id(parent[0]), 0) + dx
    return grads


class Box:
    """A value as it is drawn: its lines of text, its operation, its parents, its place."""

    def __init__(self, node, parents, name, value, grad):
        self.parents, self.users, self.bends = parents, [], defaultdict(dict)
        self.operation = operation(node) if parents else ""
        if isinstance(node, Tensor): value, grad = node.data, node.grad if grad is None else grad
        shape = f"({', '.join(map(str, node.shape))})"
        show = lambda a: f"{a.item():.4g}" if a is not None and a.size == 1 else shape
        self.lines = [f"data {show(value)}"] + ([] if grad is None else [f"grad {show(grad)}"])
        if name: self.lines.insert(0, name)
        self.named, self.height = bool(name), LINE * len(self.lines) + 8
        self.width = LETTER * max(map(len, self.lines)) + 14
        self.room = max(24, LETTER * len(self.operation) + 12) + 10 if parents else 0    # in front


def operation(node):
    """The operation's name: that of the function which recorded it."""
    fs = [c.cell_contents for c in node.vjp.__closure__ or () if isinstance(c.cell_contents, list)]
    f = next(filter(None, fs[0])) if node.vjp.__qualname__.startswith("Tensor.op.") else node.vjp
    name = f.__qualname__.split(".<locals>")[0].rsplit(".", 1)[-1].strip("_")
    return SYMBOLS.get(name, name)


class Graph:
    """A drawn graph. `.svg` is the picture's text, a notebook shows it, `.save(path)` writes it."""

    def __init__(self, boxes: list[Box]):
        place(boxes)
        self.boxes, self.svg = boxes, draw(boxes)

    def _repr_svg_(self): return self.svg
    def _repr_html_(self): return drawing(self.svg, repr(self))
    def __repr__(self): return f"Graph of {len(self.boxes)} values"

    def save(self, path: str | Path) -> str | Path:
        """Write the SVG file; return its path."""
        Path(path).write_text(self.svg, encoding="utf-8")
        return path


def place(boxes):
    """Set the x, y (left, middle) of each box and the bends of its long edges, user → {x: y}."""
    boxes = boxes[::-1]                                  # users come before what they use
    for box in boxes:
        box.column = max((u.column + 1 for u in box.users), default=0)
        for parent in box.parents: parent.users.append(box)
    y, columns = {}, []                                  # y of boxes and bends (box, user, column)

    def wish(item):
        """Where an item would stand best: beside its users, each of which spreads its parents."""
        box, users = (item, item.users) if isinstance(item, Box) else (item[0], [item[1]])
        spread = lambda u: 60 * (u.parents.index(box) - (len(u.parents) - 1) / 2)
        pulls = [y.get((box, u, len(columns) - 1), y[u] + spread(u)) for u in users]
        return sum(pulls) / len(pulls) if pulls else 0
    for c in range(max(box.column for box in boxes) + 1):
        items = [(wish(box), box.height, box) for box in boxes if box.column == c]
        items += [(wish((box, u)), 10, (box, u, c)) for box in boxes if box.column > c
                  for u in box.users if u.column < c]
        columns.append(sorted(items, key=lambda item: item[0]))
        y |= apart(columns[c])
    top = min(y[key] - height / 2 for items in columns for _, height, key in items) - 10
    right = 10.0
    for items in reversed(columns):
        drawn = [key for *_, key in items if isinstance(key, Box)]
        left, middle = right, right + max(box.room for box in drawn)
        right = middle + max(box.width for box in drawn)
        for *_, key in items:
            if isinstance(key, Box): key.x, key.y = middle, y[key] - top
            else: key[0].bends[key[1]] |= dict.fromkeys((left, right), y[key] - top)
        right += 26


def apart(items):
    """key → y for ordered items (wish, height, key): the wish, but overlapping items give way."""
    runs = []                                            # stacks: [keys, heights, middle]
    half = lambda run: sum(run[1]) / 2
    for wish, height, key in items:
        runs.append([[key], [height + 14], wish])
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


def draw(boxes):
    """The SVG text of placed boxes."""
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    escape = lambda text: re.sub("[&<>]", lambda m: entities[m[0]], text)
    bends = [y for box in boxes for points in box.bends.values() for y in points.values()]
    width = max(box.x + box.width for box in boxes) + 10
    height = max(bends + [box.y + box.height / 2 for box in boxes]) + 10
    edges, shapes = [], []
    for box in boxes:
        x, y, top = box.x, box.y, box.y - box.height / 2
        for parent in dict.fromkeys(box.parents):
            x1, y1 = parent.x + parent.width, parent.y
            path = f"M{x1:.1f} {y1:.1f}"
            for x2, y2 in [*sorted(parent.bends[box].items()), (x - box.room, y)]:
                middle = (x1 + x2) / 2
                path += f"C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
                x1, y1 = x2, y2
            edges.append(f'<path d="{path}"/>')
        if box.operation:
            left, right = x - box.room, x - 10
            edges.append(f'<path d="M{right:.1f} {y:.1f}H{x:.1f}"/>')
            shapes.append(f'<rect x="{left:.1f}" y="{y - 12:.1f}" width="{right - left:.1f}" '
                          f'height="24" rx="12" fill="#FFF"/><text x="{(left + right) / 2:.1f}" '
                          f'y="{y + 4:.1f}" text-anchor="middle">{escape(box.operation)}</text>')
        fill = "#FFF" if box.operation else "#DCEBF7"
        shapes.append(f'<rect x="{x:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
                      f'height="{box.height}" rx="3" fill="{fill}"/>')
        for i, line in enumerate(box.lines):
            style = ' font-weight="bold"' if box.named and i == 0 else ""
            if line.startswith("grad ") and i: style = ' fill="#B34700"'
            shapes.append(f'<text x="{x + 7:.1f}" y="{top + LINE * i + 15:.1f}"{style}>'
                          f'{escape(line)}</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-size="11" '
            'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" stroke-width="1">\n'
            '<rect width="100%" height="100%" fill="#FFF"/>\n<g fill="none" stroke="#777">\n'
            + "\n".join(edges) + "\n</g>\n"
            + "\n".join(s.replace("<rect ", '<rect stroke="#333" ') for s in shapes) + "\n</svg>\n")
