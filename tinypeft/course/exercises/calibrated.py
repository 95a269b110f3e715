"""Lesson 12: rounding that looks at the inputs: OBQ's step, GPTQ and its factor, AWQ's search."""
from functools import partial

import numpy as np

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


# -- the strongest and the weakest direction -------------------------------------------------------
def directions(H):
    _, vectors = np.linalg.eigh(H)
    return vectors[:, -1].copy(), vectors[:, 0].copy()


def are_extreme(result, args):
    """Have both length 1, the first the largest v H vᵀ and the second the least?"""
    (H,) = args
    strong, weak = (np.asarray(v, float) for v in result)
    values = np.linalg.eigvalsh(H)
    costs = strong @ H @ strong, weak @ H @ weak
    same = np.allclose(costs, values[[-1, 0]], rtol=0, atol=1e-6 * values[-1])
    return bool(same and np.allclose([strong @ strong, weak @ weak], 1))


def other_directions(strong, weak, of=lambda H: H, rows=False):
    """Make `directions` with a mistake: other eigenvectors, or rows of their matrix."""
    def wrong(H):
        _, vectors = np.linalg.eigh(of(H))
        chosen = vectors if rows else vectors.T
        return chosen[strong].copy(), chosen[weak].copy()
    return wrong


def single_inputs(H):
    """Take the inputs with the largest and with the smallest entry on the diagonal."""
    axes = np.eye(len(H))
    return axes[H.diagonal().argmax()], axes[H.diagonal().argmin()]


def are_other_eigenvectors(got, expected, args):
    """Does H only stretch both directions?"""
    H, = args
    stretched = [H @ v for v in got]
    pairs = zip(got, stretched, strict=True)
    return all(v @ v > 0 and np.allclose(Hv, (v @ Hv) / (v @ v) * v) for v, Hv in pairs)


def are_single_inputs(got, expected, args):
    return all(np.count_nonzero(v) == 1 for v in got)


def right_but_for_length(got, expected, args):
    lengths = [np.linalg.norm(v) for v in got]
    if np.allclose(lengths, 1) or not all(lengths): return False
    return are_extreme([v / n for v, n in zip(got, lengths, strict=True)], args)


def not_of_length_one(got, expected, args):
    lengths = [np.linalg.norm(v) for v in got]
    return not np.allclose(lengths, 1)


def directions_case(rng):
    return (correlated(rng, int(rng.integers(5, 9))),)


def separate_inputs(rng):
    return (np.diag([3.0, 1, 4, 2]),)


def two_together(rng):
    return (np.array([[2.0, 1], [1, 2]]),)


def few_for_directions(rng):
    return (correlated(rng, 6, n=3),)


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


def H_unchanged(w, Hinv, q, value):
    return compensate(w, Hinv, q, value)[0], Hinv


def without_row_q(w, Hinv, q, value):
    new, M = compensate(w, Hinv, q, value)
    return new, np.delete(np.delete(M, q, 0), q, 1)


def change_of_w(got, args, divisor):
    """Is this w, moved by a column of H⁻¹ over `divisor`? The entry q may be anything."""
    w, Hinv, q, value = args
    expected = w + (value - w[q]) * Hinv[:, q] / divisor(Hinv[q, q])
    return np.shape(got) == w.shape and np.allclose(np.delete(got - expected, q), 0)


def undivided(got, expected, args):
    return change_of_w(got, args, one)


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


def gptq_in_order(W, H, quant, damping):
    return gptq(W, factor(H, damping), quant)


def sorted_by_W(W, H, quant, damping):
    order = np.argsort(-np.linalg.norm(W, axis=0), kind="stable")
    return undone(gptq(W[:, order], factor(permuted(H, order), damping), quant), order)


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


# -- scales of the inputs --------------------------------------------------------------------------
def by_rows(bits, W):
    """Round to nearest, one asymmetric grid per row."""
    u = Uniform(bits, symmetric=False)
    return u.fit(W).round(W)


def loss_of_scale(s, W, H, quant):
    D = quant(W * s) / s - W
    return np.vdot(D @ H, D)


POWERS = np.arange(20) / 20


def scale(W, H, mean_abs, quant):
    return by_power(W, H, mean_abs, quant)


def by_power(W, H, mean_abs, quant, powers=POWERS, pick=min, loss=loss_of_scale):
    """Take the power of mean_abs with the least loss; the options are for the mistakes."""
    scales = [mean_abs**power for power in powers]
    return pick(scales, key=lambda s: loss(s, W, H, quant))


