"""Lesson 09: one training for every rank."""
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- dylora.forward --------------------------------------------------------------------------------
def forward(x, W, A, B, b, alpha):
    m = alpha / b * (np.arange(A.shape[0]) < b)
    return F.linear(x, W) + F.linear(F.linear(x, A) * m.astype(x.dtype), B)


def _masked(rows=lambda i, b, R: i < b, scale=lambda alpha, b, R: alpha / b,
            sign=1):
    """Make `forward` with a mistake: other rows, another scale, or the low-rank part subtracted."""
    def wrong(x, W, A, B, b, alpha):
        R = A.shape[0]
        m = sign * scale(alpha, b, R) * rows(np.arange(R), b, R)
        return F.linear(x, W) + F.linear(F.linear(x, A) * m.astype(x.dtype), B)
    return wrong


def _scales_both(x, W, A, B, b, alpha):
    return forward(x, W, A, B, b, b) * (alpha / b)


def _without_base(x, W, *low):
    return forward(x, W, *low) - F.linear(x, W)


def _layer(rng, b=None, full=False):
    R, d_in, d_out = rng.integers(4, 7), rng.integers(7, 10), rng.integers(10, 13)
    def draw(*shape):
        return Tensor(rng.standard_normal(shape).astype(np.float32))
    b = R if full else b or int(rng.integers(2, R))
    x, W = draw(2, 3, d_in), draw(d_out, d_in)
    A, B = draw(R, d_in), draw(d_out, R)
    return x, W, A, B, b, float(rng.uniform(3, 20))


# -- dylora.bug ------------------------------------------------------------------------------------
def bug(A, M, dA, b, beta, lr, frozen):
    i = np.arange(1, len(A) + 1)[:, None]
    rows = i == b if frozen else i <= b
    M = np.where(rows, beta * M + dA, M)
    return np.where(rows, A - lr * M, A), M


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


def _trained(i, b, frozen):
    return i == b if frozen else i <= b


def _moved(rows=_trained, outside=lambda M, new, dA: M, old=False, moved=None,
           move=lambda A, M, dA, lr: A - lr * M, momentum=lambda M, dA, beta: beta * M + dA):
    """Make `bug` with a mistake.

    rows: those that are trained. outside: M in the others. old: the rows move along the old M.
    moved: the rows of A that move, if they are not those of M.
    """
    def wrong(A, M, dA, b, beta, lr, frozen):
        i = np.arange(1, len(A) + 1)[:, None]
        new = momentum(M, dA, beta)
        new_M = np.where(rows(i, b, frozen), new, outside(M, new, dA))
        new_A = move(A, M if old else new_M, dA, lr)
        return np.where((moved or rows)(i, b, frozen), new_A, A), new_M
    return wrong


def _by_gradient(alone):
    """Train the rows whose gradient is not 0. alone: if frozen, row b is the only one of them."""
    def wrong(A, M, dA, b, beta, lr, frozen):
        here = (dA != 0).any(1, keepdims=True)
        if alone and frozen:
            here &= np.arange(1, len(A) + 1)[:, None] == b
        new_M = np.where(here, beta * M + dA, M)
        return np.where(here, A - lr * new_M, A), new_M
    return wrong


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


def _everywhere(A, M, dA, b, beta, lr, frozen):
    """Move all rows, as the code of the lesson does."""
    M = beta * M + dA
    return A - lr * M, M


# -- dylora.draw -----------------------------------------------------------------------------------
def draw(shares):
    t = np.array([*_in_order(shares), 0])
    return t[:-1] - t[1:]


def _in_order(shares):
    return [shares[row] for row in sorted(shares)]


def _as_found(shares):
    return -np.diff([*shares.values(), 0])


def _normed(p):
    return p / p.sum()


def _without_last(shares):
    p = draw(shares)
    p[-1] = 0
    return p


def _uniform(shares):
    return np.full(len(shares), 1 / len(shares))


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
    U, S, Vt = np.linalg.svd(B @ A, full_matrices=False)
    return Vt[:b], U[:, :b] * S[:b]


def _factors(rng):
    R = int(rng.integers(4, 7))
    d_in, d_out = rng.integers(8, 11), rng.integers(11, 14)
    A, B = rng.standard_normal((R, d_in)), rng.standard_normal((d_out, R))
    return A, B, int(rng.integers(2, R))


def _all(rng):
    A, B, _ = _factors(rng)
    return A, B, len(A)


def _last_is_large(rng):
    A, B = np.eye(2, 3), np.eye(4, 2)
    A[1], B[:, 1] = 5 * A[1], 2 * B[:, 1]
    return A, B, 1


def _product(factors):
    """Return B A, the rows of A and the columns of B: S may be split in any way."""
    A, B = (np.asarray(part) for part in factors)
    return B @ A, np.array([A.shape[0], B.shape[1]])


