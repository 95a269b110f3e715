"""What is handed out: assignments, a course without solutions, and answers that no student is given."""
import json
import os
import re
import subprocess
import sys

import pytest

from tinypeft.commands.cli import main
from tinypeft.course import build, percent
from tinypeft.course.assign import answers, assign
from tinypeft.course.build import open_questions, table
from tinypeft.course.exercises import TOPICS
from tinypeft.course.handout import hand_out

SOURCES = percent.sources()


def test_what_is_handed_out(tmp_path):
    notebook, readme, glossary = assign("7", tmp_path)
    text = readme.read_text(encoding="utf-8")
    assert "`lora_forward`" in text and "| | together | | 15 |" in text and "| ★ |" in text and "Rubric" in text
    for which in SOURCES:                                # every lesson has an open question with a rubric
        readme = assign(which.stem, tmp_path / which.stem)[1].read_text(encoding="utf-8")
        assert "ubric" in readme and "open" in readme.lower(), which
    assert "BEGIN SOLUTION" not in notebook.read_text(encoding="utf-8")
    assert "**Seam.**" in (words := glossary.read_text(encoding="utf-8")) and ".ipynb" not in words
    (source,) = assign("7", tmp_path / "course", nbgrader=True)
    assert source.parts[-3:] == ("source", "07_lora", "07_lora.ipynb")
    assert "BEGIN SOLUTION" in source.read_text(encoding="utf-8")


def test_extra_points_stand_apart(tmp_path, monkeypatch):
    """Those of a bonus are in no sum: neither on the page of an assignment nor in the table of lessons."""
    text = percent.sources("07")[0].read_text(encoding="utf-8")
    row = table(percent.sources("07")).split("\n")[2]
    points, extra = re.search(r"\| (\d+) \+ 4 \| (\d+) \|", row).groups()
    (tmp_path / "src").mkdir()
    changed = re.sub(r"(exercise=lora.swap points=2 minutes=8)", r"\1 bonus=yes", text, flags=re.M)
    changed += "\n# %% [markdown]\n# ### {exercise} · Bonus: More (open, 3 extra points, 9 minutes)\n"
    (tmp_path / "src" / "07_lora.py").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(percent, "SOURCES", tmp_path / "src")
    row = table(percent.sources("07")).split("\n")[2]
    assert f"| {int(points) - 2} + 4 | {int(extra) + 5} |" in row
    page = assign("07", tmp_path / "out")[1].read_text(encoding="utf-8")
    assert re.search(r"\| `lora_swap` \| Bonus: [^|]+ \| ★+ \| \+2 \| 8 \|", page)
    assert f"| | together | | {int(points) - 2} |" in page and "| | bonus, extra points | | +" in page
    assert "· Bonus: More (open, 3 extra points, 9 minutes)" in page


# -- answers ---------------------------------------------------------------------------------------
def phrases(text, n=9):
    """All sequences of n words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i:i + n]) for i in range(len(words) - n + 1)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_an_answer_is_in_no_notebook(path):
    cells = percent.read(path)
    found = [cell.source for cell in cells if cell.kind == "answer"]
    assert len(found) == len(open_questions(path)) > 0
    for made in (percent.lesson(cells), percent.assignment(cells), percent.assignment(cells, solved=True)):
        shown = phrases("\n".join(cell.source for cell in made.cells))
        for answer in found: assert len(phrases(answer)) > 50 and not phrases(answer) & shown


def test_answers_have_the_studys_numbers(tmp_path):
    written = answers(None, tmp_path)
    assert [path.stem for path in written] == [path.stem for path in SOURCES]
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert "### Answer" in text and not re.search(r"\{(picture|claim)", text)
    text = (tmp_path / "13b_merging_loftq.md").read_text(encoding="utf-8")
    assert re.search(r"on the claim \*LoftQ ends below QLoRA.*\*: \*\*[a-z, ]+\*\*\. Effect \(plus .*\): .* ± .*\.", text)
    (one,) = answers("15", tmp_path / "new" / "all.md")
    assert one.name == "all.md" and one.read_text(encoding="utf-8").startswith("# 15 ·")


def test_an_answer_cell():
    text = "# %% [markdown]\n# Question\n# %% [answer]\n# It is *seven*.\n# %%\nx = 7\n"
    cells = percent.parse(text)
    assert [cell.kind for cell in cells] == ["markdown", "answer", "code"] and cells[1].source == "It is *seven*."
    for make in (percent.lesson, percent.assignment):
        assert [cell.source for cell in make(cells).cells] == ["Question", "x = 7"]
    with pytest.raises(ValueError, match="must begin with #"): percent.parse("# %% [answer]\nseven\n")


# -- the course for students -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return hand_out(tmp_path_factory.mktemp("term") / "course")


STUDENT = """
import inspect
import tokenize
from pathlib import Path
import tinypeft as tp
from tinypeft import functional as F
from tinypeft.course.exercises import TOPICS, of_topic
from tinypeft.course.show import source
from tinypeft.study import pictures

