"""Norms, `modules_to_save` and biases in PEFT's folders, both ways: parts of our model, one folder there."""
import copy
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import relative_error as error
from tests.protocol import move
from tinypeft.interop import read_safetensors, write_safetensors
from tinypeft.interop.base_weights import NORM_TARGETS, method_of

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from peft.utils import constants  # noqa: E402

from tests.oracles import peft_folders as oracle  # noqa: E402
from tests.oracles.peft_folders import CONFIG, SEVEN, TENSORS, TOKENS, pytestmark  # noqa: E402, F401

EVERY = ["GPT", *FAMILIES]
families = pytest.mark.parametrize("family", EVERY)
LORA, FULL = tp.LoRA(rank=2), tp.FullFineTuning
ADALORA = tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=2, delta_t=1, targets=("query", "value"))


def moved(family, *methods, **options):
    """`methods` on a model, with every number that they train moved."""
    tuned = tp.attach(make(family), *methods, rng=3, **options)
    move(tuned, np.random.default_rng(0))
    return tuned


def config_of(folder): return json.loads((folder / CONFIG).read_text("utf-8"))


# -- the same function on both sides -------------------------------------------------------------------
# (families, methods, what the configuration says)
OURS = [
    (["GPT", "Gemma"], [FULL(("norm1", "final_norm"))], {"peft_type": "LN_TUNING", "modules_to_save": None}),
    (["Llama", "Qwen3"], [FULL(("*norm*",))], {"peft_type": "LN_TUNING"}),
    (["GPT"], [FULL(("blocks.1.norm2", "mlp"))], {"peft_type": "LN_TUNING"}),
    (["GPT", "Gemma"], [LORA, FULL(("*norm*",))], {"peft_type": "LORA", "bias": "none"}),
    (["GPT", "Llama"], [tp.IA3(), FULL(("norm2", "output"))], {"peft_type": "IA3"}),
    (["Llama"], [FULL(("norm1",)), FULL(("blocks.0.up",)), ADALORA], {"peft_type": "ADALORA", "bias": "none"}),
    (["Qwen3"], [FULL()], {"peft_type": "LN_TUNING"}), (["Qwen3"], [LORA, FULL(("lm_head", "token_embedding"))], {}),
    (["GPT"], [LORA, FULL(("bias",))], {"bias": "all", "modules_to_save": None}),
    (["GPT"], [LORA, FULL(("bias", "position_embedding"))],
     {"bias": "all", "modules_to_save": ["transformer.wpe"]}),
    (["GPT"], [tp.LoRA(2, targets=("output", "up")), FULL(("output.bias", "up.bias", "norm1"))],
     {"bias": "lora_only", "modules_to_save": ["ln_1"]}),
    (["GPT"], [ADALORA, FULL(("bias",))], {"peft_type": "ADALORA", "bias": "all"}),
    (["GPT"], [FULL(("norm1",)), tp.PrefixTuning(length=2)], {"peft_type": "PREFIX_TUNING", "modules_to_save": ["ln_1"]}),
    (["Gemma"], [tp.PromptTuning(length=2), FULL(("mlp",))], {"peft_type": "PROMPT_TUNING"})]


@pytest.mark.parametrize("family, methods, fields", [(f, *case) for fs, *case in OURS for f in fs], ids=str)
def test_peft_computes_what_our_parts_compute_numerical(family, methods, fields, tmp_path):
    tuned = moved(family, *methods)
    tuned.save(tmp_path / "one", format="peft")
    assert fields.items() <= config_of(tmp_path / "one").items()
    theirs = oracle.loaded(oracle.base(family), tmp_path / "one")
    exact = 1e-7 if ADALORA in methods else 1e-6 if tuned.virtual else 1e-14    # PEFT has init_r + 1e-5, prompts in float32
    assert error(oracle.logits(theirs, TOKENS), tuned(TOKENS)) <= exact
    again = tp.load_adapter(make(family), tmp_path / "one")
    assert error(again(TOKENS), tuned(TOKENS)) <= 1e-14
    if not tuned.virtual: assert error(again.merge()(TOKENS), tuned(TOKENS)) <= 1e-13
    assert sum(isinstance(part.method, FULL) for part in again.parts.values()) == 1
    again.save(tmp_path / "two", format="peft")
    if family != "GPT" or ADALORA not in methods: assert oracle.files(tmp_path / "one") == oracle.files(tmp_path / "two")
    again.save(tmp_path / "own")                                         # in our own format, bit for bit
    assert np.array_equal(tp.load_adapter(make(family), tmp_path / "own")(TOKENS).data, again(TOKENS).data)
    with again.disabled(): assert error(oracle.logits(oracle.base(family), TOKENS), again(TOKENS)) <= 1e-12


