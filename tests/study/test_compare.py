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
        size = compare.Size(steps=2, seeds=2, scheme_steps=1, schemes=("NF4", "PEQA 3 bit *"))
        return compare.compare(size=size, progress=False, jobs=1)


@pytest.fixture
def whole(monkeypatch):
    """A record of the default size, with numbers that were made up."""
    def measured(task):
        _, (name, label), value, seed, _ = task
        rng = np.random.default_rng([seed, len(label), len(name)])
        loss = {"frozen": 2.985, "full": 2.6, "prompt": 2.9}.get(label, 2.7) + (label != "frozen") * rng.normal(0, 0.01)
        others = {"bits": 4.5, "error": 0.1, "excess": loss - 2.65}
        if name == "first_look": others = {"trained": 1000, "share": 0.05}
        return (name, label), seed, {"loss": loss, **others}, 0.0
    monkeypatch.setattr(compare, "measure_one", measured)

    def beside(record, folder):
        for r in record["methods"]: r["study"] = prediction.verdict(r["loss"], [2.68, 2.7, 2.72], 3)
        return []
    monkeypatch.setattr(compare, "beside", beside)
    return compare.compare(progress=False, jobs=1)


def test_six_rows_and_the_schemes_are_in_it(whole):
    assert [r["name"] for r in whole["methods"]] == ROWS == list(EXPERIMENTS["first_look"].conditions)
    labels = [r["label"] for r in whole["schemes"]]
    assert labels == ["float32", *SHOWN, "float32, trained as long"] and len(SHOWN) == 8 and set(SHOWN) < set(COMPARED_SCHEMES)
    assert [len(r["losses"]) for r in whole["methods"]] == [1, 3, 3, 3, 3, 3] and whole["seeds"] == [1000, 1001, 1002]


def test_all_is_every_method_and_every_scheme():
    calls = compare.calls_of(compare.ALL, [1000, 1001, 1002])
    labels = {experiment: [label for (name, label) in dict.fromkeys(key for _, key, _, _, _ in calls) if name == experiment]
              for experiment in ("first_look", "schemes", "qat")}
    assert set(labels["first_look"]) == {*ROWS, *tp.METHODS} - {"probe"} and set(labels["schemes"]) == set(COMPARED_SCHEMES)
    assert labels["qat"] == ["float32, trained as long"]
    arms = compare.arms_of(compare.ALL)
    assert arms["full"] is EXPERIMENTS["first_look"].conditions["full"] and arms["dora"].times == arms["full"].times
    assert {type(arms[name].method) for name in tp.METHODS if name != "probe"} == {*tp.METHODS.values()} - {tp.LinearProbe}
    for _, (name, label), value, _, settings in calls:            # each is the study's own condition
        if name == "schemes": assert value == EXPERIMENTS["schemes"].conditions[label] and settings["steps"] == 80
    _, _, frozen, seed, settings = next(call for call in calls if call[1] == ("first_look", "dora"))
    assert seed == 1000 and settings["steps"] * frozen.times == 60


def test_what_is_left_is_known_by_the_stored_costs(monkeypatch, capsys):
    """Four runs of 1, 1, 2 and 8 s in two processes take 6 s. The longest comes first; this machine takes twice as long."""
    costs = {"a": 1.0, "b": 2.0, "c": 8.0}
    monkeypatch.setattr(compare, "stored_costs", lambda: costs)
    order = []

    class Bar(compare.Progress):
        def __call__(self, done, text="", seconds=None, left=None): lefts.append(left)
    lefts = []
    monkeypatch.setattr(compare, "Progress", Bar)

    def measure_one(call):
        order.append(call[1][1])
        return call[1], call[3], {}, 2 * costs[call[1][1]]
    monkeypatch.setattr(compare, "measure_one", measure_one)
    monkeypatch.setattr(compare, "workers", lambda jobs: contextlib.nullcontext(map))
    calls = [(None, ("x", label), None, seed, {}) for label, seed in (("a", 0), ("a", 1), ("b", 0), ("c", 0))]
    runs, took = compare.measured(calls, 2, False)
    assert order == ["c", "b", "a", "a"] and lefts == [6.0, 4.0, 2.0, 1.0, 0.0]
    assert took == {"a": 2.0, "b": 4.0, "c": 16.0} and runs["x", "a"].keys() == {0, 1}


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


SMALL = compare.Size(steps=1, seeds=1, schemes=("NF4", "PEQA 3 bit *"), test_rows=16, batch_size=1)


def test_another_model_is_measured_and_is_as_it_was():
    model, untouched = tp.load_pretrained(), tp.load_pretrained().state_dict()
    found, again = (compare.compare(model, SMALL, progress=False) for _ in range(2))
    assert model.attached is None and model.state_dict().keys() == untouched.keys()
    assert all(np.array_equal(a, untouched[name]) for name, a in model.state_dict().items())
    assert [r["losses"] for r in found["methods"]] == [r["losses"] for r in again["methods"]]
    assert [r["label"] for r in found["schemes"]] == ["float32", "NF4"]                    # what trains is left out
    exact = tp.evaluate(model, tp.tasks.domain(model), "test", max_batches=1)["loss"]
    assert found["schemes"][0]["loss"] == found["methods"][0]["loss"] == exact and found["test_tokens"] == 16 * 128
    text = glance.tables(found)
    assert "The study measures the shipped base only" in text and "the study " not in text.split("\n")[0]


def little(context):
    model = tp.GPT(tp.GPTConfig(1024, context, 16, 2, 1), rng=0)
    model.tokenizer = tp.load_pretrained().tokenizer
    return model, tp.tasks.text({"numbers": " ".join(map(str, range(4000)))}, model, context=32)


