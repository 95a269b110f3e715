"""Lesson 08: a budget of rank, allocated by importance."""
import math
from functools import partial

import numpy as np

from ...engine.tensor import Tensor
from ...peft.adalora import AdaLoRA
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- adalora.penalty -------------------------------------------------------------------------------
def penalty(P, Q):
    return _square(_columns(P)) + _square(_rows(Q))


def _columns(P):
    """0 if the columns are orthonormal."""
    return P.T @ P - np.eye(P.shape[1])


def _rows(Q):
    """0 if the rows are orthonormal."""
    return Q @ Q.T - np.eye(Q.shape[0])


def _square(x):
    return (x * x).sum()


def _off_diagonal(M):
    return M * (1 - np.eye(M.shape[0]))


def _factors(rng):
    r = rng.integers(2, 5)
    P = rng.standard_normal((r + rng.integers(1, 5), r))
    return Tensor(P), Tensor(rng.standard_normal((r, r + rng.integers(1, 5))))


def _orthonormal(rng):
    P, _ = np.linalg.qr(rng.standard_normal((6, 3)))
    Q, _ = np.linalg.qr(rng.standard_normal((5, 3)))
    return Tensor(P), Tensor(2 * Q.T)


def _is_cut(got, expected, args):
    """Is it a number, or a Tensor made of one, where a Tensor in the graph is expected?"""
    return isinstance(expected, Tensor) or (got.dtype, expected.dtype) == (np.float32, np.float64)


def _diagonals_alone(P, Q):
    return _square((P * P).sum(0) - 1) + _square((Q * Q).sum(1) - 1)


# -- adalora.importance ----------------------------------------------------------------------------
def importance(w, g, I_bar, U, beta1, beta2):
    I = np.abs(w * g)
    I_bar = beta1 * I_bar + (1 - beta1) * I
    U = beta2 * U + (1 - beta2) * np.abs(I - I_bar)
    return I_bar, U, I_bar * U


def _averages(rng):
    shape = tuple(rng.integers(2, 6, 2))
    w, g, a, b = rng.standard_normal((4, *shape))
    beta1 = float(rng.uniform(0.7, 0.95))
    return w, g, np.abs(a), np.abs(b), beta1, float(rng.uniform(0.5, 0.9))


def _mean(old, now, beta):
    return beta * old + (1 - beta) * now


def _added(old, now, beta):
    return beta * old + now


def _summed(old, now, beta):
    return old + now


def _this_step(old, now, beta):
    return now


def _itself(x):
    return x


def _variant(I=lambda w, g: np.abs(w * g), betas=lambda b1, b2: (b1, b2), old=False,
             deviation=np.abs, mean_of_I=_mean, mean_of_U=_mean,
             score=lambda I, a, u, b, v: b * v):
    """Make `importance` with a mistake: another sensitivity, betas, distance, means or score.

    old: U is measured from the old Ī. The arguments of a score are I, the old Ī and U, and the new
    ones.
    """
    def wrong(w, g, I_bar, U, beta1, beta2):
        beta1, beta2 = betas(beta1, beta2)
        now = I(w, g)
        new = mean_of_I(I_bar, now, beta1)
        distance = deviation(now - (I_bar if old else new))
        new_U = mean_of_U(U, distance, beta2)
        return new, new_U, score(now, I_bar, U, new, new_U)
    return wrong


def _no_gradient(rng):
    ones = np.ones(3)
    return ones, np.zeros(3), ones, ones, 0.5, 0.5


# -- adalora.budget --------------------------------------------------------------------------------
def budget(t, T, t_i, t_f, b0, bT):
    return AdaLoRA(init_rank=b0, target_rank=bT, t_init=t_i, t_final=t_f).budget(t, T, 1)


def _budget(t, T, t_i, t_f, b0, bT, rests="<>", start=lambda t_i: t_i,
            end=lambda T, t_f: T - t_f, over=lambda t, t_i, t_f: t - t_i,
            steps=lambda T, t_i, t_f: T - t_i - t_f, cube=lambda u: u ** 3, whole=int,
            most=lambda b, b0: b, ends=lambda b0, bT: (b0, bT, b0 - bT)):
    """Make `budget` with a mistake in one of the options.

    rests: do the two ends belong to the fall, or to the rests ("≤≥")? over: the steps of the fall
    that are over. ends: the first budget, the last one, and their difference.
    """
    first, last, fall = ends(b0, bT)
    begins, stops = start(t_i), end(T, t_f)
    if t < begins or t == begins and rests[0] == "≤":
        return first
    if t > stops or t == stops and rests[1] == "≥":
        return last
    left = 1 - over(t, t_i, t_f) / steps(T, t_i, t_f)
    return most(whole(last + fall * cube(left)), first)


