"""From numbers to the likely cause: what was got, what was expected, and what people do to get the one for the other."""
import numpy as np

from ..tensor import Tensor
from .calls import Local

__all__ = ["close", "describe", "difference", "likely_cause"]


# -- are two results the same? ---------------------------------------------------------------------
def difference(got, expected, tolerance, where="your result"):
    """None when `got` is `expected`; else (stage, sentence, got, expected) of the first thing that differs.

    stage is "type", "shape", "dtype" or "value"; got and expected are the arrays in question, where they are arrays.
    """
    if isinstance(expected, Tensor) or isinstance(got, Tensor):
        if not (isinstance(got, Tensor) and isinstance(expected, Tensor)):
            kind = "a tinypeft.Tensor" if isinstance(expected, Tensor) else "a NumPy array or number, without a graph"
            return "type", f"{where} is {_kind(got)}, expected {kind}", None, None
        got, expected = got.data, expected.data
    if isinstance(expected, dict):
        if not isinstance(got, dict) or got.keys() != expected.keys():
            return "type", f"{where} is {_kind(got)}, expected a dict with the keys {', '.join(map(str, expected))}", None, None
        return _first(difference(got[k], expected[k], tolerance, f"{where}[{k!r}]") for k in expected)
    if isinstance(expected, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(expected):
            return "type", f"{where} is {_kind(got)}, expected {len(expected)} results", None, None
        parts = [where] if len(expected) == 1 else [f"result {i + 1} of {len(expected)}" if where == "your result" else
                                                    f"{where}[{i}]" for i in range(len(expected))]
        return _first(difference(g, e, tolerance, w) for g, e, w in zip(got, expected, parts, strict=True))
    if expected is None or isinstance(expected, (str, bool, np.bool_)):
        same = got is None if expected is None else type(got) in (type(expected), np.bool_, bool) and got == expected
        return None if same else ("value", f"{where} is {got!r}, expected {expected!r}", None, None)

    if not isinstance(got, (np.ndarray, np.generic, int, float)):
        return "type", f"{where} is {_kind(got)}, expected {_kind(expected)}", None, None
    g, e = np.asarray(got), np.asarray(expected)
    if g.dtype.kind not in "biuf":
        return "type", f"{where} is an array of {g.dtype}, expected numbers", None, None
    if g.shape != e.shape:
        return "shape", f"{where} has shape {g.shape}, expected {e.shape}", g, e
    if isinstance(expected, np.ndarray) and g.dtype != e.dtype and not (g.dtype.kind in "iu" and e.dtype.kind in "iu"):
        return "dtype", f"{where} is {g.dtype}, expected {e.dtype}", g, e
    if not np.isfinite(g).all() and np.isfinite(e).all():
        return "value", f"{where} has {int((~np.isfinite(g)).sum())} numbers that are NaN or infinite", g, e
    return None if close(g, e, tolerance) else ("value", f"{where} has other numbers than expected", g, e)


def close(got, expected, tolerance):
    """Do two arrays of one shape agree, relative to the largest number expected?"""
    g, e = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if g.shape != e.shape: return False
    finite = np.isfinite(e)
    if not np.array_equal(g[~finite], e[~finite], equal_nan=True): return False
    bound = tolerance * max(abs(e[finite]).max(initial=0), 1e-12)
    return bool((abs(g[finite] - e[finite]) <= bound).all())


def _first(differences):
    return next((d for d in differences if d is not None), None)


def _kind(value):
    if value is None: return "None (is there a return?)"
    if isinstance(value, Tensor): return "a Tensor"
    if isinstance(value, np.ndarray): return f"an array {value.shape}"
    if isinstance(value, (tuple, list)): return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (float, int, np.number)): return "a number"
    return f"a {getattr(value, 'kind', type(value).__name__)}"


def describe(value):
    """A value in a line or two: numbers to four digits, shape and dtype."""
    if isinstance(value, Tensor): value = value.data
    if isinstance(value, np.ndarray) and value.ndim:
        return (np.array2string(value, precision=4, threshold=12, edgeitems=2, suppress_small=True, max_line_width=90)
                + f"  {value.dtype}{value.shape}")
    if isinstance(value, (float, np.floating)) or isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return f"{float(value):.6g}"
    if isinstance(value, (np.ndarray, np.generic)): return repr(value.item())
    if isinstance(value, (tuple, list)): return "(" + ", ".join(map(describe, value)) + ")"
    text = repr(value)
    return text if len(text) < 200 else text[:200] + "…"


