"""The best learning rate of every arm, from what the experiments of FILES have measured in figures/results.

Where the package is installed without a checkout these files are not there, and an arm has the rate that is expected
(`arms.py`). So has an arm that was not measured yet.
"""
from functools import cache
from pathlib import Path

import numpy as np

from ..experiment import Results

__all__ = ["RESULTS", "best_rates", "measured_rate"]

RESULTS = Path(__file__).parents[3] / "figures" / "results"            # of a checkout
FILES = {"domain": "rates", "classify": "classify_rates", "quant": "quant_rates", "smollm2": "smollm2_rates"}


def measured_rate(task: str, label: str, expected: float) -> float:
    """Return the best rate of an arm on a task of FILES; the expected one if none was measured."""
    return of_files()[task].get(label, expected)


@cache
def of_files() -> dict[str, dict[str, float]]:
    """Return task → label → best rate, read once: what is measured now is known to the next process."""
    return {task: best_rates(RESULTS, name) for task, name in FILES.items()}


def best_rates(folder: str | Path, name: str) -> dict[str, float]:
    """Return label → the rate of the least loss that an experiment on rates has in `folder`; {} without its file."""
    if not (Path(folder) / f"{name}.json").exists(): return {}
    tried = {label: next(iter(runs.values())) for label, runs in Results.read(folder, name)["runs"].items()}
    return {label: found["rate"][int(np.argmin(found["loss"]))] for label, found in tried.items()}
