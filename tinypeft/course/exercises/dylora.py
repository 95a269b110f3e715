"""Lesson 09: one training for every rank."""
from functools import partial

import numpy as np

from ...engine import functional as F
from ..exercise import Exercise
from ..slips import inputs, slip, slips, which

__all__ = ["EXERCISES"]


# -- dylora.forward --------------------------------------------------------------------------------
def forward(x, W, A, B, b, alpha):
    R = A.shape[0]
    rows, s = np.arange(R) < b, alpha / b                         # (R,), a number
    if slip("the scale at rank b is α/b, not α/R"): s = alpha / R
    if slip("the scale α/b is missing"): s = 1
    if slip("the scale is α/b, not α"): s = alpha
    if slip("the scale is applied twice"): s = s * s
    if slip("the scale is α/b, without a root"): s = alpha / b ** 0.5
    if slip("the scale is α/b, and yours is b/α"): s = b / alpha
    if slip("α/b need not be whole: divide with /, not with //"): s = alpha // b
    if slip("the low-rank part is added, not subtracted"): s = -s
    if slip("nothing is masked: all R rows are used"): rows = np.ones(R)
    if slip("one row too many is used: the index of a row must be below b, not at most b"):
        rows = np.arange(R) <= b
    if slip("one row too few is used: [:b] takes b of them"): rows = np.arange(R) < b - 1
    if slip("these are the last b rows; at rank b the first b are used"):
        rows = np.arange(R) >= R - b
    if slip("these are the rows after row b; at rank b those up to row b are used"):
        rows = np.arange(R) >= b
    if slip("two faults: one row too many is used, since the index of a row must be below b, and "
            "the scale is α/b, not α/R"):
        rows, s = np.arange(R) <= b, alpha / R
    if slip("row b alone is used; at rank b all rows up to b are"): rows = np.arange(R) == b - 1
    low = F.linear(x, A) * (s * rows).astype(x.dtype)
    h, change = F.linear(x, W), F.linear(low, B)
    if slip("the frozen part W₀ x is missing"): h = 0
    if slip("the scale belongs to the low-rank part alone, not to W₀ x"): h = h * s
    return h + change


_float32 = inputs("x:N,T,i W:o,i A:R,i B:o,R alpha=3..20", np.float32, tensors=True,
                  N=2, T=3, R=(4, 7), i=(7, 10), o=(10, 13))


def _layer(rng, b=None, full=False):
    x, W, A, B, alpha = _float32(rng)
    R = A.shape[0]
    b = R if full else b or int(rng.integers(2, R))
    return x, W, A, B, b, alpha


# -- dylora.bug ------------------------------------------------------------------------------------
def bug(A, M, dA, b, beta, lr, frozen):
    i = np.arange(1, len(A) + 1)[:, None]
    rows = i == b if frozen else i <= b
    if slip("the rows after row b still move, by their momentum M; only the rows "
            "that are trained may move"):
        rows = i > 0
    match which("which rows are trained follows from b and frozen; a row that is "
                "trained may have the gradient 0", 2):
        case 1: rows = (dA != 0).any(1, keepdims=True) & (i == b if frozen else True)
        case 2: rows = (dA != 0).any(1, keepdims=True)
    match which("rank b counted from 1 is row b − 1 of the array", 3):
        case 1: rows = i == b + 1 if frozen else i <= b + 1
        case 2: rows = i == b + 1 if frozen else i <= b
        case 3: rows = i == b if frozen else i <= b + 1
    match which("row b is left out; it is trained in a step at rank b", 2):
        case 1: rows = i == b if frozen else i < b
        case 2: rows = i == b - 1 if frozen else i < b
    match which("row b is the last one that is trained, not the first", 2):
        case 1: rows = i >= b
        case 2: rows = i == b if frozen else i >= b
    if slip("the two versions are exchanged: frozen=True trains row b alone, "
            "frozen=False all rows up to b"):
        rows = i <= b if frozen else i == b
    if slip("with frozen=True row b alone is trained"): rows = i <= b
    if slip("with frozen=False all rows up to b are trained"): rows = i == b
    moment = beta * M + dA
    if slip("M is β M plus the whole gradient, without a factor 1 − β"):
        moment = beta * M + (1 - beta) * dA
    if slip("M fades before the gradient is added: β M"): moment = M + dA
    if slip("M is the gradient alone; it keeps β of what it was"): moment = dA
    new_M = np.where(rows, moment, M)
    match which("A is right, but M fades in the rows that are not trained; leave it as it was "
                "there", 2):
        case 1: new_M = moment
        case 2: new_M = np.where(rows, moment, beta * M)
    if slip("the momentum M of the rows that are not trained is gone; leave it as it was there"):
        new_M = np.where(rows, moment, 0)
    if slip("A is right; with frozen=True the momentum of the rows before row b stays, too"):
        new_M = np.where(i <= b, moment, M)
    new_A = np.where(rows, A - lr * new_M, A)
    if slip("M is right, but A moves in the rows that are not trained, too"): new_A = A - lr * new_M
    if slip("A moves by lr times M; lr is missing"): new_A = np.where(rows, A - new_M, A)
    if slip("A moves along the old M; update M first"): new_A = np.where(rows, A - lr * M, A)
    if slip("the rows move along M, not along the gradient alone"):
        new_A = np.where(rows, A - lr * dA, A)
    if slip("gradient descent moves against the gradient: subtract"):
        new_A = np.where(rows, A + lr * new_M, A)
    return new_A, new_M


