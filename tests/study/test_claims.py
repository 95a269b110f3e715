"""Claims: true and false ones are planted in made-up results; every claim follows its own numbers; tables; stored results."""
import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tinypeft.peft import METHODS
from tinypeft.study.claims import ALL_CLAIMS, judge, methods, tables
from tinypeft.study.claims.deltas import FINE_TUNING
from tinypeft.study.claims.measured import Study
from tinypeft.study.claims.rule import BY_CONSTRUCTION, CONTRADICTED, KINDS, NOT_MEASURED, REPRODUCED, VERDICTS, Claim
from tinypeft.study.effects import Effect
from tinypeft.study.experiment import Results
from tinypeft.study.experiments import EXPERIMENTS, smollm2
from tinypeft.study.experiments.arms import SURVEYED
from tinypeft.study.markdown import beside
from tinypeft.study.stored import load

from .waiting import WAITING
from .world import distinct, world

RESULTS = Path(__file__).parents[2] / "figures" / "results"
EFFECTS = json.loads((Path(__file__).parent / "effects.json").read_text("utf-8"))       # a claim's text → kind, δ, effects


def verdicts(results, *claims):
    """The beginning of each claim's text → its verdict, in a study with `results` alone."""
    def load(name):
        if name not in results: raise FileNotFoundError(name)
        return results[name]
    return {j.claim.text: j for j in judge(claims or ALL_CLAIMS, load)}


@functools.cache
def invented(): return distinct(world(truth=1))


def of(judged, beginning):
    (found,) = [j for text, j in judged.items() if text.startswith(beginning)]
    return found


# -- planted truth ---------------------------------------------------------------------------------
def test_where_every_claim_is_true_every_claim_is_reproduced():
    found = verdicts(world(truth=1))
    assert {text: j.verdict for text, j in found.items() if j.verdict not in (REPRODUCED, BY_CONSTRUCTION)} == {}


def test_where_every_claim_is_false_every_claim_is_contradicted():
    found = verdicts(world(truth=-1))
    assert {text: j.verdict for text, j in found.items() if j.verdict not in (CONTRADICTED, BY_CONSTRUCTION)} == {}


@pytest.mark.parametrize("claim", [c for c in ALL_CLAIMS if not c.by_construction], ids=lambda c: "_".join(c.text.split()[:6]))
def test_one_false_claim_among_true_ones_is_found(claim):
    """Its experiment is of the world where it is false; the others are of the world where all are true."""
    main = verdicts(world(truth=1), claim)[claim.text].names[0]
    found = verdicts(world(truth=1) | {main: world(truth=-1)[main]})
    assert found[claim.text].verdict == CONTRADICTED
    assert all(j.verdict in (REPRODUCED, BY_CONSTRUCTION) for j in found.values() if main not in j.names)


def test_one_part_that_fails_refutes_the_claim():
    results = world(truth=1)
    runs = results["gptq"].record["runs"]
    runs["GPTQ, 3 bits, channel"], runs["round to nearest, 3 bits, channel"] = (
        runs["round to nearest, 3 bits, channel"], runs["GPTQ, 3 bits, channel"])
    assert of(verdicts(results), "GPTQ loses less").verdict == CONTRADICTED


@pytest.mark.parametrize("grows, says", [(("lora_all", "r = 4"), True), (("lora_all",), False)])
def test_larger_bases_come_nearer_where_the_share_grows_in_both_ways(grows, says):
    results = world(truth=-1)
    for condition, runs in results["sizes"].record["runs"].items():
        more = {"small": -0.4, "medium": -0.2, "base": 0.1}[condition.split(":")[0].split()[-1]] * condition.startswith(grows)
        for run in runs.values(): run["gain"] += more
    lora = of(verdicts(results), "LoRA is as good as full")
    assert lora.larger_come_nearer == says
    if says: assert "the share of full fine-tuning's gain on *domain* rises by 50 ± " in tables.said(lora)


