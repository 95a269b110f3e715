"""Lesson 12: rounding that takes the inputs into account: OBQ's step, GPTQ and its factor, AWQ's search."""
from functools import partial

import numpy as np

from ...quant import measure
from ...quant.gptq import factor
from ...quant.obq import obq_step
from ...quant.uniform import Uniform
from ..exercise import Exercise

__all__ = ["EXERCISES"]


def correlated(rng, d, n=None):
    """H = (2/n) X Xᵀ of n inputs that are correlated and of different size, positive definite, (d, d)."""
    X = rng.normal(0, 1, (d, d)) @ rng.normal(0, 1, (d, n or 4 * d)) * rng.uniform(0.3, 3, (d, 1))
    return 2 / X.shape[1] * X @ X.T / d


# -- the output error ------------------------------------------------------------------------------
def output_error(W, W_hat, H):
    return measure.output_error(W, W_hat, H)


def output_error_variant(root=True, of=lambda W, D: D, below=lambda W, H: np.sum((W @ H) * W)):
    """output_error with a mistake: no root, Ŵ itself instead of the difference, or another denominator."""
    def wrong(W, W_hat, H):
        D = of(W_hat, W_hat - W)
        e = np.sum((D @ H) * D) / below(W, H)
        return float(np.sqrt(e) if root else e)
    return wrong


# -- one step of OBQ -------------------------------------------------------------------------------
def compensate(w, Hinv, q, value):
    return obq_step(w, Hinv, q, value)


def compensate_variant(sign=1, divide=True, divide_H=True, eliminate=True, move=True, exact=True, delta=False):
    """compensate with a mistake: the sign, no division by [H⁻¹]_qq in w or in H⁻¹, no elimination, others not moved, or δ."""
    def wrong(w, Hinv, q, value):
        column = Hinv[:, q] / (Hinv[q, q] if divide else 1)
        new = w + sign * (value - w[q]) * (column if move else 0)
        if exact: new[q] = value
        M = Hinv - np.outer(Hinv[:, q], Hinv[q]) / (Hinv[q, q] if divide_H else 1) if eliminate else Hinv.copy()
        M[q] = M[:, q] = 0
        return new - w if delta else new, M
    return wrong


def compensate_case(rng):
    """A step after one that went before: weight 1 is fixed already."""
    d = int(rng.integers(5, 8))
    w, Hinv = compensate(rng.normal(0, 1, d), np.linalg.inv(correlated(rng, d)), 1, 0.25)
    q = int(rng.choice([0, 2, 3, 4]))
    return w, Hinv, q, float(np.rint(w[q] * 2) / 2)


# -- GPTQ ------------------------------------------------------------------------------------------
def halves(column):
    """The nearest multiples of ½."""
    return np.rint(2 * column) / 2


def gptq(W, U, quant):
    """As the package does it: what a column gets is summed just before it is rounded."""
    W_hat, E = np.empty_like(W), np.zeros_like(W)
    for j in range(W.shape[1]):
        w = W[:, j] - E[:, :j] @ U[:j, j]
        W_hat[:, j] = quant(w)
        E[:, j] = (w - W_hat[:, j]) / U[j, j]
    return W_hat


def gptq_fixed(W, U, quant):
    """gptq with one inverse for all columns, from which nothing is eliminated."""
    V, W_hat, Hinv = W.copy(), np.empty_like(W), U.T @ U
    for j in range(W.shape[1]):
        W_hat[:, j] = quant(V[:, j])
        V[:, j + 1:] -= np.outer((V[:, j] - W_hat[:, j]) / Hinv[j, j], Hinv[j, j + 1:])
    return W_hat


def gptq_variant(pass_on=True, sign=1, divide=True, original=False, running=False):
    """gptq with a mistake: nothing passed on, the wrong sign, not divided by U_jj, errors of the original W, W returned."""
    def wrong(W, U, quant):
        V, W_hat = W.copy(), np.empty_like(W)
        for j in range(W.shape[1]):
            W_hat[:, j] = quant(V[:, j])
            E = ((W if original else V)[:, j] - W_hat[:, j]) / (U[j, j] if divide else 1)
            if pass_on: V[:, j + 1:] -= sign * np.outer(E, U[j, j + 1:])
        return V if running else W_hat
    return wrong


def _last_alone(got, expected, arguments):
    """Are all columns right, except the last one?"""
    return np.allclose(got[:, :-1], expected[:, :-1]) and not np.allclose(got[:, -1], expected[:, -1])


