"""From a wrong result to its likely cause: how it differs, and which mistake makes it differ so."""
from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import permutations, takewhile
from typing import Any

import numpy as np

from ..common.hints import Array
from ..engine.tensor import Tensor
from .calls import Local, Outcome
from .causes import bound, close, of_dtype, of_numbers, of_shape
from .exercise import Exercise

__all__ = ["cause_of_error", "describe", "difference", "in_arrays", "likely_cause", "place_of"]

STRAINS = {                                              # what NumPy notes → what to do about it
    "overflow":       "a number became too large for its type; before np.exp, subtract the largest "
                      "exponent",
    "divide by zero": "a division by zero, or the logarithm of zero",
    "invalid value":  "0/0, ∞ − ∞, or the root or logarithm of a negative number",
}

Difference = tuple[str, str, Array | None, Array | None]         # stage, sentence, got, expected


# -- are two results the same? ---------------------------------------------------------------------
def difference(got: Any, expected: Any, tolerance: float, where: str = "your result",
               free: bool = False) -> Difference | None:
    """The first difference between `got` and `expected`, or None if they agree.

    A list stands for an array, and an array for a list, if the shapes agree. free: no argument of
    the function fixes a floating-point type, so that any of them is accepted.

    A difference is (stage, sentence, got, expected). The stage is "type", "shape", "dtype" or
    "value"; the last two are the arrays in question, or None if they are no arrays.
    """
    wrong_type = lambda kind: ("type", f"{where} is {_kind(got)}, expected {kind}", None, None)
    if isinstance(expected, Tensor) or isinstance(got, Tensor):
        if not isinstance(got, Tensor):      return wrong_type("a tinypeft.Tensor")
        if not isinstance(expected, Tensor): return wrong_type("a NumPy array or a number")
        got, expected = got.data, expected.data
    if isinstance(expected, dict):
        if not isinstance(got, dict) or got.keys() != expected.keys():
            return wrong_type(f"a dict with the keys {_some(expected)}")
        parts = ((got[k], expected[k], f"{where}[{k!r}]") for k in expected)
        return _first(difference(g, e, tolerance, name, free) for g, e, name in parts)
    if isinstance(expected, (tuple, list)):
        n = len(expected)
        several = isinstance(got, (tuple, list)) or isinstance(got, np.ndarray) and got.ndim
        if not several or len(got) != n: return wrong_type(f"{n} results")
        if n == 1:                   names = [where]
        elif where == "your result": names = [f"result {i + 1} of {n}" for i in range(n)]
        else:                        names = [f"{where}[{i}]" for i in range(n)]
        parts = zip(got, expected, names, strict=True)
        return _first(difference(g, e, tolerance, name, free) for g, e, name in parts)
    if expected is None or isinstance(expected, (str, bool, np.bool_)):
        same = got is None if expected is None else \
            type(got) in (type(expected), np.bool_, bool) and got == expected
        if isinstance(got, np.bool_): got = bool(got)    # shown as True, not as np.True_
        plain = got is None or isinstance(got, (str, bool, int, float))
        shown = repr(got) if plain else _kind(got)
        return None if same else ("value", f"{where} is {shown}, expected {expected!r}", None, None)

    listed = isinstance(expected, np.ndarray) and isinstance(got, (tuple, list))
    g, e = _array(got) if listed else got, np.asarray(expected)
    if not isinstance(g, (np.ndarray, np.generic, int, float)): return wrong_type(_kind(expected))
    g = np.asarray(g)
    if g.dtype.kind not in "biuf":
        return "type", f"{where} is an array of {g.dtype}, expected numbers", None, None
    if g.shape != e.shape:
        return "shape", f"{where} has shape {g.shape}, expected {e.shape}", g, e
    kinds = g.dtype.kind + e.dtype.kind
    alike = set(kinds) <= set("iu") or kinds == "ff" and (free or listed) or listed and (
        kinds in ("if", "uf") or not g.size)
    if isinstance(expected, np.ndarray) and g.dtype != e.dtype and not alike:
        return "dtype", f"{where} has dtype {g.dtype}, expected {e.dtype}", g, e
    if not np.isfinite(g).all() and np.isfinite(e).all():
        n = int((~np.isfinite(g)).sum())
        numbers = "1 number that is" if n == 1 else f"{n} numbers that are"
        return "value", f"{where} contains {numbers} NaN or infinite", g, e
    if close(g, e, tolerance): return None
    numbers = "another number" if g.size == 1 else "other numbers"
    return "value", f"{where} has {numbers} than expected", g, e