# -- the claims ------------------------------------------------------------------------------------
def test_the_claims_state_what_was_fixed():
    counted = [c for c in ALL_CLAIMS if not c.by_construction]
    assert (len(counted), len(ALL_CLAIMS) - len(counted)) == (44, 8), "a claim came or went: write the new numbers here"
    for c in ALL_CLAIMS:
        assert c.kind in KINDS and c.contrast and c.refuted, c.text
        assert re.fullmatch(r"\d{4}\.\d{5}|.+: https://\S+", c.paper), c.text
        assert c.text[-1] != "." and (c.by_construction == "" or c.by_construction[-1] == ".")
        assert set(c.why) <= set(VERDICTS) and all(why[-1] == "." for why in c.why.values())
    assert len({c.text for c in ALL_CLAIMS}) == len(ALL_CLAIMS)


def test_the_claims_read_what_experiments_measure():
    """The made-up results have what claims read; the experiments have it as well."""
    made = world(truth=1)
    assert {name for j in verdicts(made).values() for name in j.names} == set(made)
    lacking = set(made) - set(EXPERIMENTS)
    for name, results in made.items():
        if name not in EXPERIMENTS: continue
        conditions = {re.sub(r":[12]\b", "", c) for c in results.conditions}               # of whichever base of its size
        lacking |= conditions - set(EXPERIMENTS[name].conditions)
        lacking |= {m for c in results.conditions for run in results.record["runs"][c].values() for m in run
                    if not m.endswith("_documents")} - set(EXPERIMENTS[name].metrics)
    assert lacking == set()


def test_the_rates_between_which_a_level_is_learned():
    learned = np.array([0.2, 0.4, 0.3])                  # the last rate is too large
    assert methods.bracket(learned, 0.3) == (0, pytest.approx(0.5)) and methods.bracket(learned, 0.4) == (0, pytest.approx(1))
    for level in (0.1, 0.5):
        with pytest.raises(KeyError, match="no two rates"): methods.bracket(learned, level)


def test_what_three_times_the_best_rate_costs():
    """Two steps of a grid whose steps are √3."""
    run = {"rate": [0.01, 0.017, 0.03], "loss": [2.5, 2.0, 2.7], "validation": [2.1, 2.2, 2.3]}
    s = Study(lambda name: Results({"experiment": name, "runs": {"a": {"4": run}}}))
    assert methods.rise(s, "a").mean == pytest.approx(0.2)
    run["validation"][1] = 2.0
    with pytest.raises(KeyError, match="three times"): methods.rise(s, "a")


def test_ranks_agree_within_kinds_only_if_matrices_do():
    """Kinds that differ everywhere give no agreement; four pairs of eight seeds are four numbers."""
    rng = np.random.default_rng(0)
    kinds = np.tile([2.0, 4, 8, 9, 10, 12], 5)
    noise = methods.agreements(kinds + rng.normal(0, 1, (8, 30)))
    agreed = methods.agreements(kinds + rng.normal(0, 2, 30) + rng.normal(0, 0.5, (8, 30)))
    assert len(noise) == 4 and abs(noise.mean()) < 0.3 and agreed.mean() > 0.8


@pytest.mark.parametrize("claim", ALL_CLAIMS, ids=lambda c: "_".join(c.text.split()[:6]))
def test_an_expression_reads_what_it_read_when_it_was_registered(claim):
    """On results of which no two are equal: a swapped sign, another condition, entry or metric gives another effect. The rows
    of the first 52 claims are of the functions that stood in place of the expressions."""
    try: claim.parts(Study(invented().__getitem__))
    except KeyError as e: pytest.fail(f"tests/study/world.py lacks what this claim reads: {e.args[0]}")
    (j,) = judge([claim], invented().__getitem__)
    effects = j.parts | {f"trend {name}": e for name, e in j.trend.items()}
    now = [claim.kind, str(claim.delta), {name: round(e.mean, 9) for name, e in effects.items()}]
    row = f"{json.dumps(claim.text, ensure_ascii=False)}: {json.dumps(now, ensure_ascii=False)}"
    assert claim.text in EFFECTS, f"tests/study/effects.json has no row of this claim; if it is right, add\n{row}"
    kind, delta, expected = EFFECTS[claim.text]
    assert now[:2] == [kind, delta] and now[2] == pytest.approx(expected, abs=1e-8)


