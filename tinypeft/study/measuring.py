"""Measure an experiment: what is missing in its file, a run at a time, in processes beside each other.

A run that is in the file, of a condition that is today's in every field, is not repeated. So an
experiment that was stopped goes on where it was, and a condition that is added is measured alone.
The file begins with what was measured, by which command and with which versions; with hashes of the
text and of the base's weights that were read; and with a hash of the runs, which finds a number
that was changed by hand.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..common.progress import Progress
from ..common.threads import blas_threads
from ..files import fingerprint, write_atomically
from ..pretrained import load_base
from ..text import corpus
from .conditions import changed, in_full
from .experiment import Experiment, Results

__all__ = ["as_text", "code_hash", "hash_of", "lacking", "measure_one", "measured", "measured_with",
           "record_of", "rounding", "run", "unlike_here", "workers"]


def run(experiment: Experiment, folder: str | Path, quick: bool = False, jobs: int | None = None,
        progress: bool | None = None, say: Callable[[str], object] = print) -> Results:
    """Measure what is missing in `folder`/name.json → `Results`. The file is rewritten, whole,
    after every run.

    quick: the smoke run, which is another measurement: give it another folder. jobs: processes
    (default: one per core; with 1 none is started). say: called with a line for each condition that
    is measured again, and why. Raises ValueError for a file that was changed by hand, or that has an
    older form.
    """
    e = experiment.smoke_run() if quick else experiment
    path = Path(folder) / f"{e.name}.json"
    stored = record_of(e, folder)
    elsewhere = unlike_here(stored) if stored["runs"] else []
    again = {c: elsewhere for c in stored["runs"]} if elsewhere else changed(e, stored)
    for label, why in again.items():
        say(f"{e.name}: {label} is measured again: {'; '.join(why[:3])}")
    kept = {c: by_seed for c, by_seed in stored["runs"].items() if c not in again}
    runs = in_order(kept, e)
    seconds = stored["seconds"] if runs else 0.0
    wanted = lacking(e, runs)
    record = stored | {"about": e.about, "metrics": e.metrics}
    if runs and not wanted:                              # their wording may have changed
        write_atomically(path, as_text(record | sealed(runs)))
        say(f"{e.name}: nothing is missing, and all settings are today's; --check measures again")
    for label, seed, metrics, took in measured(e, wanted, jobs, progress):
        runs.setdefault(label, {})[str(seed)] = metrics
        runs, seconds = in_order(runs, e), round(seconds + took, 1)
        record = head(e, quick) | {"seconds": seconds} | sealed(runs)
        write_atomically(path, as_text(record))
    return Results(record | {"runs": runs})


def record_of(experiment: Experiment, folder: str | Path) -> dict:
    """Return what the experiment's file holds; without a file a record of no runs.

    Raises ValueError if a number in it is not as it was measured, or if the form is an older one.
    """
    path = Path(folder) / f"{experiment.name}.json"
    if not path.exists(): return in_full(experiment) | {"seconds": 0.0, "runs": {}}
    record = json.loads(path.read_text(encoding="utf-8"))
    if "sources" in record or "runs_hash" not in record:
        raise ValueError(f"{path} has an older form, which does not say every field of a condition. "
                         "It can be read, but neither continued nor checked: move it away, or "
                         "measure into another folder with --out")
    if record["runs_hash"] != hash_of(record["runs"]):
        raise ValueError(f"{path}: its runs are not those that were measured, because their hash "
                         f"is {hash_of(record['runs'])} and not {record['runs_hash']}. Bring the "
                         "file back, or move it away and measure again")
    return record


def lacking(experiment: Experiment, runs: dict) -> list[tuple[str, int]]:
    """Return (condition, seed) of what `runs` has not, seed by seed: so all conditions come early."""
    return [(c, seed) for seed in experiment.seeds for c in experiment.conditions
            if str(seed) not in runs.get(c, {})]


# -- the file --------------------------------------------------------------------------------------
def head(experiment: Experiment, quick: bool = False) -> dict:
    """Return the first lines of a file: what is measured, by which command, when, with what, and
    every field of the conditions."""
    rerun = f"python -m tinypeft figures {experiment.name} --rerun" + " --quick" * quick
    return {"experiment": experiment.name, "about": experiment.about,
            "metrics": experiment.metrics, "command": rerun, "date": time.strftime("%Y-%m-%d"),
            **measured_with(), **in_full(experiment)}


def measured_with() -> dict:
    """Return what numbers depend on beside the code and the conditions: versions, how products
    round here, and hashes of the text and of the base as they are read."""
    packages = {name: version(name) for name in ("numpy", "scipy", "matplotlib")}
    return {"versions": {"python": platform.python_version(), **packages},
            "rounding": rounding(), "text": text_hashes(), "base": base_hash()}


def sealed(runs: dict) -> dict:
    """Return the end of a file: the runs, behind their hash."""
    return {"runs_hash": hash_of(runs), "runs": runs}


def hash_of(runs: dict | list) -> str:
    """Return 16 hex digits of the runs' numbers, whatever the layout of the file."""
    text = json.dumps(runs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unlike_here(record: dict) -> list[str]:
    """Return what a record was measured with that is another thing here: a text, or the base. Then
    its numbers cannot be compared with new ones."""
    now = text_hashes()
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    texts = [f"the text of {name!r} is another here (it was read with {versions})"
             for name in now if record["text"].get(name) != now[name]]
    return texts + ["the base has other weights"] * (record["base"] != base_hash())


@cache
def text_hashes() -> dict[str, str]:
    """Return the hashes of the two corpora as this installation reads them. To split them would
    take most of a second."""
    read = lambda *names: corpus.fingerprint(d for name in names for d in corpus.documents(name))
    return {"base": read("python", "numpy", "scipy"), "domain": read("matplotlib")}


@cache
def base_hash() -> str:
    return fingerprint(load_base().state_dict())


@cache
def code_hash() -> str:
    """Return 16 hex digits of all of the package's code."""
    package = Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def rounding() -> str:
    """Return 8 hex digits of a fixed product in float32. Two machines whose BLAS adds up in another
    order have other digits."""
    A = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    with blas_threads(1): return hashlib.sha256((A @ A.T @ A).tobytes()).hexdigest()[:8]


def in_order(runs: dict, experiment: Experiment) -> dict:
    """Return those of `runs` that an experiment has, in its order."""
    seeds = [str(s) for s in experiment.seeds]
    return {c: {s: runs[c][s] for s in seeds if s in runs[c]}
            for c in experiment.conditions if c in runs}


def as_text(record: dict) -> str:
    """Return the record as JSON, with each list of numbers and each condition on one line."""
    text = lambda value, **layout: json.dumps(value, ensure_ascii=False, **layout)
    by_line = lambda items: ",\n".join(f" {text(name)}: {text(item)}" for name, item in items)
    numbers = re.compile(r"\[\n\s*([-+.\w,\s]+?)\s*\]")             # a string would have quotes, a list brackets
    parts = []
    for key, value in record.items():
        laid_out = numbers.sub(lambda m: f"[{' '.join(m[1].split())}]", text(value, indent=1))
        if key == "conditions" and value: laid_out = f"{{\n{by_line(value.items())}\n}}"
        parts.append(f" {text(key)}: " + laid_out.replace("\n", "\n "))
    return "{\n" + ",\n".join(parts) + "\n}\n"


# -- one run ---------------------------------------------------------------------------------------
def measure_one(task: tuple) -> tuple[str, int, dict, float]:
    """(measure, label, value, seed, settings) → label, seed, its metrics as JSON has them, seconds
    of processor time."""
    measure, label, value, seed, settings = task
    start = time.process_time()
    with blas_threads(1):
        metrics = measure(value, seed, settings)
    as_json = json.loads(json.dumps(metrics, default=lambda a: a.tolist()))       # NumPy's numbers among them
    return label, seed, as_json, time.process_time() - start


def measured(experiment: Experiment, wanted: list[tuple[str, int]], jobs: int | None,
             progress: bool | None, by: Callable = measure_one) -> Iterator[tuple]:
    """Measure the (condition, seed) of `wanted` in processes; give what `by` returns of each run as
    soon as it is there."""
    e = experiment
    tasks = [(e.measure, c, e.conditions[c], seed, e.settings) for c, seed in wanted]
    with (Progress(len(tasks), e.name, progress) as bar,
          workers(min(jobs or os.cpu_count(), len(tasks))) as each):
        for done, run in enumerate(each(by, tasks), 1):
            yield run
            bar(done, f"{run[0]}, seed {run[1]}")


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
    """Give a function as `map` that works in `jobs` processes and gives results as they come."""
    if jobs <= 1:
        yield map
    else:
        ignore = signal.SIGINT, signal.SIG_IGN           # Ctrl-C is for the parent, which ends them
        with multiprocessing.get_context("spawn").Pool(jobs, signal.signal, ignore) as pool:
            yield pool.imap_unordered
