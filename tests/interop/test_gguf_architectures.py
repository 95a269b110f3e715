"""gguf_architectures.py: Qwen 3, Gemma 3 and GPT-2 in GGUF files, by names of the package gguf, with transformers' numbers."""
import dataclasses

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.models.test_gemma import gemma
from tests.models.test_llama import llama
from tests.oracles import assert_close
from tests.stress.attacks import gguf_content, save_gguf
from tests.toys import same
from tinypeft.interop import write_gguf
from tinypeft.interop.gguf_architectures import ARCHITECTURES
from tinypeft.interop.gguf_bytes import file_bytes
from tinypeft.interop.gguf_reader import GGUFError, read_gguf
from tinypeft.interop.llama import from_gguf
from tinypeft.quant import QuantizedEmbedding

gguf = pytest.importorskip("gguf")
GEMMA = {"d_model": 32, "d_mlp": 64, "n_heads": 4, "d_head": 16, "query_scale": 16}


def made(kind, **sizes):
    """A small model of float32 without a tokenizer."""
    if kind == "gpt2": return make_gpt(np.float32, **{"d_model": 32, "vocab_size": 41, "n_layers": 2} | sizes)
    if kind == "gemma3": return gemma(dtype=np.float32, **GEMMA | sizes)
    name = {"llama": "grouped", "qwen2": "Qwen 2.5", "qwen3": "Qwen3"}[kind]
    return llama(name, np.float32, **{"d_model": 32, "d_mlp": 64, "d_head": 8, "n_heads": 4, "n_kv_heads": 2} | sizes)


@pytest.fixture(params=["qwen3", "gemma3", "gpt2"])
def kind(request): return request.param


@pytest.mark.parametrize("scheme", [None, tp.GGUF("Q8_0"), tp.GGUF("Q5_1")])
def test_a_model_comes_back_bit_exact(kind, scheme, tmp_path, rng):
    model = made(kind)
    if scheme: tp.quantize(model, scheme)
    write_gguf(tmp_path / "m.gguf", model)
    back = from_gguf(tmp_path / "m.gguf", quantized=True)
    assert type(back) is type(model)
    assert back.config == dataclasses.replace(model.config, norm_eps=back.config.norm_eps)      # float32 in the file
    tokens = rng.integers(0, 41, (2, 20))
    exact = kind != "gemma3"                                     # (1 + w) − 1 is not w
    for (name, a), (other, b) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == other and (np.array_equal(a, b) if exact else np.allclose(a, b, rtol=0, atol=1e-7))
    assert_close(back(tokens), model(tokens), 1e-5)
    assert np.array_equal(from_gguf(tmp_path / "m.gguf")(tokens).data, back(tokens).data)
    write_gguf(tmp_path / "again.gguf", back)
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


def test_embeddings_and_heads_keep_their_codes_bit_exact(kind, tmp_path, rng):
    """Gemma's embedding with its scale, GPT-2's positions, and Qwen's head."""
    model = tp.quantize(made(kind), tp.GGUF("Q8_0"))
    path, tokens = tmp_path / "m.gguf", rng.integers(0, 41, (2, 20))
    write_gguf(path, model)
    fields, tensors = gguf_content(path)
    coded = {"token_embd.weight", "position_embd.weight", "output.weight"} & tensors.keys()
    for name in coded:
        _, shape, octets = tensors[name]
        q = tp.GGUF("Q4_1").quantize(octets.view("<f4").reshape(shape))
        tensors[name] = 3, shape, file_bytes(q).reshape(-1)
    save_gguf(path, fields, tensors)
    back = from_gguf(path, quantized=True)
    assert sum(type(m) is QuantizedEmbedding for _, m in back.named_modules()) + (kind == "qwen3") == len(coded)
    assert np.array_equal(back(tokens).data, from_gguf(path)(tokens).data)
    write_gguf(tmp_path / "again.gguf", back)
    again = read_gguf(tmp_path / "again.gguf")
    assert all(np.array_equal(again.octets(name), octets) for name, (_, _, octets) in tensors.items())


