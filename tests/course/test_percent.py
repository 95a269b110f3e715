"""Lessons from percent files: what is read, what is refused, and what the notebooks are made of."""
import re

import nbformat
import pytest

from tinypeft.course import percent
from tinypeft.course.build import table

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

# %%
result = tp.check("lora.forward", f)
result
'''


def test_cells():
    cells = percent.parse(SOURCE)
    assert [c.kind for c in cells] == ["markdown", "code", "code", "code"]
    assert cells[0].source == "# Title\n\nText with $x$."
    assert cells[2].options == {"exercise": "lora.forward", "points": 3, "minutes": 10}


def test_the_lesson_has_the_solution_and_no_marks():
    source = percent.lesson(percent.parse(SOURCE)).cells[2].source
    assert source == 'def f(x):\n    """Docstring."""\n    y = 2 * x\n    return y'


def test_the_assignment_has_a_stub_and_nbgraders_metadata():
    notebook = percent.assignment(percent.parse(SOURCE))
    nbformat.validate(notebook)
    stub, check = notebook.cells[2], notebook.cells[3]
    assert "y = 2" not in stub.source and "raise NotImplementedError" in stub.source
    compile(stub.source, "stub", "exec")
    assert stub.metadata.nbgrader.solution and not stub.metadata.nbgrader.grade
    assert check.metadata.nbgrader.grade and check.metadata.nbgrader.points == 3 and check.metadata.nbgrader.locked
    assert "BEGIN SOLUTION" in percent.assignment(percent.parse(SOURCE), solved=True).cells[2].source


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
    ("# %%\nimport", "# %% code\nimport", "expected"),
    (" exercise=lora.forward points=3 minutes=10", "", "no exercise"),
    ('tp.check("lora.forward", f)', "f(1)", "behind an exercise"),
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
        assert "–" not in row and re.search(r"\| \d\d \| \d+ \+ [345] \| [a-z0-9].{10,} \|$", row), row
