"""The rule: every verdict can be reached for every kind of claim, Holm is Holm's, and the page prints the rule."""
import itertools

import numpy as np
import pytest

from tinypeft.study.claims import deltas, rule, tables
from tinypeft.study.claims.deltas import AT_LEAST, CORRELATION, FINE_TUNING, Delta
from tinypeft.study.claims.rule import (
    AS_GOOD,
    BETTER,
    CHANCE,
    CONTRADICTED,
    FAR,
    KINDS,
    LEVEL,
    NO_SIZE,
    NOT_SHOWN,
    REPRODUCED,
    SIZE_OPEN,
    VERDICTS,
    WITHIN,
    Claim,
    Judgement,
    holm,
    judge,
    parts,
)
from tinypeft.study.effects import Effect, Share

DELTA = {BETTER: FINE_TUNING, FAR: FINE_TUNING, WITHIN: FINE_TUNING, AS_GOOD: AT_LEAST, CHANCE: CORRELATION}


def claim(kind, *effects, text="x", gain=(0.5, 0.01), **options):
    """A claim of which the parts have these effects: (mean, standard error), each with 7 degrees of freedom."""
    found = [Share(*e, 7, Effect(*gain, 7)) if kind == AS_GOOD else Effect(*e, 7) for e in effects]
    of = {f"part {i}": e for i, e in enumerate(found)}
    return Claim(text, "2106.09685", kind, DELTA[kind], "a minus b", "b is ahead", lambda s: of, **options)


def judged(*claims):
    return [j.verdict for j in judge(claims, lambda name: None)]


# -- verdicts --------------------------------------------------------------------------------------
REACHED = {
    BETTER: {REPRODUCED: (0.05, 0.005), SIZE_OPEN: (0.02, 0.003), LEVEL: (0.012, 0.002), CONTRADICTED: (-0.05, 0.005),
             NO_SIZE: (-0.02, 0.003), NOT_SHOWN: (0.01, 0.02)},
    FAR: {REPRODUCED: (0.15, 0.01), SIZE_OPEN: (0.05, 0.005), LEVEL: (0.002, 0.004), CONTRADICTED: (-0.05, 0.005),
          NO_SIZE: (-0.02, 0.003), NOT_SHOWN: (0.1, 0.1)},
    AS_GOOD: {REPRODUCED: (0.97, 0.01), CONTRADICTED: (0.73, 0.01), NO_SIZE: (0.83, 0.01), NOT_SHOWN: (0.9, 0.1)},
    WITHIN: {REPRODUCED: (0.008, 0.002), CONTRADICTED: (0.06, 0.005), NO_SIZE: (-0.035, 0.003), NOT_SHOWN: (0.015, 0.01)},
    CHANCE: {REPRODUCED: (0.8, 0.05), SIZE_OPEN: (0.35, 0.05), LEVEL: (0.02, 0.05), CONTRADICTED: (-0.5, 0.05),
             NO_SIZE: (-0.35, 0.05), NOT_SHOWN: (0.3, 0.3)}}


@pytest.mark.parametrize("kind, says", [(kind, says) for kind in KINDS for says in REACHED[kind]])
def test_every_kind_reaches_its_verdicts(kind, says):
    """Beside ten claims that these runs leave open, as in a study of many claims."""
    others = [claim(BETTER, (0.0, 0.1), text=str(i)) for i in range(10)]
    assert judged(claim(kind, REACHED[kind][says]), *others)[0] == says


def test_every_verdict_is_reached():
    """A share of a gain that is itself too small leaves the size of "as good as" open. "As good as" and "within δ" ask for
    nothing that could be level, and "within δ" for nothing that could be too small."""
    assert judged(claim(AS_GOOD, (0.97, 0.01), gain=(0.015, 0.002))) == [SIZE_OPEN]
    assert judged(claim(AS_GOOD, (0.97, 0.01), gain=(0.022, 0.0005))) == [REPRODUCED]
    assert set(KINDS) == set(REACHED)
    lacks = {AS_GOOD: {LEVEL, SIZE_OPEN}, WITHIN: {LEVEL, SIZE_OPEN}}
    for kind, reached in REACHED.items(): assert set(reached) | lacks.get(kind, set()) == set(VERDICTS), kind


