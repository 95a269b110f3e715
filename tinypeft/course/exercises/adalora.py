"""Lesson 08: a budget of rank, allocated by importance."""
import math
from functools import partial

import numpy as np

from ...engine.tensor import Tensor
from ..exercise import Exercise
from ..slips import inputs, slip, slips

__all__ = ["EXERCISES"]


# -- adalora.penalty -------------------------------------------------------------------------------
def penalty(P, Q):
    I = np.eye(P.shape[1])
    if slip("the identity is not subtracted"): I = 0
    if slip("you subtracted 1 from every entry; I has ones on its diagonal alone"): I = 1
    D, E = P.T @ P - I, Q @ Q.T - I
    if slip("PPᵀ is (d_out, d_out) and compares rows; PᵀP compares the r columns of P"):
        D = P @ P.T - np.eye(P.shape[0])
    if slip("QᵀQ is (d_in, d_in); QQᵀ compares the r rows of Q"):
        E = Q.T @ Q - np.eye(Q.shape[1])
    if slip("both transposes are on the wrong side: PᵀP and QQᵀ are (r, r)"):
        D, E = P @ P.T - np.eye(P.shape[0]), Q.T @ Q - np.eye(Q.shape[1])
    if slip("only the diagonal counts in yours: the dot products of different columns should be 0, "
            "and they count, too"):
        D, E = D * I, E * I
    if slip("the diagonal is left out: the dot product of a column with itself should be 1, and "
            "its distance from 1 counts, too"):
        D, E = D * (1 - I), E * (1 - I)
    if slip("you took roots, as the authors' code does; in equation (2) the norms are squared"):
        return (D * D).sum().sqrt() + (E * E).sum().sqrt()
    if slip("you took the root of the sum; in equation (2) the norms are squared"):
        return ((D * D).sum() + (E * E).sum()).sqrt()
    if slip("the two parts are added; you subtracted one"): return (D * D).sum() - (E * E).sum()
    if slip("Q's part is missing"): return (D * D).sum()
    if slip("P's part is missing"): return (E * E).sum()
    if slip("you took the mean of the squares; they are summed, not averaged"):
        return (D * D).mean() + (E * E).mean()
    if slip("the entries are not squared, so that those above 0 and those below 0 cancel"):
        return D.sum() + E.sum()
    return (D * D).sum() + (E * E).sum()


def _orthonormal(rng):
    P, _ = np.linalg.qr(rng.standard_normal((6, 3)))
    Q, _ = np.linalg.qr(rng.standard_normal((5, 3)))
    return Tensor(P), Tensor(2 * Q.T)


def _is_cut(got, expected, args):
    """Is it a number, or a Tensor made of one, where a Tensor in the graph is expected?"""
    return isinstance(expected, Tensor) or (got.dtype, expected.dtype) == (np.float32, np.float64)


