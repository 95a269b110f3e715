"""A picture of the graph that `backward` walks: each value, its operation, and its gradient.

    graph(lambda a, b, c: (a * b + c).tanh(), a=2.0, b=-3.0, c=6.9)       # .save(path) writes it

An operation is a circle. The box behind it shows the value, as a number or as an array's shape, and
the gradient under it. Frozen parents and constants are never recorded and therefore not drawn. The
column of a box is its distance from the result; in it, boxes stand as near to their users as they
can. The picture is SVG and needs no other program.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from html import escape
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
    """Draw the graph of a function, `graph(fn, a=2.0, W=array)`, or a result, `graph(loss, a=a)`.

    A function is called with the keyword arguments; arrays and numbers become tensors that require
    gradients. Its result is differentiated (an array in the direction of ones), so that all values
    and gradients are shown. A computed Tensor shows the values of the named tensors and the shapes
    of all others, because a graph holds no values; it can still be walked afterwards.
    Raises ValueError for a result that no gradient reaches, or more than 200 operations and leaves.
    """
    made = []
    is_function = not isinstance(y, Tensor)
    if is_function:
        tensors = {name: x if isinstance(x, Tensor) else Tensor(x, requires_grad=True)
                   for name, x in tensors.items()}
        with tape() as made:
            y = y(**tensors)
    if not y.requires_grad:
        raise ValueError("graph: nothing is recorded, because no input requires a gradient")
    order = topological_order(y.node or y)
    if len(order) > LARGEST:
        raise ValueError(f"graph: {len(order)} operations and leaves, expected at most {LARGEST}")
    shown = [*made, *tensors.values(), y]
    values = {id(x.node or x): x.data for x in shown}
    names = {id(x.node or x): name for name, x in tensors.items()}
    grads = gradients(order, np.ones_like(y.data)) if is_function else {}
    boxes = {}
    for node in order:
        key = id(node)
        parents = [boxes[id(parent[0])] for parent in node.parents if parent]
        known = [table.get(key) for table in (names, values, grads)]
        boxes[key] = Box(node, parents, *known)
    return Graph(list(boxes.values()))


def gradients(order, dy):
    """Return id(node) → ∂L/∂value for every node. Each vjp runs, so that the graph is used up."""
    grads = {id(order[-1]): dy}
    for node in reversed(order):
        if not node.parents:
            continue
        for parent, dx in zip(node.parents, node.vjp(grads[id(node)]), strict=True):
            if parent:
                key = id(parent[0])
                grads[key] = grads.get(key, 0) + np.asarray(dx)
    return grads


class Box:
    """A value as it is drawn: its lines of text, its operation, its parents, its place."""

    def __init__(self, node, parents, name, value, grad):
        self.parents = parents
        self.users = []
        self.bends = defaultdict(dict)
        self.operation = operation(node) if parents else ""
        if isinstance(node, Tensor):
            value = node.data
            grad = node.grad if grad is None else grad
        self.lines = [name] if name else []
        self.lines.append(f"data {written(value, node.shape)}")
        if grad is not None:
            self.lines.append(f"grad {written(grad, node.shape)}")
        self.named = bool(name)
        self.height = LINE * len(self.lines) + 8
        self.width = LETTER * max(map(len, self.lines)) + 14
        self.room = max(24, LETTER * len(self.operation) + 12) + 10 if parents else 0    # in front


def written(array, shape):
    """Write the number if the array holds one, else the shape."""
    if array is not None and array.size == 1:
        return f"{array.item():.4g}"
    return f"({', '.join(map(str, shape))})"


def operation(node):
    """Return the operation's name: that of the function which defines its vjp, or those in it."""
    f = next(filter(None, node.fs), node.vjp)
    name = f.__qualname__.split(".<locals>")[0].rsplit(".", 1)[-1].strip("_")
    return SYMBOLS.get(name, name)


class Graph:
    """A drawn graph. `.svg` is the picture's text, a notebook shows it, `.save(path)` writes it."""

    def __init__(self, boxes: list[Box]):
        place(boxes)
        self.boxes = boxes
        self.svg = draw(boxes)

    def _repr_svg_(self):
        return self.svg

    def _repr_html_(self):
        return drawing(self.svg, repr(self))

    def __repr__(self):
        return f"Graph of {len(self.boxes)} values"

    def save(self, path: str | Path) -> str | Path:
        """Write the SVG file; return its path."""
        Path(path).write_text(self.svg, encoding="utf-8")
        return path