def _cut_variant(keep=slice, left=lambda S: S, right=np.ones_like, transposed=False,
                 rows_of_U=False):
    """Make `cut` with a mistake.

    keep: the places of the singular values that stay. left, right: what both factors get of S.
    transposed: V stands where Vᵀ belongs. rows_of_U: Uᵀ stands where U belongs.
    """
    def wrong(A, B, b):
        U, S, Vt = np.linalg.svd(B @ A, full_matrices=rows_of_U)
        k = keep(b)
        rows = Vt[:, k].T if transposed else Vt[k]
        columns = U[k].T if rows_of_U else U[:, k]
        return right(S[k])[:, None] * rows, columns * left(S[k])
    return wrong


def _cut_each(A, B, b):
    """Decompose A and B, and not their product."""
    U, S, _ = np.linalg.svd(B, full_matrices=False)
    _, R, Vt = np.linalg.svd(A, full_matrices=False)
    return R[:b, None] * Vt[:b], U[:, :b] * S[:b]


def _cut_A(A, B, b):
    """Decompose A alone."""
    Vt = np.linalg.svd(A, full_matrices=False)[2]
    return Vt[:b], B[:, :b]


def _scaled(A, B, b):
    A_b, B_b = cut(A, B, b)
    return A_b * len(A) / b, B_b


def _one_uncut(got, expected, args):
    wide = np.ndim(got) == 2 and np.shape(got)[1] == args[0].shape[1]
    return wide and np.shape(got) != np.shape(expected)


def _largest(A, B, b):
    sizes = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=0)
    k = np.argsort(-sizes)[:b]
    return A[k], B[:, k]


