"""`python -m tinypeft assign`: what an instructor hands out for a lesson, and what not.

    assign 07 --out FOLDER          the student's notebook and a page
    assign 07 --answers FOLDER      the answer of the open question, with the study's numbers

`handout.py` writes all lessons for students.
"""
import re
from pathlib import Path

from ..common.progress import watched
from ..files import write_atomically
from .build import open_questions, prose, topic_of
from .handout import glossary
from .percent import assignment, read, sources
from .study_numbers import filled
from .worth import worth

__all__ = ["answers", "assign"]

def assign(which: str | int, out: str | Path, nbgrader: bool = False) -> list[Path]:
    """Write the assignment of lesson `which` into the folder `out`; returns the paths of the files.

    The files are the student's notebook, a README with points, minutes and the open question, and
    the glossary.
    With `nbgrader` it is one file instead, out/source/NN_name/NN_name.ipynb: the notebook that
    nbgrader's own commands start from, with solutions between nbgrader's marks.
    """
    import nbformat
    (path,) = sources(which)
    cells, out = read(path), Path(out)
    if nbgrader:
        target = out / "source" / path.stem / f"{path.stem}.ipynb"
        write_atomically(target, nbformat.writes(assignment(cells, solved=True)) + "\n")
        return [target]
    notebook = nbformat.writes(assignment(cells)).replace("](../GLOSSARY.md", "](GLOSSARY.md")
    files = {f"{path.stem}.ipynb": notebook + "\n", "README.md": readme(path),
             "GLOSSARY.md": glossary()}
    for name, text in files.items(): write_atomically(out / name, text)
    return [out / name for name in files]


def readme(path: Path) -> str:
    """The page for students: how to work, what is graded, and the open question with its rubric."""
    rows, together = [], {False: [0, 0], True: [0, 0]}       # bonus → points, minutes
    for e in topic_of(path).values():
        points, minutes, bonus = worth(e.name)
        title = "Bonus: " * bonus + e.title
        rows.append(f"| `{e.function}` | {title} | {'★' * e.stars} | {'+' * bonus}{points} "
                    f"| {minutes} |")
        together[bonus] = [a + b for a, b in zip(together[bonus], (points, minutes), strict=True)]
    ends = [f"| | together | | {together[False][0]} | {together[False][1]} |"]
    if together[True][0]:
        ends.append(f"| | bonus, extra points | | +{together[True][0]} | {together[True][1]} |")
    title = re.search(r"^# (.+)$", prose(path), re.M)[1]
    return "\n".join([
        f"# {title}", "",
        f"Install tinypeft and open the notebook: `jupyter lab {path.stem}.ipynb`. Write each",
        "function where its stub raises `NotImplementedError`, then run the cell below it. The",
        "cell says whether the function is right and, if not, what the likely cause is. Hand in",
        "the notebook under your name. The functions in the table are graded with other data",
        "than the notebook shows.", "",
        "| function | exercise | difficulty | points | minutes |", "|---|---|---|---|---|", *rows,
        *ends, "",
        *(f"## {heading}\n\n{text}\n" for heading, text in open_questions(path).items())])


def answers(which: str | int | None, out: str | Path) -> list[Path]:
    """Write the answers of the open questions of lesson `which`, or of all; returns the paths. One
    file if `out` ends in .md, otherwise a file for each lesson in the folder `out`."""
    paths, out = watched(sources(which), "filling in the study's numbers"), Path(out)
    pages = {path.stem: answer_page(path) for path in paths}
    if out.suffix == ".md": pages = {out.stem: "\n".join(pages.values())}
    folder = out.parent if out.suffix == ".md" else out
    for name, text in pages.items(): write_atomically(folder / f"{name}.md", text)
    return [folder / f"{name}.md" for name in pages]


def answer_page(path: Path) -> str:
    """A lesson's open questions, each with its answer."""
    found = [filled(cell.source, path.name, cell.line + 1) for cell in read(path)
             if cell.kind == "answer"]
    title = re.search(r"^# (.+)$", prose(path), re.M)[1]
    page = [f"# {title}: answers for instructors\n"]
    for (heading, text), answer in zip(open_questions(path).items(), found, strict=True):
        page.append(f"## {heading}\n\n{text}\n\n### Answer\n\n{answer}\n")
    return "\n".join(page)
