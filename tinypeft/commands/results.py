"""Folders of results: each is new and whole, and says in run.json which command made it; and what
is left of a command that is stopped."""
from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..files import check_fields, check_writable, parse_json, read_text, write_atomically

__all__ = ["check_new", "facts_in", "kept", "new_folder", "noted", "record_of", "results_in",
           "write_run"]

FILE = "run.json"
FORMAT = 1
FIELDS = {"format": int, "command": list, "python": str, "numpy": str, "result": dict}
LARGEST = 1e300


# -- writing ---------------------------------------------------------------------------------------
def check_new(args: Namespace) -> None:
    """Raise an error, before any work, unless --out can be made and holds nothing yet."""
    out = args.out
    is_empty = out.is_dir() and not any(out.iterdir())
    if os.path.lexists(out) and not is_empty:
        raise ValueError(f"--out {out} is there already; give another place, or delete it")
    if is_empty and out.samefile(Path()):
        raise ValueError(f"--out {out} is the folder that you are in, which cannot be replaced")
    check_writable(out.absolute().parent)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` once all is in it. An error or a stop leaves nothing.
    """
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = out.absolute().with_name(f".{out.absolute().name}.{os.urandom(8).hex()}.part")
    part.mkdir()
    try:
        yield part
        if out.is_dir():
            out.rmdir()                                  # Windows replaces no folder
        part.rename(out)
    except OSError as e:
        if e.filename:                                   # the name that a user knows
            e.filename = str(e.filename).replace(str(part), str(out))
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_run(args: Namespace, folder: Path, record: dict) -> None:
    """Write run.json: the command, the versions that it ran with, and what came out."""
    content = {"format": FORMAT, "command": args.argv, "python": platform.python_version(),
               "numpy": np.__version__, "result": record}
    text = json.dumps(json.loads(json.dumps(content), parse_constant=str), indent=1)
    write_atomically(folder / FILE, text + "\n")


# -- reading ---------------------------------------------------------------------------------------
def record_of(folder: Path) -> dict:
    """Return the result that run.json in a folder holds; {} if there is none to read."""
    try:
        content = check_fields(parse_json(read_text(folder / FILE)), FIELDS)
    except (OSError, ValueError):
        return {}
    return content["result"] if content["format"] == FORMAT else {}


def facts_in(record: dict) -> list[str]:
    """Return the sentences about the data in an adapter's record, which may be anything."""
    facts = record.get("data")
    return [fact for fact in facts if isinstance(fact, str)] if isinstance(facts, list) else []


def results_in(record: dict) -> dict[str, dict[str, float]]:
    """Return what an adapter's record says of the test split: what was measured → its metrics."""
    from ..interop.card import VALIDATED
    rows = {"the frozen model": record.get("before"), "after training": record.get("after")}
    baselines, validated = record.get("baselines"), record.get("measured")
    if isinstance(baselines, dict):
        rows |= baselines
    if isinstance(validated, dict):
        rows |= {f"{name}{VALIDATED}": row for name, row in validated.items()}
    return {name: numbers_in(row) for name, row in rows.items() if isinstance(row, dict)}


def numbers_in(row: dict) -> dict[str, float]:
    """Return the metrics of a row that are numbers, and of a size that can be printed."""
    return {name: x for name, x in row.items() if type(x) in (int, float) and abs(x) < LARGEST}


# -- stopped ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def noted(kind: type[BaseException], note: Callable[[], str]) -> Iterator[None]:
    """An error of this kind that leaves the block carries a note, which `cli.main` prints."""
    try:
        yield
    except kind as e:
        e.add_note(note())
        raise


def kept(checkpoint: Path | None, adapter: Path | None = None) -> str:
    """Say what is left after an interruption: an adapter, or else a checkpoint, or nothing."""
    if adapter: return f"the adapter is saved in {adapter}"
    if checkpoint and checkpoint.exists(): return f"the same command goes on from {checkpoint}"
    return "nothing was kept" + (
        "" if checkpoint else ": --checkpoint FILE keeps the state of a training that is stopped")
