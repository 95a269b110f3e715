"""Grading: submissions → points, with fresh data.

The cells of a submission run in their own process, in a temporary folder, with limited time and
memory. Then the lesson's exercises are checked on the functions that the cells defined, with
another seed than the student saw. The arguments are drawn and the results compared in the grader's
process, so that a notebook that prints "passed", or replaces `tp.check`, gains nothing. Whatever a
submission does, it has a row in the result, and so have the others.

This is not a sandbox: a submission can do to the machine whatever its user can. Grade submissions
that you do not trust in a container or under a separate account.
"""
from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..common.wording import printable, shortened, table_cell
from ..files import write_atomically
from .exercise import Exercise
from .exercises import TOPICS, of_topic
from .judge import judge
from .percent import parsed, solved, sources
from .whose import Submission, lesson_of, submissions
from .wire import Worker
from .worker import code_cells
from .worth import worth

__all__ = ["Grade", "as_json", "grade", "write_csv"]

LARGEST = 1 << 26                                        # bytes of a submission
LONGEST_TIME = 86_400                                    # seconds
LONGEST = 2000                                           # characters of a message
LEADS = re.compile(r"course\.exercises|course import (?!(?:show|use)\b)|\.reference\b|\.function\(|"
                   r"getsource|sys\.modules|lessons/")  # to the references, or to the solutions


@dataclass
class Grade:
    """The result of one submission. exercises: name → {"points", "of", "bonus", "message"}. Points
    of a bonus exercise are `extra`: they are neither in `points` nor in `of`. problem: the error in
    running it. notes: what a person should look at."""
    student: str
    file: str
    lesson: str | None = None
    exercises: dict[str, dict] = field(default_factory=dict)
    problem: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def points(self) -> int:
        return sum(e["points"] for e in self.exercises.values() if not e["bonus"])

    @property
    def of(self) -> int:
        """The points of a perfect submission."""
        return sum(e["of"] for e in self.exercises.values() if not e["bonus"])

    @property
    def extra(self) -> int:
        """The points of the bonus exercises."""
        return sum(e["points"] for e in self.exercises.values() if e["bonus"])

    def record(self) -> dict:
        """The grade as plain values, for JSON."""
        return {**asdict(self), "points": self.points, "of": self.of, "extra": self.extra}

    def __repr__(self) -> str:
        lesson = self.lesson or "an unknown lesson"
        extra = f" and {self.extra} extra" * bool(self.extra)
        lines = [f"{self.student}: {self.points} of {self.of} points{extra} in {lesson}"]
        lines += [f"  {line}" for line in (self.problem, *self.notes) if line]
        for name, e in self.exercises.items():
            lines.append(f"  {name:<24}{e['points']}/{e['of']}  {e['message']}")
        return "\n".join(lines)


def grade(paths: Iterable[str | Path], lesson: str | int | None = None, seed: int = 1,
          seconds: float = 300, jobs: int = 2, cell_seconds: float = 120,
          say: Callable[[Grade], object] | None = None) -> list[Grade]:
    """Grade submissions, `jobs` people at a time. Returns one `Grade` for each person and lesson,
    in the order of `submissions(paths)`. Of several files the one with the most points counts, and
    the notes name the others.

    lesson: its number or name; if None, each file's name or the exercises it checks decide. seed:
    of the data. seconds: the limit for running one notebook, and for all calls of its functions.
    cell_seconds: the limit for one of its cells. A notebook that reaches a limit keeps what it has
    defined. say: called with each grade as soon as it is known.
    """
    for about, limit in (("notebook", seconds), ("cell", cell_seconds)):
        if not 0 < limit <= LONGEST_TIME:
            raise ValueError(f"grade: the time for one {about} is {limit} s; expected more than 0 "
                             f"and at most {LONGEST_TIME}")
    path, *_ = sources(lesson)                           # raises if the lessons are not there
    chosen = None if lesson is None else path.stem

    def graded(of):
        result = Grade(plain(of.student), plain(str(of.path)), chosen, unearned(chosen))
        try:
            grade_one(of.path, result, seed, seconds, cell_seconds)
        except Exception as e:                           # one submission must not stop the others
            result.problem = str(e) if type(e) is ValueError else f"{type(e).__name__}: {e}"
        if result.problem: result.problem = plain(result.problem)
        return result

    def one(person):
        results = best(list(map(graded, person)))
        if say:
            for result in results: say(result)
        return results
    people: dict[tuple, list[Submission]] = {}
    for of in submissions(paths): people.setdefault(of.person, []).append(of)
    with ThreadPoolExecutor(jobs) as pool:
        return [result for results in pool.map(one, people.values()) for result in results]


def best(grades: list[Grade]) -> list[Grade]:
    """Of one person's grades the best of each lesson, with a note about the others. A file of no
    known lesson counts only if there is no other."""
    known = [g for g in grades if g.lesson] or grades
    kept = {g.lesson: g for g in sorted(known, key=lambda g: (g.points, g.extra))}
    chosen = [kept[lesson] for lesson in dict.fromkeys(g.lesson for g in known)]
    for g in grades:
        if any(g is one for one in chosen): continue
        kept.get(g.lesson, chosen[0]).notes.append(f"also handed in: {g.file}, {g.points} points")
    return chosen


