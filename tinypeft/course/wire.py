"""Calls a student's function in another process: what `calls.Local` does, over two pipes.

    with Worker(notebook, folder) as worker:             # runs the notebook's cells, then answers
        judge(exercise, worker.remote("lora_forward"))

The grader draws the arguments and compares the results; the other process only computes. A message
is one line of JSON of at most 16 MiB:

    null, true, 1, 2.5, "text"                                      as in JSON
    {"array": "<f4", "shape": [2, 3], "data": base64}               {"scalar": the same, shape []}
    {"tuple": […]}  {"list": […]}  {"dict": [[key, value], …]}
    {"tensor": array, "grad": false}
    {"function": [module, name]}                                    of this package
    {"opaque": text, "type": name}                                  anything else, as it prints

The process that runs a submission can send whatever it likes. So the reader builds these types and
no others: it imports nothing, unpacks nothing, and allocates no more than came through the pipe.
"""
from __future__ import annotations

import base64
import contextlib
import inspect
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..common.wording import brief, shortened
from ..engine.tensor import Tensor
from .calls import Outcome

__all__ = ["Opaque", "Remote", "Worker", "decode", "encode", "read_line"]

LONGEST = 1 << 24                                        # bytes of a message
MOST    = 1 << 18                                        # values in it
DEEPEST = 50                                             # values inside values
GRACE   = 5.0                                            # seconds to describe what was defined


class Opaque:
    """Stands for a result that is no number, array, text or structure of these. It prints as the
    result did in the other process. kind: the name of its type."""

    def __init__(self, text: str, kind: str):
        self.text, self.kind = text, kind

    def __repr__(self) -> str:
        return self.text


# -- values as text ------------------------------------------------------------------------------
def encode(value: Any) -> bytes:
    """A value as a message. A function of this package is sent by its name. ValueError for a value
    that is too large."""
    left = LONGEST * 3 // 4                              # bytes that base64 makes a message of

    def array(a):
        nonlocal left
        left -= a.nbytes
        if left < 0: raise ValueError(f"more than {LONGEST * 3 >> 22} MiB of arrays")
        return {"array": a.dtype.str, "shape": a.shape,
                "data": base64.b64encode(a.tobytes()).decode()}

    def plain(v, depth=0):
        if depth > DEEPEST: raise ValueError(f"more than {DEEPEST} structures inside each other")
        each = lambda values: [plain(x, depth + 1) for x in values]
        if v is None or isinstance(v, (bool, int, float, str)): return v
        if isinstance(v, Tensor): return {"tensor": array(v.data), "grad": v.requires_grad}
        if isinstance(v, np.ndarray) and v.dtype.kind in "biufc": return array(np.asarray(v))
        if isinstance(v, np.generic) and v.dtype.kind in "biufc": return {"scalar": array(v)}
        if isinstance(v, tuple): return {"tuple": each(v)}
        if isinstance(v, list):  return {"list": each(v)}
        if isinstance(v, dict):  return {"dict": list(map(each, v.items()))}
        module, name = str(getattr(v, "__module__", "")), str(getattr(v, "__qualname__", "<"))
        if module.startswith("tinypeft.") and "<" not in name: return {"function": [module, name]}
        return {"opaque": repr(v)[:500], "type": type(v).__name__}
    return _checked(json.dumps(plain(value)).encode() + b"\n")


def decode(message: bytes, function: Callable[[str, str], Any] | None = None) -> Any:
    """The value that `encode` encoded. ValueError for anything else.

    function: makes a function from its module and its name. Without it, a function is `Opaque`:
    only the process that runs the submission looks names up.
    """
    try:
        return _rebuilt(json.loads(_checked(message)), function or _only_a_name)
    except Exception as e:                               # RecursionError among them
        reason = shortened(str(e))
        raise ValueError(f"the other process sent a line that is no message: {reason}") from e


def _checked(message):
    """The message. ValueError if it is too long, or would take many times its length when read."""
    if len(message) > LONGEST: raise ValueError(f"more than {LONGEST >> 20} MiB of text")
    values = sum(map(message.count, (b"[", b"{", b",")))
    if values > MOST: raise ValueError(f"more than {MOST} values")
    return message