def test_level_is_asked_before_p():
    """A difference that is surely there and surely too small to matter is level, for and against a claim."""
    assert judged(claim(BETTER, (0.01, 0.0005))) == [LEVEL] == judged(claim(BETTER, (-0.01, 0.0005)))


def test_within_is_refuted_on_both_sides():
    assert judged(claim(WITHIN, (-0.06, 0.005))) == [CONTRADICTED] == judged(claim(WITHIN, (0.06, 0.005)))


@pytest.mark.parametrize("effects, says", [
    ([(0.05, 0.005), (0.06, 0.005)], REPRODUCED), ([(0.05, 0.005), (0.012, 0.002)], SIZE_OPEN),
    ([(0.05, 0.005), (-0.02, 0.003)], NO_SIZE), ([(0.05, 0.005), (-0.012, 0.002)], NOT_SHOWN),
    ([(0.05, 0.005), (-0.05, 0.005)], CONTRADICTED), ([(0.05, 0.005), (0.0, 0.004)], NOT_SHOWN),
    ([(0.0, 0.004), (0.001, 0.004)], LEVEL), ([(0.05, 0.005), (0.01, 0.01)], NOT_SHOWN)])
def test_all_parts_must_hold_and_one_that_fails_refutes(effects, says):
    assert judged(claim(BETTER, *effects)) == [says]


def test_p_of_parts_by_hand():
    of = claim(BETTER, (0.02, 0.01), (-0.01, 0.01), (0.0, 0.01))
    found = of.parts(None)
    j = Judgement(of, found)
    each = [e.p_above() for e in found.values()]
    assert j.p_yes == max(each) and j.p_no == pytest.approx(3 * min(1 - p for p in each))
    assert Judgement(of, {i: found["part 0"] for i in range(40)}).p_no == 1.0               # a probability
    level = Effect(-0.01, 0.001, 7)
    assert Judgement(of, found | {"level": level}).p_no == j.p_no                           # what is level refutes nothing
    alone = Judgement(of, {"level": level})
    assert (alone.p_yes, alone.p_no, alone.verdict) == (level.p_above(), 1.0, LEVEL)


def test_a_level_claim_takes_no_factor_from_the_others():
    """Its p is no proof, so Holm's list is as long for the other claims as if it were open."""
    level, clear = claim(BETTER, (-0.003, 0.001)), claim(BETTER, (0.05, 0.015), text="clear")
    first, second = judge([level, clear], lambda name: None)
    assert first.verdict == LEVEL and first.p == 1.0
    assert second.p == pytest.approx(2 * 2 * min(second.p_yes, second.p_no))


def test_the_edges_of_the_rule():
    """5 % itself counts; δ itself is large; a part is needed; a kind must be known, and "as good as" is about shares."""
    (one,) = parts(BETTER, Delta(0.5, ""), Effect(0.5, 0.0, 7))
    said = [Judgement(claim(BETTER), {"a": Effect(0.05, 0.001, 7)}, p=p).verdict for p in (0.05, 0.0501)]
    assert one.large and said == [REPRODUCED, NOT_SHOWN]
    with pytest.raises(ValueError, match="the claim 'x' has no part"): judged(claim(BETTER))
    with pytest.raises(ValueError, match="kind is one of better"): parts("nicer", FINE_TUNING, Effect(0, 1, 1))
    with pytest.raises(ValueError, match="share of a gain, a / b"): parts(AS_GOOD, AT_LEAST, Effect(0.9, 0.1, 7))


# -- many claims -----------------------------------------------------------------------------------
def by_enumeration(p, alpha):
    """What Holm rejects, by closed testing: a hypothesis falls if Bonferroni rejects every intersection that holds it."""
    everything = range(len(p))
    sets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(everything, k)]
    return [all(min(p[j] for j in s) <= alpha / len(s) for s in sets if i in s) for i in everything]


