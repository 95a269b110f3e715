"""facts.py: what there is, and what needs a look, with the numbers of rows."""
import pytest

import tinypeft as tp
from tinypeft.text.tasks.facts import class_counts, near_names
from tinypeft.text.tasks.own_files import table_of

MESSY = [("It works", "good"), ("It  WORKS", "bad"), ("Lovely lamp", "Good"), ("NaN", "good"), ("Dull coat", "bad"),
         ("dull coat ", "bad"), ("Broken phone", "bad"), ("Nice chair", "good"), ("Great clock", "Good"),
         ("Slow train", "none"), ("Late train", "none"), ("No train", "none"), ("Bright table", "Good"), ("long " * 40, "bad")]


def test_each_fact_names_a_row():
    task = tp.tasks.labelled(MESSY, tp.load_pretrained(), context=24)
    assert task.notes[0] == "rows of each class: bad 4, good 3, Good 3, none 3"
    assert task.notes[2:] == (
        "look: 1 row left out as repeating another: item 6",
        "look: 1 text with more than one label, such as 'it works' in items 1 ('good') and 2 ('bad'); "
        "keep one label of each",
        "look: classes with nearly the same name: 'good' (3 rows, first in item 1), 'Good' (3 rows, first in item 3)",
        "look: NaN, none as a value of 'text' in item 4 and 'label' in items 10, 11, 12; it is taken as a word",
        "look: 1 row cut to 24 tokens, the context: item 14")


def test_of_what_is_fine_one_line_is_said():
    task = tp.tasks.labelled([(f"{i} x", "ab"[i % 2]) for i in range(12)], tp.load_pretrained())
    assert len(task.notes) == 3 and task.notes[2].startswith("nothing needs a look: no repeated row, text with two labels, ")
    pairs = tp.tasks.pairs([(f"Question {i}", f"Answer {i}") for i in range(12)], tp.load_pretrained())
    assert len(pairs.notes) == 2 and pairs.notes[1].startswith("nothing needs a look: no repeated row, prompt with two answers")


def test_prompts_with_two_answers():
    rows = [("Why?", "Because."), ("why? ", "For no reason."), ("How?", "null")]
    rows += [(f"Question {i}", f"A {i}") for i in range(9)]
    assert tp.tasks.pairs(rows, tp.load_pretrained()).notes[1:] == (
        "look: 1 prompt with more than one answer, such as 'why?' in items 1 ('Because.') and 2 ('For no reason.'); "
        "keep one answer of each",
        "look: null as a value of 'answer' in item 3; it is taken as a word")


@pytest.mark.parametrize("names, alike", [
    (("pos.", "pos"), True), (("not spam", "not-spam"), True), (("caf\u00e9", "cafe\u0301"), True), (("GOOD", "good"), True),
    (("1", "-1"), False), (("C", "C++"), False), (("+", "-"), False), (("a", "b"), False), (("", "."), False)])
def test_which_names_are_nearly_equal(names, alike):
    table = table_of([("a text", name) for name in names], ("text", "label"), "utf-8", None)
    assert bool(near_names(table, names)) == alike


def test_many_classes_are_not_all_listed():
    said = class_counts([f"c{i:02}" for i in range(30) for _ in range(i + 1)])
    assert said.startswith("rows of each class: c29 30, c28 29, ")
    assert said.endswith("c18 19 and 18 smaller classes, the smallest 1")