folder = Path(tp.__file__).parents[1]
assert folder == Path.cwd().parent, folder

def lora_forward(x, W, A, B, alpha):
    return F.linear(x, W) + alpha / A.shape[0] * F.linear(F.linear(x, A), B)

print(tp.check("lora.forward", lora_forward))
print(tp.check("lora.forward", lambda x, W, A, B, alpha: F.linear(x, W) + alpha * F.linear(F.linear(x, A), B)))
assert "class LoRA" in source(tp.LoRA) and not pictures.missing(folder / "figures", "rank")
for topic in TOPICS:
    for exercise in of_topic(topic).values():
        assert tp.check(exercise.name, lambda *a: 1 / 0).message
        try: text = inspect.getsource(exercise.reference)
        except (OSError, TypeError, tokenize.TokenError): continue
        assert "return" not in text, text
print("done")
"""


def test_an_exercise_is_solved_from_the_hand_out(course):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", STUDENT], cwd=course / "lessons", text=True, timeout=100,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(course)})
    assert done.returncode == 0, done.stderr
    right, *wrong, last = done.stdout.splitlines()
    assert right == "✔ lora.forward: right." and last == "done"
    assert "Likely cause: the scale is α/r" in "\n".join(wrong)


def test_the_hand_out_holds_no_answer(course):
    files = [path for path in course.rglob("*") if path.is_file()]
    names = {path.relative_to(course).as_posix() for path in files}
    assert {f"lessons/{path.stem}.ipynb" for path in SOURCES} == {name for name in names if name.startswith("lessons/")}
    assert {name.split("/")[0] for name in names} == \
        {"README.md", "GLOSSARY.md", "LICENSE", "pyproject.toml", "requirements.txt", "lessons", "projects", "tinypeft",
         "figures"}
    texts = {path: path.read_text("utf-8") for path in files if path.suffix in (".py", ".ipynb", ".md", ".json", ".txt")}
    code = [cell.source for path in SOURCES for cell in percent.read(path) if cell.exercise]
    solutions = [part for source in code for part in re.findall(f"{percent.BEGIN}\n(.*?){percent.END}", source, re.S)]
    lines = {line.strip() for part in solutions for line in part.splitlines() if len(line.strip()) > 60}
    assert len(lines) > 30
    pages = {path: text for path, text in texts.items() if path.suffix != ".py" or path.parts[-2] in ("course", "exercises")}
    for path, text in pages.items():                     # elsewhere the package computes it, and is meant to be read
        assert not [line for line in lines if line in text], path
    for topic in TOPICS:
        text = texts[course / "tinypeft" / "course" / "exercises" / f"{topic}.py"]
        assert "packed" in text and "reference" not in text and "Exercise(" not in text


def test_the_hand_out_says_where_things_are(course):
    pages = [(course / name).read_text(encoding="utf-8") for name in ("README.md", "GLOSSARY.md")]
    for link in re.findall(r"\]\(([^)#:]+)\)", "".join(pages)): assert (course / link).exists(), link
    text = pages[0]
    assert text.count("| [") == len(SOURCES) and "When something does not work" in text and "](assignments" not in text
    for notebook in (course / "lessons").glob("*.ipynb"):
        for link in re.findall(r"\]\(([^)#:\s]+\.(?:ipynb|md))\)", notebook.read_text(encoding="utf-8")):
            assert (course / "lessons" / link).exists(), (notebook.name, link)


def test_the_command_says_what_to_write(tmp_path, capsys):
    assert main(["assign", "07"]) == 2 and "--out FOLDER" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["assign", "--course", str(tmp_path)]) == 2 and "is not empty" in capsys.readouterr().err
    assert main(["assign", "7", "--answers", str(tmp_path / "a.md"), "--out", str(tmp_path / "07")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in (
        "07/07_lora.ipynb", "07/README.md", "07/GLOSSARY.md", "a.md")]


# -- what is built ---------------------------------------------------------------------------------
def test_a_lesson_is_built_with_its_assignment_and_the_table(tmp_path, monkeypatch):
    path, said = percent.sources()[0], []
    for name, stub in {"LESSONS": tmp_path, "execute": lambda notebook: notebook, "sources": lambda: [path]}.items():
        monkeypatch.setattr(build, name, stub)
    build.build([path], write=False, say=said.append)
    assert not [*tmp_path.iterdir()] and said[0].startswith(f"{path.stem}  0 s")
    (tmp_path / "README.md").write_text("before\n<!-- lessons -->\nold\n<!-- /lessons -->\nafter\n", "utf-8")
    build.build([path])
    lesson, handed_out = (json.loads((tmp_path / folder / f"{path.stem}.ipynb").read_text("utf-8"))
                          for folder in ("", "assignments"))
    assert len(lesson["cells"]) > 10 and "(answer" not in str(handed_out) and handed_out != lesson
    marked = f"before\n<!-- lessons -->\n{table([path])}\n<!-- /lessons -->\nafter\n"
    assert (tmp_path / "README.md").read_text("utf-8") == marked
