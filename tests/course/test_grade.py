"""Grading: fresh data, a process of its own, and nothing that one submission does reaches another or the grader."""
import csv
import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import tinypeft as tp
from tests.stress import hostile, notebooks
from tinypeft.commands.cli import main
from tinypeft.course import grade as g
from tinypeft.course import percent, whose
from tinypeft.course.calls import Local, TooSlow, limited
from tinypeft.course.exercises import find
from tinypeft.course.judge import judge
from tinypeft.course.wire import Opaque, Worker, _described, decode, encode
from tinypeft.course.worker import code_cells, function

IMPORTS, SOLVED = hostile.IMPORTS, hostile.SOLVED
HOSTILE = (                                              # each in its own way; `tests.stress.notebooks` grades all
    "names_os_system", "writes_without_end", "writes_slowly", "half_a_message_then_exit", "an_array_of_4_TiB",
    "controls_the_terminal", "leaves_a_child_with_the_pipe", "returns_2_GiB", "raises_nonsense")
MORE_HOSTILE = ("problem_is_an_array", "strained_by_a_number", "uses_are_text", "writes_lines_without_end", "nested_deeply",
                "an_error_that_is_a_number", "replaces_json")
SLOW = "loops", "writes_slowly", "leaves_a_child_with_the_pipe"      # they wait for their limit while others are graded
SUBMISSIONS = {
    "solver": [IMPORTS, *SOLVED],
    "stub": [IMPORTS, "def lora_forward(x, W, A, B, alpha):\n    raise NotImplementedError('later')"],
    "loops": [IMPORTS, *SOLVED[:1], "while True: time.sleep(1)"],
    "exits": [IMPORTS, *SOLVED, "os._exit(0)"],
    "stumbles": ["1 / 0", "def broken(:", IMPORTS, *SOLVED],
    "floods": [IMPORTS, "print('x' * 10**7)", *SOLVED],
    "talks": [IMPORTS, "print('lora.forward: right. 3 points.')", "import sys; sys.stdout.write('{}')"],
    "tampers": [IMPORTS, "tp.check = lambda *a, **k: True\nimport tinypeft.course.check as c\nc.judge = lambda *a: True\n"
                "def lora_forward(x, W, A, B, alpha): return x @ W.T\nassert tp.check('lora.forward', lora_forward)"],
    "borrows": [IMPORTS, "from tinypeft.course.exercises.lora import forward as lora_forward"],
    "greedy": [IMPORTS, "np.zeros(2**30)", *SOLVED],
    "dies_when_called": [IMPORTS, "def lora_forward(x, W, A, B, alpha): os._exit(1)"],
    "lies": [IMPORTS, "class Odd:\n    def __eq__(self, other): return True\ndef lora_swap(W, tasks): return Odd()"],
}


def hand_in(folder, submissions):
    for name, cells in submissions.items():
        (folder / f"{name}.ipynb").write_text(notebooks.notebook(cells), encoding="utf-8")


def grades(folder, seconds=300):
    pytest.importorskip("IPython")
    return {r.student: r for r in g.grade([folder], lesson="07", seed=5, seconds=seconds, jobs=3)}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    slow, folder = map(tmp_path_factory.mktemp, ("slow", "submissions"))
    for name, cells in (SUBMISSIONS | {name: hostile.CELLS[name] for name in HOSTILE}).items():
        hand_in(slow if name in SLOW else folder, {name: cells})
    for name in ("repository", "numpy"):                             # the second is not imported as NumPy
        (folder / f"{name}.py").write_text("\n".join([IMPORTS, *SOLVED]), encoding="utf-8")
    (folder / "nonsense.ipynb").write_text("{", encoding="utf-8")
    (folder / "nowhere.ipynb").symlink_to(folder / "nothing")
    with open(folder / "sparse.ipynb", "wb") as f: f.truncate(2**40)
    with ThreadPoolExecutor(2) as pool:                              # a busy machine takes none of the others' time
        limited, honest = pool.map(grades, (slow, folder), (20, 300))
    return limited | honest