# -- adalora.importance ----------------------------------------------------------------------------
def importance(w, g, I_bar, U, beta1, beta2):
    old, old_U = I_bar, U                                # some slips take these
    signed = slip("both absolute values are missing: I is |w g|, and U averages |I − Ī|")
    squared = slip("both are absolute values, |w g| and |I − Ī|; you squared both")
    plus = slip("what is new counts with the share 1 − β, or the average grows without end", 1)
    sums = slip("what is new counts with the share 1 − β, or the average grows without end", 2)
    if slip("β weighs the old average and 1 − β the new value; yours are the wrong way round", 1):
        beta1, beta2 = 1 - beta1, 1 - beta2
    if slip("β weighs the old average and 1 − β the new value; yours are the wrong way round", 2):
        beta1 = 1 - beta1
    if slip("β weighs the old average and 1 − β the new value; yours are the wrong way round", 3):
        beta2 = 1 - beta2
    if slip("β1 belongs to Ī and β2 to U; you took one for the other", 1):
        beta1, beta2 = beta2, beta1
    if slip("β1 belongs to Ī and β2 to U; you took one for the other", 2): beta2 = beta1
    if slip("β1 belongs to Ī and β2 to U; you took one for the other", 3): beta1 = beta2
    I = abs(w * g)
    if signed or slip("the sensitivity is |w g|, without a sign"): I = w * g
    if squared or slip("the sensitivity is |w g|; you squared w g"): I = (w * g) ** 2
    if slip("the sensitivity is |w g|: a product of both, each to the first power", 1): I = g ** 2
    if slip("the sensitivity is |w g|: a product of both, each to the first power", 2): I = w ** 2
    if slip("the sensitivity is |w g|: a product of both, each to the first power", 3):
        I = w ** 2 * abs(g)
    if slip("the sensitivity is |w g|: a product of both, each to the first power", 4):
        I = abs(w) * g ** 2
    if slip("the gradient is missing: the sensitivity is the gradient times the weight"): I = abs(w)
    if slip("the weight is missing: the sensitivity is the gradient times the weight"): I = abs(g)
    I_bar = beta1 * I_bar + (1 - beta1) * I
    if slip("Ī is an average over the steps, and this is I of this step"): I_bar = I
    if plus or slip("what is new counts with the share 1 − β, or the average grows without end", 3):
        I_bar = beta1 * old + I
    if sums or slip("what is new counts with the share 1 − β, or the average grows without end", 4):
        I_bar = old + I
    distance = abs(I - I_bar)
    if slip("U must measure the distance from the new Ī, not from the old one"):
        distance = abs(I - old)
    if signed or slip("the uncertainty is |I − Ī|, without a sign"): distance = I - I_bar
    if squared or slip("the uncertainty is the absolute value of I − Ī; you squared it"):
        distance = (I - I_bar) ** 2
    U = beta2 * U + (1 - beta2) * distance
    if slip("U is an average over the steps, and this is |I − Ī| of this step"): U = distance
    if plus or slip("what is new counts with the share 1 − β, or the average grows without end", 5):
        U = beta2 * old_U + distance
    if sums or slip("what is new counts with the share 1 − β, or the average grows without end", 6):
        U = old_U + distance
    s = I_bar * U
    if slip("the score is made of an old average; take the new Ī and the new U", 1): s = old * old_U
    if slip("the score is made of an old average; take the new Ī and the new U", 2): s = old * U
    if slip("the score is made of an old average; take the new Ī and the new U", 3):
        s = I_bar * old_U
    if slip("the score is made of this step's I; take its average Ī, which one noisy batch moves "
            "less"):
        s = I * U
    if slip("the score is the product Ī U, with no square", 1): s = (I_bar * U) ** 2
    if slip("the score is the product Ī U, with no square", 2): s = I_bar * U ** 2
    if slip("the score is the product Ī U, with no square", 3): s = I_bar ** 2 * U
    if slip("you added; the score is the product Ī U", 1): s = I_bar + U
    if slip("you added; the score is the product Ī U", 2): s = old + old_U
    if slip("the score is the product Ī U, and this is one of the two alone", 1): s = I_bar
    if slip("the score is the product Ī U, and this is one of the two alone", 2): s = U
    if slip("you divided; the uncertainty counts in a triplet's favour, and the score is the "
            "product Ī U"):
        s = I_bar / U
    return I_bar, U, s


def _averages(rng):
    w, g, I_bar, U = rng.standard_normal((4, *rng.integers(2, 6, 2)))
    return w, g, abs(I_bar), abs(U), rng.uniform(0.7, 0.95), rng.uniform(0.5, 0.9)


# -- adalora.budget --------------------------------------------------------------------------------
def budget(t, T, t_i, t_f, b0, bT):
    if slip("t_i is the length of the rest at the start, t_f that of the rest at the end; they are "
            "exchanged"):
        t_i, t_f = t_f, t_i
    if slip("t_f is a duration, so the fall ends at T − t_f, not at t_f"): t_f = T - t_f
    if slip("the fall takes T − t_i − t_f steps; you let it take T − t_i"): t_f = 0
    if not slip("the budget rests at the start: up to t_i it is b0"): t = max(t, t_i)
    if not slip("the budget rests at the end: from T − t_f on it is bT"): t = min(t, T - t_f)
    return fall(t, T, t_i, t_f, b0, bT)


