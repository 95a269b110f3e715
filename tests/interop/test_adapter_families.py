"""PEFT's adapter folders of the Llama family, both ways: transformers' own models compute what ours do."""
import copy
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import relative_error as error
from tests.protocol import move
from tests.toys import Noise
from tinypeft.interop import read_safetensors
from tinypeft.interop.families import FAMILIES as TABLES
from tinypeft.interop.peft_config import Config
from tinypeft.interop.peft_names import names_of

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from tests.oracles import peft_folders as oracle  # noqa: E402
from tests.oracles.peft_folders import CONFIG, SEVEN, TENSORS, TOKENS, pytestmark  # noqa: E402, F401

families = pytest.mark.parametrize("family", FAMILIES)

LAYERS = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
OURS = {
    "LoRA": tp.LoRA(rank=2), "all": tp.LoRA(rank=2, alpha=3, targets="all", rank_stabilized=True),
    "patterns": tp.LoRA(rank=2, targets=("query", "value", "gate"), rank_pattern={"value": 3, "blocks.1.mlp.gate": 4},
                        alpha_pattern={"query": 3.5}),
    "paths": tp.LoRA(rank=3, targets=("blocks.1.attention.key", "blocks.0.mlp.gate"), dropout=0.1),
    "DyLoRA": tp.DyLoRA(rank=4, targets=("query", "gate")),
    "AdaLoRA": tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=2, delta_t=1, targets=("key", "gate", "down")),
    "prefix": tp.PrefixTuning(length=3),
    "PTuningV2": tp.PTuningV2(length=4), "prompt": tp.PromptTuning(length=3), "PTuning": tp.PTuning()}
THEIRS = {
    "LoRA": peft.LoraConfig(r=3, lora_alpha=5), "all-linear": peft.LoraConfig(
        r=2, target_modules="all-linear", exclude_modules=["o_proj"], use_rslora=True, task_type="CAUSAL_LM"),
    "patterns": peft.LoraConfig(r=2, target_modules=r".*\.(self_attn|mlp)\.(q_proj|gate_proj)", lora_dropout=0.1,
                                rank_pattern={"gate_proj": 4}, alpha_pattern={r"layers\.1\.self_attn\.q_proj": 3}),
    "one block": peft.LoraConfig(r=2, target_modules=["up_proj", "v_proj"], layers_to_transform=1, layers_pattern="layers"),
    "AdaLoRA": peft.AdaLoraConfig(init_r=4, target_r=1, total_step=8, tinit=1, tfinal=2, task_type="CAUSAL_LM",
                                  target_modules=["k_proj", "gate_proj"]),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix of an MLP": peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "P-tuning": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=12, task_type="CAUSAL_LM")}


@pytest.fixture(scope="module")
def base():
    """(family, dtype, classes) → transformers' model with the weights of `make(family, dtype)`."""
    made = {}
    def of(*key):
        if key not in made: made[key] = oracle.transformers_model(make(*key[:2]), *key[2:])
        return made[key]
    return of


def learned(family, method, dtype=np.float32, **options):
    """`method` after a few steps of training on random tokens, so that only pruned values are zero."""
    tuned = tp.attach(make(family, dtype), method, rng=3, **options)
    tp.train(tuned, Noise(), 8, lr=5e-2, batch_size=4)
    if tuned.head is not None: move(tuned, np.random.default_rng(0))
    return tuned


# -- the same function on both sides ------------------------------------------------------------------
@families
@pytest.mark.parametrize("name", OURS)
def test_peft_computes_what_our_adapter_computes_numerical(name, family, base, tmp_path):
    tuned = learned(family, OURS[name], np.float64)
    if name == "DyLoRA": tuned.set_rank(3)
    tuned.save(tmp_path, format="peft")
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, TENSORS]
    again = tp.load_adapter(make(family), tmp_path)
    assert error(again(TOKENS), tuned(TOKENS)) <= 1e-12
    if tuned.virtual is None: assert error(again.merge()(TOKENS), tuned(TOKENS)) <= 1e-12
    # PEFT loads virtual tokens into float32, and has AdaLoRA's init_r + 1e-5 in float32
    tolerance = 1e-6 if tuned.virtual else 1e-7 if name == "AdaLoRA" else 1e-12
    with tuned.disabled(): assert error(tuned(TOKENS), oracle.logits(base(family, np.float64), TOKENS)) <= 1e-12
    theirs = oracle.logits(oracle.loaded(base(family, np.float64), tmp_path), TOKENS)
    assert error(theirs, tuned(TOKENS)) <= tolerance
    assert error(oracle.logits(base(family, np.float64), TOKENS), tuned(TOKENS)) > 0.01


