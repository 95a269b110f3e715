"""The commands that use an adapter: evaluate, classify; `writing.py` has generate and chat.

`finetune --out` writes task.json beside the adapter. It says what the adapter does: the classes'
names, the form of the prompts, and how one's own files were split.
"""
from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.hints import Array
from ..common.wording import counted, in_one_line, shortened, table_cell
from ..files import check_writable, write_atomically
from .arguments import chosen_model, model_of, show_json
from .data import (
    OWN,
    built_in,
    data_facts,
    data_options,
    errors_with_flags,
    kind_of,
    own_task,
    show_data,
)
from .scores import (
    accuracy_text,
    class_lines,
    exact_answers,
    exact_lines,
    interval_of,
    metric_text,
    n_measured,
)
from .sizes import rows_in_test

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..text.tasks import Task
    from ..text.tasks.own_files import Table

__all__ = ["add_commands", "adapter_option", "compared", "folder_of_task"]

ADDED = "predicted", "probability"                       # columns that classify --out writes
SAME = 0.01                  # nats: a smaller change of a loss is not worth a word


def add_commands(command: Callable) -> None:
    """Add the commands to the command line. command: (name, run, about, takes, options) → a parser
    for its options."""
    p = command("evaluate", run_evaluate, "measure an adapter, or the model alone, on a task",
                takes=("model", "json", "quick"))
    adapter_option(p)
    data_options(p, "the adapter's own, or domain")
    p.add_argument("--exact", action="store_true", help="of prompts with answers: also write the "
                   "answers, the likeliest ones, and count those that are exactly right")

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


def adapter_option(p: ArgumentParser, **options: bool) -> None:
    p.add_argument("--adapter", type=Path, metavar="FOLDER", **options,
                   help="saved by finetune --out or PEFT; with an adapter that was trained on "
                        "pairs, TEXT is a prompt" if p.prog.endswith("generate") else
                        "saved by finetune --out")


def compared(before: dict | None, after: dict, baselines: dict | None = None,
             n: int | None = None) -> str:
    """Lines of metrics: before and after, and what each baseline reaches. n: the rows that an
    accuracy is of."""
    width = max(15, *(len(name) + 2 for name in baselines or [""]))
    shown = lambda x: "" if x is None else f"{x:.4f} → "
    lines = [f"  {name:<{width}}{shown(before and before[name])}{metric_text(name, value, n)}"
             for name, value in after.items()]
    for name, metrics in (baselines or {}).items():
        listed = (f"{metric} {metric_text(metric, x, n)}" for metric, x in metrics.items())
        lines.append(f"  {name:<{width}}" + ", ".join(listed))
    return "\n".join(lines)


def run_evaluate(args: Namespace) -> None:
    from ..peft import load_adapter
    from ..text import tasks
    from ..text.tasks.saved import FILE
    from ..training.evaluation import evaluate
    model, own, saved = model_of(args), kind_of(args), None
    folder = folder_of_task(args)
    if own == "labelled" and not folder:
        raise ValueError("--csv needs --adapter: the model alone has no classes")
    tuned = load_adapter(model, args.adapter) if args.adapter else model
    if folder and ((folder / FILE).exists() or own == "labelled"):
        saved = tasks.load_task(folder, model)
    task, rows = measured_on(args, model, own, saved)
    if args.exact and not hasattr(task, "chat"):
        raise ValueError("--exact needs prompts with answers: --pairs FILE")
    show_data(args, task)
    most = 2 if args.quick else None
    measured = lambda label: evaluate(tuned, task, "test", rows_in_test(tuned, task), most,
                                      label=label)
    before, after = None, measured("testing the adapter" if args.adapter else "testing")
    if args.adapter and not hasattr(task, "classes"):
        with tuned.disabled(): before = measured("testing the base alone")
    n = n_measured(task, args.quick)
    if not args.json:
        quick = f"two batches (--quick) of {rows.removeprefix('all of ')}"
        show_losses(before, after, quick if args.quick else rows, n)
    exact = exact_answers(tuned, task, args.quick) if args.exact else None
    record = {"task": task.name, "data": data_facts(task), "on": rows, "rows": n,
              "interval": interval_of(after, n), "before": before, "after": after, "exact": exact,
              "adapter": args.adapter and str(args.adapter)}
    if args.json: return show_json(record)
    if exact:
        print(exact_lines(exact))
    elif hasattr(task, "chat"):
        print("--exact counts the answers that are exactly right")


