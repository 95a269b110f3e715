"""What the makers of tables and of words share: tables, numbers in a sentence, and a file of results."""
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .experiment import Results

__all__ = ["aligned", "beside", "listed", "pm", "read", "table"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * lines[0].count(" | ") + "---|", *lines[1:]])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines of text: the first column stands left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, numbers, strict=True)]


def beside(results: Results, condition: str, reference: str, metric: str = "loss", decimals: int = 3, times: float = 1) -> str:
    """"mean (difference ± half width)", the difference to `reference` paired over seeds and documents. A mean carries no
    interval: seeds share their batches and texts, so that conditions can be compared by differences only."""
    plain = f"{times * results.mean(condition, metric):.{decimals}f}"
    if condition == reference: return plain
    mean, half = results.difference(condition, reference, metric)
    return f"{plain} ({times * mean:+.{decimals}f} ± {times * half:.{decimals}f})"


def listed(values: Mapping[str, float], form: str = ".3f", unit: str = "") -> str:
    """Names with their numbers: "LoRA 2.634, full 2.366". form: as for `format`."""
    return ", ".join(f"{name} {value:{form}}{unit}" for name, value in values.items())


def pm(mean: float, half: float, form: str = ".3f") -> str:
    """"mean ± half of the 95 % interval"."""
    return f"{mean:{form}} ± {half:.3f}"


def read(results: Path, name: str) -> dict:
    """The content of `results`/name.json."""
    return json.loads((results / f"{name}.json").read_text("utf-8"))