def test_what_is_missing_is_named_with_the_command_that_measures_it():
    """A file; and a condition of a file that is there, although another was read since."""
    results = world(truth=1)
    del results["dylora"], results["methods"].record["runs"]["frozen"]
    found = verdicts(results)
    for text, name in (("One DyLoRA", "dylora"), ("A very small rank", "methods")):
        assert of(found, text).verdict == NOT_MEASURED and of(found, text).parts == {}
        assert of(found, text).means == f"not measured: `python -m tinypeft figures {name} --rerun`"
    del results["rank"].record["runs"]["64/sqrt"]
    parts = lambda s: {"a": s.rank["1"] - s.batches["full, 4 rows"] - s.rank["64/sqrt"]}
    claim = Claim("x", "1", "better", FINE_TUNING, "", "", parts)
    assert verdicts(results, claim)["x"].means.endswith("figures rank --rerun`")


def test_an_expression_lists_the_means_that_it_reads():
    results = world(truth=1)
    s = Study(results.__getitem__)
    difference = s.rank["1"] - s.rank["8"]
    assert difference.effect.mean == pytest.approx(0.03, abs=0.002) and s.names == ["rank"]
    assert s.means() == f"1: {s.rank['1'].mean:.3f}, 8: {s.rank['8'].mean:.3f} nats/token (rank)"


@pytest.mark.parametrize("read, says", [
    (lambda s: (s.toy["a"], s.toy["b, c, d"], s.toy["e, c, d"], s.toy.weight_error["a"]),
     "a: 2.000; c, d: b 1.500, e 1.000 nats/token (toy); a: 25.0 % (weight error, toy)"),
    (lambda s: s.toy.list["a", 1], "a: 1.000 / 2.000 (list, toy)"),
    (lambda s: s.toy.long["a", 1], "a: 0.000 to 12.000 (long, toy)"),
    (lambda s: s.toy.nested["a"], "a: 2.000 / 5.000 (nested, toy)"),
    (lambda s: s.toy.list.at("a", sizes=8), "a: 1.000 / 2.000 (list, toy)"),
    (lambda s: s.gain(s.toy["a"]), "a: 2.000 nats/token (toy); frozen: 3.000 nats/token (methods)")],
    ids=["by group and metric", "all entries of a list", "ends of a long list", "nested lists", "by setting", "a gain"])
def test_means_in_words(read, says):
    a = {"loss": 2.0, "weight_error": 0.25, "list": [1, 2], "long": list(range(13)), "nested": [[1, 3], [4, 6]]}
    runs = {"a": {"0": a}, "b, c, d": {"0": {"loss": 1.5}}, "e, c, d": {"0": {"loss": 1.0}}, "frozen": {"0": {"loss": 3.0}}}
    s = Study(lambda name: Results({"experiment": name, "runs": runs, "settings": {"sizes": [4, 8]}}))
    read(s)
    assert s.means() == says


def test_a_gain_is_over_the_frozen_base_in_loss_and_in_accuracy():
    s = Study(world(truth=1).__getitem__)
    assert s.gain(s.methods["full"]).mean == pytest.approx(1.0, abs=0.01)
    assert s.gain(s.methods.accuracy["full"]).mean == pytest.approx(0.4, abs=0.01)
    assert s.gain(s.dylora.loss_svd["LoRA r=16, cut", 4]).mean == pytest.approx(0.98, abs=0.01)


