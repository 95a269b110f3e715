"""Lesson 01b: a test of gradients, what a walk must reach, and a difference with a small error."""
from functools import partial

import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]

STEPS = 5000                                             # more than functions may call each other


# -- gradients.catches -----------------------------------------------------------------------------
def catches(f, vjp, x):
    if slip("you test at points of your own: a vjp may be right there and "
            "wrong at the x that is given"):
        x = np.random.default_rng(3).standard_normal(x.shape)
    rng, eps, wrong = np.random.default_rng(1), 1e-5, False
    for _ in range(8):
        place = which("v moves one number or one row alone, and an error elsewhere passes: draw "
                      "all numbers of v at random", 6)
        u = rng.standard_normal(x.shape)
        v = one_of(PLACES[place - 1], x) if place else rng.standard_normal(x.shape)
        if slip("u is (1, …, 1), as in .sum(): what is right for that u alone "
                "passes; draw u at random"):
            u = np.ones_like(x)
        if slip("v is (1, …, 1): an error whose numbers sum to 0 passes; draw v at random"):
            v = np.ones_like(x)
        dx = vjp(x, u)
        left = np.vdot(dx, v)
        right = np.vdot(u, f(x + eps * v) - f(x - eps * v)) / (2 * eps)
        size = np.linalg.norm(dx) * np.linalg.norm(v)
        limit = 1e-7 * size
        match which("the accepted difference is too large: an error of a few millionths must be "
                    "caught, in any unit, so accept no more than 1e-7 of ‖vjp(u)‖ ‖v‖", 5):
            case 1: limit = 1e-2 * size
            case 2: limit = 1e-4 * size
            case 3: limit = 1e-5 * size
            case 4: limit = 1e-5 * abs(right)
            case 5: limit = 1e-7 * max(1, size)
        if slip("rounding grows with the numbers: compare with 1e-7 of ‖vjp(u)‖ ‖v‖, not with a "
                "number of its own"):
            limit = 1e-7
        wrong |= bool(abs(left - right) > limit)
    if slip("the answer is the wrong way round: True means that the vjp is wrong"): return not wrong
    return wrong


PLACES = (0, 0), (-1, -1), 0, -1, (slice(None), 0), (slice(None), -1)


def one_of(place, x):
    """Draw numbers at one place, and 0 elsewhere."""
    v = np.zeros_like(x)
    v[place] = np.random.default_rng(2).standard_normal(x.shape)[place]
    return v


class Vjps:
    """Backward passes vjp(x, dy) → dx of y = tanh x · Σ x, over the last axis. Two are right."""

    @staticmethod
    def whole(x, dy, slope=1.0, second=1.0):
        t, s = np.tanh(x), x.sum(-1, keepdims=True)
        return slope * dy * (1 - t * t) * s + second * (dy * t).sum(-1, keepdims=True)

    @staticmethod
    def by_jacobian(x, dy):
        """Right, row by row: J = diag((1 − t²) Σ x) + t 1ᵀ."""
        d, t = x.shape[-1], np.tanh(x)
        s = x.sum(-1, keepdims=True)
        diagonal = ((1 - t * t) * s)[..., None]
        J = np.eye(d) * diagonal + t[..., None] * np.ones(d)
        return np.einsum("...ij,...i->...j", J, dy)

    @staticmethod
    def last_numbers(x, dy):
        """The last two numbers of the last row are wrong, and the sum of the row is right."""
        dx = Vjps.whole(x, dy)
        dx[-1, -1] += 0.1 * dy[-1, -1]
        dx[-1, -2] -= 0.1 * dy[-1, -1]
        return dx

    @staticmethod
    def without_sum(x, dy):
        return Vjps.whole(x, dy, second=0.0)

    @staticmethod
    def transposed(x, dy):
        """J dy in place of Jᵀ dy."""
        t, s = np.tanh(x), x.sum(-1, keepdims=True)
        return dy * (1 - t * t) * s + t * dy.sum(-1, keepdims=True)

    @staticmethod
    def for_ones(x, dy):
        """Right for dy = (1, …, 1) and nothing else: the mean of dy stands where dy should."""
        mean = dy.mean(-1, keepdims=True)
        return Vjps.whole(x, np.broadcast_to(mean, dy.shape))

    @staticmethod
    def sum_of_zero(x, dy):
        """Two numbers of each row but the last are wrong, and the sum of the row is right."""
        dx = Vjps.whole(x, dy)
        dx[:-1, 0] += 0.1 * dy[:-1, 0]
        dx[:-1, 1] -= 0.1 * dy[:-1, 0]
        return dx

    @staticmethod
    def slightly(x, dy):
        return Vjps.whole(x, dy, slope=1.0002)

    @staticmethod
    def barely(x, dy):
        return Vjps.whole(x, dy, slope=1 + 3e-6)

    @staticmethod
    def slightly_in_millionths(x, dy):
        return 1e-6 * Vjps.slightly(x, dy)

    @staticmethod
    def whole_in_millions(x, dy):
        return 1e6 * Vjps.whole(x, dy)

    @staticmethod
    def at_zero(x, dy):
        """Right near x = 0: 1 stands in place of 1 − tanh² x."""
        t, s = np.tanh(x), x.sum(-1, keepdims=True)
        return dy * s + (dy * t).sum(-1, keepdims=True)

    @staticmethod
    def for_small(x, dy):
        """Right as long as no number of x leaves −4 … 4, and wrong for larger ones."""
        return Vjps.whole(np.clip(x, -4, 4), dy)