# (families, configuration, the parts here)
LoraConfig, IA3Config, LNTuningConfig = peft.LoraConfig, peft.IA3Config, peft.LNTuningConfig
QKV = "query.bias", "key.bias", "value.bias"
THEIRS = [
    (EVERY, LNTuningConfig(task_type="CAUSAL_LM"), None),
    (["Llama", "GPT"], LNTuningConfig(target_modules=r".*(ln_1|norm)"), None),
    (["Qwen3"], LoraConfig(r=2, target_modules="all-linear", modules_to_save=["norm"]), None),
    (["GPT", "Gemma"], IA3Config(target_modules="all-linear", feedforward_modules=[], modules_to_save=["mlp"]), None),
    (["Llama"], LoraConfig(r=2, bias="all"), []),
    (["Qwen3"], LoraConfig(r=2, modules_to_save=["lm_head", "embed_tokens"]), ["token_embedding", "lm_head"]),
    (["Gemma"], LoraConfig(r=2, modules_to_save=["layers.1"], task_type="CAUSAL_LM"), None),
    (["GPT"], LoraConfig(r=2, bias="all"), ["bias"]), (["GPT"], LoraConfig(r=2, bias="lora_only"), QKV),
    (["GPT"], LoraConfig(r=2, lora_alpha=3, lora_bias=True, use_rslora=True), QKV),
    (["GPT"], LoraConfig(r=2, lora_bias=True, bias="all", alpha_pattern={"h.1.attn.c_attn": 7}), ["bias"]),
    (["GPT"], LoraConfig(r=2, bias="all", modules_to_save=["wpe"]), ["bias", "position_embedding"]),
    (["GPT"], LoraConfig(r=2, target_modules=["c_attn", "c_fc"], modules_to_save=["attn.c_attn"]),
     ["query", "key", "value"]),
    (["GPT"], peft.AdaLoraConfig(init_r=2, target_r=1, total_step=99, bias="lora_only"), QKV),
    (["Llama"], peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM", modules_to_save=["norm"]), None)]


@pytest.mark.parametrize("family, config, targets", [(f, *case) for fs, *case in THEIRS for f in fs],
                         ids=lambda x: getattr(x, "peft_type", None) and x.peft_type.value)
def test_weights_that_peft_trained_compute_the_same_here_numerical(family, config, targets, tmp_path):
    theirs = oracle.trained(oracle.base(family), copy.deepcopy(config), TOKENS)
    theirs.save_pretrained(tmp_path / "peft")
    tuned = tp.load_adapter(make(family), tmp_path / "peft")
    exact = 1e-6 if tuned.virtual else 1e-14                             # PEFT has prompts in float32
    assert error(tuned(TOKENS), oracle.logits(theirs, TOKENS)) <= exact
    assert error(oracle.logits(oracle.base(family), TOKENS), tuned(TOKENS)) > 0.01
    names = [set(part.method.targets) for part in tuned.parts.values() if isinstance(part.method, FULL)]
    assert targets is None and len(names) == 1 or names == [set(targets)] * bool(targets)
    tuned.save(tmp_path / "back", format="peft")
    assert error(oracle.logits(oracle.loaded(oracle.base(family), tmp_path / "back"), TOKENS), tuned(TOKENS)) <= exact
    ours, sent = (read_safetensors(tmp_path / side / TENSORS) for side in ("back", "peft"))
    if not getattr(config, "lora_bias", False):                         # which becomes a bias of the base here
        assert ours.keys() == sent.keys()
        assert all(np.array_equal(ours[n], sent[n]) for n in sent if "lora_" not in n)


@families
def test_heads_and_weights_of_the_base_classify_the_same_numerical(family, tmp_path):
    tuned = moved(family, FULL(("*norm*",)), head=3, head_bias=False)
    tuned.save(tmp_path / "ours", format="peft")
    assert config_of(tmp_path / "ours")["modules_to_save"] == ["score"]
    theirs = oracle.loaded(oracle.base(family, 3), tmp_path / "ours")
    assert error(oracle.class_logits(theirs, TOKENS), tuned.class_logits(TOKENS, SEVEN)) <= 1e-14
    config = LoraConfig(r=2, task_type="SEQ_CLS", bias="all", modules_to_save=["wpe" if family == "GPT" else "norm"])
    theirs = oracle.trained(oracle.base(family, 3), config, TOKENS, classes=3)
    theirs.save_pretrained(tmp_path / "theirs")
    tuned = tp.load_adapter(make(family), tmp_path / "theirs")
    assert error(tuned.class_logits(TOKENS, SEVEN), oracle.class_logits(theirs, TOKENS)) <= 1e-14
    tuned.save(tmp_path / "back", format="peft")
    theirs = oracle.loaded(oracle.base(family, 3), tmp_path / "back")
    assert error(tuned.class_logits(TOKENS, SEVEN), oracle.class_logits(theirs, TOKENS)) <= 1e-14


@families
def test_a_head_alone_goes_with_the_last_norm_numerical(family, tmp_path):
    """PEFT has no type for it. The norm is the base's own, so that nothing but the head is new."""
    tuned = moved(family, tp.LinearProbe(), head=3, head_bias=False)
    tuned.save(tmp_path, format="peft")
    config = config_of(tmp_path)
    assert (config["peft_type"], config["task_type"], config["modules_to_save"]) == ("LN_TUNING", "SEQ_CLS", ["score"])
    expected = tuned.class_logits(TOKENS, SEVEN).data
    theirs = oracle.loaded(oracle.base(family, 3), tmp_path)
    assert error(oracle.class_logits(theirs, TOKENS), expected) <= 1e-14
    loaded = tp.load_adapter(make(family), tmp_path)
    assert loaded.method == FULL(("final_norm",)) and np.array_equal(loaded.class_logits(TOKENS, SEVEN).data, expected)


@pytest.mark.parametrize("reads, padding", [("newline", "<|endoftext|>"), ("end", "!")])
def test_a_probe_classifies_the_same_texts_there_numerical(reads, padding, tmp_path):
    """From texts to classes by transformers' tokenizer and classifier, which reads the last token that is not the padding:
    the newline if the padding is the end of text, or else the end of text."""
    transformers = pytest.importorskip("transformers")
    model = tp.Llama(tp.LlamaConfig(1024, 64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=48), rng=0)
    model.tokenizer = tokenizer = tp.load_pretrained().tokenizer
    texts = [f"The {thing} is {word}{' indeed' * (i % 4)}" for i, word in enumerate(("good", "bad", "slow", "quick", "dull"))
             for thing in ("lamp", "old clock", "radio")]
    task = tp.tasks.labelled([(text, text.split()[-1]) for text in texts if "indeed" not in text] +
                             [(text, "indeed") for text in texts if "indeed" in text], model, held_out=(0, 0), reads=reads)
    tuned = tp.fit_probe(model, task, head_bias=False)
    rows = [task.encode(text) for text in texts]
    expected = tuned.class_logits(*task.collate([(row, 0) for row in rows])[:2]).data
    tuned.save(tmp_path / "probe", format="peft")
    tp.save_model(tuned.detach(), tmp_path / "base")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "base", pad_token=padding, padding_side="right")
    end = tokenizer.decode([tokenizer.end_of_text])
    batch = theirs([f"{end}{text}\n{end * (reads == 'end')}" for text in texts], padding=True, return_tensors="pt",
                   add_special_tokens=False)
    assert [ids[:len(row)].tolist() for ids, row in zip(batch["input_ids"], rows, strict=True)] == [r.tolist() for r in rows]
    assert len({len(row) for row in rows}) > 2
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=len(task.classes), pad_token_id=theirs.pad_token_id)
    there = oracle.loaded(classifier, tmp_path / "probe")(**batch).logits
    assert error(there, expected) <= 1e-5


