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

from ..files import write_atomically
from .exercise import Exercise
from .exercises import TOPICS, of_topic
from .judge import judge
from .percent import sources
from .wire import Worker
from .worth import worth

__all__ = ["Grade", "as_json", "grade", "submissions", "write_csv"]

LARGEST = 1 << 26                                        # bytes of a submission
LONGEST_TIME = 86_400                                    # seconds
LONGEST = 2000                                           # characters of a message


@dataclass
class Grade:
    """The result of one submission. exercises: name → {"points", "of", "message"}. problem: the
    error in running it."""
    student: str
    file: str
    lesson: str | None = None
    exercises: dict[str, dict] = field(default_factory=dict)
    problem: str | None = None

    @property
    def points(self) -> int:
        return sum(e["points"] for e in self.exercises.values())

    @property
    def of(self) -> int:
        """The points of a perfect submission."""
        return sum(e["of"] for e in self.exercises.values())

    def record(self) -> dict:
        """The grade as plain values, for JSON."""
        return {**asdict(self), "points": self.points, "of": self.of}

    def __repr__(self) -> str:
        lesson = self.lesson or "an unknown lesson"
        lines = [f"{self.student}: {self.points} of {self.of} points in {lesson}"]
        if self.problem: lines.append(f"  {self.problem}")
        for name, e in self.exercises.items():
            lines.append(f"  {name:<24}{e['points']}/{e['of']}  {e['message']}")
        return "\n".join(lines)


def submissions(paths: Iterable[str | Path]) -> list[Path]:
    """The notebooks and Python files among `paths`, folders searched. ValueError for a path that
    has none. What has the name of one but is no file, such as a broken link, is among them."""
    found = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = [f for f in files if not f.is_dir() and f.suffix in (".ipynb", ".py") and not any(
            part.startswith((".", "__")) for part in f.relative_to(path).parts)]
        if not files: raise ValueError(f"grade: there is no notebook and no Python file in {path}")
        found += files
    return found


def grade(paths: Iterable[str | Path], lesson: str | int | None = None, seed: int = 1,
          seconds: float = 300, jobs: int = 2,
          say: Callable[[Grade], object] | None = None) -> list[Grade]:
    """Grade submissions, `jobs` at a time; returns a `Grade` for each of `submissions(paths)`, in
    that order.

    lesson: its number or name; if None, each file's name or the exercises it checks decide. seed:
    of the data. seconds: the limit for running one notebook, and for all calls of its functions.
    say: called with each grade as soon as it is known.
    """
    if not 0 < seconds <= LONGEST_TIME:
        raise ValueError(f"grade: the time for one notebook is {seconds} s; expected more than 0 "
                         f"and at most {LONGEST_TIME}")
    path, *_ = sources(lesson)                           # raises if the lessons are not there
    chosen = None if lesson is None else path.stem

    def one(path):
        result = Grade(plain(student(path)), plain(str(path)), chosen, unearned(chosen))
        try:
            grade_one(path, result, seed, seconds)
        except Exception as e:                           # one submission must not stop the others
            result.problem = str(e) if type(e) is ValueError else f"{type(e).__name__}: {e}"
        if result.problem: result.problem = plain(result.problem)
        if say: say(result)
        return result
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, submissions(paths)))


def grade_one(path: Path, result: Grade, seed: int, seconds: float) -> None:
    """Grade one file: fill in its `Grade`."""
    if not path.is_file(): raise ValueError("this is no file that can be read")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"the file has {size:,} bytes; a submission has at most {LARGEST:,}")
    if result.lesson is None:
        result.lesson = lesson_of(path)
        result.exercises = unearned(result.lesson)
    if result.lesson is None:
        raise ValueError("cannot tell which lesson this is, neither from its name nor from a "
                         "tp.check in it; give --lesson NN")
    with scratch() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        with Worker(copy, folder, seconds) as worker:
            result.problem = worker.problem
            for name, exercise in of_lesson(result.lesson).items():
                passed, message = checked(exercise, worker, seed)
                row = result.exercises[name]
                row["points"], row["message"] = row["of"] if passed else 0, plain(message)


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
    return {name: {"points": 0, "of": worth(name).points, "message": "not reached"}
            for name in of_lesson(lesson)}


def checked(exercise: Exercise, worker: Worker, seed: int) -> tuple[bool, str]:
    """Whether the submission solves the exercise, and the message that says so."""
    call = worker.remote(exercise.function)
    if call is None:
        reason = f"{exercise.function} is not defined" if worker.alive else "the process has ended"
        return False, reason
    try:
        result = judge(exercise, call, seed)
    except Exception as e:                               # a result that the comparison cannot bear
        return False, f"your result cannot be compared: {type(e).__name__}: {e}"
    cause = f" Likely cause: {result.cause}" if result.cause else ""
    return result.passed, result.message + cause


def plain(text: str) -> str:
    """The text without what a terminal obeys or a file cannot hold, and not longer than needed."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
                    for c in text[:LONGEST])
    return shown + "…" * (len(text) > LONGEST)


def lesson_of(path: Path) -> str | None:
    """The lesson that a submission answers, by its name, or by the exercises that it checks or
    defines."""
    for name in TOPICS.values():
        if name in path.stem: return name
    text = path.read_text(encoding="utf-8", errors="replace")
    topics = re.findall(r'tp\.check\(\\?["\'](\w+)\.', text)
    topics += [t for t in TOPICS if re.search(rf"def {t}_\w+\(", text)]
    known = [t for t in topics if t in TOPICS]
    return TOPICS[max(known, key=known.count)] if known else None


def student(path: Path) -> str:
    """The student's name: the file's name or, if that is the lesson's (07_lora.ipynb), the nearest
    folder's."""
    lessons = {*TOPICS.values(), *(name[:2] for name in TOPICS.values())}
    names = [path.stem, *(folder.name for folder in path.resolve().parents)]
    return next((name for name in names if name and name not in lessons), path.stem)


def write_csv(grades: Iterable[Grade], path: str | Path) -> None:
    """One row per submission: student, file, lesson, points, of, one column per exercise,
    problem."""
    grades = list(grades)
    names = list(dict.fromkeys(name for g in grades for name in g.exercises))
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["student", "file", "lesson", "points", "of", *names, "problem"])
    for g in grades:
        points = [g.exercises[n]["points"] if n in g.exercises else "" for n in names]
        rows.writerow([_cell(g.student), _cell(g.file), g.lesson or "", g.points, g.of, *points,
                       _cell(g.problem or "")])
    write_atomically(path, text.getvalue())


def _cell(text):
    """The text, quoted if a spreadsheet would take it for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def as_json(grades: Iterable[Grade]) -> str:
    """All grades as one JSON list."""
    return json.dumps([g.record() for g in grades], indent=1, ensure_ascii=False)