@families
@pytest.mark.parametrize("name", THEIRS)
def test_a_peft_adapter_computes_the_same_here_numerical(name, family, base, tmp_path):
    model = base(family, np.float64)
    theirs = oracle.trained(model, copy.deepcopy(THEIRS[name]), TOKENS, steps=8)
    theirs.save_pretrained(tmp_path / "peft")
    expected, tolerance = oracle.logits(theirs, TOKENS), 1e-6 if "MLP" in name or name == "P-tuning" else 1e-12
    tuned = tp.load_adapter(make(family), tmp_path / "peft")
    assert error(oracle.logits(model, TOKENS), expected) > 0.01
    assert error(tuned(TOKENS), expected) <= tolerance
    tuned.save(tmp_path / "ours")                                        # in our own format, bit for bit
    assert np.array_equal(tp.load_adapter(make(family), tmp_path / "ours")(TOKENS).data, tuned(TOKENS).data)
    tuned.save(tmp_path / "back", format="peft")
    ours, theirs = (read_safetensors(tmp_path / side / TENSORS) for side in ("back", "peft"))
    assert ours.keys() == theirs.keys()
    for n in ours: assert name == "AdaLoRA" or np.array_equal(ours[n], theirs[n]) or error(ours[n], theirs[n]) <= 1e-12


@families
def test_float32_models_of_transformers_itself_agree_numerical(family, base, tmp_path):
    """Without an exact norm or angle put in: transformers computes both in float32."""
    tuned = learned(family, OURS["all"])
    tuned.save(tmp_path, format="peft")
    theirs = oracle.logits(oracle.loaded(base(family, np.float32), tmp_path), TOKENS)
    assert error(theirs, tuned(TOKENS)) <= 1e-5


@families
@pytest.mark.parametrize("name", ["LoRA", "prefix", "prompt"])
def test_generates_what_pefts_forward_pass_says(name, family, base, tmp_path):
    """Not what its `generate` says: with a prefix on a Llama and transformers 5.24, PEFT 0.21.2 continues in another way
    than by its own forward pass."""
    model = base(family, np.float64)
    oracle.trained(model, copy.deepcopy(THEIRS[name]), TOKENS).save_pretrained(tmp_path)
    theirs, tokens = oracle.loaded(model, tmp_path), TOKENS
    for _ in range(8):
        following = oracle.logits(theirs, tokens)[:, -1].argmax(-1).numpy()
        tokens = np.concatenate([tokens, following[:, None]], axis=1)
    assert np.array_equal(tp.load_adapter(make(family), tmp_path).generate(TOKENS, 8), tokens)


