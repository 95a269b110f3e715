"""The rule that judges a claim, and the helpers from which the tests of claims are made.

A claim is tested by one or more *effects*. Each effect is signed so that a positive number supports the claim, and each
has a 95 % confidence interval over seeds (Student's t, paired where two methods saw the same seeds):

    reproduced          every interval lies above zero
    contradicted        every interval lies below −margin
    not at this size    anything else: no clear effect, or effects that disagree

"A is better than B" has the difference as its effect, and margin 0. "A is as good as B" measures the share of B's gain
over the frozen base that A reaches; the effect is this share minus 0.9, and the margin is 0.4. So nine tenths of the
gain reproduce the claim, and less than half of it contradicts the claim.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ..experiment import Results, half_width

__all__ = ["CONTRADICTED", "NOT_AT_THIS_SIZE", "REPRODUCED", "VERDICTS", "Claim", "Finding", "Load", "against", "as_good",
           "effect", "entry", "listed", "percent", "pm", "share_of_gain", "slashed", "verdict"]

REPRODUCED, NOT_AT_THIS_SIZE, CONTRADICTED = VERDICTS = "reproduced", "not at this size", "contradicted"
Load = Callable[[str], Results]                          # the results of an experiment, by its name


@dataclass(frozen=True)
class Finding:
    """What was measured. measured: the numbers in words, Markdown. effects: (mean, half width) pairs, positive where they
    support the claim. margin: how far below zero an interval must lie to contradict the claim."""
    measured: str
    effects: tuple[tuple[float, float], ...]
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One claim of a paper. text: the claim. paper: its arXiv id. paper_number: the paper's own numbers ("" if it gives a
    direction only). experiment: names of the results the test reads. test: the function that judges. why: verdict → one
    sentence that explains it; a sentence is written only for a verdict that was reached."""
    text: str
    paper: str
    paper_number: str
    experiment: tuple[str, ...]
    test: Callable[[Load], Finding]
    why: dict[str, str] = field(default_factory=dict)


def verdict(finding: Finding) -> str:
    """One of VERDICTS, by the rule above. Raises ValueError if the finding has no effect."""
    if not finding.effects:
        raise ValueError(f"verdict: {finding.measured!r} has no effect; a finding needs at least one effect to be judged")
    if all(mean - half > 0 for mean, half in finding.effects): return REPRODUCED
    if all(mean + half < -finding.margin for mean, half in finding.effects): return CONTRADICTED
    return NOT_AT_THIS_SIZE


# -- effects -----------------------------------------------------------------------------------------
def effect(values: np.ndarray) -> tuple[float, float]:
    """(mean, half width) of one number per seed."""
    return float(np.mean(values)), float(half_width(values))


def against(results: Results, better: str, worse: str, metric: str = "excess") -> tuple[float, float]:
    """By how much `worse` exceeds `better`, paired over seeds: positive if a claim that `better` is lower holds."""
    return results.difference(worse, better, metric)


def share_of_gain(loss: np.ndarray, full: np.ndarray, frozen: np.ndarray | float) -> np.ndarray:
    """The share of `full`'s gain over the frozen base that `loss` reaches, one number per seed."""
    return (frozen - loss) / (frozen - full)


def as_good(shares: Iterable[np.ndarray]) -> tuple[tuple[tuple[float, float], ...], float]:
    """The effects and the margin of "as good as", for shares of a gain."""
    return tuple(effect(share - 0.9) for share in shares), 0.4


def entry(results: Results, condition: str, metric: str, i: int) -> np.ndarray:
    """Entry i of a metric that is a list, one number per seed."""
    return results.values(condition, metric)[:, i]


# -- numbers in words ----------------------------------------------------------------------------------
def pm(values, form: str = "{:.3f}") -> str:
    """"mean ± half width" of one number per seed; the mean alone if nothing varies."""
    mean, half = effect(np.asarray(values, float))
    return form.format(mean) + (f" ± {form.format(half)}" if half > 0 else "")


def percent(values, digits: int = 0) -> str:
    """The same in per cent."""
    return pm(100 * np.asarray(values), f"{{:.{digits}f}}") + " %"


def listed(results: Results, conditions: Iterable[str], metric: str = "excess") -> str:
    """"condition mean ± half width" for each condition."""
    return ", ".join(f"{c} {pm(results.values(c, metric))}" for c in conditions)


def slashed(values: np.ndarray) -> str:
    """Means over seeds of (seeds, n) numbers: "1.000 / 2.000 / …"."""
    return " / ".join(f"{x:.3f}" for x in values.mean(0))
