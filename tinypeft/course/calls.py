"""Calls a student's function safely: on copies of the arguments, and for a limited time.

An error is reported with the line of the student's code that raised it.
`Local` calls a function of this process; `wire.Remote` has the same members and calls one in
another process.
"""
from __future__ import annotations

import contextlib
import copy
import dis
import inspect
import linecache
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..engine.tensor import Tensor
from .borrowed import Borrowed, watched

__all__ = ["Local", "Outcome", "TooSlow", "as_python", "copied", "leaves", "limited", "one_line",
           "signature_of", "text_of"]

PACKAGE = Path(__file__).parents[1]


@dataclass
class Outcome:
    """The value of a call, or its error. unsolved: the stub was called. changed: names of the
    arguments that the function wrote into. gradients: argument's name → array, or None if no
    gradient reached it. strained: the first overflow, division by zero or invalid operation of
    NumPy, with its line ("overflow, in line 2 of f:  np.exp(s)"), or "". borrowed, answer: of a
    watched call: functions of the package that it called, and the one that is the answer, or ""."""
    value: Any = None
    error: str | None = None
    unsolved: bool = False
    changed: list[str] = field(default_factory=list)
    gradients: dict[str, Array | None] = field(default_factory=dict)
    strained: str = ""
    borrowed: list[str] = field(default_factory=list)
    answer: str = ""


def copied(value: Any, cast: Any = None) -> Any:
    """A copy of a structure, arrays and Tensors included. cast: dtype of floating-point ones."""
    if isinstance(value, Tensor):
        return Tensor(copied(value.data, cast), value.requires_grad)
    if isinstance(value, np.ndarray):
        return np.array(value, dtype=cast if cast and value.dtype.kind == "f" else value.dtype)
    if isinstance(value, (tuple, list)): return type(value)(copied(v, cast) for v in value)
    if isinstance(value, dict):          return {k: copied(v, cast) for k, v in value.items()}
    return value if callable(value) else copy.deepcopy(value)


def leaves(value: Any) -> list[Array]:
    """The arrays in a structure, in order; a Tensor counts as its array."""
    if isinstance(value, dict): value = list(value.values())
    if isinstance(value, (tuple, list)): return [a for v in value for a in leaves(v)]
    if isinstance(value, Tensor): value = value.data
    return [value] if isinstance(value, np.ndarray) else []


def as_python(value: Any) -> Any:
    """A result with Python's text in place of NumPy's, and a list in place of a range: an exercise
    that asks for words or whole numbers takes both."""
    if isinstance(value, np.str_):  return str(value)
    if isinstance(value, range):    return list(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "U": return value.tolist()
    if type(value) in (tuple, list): return type(value)(map(as_python, value))
    return value


def signature_of(fn: object) -> inspect.Signature | None:
    """Return what a function takes: anything, if it is written in C and does not say. None for an
    object that cannot be called."""
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **options: None) if callable(fn) else None


class Local:
    """A function of this process. signature: an inspect.Signature, or None. origin: the module that
    defines it. uses: the names that its code looks up, without those of the student's own."""

    def __init__(self, fn: Callable, seconds: float = 20):
        self.fn, self.seconds, self.origin = fn, seconds, getattr(fn, "__module__", None)

    @cached_property
    def uses(self) -> list[str]:
        return _uses(self.fn)

    @cached_property
    def signature(self) -> inspect.Signature | None:
        return signature_of(self.fn)

    def __call__(self, args: tuple, names: Sequence[str] = (), differentiate: Sequence[str] = (),
                 upstream: int | None = None, watch: bool = False) -> Outcome:
        """The `Outcome` of fn(*args). names: of the arguments. differentiate: the names whose
        gradients are wanted, for an upstream gradient drawn from the seed `upstream`. watch: note
        what the function borrows from the package."""
        mine, out = copied(args), Outcome()
        try:
            note = np.errstate(all="call", under="ignore", call=_noting(out))
            with limited(self.seconds), note:
                value, taken = watched(self.fn, mine) if watch else (self.fn(*mine), Borrowed())
                out.value, out.borrowed, out.answer = as_python(value), taken.calls, taken.answer
                if differentiate:
                    named = dict(zip(names, mine, strict=False))
                    out.gradients = _gradients(out.value, named, differentiate, upstream)
        except NotImplementedError as e:
            out.unsolved, out.error = True, str(e) or "not implemented yet"
        except (Exception, TooSlow) as e:
            out.error = one_line(e)
        pairs = zip(names, args, mine, strict=False)
        out.changed = [name for name, before, after in pairs if not _same(before, after)]
        return out


