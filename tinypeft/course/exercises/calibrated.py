"""Lesson 12: rounding that looks at the inputs: OBQ's step, GPTQ and its factor, AWQ's search."""
from functools import partial

import numpy as np

from ...quant import measure
from ...quant.gptq import factor
from ...quant.obq import obq_step
from ...quant.uniform import Uniform
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


def correlated(rng, d, n=None):
    """Draw H = (2/n) X Xᵀ (d, d) of n inputs that are correlated and of different size."""
    mixed = rng.normal(0, 1, (d, d))
    X = mixed @ rng.normal(0, 1, (d, n or 4 * d))
    X *= rng.uniform(0.3, 3, (d, 1))
    return 2 / X.shape[1] * X @ X.T / d


# -- the output error ------------------------------------------------------------------------------
def output_error(W, W_hat, H):
    return measure.output_error(W, W_hat, H)


def squared(D, H):
    return np.sum((D @ H) * D)


def output_error_variant(root=True, of=lambda W, D: D, below=squared):
    """Make `output_error` with a mistake: no root, Ŵ in place of Ŵ − W, or another denominator."""
    def wrong(W, W_hat, H):
        D = of(W_hat, W_hat - W)
        e = squared(D, H) / below(W, H)
        return float(np.sqrt(e) if root else e)
    return wrong


def error_of_weights(W, W_hat, H):
    return float(np.linalg.norm(W_hat - W) / np.linalg.norm(W))


def error_times_H(W, W_hat, H):
    return float(np.linalg.norm((W_hat - W) @ H) / np.linalg.norm(W @ H))


def output_error_case(rng):
    W = rng.normal(0, 1, (int(rng.integers(3, 6)), 7))
    return W, W + rng.normal(0, 0.2, W.shape), correlated(rng, 7)


def unmoved(rng):
    W = rng.normal(0, 1, (2, 3))
    return W, W.copy(), np.eye(3)


def all_zero(rng):
    W = rng.normal(0, 1, (2, 3))
    return W, 0 * W, np.diag([1.0, 2, 3])


def infinite(got, expected, args):
    return np.isinf(got) and not args[1].any()


# -- one step of OBQ -------------------------------------------------------------------------------
def compensate(w, Hinv, q, value):
    return obq_step(w, Hinv, q, value)


def usual_divisor(diagonal):
    return diagonal


def one(diagonal):
    return 1


def compensate_variant(sign=1, of_w=usual_divisor, of_H=usual_divisor, eliminate=True, exact=True,
                       delta=False):
    """Make `compensate` with a mistake.

    of_w, of_H: the divisors in w and in H⁻¹. exact: w[q] is set to the value. delta: δ is returned.
    """
    def wrong(w, Hinv, q, value):
        new = w + sign * (value - w[q]) * Hinv[:, q] / of_w(Hinv[q, q])
        if exact:
            new[q] = value
        M = Hinv.copy()
        if eliminate:
            M -= np.outer(Hinv[:, q], Hinv[q]) / of_H(Hinv[q, q])
        M[q] = M[:, q] = 0
        return new - w if delta else new, M
    return wrong


def both_exact(sentence, **options):
    """Make the mistake with w[q] set to the value, and without."""
    return several(sentence, compensate_variant(**options),
                   compensate_variant(**options, exact=False))


def later_alone(w, Hinv, q, value):
    new, M = compensate(w, Hinv, q, value)
    return np.where(np.arange(len(w)) < q, w, new), M


def unmoved_others(w, Hinv, q, value):
    new, M = compensate(w, Hinv, q, value)
    return np.where(np.arange(len(w)) == q, new, w), M


def delta_of_others(w, Hinv, q, value):
    new, M = compensate(w, Hinv, q, value)
    return np.where(np.arange(len(w)) == q, value, new - w), M


def two_weights(rng):
    H = np.array([[2.0, 1], [1, 2]])
    return np.array([0.4, 0.4]), np.linalg.inv(H), 0, 0.0


def compensate_case(rng):
    """Draw a step after another one, which has fixed weight 1."""
    d = int(rng.integers(5, 8))
    w = rng.normal(0, 1, d)
    w, Hinv = compensate(w, np.linalg.inv(correlated(rng, d)), 1, 0.25)
    q = int(rng.choice([0, 2, 3, 4]))
    return w, Hinv, q, float(np.rint(w[q] * 2) / 2)