def test_norms_load_onto_a_quantized_base(tmp_path):
    tp.attach(make("Llama", np.float32), FULL(("norm1", "final_norm"))).save(tmp_path / "one", format="peft")
    tuned = tp.load_adapter(tp.quantize(make("Llama", np.float32), tp.NF4(block_size=16)), tmp_path / "one")
    assert tuned.method == FULL(("norm1", "final_norm"))
    tuned.save(tmp_path / "two", format="peft")
    assert oracle.files(tmp_path / "one") == oracle.files(tmp_path / "two")


def test_the_default_norms_are_pefts():
    theirs = constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
    assert all(set(NORM_TARGETS[kind]) == set(theirs[kind]) for kind in NORM_TARGETS)
    assert set(theirs["mistral"]) == set(theirs["llama"])


@families
@pytest.mark.parametrize("targets", [("norm1",), ("query.bias", "norm2"), ("blocks.1.up", "position_embedding", "bias"),
                                     ("*norm*", "token_embedding"), ("blocks.0.norm1.weight", "mlp.bias"), ("!blocks.0",)])
def test_targets_are_found_again(targets, family):
    model = make(family)
    try:
        trained = FULL(targets).trained(model)
    except ValueError:
        assert family != "GPT" and {"query.bias", "position_embedding", "mlp.bias"} & {*targets}
        return
    assert method_of(model, trained).trained(model) == trained