def _resting(sentence, *mistakes):
    """Make each of the mistakes (options of `_budget`) with either choice at both ends."""
    return several(sentence, *(partial(_budget, rests=rests, **options)
                               for options in mistakes for rests in ("<>", "<≥", "≤>", "≤≥")))


def _printed(t, t_i, t_f):
    return t - t_i - t_f


def _exchanged(t, T, t_i, t_f, b0, bT):
    return budget(t, T, t_f, t_i, b0, bT)


def _never(T, t_f):
    return T + 1


def _schedule(rng):
    T = int(rng.integers(60, 300))
    t_i, t_f = int(T * rng.uniform(0.1, 0.2)), int(T * rng.uniform(0.2, 0.4))
    n = int(rng.integers(6, 30))
    half = t_i + (T - t_i - t_f) // 2
    return int(rng.integers(t_i + 1, half)), T, t_i, t_f, 12 * n, 8 * n


def _at(place):
    def arguments(rng):
        _, T, t_i, t_f, b0, bT = _schedule(rng)
        return place(T, t_i, t_f), T, t_i, t_f, b0, bT
    return arguments


# -- adalora.allocate ------------------------------------------------------------------------------
def allocate(scores, b):
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(-scores.reshape(-1), kind="stable")[:b]] = True
    return kept.reshape(scores.shape)


def _scores(rng):
    n, r = rng.integers(3, 6), rng.integers(4, 8)
    scores = rng.exponential(1, (n, r)) * rng.uniform(0.1, 3, (n, 1))
    return scores, int(rng.integers(n, n * r - 2))


def _one_matrix(rng):
    return np.array([[9.0, 8.0, 7.0], [3.0, 2.0, 1.0], [0.3, 0.2, 0.1]]), 3


def _by_rank(scores, b):
    return np.argsort(-scores.reshape(-1)).reshape(scores.shape) < b


def _by_last_rank(scores, b):
    return np.argsort(scores.reshape(-1)).reshape(scores.shape) >= scores.size - b


def _five_of_equal(fn, rng):
    return np.asarray(fn(np.ones((3, 4)), 5)).sum() == 5


def _places(got, expected, args):
    return np.shape(got) == (args[1],) and np.asarray(got).dtype.kind in "iu"


def _not_a_mask(got, expected, args):
    return np.asarray(got).dtype.kind == "f"


def _equal_shares(scores, b):
    return (-scores).argsort(1).argsort(1) < b // len(scores)


# -- adalora.export --------------------------------------------------------------------------------
def export(P, Lam, Q):
    left = Lam != 0
    return P[:, left] * Lam[left], Q[left]


def _pruned(rng):
    d_out, r, d_in = rng.integers(7, 10), rng.integers(4, 7), rng.integers(10, 13)
    Lam = rng.standard_normal(r)
    Lam[rng.permutation(r)[:2]] = 0
    Lam[np.flatnonzero(Lam)[:2]] = -0.5, 1.5                      # both signs
    return rng.standard_normal((d_out, r)), Lam, rng.standard_normal((r, d_in))


def _above(limit):
    return lambda P, Lam, Q: export(P, np.where(abs(Lam) > limit, Lam, 0), Q)


def _with_values(rng, Lam):
    return rng.standard_normal((3, 2)), np.array(Lam), rng.standard_normal((2, 4))


def _product(factors):
    """Return B A, the columns of B and the rows of A: λ may be split in any way."""
    B, A = (np.asarray(part) for part in factors)
    return B @ A, np.array([B.shape[1], A.shape[0]])


def _first(P, Lam, Q):
    k = np.count_nonzero(Lam)
    return P[:, :k] * Lam[:k], Q[:k]


def _roots(P, Lam, Q):
    left = Lam != 0
    root = np.sqrt(np.abs(Lam[left]))
    return P[:, left] * root, Q[left] * root[:, None]


def _without_values(P, Lam, Q):
    return P[:, Lam != 0], Q[Lam != 0]