# -- a classification head -----------------------------------------------------------------------
@families
@pytest.mark.parametrize("name", ["LoRA", "AdaLoRA", "PTuningV2", "prompt"])
def test_a_head_classifies_the_same_on_both_sides_numerical(name, family, base, tmp_path):
    tuned = learned(family, OURS[name], np.float64, head=3, head_bias=False)
    tuned.save(tmp_path / "ours", format="peft")
    theirs = oracle.loaded(base(family, np.float64, 3), tmp_path / "ours")
    assert error(oracle.class_logits(theirs, TOKENS), tuned.class_logits(TOKENS, SEVEN)) <= 1e-6
    again = tp.load_adapter(make(family), tmp_path / "ours")
    assert error(again.class_logits(TOKENS, [3, 7, 5]), tuned.class_logits(TOKENS, [3, 7, 5])) <= 1e-12
    if tuned.virtual is None:
        padded = np.where(np.arange(7) < np.reshape([3, 7, 5], (3, 1)), TOKENS, 0)
        assert error(oracle.class_logits(theirs, padded), tuned.class_logits(padded, [3, 7, 5])) <= 1e-6


@families
def test_a_head_trained_there_classifies_the_same_here_numerical(family, base, tmp_path):
    theirs = oracle.trained(base(family, np.float64, 3), peft.LoraConfig(r=2, task_type="SEQ_CLS"), TOKENS, classes=3)
    theirs.save_pretrained(tmp_path)
    tuned = tp.load_adapter(make(family), tmp_path)
    assert error(tuned.class_logits(TOKENS, SEVEN), oracle.class_logits(theirs, TOKENS)) <= 1e-12


# -- what is in a folder ---------------------------------------------------------------------------
@families
def test_pairs_are_written_as_they_are(family, tmp_path):
    tuned = learned(family, OURS["all"])
    tuned.save(tmp_path, format="peft")
    config, file = json.loads((tmp_path / CONFIG).read_text("utf-8")), read_safetensors(tmp_path / TENSORS)
    assert config["fan_in_fan_out"] is False and config["target_modules"] == LAYERS and config["r"] == 2
    assert len(file) == 2 * 2 * 7 == 2 * len(tuned.wrappers)
    w = tuned.wrappers["blocks.1.mlp.gate"]
    assert all(np.array_equal(file[f"base_model.model.model.layers.1.mlp.gate_proj.lora_{x}.weight"], getattr(w, x).data)
               for x in "AB")
    again = tp.load_adapter(make(family, np.float32), tmp_path)
    assert again.method == tp.LoRA(rank=2, alpha=3, targets=("query", "key", "value", "output", "gate", "up", "down"),
                                   rank_stabilized=True)
    assert all(np.array_equal(a, tuned.state_dict()[n]) for n, a in again.state_dict().items())


@families
def test_a_prefix_states_the_sizes_of_grouped_heads(family, tmp_path):
    c = make(family).config
    for method, sizes in ((tp.PTuningV2(3), (2, 2 * c.d_head)), (tp.PromptTuning(3), (4, c.d_model))):
        tp.attach(make(family), method).save(tmp_path, format="peft")
        config = json.loads((tmp_path / CONFIG).read_text("utf-8"))
        assert (config["num_attention_heads"], config["token_dim"]) == sizes
    with pytest.raises(ValueError, match="token_dim=.* is not supported: this model has"):
        tp.load_adapter(make(family, d_model=32), tmp_path)


@families
@pytest.mark.parametrize("fields, says", [
    ({"target_modules": ["lm_head"]}, "selects lm_head"), ({"target_modules": ["embed_tokens"]}, "selects model.embed_tokens"),
    ({"target_modules": ["c_attn"]}, r"selects no layer of model.layers.N; there are self_attn.q_proj, "),
    ({"target_modules": ".*mlp"}, "selects model.layers.0.mlp, but only the linear"),
    ({"target_modules": ["q_proj", "input_layernorm"]}, "selects model.layers.0.input_layernorm"),
    ({"r": 3}, r"expected \(3, "), ({"target_modules": ["q_proj"]}, "not used 4"),
    ({"use_dora": True}, "missing 4 .*magnitude")])
