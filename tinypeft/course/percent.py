"""Lessons as text: a percent file, lessons/src/NN_name.py, becomes a lesson and its assignment.

    # %% [markdown]                                   prose, each line behind "# "
    # %%                                              code
    # %% fold                                         code that only draws, folded in the notebook
    # %% exercise=lora.forward points=3 minutes=10    a function for the student to write: its head
    # %% exercise=… points=3 minutes=10 as=mine       and the name that later cells call it by
    # %% exercise=… points=3 minutes=10 bonus=yes     one whose points are extra
    # %% [answer]                                     of an open exercise, for instructors

The solution is made of the exercise's right answer (`solution.py`). One that differs from it
stands between marks, ### BEGIN SOLUTION and ### END SOLUTION. A cell that calls `tp.check` follows
each exercise; that cell earns the points. An exercise's heading is generated, so that its number,
title, points and minutes stand in one place each:

    # ### {exercise}                        → ### Exercise 1 · Its title (★★, 3 points, 10 minutes)
                       of a bonus      → ### Exercise 1 · Bonus: Its title (★★, 3 extra points, …)
    # ### {exercise} · Your choice (open, 5 points, 30 minutes)
                                            → ### Exercise 5 · Your choice (open, 5 points, …)

Text may hold the study's numbers, `{study rank: 8, loss}` or `{claim A very small rank}`; see
`study_numbers.py`. A guess, `tp.guess("03.peak", 31.0, "MiB")`, is a number in the lesson, and in
the assignment `...` stands in its place.

In the notebooks "arXiv 2106.09685" and "lesson 07" are links.

Two notebooks are made of a source: the lesson, with the solutions and their outputs, and the
assignment, which has a stub in place of each solution. An answer is in neither. Both carry
nbgrader's metadata (schema 3), so that a course that uses nbgrader can take them as they are.
"""
from __future__ import annotations

import ast
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .exercises import find
from .solution import right_answer
from .study_numbers import filled

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["Cell", "LESSONS", "SOURCES", "assignment", "execute", "headed", "lesson", "linked",
           "parse", "parsed", "read", "solved", "sources"]

LESSONS = Path(__file__).parents[2] / "lessons"
SOURCES = LESSONS / "src"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
HEADING = re.compile(r"^(#+ )\{exercise\}( · .+)?$", re.M)
CODE_OR_HTML = r"```.*?```|`[^`]*`|<details>.*?</details>|<[^>]*>"
LINK = r"\[[^\]]*\]\([^)]*\)"
NAMED = r"arXiv\s+(?P<paper>\d{4}\.\d{4,5})|[Ll]esson\s(?P<lesson>\d\db?)"
LINKED = re.compile(f"{CODE_OR_HTML}|{LINK}|{NAMED}", re.S)
OPEN = re.compile(r" · (?P<bonus>Bonus: )?.+ \(open, \d+ (?P<extra>extra )?points?, \d+ minutes\)")


@dataclass
class Cell:
    """One cell of a source. kind: "markdown", "answer" or "code". options: of an exercise, its
    name, points and minutes, bonus, and as. line: the number of the cell's header line. folded: the
    notebook shows what the code draws, and the code when it is asked for."""
    kind: str
    source: str
    options: dict[str, str | int] = field(default_factory=dict)
    line: int = 0
    folded: bool = False

    @property
    def exercise(self) -> str | None:
        """The name of the exercise that this cell solves, or None."""
        return self.options.get("exercise")

    @property
    def bonus(self) -> bool:
        """Are the points of this exercise extra?"""
        return "bonus" in self.options


# -- reading -------------------------------------------------------------------------------------
def sources(which: str | int | None = None) -> list[Path]:
    """The lessons' source files, in order, or the one that `which` names: "7", "07", "07_lora" or,
    of a lesson's second half, "13b".

    Raises KeyError if there is no such lesson, FileNotFoundError if there are no sources at all.
    """
    files = sorted(SOURCES.glob("[0-9][0-9]*_*.py"), key=lambda f: f.stem.partition("_"))
    if not files:
        raise FileNotFoundError(f"there are no lesson sources in {SOURCES}; the course needs a "
                                "checkout of the repository, with lessons/ beside the package")
    if which is None: return files
    found = [f for f in files if str(which).zfill(2) in (f.stem, f.stem.partition("_")[0])]
    if not found:
        names = ", ".join(f.stem for f in files)
        raise KeyError(f"there is no lesson {which!r}; the lessons are {names}")
    return found


