"""The process that runs a submission, started by `wire.Worker`.

    python -m tinypeft.course.worker FILE ASK ANSWER

All code cells run in order, in one namespace, as in a kernel; a cell that fails does not stop the
next one. Then the functions that the cells defined are called with the arguments that come through
the pipe ASK, and the outcomes go into the pipe ANSWER.
"""
import dataclasses
import inspect
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from .calls import Local
from .wire import receive, send


def run(path: Path) -> tuple[dict, str | None]:
    """The namespace that a notebook or a Python file leaves, and the error in it, or None."""
    if path.suffix != ".ipynb":
        try:
            return runpy.run_path(str(path)), None
        except Exception as e:
            return {}, f"{type(e).__name__}: {e}"
    from IPython.core.interactiveshell import InteractiveShell
    shell, problems = InteractiveShell.instance(), []
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code": continue
        error = shell.run_cell("".join(cell["source"]), silent=True).error_in_exec
        if error is not None and not isinstance(error, NotImplementedError):
            problems.append(f"cell {i + 1} fails with {type(error).__name__}: {error}")
    return shell.user_ns, "; ".join(problems[:3]) or None


def description(fn: Callable) -> tuple[str, list | None]:
    """The module that defines a function, and its parameters as (name, kind, has a default)."""
    try:
        signature = inspect.signature(fn)
        parameters = [(p.name, int(p.kind), p.default is not p.empty)
                      for p in signature.parameters.values()]
    except (TypeError, ValueError):
        parameters = None
    return str(getattr(fn, "__module__", "")), parameters


def main(path: str, ask: str, answer: str) -> None:
    """Run the file, send a description of its functions, then answer calls until the pipe is
    closed."""
    with os.fdopen(int(ask), "rb") as questions, os.fdopen(int(answer), "wb") as answers:
        namespace, problem = run(Path(path))
        functions = {name: fn for name, fn in namespace.items()
                     if callable(fn) and not name.startswith("_")}
        described = {name: description(fn) for name, fn in functions.items()}
        send(answers, {"functions": described, "problem": problem})
        while True:
            try:
                q = receive(questions)
            except EOFError:
                return
            call = Local(functions[q["name"]])
            outcome = call(q["args"], q["names"], q["differentiate"], q["upstream"])
            send(answers, {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)})


if __name__ == "__main__":
    main(*sys.argv[1:])
