"""The notebooks of projects: a skeleton for students, and a worked example for instructors.

A source in lessons/src/projects is a percent file, as a lesson's is. In a cell `# %% project` the
part between the marks of a solution is the student's:

    lessons/projects/NAME.ipynb             the skeleton, with a comment in place of these parts
    lessons/projects/example/NAME.ipynb     worked, with outputs, if the source works

A source works if its parts are code. One whose parts are comments only says what belongs there. A
line `# skeleton: code` stands in the skeleton alone, as code.
"""
from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomically
from .percent import BEGIN, END, LESSONS, SOURCES, execute, lesson, parse

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["build", "example", "skeleton", "sources", "works"]

PROJECTS = LESSONS / "projects"
PART = re.compile(rf"{BEGIN}\n(.*?){END}", re.S)
YOURS, ONLY = "# your code here", "# skeleton: "


def sources() -> list[Path]:
    """The projects' source files, in order."""
    return sorted((SOURCES / "projects").glob("*.py"))


def works(path: Path) -> bool:
    """Whether the source has code in its parts, not comments alone."""
    lines = "\n".join(PART.findall(path.read_text(encoding="utf-8"))).split("\n")
    return any(line.strip() and not line.startswith("#") for line in lines)


def skeleton(path: Path) -> NotebookNode:
    """The notebook that students get. Comments of a source that does not work stay: they say what
    belongs there."""
    told = not works(path)

    def stub(match):
        given = [line for line in match[1].rstrip().split("\n") if line.startswith(ONLY)]
        kept = [line for line in match[1].rstrip().split("\n") if told and line not in given]
        return "\n".join([YOURS + ":" * bool(kept), *kept, *(x[len(ONLY):] for x in given)])
    return _notebook(path, stub)


def example(path: Path) -> NotebookNode:
    """The worked notebook, not yet executed. Its links go up once more: it lies a folder deeper."""
    worked = _notebook(path, lambda m: "\n".join(x for x in m[1].rstrip().split("\n")
                                                 if not x.startswith(ONLY)))
    for cell in worked.cells:
        if cell.cell_type == "markdown": cell.source = cell.source.replace("](../", "](../../")
    return worked


def _notebook(path, part):
    text = path.read_text(encoding="utf-8").replace("# %% project\n", "# %%\n")
    return lesson(parse(PART.sub(part, text), path.name), up="../")


def build(write: bool = True, say: Callable[[str], object] = print) -> None:
    """Execute the examples. With `write`, store them and the skeletons."""
    import nbformat
    for path in sources():
        name, start = f"{path.stem}.ipynb", time.perf_counter()
        if works(path):
            done = execute(example(path))
            say(f"project {path.stem}  {time.perf_counter() - start:.0f} s")
            if write: write_atomically(PROJECTS / "example" / name, nbformat.writes(done) + "\n")
        if write: write_atomically(PROJECTS / name, nbformat.writes(skeleton(path)) + "\n")
