"""Two questions about stored results: what holds (`status`), and did a change of the code leave the numbers alone (`accept`)?

A refactoring makes everything stale that runs through it, although no number should move. `accept` measures a few runs again,
so that every changed definition is used at least once, and compares them with the stored runs. Two numbers agree if they
differ by at most 1e-4 of the largest stored number of that metric (1 % for traced bytes; clocks are not compared). If matrix
products round differently here than where the results were measured (`rounding` in the file), it is enough that they differ
by less than half the width of the stored 95 % interval.

If all agree, the file gets the hashes of the code as it is now and a note, "accepted": what changed, what was measured again,
and how it agreed. Otherwise the file stays as it is, and the error names the number that moved.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np

from ..files import write_atomically
from ..progress import Progress
from .experiment import Experiment, Results, as_text, half_width, measure_one, rounding, workers
from .freshness import Change, Stamp, briefly, changes

__all__ = ["accept", "accept_all", "show_status", "status"]

TOLERANCE = 1e-4
TOLERANCES = {"seconds": np.inf, "seconds_per_step": np.inf, "peak_bytes": 0.01, "traced": 0.01}


def status(experiment: Experiment, folder: str | Path) -> dict[str, list[str]]:
    """The state of an experiment's stored results: "fresh" and "missing" labels, and "stale" lines, "label: why".

    A condition is missing as long as one of its seeds is.
    """
    path = Path(folder) / f"{experiment.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    stale = changes(record, Stamp.now(experiment))
    there = {c for c, runs in record["runs"].items() if all(str(s) in runs for s in experiment.seeds)}
    return {"fresh": [c for c in experiment.conditions if c in there and c not in stale],
            "stale": [f"{label}: {briefly(why)}" for label, why in stale.items()],
            "missing": [c for c in experiment.conditions if c not in there and c not in stale]}


def show_status(experiments: Iterable[Experiment], folder: str | Path, as_json: bool = False) -> int:
    """Print the state of the stored results; 1 if any are stale or missing, else 0."""
    found = {e.name: status(e, folder) for e in experiments}
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for name, s in found.items():
            print(f"{name}: {len(s['fresh'])} fresh, {len(s['stale'])} stale, {len(s['missing'])} missing")
            for line in s["stale"]: print(f"  stale    {line}")
            if s["missing"]: print(f"  missing  {', '.join(s['missing'])}")
    return int(any(s["stale"] or s["missing"] for s in found.values()))


def accept_all(experiments: Iterable[Experiment], folder: str | Path, jobs: int | None = None) -> int:
    """`accept` for each experiment. A refusal is printed, and the next one is tried; 1 if there was one, else 0."""
    refused = 0
    for e in experiments:
        try:
            accept(e, folder, jobs)
        except (ValueError, FileNotFoundError) as error:
            print(error)
            refused = 1
    return refused


def accept(experiment: Experiment, folder: str | Path, jobs: int | None = None, progress: bool | None = None,
           say: Callable[[str], object] = print) -> Results:
    """Stamp stored results with the code as it is now, if runs that are measured again agree with them (see above).

    jobs: processes (default: one per core). say: called with one line about what was measured and how it agreed.
    Raises ValueError if settings, text or base have changed, if runs are missing, or if a number moved; it says which.
    """
    path, name = Path(folder) / f"{experiment.name}.json", experiment.name
    record, stamp = Results.read(folder, name), Stamp.now(experiment)
    stale = changes(record, stamp)
    again = f"`python -m tinypeft figures {name} --rerun` measures what is missing or stale"
    for label, why in stale.items():
        if other := [c for c in why if c.kind not in ("source", "value")]:
            raise ValueError(f"--accept is for changes of the code, but {name}, {label}: {briefly(other)}. {again}")
    if lacking := [c for c in experiment.conditions for s in experiment.seeds if str(s) not in record["runs"].get(c, {})]:
        raise ValueError(f"--accept {name}: not measured yet: {', '.join(dict.fromkeys(lacking))}. {again}")
    if not stale:
        say(f"{name}: nothing is stale")
        return Results(record)
    seed, chosen = experiment.seeds[0], to_measure(stale, experiment.quick.get("conditions", ()))
    tasks = [(experiment.measure, c, experiment.conditions[c], seed, experiment.settings) for c in chosen]
    same, by_interval = record.get("rounding") == rounding(), []
    with Progress(len(tasks), f"accept {name}", progress) as bar, workers(min(jobs or os.cpu_count(), len(tasks))) as each:
        for done, (label, _, found, _) in enumerate(each(measure_one, tasks)):
            by_interval += compare(name, label, record["runs"][label], str(seed), found, same)
            bar(done + 1, label)
    agreed = f"within the stored interval: {', '.join(by_interval)}" if by_interval else f"equal to {TOLERANCE:g}"
    changed = sorted({c.what for why in stale.values() for c in why})
    record |= {"about": experiment.about, "metrics": experiment.metrics,
               **stamp.as_record({c: record["conditions"][c]["measured"] for c in record["runs"]}),
               "accepted": {"date": time.strftime("%Y-%m-%d"), "changed": changed, "measured": {c: [seed] for c in chosen},
                            "agreed": agreed}}
    runs = record.pop("runs")
    write_atomically(path, as_text(record | {"runs": runs}))
    say(f"{name}: accepted; measured again, seed {seed}: {', '.join(chosen)}; {agreed}")
    return Results(record | {"runs": runs})


def to_measure(stale: dict[str, list[Change]], cheap: Collection[str] = ()) -> list[str]:
    """A few of the stale conditions that together use everything that changed; of two that would do, a cheap one."""
    chosen, left = [], {change for why in stale.values() for change in why}
    for label in sorted(stale, key=lambda label: (-len(stale[label]), label not in cheap)):
        if not left.isdisjoint(stale[label]):
            chosen.append(label)
            left -= set(stale[label])
    return chosen


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
        width = half_width([run[metric] for run in stored.values()])
        if not same_rounding and np.isfinite(width).all() and (off <= width).all():
            by_interval.append(f"{metric} of {label}")
            continue
        i = np.unravel_index(off.argmax(), off.shape)
        at = f" (number {', '.join(map(str, i))})" if off.ndim else ""
        raise ValueError(f"{name}, {label}, seed {seed}: {metric}{at} was {a[i]:.6g}, and is {b[i]:.6g}; nothing was accepted. "
                         f"If this is meant, measure again: `python -m tinypeft figures {name} --rerun`")
    return by_interval
