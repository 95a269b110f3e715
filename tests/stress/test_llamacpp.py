"""A short form of `llamacpp.py`, without llama.cpp: how inputs are rounded, and what counts as a fault."""
import copy
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.models.test_llama import llama
from tests.stress.llamacpp import (
    CLIENT,
    FAMILIES,
    TEXTS,
    Rounding,
    centred,
    faults,
    job,
    perplexity,
    q8_k,
    random_texts,
    relative,
    small,
    tuned,
)
from tinypeft.interop import write_gguf, write_gguf_adapter


def test_inputs_are_rounded_as_a_loop_says(rng):
    x = rng.standard_normal((3, 512)).astype(np.float32)
    x[1, :256] = 0
    for row, got in zip(x.reshape(-1, 256), q8_k(x).reshape(-1, 256), strict=True):
        top = max(row, key=abs)
        codes = [min(int(np.rint(np.float32(-127) / top * v)), 127) for v in row] if top else [0] * 256
        np.testing.assert_allclose(got, np.array(codes) * (top / -127), rtol=1e-6, atol=0)
    assert 1e-3 < relative(q8_k(x), x) < 2e-2


@pytest.mark.parametrize("name, rounded", [("Q8_0", lambda x: tp.GGUF("Q8_0").quantize(x).dequantize()), ("Q4_K", q8_k)])
def test_the_type_of_the_weights_decides_how_inputs_are_rounded(name, rounded, rng):
    model = tp.quantize(llama(dtype=np.float32, d_model=256, d_mlp=256, n_layers=1), tp.GGUF(name), targets=("up",))
    layer, x = model.get("blocks.0.mlp.up"), rng.standard_normal((2, 256)).astype(np.float32)
    cases = (Rounding(layer), x), (layer, x), (layer, rounded(x))
    with tp.no_grad(): got, plain, expected = (module(tp.Tensor(inputs)).data for module, inputs in cases)
    assert np.array_equal(got, expected) and not np.array_equal(got, plain)


def test_texts_are_hard():
    assert random_texts(9) == random_texts(9) and len({*TEXTS, *random_texts(500)}) > 530
    for text in TEXTS + random_texts(500): text.encode("utf-8")


def test_the_client_reads_what_a_job_says():
    written = job(Path("m.gguf"), [np.arange(3)], [1]).keys()
    assert set(re.findall(r"\bjob\.(\w+)", CLIENT.read_text("utf-8"))) == written
    assert {*inspect.signature(job).parameters} - {"following"} <= written


@pytest.mark.parametrize("kind, sizes", [(kind, sizes) for kind, variants in FAMILIES.items() for sizes in variants])
def test_each_model_is_written_and_so_is_its_adapter(kind, sizes, tmp_path):
    """llama.cpp then reads what is not refused here."""
    model = small(kind, **sizes)
    write_gguf(tmp_path / "m.gguf", model)
    write_gguf_adapter(tmp_path / "a.gguf", tuned(model, tp.LoRA(rank=3, targets="all"), 0.1))


def test_perplexity_is_that_of_the_loss(rng):
    logits, ids = rng.standard_normal((9, 5)), np.array([1, 0, 4, 2])
    P = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.prod(P[[5, 6, 7], ids[1:]]) ** (-1 / 3)
    assert perplexity(logits, ids) == perplexity(centred(logits) + 7, ids) == round(expected, 3)


EXACT = {"MB": 5.0, "largest difference": 2e-4, "relative": 1e-5, "same greedy tokens": 180}
CODED = {"MB": 2.0, "largest difference": 1.0, "relative": 0.01, "same greedy tokens": 70,
         "relative to ours with rounded inputs": 8e-6, "rounding alone": 0.01}
FIGURES = {"ids": {"texts": 3, "cut otherwise": [], "conversation": "the same ids"}, "greedy tokens": 180,
           "files": {"F32": EXACT, "Q8_0 in one layer": CODED, "Q8_0": CODED | {"relative to ours with rounded inputs": 0.02}},
           "families": {"llama": [[1e-6, 2e-6]], "gpt2": [[3e-4, 3e-4], [1e-3, 1e-3]]}}


@pytest.mark.parametrize("place, value, fault", [
    (("ids", "cut otherwise"), ["é"], "the ids of 'é' differ"), (("ids", "conversation"), "other ids", "of the conversation"),
    (("files", "F32", "relative"), 2e-3, "F32: the logits differ"),
    (("files", "F32", "same greedy tokens"), 179, "other greedy tokens"),
    (("files", "Q8_0 in one layer", "relative to ours with rounded inputs"), 2e-3, "do not explain the logits"),
    (("files", "Q8_0", "relative"), 0.02, "by more than rounding"),
    (("families", "llama"), [[1e-6, 2e-6], [1e-6, 1e-4]], "llama: the logits differ"),
    (("families", "gpt2"), [[0.1, 1e-4]], "gpt2: the logits differ")])
def test_what_differs_is_a_fault(place, value, fault):
    assert faults(FIGURES) == []
    *path, last = place
    inner = changed = copy.deepcopy(FIGURES)
    for name in path: inner = inner[name]
    inner[last] = value
    (found,) = faults(changed)
    assert fault in found
