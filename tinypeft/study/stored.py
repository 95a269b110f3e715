"""The stored results of an experiment, as pictures, pages and verdicts read them.

It stands above `experiments/`, because a verdict asks them what would be measured today.
"""
import json
from pathlib import Path

import numpy as np

from .conditions import changed
from .experiment import Results
from .experiments import EXPERIMENTS
from .measuring import lacking

__all__ = ["load", "load_whole"]


def load(folder: str | Path, name: str) -> Results:
    """Read `folder`/name.json. Raises FileNotFoundError, which names the command that measures it."""
    return Results(Results.read(folder, name), texts(Path(folder)))


def load_whole(folder: str | Path, name: str) -> Results:
    """Like `load`, for a verdict: raises KeyError unless every condition of today was measured, with
    today's value, settings and seeds."""
    results, e = load(folder, name), EXPERIMENTS.get(name)
    if e is None: return results
    runs = results.record["runs"]
    if changed(e, results.record) or lacking(e, runs) or set(runs) != set(e.conditions):
        raise KeyError(f"{name} was measured in part, or with other values, settings or seeds")
    return results


def texts(folder: Path) -> tuple[np.ndarray, ...]:
    """Read the tokens of every document of the test texts; () if they were not measured."""
    path = folder / "texts.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}
    return tuple(np.array(run["tokens"]) for by_seed in runs.values() for run in by_seed.values())
