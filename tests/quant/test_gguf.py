"""gguf.py: types and mixtures on models, importance from calibration, and what a file holds of them."""
import copy

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.models.test_llama import llama
from tests.toys import linear_paths
from tinypeft.interop import write_gguf
from tinypeft.interop.gguf_bytes import type_of
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.llama import from_gguf
from tinypeft.quant.gguf import MIXTURES

TOKENS = np.random.default_rng(0).integers(0, 30, (4, 16))


def wide(n_layers=2, d_mlp=512, **sizes):
    return llama(dtype=np.float32, d_model=256, d_mlp=d_mlp, n_layers=n_layers, n_heads=4, n_kv_heads=2, d_head=64, **sizes)


def tensor_types(path):
    file = read_gguf(path)
    return [file.kind(name).name for name in file]


def types(model):
    return {path: type_of(model.get(path).weight) for path in linear_paths(model)}


def test_a_mixture_gives_half_of_the_layers_more_bits():
    """Of 24 blocks: 3 at each end, and every third of the 18 between (llama.cpp's use_more_bits)."""
    model = llama(dtype=np.float32, d_model=256, d_mlp=256, n_layers=24, n_heads=4, n_kv_heads=2, d_head=64)
    more = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    for name, (usual, better) in {"Q4_K_M": ("Q4_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K")}.items():
        scheme = tp.GGUF(name)
        for path in linear_paths(model):
            _, block, *role = path.split(".")
            expected = better if role[-1] in ("value", "down") and int(block) in more else usual
            assert scheme.kind(path, model.get(path), model) == expected, path
    small = {path: tp.GGUF("Q4_K_S").kind(path, model.get(path), model) for path in linear_paths(model)}
    assert [path for path, kind in small.items() if kind != "Q4_K"] == [
        "blocks.0.attention.value", "blocks.0.mlp.down", "blocks.1.attention.value", "blocks.1.mlp.down",
        "blocks.2.attention.value", "blocks.2.mlp.down", "blocks.3.attention.value"]
    assert {tp.GGUF("Q5_K_S").kind(path, model.get(path), model) for path in linear_paths(model)} == {"Q5_K"}


