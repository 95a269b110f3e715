"""gguf_reader.py and interop/llama.py: files that the package gguf wrote, and files that are damaged or built to mislead."""
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.models.test_llama import llama
from tests.oracles import assert_close
from tests.stress.attacks import GGUFS, LARGE_GGUFS, gguf_content, save_gguf
from tests.toys import Noise, linear_paths, same
from tinypeft.interop import llama as llama_module
from tinypeft.interop import write_gguf
from tinypeft.interop.gguf_architectures import MODULES
from tinypeft.interop.gguf_architectures import SIZES as SIZES_OF_THE_FILE
from tinypeft.interop.gguf_bytes import file_bytes
from tinypeft.interop.gguf_reader import GGUFError, read_gguf
from tinypeft.interop.llama import from_gguf, halves

gguf = pytest.importorskip("gguf")
SIZES = {"d_model": 32, "d_mlp": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 8}


def neighbours(W, d_head):
    """Rows for a rotation of neighbours from rows for a rotation of halves, written without `halves`."""
    order = [head + i + half for head in range(0, len(W), d_head) for i in range(d_head // 2) for half in (0, d_head // 2)]
    return W[order]


def write(path, model, kind="F32", drop=(), **fields):
    c, w = model.config, gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    w.add_context_length(c.context_length)
    w.add_embedding_length(c.d_model)
    w.add_block_count(c.n_layers)
    w.add_feed_forward_length(c.d_mlp)
    w.add_head_count(c.n_heads)
    w.add_head_count_kv(c.n_kv_heads)
    w.add_rope_freq_base(c.rope_theta)
    w.add_layer_norm_rms_eps(c.norm_eps)
    for name, value in fields.items(): w.add_string(name, value)
    tensors = {"token_embd": "token_embedding", "output_norm": "final_norm"} | ({} if c.tied else {"output": "lm_head"})
    tensors |= {f"blk.{i}.{theirs}": f"blocks.{i}.{ours}" for i in range(c.n_layers) for theirs, (ours,) in MODULES.items()
                if not theirs.endswith(("q_norm", "k_norm"))}
    for theirs, ours in tensors.items():
        W = model.get(ours).weight.data
        if theirs.endswith(("attn_q", "attn_k")): W = neighbours(W, c.d_head)
        if theirs in drop: continue
        t = gguf.GGMLQuantizationType[kind if W.ndim == 2 else "F32"]
        w.add_tensor(f"{theirs}.weight", gguf.quants.quantize(W, t), raw_dtype=t)
    for step in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close): step()
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "model.gguf", llama(dtype=np.float32, **SIZES))


@pytest.mark.parametrize("kind", ["grouped", "one key head"])
def test_a_model_is_read_bit_for_bit(kind, tmp_path, rng):
    sizes = SIZES if kind == "grouped" else {"d_model": 24}
    model = llama(kind, np.float32, **sizes)
    got, tokens = from_gguf(write(tmp_path / "m.gguf", model)), rng.integers(0, 41, (2, 9))
    assert got.config.n_kv_heads == model.config.n_kv_heads and got.config.tied == model.config.tied
    for (name, p), (other, q) in zip(got.named_parameters(), model.named_parameters(), strict=True):
        assert name == other and p.data.tobytes() == q.data.tobytes()
    assert_close(got(tokens), model(tokens), 1e-5)               # norm_eps is float32 in the file


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0"])
def test_quantized_tensors_are_decoded(kind, tmp_path):
    model = llama(dtype=np.float32, **SIZES)
    file = read_gguf(write(tmp_path / "m.gguf", model, kind))
    assert file.kind("blk.1.ffn_up.weight").name == kind and file.shape("blk.1.ffn_up.weight") == (64, 32)
    W, t = model.blocks[1].mlp.up.weight.data, gguf.GGMLQuantizationType[kind]
    np.testing.assert_array_equal(file["blk.1.ffn_up.weight"], gguf.quants.dequantize(gguf.quants.quantize(W, t), t))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_that_stay_as_they_are_compute_the_same_bit_exact(kind, tmp_path, rng):
    """Linear layers hold the file's codes; logits are those of the decoded model."""
    model, tokens = llama(dtype=np.float32, **SIZES), rng.integers(0, 41, (2, 9))
    path = write(tmp_path / "m.gguf", model, kind)
    packed, decoded = from_gguf(path, quantized=True), from_gguf(path)
    for p in linear_paths(model):
        assert type(packed.get(p)) is tp.QuantizedLinear and type(decoded.get(p)) is tp.engine.Linear
    np.testing.assert_array_equal(packed(tokens).data, decoded(tokens).data)
    file = read_gguf(path)
    assert sum(packed.get(p).nbytes for p in linear_paths(model)) == sum(
        file.octets(n).size for n in file if n.startswith("blk.") and "norm" not in n)
    assert all(p.dtype == np.float32 for p in packed.parameters())


