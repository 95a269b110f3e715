"""What every field holds: limits.txt lists its default, its limit and its names in other libraries.

Beside the fields stand the rates that methods learn at, the arguments of optimizers, and what a function does without options.
`python -m tests.common.test_limits` writes the list anew. Each line of its diff is a decision.
"""
import dataclasses
import difflib
import inspect
from dataclasses import MISSING
from pathlib import Path

import pytest

import tinypeft as tp
from tinypeft.common.hyper import Checked
from tinypeft.models.generation import GenerateOptions
from tinypeft.peft.combine import Combination
from tinypeft.quant.kv_cache import CacheOptions
from tinypeft.study import memory
from tinypeft.text import tasks
from tinypeft.training import rates

LIST = Path(__file__).with_name("limits.txt")


def public(module, kind):
    """Return the public classes of a module that are a `kind`."""
    values = [getattr(module, name) for name in module.__all__]
    return [value for value in values if isinstance(value, type) and issubclass(value, kind) and value is not kind]


def line(name, default, limit=None, also=()):
    """Write what is declared for one name. A class or a function is shown by its name, since its repr may hold an address."""
    shown = "" if default is MISSING else f" = {getattr(default, '__name__', repr(default))}"
    words = f": {limit.expected}" if limit else ""
    others = f"; also {', '.join(also)}" if also else ""
    return name + shown + words + others


def of_class(cls):
    """Yield a line for each field."""
    for f in dataclasses.fields(cls):
        yield line(f"{cls.__name__}.{f.name}", f.default, **f.metadata)


def of_rates(cls):
    """Yield a line for a method's own rate, and one for each other rate that a flag gives it."""
    method = cls()
    yield line(f"{cls.__name__}.learning_rate", method.learning_rate)
    for f in dataclasses.fields(cls):
        if type(f.default) is not bool: continue
        other = dataclasses.replace(method, **{f.name: not f.default})
        if other.learning_rate != method.learning_rate:
            yield line(f"{cls.__name__}({f.name}={not f.default}).learning_rate", other.learning_rate)


def of_signature(cls):
    """Yield a line for each argument of an optimizer after its parameters."""
    for p in list(inspect.signature(cls).parameters.values())[1:]:
        yield line(f"{cls.__name__}.{p.name}", MISSING if p.default is p.empty else p.default)


def of_functions(module):
    """Yield a line for each public function that has defaults: numbers, texts and tuples."""
    for name, function in inspect.getmembers(module, inspect.isfunction):
        defaults = [f"{p.name}={p.default!r}" for p in inspect.signature(function).parameters.values()
                    if isinstance(p.default, int | float | str | tuple)]
        if name in module.__all__ and defaults: yield f"{name}({', '.join(defaults)})"


def lines():
    """Yield the list, as the package is now. All public classes with limits are in it, and the options of three
    functions, whose classes are not public. Classes that others inherit from have no lines of their own."""
    methods, schemes = tp.METHODS.values(), tp.SCHEMES.values()
    for cls in methods:
        yield from of_class(cls)
        yield from of_rates(cls)
    others = [cls for cls in public(tp, Checked) if dataclasses.is_dataclass(cls) and cls not in methods and cls not in schemes]
    for cls in (*schemes, *others, Combination, GenerateOptions, CacheOptions): yield from of_class(cls)
    for cls in public(tp.optim, tp.optim.Optimizer): yield from of_signature(cls)
    yield line("rates.HEAD_LR", rates.HEAD_LR)
    yield line("rates.WIDTH", rates.WIDTH)
    for name, f in memory.LIMITS.items(): yield line(f"memory.{name}", MISSING, **f.metadata)
    yield from of_functions(tp)
    yield from of_functions(tasks)


def test_the_list_is_what_the_package_declares():
    """Every default, limit, other name and rate is listed. So a change of one is seen: as a line of the list's diff."""
    listed = LIST.read_text("utf-8").splitlines()
    changed = list(difflib.unified_diff(listed, list(lines()), LIST.name, "the package", n=0, lineterm=""))
    if changed: pytest.fail("\n".join(changed), pytrace=False)


if __name__ == "__main__":
    LIST.write_text("\n".join(lines()) + "\n", "utf-8")