VJPS = (Vjps.last_numbers, Vjps.without_sum, Vjps.transposed, Vjps.for_ones, Vjps.sum_of_zero,
        Vjps.slightly, Vjps.barely, Vjps.at_zero, Vjps.whole, Vjps.by_jacobian)
SMALL = Vjps.slightly, Vjps.barely, Vjps.slightly_in_millionths
STRICT = ("the accepted difference is too large: an error of a few millionths must be caught, in "
          "any unit, so accept no more than 1e-7 of ‖vjp(u)‖ ‖v‖")
ONE = ("a single direction may be nearly blind to a small error: draw eight or more, and let the "
       "worst decide: one that differs is enough")


def squashed_sum(x):
    """y = tanh x · Σ x, the sum over the last axis: x (…, d) → (…, d)."""
    return np.tanh(x) * x.sum(-1, keepdims=True)


def in_millionths(x):
    return 1e-6 * squashed_sum(x)


def in_millions(x):
    return 1e6 * squashed_sum(x)


def large_numbers(rng):
    return squashed_sum, Vjps.for_small, 6 + rng.standard_normal((3, 4))


def rows_of_six(rows):
    return lambda rng: (squashed_sum, Vjps.barely, rng.standard_normal((rows, 6)))


def other_unit(f, vjp):
    return lambda rng: (f, vjp, 1 + rng.standard_normal((3, 4)))


def catches_cases(rng, vjp=None):
    vjp = vjp or VJPS[rng.integers(len(VJPS))]
    return squashed_sum, vjp, 1 + rng.standard_normal((3, 4))


# -- gradients.needed ------------------------------------------------------------------------------
def needed(uses, trained):
    below = [k in trained for k in range(len(uses))]             # depends on a trained leaf
    if slip("what uses a trained leaf is used again: the gradient has to come through all of it"):
        uses_one = [k in trained or any(j in trained for j in uses[k]) for k in range(len(uses))]
    for k, parents in enumerate(uses):
        reached = any(below[j] for j in parents)
        if slip("one parent that depends on a trained leaf is enough"):
            reached = bool(parents) and all(below[j] for j in parents)
        below[k] = below[k] or reached
    if slip("what uses a trained leaf is used again: the gradient has to come through all of it"):
        below = uses_one
    if slip("a value that is above the lowest trained leaf need not depend on it", 1):
        below = [k >= min(trained, default=len(uses)) for k in range(len(uses))]
    asked = [False] * (len(uses) - 1) + [True]                   # the last value depends on it
    for k in reversed(range(len(uses))):
        for j in uses[k]: asked[j] = asked[j] or asked[k]
    both = [a and b for a, b in zip(below, asked, strict=True)]
    if slip("a value on which the last one does not depend is never reached: the walk starts at "
            "the last value"):
        return below
    match which("a value that is computed from no trained leaf needs no gradient, even if the walk "
                "passes by", 2):
        case 1: return asked
        case 2: return [a and (bool(uses[k]) or k in trained) for k, a in enumerate(asked)]
    if slip("a value that is above the lowest trained leaf need not depend on it", 2):
        return [k >= min(trained, default=0) for k in range(len(uses))]
    if slip("the last value, too, needs a gradient only if it depends on a trained leaf"):
        return [*both[:-1], True]
    if slip("a trained leaf needs its own gradient"):
        return [n and bool(uses[k]) for k, n in enumerate(both)]
    match which("the gradient of a leaf is made of those of all values between it and the "
                "last one: they are needed, too", 3):
        case 1: return [n and not uses[k] for k, n in enumerate(both)]
        case 2: return [k in trained or k == len(uses) - 1 for k in range(len(uses))]
        case 3: return [k in trained for k in range(len(uses))]
    if slip("a trained leaf on which the last value does not depend gets no gradient"):
        return [n or k in trained for k, n in enumerate(both)]
    if slip("return True or False for each value, not the numbers of those that are needed"):
        return [k for k, n in enumerate(both) if n]
    return both