def read(path: str | Path) -> list[Cell]:
    """The cells of a source file, with headings of exercises, solutions and numbers of the study
    filled in.

    Answers keep their placeholders; `assign.answers` fills them in. Raises ValueError, with the
    line, for a placeholder that names nothing.
    """
    name = Path(path).name

    def whole(cell):
        if cell.kind == "markdown":
            return replace(cell, source=filled(cell.source, name, cell.line + 1))
        return solved(cell) if cell.exercise else cell
    return [whole(cell) for cell in headed(parsed(path), name)]


def solved(cell: Cell) -> Cell:
    """The cell of an exercise with a solution between the marks: its own, or the right answer."""
    if BEGIN in cell.source: return cell
    lines = [cell.source, f"    {BEGIN}", right_answer(find(cell.exercise).reference), f"    {END}"]
    return replace(cell, source="\n".join(lines))


def parsed(path: str | Path) -> list[Cell]:
    """The cells of a source file as they stand there. Nothing of the study is read."""
    return parse(Path(path).read_text(encoding="utf-8"), Path(path).name)


def parse(text: str, name: str = "lesson") -> list[Cell]:
    """The cells of a percent file. ValueError, with file and line, if it is not well formed."""
    cells, lines = [], text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    if not starts or any(line.strip() for line in lines[:starts[0]]):
        raise ValueError(f"{name}: the first line must begin a cell, with # %% or # %% [markdown]")
    for a, b in zip(starts, [*starts[1:], len(lines)], strict=True):
        where = f"{name}, line {a + 1}"
        header = lines[a][4:].strip()
        folded = header == "fold"
        kind, options = _header("" if folded else header, where)
        body = "\n".join(lines[a + 1:b]).strip("\n")
        if kind != "code":
            wrong = [line for line in body.split("\n") if not line.startswith("#")]
            if wrong:
                raise ValueError(f"{where}: each line of a cell of text must begin with #, "
                                 f"got {wrong[0]!r}")
            body = "\n".join(re.sub("^# ?", "", line) for line in body.split("\n"))
        _check_marks(body, options, where)
        if kind == "code": unguessed(body, where)
        cells.append(Cell(kind, body, options, a + 1, folded))
        if options: cells.append(Cell(kind, check(options), line=a + 1))
    return cells


def check(options: dict[str, str | int]) -> str:
    """The code of the cell that checks an exercise and gives its function a name."""
    name, later = options["exercise"], options.get("as")
    lines = [f'result = tp.check("{name}", {name.replace(".", "_")})']
    if later: lines.append(f"{later} = result.function")
    return "\n".join([*lines, "result"])


def _header(text, where):
    if text in ("[markdown]", "[answer]"): return text[1:-1], {}
    options = dict(re.findall(r"(\w+)=(\S+)", text))
    rest = re.sub(r"\w+=\S+", "", text).strip()
    needed = {"exercise", "points", "minutes"}
    if rest or options and options.keys() - {"bonus", "as"} != needed or options.get(
            "bonus", "yes") != "yes":
        raise ValueError(f"{where}: expected # %%, # %% fold, # %% [markdown], # %% [answer] or "
                         "# %% exercise=… points=… minutes=… [bonus=yes] [as=…], got # %% " + text)
    return "code", {k: int(v) if k in ("points", "minutes") else v for k, v in options.items()}


def _check_marks(body, options, where):
    open_at = None
    lines = [line.strip() for line in body.split("\n")]
    marks = [(i, line) for i, line in enumerate(lines, 1) if line in (BEGIN, END)]
    for i, mark in marks:
        if (mark == BEGIN) != (open_at is None):
            fault = "is inside another solution" if open_at else "comes where no solution is open"
            raise ValueError(f"{where}: {mark} in line {i} of the cell {fault}")
        open_at = i if mark == BEGIN else None
    if open_at:
        raise ValueError(f"{where}: the solution in line {open_at} of the cell does not end")
    if marks and not options:
        raise ValueError(f"{where}: a solution stands in a cell that is no exercise")
    if not options and 'tp.check("' in body:
        raise ValueError(f"{where}: the cell that calls tp.check is made of the exercise's header; "
                         "write as=… in it")


