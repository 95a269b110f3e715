"""The process that runs a submission, started by `wire.Worker`.

    python -P -m tinypeft.course.worker FILE

All code cells run in order, in one namespace, as in a kernel; a cell that fails does not stop the
next one. Then the functions that the cells defined are called with the arguments that come through
the pipe on standard input, and the outcomes go into the one on standard output. The cells see
neither: what they print goes nowhere.
"""
import contextlib
import importlib
import inspect
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .calls import Local, Outcome, one_line, text_of
from .wire import decode, encode, read_line

MEMORY = 4 << 30                                         # bytes of addresses
LARGEST_FILE = 1 << 30                                   # bytes of a file that it writes


def limit() -> None:
    """Limit memory and files, for this process and its children, where the system can do that. A
    cell that allocates without end then gets a MemoryError, and the machine goes on."""
    try:
        import resource
    except ImportError:                                  # Windows
        return
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, LARGEST_FILE),
                       (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):   # a lower limit is in force already
            resource.setrlimit(what, (most, most))


def own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """(questions, answers): standard input and output, which are then replaced by nothing."""
    questions, answers = (os.fdopen(os.dup(n), mode, buffering=0)
                          for n, mode in ((0, "rb"), (1, "wb")))
    nothing = os.open(os.devnull, os.O_RDWR)
    for n in (0, 1): os.dup2(nothing, n)
    return questions, answers


def code_cells(path: Path) -> list[tuple[int, str]]:
    """(number, source) of a notebook's code cells. ValueError for any other file."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [(i, "".join(cell["source"])) for i, cell in enumerate(cells, 1)
                if cell["cell_type"] == "code"]
    except Exception as e:
        raise ValueError(f"{path.name} is no notebook of format 4: {one_line(e)}") from e


def run(path: Path) -> tuple[dict, str | None]:
    """The namespace that a notebook or a Python file leaves, and the error in it, or None."""
    if path.suffix != ".ipynb":
        try:
            return runpy.run_path(str(path)), None
        except SyntaxError as e:                         # it names the line itself
            return {}, text_of(e)
        except (Exception, SystemExit) as e:
            return {}, one_line(e)
    try:
        cells = code_cells(path)
    except ValueError as e:
        return {}, f"running the cells: {e}"
    from IPython.core.interactiveshell import InteractiveShell
    shell, problems = InteractiveShell.instance(), []
    for i, source in cells:
        result = shell.run_cell(source, silent=True)
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not isinstance(error, NotImplementedError):
            problems.append(f"cell {i} fails with {text_of(error)}")
    return shell.user_ns, "; ".join(problems[:3]) or None


def description(fn: Callable) -> tuple[str, list[str], list | None]:
    """The module that defines a function, the names that it uses, and its parameters as (name,
    kind, has a default)."""
    try:
        signature = inspect.signature(fn)
        parameters = [(p.name, int(p.kind), p.default is not p.empty)
                      for p in signature.parameters.values()]
    except (TypeError, ValueError):
        parameters = None
    return str(getattr(fn, "__module__", ""))[:500], Local(fn).uses[:500], parameters


def function(module: str, name: str) -> Any:
    """The function of this package that has this name."""
    found = importlib.import_module(module)
    for part in name.split("."): found = getattr(found, part)
    return found


def send(file: BinaryIO, value: Any) -> None:
    """Write one message."""
    message = encode(value)
    while message: message = message[file.write(message):]


def main(path: str) -> None:
    """Run the file, send a description of its functions, then answer calls until the pipe is
    closed."""
    questions, answers = own_pipes()
    limit()
    sys.path.append(os.getcwd())                         # last: no file there hides a library
    namespace, problem = run(Path(path))
    functions = {name: fn for name, fn in namespace.items()
                 if isinstance(name, str) and name[:1] != "_" and callable(fn)}
    described = {name: description(fn) for name, fn in functions.items()}
    send(answers, {"functions": described, "problem": problem})
    while True:
        try:
            q = decode(read_line(questions), function)
        except EOFError:
            return
        call = Local(functions[q["name"]])
        outcome = call(q["args"], q["names"], q["differentiate"], q["upstream"])
        try:
            send(answers, vars(outcome))
        except Exception as e:                           # it is too large, or its repr fails
            send(answers, vars(Outcome(error=f"your result cannot be sent: {text_of(e)}")))


if __name__ == "__main__":
    main(*sys.argv[1:])
