"""The stored results of an experiment, and a warning if they are stale.

It stands above `experiments/`, because it asks them what would be measured now.
"""
import functools
import json
import warnings
from pathlib import Path

import numpy as np

from .experiment import Results
from .experiments import EXPERIMENTS
from .freshness import StaleWarning, changes, stamp, summary

__all__ = ["load", "load_whole"]


def load(folder: str | Path, name: str) -> Results:
    """Read `folder`/name.json. Raises FileNotFoundError, which names the command that measures it.

    Warns (StaleWarning), once in a process, if the code, the settings or a condition have changed
    since it was measured. The text of this installation is not compared here, because that takes
    seconds: `run` and `--status` compare it.
    """
    record = Results.read(folder, name)
    warn_if_stale(name, (Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
    return Results(record, texts(Path(folder)))


def load_whole(folder: str | Path, name: str) -> Results:
    """Like `load`, for a verdict: raises KeyError unless every condition of today was measured, with
    today's value, settings and seeds."""
    results, e = load(folder, name), EXPERIMENTS.get(name)
    if e is None: return results
    record = results.record
    values = {label: of["value"] for label, of in record.get("conditions", {}).items()}
    today = {label: repr(value) for label, value in e.conditions.items()}
    same = values == today and record["settings"] == json.loads(json.dumps(e.settings))
    runs = record["runs"]
    if not same or any(str(s) not in runs.get(c, {}) for c in e.conditions for s in e.seeds):
        raise KeyError(f"{name} was measured in part, or with other values, settings or seeds")
    return results


def texts(folder: Path) -> tuple[np.ndarray, ...]:
    """Read the tokens of every document of the test texts; () if they were not measured."""
    path = folder / "texts.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}
    return tuple(np.array(run["tokens"]) for by_seed in runs.values() for run in by_seed.values())


@functools.cache                                         # the same numbers are told once
def warn_if_stale(name: str, stored: str) -> None:
    """StaleWarning if `stored`, a file's text, was measured with other code, settings or values
    than there are now."""
    record, experiment = json.loads(stored), EXPERIMENTS.get(name)
    if experiment is None: return
    if "--quick" in record["command"]: experiment = experiment.smoke_run()
    if stale := changes(record, stamp(experiment, world=False)):
        warnings.warn(f"{name}: stored numbers are stale ({summary(stale)}). "
                      f"`{record['command']}` measures them again", StaleWarning, stacklevel=3)
