"""A student's function in another process: what `calls.Local` does, over a pipe.

    with Worker(notebook, folder) as worker:                 # runs the notebook's cells, then answers
        judge(exercise, worker.remote("lora_forward"))

The grader draws the arguments and compares the results; the other process only computes. A message is one line of JSON, in
which arrays stand as base64 of an .npz that is read without pickle: nothing in it can run here.
"""
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
from pathlib import Path

import numpy as np

from ..tensor import Tensor
from .calls import Outcome

__all__ = ["Opaque", "Remote", "Worker", "decode", "encode", "receive", "send"]


class Opaque:
    """What came back and is no number, array, text or structure of these; prints as it did there. kind: its type's name."""

    def __init__(self, text, kind):
        self.text, self.kind = text, kind

    def __repr__(self):
        return self.text


# -- values as text ------------------------------------------------------------------------------
def encode(value):
    """One line of text. A function is told by its name, which must be in this package."""
    arrays = []

    def plain(v):
        if v is None or isinstance(v, (bool, int, float, str)): return v
        if isinstance(v, Tensor): return {"tensor": plain(v.data), "grad": v.requires_grad}
        if isinstance(v, (np.ndarray, np.generic)) and v.dtype.kind in "biufc":
            arrays.append(np.asarray(v))
            return {"array": len(arrays) - 1, "scalar": isinstance(v, np.generic)}
        if isinstance(v, (tuple, list)): return {"list" if isinstance(v, list) else "tuple": [plain(x) for x in v]}
        if isinstance(v, dict): return {"dict": [[plain(k), plain(x)] for k, x in v.items()]}
        if str(getattr(v, "__module__", "")).startswith("tinypeft.") and "<" not in getattr(v, "__qualname__", "<"):
            return {"function": [v.__module__, v.__qualname__]}
        return {"opaque": repr(v)[:500], "type": type(v).__name__}
    structure, file = plain(value), io.BytesIO()
    np.savez(file, **{f"a{i}": a for i, a in enumerate(arrays)})
    return json.dumps([structure, base64.b64encode(file.getvalue()).decode()])


def decode(text):
    """What `encode` encoded. ValueError for anything else."""
    try:
        structure, data = json.loads(text)
        with np.load(io.BytesIO(base64.b64decode(data)), allow_pickle=False) as file:
            arrays = [file[f"a{i}"] for i in range(len(file.files))]
        return _rebuilt(structure, arrays)
    except Exception as e:
        raise ValueError(f"the other process sent something that is no message: {e}") from e


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
    module, name = content                                       # a function of this package, by its name
    if not module.startswith("tinypeft."): raise ValueError(f"{module}.{name} is not of this package")
    import importlib
    found = importlib.import_module(module)
    for part in name.split("."): found = getattr(found, part)
    return found


def send(file, value):
    file.write((encode(value) + "\n").encode())
    file.flush()


def receive(file):
    """The next message, or EOFError at the end."""
    line = file.readline()
    if not line: raise EOFError("the process ended")
    return decode(line)


# -- the other process, seen from here -----------------------------------------------------------
class Worker:
    """A process that runs `path`, a notebook or Python file, in `folder`, and then answers calls of what it defined.

    seconds: for running all of it, and for each call. `problem` says what went wrong with running it, or is None."""

    def __init__(self, path, folder, seconds=300, call_seconds=30):
        self.call_seconds, self.buffer = call_seconds, b""
        ask_read, self.ask = os.pipe()
        self.answers, answer_write = os.pipe()
        environment = {k: v for k, v in os.environ.items() if k != "NBGRADER_EXECUTION"}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "MPLBACKEND": "agg"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinypeft.course.worker", str(path), str(ask_read), str(answer_write)], cwd=folder,
            env=environment, pass_fds=(ask_read, answer_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(ask_read)
        os.close(answer_write)
        self.functions, self.problem, self.alive = {}, None, True
        try:
            told = self._read(seconds)
            self.functions, self.problem = told["functions"], told["problem"]
        except (TimeoutError, EOFError, ValueError, KeyError, TypeError) as e:
            self.problem = f"running the cells: {e}" if str(e) else "running the cells failed"
            self.close()

    def remote(self, name):
        """The function of that name over there, or None if there is none."""
        return Remote(self, name, *self.functions[name]) if name in self.functions else None

    def ask_for(self, question):
        """The answer. TimeoutError, EOFError (the process ended) or ValueError (it sent nonsense); then it is no more."""
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
        import time
        end = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0, end - time.monotonic()))
            if not ready: raise TimeoutError(f"no answer after {seconds:g} s; is there a loop that never ends?")
            part = os.read(self.answers, 1 << 20)
            if not part: raise EOFError("the process ended")
            self.buffer += part
            if len(self.buffer) > 1 << 28: raise ValueError("the answer is longer than 256 MiB")
        line, _, self.buffer = self.buffer.partition(b"\n")
        return decode(line)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.functions, self.alive = {}, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        for descriptor in (self.ask, self.answers): os.close(descriptor)


class Remote:
    """A function of another process, with `calls.Local`'s members."""

    def __init__(self, worker, name, origin, parameters):
        self.worker, self.name, self.origin = worker, name, origin
        kinds = inspect._ParameterKind
        make = lambda name, kind, optional: inspect.Parameter(
            name, kinds(kind), default=None if optional else inspect.Parameter.empty)
        self.signature = None if parameters is None else inspect.Signature([make(*p) for p in parameters])

    def __call__(self, args, names=(), differentiate=(), upstream=None):
        try:
            told = self.worker.ask_for({"name": self.name, "args": tuple(args), "names": list(names),
                                        "differentiate": list(differentiate), "upstream": upstream})
            return Outcome(**told)
        except (TimeoutError, EOFError, ValueError, TypeError) as e:
            return Outcome(error=str(e) or type(e).__name__)
