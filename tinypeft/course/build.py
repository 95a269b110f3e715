"""`python -m tinypeft lessons`: notebooks, and the table in lessons/README.md, from the sources."""
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import write_atomically
from .exercise import Exercise
from .exercises import TOPICS, of_topic
from .percent import LESSONS, assignment, execute, lesson, parsed, read, sources
from .worth import worth

__all__ = ["build", "kinds", "open_questions", "prose", "sources", "table", "topic_of"]


def build(paths: Iterable[Path], write: bool = True, say: Callable[[str], object] = print) -> None:
    """Execute the lessons `paths`; with `write`, store them, their assignments and the table of
    lessons."""
    import nbformat
    for path in paths:
        cells, start = read(path), time.perf_counter()
        done = execute(lesson(cells))
        say(f"{path.stem}  {time.perf_counter() - start:.0f} s")
        if write:
            name = f"{path.stem}.ipynb"
            write_atomically(LESSONS / name, nbformat.writes(done) + "\n")
            handed_out = nbformat.writes(assignment(cells)) + "\n"
            write_atomically(LESSONS / "assignments" / name, handed_out)
    index = LESSONS / "README.md"
    if write and index.exists():
        text = index.read_text(encoding="utf-8")
        write_atomically(index, re.sub(r"(<!-- lessons -->\n).*?(\n<!-- /lessons -->)",
                                       lambda m: m[1] + table(sources()) + m[2], text, flags=re.S))


def table(paths: Iterable[Path]) -> str:
    """Markdown: for each lesson its minutes, its points (checked + open), the extra points of its
    bonus exercises, and what a reader can do afterwards."""
    rows = []
    for path in paths:
        text = prose(path)
        find = lambda pattern: (re.search(pattern, text, re.S) or ["", "–"])[1]         # noqa: B023
        title = find(r"^# ([^\n]+)")
        minutes = find(r"\*\*Time\.\*\* (?:About )?(\d+) minutes")
        able = find(r"(?:\*\*Now you can\*\*|## What you can do now)\s+(.+?)\.(?:\s|$)")
        able = " ".join(able.split())
        counted = [(cell.options["points"], cell.bonus) for cell in parsed(path) if cell.exercise]
        checked = sum(points for points, bonus in counted if not bonus)
        extra = sum(points for points, bonus in counted if bonus)
        opened = [re.search(r"(\d+) (extra )?points?", title) for title in open_questions(path)]
        extra += sum(int(m[1]) for m in opened if m[2])
        name, points = path.stem, f"{checked} + {sum(int(m[1]) for m in opened if not m[2])}"
        rows.append(f"| [{title}]({name}.ipynb) | [{name}](assignments/{name}.ipynb) | {minutes} "
                    f"| {points} | {extra} | {able[:1].lower() + able[1:]} |")
    return "\n".join(["| lesson | assignment | minutes | points | extra | afterwards you can |",
                      "|---|---|---|---|---|---|", *rows])


def kinds(paths: Iterable[Path]) -> str:
    """Markdown: of each exercise its kind, its stars and its points; and how many of each kind."""
    rows, graded = [], Counter()
    for path in paths:
        for e in topic_of(path).values():
            points, _, bonus = worth(e.name)
            rows.append(f"| {e.name} | {e.kind} | {'★' * e.stars} | {'+' * bonus}{points} |")
            graded[e.kind] += not bonus
    counted = ", ".join(f"{kind} {n}" for kind, n in graded.most_common() if n) or "none"
    return "\n".join(["| exercise | kind | stars | points |", "|---|---|---|---|", *rows, "",
                      f"Without bonus exercises: {counted}."])


def prose(path: Path) -> str:
    """All text cells of a lesson, joined."""
    return "\n\n".join(cell.source for cell in read(path) if cell.kind == "markdown")


def open_questions(path: Path) -> dict[str, str]:
    """heading → text, rubric included, of the lesson's open exercises, which no program grades."""
    parts = [part.partition("\n") for part in re.split(r"^#{2,3} ", prose(path), flags=re.M)]
    return {heading: text.strip() for heading, _, text in parts
            if re.match(r"Exercise \d+ · .*open\b", heading, re.I)}


def topic_of(path: Path) -> dict[str, Exercise]:
    """name → Exercise, for the lesson in this source file."""
    return of_topic(next(topic for topic, name in TOPICS.items() if name == path.stem))