def grade_one(path: Path, result: Grade, seed: int, seconds: float, cell_seconds: float) -> None:
    """Grade one file: fill in its `Grade`."""
    if path.is_dir(): raise ValueError("there is no notebook and no Python file in this folder")
    if not path.is_file(): raise ValueError("this is no file that can be read")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"the file has {size:,} bytes; a submission has at most {LARGEST:,}")
    if result.lesson is None:
        result.lesson = lesson_of(path)
        result.exercises = unearned(result.lesson)
    if result.lesson is None:
        if path.suffix == ".ipynb": code_cells(path)     # raises if this is no notebook
        raise ValueError("cannot tell which lesson this is, neither from its name nor from a "
                         "tp.check in it; give --lesson NN")
    result.notes += named(path, result.lesson)
    cells = parsed(*sources(result.lesson))
    solutions = {cell.exercise: solved(cell).source for cell in cells if cell.exercise}
    with scratch() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        with Worker(copy, folder, seconds, cell_seconds) as worker:
            result.problem = worker.problem
            for name, exercise in of_lesson(result.lesson).items():
                passed, message, borrowed = checked(exercise, worker, seed)
                row = result.exercises[name]
                row["points"], row["message"] = row["of"] if passed else 0, plain(message)
                calls = unusual(borrowed, solutions[name])
                if calls: result.notes.append(f"look at it: {name} calls {', '.join(calls)}")


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A temporary folder. What cannot be removed from it stays: a submission may have locked it, or
    put thousands of folders inside each other."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    try: yield folder.name
    finally:
        with contextlib.suppress(RecursionError): folder.cleanup()


def of_lesson(lesson: str | None) -> dict[str, Exercise]:
    """A lesson's exercises by name; none of an unknown lesson."""
    return {name: e for t, of in TOPICS.items() if of == lesson for name, e in of_topic(t).items()}


def unearned(lesson: str | None) -> dict[str, dict]:
    """What a submission has before it is looked at: no points in any exercise of its lesson."""
    worths = {name: worth(name) for name in of_lesson(lesson)}
    return {name: {"points": 0, "of": w.points, "bonus": w.bonus, "message": "not reached"}
            for name, w in worths.items()}


def checked(exercise: Exercise, worker: Worker, seed: int) -> tuple[bool, str, list[str]]:
    """Whether the submission solves the exercise, the message that says so, and the functions of
    the package that a right answer calls."""
    call = worker.remote(exercise.function)
    if call is None:
        if not worker.alive: return False, "the process has ended", []
        return False, f"no cell defines {exercise.function}", []
    try:
        result = judge(exercise, call, seed)
    except Exception as e:                               # a result that the comparison cannot bear
        return False, f"your result cannot be compared: {type(e).__name__}: {e}", []
    cause = f" Likely cause: {result.cause}" if result.cause else ""
    return result.passed, result.message + cause, result.borrowed


def unusual(borrowed: list[str], solution: str) -> list[str]:
    """The functions among `borrowed` that the lesson's solution does not name."""
    nodes = list(ast.walk(ast.parse(solution)))
    known = {getattr(node, "id", None) or getattr(node, "attr", None) for node in nodes}
    return [plain(name) for name in borrowed if name.rpartition(".")[2] not in known]


def named(path: Path, lesson: str) -> list[str]:
    """A note, if the file names what leads to the references. The lines of the assignment's own
    cells do not count."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for cell in parsed(*sources(lesson)):
        for line in filter(LEADS.search, cell.source.splitlines()):
            for form in (line, json.dumps(line)[1:-1], json.dumps(line, ensure_ascii=False)[1:-1]):
                text = text.replace(form, "")
    found = dict.fromkeys(LEADS.findall(text))
    words = ", ".join(f"“{name.strip()}”" for name in found)
    return [f"look at it: it names {words}"] if found else []


def plain(text: str) -> str:
    """The text without what a terminal obeys or a file cannot hold, and not longer than needed."""
    return shortened(printable(text), LONGEST)


def write_csv(grades: Iterable[Grade], path: str | Path) -> None:
    """One row per grade: student, file, lesson, points, of, extra, one column per exercise,
    problem, notes."""
    grades = list(grades)
    names = list(dict.fromkeys(name for g in grades for name in g.exercises))
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["student", "file", "lesson", "points", "of", "extra", *names, "problem",
                   "notes"])
    for g in grades:
        points = [g.exercises[n]["points"] if n in g.exercises else "" for n in names]
        rows.writerow([table_cell(g.student), table_cell(g.file), g.lesson or "", g.points, g.of,
                       g.extra, *points, table_cell(g.problem or ""),
                       table_cell("; ".join(g.notes))])
    write_atomically(path, text.getvalue())


def as_json(grades: Iterable[Grade]) -> str:
    """All grades as one JSON list."""
    return json.dumps([g.record() for g in grades], indent=1, ensure_ascii=False)
