"""Do the stored results hold? `figures --check` compares what they say with today's study, and
measures some of them again.

Without measuring: a setting or a field of a condition that is not today's, a run that is missing,
and a number that was changed by hand. By measuring: whether code, engine and processor still give
the numbers. By default that is one condition of each kind of arm, one of each experiment, and every
number that README shows; with `--all` it is every condition. All are measured with their first seed,
README's with all of theirs.

Two numbers agree if they differ by at most 1e-4 of the largest stored number of that metric (1 % for
traced bytes; clocks are not compared). A processor whose matrix products round otherwise than
those of the one that measured may be off by half of the stored 95 % interval, or by 2 % where one seed
is stored. Where the text or the base is another one, numbers are not comparable, and nothing moved.
"""
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..files import write_atomically
from . import compare
from .conditions import changed, described, in_full
from .experiment import Experiment, half_width
from .measuring import code_hash, hash_of, lacking, measure_one, measured, measured_with, record_of, rounding, unlike_here

__all__ = ["Found", "check", "check_main_job", "sample"]

TOLERANCE = 1e-4
TOLERANCES = {"seconds": np.inf, "seconds_per_step": np.inf, "peak_bytes": 0.01, "traced": 0.01}
ELSEWHERE = 0.02                                         # of one seed, where products round otherwise


@dataclass
class Found:
    """What a check found of one experiment: in what it is not today's, why it is not comparable, the
    conditions measured again, those that cannot be measured here, and the numbers that moved."""
    differs: list[str] = field(default_factory=list)
    not_comparable: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    not_here: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def holds(self) -> bool:
        return not (self.differs or self.not_comparable or self.moved)

    def lines(self) -> list[str]:
        """Return a sentence for each thing that was found."""
        parts = {"differs": self.differs, "is not comparable": self.not_comparable,
                 "moved": self.moved, "cannot be measured here": self.not_here}
        said = [f"{what}: {line}" for what, lines in parts.items() for line in lines]
        if self.measured and not self.moved: said.append(f"holds: {', '.join(self.measured)}")
        return said


def check(experiments: Iterable[Experiment], folder: str | Path, scratch: str | Path,
          shown: dict[str, list[str]], every: bool = False, jobs: int | None = None,
          progress: bool | None = None, say: Callable[[str], object] = print) -> dict[str, Found]:
    """Compare the files in `folder` with today's study, and measure some conditions again → `Found`
    for each experiment.

    scratch: a folder where what was measured is kept, so that a check that was stopped goes on; it
    is begun anew when the package's code, the experiment or the installation is another. shown:
    experiment → conditions that a page shows, which are measured with all seeds. every: measure
    every condition, with its first seed. jobs: processes (default: one per core). say: called with
    each line as soon as it is known.
    """
    experiments, found = list(experiments), {}
    of_kind = {} if every else sample(experiments, folder)
    for e in experiments:
        wanted = [(c, e.seeds[0]) for c in (e.conditions if every else of_kind[e.name])]
        wanted += [(c, seed) for c in shown.get(e.name, ()) for seed in e.seeds]
        world = hash_of([code_hash(), measured_with(), in_full(e)])
        kept = Path(scratch) / f"{e.name} {world}.json"
        found[e.name] = checked(e, folder, dict.fromkeys(wanted), kept, jobs, progress)
        for line in found[e.name].lines(): say(f"{e.name} {line}")
    return found


def checked(e: Experiment, folder: str | Path, wanted: Iterable[tuple[str, int]], kept: Path,
            jobs: int | None, progress: bool | None) -> Found:
    """Check one experiment. wanted: the (condition, seed) that are measured again, unless the file
    `kept` has them."""
    try: record = record_of(e, folder)
    except ValueError as error: return Found(differs=[str(error)])
    runs, why = record["runs"], changed(e, record)
    gone = [f"{c}: it is stored, and is no condition today" for c in runs if c not in e.conditions]
    missing = [f"{c}, seed {seed}: it was never measured" for c, seed in lacking(e, runs)]
    found = Found([*gone, *missing, *(f"{c}: {line}" for c, lines in why.items() for line in lines)])
    if not runs: return found
    found.not_comparable = unlike_here(record)
    if found.not_comparable: return found
    wanted = [(c, seed) for c, seed in wanted if c not in why and str(seed) in runs.get(c, {})]
    new = measured_again(e, wanted, kept, jobs, progress)
    not_here = {c: new[c, seed] for c, seed in wanted if isinstance(new[c, seed], str)}
    found.not_here = [f"{c}: {error}" for c, error in not_here.items()]
    found.measured = list(dict.fromkeys(c for c, _ in wanted if c not in not_here))
    same = record["rounding"] == rounding()
    found.moved = [f"{c}, seed {seed}: {line}" for c, seed in wanted if c not in not_here
                   for line in moved(runs[c], str(seed), new[c, seed], same)]
    return found


