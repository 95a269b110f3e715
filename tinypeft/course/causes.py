"""What a wrong shape, a wrong dtype or wrong numbers say about the mistake, in any exercise.

A cause reads the result, the expected one, and the arguments. It returns a sentence if it is
recognised, "" if it is not, and None if there is too little to tell it by, such as a single number.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..common.hints import Array
from ..engine.tensor import Tensor

__all__ = ["bound", "close", "of_dtype", "of_numbers", "of_shape"]

Case = tuple[Array, Array, tuple]                        # got, expected, arguments
FACTOR = "your result is {:.4g} times the expected one everywhere: a factor is wrong or missing"


# -- are two arrays the same? ----------------------------------------------------------------------
def close(got: Array, expected: Array, tolerance: float) -> bool:
    """Do two arrays agree in shape, and in value relative to the largest expected number?"""
    g, e = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if g.shape != e.shape: return False
    finite = np.isfinite(e)
    if not np.array_equal(g[~finite], e[~finite], equal_nan=True): return False
    return bool((abs(g[finite] - e[finite]) <= bound(e[finite], tolerance)).all())


def bound(e: Array, tolerance: float) -> float:
    """The largest accepted difference from the numbers `e`."""
    return tolerance * max(abs(e).max(initial=0), 1e-12)


# -- another shape, another dtype ------------------------------------------------------------------
def of_shape(g: Array, e: Array, tolerance: float) -> str:
    """The cause of a wrong shape, or ""."""
    if g.ndim == e.ndim >= 2 and g.shape == e.swapaxes(-1, -2).shape:
        same = close(g.swapaxes(-1, -2), e, max(tolerance, 1e-5))
        return "it is transposed" + (", and right otherwise" if same else "")
    if g.ndim == e.ndim + 1 and 1 in g.shape:
        return "it has an additional axis of length 1; look at keepdims"
    if g.ndim + 1 == e.ndim and 1 in e.shape:
        return "an axis of length 1 is missing; look at keepdims"
    if e.dtype.kind == "f" and (g.ndim == 0 or g.size == 1 and g.ndim == e.ndim >= 2):
        return "this is one number: a sum, a mean or a maximum runs over all axes"
    if g.size == e.size and close(g.reshape(e.shape), e, tolerance):
        return "the numbers are right, but not in this shape; look at .reshape"
    if g.ndim > e.ndim:
        return "it has an additional axis: two arrays may have been broadcast against each other"
    return ""


def of_dtype(g: Array, e: Array) -> str:
    """The cause of a wrong dtype, or ""."""
    if g.dtype == np.float64 and e.dtype == np.float32:
        return ("a float64 came in, from np.sqrt of a Python number, a np.float64 constant, "
                "np.zeros or a draw without a dtype; use math.sqrt, dtype=x.dtype, or .astype")
    if g.dtype == bool: return "these are True and False, where numbers are expected"
    if e.dtype == bool and np.isin(g, (0, 1)).all():
        return "True and False are expected, and these are the numbers 1 and 0; use .astype(bool)"
    if g.dtype == np.float32 and e.dtype == np.float64:
        return ("the numbers were turned into float32, by .astype or by a new Tensor, which also "
                "cuts the graph of the gradients; keep the dtype of the arguments")
    if e.dtype.kind in "iu" and g.dtype.kind == "f":
        if np.array_equal(g, np.rint(g)):
            return "the numbers are whole, but their type is a floating-point one; use .astype(int)"
        return "integers are expected, and these numbers are not whole"
    return ""


# -- other numbers ---------------------------------------------------------------------------------
def of_numbers(case: Case, tolerance: float, others: Callable[[], Iterable[Case]] = tuple) -> str:
    """The cause of wrong numbers in an array of the right shape, or "".

    others: it returns the cases in which the same result is wrong, too, and is called only if a
    cause is recognised in this one. Two mistakes may look alike on the few numbers of one case, so
    a cause is told only if no other case speaks against it.
    """
    tol = max(tolerance, 1e-5)
    if not _finite(case): return ""
    for cause in (_zero, _sign, _factor, _transposed, _moved, _constant, _term, _repeated,
                  _normalised, _ties):
        says = lambda g, e, args, cause=cause: cause(_float(g), _float(e), args, tol)
        sentence = says(*case)
        if sentence and all(says(*other) != "" for other in filter(_finite, others())):
            return sentence
    return _same_factor([case, *others()]) if np.size(case[1]) < 3 else ""


def _same_factor(cases):
    """The cause if few numbers are wrong by the same factor in every case, or ""."""
    G, E = (np.concatenate([np.ravel(case[i]) for case in cases]).astype(float) for i in (0, 1))
    there = E != 0
    if len(set(E[there])) < 3 or G[~there].any() or not np.isfinite(G).all(): return ""
    ratio = G[there] / E[there]
    r = ratio.mean()
    return FACTOR.format(r) if np.ptp(ratio) <= 1e-4 * abs(r) and abs(r - 1) > 0.01 else ""


def _float(x):
    return np.asarray(x, np.float64)


def _finite(case):
    return np.isfinite(case[0]).all() and np.isfinite(case[1]).all()


def _different(x):
    """How many different numbers are there, up to rounding?"""
    return len(np.unique(np.round(x / max(abs(x).max(initial=0), 1e-300), 6)))


def _zero(G, E, args, tol):
    if E.size == 1 or not E.any(): return None
    return "" if G.any() else "your result is 0 everywhere"


def _sign(G, E, args, tol):
    return "the sign is wrong" if close(-G, E, tol) else ""


def _factor(G, E, args, tol):
    big = abs(E) > 1e-3 * abs(E).max(initial=0)
    if _different(E[big]) < 3: return None
    ratio = G[big] / E[big]
    r = ratio.mean()
    constant = abs(ratio - r).max() <= 1e-4 * abs(r)
    if not constant or abs(r - 1) <= 0.01 or not close(G, E * r, 1e-3): return ""
    return FACTOR.format(r)


def _transposed(G, E, args, tol):
    if E.ndim < 2: return None
    return "it is transposed" if close(G.swapaxes(-1, -2), E, tol) else ""


def _moved(G, E, args, tol):
    told = None
    for axis in (axis for axis in range(E.ndim) if E.shape[axis] > 2):
        g, e = G.swapaxes(0, axis), E.swapaxes(0, axis)
        if close(e[1:], e[:-1], tol) or close(e[::-1], e, tol): continue      # moved, it is itself
        if np.ptp(e - g) <= bound(e, tol): continue                          # a constant more
        told = ""
        if close(g[::-1], e, tol): return f"the order along axis {axis} is the opposite one"
        for ahead, behind in ((g, e), (e, g)):
            if close(ahead[1:], behind[:-1], tol):
                return f"the numbers are right, but shifted by one place along axis {axis}"
    return told


def _constant(G, E, args, tol):
    if _different(E) < 3: return None
    D = G - E                                    # constant means: relative to the difference itself
    enough = max(bound(E, tol), 0.01 * abs(D).max(initial=0))
    if abs(D).min() <= enough or np.ptp(D) > enough: return ""
    return (f"your result differs by {D.mean():.4g} everywhere: a constant is missing, or one is "
            "too many")


def _term(G, E, args, tol):
    for i, a in enumerate(args):
        a = a.data if isinstance(a, Tensor) else a
        if isinstance(a, np.ndarray) and a.shape == E.shape and a.any():
            if close(G, E - a, tol): return f"a term is missing: argument {i + 1}"
            if close(G, E + a, tol): return f"a term is counted twice: argument {i + 1}"
    return ""


def _repeated(G, E, args, tol):
    D, told = G - E, None
    for axis in range(E.ndim if E.ndim >= 2 else 0):
        wrong = abs(D).max(axis) > bound(E, tol)
        if not (np.ptp(E, axis=axis) > bound(E, tol))[wrong].all(): continue    # the data repeats
        told = ""
        if E.shape[axis] > 1 and np.ptp(D, axis=axis).max() <= 0.01 * abs(D).max():
            return (f"the difference is the same along axis {axis}: look for a term that does not "
                    "depend on it, such as a bias")
    return told


def _normalised(G, E, args, tol):
    for axis in range(E.ndim if E.ndim >= 2 else 0):
        sums_to_one = G.min() >= 0 and abs(G.sum(axis) - 1).max() < 1e-4
        if E.shape[axis] > 1 and sums_to_one and abs(E.sum(axis) - 1).max(initial=0) > 1e-3:
            return f"it is normalised along axis {axis}, which is the wrong one"
    return ""


def _ties(G, E, args, tol):
    """Codes of numbers among the arguments: an index or a place is off by one for other reasons."""
    D = abs(G - E)
    whole = np.array_equal(G, np.rint(G)) and np.array_equal(E, np.rint(E))
    if not whole or not D.max(initial=0) <= 1: return ""
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    rounded = any(a.shape == E.shape and a.dtype.kind == "f" for a in arrays)
    if not rounded or E.size < 3 or np.ptp(E) < 2: return None
    n = int(D.sum())
    return f"{n} {'is' if n == 1 else 'are'} off by one: look at how you round, and at ties"
