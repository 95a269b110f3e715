"""`python -m tinypeft assign NN --out FOLDER`: what is handed out for a lesson."""
import re
from pathlib import Path

from ..files import write_atomically
from .build import open_questions, prose, topic_of
from .percent import assignment, read, sources

__all__ = ["assign"]


def assign(which, out, nbgrader=False):
    """Write the assignment of a lesson into the folder `out` → the paths written.

    The student's notebook and a README with points, minutes and the rubric of the open question; with `nbgrader`, the notebook
    with solutions between nbgrader's marks, where its commands look for it: out/source/NN_name/NN_name.ipynb."""
    import nbformat
    (path,) = sources(which)
    cells, out = read(path), Path(out)
    if nbgrader:
        target = out / "source" / path.stem / f"{path.stem}.ipynb"
        write_atomically(target, nbformat.writes(assignment(cells, solved=True)) + "\n")
        return [target]
    write_atomically(out / f"{path.stem}.ipynb", nbformat.writes(assignment(cells)) + "\n")
    write_atomically(out / "README.md", readme(path))
    return [out / f"{path.stem}.ipynb", out / "README.md"]


def readme(path):
    exercises = topic_of(path)
    title = re.search(r"^# (.+)$", prose(path), re.M)[1]
    rows = [f"| `{e.function}` | {e.title} | {e.points} | {e.minutes} |" for e in exercises.values()]
    return "\n".join([
        f"# {title}", "",
        f"Work in `{path.stem}.ipynb`: `jupyter lab {path.stem}.ipynb`, with tinypeft installed. Write each function where its",
        "stub raises `NotImplementedError`, and run the cell behind it: it says whether the function is right and if not, what",
        "the likely cause is. Hand in the notebook under your name. The functions named below are graded, with other data",
        "than you see.", "",
        "| function | exercise | points | minutes |", "|---|---|---|---|", *rows,
        f"| | together | {sum(e.points for e in exercises.values())} | {sum(e.minutes for e in exercises.values())} |", "",
        *(f"## {heading}\n\n{text}\n" for heading, text in open_questions(path).items())])
