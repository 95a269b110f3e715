"""The table "PEFT's names" of peft/README.md: names exist on both sides, and every option of PEFT's classes is in it."""
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import tinypeft as tp
from tests.methods import ROWS as OF_METHODS

peft = pytest.importorskip("peft")
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS  # noqa: E402

PAGE = (Path(tp.__file__).parent / "peft" / "README.md").read_text("utf-8")
SECTION = PAGE.partition("## PEFT's names")[2].partition("\n## ")[0]
ROWS = [[re.findall(r"`([^`]+)`", cell) for cell in line.split(" | ")[:2]]
        for line in SECTION.splitlines() if line.startswith("| `")]
COMMON = {field.name for field in dataclasses.fields(peft.PeftConfig)}
OPTIONS = {config.__name__: {field.name for field in dataclasses.fields(config)} - COMMON for config in CONFIGS.values()}
SIZES = {"token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "modules_to_save"}  # of virtual tokens


def options(thing):
    """The names that `thing` takes: a class of options or a function."""
    if dataclasses.is_dataclass(thing): return {field.name for field in dataclasses.fields(thing)}
    return {*inspect.signature(thing).parameters}


def found(root, path):
    """The object at a dotted path of names."""
    for name in path.split("."): root = getattr(root, name)
    return root


@pytest.mark.parametrize("theirs, ours", ROWS, ids=lambda names: " ".join(names[:2]))
def test_names_of_a_row_exist_on_both_sides(theirs, ours):
    assert set(theirs[1:]) <= OPTIONS.get(theirs[0], set()) and callable(found(peft, theirs[0]))
    if ours: assert callable(found(tp, ours[0])) and set(ours[1:]) <= (options(found(tp, ours[0])) if ours[1:] else set())


def test_the_table_has_every_option_of_the_classes_in_it():
    listed = {}
    for (name, *names), _ in ROWS:
        if name in OPTIONS: listed.setdefault(name, []).extend(names)
    assert len(listed) >= 18 and all(len(names) == len(set(names)) for names in listed.values())
    lora = OPTIONS["LoraConfig"]
    for name, names in listed.items():
        inherited = lora if name == "AdaLoraConfig" else SIZES if "Prefix" in name or "Encoder" in name else set()
        assert set(names) == OPTIONS[name] - inherited, name


def test_every_configuration_of_peft_is_in_the_table_or_has_no_counterpart():
    in_table = {theirs[0] for theirs, _ in ROWS if theirs[0] in OPTIONS}
    sentence = SECTION.partition("Nothing here corresponds to PEFT's")[2].partition(".")[0]
    missing = set(re.findall(r"`(\w+)`", sentence))
    assert not in_table & missing and in_table | missing == set(OPTIONS)


def test_what_has_no_counterpart_is_a_method_and_in_no_row():
    """And what `tests/methods.py` has PEFT's form of is in a row."""
    sentence = SECTION.partition("PEFT has no counterpart of ")[2].partition(".")[0]
    without, in_rows = set(re.findall(r"`(\w+)`", sentence)), {names[0] for _, names in ROWS if names}
    assert without and not without & in_rows
    in_peft = {type(row.small).__name__ for row in OF_METHODS.values() if row.peft}
    assert in_peft <= in_rows, "tests/methods.py has PEFT's form of them; give them rows in tinypeft/peft/README.md"
    for name in without: assert issubclass(getattr(tp, name, tp.peft.KNOWN.get(name)), tp.peft.Method)


def test_defaults_that_the_table_names():
    assert peft.LoraConfig().lora_alpha == 8 and tp.LoRA().alpha == 16
    assert peft.PromptTuningConfig().prompt_tuning_init == "RANDOM" and tp.PromptTuning().init == "vocabulary"
    assert tp.IA3().targets == ("key", "value", "down") and peft.PromptEncoderConfig().encoder_num_layers == 2
