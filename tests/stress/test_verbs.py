"""The short form of verbs.py: walks of random verbs, interrupts at some lines, and the proof that walks find faults."""
import sys

import pytest

import tinypeft.peft.combine  # noqa: F401
from tests.stress import verbs
from tinypeft.engine.nn import Parameter
from tinypeft.peft import merge as merging
from tinypeft.peft import model, switching
from tinypeft.peft.part import Part


@pytest.mark.parametrize("seed", range(4))
def test_random_verbs_keep_bases_parts_and_functions(seed):
    verbs.walk(1000 + seed, 100)


@pytest.mark.parametrize("verb", verbs.INTERRUPTED)
def test_an_interrupt_at_some_lines_of_a_verb_leaves_the_state_before_or_after(verb):
    said = []
    done, harmed = verbs.interrupt(verb, stride=311, first=1, say=said.append)
    assert done > 0 and not harmed, said


merge_in_place, merged_layer = merging.merge_in_place, merging.merged_layer


def merge_and_drop(tuned, parts, staying):
    return merge_in_place(tuned, parts, {name: part for name, part in staying.items() if part.on})


def merged_alone(layer, path, wrapper, staying):
    return merged_layer(layer, path, wrapper, [])


def without_gradients(self, dtype, cast=Part.cast):
    cast(self, dtype)
    for p in [*self.added(), *self.trained.values()]: p.grad = None


def written_in_place(self, array):
    self.data[...] = array


FAULTS = {
    "a file turns all on": (switching.Switched, "off", property(lambda self: []), "saved and loaded", 0),
    "two of a kind are on": (switching, "check_fit", lambda *_: None, "exclude each other", 0),
    "switching drops gradients": (Part, "cast", without_gradients, "gradients are lost", 0),
    "merging drops what is off": (merging, "merge_in_place", merge_and_drop, "merged in place has other parts", 1),
    "what stays forgets a merge": (merging, "merged_layer", merged_alone, "merged is another function", 14),
    "a merge takes the base as it is": (merging, "are_twins", lambda a, b: True, "merged in place is another function", 1),
    "a mode is not handed on": (switching, "modules_of", lambda parts: [], "the mode is another", 1),
    "a twin is written": (Parameter, "writable", lambda self: self.data, "twin has other numbers", 1),
    "an array is loaded in place": (Parameter, "assign", written_in_place, "twin has other numbers", 17),
    "the twin is the base": (model, "frozen_twin", lambda base: base, "the base is another", 0),
    "a switch writes the model that was": (switching, "copy_modules", lambda value, made: value, "the function is another", 1),
    "combine drops a part": (sys.modules["tinypeft.peft.combine"], "check_low_rank", lambda tuned: None, "combined", 0)}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_walks_find_a_planted_fault(fault, monkeypatch):
    """Not every walk does; the one of the seed beside the fault must. A new verb changes what every seed draws."""
    owner, name, wrong, words, seed = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(verbs.Broken, match=words): verbs.walk(seed, 100)