def _step(rng, b=None, frozen=None):
    """Draw a step whose gradient is 0 in the rows after row b, as a DyLoRA's is; M is not."""
    R, d = rng.integers(4, 8), rng.integers(8, 11)
    b = int(rng.integers(2, R)) if b is None else b
    A, M, dA = rng.standard_normal((3, R, d))
    dA[b:] = 0
    beta, lr = float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.05, 0.5))
    frozen = bool(rng.integers(2)) if frozen is None else frozen
    return A, M, dA, b, beta, lr, frozen


def _no_momentum(rng):
    dA = np.array([[1.0, 2], [3, 4], [0, 0]])
    A = np.ones((3, 2))
    return A, 0 * A, dA, 2, 0.9, 0.1, False


def _no_gradient(rng):
    dA = np.array([[1.0, 2], [0, 0], [0, 0]])
    ones = np.ones((3, 2))
    return ones, ones, dA, 2, 0.5, 0.1, False


def _outside(got, args):
    """Compare the M that came back, in rows after row b: (it, what it was, β times that)."""
    _, M, _, b, beta, _, _ = args
    return got[b:], M[b:], beta * M[b:]


def _fades(got, expected, args):
    after, was, faded = _outside(got, args)
    return was.any() and np.allclose(after, faded)


def _gone(got, expected, args):
    after, was, _ = _outside(got, args)
    return was.any() and not after.any()


# -- dylora.draw -----------------------------------------------------------------------------------
def draw(shares):
    t = np.array([shares[row] for row in sorted(shares)] + [0])
    if slip("row i takes part at every rank b ≥ i, so its share is a sum of probabilities; you "
            "returned the shares"):
        return t[:-1]
    if slip("row i takes part at every rank b ≥ i; you divided the shares by their sum", 1):
        return t[:-1] / t.sum()
    if slip("the rows stand in any order in the dict: sort them"):
        t = np.array([*shares.values(), 0])
    if slip("row i takes part at every rank b ≥ i; you divided the shares by their sum", 2):
        return np.array(list(shares.values())) / t.sum()
    p = t[:-1] - t[1:]
    match which("the largest rank is missing: row R takes part at rank R alone", 2):
        case 1: p[-1] = 0
        case 2: p = p[:-1]
    if slip("rank 1 comes first"): p = p[::-1]
    if slip("the share falls from row b to row b + 1 by p(b); you took the negative of it"): p = -p
    if slip("p(b) belongs to the rows b and b + 1, not to b − 1 and b"): p = np.roll(p, 1)
    if slip("this is the uniform distribution; the shares decide"):
        p = np.full(len(shares), 1 / len(shares))
    return p


def _negative(got, expected, args):
    return bool((np.asarray(got) < 0).any())


def _not_one(got, expected, args):
    return not np.isclose(np.sum(got), 1)