# Leaves 0, 1, 3, 6 and 9; 5 leads nowhere, and 6 and 7 meet the others at the end.
VALUES = [[], [], [0, 1], [], [2, 3], [2, 1], [], [6, 6], [4, 7], [], [8, 9]]
PAGE = [[], [], [0, 1], [], [2, 3], [1], [4, 4]]         # the lesson's example


def page(rng):
    return PAGE, [1]


def needed_cases(rng):
    chosen = [(1,), (3,), (6,), (1, 9), (0, 6), (3, 9)]
    return VALUES, list(chosen[rng.integers(len(chosen))])


def nothing_trained(rng):
    return VALUES, []


def everything_trained(rng):
    return VALUES, [0, 1, 3, 6, 9]


def lost_leaf(rng):
    return [[], [], [0], [1]], [0]


def long_tape(rng):
    """Each value is computed from the one before it, twice: 2ⁿ paths lead back."""
    return [[], [], *([k, k] for k in range(1, STEPS))], [1]


# -- gradients.fourth ------------------------------------------------------------------------------
def fourth(f, x, eps):
    D = lambda eps: (f(x + eps) - f(x - eps)) / (2 * eps)
    if slip("this is the central difference itself, whose error goes with ε²"): return D(eps)
    if slip("the mean of two differences keeps an error of ε²: choose factors with which the ε² "
            "terms cancel"):
        return (D(eps / 2) + D(eps)) / 2
    if slip("the difference with the smaller step is the better one: it gets the larger factor"):
        return (4 * D(eps) - D(eps / 2)) / 3
    if slip("half the step has a quarter of the error, not half of it"):
        return 2 * D(eps / 2) - D(eps)
    if slip("the factors must sum to 1, so that the slope itself stays"):
        return 4 * D(eps / 2) - D(eps)
    if slip("the error terms have the same sign: one factor is negative"):
        return (4 * D(eps / 2) + D(eps)) / 5
    if slip("a one-sided difference has an error that goes with ε: take both sides"):
        return (f(x + eps) - f(x)) / eps
    if slip("this combination is for one-sided differences; those of both sides have only even "
            "powers of ε"):
        return 2 * (f(x + eps / 2) - f(x)) / (eps / 2) - (f(x + eps) - f(x)) / eps
    return (4 * D(eps / 2) - D(eps)) / 3


class Polynomials:
    """Polynomials of degree 4, `Polynomials.of_0` to `of_5`, whose slopes are known exactly."""

    @staticmethod
    def fifth(x):
        return x**5


def by_name(kind, seed):
    rng = np.random.default_rng(seed)
    for i in range(6):
        p = np.polynomial.Polynomial(rng.standard_normal(5))
        def value(x, p=p):
            return p(x)
        value.__qualname__ = f"{kind.__name__}.of_{i}"
        setattr(kind, f"of_{i}", staticmethod(value))


by_name(Polynomials, seed=0)


def _goes_with_the_fourth(fn, rng):
    """Is the error for x⁵ a number times ε⁴, and no rounding?"""
    x, eps = float(rng.normal()), float(rng.uniform(0.2, 0.5))
    near, far = (fn(Polynomials.fifth, x, e) - 5 * x**4 for e in (eps, 2 * eps))
    return np.isclose(far, 16 * near, rtol=1e-3) and abs(near) > 1e-6


def fourth_cases(rng):
    f = getattr(Polynomials, f"of_{rng.integers(6)}")
    return f, float(rng.normal()), float(rng.uniform(0.2, 1.0))