def test_names_of_tensors_and_fields_are_those_of_the_package_gguf(kind, tmp_path):
    write_gguf(tmp_path / "m.gguf", made(kind))
    file, arch = read_gguf(tmp_path / "m.gguf"), {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    known = {gguf.TENSOR_NAMES[tensor].replace("{bid}", "0") for tensor in gguf.MODEL_TENSORS[arch]}
    found = {name.rpartition(".")[0] for name in file if not name.startswith("blk.") or name.startswith("blk.0.")}
    assert found <= known and known - found <= {"output", "rope_freqs"}
    keys = {key.replace("{arch}", kind) for group in vars(gguf.Keys).values() if isinstance(group, type)
            for key in vars(group).values() if isinstance(key, str)}
    assert file.fields.keys() <= keys


def test_a_file_of_transformers_tensors_is_read(kind, tmp_path, rng, torch):
    """Named by gguf's own map and changed as llama.cpp's converter does it: norms of Gemma grow by 1, and GPT-2's linear
    layers are transposed."""
    ours = made(kind)
    if kind == "gpt2":
        transformers = pytest.importorskip("transformers")
        tp.save_model(ours, tmp_path / "folder")
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "folder", dtype=torch.float64)
    else:
        from tests.oracles.torch_llama import torch_llama
        theirs = torch_llama(ours.to(np.float64))
    write_gguf(tmp_path / "ours.gguf", ours)
    fields = read_gguf(tmp_path / "ours.gguf").fields
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names, tensors = gguf.get_tensor_name_map(arch, ours.config.n_layers), {}
    for name, tensor in theirs.state_dict().items():
        if name == "lm_head.weight" and getattr(ours.config, "tied", True): continue
        W = tensor.numpy().astype(np.float32)
        if kind == "gemma3" and name.endswith("norm.weight"): W = W + np.float32(1)
        if kind == "gpt2" and ".c_" in name and name.endswith(".weight"): W = W.T
        name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        tensors[name] = 0, W.shape, np.ascontiguousarray(W).view(np.uint8).reshape(-1)
    save_gguf(tmp_path / "theirs.gguf", fields, tensors)
    back, tokens = from_gguf(tmp_path / "theirs.gguf").to(np.float64), rng.integers(0, 41, (2, 20))
    with torch.no_grad(): assert_close(back(tokens), theirs(torch.as_tensor(tokens)).logits, 1e-6)


def test_transformers_reads_what_was_written(kind, tmp_path, rng, torch):
    """Its reader leaves some sizes at their defaults, so the model has these."""
    transformers = pytest.importorskip("transformers")
    sizes = {"qwen3": {"d_head": 128}, "gpt2": {"vocab_size": 50257, "context_length": 1024},
             "gemma3": {"d_head": 256, "query_scale": 256, "n_layers": 7, "global_every": 6, "local_theta": 1e4}}
    model, tokens = made(kind, **sizes[kind]), rng.integers(0, 41, (2, 20))
    write_gguf(tmp_path / "m.gguf", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).double()
    with torch.no_grad(): logits = theirs(torch.as_tensor(tokens)).logits.numpy()
    assert_close(model.to(np.float64)(tokens), logits, 1e-5)


# -- what a field changes ----------------------------------------------------------------------------------------------
def content_of(kind, tmp_path, **sizes):
    write_gguf(tmp_path / f"{kind}.gguf", made(kind, **sizes))
    return tmp_path / f"{kind}.gguf", *gguf_content(tmp_path / f"{kind}.gguf")


@pytest.mark.parametrize("kind, name, value, says", [
    ("gpt2", "feed_forward_length", 96, "gpt2.feed_forward_length is 96, expected 128: the MLP of a GPT is 4 d_model wide"),
    ("gpt2", "feed_forward_length", np.full(2, 128), "gpt2.feed_forward_length is array"),
    ("gpt2", "attention.head_count_kv", 1, "gpt2.attention.head_count_kv is 1, expected 4"),
    ("gpt2", "attention.key_length", 4, "gpt2.attention.key_length is 4, expected 8"),
    ("gpt2", "attention.layer_norm_epsilon", None, "the field gpt2.attention.layer_norm_epsilon is missing"),
    ("gemma3", "final_logit_softcapping", 30.0, "gemma3.final_logit_softcapping is 30.0, expected 0.0"),
    ("gemma3", "rope.scaling.factor", 8.0, "gemma3.rope.scaling.factor is 8.0, expected 1.0"),
    ("gemma3", "attention.sliding_window_pattern", np.array([True, False]), "attention.sliding_window_pattern is a list"),
    ("gemma3", "attention.sliding_window", -5, "window"), ("gemma3", "rope.freq_base_swa", "x", "local_theta"),
    ("qwen3", "attention.head_count", 3, "must divide"), ("qwen3", "expert_count", 8, "qwen3.expert_count is 8, expected 0")])
