"""Grading: submissions → points, with fresh data.

The cells of a submission run in their own process, in a temporary folder, for a limited time. Then
the lesson's exercises are checked on the functions that the cells defined, with another seed than
the student saw. The arguments are drawn and the results compared in the grader's process, so that a
notebook that prints "passed", or replaces `tp.check`, gains nothing.

This is not a sandbox: a submission can do to the machine whatever its user can. Grade submissions
that you do not trust in a container or under a separate account.
"""
from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .exercises import TOPICS, of_topic
from .judge import judge
from .percent import sources
from .wire import Worker
from .worth import worth

__all__ = ["Grade", "as_json", "grade", "submissions", "write_csv"]


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
    has none."""
    found = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = [f for f in files if f.is_file() and f.suffix in (".ipynb", ".py") and not any(
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
    of the data. seconds: the limit for running one notebook. say: called with each grade as soon as
    it is known.
    """
    path, *_ = sources(lesson)                           # raises if the lessons are not there
    chosen = None if lesson is None else path.stem

    def one(path):
        try:
            result = grade_one(path, chosen, seed, seconds)
        except Exception as e:                           # one submission must not stop the others
            result = Grade(student(path), str(path), chosen, problem=f"{type(e).__name__}: {e}")
        if say: say(result)
        return result
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, submissions(paths)))


def grade_one(path: Path, lesson: str | None, seed: int, seconds: float) -> Grade:
    """The `Grade` of one file."""
    result = Grade(student(path), str(path), lesson or lesson_of(path))
    if result.lesson is None:
        result.problem = ("cannot tell which lesson this is, neither from its name nor from a "
                          "tp.check in it; give --lesson NN")
        return result
    topic = next(t for t, name in TOPICS.items() if name == result.lesson)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        with Worker(copy, folder, seconds) as worker:
            result.problem = worker.problem
            for name, exercise in of_topic(topic).items():
                points = worth(name).points
                passed, message = checked(exercise, worker, seed)
                result.exercises[name] = {"points": points if passed else 0, "of": points,
                                          "message": message}
    return result


def checked(exercise, worker, seed):
    """Whether the submission solves the exercise, and the message that says so."""
    call = worker.remote(exercise.function)
    if call is None:
        reason = f"{exercise.function} is not defined" if worker.alive else "the process has ended"
        return False, reason
    result = judge(exercise, call, seed)
    cause = f" Likely cause: {result.cause}" if result.cause else ""
    return result.passed, result.message + cause


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
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["student", "file", "lesson", "points", "of", *names, "problem"])
        for g in grades:
            points = [g.exercises[n]["points"] if n in g.exercises else "" for n in names]
            rows.writerow([_cell(g.student), _cell(g.file), g.lesson or "", g.points, g.of, *points,
                           _cell(g.problem or "")])


def _cell(text):
    """The text, quoted if a spreadsheet would take it for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def as_json(grades: Iterable[Grade]) -> str:
    """All grades as one JSON list."""
    return json.dumps([g.record() for g in grades], indent=1, ensure_ascii=False)