def _same(a, b):
    """Are two structures equal, in the order of their parts as well?"""
    if isinstance(a, Tensor): a, b = a.data, b.data
    if isinstance(a, np.ndarray): return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict): a, b = list(a.items()), list(b.items())
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return callable(a) or a == b or a != a


def _uses(fn):
    """The names that the code of `fn` looks up, in functions inside it as well: attributes, and
    global names unless they stand for a function of the student's own."""
    codes, names = [fn.__code__] if inspect.isfunction(fn) else [], set()
    for code in codes:
        codes += filter(inspect.iscode, code.co_consts)
        for op in dis.get_instructions(code):
            defined = fn.__globals__.get(op.argval) if op.opname == "LOAD_GLOBAL" else None
            module = defined.__module__ if inspect.isfunction(defined) else "tinypeft.any"
            looked_up = op.opcode in dis.hasname
            if looked_up and str(module).startswith("tinypeft."): names.add(op.argval)
    return sorted(names)


def _gradients(value, arguments, wanted, seed):
    """name → ∂⟨u, value⟩/∂argument, with u drawn from `seed`; None if no gradient reaches the
    argument."""
    tensors = {name: arguments[name] for name in wanted}
    for t in tensors.values(): t.grad = None
    if isinstance(value, Tensor) and value.requires_grad:
        value.backward(np.random.default_rng(seed).standard_normal(value.shape).astype(value.dtype))
    return {name: t.grad for name, t in tensors.items()}


def _ours(file):
    return file.startswith("<frozen") or Path(file).is_relative_to(PACKAGE)


def _written_by_student(file):
    return not _ours(file) and "site-packages" not in file


def one_line(error: BaseException) -> str:
    """An exception as one line of text, with the line of the student's code that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _ours(f.filename)]
    # a line of NumPy's own code helps nobody
    frames = [f for f in frames if _written_by_student(f.filename)] or frames
    text = text_of(error).strip().rstrip(":")
    if not frames: return text
    last = frames[-1]
    return text + _place(last.filename, last.lineno, last.name)


def _place(file, number, name):
    """", in line 2 of f:  y = np.exp(x)"."""
    line = linecache.getline(file, number).strip()
    return f", in line {number} of {name}" + (f":  {line}" if line else "")


def _noting(out):
    """A handler for np.errstate that keeps the first event, and the student's line, in `out`."""
    def note(kind, flag):
        if out.strained: return
        frame = sys._getframe(1)
        while frame and not _written_by_student(frame.f_code.co_filename): frame = frame.f_back
        out.strained = kind
        if frame:
            code = frame.f_code
            out.strained += _place(code.co_filename, frame.f_lineno, code.co_name)
    return note


def text_of(error: BaseException) -> str:
    """An error's type and message. The message is cut, and left out if it fails itself."""
    try: return f"{type(error).__name__}: {error}"[:5000]
    except Exception: return type(error).__name__


class TooSlow(BaseException):
    """It took longer than it should. No `except Exception` of a student's code stops this."""


@contextlib.contextmanager
def limited(seconds: float, about: str = "result") -> Iterator[None]:
    """Raise TooSlow after that many seconds, or when an outer limit is reached. Only a main thread
    on Unix can do that; elsewhere there is no limit."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise TooSlow(f"no {about} after {round(seconds, 1):g} s; is there a loop that never ends?")
    start, (outer, _) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, outer or seconds))
    try:
        yield
    finally:
        left = outer and max(outer - (time.monotonic() - start), 0.01)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)
