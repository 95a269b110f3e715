"""Is a stored number still true? A file of results says what its numbers depend on; this is compared with what there is now:

    "settings"        of the experiment
    "text", "base"    hashes of the two corpora and of the base's weights
    "conditions"      label → {"value": its repr, "measured": date}
    "sources"         a list: "conditions" that depend on the same "modules", file → hash (`dependencies.py`)
"""
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..files import fingerprint
from ..pretrained import load_base
from ..text import corpus
from .dependencies import dependencies

__all__ = ["Change", "StaleWarning", "changes", "stamp", "summary"]


class StaleWarning(UserWarning):
    """Stored numbers were measured with other code, settings or values than there are now."""


@dataclass(frozen=True)
class Change:
    """One reason why a condition is stale. kind: "value", "settings", "text", "base" or "source". before: what it was."""
    kind: str
    what: str
    before: Any = None

    def __str__(self) -> str:
        return f"{self.what} changed"


def stamp(experiment: Any, world: bool = True) -> dict:
    """Return what the numbers of an `Experiment` depend on now, as a file says it. world: with text and base, which takes a
    second the first time."""
    groups: dict[tuple, list[str]] = {}
    for label, value in experiment.conditions.items():
        groups.setdefault(tuple(dependencies(experiment.measure, value).items()), []).append(label)
    return {"text": text_hashes() if world else None, "base": base_hash() if world else None,
            "settings": json.loads(json.dumps(experiment.settings)),
            "conditions": {label: {"value": repr(value)} for label, value in experiment.conditions.items()},
            "sources": [{"conditions": labels, "modules": dict(modules)} for modules, labels in groups.items()]}


def dated(now: dict, measured: dict[str, str]) -> dict:
    """Return a stamp with the dates of the conditions that were measured, without the others."""
    conditions = now["conditions"].items()
    return now | {"conditions": {label: of | {"measured": measured[label]} for label, of in conditions if label in measured}}


def changes(record: dict, now: dict) -> dict[str, list[Change]]:
    """Return label → why it is stale, for the stored conditions that are in the stamp `now`."""
    labels = [label for label in record["runs"] if label in now["conditions"]]
    if not labels: return {}
    why = [Change("settings", f"settings ({name})") for name in differ(record["settings"], now["settings"])]
    if now["base"]:
        why += [Change("text", f"the text {name!r}") for name in differ(record["text"], now["text"])]
        why += [Change("base", "the base's weights")] * (record["base"] != now["base"])
    found = {label: why.copy() for label in labels}
    for label in labels:
        old, new = (of["conditions"][label]["value"] for of in (record, now))
        if old != new: found[label].append(Change("value", f"its value ({old} → {new})", old))
        before, after = (modules_of(of, label) for of in (record, now))
        found[label] += [Change("source", file, before.get(file)) for file in differ(before, after)]
    return {label: why for label, why in found.items() if why}


def differ(a: dict, b: dict) -> list[str]:
    """Return the keys, in order, whose values are not the same."""
    return [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def modules_of(record: dict, label: str) -> dict[str, str]:
    """Return file → hash of what a condition depends on."""
    return next((group["modules"] for group in record["sources"] if label in group["conditions"]), {})


def briefly(items: list, shown: int = 3, between: str = ", ") -> str:
    """Return the first few items of a list, and how many more there are."""
    first, more = list(map(str, items[:shown])), len(items) - shown
    return between.join([*first, f"and {more} more"] if more > 0 else first)


def summary(stale: dict[str, list[Change]]) -> str:
    """Return the result of `changes` on one line: the stale conditions, and what changed, the most frequent first."""
    reasons = Counter(str(change) for why in stale.values() for change in why)
    return f"{briefly(list(stale), between='; ')}: {briefly([reason for reason, _ in reasons.most_common()])}"


@cache
def base_hash() -> str:
    return fingerprint(load_base().state_dict())


@cache
def text_hashes() -> dict[str, str]:
    """Return the hashes of the two corpora of this installation as they are read; to split them would take most of a second."""
    read = lambda *libraries: corpus.fingerprint(d for library in libraries for d in corpus.documents(library))
    return {"base": read("python", "numpy", "scipy"), "domain": read("matplotlib")}
