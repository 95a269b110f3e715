"""Lesson 09: one training for every rank."""
import numpy as np

from ... import functional as F
from ...tensor import Tensor
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- dylora.forward --------------------------------------------------------------------------------
def forward(x, W, A, B, b, alpha):
    m = alpha / b * (np.arange(A.shape[0]) < b)
    return F.linear(x, W) + F.linear(F.linear(x, A) * m.astype(x.dtype), B)


def _layer(rng, b=None):
    R, d_in, d_out = rng.integers(4, 7), rng.integers(7, 10), rng.integers(10, 13)
    t = lambda *shape: Tensor(rng.standard_normal(shape).astype(np.float32))
    b = int(rng.integers(2, R)) if b is None else R if b == "R" else b
    return t(2, 3, d_in), t(d_out, d_in), t(R, d_in), t(d_out, R), b, float(rng.uniform(3, 20))


# -- dylora.bug ------------------------------------------------------------------------------------
def bug(A, M, dA, b, beta, lr, frozen):
    i = np.arange(1, len(A) + 1)[:, None]
    rows = i == b if frozen else i <= b
    M = np.where(rows, beta * M + dA, M)
    return np.where(rows, A - lr * M, A), M


def _step(rng, b=None, frozen=None):
    """The gradient is 0 in the rows after row b, as that of a DyLoRA is; M is not."""
    R, d = rng.integers(4, 8), rng.integers(8, 11)
    b = int(rng.integers(2, R)) if b is None else b
    A, M, dA = rng.standard_normal((3, R, d))
    dA[b:] = 0
    return A, M, dA, b, float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.05, 0.5)), bool(rng.integers(2)) if frozen is None else frozen


def _moved(rows=lambda i, b, frozen: (i == b if frozen else i <= b), outside=lambda M, new, dA: M, old=False,
           move=lambda A, M, dA, lr: A - lr * M):
    """bug with a mistake: other rows are trained, M changes outside them, or the rows move otherwise, or along the old M."""
    def wrong(A, M, dA, b, beta, lr, frozen):
        here = rows(np.arange(1, len(A) + 1)[:, None], b, frozen)
        new = beta * M + dA
        new_M = np.where(here, new, outside(M, new, dA))
        return np.where(here, move(A, M if old else new_M, dA, lr), A), new_M
    return wrong


def _by_gradient(alone):
    """The rows whose gradient is not 0; of these row b alone if frozen, or without a thought about that."""
    def wrong(A, M, dA, b, beta, lr, frozen):
        here = (dA != 0).any(1, keepdims=True)
        if alone and frozen: here &= np.arange(1, len(A) + 1)[:, None] == b
        new_M = np.where(here, beta * M + dA, M)
        return np.where(here, A - lr * new_M, A), new_M
    return wrong


def _everywhere(A, M, dA, b, beta, lr, frozen):
    """The code of the lesson."""
    M = beta * M + dA
    return A - lr * M, M


# -- dylora.search ---------------------------------------------------------------------------------
def search(losses, tolerance):
    lowest = min(losses.values())
    return min(b for b, loss in losses.items() if loss <= lowest + tolerance)


def _losses(rng):
    """A curve that falls, is flat, and rises a little, with its lowest point far to the right."""
    R = int(rng.integers(8, 14))
    curve = 3 + np.exp(-np.arange(R)) + 0.001 * rng.random(R)
    curve[R - 3] = 2.999
    ranks = rng.permutation(np.arange(1, R + 1))
    return {int(b): float(curve[b - 1]) for b in ranks}, float(rng.uniform(0.02, 0.08))


# -- dylora.cut ------------------------------------------------------------------------------------
def cut(A, B, b):
    U, S, Vt = np.linalg.svd(B @ A, full_matrices=False)
    return Vt[:b], U[:, :b] * S[:b]


def _factors(rng, b=None):
    R, d_in, d_out = int(rng.integers(4, 7)), rng.integers(8, 11), rng.integers(11, 14)
    return rng.standard_normal((R, d_in)), rng.standard_normal((d_out, R)), b or int(rng.integers(2, R))


def _all(rng):
    A, B, _ = _factors(rng)
    return A, B, len(A)


def _product(factors):
    """B A, and the numbers of rows of A and of columns of B: how the singular values are split is free."""
    A, B = (np.asarray(part) for part in factors)
    return B @ A, np.array([A.shape[0], B.shape[1]])


def _cut_variant(keep=lambda b: slice(b), left=lambda S: S, right=lambda S: 1.0 + 0 * S, transposed=False):
    """cut with a mistake: other singular vectors, S left out or counted twice, V where Vᵀ belongs."""
    def wrong(A, B, b):
        U, S, Vt = np.linalg.svd(B @ A, full_matrices=False)
        k = keep(b)
        rows = Vt[:, k].T if transposed else Vt[k]
        return right(S[k])[:, None] * rows, U[:, k] * left(S[k])
    return wrong