def fall(t, T, t_i, t_f, b0, bT):
    """The budget from step t_i to step T − t_f."""
    if slip("the budget falls from b0 to bT, and yours rises from bT to b0"): b0, bT = bT, b0
    whole = int
    if slip("the budget is a whole number: round down"): whole = float
    if slip("the budget is rounded down, by int(…); yours is rounded up or to the nearest "
            "number", 1):
        whole = round
    if slip("the budget is rounded down, by int(…); yours is rounded up or to the nearest "
            "number", 2):
        whole = math.ceil
    over, steps = t - t_i, T - t_i - t_f
    if slip("this is the paper's Appendix A as printed, with t − t_i − t_f in the numerator; the "
            "numerator is t − t_i"):
        over = t - t_i - t_f
    if slip("min(b0, …) cuts off what is too large at t_i, but the fall is still that "
            "of (6) as printed; mend its numerator"):
        return min(b0, int(bT + (b0 - bT) * (1 - (t - t_i - t_f) / steps) ** 3))
    if slip("t_f is gone from the denominator, where it belongs, and still in the "
            "numerator; the fall takes T − t_i − t_f steps and starts at t_i"):
        over, steps = t - t_i - t_f, T - t_i
    if slip("t − t_i steps of the fall are over; you counted one more or one less", 1): over += 1
    if slip("t − t_i steps of the fall are over; you counted one more or one less", 2): over -= 1
    if slip("the fall takes T − t_i − t_f steps; you counted one more or one less", 1): steps += 1
    if slip("the fall takes T − t_i − t_f steps; you counted one more or one less", 2): steps -= 1
    if slip("the fall starts at t_i: t − t_i of its steps are over, not t"): over = t
    if slip("the fall takes T − t_i − t_f steps; yours takes more", 1): steps = T
    if slip("the fall takes T − t_i − t_f steps; yours takes more", 2): steps = T - t_f
    u = 1 - over / steps
    left = u ** 3
    if slip("the fall is cubic, not linear"): left = u
    if slip("the share that is left is u³, a cube; yours is another power of u", 1): left = u ** 2
    if slip("the share that is left is u³, a cube; yours is another power of u", 2): left = u ** 4
    if slip("the cube is taken of what is left, u = 1 − progress; you took 1 − progress³"):
        left = 1 - (1 - u) ** 3
    if slip("what falls is the difference b0 − bT, on top of bT"): return int(bT + b0 * left)
    return whole(bT + (b0 - bT) * left)


def _rested(wrong, ends, t, T, t_i, t_f, b0, bT):
    """Return b0 and bT in the rests. ends: do t_i and T − t_f belong to these, each 0 or 1?"""
    if t < t_i + ends[0]: return b0
    if t > T - t_f - ends[1]: return bT
    return wrong(t, T, t_i, t_f, b0, bT)


def _schedule(rng, place=None):
    T = int(rng.integers(60, 300))
    t_i, t_f = int(T * rng.uniform(0.1, 0.2)), int(T * rng.uniform(0.2, 0.4))
    n = int(rng.integers(6, 30))
    half = t_i + (T - t_i - t_f) // 2
    t = place(T, t_i, t_f) if place else int(rng.integers(t_i + 1, half))
    return t, T, t_i, t_f, 12 * n, 8 * n


def _at(place):
    return partial(_schedule, place=place)


# -- adalora.allocate ------------------------------------------------------------------------------
def allocate(scores, b):
    if slip("you gave each matrix the same share; choose the b best among all matrices together"):
        return (-scores).argsort(1).argsort(1) < b // len(scores)
    if slip("b = 0 keeps everything here: [-b:] then begins at place 0, and [b - 1] is the last "
            "place; mark the first b in descending order"):
        b = b or scores.size
    if slip("b counts the triplets that stay, not those that go"): b = scores.size - b
    if slip("you kept one too many: was the b-th largest score counted from 0?"): b = b + 1
    if slip("you kept one too few: > leaves the b-th largest score out, ≥ keeps it"):
        b = max(b - 1, 0)
    order = np.argsort(-scores.reshape(-1), kind="stable")
    if slip("these are the least important triplets; keep the largest scores"): order = order[::-1]
    if slip("np.argsort gives places in order, not the rank of each score; mark the places of the "
            "first b", 1):
        return order.reshape(scores.shape) < b
    if slip("np.argsort gives places in order, not the rank of each score; mark the places of the "
            "first b", 2):
        return np.argsort(scores.reshape(-1)).reshape(scores.shape) >= scores.size - b
    kept = np.zeros(scores.size, bool)
    kept[order[:b]] = True
    if slip("these are the triplets that go; the mask is true for those that stay"): kept = ~kept
    return kept.reshape(scores.shape)


def _scores(rng):
    n, r = rng.integers(3, 6), rng.integers(4, 8)
    scores = rng.exponential(1, (n, r)) * rng.uniform(0.1, 3, (n, 1))
    return scores, int(rng.integers(n, n * r - 2))