def test_files_of_numbers_have_nothing_to_leave_as_it_is(file):
    assert all(type(m) is not tp.QuantizedLinear for _, m in from_gguf(file, quantized=True).named_modules())


def test_a_lora_on_the_blocks_of_a_file_trains_as_on_the_decoded_weights(tmp_path):
    """QLoRA: the same losses, bit for bit, and the codes stay."""
    path = write(tmp_path / "m.gguf", llama(dtype=np.float32, **SIZES), "Q4_1")
    runs, states = [], []
    for quantized in (True, False):
        model = from_gguf(path, quantized=quantized)
        before = {name: a.copy() for name, a in model.state_dict().items()}
        tuned = tp.attach(model, tp.LoRA(rank=4, targets=("query", "value", "gate", "down")), rng=0)
        runs.append(tp.train(tuned, Noise(41), steps=6, batch_size=4, lr=1e-2, progress=False).loss)
        states.append({name: p.data for name, p in tuned.named_parameters() if p.requires_grad})
        assert same(before, tuned.detach().state_dict())
    assert runs[0] == runs[1] and same(*states) and all(a.any() for a in states[0].values())


def test_scales_of_blocks_are_trained(tmp_path):
    """PEQA on Q4_1: s changes, the codes and the offsets stay, and the merged model computes the same."""
    model = from_gguf(write(tmp_path / "m.gguf", llama(dtype=np.float32, **SIZES), "Q4_1"), quantized=True)
    tokens = np.arange(12).reshape(2, 6)
    start, before = model(tokens).data, model.get("blocks.0.mlp.up").weight
    tuned = tp.attach(model, tp.PEQA(4, group_size=32), rng=0)
    assert_close(tuned(tokens), start, 1e-5)
    tp.train(tuned, Noise(41), steps=5, batch_size=4, lr=1e-3, progress=False)
    merged = tuned.merge()
    after = merged.get("blocks.0.mlp.up").weight
    assert np.array_equal(before.codes, after.codes) and np.array_equal(before.offset, after.offset)
    assert not np.array_equal(before.scale, after.scale)
    assert_close(merged(tokens), tuned(tokens), 2e-2)              # scales are float16 again


def test_halves_undoes_neighbours(rng):
    W = rng.standard_normal((24, 5))
    np.testing.assert_array_equal(halves(neighbours(W, 8), 8), W)
    np.testing.assert_array_equal(llama_module.neighbours(W, 8), neighbours(W, 8))
    assert not np.array_equal(halves(W, 8), W)


def test_a_file_that_is_cut_at_any_byte_is_refused_by_name(tmp_path):
    """Also inside a number: every kind of field, and a tensor."""
    whole, part = tmp_path / "whole.gguf", tmp_path / "part.gguf"
    numbers = {kind: np.dtype(kind).type(1) for kind in "u1 i1 <u2 <i2 <u4 <i4 <f4 <u8 <i8 <f8 ?".split()}
    fields = numbers | {"numbers": np.arange(3.0), "text": "abc", "texts": ["ab", "c"]}
    save_gguf(whole, fields, {"x": (0, (2, 3), np.arange(6, dtype=np.float32).view(np.uint8))})
    assert read_gguf(whole).fields.keys() == fields.keys()
    data = whole.read_bytes()
    for n in range(len(data) - 8):                               # the last 8 bytes fill up
        part.write_bytes(data[:n])
        with pytest.raises(GGUFError, match="part.gguf: "): read_gguf(part)