# -- what is refused ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("family, methods, says", [
    ("GPT", [LORA, tp.IA3()], "several methods, and a folder of PEFT's holds one"),
    ("GPT", [LORA, FULL(("query",))], r"attn.c_attn.weight is one tensor there, and blocks.0.attention.key"),
    ("GPT", [LORA, FULL(("query", "key", "value"))], "PEFT adapts .*c_attn or trains it, not both"),
    ("GPT", [LORA, FULL(("norm1.bias",))], "ln_1.bias, but not all of that layer"),
    ("GPT", [LORA, FULL(("query.bias", "value.bias"))], "c_attn.bias is one tensor there, and .*key.bias is not"),
    ("GPT", [tp.IA3(), FULL(("bias",))], "but not all of that layer"), ("GPT", [FULL(("up", "down"))], "no norms"),
    ("GPT", [LORA, FULL(("token_embedding",))], "is tied to the output head"), ("Llama", [FULL()], "is tied to"),
    ("Llama", [LORA, FULL(("q*",))], "adapts .*q_proj or trains it"),
    ("GPT", [tp.PromptTuning(length=2), FULL(("bias",))], "but not all of that layer"),
    ("GPT", [tp.PromptTuning(length=2), tp.PTuningV2(length=2)], "PromptTuning.* are several methods"),
    ("GPT", [tp.BottleneckAdapter(bottleneck=4)], "no counterpart of BottleneckAdapter"),
    ("GPT", [tp.BottleneckAdapter(bottleneck=4, norms=False), FULL(("norm1",))], "no counterpart of BottleneckAdapter")],
    ids=str)