# -- GPTQ ------------------------------------------------------------------------------------------
def halves(column):
    """Round to multiples of ½."""
    return np.rint(2 * column) / 2


def gptq(W, U, quant):
    """Sum what a column gets just before it is rounded: Algorithm 1 in another order."""
    W_hat, E = np.empty_like(W), np.zeros_like(W)
    for j in range(W.shape[1]):
        w = W[:, j] - E[:, :j] @ U[:j, j]
        W_hat[:, j] = quant(w)
        E[:, j] = (w - W_hat[:, j]) / U[j, j]
    return W_hat


def gptq_fixed(W, U, quant):
    """Take one inverse for all columns, from which nothing is eliminated."""
    V, W_hat, Hinv = W.copy(), np.empty_like(W), U.T @ U
    for j in range(W.shape[1]):
        W_hat[:, j] = quant(V[:, j])
        E = (V[:, j] - W_hat[:, j]) / Hinv[j, j]
        V[:, j + 1:] -= np.outer(E, Hinv[j, j + 1:])
    return W_hat


def gptq_variant(sign=1, divisor=usual_divisor, original=False, running=False):
    """Make `gptq` with a mistake.

    sign: 0 passes nothing on. original: the errors are those of the first W. running: the running
    W is returned.
    """
    def wrong(W, U, quant):
        V, W_hat = W.copy(), np.empty_like(W)
        for j in range(W.shape[1]):
            W_hat[:, j] = quant(V[:, j])
            w = (W if original else V)[:, j]
            E = (w - W_hat[:, j]) / divisor(U[j, j])
            V[:, j + 1:] -= sign * np.outer(E, U[j, j + 1:])
        return V if running else W_hat
    return wrong


def _last_alone(got, expected, args):
    """Are all columns right, except the last one?"""
    right = np.isclose(got, expected)
    return right[:, :-1].all() and not right[:, -1].all()


def gptq_case(rng):
    d = int(rng.integers(6, 10))
    W = rng.normal(0, 1, (int(rng.integers(3, 6)), d))
    return W, factor(correlated(rng, d), 0.01).copy(), halves


def diagonal(rng):
    W = rng.normal(0, 1, (3, 4))
    return W, np.diag([1.0, 2, 3, 4]), halves


# -- GPTQ's factor, and another order --------------------------------------------------------------
def mended_factor(H, damping):
    return factor(H, damping).copy()


def on_diagonal(H, damping):
    return damping * H.diagonal().mean() * np.eye(len(H))


def damped_by(size, H, damping):
    return damping * size(H) * np.eye(len(H))


def everywhere(H, damping):
    return damping * H.diagonal().mean()


def factor_of_inverse(A):
    return np.linalg.cholesky(np.linalg.inv(A))


def inverse_of_factor(A):
    return np.linalg.inv(np.linalg.cholesky(A))


def factor_variant(L=factor_of_inverse, added=on_diagonal, upper=True):
    """Make `mended_factor` with a mistake: another factor or damping, or not transposed."""
    def wrong(H, damping):
        lower = L(H + added(H, damping))
        return lower.T if upper else lower
    return wrong


def few_tokens(rng):
    return correlated(rng, 6, n=3), 0.1


def factor_case(rng):
    H = correlated(rng, int(rng.integers(5, 9)))
    return H, float(rng.choice([0.01, 0.05, 0.1]))


def _other_signs(got, expected, args):
    """Is it the right factor, with other signs of its rows?"""
    return np.allclose(np.sign(got.diagonal())[:, None] * got, expected)


def ordered(W, H, quant, damping):
    order = np.argsort(-H.diagonal(), kind="stable")
    U = factor(permuted(H, order), damping)
    return undone(gptq(W[:, order], U, quant), order)


def undone(V, order):
    W_hat = np.empty_like(V)
    W_hat[:, order] = V
    return W_hat


def permuted(A, order):
    return A[order][:, order]


def unpermuted(A, order):
    return A


def ordered_variant(weight=np.diagonal, of_H=permuted, of_factor=unpermuted, of_W=True, undo=undone,
                    damped=lambda damping: damping):
    """Make `ordered` with a mistake.

    weight: that of the columns. of_H, of_factor: what becomes of H and of its factor. of_W: W is
    permuted. undo: what becomes of the result.
    """
    def wrong(W, H, quant, damping):
        order = np.argsort(-weight(H), kind="stable")
        U = of_factor(factor(of_H(H, order), damped(damping)), order)
        return undo(gptq(W[:, order] if of_W else W, U, quant), order)
    return wrong


