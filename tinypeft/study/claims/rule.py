"""The rule that judges a claim.

A claim has one contrast, in one metric, with a δ: the difference that matters. It may have several *parts* (two widths, two
tasks), and it is right if all of them are. An effect is signed so that more of it supports the claim.

    kind              a part is right if          it is large if                  it is wrong by δ if
    better            effect > 0                  its interval lies above δ       its interval lies below −δ
    far better        effect > 0                  its interval lies above 5 δ     below −δ
    as good as        share of the gain > 90 %    the gain itself lies above δ    below 80 %
    within δ          −δ < effect < δ             always                          outside of ± 2 δ
    unlike chance     correlation > 0             its interval lies above δ       below −δ

    p_yes = max over parts of the p-value of "this part is not right"        all must be right: intersection–union (Berger 1982)
    p_no  = k · min over k parts of the p-value of "this part is right"      one wrong part suffices: Bonferroni, over the
                                                                             parts whose intervals leave ± δ
    p     = 2 · min(p_yes, p_no), then Holm (1979) over all claims that count, at 5 %

    level                       every part's interval lies within ± δ (not of the kinds "as good as" and "within δ"): a
                                difference, if any, is too small to matter, whatever p says
    reproduced                  else, p ≤ 5 % and p_yes < p_no, and every part is large
    reproduced, size open       the same, but not every part is shown to be large
    contradicted here           p ≤ 5 % and p_no < p_yes, and a part is wrong by δ
    contradicted, size open     the same, but no part is shown to be wrong by δ
    not shown                   anything else: these runs cannot tell

"Within δ" is two one-sided parts (Schuirmann 1987). Intervals are of 95 %, each for itself, and come from the same standard
error as p (`effects.py`). "Larger bases come nearer" is printed beside "contradicted" only if trends over size were measured,
on several bases of each size, and all of them lie above zero. A claim that holds *by construction* has a reason in place of a
verdict, and does not count. A claim that was not measured has p = 1 in Holm's list, so that the list has the same length before
and after.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..effects import Effect
from ..experiment import Results
from .words import pm

__all__ = ["ACCURACY", "AS_GOOD", "AT_LEAST", "BETTER", "BY_CONSTRUCTION", "CHANCE", "CONTRADICTED", "CORRELATION", "FAR",
           "FINE_TUNING", "KINDS", "LENGTH", "LEVEL", "LOGARITHM", "NOT_MEASURED", "NOT_SHOWN", "NO_SIZE", "QUANTIZATION",
           "RELATIVE", "REPRODUCED", "SHARE", "SIZE_OPEN", "SLOPE", "VERDICTS", "WITHIN", "Claim", "Contrast", "Delta",
           "Finding", "Judgement", "Load", "Part", "holm", "judge", "parts", "p_values", "verdict"]

REPRODUCED, SIZE_OPEN, LEVEL, NOT_SHOWN, NO_SIZE, CONTRADICTED = VERDICTS = (
    "reproduced", "reproduced, size open", "level", "not shown", "contradicted, size open", "contradicted here")
NOT_MEASURED, BY_CONSTRUCTION = "not measured", "by construction"
BETTER, FAR, AS_GOOD, WITHIN, CHANCE = KINDS = "better", "far better", "as good as", "within δ", "unlike chance"

ALPHA, FAR_TIMES = 0.05, 5
Load = Callable[[str], Results]                          # the results of an experiment, by its name


# -- what a claim is -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Delta:
    """The difference that matters. size: in the metric's own unit. unit: as a reader sees it, `times` as large."""
    size: float
    unit: str
    form: str = "{:+.3f}"
    times: float = 1

    def __str__(self) -> str: return f"{self.times * self.size:g} {self.unit}"

    def show(self, e: Effect) -> str:
        """"mean ± half of the interval", and the unit unless it is nats/token."""
        return pm(e, self.form, self.times) + f" {self.unit}" * self.unit.startswith("%")


FINE_TUNING, QUANTIZATION = Delta(0.02, "nats/token"), Delta(0.01, "nats/token")     # losses after training; excess of rounding
ACCURACY, SHARE = Delta(0.02, "points", "{:+.1f}", 100), Delta(0.10, "% of the gain", "{:+.0f}", 100)
RELATIVE, CORRELATION = Delta(0.10, "% of the error", "{:+.0f}", 100), Delta(0.3, "of a correlation", "{:+.2f}")
AT_LEAST = replace(SHARE, form="{:.0f}")                 # of "as good as": the share itself
LOGARITHM = Delta(0.3, "of a logarithm to base 10 (a factor of 2)", "{:+.2f}")
LENGTH = Delta(0.01, "% of a length", "{:+.1f}", 100)
SLOPE = Delta(0.1, "of an exponent", "{:+.2f}")


@dataclass(frozen=True)
class Contrast:
    """What was measured of one part. name: of the part, in a few words. effect: signed, positive supports the claim; of "as
    good as", the share of the gain. gain, worth: of "as good as", the gain of which it is a share, and the δ for it."""
    name: str
    effect: Effect
    gain: Effect | None = None
    worth: Delta = FINE_TUNING


