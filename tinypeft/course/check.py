"""Is a student's function right? `tinypeft.check("lora.forward", lora_forward)`.

From the outside in: signature, type, shape and dtype, cases with an answer one can see, random cases against the package,
gradients, invariants. The first failure ends it, with what was got, what was expected and the likely cause.
"""
import os
import zlib
from dataclasses import dataclass

import numpy as np

from ..markup import escape
from ..tensor import Tensor
from .calls import Local
from .diagnose import describe, difference, likely_cause

__all__ = ["CheckFailed", "CheckResult", "check"]

CASES = 6


class CheckFailed(AssertionError):
    """A check failed while a grader was watching (see `check`)."""


@dataclass
class CheckResult:
    """What a check found. True when it passed; prints as one clean cell.

    message: one paragraph. stage: where it stopped ("signature", "shape", …, or "unsolved"; None when it passed).
    got, expected: the values in question, as text. cause: the likely one, or "".
    function: the student's function if it passed, else the package's own, so that what follows never waits for it.
    """
    exercise: object
    passed: bool
    message: str
    function: object = None
    stage: str | None = None
    got: str = ""
    expected: str = ""
    cause: str = ""

    def __bool__(self):
        return self.passed

    def _lines(self):
        yield self.message
        if self.got: yield f"got       {self.got}"
        if self.expected: yield f"expected  {self.expected}"
        if self.cause: yield f"Likely cause: {self.cause}"
        if not self.passed: yield f"Hint: {self.exercise.hint}"
        if not self.passed: yield "What follows uses the package's own function in place of yours."

    def __repr__(self):
        return f"{'✔' if self.passed else '○' if self.stage == 'unsolved' else '✘'} {self.exercise.name}: " + "\n".join(
            line if i == 0 else "  " + line.replace("\n", "\n            ") for i, line in enumerate(self._lines()))

    def _repr_html_(self):
        colour, sign = ("#009E73", "✔") if self.passed else ("#8A8A8A", "○") if self.stage == "unsolved" else ("#D55E00", "✘")
        pre = "".join(f"<tr><td style='text-align:left;vertical-align:top;color:#707070'>{name}</td>"
                      f"<td style='text-align:left'><pre style='margin:0'>{escape(value)}</pre></td></tr>"
                      for name, value in (("got", self.got), ("expected", self.expected)) if value)
        cause = f"<div><b>Likely cause:</b> {escape(self.cause)}</div>" if self.cause else ""
        rest = "" if self.passed else (
            f"<details><summary>A hint</summary>{escape(self.exercise.hint)}</details>"
            "<div style='color:#707070'>What follows uses the package's own function in place of yours.</div>")
        return (f"<div style='border-left:4px solid {colour};padding:2px 10px'>"
                f"<div><b style='color:{colour}'>{sign} {escape(self.exercise.name)}</b> {escape(self.message)}</div>"
                + (f"<table>{pre}</table>" if pre else "") + cause + rest + "</div>")


def check(name, fn, *, seed=0):
    """Check a function that solves the exercise `name`; return a `CheckResult`, which is true when it passed.

    A wrong or unsolved function raises nothing, so that a notebook runs to its end, except under nbgrader, whose grading
    counts exceptions: there it raises CheckFailed. seed: of the random cases. KeyError for a name that does not exist.
    """
    from .exercises import find
    result = judge(find(name), fn if hasattr(fn, "origin") else Local(fn), seed)
    result.function = fn if result else result.exercise.reference
    if not result and os.environ.get("NBGRADER_EXECUTION"):
        raise CheckFailed(repr(result))
    return result


