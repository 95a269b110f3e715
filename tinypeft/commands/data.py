"""What a task is made of on the command line: a task that comes with the package, or own files."""
from __future__ import annotations

import contextlib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.progress import Progress
from .arguments import flag, known, number, show_json

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..text.tasks import Task

__all__ = ["BUILT_IN", "OWN", "built_in", "data_facts", "data_options", "errors_with_flags",
           "kind_of", "own_task", "show_data", "task_of"]

BUILT_IN = "domain", "classify", "summarize"
OWN = {"text": "--text", "labelled": "--csv", "pairs": "--pairs"}        # kind of task → its option
COLUMNS = {"text_column": "csv", "label_column": "csv", "prompt_column": "pairs",
           "answer_column": "pairs"}


def data_options(p: ArgumentParser, default: str) -> None:
    """What a task is made of: one that comes with the package, or files of one's own."""
    one = p.add_mutually_exclusive_group()
    one.add_argument("--task", help=f"one of {', '.join(BUILT_IN)} (default {default})")
    one.add_argument("--text", nargs="+", type=Path, metavar="PATH",
                     help="your own text: files, or folders with Markdown or text files in them")
    one.add_argument("--csv", type=Path, metavar="FILE",
                     help="your own rows with labels: CSV or TSV with a header, or JSONL")
    one.add_argument("--pairs", type=Path, metavar="FILE",
                     help="your own prompts and answers: JSONL, or CSV with a header")
    for column, of in COLUMNS.items():
        what = column.removesuffix("_column")
        p.add_argument(f"--{what}-column", metavar="NAME", help=f"of --{of}: the column of the "
                       f"{what} (default {what if of == 'csv' else 'by its usual names'})")
    p.add_argument("--skip-empty", action="store_true", help="of --csv and --pairs: leave out rows "
                   "with nothing as text, label, prompt or answer, and say how many they are")
    p.add_argument("--encoding", default="utf-8", help="of your files (default utf-8)")
    p.add_argument("--context", type=number(int, least=2), metavar="TOKENS",
                   help="tokens of a row or window of your files, at most")


def kind_of(args: Namespace) -> str | None:
    """Return the kind of one's own data that was given, or None. ValueError for an option that does
    not belong to it."""
    kind = next((kind for kind, option in OWN.items() if vars(args)[option[2:]] is not None), None)
    for name, of in COLUMNS.items():
        if vars(args)[name] is not None and OWN.get(kind) != f"--{of}":
            raise ValueError(f"{flag(name)} needs --{of} FILE")
    if args.skip_empty and kind not in ("labelled", "pairs"):
        raise ValueError("--skip-empty needs --csv FILE or --pairs FILE")
    if kind is None and args.context is not None:
        raise ValueError(f"--context needs {' or '.join(OWN.values())}")
    return kind


def own_task(args: Namespace, model: Decoder, kind: str, form: dict | None = None,
             **options: object) -> Task:
    """Return the task of one's own files. form: of an adapter's task.json, which decides what the
    command line leaves open. options: of the task's function."""
    from ..text import tasks
    form = form or {}
    options |= {"context": args.context or form.get("context"), "encoding": args.encoding}
    if kind == "text":
        with Progress(None, f"reading {' '.join(map(str, args.text))}"):
            return tasks.text(args.text, model, **options)
    columns = [name for name, of in COLUMNS.items() if f"--{of}" == OWN[kind]]
    given = [vars(args)[name] for name in columns]
    if given == [None, None] and len(form.get("columns", ())) == 2: given = form["columns"]
    options |= {name.removesuffix("_column"): column
                for name, column in zip(columns, given, strict=True) if column is not None}
    options["skip_empty"] = args.skip_empty
    file = vars(args)[OWN[kind][2:]]
    with Progress(None, f"reading {file}"), errors_with_flags(*map(flag, columns)):
        if kind == "labelled":
            return tasks.labelled(file, model, classes=form.get("classes"), **options)
        return tasks.pairs(file, model, chat=form["chat"] or False if form else None, **options)


@contextlib.contextmanager
def errors_with_flags(*columns: str) -> Iterator[None]:
    """Let an error name the options of the command that choose columns. columns: these options."""
    try:
        yield
    except ValueError as e:
        message = str(e).replace("which of them to read", "which by " + " and ".join(columns))
        raise ValueError(message) from e


def data_facts(task: Task) -> list[str]:
    """Return what there is of a task's data and what needs a look, a sentence each."""
    return [task.describe(), *task.notes]


def show_data(args: Namespace, task: Task) -> bool:
    """Print the facts about a task's data before anything is run. Return whether that is all."""
    dry_run = vars(args).get("dry_run", False)
    first, *more = data_facts(task)
    if args.json and dry_run:
        show_json({"task": task.name, "data": [first, *more],
                   "splits": {split: len(task.data(split)) for split in task.splits}})
    elif not args.json:
        print("\n  ".join([f"{task.name}: {first}", *more]), flush=True)
    return dry_run


def built_in(name: str, model: Decoder) -> Task:
    """Return a task that comes with the package, by its name."""
    from ..text import tasks
    known([name], BUILT_IN, "task")
    with Progress(None, f"reading the task {name}"):
        return getattr(tasks, name)(model)


def task_of(args: Namespace, model: Decoder, form: dict | None = None) -> Task:
    """Return the task of one's own files if there are some, in a form as in `own_task`, or the one
    that --task names, or domain."""
    own = kind_of(args)
    return own_task(args, model, own, form) if own else built_in(args.task or "domain", model)
