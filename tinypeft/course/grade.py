"""Grading: submissions → points, with fresh data.

A submission's cells run in a process of their own, in a folder that is thrown away, for a limited time. Then the lesson's
exercises are checked on the functions they defined, with arguments of another seed than the student saw: the arguments are
drawn and the results compared here, so that a notebook which prints "passed", or puts something else in the place of
`tp.check`, gains nothing. It is not a sandbox: a submission can do to this machine what its user can. Grade in a container
or under an account of its own what you do not trust.
"""
import csv
import json
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .check import judge
from .exercises import TOPICS, of_topic
from .percent import sources
from .wire import Worker

__all__ = ["Grade", "grade", "submissions", "write_csv"]


@dataclass
class Grade:
    """One submission's result. exercises: name → {"points", "of", "message"}. problem: what went wrong in running it."""
    student: str
    file: str
    lesson: str | None = None
    exercises: dict = field(default_factory=dict)
    problem: str | None = None

    points = property(lambda self: sum(e["points"] for e in self.exercises.values()))
    of = property(lambda self: sum(e["of"] for e in self.exercises.values()))

    def record(self):
        return {**asdict(self), "points": self.points, "of": self.of}

    def __repr__(self):
        lines = [f"{self.student}: {self.points} of {self.of} points in {self.lesson or 'no known lesson'}"]
        if self.problem: lines.append(f"  {self.problem}")
        lines += [f"  {name:<24}{e['points']}/{e['of']}  {e['message']}" for name, e in self.exercises.items()]
        return "\n".join(lines)


def submissions(paths):
    """The notebooks and Python files among `paths`, folders searched: ValueError for a path without any."""
    found = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        hidden = lambda f: any(part.startswith((".", "__")) for part in f.relative_to(path).parts)         # noqa: B023
        files = [f for f in files if f.is_file() and f.suffix in (".ipynb", ".py") and not hidden(f)]
        if not files: raise ValueError(f"grade: no notebook and no Python file in {path}")
        found += files
    return found


def grade(paths, lesson=None, seed=1, seconds=300, jobs=2, say=None):
    """Grade submissions, `jobs` at a time → a list of `Grade`, in the order of `submissions(paths)`.

    lesson: number or name; otherwise each file's own, by its name or by the exercises that it checks. seed: of the data.
    seconds: for running one notebook. say: told each result as it is there."""
    chosen = sources(lesson)[0].stem if lesson is not None else None

    def one(path):
        try:
            result = grade_one(path, chosen, seed, seconds)
        except Exception as e:                                   # nothing in one submission stops the others
            result = Grade(student(path), str(path), chosen, problem=f"{type(e).__name__}: {e}")
        if say: say(result)
        return result
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, submissions(paths)))


def grade_one(path, lesson, seed, seconds):
    """The `Grade` of one file."""
    result = Grade(student(path), str(path), lesson or lesson_of(path))
    if result.lesson is None:
        result.problem = "which lesson is it? Neither its name nor a tp.check in it says so; give --lesson NN"
        return result
    topic = next(t for t, name in TOPICS.items() if name == result.lesson)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        with Worker(copy, folder, seconds) as worker:
            result.problem = worker.problem
            for name, exercise in of_topic(topic).items():
                call = worker.remote(exercise.function)
                if call is None:
                    passed, message = False, f"{exercise.function} is not defined" if worker.alive else "the process has ended"
                else:
                    passed = checked = judge(exercise, call, seed)
                    message = checked.message + (f" Likely cause: {checked.cause}" if checked.cause else "")
                result.exercises[name] = {"points": exercise.points if passed else 0, "of": exercise.points,
                                          "message": message}
    return result


def lesson_of(path):
    """The lesson a submission is about, or None."""
    for name in TOPICS.values():
        if name in path.stem: return name
    topics = re.findall(r'tp\.check\(\\?["\'](\w+)\.', path.read_text(encoding="utf-8", errors="replace"))
    topics += [t for t in TOPICS if re.search(rf"def {t}_\w+\(", path.read_text(encoding="utf-8", errors="replace"))]
    known = [t for t in topics if t in TOPICS]
    return TOPICS[max(known, key=known.count)] if known else None


def student(path):
    """Whose it is: the file's name, or the nearest folder's where that is the lesson's own (07_lora.ipynb, 07/…)."""
    lessons = {*TOPICS.values(), *(name[:2] for name in TOPICS.values())}
    names = [path.stem, *(folder.name for folder in path.resolve().parents)]
    return next((name for name in names if name and name not in lessons), path.stem)


def write_csv(grades, path):
    """One row per submission: student, lesson, points, of, one column per exercise, problem."""
    names = list(dict.fromkeys(name for g in grades for name in g.exercises))
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["student", "file", "lesson", "points", "of", *names, "problem"])
        for g in grades:
            rows.writerow([_cell(g.student), _cell(g.file), g.lesson or "", g.points, g.of,
                           *(g.exercises[n]["points"] if n in g.exercises else "" for n in names), _cell(g.problem or "")])


def _cell(text):
    """Text that a spreadsheet will not take for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def as_json(grades):
    return json.dumps([g.record() for g in grades], indent=1, ensure_ascii=False)