def headed(cells: list[Cell], name: str = "lesson") -> list[Cell]:
    """The cells, with number, title, points and minutes in place of `{exercise}` in headings.

    Raises ValueError unless each exercise has exactly one heading, in the text before its cell.
    """
    made, numbers, headings = [], itertools.count(1), []
    for i, cell in enumerate(cells):
        following = next((c for c in cells[i:] if c.exercise), None)

        def heading(match, following=following):
            level, title = match.groups()
            marks = OPEN.fullmatch(title or "")
            if title and (not marks or bool(marks["bonus"]) != bool(marks["extra"])):
                raise ValueError(f"{name}: expected {{exercise}} · Title (open, 4 points, 25 "
                                 "minutes) or {exercise} · Bonus: Title (open, 3 extra points, 25 "
                                 f"minutes), got {{exercise}}{title}")
            if title is None:
                headings.append(following)
                title = _title(following) if following else ""
            return f"{level}Exercise {next(numbers)}{title}"
        if cell.kind == "markdown": cell = replace(cell, source=HEADING.sub(heading, cell.source))
        made.append(cell)
    if headings != [cell for cell in cells if cell.exercise]:
        raise ValueError(f"{name}: each exercise needs one heading, # ### {{exercise}}, before its "
                         f"cell; got {len(headings)} headings, which stand before "
                         + ", ".join(cell.exercise if cell else "no exercise" for cell in headings))
    return made


def _title(cell):
    points, minutes = cell.options["points"], cell.options["minutes"]
    exercise, plural = find(cell.exercise), "s" * (points != 1)
    stars, bonus, extra = "★" * exercise.stars, "Bonus: " * cell.bonus, "extra " * cell.bonus
    return f" · {bonus}{exercise.title} ({stars}, {points} {extra}point{plural}, {minutes} minutes)"


# -- notebooks -----------------------------------------------------------------------------------
def lesson(cells: list[Cell], up: str = "") -> NotebookNode:
    """The notebook with solutions, not yet executed. up: the way to the lessons' folder."""
    marks = re.compile(rf" *({BEGIN}|{END})\n?")

    def source(cell):
        if cell.kind == "markdown": return linked(cell.source, up)
        return marks.sub("", cell.source).rstrip()
    return _notebook(cells, source)


def linked(text: str, up: str = "") -> str:
    """The text of a lesson with links to the papers and to the other lessons that it names. A text
    in HTML, such as an answer of *Recall*, stays as it is: there Markdown is not read."""
    files = {path.stem.partition("_")[0]: f"{path.stem}.ipynb" for path in sources()}

    def link(match):
        paper, number = match["paper"], match["lesson"]
        if paper: return f"[{match[0]}](https://arxiv.org/abs/{paper})"
        return f"[{match[0]}]({up}{files[number]})" if number in files else match[0]
    return LINKED.sub(link, text)


def assignment(cells: list[Cell], solved: bool = False) -> NotebookNode:
    """The student's notebook, with a stub in place of each solution. solved: keep the solutions
    between nbgrader's marks, which makes the notebook the source for nbgrader's own commands."""
    stub = re.compile(rf"( *){BEGIN}\n.*?{END}", re.S)

    def source(cell):                                    # an assignment lies a folder deeper
        if cell.kind == "markdown":
            text = linked(cell.source).replace("](../", "](../../")
            return text.replace("](GLOSSARY", "](../GLOSSARY")
        if not cell.exercise: return unguessed(cell.source)
        if solved: return cell.source
        empty = f'raise NotImplementedError("{cell.exercise}")'
        return stub.sub(lambda m: f"{m[1]}# write your solution here\n{m[1]}{empty}", cell.source)
    return _notebook(cells, source, graded=True)