def diagonal_case(rng):
    W = rng.normal(0, 1, (3, 4))
    return W, np.diag([1.0, 4.0, 2.0, 3.0]), halves, 0.01


def one_row(rng):
    H = np.array([[2.0, 1.5, 1.2], [1.5, 3.0, 0.0], [1.2, 0.0, 2.2]])
    return np.array([[-0.25, 0.35, 0.2]]), H, halves, 1.0


def ordered_case(rng):
    d = int(rng.integers(7, 10))
    H = correlated(rng, d)
    W = rng.normal(0, 1, (int(rng.integers(3, 6)), d))
    return W, H, halves, float(rng.choice([0.03, 0.2, 1.0]))


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


def awq_variant(difference=lambda W, s, quant: quant(W * s) / s - W, scale=np.power,
                loss=squared):
    """Make `awq` with a mistake in the difference of Ŵ and W, the scale, or the loss."""
    def wrong(W, H, mean_abs, quant, alphas):
        scales = [scale(mean_abs, alpha) for alpha in alphas]
        losses = np.array([loss(difference(W, s, quant), H) for s in scales])
        return float(alphas[losses.argmin()]), losses
    return wrong


def place_of_best(*args):
    _, losses = awq(*args)
    return float(losses.argmin()), losses


def last_of_equal(*args):
    _, losses = awq(*args)
    return float(args[-1][np.flatnonzero(losses == losses.min())[-1]]), losses


def roots_of_losses(*args):
    alpha, losses = awq(*args)
    return alpha, np.sqrt(losses)


def awq_case(rng):
    d = int(rng.integers(8, 12))
    X = rng.normal(0, 1, (d, 5 * d))
    X *= np.exp(rng.normal(0, 1, (d, 1)))
    W, H = rng.normal(0, 1, (6, d)), 2 / X.shape[1] * X @ X.T
    return W, H, np.abs(X).mean(1), nearest3, np.arange(8) / 8


def alpha_of_zero(rng):
    return *awq_case(rng)[:4], np.array([0.0])


def equal_inputs(rng):
    W, H, mean_abs, quant, alphas = awq_case(rng)
    return W, H, np.ones_like(mean_abs), quant, alphas + 0.25


def _optimal(fn, rng):
    d = 6
    H, w = correlated(rng, d), rng.normal(0, 1, d)
    new, _ = fn(w, np.linalg.inv(H), 2, 0.0)
    # the slope of the quadratic form is zero in every free direction
    slope = np.abs((new - w) @ H)
    return np.delete(slope, 2).max() < 1e-8 * slope.max()


def _exact(fn, rng):
    """Are there exact zeros in H⁻¹, and exactly the value in w, in some steps?"""
    for _ in range(8):
        w, Hinv, q, value = compensate_case(rng)
        new, M = fn(w, Hinv, q, value)
        if new[q] != value or M[q].any() or M[:, q].any():
            return False
    return True


