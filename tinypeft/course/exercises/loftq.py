"""Lesson 13b: what rounding again takes away, LoftQ's rounds and scale, and another start."""
import numpy as np

from ...quant.loftq import loftq_rounds
from ...quant.uniform import Uniform
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- a change that rounding takes away -------------------------------------------------------------
def vanishing(W_hat, s):
    B, A = 0.49 * s[:, None], np.ones((1, W_hat.shape[1]))
    match which("a change of half a step or more moves to the next code", 2):
        case 1: B = 0.6 * s[:, None]
        case 2: B = 1.0 * s[:, None]
    if slip("exactly half a step is a tie, and half of all codes change"): B = 0.5 * s[:, None]
    if slip("each row has a step of its own; yours takes the largest for all rows"):
        B = np.full_like(B, 0.49 * s.max())
    if slip("nothing changes, but there is more room: each row has a step of its own, and yours "
            "takes the smallest for all rows"):
        B = np.full_like(B, 0.49 * s.min())
    if slip("nothing is added; the change is to be as large as possible"): B = 0 * B
    if slip("only one weight of each row is changed; all of them can be"): A = np.eye(*A.shape)
    if slip("return (B, A), in this order"): return A, B
    return B, A


def changed_codes(result, args):
    """Return the change B A, and which codes it changes."""
    W_hat, s = args
    B, A = (np.asarray(part, float) for part in result)
    change = B @ A
    before, after = (np.rint(W / s[:, None]) for W in (W_hat, W_hat + change))
    return change, before != after


def vanishes(result, args):
    """Does no code change, and is the change at least 0.9 as large as half a step everywhere?"""
    W_hat, s = args
    change, changed = changed_codes(result, args)
    half_steps = np.linalg.norm(s) / 2 * np.sqrt(W_hat.shape[1])
    return bool(not changed.any() and np.linalg.norm(change) >= (0.9 - 1e-9) * half_steps)


def not_vanished(got, expected, args):
    return changed_codes(got, args)[1].any()


def too_small(got, expected, args):
    return not not_vanished(got, expected, args)


def vanishing_case(rng):
    shape = int(rng.integers(4, 8)), int(rng.integers(9, 13))
    s = rng.uniform(0.05, 0.5, shape[0])
    return s[:, None] * rng.integers(-7, 8, shape), s


# -- LoftQ -----------------------------------------------------------------------------------------
def loftq(W, quant, r, T):
    BA = 0
    if slip("rounding comes first, while B A = 0; yours decomposes W before anything is rounded"):
        BA = W                                                    # so that Q = 0 at first
    if slip("this is one round too few: there are T"): T = T - 1 or 1
    if slip("this is one round too many: there are T"): T = T + 1
    for _ in range(T):
        Q = quant(W - BA)
        if slip("this is what one round gives: from the second on, quantize W − B A, which the "
                "low-rank part leaves, not W"):
            Q = quant(W)
        if slip("Q must round W − B A, which the low-rank part leaves, not W + B A"):
            Q = quant(W + BA)
        left = W - Q
        match which("decompose W − Q, which quantization leaves, not W itself", 2):
            case 1: Q, left = quant(W), W
            case 2: left = W
        if slip("decompose W − Q, which quantization leaves, not W − Q − B A"): left = W - Q - BA
        U, S, Vt = np.linalg.svd(left, full_matrices=False)
        root = np.sqrt(S[:r])
        if slip("Σ must be split: each factor gets √Σ", 1): root = S[:r]
        B, A = U[:, :r] * root, root[:, None] * Vt[:r]
        if slip("Σ must be split: each factor gets √Σ", 2): B, A = U[:, :r] * S[:r], Vt[:r]
        BA = B @ A
    if slip("rounding comes first, while B A = 0; yours decomposes W before anything is rounded"):
        Q = quant(W - BA)
    if slip("this is the best of the rounds; return the last one"):
        Q, B, A = min(loftq_rounds(W, quant, r, T), key=lambda found: distance(W, *found))
    if slip("Q, B and A must come from the same round"): Q = quant(W - BA)
    match which("return (Q, B, A), in this order", 3):
        case 1: return Q, A, B
        case 2: return B, A, Q
        case 3: return A, B, Q
    return Q, B, A