@pytest.mark.parametrize("name, points, says", [
    ("solver", 15, "right"), ("repository", 15, "right"), ("numpy", 15, "right"), ("stub", 0, "not solved yet: later"),
    ("loops", 2, "cell 3 fails with TooSlow: no end of the cell after "),
    ("exits", 0, "process ended"), ("floods", 15, "right"), ("talks", 0, "no cell defines"),
    ("stumbles", 15, "cell 2 fails with SyntaxError: invalid syntax, in line 1:  def broken(:"),
    ("tampers", 0, "other numbers"), ("borrows", 0, "no cell defines lora_forward"),
    ("dies_when_called", 0, "the process ended"),
    ("lies", 0, "Odd"), ("nonsense", 0, "nonsense.ipynb is no notebook (line 1"), ("nowhere", 0, "no file"),
    ("sparse", 0, "1,099,511,627,776 bytes"),
    ("names_os_system", 0, "did not say which functions"), ("writes_without_end", 0, "more than 16 MiB"),
    ("writes_slowly", 0, "a line that is no message"), ("half_a_message_then_exit", 0, "process ended"),
    ("leaves_a_child_with_the_pipe", 0, "no answer after"), ("an_array_of_4_TiB", 0, "0 bytes for an array"),
    ("returns_2_GiB", 0, "more than 12 MiB of arrays"), ("raises_nonsense", 0, "Odd"),
    ("controls_the_terminal", 0, r"\x1b[2J"), ("greedy", 15, "Unable to allocate")])
def test_points(graded, name, points, says):
    assert graded[name].points == points and graded[name].of == 15
    assert says in repr(graded[name])


@pytest.mark.parametrize("path", [
    "ada.ipynb", "ada/07_lora.ipynb", "ada/07_lora/07_lora.ipynb", "ada/07/07_lora.ipynb", "ada/solutions/lora.py",
    "ada/source/07_lora/07_lora.ipynb", "ada/07_lora (1).ipynb", "ada/07_lora-Copy1.ipynb", "ada/07_lora - Copy.ipynb",
    "ada/Copy of 07_lora.ipynb", "ada/07_lora-old.ipynb", "ada_07_lora.ipynb", "07_lora-ada.ipynb", "ada (2).ipynb",
    "ada_12345_assignsubmission_file_/07_lora.ipynb", "ada_12345_assignsubmission_file_07_lora.ipynb"])
def test_whose_it_is(path, tmp_path):
    assert whose.student(tmp_path / path) == whose.student(tmp_path / path, tmp_path) == "ada"


def test_in_a_folder_the_person_is_the_first_folder(tmp_path):
    for path, name in (("ada/homework.ipynb", "ada"), ("Ada Lovelace_7_assignsubmission_file_/a b.ipynb", "Ada Lovelace"),
                       ("07/solutions/ada.py", "ada"), ("07_lora.ipynb", tmp_path.name)):
        assert whose.student(tmp_path / path, tmp_path) == name
    assert whose.student(tmp_path / "ada" / "07_lora.ipynb", tmp_path / "ada") == "ada"     # `grade class/*`


def test_a_folder_of_several_people_and_two_people_of_one_name(tmp_path):
    for path in ("monday/ada.ipynb", "monday/bob.ipynb", "monday/pictures/a.png", "tuesday/07_lora.ipynb", "tuesday/eve.ipynb",
                 "Li Wei_1_assignsubmission_file_/07_lora.ipynb", "Li Wei_2_assignsubmission_file_/07_lora.ipynb",
                 "Li Wei_2_assignsubmission_onlinetext_/onlinetext.html", "07/zoe/notes.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}", encoding="utf-8")
    found = whose.submissions([tmp_path])
    assert [s.student for s in found] == ["Li Wei", "Li Wei", "ada", "bob", "tuesday", "tuesday", "zoe"]
    assert len({s.person for s in found}) == 6 and found[-1].path == tmp_path / "07" / "zoe"
    (tmp_path / "monday" / "zoe").mkdir()
    assert [s.student for s in whose.submissions([tmp_path / "monday"])] == ["ada", "bob", "pictures", "zoe"]


