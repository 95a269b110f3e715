"""Lesson 13b: what rounding again takes away, LoftQ's rounds and scale, and another start."""
import numpy as np

from ...quant.loftq import loftq_rounds
from ...quant.uniform import Uniform
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- a change that rounding takes away -------------------------------------------------------------
def vanishing(W_hat, s):
    return constant_change(0.49)(W_hat, s)


def constant_change(share, of=lambda s: s):
    """Make a function that adds the same share of a step to all weights of a row."""
    def change(W_hat, s):
        return share * of(s)[:, None], np.ones((1, W_hat.shape[1]))
    return change


def of_the_largest(s):
    return np.full_like(s, s.max())


def of_the_smallest(s):
    return np.full_like(s, s.min())


def no_change(W_hat, s):
    return 0 * s[:, None], np.ones((1, W_hat.shape[1]))


def one_weight(W_hat, s):
    return 0.49 * s[:, None], np.eye(1, W_hat.shape[1])


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


def one_row_of_codes(rng):
    return np.array([[2.0, -1, 0, 3]]), np.array([1.0])


def in_order(fn, *order):
    """Return the results of `fn` in another order."""
    def wrong(*args):
        results = fn(*args)
        return tuple(results[i] for i in order)
    return wrong


# -- LoftQ -----------------------------------------------------------------------------------------
def asymmetric2(W):
    """Round to nearest, 2 bits, one asymmetric grid per row."""
    u = Uniform(2, symmetric=False)
    return u.fit(W).round(W)


def loftq(W, quant, r, T):
    *_, (Q, B, A) = loftq_rounds(W, quant, r, T)
    return Q, B, A


def loftq_variant(rounds=lambda T: T, target=np.subtract, of=lambda W, Q, BA: W - Q,
                  root=np.sqrt):
    """Make `loftq` with a mistake: in the rounds, the quantized or the decomposed matrix, or Σ."""
    def wrong(W, quant, r, T):
        BA = np.zeros_like(W)
        for _ in range(rounds(T)):
            Q = quant(target(W, BA))
            U, S, Vt = np.linalg.svd(of(W, Q, BA), full_matrices=False)
            part = root(S[:r])
            B, A = U[:, :r] * part, part[:, None] * Vt[:r]
            BA = B @ A
        return Q, B, A
    return wrong


def itself(value):
    return value


def one(s):
    return 1


def weight_alone(W, BA):
    return W


def weight_decomposed(W, Q, BA):
    return W


def same_signs(result):
    """Give each column of B the sign that makes its largest entry positive.

    A singular vector and its negative are equally right.
    """
    Q, B, A = map(np.asarray, result)
    largest_entries = np.take_along_axis(B, np.abs(B).argmax(0)[None], 0)[0]
    sign = np.sign(largest_entries)
    return Q, B * sign, A * sign[:, None]


def loftq_sided(W, quant, r, T):
    """Put all of Σ into B."""
    Q, B, A = loftq(W, quant, r, T)
    root = np.linalg.norm(B, axis=0)
    return Q, B * root, A / root[:, None]


def loftq_stale(W, quant, r, T):
    """Return Q a round later than its factors."""
    Q, B, A = loftq(W, quant, r, T)
    return quant(W - B @ A), B, A


def loftq_decomposed_first(W, quant, r, T):
    """Begin each round with the decomposition, the first one with Q = 0."""
    Q = np.zeros_like(W)
    for _ in range(T):
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
        B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]
        Q = quant(W - B @ A)
    return Q, B, A


def loftq_best(W, quant, r, T):
    """Return the round that comes nearest to W."""
    def error(result):
        Q, B, A = result
        return np.linalg.norm(W - Q - B @ A)
    return min(loftq_rounds(W, quant, r, T), key=error)


def weight(rng):
    d_out, d_in = int(rng.integers(8, 12)), int(rng.integers(13, 16))
    return rng.normal(0, 1, (d_out, d_in))


def loftq_case(rng):
    return weight(rng), asymmetric2, int(rng.integers(2, 4)), int(rng.integers(2, 5))


# -- LoftQ on a LoRA that is scaled ----------------------------------------------------------------
def scaled_loftq(W, quant, r, alpha):
    Q, B, A = loftq(W, quant, r, 1)
    root = np.sqrt(alpha / r)
    return Q, B / root, A / root


def by_root(s):
    return s**-0.5


def by_itself(s):
    return 1 / s


def scaled_variant(of_B=by_root, of_A=by_root, scale=np.divide, of_Q=one):
    """Make `scaled_loftq` with a mistake: other factors of B, A and Q, or another scale."""
    def wrong(W, quant, r, alpha):
        Q, B, A = loftq(W, quant, r, 1)
        s = scale(alpha, r)
        return Q * of_Q(s), B * of_B(s), A * of_A(s)
    return wrong


def nearer_together(fn, rng):
    W, quant, r, alpha = scaled_case(rng)
    Q, B, A = fn(W, quant, r, alpha)
    change = alpha / r * np.asarray(B) @ A
    return np.linalg.norm(W - Q - change) < np.linalg.norm(W - Q)


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
    return principal_variant()(W, quant, r)


def largest_parts(S, r):
    return slice(0, r)


def principal_variant(parts=largest_parts, target=np.subtract, root=np.sqrt, of=None):
    """Make `principal` with a mistake: other singular values, another rounded or decomposed matrix,
    or another share of Σ."""
    def wrong(W, quant, r):
        U, S, Vt = np.linalg.svd(W if of is None else of(W, quant), full_matrices=False)
        k = parts(S, r)
        B, A = U[:, k] * root(S[k]), root(S[k])[:, None] * Vt[k]
        return quant(target(W, B @ A)), B, A
    return wrong