# -- why not? --------------------------------------------------------------------------------------
def likely_cause(exercise, args, value, expected, found):
    """A sentence, or "". value and expected: the whole results; found: what `difference` said."""
    stage, _, g, e = found
    for sentence, wrong in exercise.mistakes:
        out = Local(wrong)(args)
        if out.error is None and difference(value, out.value, max(exercise.tolerance, 1e-7)) is None \
                and difference(out.value, expected, exercise.tolerance) is not None:
            return sentence
    for sentence, predicate in exercise.symptoms:
        try:
            if predicate(*((value, expected) if g is None else (g, e)), args): return sentence
        except Exception:                                # a predicate made for arrays meets something else
            continue
    if g is None: return ""
    return {"shape": _shape_cause, "dtype": _dtype_cause, "value": _value_cause}[stage](g, e, args, exercise.tolerance)


def _shape_cause(g, e, args, tolerance):
    if g.ndim == e.ndim >= 2 and g.shape == e.swapaxes(-1, -2).shape:
        same = close(g.swapaxes(-1, -2), e, max(tolerance, 1e-5))
        return "it is transposed" + (", and right otherwise" if same else "")
    if g.ndim == e.ndim + 1 and 1 in g.shape or g.ndim + 1 == e.ndim and 1 in e.shape:
        return "an axis of length 1 is too many or missing; look at keepdims"
    if g.size == 1: return "something was summed or averaged over all axes"
    if g.ndim > e.ndim: return "an axis too many: two arrays may have been broadcast against each other"
    return ""


def _dtype_cause(g, e, args, tolerance):
    if g.dtype == np.float64 and e.dtype == np.float32:
        return ("a float64 came in: np.sqrt of a Python number, np.float64 constants and np.zeros without a dtype do that; "
                "use math.sqrt, or dtype=x.dtype")
    if e.dtype.kind in "iu" and g.dtype.kind == "f": return "the codes are whole, but not of an integer type; use .astype"
    return ""


def _value_cause(g, e, args, tolerance):
    tol = max(tolerance, 1e-5)
    G, E = np.asarray(g, np.float64), np.asarray(e, np.float64)
    if not np.isfinite(G).all(): return "a division by zero, a logarithm of zero, or an exponential of a large number"
    if not G.any() and E.any(): return "your result is 0 everywhere"
    if close(-G, E, tol): return "the sign is flipped"
    big = abs(E) > 1e-3 * abs(E).max(initial=0)
    if E.size > 1 and big.sum() > 1:
        ratio = G[big] / E[big]
        if abs(ratio - ratio.mean()).max() <= 1e-4 * abs(ratio.mean()) and close(G, E * ratio.mean(), 1e-3):
            return f"your output is {_number(ratio.mean())}× what is expected, everywhere: a factor is wrong or missing"
    if E.ndim >= 2 and E.shape[-1] == E.shape[-2] and close(G.swapaxes(-1, -2), E, tol): return "it is transposed"
    difference = G - E
    if E.size > 2 and abs(difference - difference.flat[0]).max() <= tol * max(abs(E).max(), 1e-12):
        return f"your output is off by {_number(difference.flat[0])} everywhere: a constant is missing or too many"
    for i, a in enumerate(args):
        a = a.data if isinstance(a, Tensor) else a
        if isinstance(a, np.ndarray) and a.shape == E.shape and a.any():
            if close(G, E - a, tol): return f"a term is missing: argument {i + 1}"
            if close(G, E + a, tol): return f"a term is counted twice: argument {i + 1}"
    if E.ndim >= 2:
        for axis in range(E.ndim):
            d = np.diff(difference, axis=axis)
            if abs(d).max(initial=0) <= tol * max(abs(E).max(), 1e-12) and E.shape[axis] > 1:
                return f"the difference is the same along axis {axis}: a term that does not depend on it, such as a bias"
        for axis in range(E.ndim):
            total = G.sum(axis, keepdims=True)
            sums_to_one = G.min() >= 0 and abs(total - 1).max() < 1e-4
            if E.shape[axis] > 1 and sums_to_one and abs(E.sum(axis) - 1).max(initial=0) > 1e-3:
                return f"it is normalised along axis {axis}, which is the wrong one"
    wrong = ~np.isclose(G, E, rtol=0, atol=tol * max(abs(E).max(initial=0), 1e-12))
    if e.dtype.kind in "iu" and abs(difference).max() == 1:
        return f"{int(wrong.sum())} of {wrong.size} are off by one: look at how you round, and at ties"
    if wrong.sum() <= wrong.size // 2 and wrong.size > 1:
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return (f"{int(wrong.sum())} of {wrong.size} numbers differ, the first at [{', '.join(map(str, at))}]: "
                f"{_number(G[at])}, expected {_number(E[at])}")
    return ""


def _number(x):
    return f"{x:.4g}"
