"""The main job: its rows are the study's, its numbers are right, the model is as it was, and tables and picture show it all."""
import contextlib
import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import tinypeft as tp
from tests.legible import faults
from tinypeft.study import compare, glance, plot, prediction, quantized, tuning
from tinypeft.study.compared import COMPARED_SCHEMES, SHOWN
from tinypeft.study.experiments import EXPERIMENTS

ROWS = ["frozen", "full", "lora_all", "qlora_all", "adapter", "prompt"]


@pytest.fixture(scope="module")
def record():
    """A short run on a short text, in this process."""
    text = tuning.domain(128, 1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "domain", lambda: text)
        for name in ("schemes", "qat"):                  # schemes that train take one step
            e = EXPERIMENTS[name]
            patch.setitem(EXPERIMENTS, name, dataclasses.replace(e, settings=e.settings | {"steps": 1}))
        size = compare.Size(steps=2, seeds=2, schemes=("NF4", "PEQA 3 bit *"))
        return compare.compare(size=size, progress=False, jobs=1)


@pytest.fixture
def whole(monkeypatch):
    """A record of the default size, with numbers that were made up."""
    def measured(task):
        _, label, value, seed, _ = task
        rng = np.random.default_rng([seed, len(label)])
        loss = {"frozen": 2.985, "full": 2.6, "prompt": 2.9}.get(label, 2.7) + (label != "frozen") * rng.normal(0, 0.01)
        others = {"bits": 4.5, "error": 0.1, "excess": loss - 2.65}
        if label in ROWS: others = {"trained": 1000, "share": 0.05}
        return label, seed, {"loss": loss, **others}, 0.0
    monkeypatch.setattr(compare, "measure_one", measured)

    def beside(record):
        for r in record["methods"]: r["study"] = prediction.verdict(r["losses"], np.array([2.68, 2.7, 2.72]))
        return []
    monkeypatch.setattr(compare, "beside", beside)
    return compare.compare(progress=False, jobs=1)


def test_six_rows_and_the_schemes_are_in_it(whole):
    assert [r["name"] for r in whole["methods"]] == ROWS == list(EXPERIMENTS["first_look"].conditions)
    labels = [r["label"] for r in whole["schemes"]]
    assert labels == ["float32", *SHOWN, "float32, trained as long"] and len(SHOWN) == 8 and set(SHOWN) < set(COMPARED_SCHEMES)
    assert [len(r["losses"]) for r in whole["methods"]] == [1, 3, 3, 3, 3, 3] and whole["seeds"] == [1000, 1001, 1002]


def test_all_is_every_method_and_every_scheme():
    conditions = compare.base_conditions(compare.ALL)
    assert conditions.keys() == {*ROWS, *tp.METHODS, *COMPARED_SCHEMES, "float32, trained as long"} - {"probe"}
    arms = compare.arms_of(compare.ALL)
    assert arms["full"] is EXPERIMENTS["first_look"].conditions["full"] and arms["dora"].times == arms["full"].times
    assert {type(arms[name].method) for name in tp.METHODS if name != "probe"} == {*tp.METHODS.values()} - {tp.LinearProbe}
    for label in COMPARED_SCHEMES:                       # each is the study's own condition
        measure, value, settings = conditions[label]
        assert (measure, value, settings) == (EXPERIMENTS["schemes"].measure, EXPERIMENTS["schemes"].conditions[label],
                                              EXPERIMENTS["schemes"].settings)
    for name, arm in arms.items():
        measure, value, settings = conditions[name]
        assert measure is EXPERIMENTS["first_look"].measure and value == arm and settings["batch_size"] == 4
        if name != "frozen": assert settings["steps"] * value.times == 60
    seeds = {label: [seed for _, of, _, seed, _ in compare.calls_of(conditions, [5, 6]) if of == label] for label in conditions}
    assert {label for label, of in seeds.items() if of == [5, 6]} == {*arms} - {"frozen"}
    assert all(of == [5] for label, of in seeds.items() if label not in arms)


