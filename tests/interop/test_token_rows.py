"""Trained rows of the embedding in PEFT's folders, both ways, alone and beside a LoRA."""
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import relative_error as error
from tests.protocol import learned, move
from tinypeft.interop import AdapterError, read_safetensors, write_safetensors

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from tests.oracles import peft_folders as oracle  # noqa: E402
from tests.oracles.peft_folders import CONFIG, SEVEN, TENSORS, TOKENS, pytestmark  # noqa: E402, F401

EVERY = ["GPT", *FAMILIES]
ROWS = tp.TrainableTokens((7, 2, 30))
EMBEDDING = "base_model.model.transformer.wte"
OURS = {"alone": [ROWS], "LoRA": [tp.LoRA(2), ROWS], "DoRA": [tp.DoRA(2), ROWS], "rows first": [ROWS, tp.LoRA(2)],
        "AdaLoRA": [tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=2, delta_t=1, targets=("query",)), ROWS],
        "norms, too": [tp.LoRA(2), ROWS, tp.FullFineTuning(("final_norm",))]}


def together(family, methods, **options):
    tuned = tp.attach(make(family), *methods, rng=0, **options)
    move(tuned, np.random.default_rng(0))
    return tuned


def cells():
    """Every kind on a tied and on an untied head; on the two other families most kinds are long tests."""
    for kind in OURS:
        for family in EVERY:
            is_long = family in ("Llama", "Gemma") and kind not in ("alone", "LoRA")
            yield pytest.param(kind, family, marks=[pytest.mark.long] * is_long)


@pytest.mark.parametrize("kind, family", list(cells()))
def test_peft_computes_what_we_compute_numerical(kind, family, tmp_path):
    tuned = together(family, OURS[kind])
    tuned.save(tmp_path / "one", format="peft")
    theirs = oracle.loaded(oracle.base(family), tmp_path / "one")
    assert error(oracle.logits(theirs, TOKENS), tuned(TOKENS)) <= 1e-13
    again = tp.load_adapter(make(family), tmp_path / "one")
    assert error(again(TOKENS), tuned(TOKENS)) <= 1e-13
    assert again.parts["TrainableTokens"].method == tp.TrainableTokens((2, 7, 30))
    again.save(tmp_path / "two", format="peft")
    assert oracle.files(tmp_path / "one") == oracle.files(tmp_path / "two")


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("config", [
    lambda name: peft.TrainableTokensConfig(token_indices=[30, 2, 7]),
    lambda name: peft.TrainableTokensConfig(token_indices=[30, 2], target_modules=[name], task_type="CAUSAL_LM"),
    lambda name: peft.LoraConfig(r=2, trainable_token_indices=[30, 2, 7]),
    lambda name: peft.LoraConfig(r=2, trainable_token_indices={name: [30, 2]}, task_type="CAUSAL_LM")],
    ids=["alone", "named", "LoRA", "LoRA, named"])
def test_rows_that_peft_trained_compute_the_same_here_numerical(config, family, tmp_path):
    theirs = oracle.trained(oracle.base(family), config("wte" if family == "GPT" else "embed_tokens"), TOKENS)
    theirs.save_pretrained(tmp_path)
    tuned = tp.load_adapter(make(family), tmp_path)
    assert error(tuned(TOKENS), oracle.logits(theirs, TOKENS)) <= 1e-13
    assert len(tuned.parts["TrainableTokens"].wrappers["token_embedding"].tokens) in (2, 3)
    assert error(tuned.merge()(TOKENS), oracle.logits(theirs, TOKENS)) <= 1e-12


def test_a_head_goes_with_a_lora_and_rows_numerical(tmp_path):
    tuned = together("GPT", [tp.LoRA(2), ROWS], head=3, head_bias=False)
    tuned.save(tmp_path, format="peft")
    theirs = oracle.loaded(oracle.base("GPT", 3), tmp_path)
    assert error(oracle.class_logits(theirs, TOKENS), tuned.class_logits(TOKENS, SEVEN)) <= 1e-13
    again = tp.load_adapter(make("GPT"), tmp_path)
    assert error(again.class_logits(TOKENS, SEVEN), tuned.class_logits(TOKENS, SEVEN)) <= 1e-13


@pytest.mark.parametrize("methods, options, says", [
    ([ROWS], {"head": 3, "head_bias": False}, "TrainableTokensConfig holds no head and no other weights; add a LoRA"),
    ([ROWS, tp.FullFineTuning(("final_norm",))], {}, "TrainableTokensConfig holds no head and no other weights"),
    ([ROWS, tp.IA3()], {}, "are several methods"), ([ROWS, tp.PromptTuning(2)], {}, "are several methods"),
    ([ROWS, tp.LoRA(2), tp.TrainableTokens((1,))], {}, "are several methods"),
    ([ROWS, tp.LoRA(2), tp.LoRA(2)], {}, "are several methods"),
    ([tp.LoRA(2), ROWS, tp.FullFineTuning(("token_embedding",))], {}, "the whole embedding or some of its rows, not both")])
