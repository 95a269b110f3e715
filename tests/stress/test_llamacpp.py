"""A short form of `llamacpp.py`, without llama.cpp: how inputs are rounded, and what counts as a fault."""
import copy

import numpy as np
import pytest

import tinypeft as tp
from tests.models.test_llama import llama
from tests.stress.llamacpp import CLIENT, TEXTS, Rounding, faults, q8_k, random_texts, relative


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


def test_texts_are_hard_and_the_client_is_python():
    assert random_texts(9) == random_texts(9) and len({*TEXTS, *random_texts(500)}) > 530
    for text in TEXTS + random_texts(500): text.encode("utf-8")
    compile(CLIENT, "client", "exec")


EXACT = {"MB": 5.0, "largest difference": 2e-4, "relative": 1e-5, "same greedy tokens": 180}
CODED = {"MB": 2.0, "largest difference": 1.0, "relative": 0.01, "same greedy tokens": 70,
         "relative to ours with rounded inputs": 8e-6, "rounding alone": 0.01}
FIGURES = {"ids": {"texts": 3, "cut otherwise": [], "conversation": "the same ids"}, "greedy tokens": 180,
           "files": {"F32": EXACT, "Q8_0 in one layer": CODED, "Q8_0": CODED | {"relative to ours with rounded inputs": 0.02}},
           "importance": {"largest relative difference": 1e-5}}


@pytest.mark.parametrize("place, value, fault", [
    (("ids", "cut otherwise"), ["é"], "the ids of 'é' differ"), (("ids", "conversation"), "other ids", "of the conversation"),
    (("files", "F32", "relative"), 2e-3, "F32: the logits differ"),
    (("files", "F32", "same greedy tokens"), 179, "other greedy tokens"),
    (("files", "Q8_0 in one layer", "relative to ours with rounded inputs"), 2e-3, "do not explain the logits"),
    (("files", "Q8_0", "relative"), 0.02, "by more than rounding"),
    (("importance", "largest relative difference"), 0.1, "the importances differ")])
def test_what_differs_is_a_fault(place, value, fault):
    assert faults(FIGURES) == []
    *path, last = place
    inner = changed = copy.deepcopy(FIGURES)
    for name in path: inner = inner[name]
    inner[last] = value
    (found,) = faults(changed)
    assert fault in found
