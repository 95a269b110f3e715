"""interop/huggingface.py and families/: folders of the Llama family, as transformers writes them. test_gpt2.py has the
machinery's other cases."""
import json
import math
import re
import shutil
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.families import make as family_of
from tests.interop.test_gpt2 import edit, logits, some_tokens, with_tensors
from tests.oracles.hf_tokenizers import smollm2
from tinypeft.commands.cli import main
from tinypeft.interop import HuggingFaceError, read_safetensors, write_safetensors
from tinypeft.interop.families import FAMILIES
from tinypeft.interop.huggingface import from_huggingface
from tinypeft.models.gemma import Gemma, GemmaConfig
from tinypeft.models.llama import Llama, LlamaConfig
from tinypeft.text import BPETokenizer
from tinypeft.text.sentencepiece import SentencePieceTokenizer

COMMON = {"vocab_size": 41, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
          "max_position_embeddings": 60, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
          "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
# name → (transformers' classes, fields): grouped heads, one head of keys, heads of another width, tied or not
KINDS = {"Llama": ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}),
         "Llama, untied": ("Llama", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "rms_norm_eps": 1e-3}),
         "Llama 3": ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "rope_parameters": {
             "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 20,
             "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
         "Qwen 2.5": ("Qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": {
             "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 15}}),
         "linear": ("Llama", {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_parameters": {
             "rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}),
         "dynamic": ("Llama", {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_parameters": {
             "rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}}),
         "Mistral": ("Mistral", {"num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": None}),
         "Qwen3": ("Qwen3", {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 6}),
         "Qwen3, tied": ("Qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
                                   "tie_word_embeddings": True}),
         "Gemma 3": ("Gemma3", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 7,
                                "num_hidden_layers": 4, "sliding_window_pattern": 3, "query_pre_attn_scalar": 12}),
         "Gemma 3, all windows": ("Gemma3", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
                                             "sliding_window": 20})}
GEMMA = {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 30.0}}}


def their_model(transformers, kind, dtype="float32", **fields):
    """One of transformers' models with random weights, norms included."""
    import torch
    torch.manual_seed(0)
    name, own = KINDS[kind]
    common, config = (COMMON | GEMMA, "TextConfig") if name == "Gemma3" else (COMMON, "Config")
    config = getattr(transformers, name + config)(**common | own | fields)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for p in model.parameters(): p += 0.1 * torch.randn_like(p)
    return model


def same_weights(ours, theirs):
    """Have two models the same numbers, by the oracle's own table of names?"""
    from tests.oracles.torch_llama import their_name
    gemma = theirs.config.model_type == "gemma3_text"
    state = {name: p.detach().double().numpy() for name, p in theirs.named_parameters()}
    return all(np.array_equal(p.data, state.pop(their_name(name, gemma))) for name, p in ours.named_parameters()) and not state


@pytest.fixture
def folder(tmp_path):
    """A small Llama's folder, written here."""
    config = LlamaConfig(41, 60, 24, 2, 6, 2, 20, 4, 500.0, 1e-6, tied=False)
    tp.save_model(Llama(config, rng=0), tmp_path / "llama")
    return tmp_path / "llama"


# -- the same function -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_transformers_and_the_folder_goes_back(kind, transformers, tmp_path):
    theirs = their_model(transformers, kind)
    theirs.save_pretrained(tmp_path / "a")
    model = tp.load_model(tmp_path / "a")
    tokens, c = some_tokens(model.config), theirs.config
    assert same_weights(model, theirs) and model.config.norm_eps == c.rms_norm_eps and model.config.rope_theta == 500
    expected = logits(theirs, tokens)
    assert abs(model(tokens).data - expected).max() < 1e-5 * max(1, abs(expected).max())
    tp.save_model(model, tmp_path / "b")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()) and np.array_equal(logits(again.eval(), tokens), expected)
    back = tp.load_model(tmp_path / "b", expected=type(model))
    assert back.config == model.config and same_weights(back, theirs)
    assert type(again).__name__ == type(theirs).__name__.replace("Mistral", "Llama")     # the same function