def _five_of_equal(fn, rng):
    return np.asarray(fn(np.ones((3, 4)), 5)).sum() == 5


def _places(got, expected, args):
    return np.shape(got) == (args[1],) and np.asarray(got).dtype.kind in "iu"


# -- adalora.export --------------------------------------------------------------------------------
def export(P, Lam, Q):
    left = Lam != 0
    if slip("a small λ is not pruned: test Lam != 0", 1): left = abs(Lam) > 0.1
    if slip("a small λ is not pruned: test Lam != 0", 2): left = abs(Lam) > 1e-2
    if slip("a small λ is not pruned: test Lam != 0", 3): left = abs(Lam) > 1e-3
    if slip("a small λ is not pruned: test Lam != 0", 4): left = abs(Lam) > 1e-5
    if slip("a negative λ is not pruned: test Lam != 0, not Lam > 0"): left = Lam > 0
    if slip("these are the first triplets; those that are left may stand anywhere"):
        left = np.arange(left.sum())
    if slip("the pruned triplets are still there: take the columns of P and the rows of Q where λ "
            "is not 0"):
        return P * Lam, Q
    if slip("λ is missing: one of the two factors must be multiplied by it"):
        return P[:, left], Q[left]
    if slip("λ is counted twice: it belongs into one factor, or its root into both"):
        return P[:, left] * Lam[left], Q[left] * Lam[left, None]
    if slip("the sign of λ is lost, as it is if both factors get the root of |λ|; "
            "multiply one of them by it"):
        root = np.sqrt(abs(Lam[left]))
        return P[:, left] * root, Q[left] * root[:, None]
    return P[:, left] * Lam[left], Q[left]


def _pruned(rng):
    d_out, r, d_in = rng.integers(7, 10), rng.integers(4, 7), rng.integers(10, 13)
    Lam = rng.standard_normal(r)
    Lam[rng.permutation(r)[:2]] = 0
    Lam[np.flatnonzero(Lam)[:2]] = -0.5, 1.5                      # both signs
    return rng.standard_normal((d_out, r)), Lam, rng.standard_normal((r, d_in))


def _with_values(rng, Lam):
    return rng.standard_normal((3, 2)), np.array(Lam), rng.standard_normal((2, 4))


def _product(factors):
    """Return B A, the columns of B and the rows of A: λ may be split in any way."""
    B, A = (np.asarray(part) for part in factors)
    return B @ A, np.array([B.shape[1], A.shape[0]])


def _one_uncut(got, expected, args):
    P, Lam, _ = args
    return np.shape(got) in ((len(P), np.count_nonzero(Lam)), P.shape)


def _in_other_order(got, expected, args):
    _, Lam, Q = args
    return np.shape(got) == (np.count_nonzero(Lam), Q.shape[1])


def _nothing_left(fn, rng):
    B, A = fn(*_with_values(rng, [0.0, 0.0]))
    return not np.size(B) and not np.size(A)


