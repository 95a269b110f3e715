"""Claims: each verdict follows the rule, on results made for it; the stored results suffice to judge every claim."""
import json
from pathlib import Path

import numpy as np
import pytest

from tinypeft.peft import METHODS
from tinypeft.study.claims import ALL_CLAIMS, METHOD_CLAIMS, Claim, Finding, brief, methods, table, verdict
from tinypeft.study.experiment import Results, half_width
from tinypeft.study.experiments import EXPERIMENTS, smollm2

RESULTS = Path(__file__).parents[2] / "figures" / "results"


@pytest.mark.parametrize("effects, margin, says", [
    ([(1, 0.9)], 0, "reproduced"), ([(1, 1.1)], 0, "not at this size"), ([(-1, 0.9)], 0, "contradicted"),
    ([(-1, 0.9)], 0.4, "not at this size"), ([(-1, 0.5)], 0.4, "contradicted"), ([(1, np.inf)], 0, "not at this size"),
    ([(1, 0.1), (1, 0.1)], 0, "reproduced"), ([(1, 0.1), (-1, 0.1)], 0, "not at this size"),
    ([(-1, 0.1), (-2, 0.1)], 0, "contradicted")])
def test_the_rule(effects, margin, says):
    assert verdict(Finding("", tuple(effects), margin)) == says


def test_without_an_effect_there_is_no_verdict():
    with pytest.raises(ValueError, match="no effect"): verdict(Finding("…", ()))


def results(**runs):
    """Results of made-up numbers: condition → metric → one value per seed."""
    per_seed = {c: {str(s): {m: v[s] for m, v in metrics.items()} for s in range(5)} for c, metrics in runs.items()}
    return Results({"experiment": "toy", "runs": per_seed})


NOISE = np.array([0.01, -0.01, 0.02, -0.02, 0.0])


@pytest.mark.parametrize("lora, says", [(2.03, "reproduced"), (2.3, "not at this size"), (2.8, "contradicted")])
def test_as_good_as_full(lora, says):
    """Frozen at 3 and full at 2: nine tenths of the gain reproduce the claim, less than half contradicts it."""
    at = lambda x: {"loss": x + NOISE, "accuracy": -x - NOISE, "share": 0 * NOISE}
    r = results(frozen=at(3.0), full=at(2.0), lora_all=at(lora))
    finding = methods.lora_is_full({"methods": r}.get)
    assert verdict(finding) == says and f"{lora:.3f} ± {half_width(NOISE):.3f}" in finding.measured


@pytest.mark.parametrize("parallel, says", [(2.0, "reproduced"), (2.2, "contradicted"), (2.1, "not at this size")])
def test_better_than(parallel, says):
    noise = iter(np.random.default_rng(0).normal(0, 0.01, (6, 5)))
    sizes = (16, 64)
    r = results(**{f"sequential {m}": {"loss": 2.1 + next(noise)} for m in sizes},
                **{f"parallel {m}": {"loss": parallel + next(noise)} for m in sizes})
    assert verdict(methods.parallel({"adapters": r}.get)) == says


def test_the_table_says_what_is_missing(tmp_path):
    r = results(a={"x": NOISE + 1}, b={"x": NOISE})
    (tmp_path / "there.json").write_text(json.dumps(r.record, default=float), "utf-8")
    test = lambda load: Finding("1 and 0", (load("there").difference("a", "b", "x"),))
    why = {"reproduced": "because"}
    claims = Claim("One", "2106.09685", "70.1", ("there",), test, why), Claim("Two", "1", "", ("gone",), test)
    rows = table(tmp_path, claims)
    assert ("| One | [2106.09685](https://arxiv.org/abs/2106.09685): 70.1 | 1 and 0 | **reproduced** | because |"
            in rows.splitlines())
    assert "| Two | [1](https://arxiv.org/abs/1) | not measured: `python -m tinypeft figures gone --rerun` |" in rows
    assert {line.count("|") for line in rows.splitlines()} == {6}
    assert brief(tmp_path, claims).startswith("1 claims: 1 reproduced, 0 not at this size, 0 contradicted.")


@pytest.mark.parametrize("claim", METHOD_CLAIMS, ids=lambda c: c.test.__name__)
def test_a_claim_on_methods_is_judged_and_says_why(claim):
    assert set(claim.experiment) <= set(EXPERIMENTS)
    finding = claim.test(lambda name: Results.load(RESULTS, name))
    assert np.isfinite(finding.effects).all() and "nan" not in finding.measured and "inf" not in finding.measured
    assert claim.why.get(verdict(finding)), f"{verdict(finding)}, and no sentence says why"


@pytest.mark.parametrize("claim", ALL_CLAIMS, ids=lambda c: c.test.__name__)
def test_only_verdicts_that_were_reached_are_explained(claim):
    """A claim that ends elsewhere after a new measurement needs a new sentence: nobody has seen the reason before."""
    reached = verdict(claim.test(lambda name: Results.load(RESULTS, name)))
    assert set(claim.why) <= {reached}, f"the verdict is {reached!r}; remove the sentences for others"
    assert reached != "not at this size" or claim.why, "a claim that is not reproduced needs a sentence that says why"


# -- what is stored ---------------------------------------------------------------------------------
def numbers(metrics):
    flat = []
    for value in metrics.values():
        if isinstance(value, (int, float, list)) and not isinstance(value, bool):
            a = np.array(value)
            if a.dtype.kind in "if": flat.append(a.ravel())
    return np.concatenate(flat)


FEWER = {"rates": "a choice on validation", "classify_rates": "a choice, too", "quant_rates": "a choice, too",
         "lengths": "two minutes a run", "baselines": "nothing is random", "memory": "nor here", "subspace": "a map",
         "int8_activations": "a picture of one", "smoothquant_maxima": "a picture of one", "gptq_columns": "a picture of one",
         "smollm2_rates": "a choice on validation", "smollm2": "half a minute a run", "natural_outliers": "of one model"}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if (RESULTS / f"{name}.json").exists()])
def test_results_are_whole_and_finite(name):
    """At least five seeds of every condition, for the experiment as it is now."""
    r, e = Results.load(RESULTS, name), EXPERIMENTS[name]
    assert r.conditions == tuple(e.conditions) and r.seeds == e.seeds and (len(e.seeds) >= 5 or name in FEWER)
    assert r.record["settings"] == json.loads(json.dumps(e.settings))
    for runs in r.record["runs"].values():
        for metrics in runs.values():                    # at too large a rate a training may diverge
            found = np.array(numbers(metrics))
            assert np.isfinite(found).all() or name.endswith("rates") and not np.isnan(found).any()


def test_the_rates_on_smollm2_are_the_best_that_were_tried_and_lie_between_two():
    r = Results.load(RESULTS, "smollm2_rates")
    for name, lr in smollm2.FOUND.items():
        (rates,), (losses,) = r.values(name, "rate"), r.values(name, "loss")
        best = int(np.argmin(losses))
        assert 0 < best < len(rates) - 1 and rates[best] == lr, name
    assert smollm2.FOUND.keys() == smollm2.TRIED.keys() == set(r.conditions)
    assert {type(arm.method) for arm in smollm2.TRIED.values()} == set(METHODS.values())


def test_lora_gains_on_smollm2():
    """At least 0.15 bits per byte on every seed, and no method is worse than the model as it is."""
    r = Results.load(RESULTS, "smollm2")
    before = r.mean("as it is", "bits_per_byte")
    assert (before - r.values("lora", "bits_per_byte") >= 0.15).all()
    assert all(r.mean(name, "bits_per_byte") < before for name in smollm2.FOUND)
