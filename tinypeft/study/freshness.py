"""Is a stored number still true? Each condition's numbers are kept with what they depend on, and compared with it as it is.

The numbers of a condition depend on its value, the experiment's settings, the text (hashes of the two corpora), the weights
of the base, and the definitions of the package that it reaches (`dependencies.py`). In a file of results:

    "settings", "text", "base"       as they were for every condition in the file
    "conditions"                     label → {"value": its repr, "measured": date}
    "sources"                        a list: the definitions that these "conditions" use, with their hashes, by file

A definition that all conditions use stands in the file once. Two conditions that were measured with different versions of a
definition stand in different entries.
"""
from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..pretrained import load_base
from ..text import corpus
from .dependencies import Sources, definitions

__all__ = ["Change", "Stamp", "StaleWarning", "changes"]


class StaleWarning(UserWarning):
    """Stored numbers were measured with other code, settings or values than there are now."""


@dataclass(frozen=True)
class Change:
    """One reason why a condition is stale. kind: "value", "settings", "text", "base" or "source". what: changed. before: the
    hash or the repr it had."""
    kind: str
    what: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.what} changed"


@dataclass(frozen=True)
class Stamp:
    """What an experiment's numbers depend on. values: label → repr. sources: label → definition → hash. text, base: hashes,
    None if they were not asked for."""
    values: dict[str, str]
    sources: dict[str, dict[str, str]]
    settings: dict
    text: dict[str, str] | None
    base: str | None

    @classmethod
    def now(cls, experiment: Any, world: bool = True, sources: Sources | None = None) -> Stamp:
        """The stamp of an `Experiment` as it is now. world: with text and base, which takes seconds the first time. sources:
        where the code is read (default: the files of the package)."""
        return cls({label: repr(value) for label, value in experiment.conditions.items()},
                   {label: definitions(experiment.measure, value, sources) for label, value in experiment.conditions.items()},
                   json.loads(json.dumps(experiment.settings)),
                   text_hashes() if world else None,
                   hash_of_weights(load_base()) if world else None)

    def as_record(self, measured: dict[str, str]) -> dict:
        """The stamp as a file of results has it. measured: label → date, the conditions that are in the file."""
        return {"text": self.text, "base": self.base, "settings": self.settings,
                "conditions": {c: {"value": v, "measured": measured[c]} for c, v in self.values.items() if c in measured},
                "sources": pack({c: s for c, s in self.sources.items() if c in measured})}


def changes(record: dict, stamp: Stamp) -> dict[str, list[Change]]:
    """The stored conditions that are stale: label → why. Conditions that the experiment no longer has are left out."""
    found = {label: [] for label in record["runs"] if label in stamp.values}
    if not found: return {}
    for_all = []
    if record["settings"] != stamp.settings:
        names = [k for k in {**record["settings"], **stamp.settings} if record["settings"].get(k) != stamp.settings.get(k)]
        for_all.append(Change("settings", f"settings ({', '.join(names)})"))
    if stamp.text is not None:
        for_all += [Change("text", f"the text {name!r}") for name in stamp.text
                    if record["text"][name] != stamp.text[name]]
        if record["base"] != stamp.base: for_all.append(Change("base", "the base's weights"))
    for label, why in found.items():
        why += for_all
        before, value = record["conditions"][label]["value"], stamp.values[label]
        if before != value: why.append(Change("value", f"its value ({before} → {value})", before))
        then, now = unpack(record["sources"], label), stamp.sources[label]
        if not then: why.append(Change("source", "the code (none was recorded)", label))
        else: why += [Change("source", definition, then.get(definition, "")) for definition in sorted({*then, *now})
                      if then.get(definition) != now.get(definition)]
    return {label: why for label, why in found.items() if why}


def briefly(why: list, shown: int = 3, between: str = ", ") -> str:
    """The first few items of a list, and how many more there are."""
    return between.join(map(str, why[:shown])) + (f"{between}and {len(why) - shown} more" if len(why) > shown else "")


def summary(stale: dict[str, list[Change]]) -> str:
    """What `changes` found, on one line: which conditions are stale, and what changed, the most frequent first."""
    reasons = Counter(str(c) for why in stale.values() for c in why)
    return f"{briefly(list(stale), between='; ')}: {briefly([reason for reason, _ in reasons.most_common()])}"


def pack(sources: dict[str, dict[str, str]]) -> list[dict]:
    """label → definition → hash, as a file has it: definitions are grouped by the conditions that use them."""
    users: dict[tuple[str, str], list[str]] = {}
    for label, used in sources.items():
        for item in used.items(): users.setdefault(item, []).append(label)
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for (definition, digest), labels in users.items():
        file, name = definition.split(" ")
        groups.setdefault(tuple(labels), {}).setdefault(file, []).append(f"{name} {digest}")
    return [{"conditions": list(labels), "definitions": {file: ", ".join(names) for file, names in files.items()}}
            for labels, files in groups.items()]


def unpack(groups: list[dict], label: str) -> dict[str, str]:
    """What `pack` stored of one condition: definition → hash."""
    return {f"{file} {name}": digest for group in groups if label in group["conditions"]
            for file, names in group["definitions"].items() for name, digest in (item.split(" ") for item in names.split(", "))}


@cache
def text_hashes() -> dict[str, str]:
    """The hashes of the two corpora that this installation carries, of what was read: splitting it takes most of a second."""
    read = lambda *libraries: corpus.fingerprint(d for library in libraries for d in corpus.documents(library))
    return {"base": read("python", "numpy", "scipy"), "domain": read("matplotlib")}


def hash_of_weights(model) -> str:
    """SHA-256 (hex) of a model's weights, names and shapes included."""
    digest = hashlib.sha256()
    for name, a in sorted(model.state_dict().items()):
        digest.update(f"{name} {a.dtype} {a.shape} ".encode() + np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()
