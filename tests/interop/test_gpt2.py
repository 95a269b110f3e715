"""interop/huggingface.py, folder.py and families/gpt2.py: transformers' GPT-2 and ours compute the same; other folders
are refused. test_huggingface.py has the other families."""
import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import TINY, make_gpt
from tests.damaged import read_or_refused, spliced
from tests.toys import same
from tinypeft.commands.cli import main
from tinypeft.interop import HuggingFaceError, SafeTensorsError, read_safetensors, write_safetensors
from tinypeft.interop.huggingface import from_huggingface
from tinypeft.text import BPETokenizer, base_corpus


def their_model(transformers, dtype, **fields):
    """A GPT-2 of transformers with random weights, biases and norms included."""
    import torch
    torch.manual_seed(0)
    fields = {"bos_token_id": None, "eos_token_id": None} | fields
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval().to(dtype)
    with torch.no_grad():
        for p in model.parameters(): p += 0.02 * torch.randn_like(p)
    return model


def small(transformers, **fields):
    import torch
    sizes = {"vocab_size": 60, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 4}
    return their_model(transformers, torch.float64, **sizes | fields)


def logits(model, tokens):
    import torch
    with torch.no_grad():
        return model(torch.as_tensor(tokens)).logits.numpy()


def some_tokens(config):
    return np.random.default_rng(0).integers(0, config.vocab_size, (3, min(config.context_length, 12)))


@pytest.fixture
def folder(tmp_path):
    """A small GPT-2 folder with a tokenizer, written here."""
    tokenizer = BPETokenizer.train(base_corpus().text("test")[:20_000], 300)
    model = make_gpt(np.float32, vocab_size=300)
    model.tokenizer = tokenizer
    tp.save_model(model, tmp_path / "gpt2")
    return tmp_path / "gpt2"


# -- the same function -----------------------------------------------------------------------------
def test_logits_are_transformers_in_float64(transformers, tmp_path):
    for i, fields in enumerate(({}, {"layer_norm_epsilon": 1e-3, "n_head": 1}, {"activation_function": "gelu_pytorch_tanh"},
                                {"n_inner": 64, "n_layer": 1})):
        theirs = small(transformers, **fields)
        theirs.save_pretrained(tmp_path / str(i))
        model = from_huggingface(tmp_path / str(i), np.float64)
        tokens = some_tokens(model.config)
        assert abs(model(tokens).data - logits(theirs, tokens)).max() < 1e-10
        assert model.token_embedding.weight.dtype == np.float64 and model.tokenizer is None and model.config.dropout == 0.1


