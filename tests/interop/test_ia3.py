"""(IA)³ in PEFT's folders, both ways, on four families: both sides compute the same, and wrong folders are refused."""
import copy
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import relative_error as error
from tests.protocol import move
from tinypeft.interop import read_safetensors, write_safetensors
from tinypeft.interop.ia3 import FEEDFORWARD, TARGETS, is_feedforward
from tinypeft.interop.peft_config import Config
from tinypeft.peft.ia3 import ScaledOutput

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from peft.tuners.ia3 import IA3Model  # noqa: E402
from peft.utils import constants  # noqa: E402

from tests.oracles import peft_folders as oracle  # noqa: E402
from tests.oracles.peft_folders import CONFIG, SEVEN, TENSORS, TOKENS, pytestmark  # noqa: E402, F401

EVERY = ["GPT", *FAMILIES]
families = pytest.mark.parametrize("family", EVERY)
PATHS = "blocks.1.attention.key", "blocks.0.mlp.down", "blocks.1.mlp.down"
OURS = [*((family, tp.IA3()) for family in EVERY), ("GPT", tp.IA3(targets="all", feedforward=("up", "down"))),
        ("Qwen3", tp.IA3(targets="all", feedforward=("up", "down"))), ("GPT", tp.IA3(("value", "up"), feedforward=None)),
        ("GPT", tp.IA3(PATHS, feedforward=("blocks.0.mlp.down",))), ("Gemma", tp.IA3(PATHS, ("blocks.0.mlp.down",)))]
THEIRS = {"defaults": {"task_type": "CAUSAL_LM"}, "all-linear": {"target_modules": "all-linear", "feedforward_modules": []},
          "patterns": {"target_modules": r".*\.(c_attn|c_proj|c_fc|[vo]_proj|up_proj|down_proj)",
                       "exclude_modules": ["mlp.c_fc", "up_proj"], "feedforward_modules": r".*1\.mlp\..*(c_|down_)proj"}}


def moved(method, family="GPT", **options):
    """`method` on a model, with every l away from 1."""
    tuned = tp.attach(make(family), method, rng=3, **options)
    move(tuned, np.random.default_rng(0))
    return tuned


@pytest.mark.parametrize("family, method", OURS, ids=str)
def test_peft_computes_what_our_vectors_compute_numerical(method, family, tmp_path):
    tuned = moved(method, family)
    tuned.save(tmp_path / "one", format="peft")
    theirs = oracle.loaded(oracle.base(family), tmp_path / "one")
    assert error(oracle.logits(theirs, TOKENS), tuned(TOKENS)) <= 1e-14
    assert error(oracle.logits(oracle.base(family), TOKENS), tuned(TOKENS)) > 0.01
    again = tp.load_adapter(make(family), tmp_path / "one")
    assert error(again(TOKENS), tuned(TOKENS)) <= 1e-14 and error(again.merge()(TOKENS), tuned(TOKENS)) <= 1e-14
    assert set(again.state_dict()) == set(tuned.state_dict())
    assert all(np.array_equal(a, tuned.state_dict()[name]) for name, a in again.state_dict().items())
    again.save(tmp_path / "two", format="peft")
    assert oracle.files(tmp_path / "one") == oracle.files(tmp_path / "two")


@pytest.mark.parametrize("name, family", [*(("defaults", family) for family in EVERY), ("all-linear", "GPT"),
                                          ("all-linear", "Gemma"), ("patterns", "GPT"), ("patterns", "Llama")])
def test_vectors_of_peft_compute_the_same_here_numerical(name, family, tmp_path):
    theirs = oracle.trained(oracle.base(family), peft.IA3Config(**copy.deepcopy(THEIRS[name])), TOKENS)
    theirs.save_pretrained(tmp_path / "peft")
    tuned = tp.load_adapter(make(family), tmp_path / "peft")
    assert error(tuned(TOKENS), oracle.logits(theirs, TOKENS)) <= 1e-14
    assert error(oracle.logits(oracle.base(family), TOKENS), tuned(TOKENS)) > 0.01
    tuned.save(tmp_path / "back", format="peft")
    ours, sent = (read_safetensors(tmp_path / side / TENSORS) for side in ("back", "peft"))
    assert ours.keys() == sent.keys() and all(np.array_equal(ours[n], sent[n]) for n in sent)
    assert error(oracle.logits(oracle.loaded(oracle.base(family), tmp_path / "back"), TOKENS), tuned(TOKENS)) <= 1e-14


