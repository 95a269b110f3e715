"""Two questions about stored results: what holds (`show_status`), and did a change of the code leave the numbers alone
(`accept`)?

A refactoring makes everything stale that runs through it, although no number should move. `accept` measures a few runs again,
so that every changed definition is used at least once, and compares them with the stored runs. Two numbers agree if they
differ by at most 1e-4 of the largest stored number of that metric (1 % for traced bytes; clocks are not compared). If matrix
products round differently here than where the results were measured (`rounding` in the file), it is enough that they differ
by less than half the width of the stored 95 % interval.

If all agree, the file gets the hashes of the code as it is now and a note, "accepted": what changed, what was measured again,
and how it agreed. Otherwise the file stays as it is, and a line names the number that moved.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..common.progress import Progress
from ..files import write_atomically
from .experiment import Experiment, Results, as_text, half_width, measure_one, rounding, workers
from .freshness import Change, Stamp, briefly, changes, summary

__all__ = ["accept", "show_status", "status"]

TOLERANCE = 1e-4
TOLERANCES = {"seconds": np.inf, "seconds_per_step": np.inf, "peak_bytes": 0.01, "traced": 0.01}


# -- what holds ----------------------------------------------------------------------------------
def status(experiment: Experiment, folder: str | Path) -> dict:
    """The state of stored results: "fresh" and "missing" are lists of labels, "stale" maps labels to `Change`s.

    A condition is missing as long as one of its seeds is.
    """
    path = Path(folder) / f"{experiment.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    stale = changes(record, Stamp.now(experiment))
    there = {c for c, runs in record["runs"].items() if all(str(s) in runs for s in experiment.seeds)}
    return {"fresh": [c for c in experiment.conditions if c in there and c not in stale], "stale": stale,
            "missing": [c for c in experiment.conditions if c not in there and c not in stale]}


def show_status(experiments: Iterable[Experiment], folder: str | Path, as_json: bool = False) -> int:
    """Print one line per experiment, and one more on what is stale and on what is missing; 1 if anything is, else 0."""
    found = {e.name: status(e, folder) for e in experiments}
    if as_json:
        told = {name: s | {"stale": {c: list(map(str, why)) for c, why in s["stale"].items()}} for name, s in found.items()}
        print(json.dumps(told, ensure_ascii=False))
    else:
        for name, s in found.items():
            print(f"{name:<20}" + (", ".join(f"{len(s[state])} {state}" for state in s if s[state]) or "no conditions"))
            if s["stale"]: print(f"    stale: {summary(s['stale'])}")
            if s["missing"]: print(f"    missing: {briefly(s['missing'])}")
    return int(any(s["stale"] or s["missing"] for s in found.values()))


# -- accepting a change --------------------------------------------------------------------------
@dataclass
class _Check:
    """The runs that decide whether one experiment's results are kept. found: label → metrics, measured again."""
    experiment: Experiment
    path: Path
    record: dict
    stamp: Stamp
    stale: dict[str, list[Change]]
    labels: list[str]
    found: dict[str, dict] = field(default_factory=dict)


def accept(experiments: Iterable[Experiment], folder: str | Path, jobs: int | None = None, progress: bool | None = None,
           say: Callable[[str], object] = print) -> int:
    """Stamp stored results with the code as it is now, if runs that are measured again agree with them (see above).

    jobs: processes (default: one per core); all experiments share them. say: called with one line per experiment, as soon
    as its runs are done and its file is written. An experiment is refused if settings, text or base have changed, if runs
    are missing, or if a number moved. Returns 1 if any experiment was refused, else 0.
    """
    checks, refused = {}, 0
    for e in experiments:
        try:
            if check := plan(e, Path(folder)): checks[e.name] = check
            else: say(f"{e.name}: nothing is stale")
        except (ValueError, FileNotFoundError) as error:
            say(str(error))
            refused = 1
    tasks = [(e.measure, (e.name, label), e.conditions[label], e.seeds[0], e.settings)
             for e, labels in ((check.experiment, check.labels) for check in checks.values()) for label in labels]
    with Progress(len(tasks), "accept", progress) as bar, workers(min(jobs or os.cpu_count(), len(tasks))) as each:
        for done, ((name, label), metrics) in enumerate(each(attempt, tasks)):
            check = checks[name]
            check.found[label] = metrics
            bar(done + 1, f"{name}, {label}")
            if len(check.found) < len(check.labels): continue
            try:
                say(f"[{done + 1}/{len(tasks)}] {keep(check)}")
            except ValueError as error:
                say(f"[{done + 1}/{len(tasks)}] {error}")
                refused = 1
    return refused


