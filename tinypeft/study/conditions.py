"""A condition in full: what a file of results says of its settings and of each condition's value.

    described(AdaLoRA(target_rank=2))      {"AdaLoRA": {"init_rank": 12, "target_rank": 2, …}}

The fields that are left at their defaults stand there, too. So a default that changes makes another
condition of it, and the stored numbers do not pass as the new one's.
"""
import dataclasses
import inspect
import json
from typing import Any

from .experiment import Experiment

__all__ = ["changed", "described", "in_full"]


def described(value: Any, with_rate: bool = True) -> Any:
    """Return a condition's value as JSON has it: of an object its class and all its fields, of a
    class its name and the defaults that it is made with.

    with_rate: say a method's own learning rate, too. An arm that has one trains by it, so that the
    method's own decides nothing. Raises TypeError for what is not plain.
    """
    if isinstance(value, type):
        takes = inspect.signature(value).parameters.values()
        return {value.__name__: {p.name: described(p.default) for p in takes
                                 if p.default is not p.empty}}
    if dataclasses.is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        rate_given = own.get("lr") is not None
        found = {name: described(field, with_rate and not rate_given) for name, field in own.items()}
        if with_rate and hasattr(value, "learning_rate"): found["learning_rate"] = value.learning_rate
        return {type(value).__name__: found}
    if isinstance(value, dict):
        return {str(key): described(item, with_rate) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item, with_rate) for item in value]
    if value is None or isinstance(value, bool | int | float | str): return value
    raise TypeError(f"a condition's value is plain values and dataclasses of them, got {value!r}")


def in_full(experiment: Experiment) -> dict:
    """Return what decides an experiment's numbers beside the code: its settings, and label →
    condition, with all fields."""
    return {"settings": plain(experiment.settings),
            "conditions": {c: plain(described(v)) for c, v in experiment.conditions.items()}}


def changed(experiment: Experiment, record: dict) -> dict[str, list[str]]:
    """Return label → in what a stored condition is not today's, such as "settings.steps: 60 → 150";
    nothing for a condition that is today's, or that is not stored."""
    now = in_full(experiment)
    settings = differences(record["settings"], now["settings"], "settings")
    found = {}
    for label in record["runs"]:
        if label not in now["conditions"]: continue
        old, new = (of["conditions"].get(label) for of in (record, now))
        if why := settings + differences(old, new, "its value"): found[label] = why
    return found


def differences(old: Any, new: Any, where: str) -> list[str]:
    """Return what differs between two values of JSON, each by its place."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in dict.fromkeys([*old, *new])
                for line in differences(old.get(key), new.get(key), f"{where}.{key}")]
    return [] if old == new else [f"{where}: {brief(old)} → {brief(new)}"]


def brief(value: Any) -> str:
    """Return a value of JSON in at most 60 characters; "nothing" for one that is not there."""
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]} …"


def plain(value: Any) -> Any:
    """Return a value as it is when it was written to JSON and read again."""
    return json.loads(json.dumps(value))