@pytest.mark.parametrize("kind", KINDS)
def test_float64_agrees_with_exact_angles(kind, transformers, tmp_path):
    """transformers computes angles and norms in float32; the oracle's are exact."""
    import torch

    from tests.oracles.torch_llama import torch_llama
    their_model(transformers, kind, "float64").save_pretrained(tmp_path)
    model = from_huggingface(tmp_path, np.float64)
    tokens = np.random.default_rng(0).integers(0, 41, (2, 60))
    assert abs(model(tokens).data - torch_llama(model)(torch.tensor(tokens)).logits.detach().numpy()).max() < 1e-10


def test_half_precision_shards_and_other_names(transformers, tmp_path):
    """Checkpoints have bfloat16, several files, no prefix, a repeated head, or buffers that hold constants."""
    theirs = their_model(transformers, "Llama", "bfloat16")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    theirs.model.save_pretrained(tmp_path / "base model")                 # LlamaModel: no prefix, no head
    theirs.save_pretrained(tmp_path / "old")
    tensors = {name: p.float().numpy() for name, p in theirs.state_dict().items()}
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in range(2)}
    assert "lm_head.weight" in tensors
    write_safetensors(tmp_path / "old" / "model.safetensors", tensors)
    for name in "shards", "base model", "old": assert same_weights(from_huggingface(tmp_path / name), theirs)
    half = their_model(transformers, "Llama", "float16")
    half.save_pretrained(tmp_path / "half")
    assert same_weights(from_huggingface(tmp_path / "half"), half)


def test_smollm2_from_gguf_to_transformers(transformers, tmp_path):
    """The real model: blocks of four bits → float32 → a folder → transformers."""
    import torch
    smollm2()
    model, tokens = tp.load_pretrained("smollm2"), np.arange(40, 60)[None]
    tp.save_model(model, tmp_path)
    with tp.no_grad(): ours = model(tokens).data
    expected, tokenizer = dict(model.named_parameters()), model.tokenizer
    del model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert theirs.dtype == torch.float32 and theirs.config.model_type == "llama"
    assert abs(ours - logits(theirs, tokens)).max() < 1e-3
    loaded = tp.load_model(tmp_path)
    assert loaded.tokenizer == tokenizer and type(loaded) is Llama
    assert all(p.data.tobytes() == expected[name].data.tobytes() for name, p in loaded.named_parameters())


