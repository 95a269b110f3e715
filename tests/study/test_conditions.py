"""A condition in full: every field, also those that nobody gave, so that a changed default is another condition."""
import dataclasses

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.engine import optim
from tinypeft.study.conditions import changed, described, in_full
from tinypeft.study.tuning import Arm

from .toy import TOY, Length


def test_every_field_stands_there():
    assert described(Length(2)) == {"Length": {"n": 2, "wide": False}}
    assert described((tp.NF4(), None, "a", 1.5)) == [{"NF4": {"block_size": 64, "double_quant": False}}, None, "a", 1.5]
    assert described({"x": Length(1)}) == {"x": {"Length": {"n": 1, "wide": False}}}
    of_galore = described(optim.GaLore)["GaLore"]        # a class: what it is made with by default
    assert of_galore["betas"] == [0.9, 0.999] and of_galore["every"] == 200 and "parameters" not in of_galore
    with pytest.raises(TypeError, match="plain values and dataclasses of them, got array"): described(np.ones(2))


@pytest.mark.parametrize("value", [tp.LoRA(), tp.AdaLoRA(), tp.PrefixTuning(), tp.GPTQ(), tp.AWQ(), tp.LLMQAT()])
def test_a_method_and_a_scheme_name_all_that_they_declare(value):
    (fields,) = described(value).values()
    assert {f.name for f in dataclasses.fields(value)} <= fields.keys()


def test_a_methods_own_rate_stands_there_where_it_is_used():
    rate = tp.LoRA().learning_rate
    assert described(tp.LoRA())["LoRA"]["learning_rate"] == rate
    assert described(Arm(tp.LoRA()))["Arm"]["method"]["LoRA"]["learning_rate"] == rate
    assert "learning_rate" not in described(Arm(tp.LoRA(), 0.5))["Arm"]["method"]["LoRA"]


def test_what_changed_is_told_by_its_place():
    record = in_full(TOY) | {"runs": {"a": {}, "bb": {}, "gone": {}}}
    assert changed(TOY, record) == {}
    other = dataclasses.replace(TOY, conditions={"a": Length(1, wide=True), "bb": Length(2), "new": Length(3)})
    assert changed(other, record) == {"a": ["its value.Length.wide: false → true"]}
    slower = dataclasses.replace(TOY, settings={"size": 2.0, "steps": [1, 2]})
    assert changed(slower, record) == dict.fromkeys(["a", "bb"], ["settings.steps: nothing → [1, 2]"])
    del record["conditions"]["bb"]["Length"]["wide"]     # a field that came later
    assert changed(TOY, record) == {"bb": ["its value.Length.wide: nothing → false"]}