@families
def test_a_head_classifies_the_same_on_both_sides_numerical(family, tmp_path):
    tuned = moved(tp.IA3(), family, head=3, head_bias=False)
    tuned.save(tmp_path / "ours", format="peft")
    theirs = oracle.loaded(oracle.base(family, 3), tmp_path / "ours")
    assert error(oracle.class_logits(theirs, TOKENS), tuned.class_logits(TOKENS, SEVEN)) <= 1e-14
    theirs = oracle.trained(oracle.base(family, 3), peft.IA3Config(task_type="SEQ_CLS"), TOKENS, classes=3)
    theirs.save_pretrained(tmp_path / "theirs")
    tuned = tp.load_adapter(make(family), tmp_path / "theirs")
    assert error(tuned.class_logits(TOKENS, SEVEN), oracle.class_logits(theirs, TOKENS)) <= 1e-14


def test_a_fused_vector_is_made_of_three_with_ones_for_one_that_is_absent(tmp_path):
    tuned = moved(tp.IA3())
    tuned.save(tmp_path, format="peft")
    config, file = json.loads((tmp_path / CONFIG).read_text("utf-8")), read_safetensors(tmp_path / TENSORS)
    l = file["base_model.model.transformer.h.0.attn.c_attn.ia3_l"]
    key, value = (tuned.wrappers[f"blocks.0.attention.{name}"].l.data for name in ("key", "value"))
    assert l.shape == (48, 1) and np.array_equal(l[:, 0], np.concatenate([np.ones(16), key, value]))
    assert config["target_modules"] == ["attn.c_attn", "mlp.c_proj"] and config["feedforward_modules"] == ["mlp.c_proj"]
    assert tp.load_adapter(make("GPT"), tmp_path).method == tp.IA3()


def test_ones_are_all_kept_or_left_out(tmp_path):
    tp.attach(make("GPT"), tp.IA3()).save(tmp_path, format="peft")       # before training all are 1
    assert tp.load_adapter(make("GPT"), tmp_path).method == tp.IA3(("query", "key", "value", "down"))


