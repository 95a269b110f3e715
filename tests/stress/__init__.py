"""Long searches for faults: one module is one search, and pytest runs a short form of each.

    python -m tests.stress.NAME                  search, and print what was found
    python -m tests.stress.NAME --record         write the figures to results/NAME.json as well

`tests/README.md` quotes the recorded figures.
"""
import datetime
import json
import platform
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.machine import machine
from tinypeft.files import write_atomically

__all__ = ["RESULTS", "record"]

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: dict) -> Path:
    """Write the figures of one search to results/`name`.json, with the command, the day and the machine."""
    about = {"command": " ".join(["python -m tests.stress." + name, *sys.argv[1:]]), "machine": machine(),
             "date": datetime.date.today().isoformat(), "python": platform.python_version(), "numpy": np.__version__}
    write_atomically(path := RESULTS / f"{name}.json", as_text(about | figures))
    return path


def as_text(figures: dict) -> str:
    """JSON with an indent of 1, where each row of a table, a list of lists, takes one line."""
    parts = []
    for key, value in figures.items():
        text = json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n ")
        if isinstance(value, list) and value and all(isinstance(row, list | tuple) for row in value):
            text = "[\n  " + ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n ]"
        parts.append(f" {json.dumps(key, ensure_ascii=False)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
