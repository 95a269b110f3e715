"""What the makers of tables share: a Markdown table, a table as text, and a file of results."""
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["aligned", "read", "table"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * lines[0].count(" | ") + "---|", *lines[1:]])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines of text: the first column stands left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, numbers, strict=True)]


def read(results: Path, name: str) -> dict:
    """The content of `results`/name.json."""
    return json.loads((results / f"{name}.json").read_text("utf-8"))