def test_memory_is_the_models_and_one_tensors(transformers, tmp_path):
    """Also where bfloat16 numbers become float32 ones."""
    config = LlamaConfig(2000, 60, 64, 4, 4, 2, 160, 16, tied=False)
    for dtype in "float32", "bfloat16":
        tp.save_model(Llama(config), tmp_path)
        if dtype == "bfloat16":
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).save_pretrained(tmp_path)
        tracemalloc.start()
        model = from_huggingface(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        own, largest = (f(p.data.nbytes for p in model.parameters()) for f in (sum, max))
        assert peak < 1.05 * own + largest * (dtype == "bfloat16") + 200_000
        for p in model.parameters(): assert p.data.flags.c_contiguous and p.data.flags.writeable and p.data.flags.owndata


def tokenizers():
    """Small tokenizers of the kinds that the families have."""
    plain = BPETokenizer.train("the cat sat on the mat " * 9, 265)
    named = {"<|endoftext|>": 264, "<|im_end|>": 265}
    byte_level = {split: BPETokenizer(plain.merges, plain.vocab, 264, named, end_of_turn=265, split=split)
                  for split in ("smollm", "qwen2")}
    pieces = [f"<0x{b:02X}>" for b in range(256)] + ["▁", *"abcdefgh", "ab", "▁ab"]
    vocab = {token: i for i, token in enumerate(pieces, 2)}
    named = {"<bos>": 0, "<eos>": 1}
    return byte_level | {prefix: SentencePieceTokenizer([("a", "b"), ("▁", "ab")], vocab, 1, named, start=0, prefix=prefix)
                         for prefix in ("prepend", "never")}


@pytest.mark.parametrize("kind", ["smollm", "qwen2", "prepend", "never"])
def test_the_tokenizer_goes_with_the_model(kind, transformers, tmp_path):
    """bos_token_id is the token in front of a text, eos_token_id the one that ends an answer."""
    model = Llama(LlamaConfig(300, 60, 24, 1, 6, 2, 20, 4))
    model.tokenizer = tokenizers()[kind]
    tp.save_model(model, tmp_path)
    assert tp.load_model(tmp_path).tokenizer == model.tokenizer
    ids = model.tokenizer.encode_prompt("ab cat the 12")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("ab cat the 12")["input_ids"] == ids.tolist()
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"]) == ((264, 265) if kind in ("smollm", "qwen2") else (0, 1))


def test_named_tokens_that_a_gemma_of_text_has_no_row_for(tmp_path):
    """Gemma 3's tokenizer names a token for images, whose id is the first that its models of text do not have."""
    model = Gemma(GemmaConfig(269, 60, 24, 1, 4, 2, 20, 6))
    model.tokenizer = tokenizers()["never"]
    tp.save_model(model, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    token = content["added_tokens"][0] | {"id": 269, "content": "<image_soft_token>"}
    edit(tmp_path / "tokenizer.json", added_tokens=[*content["added_tokens"], token])
    assert tp.load_model(tmp_path).tokenizer == model.tokenizer


@pytest.mark.parametrize("kind, model", [
    ("smollm", Llama(LlamaConfig(300, 200, 24, 1, 6, 2, 20, 4))), ("never", Gemma(GemmaConfig(300, 200, 24, 1, 4, 2, 20, 6)))])
def test_the_command_line_takes_a_folder(kind, model, capsys, tmp_path):
    model.tokenizer = tokenizers()[kind]
    tp.save_model(model, tmp_path)
    assert main(["generate", "ab cab", "--model", str(tmp_path), "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("ab cab")


# -- config.json in its older and newer forms ------------------------------------------------------
def test_older_and_newer_fields_say_the_same(folder):
    """transformers 4 has rope_theta and torch_dtype, transformers 5 rope_parameters and dtype; null stands for a default."""
    expected, path = tp.load_model(folder).config, folder / "config.json"
    content = json.loads(path.read_text("utf-8"))
    assert content["rope_theta"] == 500 == content.pop("rope_parameters")["rope_theta"]
    assert content.pop("dtype") == "float32"
    old = content | {"torch_dtype": "float32", "rope_scaling": None, "head_dim": None, "pretraining_tp": 1,
                     "eos_token_id": [2, 7]}
    new = content | {"rope_parameters": {"rope_theta": 500}, "dtype": "float32", "layer_types": 2 * ["full_attention"]}
    for i, changes in enumerate((old, {k: v for k, v in old.items() if k != "head_dim"}, new,
                                 {k: v for k, v in new.items() if k != "rope_theta"},
                                 old | {"rope_scaling": {"type": "default"}}, old | {"attention_dropout": None},
                                 {k: v for k, v in old.items() if k != "tie_word_embeddings"})):
        path.write_text(json.dumps(changes), "utf-8")
        assert tp.load_model(folder).config == expected, i


@pytest.mark.parametrize("kind", [kind for family in FAMILIES for kind in family.defaults])
def test_fields_that_are_absent_have_transformers_defaults(kind, transformers):
    """Each default of ours, and each that a supported value stands for."""
    (family,) = (f for f in FAMILIES if kind in f.defaults)
    theirs = transformers.AutoConfig.for_model(kind)
    for name, value in family.defaults[kind].items():
        if kind == "qwen2" and name in ("head_dim", "sliding_window"): continue        # it divides d_model, has no window
        expected = {"head_dim": theirs.hidden_size // theirs.num_attention_heads,
                    "num_key_value_heads": theirs.num_attention_heads}[name] if value is None else value
        assert getattr(theirs, name) == expected, name
    for name, (first, *_) in family.supported.items():
        assert theirs.to_dict().get(name, first) == first, name
    if kind == "gemma3_text":
        assert [theirs.rope_parameters[k]["rope_theta"] for k in ("full_attention", "sliding_attention")] == [1e6, 1e4]
    elif kind != "gpt2": assert theirs.rope_parameters["rope_theta"] == 10_000


# what the config.json of real models says of their sizes, as far as it differs from the defaults, and how many parameters
# they have. Source: the repositories of these names on huggingface.co
WINDOWS_OF_SIX = (["sliding_attention"] * 5 + ["full_attention"]) * 3
REAL = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (134_515_008, {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True}),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (1_100_048_384, {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0}),
    "meta-llama/Llama-3.2-1B": (1_235_814_400, {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "attention_bias": False,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
    "Qwen/Qwen2.5-0.5B": (494_032_768, {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
        "sliding_window": 32768, "max_window_layers": 24, "use_sliding_window": False, "tie_word_embeddings": True}),
    "Qwen/Qwen3-0.6B": (596_049_920, {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128,
        "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 40960, "rope_theta": 1000000,
        "rope_scaling": None, "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True}),
    "google/gemma-3-270m": (268_098_176, {
        "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 32768,
        "sliding_window": 512, "layer_types": WINDOWS_OF_SIX, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0})}


@pytest.mark.parametrize("name", REAL)
def test_real_models_have_their_size(name):
    n, content = REAL[name]
    (family,) = (f for f in FAMILIES if content["model_type"] in f.defaults)
    config = family.read(content["model_type"], content)
    assert sum(map(math.prod, family.model.parameter_shapes(config).values())) == n
    if name.startswith(("Hugging", "google")): assert config == type(config)()          # our defaults are these models'


@pytest.mark.parametrize("changes, says", [
    ({"model_type": "gemma3"}, "'gemma3', which is not supported: it reads images, too"),
    ({"model_type": "mamba"}, "model_type is 'mamba', expected 'gpt2' or 'llama' or 'mistral' or 'qwen2'"),
    ({"model_type": ["llama"]}, r"model_type is \['llama'\], expected"), ({"model_type": None}, "model_type is None"),
    ({"model_type": "mistral"}, "sliding_window is 4096, expected None"),
    ({"model_type": "qwen3"}, r"missing 4 \(layers.0.self_attn.q_norm.weight"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'silu' or 'swish'"),
    ({"attention_bias": True}, "attention_bias is True, expected False"), ({"mlp_bias": True}, "mlp_bias is True"),
    ({"attention_dropout": 0.1}, "attention_dropout is 0.1"), ({"use_sliding_window": True}, "use_sliding_window is True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"), ({"rope_interleaved": True}, "rope_interleaved is True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is .*, expected 'full_attention' for all"),
    ({"layer_types": "full_attention"}, "layer_types is 'full_attention', expected"), ({"layer_types": [[]]}, "layer_types is"),
    ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type is 'longrope', expected 'default' or 'linear' or 'dyn"),
    ({"rope_scaling": {"rope_type": []}}, r"rope_type is \[\], expected"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "rope_type 'llama3' needs low_freq_factor"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0}}, "rope_type 'yarn' needs factor"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "truncate": False}}, "truncate is False"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "mscale": "a", "mscale_all_dim": 1}},
     r"factor, mscale and mscale_all_dim are \[4.0, 'a', 1\], expected numbers"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": [4]}}, "expected numbers"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": "4"}}, "rope_factor must be"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": "4"}}, "rope_factor must be"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
      "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters and rope_scaling say different things"),
    ({"rope_parameters": {"rope_theta": 500.0, "factor": 8.0}}, "of rope_type 'default' with factor=8.0 are not supported"),
    ({"rope_parameters": {"full_attention": {}}}, "'default' with full_attention={} are"),
    ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected an object or null"),
    ({"rope_theta": 1e6}, "rope_theta is 1000000.0 and 500.0, expected one number"),
    ({"rope_theta": 0, "rope_parameters": None}, "rope_theta must be a positive number, got 0"),
    ({"rope_theta": None, "rope_parameters": None}, "rope_theta must be a positive number, got None"),
    ({"rope_theta": True, "rope_parameters": None}, "got True"), ({"rope_theta": [], "rope_parameters": None}, r"got \[\]"),
    ({"num_hidden_layers": 10**12}, "1000000000000 layers, but the weights are 21 tensors"),
    ({"num_hidden_layers": 3}, r"missing 9 \(layers.2.input_layernorm.weight"),
    ({"num_hidden_layers": 1}, "not used 9 .layers.1.input_layernorm.weight.*strict=False ignores the unused ones"),
    ({"num_hidden_layers": True}, "n_layers must be a positive integer, got True"), ({"hidden_size": -24}, "d_model must be"),
    ({"hidden_size": 10**400}, "no array has the shapes of|d_model must be|has shape"), ({"hidden_size": 24.0}, "got 24.0"),
    ({"hidden_size": "24", "head_dim": None}, "d_model must be a positive integer, got '24'"),
    ({"num_attention_heads": 0, "head_dim": None}, "n_heads must be a positive integer, got 0"),
    ({"num_attention_heads": 10, "head_dim": None}, "24 does not divide into 10 heads; state head_dim"),
    ({"num_attention_heads": 24, "head_dim": None}, "d_head must be an integer ≥ 2, got 1"),
    ({"num_key_value_heads": 4}, "n_kv_heads 4 must divide n_heads 6"),
    ({"num_key_value_heads": None}, "k_proj.weight has shape"), ({"head_dim": 5}, "d_head 5 must be even"),
    ({"head_dim": False}, "d_head must be"), ({"head_dim": 8}, "q_proj.weight has shape"),
    ({"vocab_size": 10**12}, r"embed_tokens.weight has shape \(41, 24\), config.json says \(1000000000000, 24\)"),
    ({"vocab_size": "absent"}, r"config.json says \(32000, 24\)"), ({"intermediate_size": 21}, "gate_proj.weight has shape"),
    ({"max_position_embeddings": 0}, "context_length must be"), ({"max_position_embeddings": 1.5}, "context_length must be"),
    ({"rms_norm_eps": -1}, "norm_eps must be"), ({"rms_norm_eps": None}, "norm_eps must be"),
    ({"tie_word_embeddings": True}, "lm_head.weight is not embed_tokens.weight, but config.json ties them"),
    ({"tie_word_embeddings": 0}, "tied must be True or False, got 0"), ({"tie_word_embeddings": None}, "tied must be")])