def _shares(rng):
    """Draw p_B, and the shares of steps that follow; the rows stand in any order."""
    R = int(rng.integers(4, 8))
    p = rng.dirichlet(np.full(R, 2.0))
    shares = p[::-1].cumsum()[::-1]
    return ({int(i) + 1: float(shares[i]) for i in rng.permutation(R)},)


# -- dylora.cut ------------------------------------------------------------------------------------
def cut(A, B, b):
    if slip("these are the first rows of A and columns of B; the nearest matrix of rank b needs "
            "the singular vectors of B A"):
        return A[:b], B[:, :b]
    if slip("these are the largest rows of A and columns of B; the nearest matrix of rank b "
            "needs the singular vectors of B A"):
        k = np.argsort(-np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=0))[:b]
        return A[k], B[:, k]
    if slip("nothing is cut", 1): return A, B
    U, S, Vt = np.linalg.svd(B @ A, full_matrices=False)
    if slip("these are the smallest singular values; NumPy sorts them in falling "
            "order, so take the first b"):
        U, S, Vt = U[:, -b:], S[-b:], Vt[-b:]
    if slip("nothing is cut", 2): b = len(S)
    if slip("the largest singular value is left out: the first one has the index 0"):
        U, S, Vt = U[:, 1:], S[1:], Vt[1:]
    if slip("this is one singular value too few: [:b] takes b of them"): b = b - 1
    if slip("this is one singular value too many: [:b] takes b of them"): b = b + 1
    A_b, B_b = Vt[:b], U[:, :b] * S[:b]
    if slip("the singular values are missing"): B_b = U[:, :b]
    if slip("the singular values are counted twice: they belong into one factor, "
            "or their roots into both"):
        A_b = S[:b, None] * Vt[:b]
    if slip("np.linalg.svd returns Vᵀ: its rows are the vectors"): A_b = Vt[:, :b].T
    if slip("U has the vectors in its columns: U[:, :b]"):
        B_b = np.linalg.svd(B @ A)[0][:b].T * S[:b]
    if slip("the root of the singular values is in one factor only; both need it, or "
            "one the values themselves"):
        B_b = U[:, :b] * np.sqrt(S[:b])
    match which("decompose the product B A; the singular vectors of A and of B "
                "by themselves are others", 2):
        case 1: A_b, B_b = np.linalg.svd(A)[2][:b], B[:, :b]
        case 2:
            U, S, _ = np.linalg.svd(B, full_matrices=False)
            _, R, Vt = np.linalg.svd(A, full_matrices=False)
            A_b, B_b = R[:b, None] * Vt[:b], U[:, :b] * S[:b]
    if slip("the product is right, but its factors are not cut: A_b has b "
            "rows and B_b has b columns"):
        A_b, B_b = Vt, U * np.where(np.arange(len(S)) < b, S, 0)
    if slip("no scale is involved: B_b A_b itself should be near to B A"): A_b = A_b * len(A) / b
    return A_b, B_b


_whole = inputs("A:R,i B:o,R", R=(4, 7), i=(8, 11), o=(11, 14))


def _factors(rng):
    A, B = _whole(rng)
    return A, B, int(rng.integers(2, len(A)))


def _all(rng):
    A, B = _whole(rng)
    return A, B, len(A)


def _last_is_large(rng):
    A, B = np.eye(2, 3), np.eye(4, 2)
    A[1], B[:, 1] = 5 * A[1], 2 * B[:, 1]
    return A, B, 1


def _product(factors):
    """Return B A, the rows of A and the columns of B: S may be split in any way."""
    A, B = (np.asarray(part) for part in factors)
    return B @ A, np.array([A.shape[0], B.shape[1]])


def _one_uncut(got, expected, args):
    wide = np.ndim(got) == 2 and np.shape(got)[1] == args[0].shape[1]
    return wide and np.shape(got) != np.shape(expected)


def _wrong_order(got, expected, args):
    return np.shape(got) == (len(args[1]), args[2])