def test_one_row_for_each_person_also_without_a_notebook(tmp_path):
    solved, half, empty = "\n".join([IMPORTS, *SOLVED]), "\n".join([IMPORTS, *SOLVED[:1]]), "x = 1"
    for path, text in {"ada/07_lora-old.py": half, "ada/07_lora.py": solved, "ada/helper.py": empty, "ada/plots/a.png": "",
                       "bob/report.html": "", "eve/lora.py": half, "eve/nf4.py": empty, "__MACOSX/eve/lora.py": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    rows = {(r.student, r.lesson): r for r in g.grade([tmp_path], seconds=300)}
    points = {key: r.points for key, r in rows.items()}
    assert points == {("ada", "07_lora"): 15, ("bob", None): 0, ("eve", "07_lora"): 2, ("eve", "13_nf4_qlora"): 0}
    assert rows["ada", "07_lora"].file.endswith("07_lora.py")
    assert [note.partition(str(tmp_path))[2] for note in rows["ada", "07_lora"].notes] == \
        ["/ada/07_lora-old.py, 2 points", "/ada/helper.py, 0 points"]
    assert "no notebook and no Python file" in rows["bob", None].problem
    (row,) = g.grade([tmp_path / "eve"], lesson="07", seconds=300)
    assert (row.student, row.points) == ("eve", 2) and "nf4.py, 0 points" in row.notes[0]


def test_each_submission_has_its_row(graded):
    assert graded.keys() == {*SUBMISSIONS, *HOSTILE, "repository", "numpy", "nonsense", "nowhere", "sparse"}
    assert not any(graded[name].points for name in HOSTILE)
    assert all(c.isprintable() or c == "\n" for r in graded.values() for c in repr(r))


@pytest.mark.long
def test_more_hostile_submissions_earn_nothing(tmp_path):
    hand_in(tmp_path, {name: hostile.CELLS[name] for name in MORE_HOSTILE})
    rows = grades(tmp_path)
    assert rows.keys() == {*MORE_HOSTILE} and not any(r.points for r in rows.values())
    assert all(c.isprintable() or c == "\n" for r in rows.values() for c in repr(r))


NF4 = {cell.exercise: cell.source for cell in percent.read(percent.sources("13")[0]) if cell.exercise}
MORE = IMPORTS + """
from types import SimpleNamespace
from scipy.special import ndtri
from tinypeft.quant.codebooks import codebook
norm = SimpleNamespace(ppf=ndtri)                        # scipy.stats takes most of a second to import
"""
def lesson13(**changed):
    """Lesson 13's exercises as its notebook has them: define, check, and put the result in the function's place."""
    cells = [MORE]
    for exercise, source in NF4.items():
        name = exercise.replace(".", "_")
        cells += [changed.get(name, source), f'result = tp.check("{exercise}", {name})\nresult', f"{name} = result.function"]
    return cells


SOON = "import tinypeft.course.calls as c\nc.Local.__init__.__defaults__ = 2,"     # a call may take 20 s, and here 2
FOREVER = "def nf4_encode(x, levels):\n    while True: time.sleep(1)"
STUB = "def nf4_levels(delta, positive, negative): raise NotImplementedError('nf4.levels')"
RULES = {                                                # cells → points of 16, a message, and what the notes name
    "right": (lesson13(), 16, "right", ""),
    "checks deleted": ([MORE, *NF4.values()], 16, "right", ""),
    "redefined at the end": ([*lesson13(nf4_levels=STUB), NF4["nf4.levels"]], 16, "right", ""),
    "wrong at the end": ([*lesson13(), STUB], 12, "nf4.levels              0/4  not solved yet", ""),
    "untouched": (lesson13(**{n.replace(".", "_"): STUB.replace("nf4_levels", n.replace(".", "_")) for n in NF4}), 0,
                  "not solved yet", ""),
    "without its mean": (lesson13(nf4_bug=NF4["nf4.bug"].replace(" + o\n", "\n")), 14, "the mean o of the scales", ""),
    "hangs when called": ([MORE, SOON, *(NF4 | {"nf4.encode": FOREVER}).values()],
                          14, "no result after 2 s", ""),             # without checks, which wait as well
    "a syntax error": (lesson13(nf4_encode="def nf4_encode(x, levels)\n    return 1"), 14,
                       ("no cell defines nf4_encode", "cell 5 fails with SyntaxError: expected ':', in line 1"), ""),
    "calls another one": (lesson13(nf4_levels=STUB, nf4_encode=NF4["nf4.encode"].replace(
        '"""', '"""', 1) + "\nplain_encode = nf4_encode\ndef nf4_encode(x, levels):\n    nf4_levels(.9, 2, 2)\n"
        "    return plain_encode(x, levels)"), 12, "right", ""),
    "asks the check": ([MORE, 'def nf4_levels(*a): return tp.check("nf4.levels", print).function(*a)'], 0, "tinypeft.course",
                       ".function("),
    "imports the answer": ([MORE, "def nf4_encode(x, levels):\n    from tinypeft.course.exercises import nf4\n"
                                  "    return nf4.encode(x, levels)"], 0, "ModuleNotFoundError", "course.exercises"),
    "imports it before": ([MORE, "from tinypeft.course.exercises import nf4\ndef nf4_encode(x, levels):\n"
                                 "    return nf4.encode(x, levels)"], 0, "while yours is graded", "course.exercises"),
    "keeps the answer": ([MORE, 'kept = tp.check("nf4.levels", print).function\ndef nf4_levels(delta, positive, negative):\n'
                                "    return kept(delta, positive, negative)"], 0, "while yours is graded", ""),
    "keeps the exercise": ([MORE, 'e = tp.check("nf4.encode", print).exercise\ndef nf4_encode(x, levels):\n'
                                  "    return e.reference(x, levels)"], 0, "while yours is graded", ".reference"),
    "takes the package's": ([MORE, 'nf4_levels = tp.check("nf4.levels", print).function'], 0, "no cell defines", ""),
    "wraps the package's": ([MORE, 'import functools\nnf4_levels = functools.partial(tp.check("nf4.levels", print).function)'],
                            0, "while yours is graded", ""),
    "reads the source": ([MORE, "import inspect\nprint(inspect.getsource(np.sum))"], 0, "no cell defines", "getsource"),
    "only prints": ([MORE, 'print("✔ nf4.levels: right. 4 points.")'], 0, "no cell defines", ""),
    "ends in a cell": ([*lesson13(), "os._exit(0)"], 0, "the process", ""),
    "an empty notebook": ([], 0, "no cell defines", ""),
}


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    hand_in(folder, {name: cells for name, (cells, *_) in RULES.items()})
    return {r.student: r for r in g.grade([folder], lesson="13", seconds=300, jobs=3)}


@pytest.mark.parametrize("name", RULES)
def test_rules(ruled, name):
    _, points, says, notes = RULES[name]
    assert ruled[name].points == points
    for words in (says,) if isinstance(says, str) else says: assert words in repr(ruled[name])
    assert notes in "".join(ruled[name].notes) and bool(notes) == bool(ruled[name].notes)
    assert "write yours" not in repr(ruled[name]) and "package's function here" not in repr(ruled[name])


@pytest.mark.parametrize("path", [*percent.LESSONS.glob("*.ipynb"), *percent.LESSONS.glob("assignments/*.ipynb")],
                         ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_nothing_that_is_handed_out_is_suspicious(path):
    assert g.named(path, path.stem) == []


def test_the_note_quotes_what_leads_to_the_references(tmp_path):
    (tmp_path / "f.py").write_text("from tinypeft.course import check\nx.reference", encoding="utf-8")
    assert g.named(tmp_path / "f.py", "07_lora") == ["look at it: it names “course import”, “.reference”"]


@pytest.mark.parametrize("data, says", [
    (b"", "the file is empty"), (b"\n \n", "the file is empty"), (b"<html>", "(line 1: "), (b'{"cells":\n oops', "(line 2: "),
    (b"\xff\xfe{", "not UTF-8"), (b"[]", "of format 4: TypeError"), (b'{"worksheets": []}', "of format 4: KeyError")])
def test_what_is_no_notebook(data, says, tmp_path):
    (tmp_path / "ada.ipynb").write_bytes(data)
    with pytest.raises(ValueError, match=r"^ada.ipynb is no notebook") as e: code_cells(tmp_path / "ada.ipynb")
    assert says in str(e.value) and "raw_decode" not in str(e.value)


def test_a_path_that_has_a_folder_called_tinypeft_keeps_the_line(tmp_path, capsys):
    (tmp_path / "tinypeft").mkdir()
    (tmp_path / "tinypeft" / "f.py").write_text("def lora_forward(x, W, A, B, alpha):\n    return 1 / 0\n", encoding="utf-8")
    assert main(["check", "lora.forward", str(tmp_path / "tinypeft" / "f.py")]) == 1
    told = capsys.readouterr().out
    assert "ZeroDivisionError: division by zero, in line 2 of lora_forward:  return 1 / 0" in told
    assert "cells below" not in told                     # a terminal has none


def test_csv_and_json(graded, tmp_path):
    g.write_csv([*graded.values(), g.Grade("=cmd()", "f")], tmp_path / "grades.csv")
    rows = list(csv.DictReader(open(tmp_path / "grades.csv", encoding="utf-8")))
    assert {r["student"]: r["points"] for r in rows}["solver"] == "15"
    assert rows[-1]["student"] == "'=cmd()"                          # not a spreadsheet's formula
    records = json.loads(g.as_json(graded.values()))
    assert {r["student"]: r["points"] for r in records} == {name: r.points for name, r in graded.items()}


def test_extra_points_are_a_column_of_their_own(tmp_path, monkeypatch):
    text = percent.sources("07")[0].read_text(encoding="utf-8")
    changed = re.sub(r"(exercise=lora.swap points=2 minutes=8)", r"\1 bonus=yes", text, flags=re.M)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "07_lora.py").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(percent, "SOURCES", tmp_path / "src")
    usual = [cell for cell in SOLVED if "lora_swap" not in cell and "lora_dora" not in cell]
    for name, cells in {"ada": SOLVED, "bob": usual}.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "lora.py").write_text("\n".join([IMPORTS, *cells]), encoding="utf-8")
    ada, bob = grades = g.grade([tmp_path / "in"], seconds=300)
    assert ada.of == bob.of == ada.points == bob.points and (ada.extra, bob.extra) == (5, 0)
    assert f"ada: {ada.of} of {ada.of} points and 5 extra in 07_lora" in repr(ada) and "extra" not in repr(bob)
    g.write_csv(grades, tmp_path / "points.csv")
    with open(tmp_path / "points.csv", encoding="utf-8") as file:
        assert [(row["points"], row["of"], row["extra"], row["lora.swap"]) for row in csv.DictReader(file)] == \
            [(str(ada.of), str(ada.of), "5", "2"), (str(ada.of), str(ada.of), "0", "0")]
    assert [record["extra"] for record in json.loads(g.as_json(grades))] == [5, 0]
    better = g.best([bob, replace(ada, file="other")])
    assert [grade.extra for grade in better] == [5]