def test_another_config_is_named(changes, says, folder):
    edit(folder / "config.json", **changes)
    with pytest.raises(HuggingFaceError, match=says): from_huggingface(folder)


@pytest.fixture
def gemma(tmp_path):
    """A small Gemma's folder, written here, and its config.json."""
    config = GemmaConfig(41, 60, 24, 4, 4, 2, 20, 6, 7, 3, 500.0, 30.0, 12)
    tp.save_model(Gemma(config, rng=0), tmp_path / "gemma")
    assert tp.load_model(tmp_path / "gemma").config == config
    return tmp_path / "gemma"


def test_older_and_newer_fields_of_gemma_say_the_same(gemma):
    path, expected = gemma / "config.json", tp.load_model(gemma).config
    content = json.loads(path.read_text("utf-8"))
    without = lambda *names: {k: v for k, v in content.items() if k not in names}
    for changes in (without("rope_parameters", "layer_types"),            # of transformers before 4.52
                    without("rope_theta", "rope_local_base_freq", "sliding_window_pattern"),    # of transformers 5
                    content | {"layer_types": None, "rope_scaling": None, "attention_dropout": 0, "eos_token_id": [1, 106]}):
        path.write_text(json.dumps(changes), "utf-8")
        assert tp.load_model(gemma).config == expected


