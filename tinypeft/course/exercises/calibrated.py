"""Lesson 12: rounding that looks at the inputs: OBQ's step, GPTQ and its factor, AWQ's search."""
from functools import partial

import numpy as np

from ...quant.uniform import Uniform
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


def correlated(rng, d, n=None):
    """Draw H = (2/n) X Xᵀ (d, d) of n inputs that are correlated and of different size."""
    X = rng.standard_normal((d, d)) @ rng.standard_normal((d, n or 4 * d))
    X *= rng.uniform(0.3, 3, (d, 1))
    return 2 / X.shape[1] * X @ X.T / d


# -- the strongest and the weakest direction -------------------------------------------------------
def directions(H):
    values, vectors = np.linalg.eigh(H)                           # ascending
    if slip("the two are exchanged: eigh sorts the eigenvalues in ascending order, so the last "
            "eigenvector is the strongest direction"):
        return vectors[:, 0], vectors[:, -1]
    match which("the eigenvectors are the columns of the matrix that eigh returns; these are rows",
                2):
        case 1: return vectors[-1], vectors[0]
        case 2: return vectors[0], vectors[-1]
    if slip("these are single inputs; where inputs are correlated, a mixture of them costs more "
            "or less than any single one"):
        axes = np.eye(len(H))
        return axes[H.diagonal().argmax()], axes[H.diagonal().argmin()]
    match which("this is the second weakest direction, or the second strongest", 2):
        case 1: return vectors[:, -2], vectors[:, 0]
        case 2: return vectors[:, -1], vectors[:, 1]
    if slip("both are strong: the second is the one along which an error costs least"):
        return vectors[:, -1], vectors[:, -2]
    if slip("both are the same direction"): return vectors[:, -1], vectors[:, -1]
    return vectors[:, -1], vectors[:, 0]


def are_extreme(result, args):
    """Have both length 1, the first the largest v H vᵀ and the second the least?"""
    (H,) = args
    strong, weak = (np.asarray(v, float) for v in result)
    values = np.linalg.eigvalsh(H)
    costs = strong @ H @ strong, weak @ H @ weak
    same = np.allclose(costs, values[[-1, 0]], rtol=0, atol=1e-6 * values[-1])
    return bool(same and np.allclose([strong @ strong, weak @ weak], 1))


def are_other_eigenvectors(got, expected, args):
    """Does H only stretch both directions?"""
    H, = args
    return all(v @ v > 0 and np.allclose(H @ v, (v @ H @ v) / (v @ v) * v) for v in got)


def are_single_inputs(got, expected, args):
    return all(np.count_nonzero(v) == 1 for v in got)


def right_but_for_length(got, expected, args):
    lengths = [np.linalg.norm(v) for v in got]
    if np.allclose(lengths, 1) or not all(lengths): return False
    return are_extreme([v / n for v, n in zip(got, lengths, strict=True)], args)


def not_of_length_one(got, expected, args):
    return not np.allclose([np.linalg.norm(v) for v in got], 1)


# -- one step of OBQ -------------------------------------------------------------------------------
def compensate(w, Hinv, q, value):
    column = Hinv[:, q] / Hinv[q, q]
    if slip("divide the column by its diagonal entry [H⁻¹]_qq", 1): column = Hinv[:, q]
    change = (value - w[q]) * column
    if slip("the sign of δ is wrong: w_q moves to value, so the factor is value − w_q", 1):
        change = -change
    if slip("all other weights that are free move, those before q as well"): change[:q] = 0
    if slip("the column that moves w must be divided by [H⁻¹]_qq; only the one that changes H⁻¹ "
            "is", 1):
        change = (value - w[q]) * Hinv[:, q]
    if slip("the other weights must move too"): change = 0
    new = w + change
    if slip("this is δ, the change of w; return w + δ", 1): new = change
    new[q] = value
    if slip("this is δ, the change of w; return w + δ", 2): new = change
    if slip("the sign of δ is wrong: w_q moves to value, so the factor is value − w_q", 2):
        new = w - change
    if slip("the column that moves w must be divided by [H⁻¹]_qq; only the one that changes H⁻¹ "
            "is", 2):
        new = w + (value - w[q]) * Hinv[:, q]
    if slip("divide the column by its diagonal entry [H⁻¹]_qq", 2):
        column = Hinv[:, q]
        new = w + (value - w[q]) * column
    if slip("weight q is fixed now: subtract the outer product of H⁻¹'s column and row q, and set "
            "both to 0; the array stays (d, d)", 1):
        return new, Hinv
    product = np.outer(column, Hinv[q])
    if slip("the outer product must be divided by [H⁻¹]_qq; only the column that moves w is"):
        product = np.outer(Hinv[:, q], Hinv[q])
    if slip("H⁻¹ needs an elimination step: subtract the outer product; it is not enough to clear "
            "row and column"):
        product = 0
    Hinv = Hinv - product
    Hinv[q] = Hinv[:, q] = 0
    if slip("weight q is fixed now: subtract the outer product of H⁻¹'s column and row q, and set "
            "both to 0; the array stays (d, d)", 2):
        Hinv = np.delete(np.delete(Hinv, q, 0), q, 1)
    return new, Hinv