@pytest.mark.long
def test_logits_are_transformers_at_124_million_parameters(transformers, tmp_path):
    """GPT-2 small, random, in float32: loaded, compared, written, and loaded there again."""
    import torch
    theirs = their_model(transformers, torch.float32)
    theirs.save_pretrained(tmp_path / "a")
    model = tp.load_model(tmp_path / "a", expected=tp.GPT)
    assert model.n_parameters() == 124_439_808
    tokens = some_tokens(model.config)
    expected = logits(theirs, tokens)
    assert abs(model(tokens).data - expected).max() < 1e-4
    tp.save_model(model, tmp_path / "b")
    del theirs, model
    assert np.array_equal(logits(transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "b").eval(), tokens), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transformers_loads_our_folder_without_a_warning(dtype, transformers, tmp_path):
    model = make_gpt(dtype)
    tp.save_model(model, tmp_path)
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not any(info.values())
    tokens = some_tokens(TINY)
    assert abs(model(tokens).data - logits(theirs.eval(), tokens)).max() < (1e-12 if dtype == np.float64 else 1e-4)
    again = from_huggingface(tmp_path, dtype)
    assert again.config == model.config
    assert all(np.array_equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_half_precision_shards_and_other_names(transformers, tmp_path):
    """Old and large checkpoints have bfloat16, several files, no prefix, masks, or a separate head."""
    import torch
    theirs = small(transformers).bfloat16()
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    theirs.save_pretrained(tmp_path / "one")
    tensors = {n.removeprefix("transformer."): p.float().numpy() for n, p in theirs.state_dict().items()}
    tensors |= {"h.0.attn.bias": np.ones((1, 1, 20, 20), bool), "h.1.attn.masked_bias": np.float32(-1e4),
                "lm_head.weight": tensors["wte.weight"]}
    shutil.copytree(tmp_path / "one", tmp_path / "old")
    write_safetensors(tmp_path / "old" / "model.safetensors", tensors)
    tokens = some_tokens(tp.GPTConfig(60, 20))
    expected = logits(theirs.to(torch.float64), tokens)
    for name in "shards", "one", "old":
        assert abs(from_huggingface(tmp_path / name, np.float64)(tokens).data - expected).max() < 1e-10
    theirs.transformer.save_pretrained(tmp_path / "base model")           # GPT2Model: no prefix, no head
    assert abs(from_huggingface(tmp_path / "base model", np.float64)(tokens).data - expected).max() < 1e-10


def test_memory_is_the_models_own(tmp_path):
    tp.save_model(make_gpt(np.float32, vocab_size=2000, d_model=64, n_layers=4), tmp_path)
    tracemalloc.start()
    model = from_huggingface(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own = sum(p.data.nbytes for p in model.parameters())
    assert peak < 1.1 * own + 200_000
    for p in model.parameters():                                          # ours to write into, the file is not
        assert p.data.flags.c_contiguous and p.data.flags.writeable and p.data.flags.owndata


def test_a_loaded_model_is_trained_merged_and_written(transformers, folder, tmp_path):
    model = from_huggingface(folder)
    tuned = tp.attach(model, tp.LoRA(rank=2), rng=0)
    for p in tuned.trainable_parameters(): p.data += np.float32(0.1)
    tp.save_model(model, tmp_path / "base")
    assert same(tp.load_model(tmp_path / "base").state_dict(), model.state_dict())
    expected = tuned(some_tokens(TINY)).data
    tp.save_model(tuned.merge(), tmp_path / "merged")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    assert abs(logits(theirs, some_tokens(TINY)) - expected).max() < 1e-4
    assert read_safetensors(tmp_path / "merged" / "model.safetensors").metadata == {"format": "pt"}


@pytest.mark.parametrize("spoil, says", [
    (lambda m: tp.quantize(m, tp.NF4()), "blocks.0.attention.key"),
    (lambda m: tp.quantize(m, tp.FakeQuant(bits=4)), "blocks.0")])
def test_only_a_plain_gpt_is_written(spoil, says, tmp_path):
    model = make_gpt(np.float32)
    spoil(model)
    with pytest.raises(ValueError, match=f"save_model: expected a plain GPT, got one with .*{says}"):
        tp.save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_with_a_bias_has_no_place_in_a_folder(tmp_path):
    model = make_gpt(np.float32)
    model.head = tp.engine.Linear(16, 3)
    with pytest.raises(ValueError, match="save_model: the head has a bias, and transformers' has none"):
        tp.save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- folders that are refused ----------------------------------------------------------------------
def edit(path, **changes):
    content = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "absent"}), "utf-8")


