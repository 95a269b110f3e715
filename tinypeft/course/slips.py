"""The mistakes that people make in an exercise, each written where it is made: in the right answer.

    def forward(x, W0, A, B, alpha):
        s = alpha / len(A)
        if slip("the scale is α/r, not α"): s = alpha
        return F.linear(x, W0) + F.linear(F.linear(x, A), B) * s

`slip` is false, so that this is the reference. `slips(forward)` lists the wrong variants: in each,
one slip is true. They are found in the compiled code, so that a packed hand-out has them, too.
Where one sentence is true of several slips in one place, it is written once:

        match which("two changes of the same size may still differ", 2):
            case 1: same = abs(n1 - n2) <= 1e-3 * n1
            case 2: same = np.allclose(n1, n2)
"""
import dis
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType
from typing import Any

import numpy as np

from ..engine.tensor import Tensor

__all__ = ["inputs", "slip", "slips", "which"]

MADE = ContextVar("MADE", default=("", 0))               # the slip that is made: (sentence, number)


# -- slips -----------------------------------------------------------------------------------------
def slip(sentence: str, number: int = 1) -> bool:
    """Is this slip made just now? The sentence tells a student what is wrong. number: 1, 2, … of
    several slips that share a sentence. Both are written out where `slip` is called."""
    return MADE.get() == (sentence, number)


def which(sentence: str, n: int) -> int:
    """Return which of n slips that share a sentence is made just now, 1 to n, or 0: for `match`."""
    made, number = MADE.get()
    return number if made == sentence else 0


def slips(reference: Callable, *helpers: Callable) -> tuple[tuple[str, Callable], ...]:
    """List (sentence, wrong variant) for each slip in a reference, and in the helpers that it
    calls, in the order in which they are written: `mistakes` of an `Exercise`."""
    found = [made for fn in (reference, *helpers) for made in asked(fn.__code__)]
    return tuple((made[0], variant(reference, made)) for made in dict.fromkeys(found))


def variant(reference: Callable, made: tuple[str, int]) -> Callable:
    """Return the reference with one slip made."""
    def wrong(*args):
        token = MADE.set(made)
        try:
            return reference(*args)
        finally:
            MADE.reset(token)
    return wrong


def asked(code: CodeType) -> Iterator[tuple[str, int]]:
    """Give (sentence, number) of each slip in a function's code and in what it defines.

    ValueError for a sentence that is not written out: it would be no slip, and nobody would know.
    """
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for i, step in enumerate(steps):
        if isinstance(step.argval, CodeType):
            yield from asked(step.argval)
        elif step.opname.startswith("LOAD_") and step.argval in ("slip", "which"):
            sentence, number = (constant(given) for given in steps[i + 1:i + 3])
            last = number if isinstance(number, int) else 1
            if not isinstance(sentence, str):
                raise ValueError(f"{code.co_name}: {step.argval} takes a sentence that is written "
                                 f"out, in line {step.positions.lineno}")
            first = 1 if step.argval == "which" else last
            yield from ((sentence, made) for made in range(first, last + 1))


def constant(step: dis.Instruction) -> Any:
    """Return the constant that an instruction loads; None if it does something else."""
    loads = step.opname in ("LOAD_CONST", "LOAD_SMALL_INT")
    return step.argval if loads else None


# -- what an exercise is called with ---------------------------------------------------------------
def inputs(signature: str, dtype: Any = np.float64, tensors: bool = False,
           **sizes: int | tuple[int, int]) -> Callable:
    """Return a function rng → arguments, in the order of `signature`, such as

        inputs("x:N,i W0:o,i alpha=5..20 b=1|4", N=5, i=(6, 9), o=(9, 12))

    x (N, i) and W0 (o, i) are arrays of normal numbers, or Tensors; alpha is a number from 5 to 20,
    and b a whole one from 1 to 3. sizes: of each axis, one, or (low, high) with low ≤ size < high.
    Where no two sizes may be equal, their intervals do not meet.
    """
    def draw(rng):
        n = {axis: int(rng.integers(*size)) if isinstance(size, tuple) else size
             for axis, size in sizes.items()}
        return tuple(one(rng, n, *re.split("([:=])", word)[1:]) for word in signature.split())

    def one(rng, n, mark, of):
        if mark == ":":
            array = rng.standard_normal([n[axis] for axis in of.split(",")]).astype(dtype)
            return Tensor(array) if tensors else array
        if "|" in of: return int(rng.integers(*map(int, of.split("|"))))
        return float(rng.uniform(*map(float, of.split(".."))))
    return draw