def _only_a_name(module, name): return Opaque(f"<function {module}.{name}>", "function")


def _rebuilt(v, function, depth=0):
    if depth > DEEPEST: raise ValueError("structures nested too deeply")
    each = lambda values: [_rebuilt(x, function, depth + 1) for x in values]
    match v:
        case None | bool() | int() | float() | str():  return v
        case {"array": str(dtype), "shape": [*shape], "data": str(data)}:
            return _array(dtype, shape, data)
        case {"scalar": {"array": str(dtype), "shape": [], "data": str(data)}}:
            return _array(dtype, [], data)[()]
        case {"tensor": {"array": str(dtype), "shape": [*shape], "data": str(data)},
              "grad": bool(grad)}:
            return Tensor(_array(dtype, shape, data), grad)
        case {"tuple": [*values]}:                     return tuple(each(values))
        case {"list": [*values]}:                      return each(values)
        case {"dict": [*pairs]}:                       return dict(map(each, pairs))
        case {"function": [str(module), str(name)]}:   return function(module, name)
        case {"opaque": str(text), "type": str(kind)}: return Opaque(text, kind)
    raise ValueError(f"{brief(v)} is none of the values that a message can hold")


def _array(dtype, shape, data):
    """The array, if its type is a number's and its bytes are as many as its shape says."""
    number, data = np.dtype(dtype), base64.b64decode(data, validate=True)
    if number.kind not in "biufc" or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"there are no arrays {brief(dtype)} of shape {brief(shape)}")
    if len(data) != number.itemsize * math.prod(shape):
        raise ValueError(f"{len(data)} bytes for an array {number} of shape {brief(shape)}")
    return np.frombuffer(data, number).reshape(shape).copy()         # one's own: it can be written


