"""The projects' notebooks were made of their sources. Skeletons have nothing that answers, and run as they are."""
import re

import nbformat
import pytest

from tinypeft.course import percent, projects
from tinypeft.course.handout import hand_out

EACH = pytest.mark.parametrize("path", projects.sources(), ids=lambda path: path.stem)
content = lambda notebook: [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


@EACH
def test_what_is_committed_was_made_of_its_source(path):
    made = {projects.PROJECTS / f"{path.stem}.ipynb": projects.skeleton(path)}
    if projects.works(path): made[projects.PROJECTS / "example" / f"{path.stem}.ipynb"] = projects.example(path)
    for file, notebook in made.items():
        committed = nbformat.read(file, 4)
        nbformat.validate(committed)
        assert content(committed) == content(notebook), "run: python -m tinypeft lessons build projects"


@pytest.mark.parametrize("file", sorted(projects.PROJECTS.rglob("*.ipynb")), ids=lambda file: file.stem)
def test_every_link_leads_somewhere(file):
    """From the folder of the notebook: the worked example lies a folder deeper than the skeleton."""
    text = "\n".join(cell.source for cell in nbformat.read(file, 4).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https:)([^)#\s]+)", text)
    assert "GLOSSARY.md" in str(links) and [link for link in links if not (file.parent / link).exists()] == []


@EACH
def test_a_skeleton_runs_and_says_what_to_do(path):
    notebook = percent.execute(projects.skeleton(path), timeout=120)
    last = notebook.cells[-1].outputs[-1].data["text/plain"] if notebook.cells[-1].outputs else ""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out]
    shown = "".join(out.data.get("text/plain", "") for out in outputs)
    assert "Call data(task) with your task." in shown and "✔" not in shown
    assert not last or "○" in last


def test_the_parts_are_the_students():
    path = projects.sources()[0]
    skeleton, example = (str(content(make(path))) for make in (projects.skeleton, projects.example))
    assert "IPython" in example and "IPython" not in skeleton and "# skeleton" not in skeleton + example
    assert projects.works(path) and not projects.works(projects.sources()[1])
    assert "BEGIN SOLUTION" not in skeleton + example


def test_the_example_is_a_finished_project():
    for path in filter(projects.works, projects.sources()):
        notebook = nbformat.read(projects.PROJECTS / "example" / f"{path.stem}.ipynb", 4)
        page = "".join(out.get("text", "") for out in notebook.cells[-1].outputs)
        assert "- [x]" in page and "- [ ]" not in page


def test_students_get_the_skeletons_alone(tmp_path):
    folder = hand_out(tmp_path / "course")
    assert [f.name for f in sorted((folder / "projects").rglob("*.ipynb"))] == [f"{p.stem}.ipynb" for p in projects.sources()]


def test_what_is_built_is_written_beside_its_source(tmp_path, monkeypatch):
    """Skeletons and worked examples."""
    paths = projects.sources()
    (tmp_path / "example").mkdir()
    monkeypatch.setattr(projects, "PROJECTS", tmp_path)
    monkeypatch.setattr(projects, "sources", lambda: paths)
    monkeypatch.setattr(projects, "execute", lambda notebook: notebook)
    projects.build(write=False)
    assert not list(tmp_path.rglob("*.ipynb"))
    projects.build()
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.ipynb")}
    assert made == {f"{path.stem}.ipynb" for path in paths} | {f"example/{path.stem}.ipynb" for path in paths
                                                              if projects.works(path)}
