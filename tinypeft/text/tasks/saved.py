"""What prediction needs of a task beside the adapter: task.json, in the adapter's folder.

It holds the kind of the task, the classes or the form of the prompts, the longest row, and, of
one's own files, how they were split and the SHA-256 of what was read. It holds no text of them. The
file is not trusted: what it says is checked.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...common.wording import brief
from ...engine.nn import Module
from ...files import check_fields, naming, parse_json, read_text, write_atomically
from ..tokenizer import Tokenizer
from .answering import Answering
from .classification import Classification
from .language_modelling import LanguageModelling
from .task import Task, context_of, tokenizer_of

__all__ = ["FILE", "common_content", "common_task", "load_task", "read_content", "save_task",
           "without_data"]

FILE = "task.json"
KINDS = {"text": {}, "labelled": {"classes": list}, "pairs": {"chat": (str, None)}}
FIELDS = {"format": int, "kind": str, "context": int, "name": str, "sha256": dict}
OWN = {"held_out": list, "seed": int, "columns": list, "reads": str}
OF_A_FILE = "context", "columns", "name", "sha256"            # not of what is learned


def save_task(task: Task, folder: str | Path) -> None:
    """Write task.json to an adapter's folder. ValueError for a task that has no `predict`."""
    write_atomically(Path(folder) / FILE, json.dumps(content_of(task), indent=1) + "\n")


def content_of(task: Task) -> dict:
    """Return what task.json holds. ValueError for a task that has no `predict`."""
    if not hasattr(task, "form"):
        raise ValueError(f"save_task: {getattr(task, 'name', task)} has nothing to predict")
    return {"format": 1, **task.form, "name": task.name, "sha256": task.sha256 or {}}


def without_data(task: Task) -> Task:
    """Return a copy of `task` that holds no data and only predicts, as `load_task` gives it."""
    return _made(content_of(task), task.tokenizer, task.context)


def load_task(folder: str | Path, model: Module | Tokenizer | None = None) -> Task:
    """Return the task whose task.json is in a folder, without its data: for `predict`.

    model: the one that predicts, or its tokenizer. Raises FileNotFoundError, and ValueError for a
    file that is damaged or does not fit the model."""
    if isinstance(folder, Module):
        raise TypeError("load_task: the folder comes first, and then the model")
    content = read_content(folder)
    with naming(Path(folder) / FILE):
        return _made(content, tokenizer_of(model), context_of(model, content["context"], 0))


def read_content(folder: str | Path) -> dict:
    """Return what task.json in a folder holds. Raises FileNotFoundError, and ValueError for a file
    that is damaged."""
    path = Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {FILE}; `finetune --out` writes it beside the "
                                "adapter, and so does tinypeft.tasks.save_task(task, folder)")
    with naming(path):
        content = parse_json(read_text(path))
        kind = content.get("kind") if isinstance(content, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {brief(kind)}")
        check_fields(content, FIELDS | KINDS[kind], OWN)
        if content["format"] != 1: raise ValueError(f"unknown format {brief(content['format'])}")
        _check(content)
    return content


def common_task(tasks: Sequence[Task | None]) -> Task | None:
    """Return a task without data that stands for all of these; None if there is none."""
    if None in tasks:
        return None
    content = common_content([content_of(task) for task in tasks])
    return content and _made(content, tasks[0].tokenizer, content["context"])


def common_content(contents: Sequence[dict]) -> dict | None:
    """Return the task.json that stands for several, with the hashes of all their files; None if
    they are of different kinds or forms, or split their files in different ways."""
    first, *others = contents
    same = {name: value for name, value in first.items()
            if all(content.get(name) == value for content in others)}
    if any(name not in same for content in contents for name in content if name not in OF_A_FILE):
        return None
    sha256 = {}
    for content in contents:
        for name, value in content["sha256"].items():
            if sha256.setdefault(name, value) != value:       # it has the name of another file
                sha256[f"{name} ({value[:8]})"] = value
    names = dict.fromkeys(content["name"] for content in contents)
    return same | {"context": max(content["context"] for content in contents),
                   "name": " and ".join(names), "sha256": sha256}


def _made(content, tokenizer, context):
    """Make the task that a checked content describes."""
    kind, name = content["kind"], content["name"]
    if kind == "text":
        task = LanguageModelling(name, {}, {}, context, None, tokenizer)
    elif kind == "labelled":
        task = Classification({}, content["classes"], tokenizer, context, None, name,
                              content.get("reads", "end"))
    else:
        task = Answering({}, tokenizer, context, None, content["chat"], name)
    task.sha256 = content["sha256"]
    task.form = {name: value for name, value in content.items()
                 if name not in ("format", "name", "sha256")}
    return task


def _check(content):
    """ValueError for lists whose values are not what they should be."""
    texts = lambda values: all(isinstance(value, str) for value in values)
    classes, shares = content.get("classes", ["a", "b"]), content.get("held_out", [0, 0])
    if len(classes) < 2 or not texts(classes) or len(set(classes)) < len(classes):
        raise ValueError("classes must be two or more different names")
    if len(shares) != 2 or any(type(x) not in (int, float) for x in shares):
        raise ValueError("held_out must be two shares")
    if not texts(content.get("columns", [])) or not texts(content["sha256"].values()):
        raise ValueError("columns and the values of sha256 must be text")
