"""The short form of verbs.py: walks of random verbs, interrupts at some lines, and the proof that walks find faults."""
import sys

import pytest

import tinypeft.peft.combine  # noqa: F401
from tests.stress import verbs
from tinypeft.peft import attachment, switching
from tinypeft.peft import merge as merging
from tinypeft.peft.part import Part


@pytest.mark.parametrize("seed", range(4))
def test_random_verbs_keep_base_parts_and_function(seed):
    verbs.walk(1000 + seed, 100)


@pytest.mark.parametrize("verb", verbs.INTERRUPTED)
def test_an_interrupt_at_some_lines_of_a_verb_does_no_harm(verb):
    said = []
    done, harmed = verbs.interrupt(verb, stride=1009, first=7, say=said.append)
    assert done > 0 and not harmed, said


merge_in_place = merging.merge_in_place


def merge_and_drop(tuned, names, staying):
    return merge_in_place(tuned, names, [name for name in staying if tuned.parts[name].on])


FAULTS = {
    "a file turns all on": (switching.Switched, "off", property(lambda self: []), "saved and loaded", 0),
    "two of a kind are on": (switching, "check_fit", lambda *_: None, "exclude each other", 0),
    "saving drops gradients": (attachment, "restore", lambda gradients: None, "gradients are lost", 3),
    "merging drops what is off": (merging, "merge_in_place", merge_and_drop, "merged in place has other parts", 1),
    "what stays forgets a merge": (Part, "merge_learned", lambda self, path, wrapper: None, "merged", 49),
    "a mode is not handed on": (Part, "set_mode", lambda self, training: None, "function", 1),
    "combine drops a part": (sys.modules["tinypeft.peft.combine"], "check_low_rank", lambda tuned: None, "combined", 0)}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_walks_find_a_planted_fault(fault, monkeypatch):
    """Not every walk does; the one of the seed beside the fault must. A new verb changes what every seed draws."""
    owner, name, wrong, words, seed = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(verbs.Broken, match=words): verbs.walk(seed, 100)
