"""Lessons as text: `lessons/src/NN_name.py` in percent format, the one source of a lesson and of its assignment.

    # %% [markdown]                                          prose, each line behind "# "
    # %%                                                     code
    # %% exercise=lora.forward points=3 minutes=10           a function for the student to write, between the marks
        ### BEGIN SOLUTION
        ### END SOLUTION

The code cell behind an exercise calls `tp.check` with the exercise's name: there the points are given. Two notebooks are
made of it: the lesson, with the solutions and what running them shows, and the assignment, with a stub in the place of
each solution. Both carry nbgrader's metadata (schema 3), so that a course that uses nbgrader takes them as they are.
"""
import hashlib
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Cell", "LESSONS", "SRC", "assignment", "execute", "lesson", "parse", "read", "sources"]

LESSONS = Path(__file__).parents[2] / "lessons"
SRC = LESSONS / "src"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


@dataclass
class Cell:
    """kind: "markdown" or "code". source: its text. options: of an exercise, name → value. line: of its header."""
    kind: str
    source: str
    options: dict = field(default_factory=dict)
    line: int = 0

    exercise = property(lambda self: self.options.get("exercise"))


# -- reading -------------------------------------------------------------------------------------
def sources(which=None):
    """The lessons' source files in order; of one by its number or name ("7", "07", "07_lora"). KeyError if there is none."""
    files = sorted(SRC.glob("[0-9][0-9]_*.py"))
    if which is None: return files
    found = [f for f in files if str(which) in (f.stem, f.stem[:2]) or str(which).isdigit() and int(which) == int(f.stem[:2])]
    if not found:
        raise KeyError(f"there is no lesson {which!r}; there are {', '.join(f.stem for f in files)}")
    return found


def read(path):
    """The cells of a source file."""
    return parse(Path(path).read_text(encoding="utf-8"), Path(path).name)


def parse(text, name="lesson"):
    """The cells of a percent file. ValueError, with file and line, for anything that is not well formed."""
    cells, lines = [], text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    if not starts or any(line.strip() for line in lines[:starts[0]]):
        raise ValueError(f"{name}: the first line must begin a cell, # %% or # %% [markdown]")
    for a, b in zip(starts, [*starts[1:], len(lines)], strict=True):
        where = f"{name}, line {a + 1}"
        kind, options = _header(lines[a][4:].strip(), where)
        body = "\n".join(lines[a + 1:b]).strip("\n")
        if kind == "markdown":
            wrong = [line for line in body.split("\n") if not line.startswith("#")]
            if wrong: raise ValueError(f"{where}: a line of a markdown cell must begin with #, got {wrong[0]!r}")
            body = "\n".join(re.sub("^# ?", "", line) for line in body.split("\n"))
        _check_marks(body, options, where)
        cells.append(Cell(kind, body, options, a + 1))
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell.exercise and (after is None or f'tp.check("{cell.exercise}"' not in after.source):
            raise ValueError(f'{name}, line {cell.line}: behind an exercise stands a cell with tp.check("{cell.exercise}", …)')
    return cells


def _header(text, where):
    if text == "[markdown]": return "markdown", {}
    options = dict(re.findall(r"(\w+)=(\S+)", text))
    if text and re.sub(r"\w+=\S+", "", text).strip() or options and options.keys() != {"exercise", "points", "minutes"}:
        raise ValueError(f"{where}: expected # %%, # %% [markdown] or # %% exercise=… points=… minutes=…, got # %% {text}")
    return "code", {k: v if k == "exercise" else int(v) for k, v in options.items()}


def _check_marks(body, options, where):
    open_at = None
    marks = [(i, line.strip()) for i, line in enumerate(body.split("\n"), 1) if line.strip() in (BEGIN, END)]
    for i, mark in marks:
        if (mark == BEGIN) != (open_at is None):
            raise ValueError(f"{where}: {mark} in line {i} of the cell, "
                             + ("inside another solution" if mark == BEGIN else "but no solution is open"))
        open_at = i if mark == BEGIN else None
    if open_at: raise ValueError(f"{where}: the solution that begins in line {open_at} of the cell does not end")
    if bool(marks) != bool(options):
        raise ValueError(f"{where}: " + ("an exercise needs a solution between its marks" if options
                                         else "a solution stands in a cell that is no exercise"))


# -- notebooks -----------------------------------------------------------------------------------
def lesson(cells):
    """The notebook with solutions, not yet executed."""
    return _notebook(cells, lambda cell: re.sub(rf" *({BEGIN}|{END})\n?", "", cell.source).rstrip())


def assignment(cells, solved=False):
    """The student's notebook; solved: with solutions between nbgrader's marks, the source of nbgrader's own commands."""
    stub = re.compile(rf"( *){BEGIN}\n.*?{END}", re.S)

    def source(cell):
        if not cell.exercise or solved: return cell.source
        empty = f'raise NotImplementedError("{cell.exercise}")'
        return stub.sub(lambda m: f"{m[1]}# write your solution here\n{m[1]}{empty}", cell.source)
    return _notebook(cells, source, graded=True)


def _notebook(cells, source, graded=False):
    import nbformat.v4 as v4
    made, used, exercise = [], set(), None
    for cell in cells:
        text = source(cell)
        new = v4.new_markdown_cell(text) if cell.kind == "markdown" else v4.new_code_cell(text)
        new.id = digest = hashlib.sha256(f"{cell.kind}\n{cell.source}".encode()).hexdigest()[:12]
        while new.id in used: new.id = digest = hashlib.sha256(digest.encode()).hexdigest()[:12]
        used.add(new.id)
        if graded and cell.exercise:
            new.metadata["nbgrader"] = _nbgrader(cell.exercise, solution=True)
        if graded and exercise:
            new.metadata["nbgrader"] = _nbgrader(f"check-{exercise.exercise}", grade=True, locked=True,
                                                 points=exercise.options["points"])
        exercise = cell if cell.exercise else None
        made.append(new)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
              "language_info": {"name": "python"}}
    return v4.new_notebook(cells=made, metadata=kernel)


def _nbgrader(name, grade=False, solution=False, locked=False, **more):
    return {"grade": grade, "grade_id": name.replace(".", "-"), "locked": locked, "schema_version": 3, "solution": solution,
            "task": False, **more}


def execute(notebook, folder=LESSONS, timeout=300):
    """Run all cells in a fresh kernel that imports this package; the outputs go into `notebook`, which is returned.

    Raises nbclient's CellExecutionError, or CellTimeoutError after `timeout` seconds in one cell."""
    from nbclient import NotebookClient
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    kernel = {k: v for k, v in os.environ.items() if not k.startswith("NBGRADER_")} | {"PYTHONPATH": path, "MPLBACKEND": "agg"}
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False, extra_arguments=["--log-level=40"],
                   resources={"metadata": {"path": str(folder)}}).execute(env=kernel)
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.metadata.pop("execution", None)
        if any(out.output_type == "stream" and out.name == "stderr" for out in cell.outputs):
            print("".join(out.text for out in cell.outputs if out.get("name") == "stderr"), file=sys.stderr)
    return notebook