EXERCISES = (
    Exercise(
        name="dylora.forward", title="The forward pass at rank b", stars=1,
        reference=forward, cases=_layer, gradient=("x", "A", "B"),
        special=(
            ("b = 1", lambda rng: _layer(rng, 1)),
            ("b = R: an ordinary LoRA", lambda rng: _layer(rng, "R"))),
        mistakes=(
            ("the scale at rank b is α/b, not α/R",
             lambda x, W, A, B, b, alpha: forward(x, W, A, B, b, alpha * b / A.shape[0])),
            ("the scale α/b is missing", lambda x, W, A, B, b, alpha: forward(x, W, A, B, b, float(b))),
            ("the scale is α/b, not α", lambda x, W, A, B, b, alpha: forward(x, W, A, B, b, alpha * b)),
            ("the scale is applied twice", lambda x, W, A, B, b, alpha: forward(x, W, A, B, b, alpha * alpha / b)),
            ("nothing is masked: all R rows are used",
             lambda x, W, A, B, b, alpha: forward(x, W, A, B, A.shape[0], alpha * A.shape[0] / b)),
            ("one row too many is used: the index of a row must be below b, not at most b",
             lambda x, W, A, B, b, alpha: forward(x, W, A, B, b + 1, alpha * (b + 1) / b)),
            ("row b alone is used; at rank b all rows up to b are",
             lambda x, W, A, B, b, alpha: F.linear(x, W) + F.linear(F.linear(x, A[b - 1:b]), B[:, b - 1:b]) * (alpha / b)),
            ("the frozen part W₀ x is missing",
             lambda x, W, A, B, b, alpha: forward(x, W, A, B, b, alpha) - F.linear(x, W)),
            ("the scale belongs to the low-rank part alone, not to W₀ x",
             lambda x, W, A, B, b, alpha: (F.linear(x, W) + F.linear(F.linear(x, A[:b]), B[:, :b])) * (alpha / b))),
        hints=("How can the rows after row b have no effect, and no gradient?",
               "A x is (…, R). Either cut A to (b, d_in) and B to (d_out, b), or multiply A x by a mask (R,).",
               "low = F.linear(F.linear(x, A[:b]), B[:, :b]); then F.linear(x, W) + low * (alpha / b).")),
    Exercise(
        name="dylora.bug", title="Find the bug: rows that move without a gradient", stars=2,
        reference=bug, cases=_step,
        special=(
            ("rank 1", lambda rng: _step(rng, 1, False)),
            ("the frozen version: row b alone is trained", lambda rng: _step(rng, 3, True)),
            ("no momentum yet: A moves by −lr times the gradient",
             lambda rng: (np.ones((3, 2)), np.zeros((3, 2)), np.array([[1.0, 2], [3, 4], [0, 0]]), 2, 0.9, 0.1, False)),
            ("row 2 is trained, and its gradient happens to be 0: its M fades, and it moves",
             lambda rng: (np.ones((3, 2)), np.ones((3, 2)), np.array([[1.0, 2], [0, 0], [0, 0]]), 2, 0.5, 0.1, False))),
        mistakes=(
            ("the rows after row b still move, by their momentum M; only the rows that are trained may move", _everywhere),
            ("A is right, but M fades in the rows that are not trained; leave it as it was there",
             _moved(outside=lambda M, new, dA: new)),
            ("A is right, but M fades in the rows that are not trained; leave it as it was there",
             _moved(outside=lambda M, new, dA: new - dA)),
            ("which rows are trained follows from b and frozen; a row that is trained may have the gradient 0", _by_gradient(True)),
            ("which rows are trained follows from b and frozen; a row that is trained may have the gradient 0", _by_gradient(False)),
            ("the momentum M of the rows that are not trained is gone; leave it as it was there",
             _moved(outside=lambda M, new, dA: 0 * M)),
            ("rank b counted from 1 is row b − 1 of the array", _moved(lambda i, b, frozen: i == b + 1 if frozen else i <= b + 1)),
            ("rank b counted from 1 is row b − 1 of the array", _moved(lambda i, b, frozen: i == b + 1 if frozen else i <= b)),
            ("rank b counted from 1 is row b − 1 of the array", _moved(lambda i, b, frozen: i == b if frozen else i <= b + 1)),
            ("row b is left out; it is trained in a step at rank b", _moved(lambda i, b, frozen: i == b if frozen else i < b)),
            ("row b is left out; it is trained in a step at rank b", _moved(lambda i, b, frozen: i == b - 1 if frozen else i < b)),
            ("A moves along the old M; update M first", _moved(old=True)),
            ("with frozen=True row b alone is trained", _moved(lambda i, b, frozen: i <= b)),
            ("with frozen=False all rows up to b are trained", _moved(lambda i, b, frozen: i == b)),
            ("the rows move along M, not along the gradient alone", _moved(move=lambda A, M, dA, lr: A - lr * dA)),
            ("gradient descent moves against the gradient: subtract", _moved(move=lambda A, M, dA, lr: A + lr * M))),
        tolerance=1e-9,
        hints=("In a row whose gradient is zero, what is M after the step? What does it do to A? Which row of the array is "
               "row b, if rows are counted from 1?",
               "A, M and dA are (R, d_in). Which rows are trained is a boolean array (R, 1). Return two new arrays.",
               "i = np.arange(1, len(A) + 1)[:, None]; rows = (i == b) if frozen else (i <= b). M is β M + dA where rows is "
               "true, else as it was; A is A − lr·M there, else as it was. np.where does both.")),
    Exercise(
        name="dylora.search", title="Search for the smallest sufficient rank", stars=1,
        reference=search, cases=_losses,
        special=(("no tolerance: the lowest loss", lambda rng: ({1: 3.0, 2: 2.5, 4: 2.4, 8: 2.45}, 0.0)),
                 ("rank 2 is as good as rank 8, but the lowest loss is that of rank 4",
                  lambda rng: ({1: 3.0, 2: 2.43, 4: 2.4, 8: 2.45}, 0.01)),
                 ("rank 2 lies at the limit, 2.25 + 0.25", lambda rng: ({1: 3.0, 2: 2.5, 4: 2.25, 8: 2.3}, 0.25))),
        invariants=(
            ("of two equally good ranks, the smaller is chosen",
             lambda fn, rng: fn({8: 2.0, 4: 2.0, 2: 2.2}, 0.0) == 4),),
        mistakes=(
            ("this is the rank with the lowest loss; take a smaller rank if its loss is within the tolerance",
             lambda losses, tolerance: min(losses, key=losses.get)),
            ("this is the largest rank within the tolerance; take the smallest",
             lambda losses, tolerance: max(b for b, x in losses.items() if x <= min(losses.values()) + tolerance)),
            ("the tolerance is in nats above the lowest loss, not a share of it",
             lambda losses, tolerance: min(b for b, x in losses.items() if x <= min(losses.values()) * (1 + tolerance))),
            ("the lowest loss need not be that of the largest rank: take the lowest of all",
             lambda losses, tolerance: min(b for b, x in losses.items() if x <= losses[max(losses)] + tolerance)),
            ("a loss at the limit is within the tolerance: write <=, not <",
             lambda losses, tolerance: min((b for b, x in losses.items() if x < min(losses.values()) + tolerance), default=None)),
            ("this is the loss; return the rank", lambda losses, tolerance: losses[search(losses, tolerance)]),
            ("this is the loss; return the rank", lambda losses, tolerance: min(losses.values())),
            ("this is the first in the dict's order; take the smallest rank",
             lambda losses, tolerance: next(b for b, x in losses.items() if x <= min(losses.values()) + tolerance))),
        errors=(("empty", "no loss was found to be good enough: a loss at the limit is within the tolerance, <= and not <"),),
        tolerance=0,
        hints=("What is the largest loss that is still good enough?",
               "losses is a dict rank → loss, in any order. The result is one of its keys.",
               "limit = min(losses.values()) + tolerance. Return the smallest b with losses[b] ≤ limit.")),
    Exercise(
        name="dylora.cut", title="The cut by singular values", stars=2,
        reference=cut, cases=_factors, normalize=_product,
        special=(
            ("b = R: nothing is lost", _all),
            ("only the last row of A and column of B are large, and b = 1",
             lambda rng: (np.array([[1.0, 0, 0], [0, 5, 0]]), np.array([[1.0, 0], [0, 2], [0, 0], [0, 0]]), 1))),
        mistakes=(
            ("these are the first rows of A and columns of B; the nearest matrix of rank b needs the singular vectors of B A",
             lambda A, B, b: (A[:b], B[:, :b])),
            ("these are the smallest singular values; NumPy sorts them in falling order, so take the first b",
             _cut_variant(lambda b: slice(-b, None))),
            ("the singular values are missing", _cut_variant(left=lambda S: 1.0)),
            ("the singular values are counted twice: they belong into one factor, or their roots into both",
             _cut_variant(right=lambda S: S)),
            ("np.linalg.svd returns Vᵀ: its rows are the vectors", _cut_variant(transposed=True)),
            ("nothing is cut", lambda A, B, b: (A, B)),
            ("this is one singular value too many: [:b] takes b of them", _cut_variant(lambda b: slice(b + 1)))),
        symptoms=(
            ("return A, which is (b, d_in), first", lambda got, expected, arguments: np.shape(got) == (len(arguments[1]), arguments[2])),),
        tolerance=1e-8,
        hints=("Which matrix of rank b is nearest to a given matrix, if its singular value decomposition is known?",
               "B @ A is (d_out, d_in). With full_matrices=False its U is (d_out, k), S (k,), Vᵀ (k, d_in).",
               "U, S, Vt = np.linalg.svd(B @ A, full_matrices=False). The new A is Vt[:b], the new B is U[:, :b] * S[:b].")),
)