# -- tables ----------------------------------------------------------------------------------------
def small(name="there", better=0.05, **options):
    e = Effect(better, 0.004, 7)
    parts = lambda s: {"b": e} if getattr(s, name)["a"] and getattr(s, name)["b"] else {}
    return Claim(f"One of {name}", "2106.09685", "better", FINE_TUNING, "b minus a", "b is ahead", parts, "70.1", **options)


@pytest.fixture
def folder(tmp_path):
    runs = {"a": {"0": {"loss": 1.0}}, "b": {"0": {"loss": 1.05}}}
    (tmp_path / "there.json").write_text(json.dumps({"experiment": "there", "runs": runs}), "utf-8")
    return tmp_path


def test_the_tables(folder):
    claims = (small(why={REPRODUCED: "Because."}), small("gone", own=True), small(by_construction="It must."))
    page, more = tables.table(folder, claims), tables.details(tables.judged(folder, claims))
    assert page.startswith("2 claims: 1 reproduced; 1 not measured; 1 more hold by construction.\n")
    paper = "[2106.09685](https://arxiv.org/abs/2106.09685)"
    measured = "b: +0.050 ± 0.009 | 0.02 nats/token | **reproduced** | Because. |"
    assert f"| One of there | {paper}: 70.1 | {measured}" in page.splitlines()
    gone = "not measured: `python -m tinypeft figures gone --rerun`"
    assert f"| One of gone | the study's own, on {paper}: 70.1 | {gone} | 0.02 nats/token | not measured |  |" in page
    assert f"| One of there | {paper}: 70.1 | a: 1.000, b: 1.050 nats/token (there) | It must. |" in page
    row = "| One of there | b minus a | better, 0.02 nats/token | b is ahead | a: 1.000, b: 1.050 nats/token (there) | "
    assert f"{row}{tables.judged(folder, claims)[0].p:.2g} |" in more
    assert more.count("One of") == 2


def test_a_claim_in_words(folder):
    there, gone, must = tables.judged(folder, (small(), small("gone"), small(by_construction="It must.")))
    assert tables.in_words(there) == ("**reproduced**. Effect (plus supports the claim): +0.050 ± 0.009 (b); δ is 0.02 "
                                      "nats/token. Measured: a: 1.000, b: 1.050 nats/token (there)")
    assert tables.in_words(gone) == "not measured: `python -m tinypeft figures gone --rerun`"
    assert tables.in_words(must) == "a: 1.000, b: 1.050 nats/token (there). It holds by construction: It must"


def test_means_stand_without_an_interval_and_differences_are_paired():
    """Arms that move together from seed to seed differ by less than either varies."""
    shared = np.array([0.3, -0.2, 0.1, -0.3, 0.1])
    runs = {c: {str(s): {"loss": mean + x + y} for s, (x, y) in enumerate(zip(shared, noise, strict=True))}
            for c, mean, noise in (("full", 2.0, 5 * [0.0]), ("lora", 2.1, [0.01, -0.01, 0.0, 0.0, 0.0]))}
    r = Results({"experiment": "toy", "runs": runs})
    assert beside(r, "full", "full") == "2.000" and beside(r, "lora", "full") == "2.100 (+0.100 ± 0.009)"
    assert beside(r, "lora", "full", decimals=1, times=100) == "210.0 (+10.0 ± 0.9)"


def test_no_mean_of_a_claim_has_an_interval_of_its_own():
    """A ± in what was measured would invite an unpaired comparison."""
    for j in verdicts(world(truth=1)).values(): assert "±" not in j.means and "nan" not in j.means


# -- what is stored ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stored():
    return tables.judged(RESULTS, ALL_CLAIMS)


def test_the_stored_claims_are_judged(stored):
    assert {j.verdict for j in stored} <= {*VERDICTS, NOT_MEASURED, BY_CONSTRUCTION}
    for j in stored:
        assert all(np.isfinite([e.mean, e.half]).all() for e in j.parts.values()), j.claim.text
        assert "nan" not in j.means and "inf" not in j.means


