"""The process that runs a submission: `python -m tinypeft.course.worker FILE ASK ANSWER`, started by `wire.Worker`.

All code cells run in order, in one namespace, as in a kernel; a cell that fails does not stop the next. Then the functions
that were defined are called with the arguments that come through the pipe ASK, and what they give goes into ANSWER.
"""
import dataclasses
import inspect
import json
import os
import runpy
import sys
from pathlib import Path

from .calls import Local
from .wire import receive, send


def run(path):
    """(namespace, problem): what a notebook or a Python file defines, and what went wrong, or None."""
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


def described(fn):
    """Where a function was defined, and its parameters as (name, kind, has a default)."""
    try:
        parameters = [(p.name, int(p.kind), p.default is not p.empty) for p in inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        parameters = None
    return str(getattr(fn, "__module__", "")), parameters


def main(path, ask, answer):
    with os.fdopen(int(ask), "rb") as questions, os.fdopen(int(answer), "wb") as answers:
        namespace, problem = run(Path(path))
        functions = {name: fn for name, fn in namespace.items() if callable(fn) and not name.startswith("_")}
        send(answers, {"functions": {name: described(fn) for name, fn in functions.items()}, "problem": problem})
        while True:
            try:
                q = receive(questions)
            except EOFError:
                return
            outcome = Local(functions[q["name"]])(q["args"], q["names"], q["differentiate"], q["upstream"])
            send(answers, {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)})


if __name__ == "__main__":
    main(*sys.argv[1:])
