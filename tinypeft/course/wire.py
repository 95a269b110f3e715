"""Calls a student's function in another process: what `calls.Local` does, over a pipe.

    with Worker(notebook, folder) as worker:             # runs the notebook's cells, then answers
        judge(exercise, worker.remote("lora_forward"))

The grader draws the arguments and compares the results; the other process only computes. A message
is one line of JSON. Its arrays are the base64 of an .npz file, which is read without pickle, so
that nothing in a message can run here.
"""
from __future__ import annotations

import base64
import contextlib
import inspect
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..tensor import Tensor
from .calls import Outcome

__all__ = ["Opaque", "Remote", "Worker", "decode", "encode", "receive", "send"]


class Opaque:
    """Stands for a result that is no number, array, text or structure of these. It prints as the
    result did in the other process. kind: the name of its type."""

    def __init__(self, text: str, kind: str):
        self.text, self.kind = text, kind

    def __repr__(self) -> str:
        return self.text


# -- values as text ------------------------------------------------------------------------------
def encode(value: Any) -> str:
    """A value as one line of text. A function of this package is sent by its name."""
    arrays = []

    def plain(v):
        if v is None or isinstance(v, (bool, int, float, str)): return v
        if isinstance(v, Tensor): return {"tensor": plain(v.data), "grad": v.requires_grad}
        if isinstance(v, (np.ndarray, np.generic)) and v.dtype.kind in "biufc":
            arrays.append(np.asarray(v))
            return {"array": len(arrays) - 1, "scalar": isinstance(v, np.generic)}
        if isinstance(v, (tuple, list)):
            return {"list" if isinstance(v, list) else "tuple": [plain(x) for x in v]}
        if isinstance(v, dict): return {"dict": [[plain(k), plain(x)] for k, x in v.items()]}
        module, name = str(getattr(v, "__module__", "")), getattr(v, "__qualname__", "<")
        if module.startswith("tinypeft.") and "<" not in name: return {"function": [module, name]}
        return {"opaque": repr(v)[:500], "type": type(v).__name__}
    structure, file = plain(value), io.BytesIO()
    np.savez(file, **{f"a{i}": a for i, a in enumerate(arrays)})
    return json.dumps([structure, base64.b64encode(file.getvalue()).decode()])


def decode(text: str | bytes) -> Any:
    """The value that `encode` encoded. ValueError for any other text."""
    try:
        structure, data = json.loads(text)
        with np.load(io.BytesIO(base64.b64decode(data)), allow_pickle=False) as file:
            arrays = [file[f"a{i}"] for i in range(len(file.files))]
        return _rebuilt(structure, arrays)
    except Exception as e:
        raise ValueError(f"the other process sent a line that is no message: {e}") from e


def _rebuilt(v, arrays):
    if not isinstance(v, dict): return v
    (kind, content), *more = v.items()
    each = lambda values: [_rebuilt(x, arrays) for x in values]
    if kind == "tensor": return Tensor(_rebuilt(content, arrays), bool(v["grad"]))
    if kind == "array":  return arrays[content][()] if v["scalar"] else arrays[content]
    if kind == "tuple":  return tuple(each(content))
    if kind == "list":   return each(content)
    if kind == "dict":   return {_rebuilt(k, arrays): _rebuilt(x, arrays) for k, x in content}
    if kind == "opaque": return Opaque(str(content), str(v["type"]))
    module, name = content                               # a function of this package, by its name
    if not module.startswith("tinypeft."):
        raise ValueError(f"{module}.{name} is not in this package")
    import importlib
    found = importlib.import_module(module)
    for part in name.split("."): found = getattr(found, part)
    return found


def send(file: BinaryIO, value: Any) -> None:
    """Write one message."""
    file.write((encode(value) + "\n").encode())
    file.flush()


def receive(file: BinaryIO) -> Any:
    """Read the next message. EOFError if the other end was closed."""
    line = file.readline()
    if not line: raise EOFError("the process ended")
    return decode(line)


# -- the other process, seen from here -----------------------------------------------------------
class Worker:
    """A process that runs `path`, a notebook or Python file, in `folder`, and then answers calls of
    the functions it defined.

    seconds: the limit for running the file. call_seconds: the limit for one call. The attribute
    `problem` is the error in running the file, or None; `alive` is False once the process was
    ended.
    """

    def __init__(self, path: str | Path, folder: str | Path, seconds: float = 300,
                 call_seconds: float = 30):
        self.call_seconds, self.buffer = call_seconds, b""
        ask_read, self.ask = os.pipe()
        self.answers, answer_write = os.pipe()
        environment = {k: v for k, v in os.environ.items() if k != "NBGRADER_EXECUTION"}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "MPLBACKEND": "agg"}
        command = [sys.executable, "-m", "tinypeft.course.worker", path, ask_read, answer_write]
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=folder, env=environment, pass_fds=(ask_read, answer_write),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)
        os.close(ask_read)
        os.close(answer_write)
        self.functions, self.problem, self.alive = {}, None, True
        try:
            answer = self._read(seconds)
            self.functions, self.problem = answer["functions"], answer["problem"]
        except (TimeoutError, EOFError, ValueError, KeyError, TypeError) as e:
            self.problem = f"running the cells: {e}" if str(e) else "running the cells failed"
            self.close()

    def remote(self, name: str) -> Remote | None:
        """The function of that name in the other process, or None if the file defines none."""
        return Remote(self, name, *self.functions[name]) if name in self.functions else None

    def ask_for(self, question: dict) -> Any:
        """The answer to a question.

        Raises EOFError if the process has ended, TimeoutError if it does not answer, and ValueError
        if its answer is no message; in the last two cases the process is ended.
        """
        try:
            message = (encode(question) + "\n").encode()
            while message: message = message[os.write(self.ask, message):]
            return self._read(self.call_seconds)
        except BrokenPipeError as e:
            raise EOFError("the process ended") from e
        except (TimeoutError, ValueError):
            self.close()
            raise

    def _read(self, seconds):
        end = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer after {seconds:g} s; "
                                   "is there a loop that never ends?")
            part = os.read(self.answers, 1 << 20)
            if not part: raise EOFError("the process ended")
            self.buffer += part
            if len(self.buffer) > 1 << 28: raise ValueError("the answer is longer than 256 MiB")
        line, _, self.buffer = self.buffer.partition(b"\n")
        return decode(line)

    def close(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.functions, self.alive = {}, False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.close()
        for descriptor in (self.ask, self.answers): os.close(descriptor)


class Remote:
    """A function of another process, with the members of `calls.Local`."""

    def __init__(self, worker: Worker, name: str, origin: str, parameters: list | None):
        self.worker, self.name, self.origin = worker, name, origin
        kinds = inspect._ParameterKind
        make = lambda name, kind, optional: inspect.Parameter(
            name, kinds(kind), default=None if optional else inspect.Parameter.empty)
        self.signature = None
        if parameters is not None:
            self.signature = inspect.Signature([make(*p) for p in parameters])

    def __call__(self, args: tuple, names: Sequence[str] = (), differentiate: Sequence[str] = (),
                 upstream: int | None = None) -> Outcome:
        """The `Outcome` of the call, with the arguments of `calls.Local.__call__`."""
        try:
            return Outcome(**self.worker.ask_for({
                "name": self.name, "args": tuple(args), "names": list(names),
                "differentiate": list(differentiate), "upstream": upstream}))
        except (TimeoutError, EOFError, ValueError, TypeError) as e:
            return Outcome(error=str(e) or type(e).__name__)