def gptq_case(rng):
    d = int(rng.integers(6, 10))
    return rng.normal(0, 1, (int(rng.integers(3, 6)), d)), factor(correlated(rng, d), 0.01).copy(), halves


# -- GPTQ's factor, and another order ---------------------------------------------------------------
def mended_factor(H, damping):
    return factor(H, damping).copy()


def factor_variant(inverse=True, upper=True, everywhere=False, relative=True, damped=True, each=False, of_L=False):
    """mended_factor with a mistake: of H itself, lower, damping everywhere, not in units of the mean, in proportion to each
    entry, or none; of_L: the inverse of H's own factor."""
    def wrong(H, damping):
        more = damping * (H.diagonal().mean() if relative else 1) if damped else 0
        A = H + (more if everywhere else np.diag(damping * H.diagonal()) if each else more * np.eye(len(H)))
        L = np.linalg.inv(np.linalg.cholesky(A)) if of_L else np.linalg.cholesky(np.linalg.inv(A) if inverse else A)
        return L.T if upper else L
    return wrong


def _other_signs(got, expected, arguments):
    """Is it the right factor, with other signs of its rows?"""
    return np.allclose(np.sign(got.diagonal())[:, None] * got, expected)


def ordered(W, H, quant, damping):
    order = np.argsort(-H.diagonal(), kind="stable")
    W_hat = np.empty_like(W)
    W_hat[:, order] = gptq(W[:, order], factor(H[order][:, order], damping), quant)
    return W_hat


def ordered_variant(weight=lambda H: H.diagonal(), columns=True, undo=True, twice=False, of_factor=False, of_W=True,
                    damped=lambda damping: damping):
    """ordered with a mistake: another weight of a column, H permuted in rows alone, never undone, done twice, U permuted in
    place of H, or another damping."""
    def wrong(W, H, quant, damping):
        order, damping = np.argsort(-weight(H), kind="stable"), damped(damping)
        if of_factor: U = factor(H, damping)[order][:, order]
        else: U = factor(H[order][:, order] if columns else H, damping)
        V = gptq(W[:, order] if of_W else W, U, quant)
        if twice: return V[:, order]
        W_hat = np.empty_like(W)
        W_hat[:, order] = V
        return W_hat if undo else V
    return wrong


def ordered_case(rng):
    d = int(rng.integers(7, 10))
    H = correlated(rng, d)
    return rng.normal(0, 1, (int(rng.integers(3, 6)), d)), H, halves, float(rng.choice([0.03, 0.2, 1.0]))


# -- AWQ -------------------------------------------------------------------------------------------
def nearest3(W):
    """Round to nearest, 3 bits, one asymmetric grid per row."""
    u = Uniform(3, symmetric=False)
    return u.fit(W).round(W)


def awq(W, H, mean_abs, quant, alphas):
    def loss(s):
        D = quant(W * s) / s - W
        return np.vdot(D @ H, D)
    losses = np.array([loss(mean_abs**alpha) for alpha in alphas])
    return float(alphas[losses.argmin()]), losses


def awq_variant(back=True, scale=lambda m, a: m**a, weighted=True, forward=True, both=False, twice=False):
    """awq with a mistake: not divided back, another scale, plain weight error, not scaled before rounding; both: Ŵ and W are
    compared as they are after scaling; twice: H stands twice."""
    def wrong(W, H, mean_abs, quant, alphas):
        losses = []
        for a in alphas:
            s = scale(mean_abs, a)
            D = quant(W * s if forward else W) / (s if back else 1) - (W * s if both else W)
            losses.append(np.sum((D @ H) * (D @ H if twice else D)) if weighted else np.sum(D * D))
        return float(alphas[int(np.argmin(losses))]), np.array(losses)
    return wrong


def awq_case(rng):
    d = int(rng.integers(8, 12))
    X = rng.normal(0, 1, (d, 5 * d)) * np.exp(rng.normal(0, 1, (d, 1)))
    return rng.normal(0, 1, (6, d)), 2 / X.shape[1] * X @ X.T, np.abs(X).mean(1), nearest3, np.arange(8) / 8


def _optimal(fn, rng):
    d = 6
    H, w = correlated(rng, d), rng.normal(0, 1, d)
    new, _ = fn(w, np.linalg.inv(H), 2, 0.0)
    slope = (new - w) @ H                                                 # of the quadratic form, zero in every free direction
    return np.abs(np.delete(slope, 2)).max() < 1e-8 * np.abs(slope).max()