def _zeroed(A, B, b):
    U, S, Vt = np.linalg.svd(B @ A, full_matrices=False)
    return Vt, U * np.where(np.arange(len(S)) < b, S, 0)


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
        mistakes=(
            ("the scale at rank b is α/b, not α/R", _masked(scale=lambda alpha, b, R: alpha / R)),
            ("the scale α/b is missing", _masked(scale=lambda alpha, b, R: 1)),
            ("the scale is α/b, not α", _masked(scale=lambda alpha, b, R: alpha)),
            ("the scale is applied twice", _masked(scale=lambda alpha, b, R: (alpha / b) ** 2)),
            ("the scale is α/b, without a root",
             _masked(scale=lambda alpha, b, R: alpha / b ** 0.5)),
            ("the scale is α/b, and yours is b/α", _masked(scale=lambda alpha, b, R: b / alpha)),
            ("α/b need not be whole: divide with /, not with //",
             _masked(scale=lambda alpha, b, R: alpha // b)),
            ("the low-rank part is added, not subtracted", _masked(sign=-1)),
            ("nothing is masked: all R rows are used", _masked(lambda i, b, R: i < R)),
            ("one row too many is used: the index of a row must be below b, not at most b",
             _masked(lambda i, b, R: i <= b)),
            ("one row too few is used: [:b] takes b of them", _masked(lambda i, b, R: i < b - 1)),
            ("these are the last b rows; at rank b the first b are used",
             _masked(lambda i, b, R: i >= R - b)),
            ("these are the rows after row b; at rank b those up to row b are used",
             _masked(lambda i, b, R: i >= b)),
            ("two faults: one row too many is used, since the index of a row must be below b, and "
             "the scale is α/b, not α/R",
             _masked(lambda i, b, R: i <= b, lambda alpha, b, R: alpha / R)),
            ("row b alone is used; at rank b all rows up to b are",
             _masked(lambda i, b, R: i == b - 1)),
            ("the frozen part W₀ x is missing", _without_base),
            ("the scale belongs to the low-rank part alone, not to W₀ x", _scales_both)),
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
        mistakes=(
            ("the rows after row b still move, by their momentum M; only the rows "
             "that are trained may move",
             _everywhere),
            ("A is right, but M fades in the rows that are not trained; leave it as it was there",
             _moved(outside=lambda M, new, dA: new)),
            ("A is right, but M fades in the rows that are not trained; leave it as it was there",
             _moved(outside=lambda M, new, dA: new - dA)),
            ("which rows are trained follows from b and frozen; a row that is "
             "trained may have the gradient 0",
             _by_gradient(True)),
            ("which rows are trained follows from b and frozen; a row that is "
             "trained may have the gradient 0",
             _by_gradient(False)),
            ("the momentum M of the rows that are not trained is gone; leave it as it was there",
             _moved(outside=lambda M, new, dA: 0 * M)),
            ("rank b counted from 1 is row b − 1 of the array",
             _moved(lambda i, b, frozen: i == b + 1 if frozen else i <= b + 1)),
            ("rank b counted from 1 is row b − 1 of the array",
             _moved(lambda i, b, frozen: i == b + 1 if frozen else i <= b)),
            ("rank b counted from 1 is row b − 1 of the array",
             _moved(lambda i, b, frozen: i == b if frozen else i <= b + 1)),
            ("row b is left out; it is trained in a step at rank b",
             _moved(lambda i, b, frozen: i == b if frozen else i < b)),
            ("row b is left out; it is trained in a step at rank b",
             _moved(lambda i, b, frozen: i == b - 1 if frozen else i < b)),
            *several("row b is the last one that is trained, not the first",
                     _moved(lambda i, b, frozen: i >= b),
                     _moved(lambda i, b, frozen: i == b if frozen else i >= b)),
            ("the two versions are exchanged: frozen=True trains row b alone, "
             "frozen=False all rows up to b",
             _moved(lambda i, b, frozen: i <= b if frozen else i == b)),
            ("M is right, but A moves in the rows that are not trained, too",
             _moved(moved=lambda i, b, frozen: i > 0)),
            ("A is right; with frozen=True the momentum of the rows before row b stays, too",
             _moved(lambda i, b, frozen: i <= b, moved=_trained)),
            ("M is β M plus the whole gradient, without a factor 1 − β",
             _moved(momentum=lambda M, dA, beta: beta * M + (1 - beta) * dA)),
            ("M fades before the gradient is added: β M",
             _moved(momentum=lambda M, dA, beta: M + dA)),
            ("M is the gradient alone; it keeps β of what it was",
             _moved(momentum=lambda M, dA, beta: dA)),
            ("A moves by lr times M; lr is missing", _moved(move=lambda A, M, dA, lr: A - M)),
            ("A moves along the old M; update M first", _moved(old=True)),
            ("with frozen=True row b alone is trained", _moved(lambda i, b, frozen: i <= b)),
            ("with frozen=False all rows up to b are trained", _moved(lambda i, b, frozen: i == b)),
            ("the rows move along M, not along the gradient alone",
             _moved(move=lambda A, M, dA, lr: A - lr * dA)),
            ("gradient descent moves against the gradient: subtract",
             _moved(move=lambda A, M, dA, lr: A + lr * M))),
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
        mistakes=(
            ("row i takes part at every rank b ≥ i, so its share is a sum of probabilities; you "
             "returned the shares",
             lambda shares: np.array(_in_order(shares))),
            *several("row i takes part at every rank b ≥ i; you divided the shares by their sum",
                     lambda shares: _normed(np.array(_in_order(shares))),
                     lambda shares: _normed(np.array(list(shares.values())))),
            ("the rows stand in any order in the dict: sort them",
             _as_found),
            *several("the largest rank is missing: row R takes part at rank R alone",
                     _without_last,
                     lambda shares: draw(shares)[:-1]),
            ("rank 1 comes first", lambda shares: draw(shares)[::-1]),
            ("the share falls from row b to row b + 1 by p(b); you took the negative of it",
             lambda shares: -draw(shares)),
            ("p(b) belongs to the rows b and b + 1, not to b − 1 and b",
             lambda shares: np.roll(draw(shares), 1)),
            ("this is the uniform distribution; the shares decide", _uniform)),
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
        mistakes=(
            ("these are the first rows of A and columns of B; the nearest matrix of rank b needs "
             "the singular vectors of B A",
             lambda A, B, b: (A[:b], B[:, :b])),
            ("these are the smallest singular values; NumPy sorts them in falling "
             "order, so take the first b",
             _cut_variant(lambda b: slice(-b, None))),
            ("the singular values are missing", _cut_variant(left=lambda S: 1.0)),
            ("the singular values are counted twice: they belong into one factor, "
             "or their roots into both",
             _cut_variant(right=lambda S: S)),
            ("np.linalg.svd returns Vᵀ: its rows are the vectors", _cut_variant(transposed=True)),
            ("U has the vectors in its columns: U[:, :b]", _cut_variant(rows_of_U=True)),
            ("the root of the singular values is in one factor only; both need it, or "
             "one the values themselves",
             _cut_variant(left=np.sqrt)),
            *several("decompose the product B A; the singular vectors of A and of B "
                     "by themselves are others",
                     _cut_A, _cut_each),
            ("these are the largest rows of A and columns of B; the nearest matrix of rank b "
             "needs the singular vectors of B A",
             _largest),
            ("the product is right, but its factors are not cut: A_b has b "
             "rows and B_b has b columns",
             _zeroed),
            ("no scale is involved: B_b A_b itself should be near to B A", _scaled),
            ("nothing is cut", lambda A, B, b: (A, B)),
            ("nothing is cut", _cut_variant(lambda b: slice(None))),
            ("the largest singular value is left out: the first one has the index 0",
             _cut_variant(lambda b: slice(1, b + 1))),
            ("this is one singular value too few: [:b] takes b of them",
             _cut_variant(lambda b: slice(b - 1))),
            ("this is one singular value too many: [:b] takes b of them",
             _cut_variant(lambda b: slice(b + 1)))),
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
