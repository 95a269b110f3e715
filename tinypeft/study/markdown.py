"""What the makers of generated pages share: a Markdown table, and a file of results."""
import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["read", "table"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * lines[0].count(" | ") + "---|", *lines[1:]])


def read(results: Path, name: str) -> dict:
    """The content of `results`/name.json."""
    return json.loads((results / f"{name}.json").read_text("utf-8"))