EXERCISES = (
    Exercise(
        name="calibrated.output_error", title="The output error, without the inputs", stars=1,
        kind="formula",
        reference=output_error,
        cases=output_error_case,
        special=(
            ("nothing has moved", unmoved),
            ("Ŵ is 0: all of the output is error", all_zero)),
        mistakes=(
            ("this is the square of the ratio; take the root", output_error_variant(root=False)),
            ("the numerator must use Ŵ − W, not Ŵ", output_error_variant(of=lambda V, D: V)),
            ("this is the error of the weights; H is not in it", error_of_weights),
            ("H is XXᵀ up to a factor, so ‖DX‖² is tr(D H Dᵀ) up to the same factor, and not ‖DH‖²",
             error_times_H),
            ("the denominator is ‖WX‖, which also contains H",
             output_error_variant(below=lambda W, H: np.sum(W * W))),
            ("this is the error itself; divide it by ‖WX‖",
             output_error_variant(below=lambda W, H: 1))),
        symptoms=(
            ("the denominator is ‖WX‖, with the original W; yours is 0 where Ŵ is 0", infinite),),
        hints=("How can ‖D X‖² be written with X Xᵀ in place of X?",
               "D = W_hat - W is (d_out, d_in), and so is D @ H. tr(A Bᵀ) is np.sum(A * B).",
               "The squared numerator is np.sum((D @ H) * D), the squared denominator the same "
               "with W. Take the root of the ratio; n/2 cancels.")),
    Exercise(
        name="calibrated.compensate", title="One step of OBQ", stars=3,
        kind="design",
        reference=compensate, cases=compensate_case,
        special=(
            ("two weights: the second makes up for the first", two_weights),),
        invariants=(
            ("moving a weight that is still free does not improve the result", _optimal),
            ("w[q] is exactly the value, and row and column q of the new H⁻¹ are exactly 0",
             _exact)),
        mistakes=(
            *both_exact("the sign of δ is wrong: w_q moves to value, so the factor is value − w_q",
                        sign=-1),
            ("all other weights that are free move, those before q as well", later_alone),
            *both_exact("divide the column by its diagonal entry [H⁻¹]_qq",
                        of_w=one, of_H=one),
            *both_exact("the column that moves w must be divided by [H⁻¹]_qq; only "
                        "the one that changes H⁻¹ is",
                        of_w=one),
            ("the outer product must be divided by [H⁻¹]_qq; only the column that moves w is",
             compensate_variant(of_H=one)),
            *both_exact("this is δ, the change of w; return w + δ",
                        delta=True),
            ("this is δ, the change of w; return w + δ", delta_of_others),
            ("H⁻¹ needs an elimination step: subtract the outer product; it is not "
             "enough to clear row and column",
             compensate_variant(eliminate=False)),
            ("the other weights must move too", unmoved_others)),
        tolerance=1e-9,
        hints=("Weight q moves by value - w[q]. By how much do the others move to make up for it?",
               "Hinv[:, q] is (d,). What is subtracted from Hinv is an outer product, (d, d).",
               "column = Hinv[:, q] / Hinv[q, q]. The new w is w + (value - w[q]) * column, "
               "with entry q set to value. The new H⁻¹ is Hinv - np.outer(column, Hinv[q]), "
               "with row and column q set to 0.")),
    Exercise(
        name="calibrated.gptq", title="GPTQ, column by column", stars=3,
        kind="design",
        reference=gptq, cases=gptq_case,
        special=(
            ("U is diagonal: nothing is passed on, and it is round to nearest", diagonal),),
        mistakes=(
            ("nothing is passed on to later columns: this is round to nearest. Column j of U is "
             "zero below the diagonal, so take row j, and begin with the first column",
             gptq_variant(sign=0)),
            ("the errors have the wrong sign: subtract them", gptq_variant(sign=-1)),
            ("E is the error divided by U_jj", gptq_variant(divisor=one)),
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
               "Work on a copy V of W. For each j: round V[:, j] with quant, "
               "compute E from V[:, j] and the rounded column, and subtract "
               "np.outer(E, U[j, j+1:]) from V[:, j+1:].")),
    Exercise(
        name="calibrated.bug", title="Find the bug: worse than rounding", stars=2,
        kind="fault",
        avoids=("factor",),
        reference=mended_factor,
        cases=factor_case,
        special=(
            ("H is diagonal, so U is the diagonal of 1/√(H_jj + λ)",
             lambda rng: (np.diag([1.0, 3.0, 8.0]), 0.25)),
            ("fewer tokens than inputs: without damping H has no inverse", few_tokens)),
        mistakes=(
            ("UᵀU is H; it should be the inverse of H", factor_variant(np.linalg.cholesky)),
            ("this is lower triangular, L with L Lᵀ = H⁻¹: then nothing is passed on "
             "to later columns; U is Lᵀ",
             factor_variant(upper=False)),
            ("this is Lᵀ of the inverse of H's own factor: U Uᵀ would be H⁻¹, and UᵀU should "
             "be it; factor the inverse",
             factor_variant(inverse_of_factor)),
            ("UᵀU is right, but this is lower triangular, the inverse of H's own factor; factor "
             "the inverse of H, and transpose",
             factor_variant(inverse_of_factor, upper=False)),
            ("the same λ is added to the whole diagonal; yours adds a share of each entry",
             factor_variant(added=lambda H, damping: np.diag(damping * H.diagonal()))),
            ("damping belongs on the diagonal alone; you add it to every entry",
             factor_variant(added=everywhere)),
            *several("damping is in units of the mean of H's diagonal",
                     *(factor_variant(added=partial(damped_by, size))
                       for size in (lambda H: 1, np.trace, np.mean))),
            ("the damping is not added", factor_variant(added=lambda H, damping: 0)),
            ("UᵀU is H, and the damping is added to every entry: these are both "
             "faults of the code above",
             factor_variant(np.linalg.cholesky, added=everywhere))),
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
        name="calibrated.order", title="The heaviest columns first", stars=2,
        kind="design",
        reference=ordered, cases=ordered_case,
        special=(
            ("H is diagonal: in every order it is round to nearest", diagonal_case),
            ("one row, with a damping of 1", one_row)),
        mistakes=(
            ("the columns come back in the new order; put each where it was: W_hat[:, order] = …",
             ordered_variant(undo=unpermuted)),
            ("indexing by `order` once more does not undo it; assign to W_hat[:, order]",
             ordered_variant(undo=lambda V, order: V[:, order])),
            ("the heaviest column comes first: sort by −diag H",
             ordered_variant(lambda H: -H.diagonal())),
            ("the weight of a column is its entry on the diagonal of H, not the "
             "length of its column of H",
             ordered_variant(partial(np.linalg.norm, axis=0))),
            ("the damping is an argument; yours is always 0.01",
             ordered_variant(damped=lambda damping: 0.01)),
            ("H is not damped before it is factored", ordered_variant(damped=lambda damping: 0)),
            ("H is still in the old order: permute its rows and its columns",
             ordered_variant(of_H=unpermuted)),
            ("permute H and factor it then; a permuted U is not triangular",
             ordered_variant(of_H=unpermuted, of_factor=permuted)),
            ("the columns of W must be in the same order as those of H",
             ordered_variant(of_W=False))),
        tolerance=1e-9,
        hints=("Which two arrays must be permuted before, and which one afterwards?",
               "order = np.argsort(-H.diagonal()) is (d,). H[order][:, order] is (d, d), "
               "W[:, order] is (d_out, d).",
               "U is the mended factor of H[order][:, order]. W_hat = np.empty_like(W); "
               "W_hat[:, order] = your GPTQ of W[:, order].")),
    Exercise(
        name="calibrated.awq", title="AWQ's search for a scale", stars=2,
        kind="formula",
        reference=awq, cases=awq_case,
        special=(
            ("α = 0 alone is round to nearest", alpha_of_zero),
            ("all inputs have the mean 1, so that no α does anything: the first one",
             equal_inputs)),
        mistakes=(
            ("the rounded matrix must be divided by s after it was scaled up before",
             awq_variant(lambda W, s, quant: quant(W * s) - W)),
            ("compare with W itself: divide the rounded matrix by s, and subtract W, not W s",
             awq_variant(lambda W, s, quant: quant(W * s) - W * s)),
            ("this is the place of the best α; return α itself", place_of_best),
            ("of equal losses, the first α is wanted; with <= the last one wins", last_of_equal),
            ("these are roots of the losses; the loss is tr(D H Dᵀ) itself", roots_of_losses),
            ("scale W before you round it", awq_variant(lambda W, s, quant: quant(W) / s - W)),
            ("s is s_X to the power α, so it grows with the inputs",
             awq_variant(scale=lambda m, a: m**-a)),
            ("s is s_X^α, not α s_X", awq_variant(scale=lambda m, a: np.maximum(m * a, 1e-4))),
            ("H is XXᵀ up to a factor: the loss is tr(D H Dᵀ), and not ‖DH‖²",
             awq_variant(loss=lambda D, H: np.sum((D @ H) * (D @ H)))),
            ("this is the error of the weights; the loss is the error of the outputs, with H",
             awq_variant(loss=lambda D, H: np.sum(D * D)))),
        hints=("W is multiplied by s before it is rounded. What must be done afterwards, so that "
               "it can be compared with W?",
               "s is (d_in,): one number for each column of W. D is (d_out, d_in). "
               "losses is (len(alphas),).",
               "For each α: s = mean_abs**alpha; D = quant(W * s) / s - W; the loss is "
               "np.sum((D @ H) * D). Return the α of the smallest loss, not its index.")),
)
