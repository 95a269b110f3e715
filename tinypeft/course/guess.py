"""A guess before a measurement, and both side by side after it.

    guess = tp.guess("03.peak", 31.0, "MiB")             before the run
    guess.beside(peak)                                   after it: both, how far off, and stars

In an assignment `...` stands for the number. Then there is no guess yet, and everything goes on.
Nobody grades a guess: the stars are for the one who guesses.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from numbers import Real
from types import EllipsisType

from ..common.show.markup import facts
from ..engine.tensor import Tensor

__all__ = ["Guess", "guess"]

NAME = re.compile(r"(\d\db?|p\d)\.[a-z][a-z0-9_]*")
STARS = (3, 0.9, 1.1), (2, 0.75, 1.25), (1, 0.5, 2.0)    # stars, for guess/measured from … to …
NO_GUESS = "no guess yet: write a number in place of ... and run the cell again"


@dataclass(frozen=True)
class Guess:
    """A guess, and what was measured. Either is None as long as it is missing.

    name: "NN.word", the lesson and what is guessed ("p2.word" in project 2). unit: of both numbers.
    """
    name: str
    guess: float | None
    unit: str = ""
    measured: float | None = None

    def beside(self, measured: float) -> Guess:
        """The guess beside the measured number: write it as the last line of a cell.

        Raises TypeError if `measured` is no number, ValueError if it is not finite.
        """
        return replace(self, measured=_number(measured, f"{self.name}: the measured value"))

    @property
    def stars(self) -> int | None:
        """3 within 10 %, 2 within 25 %, 1 within a factor of 2, else 0; None without both numbers.

        The deviation is relative to the measured number. If that is 0, only 0 is right.
        """
        if self.guess is None or self.measured is None: return None
        if self.measured == 0: return 3 * (self.guess == 0)
        ratio = self.guess / self.measured
        return next((n for n, low, high in STARS if low - 1e-9 <= ratio <= high + 1e-9), 0)

    @property
    def off(self) -> str:
        """How far the guess is from the measured number, in words."""
        if self.stars is None: return ""
        if self.guess == self.measured: return "exactly right"
        if self.measured == 0: return "the measured number is 0"
        ratio = self.guess / self.measured
        if ratio < 0: return "the sign is wrong"
        if ratio == 0: return "the measured number is not 0"
        if not 0.5 <= ratio <= 2:
            way = "large" if ratio > 1 else "small"
            return f"{max(ratio, 1 / ratio):.3g} times too {way}"
        share = 100 * abs(ratio - 1)
        of = f"{share:.0f}" if share >= 1 else "less than 1"
        return f"{of} % too {'large' if ratio > 1 else 'small'}"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("your guess", NO_GUESS if self.guess is None else self._said(self.guess))]
        if self.measured is not None: rows.append(("measured", self._said(self.measured)))
        if self.stars is not None: rows.append(("how far off", f"{self.off}  {self._drawn()}"))
        return rows

    def _said(self, value: float) -> str:
        shown = f"{value:,.0f}" if value == round(value) or abs(value) >= 1e4 else f"{value:.4g}"
        return f"{shown} {self.unit}".rstrip()

    def _drawn(self) -> str: return "★" * self.stars + "☆" * (3 - self.stars)

    def __repr__(self) -> str:
        (_, guess), *rest = self._rows()
        first = f"{'○' if self.guess is None else '?'} {self.name}: "
        first += guess if self.guess is None else f"your guess is {guess}"
        return "\n".join([first, *(f"  {name:<13}{value}" for name, value in rest)])

    def _repr_html_(self) -> str: return facts(self._rows(), f"Guess {self.name}")


def guess(name: str, guess: float | EllipsisType, unit: str = "") -> Guess:
    """Note a guess, to compare it with what is measured later: `guess(…).beside(measured)`.

    name: "NN.word": the lesson's two digits, or p1 or p2 in a project, and what is guessed.
    guess: a number; `...` says that there is no guess yet. unit: of the guess, such as "MiB".

    Raises ValueError for another name and for a guess that is not finite, TypeError for a guess
    that is no number.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f'guess: the name is {name!r}; expected "NN.word", for example '
                         '"03.peak" or, in project 2, "p2.peak": two digits of the lesson, and '
                         'a word in small letters')
    if guess is ...: return Guess(name, None, unit)
    return Guess(name, _number(guess, f"{name}: the guess"), unit)


def _number(value, what):
    """The value as a float; an array or Tensor of one number counts as that number."""
    if isinstance(value, Tensor): value = value.data
    if getattr(value, "size", 0) == 1: value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} is {value!r}, which is no number; write one number, such as 31.0")
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}; expected a finite number")
    return float(value)