def plan(experiment: Experiment, folder: Path) -> _Check | None:
    """What has to be measured again; None if nothing is stale. Raises ValueError if more than the code has changed."""
    record, stamp, name = Results.read(folder, experiment.name), Stamp.now(experiment), experiment.name
    stale = changes(record, stamp)
    again = f"`python -m tinypeft figures {name} --rerun` measures what is missing or stale"
    for label, why in stale.items():
        if other := [c for c in why if c.kind not in ("source", "value")]:
            raise ValueError(f"--accept is for changes of the code, but {name}, {label}: {briefly(other)}. {again}")
    if lacking := [c for c in experiment.conditions for s in experiment.seeds if str(s) not in record["runs"].get(c, {})]:
        raise ValueError(f"--accept {name}: not measured yet: {', '.join(dict.fromkeys(lacking))}. {again}")
    labels = to_measure(stale, experiment.quick.get("conditions", ()))
    return _Check(experiment, folder / f"{name}.json", record, stamp, stale, labels) if stale else None


def to_measure(stale: dict[str, list[Change]], cheap: Collection[str] = ()) -> list[str]:
    """A few of the stale conditions that together use everything that changed; of two that would do, a cheap one."""
    chosen, left = [], {change for why in stale.values() for change in why}
    while left:
        chosen.append(max(stale, key=lambda label: (len(left.intersection(stale[label])), label in cheap)))
        left -= set(stale[chosen[-1]])
    return chosen


def attempt(task: tuple) -> tuple[tuple[str, str], dict | Exception]:
    """`measure_one` for `accept`: an error in one run is a refusal, and the other experiments go on."""
    try:
        label, _, metrics, _ = measure_one(task)
        return label, metrics
    except Exception as error:
        return task[1], error


def keep(check: _Check) -> str:
    """Compare, stamp the file, and say how the runs agreed. Raises ValueError for a number that moved."""
    e, record, seed = check.experiment, check.record, check.experiment.seeds[0]
    same, by_interval = record.get("rounding") == rounding(), []
    for label, found in check.found.items():
        if isinstance(found, Exception): raise ValueError(f"{e.name}, {label}: {type(found).__name__}: {found}")
        by_interval += compare(e.name, label, record["runs"][label], str(seed), found, same)
    agreed = f"within the stored interval: {', '.join(by_interval)}" if by_interval else f"equal to {TOLERANCE:g}"
    changed = sorted({c.what for why in check.stale.values() for c in why})
    runs = record.pop("runs")
    record |= {"about": e.about, "metrics": e.metrics,
               **check.stamp.as_record({c: record["conditions"][c]["measured"] for c in runs}),
               "accepted": {"date": time.strftime("%Y-%m-%d"), "changed": changed,
                            "measured": {c: [seed] for c in check.labels}, "agreed": agreed}}
    write_atomically(check.path, as_text(record | {"runs": runs}))
    return f"{e.name}: accepted; measured again, seed {seed}: {', '.join(check.labels)}; {agreed}"


def compare(name: str, label: str, stored: dict, seed: str, found: dict, same_rounding: bool) -> list[str]:
    """The metrics that agree by the interval only. Raises ValueError for a metric that moved."""
    by_interval = []
    if set(found) != set(stored[seed]):
        raise ValueError(f"{name}, {label}: metrics were {', '.join(stored[seed])}, and are {', '.join(found)}")
    for metric, new in found.items():
        old, tolerance = stored[seed][metric], TOLERANCES.get(metric, TOLERANCE)
        if new == old or tolerance == np.inf: continue
        a, b = np.array(old), np.array(new)
        if a.shape != b.shape or a.dtype.kind not in "if":
            raise ValueError(f"{name}, {label}, seed {seed}: {metric} was {old!r}, and is {new!r}")
        off = np.abs(b - a)
        if off.max() <= tolerance * np.abs(a).max(): continue
        width = half_width([run[metric] for run in stored.values() if metric in run])      # some are of one seed only
        if not same_rounding and np.isfinite(width).all() and (off <= width).all():
            by_interval.append(f"{metric} of {label}")
            continue
        i = np.unravel_index(off.argmax(), off.shape)
        at = f" (number {', '.join(map(str, i))})" if off.ndim else ""
        raise ValueError(f"{name}, {label}, seed {seed}: {metric}{at} was {a[i]:.6g}, and is {b[i]:.6g}; nothing was accepted. "
                         f"If this is meant, measure again: `python -m tinypeft figures {name} --rerun`")
    return by_interval