def test_what_is_not_computed_is_refused_by_name(kind, name, value, says, tmp_path):
    path, fields, tensors = content_of(kind, tmp_path)
    fields[f"{kind}.{name}"] = value
    save_gguf(path, {key: value for key, value in fields.items() if value is not None}, tensors)
    with pytest.raises(GGUFError, match=f"{kind}.gguf: .*{says}"): from_gguf(path)


def test_divisors_of_angles_are_of_llama_alone(tmp_path):
    """llama.cpp would not use them for another architecture."""
    path, fields, tensors = content_of("qwen3", tmp_path)
    save_gguf(path, fields, tensors | {"rope_freqs.weight": (0, (4,), np.ones(4, "<f4").view(np.uint8))})
    with pytest.raises(GGUFError, match="'rope_freqs.weight' does not fit: expected no such tensor"): from_gguf(path)


def test_fields_of_gemma_have_llama_cpps_defaults(tmp_path):
    """Its converter writes neither the period of windows nor their angles. Without a window, every layer sees all."""
    path, fields, tensors = content_of("gemma3", tmp_path, n_layers=3, global_every=2)
    assert from_gguf(path).config.global_every == 2
    short = {name: value for name, value in fields.items() if not name.endswith(("pattern", "_swa", "key_length"))}
    save_gguf(path, short, tensors)
    with pytest.raises(GGUFError, match="value_length is 16, expected 8"): from_gguf(path)        # 32 / 4 heads
    save_gguf(path, short | {"gemma3.attention.key_length": 16}, tensors)
    config = from_gguf(path).config
    assert (config.global_every, config.local_theta, config.window) == (6, 1e4, 5)
    del short["gemma3.attention.sliding_window"]
    save_gguf(path, short | {"gemma3.attention.key_length": 16}, tensors)
    config = from_gguf(path).config
    assert (config.global_every, config.window) == (1, config.context_length)


def test_a_window_that_no_layer_has_is_not_written(tmp_path, rng):
    """llama.cpp stops at one."""
    model, tokens = made("gemma3", global_every=1), rng.integers(0, 41, (2, 20))
    write_gguf(tmp_path / "m.gguf", model)
    fields = read_gguf(tmp_path / "m.gguf").fields
    assert not [name for name in fields if "sliding_window" in name or name.endswith("_swa")]
    assert_close(from_gguf(tmp_path / "m.gguf")(tokens), model(tokens), 1e-5)
    assert any("sliding_window" in name for name in content_of("gemma3", tmp_path, global_every=2)[1])


def test_scores_of_62_layers_are_scaled_as_in_gemma_3_27b():
    file = ARCHITECTURES["gemma3"]
    sizes = {"n_layers": 62, "d_model": 42, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "query_scale": 21}
    file.check(tp.models.GemmaConfig(**sizes))
    with pytest.raises(ValueError, match="a Gemma with 61 layers by √16, this one by √21"):
        file.check(tp.models.GemmaConfig(**sizes | {"n_layers": 61}))
    content = file.write(tp.models.GemmaConfig(**sizes)) | {"tied": True, "rope_freqs": None}
    assert file.read("gemma3", content).query_scale == 21


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_a_head_is_the_embedding_or_is_refused(kind, tmp_path):
    """Older files of GPT-2 repeat the embedding."""
    path, fields, tensors = content_of(kind, tmp_path)
    expected = from_gguf(path).state_dict()
    save_gguf(path, fields, tensors | {"output.weight": tensors["token_embd.weight"]})
    assert same(from_gguf(path).state_dict(), expected)
    type_, shape, octets = tensors["token_embd.weight"]
    save_gguf(path, fields, tensors | {"output.weight": (type_, shape, octets[::-1].copy())})
    with pytest.raises(GGUFError, match="output.weight is not token_embd.weight; a .* has one matrix for both"): from_gguf(path)