def error_of_scaled_weights(s, W, H, quant):
    return loss_of_scale(s, W, np.eye(len(H)), quant)


def nearly_as_good(result, args):
    """Does s take off four fifths of what the search over POWERS takes off rounding's loss?"""
    W, H, mean_abs, quant = args
    s = np.asarray(result, float)
    if not (np.isfinite(s).all() and (s > 0).all()):
        return False
    return bool(gain(s, W, H, quant) >= 0.8 * gain(by_power(*args), W, H, quant))


def gain(s, W, H, quant):
    """What the scales take off the loss of rounding alone."""
    return loss_of_scale(np.ones(len(H)), W, H, quant) - loss_of_scale(s, W, H, quant)


def are_equal(got, expected, args):
    return np.ptp(got) == 0


def spares_the_weights(got, expected, args):
    """Have these scales about the least error of the weights?"""
    W, H, _, quant = args
    least = by_power(*args, loss=error_of_scaled_weights)
    error, bound = (error_of_scaled_weights(s, W, H, quant) for s in (np.asarray(got), least))
    return error <= 1.001 * bound


def follows_the_inputs(got, expected, args):
    """Do the scales grow with mean_abs, whatever the weights are?"""
    _, _, mean_abs, _ = args
    s = np.asarray(got)[mean_abs.argsort()]
    return s[-1] > s[0] and (np.diff(s) >= 0).all()


def sizes_of_weights(W, H, mean_abs, quant):
    return np.abs(W).mean(0)


def not_positive(got, expected, args):
    return not (np.asarray(got) > 0).all()


def layer(rng, weights):
    """Draw a layer two of whose inputs are large, as in lesson 11. The weights that meet these are
    `weights` times as large as the others. Scales help, and a search in steps of 0.1 finds them."""
    d = 24
    while True:
        X = rng.normal(0, 1, (d, 8 * d)) * np.exp(rng.normal(0, 0.3, (d, 1)))
        W, large = rng.normal(0, 1, (32, d)), rng.choice(d, 2, replace=False)
        X[large] *= rng.uniform(4, 12, (2, 1))
        W[:, large] *= weights
        H, mean_abs = 2 / X.shape[1] * X @ X.T, np.abs(X).mean(1)
        quant = partial(by_rows, int(rng.choice([3, 4])))
        best, coarse = (gain(by_power(W, H, mean_abs, quant, powers), W, H, quant)
                        for powers in (POWERS, POWERS[::2]))
        if coarse > 0.9 * best and best > 0.22 * loss_of_scale(np.ones(d), W, H, quant):
            return W, H, mean_abs, quant