def _twice(P, Lam, Q):
    B, A = export(P, Lam, Q)
    return B, A * Lam[Lam != 0, None]


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
        reference=penalty, cases=_factors, gradient=("P", "Q"),
        special=(
            ("P has orthonormal columns, Q orthogonal rows of length 2: R = 0 + 3 (2² − 1)²",
             _orthonormal),),
        mistakes=(
            ("PPᵀ is (d_out, d_out) and compares rows; PᵀP compares the r columns of P",
             lambda P, Q: _square(_rows(P)) + _square(_rows(Q))),
            ("QᵀQ is (d_in, d_in); QQᵀ compares the r rows of Q",
             lambda P, Q: _square(_columns(P)) + _square(_columns(Q))),
            ("both transposes are on the wrong side: PᵀP and QQᵀ are (r, r)",
             lambda P, Q: _square(_rows(P)) + _square(_columns(Q))),
            ("you took roots, as the authors' code does; in equation (2) the norms are squared",
             lambda P, Q: _square(_columns(P)).sqrt() + _square(_rows(Q)).sqrt()),
            ("the identity is not subtracted", lambda P, Q: _square(P.T @ P) + _square(Q @ Q.T)),
            ("you subtracted 1 from every entry; I has ones on its diagonal alone",
             lambda P, Q: _square(P.T @ P - 1) + _square(Q @ Q.T - 1)),
            ("the two parts are added; you subtracted one",
             lambda P, Q: _square(_columns(P)) - _square(_rows(Q))),
            ("you took the root of the sum; in equation (2) the norms are squared",
             lambda P, Q: penalty(P, Q).sqrt()),
            ("only the diagonal counts in yours: the dot products of different columns should "
             "be 0, and they count, too",
             _diagonals_alone),
            ("Q's part is missing", lambda P, Q: _square(_columns(P))),
            ("P's part is missing", lambda P, Q: _square(_rows(Q))),
            ("you took the mean of the squares; they are summed, not averaged",
             lambda P, Q: penalty(P, Q) / P.shape[1] ** 2),
            ("the diagonal is left out: the dot product of a column with itself should be 1, and "
             "its distance from 1 counts, too",
             lambda P, Q: _square(_off_diagonal(P.T @ P)) + _square(_off_diagonal(Q @ Q.T))),
            ("the entries are not squared, so that those above 0 and those below 0 cancel",
             lambda P, Q: _columns(P).sum() + _rows(Q).sum())),
        symptoms=(
            (".data, a NumPy function or a new Tensor cuts the graph, so that no gradient can "
             "reach P and Q; use operations on Tensors from beginning to end",
             _is_cut),),
        tolerance=1e-6,
        hints=("What is PᵀP if the columns of P are orthonormal? Which product says the "
               "same about the rows of Q?",
               "PᵀP and Q Qᵀ are (r, r), like np.eye(r). The result is a Tensor with one number.",
               "D = P.T @ P - np.eye(r), and ‖D‖² is (D * D).sum(). Do the "
               "same for Q @ Q.T, and add.")),
    Exercise(
        name="adalora.importance", title="The importance of a weight", stars=3,
        kind="design",
        example=lambda rng: (*map(np.array, ([2.0], [-0.5], [0.5], [0.2])), 0.8, 0.8),
        reference=importance, cases=_averages,
        special=(
            ("no gradient: sensitivity only fades", _no_gradient),),
        mistakes=(
            ("U must measure the distance from the new Ī, not from the old one",
             _variant(old=True)),
            ("the sensitivity is |w g|, without a sign", _variant(lambda w, g: w * g)),
            ("the uncertainty is |I − Ī|, without a sign", _variant(deviation=_itself)),
            ("both absolute values are missing: I is |w g|, and U averages |I − Ī|",
             _variant(lambda w, g: w * g, deviation=_itself)),
            *several("the score is made of an old average; take the new Ī and the new U",
                     _variant(score=lambda I, a, u, b, v: a * u),
                     _variant(score=lambda I, a, u, b, v: a * v),
                     _variant(score=lambda I, a, u, b, v: b * u)),
            ("the score is made of this step's I; take its average Ī, which "
             "one noisy batch moves less",
             _variant(score=lambda I, a, u, b, v: I * v)),
            ("both are absolute values, |w g| and |I − Ī|; you squared both",
             _variant(lambda w, g: np.square(w * g), deviation=np.square)),
            *several("the sensitivity is |w g|: a product of both, each to the first power",
                     _variant(lambda w, g: np.square(g)),
                     _variant(lambda w, g: np.square(w)),
                     _variant(lambda w, g: np.square(w) * np.abs(g)),
                     _variant(lambda w, g: np.abs(w) * np.square(g))),
            *several("the score is the product Ī U, with no square",
                     _variant(score=lambda I, a, u, b, v: np.square(b * v)),
                     _variant(score=lambda I, a, u, b, v: b * v * v),
                     _variant(score=lambda I, a, u, b, v: b * b * v)),
            ("the uncertainty is the absolute value of I − Ī; you squared it",
             _variant(deviation=np.square)),
            ("the sensitivity is |w g|; you squared w g", _variant(lambda w, g: np.square(w * g))),
            *several("you added; the score is the product Ī U",
                     _variant(score=lambda I, a, u, b, v: b + v),
                     _variant(score=lambda I, a, u, b, v: a + u)),
            *several("the score is the product Ī U, and this is one of the two alone",
                     _variant(score=lambda I, a, u, b, v: b),
                     _variant(score=lambda I, a, u, b, v: v)),
            ("you divided; the uncertainty counts in a triplet's favour, and the "
             "score is the product Ī U",
             _variant(score=lambda I, a, u, b, v: b / v)),
            *several("β weighs the old average and 1 − β the new value; "
                     "yours are the wrong way round",
                     _variant(betas=lambda b1, b2: (1 - b1, 1 - b2)),
                     _variant(betas=lambda b1, b2: (1 - b1, b2)),
                     _variant(betas=lambda b1, b2: (b1, 1 - b2))),
            *several("β1 belongs to Ī and β2 to U; you took one for the other",
                     _variant(betas=lambda b1, b2: (b2, b1)),
                     _variant(betas=lambda b1, b2: (b1, b1)),
                     _variant(betas=lambda b1, b2: (b2, b2))),
            *several("what is new counts with the share 1 − β, or the average grows without end",
                     _variant(mean_of_I=_added, mean_of_U=_added),
                     _variant(mean_of_I=_added),
                     _variant(mean_of_U=_added),
                     _variant(mean_of_I=_summed, mean_of_U=_summed),
                     _variant(mean_of_I=_summed),
                     _variant(mean_of_U=_summed)),
            ("Ī is an average over the steps, and this is I of this step",
             _variant(mean_of_I=_this_step)),
            ("U is an average over the steps, and this is |I − Ī| of this step",
             _variant(mean_of_U=_this_step)),
            ("the gradient is missing: the sensitivity is the gradient times the weight",
             _variant(lambda w, g: np.abs(w))),
            ("the weight is missing: the sensitivity is the gradient times the weight",
             _variant(lambda w, g: np.abs(g)))),
        hints=("From which average does U measure the distance, from the old one or the new one?",
               "All arrays have one shape. Return three of them: the new Ī, the new U, and s.",
               "I = np.abs(w * g). The new average is I_bar = beta1 * I_bar + (1 - "
               "beta1) * I. Then U = beta2 * U + (1 - beta2) * np.abs(I - I_bar), "
               "and the score is I_bar * U.")),
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
            *_resting("this is the paper's Appendix A as printed, with t − t_i − t_f in the "
                      "numerator; the numerator is t − t_i",
                      {"over": _printed}),
            *_resting("min(b0, …) cuts off what is too large at t_i, but the fall is still that "
                      "of (6) as printed; mend its numerator",
                      {"over": _printed, "most": min}),
            *_resting("t_f is gone from the denominator, where it belongs, and still in the "
                      "numerator; the fall takes T − t_i − t_f steps and starts at t_i",
                      {"over": _printed, "steps": lambda T, t_i, t_f: T - t_i}),
            *_resting("the fall is cubic, not linear",
                      {"cube": _itself}),
            *_resting("the share that is left is u³, a cube; yours is another power of u",
                      {"cube": lambda u: u ** 2}, {"cube": lambda u: u ** 4}),
            *_resting("the cube is taken of what is left, u = 1 − progress; you took 1 − progress³",
                      {"cube": lambda u: 1 - (1 - u) ** 3}),
            *_resting("the budget is a whole number: round down",
                      {"whole": float}),
            *_resting("the budget is rounded down, by int(…); yours is rounded up "
                      "or to the nearest number",
                      {"whole": round}, {"whole": math.ceil}),
            *_resting("t − t_i steps of the fall are over; you counted one more or one less",
                      {"over": lambda t, t_i, t_f: t - t_i + 1},
                      {"over": lambda t, t_i, t_f: t - t_i - 1}),
            *_resting("the fall takes T − t_i − t_f steps; you counted one more or one less",
                      {"steps": lambda T, t_i, t_f: T - t_i - t_f + 1},
                      {"steps": lambda T, t_i, t_f: T - t_i - t_f - 1}),
            *_resting("the fall starts at t_i: t − t_i of its steps are over, not t",
                      {"over": lambda t, t_i, t_f: t}),
            *_resting("the fall takes T − t_i − t_f steps; yours takes more",
                      {"steps": lambda T, t_i, t_f: T},
                      {"steps": lambda T, t_i, t_f: T - t_f}),
            *_resting("the budget falls from b0 to bT, and yours rises from bT to b0",
                      {"ends": lambda b0, bT: (bT, b0, bT - b0)}),
            *_resting("what falls is the difference b0 − bT, on top of bT",
                      {"ends": lambda b0, bT: (b0, bT, b0)}),
            ("t_i is the length of the rest at the start, t_f that of the rest at "
             "the end; they are exchanged",
             _exchanged),
            ("t_f is a duration, so the fall ends at T − t_f, not at t_f",
             partial(_budget, rests="≤≥", end=lambda T, t_f: t_f,
                     steps=lambda T, t_i, t_f: t_f - t_i)),
            ("the budget rests at the start: up to t_i it is b0",
             partial(_budget, start=lambda t_i: -1)),
            ("the budget rests at the end: from T − t_f on it is bT", partial(_budget, end=_never)),
            ("the fall takes T − t_i − t_f steps; you let it take T − t_i",
             partial(_budget, end=_never, steps=lambda T, t_i, t_f: T - t_i))),
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
            ("one matrix has all the important triplets", _one_matrix),
            ("nothing may stay", lambda rng: (rng.exponential(1, (2, 3)), 0)),
            ("everything may stay", lambda rng: (rng.exponential(1, (2, 3)), 6))),
        invariants=(
            ("exactly b triplets stay even if scores are equal: all that reach a threshold may be "
             "more", _five_of_equal),),
        mistakes=(
            ("you gave each matrix the same share; choose the b best among all matrices together",
             _equal_shares),
            ("b = 0 keeps everything here: [-b:] then begins at place 0, and [b - 1] is the last "
             "place; mark the first b in descending order",
             lambda scores, b: allocate(scores, b or scores.size)),
            ("these are the least important triplets; keep the largest scores",
             lambda scores, b: allocate(-scores, b)),
            ("b counts the triplets that stay, not those that go",
             lambda scores, b: allocate(scores, scores.size - b)),
            ("these are the triplets that go; the mask is true for those that stay",
             lambda scores, b: ~allocate(scores, b)),
            *several("np.argsort gives places in order, not the rank of each score; mark "
                     "the places of the first b",
                     _by_rank, _by_last_rank),
            ("you kept one too many: was the b-th largest score counted from 0?",
             lambda scores, b: allocate(scores, min(b + 1, scores.size))),
            ("you kept one too few: > leaves the b-th largest score out, ≥ keeps it",
             lambda scores, b: allocate(scores, max(b - 1, 0)))),
        symptoms=(
            ("return a mask of True and False, not the scores", _not_a_mask),
            ("these are the places of the triplets that stay; return a mask "
             "(n, r) that is true there",
             _places)),
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
        mistakes=(
            ("the pruned triplets are still there: take the columns of P and the "
             "rows of Q where λ is not 0",
             lambda P, Lam, Q: (P * Lam, Q)),
            ("λ is missing: one of the two factors must be multiplied by it", _without_values),
            ("λ is counted twice: it belongs into one factor, or its root into both", _twice),
            *several("a small λ is not pruned: test Lam != 0",
                     _above(0.1), _above(1e-2), _above(1e-3), _above(1e-5)),
            ("a negative λ is not pruned: test Lam != 0, not Lam > 0",
             lambda P, Lam, Q: export(P, np.maximum(Lam, 0), Q)),
            ("the sign of λ is lost, as it is if both factors get the root of |λ|; "
             "multiply one of them by it",
             _roots),
            ("these are the first triplets; those that are left may stand anywhere", _first)),
        symptoms=(
            ("cut both factors: B has as many columns as A has rows", _one_uncut),
            ("ΔW is B A: return B, which comes from P, first", _in_other_order)),
        tolerance=1e-9,
        hints=("What does a triplet with λ = 0 add to P Λ Q?",
               "k is np.count_nonzero(Lam). B is (d_out, k), A is (k, d_in).",
               "left = Lam != 0. B is P[:, left] with its columns multiplied by "
               "Lam[left], and A is Q[left].")),
)
