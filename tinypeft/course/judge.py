"""How a function is judged: stage after stage, from its signature to its invariants.

The stages are the signature; one random case, which shows a wrong type, shape or dtype; the example
of the lesson's page; the cases whose answer is obvious; random cases; the extreme ones; gradients;
invariants; and whether it is a call of the package. The first failure ends it and is reported with
the value that came back, the value that was expected, and the likely cause.
"""
from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..engine.tensor import Tensor
from .calls import Local, copied, leaves
from .diagnose import cause_of_error, describe, difference, in_arrays, likely_cause, place_of
from .exercise import Exercise
from .result import CheckResult
from .worth import worth

if TYPE_CHECKING:
    from .wire import Remote

__all__ = ["judge"]

CASES = 6                                                # random cases, the first one included


def judge(exercise: Exercise, call: Local | Remote, seed: int = 0) -> CheckResult:
    """The `CheckResult` of the function behind `call`. Its field `function` is left empty."""
    rng = lambda *key: np.random.default_rng([seed, zlib.crc32(exercise.name.encode()), *key])
    first = exercise.cases(rng(0))
    more = [exercise.cases(rng(2, i)) for i in range(1, CASES)]
    special = [("special", f", in the case “{sentence}”", arguments(rng(1, i))) for
               i, (sentence, arguments) in enumerate((*exercise.special, *exercise.extremes))]
    page = [("special", ", in the example of the lesson", exercise.example(rng(5)))
            for _ in range(exercise.example is not None)]
    others = [*more, *(args for *_, args in special)]
    failure = wrong_signature(exercise, call, first)
    if failure is None: failure = wrong_result(exercise, call, first, "random", "", others)
    # If only its numbers are wrong, a case that a student knows shows the mistake better.
    if failure is not None and failure.stage != "random": return failure
    known = "" if failure is None else failure.cause
    random, n = [("random", "", args) for args in (first, *more)], len(exercise.special)
    for stage, about, args in (*page, *special[:n], *random, *special[n:]):
        failure = wrong_result(exercise, call, args, stage, about, others)
        if failure is not None: return replace(failure, cause=failure.cause or known)
    if exercise.gradient:
        failure = wrong_gradient(exercise, call, exercise.cases(rng(3)))
        if failure is not None: return failure
    for i, (sentence, holds) in enumerate(exercise.invariants):
        failure = broken_invariant(exercise, call, sentence, holds, rng(4, i))
        if failure is not None: return failure
    expected, out = Local(exercise.reference)(first).value, call(first, watch=True)
    last = {name.rpartition(".")[2]: name for name in out.borrowed}
    answer = out.answer or next((last[name] for name in exercise.avoids if name in last), "")
    if answer:
        return failed(exercise, "borrowed", f"the numbers are right, but they come from {answer} "
                                            "of the package; write your own function")
    listed = in_arrays(out.value, expected) is not out.value
    return CheckResult(exercise, True, f"right.{points_of(exercise)}", listed=listed,
                       borrowed=out.borrowed)


def points_of(exercise: Exercise) -> str:
    """" 3 points." or " 3 extra points."; "" if no lesson states the points."""
    try:
        points, _, bonus = worth(exercise.name)
    except (FileNotFoundError, KeyError):
        return ""
    return f" {points} {'extra ' * bonus}point{'s' * (points != 1)}."


def failed(exercise, stage, message, **more):
    return CheckResult(exercise, False, message, stage=stage, **more)


def names_of(exercise):
    """The names of the function's arguments."""
    return list(inspect.signature(exercise.reference).parameters)


# -- the stages: each returns None or a failed CheckResult -----------------------------------------
def wrong_signature(exercise, call, args):
    wanted = f"{exercise.function}({', '.join(names_of(exercise))})"
    if str(call.origin or "").startswith("tinypeft."):
        return failed(exercise, "signature", f"{exercise.function} is the package's function here; "
                                             "run the cell that defines yours, then this one")
    avoided = [name for name in exercise.avoids if name in call.uses]
    if avoided:
        return failed(exercise, "signature", f"your function uses {' and '.join(avoided)} of the "
                                             "package; this is what the exercise asks you to write")
    if call.signature is None:
        return failed(exercise, "signature", "got an object that cannot be called, expected a "
                                             f"function {wanted}")
    try:
        call.signature.bind(*args)
    except TypeError as e:
        reason = f"it is called with {len(args)} arguments" if "too many" in str(e) else e
        return failed(exercise, "signature", f"your function takes {call.signature}, expected "
                                             f"{wanted}: {reason}")


