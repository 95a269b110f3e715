"""An experiment is a function of (condition, seed, settings) to numbers; what it measures is kept in a file.

    RANK = Experiment("rank", "LoRA's test loss at rank r (nats/token).", measure, ("1", "8"), {"steps": 150}, {"steps": 5})
    run(RANK, "figures/results")                         # measures what is missing
    r = Results.load("figures/results", "rank")
    r.mean("8", "loss"), r.interval("8", "loss")         # over seeds; ± half of the 95 % confidence interval
    r.difference("1", "8", "loss")                       # paired over seeds: (mean, half width)

The file says all that the numbers depend on: settings, hashes of the text, of the base's weights and of the code that
measures. While these agree, a run that is in the file is never repeated, so that an experiment which was stopped goes on
where it was; when one of them changes, everything is measured again. Pictures and tables read these files only.
"""
import ast
import contextlib
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..files import write_atomically
from ..pretrained import load_pretrained
from ..progress import Progress
from ..text import corpus
from ..threads import blas_threads

__all__ = ["Experiment", "Results", "fingerprint", "run"]


@dataclass(frozen=True)
class Experiment:
    """name: of the results file. about: one sentence, what is measured, with each metric's unit.

    measure: (condition, seed, settings) → dict metric → number or (nested) list of numbers; a function of a module. It runs
        in a process of its own with one BLAS thread, beside others: train and evaluate with workers=1.
    conditions: what is compared. settings: everything else that decides the numbers, JSON-able. seeds: one run each.
    quick: settings of a smoke run, and "conditions" and "seeds" for it if it has fewer.
    """
    name: str
    about: str
    measure: Callable
    conditions: tuple[str, ...]
    settings: dict
    quick: dict
    seeds: tuple = (0, 1, 2, 3, 4)


# -- measuring -----------------------------------------------------------------------------------
def run(experiment, folder, quick=False, jobs=None, progress=None, say=print):
    """Measure what is missing in `folder`/name.json, rewriting it, whole, after every run → `Results`.

    quick: the smoke run, which is another measurement: give it another folder. jobs: processes (default: one per core; with
    1 none is started). say: told when stored runs no longer hold, and why.
    """
    settings, conditions, seeds = dict(experiment.settings), experiment.conditions, experiment.seeds
    if quick:
        settings |= experiment.quick
        conditions, seeds = settings.pop("conditions", conditions), settings.pop("seeds", seeds)
    path = Path(folder) / f"{experiment.name}.json"
    record = {"experiment": experiment.name, "about": experiment.about,
              "command": f"python -m tinypeft figures {experiment.name} --rerun" + (" --quick" if quick else ""),
              **now(), **depends(experiment, settings), "seconds": 0.0, "runs": {}}
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    changed = [key for key in ("settings", "text", "base", "source") if stored["runs"] and stored[key] != record[key]]
    if changed:
        say(f"{experiment.name}: measured again, for these are not what they were: {', '.join(changed)}")
    elif stored["runs"]:
        kept = {key: stored[key] for key in ("date", "versions", "seconds")}
        record |= kept | {"runs": in_order(stored["runs"], conditions, seeds)}
    tasks = [(experiment.measure, c, seed, settings) for seed in seeds for c in conditions
             if str(seed) not in record["runs"].get(c, {})]
    with Progress(len(tasks), experiment.name, progress) as bar, _workers(min(jobs or os.cpu_count(), len(tasks))) as each:
        for done, (condition, seed, metrics, seconds) in enumerate(each(_measure, tasks)):
            record["runs"].setdefault(condition, {})[str(seed)] = metrics
            record["runs"] = in_order(record["runs"], conditions, seeds)
            record |= {**now(), "seconds": round(record["seconds"] + seconds, 1)}
            write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            bar(done + 1, f"{condition}, seed {seed}")
    return Results(record)


def depends(experiment, settings):
    """What the numbers depend on."""
    return {"text": {"base": corpus.base_corpus().sha256, "domain": corpus.domain_corpus().sha256}, "base": fingerprint(load_pretrained()),
            "settings": json.loads(json.dumps(settings)), "source": source(experiment.measure)}


