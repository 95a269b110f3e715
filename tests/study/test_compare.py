"""The main job: every method and scheme is in the record, its numbers are right, and tables and picture show them."""
import copy
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.study import compare


@pytest.fixture(scope="module")
def model(): return tp.load_pretrained()


@pytest.fixture(scope="module")
def record(model):
    size = compare.Size(steps=2, classify_steps=0, test_batches=1)
    return compare.compare(model, size, progress=False)


def test_every_method_and_every_scheme_is_in_it(record):
    assert [r["name"] for r in record["methods"]] == ["frozen", *tp.METHODS]
    assert {r["name"] for r in record["schemes"]} == set(tp.SCHEMES)


def test_the_model_is_as_it_was(record, model):
    untouched = tp.load_pretrained().state_dict()
    assert model.attached is None and model.state_dict().keys() == untouched.keys()
    assert all(np.array_equal(a, untouched[name]) for name, a in model.state_dict().items())


@pytest.mark.parametrize("label", [k for k, scheme in compare.COMPARED_SCHEMES.items() if not scheme.trains])
def test_a_scheme_writes_into_no_array_that_copies_share(label):
    model = tp.GPT(tp.GPTConfig(64, 16, 32, 2, 2))
    for p in model.parameters(): p.data.flags.writeable = False
    copied = compare.sharing(model)
    assert all(a is b for a, b in zip(copied.state_dict().values(), model.state_dict().values(), strict=True))
    tokens = np.random.default_rng(0).integers(0, 64, (16, 16))
    before = model(tokens).data
    tp.quantize(copied, compare.COMPARED_SCHEMES[label], calibration=tokens)
    assert np.array_equal(model(tokens).data, before)


def test_a_large_model_is_measured_at_a_size_that_suits_it(monkeypatch):
    monkeypatch.setattr(compare, "LARGE_FROM", 1_000_000)
    small = compare.Size(steps=1, classify_steps=0, test_batches=1, batch_size=1, schemes=("NF4",))
    monkeypatch.setattr(compare, "LARGE", small)
    record = compare.compare(tp.load_pretrained(), progress=False)
    assert record["steps"] == 1 and [r["label"] for r in record["schemes"]] == ["NF4"]


def test_numbers_are_those_of_the_library(record):
    model = tp.load_pretrained()
    task = tp.tasks.domain(model, context=128)
    frozen = tp.evaluate(model, task, "test", max_batches=1)
    assert record["methods"][0]["loss"] == frozen["loss"] and record["perplexity"] == pytest.approx(frozen["perplexity"])
    lora = next(r for r in record["methods"] if r["name"] == "lora")
    assert lora["trained"] == tp.attach(copy.deepcopy(model), tp.LoRA()).summary().trained
    nf4 = next(r for r in record["schemes"] if r["label"] == "NF4")
    quantized = tp.quantize(copy.deepcopy(model), tp.NF4())
    assert nf4["perplexity"] == pytest.approx(tp.evaluate(quantized, task, "test", max_batches=1)["perplexity"])
    assert nf4["bits_per_weight"] == pytest.approx(4.5)


def test_the_same_seed_gives_the_same_numbers(record):
    """Every method's; and, whichever schemes are beside it, those of one that rounds, one that calibrates, one that trains."""
    some = ("NF4", "GPTQ 4 bit", "QAT 3 bit *")
    size = compare.Size(steps=2, classify_steps=0, test_batches=1, schemes=some)
    again = compare.compare(tp.load_pretrained(), size, progress=False)
    losses = lambda r: [row["loss"] for row in r["methods"]] + [s["perplexity"] for s in r["schemes"] if s["label"] in some]
    assert losses(again) == losses(record) and len(losses(again)) == len(tp.METHODS) + 4


def test_the_tables_and_the_picture_name_everything(record, tmp_path):
    text = compare.tables(record)
    path = compare.draw(record, tmp_path / "compare.svg")
    drawn = " ".join(ET.parse(path).getroot().itertext())
    for row in record["methods"][1:]:
        assert row["label"] in text and row["label"].split("(")[0] in drawn
    for row in record["schemes"]:
        assert row["label"] in text and row["label"] in drawn