@pytest.mark.parametrize("seed", range(6))
def test_holm_is_closed_testing_with_bonferroni(seed):
    p = list(np.random.default_rng(seed).beta(0.3, 3, 7))
    for alpha in (0.01, 0.05, 0.2): assert [a <= alpha for a in holm(p)] == by_enumeration(p, alpha)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([1.0, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_few_of_many_true_nulls_are_called():
    """26 claims of which none is true or false: in at most 5 % of the studies one is called, within three standard errors."""
    rng, wrong, draws = np.random.default_rng(5), 0, 300
    for _ in range(draws):
        d = rng.normal(0, 1, (26, 8))
        claims = [claim(BETTER, (x.mean(), x.std(ddof=1) / 8 ** 0.5), text=str(i)) for i, x in enumerate(d)]
        wrong += any(v in (REPRODUCED, SIZE_OPEN, NO_SIZE, CONTRADICTED) for v in judged(*claims))
    assert wrong / draws < 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_more_claims_ask_for_more():
    """An effect that is shown alone is not shown among forty."""
    weak = claim(BETTER, (0.05, 0.015))
    assert judged(weak) == [SIZE_OPEN]
    assert judged(weak, *[claim(BETTER, (0.0, 0.1), text=str(i)) for i in range(39)])[0] == NOT_SHOWN


def missing(s): return {"a": s.gone["a"]}


def gone(name): raise FileNotFoundError(name)


def test_what_is_not_measured_counts_and_what_holds_by_construction_does_not():
    lacking = Claim("y", "1", BETTER, FINE_TUNING, "", "", missing)
    sure = claim(BETTER, (0.05, 0.005), by_construction="It cannot fail.")
    found = judge([claim(BETTER, (0.05, 0.005)), lacking, sure], gone)
    assert [j.verdict for j in found] == [REPRODUCED, "not measured", "by construction"]
    alone = judge([claim(BETTER, (0.05, 0.005))], lambda name: None)
    assert found[0].p == pytest.approx(2 * alone[0].p) and found[2].p == 1 and found[2].why == "It cannot fail."
    assert tables.count(found) == "2 claims: 1 reproduced; 1 not measured; 1 more hold by construction."


@pytest.mark.parametrize("mean, trends, says", [
    (0.73, [(0.3, 0.02)], True), (0.73, [(0.3, 0.02), (0.2, 0.02)], True), (0.73, [(0.3, 0.02), (0.02, 0.05)], False),
    (0.73, [(-0.3, 0.02)], False), (0.97, [(0.3, 0.02)], False)])
def test_larger_bases_come_nearer_needs_measured_trends_that_agree(mean, trends, says):
    named = {f"way {i}": Effect(*trend, 7) for i, trend in enumerate(trends)}
    (found,) = judge([claim(AS_GOOD, (mean, 0.01), trend=lambda load: named)], lambda name: None)
    assert found.larger_come_nearer == says == ("Larger bases come nearer" in tables.said(found))
    (untold,) = judge([claim(AS_GOOD, (mean, 0.01), trend=missing)], gone)
    assert not untold.larger_come_nearer and untold.trend == {}


# -- the page --------------------------------------------------------------------------------------
def test_the_page_prints_the_rule():
    page = tables.the_rule()
    assert rule.__doc__.strip() in page
    for word in (*KINDS, *VERDICTS): assert word in page
    for delta in (deltas.FINE_TUNING, deltas.QUANTIZATION, deltas.ACCURACY, deltas.SHARE, deltas.RELATIVE, deltas.CORRELATION,
                  deltas.LOGARITHM, deltas.SLOPE):
        assert str(delta) in page
    assert f"{rule.FAR_TIMES} δ" in page and f"{100 * rule.ALPHA:g} %" in page


@pytest.mark.parametrize("delta, says", [
    (FINE_TUNING, "+0.050 ± 0.012"), (AT_LEAST, "5 ± 1 % of the gain"), (deltas.SHARE, "+5 ± 1 % of the gain"),
    (CORRELATION, "+0.05 ± 0.01")])
def test_effects_in_their_unit(delta, says):
    assert delta.show(Effect(0.05, 0.005, 7)) == says