EXERCISES = (
    Exercise(
        name="dylora.forward", title="The forward pass at rank b", stars=1,
        kind="formula",
        reference=forward, cases=_layer, gradient=("x", "A", "B"),
        special=(
            ("b = 1", partial(_layer, b=1)),
            ("b = R: an ordinary LoRA", partial(_layer, full=True))),
        mistakes=slips(forward),
        hints=("How can the rows after row b have no effect, and no gradient?",
               "A x is (…, R). Either cut A to (b, d_in) and B to (d_out, b), or "
               "multiply A x by a mask (R,).",
               "F.linear(x, A[:b]) is (…, b). Which part of B fits it? Multiply by the "
               "scale of rank b, and add the frozen part F.linear(x, W).")),
    Exercise(
        name="dylora.bug", title="Find the bug: rows that move without a gradient", stars=2,
        kind="fault",
        reference=bug, cases=_step,
        special=(
            ("rank 1", partial(_step, b=1, frozen=False)),
            ("the frozen version: row b alone is trained", partial(_step, b=3, frozen=True)),
            ("no momentum yet: A moves by −lr times the gradient", _no_momentum),
            ("row 2 is trained, and its gradient happens to be 0: its M fades, and it moves",
             _no_gradient)),
        mistakes=slips(bug),
        symptoms=(
            ("M fades in the rows that are not trained; leave it as it was there", _fades),
            ("M is 0 now in the rows that are not trained; leave it as it was there", _gone)),
        tolerance=1e-9,
        hints=("In a row whose gradient is zero, what is M after the step? What does it do to A? "
               "Which row of the array is row b, if rows are counted from 1?",
               "A, M and dA are (R, d_in). Which rows are trained is a boolean array (R, "
               "1). Return two new arrays.",
               "i = np.arange(1, len(A) + 1)[:, None]; rows = (i == b) if frozen else "
               "(i <= b). Then M = np.where(rows, beta * M + dA, M), and A becomes A - "
               "lr * M in the same rows.")),
    Exercise(
        name="dylora.draw", title="A distribution for the rows", stars=2,
        kind="design",
        reference=draw, cases=_shares,
        special=(
            ("four rows that take part in all steps, in ½, in ¼ and in ¼ of them",
             lambda rng: ({1: 1.0, 2: 0.5, 3: 0.25, 4: 0.25},)),
            ("all rows take part in all steps: only the largest rank is drawn",
             lambda rng: ({2: 1.0, 1: 1.0, 3: 1.0},)),
            ("equal steps down: the uniform distribution",
             lambda rng: ({4: 0.25, 3: 0.5, 2: 0.75, 1: 1.0},))),
        invariants=(
            ("the probabilities of the ranks i … R add up to the share of row i",
             lambda fn, rng: np.allclose(fn({1: 1.0, 2: 0.4, 3: 0.1}), [0.6, 0.3, 0.1])),),
        mistakes=slips(draw),
        symptoms=(
            ("a probability cannot be negative", _negative),
            ("the probabilities must add up to 1", _not_one)),
        errors=(
            ("KeyError", "the rows are counted from 1, and after row R there is none"),),
        tolerance=1e-9,
        hints=("At which ranks does row i take part, and at which row i + 1? Which rank makes the "
               "difference?",
               "The result is (R,): the probabilities of the ranks 1 … R.",
               "t = [shares[i] for i in sorted(shares)] + [0]; p(b) is t[b − 1] − t[b].")),
    Exercise(
        name="dylora.cut", title="The cut by singular values", stars=2,
        kind="design",
        reference=cut, cases=_factors, normalize=_product,
        special=(
            ("b = R: nothing is lost", _all),
            ("only the last row of A and column of B are large, and b = 1", _last_is_large)),
        mistakes=slips(cut),
        symptoms=(
            ("cut both: A_b has as many rows as B_b has columns, b", _one_uncut),
            ("return A, which is (b, d_in), first", _wrong_order)),
        tolerance=1e-8,
        hints=("Which matrix of rank b is nearest to a given matrix, if its singular "
               "value decomposition is known?",
               "B @ A is (d_out, d_in). With full_matrices=False its U is (d_out, "
               "k), S (k,), Vᵀ (k, d_in).",
               "U, S, Vt = np.linalg.svd(B @ A, full_matrices=False). The new A is Vt[:b], the "
               "new B is U[:, :b] * S[:b].")),
)