def scale_case(rng):
    return layer(rng, float(rng.choice([0.1, 1, 2])))


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
        name="calibrated.directions", title="Where an error costs most, and least", stars=2,
        kind="design",
        reference=directions, cases=directions_case,
        goal=("both have length 1, no direction costs more than the first, and none less than "
              "the second", are_extreme),
        special=(
            ("H = [[2, 1], [1, 2]]: together, and one against the other", two_together),
            ("the inputs have nothing to do with each other: H is diagonal", separate_inputs),
            ("fewer tokens than inputs, so that some directions cost nothing",
             few_for_directions)),
        mistakes=(
            ("the two are exchanged: eigh sorts the eigenvalues in ascending order, so the last "
             "eigenvector is the strongest direction",
             other_directions(0, -1)),
            ("the eigenvectors are the columns of the matrix that eigh returns; these are rows",
             other_directions(-1, 0, rows=True)),
            ("the eigenvectors are the columns of the matrix that eigh returns; these are rows",
             other_directions(0, -1, rows=True)),
            ("these are single inputs; where inputs are correlated, a mixture of them costs more "
             "or less than any single one",
             single_inputs),
            ("this is the second weakest direction, or the second strongest",
             other_directions(-2, 0)),
            ("this is the second weakest direction, or the second strongest",
             other_directions(-1, 1)),
            ("both are strong: the second is the one along which an error costs least",
             other_directions(-1, -2)),
            ("both are the same direction", other_directions(-1, -1))),
        symptoms=(
            ("these are the right directions, but not of length 1: divide each by its norm",
             right_but_for_length),
            ("these are eigenvectors of H, and not those of its largest and its smallest "
             "eigenvalue: np.linalg.eig does not sort, np.linalg.eigh does",
             are_other_eigenvectors),
            ("these are single inputs; where inputs are correlated, a mixture of them costs more "
             "or less than any single one",
             are_single_inputs),
            ("a direction has length 1: divide it by its norm", not_of_length_one)),
        hints=("An error v of a row costs v H vᵀ. For which v of length 1 is that largest?",
               "np.linalg.eigh(H) returns the eigenvalues (d,), ascending, and the eigenvectors "
               "as the columns of a matrix (d, d).",
               "values, vectors = np.linalg.eigh(H). Return vectors[:, -1] and vectors[:, 0].")),
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
            *both_exact("the outer product must be divided by [H⁻¹]_qq; only the column that moves "
                        "w is",
                        of_H=one),
            *both_exact("this is δ, the change of w; return w + δ",
                        delta=True),
            ("this is δ, the change of w; return w + δ", delta_of_others),
            ("H⁻¹ needs an elimination step: subtract the outer product; it is not "
             "enough to clear row and column",
             compensate_variant(eliminate=False)),
            *several("weight q is fixed now: subtract the outer product of H⁻¹'s column and row q, "
                     "and set both to 0; the array stays (d, d)", H_unchanged, without_row_q),
            ("the other weights must move too", unmoved_others)),
        symptoms=(
            ("the column that moves w must be divided by its entry [H⁻¹]_qq, so that w_q moves by "
             "value − w_q and not by a part of it", undivided),),
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
                       for size in (lambda H: 1, np.trace, np.mean, np.max))),
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
            *several("H says which columns are heavy: sort them by its diagonal, the largest first",
                     gptq_in_order, sorted_by_W),
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
        name="calibrated.scale", title="Scales that protect what matters", stars=2,
        kind="design",
        reference=scale, cases=scale_case,
        goal=("of what a search over twenty scales takes off the loss of rounding, these take off "
              "four fifths", nearly_as_good),
        special=(
            ("the weights that meet large inputs are small", partial(layer, weights=0.1)),
            ("the weights that meet large inputs are the largest", partial(layer, weights=2))),
        mistakes=(
            ("s = 1 is rounding itself: nothing is scaled",
             lambda W, H, mean_abs, quant: np.ones_like(mean_abs)),
            ("so large a scale makes the scaled weights the largest of their rows, and the others "
             "pay: try smaller powers of mean_abs, and keep the best",
             lambda W, H, mean_abs, quant: mean_abs),
            ("so large a scale makes the scaled weights the largest of their rows, and the others "
             "pay: try smaller powers of mean_abs, and keep the best",
             lambda W, H, mean_abs, quant: mean_abs**2),
            ("the scales are upside down: a weight that meets a large input is scaled up, so s "
             "grows with mean_abs",
             lambda W, H, mean_abs, quant: 1 / mean_abs),
            ("the scales are upside down: a weight that meets a large input is scaled up, so s "
             "grows with mean_abs",
             lambda W, H, mean_abs, quant: mean_abs**-0.5),
            ("these are the sizes of the weights; which weights matter is seen from the inputs "
             "that they meet",
             sizes_of_weights),
            ("this is the worst of the powers; take the one with the least loss",
             partial(by_power, pick=max)),
            ("these scales have the least error of the weights; the loss is that of the outputs, "
             "with H",
             partial(by_power, loss=error_of_scaled_weights))),
        symptoms=(
            ("all scales must be positive: W is multiplied by them, and divided again",
             not_positive),
            ("s is the same for every input, so nothing is scaled, and this is rounding itself: "
             "compute the loss of the outputs, with H, for more powers of mean_abs, and return s "
             "(d_in,), not the power",
             are_equal),
            ("these scales make the error of the weights smaller; the loss is that of the outputs, "
             "with H", spares_the_weights),
            ("how far a column may be scaled before it stretches the step of its rows depends on "
             "the weights, so no fixed rule does: compute the loss, the sum of (D H) ⊙ D, of many "
             "scales, small and large ones, and keep the best", follows_the_inputs)),
        hints=("Which columns of W may not be rounded badly? What happens to a row's step if one "
               "of its columns is scaled up too much?",
               "s is (d_in,): one number for each column of W. D = quant(W * s) / s - W is "
               "(d_out, d_in), and its loss is np.sum((D @ H) * D).",
               "Try s = mean_abs**alpha for alpha = 0, 0.05 … 0.95, and return the s with the "
               "least loss.")),
)