EXERCISES = (
    Exercise(
        name="gradients.catches", title="Find the bug: which backward pass is wrong?", stars=2,
        kind="fault",
        reference=catches, cases=catches_cases,
        special=(
            ("a right vjp, written in two terms", partial(catches_cases, vjp=Vjps.whole)),
            ("a right vjp, written with its Jacobian",
             partial(catches_cases, vjp=Vjps.by_jacobian)),
            ("a missing term", partial(catches_cases, vjp=Vjps.without_sum)),
            ("wrong in the last two numbers alone",
             partial(catches_cases, vjp=Vjps.last_numbers)),
            ("J dy in place of Jᵀ dy", partial(catches_cases, vjp=Vjps.transposed)),
            ("right for dy = (1, …, 1) alone", partial(catches_cases, vjp=Vjps.for_ones)),
            ("wrong by less than a thousandth in one term",
             partial(catches_cases, vjp=Vjps.slightly)),
            ("wrong, with the right sum of each row", partial(catches_cases, vjp=Vjps.sum_of_zero)),
            ("right near x = 0 alone", partial(catches_cases, vjp=Vjps.at_zero)),
            ("wrong for numbers above 4 alone, and x has such numbers", large_numbers),
            ("wrong by three millionths of one term", partial(catches_cases, vjp=Vjps.barely)),
            *((f"wrong by three millionths of one term, at an x of {rows} rows", rows_of_six(rows))
              for rows in range(4, 12)),
            ("wrong in one term, and f is a millionth of what it was",
             other_unit(in_millionths, Vjps.slightly_in_millionths)),
            ("right, and f is a million times what it was",
             other_unit(in_millions, Vjps.whole_in_millions))),
        mistakes=slips(catches),
        symptoms=(
            ("you refuse a right vjp, whose numbers are large: compare the difference with "
             "‖vjp(u)‖ ‖v‖, because rounding grows with them",
             lambda got, expected, args: got and not expected and args[0] is in_millions),
            ("you refuse a right vjp: is ε small, is the difference taken on both "
             "sides, divided by 2ε, and is it compared with a tolerance that rounding does not "
             "exceed, such as 1e-7 of ‖vjp(u)‖ ‖v‖?",
             lambda got, expected, args: got and not expected),
            (f"{STRICT}; and {ONE}", lambda got, expected, args: args[1] in SMALL),
            ("an error in two numbers passes, whose sum is right: draw all numbers of v at random, "
             "not one number or one row alone, nor all the same; and accept no more than 1e-7 of "
             "‖vjp(u)‖ ‖v‖",
             lambda got, expected, args: args[1] in (Vjps.last_numbers, Vjps.sum_of_zero)),
            ("you accept a wrong vjp: compare both sides of equation (1) at the x that is given, "
             "for a random u and a random v",
             lambda got, expected, args: expected and not got)),
        errors=(
            ("ambiguous",
             "return one True or False: both sides of equation (1) are single numbers, because "
             "⟨u, y⟩ sums over all of y"),),
        hints=("Both sides of equation (1) are numbers that you can compute. What must u and v "
               "be, so that no wrong vjp can hide?",
               "u and v have the shape of x. vjp(x, u) has it, too. np.vdot of two arrays is one "
               "number. How large may the difference be, compared with ‖vjp(x, u)‖ ‖v‖?",
               "dx = vjp(x, u), left = np.vdot(dx, v) and right = np.vdot(u, f(x + eps * v) - "
               "f(x - eps * v)) / (2 * eps), with eps = 1e-5. Return whether abs(left - right) is "
               "above 1e-7 times the norms of dx and v, for any of eight pairs of u and v.")),
    Exercise(
        name="gradients.needed", title="What the walk must reach", stars=2,
        kind="design",
        reference=needed, cases=needed_cases,
        special=(
            ("the example on the page", page),
            ("nothing is trained", nothing_trained),
            ("every leaf is trained", everything_trained),
            ("the trained leaf leads nowhere, so nothing is needed", lost_leaf),
            ("a chain of 5,000 steps, each of which uses the value before it twice", long_tape)),
        mistakes=slips(needed),
        errors=(
            ("RecursionError",
             "there are 2ⁿ paths through n steps: do not follow them, go once through all values"),
            ("no result after",
             "there are 2ⁿ paths through n steps: do not follow them, go once through all values"),
            ("not iterable", "uses[k] is a list of numbers of earlier values, and trained is one")),
        hints=("Two things must be true of a value. Which of them is known from the values before "
               "it, and which from those after it?",
               "Two lists with a bool for the number of each value, one filled from the first "
               "value to the last, one from the last to the first.",
               "below[k] is k in trained, or any(below[j] for j in uses[k]). asked[-1] is True; "
               "from the last k down, if asked[k], set asked[j] for each j in uses[k]. Return "
               "below[k] and asked[k] for each k.")),
    Exercise(
        name="gradients.fourth", title="A difference with a smaller error", stars=3,
        kind="design",
        reference=fourth, cases=fourth_cases,
        invariants=(
            ("of x⁵, the error at twice the ε is 16 times as large: use the ε that is given",
             _goes_with_the_fourth),),
        mistakes=slips(fourth),
        tolerance=1e-8,
        hints=("D(ε) = slope + c ε² + …. What is D(ε/2), with the same c?",
               "Two numbers, D(ε) and D(ε/2), and factors a and b with a + b = 1. The ε² terms "
               "cancel if a/4 + b = 0.",
               "(4 D(ε/2) − D(ε)) / 3, with D(ε) = (f(x + ε) − f(x − ε)) / (2 ε).")),
)