EXERCISES = (
    Exercise(
        name="adalora.penalty", title="The orthogonality penalty", stars=3,
        kind="design",
        reference=penalty, gradient=("P", "Q"),
        cases=inputs("P:o,r Q:r,i", tensors=True, r=(2, 5), o=(5, 9), i=(5, 9)),
        special=(
            ("P has orthonormal columns, Q orthogonal rows of length 2: R = 0 + 3 (2² − 1)²",
             _orthonormal),),
        mistakes=slips(penalty),
        symptoms=(
            (".data, a NumPy function or a new Tensor cuts the graph, so that no gradient can "
             "reach P and Q; use operations on Tensors from beginning to end", _is_cut),),
        tolerance=1e-6,
        hints=("What is PᵀP if the columns of P are orthonormal? Which product says the same "
               "about the rows of Q?",
               "PᵀP and Q Qᵀ are (r, r), like np.eye(r). The result is a Tensor with one number.",
               "D = P.T @ P - np.eye(r), and ‖D‖² is (D * D).sum(). Do the same for Q @ Q.T, "
               "and add.")),
    Exercise(
        name="adalora.importance", title="The importance of a weight", stars=3,
        kind="design",
        example=lambda rng: (*map(np.array, ([2.0], [-0.5], [0.5], [0.2])), 0.8, 0.8),
        reference=importance, cases=_averages,
        special=(
            ("no gradient: sensitivity only fades",
             lambda rng: (np.ones(3), np.zeros(3), np.ones(3), np.ones(3), 0.5, 0.5)),),
        mistakes=slips(importance),
        hints=("From which average does U measure the distance, from the old one or the new one?",
               "All arrays have one shape. Return three of them: the new Ī, the new U, and s.",
               "I = np.abs(w * g). The new average is I_bar = beta1 * I_bar + (1 - beta1) * I. "
               "Then U = beta2 * U + (1 - beta2) * np.abs(I - I_bar), and the score is "
               "I_bar * U.")),
    Exercise(
        name="adalora.budget", title="Find the bug: the budget as printed", stars=2,
        kind="fault",
        example=lambda rng: (35, 100, 10, 40, 240, 120),
        reference=budget, cases=_schedule,
        special=(
            ("the first step", _at(lambda T, t_i, t_f: 0)),
            ("the end of the first rest, t = t_i", _at(lambda T, t_i, t_f: t_i)),
            ("the first step of the fall, t = t_i + 1", _at(lambda T, t_i, t_f: t_i + 1)),
            ("the end of the fall, t = T − t_f", _at(lambda T, t_i, t_f: T - t_f)),
            ("the last step", _at(lambda T, t_i, t_f: T))),
        mistakes=(
            *slips(budget, fall),
            *((sentence, partial(_rested, wrong, ends)) for sentence, wrong in slips(fall)
              for ends in ((0, 0), (0, 1), (1, 0), (1, 1)))),
        tolerance=0,
        hints=("Which part of the fall is over at t = t_i, and which at t = T − t_f?",
               "All are numbers. The fall takes T − t_i − t_f steps.",
               "Clip t to t_i … T − t_f first, so that one formula serves all t. Then left = 1 "
               "- (t - t_i) / (T - t_i - t_f), and int(bT + (b0 - bT) * left**3) rounds down.")),
    Exercise(
        name="adalora.allocate", title="Allocation of the budget", stars=2,
        kind="design",
        example=lambda rng: (np.array([[5, 1, 0.5], [4, 3, 0.2]]), 3),
        reference=allocate, cases=_scores,
        special=(
            ("one matrix has all the important triplets",
             lambda rng: (np.array([[9.0, 8.0, 7.0], [3.0, 2.0, 1.0], [0.3, 0.2, 0.1]]), 3)),
            ("nothing may stay", lambda rng: (rng.exponential(1, (2, 3)), 0)),
            ("everything may stay", lambda rng: (rng.exponential(1, (2, 3)), 6))),
        invariants=(
            ("exactly b triplets stay even if scores are equal: all that reach a threshold may be "
             "more", _five_of_equal),),
        mistakes=slips(allocate),
        symptoms=(
            ("return a mask of True and False, not the scores",
             lambda got, expected, args: np.asarray(got).dtype.kind == "f"),
            ("these are the places of the triplets that stay; return a mask (n, r) that is true "
             "there", _places)),
        tolerance=0,
        hints=("Does each matrix have its own share, or do all triplets compete? What should come "
               "out for b = 0, and for equal scores?",
               "The flattened scores are (n r,). Exactly b of them are marked, and "
               "the mask is (n, r) again.",
               "order = np.argsort(-scores.reshape(-1)). Mark the places order[:b] in an array "
               "of n r False values, then reshape. (The last b of an ascending order, [-b:], "
               "are all of them when b is 0.)")),
    Exercise(
        name="adalora.export", title="What is left as a LoRA", stars=1,
        kind="design",
        reference=export, cases=_pruned, normalize=_product,
        special=(
            ("nothing is pruned", partial(_with_values, Lam=[2.0, -1.0])),
            ("a λ of a millionth is not 0", partial(_with_values, Lam=[2.0, 1e-6]))),
        invariants=(
            ("if everything is pruned, B has no columns and A no rows", _nothing_left),),
        mistakes=slips(export),
        symptoms=(
            ("cut both factors: B has as many columns as A has rows", _one_uncut),
            ("ΔW is B A: return B, which comes from P, first", _in_other_order)),
        tolerance=1e-9,
        hints=("What does a triplet with λ = 0 add to P Λ Q?",
               "k is np.count_nonzero(Lam). B is (d_out, k), A is (k, d_in).",
               "left = Lam != 0. B is P[:, left] with its columns multiplied by Lam[left], and A "
               "is Q[left].")),
)
