"""Lessons from percent files: what is read, what is refused, and what the notebooks are made of."""
import re

import pytest

from tinypeft.course import percent
from tinypeft.course.build import table
from tinypeft.course.calls import Local
from tinypeft.course.exercises import find
from tinypeft.course.grade import grade
from tinypeft.course.judge import judge
from tinypeft.course.worth import worth

nbformat = pytest.importorskip("nbformat")

SOURCE = '''# %% [markdown]
# # Title
#
# Text with $x$.

# %%
import numpy as np

# %% exercise=lora.forward points=3 minutes=10
def f(x):
    """Docstring."""
    ### BEGIN SOLUTION
    y = 2 * x
    return y
    ### END SOLUTION
'''


def test_cells():
    cells = percent.parse(SOURCE)
    assert [c.kind for c in cells] == ["markdown", "code", "code", "code"]
    assert cells[0].source == "# Title\n\nText with $x$."
    assert cells[2].options == {"exercise": "lora.forward", "points": 3, "minutes": 10}


def test_the_lesson_has_the_solution_and_no_marks():
    source = percent.lesson(percent.parse(SOURCE)).cells[2].source
    assert source == 'def f(x):\n    """Docstring."""\n    y = 2 * x\n    return y'


def test_an_exercise_is_followed_by_its_check():
    plain, named = percent.parse(SOURCE)[-1], percent.parse(SOURCE.replace("minutes=10", "minutes=10 as=mine"))[-1]
    assert plain.source == 'result = tp.check("lora.forward", lora_forward)\nresult' and plain.line == 9
    assert named.source == 'result = tp.check("lora.forward", lora_forward)\nmine = result.function\nresult'


def test_a_solution_that_is_not_written_is_the_right_answer_without_its_slips(tmp_path):
    """In a lesson; an assignment has a stub all the same."""
    path = tmp_path / "07_lora.py"
    path.write_text(re.sub(r"    ### BEGIN.*END SOLUTION\n", "", HEADED, flags=re.S), encoding="utf-8")
    assert [cell.source for cell in percent.parsed(path) if cell.exercise] == ['def f(x):\n    """Docstring."""']
    cells = percent.read(path)
    source, stub = percent.lesson(cells).cells[2].source, percent.assignment(cells).cells[2].source
    assert source.startswith('def f(x):\n    """Docstring."""\n    r = A.shape[0]\n    s = alpha / r\n    low')
    assert "slip" not in source and source.endswith("\n    return h + change")
    assert stub.endswith('raise NotImplementedError("lora.forward")') and "alpha" not in stub


def test_the_assignment_has_a_stub_and_nbgraders_metadata():
    notebook = percent.assignment(percent.parse(SOURCE))
    nbformat.validate(notebook)
    stub, check = notebook.cells[2], notebook.cells[3]
    assert "y = 2" not in stub.source and "raise NotImplementedError" in stub.source
    compile(stub.source, "stub", "exec")
    assert stub.metadata.nbgrader.solution and not stub.metadata.nbgrader.grade
    assert check.metadata.nbgrader.grade and check.metadata.nbgrader.points == 3 and check.metadata.nbgrader.locked
    assert "BEGIN SOLUTION" in percent.assignment(percent.parse(SOURCE), solved=True).cells[2].source


HEADED = SOURCE.replace("# Text", "# ### {exercise}\n#\n# Text") + '''
# %% [markdown]
# ### {exercise} · Your choice (open, 4 points, 25 minutes)
'''


def test_papers_and_lessons_are_links_but_not_in_code_or_html():
    text = "See lesson\n07 (arXiv 2106.09685, eq. 3), lesson 13b, lesson 99, `lesson 07`, [lesson 07](x.md).\n"
    html = "<details><summary>1. Lesson 07?</summary>\narXiv 2106.09685</details>"
    made = percent.linked(text + html)
    assert made == ("See [lesson\n07](07_lora.ipynb) ([arXiv 2106.09685](https://arxiv.org/abs/2106.09685), eq. 3), "
                    "[lesson 13b](13b_merging_loftq.ipynb), lesson 99, `lesson 07`, [lesson 07](x.md).\n" + html)
    cells = percent.parse(SOURCE.replace("Text with", "As in lesson 07,"))
    assert all("[lesson 07](07_lora.ipynb)" in make(cells).cells[0].source for make in (percent.lesson, percent.assignment))


