"""What an answer takes from the package: which functions it calls, and whether it is one of them.

A function of the package counts if the student's code calls it, and what that one calls does not.
Functions that came as arguments, those of the course, and operations of Tensors do not count.

An answer is one call of the package if one function returned its numbers, in whatever shape. A
function of engine/ is a tool for answers: it must have had nothing but the arguments of the answer.
Gradients by the engine count as well, if a function of the package was differentiated.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine.tensor import Tensor, accepts_arrays

__all__ = ["Borrowed", "watched"]

PACKAGE = __name__.partition(".")[0] + "."
NOT_COUNTED = tuple(f"{PACKAGE}{part}." for part in ("course", "common", "engine.tensor"))
WRAPPER = accepts_arrays(lambda: None).__code__          # of functions that are given as Tensors


@dataclass
class Borrowed:
    """calls: "quant.obq.obq_step" and the like: the package's functions that were called, without
    the operations of Tensors. answer: the one that returned the answer, or ""."""
    calls: list[str] = field(default_factory=list)
    answer: str = ""


def watched(fn: Callable, args: tuple) -> tuple[Any, Borrowed]:
    """Call fn(*args). Return its value, and what it borrowed from the package."""
    given = [a.__code__ for a in args if hasattr(a, "__code__")]
    inputs = [_numbers(part) for part in _parts(args)]
    results, tensors, with_inputs, before = [], {}, {}, sys.getprofile()

    def profile(frame, event, result):
        if event not in ("call", "return") or frame.f_code in given: return
        if _module(frame.f_back).startswith(PACKAGE): return
        name = _name(frame)
        if not name.startswith(PACKAGE): return
        arguments = list(_parts(dict(frame.f_locals))) if event == "call" else []
        tensors.update((id(a), a) for a in arguments if isinstance(a, Tensor))
        if name.startswith(NOT_COUNTED): return
        if event == "call": with_inputs[frame] = _only(arguments, inputs)
        else: results.append((name.removeprefix(PACKAGE), result, with_inputs.pop(frame, True)))
    sys.setprofile(profile)
    try:
        value = fn(*args)
    finally:
        sys.setprofile(before)
    answer = [_numbers(part) for part in _parts(value) if part is not None]
    calls = dict.fromkeys(name for name, *_ in results if not name.rpartition(".")[2][:1] == "_")
    gradients = [t.grad for t in tensors.values() if t.grad is not None]
    if gradients and calls and _covers(gradients, answer):
        return value, Borrowed(list(calls), f"the backward pass of {next(iter(calls))}")
    whole = (name for name, result, only in results
             if (only or not name.startswith("engine.")) and _covers(result, answer))
    return value, Borrowed([*calls, *["engine.tensor.Tensor.backward"] * bool(gradients)],
                           next(whole, ""))


def _module(frame):
    return str(frame.f_globals.get("__name__", "")) if frame else ""


def _name(frame):
    """The module and name of a frame's function. An object that is made has its class's name."""
    code, values = frame.f_code, frame.f_locals
    if code is WRAPPER: return f"{values['f'].__module__}.{values['f'].__qualname__}"
    name = type(values["self"]).__name__ if code.co_name == "__init__" else code.co_qualname
    return f"{_module(frame)}.{name}"


def _parts(value: Any) -> Iterator[Any]:
    """The values inside a structure that are no structures."""
    if isinstance(value, dict): value = list(value.values())
    if isinstance(value, (tuple, list)):
        for part in value: yield from _parts(part)
    else:
        yield value


def _numbers(value):
    """The numbers of an array or a Tensor in order of size, so that neither its shape nor a
    transpose hides it; None for anything else."""
    value = value.data if isinstance(value, Tensor) else value
    if not isinstance(value, (np.ndarray, np.generic, int, float)): return None
    array = np.asarray(value)
    return np.sort(array, axis=None).astype(np.float64) if array.dtype.kind in "biuf" else None


def _equal(a, b):
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-7, atol=0, equal_nan=True)


def _only(parts, inputs):
    """Are all arrays among the parts also among the inputs?"""
    numbers = [n for n in map(_numbers, parts) if n is not None and n.size > 1]
    return all(any(i is not None and _equal(n, i) for i in inputs) for n in numbers)


def _covers(result, answer):
    """Does the result have the numbers of the answer? Of several, one that is not whole will do."""
    held = [n for n in map(_numbers, _parts(result)) if n is not None]
    found = [n is not None and any(_equal(n, h) for h in held) for n in answer]
    unlikely = [n for n, here in zip(answer, found, strict=True) if here and (n % 1).any()]
    return bool(unlikely) or bool(found) and all(found)
