"""The command classify: the class of each text, by an adapter or by labels that say what they mean.

`finetune --out` writes task.json beside the adapter: the classes' names, and the columns of the
table that it was trained on.
"""
from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.hints import Array
from ..common.wording import counted, in_one_line, shortened, table_cell
from ..files import check_writable, write_atomically
from .arguments import (
    adapter_option,
    chosen_model,
    folder_of_task,
    learned_task,
    leave_out,
    loaded,
    show_json,
)
from .data import errors_with_flags
from .scores import accuracy_text, class_lines

if TYPE_CHECKING:
    from ..text.tasks.own_files import Table

__all__ = ["add_commands"]

ADDED = "predicted", "probability"                       # columns that classify --out writes


def add_commands(command: Callable) -> None:
    """Add the command; see `cli.parser`."""
    p = command("classify", run_classify, "name the class of each text, by an adapter, or by "
                "labels that say what they mean", takes=("model", "json"))
    p.add_argument("texts", nargs="*", metavar="TEXT", help="- reads one text from each line of "
                   "standard input")
    p.add_argument("--csv", type=Path, metavar="FILE", help="the texts of a table: CSV or TSV with "
                   "a header, or JSONL")
    p.add_argument("--text-column", metavar="NAME",
                   help="of --csv: the column of the text (default: as the adapter's, or text)")
    p.add_argument("--label-column", metavar="NAME",
                   help="of --csv: the column of the right label, which gives an accuracy "
                        "(default: as the adapter's, or label, if there is one)")
    p.add_argument("--skip-empty", action="store_true",
                   help="of --csv: leave out rows without a text, and say how many they are")
    p.add_argument("--encoding", default="utf-8", help="of --csv (default utf-8)")
    p.add_argument("--out", type=Path, metavar="FILE", help="of --csv: a new CSV file with the "
                   "table's rows, and beside each the label and its probability")
    adapter_option(p)
    p.add_argument("--labels", metavar="A,B,…", help="no adapter: the label that the model itself "
                   "finds likeliest after the text")
    p.add_argument("--template", help="of --labels: where text and label stand, such as "
                   r"'Review: {text}\nSentiment: {label}'; words that suit your labels are best "
                   r"(default 'Text: {text}\nType of text: {label}')")


def run_classify(args: Namespace) -> None:
    table, texts, expected = texts_of(args)
    if args.out:
        check_place(args.out, table)
    if not texts or not all(text.strip() for text in texts):
        raise ValueError("classify: a text is empty; give texts, or - and a text on each line of "
                         "standard input")
    folder = folder_of_task(args)
    if args.adapter and args.labels or not (folder or args.labels):
        raise ValueError("classify: give --adapter FOLDER, which finetune --out wrote, or --labels "
                         "A,B without an adapter")
    if args.template and not args.labels:
        raise ValueError("--template needs --labels A,B")
    if args.labels:
        print(chosen_model(args), file=sys.stderr)
    model, tuned = loaded(args)
    if args.labels:
        from ..text.tasks.labels import TEMPLATE, Labels
        template = (args.template or TEMPLATE).replace(r"\n", "\n")
        task = Labels([name.strip() for name in args.labels.split(",")], model, template)
    else:
        task = learned_task(args, model, needed=True)
        if task.form["kind"] != "labelled":
            raise ValueError(f"{folder} holds an adapter for {task.name}, which has no classes; "
                             "use generate")
    labels, p = task.predict(tuned, texts, probabilities=True)
    if args.json:
        show_json([{"text": text, "label": label,
                    "probabilities": dict(zip(task.classes, map(float, row), strict=True))}
                   for text, label, row in zip(texts, labels, p, strict=True)])
    elif not args.out:
        for text, label, row in zip(texts, labels, p, strict=True):
            name = shortened(in_one_line(label))
            print(f"{name}\t{row.max():.3f}\t{in_one_line(text)}")
    if args.out:
        write_labels(args.out, table, labels, p.max(1))
        print(f"{counted(len(texts), 'row')} with {' and '.join(ADDED)} in {args.out}",
              file=sys.stderr)
    if expected:
        sys.stdout.flush()
        print(agreement(task.classes, labels, expected), file=sys.stderr)
        if args.csv and hashlib.sha256(args.csv.read_bytes()).hexdigest() in task.sha256.values():
            print(f"the adapter learned from rows of {args.csv.name}, so this accuracy is too "
                  "high; finetune measured it on rows that were held out", file=sys.stderr)


