"""A picture of the graph that `backward` walks: each value, its operation, and its gradient.

    graph(lambda a, b, c: (a * b + c).tanh(), a=2.0, b=-3.0, c=6.9)       # .save(path) writes it

An operation is a circle. The box behind it shows the value, as a number or as an array's shape, and
the gradient under it. Frozen parents and constants are never recorded and therefore not drawn.
`common/show/boxes.py` draws the boxes. The picture is SVG and needs no other program.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..common.hints import Array
from ..common.show.boxes import BOLD, ORANGE, PLAIN, Box, draw
from ..common.show.markup import drawing
from .tensor import Tensor, tape, topological_order

__all__ = ["Graph", "graph"]

LARGEST = 200                                            # operations and leaves in a picture
SYMBOLS = {"add": "+", "mul": "×", "truediv": "÷", "neg": "−", "pow": "^", "matmul": "@",
           "getitem": "[ ]"}


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
        boxes[key] = box_of(node, parents, *known)
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


def box_of(node, parents, name, value, grad):
    """Make the box of a value: its name, its number or shape, its gradient."""
    if isinstance(node, Tensor):
        value = node.data
        grad = node.grad if grad is None else grad
    lines = [(name, BOLD)] if name else []
    lines.append((f"data {written(value, node.shape)}", PLAIN))
    if grad is not None:
        lines.append((f"grad {written(grad, node.shape)}", ORANGE))
    return Box(lines, parents, operation(node) if parents else "")


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
