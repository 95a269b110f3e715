"""interop/gguf.py: the gguf package opens the file and finds the same numbers, under the names it gives the tensors of GPT-2
and Llama."""
import dataclasses

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.models.test_gemma import gemma
from tests.models.test_llama import llama
from tinypeft.interop import write_gguf
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.llama import from_gguf

LLAMA = {"d_model": 32, "d_mlp": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "d_head": 4}


def with_tokenizer(**sizes):
    model = make_gpt(np.float32, **{"vocab_size": 300, "d_model": 64, **sizes})
    model.tokenizer = tp.text.BPETokenizer.train("low lower lowest newer wide naïve " * 3, 270)
    return model


@pytest.mark.parametrize("scheme, kind", [(None, "F32"), (tp.GGUF("Q4_0"), "Q4_0"), (tp.GGUF("Q8_0"), "Q8_0")])
def test_the_gguf_package_reads_the_same_numbers(scheme, kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = with_tokenizer()
    if scheme is not None: tp.quantize(model, scheme)
    write_gguf(tmp_path / "model.gguf", model)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {t.name: t for t in reader.tensors}
    values = {name: gguf.quants.dequantize(t.data, t.tensor_type) for name, t in tensors.items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)
    assert len(tensors) == 4 + 2 * 12 and all(t.data_offset % 32 == 0 for t in tensors.values())
    dense = lambda path: (m.dense_weight() if hasattr(m := model.get(path), "dense_weight") else m.weight.data)
    parts = {"wte": ["token_embedding"], "wpe": ["position_embedding"], "ln_f": ["final_norm"]}
    for i in range(2):
        parts |= {f"h.{i}.attn.c_attn": [f"blocks.{i}.attention.{name}" for name in ("query", "key", "value")],
                  f"h.{i}.attn.c_proj": [f"blocks.{i}.attention.output"], f"h.{i}.mlp.c_fc": [f"blocks.{i}.mlp.up"],
                  f"h.{i}.mlp.c_proj": [f"blocks.{i}.mlp.down"], f"h.{i}.ln_1": [f"blocks.{i}.norm1"],
                  f"h.{i}.ln_2": [f"blocks.{i}.norm2"]}
    for theirs, ours in parts.items():
        name = names.get_name(theirs + ".weight", try_suffixes=(".weight",))
        assert np.array_equal(values.pop(name), np.concatenate([dense(path) for path in ours]))
        assert tensors[name].tensor_type.name == (kind if ".c_" in theirs else "F32")
        if theirs not in ("wte", "wpe"):
            bias = np.concatenate([model.get(path).bias.data for path in ours])
            assert np.array_equal(values.pop(name.replace("weight", "bias")), bias)
    assert values == {}

    field = lambda name: reader.fields[name].contents()
    c = model.config
    sizes = {gguf.Keys.LLM.CONTEXT_LENGTH: c.context_length, gguf.Keys.LLM.EMBEDDING_LENGTH: 64,
             gguf.Keys.LLM.FEED_FORWARD_LENGTH: 256, gguf.Keys.LLM.BLOCK_COUNT: 2, gguf.Keys.Attention.HEAD_COUNT: c.n_heads,
             gguf.Keys.Attention.LAYERNORM_EPS: np.float32(1e-5)}
    assert {key: field(key.format(arch="gpt2")) for key in sizes} == sizes
    assert field("general.architecture") == "gpt2"
    assert field("general.file_type") == {"F32": 0, "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
                                          "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind]


def test_the_type_of_a_file_is_that_of_most_layers(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = tp.quantize(with_tokenizer(n_layers=3), tp.GGUF("Q4_0"))
    other = tp.quantize(with_tokenizer(n_layers=3), tp.GGUF("Q8_0"))
    model.blocks[2] = other.blocks[2]
    write_gguf(tmp_path / "model.gguf", model)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0


@pytest.mark.parametrize("name", ["Q4_K", "Q4_K_S", "Q4_K_M", "Q5_K", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_does_not_decide_the_type_of_a_file(name, tied, tmp_path):
    """It is Q6_K where 256 divides d_model, also in a file whose blocks have no Q6_K."""
    gguf = pytest.importorskip("gguf")
    model = llama(dtype=np.float32, **LLAMA | {"d_model": 256, "d_mlp": 256, "d_head": 32, "tied": tied})
    write_gguf(tmp_path / "model.gguf", tp.quantize(model, tp.GGUF(name, embeddings=True)))
    number = gguf.GGUFReader(tmp_path / "model.gguf").fields["general.file_type"].contents()
    assert gguf.LlamaFileType(number).name == f"MOSTLY_{name}{'_S' if name in ('Q4_K', 'Q5_K') else ''}"


def test_the_tokenizer_is_in_the_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = with_tokenizer()
    write_gguf(tmp_path / "model.gguf", model)
    field = lambda name: gguf.GGUFReader(tmp_path / "model.gguf").fields[f"tokenizer.ggml.{name}"].contents()
    tokens, kinds, tokenizer = field("tokens"), field("token_type"), model.tokenizer
    assert len(tokens) == len(kinds) == 300 and field("model") == "gpt2"
    assert field("eos_token_id") == field("bos_token_id") == tokenizer.end_of_text == 269
    assert tokens[ord(" ")] == "Ġ" and tokens[269] == "<|endoftext|>" and tokens[270:] == [f"[PAD{i}]" for i in range(270, 300)]
    types = gguf.TokenType
    assert kinds == [types.NORMAL] * 269 + [types.CONTROL] + [types.UNUSED] * 30
    assert [merge.split(" ") for merge in field("merges")] == [
        ["".join(tokens[b] for b in part) for part in pair] for pair in tokenizer.merges]
    model.tokenizer = None
    write_gguf(tmp_path / "model.gguf", model)
    assert not any("tokenizer" in name for name in gguf.GGUFReader(tmp_path / "model.gguf").fields)


@pytest.mark.parametrize("spoil, says", [
    (lambda m: tp.quantize(m, tp.NF4()), "blocks.0.attention.query: no type of GGUF holds"),
    (lambda m: tp.quantize(m, tp.LLMInt8()), "blocks.0.attention.query, .* quantized by the same GGUF"),
    (lambda m: tp.quantize(m, tp.GGUF(), targets=("query",)), "blocks.0.attention.query, .* quantized by the same GGUF"),
    (lambda m: tp.attach(m, tp.LoRA()).model, r"inside a PeftModel, with LoRA\(.*\) attached"),
    (lambda m: tp.attach(m, tp.LoRA()).frozen, "inside a PeftModel, as it was at attach"),
    (lambda m: setattr(m, "head", tp.engine.Linear(64, 3)), "a classification head")])
def test_models_that_gguf_cannot_hold_are_refused(spoil, says, tmp_path):
    model = with_tokenizer()
    model = spoil(model) or model
    with pytest.raises(ValueError, match=f"write_gguf: .*{says}"):
        write_gguf(tmp_path / "model.gguf", model)
    assert not list(tmp_path.iterdir())


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    model = with_tokenizer()
    model.blocks[1].mlp.up.weight.data[3, 4] = 1e5
    with pytest.raises(ValueError, match="write_gguf: blk.1.ffn_up.weight: a weight of 100000 overflows float16; BF16"):
        write_gguf(tmp_path / "model.gguf", model, numbers="F16")
    with pytest.raises(ValueError, match="write_gguf: numbers must be 'F32' or 'F16' or 'BF16', got 'Q8_0'; quantize by"):
        write_gguf(tmp_path / "model.gguf", model, numbers="Q8_0")
    assert not list(tmp_path.iterdir())
    write_gguf(tmp_path / "model.gguf", model, numbers="BF16")
    assert from_gguf(tmp_path / "model.gguf").blocks[1].mlp.up.weight.data[3, 4] == 99840


def test_tensors_of_odd_sizes_are_read_from_their_places(tmp_path):
    """Biases of 12 numbers are no multiple of 32 bytes: zeros follow them."""
    gguf = pytest.importorskip("gguf")
    model = with_tokenizer(d_model=12)
    write_gguf(tmp_path / "model.gguf", model)
    read = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert np.array_equal(read["output_norm.bias"], model.final_norm.bias.data)
    for i, block in enumerate(model.blocks):
        assert np.array_equal(read[f"blk.{i}.ffn_down.bias"], block.mlp.down.bias.data)
        assert np.array_equal(read[f"blk.{i}.ffn_norm.weight"], block.norm2.weight.data)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme, kind", [(None, "F32"), (tp.GGUF("Q4_0"), "Q4_0"), (tp.GGUF("Q8_0"), "Q8_0")])
def test_a_llama_is_read_by_the_gguf_package_and_comes_back(scheme, kind, tied, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = llama(dtype=np.float32, tied=tied, **LLAMA)
    if scheme is not None: tp.quantize(model, scheme)
    write_gguf(tmp_path / "model.gguf", model)
    reader, c = gguf.GGUFReader(tmp_path / "model.gguf"), model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    theirs = {"token_embedding": "model.embed_tokens", "final_norm": "model.norm"} | ({} if tied else {"lm_head": "lm_head"})
    for i in range(2):
        block, layer = f"blocks.{i}", f"model.layers.{i}"
        theirs |= {f"{block}.attention.{ours}": f"{layer}.self_attn.{hf}_proj" for ours, hf in
                   (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))}
        theirs |= {f"{block}.mlp.{name}": f"{layer}.mlp.{name}_proj" for name in ("gate", "up", "down")}
        theirs |= {f"{block}.norm1": f"{layer}.input_layernorm", f"{block}.norm2": f"{layer}.post_attention_layernorm"}
    tensors = {t.name: t for t in reader.tensors}
    for ours, hf in theirs.items():
        t = tensors.pop(names.get_name(f"{hf}.weight", try_suffixes=(".weight",)))
        W, got = model.get(ours), gguf.quants.dequantize(t.data, t.tensor_type)
        W = W.dense_weight() if hasattr(W, "dense_weight") else W.weight.data
        if ours.endswith(("query", "key")):                       # neighbours, head by head, by the package's own rule
            n = c.n_heads if "query" in ours else c.n_kv_heads
            W = W.reshape(n, 2, len(W) // n // 2, 32).swapaxes(1, 2).reshape(W.shape)
        np.testing.assert_array_equal(got, W)
        assert t.tensor_type.name == (kind if ours.startswith("blocks") and "norm" not in ours else "F32")
    assert tensors == {}
    field = lambda name: reader.fields[name].contents()
    assert field(gguf.Keys.Attention.HEAD_COUNT_KV.format(arch="llama")) == 2
    assert field(gguf.Keys.Rope.DIMENSION_COUNT.format(arch="llama")) == 4
    assert field(gguf.Keys.Rope.FREQ_BASE.format(arch="llama")) == 1e3 and field("general.architecture") == "llama"
    back = from_gguf(tmp_path / "model.gguf", quantized=True)
    assert back.config == dataclasses.replace(c, norm_eps=back.config.norm_eps) and repr(back) == repr(model)
    for (name, a), (other, b) in zip(back.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other and np.array_equal(a, b)
    write_gguf(tmp_path / "again.gguf", back)
    one, two = (read_gguf(tmp_path / f"{name}.gguf") for name in ("model", "again"))
    assert list(one) == list(two) and all(np.array_equal(one.octets(n), two.octets(n)) for n in one)


def test_models_that_llama_cpp_lacks_are_not_written(tmp_path):
    both = llama("Qwen3", np.float32, qkv_bias=True)
    with pytest.raises(ValueError, match=r"write_gguf: llama.cpp has no Llama with norms .* \(qk_norm and qkv_bias\)"):
        write_gguf(tmp_path / "model.gguf", both)
    scaled = gemma(dtype=np.float32, query_scale=7)
    with pytest.raises(ValueError, match="write_gguf: llama.cpp divides the scores .* 4 layers by √10, this one by √7"):
        write_gguf(tmp_path / "model.gguf", scaled)
    wide = llama("Qwen 2.5", np.float32, d_model=32, n_heads=4, n_kv_heads=2, d_head=16)
    with pytest.raises(ValueError, match=r"write_gguf: in llama.cpp's 'qwen2', .* n_heads · d_head .* expected 32, got 4 · 16"):
        write_gguf(tmp_path / "model.gguf", wide)
    with pytest.raises(ValueError, match="write_gguf: llama.cpp has no heads of one number: .* got 8 = d_model"):
        write_gguf(tmp_path / "model.gguf", make_gpt(np.float32, d_model=8, n_heads=8))
    stretched = llama("Qwen3", np.float32, rope_kind="llama3", rope_factor=8.0, rope_context=40)
    with pytest.raises(ValueError, match="write_gguf: llama.cpp has no rotary embeddings of this kind in 'qwen3'"):
        write_gguf(tmp_path / "model.gguf", stretched)
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_of_a_llama_comes_back(tmp_path):
    model = llama(dtype=np.float32, vocab_size=300, **LLAMA)
    model.tokenizer = tp.text.BPETokenizer.train("low lower lowest newer wide naïve " * 3, 270, split="smollm")
    write_gguf(tmp_path / "model.gguf", model)
    assert from_gguf(tmp_path / "model.gguf").tokenizer == model.tokenizer