def undivided(got, expected, args):
    """Is this w, moved by a column of H⁻¹ itself? The entry q may be anything."""
    w, Hinv, q, value = args
    expected = w + (value - w[q]) * Hinv[:, q]
    return np.shape(got) == w.shape and np.allclose(np.delete(got - expected, q), 0)


def two_weights(rng):
    H = np.array([[2.0, 1], [1, 2]])
    return np.array([0.4, 0.4]), np.linalg.inv(H), 0, 0.0


def compensate_case(rng):
    """Draw a step after another one, which has fixed weight 1."""
    d = int(rng.integers(5, 8))
    w, Hinv = compensate(rng.standard_normal(d), np.linalg.inv(correlated(rng, d)), 1, 0.25)
    q = int(rng.choice([0, 2, 3, 4]))
    return w, Hinv, q, float(halves(w[q]))


def _optimal(fn, rng):
    d = 6
    H, w = correlated(rng, d), rng.standard_normal(d)
    new, _ = fn(w, np.linalg.inv(H), 2, 0.0)
    # the slope of the quadratic form is zero in every free direction
    slope = np.abs((new - w) @ H)
    return np.delete(slope, 2).max() < 1e-8 * slope.max()


def _exact(fn, rng):
    """Are there exact zeros in H⁻¹, and exactly the value in w, in some steps?"""
    for _ in range(8):
        w, Hinv, q, value = compensate_case(rng)
        new, M = fn(w, Hinv, q, value)
        if new[q] != value or M[q].any() or M[:, q].any(): return False
    return True


# -- GPTQ ------------------------------------------------------------------------------------------
def gptq(W, U, quant):
    V, W_hat = W.copy(), np.empty_like(W)
    for j in range(W.shape[1]):
        W_hat[:, j] = quant(V[:, j])
        E = (V[:, j] - W_hat[:, j]) / U[j, j]
        if slip("E is the error divided by U_jj"): E = V[:, j] - W_hat[:, j]
        if slip("take the error of the column in its current state, not of the original W"):
            E = (W[:, j] - W_hat[:, j]) / U[j, j]
        change = np.outer(E, U[j, j + 1:])
        if slip("nothing is passed on to later columns: this is round to nearest. Column j of U is "
                "zero below the diagonal, so take row j, and begin with the first column"):
            change = 0
        if slip("the errors have the wrong sign: subtract them"): change = -change
        if slip("H⁻¹ changes when a column is fixed; row j of U belongs to the inverse of the free "
                "columns, row j of UᵀU does not"):
            Hinv = U.T @ U
            change = np.outer(V[:, j] - W_hat[:, j], Hinv[j, j + 1:] / Hinv[j, j])
        V[:, j + 1:] -= change
    if slip("this is the running W; return the rounded columns, Ŵ"): return V
    return W_hat


def halves(column):
    """Round to multiples of ½."""
    return np.rint(2 * column) / 2


def _last_alone(got, expected, args):
    """Are all columns right, except the last one?"""
    right = np.isclose(got, expected)
    return right[:, :-1].all() and not right[:, -1].all()


def gptq_case(rng):
    W, H, *_ = ordered_case(rng)
    return W, mended_factor(H, 0.01), halves


def diagonal(rng):
    return rng.standard_normal((3, 4)), np.diag([1.0, 2, 3, 4]), halves


# -- GPTQ's factor ---------------------------------------------------------------------------------
def mended_factor(H, damping):
    size = H.diagonal().mean()
    match which("damping is in units of the mean of H's diagonal", 4):
        case 1: size = 1
        case 2: size = np.trace(H)
        case 3: size = H.mean()
        case 4: size = H.max()
    added = damping * size * np.eye(len(H))
    if slip("the same λ is added to the whole diagonal; yours adds a share of each entry"):
        added = np.diag(damping * H.diagonal())
    if slip("damping belongs on the diagonal alone; you add it to every entry"):
        added = damping * size
    if slip("the damping is not added"): added = 0
    A = H + added
    if slip("UᵀU is H; it should be the inverse of H"): return np.linalg.cholesky(A).T
    if slip("UᵀU is H, and the damping is added to every entry: these are both faults of the code "
            "above"):
        return np.linalg.cholesky(H + damping * size).T
    if slip("this is lower triangular, L with L Lᵀ = H⁻¹: then nothing is passed on to later "
            "columns; U is Lᵀ"):
        return np.linalg.cholesky(np.linalg.inv(A))
    if slip("this is Lᵀ of the inverse of H's own factor: U Uᵀ would be H⁻¹, and UᵀU should be it; "
            "factor the inverse"):
        return np.linalg.inv(np.linalg.cholesky(A)).T
    if slip("UᵀU is right, but this is lower triangular, the inverse of H's own factor; factor the "
            "inverse of H, and transpose"):
        return np.linalg.inv(np.linalg.cholesky(A))
    return np.linalg.cholesky(np.linalg.inv(A)).T