def test_what_peft_cannot_hold_is_refused_and_nothing_is_written(methods, options, says, tmp_path):
    tuned = together("Qwen3", methods, **options)
    with pytest.raises(tp.MethodError, match=f"save: .*{says}"): tuned.save(tmp_path, format="peft")
    assert not list(tmp_path.iterdir())


ALONE, BESIDE = f"{EMBEDDING}.trainable_tokens_delta", f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
BAD_IDS = "must be a list of different token ids"
WRONG = [
    ("alone", {"token_indices": [2, 2, 7]}, {}, BAD_IDS), ("alone", {"token_indices": [2, 7, 37]}, {}, BAD_IDS),
    ("alone", {"token_indices": [-1, 2, 7]}, {}, BAD_IDS), ("alone", {"token_indices": [True, 2, 7]}, {}, BAD_IDS),
    ("alone", {"token_indices": [2.0, 3, 7]}, {}, BAD_IDS), ("alone", {"token_indices": []}, {}, BAD_IDS),
    ("alone", {"token_indices": "all"}, {}, "token_indices must be list"),
    ("alone", {"token_indices": [2, 7]}, {}, r"has shape \(3, 16\), expected \(2, 16\)"),
    ("alone", {"target_modules": "transformer.wpe"}, {}, "only the token embedding"),
    ("alone", {"target_modules": ["wte", "wpe"]}, {}, "only the token embedding"),
    ("alone", {"modules_to_save": ["ln_f"]}, {}, "has no such field"),
    ("alone", {"init_weights": 1}, {}, "init_weights must be bool"),
    ("alone", {"use_dora": True}, {}, "use_dora=True is not supported"),
    ("alone", {}, {ALONE: None}, "does not fit"),
    ("alone", {}, {"base_model.model.lm_head.trainable_tokens_delta": "other"}, "differ"),
    ("LoRA", {"trainable_token_indices": {"wpe": [2, 7, 30]}}, {}, "only the token embedding"),
    ("LoRA", {"trainable_token_indices": {"wte": [2, 7, 30], "lm_head": [2, 7, 30]}}, {}, "only the token embedding"),
    ("LoRA", {"trainable_token_indices": {"wte": [2, 2, 30]}}, {}, BAD_IDS),
    ("LoRA", {"trainable_token_indices": None}, {}, "does not fit"), ("LoRA", {}, {BESIDE: None}, "does not fit"),
    ("LoRA", {"modules_to_save": ["wte"]}, {}, "it holds the embedding")]


@pytest.mark.parametrize("kind, fields, tensors, says", WRONG, ids=lambda x: str(x)[:40])
def test_folders_that_do_not_fit_are_refused(kind, fields, tensors, says, tmp_path):
    together("GPT", OURS[kind]).save(tmp_path, format="peft")
    config = json.loads((tmp_path / CONFIG).read_text()) | fields
    (tmp_path / CONFIG).write_text(json.dumps(config))
    arrays = {name: np.array(a) for name, a in read_safetensors(tmp_path / TENSORS).items()}
    for name, change in tensors.items():
        array = arrays.pop(name)
        if change: arrays[name] = array + 1
    write_safetensors(tmp_path / TENSORS, arrays, {"format": "pt"})
    model = make("GPT")
    with pytest.raises(ValueError, match=says): tp.load_adapter(model, tmp_path)
    assert model.attached is None


def test_strict_false_loads_what_matches(tmp_path):
    tuned = together("GPT", OURS["LoRA"])
    tuned.save(tmp_path, format="peft")
    arrays = {name: np.array(a) for name, a in read_safetensors(tmp_path / TENSORS).items() if name != BESIDE}
    write_safetensors(tmp_path / TENSORS, arrays, {"format": "pt"})
    with pytest.raises(AdapterError): tp.load_adapter(make("GPT"), tmp_path)
    with pytest.warns(UserWarning, match="trainable_tokens_delta"): again = tp.load_adapter(make("GPT"), tmp_path, strict=False)
    assert [*again.parts] == ["LoRA"]


def test_the_script_for_pytorch_does_not_train_rows(tmp_path):
    task = tp.tasks.Answering({"train": [("ab", "cd")]}, tp.load_tokenizer(), 40)
    with pytest.raises(tp.MethodError, match="does not train rows of the embedding"):
        tp.export_training(learned(make("GPT"), ROWS), task, tmp_path, 3)