def test_the_lesson_is_found_by_name_or_by_what_is_checked(tmp_path):
    (tmp_path / "ada.py").write_text("def lora_forward(x): pass", encoding="utf-8")
    (tmp_path / "bob.ipynb").write_text(json.dumps({"cells": [{"source": ['tp.check("dylora.search", f)']}]}), encoding="utf-8")
    assert whose.lesson_of(tmp_path / "ada.py") == "07_lora"
    assert whose.lesson_of(tmp_path / "bob.ipynb") == "09_dylora"
    (tmp_path / "zoe.ipynb").write_text("{", encoding="utf-8")
    assert g.grade([tmp_path / "zoe.ipynb"])[0].problem.startswith("zoe.ipynb is no notebook (line 1")
    (tmp_path / "eve.py").write_text("x = 1", encoding="utf-8")
    assert "--lesson" in g.grade([tmp_path / "eve.py"])[0].problem
    with pytest.raises(ValueError, match="no notebook"): whose.submissions([tmp_path / "nothing"])


@pytest.mark.parametrize("value", [
    1, 2.5, float("inf"), "text", None, True, (1, [2, (3,)]), {"a": 1, 2: (3.0,)}, np.arange(6.0).reshape(2, 3),
    np.float32(1.5),
    np.array([True]), tp.Tensor(np.ones((2, 1), np.float32), requires_grad=True), tp.functional.gelu])