def distance(W, Q, B, A):
    return np.linalg.norm(W - Q - B @ A)


def asymmetric2(W):
    """Round to nearest, 2 bits, one asymmetric grid per row."""
    u = Uniform(2, symmetric=False)
    return u.fit(W).round(W)


def same_signs(result):
    """Give each column of B the sign that makes its largest entry positive.

    A singular vector and its negative are equally right.
    """
    Q, B, A = map(np.asarray, result)
    largest_entries = np.take_along_axis(B, np.abs(B).argmax(0)[None], 0)[0]
    sign = np.sign(largest_entries)
    return Q, B * sign, A * sign[:, None]


def weight(rng):
    return rng.standard_normal((rng.integers(8, 12), rng.integers(13, 16)))


def loftq_case(rng):
    return weight(rng), asymmetric2, int(rng.integers(2, 4)), int(rng.integers(2, 5))


# -- LoftQ on a LoRA that is scaled ----------------------------------------------------------------
def scaled_loftq(W, quant, r, alpha):
    Q = quant(W)
    U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
    s = alpha / r
    if slip("LoRA's scale is α/r, not α"): s = alpha
    root = np.sqrt(S[:r] / s)
    if slip("the LoRA multiplies B A by α/r once more; that is the fault of the code above"):
        root = np.sqrt(S[:r])
    if slip("you multiply by the scale; LoRA does that already, so divide by it"):
        root = np.sqrt(S[:r] * s)
    if slip("each factor is divided by α/r, so their product is divided by its square: take the "
            "root"):
        root = np.sqrt(S[:r]) / s
    B, A = U[:, :r] * root, root[:, None] * Vt[:r]
    match which("Q is not scaled, only the product B A", 2):
        case 1: Q = Q / s
        case 2: Q, B = Q / s, B * s
    if slip("the product must be divided by α/r, not by its root: divide one factor, or both by "
            "the root"):
        A = A * np.sqrt(s)
    return Q, B, A


def nearer_together(fn, rng):
    W, quant, r, alpha = scaled_case(rng)
    Q, B, A = fn(W, quant, r, alpha)
    return distance(W, Q, alpha / r * np.asarray(B), A) < np.linalg.norm(W - Q)


def product(result):
    """Return (Q, B A, r): the scale may be shared in any way, and the signs are free."""
    Q, B, A = result
    return Q, np.asarray(B) @ np.asarray(A), len(A)


def _other_rounds(got, expected, args):
    """Is it another Q than that of the first round?"""
    W, quant, *_ = args
    first = quant(W)
    other = np.shape(got) == first.shape and not np.array_equal(got, first)
    return other and np.array_equal(expected, first)


def scaled_case(rng):
    W = weight(rng)
    r = int(rng.integers(2, 4))
    return W, asymmetric2, r, float(r * rng.choice([2, 3, 8]))


# -- another start ---------------------------------------------------------------------------------
def principal(W, quant, r):
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    if slip("these are the smallest singular values; take the largest"):
        U, S, Vt = U[:, -r:], S[-r:], Vt[-r:]
    if slip("decompose W itself, before anything is rounded: this is LoftQ's first round"):
        return loftq(W, quant, r, 1)
    if slip("decompose W itself, not what rounding leaves of it"):
        U, S, Vt = np.linalg.svd(W - quant(W), full_matrices=False)
    root = np.sqrt(S[:r])
    if slip("Σ must be split: each factor gets √Σ"): root = S[:r]
    B, A = U[:, :r] * root, root[:, None] * Vt[:r]
    Q = quant(W - B @ A)
    if slip("Q must round what B A leaves of W, not W itself"): Q = quant(W)
    if slip("B A is taken away from W, not added"): Q = quant(W + B @ A)
    if slip("take B A away first, then round; you have rounded W and then taken B A away"):
        Q = quant(W) - B @ A
    match which("return (Q, B, A), in this order", 2):
        case 1: return Q, A, B
        case 2: return B, A, Q
    return Q, B, A


