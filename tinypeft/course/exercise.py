"""What an exercise is: a reference, data to compare on, and the mistakes that people make."""
from collections.abc import Callable
from dataclasses import dataclass

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
    special: (sentence, rng → arguments) for cases whose answer is obvious, checked before the
        random ones.
    gradient: names of the Tensor arguments whose gradients are compared, for functions of Tensors.
    invariants: (sentence, predicate), where `predicate(fn, rng)` is true if fn is right. They are
        checked last and cover properties that no single comparison of values shows.
    mistakes: (sentence, wrong variant of the reference). If a student's result equals the variant's
        result, the sentence is the likely cause.
    symptoms: (sentence, predicate), where `predicate(got, expected, arguments)` recognises a
        mistake by the arrays it produces.
    tolerance: the largest accepted difference, relative to the largest expected number; 0 for
        integers and codes.
    hint: what helps a student who is stuck, without the finished code.
    """
    name: str
    title: str
    reference: Callable
    cases: Callable
    hint: str
    special: tuple = ()
    gradient: tuple = ()
    invariants: tuple = ()
    mistakes: tuple = ()
    symptoms: tuple = ()
    tolerance: float = 1e-5

    @property
    def function(self) -> str:
        """The name of the student's function."""
        return self.name.replace(".", "_")
