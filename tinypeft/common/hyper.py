"""Hyperparameters as values: each field is declared with its default and with what it may hold.

    @dataclass(frozen=True)
    class LoRA(Method):
        rank: int = whole(8, least=1, also=("r",))
        init: str = one_of("kaiming", "gaussian")

A value outside its limits raises an error that names both. A rule for several fields stands in the
class's `check`. `also` lists the names of other libraries: `LoRA(r=8)` is told of `rank`.
"""
import dataclasses
import difflib
import inspect
import math
import re
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .wording import brief

__all__ = ["Checked", "Hyperparameters", "Limit", "declared", "flag", "layer_names", "mapping",
           "one_of", "real", "whole"]


FINITE = float(np.finfo(np.float32).max)     # a bound that NaN, inf and 10**400 do not keep
NAME = re.compile(r"!?[^.\s!][^.\s]*(\.[^.\s]+)*")           # of layers: `models/targets.py`


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a field may hold. expected: in words, after "must be"."""
    holds: Callable[[Any], bool]
    expected: str


def declared(default: Any, limit: Limit, *, or_none: bool = False, also: tuple = ()) -> Any:
    """Make a dataclass field with a limit. or_none: allow None. also: its names elsewhere."""
    if or_none:
        limit = _or_none(limit)
    return dataclasses.field(default=default, metadata={"limit": limit, "also": also})


def _or_none(limit):
    def holds(x):
        return x is None or limit.holds(x)
    return Limit(holds, f"{limit.expected}, or None")


def whole(default: int | None, *, least: int = 0, most: float = math.inf,
          **options: Any) -> Any:
    """Declare an integer in [least, most]; `True` is not one."""
    def holds(x):
        is_integer = isinstance(x, (int, np.integer)) and not isinstance(x, bool)
        return is_integer and least <= x <= most
    expected = f"an integer ≥ {least}" if most == math.inf else f"an integer from {least} to {most}"
    names = {"an integer ≥ 0": "a non-negative integer", "an integer ≥ 1": "a positive integer"}
    return declared(default, Limit(holds, names.get(expected, expected)), **options)


def real(default: float | None, *, least: float = -math.inf, above: float = -math.inf,
         most: float = math.inf, below: float = math.inf, **options: Any) -> Any:
    """Declare a number x that float32 holds, with least ≤ x ≤ most and above < x < below."""
    def holds(x):
        is_number = isinstance(x, (int, float, np.integer, np.floating))
        return (is_number and not isinstance(x, bool) and abs(x) <= FINITE
                and least <= x <= most and above < x < below)
    left = f"({above:g}" if above >= least else f"[{least:g}"
    right = f"{below:g})" if below <= most else f"{most:g}]"
    names = {"(0, inf)": "a positive number", "[0, inf)": "a non-negative number"}
    interval = f"{left}, {right}"
    expected = names.get(interval, f"a number in {interval}")
    return declared(default, Limit(holds, expected), **options)


def one_of(*choices: Any, default: Any = ..., **options: Any) -> Any:
    """Declare one of `choices`, of the same type; the default is the first."""
    def holds(x):
        return any(type(x) is type(choice) and x == choice for choice in choices)
    *names, last = map(repr, choices)
    if default is ...:
        default = choices[0]
    return declared(default, Limit(holds, f"{', '.join(names)} or {last}"), **options)


def flag(default: bool, **options: Any) -> Any:
    """Declare True or False."""
    def holds(x):
        return isinstance(x, (bool, np.bool_))
    return declared(default, Limit(holds, "True or False"), **options)


def layer_names(default: tuple[str, ...] | str, **options: Any) -> Any:
    """Declare a tuple of names of layers, spelled as in `models/targets.py`, or "all"."""
    def holds(x):
        if isinstance(x, str):
            return x == "all"
        return isinstance(x, (tuple, list)) and len(x) > 0 and all(map(_is_name, x))
    limit = Limit(holds, "a tuple of names such as ('query', 'blocks.2-5', '!blocks.3'), or 'all'")
    return declared(default, limit, **{"also": ("target_modules",), **options})


def mapping(field: Any, **options: Any) -> Any:
    """Declare None or a dict: names of layers → values that `field` (a declared field) allows."""
    limit = field.metadata["limit"]

    def holds(x):
        return (isinstance(x, dict) and all(map(_is_name, x))
                and all(map(limit.holds, x.values())))
    expected = f"a dict whose keys are names of layers and whose values are each {limit.expected}"
    return declared(None, Limit(holds, expected), or_none=True, **options)


def _is_name(x):
    return isinstance(x, str) and NAME.fullmatch(x) is not None


class Checked:
    """The base of dataclasses whose fields state their limits. `error` is what they raise."""
    error: ClassVar[type[ValueError]] = ValueError

    def __new__(cls, *args: Any, **kwargs: Any):
        accepted = inspect.signature(cls.__init__).parameters        # a subclass may have its own
        takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        for name in kwargs:
            if name not in accepted and not takes_all:
                raise TypeError(f"{cls.__name__} has no field {brief(name)}; {_hint(name, cls)}")
        return super().__new__(cls)

    def __post_init__(self):
        for f in _fields(self):
            limit = f.metadata.get("limit")
            value = getattr(self, f.name)
            if limit and not limit.holds(value):
                raise self.error(f"{type(self).__name__}: {f.name} must be {limit.expected}, "
                                 f"got {brief(value)}")
        self.check()

    def check(self) -> None:
        """Rules that concern several fields; a subclass raises `self.error` where one is broken."""


def _fields(cls):
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def _hint(name, cls):
    """Say which field may be meant by a name that is no field."""
    fields = [f for f in _fields(cls) if f.init]
    for field in fields:
        if name in field.metadata.get("also", ()):
            return f"the field is called {field.name}"
    names = [field.name for field in fields]
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"its fields are {', '.join(names) or 'none'}"


class Hyperparameters(Checked):
    """The base of methods and schemes: dataclasses whose fields are a paper's hyperparameters.

    The `repr` labels an experiment: it shows the fields in `shown` and those not at their default.
    A class's docstring is followed by its module's: the paper, the equation, the symbols.
    """
    shown: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Hyperparameters.__repr__      # @dataclass keeps a __repr__ that is there
        if cls.__module__.startswith("tinypeft."):
            own, paper = vars(cls).get("__doc__"), sys.modules[cls.__module__].__doc__
            cls.__doc__ = "\n\n".join(inspect.cleandoc(text) for text in (own, paper) if text)

    def __repr__(self):
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in _fields(self)
                 if f.name in self.shown or getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(shown)})"
