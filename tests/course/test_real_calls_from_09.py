"""The libraries' calls with which lessons 09 and later end run as they stand there, where the libraries are installed."""
import re

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import percent
from tinypeft.course.build import prose
from tinypeft.course.exercises import find
from tinypeft.interop import write_gguf

SECTION = re.compile(r"^## The real call\n(.*?)(?=^## |\Z)", re.M | re.S)
FENCE = re.compile(r"^```(python|bash)\n(.*?)^```", re.M | re.S)


def calls(path):
    """(language, code) of each call of a lesson."""
    section = SECTION.search(prose(path))
    return FENCE.findall(section[1]) if section else []


CALLS = {path.stem: calls(path) for path in percent.sources() if path.stem >= "09" and calls(path)}
READS_A_FILE = "18_k_quants"                              # its call reads a GGUF file, and leaves no model
ELSEWHERE = {"gptqmodel", "llama-quantize", "loftq"}     # a graphics card, or a program of llama.cpp's
PYTHON = [(stem, code) for stem, found in CALLS.items() for language, code in found
          if language == "python" and not any(name in code for name in ELSEWHERE)]
(READS,) = (code for stem, code in PYTHON if stem == READS_A_FILE)
LEAVE_A_MODEL = [(stem, code) for stem, code in PYTHON if stem != READS_A_FILE]


def import_or_skip(code):
    """Skip the test if a library that these lines import is not installed."""
    for library in re.findall(r"^(?:from|import) (\w+)", code, re.M): pytest.importorskip(library)


def classes(model):
    """The names of the classes of a model's layers."""
    return {type(layer).__name__ for layer in model.modules()}


def ranks(model, adapter):
    """The ranks of the LoRAs of that name."""
    return {len(p) for name, p in model.named_parameters() if name.endswith(f".lora_A.{adapter}.weight")}


DONE = {                                                  # lesson → has the call done what the lesson says?
    "09_dylora": lambda model: ranks(model, "default") == {4} and ranks(model, "cut") == {2},
    "11_outliers": lambda model: "Linear8bitLt" in classes(model),
    "13_nf4_qlora": lambda model: "Linear4bit" in classes(model) and ranks(model, "default") == {16},
    "13b_merging_loftq": lambda model: not ranks(model, "default") and "Linear4bit" not in classes(model),
    "14_qat": lambda model: "FakeQuantizedLinear" in classes(model),
    "17_children": lambda model: any(name in str(classes(model)) for name in ("DoraLinearLayer", "OFTRotationModule"))}


def test_a_command_line_is_a_program_of_llama_cpps():
    lines = [code for found in CALLS.values() for language, code in found if language == "bash"]
    assert lines and all("llama-quantize" in code for code in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama, as transformers stores it, with a tokenizer of a few words, and a LoRA that has changed it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers, peft = pytest.importorskip("tokenizers"), pytest.importorskip("peft")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("real")
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    base.save_pretrained(folder / "folder-of-the-model")
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(base, lora).save_pretrained(folder / "folder-of-the-adapter")
    words = {word: i for i, word in enumerate(["<s>", "</s>", *"some text to calibrate on and more of it".split()])}
    of_words = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    of_words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=of_words, bos_token="<s>", eos_token="</s>",
                                         pad_token="</s>").save_pretrained(folder / "folder-of-the-model")
    return folder


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stem, code", LEAVE_A_MODEL, ids=[stem for stem, _ in LEAVE_A_MODEL])
def test_a_call_of_python_libraries_runs(stem, code, folder, monkeypatch):
    """What it leaves in `model` computes, and has a gradient where something is to be trained."""
    import_or_skip(code)
    import torch
    monkeypatch.chdir(folder)
    namespace = {}
    exec(compile(code, stem, "exec"), namespace)
    model = namespace["model"]
    logits = model(input_ids=torch.arange(12)[None]).logits
    assert logits.shape == (1, 12, 128) and torch.isfinite(logits).all()
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained:
        logits.float().logsumexp(-1).sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    if stem in DONE: assert DONE[stem](model), f"{stem}: the call runs, and does not do what the lesson says"


def test_a_call_that_reads_a_file_finds_what_was_written(tmp_path, monkeypatch):
    """The mixture of llama.cpp's rule, in its own types, and every weight as the package decodes it. The lesson's own
    function names the type of each tensor."""
    import_or_skip(READS)
    model = tp.quantize(tp.load_pretrained(), tp.GGUF("Q4_K_M"))
    write_gguf(tmp_path / "base.gguf", model)
    monkeypatch.chdir(tmp_path)
    namespace = {"k_quants_which": find("k_quants.which").reference}
    exec(compile(READS, READS_A_FILE, "exec"), namespace)
    assert namespace["named"] == {name: kind for name, kind in namespace["kinds"].items() if kind != "F32"}
    down = {i: f"blk.{i}.ffn_down.weight" for i in range(model.config.n_layers)}
    assert {namespace["kinds"][name] for name in down.values()} == {"Q4_K", "Q6_K"}
    for i, name in down.items():
        assert np.array_equal(namespace["weights"][name], model.get(f"blocks.{i}.mlp.down").dense_weight())


def test_every_lesson_from_09_on_ends_with_a_real_call():
    missing = [path.stem for path in percent.sources() if path.stem >= "09" and path.stem not in CALLS]
    assert missing == []


@pytest.mark.parametrize("stem, code", LEAVE_A_MODEL, ids=[stem for stem, _ in LEAVE_A_MODEL])
def test_a_call_is_python_and_needs_no_network(stem, code):
    compile(code, stem, "exec")
    named = re.findall(r'(?:from_pretrained|load)\((?:[\w.()]+,)?\s*"([^"]+)"', code)
    assert {*named} <= {"folder-of-the-model", "folder-of-the-adapter"} and named