def factor_case(rng):
    return correlated(rng, int(rng.integers(5, 9))), float(rng.choice([0.01, 0.05, 0.1]))


def _other_signs(got, expected, args):
    """Is it the right factor, with other signs of its rows?"""
    return np.allclose(np.sign(got.diagonal())[:, None] * got, expected)


# -- another order ---------------------------------------------------------------------------------
def ordered(W, H, quant, damping):
    order = np.argsort(-H.diagonal(), kind="stable")
    match which("H says which columns are heavy: sort them by its diagonal, the largest first", 2):
        case 1: order = np.arange(len(H))
        case 2: order = np.argsort(-np.linalg.norm(W, axis=0))
    if slip("the heaviest column comes first: sort by −diag H"): order = np.argsort(H.diagonal())
    if slip("the weight of a column is its entry on the diagonal of H, not the length of its "
            "column of H"):
        order = np.argsort(-np.linalg.norm(H, axis=0))
    if slip("the damping is an argument; yours is always 0.01"): damping = 0.01
    if slip("H is not damped before it is factored"): damping = 0
    W_hat = np.empty_like(W)
    U = mended_factor(H[order][:, order], damping)
    if slip("H is still in the old order: permute its rows and its columns"):
        U = mended_factor(H, damping)
    if slip("permute H and factor it then; a permuted U is not triangular"):
        U = mended_factor(H, damping)[order][:, order]
    rounded = gptq(W[:, order], U, quant)
    if slip("the columns of W must be in the same order as those of H"): rounded = gptq(W, U, quant)
    if slip("the columns come back in the new order; put each where it was: W_hat[:, order] = …"):
        return rounded
    if slip("indexing by `order` once more does not undo it; assign to W_hat[:, order]"):
        return rounded[:, order]
    W_hat[:, order] = rounded
    return W_hat


def diagonal_case(rng):
    return rng.standard_normal((3, 4)), np.diag([1.0, 4.0, 2.0, 3.0]), halves, 0.01


def one_row(rng):
    H = np.array([[2.0, 1.5, 1.2], [1.5, 3.0, 0.0], [1.2, 0.0, 2.2]])
    return np.array([[-0.25, 0.35, 0.2]]), H, halves, 1.0


def ordered_case(rng):
    H = correlated(rng, int(rng.integers(7, 10)))
    W = rng.standard_normal((int(rng.integers(3, 6)), len(H)))
    return W, H, halves, float(rng.choice([0.03, 0.2, 1.0]))


# -- scales of the inputs --------------------------------------------------------------------------
POWERS = np.arange(20) / 20


def scale(W, H, mean_abs, quant):
    if slip("s = 1 is rounding itself: nothing is scaled"): return np.ones_like(mean_abs)
    match which("so large a scale makes the scaled weights the largest of their rows, and the "
                "others pay: try smaller powers of mean_abs, and keep the best", 2):
        case 1: return mean_abs
        case 2: return mean_abs**2
    match which("the scales are upside down: a weight that meets a large input is scaled up, so s "
                "grows with mean_abs", 2):
        case 1: return 1 / mean_abs
        case 2: return mean_abs**-0.5
    if slip("these are the sizes of the weights; which weights matter is seen from the inputs that "
            "they meet"):
        return np.abs(W).mean(axis=0)
    if slip("these scales have the least error of the weights; the loss is that of the outputs, "
            "with H"):
        H = np.eye(len(H))
    scales = [mean_abs**alpha for alpha in POWERS]
    if slip("this is the worst of the powers; take the one with the least loss"):
        return max(scales, key=lambda s: loss(s, W, H, quant))
    return min(scales, key=lambda s: loss(s, W, H, quant))


def loss(s, W, H, quant):
    D = quant(W * s) / s - W
    return np.sum((D @ H) * D)


def gain(s, W, H, quant):
    """What the scales take off the loss of rounding alone."""
    return loss(np.ones(len(H)), W, H, quant) - loss(s, W, H, quant)


