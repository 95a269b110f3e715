"""Is a student's function right? `tinypeft.check("lora.forward", lora_forward)`.

`judge.py` compares the function with the exercise's reference; this file says what a student sees.
"""
from __future__ import annotations

import functools
import os
import runpy
from collections.abc import Callable
from pathlib import Path

from .calls import Local, as_python
from .diagnose import in_arrays
from .exercises import TOPICS, find, of_topic
from .judge import CheckResult, judge

__all__ = ["CheckFailed", "check", "check_file"]


class CheckFailed(AssertionError):
    """A check failed while nbgrader was grading (see `check`)."""


def check(name: str, fn: Callable, *, seed: int = 0) -> CheckResult:
    """Check a student's function `fn` against the exercise `name`.

    Returns a `CheckResult`, which is true if the function passed. A wrong or unsolved function
    raises nothing, so that a notebook always runs to its end. The one exception is nbgrader, which
    counts exceptions: while it grades, a failed check raises CheckFailed.

    seed: of the random cases. Raises KeyError if there is no such exercise.
    """
    result = judge(find(name), fn if hasattr(fn, "origin") else Local(fn), seed)
    reference = result.exercise.reference
    result.function = (with_arrays(fn, reference) if result.listed else fn) if result else reference
    if not result and os.environ.get("NBGRADER_EXECUTION"):
        raise CheckFailed(repr(result))
    return result


def with_arrays(fn: Callable, reference: Callable) -> Callable:
    """The function, with arrays in place of lists wherever the reference has arrays, so that the
    cells below a check can index its results."""
    @functools.wraps(fn)
    def function(*args, **options):
        return in_arrays(as_python(fn(*args, **options)), reference(*args, **options))
    return function


def check_file(name: str, path: str | Path, seed: int = 0) -> list[CheckResult]:
    """Check the functions that the Python file `path` defines. The file is executed.

    name: an exercise, or a topic; of a topic, every exercise is checked whose function the file
    defines. Raises ValueError if the file does not run or defines no such function.
    """
    chosen = of_topic(name) if name in TOPICS else {name: find(name)}
    try:
        defined = runpy.run_path(str(path))
    except (Exception, SystemExit) as e:                 # the student's own, wherever it comes from
        raise ValueError(f"{path} does not run to its end: {type(e).__name__}: {e}") from e
    results = [judge(e, Local(defined[e.function]), seed)
               for e in chosen.values() if e.function in defined]
    if not results:
        raise ValueError(f"{path} defines none of {', '.join(e.function for e in chosen.values())}")
    return results
