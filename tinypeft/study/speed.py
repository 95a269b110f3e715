"""The tables of tests/benchmarks/README.md, from the records that `python -m tests.benchmarks` files.

A file of records has one run per make of processor, the newest first: {"runs": [run, …]}. A run says where, when and with
what it was measured, and has

    tables      name → row → column → number or words
    settings    name of a table → what all of its rows share

The page has a table of every row and column. A run of another commit than the newest is marked as older.
"""
from __future__ import annotations

import functools
import re
from pathlib import Path

from .markdown import read, table

__all__ = ["SECTIONS", "make", "runs"]


def make(machine: str) -> str:
    """The maker of a processor, which decides how fast each library multiplies: "AMD EPYC, 2 cores" → "AMD"."""
    return re.split(r"[\s(,]", machine)[0]


def runs(results: Path, name: str) -> list[dict]:
    """The runs in results/benchmark_NAME.json, the newest first."""
    return read(results, f"benchmark_{name}")["runs"]


def section(results: Path, file: str, name: str) -> str:
    """The table `name` of results/benchmark_FILE.json: its settings, a line for each row and run, and where it was measured.

    Where several makes of processor have the table, a column says which one a line is of.
    """
    found = [run for run in runs(results, file) if name in run["tables"]]
    tables = [run["tables"][name] for run in found]
    rows = dict.fromkeys(row for of_run in tables for row in of_run)
    columns = dict.fromkeys(column for of_run in tables for cells in of_run.values() for column in cells)
    several = len(found) > 1
    lines = [(row, *[processor(run, found[0])] * several, *(said(run["tables"][name][row].get(c)) for c in columns))
             for row in rows for run in found if row in run["tables"][name]]
    settings = "; ".join(f"{setting}: {said(value)}" for setting, value in found[0]["settings"].get(name, {}).items())
    return "\n\n".join([*[f"{settings}."] * bool(settings), table(("what", *["processor"] * several, *columns), lines),
                        *(origin(run, found[0]) for run in found)])


def said(value: float | str | None) -> str:
    """A cell: a number in about three digits, a count in all, words as they are, and a dash for what was not measured."""
    if value is None: return "–"
    if isinstance(value, str): return value
    digits = 0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def processor(run: dict, newest: dict) -> str:
    """The make of a run's processor, marked if the run is of an older commit than the newest."""
    return make(run["machine"]) + ("" if run["commit"] == newest["commit"] else " (older)")


def origin(run: dict, newest: dict) -> str:
    """What ran, when and on which machine."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    older = "" if run["commit"] == newest["commit"] else " An older version."
    return (f"{run['machine']}: `{run['command']}`, medians over {run['rounds']} rounds, {run['date']}, commit "
            f"{run['commit']}; {versions}.{older}")


FILES = {"lora": "step", "long_texts": "smollm2"}        # table → its file, where that has another name
TABLES = ("step", "lora", "operations", "tricks", "methods", "generation", "smollm2", "long_texts", "gpt2", "scaling", "cores",
          "quant")
SECTIONS = {name: functools.partial(section, file=FILES.get(name, name), name=name) for name in TABLES}