def read_line(file: BinaryIO) -> bytes:
    """The next line of an unbuffered file. EOFError at its end, ValueError for a line that is too
    long."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = file.read(1 << 16)
        if not part: raise EOFError("the process ended")
        line += part
        if len(line) > LONGEST: raise ValueError(f"it sent more than {LONGEST >> 20} MiB")
    return bytes(line)


# -- the other process, seen from here -----------------------------------------------------------
class Worker:
    """A process that runs `path`, a notebook or Python file, in `folder`, and then answers calls of
    the functions it defined.

    seconds: the limit for running the file, and once more for all calls together. cell_seconds: the
    limit for one cell of a notebook. call_seconds: the limit for one call. The process keeps the
    first two itself, and is ended if it does not answer GRACE seconds later. The attribute
    `problem` is the error in running the file, or None; `alive` is False once the process was
    ended.
    """

    def __init__(self, path: str | Path, folder: str | Path, seconds: float = 300,
                 cell_seconds: float = 120, call_seconds: float = 30):
        self.seconds, self.call_seconds, self.left = seconds, call_seconds, seconds
        environment = {k: v for k, v in os.environ.items() if k != "NBGRADER_EXECUTION"}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "MPLBACKEND": "agg",
                        "IPYTHONDIR": str(Path(folder, ".ipython")), "OPENBLAS_NUM_THREADS": "1"}
        # -P: a submission that is called numpy.py is not imported as numpy
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tinypeft.course.worker", str(path), str(seconds),
             str(cell_seconds)], bufsize=0, cwd=folder, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        self.functions, self.problem, self.alive, self.thread = {}, None, True, None
        try:
            answer = self._within(seconds + GRACE, b"", "running the cells")
            self.functions, self.problem = _described(answer)
        except (TimeoutError, EOFError, ValueError) as e:
            self.problem = f"running the cells: {e}"
            self.close()

    def remote(self, name: str) -> Remote | None:
        """The function of that name in the other process, or None if the file defines none."""
        return Remote(self, name, *self.functions[name]) if name in self.functions else None

    def ask_for(self, question: dict) -> Any:
        """The answer to a question.

        Raises EOFError if the process has ended, TimeoutError if it does not answer, and ValueError
        if its answer is no message; in the last two cases the process is ended.
        """
        if not self.alive: raise EOFError("the process ended")
        start = time.monotonic()
        try:
            if self.left <= self.call_seconds:
                return self._within(self.left, encode(question), "the calls together")
            return self._within(self.call_seconds, encode(question), "one call")
        except (TimeoutError, ValueError):
            self.close()
            raise
        finally:
            self.left = max(0, self.left - (time.monotonic() - start))

    def _within(self, seconds, message, about):
        """The answer to a message. A thread writes and reads, and is left behind if it takes longer
        than `seconds`: a pipe has no limit of its own, whichever way it is blocked."""
        outcome = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._exchange, args=(message, outcome), daemon=True)
        self.thread.start()
        try:
            answer = outcome.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer after {seconds:.3g} s, the limit for {about}; is there "
                               "a loop that never ends?") from None
        if isinstance(answer, Exception): raise answer
        return decode(answer)

    def _exchange(self, message, outcome):
        try:
            while message: message = message[self.process.stdin.write(message):]
            outcome.put(read_line(self.process.stdout))
        except OSError:                                  # nobody reads what is written
            outcome.put(EOFError("the process ended"))
        except Exception as e:
            outcome.put(e)

    def close(self) -> None:
        """End the process and its children."""
        if not self.alive: return
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"): os.killpg(self.process.pid, signal.SIGKILL)
            else: self.process.kill()
        self.process.wait()
        self.functions, self.alive = {}, False
        self.thread.join(1)
        if self.thread.is_alive(): return                # a process that it detached has the pipe
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Remote:
    """A function of another process, with the members of `calls.Local`."""

    def __init__(self, worker: Worker, name: str, origin: str, uses: list[str],
                 signature: inspect.Signature | None):
        self.worker, self.name = worker, name
        self.origin, self.uses, self.signature = origin, uses, signature

    def __call__(self, args: tuple, names: Sequence[str] = (), differentiate: Sequence[str] = (),
                 upstream: int | None = None, watch: bool = False) -> Outcome:
        """The `Outcome` of the call, with the arguments of `calls.Local.__call__`."""
        try:
            return _outcome(self.worker.ask_for({
                "name": self.name, "args": tuple(args), "names": list(names),
                "differentiate": list(differentiate), "upstream": upstream, "watch": watch}))
        except (TimeoutError, EOFError, ValueError) as e:
            return Outcome(error=str(e))


# -- answers, with nothing in them believed --------------------------------------------------------
def _described(answer):
    """(name → (origin, uses, signature), problem) from the answer after the cells have run."""
    match answer:
        case {"functions": dict(functions), "problem": None | str() as problem}:
            return {name: _function(of) for name, of in functions.items()}, problem
    raise ValueError("the process did not say which functions there are")


def _function(described):
    match described:
        case (str(origin), [*uses], None): return origin, uses, None
        case (str(origin), [*uses], [*parameters]):
            return origin, uses, inspect.Signature(list(map(_parameter, parameters)))
    raise ValueError("the process described a function without its module, names and parameters")


def _parameter(described):
    match described:
        case (str(name), int(kind), bool(optional)) if name.isidentifier():
            return inspect.Parameter(name, inspect._ParameterKind(kind),
                                     default=None if optional else inspect.Parameter.empty)
    raise ValueError("the process described a parameter without its name, kind and default")


def _outcome(answer):
    """The `Outcome` that an answer states, if each part has its type."""
    array = lambda value: value is None or isinstance(value, np.ndarray)
    match answer:
        case {"value": value, "error": None | str() as error, "unsolved": bool(unsolved),
              "changed": list(changed), "gradients": dict(gradients), "strained": str(strained),
              "borrowed": list(borrowed), "answer": str(answer)} \
                if all(isinstance(name, str) for name in [*changed, *gradients, *borrowed]) \
                and all(map(array, gradients.values())):
            return Outcome(value, error, unsolved, changed, gradients, strained, borrowed, answer)
    raise ValueError("the process sent no outcome of a call")
