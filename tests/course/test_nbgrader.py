"""nbgrader takes the assignments as they are: it strips solutions, gives a solver everything and an untouched stub nothing."""
import os
import shutil
import sys
from pathlib import Path

import pytest

from tinypeft.course import percent

nbgrader = pytest.importorskip("nbgrader")
import nbformat  # noqa: E402
from nbgrader.apps import NbGraderAPI  # noqa: E402
from nbgrader.nbgraderformat import MetadataValidator  # noqa: E402
from traitlets.config import Config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Object of type")             # nbgrader's own
PATHS = percent.sources()


@pytest.fixture
def course(tmp_path, monkeypatch):
    """nbgrader's folders with lesson 07, of which only imports, exercises and checks are kept: the rest takes time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(percent.LESSONS.parent))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))    # it calls alembic
    kept = lambda c: c.exercise or "tp.check(" in c.source or "import numpy" in c.source
    cells = list(filter(kept, percent.read(percent.sources("07")[0])))
    source = percent.assignment(cells, solved=True)
    (tmp_path / "source" / "07").mkdir(parents=True)
    nbformat.write(source, tmp_path / "source" / "07" / "07.ipynb")
    config = Config()
    config.CourseDirectory.root = str(tmp_path)
    config.CourseDirectory.course_id = "peft"
    config.ClearSolutions.code_stub = {"python": "raise NotImplementedError()"}
    config.IncludeHeaderFooter.header = ""
    return NbGraderAPI(config=config), tmp_path


@pytest.mark.long
def test_a_solver_gets_all_points_and_a_stub_none(course):
    api, root = course
    assert api.generate_assignment("07")["success"]
    release = nbformat.read(root / "release" / "07" / "07.ipynb", 4)
    text = "\n".join(cell.source for cell in release.cells)
    assert "SOLUTION" not in text and "raise NotImplementedError" in text and "tp.check" in text
    for student, folder in (("solver", "source"), ("stub", "release")):
        target = root / "submitted" / student / "07"
        target.mkdir(parents=True)
        shutil.copy(root / folder / "07" / "07.ipynb", target)
        told = api.autograde("07", student)
        assert told["success"], told.get("log", told)
    with api.gradebook as gradebook:
        scores = {s: gradebook.find_submission("07", s) for s in ("solver", "stub")}
        assert scores["solver"].max_score == 15
        assert (scores["solver"].score, scores["stub"].score) == (15, 0)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_the_metadata_of_every_assignment_is_valid(path):
    notebook = percent.assignment(percent.read(path))
    nbformat.validate(notebook)
    MetadataValidator().validate_nb(notebook)
    graded = [cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert sum(m.get("points", 0) for m in graded) > 0 and len({m.grade_id for m in graded}) == len(graded)