def _exact(fn, rng):
    """Exact zeros in H⁻¹, and exactly the value in w, for some steps."""
    for _ in range(8):
        w, Hinv, q, value = compensate_case(rng)
        new, M = fn(w, Hinv, q, value)
        if new[q] != value or M[q].any() or M[:, q].any(): return False
    return True


EXERCISES = (
    Exercise(
        name="calibrated.output_error", title="The output error, without the inputs", stars=1,
        reference=output_error,
        cases=lambda rng: (W := rng.normal(0, 1, (int(rng.integers(3, 6)), 7)), W + rng.normal(0, 0.2, W.shape),
                           correlated(rng, 7)),
        special=(
            ("nothing has moved", lambda rng: (W := rng.normal(0, 1, (2, 3)), W.copy(), np.eye(3))),
            ("Ŵ is 0: all of the output is error",
             lambda rng: (W := rng.normal(0, 1, (2, 3)), 0 * W, np.diag([1.0, 2, 3])))),
        mistakes=(
            ("this is the square of the ratio; take the root", output_error_variant(root=False)),
            ("the numerator must use Ŵ − W, not Ŵ", output_error_variant(of=lambda V, D: V)),
            ("this is the error of the weights; H is not in it",
             lambda W, W_hat, H: float(np.linalg.norm(W_hat - W) / np.linalg.norm(W))),
            ("H is XXᵀ up to a factor, so ‖DX‖² is tr(D H Dᵀ) up to the same factor, and not ‖DH‖²",
             lambda W, W_hat, H: float(np.linalg.norm((W_hat - W) @ H) / np.linalg.norm(W @ H))),
            ("the denominator is ‖WX‖, which also contains H",
             output_error_variant(below=lambda W, H: np.sum(W * W))),
            ("this is the error itself; divide it by ‖WX‖",
             output_error_variant(below=lambda W, H: 1))),
        symptoms=(
            ("the denominator is ‖WX‖, with the original W; yours is 0 where Ŵ is 0",
             lambda got, expected, arguments: np.isinf(got) and not arguments[1].any()),),
        hints=("How can ‖D X‖² be written with X Xᵀ in place of X?",
               "D = W_hat - W is (d_out, d_in), and so is D @ H. tr(A Bᵀ) is np.sum(A * B).",
               "The squared numerator is np.sum((D @ H) * D), the squared denominator the same "
               "with W. Take the root of the ratio; n/2 cancels.")),
    Exercise(
        name="calibrated.compensate", title="One step of OBQ", stars=2,
        reference=compensate, cases=compensate_case,
        special=(
            ("two weights: the second makes up for the first",
             lambda rng: (np.array([0.4, 0.4]), np.linalg.inv(np.array([[2.0, 1], [1, 2]])), 0, 0.0)),),
        invariants=(
            ("moving a weight that is still free does not improve the result", _optimal),
            ("w[q] is exactly the value, and row and column q of the new H⁻¹ are exactly 0",
             _exact)),
        mistakes=(
            *(("the sign of δ is wrong: w_q moves to value, so the factor is value − w_q", compensate_variant(sign=-1, exact=exact))
              for exact in (True, False)),
            ("all other weights that are free move, those before q as well",
             lambda w, Hinv, q, value: (lambda new, M: (
np.where(np.arange(len(w)) < q, w, new), M))(*compensate(w, Hinv, q, value))),
            *(("divide the column by its diagonal entry [H⁻¹]_qq", compensate_variant(divide=False, divide_H=False, exact=exact))
              for exact in (True, False)),
            *(("the column that moves w must be divided by [H⁻¹]_qq; only the one that changes H⁻¹ is",
               compensate_variant(divide=False, exact=exact)) for exact in (True, False)),
            ("the outer product must be divided by [H⁻¹]_qq; only the column that moves w is",
             compensate_variant(divide_H=False)),
            *(("this is δ, the change of w; return w + δ", compensate_variant(delta=True, exact=exact)) for exact in (True, False)),
            ("this is δ, the change of w; return w + δ",
             lambda w, Hinv, q, value: (lambda new, M: (
np.where(np.arange(len(w)) == q, value, new - w), M))(*compensate(w, Hinv, q, value))),
            ("H⁻¹ needs an elimination step: subtract the outer product; it is not "
             "enough to clear row and column",
             compensate_variant(eliminate=False)),
            ("the other weights must move too", compensate_variant(move=False))),
        tolerance=1e-9,
        hints=("Weight q moves by value - w[q]. By how much do the others move to make up for it?",
               "Hinv[:, q] is (d,). What is subtracted from Hinv is an outer product, (d, d).",
               "column = Hinv[:, q] / Hinv[q, q]. The new w is w + (value - w[q]) * column, "
               "with entry q set to value. The new H⁻¹ is Hinv - np.outer(column, Hinv[q]), "
               "with row and column q set to 0.")),
    Exercise(
        name="calibrated.gptq", title="GPTQ, column by column", stars=3,
        reference=gptq, cases=gptq_case,
        special=(
            ("U is diagonal: nothing is passed on, and it is round to nearest",
             lambda rng: (rng.normal(0, 1, (3, 4)), np.diag([1.0, 2, 3, 4]), halves)),),
        mistakes=(
            ("nothing is passed on to later columns: this is round to nearest (column j of U is "
             "zero below the diagonal; take row j)",
             gptq_variant(pass_on=False)),
            ("the errors have the wrong sign: subtract them", gptq_variant(sign=-1)),
            ("E is the error divided by U_jj", gptq_variant(divide=False)),
            ("H⁻¹ changes when a column is fixed; row j of U belongs to the inverse of the free "
             "columns, row j of UᵀU does not",
             gptq_fixed),
            ("this is the running W; return the rounded columns, Ŵ", gptq_variant(running=True)),
            ("take the error of the column in its current state, not of the original W",
             gptq_variant(original=True))),
        symptoms=(
            ("the last column alone is wrong: nothing comes after it, but it must be rounded, too",
             _last_alone),),
        hints=("When column j is rounded, which columns can still make up for its error?",
               "E = (w_j − ŵ_j) / U_jj is (d_out,). U[j, j+1:] has one entry for each later "
               "column. Their outer product fits the columns after j.",
               "Work on a copy V of W. For each j: round V[:, j] with quant, compute E from V[:, "
               "j] and the rounded column, and subtract np.outer(E, U[j, j+1:]) from V[:, j+1:].")),
    Exercise(
        name="calibrated.bug", title="Find the bug: worse than rounding", stars=2, avoids=("factor",),
        reference=mended_factor,
        cases=lambda rng: (correlated(rng, int(rng.integers(5, 9))), float(rng.choice([0.01, 0.05, 0.1]))),
        special=(
            ("H is diagonal, so U is the diagonal of 1/√(H_jj + λ)",
             lambda rng: (np.diag([1.0, 3.0, 8.0]), 0.25)),
            ("fewer tokens than inputs: without damping H has no inverse",
             lambda rng: (correlated(rng, 6, 3), 0.1))),
        mistakes=(
            ("UᵀU is H; it should be the inverse of H", factor_variant(inverse=False)),
            ("this is lower triangular, L with L Lᵀ = H⁻¹: then nothing is passed on "
             "to later columns; U is Lᵀ",
             factor_variant(upper=False)),
            ("this is Lᵀ of the inverse of H's own factor: U Uᵀ would be H⁻¹, and UᵀU should "
             "be it; factor the inverse",
             factor_variant(of_L=True)),
            ("UᵀU is right, but this is lower triangular, the inverse of H's own factor; factor "
             "the inverse of H, and transpose",
             factor_variant(of_L=True, upper=False)),
            ("the same λ is added to the whole diagonal; yours adds a share of each entry",
             factor_variant(each=True)),
            ("damping belongs on the diagonal alone; you add it to every entry",
             factor_variant(everywhere=True)),
            ("damping is in units of the mean of H's diagonal", factor_variant(relative=False)),
            ("the damping is not added", factor_variant(damped=False)),
            ("UᵀU is H, and the damping is added to every entry: these are both "
             "faults of the code above",
             factor_variant(inverse=False, everywhere=True))),
        symptoms=(
            ("UᵀU is right, but the diagonal of U must be positive: turn the signs of "
             "the rows in which it is not",
             _other_signs),),
        errors=(
            ("not positive definite",
             "without damping on the diagonal, an H of few tokens has no Cholesky factor"),
            ("Singular matrix",
             "without damping on the diagonal, an H of few tokens has no inverse")),
        tolerance=1e-7,
        hints=("Multiply out UᵀU. Which matrix should it be? And what does a constant added to "
               "every entry of H do to its rank?",
               "All matrices are (d, d). np.linalg.cholesky(M) is lower: L with L Lᵀ = M.",
               "A = H + damping * H.diagonal().mean() * np.eye(len(H)). L = "
               "np.linalg.cholesky(np.linalg.inv(A)). U is L.T.")),
    Exercise(
        name="calibrated.order", title="The heaviest columns first", stars=3,
        reference=ordered, cases=ordered_case,
        special=(
            ("H is diagonal: in every order it is round to nearest",
             lambda rng: (rng.normal(0, 1, (3, 4)), np.diag([1.0, 4.0, 2.0, 3.0]), halves, 0.01)),
            ("one row, with a damping of 1",
             lambda rng: (
np.array([[-0.25, 0.35, 0.2]]), np.array([[2.0, 1.5, 1.2], [1.5, 3.0, 0.0], [1.2, 0.0, 2.2]]), halves, 1.0))),
        mistakes=(
            ("the columns come back in the new order; put each where it was: W_hat[:, order] = …",
             ordered_variant(undo=False)),
            ("indexing by `order` once more does not undo it; assign to W_hat[:, order]",
             ordered_variant(twice=True)),
            ("the heaviest column comes first: sort by −diag H",
             ordered_variant(lambda H: -H.diagonal())),
            ("the weight of a column is its entry on the diagonal of H, not the "
             "length of its column of H",
             ordered_variant(partial(np.linalg.norm, axis=0))),
            ("the damping is an argument; yours is always 0.01",
             ordered_variant(damped=lambda damping: 0.01)),
            ("H is not damped before it is factored", ordered_variant(damped=lambda damping: 0)),
            ("H is still in the old order: permute its rows and its columns",
             ordered_variant(columns=False)),
            ("permute H and factor it then; a permuted U is not triangular",
             ordered_variant(of_factor=True)),
            ("the columns of W must be in the same order as those of H",
             ordered_variant(of_W=False))),
        tolerance=1e-9,
        hints=("Which two arrays must be permuted before, and which one afterwards?",
               "order = np.argsort(-H.diagonal()) is (d,). H[order][:, order] is (d, d), "
               "W[:, order] is (d_out, d).",
               "U is the mended factor of H[order][:, order]. W_hat = np.empty_like(W); W_hat[:, "
               "order] = your GPTQ of W[:, order].")),
    Exercise(
        name="calibrated.awq", title="AWQ's search for a scale", stars=2,
        reference=awq, cases=awq_case,
        special=(
            ("α = 0 alone is round to nearest", lambda rng: (*awq_case(rng)[:4], np.array([0.0]))),
            ("all inputs have the mean 1, so that no α does anything: the first one",
             lambda rng: (lambda W, H, mean_abs, quant, alphas: (W, H, np.ones_like(mean_abs), quant, alphas + 0.25))(*awq_case(rng)))),
        mistakes=(
            ("the rounded matrix must be divided by s after it was scaled up before",
             awq_variant(back=False)),
            ("compare with W itself: divide the rounded matrix by s, and subtract W, not W s",
             awq_variant(back=False, both=True)),
            ("this is the place of the best α; return α itself",
             lambda *a: (lambda alpha, losses: (float(losses.argmin()), losses))(*awq(*a))),
            ("of equal losses, the first α is wanted; with <= the last one wins",
             lambda *a: (lambda alpha, losses: (float(a[-1][np.flatnonzero(losses == losses.min())[-1]]), losses))(*awq(*a))),
            ("these are roots of the losses; the loss is tr(D H Dᵀ) itself",
             lambda *a: (lambda alpha, losses: (alpha, np.sqrt(losses)))(*awq(*a))),
            ("scale W before you round it", awq_variant(forward=False)),
            ("s is s_X to the power α, so it grows with the inputs",
             awq_variant(scale=lambda m, a: m**-a)),
            ("s is s_X^α, not α s_X", awq_variant(scale=lambda m, a: np.maximum(m * a, 1e-4))),
            ("H is XXᵀ up to a factor: the loss is tr(D H Dᵀ), and not ‖DH‖²",
             awq_variant(twice=True)),
            ("this is the error of the weights; the loss is the error of the outputs, with H",
             awq_variant(weighted=False))),
        hints=("W is multiplied by s before it is rounded. What must be done afterwards, so that "
               "it can be compared with W?",
               "s is (d_in,): one number for each column of W. D is (d_out, d_in). "
               "losses is (len(alphas),).",
               "For each α: s = mean_abs**alpha; D = quant(W * s) / s - W; the loss is np.sum((D "
               "@ H) * D). Return the α of the smallest loss, not its index.")),
)