def judge(exercise, call, seed=0):
    """The `CheckResult` of a function behind `call` (a `calls.Local` or `wire.Remote`), without `function`."""
    names = list(parameters(exercise.reference))
    rng = lambda *key: np.random.default_rng([seed, zlib.crc32(exercise.name.encode()), *key])
    failed = lambda stage, message, **more: CheckResult(exercise, False, message, stage=stage, **more)

    # signature
    wanted = f"{exercise.function}({', '.join(names)})"
    if call.origin is not None and str(call.origin).startswith("tinypeft."):
        return failed("signature", f"this is the package's own function, from {call.origin}; write yours")
    if call.signature is None:
        return failed("signature", f"got something that cannot be called, expected a function {wanted}")
    try:
        call.signature.bind(*exercise.cases(rng(0)))
    except TypeError as e:
        return failed("signature", f"your function takes {call.signature}, expected {wanted}: {e}")

    def compare(args, stage, about):
        """None, or the failure on these arguments."""
        expected = Local(exercise.reference)(args).value
        out = call(args, names)
        sizes = f" ({shapes(names, args)})" if shapes(names, args) else ""
        if out.unsolved:
            return failed("unsolved", f"not solved yet: {out.error}")
        if out.error:
            return failed("error", f"your function fails{about}{sizes}. {out.error}",
                          cause=likely_cause_of_error(out.error))
        found = difference(out.value, expected, exercise.tolerance)
        if found is not None:
            at = found[0] if found[0] != "value" else stage
            got, want = (found[2], found[3]) if found[2] is not None else (out.value, expected)
            return failed(at, f"{found[1]}{about}{sizes}.", got=describe(got), expected=describe(want),
                          cause=likely_cause(exercise, args, out.value, expected, found))
        if out.changed:
            return failed("inputs", f"your function writes into its argument {', '.join(out.changed)}; work on a copy",
                          cause="+=, -=, *= and x[…] = change the caller's array; write x = x + …, or x.copy() first")

    first = exercise.cases(rng(0))                           # tells wrong types and shapes; numbers are told on special cases
    failure = compare(first, "random", "")
    if failure is not None and (failure.stage != "random" or not exercise.special): return failure
    for i, (sentence, make) in enumerate(exercise.special):
        failure = compare(make(rng(1, i)), "special", f", in the case “{sentence}”")
        if failure is not None: return failure
    for args in (first, *(exercise.cases(rng(2, i)) for i in range(1, CASES))):
        failure = compare(args, "random", "")
        if failure is not None: return failure

    if exercise.gradient:
        failure = compare_gradients(exercise, call, names, exercise.cases(rng(3)), failed)
        if failure is not None: return failure

    for i, (sentence, holds) in enumerate(exercise.invariants):
        def fn(*args):
            out = call(args, names)
            if out.error: raise RuntimeError(out.error)
            return out.value
        try:
            good = bool(holds(fn, rng(4, i)))
        except RuntimeError as e:
            return failed("invariant", f"your function fails where this should hold: {sentence}. {e}")
        if not good: return failed("invariant", f"this should hold, and does not: {sentence}")
    return CheckResult(exercise, True, f"right. {exercise.points} point{'s' * (exercise.points != 1)}.")


def compare_gradients(exercise, call, names, args, failed):
    """None, or how the gradients differ from the reference's, in float64."""
    from .calls import copied
    args = copied(args, np.float64)
    for name in exercise.gradient: args[names.index(name)].requires_grad = True
    want = Local(exercise.reference)(args, names, exercise.gradient, upstream=7)
    got = call(args, names, exercise.gradient, upstream=7)
    if got.error: return failed("gradient", f"backward through your function fails. {got.error}")
    for name in exercise.gradient:
        if got.gradients.get(name) is None:
            return failed("gradient", f"no gradient reaches {name}", expected=describe(want.gradients[name]),
                          cause="the function leaves the graph: .data, np.… or a new Tensor cut it; use operations on Tensors")
    for name in exercise.gradient:
        found = difference(got.gradients[name], want.gradients[name], 1e-7, f"the gradient of {name}")
        if found is not None:
            g, e = found[2:]
            return failed("gradient", found[1] + ", though the result is right.", got=describe(g), expected=describe(e),
                          cause=likely_cause(_no_mistakes(exercise), (), g, e, found))


def _no_mistakes(exercise):
    from dataclasses import replace
    return replace(exercise, mistakes=(), symptoms=())


def likely_cause_of_error(error):
    """A cause for errors that everybody meets."""
    if any(words in error for words in ("matmul", "not aligned", "core dimension", "ValueError: linear")):
        return "two shapes do not fit; weights are (d_out, d_in), so y = x Wᵀ"
    if "broadcast" in error:
        return ("two shapes do not broadcast: an axis may be missing (None, keepdims=True), or a product is the wrong way, "
                "AAᵀ for AᵀA")
    if "operand 'Tensor' does not support ufuncs" in error or "'Tensor' object has no attribute" in error:
        return ("Tensors have operations of their own, so that gradients flow: + − * / ** @, .exp() .log() .tanh() .sqrt() "
                ".sum() .mean() .max() .reshape() .transpose() .T and indexing; NumPy's functions do not take them")
    if "NameError" in error: return "a name is not defined inside the function; is it an argument, or imported?"
    return ""


def shapes(names, args):
    """ "x (2, 3), W (4, 3)" of the arguments that have a shape, and the numbers among the others."""
    parts = []
    for name, a in zip(names, args, strict=False):
        if isinstance(a, (np.ndarray, Tensor)): parts.append(f"{name} {a.shape}")
        elif isinstance(a, (int, float)):       parts.append(f"{name} = {a:g}")
    return ", ".join(parts)


def parameters(fn):
    """Names of a function's parameters."""
    import inspect
    return inspect.signature(fn).parameters
