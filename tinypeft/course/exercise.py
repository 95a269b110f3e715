"""What an exercise is: a reference, data to compare on, and the mistakes that people make."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Exercise"]


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One function for a student to write. `worth.py` reads its points and minutes from the lesson.

    name: "topic.task"; the student's function is called `topic_task`.
    title: a phrase, which the lesson prints as the exercise's heading.
    reference: the right function, either the package's own or a few lines around it. Its signature
        is the student's signature; its result sets the type, shape and dtype that are expected.
    cases: rng → a tuple of arguments. It is called with several generators, so it should vary the
        sizes and leave no symmetry (a square matrix hides a transpose). Arguments are arrays,
        Tensors, numbers, strings, None, functions of this package, or tuples, lists and dicts of
        these.
    kind: what it asks for: a "design", a "fault" to find, a "gradient", a "count", or a "formula",
        which the page displays.
    example: rng → the arguments of the example on the lesson's page, which is checked first.
    special: (sentence, rng → arguments) for cases whose answer is obvious, checked before the
        random ones.
    extremes: the same for cases of large numbers or sizes, checked after the random ones.
    gradient: names of the Tensor arguments whose gradients are compared, for functions of Tensors.
    invariants: (sentence, predicate), where `predicate(fn, rng)` is true if fn is right. They are
        checked last and cover properties that no single comparison of values shows.
    mistakes: (sentence, wrong variant of the reference). If a student's result equals the variant's
        result, the sentence is the likely cause. A mistake may also leave the result right and
        change a gradient alone. They stand in the reference itself, as slips, and
        `slips(reference)` lists them (`slips.py`).
    symptoms: (sentence, predicate), where `predicate(got, expected, arguments)` recognises a
        mistake by the arrays it produces.
    errors: (text, sentence). If the student's function raises an error whose message contains the
        text, the sentence is the likely cause.
    avoids: names that the student's function may not use, because the package has the answer there.
    goal: (sentence, predicate), for a design, where many results are right: any of the expected
        type and shape for which `predicate(result, arguments)` is true. The reference is one of
        them. Of a result that misses the goal, mistakes and symptoms tell the cause. A third part,
        `reached(result, arguments)`, says how near the result came, such as "; yours is 0.8".
    normalize: result → result, with a choice settled that is left to the student, such as the sign
        of a singular vector. Both results are compared in this form.
    quiet: a right result is refused if NumPy noted a division by zero or an invalid operation on
        the way to it, such as 0/0, which is then turned into an integer.
    tolerance: the largest accepted difference, relative to the largest expected number; 0 for
        integers and codes.
    stars: 1 to 3, how hard it is: to write down, to think about, to derive.
    hints: three steps for a student who is stuck: a question, the shapes, and nearly the code.
    """
    name: str
    title: str
    stars: int
    reference: Callable
    cases: Callable
    hints: tuple[str, str, str]
    kind: str = ""
    example: Callable | None = None
    special: tuple = ()
    extremes: tuple = ()
    gradient: tuple = ()
    invariants: tuple = ()
    mistakes: tuple = ()
    symptoms: tuple = ()
    errors: tuple = ()
    avoids: tuple[str, ...] = ()
    goal: tuple[str, Callable] | tuple[str, Callable, Callable] | None = None
    normalize: Callable | None = None
    quiet: bool = False
    tolerance: float = 1e-5

    @property
    def function(self) -> str:
        """The name of the student's function."""
        return self.name.replace(".", "_")

    def settled(self, value: Any) -> Any:
        """The value in the form in which results are compared; as it is if it has another kind. A
        list among several results is read as an array."""
        if self.normalize is None: return value
        try:
            if isinstance(value, (tuple, list)):
                value = [np.asarray(part) if isinstance(part, list) else part for part in value]
            return self.normalize(value)
        except Exception:                                # not what the exercise asks for
            return value
