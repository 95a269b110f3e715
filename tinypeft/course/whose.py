"""Whose a submission is, and which lesson it answers, from where it lies and what it says.

    class/ada.ipynb                                    the file's name
    class/ada/07_lora.ipynb, class/ada/repo/lora.py    the first folder's
    class/monday/ada.ipynb, class/monday/bob.ipynb     the file's: these folders hold several people
    class/Ada Lovelace_12345_assignsubmission_file_/   Moodle's folder of Ada Lovelace

Names of lessons and topics, `solutions` and the like, and the marks of copies ("07_lora (1)",
"ada-old") name nobody.
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .exercises import TOPICS

__all__ = ["Submission", "lesson_of", "student", "submissions"]

MOODLE  = re.compile(r"_(\d+)_assignsubmission_(file|onlinetext)_.*")
COPY    = re.compile(r"^copy of |[ _-]*(\(\d+\)|[ _-](copy|old|final)[ _-]?\d*)$", re.I)
LESSON  = re.compile(rf"(^|[ _-]+)({'|'.join(TOPICS.values())})([ _-]+|$)")
NOBODY  = {"", *TOPICS, *(name.partition("_")[0] for name in TOPICS.values()),
           "assignment", "assignments", "handout", "lesson", "lessons", "notebook", "notebooks",
           "solution", "solutions", "source", "src"}


class Submission(NamedTuple):
    """What somebody handed in. path: a file, or a person's folder that has none. root: the path
    that was given, in which it was found."""
    student: str
    path: Path
    root: Path

    @property
    def person(self) -> tuple:
        """What the submissions of one person have in common. Moodle's number is in it, since two
        people may have one name."""
        number = MOODLE.search(str(self.path))
        return self.root, self.student, number and number[1]


def submissions(paths: Iterable[str | Path]) -> list[Submission]:
    """The notebooks and Python files among `paths`, folders searched, and each person's folder that
    has none. ValueError for a path that has none at all. What has the name of one but is no file,
    such as a broken link, is among them."""
    found = []
    for root in map(Path, paths):
        if not root.is_dir(): inside, folders = [root], []
        else:
            below = [p for p in sorted(root.rglob("*")) if not any(
                part.startswith((".", "__")) for part in p.relative_to(root).parts)]
            folders = [p for p in below if p.is_dir()]
            inside = [p for p in below if not p.is_dir()]
        files = [f for f in inside if f.suffix in (".ipynb", ".py")]
        if not files: raise ValueError(f"grade: there is no notebook and no Python file in {root}")
        several = {folder for folder in {f.parent for f in files} if of_several(folder, files)}
        found += [Submission(student(f, f.parent if f.parent in several else root), f, root)
                  for f in files]
        present = {one.student for one in found if one.root == root}
        for folder in folders:
            if (several - {root}) & {folder, *folder.parents}: continue
            name = next(filter(None, map(person, folder.relative_to(root).parts)), None)
            if name and name not in present:
                present.add(name)
                found.append(Submission(name, folder, root))
    return found


def of_several(folder: Path, files: list[Path]) -> bool:
    """Do the notebooks in a folder have the names of several people, and no other names?"""
    names = [person(f.stem) for f in files if f.parent == folder and f.suffix == ".ipynb"]
    return None not in names and len(set(names)) > 1


def student(path: Path, root: Path | None = None) -> str:
    """The name of the person who handed in the file `path`: the first that names somebody among the
    folders between `root` and the file, the file itself, and the folders above.

    root: the folder of the class; None if only the file is known. Then the file's own name comes
    before those of its folders, which are asked from the nearest on.
    """
    above = [folder.name for folder in path.absolute().parents]
    if root is None or root == path: names = [path.stem, *above]
    else:
        inside = path.relative_to(root).parts[:-1]
        names = [*inside, path.stem, *above[len(inside):]]
    return next(filter(None, map(person, names)), path.stem)


def person(name: str) -> str | None:
    """The person that a file's or folder's name names, or None."""
    name = MOODLE.sub("", name)
    while (shorter := LESSON.sub("", COPY.sub("", name))) != name: name = shorter
    return None if name.lower() in NOBODY else name


def lesson_of(path: Path) -> str | None:
    """The lesson that a file answers, by its name, or by the exercises that it checks or
    defines."""
    for topic, lesson in TOPICS.items():
        if lesson in path.stem or path.stem == topic: return lesson
    text = path.read_text(encoding="utf-8", errors="replace")
    topics = re.findall(r'tp\.check\(\\?["\'](\w+)\.', text)
    topics += [t for t in TOPICS if re.search(rf"def {t}_\w+\(", text)]
    known = [t for t in topics if t in TOPICS]
    return TOPICS[max(known, key=known.count)] if known else None
