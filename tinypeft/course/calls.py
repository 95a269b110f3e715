"""Calling a student's function: on copies of the arguments, for a limited time, errors told by the student's own line.

`Local` calls a function of this process; `wire.Remote` has the same two members and calls one of another.
"""
import contextlib
import copy
import inspect
import linecache
import signal
import threading
import traceback
from dataclasses import dataclass, field

import numpy as np

from ..tensor import Tensor

__all__ = ["Local", "Outcome", "copied", "leaves"]


@dataclass
class Outcome:
    """What a call gave: a value or an error. changed: names of arguments it wrote into; gradients: name → array or None."""
    value: object = None
    error: str | None = None
    unsolved: bool = False
    changed: list = field(default_factory=list)
    gradients: dict = field(default_factory=dict)


def copied(value, cast=None):
    """The same structure with arrays and Tensors of its own; `cast` floats to a dtype."""
    if isinstance(value, Tensor):
        return Tensor(copied(value.data, cast), value.requires_grad)
    if isinstance(value, np.ndarray):
        return np.array(value, dtype=cast if cast and value.dtype.kind == "f" else value.dtype)
    if isinstance(value, (tuple, list)): return type(value)(copied(v, cast) for v in value)
    if isinstance(value, dict):          return {k: copied(v, cast) for k, v in value.items()}
    return value if callable(value) else copy.deepcopy(value)


def leaves(value):
    """The arrays in a structure, Tensors' data among them, in order."""
    if isinstance(value, dict): value = list(value.values())
    if isinstance(value, (tuple, list)): return [a for v in value for a in leaves(v)]
    return [value.data] if isinstance(value, Tensor) else [value] if isinstance(value, np.ndarray) else []


class Local:
    """A function of this process. `signature` is an inspect.Signature or None, `origin` the module it was defined in."""

    def __init__(self, fn, seconds=20):
        self.fn, self.seconds, self.origin = fn, seconds, getattr(fn, "__module__", None)
        try:
            self.signature = inspect.signature(fn)
        except (TypeError, ValueError):
            self.signature = None

    def __call__(self, args, names=(), differentiate=(), upstream=None):
        """An `Outcome` of fn(*args). differentiate: names (of `names`, those of the arguments) whose gradient is wanted, with
        an upstream gradient drawn from the seed `upstream`."""
        mine = copied(args)
        out = Outcome()
        try:
            with _limit(self.seconds), np.errstate(all="ignore"):
                out.value = self.fn(*mine)
                if differentiate: out.gradients = _gradients(out.value, dict(zip(names, mine, strict=False)),
                                                             differentiate, upstream)
        except NotImplementedError as e:
            out.unsolved, out.error = True, str(e) or "not implemented yet"
        except Exception as e:
            out.error = told(e)
        same = lambda a, b: len(a) == len(b) and all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
                                                     for x, y in zip(a, b, strict=True))
        out.changed = [name for name, a, b in zip(names, args, mine, strict=False) if not same(leaves(a), leaves(b))]
        return out


def _gradients(value, arguments, wanted, seed):
    """name → ∂⟨u, value⟩/∂argument, u drawn from `seed`; None where nothing flows."""
    tensors = {name: arguments[name] for name in wanted}
    for t in tensors.values(): t.grad = None
    if isinstance(value, Tensor) and value.requires_grad:
        value.backward(np.random.default_rng(seed).standard_normal(value.shape).astype(value.dtype))
    return {name: t.grad for name, t in tensors.items()}


def told(error):
    """An exception in one line, with the line of the student's code that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "tinypeft" not in f.filename.replace("\\", "/").split("/")
              and not f.filename.endswith("calls.py")]
    frames = [f for f in frames if "site-packages" not in f.filename] or frames                # NumPy's line says nothing
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    if not frames: return text
    line = (frames[-1].line or linecache.getline(frames[-1].filename, frames[-1].lineno)).strip()
    return f"{text}, in line {frames[-1].lineno} of {frames[-1].name}" + (f":  {line}" if line else "")


class TooSlow(Exception):
    """The function took longer than an exercise should."""


@contextlib.contextmanager
def _limit(seconds):
    """TooSlow after that many seconds, where the system can: in the main thread, on Unix."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise TooSlow(f"no result after {seconds} s; is there a loop that never ends?")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