def in_arrays(value: Any, expected: Any) -> Any:
    """The value, with an array of the same dtype for each list where `expected` has an array; the
    value itself if there is none."""
    if not isinstance(value, (tuple, list)): return value
    if isinstance(expected, np.ndarray):
        array = _array(value)
        return value if array is value else array.astype(expected.dtype)
    if not isinstance(expected, (tuple, list)) or len(value) != len(expected): return value
    parts = [in_arrays(v, e) for v, e in zip(value, expected, strict=True)]
    return value if all(p is v for p, v in zip(parts, value, strict=True)) else type(value)(parts)


def _array(value):
    """A list as an array, or as it is if it is none: ragged, or a list of something else."""
    try:
        array = np.array(value)
    except (ValueError, TypeError):
        return value
    return array if array.dtype.kind in "biuf" else value


def place_of(got: Array, expected: Array, tolerance: float) -> str:
    """A sentence: how many numbers differ, and which one the most. "" if there is only one number.

    Both have the same shape.
    """
    g, e = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if g.size < 2: return ""
    finite = np.isfinite(e)
    with np.errstate(invalid="ignore"):
        distance = np.where(finite, abs(g - e), (g != e) & ~(np.isnan(g) & np.isnan(e)))
    distance[np.isnan(distance)] = np.inf
    n = int((distance > bound(e[finite], tolerance)).sum())
    at = np.unravel_index(distance.argmax(), distance.shape)
    place = ", ".join(str(int(i)) for i in at)
    a, b = _distinct(np.asarray(got)[at], np.asarray(expected)[at])
    return (f"{n} of {g.size} numbers {'differs' if n == 1 else 'differ'}, the most at [{place}]: "
            f"got {a}, expected {b}")


def _distinct(a, b):
    """Two numbers as text, with as many digits as tell them apart."""
    if a.dtype.kind in "biu" and b.dtype.kind in "biu": return str(a), str(b)
    return next(pair for digits in range(4, 18)
                if len(set(pair := (f"{a:.{digits}g}", f"{b:.{digits}g}"))) == 2 or digits == 17)


def _first(differences):
    return next((d for d in differences if d is not None), None)


def _some(names, most=4):
    """Join the first names; of more than `most`, the last word is their number."""
    more = f" … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join([str(name) for name in names][:most]) + more


def _kind(value):
    if value is None: return "None (is there a return?)"
    if isinstance(value, Tensor): return "a Tensor"
    if isinstance(value, np.ndarray): return f"an array {value.shape}"
    if isinstance(value, (tuple, list)): return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (float, int, np.number)): return "a number"
    return f"a {getattr(value, 'kind', type(value).__name__)}"


def describe(value: Any) -> str:
    """A value in a line or two: numbers to four digits, shape and dtype."""
    if isinstance(value, Tensor): value = value.data
    if isinstance(value, np.ndarray) and value.ndim:
        numbers = np.array2string(value, precision=4, threshold=12, edgeitems=2,
                                  suppress_small=True, max_line_width=90)
        return f"{numbers}  {value.dtype}{value.shape}"
    if isinstance(value, (np.ndarray, np.generic)): value = value.item()
    if isinstance(value, float): return f"{value:{'.1f' if 1e5 < abs(value) < 1e15 else '.6g'}}"
    if isinstance(value, (tuple, list)): return "(" + ", ".join(map(describe, value)) + ")"
    text = repr(value)
    return text if len(text) < 200 else text[:200] + "…"


# -- the likely cause of a difference --------------------------------------------------------------
def likely_cause(exercise: Exercise, value: Any, expected: Any, found: Difference, args: tuple,
                 strained: str = "", others: Iterable[tuple[tuple, Outcome]] = ()) -> str:
    """A sentence, or "" if no cause is recognised. The exercise's own mistakes and symptoms come
    first.

    value, expected: the whole results for `args`, settled. found: what `difference` returned for
    them. strained: of the call's `Outcome`. others: (arguments, outcome) of other calls, which are
    read up to the first that failed. Two mistakes may agree in one call, so a mistake must fit all,
    except where it fails or something is not finite. It is recognised by numbers only: NaN equals
    NaN, whatever made it.
    """
    stage, _, g, e = found
    other_dtype = of_dtype(g, e) if stage == "dtype" else ""
    also = cache(lambda: [(a, exercise.settled(out.value)) for a, out in
                          takewhile(lambda call: call[1].error is None, others)])
    fits = lambda wrong, *call: _fits(exercise, wrong, *call)
    for sentence, wrong in exercise.mistakes:
        if fits(wrong, args, value) and not fits(wrong, args, expected) and \
                all(fits(wrong, *call, True) for call in also()):
            two = other_dtype and g.dtype.kind == e.dtype.kind       # 64 bits, and wrong numbers
            return f"{other_dtype}. And besides: {sentence}" if two else sentence
    for sentence, predicate in exercise.symptoms:
        try:
            if predicate(*((value, expected) if g is None else (g, e)), args): return sentence
        except Exception:                        # the predicate expects arrays of another kind
            continue
    cause = _exchanged(exercise, value, expected, also)
    if cause or g is None: return cause
    if stage == "shape": return of_shape(g, e, exercise.tolerance)
    if stage == "dtype": return other_dtype
    if not np.isfinite(g[np.isfinite(e)]).all(): return _strain(strained)
    return of_numbers((g, e, args), exercise.tolerance, lambda: _wrong_too(exercise, found, also()))


