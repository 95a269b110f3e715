"""Lesson 09: one training for every rank."""
import numpy as np

from ... import functional as F
from ...tensor import Tensor
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- dylora.truncate -------------------------------------------------------------------------------
def truncate(A, B, b, alpha):
    return alpha / b * B[:, :b] @ A[:b]


def _matrices(rng):
    R, d_in, d_out = rng.integers(4, 8), rng.integers(8, 11), rng.integers(11, 14)
    return rng.standard_normal((R, d_in)), rng.standard_normal((d_out, R)), int(rng.integers(2, R)), float(rng.uniform(3, 20))


# -- dylora.forward --------------------------------------------------------------------------------
def forward(x, W, A, B, b, alpha):
    m = alpha / b * (np.arange(A.shape[0]) < b)
    return F.linear(x, W) + F.linear(F.linear(x, A) * m.astype(x.dtype), B)


def _layer(rng, b=None):
    R, d_in, d_out = rng.integers(4, 7), rng.integers(7, 10), rng.integers(10, 13)
    t = lambda *shape: Tensor(rng.standard_normal(shape).astype(np.float32))
    b = int(rng.integers(2, R)) if b is None else R if b == "R" else b
    return t(2, 3, d_in), t(d_out, d_in), t(R, d_in), t(d_out, R), b, float(rng.uniform(3, 20))


# -- dylora.frozen_step ----------------------------------------------------------------------------
def frozen_step(A, B, dA, dB, b, lr):
    A, B = A.copy(), B.copy()
    A[b - 1] -= lr * dA[b - 1]
    B[:, b - 1] -= lr * dB[:, b - 1]
    return A, B


def _step(rng, b=None):
    A, B, drawn, _ = _matrices(rng)
    return A, B, rng.standard_normal(A.shape), rng.standard_normal(B.shape), b or drawn, float(rng.uniform(0.05, 0.5))


def _moved(rows, sign=-1):
    """A step that moves the rows and columns `rows(b)` of R."""
    def wrong(A, B, dA, dB, b, lr):
        mask = rows(np.arange(1, len(A) + 1), b)
        return A + sign * lr * dA * mask[:, None], B + sign * lr * dB * mask
    return wrong


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


EXERCISES = (
    Exercise(
        name="dylora.truncate", title="Truncation to a smaller rank", stars=1,
        reference=truncate, cases=_matrices,
        mistakes=(
            ("the scale at rank b is α/b, not α/R", lambda A, B, b, alpha: alpha / len(A) * B[:, :b] @ A[:b]),
            ("the scale α/b is missing", lambda A, B, b, alpha: B[:, :b] @ A[:b]),
            ("the scale is α/b, not α", lambda A, B, b, alpha: alpha * B[:, :b] @ A[:b]),
            ("you took the last b rows and columns; take the first",
             lambda A, B, b, alpha: alpha / b * B[:, -b:] @ A[-b:]),
            ("nothing is cut: all R rows are used", lambda A, B, b, alpha: alpha / b * B @ A),
            ("you took one row too many: A[:b] has b rows already",
             lambda A, B, b, alpha: alpha / b * B[:, :b + 1] @ A[:b + 1]),
            ("you took one row too few: A[:b] has b rows",
             lambda A, B, b, alpha: alpha / b * B[:, :b - 1] @ A[:b - 1])),
        hints=("Which rows of A and which columns of B belong to rank b? What is α divided by at rank b?",
               "The first b columns of B are (d_out, b), the first b rows of A (b, d_in). Their product is (d_out, d_in).",
               "alpha/b · B[:, :b] @ A[:b].")),
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
            ("the frozen part W₀ x is missing",
             lambda x, W, A, B, b, alpha: forward(x, W, A, B, b, alpha) - F.linear(x, W)),
            ("the scale belongs to the low-rank part alone, not to W₀ x",
             lambda x, W, A, B, b, alpha: (F.linear(x, W) + F.linear(F.linear(x, A[:b]), B[:, :b])) * (alpha / b))),
        hints=("How can the rows behind b have no effect, and no gradient?",
               "A x is (…, R). Either cut A to (b, d_in) and B to (d_out, b), or multiply A x by a mask (R,).",
               "low = F.linear(F.linear(x, A[:b]), B[:, :b]); then F.linear(x, W) + low * (alpha / b).")),
    Exercise(
        name="dylora.frozen_step", title="One step of the frozen version", stars=1,
        reference=frozen_step, cases=_step,
        special=(("b = 1: the first row and column", lambda rng: _step(rng, 1)),),
        mistakes=(
            ("rank b counted from 1 is row b − 1 of the array", _moved(lambda i, b: i == b + 1)),
            ("all b rows moved; in the frozen version only the b-th moves", _moved(lambda i, b: i <= b)),
            ("everything moved; only row b and column b may move", _moved(lambda i, b: i > 0)),
            ("gradient descent moves against the gradient: subtract", _moved(lambda i, b: i == b, 1)),
            ("the rate lr is missing", lambda A, B, dA, dB, b, lr: frozen_step(A, B, dA, dB, b, 1.0)),
            ("only A moved; column b of B must move too",
             lambda A, B, dA, dB, b, lr: (frozen_step(A, B, dA, dB, b, lr)[0], B)),
            ("you moved the b-th row of B; move its b-th column", lambda A, B, dA, dB, b, lr: (
                frozen_step(A, B, dA, dB, b, lr)[0], B - lr * dB * (np.arange(1, len(B) + 1) == b)[:, None]))),
        hints=("Which row of the array A is row b, if rows are counted from 1?",
               "A[b − 1] is (d_in,), B[:, b − 1] is (d_out,). Return two new arrays.",
               "Copy A and B. Subtract lr · dA[b − 1] from row b − 1 of A, and lr · dB[:, b − 1] from column b − 1 of B.")),
    Exercise(
        name="dylora.search", title="Search for the smallest sufficient rank", stars=1,
        reference=search, cases=_losses,
        special=(("no tolerance: the lowest loss", lambda rng: ({1: 3.0, 2: 2.5, 4: 2.4, 8: 2.45}, 0.0)),),
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
            ("this is the loss; return the rank", lambda losses, tolerance: losses[search(losses, tolerance)]),
            ("this is the loss; return the rank", lambda losses, tolerance: min(losses.values())),
            ("this is the first in the dict's order; take the smallest rank",
             lambda losses, tolerance: next(b for b, x in losses.items() if x <= min(losses.values()) + tolerance))),
        tolerance=0,
        hints=("What is the largest loss that is still good enough?",
               "losses is a dict rank → loss, in any order. The result is one of its keys.",
               "limit = min(losses.values()) + tolerance. Return the smallest b with losses[b] ≤ limit.")),
)