def test_what_is_under_way_is_said_from_the_first_second(capsys):
    """Of four runs in two processes the first two begin at once. They may end in another order."""
    calls = [(None, label, None, seed, {}) for label, seed in (("a", 0), ("a", 1), ("b", 0), ("c", 0))]
    results = [("a", 1, {"loss": 2.0}, 0.1), ("a", 0, {"loss": 1.0}, 0.1), ("b", 0, {}, 0.1), ("c", 0, {}, 0.1)]
    said = []
    bar = lambda *_: contextlib.nullcontext(lambda done, text: said.append((done, text)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "Progress", bar)
        runs = compare.collected(calls, results, 2, None)
    assert said == [(0, "a; a"), (1, "a; b"), (2, "b; c"), (3, "c"), (4, "")]
    assert runs == {"a": [{"loss": 1.0}, {"loss": 2.0}], "b": [{}], "c": [{}]}


def test_numbers_are_those_of_the_study(record):
    text, losses = tuning.domain(128, 1024), {r["name"]: r for r in record["methods"]}
    assert losses["frozen"]["loss"] == pytest.approx(tuning.test_loss(tuning.pretrained(), text), rel=1e-5)
    full, arm = losses["full"], EXPERIMENTS["first_look"].conditions["full"]
    model, history = arm.train(1001, {"steps": 5, "batch_size": 4})
    assert len(history.loss) == 2 and full["losses"][1] == pytest.approx(tuning.test_loss(model, text), rel=1e-5)
    assert full["loss"] == np.mean(full["losses"]) and full["gain"] == 1 and losses["frozen"]["gain"] == 0
    half = 12.706205 * np.std(full["losses"], ddof=1) / 2 ** 0.5
    assert full["interval"] == pytest.approx(half, rel=1e-6)
    sample = quantized.draw(1000, 64, 64)
    nf4 = next(r for r in record["schemes"] if r["label"] == "NF4")
    assert nf4["excess"] == pytest.approx(quantized.costs(quantized.rounded(tp.NF4(), sample), sample)["excess"], abs=1e-6)
    assert nf4["bits"] == 4.5 and record["schemes"][0]["loss"] == pytest.approx(sample.loss, rel=1e-6)
    assert record["schemes"][-1]["label"] == "float32, trained as long" and record["schemes"][-1]["excess"] != 0
    assert record["notes"] == ["A run of another size than the default is not compared with the study."]


def test_how_long_every_method_takes_is_said_before_it_begins(tmp_path):
    ways = compare.arms_of(compare.ALL)
    assert len(ways) >= len(tp.METHODS) - 1               # not the probe
    said = f"{len(ways)} ways to fine-tune, 3 seeds each, and 21 schemes"
    assert compare.announcement(compare.ALL, tmp_path) == said
    (tmp_path / "compare_all.json").write_text('{"seconds": 431.0}', "utf-8")
    assert compare.announcement(compare.ALL, tmp_path) == f"{said}: about 7 minutes, if this machine is as fast as ours"


SMALL = compare.Size(steps=1, seeds=1, schemes=("NF4", "PEQA 3 bit *"), test_rows=16, batch_size=1)


def test_another_model_is_measured_and_is_as_it_was():
    model, untouched = tp.load_pretrained(), tp.load_pretrained().state_dict()
    found, again = (compare.compare(model, SMALL, progress=False) for _ in range(2))
    assert model.state_dict().keys() == untouched.keys()
    assert all(np.array_equal(a, untouched[name]) for name, a in model.state_dict().items())
    assert [r["losses"] for r in found["methods"]] == [r["losses"] for r in again["methods"]]
    assert [r["label"] for r in found["schemes"]] == ["float32", "NF4"]                    # what trains is left out
    exact = tp.evaluate(model, tp.tasks.domain(model), "test", max_batches=1)["loss"]
    assert found["schemes"][0]["loss"] == found["methods"][0]["loss"] == exact and found["test_tokens"] == 16 * 128
    text = glance.tables(found)
    assert "The study measures the shipped base only" in text and "the study " not in text.split("\n")[0]


def test_the_tables_say_how_long_the_rows_were():
    """Half of the model's context, where that is less than 128 tokens."""
    model = tp.GPT(tp.GPTConfig(1024, 64, 96, 1, 2), rng=0)
    model.tokenizer = tp.load_pretrained().tokenizer
    found = compare.compare(model, compare.Size(1, 1, ("NF4",), batch_size=2, test_rows=4), progress=False)
    assert found["test_tokens"] == 4 * 32 and "1 steps of 2 × 32 tokens on domain" in glance.tables(found)


def test_a_bottleneck_narrows_a_small_model_too():
    """The usual one has 64 numbers. On a model 48 wide it has 24, and the page says so."""
    model = tp.GPT(tp.GPTConfig(1024, 64, 48, 1, 2), rng=0)
    model.tokenizer = tp.load_pretrained().tokenizer
    size = compare.Size(1, 1, ("NF4",), batch_size=2, test_rows=4, methods=("parallel_adapter",))
    found = compare.compare(model, size, progress=False)
    rows = {r["name"]: r for r in found["methods"]}
    adapter, parallel = (rows[name]["method"] for name in ("adapter", "parallel_adapter"))
    assert "bottleneck=24" in adapter and "bottleneck=24" in parallel
    assert rows["adapter"]["trained"] == tp.attach(model, tp.BottleneckAdapter(24)).summary().trained
    said = " ".join(glance.tables(found).split())
    assert "Half of the width is the bottleneck of adapters and of parallel adapters: the usual one does not" in said


def test_a_large_model_is_measured_at_a_size_that_suits_it(monkeypatch):
    seen = []

    def measured(model, size):
        seen.append(size)
        raise KeyboardInterrupt                          # before any work
    monkeypatch.setattr(compare, "Another", measured)
    for parameters, size in ((compare.LARGE_FROM, compare.LARGE), (compare.LARGE_FROM - 1, compare.Size())):
        model = tp.GPT(tp.GPTConfig(64, 16, 32, 2, 2))
        monkeypatch.setattr(model, "n_parameters", lambda n=parameters: n)
        with pytest.raises(KeyboardInterrupt): compare.compare(model, progress=False)
        assert seen.pop() == size


def test_the_tables_and_the_picture_show_everything(whole, tmp_path):
    text = glance.tables(whole)
    with plot.style(): assert faults(glance.picture(whole).figure) == []
    drawn = " ".join(ET.parse(glance.draw(whole, tmp_path / "compare.svg")).getroot().itertext())
    for r in (*whole["methods"], *whole["schemes"][1:]): assert r["label"] in text and r["label"] in drawn
    first, second, third, notes = text.split("\n\n")
    assert "float32  " in second and "QAT 3 bit" not in second and third.count("\n") == 3 and "trained as long" in third
    assert "inside" in first and "OUTSIDE" in first and f"of {len(ROWS)} are inside" in notes
    for part in (first, second, third): assert max(map(len, part.split("\n"))) <= 100
    float32 = whole["schemes"][0]
    assert f"32.000  32.000  {float32['bytes'] / 1024:,.0f}" in second and "of all  " in third and "KiB: what all" in notes
    whole["methods"][-1]["gain"] = -0.001                # no sign before nothing
    prompt = next(line for line in glance.tables(whole).split("\n") if line.startswith("prompt"))
    assert " 0 %" in prompt and "-0 %" not in prompt
