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
    write_atomically(path := RESULTS / f"{name}.json", json.dumps(about | figures, indent=1, ensure_ascii=False) + "\n")
    return path
