"""What was measured, as a claim's expression reads it.

    s.rank["64"]                        the losses of a condition: a number for each seed and document
    s.rank["64"] - s.rank["64/sqrt"]    their difference, paired over seeds and documents
    s.methods.accuracy["full"]          another metric
    s.dylora["DyLoRA", 2]               entry 2 of a list
    s.smoothquant.error.at("token", alphas=0.5)             the entry of the setting `alphas` that is 0.5
    s.prompts.gain.on_bases("full {}", "small")             a row for each base of a size
    s.gain(s.rank["1"]) / s.gain(s.rank["64"])              a share of a gain over the frozen base

What an expression reads is `Rows` (`effects.py`); these know how to add, subtract and divide. The means of all that it read
stand beside the effect that it comes to.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..bases import draws_of
from ..effects import Rows, averaged, read
from ..experiment import Results

__all__ = ["Measured", "Study"]

PERCENT = "accuracy", "error", "normal", "norms", "output_error", "weight_error"      # metrics that are shown in per cent
NATS = ("loss", "after", "before", "excess", "forgetting", "forgotten", "gain", "learned", "loss_svd", "merged_and_rounded",
        "parts", "validation")                           # those in nats/token
WORDS = {                                                # those whose names do not say what they are
    "after": "after training", "log_best": "logarithm of the best rate", "loss_svd": "cut by SVD",
    "normal": "error on normal numbers", "norms": "change of lengths", "parts": "excess"}
SHORT = 12                                               # entries of a list that is shown in full


class Study:
    """The results of every experiment, by name.

    load: a name → `Results`. Its FileNotFoundError passes, because it names the command that
    measures them. names: of the experiments that were read, in order. last: the last of them.
    shown: (experiment, metric) → condition → its mean, of what was read.
    """
    def __init__(self, load: Callable[[str], Results]):
        self.load, self.last = load, ""
        self.names: list[str] = []
        self.shown: dict[tuple[str, str], dict[str, str]] = {}

    def __getattr__(self, name: str) -> Measured: return Measured(self, name)

    def gain(self, rows: Rows) -> Rows:
        """By how much a loss lies below that of the frozen base, or an accuracy above its own."""
        if rows.metric == "accuracy": return rows - self.methods.accuracy["frozen"]
        return self.methods["frozen"] - rows

    def means(self) -> str:
        """The means of what was read, in words: conditions, metric (none for the loss), experiment."""
        said = []
        for (name, metric), means in self.shown.items():
            unit = " nats/token" if metric in NATS else ""
            words = "" if metric == "loss" else f"{WORDS.get(metric, metric.replace('_', ' '))}, "
            said.append(f"{grouped(means)}{unit} ({words}{name})")
        return "; ".join(said)


class Measured:
    """One metric of an experiment, by condition. Its attributes are the experiment's metrics."""
    def __init__(self, study: Study, name: str, metric: str = "loss"):
        self.study, self.name, self.metric = study, name, metric

    def __getattr__(self, metric: str) -> Measured: return Measured(self.study, self.name, metric)

    @property
    def results(self) -> Results:
        """The results of the experiment, whose name is noted first."""
        if self.name not in self.study.names: self.study.names.append(self.name)
        self.study.last = self.name
        return self.study.load(self.name)

    @property
    def settings(self) -> dict: return self.results.record["settings"]

    def __getitem__(self, what: str | tuple[str, int]) -> Rows:
        """The rows of a condition, or of (condition, entry of the list).

        Raises KeyError, which lists what there is, for another condition or metric.
        """
        condition, i = what if isinstance(what, tuple) else (what, None)
        rows = read(self.results, condition, self.metric, i)
        shown = self.study.shown.setdefault((self.name, self.metric), {})
        shown[condition] = in_words(self.results.mean(condition, self.metric), self.metric)
        return rows

    def at(self, condition: str, **setting: float) -> Rows:
        """The rows of the entry of a list that was measured with this value of a setting."""
        ((name, value),) = setting.items()
        return self[condition, self.settings[name].index(value)]

    def on_bases(self, condition: str, size: str) -> Rows:
        """A row for each base of a size: they are what is drawn. condition: with {} for the base."""
        return averaged(*(self[condition.format(base)] for base in draws_of(size)))


def grouped(means: dict[str, str]) -> str:
    """Conditions and their means, together if they differ before the first comma only: "3 bits: GPTQ 0.274, AWQ 0.283"."""
    groups: dict[str, list[str]] = {}
    for condition, mean in means.items():
        first, _, others = condition.partition(", ")
        groups.setdefault(others, []).append(f"{first} {mean}" if others else f"{first}: {mean}")
    return "; ".join(f"{others}: {', '.join(said)}" if others else ", ".join(said) for others, said in groups.items())


def in_words(mean: np.ndarray, metric: str) -> str:
    """A mean, or those of a list: of a long one the least and the greatest. Of a nested list it has
    the means of the inner ones."""
    means = np.atleast_1d(mean).reshape(len(mean) if mean.ndim else 1, -1).mean(1)
    if len(means) > SHORT: return f"{min(means):.3f} to {max(means):.3f}"
    percent = metric in PERCENT
    return " / ".join(f"{100 * x:.1f}" if percent else f"{x:.3f}" for x in means) + " %" * percent