def test_an_input_of_c_attn_has_one_vector(tmp_path):
    config = peft.IA3Config(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_attn"])
    theirs = oracle.trained(oracle.base("GPT"), config, TOKENS)
    theirs.save_pretrained(tmp_path / "theirs")
    tuned = tp.load_adapter(make("GPT"), tmp_path / "theirs")
    assert tuned.method == tp.IA3(("query", "key", "value", "up"), feedforward=("query", "key", "value"))
    assert error(tuned(TOKENS), oracle.logits(theirs, TOKENS)) <= 1e-14
    tuned.save(tmp_path / "back", format="peft")                         # the three are equal until they are trained
    assert error(oracle.logits(oracle.loaded(oracle.base("GPT"), tmp_path / "back"), TOKENS), tuned(TOKENS)) <= 1e-14
    tuned.wrappers["blocks.1.attention.key"].l.data[0] += 1
    for other in tuned, moved(tp.IA3(("query",), feedforward=("query",))):
        with pytest.raises(tp.MethodError, match="PEFT scales the input of .*c_attn by one vector"):
            other.save(tmp_path / "new", format="peft")
    mixed = moved(tp.IA3(("query", "key", "value"), feedforward=("key",)))
    with pytest.raises(tp.MethodError, match="by one vector"): mixed.save(tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


def test_a_wrapper_of_ones_own_is_refused(tmp_path):
    class Squared(ScaledOutput):
        def forward(self, x): return self.base(x) * self.l * self.l
        def merge(self): raise NotImplementedError
    class Own(tp.IA3):
        def wrap(self, model, rng): return {path: Squared(layer.base) for path, layer in super().wrap(model, rng).items()}
    with pytest.raises(tp.MethodError, match="a Squared on .*c_attn may do more"):
        tp.attach(make("GPT"), Own()).save(tmp_path / "new", format="peft")


def test_vectors_load_onto_a_quantized_base_numerical(tmp_path):
    tuned = tp.attach(make("Llama", np.float32), tp.IA3())
    move(tuned, np.random.default_rng(0))
    tuned.save(tmp_path, format="peft")
    quantized = tp.load_adapter(tp.quantize(make("Llama", np.float32), tp.NF4(block_size=16)), tmp_path)
    assert error(quantized.merge()(TOKENS), quantized(TOKENS)) <= 1e-5
    with quantized.disabled(): plain = quantized(TOKENS)
    assert error(plain, quantized(TOKENS)) > 0.01
    quantized.save(tmp_path / "back", format="peft")
    assert oracle.files(tmp_path / "back") == oracle.files(tmp_path)


def test_the_defaults_are_pefts():
    for ours, theirs in ((TARGETS, constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING),
                         (FEEDFORWARD, constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING)):
        for kind in ours: assert set(ours[kind]) == set(theirs[kind])
    assert set(TARGETS["llama"]) == set(constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["mistral"])


@pytest.mark.parametrize("named", [["c_proj"], ["proj"], ["mlp.c_proj"], [], r".*\.mlp\..*", "c_proj", ["0.attn.c_attn", "fc"]])
def test_inputs_are_scaled_where_peft_scales_them(named, tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps({"feedforward_modules": named}), "utf-8")
    config = peft.IA3Config(target_modules=".*", feedforward_modules=copy.copy(named))
    for layer in "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj":
        path = f"transformer.h.10.{layer}"
        expected = IA3Model._check_target_module_feedforward(config, path)
        assert is_feedforward(Config(tmp_path / CONFIG), path, ("mlp.c_proj",)) == expected


L0 = "base_model.model.transformer.h.0.attn.c_attn.ia3_l"


@pytest.mark.parametrize("fields, tensors, says", [
    ({"target_modules": ["c_attn", "wte"]}, {}, "selects transformer.wte, but only the linear layers"),
    ({"target_modules": ["lm_head"]}, {}, "selects lm_head"), ({"target_modules": ["q_proj"]}, {}, "selects no layer"),
    ({"target_modules": ["c_attn"]}, {}, "not used 2"), ({"target_modules": 3}, {}, "target_modules must be list or str"),
    ({"feedforward_modules": []}, {}, r"has shape \(1, 64\), expected \(16, 1\)"),
    ({"feedforward_modules": "((a))"}, {}, "pattern"), ({"feedforward_modules": [3]}, {}, "must be a list of names"),
    ({"feedforward_modules": ["c_attn"]}, {}, r"expected \(1, 16\)"), ({"init_ia3_weights": 3}, {}, "must be bool"),
    ({"layers_to_transform": [0]}, {}, "layers_to_transform=.* is not supported"), ({"r": 2}, {}, "r=2 is not supported"),
    ({"bias": "all"}, {}, "bias='all' is not supported"), ({"peft_type": "ia3"}, {}, "in capitals, IA3"),
    ({"modules_to_save": ["mlp.c_proj"]}, {}, "not used 2|missing"), ({"task_type": "SEQ_CLS"}, {}, "missing 1 .*score"),
    ({}, {L0: None}, "missing 1"), ({}, {L0: np.ones((1, 48))}, "transposed"), ({}, {L0: np.ones(48)}, r"shape \(48,\)"),
    ({}, {L0: np.full((48, 1), np.nan)}, "not finite"), ({}, {L0: np.ones((48, 1), int)}, "expected floats"),
    ({}, {L0.replace("h.0", "h.7"): np.ones((48, 1))}, "not used 1")], ids=str)
def test_folders_that_do_not_fit_are_refused(fields, tensors, says, tmp_path):
    moved(tp.IA3()).save(tmp_path, format="peft")
    config = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    (tmp_path / CONFIG).write_text(json.dumps(config | fields), "utf-8")
    arrays = {n: np.array(a) for n, a in read_safetensors(tmp_path / TENSORS).items()} | tensors
    write_safetensors(tmp_path / TENSORS, {n: a for n, a in arrays.items() if a is not None})
    model = make("GPT")
    with pytest.raises(ValueError, match=says): tp.load_adapter(model, tmp_path)
    assert model.attached is None


def test_strict_false_loads_the_vectors_that_match(tmp_path):
    moved(tp.IA3()).save(tmp_path, format="peft")
    arrays = {n: np.array(a) for n, a in read_safetensors(tmp_path / TENSORS).items() if n != L0}
    write_safetensors(tmp_path / TENSORS, arrays)
    with pytest.warns(UserWarning, match="missing 1 .*c_attn.ia3_l"):
        tuned = tp.load_adapter(make("GPT"), tmp_path, strict=False)
    assert [*tuned.wrappers] == ["blocks.0.mlp.down", "blocks.1.attention.key", "blocks.1.attention.value",
                                 "blocks.1.mlp.down"]