def place(boxes):
    """Set the x, y (left, middle) of each box and the bends of its long edges, user → {x: y}."""
    boxes = boxes[::-1]                                  # users come before what they use
    for box in boxes:
        box.column = max((user.column + 1 for user in box.users), default=0)
        for parent in box.parents:
            parent.users.append(box)
    y = {}                                               # of boxes and bends (box, user, column)
    columns = []
    for column in range(max(box.column for box in boxes) + 1):
        items = []                                       # (wish, height, box or bend)
        for box in boxes:
            if box.column == column:
                items.append((wish(box, box.users, column, y), box.height, box))
            elif box.column > column:
                items += [(wish(box, [user], column, y), 10, (box, user, column))
                          for user in box.users if user.column < column]
        items.sort(key=lambda item: item[0])
        columns.append(items)
        y |= apart(items)
    top = min(y[key] - height / 2 for items in columns for _, height, key in items) - 10
    right = 10.0
    for items in reversed(columns):
        keys = [key for *_, key in items]
        drawn = [key for key in keys if isinstance(key, Box)]
        left = right
        middle = left + max(box.room for box in drawn)
        right = middle + max(box.width for box in drawn)
        for key in keys:
            if isinstance(key, Box):
                key.x = middle
                key.y = y[key] - top
            else:
                box, user, _ = key
                box.bends[user] |= dict.fromkeys((left, right), y[key] - top)
        right += 26


def wish(box, users, column, y):
    """Return where a box would stand best: beside its users, each of which spreads its parents."""
    heights = []
    for user in users:
        bend = box, user, column - 1
        rank = user.parents.index(box) - (len(user.parents) - 1) / 2
        heights.append(y[bend] if bend in y else y[user] + 60 * rank)
    return sum(heights) / len(heights) if heights else 0


def apart(items):
    """Return key → y for ordered items (wish, height, key): overlapping ones make way."""
    stacks = []                                          # (keys, heights, middle)
    for wish, height, key in items:
        stacks.append(([key], [height + 14], wish))
        while len(stacks) > 1 and overlap(*stacks[-2:]):
            below, above = stacks.pop(), stacks.pop()
            stacks.append(joined(above, below))
    y = {}
    for keys, heights, middle in stacks:
        top = middle - sum(heights) / 2
        for key, height in zip(keys, heights, strict=True):
            y[key] = top + height / 2
            top += height
    return y


def overlap(above, below):
    return above[2] + sum(above[1]) / 2 > below[2] - sum(below[1]) / 2


def joined(above, below):
    """Put one stack on another, so that the mean of all wishes is kept."""
    (keys1, heights1, middle1), (keys2, heights2, middle2) = above, below
    n1, n2 = len(keys1), len(keys2)
    wish1 = middle1 + sum(heights2) / 2
    wish2 = middle2 - sum(heights1) / 2
    return keys1 + keys2, heights1 + heights2, (n1 * wish1 + n2 * wish2) / (n1 + n2)


def draw(boxes):
    """Return the SVG text of placed boxes."""
    bends = [y for box in boxes for points in box.bends.values() for y in points.values()]
    width = max(box.x + box.width for box in boxes) + 10
    height = max(bends + [box.y + box.height / 2 for box in boxes]) + 10
    edges = "\n".join(edge for box in boxes for edge in edges_of(box))
    shapes = "\n".join(shape for box in boxes for shape in shapes_of(box))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-size="11" '
            'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" stroke-width="1">\n'
            '<rect width="100%" height="100%" fill="#FFF"/>\n'
            f'<g fill="none" stroke="#777">\n{edges}\n</g>\n{shapes}\n</svg>\n')


def edges_of(box):
    """Give the lines that lead to a box: a curve from each parent, one from the operation."""
    front = box.x - box.room
    for parent in dict.fromkeys(box.parents):
        x1 = parent.x + parent.width
        y1 = parent.y
        path = f"M{x1:.1f} {y1:.1f}"
        for x2, y2 in [*sorted(parent.bends[box].items()), (front, box.y)]:
            middle = (x1 + x2) / 2
            path += f"C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
            x1, y1 = x2, y2
        yield f'<path d="{path}"/>'
    if box.operation:
        yield f'<path d="M{box.x - 10:.1f} {box.y:.1f}H{box.x:.1f}"/>'


def shapes_of(box):
    """Give the shapes of a box: its operation, its frame, its lines of text."""
    x, y = box.x, box.y
    if box.operation:
        left, right = x - box.room, x - 10
        yield rectangle(left, y - 12, right - left, 24, 'rx="12" fill="#FFF"') + text(
            (left + right) / 2, y + 4, box.operation, ' text-anchor="middle"')
    top = y - box.height / 2
    fill = "#FFF" if box.operation else "#DCEBF7"
    yield rectangle(x, top, box.width, box.height, f'rx="3" fill="{fill}"')
    for i, line in enumerate(box.lines):
        style = ' font-weight="bold"' if box.named and i == 0 else ""
        if line.startswith("grad ") and i:
            style = ' fill="#B34700"'
        yield text(x + 7, top + LINE * i + 15, line, style)


def rectangle(x, y, width, height, style):
    return (f'<rect stroke="#333" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" '
            f'{style}/>')


def text(x, y, line, style):
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(line, quote=False)}</text>'