def test_only_verdicts_that_were_reached_are_explained(stored):
    """A claim that ends elsewhere after a new measurement needs a new sentence: nobody has seen the reason before."""
    for j in stored:
        if j.verdict == NOT_MEASURED: continue           # its sentences are of an older measurement, and not shown
        assert set(j.claim.why) <= {j.verdict}, f"{j.claim.text!r} is {j.verdict}; remove the sentences for others"


def test_the_tables_have_a_row_for_every_claim(stored):
    page = tables.table(RESULTS, ALL_CLAIMS)
    for claim in ALL_CLAIMS: assert f"| {claim.text} |" in page
    assert all(line.count("|") in (5, 7) for line in page.splitlines() if line.startswith("|"))
    assert tables.count(stored) in page
def numbers(metrics):
    flat = []
    for value in metrics.values():
        if isinstance(value, (int, float, list)) and not isinstance(value, bool):
            a = np.array(value)
            if a.dtype.kind in "if": flat.append(a.ravel())
    return np.concatenate(flat)


FEWER = {"rates": "a choice on validation", "classify_rates": "a choice, too", "quant_rates": "a choice, too",
         "lengths": "two minutes a run", "baselines": "nothing is random", "memory": "nor here", "subspace": "a map",
         "gptq_columns": "a picture of one", "smollm2_rates": "a choice on validation", "smollm2": "half a minute a run",
         "natural_outliers": "of one model",
         "prompts": "several bases of a size", "sizes": "the same", "texts": "a count", "pretrained_for": "several bases"}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in WAITING])
def test_results_are_whole_and_finite(name):
    """At least four seeds of every condition, for the experiment as it is now."""
    r, e = load(RESULTS, name), EXPERIMENTS[name]
    assert r.conditions == tuple(e.conditions) and r.seeds == e.seeds and (len(e.seeds) >= 4 or name in FEWER)
    assert r.record["settings"] == json.loads(json.dumps(e.settings))
    for runs in r.record["runs"].values():
        for metrics in runs.values():                    # at too large a rate a training may diverge
            found = np.array(numbers(metrics))
            assert np.isfinite(found).all() or name.endswith("rates") and not np.isnan(found).any()


def test_the_rates_on_smollm2_are_the_best_that_were_tried_and_lie_between_two():
    r = load(RESULTS, "smollm2_rates")
    for name, lr in smollm2.FOUND.items():
        (rates,), (losses,) = r.values(name, "rate"), r.values(name, "loss")
        best = int(np.argmin(losses))
        assert 0 < best < len(rates) - 1 and rates[best] == lr, name
    assert smollm2.FOUND.keys() == smollm2.TRIED.keys() == set(r.conditions)
    assert {type(arm.method) for arm in smollm2.TRIED.values()} == {METHODS[name] for name in SURVEYED}


def test_the_share_of_an_update_is_of_the_whole_update():
    """What the 8 largest directions hold is less of all 128 than of the 64 largest, whose singular values are stored."""
    r = load(RESULTS, "subspace")
    for matrix in ("query", "value"):
        squares = r.values("domain", f"values_full_{matrix}") ** 2            # (seeds, layers, 64)
        of_64 = squares[..., :8].sum(-1) / squares.sum(-1)
        assert (r.values("domain", f"energy_8_full_{matrix}") < of_64 - 0.001).all()


def test_lora_gains_on_smollm2():
    """At least 0.15 bits per byte on every seed, and no method is worse than the model as it is."""
    r = load(RESULTS, "smollm2")
    before = r.mean("as it is", "bits_per_byte")
    assert (before - r.values("lora", "bits_per_byte") >= 0.15).all()
    assert all(r.mean(name, "bits_per_byte") < before for name in smollm2.FOUND)