WINDOWS = ["sliding_attention"] * 2


@pytest.mark.parametrize("changes, says", [
    ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu', expected 'gelu_pytorch_tanh' or 'gelu_new'"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, expected None"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({"attention_bias": True}, "attention_bias is True"), ({"sliding_window": None}, "window must be .*, got None"),
    ({"layer_types": [*WINDOWS, "full_attention", "full_attention"]}, "layer_types is .*, expected 'sliding_attention', and"),
    ({"layer_types": [*WINDOWS, "chunked_attention", "full_attention"]}, "layer_types is"),
    ({"layer_types": 3}, "layer_types is 3"),
    ({"layer_types": [*WINDOWS, "full_attention"]}, "layer_types has 3 layers, expected 4"),
    ({"layer_types": None, "sliding_window_pattern": 0}, "global_every must be a positive integer, got 0"),
    ({"num_hidden_layers": 10**12}, "layer_types has 4 layers, expected 1000000000000"),
    ({"num_hidden_layers": 10**12, "layer_types": None}, "1000000000000 layers, but the weights are 54 tensors"),
    ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters has 'rope_type', expected full_attention, sl"),
    ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, "rope_type is 'linear'"),
    ({"rope_parameters": {"sliding_attention": 3}}, "sliding_attention is 3, expected an object or null"),
    ({"rope_parameters": [["full_attention"]]}, "rope_parameters is .*, expected an object or null"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_type is 'linear', expected 'default'"),
    ({"rope_local_base_freq": 31.0}, "rope_local_base_freq is 31.0 and 30.0, expected one number"),
    ({"query_pre_attn_scalar": 0}, "query_scale must be a positive number, got 0"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=false, but lm_head.weight is missing")])
def test_another_gemma_is_named(changes, says, gemma):
    edit(gemma / "config.json", **changes)
    with pytest.raises(HuggingFaceError, match=says): from_huggingface(gemma)


def test_a_gemma_that_transformers_cannot_have(tmp_path):
    config = GemmaConfig(41, 60, 24, 1, 4, 2, 20, 6, query_scale=12.5)
    with pytest.raises(ValueError, match="query_pre_attn_scalar is a whole number in transformers, got 12.5"):
        tp.save_model(Gemma(config), tmp_path)


def test_a_class_takes_its_own_folders(folder, tmp_path):
    assert type(tp.load_model(folder, expected=Llama)) is Llama
    with pytest.raises(HuggingFaceError, match="model_type is 'llama', expected 'gpt2'$"):
        tp.load_model(folder, expected=tp.GPT)
    tp.save_model(tp.GPT(tp.GPTConfig(37, 24, 16, 2, 4)), tmp_path / "gpt2")
    with pytest.raises(HuggingFaceError, match="model_type is 'gpt2', expected 'llama' or"):
        tp.load_model(tmp_path / "gpt2", expected=Llama)


# -- tensors that do not fit -----------------------------------------------------------------------
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("change, says", [
    (lambda t: t.pop("lm_head.weight"), r"missing 1 \(lm_head.weight\)"), (lambda t: t.pop(UP), "missing 1"),
    (lambda t: t.update({"score.weight": np.ones((3, 24))}), r"not used 1 \(score.weight\)"),
    (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(24)}), "not used 1 .layers.0.self_attn.q_proj.bias"),
    (lambda t: t.update({"norm.weight": np.ones(24)}), "norm.weight occurs with and without 'model.'"),
    (lambda t: t.update({UP: t[UP].T}), r"up_proj.weight has shape \(24, 20\), config.json says \(20, 24\)"),
    (lambda t: t.update({UP: t[UP].reshape(-1)}), r"has shape \(480,\)"),
    (lambda t: t.update({UP: np.ones(())}), r"shape \(\)"),
    (lambda t: t[UP].__setitem__((3, 4), np.nan), "up_proj.weight has numbers that are not finite"),
    (lambda t: t.update({"lm_head.weight": np.full((41, 24), 1e300)}), "lm_head.weight has numbers that are not finite"),
    (lambda t: t.update({UP: np.ones((20, 24), np.uint8)}), "up_proj.weight is U8, expected floats")])
def test_other_tensors_are_named(change, says, folder):
    with_tensors(folder, change)
    with pytest.raises(HuggingFaceError, match=says): from_huggingface(folder)


def test_a_classifiers_folder_has_a_head(transformers, tmp_path):
    """The logits of its classes, at the last token that is no padding."""
    import torch
    torch.manual_seed(0)
    sizes = {"vocab_size": 37, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(**sizes, num_labels=3, pad_token_id=0)
    theirs = transformers.GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, tokens = tp.load_model(tmp_path), np.array([[3, 4, 5, 0], [9, 8, 7, 6]])
    with torch.no_grad(): expected = theirs(torch.as_tensor(tokens), attention_mask=torch.as_tensor(tokens > 0)).logits
    np.testing.assert_allclose(ours.class_logits(tokens, [3, 4]).data, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kinds", [["LlamaForSequenceClassification"], 3, None, [], [3], ["LlamaForCausalLM"]])
def test_a_head_of_another_shape_or_in_another_folder_is_named(kinds, folder):
    edit(folder / "config.json", architectures=kinds)
    for shape in (3, 23), (0, 24), (24,), (3, 24):
        with_tensors(folder, lambda t, shape=shape: t.update({"score.weight": np.ones(shape)}))
        if kinds != ["LlamaForSequenceClassification"]: says = "not used 1 .score.weight"
        elif shape != (3, 24): says = f"score.weight has shape {re.escape(str(shape))}"
        else:
            assert from_huggingface(folder).head.weight.shape == shape
            continue
        with pytest.raises(HuggingFaceError, match=says): from_huggingface(folder)


def test_a_repeated_head_must_be_the_embedding(tmp_path):
    tp.save_model(Llama(LlamaConfig(41, 60, 24, 2, 6, 2, 20, 4)), tmp_path)
    with_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert tp.load_model(tmp_path).lm_head is None
    edit(tmp_path / "config.json", tie_word_embeddings=False)             # then it is a matrix of its own
    assert tp.load_model(tmp_path).lm_head is not None
    edit(tmp_path / "config.json", tie_word_embeddings=True)
    with_tensors(tmp_path, lambda t: t["lm_head.weight"].__setitem__((40, 23), 9))
    with pytest.raises(HuggingFaceError, match="lm_head.weight is not embed_tokens.weight"): tp.load_model(tmp_path)


def test_a_part_of_a_larger_folder(folder):
    """strict=False leaves out the blocks that config.json does not count."""
    edit(folder / "config.json", num_hidden_layers=1)
    assert len(from_huggingface(folder, strict=False).blocks) == 1
    with pytest.raises(HuggingFaceError) as error: from_huggingface(folder)
    assert len(error.value.report.unused) == 9 and len(error.value.report.matched) == 12


def test_shards_that_lead_in_a_circle_or_nowhere(folder, tmp_path):
    index = folder / "model.safetensors.index.json"
    shutil.move(folder / "model.safetensors", folder / "a.safetensors")
    names = dict.fromkeys(read_safetensors(folder / "a.safetensors"), "a.safetensors")
    index.write_text(json.dumps({"weight_map": names}))
    assert tp.load_model(folder).config.n_layers == 2
    (folder / "b.safetensors").symlink_to(folder / "c.safetensors")
    (folder / "c.safetensors").symlink_to(folder / "b.safetensors")
    for shard, says in ("b.safetensors", "b.safetensors is missing"), ("nowhere.safetensors", "is missing; the download"), \
            ("model.safetensors.index.json", "is no .safetensors file"):
        index.write_text(json.dumps({"weight_map": names | {UP: shard}}))
        with pytest.raises(HuggingFaceError, match=says): tp.load_model(folder)


# -- writing ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("spoil, says", [
    (lambda m: tp.attach(m, tp.LoRA(rank=2)).model, r"this is the model inside a PeftModel, with LoRA\(rank=2\) attached"),
    (lambda m: tp.attach(m, tp.LoRA(rank=2)).frozen, "this is the model inside a PeftModel, as it was at attach"),
    (lambda m: tp.quantize(m, tp.Uniform(4)), "expected a plain Llama, got one with .*blocks.0.attention.key"),
    (lambda m: setattr(m, "head", tp.engine.Linear(24, 3)), "the head has a bias, and transformers' has none; train one"),
    (lambda m: setattr(m, "head", tp.quantize(Llama(m.config), tp.Uniform(4)).get("blocks.0.mlp.up")), "the head has a bias"),
    (lambda m: setattr(m.blocks[1], "mlp", tp.engine.Module()), "expected a plain Llama, got one with .*blocks.1.mlp")])
def test_only_a_plain_model_is_written(spoil, says, tmp_path):
    model = Llama(LlamaConfig(41, 60, 24, 2, 6, 2, 20, 4))
    model = spoil(model) or model
    with pytest.raises(ValueError, match=f"save_model: {says}"): tp.save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["GPT", "Llama", "Qwen3", "Gemma"])
