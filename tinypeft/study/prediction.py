"""Does a new run agree with what the study stored? An interval for the mean of m new seeds, from n stored ones.

    x̄ ± t(0.975, n − 1) s √(1/n + 1/m)

x̄ and s are the mean and the standard deviation over the stored seeds. If old and new values come from one normal
distribution, 95 % of all new means lie inside: both means are uncertain, so the interval is wider than that of x̄ alone. A
frozen base has s = 0; half of the last digit that is shown is added, because machines round differently.

The rows of a run share batches, calibration and test text. So several can lie outside together, for one reason.
"""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from .compared import TRAINED_AS_LONG
from .conditions import changed
from .experiment import Results
from .experiments import EXPERIMENTS
from .measuring import unlike_here

__all__ = ["beside", "predicted", "verdict"]

DIGIT = 0.0005                                           # half of the last of three decimals


def predicted(values, m: int) -> tuple[float, float]:
    """The middle of the interval and half of its width. values: (n,), at least two. m: new seeds."""
    from scipy.stats import t
    values = np.asarray(values, float)
    n = len(values)
    if n < 2: raise ValueError(f"predicted: expected at least two stored values, got {n}")
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) * math.sqrt(1 / n + 1 / m)
    return float(values.mean()), float(half)


def verdict(new: float, values, m: int) -> dict:
    """What stands beside a mean of m new seeds: "mean" and "half" of the interval, stored "seeds", and whether it is
    "inside"."""
    mean, half = predicted(values, m)
    return {"mean": mean, "half": half, "seeds": len(values), "inside": abs(new - mean) <= half + DIGIT}


def beside(record: dict, folder: Path) -> list[str]:
    """Put a `verdict`, "study", into every row of a record of `compare` whose number is stored in `folder`. Returns sentences
    that say which are not, and why."""
    said = []
    new = {("first_look", r["name"]): (r, r["loss"], len(r["losses"])) for r in record["methods"]}
    for r in record["schemes"]:
        if r["label"] != "float32": new["qat" if r["label"] == TRAINED_AS_LONG else "schemes", r["label"]] = r, r["excess"], 1
    for name in dict.fromkeys(name for name, _ in new):
        stored, why = comparable(name, folder)
        if why: said.append(why)
        if stored is None: continue
        rows = {label: of for (experiment, label), of in new.items() if experiment == name}
        metric = "loss" if name == "first_look" else "excess"
        there = {label: stored.values(label, metric) for label in rows if label in stored.conditions}
        for label, values in there.items():
            r, value, m = rows[label]
            if len(values) > 1: r["study"] = verdict(value, values, m)
        if name == "schemes" and there:                  # all rows have the same test text
            label = next(iter(there))
            exact, float32 = stored.values(label, "loss") - there[label], record["schemes"][0]
            if len(exact) > 1: float32["study"] = verdict(float32["loss"], exact, 1)
    return said


def comparable(name: str, folder: Path) -> tuple[Results | None, str]:
    """An experiment's stored results, and a sentence if there is something to know about them. None instead of results: they
    are not there, or are of other conditions or settings."""
    if not (folder / f"{name}.json").exists():
        return None, f"The study's experiment {name} has not been measured: `python -m tinypeft figures {name} --rerun`."
    results = Results(Results.read(folder, name))
    why = list(dict.fromkeys(line for lines in changed(EXPERIMENTS[name], results.record).values() for line in lines))
    if why: return None, f"What the study stored of {name} is another measurement: {'; '.join(why[:3])}."
    elsewhere = unlike_here(results.record)
    return results, f"The study measured {name} with something else: {'; '.join(elsewhere)}." if elsewhere else ""
