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

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..effects import Effect, Rows, Share
from ..experiment import Results
from .deltas import FINE_TUNING, Delta
from .measured import Study

__all__ = ["AS_GOOD", "BETTER", "BY_CONSTRUCTION", "CHANCE", "CONTRADICTED", "FAR", "KINDS", "LEVEL", "NOT_MEASURED",
           "NOT_SHOWN", "NO_SIZE", "REPRODUCED", "SIZE_OPEN", "VERDICTS", "WITHIN", "Claim", "Judgement", "Part", "holm",
           "judge", "parts"]

REPRODUCED, SIZE_OPEN, LEVEL, NOT_SHOWN, NO_SIZE, CONTRADICTED = VERDICTS = (
    "reproduced", "reproduced, size open", "level", "not shown", "contradicted, size open", "contradicted here")
NOT_MEASURED, BY_CONSTRUCTION = "not measured", "by construction"
BETTER, FAR, AS_GOOD, WITHIN, CHANCE = KINDS = "better", "far better", "as good as", "within δ", "unlike chance"

ALPHA, FAR_TIMES = 0.05, 5
GAIN = FINE_TUNING.size                                  # δ for a gain in loss, and as large for one in accuracy


# -- what a claim is -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """One claim. text: as the paper states it, or as the study does. paper: arXiv id, or "name: address". number: the paper's
    own numbers ("" if it gives a direction only). own: the claim is the study's; the paper is where the method is from.

    kind: one of KINDS. delta: δ of the metric. contrast: what is compared, in words. refuted: what would refute it. These four
    were registered before the runs (if not, `why` says so), and stay as they were.

    parts: the name of a part → its effect, as arithmetic over what was measured (`measured.py`); positive supports the claim.
    Of "as good as" it is a share of a gain, a / b. trend: the effects of the size, by name, if they were measured (positive: it
    is more true of a larger model). by_construction: why it cannot fail here. why: verdict → some sentences that explain it;
    they are written only for a verdict that was reached.
    """
    text: str
    paper: str
    kind: str
    delta: Delta
    contrast: str
    refuted: str
    parts: Callable[[Study], dict[str, Rows | Effect]]
    number: str = ""
    own: bool = False
    trend: Callable[[Study], dict[str, Effect]] | None = None
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


def parts(kind: str, delta: Delta, e: Effect) -> list[Part]:
    """The part, or the two of "within δ", by the table above. Raises ValueError for a kind that is not in KINDS, and for "as
    good as" if the effect is no share."""
    d = delta.size
    within = -d < e.low and e.high < d
    if kind in (BETTER, FAR, CHANCE):
        return [Part(e, 0.0, e.low >= d * (FAR_TIMES if kind == FAR else 1), within, e.high <= -d)]
    if kind == AS_GOOD and isinstance(e, Share):
        return [Part(e, 1 - d, e.whole.low >= GAIN, False, e.high <= 1 - 2 * d)]
    if kind == AS_GOOD: raise ValueError("a part of the kind 'as good as' is a share of a gain, a / b; got another effect")
    if kind == WITHIN: return [Part(one, -d, True, False, one.high <= -2 * d) for one in (e, -e)]
    raise ValueError(f"a claim's kind is one of {', '.join(KINDS)}, not {kind!r}")


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979, Scandinavian Journal of Statistics 6, 65–70): with p sorted, p_(k) is multiplied by the
    number of those that are left, n − k + 1, and none is smaller than the one before. What is ≤ α may be rejected at α."""
    order, adjusted, least = np.argsort(p), [0.0] * len(p), 0.0
    for k, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - k) * p[i]))
        adjusted[i] = least
    return adjusted


@dataclass
class Judgement:
    """A claim beside what was measured for it. parts: the effect of each part, by name; {} if it was not measured. means: of
    what was read, in words, or the command that measures what the claim lacks. trend: the effects of the model's size, by name;
    {} if they were not measured. names: of the experiments that were read, the main one first. p: two-sided, after Holm; 1 for
    a claim that does not count. Raises ValueError if the claim's kind is none, or not one of such effects.
    """
    claim: Claim
    parts: dict[str, Effect]
    means: str = ""
    trend: dict[str, Effect] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    p: float = 1.0

    def __post_init__(self):
        self.by_rule = [part for e in self.parts.values() for part in parts(self.claim.kind, self.claim.delta, e)]

    @functools.cached_property
    def p_yes(self) -> float:
        """Small if the data say that the claim is right."""
        return max((part.effect.p_above(part.limit) for part in self.by_rule), default=1.0)

    @functools.cached_property
    def p_no(self) -> float:
        """Small if the data say that it is wrong. A part that is level refutes nothing."""
        wrong = [part.effect.p_below(part.limit) for part in self.by_rule if not part.level]
        return min(1.0, len(wrong) * min(wrong)) if wrong else 1.0

    @property
    def verdict(self) -> str:
        """One of VERDICTS, or NOT_MEASURED or BY_CONSTRUCTION."""
        if self.claim.by_construction: return BY_CONSTRUCTION
        if not self.parts: return NOT_MEASURED
        if all(part.level for part in self.by_rule): return LEVEL
        if self.p <= ALPHA and self.p_yes < self.p_no:
            return REPRODUCED if all(part.large for part in self.by_rule) else SIZE_OPEN
        if self.p <= ALPHA and self.p_no < self.p_yes:
            return CONTRADICTED if any(part.wrong for part in self.by_rule) else NO_SIZE
        return NOT_SHOWN

    @property
    def larger_come_nearer(self) -> bool:
        """It is contradicted here, and every trend that was measured says that it is more true of a larger model."""
        failed = self.verdict in (CONTRADICTED, NO_SIZE)
        return failed and bool(self.trend) and all(e.low > 0 for e in self.trend.values())

    @property
    def why(self) -> str:
        """The sentence that explains the verdict, or the reason why there is none; "" if nobody has written it."""
        return self.claim.by_construction or self.claim.why.get(self.verdict, "")


def judge(claims: Iterable[Claim], load: Callable[[str], Results]) -> list[Judgement]:
    """Every claim with its verdict, in order; a claim whose results, conditions or metrics are missing is "not measured".
    load: the results of an experiment, by its name."""
    judged = [measured(claim, load) for claim in claims]
    counted = [j for j in judged if not j.claim.by_construction]
    adjusted = holm([min(1.0, 2 * min(j.p_yes, j.p_no)) for j in counted])
    for j, p in zip(counted, adjusted, strict=True): j.p = p
    return judged


def measured(claim: Claim, load: Callable[[str], Results]) -> Judgement:
    """A claim with what was measured for it, before Holm. Raises ValueError if the claim has no part."""
    study, trend = Study(load), {}
    try: found = {name: x.effect if isinstance(x, Rows) else x for name, x in claim.parts(study).items()}
    except (FileNotFoundError, KeyError):
        means = f"not measured: `python -m tinypeft figures {study.last} --rerun`"
        return Judgement(claim, {}, means, {}, tuple(study.names))
    if not found: raise ValueError(f"the claim {claim.text!r} has no part; its `parts` gave an empty dict")
    means = study.means()
    with contextlib.suppress(FileNotFoundError, KeyError):
        if claim.trend: trend = claim.trend(study)
    return Judgement(claim, found, means, trend, tuple(study.names))
