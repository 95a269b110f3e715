"""Hyperparameters as values: each field is declared with its default and with what it may hold.

    @dataclass(frozen=True)
    class LoRA(Method):
        rank: int = whole(8, least=1, also=("r",))
        init: str = one_of("kaiming", "gaussian")

A value outside its limits raises an error that names the field, the value and the limits. A rule
that concerns several fields stands in the class's `check`. An unknown name gets a hint:
`LoRA(r=8)` says that the field is called rank; `also` lists the names other libraries use.
"""
import dataclasses
import difflib
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

__all__ = ["Checked", "Hyperparameters", "Limit", "declared", "flag", "layer_names", "mapping",
           "one_of", "real", "whole"]


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a field may hold. expected: in words, after "must be". bad: some values it refuses."""
    holds: Callable[[Any], bool]
    expected: str
    bad: tuple = ()


def declared(default: Any, limit: Limit, *, or_none: bool = False, also: tuple[str, ...] = ()) -> Any:
    """A dataclass field with a limit. or_none: None is allowed, too. also: its names elsewhere."""
    if or_none:
        holds = lambda value, inner=limit: value is None or inner.holds(value)
        limit = Limit(holds, f"{limit.expected}, or None", limit.bad)
    return dataclasses.field(default=default, metadata={"limit": limit, "also": also})


def whole(default: int | None, *, least: int = 0, most: int | None = None, **options: Any) -> Any:
    """An integer in [least, most]; `True` is not one."""
    integer = lambda x: isinstance(x, (int, np.integer)) and not isinstance(x, bool)
    holds = lambda x: integer(x) and x >= least and (most is None or x <= most)
    words = {0: "a non-negative integer", 1: "a positive integer"}.get(least, f"an integer ≥ {least}")
    if most is not None: words = f"an integer from {least} to {most}"
    bad = (least - 1, least + 0.5, True, str(least), *(() if most is None else (most + 1,)))
    return declared(default, Limit(holds, words, bad), **options)


def real(default: float | None, *, least: float = -math.inf, above: float = -math.inf,
         most: float = math.inf, below: float = math.inf, **options: Any) -> Any:
    """A finite number x with least ≤ x ≤ most and above < x < below."""
    number = lambda x: isinstance(x, (int, float, np.number)) and not isinstance(x, bool)
    holds = lambda x: number(x) and math.isfinite(x) and least <= x <= most and above < x < below
    left = f"({above:g}" if above >= least else f"[{least:g}"
    right = f"{below:g})" if below <= most else f"{most:g}]"
    words = {("(0", "inf)"): "a positive number", ("[0", "inf)"): "a non-negative number"}.get(
        (left, right), f"a number in {left}, {right}")
    ends = (above, below, math.nextafter(least, -math.inf), math.nextafter(most, math.inf))
    bad = (math.nan, math.inf, "1", *(x for x in ends if math.isfinite(x)))
    return declared(default, Limit(holds, words, bad), **options)


def one_of(*choices: Any, default: Any = ..., **options: Any) -> Any:
    """One of `choices`, of the same type; the default is the first."""
    holds = lambda x: any(type(x) is type(c) and x == c for c in choices)
    words = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
    return declared(choices[0] if default is ... else default, Limit(holds, words, ("?", 0.5)), **options)


def flag(default: bool, **options: Any) -> Any:
    """True or False."""
    return declared(default, Limit(lambda x: isinstance(x, (bool, np.bool_)), "True or False", (1, "yes")), **options)


def layer_names(default: tuple[str, ...] | str, **options: Any) -> Any:
    """A tuple of layer names, or "all"; `targets.match_targets` finds the layers."""
    holds = lambda x: x == "all" if isinstance(x, str) else (
        isinstance(x, (tuple, list)) and len(x) > 0 and all(isinstance(t, str) for t in x))
    words = "a tuple of layer names such as ('query', 'value'), or 'all'"
    return declared(default, Limit(holds, words, ("query", (), 3, (1,))),
                    **{"also": ("target_modules",), **options})


def mapping(field: Any, **options: Any) -> Any:
    """None, or a dict from layer names to values that `field` (a declared field) allows."""
    limit = field.metadata["limit"]
    holds = lambda x: isinstance(x, dict) and all(isinstance(k, str) and limit.holds(v) for k, v in x.items())
    words = f"a dict whose keys are layer names and whose values are each {limit.expected}"
    bad = (3, {1: field.default}, *({"query": value} for value in limit.bad))
    return declared(None, Limit(holds, words, bad), or_none=True, **options)


class Checked:
    """The base of frozen dataclasses whose fields state their limits. `error` is what they raise."""
    error: ClassVar[type[ValueError]] = ValueError

    def __new__(cls, *args: Any, **kwargs: Any):
        own = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        fields = {f.name: f for f in own if f.init}
        for name in kwargs.keys() - fields.keys():
            raise TypeError(f"{cls.__name__} has no field {name!r}; {_hint(name, fields)}")
        return super().__new__(cls)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            limit, value = f.metadata.get("limit"), getattr(self, f.name)
            if limit is not None and not limit.holds(value):
                raise self.error(f"{type(self).__name__}: {f.name} must be {limit.expected}, got {value!r}")
        self.check()

    def check(self) -> None:
        """Rules that concern several fields; a subclass raises `self.error` where one is broken."""


def _hint(name, fields):
    for f in fields.values():
        if name in f.metadata.get("also", ()): return f"the field is called {f.name}"
    near = difflib.get_close_matches(name, fields, 1)
    return f"did you mean {near[0]}?" if near else f"its fields are {', '.join(fields) or 'none'}"


class Hyperparameters(Checked):
    """The base of methods and schemes: frozen dataclasses whose fields are a paper's hyperparameters.

    The `repr` is the experiment's label. It shows the fields named in `shown` and every field that
    differs from its default. `dataclasses.asdict` gives the saved form. The docstring of a class of
    this package is followed by its module's: the paper, the equation and the table of symbols.
    """
    shown: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Hyperparameters.__repr__          # @dataclass keeps a __repr__ that is there
        if cls.__module__.startswith(f"{__package__}."):
            own, paper = vars(cls).get("__doc__"), sys.modules[cls.__module__].__doc__
            cls.__doc__ = "\n\n".join(inspect.cleandoc(text) for text in (own, paper) if text)

    def __repr__(self):
        fields = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]
        text = ", ".join(f"{name}={value!r}" for name, value, default in fields
                         if name in self.shown or value != default)
        return f"{type(self).__name__}({text})"