def test_values_survive_the_wire(value):
    there = decode(encode(value), function)
    assert type(there) is type(value)
    a, b = (x.data if isinstance(x, tp.Tensor) else x for x in (value, there))
    assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
    if isinstance(value, tp.Tensor): assert there.requires_grad
    if isinstance(value, np.ndarray): assert there.dtype == value.dtype


def test_the_wire_looks_up_nothing():
    for name in (["os", "system"], ["tinypeft.course.wire", "os.system"], ["tinypeft.__main__", "main"], ["no.such", "f"]):
        there = decode(json.dumps({"function": name}).encode())
        assert type(there) is Opaque and name[1] in repr(there)
    gelu = decode(encode(tp.functional.gelu))
    assert type(gelu) is Opaque


def array(dtype="<f4", shape=(), data=""): return json.dumps({"array": dtype, "shape": shape, "data": data}).encode()


@pytest.mark.parametrize("text", [
    b"[]", b"no", b"{}", b"", b"\xff", b'{"function": 5}', b'{"list": 5}', b'{"dict": [[1]]}',
    b'{"dict": [[{"list": []}, 1]]}', b'{"opaque": 1, "type": "x"}', b'{"list": [' * 60 + b"1" + b"]}" * 60, b"[" * 100_000,
    b'{"list": [' + b"1," * 10**6 + b"1]}", array(shape=(2**40,)), array(shape=(2**62, 4)), array(shape=(-1,)),
    array(shape=(True,)), array(shape=(1.5,)), array("|O", (1,)), array("<U4", (0,)),
    array("f4,f4", (0,)), array("(9,)f4", (0,)), array(data="?"), array(data="AAAA"), array("nonsense"),
    array(data="AA!AAAA=="),
    b'{"tensor": 5, "grad": true}', b'{"tensor": {"list": []}, "grad": true}', b"9" * 5000,
    array("a" * 3000), array(shape=["a" * 3000]), array(data="a" * 2999), array(shape=[1] * 3000, data="AAAA"),
    json.dumps({"a" * 3000: 1}).encode(), json.dumps({"function": {"a" * 3000: 1}}).encode()])