def test_a_paper_of_before_2015_and_one_on_the_next_line_are_links():
    made = percent.linked("STE (arXiv 1308.3432), Shazeer, arXiv\n  2002.05202.")
    assert made == ("STE ([arXiv 1308.3432](https://arxiv.org/abs/1308.3432)), Shazeer, "
                    "[arXiv\n  2002.05202](https://arxiv.org/abs/2002.05202).")


def test_headings_are_written_out():
    cells = percent.headed(percent.parse(HEADED))
    assert "### Exercise 1 · The forward pass of LoRA (★, 3 points, 10 minutes)" in cells[0].source.split("\n")
    assert cells[-1].source == "### Exercise 2 · Your choice (open, 4 points, 25 minutes)"
    one = percent.headed(percent.parse(HEADED.replace("points=3", "points=1")))
    assert "(★, 1 point, 10 minutes)" in one[0].source


@pytest.mark.parametrize("old, new, says", [
    ("# ### {exercise}\n#\n", "", "got 0 headings"),
    ("# ### {exercise}\n#\n", "# ### {exercise}\n#\n# ### {exercise}\n#\n", "got 2 headings"),
    ("{exercise} · Your choice (open, 4 points, 25 minutes)", "{exercise}", "stand before lora.forward, no exercise"),
    ("(open, 4 points", "(4 points", "got {exercise} · Your choice"),
    ("(open, 4 ", "(open, 4 extra ", "or {exercise} · Bonus: T"),
    ("Your choice", "Bonus: Your choice", "expected {exercise} · Title")])
def test_a_heading_belongs_to_one_exercise(old, new, says):
    assert old in HEADED
    with pytest.raises(ValueError, match=says):
        percent.headed(percent.parse(HEADED.replace(old, new, 1)), "x.py")


def test_a_bonus_is_said_to_be_extra():
    text = HEADED.replace("minutes=10", "minutes=10 bonus=yes")
    text = text.replace("Your choice (open, 4", "Bonus: Your choice (open, 4 extra")
    cells = percent.headed(percent.parse(text))
    assert "### Exercise 1 · Bonus: The forward pass of LoRA (★, 3 extra points, 10 minutes)" in cells[0].source.split("\n")
    assert cells[-1].source == "### Exercise 2 · Bonus: Your choice (open, 4 extra points, 25 minutes)"
    assert cells[2].bonus and not cells[1].bonus
    notebook = percent.assignment(cells)                     # nbgrader knows no extra points, so it does not grade them
    assert notebook.cells[2].metadata.nbgrader.solution
    check = notebook.cells[3].metadata.nbgrader
    assert check.locked and not check.grade and "points" not in check


