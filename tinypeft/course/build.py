"""`python -m tinypeft lessons`: notebooks from their sources, executed, and the table of lessons in lessons/README.md."""
import re
import time

from ..files import write_atomically
from .exercises import TOPICS, of_topic
from .percent import LESSONS, assignment, execute, lesson, read, sources

__all__ = ["build", "sources", "table"]


def build(paths, write=True, say=print):
    """Execute the lessons; with `write`, store them, their assignments and the table."""
    import nbformat
    for path in paths:
        cells, start = read(path), time.perf_counter()
        done = execute(lesson(cells))
        say(f"{path.stem}  {time.perf_counter() - start:.0f} s")
        if write:
            write_atomically(LESSONS / f"{path.stem}.ipynb", nbformat.writes(done) + "\n")
            write_atomically(LESSONS / "assignments" / f"{path.stem}.ipynb", nbformat.writes(assignment(cells)) + "\n")
    index = LESSONS / "README.md"
    if write and index.exists():
        text = index.read_text(encoding="utf-8")
        write_atomically(index, re.sub(r"(<!-- lessons -->\n).*?(\n<!-- /lessons -->)",
                                       lambda m: m[1] + table(sources()) + m[2], text, flags=re.S))


def table(paths):
    """Markdown: lesson, minutes, points of checked and of open exercises, what one can do afterwards; from their sources."""
    rows = []
    for path in paths:
        text = prose(path)
        find = lambda pattern: (re.search(pattern, text, re.S) or ["", "–"])[1]                 # noqa: B023
        title, minutes = find(r"^# ([^\n]+)"), find(r"\*\*Time\.\*\* (?:About )?(\d+) minutes")
        able = " ".join(find(r"(?:\*\*Now you can\*\*|## What you can do now)\s+(.+?)\.(?:\s|$)").split())
        checked = sum(cell.options["points"] for cell in read(path) if cell.exercise)
        opened = sum(int(re.search(r"(\d+) points?", heading)[1]) for heading in open_questions(path))
        rows.append(f"| [{title}]({path.stem}.ipynb) | [{path.stem}](assignments/{path.stem}.ipynb) | {minutes} "
                    f"| {checked} + {opened} | {able[:1].lower() + able[1:]} |")
    return "\n".join(["| lesson | assignment | minutes | points | afterwards you can |", "|---|---|---|---|---|", *rows])


def prose(path):
    """The text cells of a lesson, one text."""
    return "\n\n".join(cell.source for cell in read(path) if cell.kind == "markdown")


def open_questions(path):
    """heading → text of the lesson's open exercises, rubric included, which no program grades."""
    parts = re.split(r"^#{2,3} ", prose(path), flags=re.M)
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts
            if re.match(r"Exercise \d+ · .*open\b", part.partition("\n")[0], re.I)}


def topic_of(path):
    """name → Exercise of the lesson in that source file."""
    return of_topic(next(topic for topic, name in TOPICS.items() if name == path.stem))