def show_losses(before: dict | None, after: dict, rows: str, n: int | None) -> None:
    """Print what was measured at once: the answers that --exact writes take longer."""
    sides = ", the base alone → with the adapter" if before else ""
    print(f"on {rows}{sides}:\n{compared(before, after, n=n)}", flush=True)
    if before:
        print(what_changed(before["loss"], after["loss"]), flush=True)


def what_changed(before: float, after: float) -> str:
    """Say what an adapter did to the loss of some rows, in a sentence."""
    change = after - before
    if abs(change) < SAME:
        return f"the adapter changes the loss here by less than {SAME}"
    if change < 0:
        return f"the adapter lowers the loss here by {-change:.2f} nats a token"
    return (f"the adapter raises the loss here by {change:.2f} nats a token: the model forgot some "
            "of this, or learned another form for it; `generate` with the beginning of a line of "
            "it, with and without --adapter, shows which")


def folder_of_task(args: Namespace) -> Path | None:
    """Return the folder whose task.json says what was learned: of the adapter, or of a model that
    an adapter was merged into."""
    from ..text.tasks.saved import FILE
    if args.adapter:
        return args.adapter
    return args.model if args.model and (args.model / FILE).exists() else None


def measured_on(args: Namespace, model: Decoder, own: str | None,
                saved: Task | None) -> tuple[Task, str]:
    """Return the task that `evaluate` measures, and which of its rows, in words. saved: the
    adapter's.

    Of a file that the adapter was trained on, which its SHA-256 tells, the test split is measured;
    any other file is measured whole. An adapter for pairs is measured on text, too, and one for
    text on pairs: that says what it forgot."""
    form, split = saved.form if saved else {}, "the test split"
    was_own = "held_out" in form
    if own and was_own and own != form["kind"]:
        if "labelled" not in (own, form["kind"]):
            return own_task(args, model, own, held_out=(0, 1)), "all of it"
        raise ValueError(f"the adapter was trained on {OWN[form['kind']]}, not on {OWN[own]}")
    if not own and was_own and not args.task:
        raise ValueError(f"the adapter was trained on {saved.name}, a file of your own; give it, "
                         f"or another, by {OWN[form['kind']]}")
    if not own:
        name = args.task or (saved.name if saved else "domain")
        return built_in(name, model), split
    if not was_own: return own_task(args, model, own, form), split
    shorter = {"context": None} if own == "text" else {}     # windows, where a text is short
    task = own_task(args, model, own, form | shorter, held_out=(0, 1))
    if set(task.sha256.values()) <= set(saved.sha256.values()):
        made = {"held_out": form["held_out"], "seed": form["seed"]}
        if form["held_out"][1] == 0:
            raise ValueError(f"the adapter learned from all rows of {task.name}, so none is left "
                             "to measure it on; give other rows by "
                             f"{OWN[own]} (finetune probe said what cross-validation measured)")
        return own_task(args, model, own, form, **made), split
    changed = ", though it has changed since training, which may have read some of it"
    same_name = not task.sha256.keys().isdisjoint(saved.sha256)
    return task, "all of it" + changed * same_name


def run_classify(args: Namespace) -> None:
    from ..peft import load_adapter
    from ..text import tasks
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
        from ..text.tasks.labels import TEMPLATE, Labels
        print(chosen_model(args), file=sys.stderr)
        model = model_of(args)
        template = (args.template or TEMPLATE).replace(r"\n", "\n")
        names = [name.strip() for name in args.labels.split(",")]
        task = Labels(names, model, template)
        labels, p = task.predict(model, texts, probabilities=True)
    else:
        model = model_of(args)
        tuned = load_adapter(model, args.adapter) if args.adapter else model
        task = tasks.load_task(folder, model)
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
        for given, option in (args.label_column, "label-column"), (args.skip_empty, "skip-empty"):
            if given: raise ValueError(f"--{option} needs --csv FILE")
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
