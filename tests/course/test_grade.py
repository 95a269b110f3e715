"""Grading: fresh data, a process of its own, and nothing that one submission does reaches another or the grader."""
import csv
import json

import nbformat
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import grade as g
from tinypeft.course import percent
from tinypeft.course.assign import assign
from tinypeft.course.wire import Worker, decode, encode

IMPORTS = "import os\nimport numpy as np\nimport tinypeft as tp\nfrom tinypeft import functional as F"
SOLVED = [cell.source for cell in percent.read(percent.sources("07")[0]) if cell.exercise]
SUBMISSIONS = {
    "solver": [IMPORTS, *SOLVED],
    "stub": [IMPORTS, "def lora_forward(x, W, A, B, alpha):\n    raise NotImplementedError('later')"],
    "loops": [IMPORTS, *SOLVED[:1], "while True: pass"],
    "exits": [IMPORTS, *SOLVED, "os._exit(0)"],
    "stumbles": ["1 / 0", "def broken(:", IMPORTS, *SOLVED],
    "floods": [IMPORTS, "print('x' * 10**7)", *SOLVED],
    "talks": [IMPORTS, "print('lora.forward: right. 3 points.')", "import sys; sys.stdout.write('{}')"],
    "tampers": [IMPORTS, "tp.check = lambda *a, **k: True\nimport tinypeft.course.check as c\nc.judge = lambda *a: True\n"
                "def lora_forward(x, W, A, B, alpha): return x @ W.T\nassert tp.check('lora.forward', lora_forward)"],
    "borrows": [IMPORTS, "from tinypeft.course.exercises.lora import forward as lora_forward"],
    "dies_when_called": [IMPORTS, "def lora_forward(x, W, A, B, alpha): os._exit(1)"],
    "lies": [IMPORTS, "class Odd:\n    def __eq__(self, other): return True\ndef lora_merge(W, A, B, alpha): return Odd()"],
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("submissions")
    for name, cells in SUBMISSIONS.items():
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        nbformat.write(made, folder / f"{name}.ipynb")
    (folder / "repository.py").write_text("\n".join([IMPORTS, *SOLVED]), encoding="utf-8")
    (folder / "nonsense.ipynb").write_text("{", encoding="utf-8")
    return {r.student: r for r in g.grade([folder], lesson="07", seed=5, seconds=15)}


@pytest.mark.parametrize("name, points, says", [
    ("solver", 12, "right"), ("repository", 12, "right"), ("stub", 0, "not solved yet: later"), ("loops", 0, "never ends"),
    ("exits", 0, "process ended"), ("stumbles", 12, "ZeroDivisionError"), ("floods", 12, "right"), ("talks", 0, "not defined"),
    ("tampers", 0, "other numbers"), ("borrows", 0, "the package's own function"), ("dies_when_called", 0, "the process ended"),
    ("lies", 0, "Odd"), ("nonsense", 0, "running the cells")])
def test_points(graded, name, points, says):
    assert graded[name].points == points and graded[name].of == 12
    assert says in repr(graded[name])


@pytest.mark.parametrize("path", ["ada.ipynb", "ada/07_lora.ipynb", "ada/07_lora/07_lora.ipynb", "ada/07/07_lora.ipynb"])
def test_whose_it_is(path, tmp_path):
    assert g.student(tmp_path / path) == "ada"


def test_csv_and_json(graded, tmp_path):
    g.write_csv([*graded.values(), g.Grade("=cmd()", "f")], tmp_path / "grades.csv")
    rows = list(csv.DictReader(open(tmp_path / "grades.csv", encoding="utf-8")))
    assert {r["student"]: r["points"] for r in rows}["solver"] == "12"
    assert rows[-1]["student"] == "'=cmd()"                          # not a spreadsheet's formula
    records = json.loads(g.as_json(graded.values()))
    assert {r["student"]: r["points"] for r in records} == {name: r.points for name, r in graded.items()}


def test_the_lesson_is_found_by_name_or_by_what_is_checked(tmp_path):
    (tmp_path / "ada.py").write_text("def lora_forward(x): pass", encoding="utf-8")
    (tmp_path / "bob.ipynb").write_text(json.dumps({"cells": [{"source": ['tp.check("dylora.search", f)']}]}), encoding="utf-8")
    assert g.lesson_of(tmp_path / "ada.py") == "07_lora" and g.lesson_of(tmp_path / "bob.ipynb") == "09_dylora"
    (tmp_path / "eve.py").write_text("x = 1", encoding="utf-8")
    assert "--lesson" in g.grade([tmp_path / "eve.py"])[0].problem
    with pytest.raises(ValueError, match="no notebook"): g.submissions([tmp_path / "nothing"])


@pytest.mark.parametrize("value", [
    1, 2.5, float("inf"), "text", None, True, (1, [2, (3,)]), {"a": 1, 2: (3.0,)}, np.arange(6.0).reshape(2, 3),
    np.float32(1.5),
    np.array([True]), tp.Tensor(np.ones((2, 1), np.float32), requires_grad=True), tp.functional.gelu])
def test_values_survive_the_wire(value):
    there = decode(encode(value))
    assert type(there) is type(value)
    a, b = (x.data if isinstance(x, tp.Tensor) else x for x in (value, there))
    assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
    if isinstance(value, tp.Tensor): assert there.requires_grad
    if isinstance(value, np.ndarray): assert there.dtype == value.dtype


def test_the_wire_runs_nothing(tmp_path):
    for text in ('[{"function": ["os", "system"]}, ""]', "[]", "no", '[{"function": ["tinypeft.cli", "no_such"]}, ""]'):
        with pytest.raises(ValueError): decode(text)
    (tmp_path / "f.py").write_text("def f(x, y=1):\n    return {x: [y]}\ndef g(x): return object()", encoding="utf-8")
    with Worker(tmp_path / "f.py", tmp_path, 20) as worker:
        call = worker.remote("f")
        assert str(call.signature) == "(x, y=None)" and call((3,)).value == {3: [1]}
        assert "object object" in repr(worker.remote("g")((1,)).value) and worker.remote("h") is None


def test_what_is_handed_out(tmp_path):
    notebook, readme = assign("7", tmp_path)
    text = readme.read_text(encoding="utf-8")
    assert "`lora_forward`" in text and "| | together | 12 |" in text and "Rubric" in text
    for which in percent.sources():                                  # every lesson has an open question with a rubric
        readme = assign(which.stem, tmp_path / which.stem)[1].read_text(encoding="utf-8")
        assert "ubric" in readme and "open" in readme.lower(), which
    assert "BEGIN SOLUTION" not in notebook.read_text(encoding="utf-8")
    (source,) = assign("7", tmp_path / "course", nbgrader=True)
    assert source.parts[-3:] == ("source", "07_lora", "07_lora.ipynb")
    assert "BEGIN SOLUTION" in source.read_text(encoding="utf-8")