def test_where_256_does_not_divide_the_rows_a_mixture_falls_back():
    model = llama(dtype=np.float32, d_model=64, d_mlp=512, n_layers=2, n_heads=4, n_kv_heads=2, d_head=16)
    kinds = types(tp.quantize(model, tp.GGUF("Q4_K_M")))
    assert kinds["blocks.0.attention.query"] == "Q5_0" and kinds["blocks.1.attention.value"] == "Q8_0"
    assert kinds["blocks.1.mlp.down"] == "Q6_K"
    with pytest.raises(ValueError, match="Q4_K needs rows of whole superblocks"):
        tp.quantize(llama(dtype=np.float32, d_model=64), tp.GGUF("Q4_K"))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_gpts_query_key_and_value_have_one_type(name, tmp_path):
    model = tp.quantize(make_gpt(np.float32, d_model=256, n_layers=2), tp.GGUF(name))
    kinds = types(model)
    fused = {"Q4_K_S": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q6_K"}[name]
    for i in range(2):
        assert {kinds[f"blocks.{i}.attention.{role}"] for role in ("query", "key", "value")} == {fused}
    write_gguf(tmp_path / "m.gguf", model)
    names = set(tensor_types(tmp_path / "m.gguf"))
    assert names == {*kinds.values(), "F32"}


@pytest.mark.parametrize("name, file_type", [("Q4_K_M", 15), ("Q4_K_S", 14), ("Q5_K_M", 17), ("Q5_K_S", 16), ("Q6_K", 18)])
def test_a_file_of_a_llama_comes_back_bit_exact(name, file_type, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = tp.quantize(wide(), tp.GGUF(name))
    write_gguf(tmp_path / "m.gguf", model)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.file_type"].contents() == file_type
    model.tokenizer = None
    again = from_gguf(tmp_path / "m.gguf", quantized=True)
    assert types(again) == types(model)
    assert np.array_equal(again(TOKENS).data, model(TOKENS).data)
    for path in linear_paths(model):
        assert again.get(path).weight.nbytes == model.get(path).weight.nbytes
    dense = from_gguf(tmp_path / "m.gguf")
    assert np.array_equal(dense.get("blocks.1.mlp.down").weight.data, model.get("blocks.1.mlp.down").weight.dequantize())


def test_a_mixture_rounds_no_single_array():
    with pytest.raises(ValueError, match="GGUF\\('Q4_K_M'\\) is a mixture of Q4_K and Q6_K by layer"):
        tp.GGUF("Q4_K_M").quantize(np.ones((2, 256)))
    with pytest.raises(ValueError, match="mixture of Q5_K by layer"): tp.GGUF("Q5_K_S").quantize(np.ones((2, 256)))


def test_importance_comes_from_the_inputs_of_calibration():
    model = wide()
    exact = copy.deepcopy(model)
    plain = tp.quantize(copy.deepcopy(model), tp.GGUF("Q4_K"))
    tp.quantize(model, tp.GGUF("Q4_K", importance=True), calibration=TOKENS)
    seen = tp.quant.capture(exact, TOKENS)
    for path in "blocks.0.attention.query", "blocks.1.mlp.down":
        W, h = exact.get(path).weight.data, seen[path].mean_square
        assert np.array_equal(model.get(path).weight.dequantize(), tp.GGUF("Q4_K").quantize(W, h).dequantize())
        assert not np.array_equal(model.get(path).weight.codes, plain.get(path).weight.codes)


def test_mean_squares_are_those_of_the_inputs_numerical(rng):
    statistics = tp.quant.calibration.Statistics(5)
    X = rng.standard_normal((3, 7, 5)).astype(np.float32)
    for batch in X: statistics.update(batch)
    assert np.allclose(statistics.mean_square, (X.reshape(-1, 5)**2).mean(0), rtol=1e-6)


def test_lora_trains_on_a_mixture_and_merges():
    model = tp.quantize(wide(), tp.GGUF("Q4_K_M"))
    tuned = tp.attach(model, tp.LoRA(rank=2, targets="all"), rng=0)
    for p in tuned.parameters():
        if p.requires_grad: p.assign(p.data + np.float32(0.01))
    expected = tuned(TOKENS).data
    merged = tuned.merge()
    assert np.allclose(merged(TOKENS).data, expected, atol=1e-4)
    assert 4.5 < tp.bits_per_weight(model) < 6.6


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name, head, embedding", [("Q8_0", "Q8_0", "Q8_0"), ("Q4_0", "Q6_K", "Q4_0"),
                                                   ("Q4_K_M", "Q6_K", "Q4_K")])
def test_embeddings_are_rounded_as_llama_cpp_does(tied, name, head, embedding, tmp_path):
    """The head in more bits, also where the embedding is the head. A file holds the same numbers."""
    model = wide(tied=tied)
    exact = model.token_embedding.weight.data
    tp.quantize(model, tp.GGUF(name, embeddings=True))
    assert type_of(model.token_embedding.weight) == (head if tied else embedding)
    assert tied or type_of(model.lm_head.weight) == head
    off = np.linalg.norm(model.token_embedding.weight.dequantize() - exact) / np.linalg.norm(exact)
    assert 0 < off < 0.15
    write_gguf(tmp_path / "m.gguf", model)
    assert np.array_equal(from_gguf(tmp_path / "m.gguf", quantized=True)(TOKENS).data, model(TOKENS).data)


def test_a_row_that_is_no_superblock_takes_the_plain_type():
    model = llama(dtype=np.float32, d_model=32, d_mlp=32, n_heads=4, n_kv_heads=2, d_head=8)
    tp.quantize(model, tp.GGUF("Q4_K_M", embeddings=True))
    assert type_of(model.token_embedding.weight) == ("Q8_0" if model.lm_head is None else "Q5_0")
