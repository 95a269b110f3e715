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
    """Markdown: lesson, minutes, exercises and points, of their sources."""
    rows = []
    for path in paths:
        cells = read(path)
        text = "\n".join(cell.source for cell in cells if cell.kind == "markdown")
        title = re.search(r"^# (.+)$", text, re.M)[1]
        minutes = re.search(r"\*\*Time\.\*\* (\d+) minutes", text)
        options = [cell.options for cell in cells if cell.exercise]
        rows.append(f"| [{title}]({path.stem}.ipynb) | {minutes[1] if minutes else '–'} | {len(options)} | "
                    f"{sum(o['points'] for o in options)} | [assignment](assignments/{path.stem}.ipynb) |")
    return "\n".join(["| lesson | minutes | exercises | points | to work in |", "|---|---|---|---|---|", *rows])


def topic_of(path):
    """name → Exercise of the lesson in that source file."""
    return of_topic(next(topic for topic, name in TOPICS.items() if name == path.stem))
