"""Where finetune saves an adapter, and what protects one that is there.

The adapter is saved before the test, so that a stop or an error there loses nothing. Where --out
holds an adapter, the new one is saved beside it first, and takes its place only if it tests better
than the frozen model; otherwise both stay. --keep does without this.
"""
from __future__ import annotations

import contextlib
import itertools
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .results import noted, results_in, write_run

if TYPE_CHECKING:
    from ..peft import PeftModel
    from ..text.tasks import Task
    from ..training.history import History

__all__ = ["check_folders", "describe", "refused", "save", "save_first"]

OF_A_RUN = "losses.csv", "curve.svg", "confusions.svg", "run.json"     # the third of older runs
WRITTEN = "README.md", "config.json", "tokenizer.json", "tokenizer_config.json", *OF_A_RUN


def holds_adapter(folder: Path) -> bool:
    """Tell if an adapter lies in a folder, in any format."""
    from ..peft.formats import FORMATS
    return any((folder / format.file).exists() for format in FORMATS.values())


def check_folders(args: Namespace) -> None:
    """Raise an error, before any training, if a folder cannot be written to, or if --out holds
    files of another kind that would be replaced."""
    from ..files import check_writable
    for folder in (args.out, args.checkpoint and args.checkpoint.parent):
        if folder: check_writable(folder)
    saves = args.out and not args.find_rate
    if saves and holds_adapter(args.out):
        if not args.keep: check_writable(args.out.parent)
    elif saves and (others := [name for name in WRITTEN if (args.out / name).exists()]):
        raise ValueError(f"--out {args.out} holds {', '.join(others)}, and no adapter; give a "
                         "folder of its own")


def save_first(args: Namespace, tuned: PeftModel, task: Task,
               history: History | None = None) -> Path:
    """Save to --out if no adapter is lost by it, or else to a new folder beside it; say where."""
    from ..text.tasks.saved import FILE
    if args.keep or not holds_adapter(args.out):
        return save(args, tuned, task, args.out, history)
    folder = folder_beside(args.out)
    try:
        return save(args, tuned, task, folder, history)
    except BaseException:
        if not (folder / FILE).exists():                 # the last file of an adapter
            shutil.rmtree(folder)
        raise


def save(args: Namespace, tuned: PeftModel, task: Task, folder: Path,
         history: History | None = None) -> Path:
    """Write the adapter, what prediction needs of the task, the tokenizer, the losses, and a card
    and run.json without results, which come later; return the folder."""
    from ..interop.bpe import write_tokenizer
    tuned.save(folder, args.format, task)
    with noted(OSError, lambda: f"the adapter is saved in {folder}"):
        for name in OF_A_RUN:                            # an older run may have left them
            (folder / name).unlink(missing_ok=True)
        write_tokenizer(folder, tuned.tokenizer)
        if history:
            history.save(folder)
        describe(args, folder, tuned, task, {}, history)
    return folder


def describe(args: Namespace, folder: Path, tuned: PeftModel, task: Task, record: dict,
             history: History | None = None) -> None:
    """Write the model card and run.json, with the results, if there are some yet."""
    from ..interop.card import write_card
    notes = []
    if "verdict" in record:                              # of a probe, on all rows
        notes = [record["verdict"]]
    elif args.quick and record:
        notes = ["Tested on two batches only, without baselines: --quick asks for that."]
    write_card(folder, tuned, args.format, task, history, results_in(record), notes)
    write_run(args, folder, record)


def folder_beside(out: Path) -> Path:
    """Make a folder beside another one: judge.new, or judge.new2 if that is there, and so on."""
    for n in itertools.count(1):
        folder = out.parent / f"{out.resolve().name}.new{n if n > 1 else ''}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def refused(args: Namespace, record: dict) -> bool:
    """Whether the adapter that --out held stays there."""
    return record["saved"] != (args.out and str(args.out))