def test_a_scheme_is_measured_on_a_model_of_a_short_context(monkeypatch):
    written, real = [], compare.train
    monkeypatch.setattr(compare, "train", lambda model, task, *steps, **options: written.append(task.data("train").shape) or
                        real(model, task, *steps, **options))
    for context in (96, 32): compare.measure_scheme(little(context)[0], tp.LLMQAT(), little(context)[1], SMALL)
    assert written == [(32, 64), (32, 32)]
    _, cost = cost_of_nf4(32)
    assert cost["quantized"]["perplexity"] == pytest.approx(cost["exact"]["perplexity"], rel=0.05)


def cost_of_nf4(context, size=SMALL):
    """A little model in NF4, and what that costs."""
    model, task = little(context)
    return compare.quantized_at_cost(model, tp.NF4(16), size, task, task.batch("train", 4, np.random.default_rng(0))[0])


def test_the_cost_says_on_how_much_it_was_measured():
    whole = dataclasses.replace(SMALL, test_rows=512)
    assert [cost_of_nf4(32, size)[1]["on"] for size in (SMALL, whole)] == [f"{SMALL.test_rows} windows of the test split",
                                                                         "the test split"]


def test_a_scheme_is_measured_by_its_formulas():
    (model, domain), scheme = little(32), tp.NF4(16, double_quant=True)
    cost = compare.measure_scheme(model, scheme, domain, SMALL)
    tokens = next(iter(domain.batches("test", 4)))[0]
    exact, rounded = model(tokens).data, tp.quantize(compare.sharing(model), scheme)(tokens).data
    assert cost["output_error"] == pytest.approx(np.sqrt(((rounded - exact) ** 2).sum() / (exact ** 2).sum()), rel=1e-5)
    weights = [m.weight.data for path, m in model.named_modules() if path.startswith("blocks.") and hasattr(m, "d_out")]
    size = sum(W.size for W in weights)
    errors, squares = (sum(float((f(W) ** 2).sum()) for W in weights)
                       for f in (lambda W: scheme.quantize(W).dequantize() - W, lambda W: W))
    assert cost["weight_error"] == pytest.approx(np.sqrt(errors / squares), rel=1e-5)
    assert cost["bits_per_weight"] == pytest.approx(8 * cost["bytes"] / size)


def test_sizes_are_those_of_the_arrays_and_the_file(tmp_path):
    model, (rounded, cost) = little(32)[0], cost_of_nf4(32)
    rounded.tokenizer = None                             # which is no weight, and larger than this model
    tp.save_quantized(rounded, tmp_path / "q")
    assert cost["file"] == (tmp_path / "q").stat().st_size
    assert cost["bits_per_weight"] < cost["bits_in_all"] == pytest.approx(8 * cost["file"] / model.n_parameters())
    assert f"{cost['file'] / 1024:,.0f} KiB, {cost['bits_in_all']:.3f} bits over all weights" in compare.described(cost)
    exact, row = compare.with_sizes([{"bits": 32.0}, {"bits": cost["bits_per_weight"]}], model)
    assert exact["bytes"] == 4 * model.n_parameters() and exact["bits_in_all"] == 32
    assert row["bytes"] == sum(a.nbytes for a in rounded.state_dict().values()) < cost["file"]


def test_a_large_model_is_measured_at_a_size_that_suits_it(monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "of_another", lambda model, size, *_: seen.append(size) or {})
    for parameters, size in ((compare.LARGE_FROM, compare.LARGE), (compare.LARGE_FROM - 1, compare.Size())):
        model = tp.GPT(tp.GPTConfig(64, 16, 32, 2, 2))
        monkeypatch.setattr(model, "n_parameters", lambda n=parameters: n)
        compare.compare(model, progress=False)
        assert seen.pop() == size


@pytest.mark.parametrize("label", [k for k, scheme in COMPARED_SCHEMES.items() if not scheme.trains])
def test_a_scheme_writes_into_no_array_that_copies_share(label):
    model = tp.GPT(tp.GPTConfig(64, 16, 32, 2, 2))
    for p in model.parameters(): p.data.flags.writeable = False
    copied = compare.sharing(model)
    assert all(a is b for a, b in zip(copied.state_dict().values(), model.state_dict().values(), strict=True))
    tokens = np.random.default_rng(0).integers(0, 64, (16, 16))
    before = model(tokens).data
    tp.quantize(copied, COMPARED_SCHEMES[label], calibration=tokens)
    assert np.array_equal(model(tokens).data, before)


def test_the_tables_and_the_picture_show_everything(whole, tmp_path):
    text = glance.tables(whole)
    with plot.style(): assert faults(glance.picture_of(whole).figure) == []
    drawn = " ".join(ET.parse(glance.draw(whole, tmp_path / "compare.svg")).getroot().itertext())
    for r in (*whole["methods"], *whole["schemes"][1:]): assert r["label"] in text and r["label"] in drawn
    first, second, third, notes = text.split("\n\n")
    assert "float32  " in second and "QAT 3 bit" not in second and third.count("\n") == 3 and "trained as long" in third
    assert "inside" in first and "OUTSIDE" in first and f"of {len(ROWS)} are inside" in notes
    for part in (first, second, third): assert max(map(len, part.split("\n"))) <= 100
    float32 = whole["schemes"][0]
    assert f"32.000  32.000  {float32['bytes'] / 1024:,.0f}" in second and "of all  " in third and "KiB: what all" in notes
    for r in whole["schemes"]: del r["bytes"]                                    # as in an older record
    older = glance.tables(whole)
    assert "KiB" not in older and older.split("\n\n")[0] == first
