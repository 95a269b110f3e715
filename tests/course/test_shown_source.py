"""The source code that a built lesson shows, by `show(function)`, is the package's code of today."""
import ast
import json
import re

import pytest

from tinypeft.course import percent
from tinypeft.course.show import source

PATHS = percent.sources()


def notebook(stem):
    return json.loads((percent.LESSONS / f"{stem}.ipynb").read_text("utf-8"))["cells"]


def imported(cells):
    """The names that a lesson imports, at the beginning or later."""
    names = {}
    for cell in cells:
        for node in ast.parse("".join(cell["source"])).body if cell["cell_type"] == "code" else ():
            if isinstance(node, (ast.Import, ast.ImportFrom)): exec(ast.unparse(node), names)
    return names


def asked_for(cell, names):
    """The sources that the cell asks for: those of its calls of `show` with something else than a picture's name."""
    calls = [node for node in ast.walk(ast.parse("".join(cell["source"]))) if isinstance(node, ast.Call)]
    shown = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "show"]
    sources = [eval(ast.unparse(ast.Call(ast.Name("source_of"), node.args, node.keywords)), names | {"source_of": source_of})
               for node in shown]
    return [text for text in sources if text is not None]


def source_of(shown, *more, **options):
    """What `show` writes of a function; None for a picture, which has a name."""
    return None if isinstance(shown, str) else source(shown, *more, **options)


def displayed(cell):
    """The sources in the cell's outputs: the text of those with Markdown that begins with a file's path."""
    texts = ["".join(output["data"]["text/plain"]) for output in cell["outputs"] if "text/markdown" in output.get("data", {})]
    return [text for text in texts if re.match(r"# [\w/]+\.py\n", text)]


def outdated(cells):
    """The first two lines of each source that is shown and is not today's."""
    names, old = imported(cells), []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        now, then = asked_for(cell, names), displayed(cell)
        old += [text.split("\n")[:2] for text in then if text not in now]
        old += [text.split("\n")[:2] for text in now if text not in then]
    return old


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_the_source_that_a_lesson_shows_is_todays(path):
    assert not (old := outdated(notebook(path.stem))), f"{old}; run: python -m tinypeft lessons build {path.stem[:2]}"


def test_a_changed_source_is_found():
    """Also if the notebook has a part of today's source, or shows nothing where the cell asks for it."""
    def lesson(*text):
        outputs = [{"data": {"text/plain": list(text), "text/markdown": ["…"]}}] if text else []
        code = ["from tinypeft.engine import plain\n", "from tinypeft.course import show\n", "show(plain.gelu)"]
        prose = {"cell_type": "markdown", "source": ["show(no_code)"]}
        return [prose, {"cell_type": "code", "source": code, "outputs": outputs}]
    from tinypeft.engine import plain
    today = source(plain.gelu)
    assert today.count("\n") > 3 and outdated(lesson(today)) == []
    for other in (today.replace("0.5", "0.4"), today.rpartition("\n")[0], f"{today}\n    x = 1"):
        assert other != today and len(outdated(lesson(other))) == 2
    assert outdated(lesson()) == [today.split("\n")[:2]]


def test_sources_are_shown():
    """A test that finds no calls of `show` would hold nothing."""
    cells = [cell for path in PATHS for cell in notebook(path.stem) if cell["cell_type"] == "code"]
    assert sum(len(displayed(cell)) for cell in cells) > 40