def unguessed(code: str, where: str = "a cell") -> str:
    """The code with `...` in place of each number that is guessed: guess("03.peak", 31.0).

    Raises ValueError if a guess is not written as one plain number.
    """
    if "tp.guess(" not in code: return code
    lines, found = code.split("\n"), []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "tp.guess": continue
        if len(node.args) < 2 or not isinstance(node.args[0], ast.Constant):
            raise ValueError(f'{where}: expected tp.guess("NN.word", number, "unit"), '
                             f"got {ast.unparse(node)}")
        guess = node.args[1]
        try:
            number = ast.literal_eval(guess)
        except ValueError:
            number = None
        if type(number) not in (int, float):
            raise ValueError(f"{where}: the guess of {node.args[0].value!r} must be one plain "
                             f"number, got {ast.unparse(guess)}")
        found.append(guess)
    for guess in sorted(found, key=lambda g: (g.lineno, g.col_offset), reverse=True):
        line = lines[guess.lineno - 1].encode()          # columns are counted in bytes
        line = line[:guess.col_offset] + b"..." + line[guess.end_col_offset:]
        lines[guess.lineno - 1] = line.decode()
    return "\n".join(lines)


def _notebook(cells: list[Cell], source: Callable[[Cell], str], graded: bool = False):
    from nbformat import NotebookNode, v4
    made, used, exercise = [], set(), None
    for cell in cells:
        if cell.kind == "answer": continue
        text = source(cell)
        # v4.new_code_cell would validate each cell, and takes most of the time
        new = NotebookNode(cell_type=cell.kind, metadata=NotebookNode(), source=text)
        if cell.kind == "code": new |= {"outputs": [], "execution_count": None}
        new.id = digest = hashlib.sha256(f"{cell.kind}\n{cell.source}".encode()).hexdigest()[:12]
        while new.id in used: new.id = digest = hashlib.sha256(digest.encode()).hexdigest()[:12]
        used.add(new.id)
        if cell.folded:                                  # JupyterLab's; Jupyter Book has the tag
            new.metadata |= {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
        if graded and cell.exercise:
            new.metadata["nbgrader"] = _nbgrader(cell.exercise, solution=True)
        if graded and exercise:                          # nbgrader has no extra points
            earns = {} if exercise.bonus else {"points": exercise.options["points"], "grade": True}
            new.metadata["nbgrader"] = _nbgrader(f"check-{exercise.exercise}", locked=True, **earns)
        exercise = cell if cell.exercise else None
        made.append(new)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
              "language_info": {"name": "python"}}
    return v4.new_notebook(cells=made, metadata=kernel)


def _nbgrader(name, grade=False, solution=False, locked=False, **more):
    return {"grade": grade, "grade_id": name.replace(".", "-"), "locked": locked,
            "schema_version": 3, "solution": solution, "task": False, **more}


def execute(notebook: NotebookNode, folder: str | Path = LESSONS,
            timeout: float = 300) -> NotebookNode:
    """Run all cells in a fresh kernel that imports this package. The outputs go into `notebook`,
    which is returned.

    Raises nbclient's CellExecutionError if a cell fails, and CellTimeoutError if one takes more
    than `timeout` seconds.
    """
    from nbclient import NotebookClient
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    kernel = {k: v for k, v in os.environ.items() if not k.startswith("NBGRADER_")}
    kernel |= {"PYTHONPATH": path, "MPLBACKEND": "agg"}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False,
                            extra_arguments=["--log-level=40"],
                            resources={"metadata": {"path": str(folder)}})
    client.execute(env=kernel)
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.metadata.pop("execution", None)
        cell.outputs = _joined(cell.outputs)
        warnings = [out.text for out in cell.outputs if out.get("name") == "stderr"]
        if warnings: print("".join(warnings), file=sys.stderr)
    return notebook


def _joined(outputs: list) -> list:
    """Consecutive pieces of one stream as one output: a kernel cuts a stream at random places."""
    joined: list = []
    for out in outputs:
        same = joined and out.output_type == "stream" and joined[-1].get("name") == out.name
        if same: joined[-1].text += out.text
        else:    joined.append(out)
    return joined