def nearly_as_good(result, args):
    """Does s take off four fifths of what the search over POWERS takes off rounding's loss?"""
    W, H, mean_abs, quant = args
    s = np.asarray(result, float)
    if not (np.isfinite(s).all() and (s > 0).all()): return False
    return bool(gain(s, W, H, quant) >= 0.8 * gain(scale(*args), W, H, quant))


def are_equal(got, expected, args):
    return np.ptp(got) == 0


def spares_the_weights(got, expected, args):
    """Have these scales about the least error of the weights?"""
    W, H, mean_abs, quant = args
    alike = np.eye(len(H))                                        # all inputs count alike
    least = loss(scale(W, alike, mean_abs, quant), W, alike, quant)
    return loss(np.asarray(got), W, alike, quant) <= 1.001 * least


def follows_the_inputs(got, expected, args):
    """Do the scales grow with mean_abs, whatever the weights are?"""
    _, _, mean_abs, _ = args
    s = np.asarray(got)[mean_abs.argsort()]
    return s[-1] > s[0] and (np.diff(s) >= 0).all()


def not_positive(got, expected, args):
    return not (np.asarray(got) > 0).all()


def by_rows(bits, W):
    """Round to nearest, one asymmetric grid per row."""
    u = Uniform(bits, symmetric=False)
    return u.fit(W).round(W)


def layer(rng, weights):
    """Draw a layer two of whose inputs are large, as in lesson 11. The weights that meet these are
    `weights` times as large as the others. Scales help, and a search in steps of 0.1 finds them."""
    d = 24
    while True:
        X = rng.standard_normal((d, 8 * d)) * np.exp(rng.normal(0, 0.3, (d, 1)))
        W, large = rng.standard_normal((32, d)), rng.choice(d, 2, replace=False)
        X[large] *= rng.uniform(4, 12, (2, 1))
        W[:, large] *= weights
        H, mean_abs = 2 / X.shape[1] * X @ X.T, np.abs(X).mean(axis=1)
        quant = partial(by_rows, int(rng.choice([3, 4])))
        gains = [gain(mean_abs**alpha, W, H, quant) for alpha in POWERS]
        best, coarse = max(gains), max(gains[::2])
        if coarse > 0.9 * best and best > 0.22 * loss(np.ones(d), W, H, quant):
            return W, H, mean_abs, quant


EXERCISES = (
    Exercise(
        name="calibrated.directions", title="Where an error costs most, and least", stars=2,
        kind="design",
        reference=directions, cases=lambda rng: (correlated(rng, int(rng.integers(5, 9))),),
        goal=("both have length 1, no direction costs more than the first, and none less than "
              "the second", are_extreme),
        special=(
            ("H = [[2, 1], [1, 2]]: together, and one against the other",
             lambda rng: (np.array([[2.0, 1], [1, 2]]),)),
            ("the inputs have nothing to do with each other: H is diagonal",
             lambda rng: (np.diag([3.0, 1, 4, 2]),)),
            ("fewer tokens than inputs, so that some directions cost nothing",
             lambda rng: (correlated(rng, 6, n=3),))),
        mistakes=slips(directions),
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
        mistakes=slips(compensate),
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
        mistakes=slips(gptq),
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
        reference=mended_factor, cases=factor_case,
        special=(
            ("H is diagonal, so U is the diagonal of 1/√(H_jj + λ)",
             lambda rng: (np.diag([1.0, 3.0, 8.0]), 0.25)),
            ("fewer tokens than inputs: without damping H has no inverse",
             lambda rng: (correlated(rng, 6, n=3), 0.1))),
        mistakes=slips(mended_factor),
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
        mistakes=slips(ordered),
        tolerance=1e-9,
        hints=("Which two arrays must be permuted before, and which one afterwards?",
               "order = np.argsort(-H.diagonal()) is (d,). H[order][:, order] is (d, d), "
               "W[:, order] is (d_out, d).",
               "U is the mended factor of H[order][:, order]. W_hat = np.empty_like(W); "
               "W_hat[:, order] = your GPTQ of W[:, order].")),
    Exercise(
        name="calibrated.scale", title="Scales that protect what matters", stars=2,
        kind="design",
        reference=scale, cases=lambda rng: layer(rng, float(rng.choice([0.1, 1, 2]))),
        goal=("of what a search over twenty scales takes off the loss of rounding, these take off "
              "four fifths", nearly_as_good),
        special=(
            ("the weights that meet large inputs are small", partial(layer, weights=0.1)),
            ("the weights that meet large inputs are the largest", partial(layer, weights=2))),
        mistakes=slips(scale),
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