def test_a_line_that_is_no_message(text):
    with pytest.raises(ValueError, match="a line that is no message") as e: decode(text)
    assert len(str(e.value)) < 700


@pytest.mark.parametrize("value, says", [
    (np.zeros(2**24), "MiB of arrays"), (np.broadcast_to(1.0, (2**30, 2**10)), "MiB of arrays"),
    ("x" * 2**25, "MiB of text"), (list(range(3 * 10**5)), "values"), ([np.zeros(2**20)] * 2, "MiB of arrays")])
def test_what_is_too_large_for_a_message(value, says):
    with pytest.raises(ValueError, match=says): encode(value)


def test_damaged_messages_and_notebooks():
    assert notebooks.damage_messages(50, seed=1)["judged wrong"] > 30
    assert notebooks.damage_notebooks(100, seed=1)["ValueError"] > 40


def test_the_limit_holds_while_nobody_reads(tmp_path):
    (tmp_path / "f.py").write_text(hostile.PIPE + "say(told(forward())); wait()", encoding="utf-8")
    with Worker(tmp_path / "f.py", tmp_path, 60, call_seconds=1) as worker:
        call = worker.remote("lora_forward")
        assert "no answer after 1 s" in call((np.zeros(2**20),)).error   # more than a pipe holds
        assert not worker.alive
        assert call((1,)).error == "the process ended"