def test_a_classifier_goes_to_transformers_and_comes_back(family, transformers, tmp_path):
    """With the names of its classes. A batch has padding, which transformers finds by the token that the folder names."""
    import torch
    model = family_of(family, np.float32)
    model.head = tp.engine.Linear(model.config.d_model, 3, bias=False, rng=1)
    model.task = tp.tasks.Classification({}, ["good", "bad", "ugly"], tp.load_pretrained().tokenizer, 24)
    tp.save_model(model, tmp_path)
    tokens = np.array([[3, 4, 5, 0], [9, 8, 7, 6]])
    logits = model.class_logits(tokens, [3, 4]).data
    assert np.array_equal(tp.load_model(tmp_path).class_logits(tokens, [3, 4]).data, logits)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    theirs.config.pad_token_id = 0                                       # these toys have no tokenizer
    with torch.no_grad(): found = theirs(torch.as_tensor(tokens), attention_mask=torch.as_tensor(tokens > 0)).logits
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4)
    assert theirs.config.id2label == {0: "good", 1: "bad", 2: "ugly"}
    model.task = None
    tp.save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["id2label"]["2"] == "LABEL_2"


def test_transformers_has_no_llama_of_these_heads(tmp_path):
    """Its LlamaConfig refuses a hidden size that does not divide into the heads; Qwen3's takes it."""
    model = Llama(LlamaConfig(41, 60, 24, 2, 5, 5, 20, 6))
    with pytest.raises(ValueError, match="hidden size that divides into the heads, got 24 and 5"):
        tp.save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())
