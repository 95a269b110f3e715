"""What an exercise is worth: points and minutes, from the header of its cell in lessons/src.

They stand there and nowhere else. `tinypeft.check`, `grade`, `assign` and the headings of the
notebooks all read them from there.
"""
from typing import NamedTuple

from .exercises import TOPICS
from .percent import parsed, sources

__all__ = ["Worth", "worth"]


class Worth(NamedTuple):
    """Points for a right function, and the minutes that it takes. bonus: the points are extra."""
    points: int
    minutes: int
    bonus: bool = False


def worth(name: str) -> Worth:
    """The points and minutes of the exercise `name`.

    Raises FileNotFoundError where the package stands without its lessons, and KeyError if the
    topic's lesson has no cell for this exercise.
    """
    (path,) = sources(TOPICS[name.partition(".")[0]])
    for cell in parsed(path):
        if cell.exercise == name:
            return Worth(cell.options["points"], cell.options["minutes"], cell.bonus)
    raise KeyError(f"{path.name} has no cell for {name}; add one, which begins "
                   f"# %% exercise={name} points=… minutes=…")