def test_folders_that_do_not_fit_are_refused(fields, says, family, tmp_path):
    tp.attach(make(family, np.float32), tp.LoRA(rank=2)).save(tmp_path, format="peft")
    config = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    (tmp_path / CONFIG).write_text(json.dumps(config | fields), "utf-8")
    model = make(family, np.float32)
    with pytest.raises(ValueError, match=says): tp.load_adapter(model, tmp_path)
    assert model.attached is None


def test_an_adapter_of_another_family_is_refused(tmp_path):
    tp.attach(make("Llama", np.float32), tp.LoRA(rank=2)).save(tmp_path / "llama", format="peft")
    with pytest.raises(tp.MethodError, match="selects no layer of transformer.h.N"):
        tp.load_adapter(make("GPT"), tmp_path / "llama")
    tp.attach(make("GPT", np.float32), tp.LoRA(rank=2)).save(tmp_path / "gpt", format="peft")
    with pytest.raises(tp.MethodError, match="selects no layer of model.layers.N"):
        tp.load_adapter(make("Llama"), tmp_path / "gpt")


PATHS = [f"model.layers.{n}.{layer}" for n in range(12) for layer in LAYERS]


@pytest.mark.parametrize("fields", [
    {"target_modules": ["q_proj", "mlp.up_proj"]}, {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": ["model.layers.3.mlp.gate_proj", "o_proj"]}, {"target_modules": r"model\.layers\.[0-5]\.(?:mlp|x)\..*"},
    {"target_modules": ["gate_proj"], "exclude_modules": ["layers.3.mlp.gate_proj"]},
    {"target_modules": ["gate_proj"], "layers_to_transform": [1, 11]},
    {"target_modules": ["k_proj"], "layers_to_transform": [4], "layers_pattern": "layers"},
    {"target_modules": "all-linear", "exclude_modules": r".*\.(up|down)_proj"}], ids=str)
def test_layers_are_selected_as_in_peft(fields, tmp_path):
    from peft.tuners.tuners_utils import check_target_module_exists
    (tmp_path / CONFIG).write_text(json.dumps(fields), "utf-8")
    config = peft.LoraConfig(**fields)
    if fields["target_modules"] == "all-linear": config.target_modules = set(PATHS)     # PEFT resolves it beforehand
    hit = {p: check_target_module_exists(config, p) for p in PATHS}
    expected = [p for p, found in hit.items() if found and type(found).__name__ != "_ExcludedModule"]
    assert expected and Config(tmp_path / CONFIG).select(names_of(make("Llama")), PATHS) == expected


def test_a_folder_without_targets_has_pefts_default():
    from peft.utils import constants
    for kind in ("LORA", "ADALORA"):
        theirs = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_TARGET_MODULES_MAPPING")
        for family in TABLES:
            for kind_of_model in family.defaults:        # PEFT has none for some
                assert theirs.get(kind_of_model, [*family.adapted]) == [*family.adapted]
        assert {"gpt2", "llama", "qwen3", "gemma3_text"} <= theirs.keys()


def test_a_folder_without_targets_loads(tmp_path):
    tuned = learned("Llama", OURS["LoRA"])
    tuned.save(tmp_path, format="peft")
    fields = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    (tmp_path / CONFIG).write_text(json.dumps(fields | {"target_modules": None}), "utf-8")
    assert np.array_equal(tp.load_adapter(make("Llama", np.float32), tmp_path)(TOKENS).data, tuned(TOKENS).data)


@pytest.mark.parametrize("family", ["GPT", *FAMILIES])
def test_the_names_are_those_of_transformers_modules(family, base):
    """Every module of transformers' model is known, so that a pattern selects here what it selects there."""
    theirs = {path for path, _ in base(family, np.float32).named_modules() if path}
    names = names_of(make(family))
    ours = names.modules(lm_head=True)
    assert len(set(ours)) == len(ours) and set(names.linear()) <= theirs
    assert set(ours) == theirs
    assert set(names.modules(lm_head=False)) == set(ours) - {"lm_head"}