@pytest.mark.parametrize("change,message", [
    ({"architecture": "falcon"}, "the architecture is 'falcon', expected 'llama' or 'qwen2' or 'qwen3' or 'gemma3' or 'gpt2'"),
    ({"drop": ("blk.1.ffn_up",)}, "blk.1.ffn_up.weight' does not fit"),
    ({"drop": ("output_norm",)}, "output_norm.weight is missing"),
    ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope', expected 'none', 'linear' or 'yarn'")])
def test_models_that_are_not_a_llama(change, message, tmp_path):
    path = write(tmp_path / "m.gguf", llama(dtype=np.float32, **SIZES), **change)
    with pytest.raises(GGUFError, match=message): from_gguf(path)


@pytest.mark.parametrize("name, neutral, others", [
    ("attention.causal", True, [False]), ("attention.value_length", 8, [4, 16]),
    ("expert_count", 0, [8]), ("expert_used_count", 0, [2]), ("nextn_predict_layers", 0, [1]),
    ("rope.dimension_count", 8, [4, 0]), ("rope.scaling.alpha", None, [1000.0]), ("rope.scaling.yarn_beta_fast", None, [32.0])])
def test_fields_that_llama_cpp_obeys_have_the_only_value_that_is_computed(name, neutral, others, file):
    """A value that llama.cpp would compute otherwise is refused, and so is what is no value; one that is neutral is not."""
    expected, (fields, tensors) = from_gguf(file).state_dict(), gguf_content(file)
    assert fields["llama.context_length"] == 80
    if neutral is not None:
        save_gguf(file, fields | {f"llama.{name}": neutral}, tensors)
        assert same(from_gguf(file).state_dict(), expected)
    hostile = [np.nan, np.inf, -2, 1 << 40, "x" * 10**5, ["x"], ["x"] * 10**4, np.ones(3), np.ones(0), [neutral or 1]]
    for value in others + hostile:
        save_gguf(file, fields | {f"llama.{name}": value}, tensors)
        with pytest.raises(GGUFError, match=f"{file.name}: llama.{name} is .* expected .*llama.cpp") as e: from_gguf(file)
        assert len(str(e.value)) < 500
    save_gguf(file, fields | {f"other.{name}": others[0]}, tensors)        # of another architecture
    assert same(from_gguf(file).state_dict(), expected)


@pytest.mark.parametrize("name, neutral, others", [
    ("rope.scale_linear", 1.0, [0.5, -1.0]), ("rope.scaling.type", "none", ["longrope", ""]),
    ("rope.scaling.factor", 1.0, [0.5]), ("rope.scaling.attn_factor", 1.0, [0.0]), ("rope.scaling.finetuned", False, []),
    ("rope.scaling.original_context_length", 80, [1.5])])
def test_stretched_angles_that_are_none_are_refused(name, neutral, others, file):
    (fields, tensors), expected = gguf_content(file), from_gguf(file).state_dict()
    save_gguf(file, fields | {f"llama.{name}": neutral}, tensors)
    assert same(from_gguf(file).state_dict(), expected) and from_gguf(file).config.rope_kind == "default"
    for value in [*others, np.nan, np.inf, -2, "x" * 10**5, ["x"], ["x"] * 10**4, np.ones(3), np.ones(0), [neutral]]:
        if name.endswith("finetuned") and type(value) is int: continue                          # a number is true or false
        save_gguf(file, fields | {f"llama.{name}": value}, tensors)
        with pytest.raises(GGUFError, match=file.name) as e: from_gguf(file)
        assert len(str(e.value)) < 500


STRETCHED = {"linear": {"rope_kind": "linear", "rope_factor": 4.0},
             "yarn": {"rope_kind": "yarn", "rope_factor": 4.0, "rope_context": 20, "rope_high": 32.0, "rope_magnitude": 1.25},
             "llama3": {"rope_kind": "llama3", "rope_factor": 32.0, "rope_context": 8192, "rope_theta": 5e5},
             "Qwen 2.5": {"qkv_bias": True},
             "Qwen 2.5, stretched": {"qkv_bias": True, "rope_kind": "linear", "rope_factor": 2.0}}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", STRETCHED)
def test_stretched_angles_and_biases_come_back(kind, quantized, tmp_path, rng):
    sizes = {"d_model": 128, "d_mlp": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 64} | STRETCHED[kind]
    model = llama(dtype=np.float32, **sizes)
    if quantized: tp.quantize(model, tp.GGUF("Q8_0"))
    model.tokenizer = None
    write_gguf(tmp_path / "m.gguf", model)
    again = from_gguf(tmp_path / "m.gguf", quantized=quantized)
    same_fields = {name for name, value in vars(model.config).items() if getattr(again.config, name) == value}
    assert set(vars(model.config)) - same_fields <= {"rope_magnitude", "norm_eps"}               # float32 in the file
    tokens = rng.integers(0, 41, (1, 80))
    assert_close(again(tokens), model(tokens), 1e-5)
    assert ("rope_freqs.weight" in read_gguf(tmp_path / "m.gguf")) == (kind == "llama3")
    if "Qwen" in kind: assert again.blocks[1].attention.key.bias.data.any()


def test_stretched_angles_that_llama_cpp_lacks(tmp_path):
    for fields in ({"rope_kind": "dynamic", "rope_factor": 2.0, "rope_context": 40},
                   {"rope_kind": "yarn", "rope_factor": 2.0, "rope_context": 40, "rope_high": 16.0}):
        with pytest.raises(ValueError, match="write_gguf: llama.cpp has no rotary embeddings of this kind"):
            write_gguf(tmp_path / "m.gguf", llama(dtype=np.float32, **SIZES | fields))


@pytest.mark.parametrize("name", SIZES_OF_THE_FILE.values())
def test_sizes_that_are_no_numbers(name, file):
    fields, tensors = gguf_content(file)
    for value in (np.nan, -1, "x" * 10**5, ["a"] * 10**4, np.zeros(3, np.int32), np.full(2, 4, np.int32), np.zeros(0)):
        save_gguf(file, fields | {f"llama.{name}": value}, tensors)
        with pytest.raises(GGUFError, match=file.name) as e: from_gguf(file)
        assert len(str(e.value)) < 500


@pytest.mark.parametrize("quantized", [False, True])
def test_divisors_of_the_angles_that_no_llama_3_has_are_refused(quantized, file):
    """Llama 3.1 to 3.3 have them. Without a look at them, the logits would be those of a file without the tensor."""
    expected, (fields, tensors) = from_gguf(file).state_dict(), gguf_content(file)
    f32 = lambda *x: (0, (len(x),), np.array(x, "<f4").view(np.uint8))
    save_gguf(file, fields, tensors | {"rope_freqs.weight": f32(1, 1, 1, 1)})
    assert same(from_gguf(file, quantized).state_dict(), expected)
    wide = 0, (1, 4), np.ones(4, "<f4").view(np.uint8)
    for factors in f32(1, 1, 8, 32), f32(1, 1, 1, 0.5), f32(1, 1, 1, np.nan), f32(1, 1, 1), wide:
        save_gguf(file, fields, tensors | {"rope_freqs.weight": factors})
        with pytest.raises(GGUFError, match=f"{file.name}: rope_freqs.weight (has shape|divides the angles .* but not as)"):
            from_gguf(file, quantized)


def test_a_tensor_that_does_not_exist(file):
    with pytest.raises(KeyError, match="has no tensor 'nothing'"): read_gguf(file)["nothing"]
    with pytest.raises(FileNotFoundError): read_gguf(file.with_name("none"))


# -- files that are not to be believed --------------------------------------------------------------
def test_damaged_files_end_in_a_named_error_or_the_same_model(file, tmp_path, rng):
    good, expected = file.read_bytes(), from_gguf(file).state_dict()
    n = 0
    for i in range(400):
        damaged = bytearray(good[:rng.integers(0, len(good))] if i % 4 == 0 else good)
        for at in rng.integers(0, min(len(damaged), 3000), 1 + i % 3) if damaged else ():
            damaged[at] = rng.integers(256)
        (path := tmp_path / "bad.gguf").write_bytes(damaged)
        try:
            state = from_gguf(path).state_dict()
        except GGUFError as e:
            n += str(path) in str(e)
            continue
        assert state.keys() == expected.keys() and all(np.isfinite(a).all() for a in state.values())
        n += 1
    assert n == 400


@pytest.mark.parametrize("name", GGUFS)
def test_crafted_files_are_refused(name, tmp_path):
    (path := tmp_path / "crafted.gguf").write_bytes(GGUFS[name])
    with pytest.raises(GGUFError, match="crafted.gguf"): read_gguf(path)


@pytest.mark.parametrize("name", LARGE_GGUFS)
def test_reading_takes_less_than_ten_times_the_file(name, tmp_path):
    (path := tmp_path / "large.gguf").write_bytes(LARGE_GGUFS[name]())
    tracemalloc.start()
    try:
        read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 10 * path.stat().st_size
    finally: tracemalloc.stop()


def test_a_norm_in_blocks_is_decoded(tmp_path):
    """`quantized=True` is for weights of layers."""
    path = write(tmp_path / "m.gguf", llama(dtype=np.float32, **SIZES), "Q8_0")
    fields, tensors = gguf_content(path)
    tensors["blk.0.ffn_norm.weight"] = 8, (32,), file_bytes(tp.GGUF("Q8_0").quantize(np.ones(32)))
    save_gguf(path, fields, tensors)
    assert_close(from_gguf(path, quantized=True).blocks[0].norm2.weight.data, np.ones(32), 1e-3)


def test_fields_are_numbers_words_and_arrays(tmp_path):
    values = {"a": 3, "b": -2.5, "c": "é", "d": True, "e": ["x", ""], "f": np.arange(5, dtype=np.int16), "g": np.zeros(0)}
    save_gguf(path := tmp_path / "f.gguf", values, {})
    fields = read_gguf(path).fields
    assert fields.keys() == values.keys() and all(np.array_equal(fields[name], values[name]) for name in values)
    assert type(fields["a"]) is int and type(fields["d"]) is bool and fields["f"].dtype == np.int16


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(GGUFError, match="not a regular file"): read_gguf(tmp_path)