def _expected(exercise, args):
    return exercise.settled(Local(exercise.reference)(args).value)


def _exchanged(exercise, value, expected, also):
    """A sentence if several results are right, but stand in another order in every case; or ""."""
    def right(order, value, expected):
        if not isinstance(value, (tuple, list)) or len(value) != len(order): return False
        in_order = [value[i] for i in order]
        return difference(in_order, expected, exercise.tolerance) is None
    n = len(expected) if isinstance(expected, (tuple, list)) else 0
    orders = list(permutations(range(n)))[1:] if n <= 4 else []
    orders = [order for order in orders if right(order, value, expected)]
    for args, other in also() if orders else ():
        expected = _expected(exercise, args)
        orders = [order for order in orders if right(order, other, expected)]
    if not orders: return ""
    moved = [str(i + 1) for i, j in enumerate(orders[0]) if i != j]
    if len(moved) == 2: return f"results {' and '.join(moved)} are exchanged"
    return "the results are right, but they stand in another order"


def _wrong_too(exercise, found, calls):
    """(got, expected, arguments) of the calls in which the same result has other numbers."""
    where = lambda found: found[1].partition(" has ")[0]
    for args, value in calls:
        again = difference(value, _expected(exercise, args), exercise.tolerance, free=True)
        if again and again[0] == "value" and again[2] is not None and where(again) == where(found):
            yield again[2], again[3], args


def _fits(exercise, wrong, args, value, undecided=False):
    """Does a wrong variant return this value? undecided: the answer if the variant fails, or if one
    of the two is not finite."""
    out = Local(wrong)(args)
    theirs = exercise.settled(out.value)
    if out.error is not None or not (_finite(value) and _finite(theirs)): return undecided
    return difference(value, theirs, max(exercise.tolerance, 1e-7), free=True) is None


def _finite(value):
    """Are all numbers of a structure finite?"""
    if isinstance(value, dict): value = list(value.values())
    if isinstance(value, (tuple, list)): return all(map(_finite, value))
    try:
        return bool(np.isfinite(value.data if isinstance(value, Tensor) else value).all())
    except TypeError:                                                # text, or None
        return True


def _strain(strained):
    """What to do about the first event that NumPy noted ("overflow, in line 2 of f")."""
    if not strained:
        return "a division by zero, a logarithm of zero, or an exponential of a large number"
    kind = strained.partition(",")[0]
    return f"{STRAINS.get(kind, kind)} ({strained})"


def cause_of_error(error: str, exercise: Exercise, names: list[str]) -> str:
    """The likely cause of an error, the exercise's own first, then those that beginners often meet;
    or "". names: of the arguments."""
    has = lambda *words: any(word in error for word in words)
    for text, sentence in exercise.errors:
        if text in error: return sentence
    if has("matmul", "not aligned", "core dimension", "ValueError: linear"):
        named = "W" in names or "W0" in names
        return "two shapes do not fit" + ("; weights are (d_out, d_in), so y = x Wᵀ" if named
                                          else "; must one of the two be transposed?")
    if has("RecursionError"): return "a function calls itself without end, or too often"
    if has("broadcast"):
        return ("two shapes do not broadcast: an axis may be missing (None, keepdims=True), or a "
                "product is the wrong way round, AAᵀ for AᵀA")
    if has("operand 'Tensor' does not support ufuncs", "'Tensor' object has no attribute"):
        return ("Tensors have their own operations, so that gradients flow: + − * / ** @, .exp() "
                ".log() .tanh() .sqrt() .sum() .mean() .max() .reshape() .transpose() .T and "
                "indexing; NumPy's functions do not take them")
    if has("NameError"):
        return "a name is not defined in the function; is it an argument, or must you import it?"
    return ""