def in_order(runs, conditions, seeds):
    """Those of `runs` that an experiment has, in its order."""
    return {c: {str(s): runs[c][str(s)] for s in seeds if str(s) in runs[c]} for c in conditions if c in runs}


def fingerprint(model):
    """SHA-256 (hex) of a model's weights, names and shapes included."""
    digest = hashlib.sha256()
    for name, a in sorted(model.state_dict().items()):
        digest.update(f"{name} {a.dtype} {a.shape} ".encode() + np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


def source(function):
    """SHA-256 (hex) of the code of the function's module without comments, docstrings and its `Experiment(…)` values: what
    these hold is compared by itself."""
    tree = ast.parse(Path(inspect.getsourcefile(function)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node): del node.body[0]
    is_value = lambda node: isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Experiment(")
    code = [ast.unparse(node) for node in tree.body if not is_value(node)]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def now():
    """When, and with which versions."""
    packages = {name: version(name) for name in ("numpy", "scipy", "matplotlib")}
    return {"date": time.strftime("%Y-%m-%d"), "versions": {"python": platform.python_version(), **packages}}


def _measure(task):
    measure, condition, seed, settings = task
    start = time.process_time()
    with blas_threads(1):
        metrics = measure(condition, seed, settings)
    plain = json.loads(json.dumps(metrics, default=lambda a: a.tolist()))         # NumPy's numbers among them
    return condition, seed, plain, time.process_time() - start


@contextlib.contextmanager
def _workers(jobs):
    """A function as `map` that works in `jobs` processes and gives results as they come."""
    if jobs <= 1:
        yield map
    else:
        ignore = signal.SIGINT, signal.SIG_IGN                                    # Ctrl-C is for the parent, which ends them
        with multiprocessing.get_context("spawn").Pool(jobs, signal.signal, ignore) as pool:
            yield pool.imap_unordered


# -- what was measured ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Results:
    """An experiment's numbers over seeds. A metric that is a list has its shape behind the seeds'."""
    record: dict

    @classmethod
    def load(cls, folder, name):
        """Of `folder`/name.json. Raises FileNotFoundError, saying which command measures it."""
        path = Path(folder) / f"{name}.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; `python -m tinypeft figures {name} --rerun` measures it")
        return cls(json.loads(path.read_text(encoding="utf-8")))

    conditions = property(lambda self: tuple(self.record["runs"]))

    @property
    def seeds(self):
        """The seeds that every condition has been measured for."""
        runs = list(self.record["runs"].values())
        return tuple(int(s) for s in (runs[0] if runs else ()) if all(s in r for r in runs))

    def values(self, condition, metric, seeds=None):
        """(seeds, …): one number, or list of them, per seed (None: all it was measured for)."""
        runs, name = self.record["runs"], self.record["experiment"]
        if condition not in runs:
            raise KeyError(f"{name}: no condition {condition!r}; there are {', '.join(runs)}")
        chosen = [runs[condition][str(s)] for s in (runs[condition] if seeds is None else seeds)]
        if metric not in chosen[0]:
            raise KeyError(f"{name}: no metric {metric!r} of {condition!r}; there are {', '.join(chosen[0])}")
        return np.array([r[metric] for r in chosen], float)

    def mean(self, condition, metric):
        return self.values(condition, metric).mean(0)

    def interval(self, condition, metric):
        """Half the width of the mean's 95 % confidence interval (Student's t over seeds)."""
        return half_width(self.values(condition, metric))

    def difference(self, a, b, metric, of_b=None):
        """a − b, paired over the seeds both have: (mean, half width). of_b: b's metric, if it is another."""
        shared = [s for s in self.record["runs"].get(a, {}) if s in self.record["runs"].get(b, {})]
        d = self.values(a, metric, shared) - self.values(b, of_b or metric, shared)
        return d.mean(0), half_width(d)


def half_width(values):
    """Half the width of the 95 % confidence interval of the mean over axis 0, by Student's t; inf for one value."""
    from scipy.stats import t
    values, n = np.asarray(values, float), len(values)
    if n < 2: return np.full(values.shape[1:], np.inf)[()]
    return t.ppf(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
