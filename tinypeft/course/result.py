"""What a check found, as a student sees it: one clean block of text, or of HTML in a notebook."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..markup import escape
from .exercise import Exercise

__all__ = ["CheckResult"]

IN_ITS_PLACE = "The cells below use the package's function in place of yours."


@dataclass
class CheckResult:
    """The outcome of one check. It is true if the function passed.

    message: one paragraph. stage: the stage that failed ("signature", "shape", …, or "unsolved"),
        None if the function passed. got, expected: the values in question, as text. cause: the
        likely cause, or "".
    function: the student's function if it passed, otherwise the package's, so that the cells below
        a check never depend on its outcome.
    """
    exercise: Exercise
    passed: bool
    message: str
    function: Callable | None = None
    stage: str | None = None
    got: str = ""
    expected: str = ""
    cause: str = ""

    def __bool__(self) -> bool:
        return self.passed

    @property
    def sign(self) -> str:
        """✔ for right, ○ for unsolved, ✘ for wrong."""
        return "✔" if self.passed else "○" if self.stage == "unsolved" else "✘"

    def _lines(self) -> Iterator[str]:
        yield self.message
        if self.got:        yield f"got       {self.got}"
        if self.expected:   yield f"expected  {self.expected}"
        if self.cause:      yield f"Likely cause: {self.cause}"
        if not self.passed: yield f"Hint: {self.exercise.hint}"

    def __repr__(self) -> str:
        first, *rest = self._lines()
        indented = ["  " + line.replace("\n", "\n            ") for line in rest]
        return "\n".join([f"{self.sign} {self.exercise.name}: {first}", *indented])

    def _repr_html_(self) -> str:
        colour = {"✔": "#009E73", "○": "#8A8A8A", "✘": "#D55E00"}[self.sign]
        rows = "".join(
            f"<tr><td style='text-align:left;vertical-align:top;color:#707070'>{name}</td>"
            f"<td style='text-align:left'><pre style='margin:0'>{escape(value)}</pre></td></tr>"
            for name, value in (("got", self.got), ("expected", self.expected)) if value)
        cause = f"<div><b>Likely cause:</b> {escape(self.cause)}</div>" if self.cause else ""
        help_ = "" if self.passed else (
            f"<details><summary>A hint</summary>{escape(self.exercise.hint)}</details>"
            f"<div style='color:#707070'>{IN_ITS_PLACE}</div>")
        title = f"<b style='color:{colour}'>{self.sign} {escape(self.exercise.name)}</b>"
        return (f"<div style='border-left:4px solid {colour};padding:2px 10px'>"
                f"<div>{title} {escape(self.message)}</div>"
                + (f"<table>{rows}</table>" if rows else "") + cause + help_ + "</div>")
