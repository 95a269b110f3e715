"""What was measured, as a claim's expression reads it.

    s.rank["64"]                        the losses of a condition: a number for each seed and document
    s.rank["64"] - s.rank["64/sqrt"]    their difference, paired over seeds and documents
    s.methods.accuracy["full"]          another metric
    s.dylora["DyLoRA", 2]               entry 2 of a list
    s.gain(s.rank["1"]) / s.gain(s.rank["64"])              a share of a gain over the frozen base
    f"{s.rank['64']}", f"{s.methods.accuracy['full']:.1%}"  the mean, in words

What an expression reads is `Rows` (`effects.py`); these know how to add, subtract and divide.
"""
from __future__ import annotations

from collections.abc import Callable

from ..effects import Rows, read
from ..experiment import Results

__all__ = ["Measured", "Study"]

WORDS = {"loss": "{} nats/token", "excess": "excess {}"}  # metric → how its means are listed


class Study:
    """The results of every experiment, by name.

    load: a name → `Results`. Its FileNotFoundError passes, because it names the command that
    measures them. names: of the experiments that were read, in order. last: the last of them.
    shown: metric → condition → its mean, of what was read by [...].
    """
    def __init__(self, load: Callable[[str], Results]):
        self.load, self.last = load, ""
        self.names: list[str] = []
        self.shown: dict[str, dict[str, str]] = {}

    def __getattr__(self, name: str) -> Measured: return Measured(self, name)

    def results(self, name: str) -> Results:
        """Return the results of an experiment, and note its name first."""
        if name not in self.names: self.names.append(name)
        self.last = name
        return self.load(name)

    def gain(self, rows: Rows) -> Rows:
        """By how much a loss lies below that of the frozen base, or an accuracy above its own."""
        of_accuracy = rows.metric == "accuracy"
        frozen = read(self.results("methods"), "frozen", rows.metric if of_accuracy else "loss")
        return rows - frozen if of_accuracy else frozen - rows

    def means(self) -> str:
        """The means of what was read by [...], in words."""
        said = []
        for metric, means in self.shown.items():
            comma = "; " if any(", " in condition for condition in means) else ", "
            text = comma.join(f"{condition} {mean}" for condition, mean in means.items())
            said.append(WORDS.get(metric, f"{metric} {{}}").format(text))
        return "; ".join(said)


class Measured:
    """One metric of an experiment, by condition. Its attributes are the experiment's metrics."""
    def __init__(self, study: Study, name: str, metric: str = "loss"):
        self.study, self.name, self.metric = study, name, metric

    def __getattr__(self, metric: str) -> Measured: return Measured(self.study, self.name, metric)

    @property
    def results(self) -> Results: return self.study.results(self.name)

    @property
    def conditions(self) -> tuple[str, ...]: return self.results.conditions

    @property
    def settings(self) -> dict: return self.results.record["settings"]

    def __getitem__(self, what: str | tuple[str, int]) -> Rows:
        """The rows of a condition, or of (condition, entry of the list).

        Raises KeyError, which lists what there is, for another condition or metric.
        """
        condition, i = what if isinstance(what, tuple) else (what, None)
        rows = read(self.results, condition, self.metric, i)
        label = condition if i is None else f"{condition} [{i}]"
        self.study.shown.setdefault(self.metric, {})[label] = f"{rows}"
        return rows

    def listed(self, *conditions: str) -> str:
        """"condition mean" of these conditions, or of all."""
        return ", ".join(f"{c} {self[c]}" for c in conditions or self.conditions)
