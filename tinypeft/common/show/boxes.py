"""Boxes of text in columns, joined by curves, as the text of an SVG.

A box has parents, from which curves lead to it, and perhaps the name of an operation in a circle
before it. The column of a box is its distance from the last; in it, boxes stand as near to their
users as they can.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

__all__ = ["BOLD", "ORANGE", "PLAIN", "Box", "draw"]

PLAIN, BOLD, ORANGE = "", ' font-weight="bold"', ' fill="#B34700"'     # styles of a line
LETTER, LINE = 6.63, 15                                  # width of a letter of 11 px, line height


class Box:
    """Lines of text, each with its style, in a frame; the boxes that lead to it; its place."""

    def __init__(self, lines: list[tuple[str, str]], parents: Sequence[Box], operation: str = ""):
        self.lines = lines
        self.parents = parents
        self.operation = operation
        self.users = []
        self.bends = defaultdict(dict)
        self.height = LINE * len(lines) + 8
        self.width = LETTER * max(len(line) for line, _ in lines) + 14
        self.room = max(24, LETTER * len(operation) + 12) + 10 if operation else 0      # in front


def draw(boxes: list[Box]) -> str:
    """Place the boxes, each of which comes after its parents; return the SVG text."""
    place(boxes)
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
    for i, (line, style) in enumerate(box.lines):
        yield text(x + 7, top + LINE * i + 15, line, style)


def rectangle(x, y, width, height, style):
    return (f'<rect stroke="#333" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" '
            f'{style}/>')


def text(x, y, line, style):
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(line, quote=False)}</text>'
