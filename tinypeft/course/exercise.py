"""What an exercise is: a reference, data to compare on, and the mistakes that people make."""
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Exercise"]


@dataclass(frozen=True)
class Exercise:
    """One function for a student to write.

    name: "topic.what"; the student's function is called `topic_what`.
    reference: the right function, the package's own or made of it. It says how many arguments there are, and what type,
        shape and dtype a result has.
    cases: rng → a tuple of arguments; called with several generators, it should vary sizes and leave no symmetry (a square
        matrix hides a transpose). Arguments are arrays, Tensors, numbers, strings, None, functions of the package, and
        tuples, lists and dicts of these.
    special: (sentence, rng → arguments) for cases with an answer one can see, compared before the random ones.
    gradient: names of the Tensor arguments whose gradients are compared, for functions of Tensors.
    invariants: (sentence, predicate): `predicate(fn, rng)` is true of a right function. They come last, and are for what
        values at single points do not show.
    mistakes: (sentence, wrong variant of the reference): when a student's result is what the variant gives, the sentence
        is the likely cause.
    symptoms: (sentence, predicate): `predicate(got, expected, arguments)` is true of arrays that the mistake gives.
    tolerance: largest difference accepted, relative to the largest number expected; 0 for whole numbers and codes.
    """
    name: str
    title: str
    points: int
    minutes: int
    reference: Callable
    cases: Callable
    hint: str
    special: tuple = ()
    gradient: tuple = ()
    invariants: tuple = ()
    mistakes: tuple = ()
    symptoms: tuple = ()
    tolerance: float = 1e-5

    function = property(lambda self: self.name.replace(".", "_"))
