"""Facts about somebody's rows, a sentence each: what there is, and what needs a look.

What needs a look begins with "look:" and names a row or a file: repeated rows, a text with two
labels, class names that are nearly equal, words such as NaN that stand for nothing, rows that are
cut, files of a folder that are not read.
"""
from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from ...common.wording import brief, counted
from .own_files import Table

__all__ = ["affected", "class_counts", "contradictions", "lengths", "looks", "missing_words",
           "near_names", "unread"]

MISSING = "nan", "none", "null", "nil", "n/a", "na", "#n/a", "<na>", "undefined"
SHOWN = 12                                                   # classes, or files, that are listed


def looks(found: Iterable[str | None], checked: str) -> tuple[str, ...]:
    """Return the sentences that were found, or one that says what was looked for in vain."""
    sentences = tuple(f"look: {sentence}" for sentence in found if sentence)
    return sentences or (f"nothing needs a look: no {checked}",)


def class_counts(labels: Sequence[str]) -> str:
    """Return how many rows each class has, the largest classes first."""
    counts = Counter(labels).most_common()
    listed = ", ".join(f"{brief(name)[1:-1]} {n:,}" for name, n in counts[:SHOWN])
    if rest := counts[SHOWN:]:
        listed += f" and {counted(len(rest), 'smaller class')}, the smallest {rest[-1][1]:,}"
    return f"rows of each class: {listed}"


def lengths(n_tokens: Sequence[int], unit: str, context: int | None = None) -> str:
    """Return the median and the largest number of tokens, and how many of them are read."""
    read = f"; {context:,} are read" if context else ""
    return (f"a {unit} has {median(n_tokens):,.0f} tokens in the median, {max(n_tokens):,} at most"
            f"{read}")


def unread(left_out: Mapping[str, Sequence[str]], noun: str) -> list[str]:
    """Name what was not read, a sentence for each reason. left_out: reason → names. noun: "file",
    or "text" in memory."""
    sentences = []
    for reason, names in left_out.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        listed = ", ".join(brief(name)[1:-1] for name in names[:SHOWN])
        sentences.append(f"{counted(len(names), noun)} left out ({reason}): {listed}{more}")
    return sentences


def affected(table: Table, places: Sequence[int], what: str) -> str | None:
    """Name the rows at these places. what: what happens to them."""
    if not places:
        return None
    lines = table.places([table.rows[i][0] for i in places])
    return f"{counted(len(places), 'row')} {what}: {lines}"


def contradictions(table: Table, rows: Sequence[tuple[str, str]], what: str) -> str | None:
    """Name a text that has several labels, or a prompt that has several answers. rows: (text,
    label). what: the word for a label."""
    noun = "prompt" if what == "answer" else "text"
    lines = defaultdict(dict)                                # text → label → its first line
    for (line, _), (text, label) in zip(table.rows, rows, strict=True):
        lines[" ".join(text.lower().split())].setdefault(label, line)
    several = {text: found for text, found in lines.items() if len(found) > 1}
    if not several:
        return None
    text, found = next(iter(several.items()))
    (a, line_a), (b, line_b), *_ = found.items()
    return (f"{counted(len(several), noun)} with more than one {what}, such as {brief(text)} in "
            f"{table.unit}s {line_a} ({brief(a)}) and {line_b} ({brief(b)}); keep one {what} of "
            "each")


def near_names(table: Table, labels: Sequence[str]) -> str | None:
    """Name the classes whose names differ in case, spaces or punctuation only."""
    counts, alike = Counter(labels), defaultdict(list)
    for name in counts:
        alike[_simplified(name)].append(name)
    groups = [sorted(names, key=counts.get, reverse=True) for names in alike.values()
              if len(names) > 1]
    if not groups:
        return None
    first = {label: line for (line, _), label in [*zip(table.rows, labels, strict=True)][::-1]}
    listed = "; ".join(", ".join(f"{brief(name)} ({counted(counts[name], 'row')}, first in "
                                    f"{table.unit} {first[name]})" for name in names)
                       for names in groups)
    return f"classes with nearly the same name: {listed}"


def _simplified(name):
    """Return a class's name without case, outer punctuation, and differences of inner spaces."""
    name = unicodedata.normalize("NFKC", name).casefold().strip(" .,;:!?'\"") or name
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", name)


def missing_words(table: Table, columns: dict[str, Sequence[str]]) -> str | None:
    """Name the rows where a column holds a word that stands for nothing, such as NaN."""
    words, places = Counter(), defaultdict(list)
    for column, values in columns.items():
        for i, value in enumerate(values):
            if value.lower() in MISSING:
                places[column].append(i)
                words[value] += 1
    if not words:
        return None
    where = " and ".join(f"{column!r} in {table.places([table.rows[i][0] for i in found])}"
                         for column, found in places.items())
    return f"{', '.join(words)} as a value of {where}; it is taken as a word"
