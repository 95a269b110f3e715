"""An experiment is a function of (condition's value, seed, settings) to numbers; what it measures is kept in a file.

    RANK = Experiment("rank", "LoRA's test loss at rank r.", {"loss": "nats/token, domain test"}, measure,
                      conditions={"1": LoRA(rank=1), "8": LoRA(rank=8)}, settings={"steps": 150}, quick={"steps": 5})
    run(RANK, "figures/results")                         # of `measuring.py`: measures what is missing
    r = load("figures/results", "rank")                  # of `stored.py`
    r.mean("8", "loss"), r.interval("8", "loss")         # over seeds; ± half of the 95 % confidence interval
    r.difference("1", "8", "loss")                       # paired over seeds: (mean, half width)

The file says of what the numbers are: the settings, and every field of every condition. Pictures and tables read these files
only. Whether today's code still gives the numbers is measured, by `check` of `checking.py`.
"""
from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import effects

__all__ = ["Experiment", "Results", "as_lists", "half_width"]


@dataclass(frozen=True)
class Experiment:
    """name: of the results file. about: one sentence, what is measured. metrics: metric → its unit and meaning.

    measure: (value, seed, settings) → dict metric → number or (nested) list of numbers; a function of a module. It runs in a
        process of its own with one BLAS thread, beside others: train and evaluate with workers=1.
    conditions: label → value: a method, a scheme, or a small frozen dataclass or tuple of plain values. What decides the
        numbers of one condition alone belongs into its value, so that other conditions do not depend on it.
    settings: everything else that decides the numbers, JSON-able. seeds: one run each.
    quick: settings of a smoke run; its "conditions" (labels) and "seeds", if it has fewer.
    """
    name: str
    about: str
    metrics: dict[str, str]
    measure: Callable[[object, int, dict], dict]
    conditions: dict[str, object]
    settings: dict
    quick: dict
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def smoke_run(self) -> Experiment:
        """The same with its `quick` settings, conditions and seeds: a few seconds that show that it works."""
        settings = self.settings | self.quick
        labels, seeds = settings.pop("conditions", self.conditions), settings.pop("seeds", self.seeds)
        return dataclasses.replace(self, settings=settings, seeds=seeds, conditions={c: self.conditions[c] for c in labels})


def as_lists(found: Iterable[dict]) -> dict[str, list]:
    """Turn the metrics of several runs, such as one at every rate, into a list for each metric."""
    found = list(found)
    return {metric: [metrics[metric] for metrics in found] for metric in found[0]}


# -- what was measured ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Results:
    """An experiment's numbers over seeds. A metric that is a list has its shape behind the seeds'. texts: the tokens of every
    document, one array for each test text (experiment `texts`)."""
    record: dict
    texts: tuple[np.ndarray, ...] = ()

    @staticmethod
    def read(folder: str | Path, name: str) -> dict:
        """What `folder`/name.json holds, whether it is stale or not. Raises FileNotFoundError, which names the command that
        measures it."""
        path = Path(folder) / f"{name}.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; `python -m tinypeft figures {name} --rerun` measures it")
        return json.loads(path.read_text(encoding="utf-8"))

    @property
    def conditions(self) -> tuple[str, ...]:
        """The labels of what was measured."""
        return tuple(self.record["runs"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that every condition has been measured for."""
        runs = list(self.record["runs"].values())
        return tuple(int(s) for s in (runs[0] if runs else ()) if all(s in r for r in runs))

    def values(self, condition: str, metric: str) -> np.ndarray:
        """(seeds, …): one number, or list of numbers, per seed."""
        runs, name = self.record["runs"], self.record["experiment"]
        if condition not in runs:
            raise KeyError(f"{name}: no condition {condition!r}; there are {', '.join(runs)}")
        measured = list(runs[condition].values())
        if metric not in measured[0]:
            raise KeyError(f"{name}: no metric {metric!r} of {condition!r}; there are {', '.join(measured[0])}")
        return np.array([r[metric] for r in measured], float)

    def mean(self, condition: str, metric: str) -> np.ndarray:
        """Mean over seeds."""
        return self.values(condition, metric).mean(0)

    def tokens(self, documents: int) -> np.ndarray:
        """The tokens of the documents of that test text which has so many. Raises KeyError if none has."""
        found = [tokens for tokens in self.texts if len(tokens) == documents]
        if not found: raise KeyError(f"{self.record['experiment']}: no text of {documents} documents in texts.json")
        return found[0]

    def interval(self, condition: str, metric: str, beside: Iterable[tuple[str, str]] | None = None) -> np.ndarray:
        """Half the width of the 95 % interval of a mean: over seeds, or, if its documents are stored, over seeds and documents,
        of what tells it from the means that are shown beside it (`effects.among`).

        beside: these, as (condition, metric); None: the metric in all other conditions, or, if none has it, the loss in all.
        """
        values = self.values(condition, metric)
        if not self.by_document(condition, metric): return half_width(values)
        others = [(c, metric) for c in self.conditions] if beside is None else beside
        others = [(c, m) for c, m in others if (c, m) != (condition, metric) and self.by_document(c, m)]
        if not others: others = [(c, "loss") for c in self.conditions if metric != "loss" and self.by_document(c, "loss")]
        rows = lambda i: [effects.read(self, c, m, i) for c, m in ((condition, metric), *others)]
        return each(values, lambda i: effects.among(*rows(i)).half)

    def by_document(self, condition: str, metric: str) -> bool:
        """Are the documents of a condition's metric stored?"""
        return all(f"{metric}_documents" in run for run in self.record["runs"][condition].values())

    def difference(self, a: str, b: str, metric: str, of_b: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """a − b, paired over the seeds both have and over documents: (mean, half width). of_b: b's metric, if it is another."""
        def at(i):
            e = (effects.read(self, a, metric, i) - effects.read(self, b, of_b or metric, i)).effect
            return e.mean, e.half
        found = each(self.values(a, metric), at)
        return found[..., 0], found[..., 1]


def each(values: np.ndarray, of: Callable[[int | None], float]) -> np.ndarray:
    """Apply `of` to every entry of a metric that is a list of numbers, (seeds, n), or to None if it is a number, (seeds,)."""
    return np.array([of(i) for i in range(values.shape[1])] if values.ndim > 1 else of(None))


def half_width(values) -> np.ndarray:
    """Half the width of the 95 % confidence interval of the mean over axis 0, by Student's t; inf for one value."""
    from scipy.stats import t
    values, n = np.asarray(values, float), len(values)
    if n < 2: return np.full(values.shape[1:], np.inf)[()]
    return t.ppf(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