@dataclass(frozen=True)
class Finding:
    """measured: means in words, Markdown, without intervals that invite an unpaired comparison. contrasts: the parts."""
    measured: str
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Claim:
    """One claim. text: as the paper states it, or as the study does. paper: arXiv id, or "name: address". number: the paper's
    own numbers ("" if it gives a direction only). own: the claim is the study's; the paper is where the method is from.

    kind: one of KINDS. delta: δ of the metric. contrast: what is compared, in words. refuted: what would refute it.
    needs: names of the results that `test` and `trend` read. test: the function that measures. trend: the effects of the size,
    by name, if they were measured (positive: it is more true of a larger model). by_construction: why it cannot fail here.
    why: verdict → one sentence that explains it; a sentence is written only for a verdict that was reached.
    """
    text: str
    paper: str
    number: str
    contrast: str
    refuted: str
    needs: tuple[str, ...]
    test: Callable[[Load], Finding]
    kind: str
    delta: Delta
    own: bool = False
    trend: Callable[[Load], dict[str, Effect]] | None = None
    by_construction: str = ""
    why: dict[str, str] = field(default_factory=dict, hash=False)


# -- the rule --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """A part as the rule sees it: it is right if effect > limit. large, level, wrong: see the table above."""
    effect: Effect
    limit: float
    large: bool
    level: bool
    wrong: bool


def parts(kind: str, delta: Delta, contrast: Contrast) -> list[Part]:
    """The part, or the two of "within δ", by the table above. Raises ValueError for a kind that is not in KINDS."""
    e, d = contrast.effect, delta.size
    within = -d < e.low and e.high < d
    if kind in (BETTER, FAR, CHANCE):
        return [Part(e, 0.0, e.low >= d * (FAR_TIMES if kind == FAR else 1), within, e.high <= -d)]
    if kind == AS_GOOD: return [Part(e, 1 - d, contrast.gain.low >= contrast.worth.size, False, e.high <= 1 - 2 * d)]
    if kind == WITHIN: return [Part(one, -d, True, False, one.high <= -2 * d) for one in (e, -e)]
    raise ValueError(f"a claim's kind is one of {', '.join(KINDS)}, not {kind!r}")


def p_values(of: Sequence[Part]) -> tuple[float, float]:
    """(p_yes, p_no) of a claim with these parts: small if the data say that it is right, and that it is wrong. A part that is
    level refutes nothing."""
    yes = max(part.effect.p_above(part.limit) for part in of)
    wrong = [part.effect.p_below(part.limit) for part in of if not part.level]
    return yes, min(1.0, len(wrong) * min(wrong)) if wrong else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979, Scandinavian Journal of Statistics 6, 65–70): with p sorted, p_(k) is multiplied by the
    number of those that are left, n − k + 1, and none is smaller than the one before. What is ≤ α may be rejected at α."""
    order, adjusted, least = np.argsort(p), [0.0] * len(p), 0.0
    for k, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - k) * p[i]))
        adjusted[i] = least
    return adjusted


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict. finding: None if it was not measured. p_yes, p_no: of its parts. p: two-sided, after Holm; 1
    for a claim that does not count. trend: the effects of the model's size, by name, if they were measured."""
    claim: Claim
    verdict: str
    finding: Finding | None = None
    p_yes: float = 1.0
    p_no: float = 1.0
    p: float = 1.0
    trend: dict[str, Effect] | None = None

    @property
    def larger_come_nearer(self) -> bool:
        """It is contradicted here, and every trend that was measured says that it is more true of a larger model."""
        failed = self.verdict in (CONTRADICTED, NO_SIZE)
        return failed and bool(self.trend) and all(e.low > 0 for e in self.trend.values())

    @property
    def why(self) -> str:
        """The sentence that explains the verdict, or the reason why there is none; "" if nobody has written it."""
        return self.claim.by_construction or self.claim.why.get(self.verdict, "")


def judge(claims: Iterable[Claim], load: Load) -> list[Judgement]:
    """Every claim with its verdict, in order; a claim whose results, conditions or metrics are missing is "not measured"."""
    claims = list(claims)
    found = [measured(claim.test, load) for claim in claims]
    of = [[part for c in f.contrasts for part in parts(claim.kind, claim.delta, c)] if f else []
          for claim, f in zip(claims, found, strict=True)]
    p = [p_values(each) if each else (1.0, 1.0) for each in of]
    counted = [i for i, claim in enumerate(claims) if not claim.by_construction]
    adjusted = dict(zip(counted, holm([min(1.0, 2 * min(p[i])) for i in counted]), strict=True))
    judged = []
    for i, claim in enumerate(claims):
        if claim.by_construction: said = BY_CONSTRUCTION
        elif not found[i]: said = NOT_MEASURED
        else: said = verdict(of[i], *p[i], adjusted[i])
        trend = measured(claim.trend, load) if claim.trend else None
        judged.append(Judgement(claim, said, found[i], *p[i], adjusted.get(i, 1.0), trend))
    return judged


def verdict(of: Sequence[Part], p_yes: float, p_no: float, p: float) -> str:
    """One of VERDICTS. p: after Holm. Raises ValueError without a part."""
    if not of: raise ValueError("verdict: the claim has no contrast; a finding needs at least one")
    if all(part.level for part in of): return LEVEL
    if p <= ALPHA and p_yes < p_no: return REPRODUCED if all(part.large for part in of) else SIZE_OPEN
    if p <= ALPHA and p_no < p_yes: return CONTRADICTED if any(part.wrong for part in of) else NO_SIZE
    return NOT_SHOWN


def measured(test: Callable, load: Load):
    """What `test` finds in the results; None if there is no such file, condition or metric yet."""
    try:
        return test(load)
    except (FileNotFoundError, KeyError):
        return None
