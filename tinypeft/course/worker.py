"""The process that runs a submission, started by `wire.Worker`.

    python -P -m tinypeft.course.worker FILE SECONDS SECONDS_OF_A_CELL

All code cells run in order, in one namespace, as in a kernel; a cell that fails or takes too long
does not stop the next one. When the time for all is used up, the cells that are left are read for
their imports and definitions alone, so that a slow notebook loses no function. Then the functions
that the cells defined are called with the arguments that come through the pipe on standard input,
and the outcomes go into the one on standard output. The cells see neither: what they print goes
nowhere.

Before the first call the exercises' modules go out of reach of `import`, and during a call the
reference of its exercise refuses to run, whatever name it has by then. References of other
exercises still run, because a lesson's cells put them in place of functions that are wrong.
"""
import ast
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from .calls import Local, Outcome, TooSlow, limited, one_line, signature_of, text_of
from .wire import decode, encode, read_line

EXERCISES = f"{__package__}.exercises"
HIDDEN: dict[str, ModuleType] = {}                       # the exercises', out of reach

MEMORY = 4 << 30                                         # bytes of addresses
LARGEST_FILE = 1 << 30                                   # bytes of a file that it writes

FOR_DEFINITIONS = 5.0                                    # seconds, when the others are used up
DEFINING = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef


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
    wrong = f"{path.name} is no notebook"
    try:
        text = path.read_text(encoding="utf-8")
        return [(i, "".join(cell["source"])) for i, cell in enumerate(json.loads(text)["cells"], 1)
                if cell["cell_type"] == "code"]
    except json.JSONDecodeError as e:
        where = f"line {e.lineno}: {e.msg}" if text.strip() else "the file is empty"
        raise ValueError(f"{wrong} ({where})") from e
    except UnicodeDecodeError as e:
        raise ValueError(f"{wrong}, as it is not UTF-8: {e}") from e
    except Exception as e:
        raise ValueError(f"{wrong} of format 4: {text_of(e)}") from e


def run(path: Path, seconds: float, of_cell: float) -> tuple[dict[str, Callable], str | None]:
    """The functions that a notebook or a Python file defines, by name, and the error in it, or
    None.

    seconds: the limit for the file or for all cells. of_cell: the limit for one cell. What was
    defined before a limit was reached counts.
    """
    if path.suffix != ".ipynb": return run_file(path, seconds)
    try:
        return run_cells(code_cells(path), seconds, of_cell)
    except ValueError as e:
        return {}, str(e)


def run_file(path: Path, seconds: float) -> tuple[dict[str, Callable], str | None]:
    """What `run` returns, for a Python file."""
    namespace, problem = {"__name__": "<run_path>", "__file__": str(path)}, None
    try:
        with limited(seconds, "end"):
            exec(compile(path.read_bytes(), str(path), "exec"), namespace)
    except SyntaxError as e:                             # it names the line itself
        problem = text_of(e)
    except (Exception, SystemExit, TooSlow) as e:
        problem = one_line(e)
    return functions_in(namespace), problem


def run_cells(cells: list[tuple[int, str]], seconds: float,
              of_cell: float) -> tuple[dict[str, Callable], str | None]:
    """What `run` returns, for a notebook. Of functions of one name it is the last one: in the
    lessons a cell behind a check puts the package's function in place of one that is wrong."""
    from IPython.core.interactiveshell import InteractiveShell
    shell, functions, problems = InteractiveShell.instance(), {}, []
    end = time.monotonic() + seconds
    for i, source in cells:
        left = min(end - time.monotonic(), of_cell)
        if left <= 0: source, left = definitions(source), FOR_DEFINITIONS
        error = error_of(shell, source, left)
        functions |= functions_in(shell.user_ns)
        if error is not None and not isinstance(error, NotImplementedError):
            problems.append(f"cell {i} fails with {said(error)}")
    return functions, "; ".join(problems[:3]) or None


def error_of(shell: Any, source: str, seconds: float) -> BaseException | None:
    """The error that a cell ends with, TooSlow after that many seconds."""
    try:
        with limited(seconds, "end of the cell"): result = shell.run_cell(source, silent=True)
    except TooSlow as e:                                 # it came before or after the cell's code
        return e
    return result.error_before_exec or result.error_in_exec


def definitions(source: str) -> str:
    """The imports and definitions of a cell, for which there is always time."""
    try:
        nodes = ast.parse(source).body
    except SyntaxError:                                  # IPython's own, such as %magic
        return ""
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, DEFINING))


