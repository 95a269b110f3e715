"""What of the stored results holds (`show_status`), and did a change of the code leave the numbers alone (`accept`)?

A refactoring makes everything stale that depends on its module, although no number should move. `accept` measures a few runs
again, so that every changed module is used at least once, and compares them with the stored runs. Two numbers agree if they
differ by at most 1e-4 of the largest stored number of that metric (1 % for traced bytes; clocks are not compared). Where matrix
products round otherwise than on the machine that measured (`rounding` in the file), it is enough that they differ by less than
half the width of the stored 95 % interval. If all agree, the file gets the hashes of the code as it is now and a note,
"accepted". Otherwise it stays as it is, and a line names the number that moved.
"""
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import write_atomically
from .experiment import Experiment, Results, as_text, half_width, rounding, run
from .freshness import Change, briefly, changes, dated, stamp, summary

__all__ = ["accept", "show_status", "status"]

TOLERANCE = 1e-4
TOLERANCES = {"seconds": np.inf, "seconds_per_step": np.inf, "peak_bytes": 0.01, "traced": 0.01}


def status(experiment: Experiment, folder: str | Path) -> dict:
    """Return the state of stored results: "fresh" and "missing" are lists of labels, "stale" maps labels to `Change`s.

    A condition is missing as long as one of its seeds is.
    """
    path = Path(folder) / f"{experiment.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    state = {"fresh": [], "stale": changes(record, stamp(experiment)), "missing": []}
    for label in experiment.conditions:
        runs = record["runs"].get(label, {})
        lacks = any(str(seed) not in runs for seed in experiment.seeds)
        if label not in state["stale"]: state["missing" if lacks else "fresh"].append(label)
    return state


def show_status(experiments: Iterable[Experiment], folder: str | Path, as_json: bool = False) -> int:
    """Print one line per experiment, and one more on what is stale and on what is missing; return 1 if anything is, else 0."""
    states = {e.name: status(e, folder) for e in experiments}
    if as_json: print(json.dumps(states, ensure_ascii=False, default=str))
    for name, state in {} if as_json else states.items():
        counts = [f"{len(labels)} {kind}" for kind, labels in state.items() if labels]
        print(f"{name:<20}{', '.join(counts) or 'no conditions'}")
        if state["stale"]: print(f"    stale: {summary(state['stale'])}")
        if state["missing"]: print(f"    missing: {briefly(state['missing'])}")
    return int(any(state["stale"] or state["missing"] for state in states.values()))


def accept(experiments: Iterable[Experiment], folder: str | Path, jobs: int | None = None, progress: bool | None = None,
           say: Callable[[str], object] = print) -> int:
    """Stamp stored results with the code as it is now, if runs that are measured again agree with them (see above).

    jobs: processes (default: one per core). say: called with one line per experiment, as soon as its file is written. An
    experiment is refused if settings, text or base have changed, if runs are missing, or if a run fails or a number moved.
    Returns 1 if any experiment was refused, else 0.
    """
    refused = 0
    for e in experiments:
        try:
            say(f"{e.name}: {keep(e, Path(folder), jobs, progress)}")
        except Exception as error:
            reason = error if isinstance(error, (ValueError, FileNotFoundError)) else repr(error)
            say(f"{e.name}: nothing was accepted: {reason}. `python -m tinypeft figures {e.name} --rerun` measures what is "
                "missing or stale")
            refused = 1
    return refused


def keep(e: Experiment, folder: Path, jobs: int | None, progress: bool | None) -> str:
    """Measure a few runs again, compare, stamp the file, and return how they agreed. Raises ValueError if they do not."""
    record, state, seed = Results.read(folder, e.name), status(e, folder), str(e.seeds[0])
    reasons = {change: change.kind for why in state["stale"].values() for change in why}
    others = [change for change, kind in reasons.items() if kind not in ("source", "value")]
    if others: raise ValueError(f"--accept is for changes of the code, but {briefly(others)}")
    if state["missing"]: raise ValueError(f"not measured yet: {', '.join(state['missing'])}")
    if not reasons: return "nothing is stale"
    labels = to_measure(state["stale"], e.quick.get("conditions", ()))
    few = replace(e, conditions={label: e.conditions[label] for label in labels}, seeds=e.seeds[:1])
    with tempfile.TemporaryDirectory() as scratch:
        measured = run(few, scratch, jobs=jobs, progress=progress).record["runs"]
    stored, same, by_interval = record.pop("runs"), record.get("rounding") == rounding(), []
    for label in labels:
        metrics = compare(f"{label}, seed {seed}", stored[label], seed, measured[label][seed], same)
        by_interval += [f"{metric} of {label}" for metric in metrics]
    agreed = f"within the stored interval: {', '.join(by_interval)}" if by_interval else f"equal to {TOLERANCE:g}"
    dates = {label: record["conditions"][label]["measured"] for label in stored}
    record |= {"about": e.about, "metrics": e.metrics} | dated(stamp(e), dates)
    record["accepted"] = {"date": time.strftime("%Y-%m-%d"), "changed": sorted({change.what for change in reasons}),
                          "measured": {label: [e.seeds[0]] for label in labels}, "agreed": agreed}
    write_atomically(folder / f"{e.name}.json", as_text(record | {"runs": stored}))
    return f"accepted; measured again, seed {seed}: {', '.join(labels)}; {agreed}"


def to_measure(stale: dict[str, list[Change]], cheap: Collection[str]) -> list[str]:
    """Return a few of the stale conditions that together use all that changed; of two that would do, a cheap one."""
    chosen, left = [], {change for why in stale.values() for change in why}
    while left:
        worth = {label: (len(left.intersection(why)), label in cheap) for label, why in stale.items()}
        chosen.append(max(worth, key=worth.get))
        left -= set(stale[chosen[-1]])
    return chosen


def compare(where: str, stored: dict, seed: str, metrics: dict, same_rounding: bool) -> list[str]:
    """Return the metrics that agree by the interval only. Raises ValueError for a metric that moved."""
    if set(metrics) != set(stored[seed]):
        raise ValueError(f"{where}: metrics were {', '.join(stored[seed])}, and are {', '.join(metrics)}")
    by_interval = []
    for metric, value in metrics.items():
        old, new = np.array(stored[seed][metric]), np.array(value)
        tolerance = TOLERANCES.get(metric, TOLERANCE)
        if np.array_equal(old, new) or tolerance == np.inf: continue
        if old.shape != new.shape or old.dtype.kind not in "if":
            raise ValueError(f"{where}: {metric} was {stored[seed][metric]!r}, and is {value!r}")
        off = np.abs(new - old)
        if off.max() <= tolerance * np.abs(old).max(): continue
        width = half_width([run[metric] for run in stored.values() if metric in run])      # some are of one seed only
        if not same_rounding and np.isfinite(width).all() and (off <= width).all():
            by_interval.append(metric)
            continue
        i = np.unravel_index(off.argmax(), off.shape)
        number = f" (number {', '.join(map(str, i))})" if off.ndim else ""
        raise ValueError(f"{where}: {metric}{number} was {old[i]:.6g}, and is {new[i]:.6g}")
    return by_interval