@pytest.mark.parametrize("changes, says", [
    ({"activation_function": "gelu"}, "activation_function is 'gelu', expected 'gelu_new' or 'gelu_pytorch_tanh'"),
    ({"model_type": "bloom"}, "model_type is 'bloom', expected 'gpt2' or"),
    ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"), ({"add_cross_attention": True}, "add_cross_attention"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"), ({"n_inner": 65}, "n_inner is 65, expected None or 64"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    ({"n_head": 5}, "does not divide into 5 heads"), ({"n_layer": 0}, "n_layers must be a positive integer"),
    ({"n_layer": -1}, "must be a positive"), ({"n_layer": 10**12}, "1000000000000 layers, but the weights are 28 tensors"),
    ({"n_layer": 2.0}, "n_layers must be a positive integer, got 2.0"), ({"n_layer": True}, "integer, got True"),
    ({"n_layer": None}, "integer, got None"), ({"n_layer": 3}, "missing 12 .h.2.ln_1.weight"),
    ({"n_layer": 1}, "not used 12 .h.1.attn.c_attn.bias.*strict=False ignores the unused ones"),
    ({"vocab_size": 10**12}, r"wte.weight has shape \(300, 16\), config.json says \(1000000000000, 16\)"),
    ({"vocab_size": "absent"}, r"config.json says \(50257, 16\)"), ({"n_positions": 1024}, "wpe.weight has shape"),
    ({"n_embd": 32}, "has shape"), ({"layer_norm_epsilon": -1}, r"norm_eps must be a number in \[0, 1\]"),
    ({"layer_norm_epsilon": "x"}, "norm_eps must be"), ({"attn_pdrop": 0.5}, "one dropout for all"),
    (dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 1.0), r"dropout must be a number in \[0, 1\)"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=false, but lm_head.weight is missing")])
def test_another_config_is_named(changes, says, folder):
    edit(folder / "config.json", **changes)
    with pytest.raises(HuggingFaceError, match=says):
        from_huggingface(folder)


def test_strict_and_its_report(folder):
    edit(folder / "config.json", n_layer=1)
    with pytest.raises(HuggingFaceError) as error: from_huggingface(folder)
    report = error.value.report
    assert len(report.matched) == 16 and len(report.unused) == 12 and report.missing == ()
    model = from_huggingface(folder, strict=False)
    assert model.config.n_layers == 1 and len(model.blocks) == 1


def with_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = {name: np.array(a) for name, a in read_safetensors(path).items()}
    change(tensors)
    write_safetensors(path, tensors)


@pytest.mark.parametrize("change, says", [
    (lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}), "lm_head.weight is not wte.weight"),
    (lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"][:-1]}), "lm_head.weight is not wte.weight"),
    (lambda t: t.update({"score.weight": np.ones((3, 16))}), r"not used 1 \(score.weight\)"),
    (lambda t: t.update({"h.0.attn.c_attn.lora_A": np.ones((3, 16))}), "not used 1"),
    (lambda t: t.update({"wte.weight": np.ones((3, 16))}), "with and without 'transformer.'"),
    (lambda t: t.update(dict.fromkeys(["lm_head.weight", "transformer.wte.weight"], np.ones(()))), r"has shape \(\)"),
    (lambda t: t["transformer.wpe.weight"].__setitem__((3, 4), np.nan), "wpe.weight has numbers that are not finite"),
    (lambda t: t.update({"transformer.ln_f.bias": np.full(16, 1e300)}), "ln_f.bias has numbers that are not finite"),
    (lambda t: t.pop("transformer.ln_f.bias"), r"missing 1 \(ln_f.bias\)"),
    (lambda t: t.update({"transformer.ln_f.bias": np.ones(16, np.int64)}), "transformer.ln_f.bias is I64, expected floats"),
    (lambda t: t.update({"transformer.h.0.attn.c_attn.weight": np.ones((48, 16))}), r"c_attn.weight has shape \(48, 16\)")])
def test_other_tensors_are_named(change, says, folder):
    with_tensors(folder, change)
    with pytest.raises(HuggingFaceError, match=says):
        from_huggingface(folder)


def test_shards_are_files_of_the_folder(folder):
    outside = folder.parent / "outside.safetensors"
    os.rename(folder / "model.safetensors", outside)
    index = folder / "model.safetensors.index.json"
    shutil.copy(outside, folder / "a.safetensors")
    good = dict.fromkeys(read_safetensors(outside), "a.safetensors")
    index.write_text(json.dumps({"weight_map": good}))
    assert from_huggingface(folder).config.n_layers == 2
    name = outside.name
    for shard in f"../{name}", str(outside), f"x/../../{name}", f"..\\{name}", "a.bin", "", "a\0", "a\0.safetensors", \
            "a" * 300 + ".safetensors":
        index.write_text(json.dumps({"weight_map": good | {"transformer.wte.weight": shard}}))
        with pytest.raises(HuggingFaceError, match="is no .safetensors file in the same folder"):
            from_huggingface(folder)
    for content, says in [({"weight_map": good | {"transformer.wte.weight": "b.safetensors"}}, "the download is incomplete"),
                          ({"weight_map": {**good, "x": "a.safetensors"}}, "1 tensors differ from .*, the first is .'x'"),
                          ({"weight_map": {"x": 3}}, "weight_map must map"),
                          ({"weight_map": {**good, "x": 3}}, "weight_map must map"),
                          ({"weight_map": []}, "weight_map must map"),
                          ({}, "weight_map must map"), ([], "expected a JSON object, got list")]:
        index.write_text(json.dumps(content))
        with pytest.raises(HuggingFaceError, match=says): from_huggingface(folder)
    index.write_text('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}')
    with pytest.raises(HuggingFaceError, match="the name 'a' occurs twice"): from_huggingface(folder)


def test_folders_that_hold_no_gpt2(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="there is no folder 'openai-community/gpt2'; nothing is downloaded, give"):
        tp.load_model("openai-community/gpt2")
    with pytest.raises(HuggingFaceError, match="neither model.safetensors nor model.safetensors.index.json$"):
        from_huggingface(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(HuggingFaceError, match="pickles, which can run code and are not read"):
        from_huggingface(tmp_path)
    with pytest.raises(TypeError, match="float32 or float64, got float16"):
        tp.load_model(folder, dtype=np.float16)
    (folder / "config.json").unlink()
    with pytest.raises(HuggingFaceError, match="config.json: no such file"):
        from_huggingface(folder)


def test_a_tokenizer_too_large_for_the_model(folder):
    BPETokenizer.train(base_corpus().text("test")[:20_000], 301).save(folder.parent / "t.json")
    tp.interop.write_tokenizer(folder, BPETokenizer.load(folder.parent / "t.json"))
    with pytest.raises(HuggingFaceError, match="the tokenizer has 301 tokens, the model only 300"):
        from_huggingface(folder)


def test_mutated_folders_give_the_named_error_or_a_whole_model(folder):
    """Bytes of any file flipped, cut out or put in: an error that names a file, or a model, every number from the file."""
    st = pytest.importorskip("hypothesis.strategies")
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors", "tokenizer.json")}
    bits = [b"h.0.", b"F16", b"", b"0", b"9", b"-", b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"1e9", b"\xff", b"\x00"]
    change = st.tuples(st.sampled_from(sorted(files)), st.one_of(st.integers(0, 900), st.integers(0, 3000)),
                       st.one_of(st.integers(0, 12), st.just(10**6)),                # cut off
                       st.sampled_from(bits), st.booleans())

    def read(changes):
        contents = dict(files)
        for name, at, cut, new, keep in changes:
            if keep and cut < 99: new = (new * 12)[:cut]                  # of the same length, so that offsets stay right
            contents[name] = spliced(contents[name], [(at, cut, new)])
        for name, content in contents.items(): (folder / name).write_bytes(content)
        return from_huggingface(folder)

    def is_whole(model):
        tensors = read_safetensors(folder / "model.safetensors")
        assert model.n_parameters() == sum(a.size for a in tensors.values())
        W = tensors["transformer.h.1.attn.c_attn.weight"]
        assert model.get("blocks.1.attention.value").weight.data.tobytes() == np.ascontiguousarray(W[:, 32:].T).tobytes()
    errors = HuggingFaceError, SafeTensorsError
    read_or_refused(read, is_whole, errors, str(folder), 300, st.lists(change, min_size=1, max_size=2))


# -- the command line ------------------------------------------------------------------------------
def run(capsys, *argv):
    status = main([*map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def test_every_command_takes_a_hugging_face_folder(capsys, tmp_path):
    model = tp.GPT(tp.GPTConfig(vocab_size=400, context_length=160, d_model=96, n_layers=2, n_heads=2))
    model.tokenizer = BPETokenizer.train(base_corpus().text("test")[:50_000], 400)
    folder, adapter = tmp_path / "gpt2", tmp_path / "adapter"
    tp.save_model(model, folder)
    assert tp.load_model(folder).config == model.config
    status, out, _ = run(capsys, "finetune", "lora", "--model", folder, "--quick", "--json", "--steps", 3, "--out", adapter)
    assert status == 0 and json.loads(out)["trained"] == 2 * 2 * 2 * 8 * 96
    status, out, _ = run(capsys, "generate", "Return the", "--model", folder, "--adapter", adapter, "--max-new-tokens", 5)
    assert status == 0 and out.startswith("Return the")
    status, out, _ = run(capsys, "quantize", "nf4", "--model", folder, "--quick", "--json")
    assert status == 0 and json.loads(out)["bits_per_weight"] == pytest.approx(4.5)
    status, out, _ = run(capsys, "compare", "--quick", "--model", folder, "--json")
    assert status == 0 and len(json.loads(out)["methods"]) == 6


def test_a_model_without_a_tokenizer_or_none_at_all(capsys, folder):
    for name in "tokenizer.json", "vocab.json", "merges.txt": (folder / name).unlink()
    status, _, err = run(capsys, "generate", "x", "--model", folder)
    assert status == 2 and "has no tokenizer; put tokenizer.json, or vocab.json and merges.txt, into it" in err
    status, _, err = run(capsys, "generate", "x", "--model", folder.parent)
    assert status == 2 and "neither weights.safetensors" in err and "config.json and model.safetensors" in err
