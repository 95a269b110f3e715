"""A new run beside the stored study: the interval holds 95 % of new means, and what is not comparable is said."""
import numpy as np
import pytest

from tinypeft.study import compare, experiment, measuring, prediction
from tinypeft.study.compared import TRAINED_AS_LONG
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.prediction import beside, predicted, verdict

from .test_fair import Made


@pytest.mark.parametrize("m", [1, 3])
def test_95_per_cent_of_new_means_lie_inside(m):
    rng, inside = np.random.default_rng(m), 0
    for stored, new in zip(rng.normal(2, 0.3, (4000, 8)), rng.normal(2, 0.3, (4000, m)), strict=True):
        mean, half = predicted(stored, m)
        inside += abs(new.mean() - mean) <= half
    assert abs(inside / 4000 - 0.95) < 0.012             # 3.5 standard errors


def test_the_formula_by_hand():
    mean, half = predicted([1, 2, 3], 3)
    assert mean == 2 and half == pytest.approx(4.302653 * 1 * (1 / 3 + 1 / 3) ** 0.5, rel=1e-6)
    with pytest.raises(ValueError, match="at least two stored values, got 1"): predicted([1.0], 3)


def test_what_does_not_vary_may_differ_by_rounding_only():
    assert verdict(2.9852, [2.985] * 8, 1)["inside"] and not verdict(2.987, [2.985] * 8, 1)["inside"]


@pytest.fixture
def record():
    """A run whose prompt is far from the study and whose int4 is, too."""
    method = lambda name, loss: {"name": name, "loss": loss, "losses": [loss] if name == "frozen" else [loss] * 3}
    scheme = lambda label, excess: {"label": label, "excess": excess, "loss": 2.4 + excess}
    return {"methods": [method("frozen", 2.985), method("full", 2.7), method("prompt", 2.95)],
            "schemes": [scheme("float32", 0.0), scheme("NF4", 0.05), scheme("int4", 0.5),
                        scheme(TRAINED_AS_LONG, -0.01)]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the study stored, of today's conditions, text and base."""
    made = Made(tmp_path)
    monkeypatch.setattr(prediction, "changed", lambda experiment, record: {})
    monkeypatch.setattr(prediction, "unlike_here", lambda record: [])
    vary = lambda mean: [{"loss": mean + x} for x in np.linspace(-0.02, 0.02, 8)]
    store(made, "first_look", {"frozen": [{"loss": 2.985}] * 8, "full": vary(2.7), "prompt": vary(2.9)})
    store(made, "schemes", {label: [{"excess": e + x / 10, "loss": 2.4 + e + x} for x in np.linspace(-0.02, 0.02, 8)]
                            for label, e in (("NF4", 0.05), ("int4", 0.07))})
    return tmp_path


def store(made, name, by_condition):
    made.write(name, {}, 0)
    path = made.folder / f"{name}.json"
    record = experiment.Results.read(made.folder, name)
    record["runs"] = {c: {str(s): m for s, m in enumerate(runs)} for c, runs in by_condition.items()}
    path.write_text(measuring.as_text(record), "utf-8")


def test_each_row_has_the_stored_number_beside_it(record, folder):
    said = beside(record, folder)
    rows = *record["methods"], *record["schemes"]
    inside = {r.get("name", r.get("label")): r["study"]["inside"] for r in rows if "study" in r}
    assert inside == {"frozen": True, "full": True, "prompt": False, "float32": True, "NF4": True, "int4": False}
    assert said == ["The study's experiment qat has not been measured: `python -m tinypeft figures qat --rerun`."]
    assert record["methods"][1]["study"]["seeds"] == 8


@pytest.mark.parametrize("function, found, shown", [
    ("changed", {"full": ["settings.steps: 1 → 2"]}, False), ("unlike_here", ["the base has other weights"], True)])
def test_what_was_measured_otherwise(record, folder, monkeypatch, function, found, shown):
    """Other settings or conditions are another measurement; another text or base is said."""
    monkeypatch.setattr(prediction, function, lambda *_: found)
    said = beside(record, folder)
    assert ("study" in record["methods"][1]) == shown
    assert any(("measured first_look with something else: the base has other weights." if shown else
                "first_look is another measurement: settings.steps: 1 → 2.") in line for line in said)


def test_nothing_is_measured_yet(record, tmp_path):
    assert len(beside(record, tmp_path)) == 3 and not any("study" in r for r in record["methods"])


def test_the_main_job_takes_seeds_that_the_study_does_not():
    taken = {s for e in EXPERIMENTS.values() for s in e.seeds} | set(EXPERIMENTS["rates"].settings["tuning_seeds"])
    assert max(taken) < compare.FRESH