def said(error: BaseException) -> str:
    """An error as one line; IPython's names of cells, which stand in a SyntaxError, left out."""
    if not isinstance(error, SyntaxError): return text_of(error)
    line = f", in line {error.lineno}:  {error.text.strip()}" if error.text else ""
    return f"{type(error).__name__}: {error.msg}{line}"[:5000]


def functions_in(namespace: dict) -> dict[str, Callable]:
    """What can be called in a namespace and is the submission's own."""
    return {name: fn for name, fn in namespace.items()
            if isinstance(name, str) and name[:1] != "_" and callable(fn) and is_own(name, fn)}


def is_own(name: str, fn: Callable) -> bool:
    """Is this the submission's function of that name? It is neither the package's nor the function
    of another exercise; a check's result gives a name to either."""
    if str(getattr(fn, "__module__", "")).startswith("tinypeft."): return False
    defined = getattr(fn, "__name__", name)
    return defined == name or all(e.function != defined for e in exercises_beside(name))


def exercises_beside(function: str) -> tuple:
    """The exercises of the topic in a function's name; none if the cells have checked nothing."""
    module = f"{EXERCISES}.{function.partition('_')[0]}"
    found = HIDDEN.get(module) or sys.modules.get(module)
    return found.EXERCISES if found else ()


def description(fn: Callable) -> tuple[str, list[str], list | None]:
    """The module that defines a function, the names that it uses, and its parameters as (name,
    kind, has a default)."""
    signature, parameters = signature_of(fn), None
    if signature is not None:
        parameters = [(p.name, int(p.kind), p.default is not p.empty)
                      for p in signature.parameters.values()]
    return str(getattr(fn, "__module__", ""))[:500], Local(fn).uses[:500], parameters


def function(module: str, name: str) -> Any:
    """The function of this package that has this name. Some arguments are an exercise's own."""
    with within_reach(): found = importlib.import_module(module)
    for part in name.split("."): found = getattr(found, part)
    return found


# -- the references ------------------------------------------------------------------------------
def hide() -> None:
    """Take the exercises' modules out of reach: an import of one fails, and so does `tp.check`."""
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{EXERCISES}.")]:
        HIDDEN[name] = sys.modules.pop(name)
    sys.modules[EXERCISES] = None                        # Python's sign for "not to be imported"
    vars(sys.modules[__package__]).pop("exercises", None)


@contextlib.contextmanager
def within_reach() -> Iterator[None]:
    """Undo `hide` for a moment, if it was called."""
    hidden = EXERCISES in sys.modules and sys.modules[EXERCISES] is None
    if hidden:
        del sys.modules[EXERCISES]
        sys.modules.update(HIDDEN)
    try: yield
    finally:
        if hidden: hide()


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """Let the reference of the exercise whose function has this name raise an error. This reaches a
    reference that the cells have put aside, for example from a check's result."""
    references = [e.reference for e in exercises_beside(name) if e.function == name]
    codes = [reference.__code__ for reference in references]
    for reference in references: reference.__code__ = refusal.__code__
    try: yield
    finally:
        for reference, code in zip(references, codes, strict=True): reference.__code__ = code


def refusal(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("the package's own function cannot be called while yours is graded")


def send(file: BinaryIO, value: Any) -> None:
    """Write one message."""
    message = encode(value)
    while message: message = message[file.write(message):]


def main(path: str, seconds: str, of_cell: str) -> None:
    """Run the file, send a description of its functions, then answer calls until the pipe is
    closed."""
    questions, answers = own_pipes()
    limit()
    sys.path.append(os.getcwd())                         # last: no file there hides a library
    functions, problem = run(Path(path), float(seconds), float(of_cell))
    described = {name: description(fn) for name, fn in functions.items()}
    hide()
    send(answers, {"functions": described, "problem": problem})
    while True:
        try:
            q = decode(read_line(questions), function)
        except EOFError:
            return
        with refused(q["name"]):
            call = Local(functions[q["name"]])
            outcome = call(q["args"], q["names"], q["differentiate"], q["upstream"], q["watch"])
        try:
            send(answers, vars(outcome))
        except Exception as e:                           # it is too large, or its repr fails
            send(answers, vars(Outcome(error=f"your result cannot be sent: {text_of(e)}")))


if __name__ == "__main__":
    main(*sys.argv[1:])
