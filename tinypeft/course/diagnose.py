"""From a wrong result to its likely cause: how it differs, and which mistake makes it differ so."""
from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import numpy as np

from ..hints import Array
from ..tensor import Tensor
from .calls import Local, Outcome
from .exercise import Exercise

__all__ = ["cause_of_error", "close", "describe", "difference", "in_arrays", "likely_cause",
           "place_of"]

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
            return wrong_type(f"a dict with the keys {', '.join(map(str, expected))}")
        parts = ((got[k], expected[k], f"{where}[{k!r}]") for k in expected)
        return _first(difference(g, e, tolerance, name, free) for g, e, name in parts)
    if isinstance(expected, (tuple, list)):
        n = len(expected)
        if isinstance(got, np.ndarray) and got.ndim: got = list(got)
        if not isinstance(got, (tuple, list)) or len(got) != n:
            return wrong_type(f"{n} results")
        if n == 1:                   names = [where]
        elif where == "your result": names = [f"result {i + 1} of {n}" for i in range(n)]
        else:                        names = [f"{where}[{i}]" for i in range(n)]
        parts = zip(got, expected, names, strict=True)
        return _first(difference(g, e, tolerance, name, free) for g, e, name in parts)
    if expected is None or isinstance(expected, (str, bool, np.bool_)):
        same = got is None if expected is None else \
            type(got) in (type(expected), np.bool_, bool) and got == expected
        if isinstance(got, np.bool_): got = bool(got)    # shown as True, not as np.True_
        return None if same else ("value", f"{where} is {got!r}, expected {expected!r}", None, None)

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


def close(got: Array, expected: Array, tolerance: float) -> bool:
    """Do two arrays agree in shape, and in value relative to the largest expected number?"""
    g, e = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if g.shape != e.shape: return False
    finite = np.isfinite(e)
    if not np.array_equal(g[~finite], e[~finite], equal_nan=True): return False
    return bool((abs(g[finite] - e[finite]) <= _bound(e[finite], tolerance)).all())


def _bound(e, tolerance):
    """The largest accepted difference from the numbers `e`."""
    return tolerance * max(abs(e).max(initial=0), 1e-12)


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
    n = int((distance > _bound(e[finite], tolerance)).sum())
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
    fits = lambda wrong, *call: _fits(exercise, wrong, *call)
    likely = [(sentence, wrong) for sentence, wrong in exercise.mistakes
              if fits(wrong, args, value) and not fits(wrong, args, expected)]
    if likely:
        others = [(a, exercise.settled(out.value))
                  for a, out in takewhile(lambda call: call[1].error is None, others)]
    for sentence, wrong in likely:
        if all(fits(wrong, *call, True) for call in others): return sentence
    for sentence, predicate in exercise.symptoms:
        try:
            if predicate(*((value, expected) if g is None else (g, e)), args): return sentence
        except Exception:                        # the predicate expects arrays of another kind
            continue
    if g is None: return ""
    if stage == "value" and not np.isfinite(g).all(): return _strain(strained)
    causes = {"shape": _shape_cause, "dtype": _dtype_cause, "value": _value_cause}
    return causes[stage](g, e, args, exercise.tolerance)


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


def _shape_cause(g, e, args, tolerance):
    if g.ndim == e.ndim >= 2 and g.shape == e.swapaxes(-1, -2).shape:
        same = close(g.swapaxes(-1, -2), e, max(tolerance, 1e-5))
        return "it is transposed" + (", and right otherwise" if same else "")
    if g.ndim == e.ndim + 1 and 1 in g.shape:
        return "it has an additional axis of length 1; look at keepdims"
    if g.ndim + 1 == e.ndim and 1 in e.shape:
        return "an axis of length 1 is missing; look at keepdims"
    if g.size == 1: return "you summed or averaged over all axes"
    if g.ndim > e.ndim:
        return "it has an additional axis: two arrays may have been broadcast against each other"
    return ""


def _dtype_cause(g, e, args, tolerance):
    if g.dtype == np.float64 and e.dtype == np.float32:
        return ("a float64 came in, from np.sqrt of a Python number, a np.float64 constant or "
                "np.zeros without a dtype; use math.sqrt, or dtype=x.dtype")
    if g.dtype == bool: return "these are True and False, where numbers are expected"
    if g.dtype == np.float32 and e.dtype == np.float64:
        return ("the numbers were turned into float32, by .astype or by a new Tensor, which also "
                "cuts the graph of the gradients; keep the dtype of the arguments")
    if e.dtype.kind in "iu" and g.dtype.kind == "f":
        if np.array_equal(g, np.rint(g)):
            return "the numbers are whole, but their type is a floating-point one; use .astype(int)"
        return "integers are expected, and these numbers are not whole"
    return ""


def _value_cause(g, e, args, tolerance):
    tol = max(tolerance, 1e-5)
    G, E = np.asarray(g, np.float64), np.asarray(e, np.float64)
    if not G.any() and E.any(): return "your result is 0 everywhere"
    if close(-G, E, tol): return "the sign is wrong"
    big = abs(E) > 1e-3 * abs(E).max(initial=0)
    if E.size > 1 and big.sum() > 1:
        ratio = G[big] / E[big]
        constant = abs(ratio - ratio.mean()).max() <= 1e-4 * abs(ratio.mean())
        if constant and abs(ratio.mean() - 1) > 0.01 and close(G, E * ratio.mean(), 1e-3):
            return (f"your result is {_number(ratio.mean())} times the expected one everywhere: "
                    "a factor is wrong or missing")
    square = E.ndim >= 2 and E.shape[-1] == E.shape[-2]
    if square and close(G.swapaxes(-1, -2), E, tol): return "it is transposed"
    D = G - E                                    # constant means: relative to the difference itself
    bound = max(_bound(E, tol), 0.01 * abs(D).max(initial=0))
    if E.size > 2 and abs(D).min() > bound and np.ptp(D) <= bound:
        return (f"your result differs by {_number(D.mean())} everywhere: a constant is missing, "
                "or one is too many")
    for i, a in enumerate(args):
        a = a.data if isinstance(a, Tensor) else a
        if isinstance(a, np.ndarray) and a.shape == E.shape and a.any():
            if close(G, E - a, tol): return f"a term is missing: argument {i + 1}"
            if close(G, E + a, tol): return f"a term is counted twice: argument {i + 1}"
    if E.ndim >= 2:
        for axis in range(E.ndim):
            if E.shape[axis] > 1 and np.ptp(D, axis=axis).max() <= 0.01 * abs(D).max():
                return (f"the difference is the same along axis {axis}: look for a term that does "
                        "not depend on it, such as a bias")
        for axis in range(E.ndim):
            total = G.sum(axis, keepdims=True)
            sums_to_one = G.min() >= 0 and abs(total - 1).max() < 1e-4
            if E.shape[axis] > 1 and sums_to_one and abs(E.sum(axis) - 1).max(initial=0) > 1e-3:
                return f"it is normalised along axis {axis}, which is the wrong one"
    wrong = int((abs(D) > _bound(E, tol)).sum())
    if e.dtype.kind in "iu" and abs(D).max() == 1:
        which = "it is" if D.size == 1 else f"{wrong} {'is' if wrong == 1 else 'are'}"
        return f"{which} off by one: look at how you round, and at ties"
    return ""


def _number(x):
    return f"{x:.4g}"