def measured_again(e: Experiment, wanted: list[tuple[str, int]], kept: Path, jobs: int | None,
                   progress: bool | None) -> dict[tuple[str, int], dict | str]:
    """Return (condition, seed) → what `attempt` gives. Each run is kept as soon as it is done."""
    known = json.loads(kept.read_text("utf-8")) if kept.exists() else []
    done = {(label, seed): metrics for label, seed, metrics in known if isinstance(metrics, dict)}
    left = [run for run in wanted if run not in done]
    for label, seed, metrics, _ in measured(e, left, jobs, progress, attempt):
        done[label, seed] = metrics
        write_atomically(kept, json.dumps([(*run, metrics) for run, metrics in done.items()]))
    return done


def attempt(task: tuple) -> tuple[str, int, dict | str, float]:
    """Do as `measure_one`, with the error's words for metrics where a file is not here."""
    try: return measure_one(task)
    except FileNotFoundError as error: return task[1], task[3], str(error), 0.0


def check_main_job(folder: str | Path, jobs: int | None = None,
                   progress: bool | None = None) -> Found:
    """Measure again what the main job stored in `folder`/compare.json, with its seed."""
    path = Path(folder) / "compare.json"
    if not path.exists(): return Found(differs=[f"{path} does not exist"])
    record = json.loads(path.read_text("utf-8"))
    if elsewhere := unlike_here(record): return Found(not_comparable=elsewhere)
    again = compare.compare(seed=record["seed"], jobs=jobs, progress=progress)
    old, new = (losses(of) for of in (record, again))
    same = record["rounding"] == rounding()
    return Found(measured=list(new), moved=moved({"0": old}, "0", new, same))


def losses(record: dict) -> dict[str, list[float]]:
    """Return the name of a row → its losses, of a record of `compare`."""
    return ({r["name"]: r["losses"] for r in record["methods"]}
            | {r["label"]: [r["loss"]] for r in record["schemes"]})


# -- which conditions ------------------------------------------------------------------------------
def sample(experiments: list[Experiment], folder: str | Path) -> dict[str, list[str]]:
    """Return experiment → the conditions that are measured by default: one of each experiment, and
    one of each kind of arm where it takes the least time."""
    chosen, seen = {}, set()
    for e in experiments:
        first = next(iter(e.quick.get("conditions", e.conditions)))
        chosen[e.name] = [first]
        seen.add(kind(e.conditions[first]))
    for e in sorted(experiments, key=lambda e: seconds_of_a_run(e, folder)):
        for label, value in e.conditions.items():
            if kind(value) not in seen:
                seen.add(kind(value))
                chosen[e.name].append(label)
    return chosen


def kind(value: object) -> str:
    """Return the classes of a condition's value, such as "OnRounded LoRA NF4"; of a plain value
    nothing: the experiment is its kind."""
    def classes(item):
        if not isinstance(item, dict): return []
        own = [name for name in item if name[:1].isupper()]
        return own + [name for inner in item.values() for name in classes(inner)]
    return " ".join(classes(described(value)))


def seconds_of_a_run(experiment: Experiment, folder: str | Path) -> float:
    """Return the processor seconds of one stored run; infinity if none is stored."""
    path = Path(folder) / f"{experiment.name}.json"
    if not path.exists(): return np.inf
    record = json.loads(path.read_text("utf-8"))
    count = sum(map(len, record["runs"].values()))
    return record["seconds"] / count if count else np.inf


# -- the same number? ------------------------------------------------------------------------------
def moved(stored: dict, seed: str, metrics: dict, same_rounding: bool) -> list[str]:
    """Return the metrics of a run that are not the stored ones, each with both numbers. stored: seed
    → metrics of the condition."""
    old_run, found = stored[seed], []
    if set(metrics) != set(old_run):
        return [f"the metrics were {', '.join(old_run)}, and are {', '.join(metrics)}"]
    for metric, value in metrics.items():
        old, new = np.array(old_run[metric]), np.array(value)
        tolerance = TOLERANCES.get(metric, TOLERANCE)
        if old_run[metric] == value or tolerance == np.inf: continue
        if old.shape != new.shape or not {old.dtype.kind, new.dtype.kind} <= set("if"):
            found.append(f"{metric} was {old_run[metric]!r}, and is {value!r}")
            continue
        off = distance(old, new)
        largest = np.abs(old[np.isfinite(old)]).max(initial=0)
        allowed = tolerance * largest
        if not same_rounding:
            half = half_width([run[metric] for run in stored.values() if metric in run])
            allowed = np.maximum(allowed, np.where(np.isfinite(half), half, ELSEWHERE * largest))
        if not (off > allowed).any(): continue
        i = np.unravel_index(np.argmax(off - allowed), off.shape)
        number = f" (number {', '.join(map(str, i))})" if off.ndim else ""
        found.append(f"{metric}{number} was {old[i]:.6g}, and is {new[i]:.6g}")
    return found


def distance(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return |new − old|; 0 where both are the same infinity, infinity where one of them is."""
    with np.errstate(invalid="ignore"): apart = np.abs(new - old)
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    return np.where(same, 0.0, np.nan_to_num(apart, nan=np.inf, posinf=np.inf))