def rounded_first(W, quant, r):
    _, B, A = principal(W, quant, r)
    return quant(W) - B @ A, B, A


def principal_case(rng):
    return weight(rng), asymmetric2, int(rng.integers(2, 4))


EXERCISES = (
    Exercise(
        name="loftq.vanish", title="A large change that vanishes", stars=2,
        kind="design",
        reference=vanishing, cases=vanishing_case,
        goal=("rounded to the grid, Ŵ + B A has the codes of Ŵ, and ‖B A‖ is at least 0.9 of half "
              "a step for every weight", vanishes),
        special=(
            ("one row, with the step 1", one_row_of_codes),),
        mistakes=(
            ("a change of half a step or more moves to the next code", constant_change(0.6)),
            ("a change of half a step or more moves to the next code", constant_change(1.0)),
            ("exactly half a step is a tie, and half of all codes change", constant_change(0.5)),
            ("each row has a step of its own; yours takes the largest for all rows",
             constant_change(0.49, of_the_largest)),
            ("nothing changes, but there is more room: each row has a step of its own, and yours "
             "takes the smallest for all rows",
             constant_change(0.49, of_the_smallest)),
            ("nothing is added; the change is to be as large as possible", no_change),
            ("only one weight of each row is changed; all of them can be", one_weight),
            ("return (B, A), in this order", in_order(vanishing, 1, 0))),
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
        reference=loftq,
        cases=loftq_case,
        normalize=same_signs,
        special=(
            ("one round", lambda rng: (rng.normal(0, 1, (8, 13)), asymmetric2, 2, 1)),),
        mistakes=(
            ("this is what one round gives: from the second on, quantize W − B A, which the "
             "low-rank part leaves, not W",
             loftq_variant(target=weight_alone)),
            ("Q must round W − B A, which the low-rank part leaves, not W + B A",
             loftq_variant(target=np.add)),
            *several("decompose W − Q, which quantization leaves, not W itself",
                     loftq_variant(target=weight_alone, of=weight_decomposed),
                     loftq_variant(of=weight_decomposed)),
            ("rounding comes first, while B A = 0; yours decomposes W before anything is rounded",
             loftq_decomposed_first),
            ("this is the best of the rounds; return the last one", loftq_best),
            ("decompose W − Q, which quantization leaves, not W − Q − B A",
             loftq_variant(of=lambda W, Q, BA: W - Q - BA)),
            ("Σ must be split: each factor gets √Σ", loftq_variant(root=itself)),
            ("Σ must be split: each factor gets √Σ", loftq_sided),
            ("Q, B and A must come from the same round", loftq_stale),
            *several("return (Q, B, A), in this order",
                     in_order(loftq, 0, 2, 1),
                     in_order(loftq, 1, 2, 0),
                     in_order(loftq, 2, 1, 0)),
            ("this is one round too few: there are T", loftq_variant(rounds=lambda T: T - 1 or 1)),
            ("this is one round too many: there are T", loftq_variant(rounds=lambda T: T + 1))),
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
             lambda rng: (rng.normal(0, 1, (8, 13)), asymmetric2, 2, 2.0)),),
        invariants=(
            ("Q + (α/r) B A is nearer to W than Q alone", nearer_together),),
        mistakes=(
            ("the LoRA multiplies B A by α/r once more; that is the fault of the code above",
             scaled_variant(of_B=one, of_A=one)),
            ("you multiply by the scale; LoRA does that already, so divide by it",
             scaled_variant(of_B=np.sqrt, of_A=np.sqrt)),
            ("each factor is divided by α/r, so their product is divided by "
             "its square: take the root",
             scaled_variant(of_B=by_itself, of_A=by_itself)),
            ("LoRA's scale is α/r, not α", scaled_variant(scale=lambda alpha, r: alpha)),
            *several("Q is not scaled, only the product B A",
                     scaled_variant(of_Q=by_itself),
                     scaled_variant(of_B=one, of_A=one, of_Q=by_itself)),
            ("the product must be divided by α/r, not by its root: divide one "
             "factor, or both by the root",
             scaled_variant(of_A=one))),
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
        reference=principal, cases=principal_case, normalize=same_signs,
        mistakes=(
            ("Q must round what B A leaves of W, not W itself",
             principal_variant(target=lambda W, BA: W)),
            ("these are the smallest singular values; take the largest",
             principal_variant(parts=lambda S, r: slice(len(S) - r, len(S)))),
            ("decompose W itself, before anything is rounded: this is LoftQ's first round",
             lambda W, quant, r: loftq(W, quant, r, 1)),
            ("decompose W itself, not what rounding leaves of it",
             principal_variant(of=lambda W, quant: W - quant(W))),
            ("Σ must be split: each factor gets √Σ",
             principal_variant(root=lambda S: S)),
            ("B A is taken away from W, not added", principal_variant(target=np.add)),
            ("take B A away first, then round; you have rounded W and then taken B A away",
             rounded_first),
            ("return (Q, B, A), in this order", in_order(principal, 0, 2, 1)),
            ("return (Q, B, A), in this order", in_order(principal, 1, 2, 0))),
        hints=("Which part of W may stay in floating point? What is then left to be rounded?",
               "B is (d_out, r), A is (r, d_in), and W − B A is (d_out, d_in).",
               "U, S, Vt = np.linalg.svd(W, full_matrices=False); B = U[:, :r] * np.sqrt(S[:r]); "
               "A = np.sqrt(S[:r])[:, None] * Vt[:r]; Q = quant(W - B @ A).")),
)
