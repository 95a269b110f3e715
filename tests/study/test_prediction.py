"""A new run beside the stored study: the interval holds 95 % of new means, and what is not comparable is said."""
import numpy as np
import pytest

from tinypeft.study import compare, prediction
from tinypeft.study.compared import TRAINED_AS_LONG
from tinypeft.study.experiment import Results
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.prediction import beside, verdict


@pytest.mark.parametrize("m", [1, 3])
def test_95_per_cent_of_new_means_lie_inside(m, monkeypatch):
    monkeypatch.setattr(prediction, "DIGIT", 0)
    rng = np.random.default_rng(m)
    inside = [verdict(new, stored)["inside"]
              for stored, new in zip(rng.normal(2, 0.3, (4000, 8)), rng.normal(2, 0.3, (4000, m)), strict=True)]
    assert abs(np.mean(inside) - 0.95) < 0.012           # 3.5 standard errors


def test_the_formula_by_hand():
    of = verdict([4.0, 5.0, 6.0], np.array([1.0, 2.0, 3.0]))
    assert of == {"mean": 2, "half": pytest.approx(4.302653 * 1 * (1 / 3 + 1 / 3) ** 0.5, rel=1e-6), "seeds": 3, "inside": True}
    assert not verdict([5.6], np.array([1.0, 2.0, 3.0, 2.0]))["inside"]


def test_what_does_not_vary_may_differ_by_rounding_only():
    stored = np.full(8, 2.985)
    assert verdict([2.9852], stored)["inside"] and not verdict([2.987], stored)["inside"]


@pytest.fixture
def record():
    """A run whose prompt is far from the study and whose int4 is, too."""
    method = lambda name, loss: {"name": name, "loss": loss, "losses": [loss] if name == "frozen" else [loss] * 3}
    scheme = lambda label, excess: {"label": label, "excess": excess, "loss": 2.4 + excess}
    return {"methods": [method("frozen", 2.985), method("full", 2.7), method("prompt", 2.95)],
            "schemes": [scheme("float32", 0.0), scheme("NF4", 0.05), scheme("int4", 0.5),
                        scheme(TRAINED_AS_LONG, -0.01)]}


@pytest.fixture
def stored(monkeypatch):
    """What the study stored: two experiments of eight seeds; `qat` was measured in part."""
    vary = np.linspace(-0.02, 0.02, 8)
    values = {"first_look": {"loss": {"frozen": np.full(8, 2.985), "full": 2.7 + vary, "prompt": 2.9 + vary}},
              "schemes": {"excess": {"NF4": 0.05 + vary / 10, "int4": 0.07 + vary / 10}}}

    def load_whole(folder, name):
        if name not in values: raise KeyError(f"{name} was measured in part")
        ((metric, by_label),) = values[name].items()
        runs = {label: {str(s): {metric: x} for s, x in enumerate(of)} for label, of in by_label.items()}
        return Results({"experiment": name, "runs": runs})
    monkeypatch.setattr(prediction, "load_whole", load_whole)
    monkeypatch.setattr(prediction, "unlike_here", lambda record: [])


def test_each_row_has_the_stored_number_beside_it(record, stored):
    said = beside(record)
    rows = *record["methods"], *record["schemes"]
    inside = {r.get("name", r.get("label")): r["study"]["inside"] for r in rows if "study" in r}
    assert inside == {"frozen": True, "full": True, "prompt": False, "NF4": True, "int4": False}
    assert said == ["Not compared with the study: qat was measured in part."]
    assert record["methods"][1]["study"]["seeds"] == 8


def test_another_text_or_base_is_said_once(record, stored, monkeypatch):
    monkeypatch.setattr(prediction, "unlike_here", lambda record: ["the base has other weights"])
    assert beside(record)[0] == "The study had other input: the base has other weights." and len(beside(record)) == 2
    assert "study" in record["methods"][1]


def test_nothing_is_measured_yet(record, tmp_path):
    """As where the package is installed without a checkout."""
    said = beside(record, tmp_path)
    assert len(said) == 3 and not any("study" in r for r in record["methods"])
    assert "first_look.json does not exist; `python -m tinypeft figures first_look --rerun` measures it" in said[0]


def test_the_main_job_takes_seeds_that_the_study_does_not():
    taken = {s for e in EXPERIMENTS.values() for s in e.seeds} | set(EXPERIMENTS["rates"].settings["tuning_seeds"])
    assert max(taken) < compare.FRESH
