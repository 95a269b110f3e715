"""What a check found, as a student sees it: one clean block of text, or of HTML in a notebook."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..common.show.markup import escape
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
        a check never depend on its outcome; None if no cells follow, as in a terminal.
    listed: the function passed with a list in place of an array. borrowed: functions of the package
        that it calls.
    """
    exercise: Exercise
    passed: bool
    message: str
    function: Callable | None = None
    stage: str | None = None
    got: str = ""
    expected: str = ""
    cause: str = ""
    listed: bool = False
    borrowed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def sign(self) -> str:
        """✔ for right, ○ for unsolved, ✘ for wrong."""
        return "✔" if self.passed else "○" if self.stage == "unsolved" else "✘"

    def _lines(self, step: int | None) -> Iterator[str]:
        yield self.message
        if self.got:        yield f"got       {self.got}"
        if self.expected:   yield f"expected  {self.expected}"
        if self.cause:      yield f"Likely cause: {self.cause}"
        if not self.passed:
            unasked = step is None and self.stage == "unsolved"
            yield f"A hint, if you want one: {self._ask(1)}" if unasked else self.hint(step or 1)
        if not self.passed and self.function: yield IN_ITS_PLACE

    def hint(self, step: int) -> str:
        """The hint of that step: 1 is a question, 2 the shapes, 3 nearly the code."""
        hints = self.exercise.hints
        if step not in range(1, len(hints) + 1):
            raise ValueError(f"hint: got step {step!r}, expected 1 to {len(hints)}")
        more = f" (the next one: {self._ask(step + 1)})" if step < len(hints) else ""
        return f"Hint {step} of {len(hints)}: {hints[step - 1]}{more}"

    def _ask(self, step: int) -> str:
        """What to write for the hint of that step, in a notebook or in a terminal."""
        return f"result.hint({step})" if self.function else f"--hint {step}"

    def __repr__(self) -> str: return self.told()

    def told(self, step: int | None = None) -> str:
        """The result as text, with the hint of that step if the answer is not right. If no step is
        asked for, a wrong answer gets the first hint, and an unsolved one gets none."""
        first, *rest = self._lines(step)
        indented = ["  " + line.replace("\n", "\n            ") for line in rest]
        return "\n".join([f"{self.sign} {self.exercise.name}: {first}", *indented])

    def _repr_html_(self) -> str:
        colour = {"✔": "#009E73", "○": "#8A8A8A", "✘": "#D55E00"}[self.sign]
        rows = "".join(
            f"<tr><td style='text-align:left;vertical-align:top;opacity:.7'>{name}</td>"
            f"<td style='text-align:left'><pre style='margin:0'>{escape(value)}</pre></td></tr>"
            for name, value in (("got", self.got), ("expected", self.expected)) if value)
        cause = f"<div><b>Likely cause:</b> {escape(self.cause)}</div>" if self.cause else ""
        help_ = "" if self.passed else (
            folded(self.exercise.hints)
            + (f"<div style='opacity:.7'>{IN_ITS_PLACE}</div>" if self.function else ""))
        title = f"<b style='color:{colour}'>{self.sign} {escape(self.exercise.name)}</b>"
        return (f"<div style='border-left:4px solid {colour};padding:2px 10px'>"
                f"<div>{title} {escape(self.message)}</div>"
                + (f"<table>{rows}</table>" if rows else "") + cause + help_ + "</div>")


def folded(hints: Sequence[str]) -> str:
    """HTML in which each hint is folded inside the one before, so that they open one by one."""
    names, page = ("A hint: a question", "Another: the shapes", "The last: nearly the code"), ""
    for name, hint in reversed(list(zip(names, hints, strict=True))):
        page = (f"<details style='margin-left:1em'><summary>{name}</summary>"
                f"<div>{escape(hint)}</div>{page}</details>")
    return page