def test_what_peft_cannot_hold_is_refused_and_nothing_is_written(family, methods, says, tmp_path):
    with pytest.raises(tp.MethodError, match=says):
        tp.attach(make(family), *methods).save(tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_off_is_refused_by_name(tmp_path):
    tuned = tp.attach(make("GPT"), {"style": LORA, "norms": FULL(("norm1",))})
    tuned.detach("norms")
    with pytest.raises(tp.MethodError, match="norms is switched off"): tuned.save(tmp_path / "out", format="peft")


PLACE = "base_model.model.transformer.h.0.ln_1"
WRONG = [
    ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save=.*: the output head is tied to the embedding here"),
    ({"modules_to_save": ["wte"], "ensure_weight_tying": True}, {}, "is tied"), ({"modules_to_save": [""]}, {}, "at most"),
    ({"modules_to_save": ["transformer"]}, {}, "selects no layer"), ({"modules_to_save": ["norm"]}, {}, "'norm' is no module"),
    ({"modules_to_save": ["act"]}, {}, "'act' is no module with weights"), ({"modules_to_save": "mlp"}, {}, "must be list"),
    ({"modules_to_save": ["attn"]}, {}, "selects no layer"), ({"modules_to_save": ["n.c_attn"]}, {}, "is adapted as well"),
    ({"modules_to_save": ["mlp", "c_fc"]}, {}, "selects .*mlp.c_fc, and a module that holds it"),
    ({"modules_to_save": ["ln_1", "ln_2"]}, {}, "missing 4"), ({"modules_to_save": None}, {}, "not used 4"),
    ({"modules_to_save": ["x"] * 1001}, {}, "at most 1000"), ({"modules_to_save": [3]}, {}, "a list of names"),
    ({"bias": "all"}, {}, "ln_1 is in modules_to_save, and has two biases"), ({"bias": "some"}, {}, "'none', 'all' or"),
    ({"bias": "lora_only"}, {}, "missing 2 .*c_attn.base_layer.bias"), ({"bias": True}, {}, "bias must be str"),
    ({"lora_bias": True}, {}, "missing 2 .*lora_B.bias"), ({"lora_bias": "yes"}, {}, "lora_bias must be bool"),
    ({}, {f"{PLACE}.weight": None}, "missing 1"), ({}, {f"{PLACE}.bias": np.ones(15)}, r"shape \(15,\)"),
    ({}, {f"{PLACE}.weight": np.full(16, np.inf)}, "not finite"), ({}, {f"{PLACE}.bias": np.ones(16, int)}, "expected floats"),
    ({}, {f"{PLACE}.modules_to_save.weight": np.ones(16)}, "not used 1"), ({"task_type": "SEQ_CLS"}, {}, "missing 1 .*score")]


@pytest.mark.parametrize("fields, tensors, says", WRONG, ids=str)
def test_folders_that_do_not_fit_are_refused(fields, tensors, says, tmp_path):
    moved("GPT", LORA, FULL(("norm1",))).save(tmp_path, format="peft")
    refused("GPT", tmp_path, fields, tensors, says)


@pytest.mark.parametrize("fields, tensors, says", [
    ({"target_modules": ["act"]}, {}, "selects transformer.h.0.mlp.act, which is no module with weights"),
    ({"target_modules": ["ln_1", "wte"]}, {}, "is tied"), ({"target_modules": ["q_norm"]}, {}, "selects no layer"),
    ({"target_modules": ["ln_1", "h.1"]}, {}, "and a module that holds it"), ({"bias": "all"}, {}, "bias='all' is not supp"),
    ({"target_modules": None}, {}, "missing 6"), ({"r": 3}, {}, "r=3 is not supported"),
    ({"modules_to_save": ["_1"]}, {}, "or is in modules_to_save"),
    ({}, {f"{PLACE}.ln_tuning_layers.weight": None}, "missing 1"), ({}, {f"{PLACE}.weight": np.ones(16)}, "not used 1")],
    ids=str)
def test_folders_of_norms_that_do_not_fit_are_refused(fields, tensors, says, tmp_path):
    moved("GPT", FULL(("norm1",))).save(tmp_path, format="peft")
    refused("GPT", tmp_path, fields, tensors, says)


def test_weights_without_a_place_here_are_refused(tmp_path):
    oracle.trained(oracle.base("Llama"), LoraConfig(r=2, lora_bias=True), TOKENS).save_pretrained(tmp_path / "bias")
    refused("Llama", tmp_path / "bias", {}, {}, "lora_bias=True is not supported: .*q_proj has no bias in this model")
    moved("GPT", tp.PromptTuning(length=2)).save(tmp_path / "prompt", format="peft")
    refused("GPT", tmp_path / "prompt", {"modules_to_save": ["ln_1"]}, {}, "missing 4 .base_model.transformer.h.0.ln_1")


def refused(family, folder, fields, tensors, says):
    """Loading the folder with other fields and tensors is an error that `says` why, and leaves the model alone."""
    (folder / CONFIG).write_text(json.dumps(config_of(folder) | fields), "utf-8")
    arrays = {n: np.array(a) for n, a in read_safetensors(folder / TENSORS).items()} | tensors
    write_safetensors(folder / TENSORS, {n: a for n, a in arrays.items() if a is not None})
    model = make(family)
    with pytest.raises(ValueError, match=says): tp.load_adapter(model, folder)
    assert model.attached is None


def test_strict_false_loads_the_weights_that_match(tmp_path):
    moved("GPT", LORA, FULL(("norm1",))).save(tmp_path, format="peft")
    arrays = {n: np.array(a) for n, a in read_safetensors(tmp_path / TENSORS).items() if n != f"{PLACE}.weight"}
    write_safetensors(tmp_path / TENSORS, arrays)
    with pytest.warns(UserWarning, match="missing 1 .*h.0.ln_1.weight"):
        tuned = tp.load_adapter(make("GPT"), tmp_path, strict=False)
    assert {*tuned.trained} == {"blocks.0.norm1.bias", "blocks.1.norm1.weight", "blocks.1.norm1.bias"}