EXERCISES = (
    Exercise(
        name="loftq.vanish", title="A large change that vanishes", stars=2,
        kind="design",
        reference=vanishing, cases=vanishing_case,
        goal=("rounded to the grid, Ŵ + B A has the codes of Ŵ, and ‖B A‖ is at least 0.9 of half "
              "a step for every weight", vanishes),
        special=(
            ("one row, with the step 1",
             lambda rng: (np.array([[2.0, -1, 0, 3]]), np.array([1.0]))),),
        mistakes=slips(vanishing),
        symptoms=(
            ("some codes change: no entry of B A may reach half a step of its row", not_vanished),
            ("no code changes, but the change is too small: each weight may move by nearly half a "
             "step of its row",
             too_small)),
        hints=("By how much may one weight move before its code changes?",
               "B is (d_out, 1) and A (1, d_in), so B A has d_out · d_in entries. s is (d_out,).",
               "B = 0.49 * s[:, None], and A = np.ones((1, d_in)).")),
    Exercise(
        name="loftq.rounds", title="LoftQ's alternating rounds", stars=2,
        kind="design",
        reference=loftq, cases=loftq_case, normalize=same_signs,
        special=(
            ("one round", lambda rng: (rng.standard_normal((8, 13)), asymmetric2, 2, 1)),),
        mistakes=slips(loftq),
        hints=("What should Q round, once there is a low-rank part? And what should the "
               "low-rank part make up for?",
               "B is (d_out, r), A is (r, d_in). U[:, :r] * np.sqrt(S[:r]) is (d_out, r).",
               "Begin with BA = 0. In each of T rounds: Q = quant(W - BA); U, S, Vt = "
               "np.linalg.svd(W - Q, full_matrices=False); root = np.sqrt(S[:r]); B = U[:, :r] "
               "* root; A = root[:, None] * Vt[:r]; BA = B @ A.")),
    Exercise(
        name="loftq.bug", title="Find the bug: a LoftQ that starts too far away", stars=2,
        kind="fault",
        reference=scaled_loftq, cases=scaled_case, normalize=product,
        special=(
            ("α = r: nothing is scaled",
             lambda rng: (rng.standard_normal((8, 13)), asymmetric2, 2, 2.0)),),
        invariants=(
            ("Q + (α/r) B A is nearer to W than Q alone", nearer_together),),
        mistakes=slips(scaled_loftq),
        symptoms=(
            ("this is another Q than quant(W): keep the one round, which begins with B A = 0",
             _other_rounds),),
        hints=("What does the model compute with Q, B and A? Which product "
               "should be near to W − Q?",
               "The shapes do not change: B (d_out, r), A (r, d_in). Their product must be "
               "smaller by the factor α/r.",
               "Compute B and A as before. root = np.sqrt(alpha / r). Return "
               "Q, B / root and A / root.")),
    Exercise(
        name="loftq.principal", title="Round what a low rank leaves", stars=2,
        kind="design",
        reference=principal, normalize=same_signs,
        cases=lambda rng: (weight(rng), asymmetric2, int(rng.integers(2, 4))),
        mistakes=slips(principal),
        hints=("Which part of W may stay in floating point? What is then left to be rounded?",
               "B is (d_out, r), A is (r, d_in), and W − B A is (d_out, d_in).",
               "U, S, Vt = np.linalg.svd(W, full_matrices=False); B = U[:, :r] * np.sqrt(S[:r]); "
               "A = np.sqrt(S[:r])[:, None] * Vt[:r]; Q = quant(W - B @ A).")),
)