def check_place(out: Path, table: Table | None) -> None:
    """Raise an error, before any work, unless `out` can be a new file with the rows of a table."""
    if table is None:
        raise ValueError("classify: --out needs --csv FILE, whose rows it writes")
    if os.path.lexists(out):
        raise ValueError(f"--out {out} is there already; give another place, or delete it")
    if taken := [name for name in ADDED if name in table.columns]:
        raise ValueError(f"{table.path} has a column {taken[0]!r} already, which --out adds; "
                         "rename it")
    table.chosen(table.columns)                          # each name is there once
    check_writable(out.absolute().parent)


def write_labels(out: Path, table: Table, labels: Sequence[str], probabilities: Array) -> None:
    """Write the rows of a table as CSV, as they are, with the label of each and its probability."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.columns, *ADDED])
    for (_, row), label, p in zip(table.rows, labels, probabilities, strict=True):
        values = [row.get(name) for name in table.columns]
        writer.writerow([*values, table_cell(label), f"{p:.4f}"])
    write_atomically(out, text.getvalue())


def agreement(classes: Sequence[str], labels: Sequence[str], expected: Sequence[str]) -> str:
    """Say how many labels are those that a table expects. Rows without a label do not count."""
    from ..text.tasks.logistic import confusions
    places = [[classes.index(label) for label in pair]
              for pair in zip(expected, labels, strict=True) if pair[0] in classes]
    others = {label: None for label in expected if label and label not in classes}
    lines = []
    if places:
        counts = confusions(*np.transpose(places), len(classes))
        accuracy = float(counts.trace() / counts.sum())
        lines = [f"accuracy {accuracy_text(accuracy, len(places))} by the table's labels",
                 *class_lines(counts, classes)]
    if others:
        lines.append("not counted: rows with labels that are no classes here: "
                     + shortened(in_one_line(", ".join(others)), 80))
    return "\n".join(lines)


def texts_of(args: Namespace) -> tuple[Table | None, list[str], list[str]]:
    """Return the table, if there is one; the texts to classify: those given, of standard input, or
    of the table's column; and the labels that the table expects, if it has any."""
    from ..text.tasks.own_files import read_table
    if args.csv is None:
        leave_out(args, ("text_column", "label_column", "skip_empty"),
                  "classify: without --csv FILE there is no table")
        texts = [text for given in args.texts for text in (lines() if given == "-" else [given])]
        return None, texts, []
    if args.texts:
        raise ValueError("classify: give texts or --csv FILE, not both")
    learned = learned_columns(args)
    texts = [args.text_column] if args.text_column else [learned[0], "text"]
    table = read_table(args.csv, args.encoding)
    with errors_with_flags("--text-column"):
        text, = table.chosen(*dict.fromkeys((name,) for name in texts))
    if args.skip_empty:
        table = without_empty(table, text)
    there = [name for name in (learned[1], "label") if name in table.columns]
    label = args.label_column or next(iter(there), None)
    if label is None:
        return table, table.texts(text), []
    with errors_with_flags("--label-column"):
        table.chosen((label,))
    return table, table.texts(text), table.texts(label, is_optional=True)


def without_empty(table: Table, text: str) -> Table:
    """Return the table without the rows that have no text, and say on stderr which these are."""
    from ..text.tasks.facts import affected
    empty = table.empty([text])
    if empty:
        print(affected(table, empty, f"left out with nothing in {text!r}"), file=sys.stderr)
    return table.without(empty)


def learned_columns(args: Namespace) -> list[str]:
    """Return the columns of text and label that the adapter was trained on, as far as it knows."""
    from ..text.tasks.saved import read_content
    folder, content = folder_of_task(args), {}
    if folder:
        with contextlib.suppress(OSError, ValueError):   # the task's loading says what is wrong
            content = read_content(folder)
    columns = content.get("columns", ()) if content.get("kind") == "labelled" else ()
    return columns if len(columns) == 2 else ["text", "label"]


def lines() -> list[str]:
    """Return the lines of standard input that are not blank."""
    from ..text.tasks.own_files import decoded
    if sys.stdin is None: raise ValueError("there is no standard input to read")
    text = decoded(sys.stdin.buffer.read(), "standard input", "utf-8")
    found = [line for line in text.split("\n") if line.strip()]
    header = [name.strip(' "') for name in found[0].split(",")] if found else []
    if "text" in header and len(header) > 1:
        raise ValueError(f"standard input begins with {found[0][:80]!r}, the header of a table; "
                         "give it as a file, by --csv FILE")
    return found