def wrong_result(exercise, call, args, stage, about, others):
    """others: the arguments of other cases, in which the likely cause must fit as well."""
    names = names_of(exercise)
    expected, out = Local(exercise.reference)(args).value, call(args, names)
    sizes = f" ({shapes(names, args)})" if shapes(names, args) else ""
    if out.unsolved:
        told = "" if out.error == exercise.name else f": {out.error}"
        return failed(exercise, "unsolved", f"not solved yet{told}")
    if out.error:
        return failed(exercise, "error", f"your function fails{about}{sizes}. {out.error}",
                      cause=in_another_order(call, names)
                      or cause_of_error(out.error, exercise, names))
    free = not any(a.dtype.kind == "f" for a in leaves(args))
    value, expected = exercise.settled(out.value), exercise.settled(expected)
    found = difference(value, expected, exercise.tolerance, free=free)
    if found is not None and found[0] == "value" and exercise.goal:
        found = missed(exercise.goal, value, args)
    if found is not None:
        kind, sentence, got, want = found
        place = place_of(got, want, exercise.tolerance) if kind == "value" and \
            got is not None else ""
        if got is None: got, want = value, expected
        # Of a design with a goal, the reference's result would be an answer to hand in.
        return failed(exercise, kind if kind != "value" else stage,
                      f"{sentence}{about}{sizes}.{place and f' {place}.'}",
                      got=describe(got), expected="" if exercise.goal else describe(want),
                      cause=in_another_order(call, names)
                      or likely_cause(exercise, value, expected, found, args, out.strained,
                                      ((a, call(a, names)) for a in others)))
    if exercise.quiet and out.strained:
        return failed(exercise, "strain", f"the numbers are right{about}, but only by luck: "
                                          f"{out.strained}",
                      cause="a division by zero gives NaN or infinity, and what becomes of these "
                            "depends on the machine; choose another divisor first")
    if out.changed:
        return failed(exercise, "inputs", "your function writes into its argument "
                                          f"{', '.join(out.changed)}; work on a copy",
                      cause="+=, -=, *= and x[…] = change the caller's array, .pop() and .sort() "
                            "the caller's list or dict; write x = x + …, or copy it first")


def in_another_order(call, names):
    """A sentence if the function's head has the names of the arguments in another order; or ""."""
    given = list(call.signature.parameters)
    if given == names or sorted(given) != sorted(names): return ""
    return (f"the arguments come in the order {', '.join(names)}, and the head of your function "
            f"says {', '.join(given)}")


def missed(goal, value, args):
    """None if a design meets its goal, or how it differs from what is asked for."""
    sentence, met, *more = goal
    if met(value, args): return None
    came = more[0](value, args) if more else ""
    return "value", f"the goal is missed: {sentence}{came}", None, None


def wrong_gradient(exercise, call, args):
    """Gradients are compared in float64, for an upstream gradient drawn from the seed 7; in float32
    if the function makes a float32 Tensor of its own, which does not mix with float64."""
    names, cases = names_of(exercise), args
    for dtype in (np.float64, np.float32):
        args = copied(cases, dtype)
        for name in exercise.gradient: args[names.index(name)].requires_grad = True
        run = lambda call, args=args: call(args, names, exercise.gradient, upstream=7)
        got = run(call)
        if "tensors do not mix" not in (got.error or ""): break
    if got.error:
        return failed(exercise, "gradient", "the backward pass through your function raises an "
                                            f"error. {got.error}")
    want, tolerance = run(Local(exercise.reference)), 1e-7 if dtype is np.float64 else 1e-4
    for name in exercise.gradient:
        if got.gradients.get(name) is None:
            return failed(exercise, "gradient", f"no gradient reaches {name}",
                          expected=describe(want.gradients[name]),
                          cause="your function leaves the graph: .data, a NumPy function or a new "
                                "Tensor cuts it; use operations on Tensors")
    values_only = replace(exercise, mistakes=(), symptoms=(), normalize=None)
    for name in exercise.gradient:
        g, e = got.gradients[name], want.gradients[name]
        found = difference(g, e, tolerance, f"the gradient of {name}")
        if found is not None:
            place = place_of(g, e, tolerance) if found[0] == "value" else ""
            variants = ((sentence, run(Local(wrong))) for sentence, wrong in exercise.mistakes)
            cause = next((sentence for sentence, out in variants
                          if difference(out.value, want.value, tolerance) is None
                          and difference(out.gradients.get(name), g, tolerance) is None), "")
            return failed(exercise, "gradient",
                          f"{found[1]}, though the result is right.{place and f' {place}.'}",
                          got=describe(g), expected=describe(e),
                          cause=cause or likely_cause(values_only, g, e, found, (), got.strained)
                          or f"one of the ways from {name} to the result leaves the graph: .data, "
                             "a NumPy function or a new Tensor cuts it")


def broken_invariant(exercise: Exercise, call, sentence: str, holds: Callable, rng):
    def fn(*args):
        out = call(args, names_of(exercise))
        if out.error: raise RuntimeError(out.error)
        return in_arrays(out.value, Local(exercise.reference)(args).value)
    try:
        good = bool(holds(fn, rng))
    except Exception as e:                               # its own, or one that its result causes
        reason = str(e) if type(e) is RuntimeError else f"{type(e).__name__}: {e}"
        return failed(exercise, "invariant", "your function fails where this should hold: "
                                             f"{sentence}. {reason}")
    if not good:
        return failed(exercise, "invariant", f"this should hold, but does not: {sentence}")


def shapes(names: list[str], args: tuple) -> str:
    """ "x (2, 3), n = 4": the shapes of arrays and Tensors among the arguments, and the values of
    numbers and of dicts of numbers."""
    parts = []
    for name, a in zip(names, args, strict=False):
        if isinstance(a, (np.ndarray, Tensor)): parts.append(f"{name} {a.shape}")
        elif isinstance(a, (int, float)):       parts.append(f"{name} = {a:g}")
        elif isinstance(a, dict) and all(isinstance(v, (int, float)) for v in a.values()):
            parts.append(f"{name} = {{{', '.join(f'{k}: {v:.4g}' for k, v in a.items())}}}")
    return ", ".join(parts)