FOREVER_ON = "while True:\n    try: time.sleep(1)\n    except Exception: pass"


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
@pytest.mark.parametrize("seconds, of_cell", [(60, 4), (4, 60)])
def test_a_slow_notebook_keeps_what_it_defines(seconds, of_cell, tmp_path):
    """A cell without end costs itself. If all the time is used up, the definitions in the other cells still count."""
    hand_in(tmp_path, {"ada": [IMPORTS, SOLVED[0], FOREVER_ON, "\n".join([*SOLVED[1:], "x = 1", "kept = lambda: x"])]})
    with Worker(tmp_path / "ada.ipynb", tmp_path, seconds, of_cell) as worker:
        assert worker.problem.startswith("cell 3 fails with TooSlow: no end of the cell after ")
        assert {"lora_forward", "lora_dora"} <= worker.functions.keys() and ("kept" in worker.functions) is (seconds > of_cell)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
def test_a_slow_file_keeps_what_it_defines_and_so_does_one_that_fails(tmp_path):
    for end, says in (("while True: pass", "TooSlow: no end after 4 s"), ("1 / 0", "ZeroDivisionError")):
        (tmp_path / "f.py").write_text(f"def f(): return 5\n{end}\ndef g(): return 6", encoding="utf-8")
        with Worker(tmp_path / "f.py", tmp_path, 4) as worker:
            assert says in worker.problem and [*worker.functions] == ["f"] and worker.remote("f")(()).value == 5


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
def test_a_check_inside_a_cell_leaves_the_cells_limit():
    with pytest.raises(TooSlow), limited(0.2):
        assert Local(len)(("abc",)).value == 3
        while True: pass


def test_all_calls_together_have_a_limit(tmp_path):
    (tmp_path / "f.py").write_text("import time\ndef f(): time.sleep(.4); return 1", encoding="utf-8")
    with Worker(tmp_path / "f.py", tmp_path, 60) as worker:
        worker.left, call = 3.0, worker.remote("f")
        assert call(()).value == 1
        assert any("the limit for the calls together" in str(call(()).error) for _ in range(8)) and not worker.alive


def test_a_comparison_that_fails_costs_one_exercise(monkeypatch):
    class Stub:
        def remote(self, name): return Local(print)
    def broken(*args): raise IndexError("too many indices")
    monkeypatch.setattr(g, "judge", broken)
    passed, message, borrowed = g.checked(find("lora.swap"), Stub(), 0)
    assert not passed and borrowed == [] and message == "your result cannot be compared: IndexError: too many indices"


def test_an_invariant_that_fails_is_a_failed_check():
    exercise = find("prefix.copies")
    exercise = replace(exercise, invariants=[("it divides", lambda fn, rng: 1 / 0)])
    result = judge(exercise, Local(lambda lam, n: exercise.reference(lam, n)))
    assert result.stage == "invariant" and "it divides. ZeroDivisionError: division by zero" in result.message


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none(seconds):
    with pytest.raises(ValueError, match="the time for one notebook"): g.grade([], seconds=seconds)


def test_functions_are_called_in_another_process(tmp_path):
    (tmp_path / "f.py").write_text("def f(x, y=1):\n    return {x: [y]}\ndef g(x): return object()", encoding="utf-8")
    with Worker(tmp_path / "f.py", tmp_path, 60) as worker:
        call = worker.remote("f")
        assert str(call.signature) == "(x, y=None)" and call((3,)).value == {3: [1]}
        assert "object object" in repr(worker.remote("g")((1,)).value) and worker.remote("h") is None


@pytest.mark.parametrize("name", ["", ".0", "a b", "1", 3])
def test_a_parameter_without_a_name_is_refused(name):
    """Python's own Parameter("") is an IndexError."""
    with pytest.raises(ValueError, match="described a parameter without its name"):
        _described({"functions": {"f": ("f.py", [], [(name, 1, False)])}, "problem": None})