def test_a_cell_that_only_draws_is_folded():
    cells = percent.parse("# %%\nx = 1\n# %% fold\nfig\n")
    assert [cell.folded for cell in cells] == [False, True] and cells[1].options == {} and cells[1].source == "fig"
    for make in (percent.lesson, percent.assignment):
        plain, folded = make(cells).cells
        assert not plain.metadata and folded.metadata == {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
        nbformat.validate(make(cells))


@pytest.mark.parametrize("path", percent.sources(), ids=lambda p: p.stem)
def test_exercises_are_numbered_without_a_gap_and_nowhere_by_hand(path):
    headings = [line for cell in percent.read(path) if cell.kind == "markdown"
                for line in cell.source.split("\n") if re.match(r"#+ Exercise", line)]
    assert [int(re.search(r"\d+", line)[0]) for line in headings] == list(range(1, len(headings) + 1))
    ends = re.compile(r"^### Exercise \d · .+ \((open|★{1,3}), \d (extra )?points?, \d+ minutes\)$")
    assert all(map(ends.search, headings))
    assert not re.search(r"^# #+ Exercise|\{exercise\} · (?!.*\(open, )", path.read_text(encoding="utf-8"), re.M)


def test_points_stand_in_the_lesson_alone(monkeypatch, tmp_path):
    assert worth("lora.forward") == (2, 8, False)
    (tmp_path / "07_lora.py").write_text(SOURCE.replace("points=3", "points=7"), encoding="utf-8")
    monkeypatch.setattr(percent, "SOURCES", tmp_path)
    exercise = find("lora.forward")
    mine = Local(lambda x, W, A, B, alpha: exercise.reference(x, W, A, B, alpha))
    assert worth("lora.forward").points == 7 and judge(exercise, mine).message == "right. 7 points."
    with pytest.raises(KeyError, match="has no cell for lora.swap"): worth("lora.swap")
    (tmp_path / "07_lora.py").write_text(SOURCE.replace("minutes=10", "minutes=10 bonus=yes"), encoding="utf-8")
    assert worth("lora.forward") == (3, 10, True) and judge(exercise, mine).message == "right. 3 extra points."
    (tmp_path / "07_lora.py").unlink()                       # a package without its lessons still checks, and does not grade
    with pytest.raises(FileNotFoundError, match="a checkout"): worth("lora.forward")
    assert judge(exercise, mine).message == "right."
    with pytest.raises(FileNotFoundError, match="a checkout"): grade([tmp_path])


def test_ids_are_of_the_content_and_differ():
    twice = SOURCE + "\n# %%\nx = 1\n\n# %%\nx = 1\n"
    ids = [c.id for c in percent.lesson(percent.parse(twice)).cells]
    assert len(set(ids)) == len(ids)
    changed = [c.id for c in percent.lesson(percent.parse(twice.replace("Text", "Prose"))).cells]
    assert ids[0] != changed[0] and ids[1:] == changed[1:]


@pytest.mark.parametrize("old, new, says", [
    ("# %% [markdown]\n# # Title", "x = 1\n# %% [markdown]\n# # Title", "first line"),
    ("    ### END SOLUTION\n", "", "does not end"),
    ("    ### BEGIN SOLUTION\n", "", "no solution is open"),
    ("    y = 2 * x\n", "    ### BEGIN SOLUTION\n    y = 2 * x\n", "inside another"),
    ("# Text with", "Text with", "must begin with #"),
    ("points=3 ", "", "expected"),
    ("# %%\nimport", "# %% code\nimport", "expected"), ("# %%\nimport", "# %% folded\nimport", "# %% fold, "),
    ("minutes=10", "minutes=10 bonus=no", "expected .*bonus=yes"), ("# %%\nimport", "# %% bonus=yes\nimport", "expected"),
    ("# %% exercise", "# %% fold exercise", "expected"),
    (" exercise=lora.forward points=3 minutes=10", "", "no exercise"),
    ("import numpy as np", 'tp.check("lora.forward", f)', r"made of the exercise's header; write as=…"),
    ("minutes=10", "minutes=10 called=f", r"expected .*\[as=…\]"),
])
def test_what_is_not_well_formed_is_refused(old, new, says):
    assert old in SOURCE
    with pytest.raises(ValueError, match=says):
        percent.parse(SOURCE.replace(old, new, 1), "x.py")


def test_a_kernel_imports_the_package_of_this_checkout_and_grades_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    code = "import os, tinypeft\nprint(tinypeft.__file__, os.environ.get('NBGRADER_EXECUTION'))"
    notebook = percent.execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path)
    package = percent.LESSONS.parent / "tinypeft" / "__init__.py"
    assert notebook.cells[0].outputs[0].text.split() == [str(package), "None"]


def test_the_table_says_minutes_points_and_what_one_can_do_for_every_lesson():
    made = table(percent.sources())
    assert made in (percent.LESSONS / "README.md").read_text(encoding="utf-8"), "python -m tinypeft lessons build"
    rows = made.split("\n")[2:]
    assert len(rows) == len(percent.sources())
    for row in rows:
        assert "–" not in row and re.search(r"\| \d{2,3} \| \d+ \+ [345] \| \d+ \| [a-z0-9].{10,} \|$", row), row


def test_pieces_of_a_stream_are_joined():
    """A kernel sends what a cell prints in pieces of any length; the stored notebook has them as one."""
    from nbformat.v4 import new_output

    from tinypeft.course.percent import _joined
    out, err = (lambda text, name=name: new_output("stream", name=name, text=text) for name in ("stdout", "stderr"))
    shown = new_output("display_data", data={"text/plain": "x"})
    joined = _joined([out("a"), out("b"), err("c"), out("d"), shown, out("e"), out("f")])
    assert [o.get("text", "shown") for o in joined] == ["ab", "c", "d", "shown", "ef"]


@pytest.mark.parametrize("path", percent.sources(), ids=lambda path: path.stem)
def test_links_of_lessons_and_assignments_lead_to_files(path):
    """A lesson stands in lessons/, its assignment one folder further down."""
    cells, folder = percent.read(path), path.parents[1]
    for notebook, home in ((percent.lesson(cells), folder), (percent.assignment(cells), folder / "assignments")):
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        linked = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if link.endswith(".md") and ":" not in link]
        assert [link for link in linked if not (home / link).exists()] == []
