"""Lesson 09: what students write, wrong and right."""
import numpy as np

from tinypeft import Tensor
from tinypeft import functional as F


def sliced(scale, b_of=lambda b, R: b):
    def dylora_forward(x, W, A, B, b, alpha):
        R = A.shape[0]
        n = b_of(b, R)
        return x @ W.T + (x @ A[:n].T) @ B[:, :n].T * scale(alpha, b, R)
    return dylora_forward


def row_alone(x, W, A, B, b, alpha):
    return x @ W.T + (x @ A[b - 1:b].T) @ B[:, b - 1:b].T * (alpha / b)


def detached(x, W, A, B, b, alpha):
    return F.linear(x, W) + F.linear(F.linear(x, Tensor(A.data[:b])), Tensor(B.data[:, :b])) * (alpha / b)


def doubled(x, W, A, B, b, alpha):
    m = np.sqrt(A.shape[0] / b) * (np.arange(A.shape[0]) < b)
    return F.linear(x, W) + F.linear(F.linear(x, A) * m.astype(np.float32), B * m.astype(np.float32)) * (alpha / A.shape[0])


def step(trained=lambda b, frozen: slice(b - 1 if frozen else 0, b), sign=1, along="M"):
    """Only the rows in question, in copies."""
    def dylora_bug(A, M, dA, b, beta, lr, frozen):
        A, M, rows = A.copy(), M.copy(), trained(b, frozen)
        M[rows] = beta * M[rows] + dA[rows]
        A[rows] -= sign * lr * (M if along == "M" else dA)[rows]
        return A, M
    return dylora_bug


def momentum_everywhere(A, M, dA, b, beta, lr, frozen):
    M = beta * M + dA
    return A - lr * M, M


def fading(A, M, dA, b, beta, lr, frozen):
    M = beta * M + dA
    return np.where((np.arange(len(A)) < b)[:, None] & ((np.arange(len(A)) == b - 1)[:, None] | (not frozen)), A - lr * M, A), M


def decaying(A, M, dA, b, beta, lr, frozen):
    """The gradient is masked, M is not, and A is written where the rows are trained."""
    rows = np.zeros((len(A), 1), bool)
    rows[b - 1 if frozen else 0:b] = True
    M = beta * M + dA * rows
    return A - lr * M * rows, M


def by_gradient(A, M, dA, b, beta, lr, frozen):
    rows = (dA != 0).any(1)
    if frozen: rows[:b - 1] = False
    A, M = A.copy(), M.copy()
    M[rows] = beta * M[rows] + dA[rows]
    A[rows] -= lr * M[rows]
    return A, M


def late(A, M, dA, b, beta, lr, frozen):
    """A first, M afterwards."""
    A, M, rows = A.copy(), M.copy(), slice(b - 1 if frozen else 0, b)
    A[rows] -= lr * M[rows]
    M[rows] = beta * M[rows] + dA[rows]
    return A, M


def forgetting(A, M, dA, b, beta, lr, frozen):
    A, M = step()(A, M, dA, b, beta, lr, frozen)
    first = b - 1 if frozen else 0
    M[:first], M[b:] = 0, 0
    return A, M


def in_place(A, M, dA, b, beta, lr, frozen):
    A[:], M[:] = step()(A, M, dA, b, beta, lr, frozen)
    return A, M


def by_loop(A, M, dA, b, beta, lr, frozen):
    new_A, new_M = [list(row) for row in A], [list(row) for row in M]
    for i in range(b - 1 if frozen else 0, b):
        for j in range(A.shape[1]):
            new_M[i][j] = beta * M[i, j] + dA[i, j]
            new_A[i][j] -= lr * new_M[i][j]
    return new_A, new_M


def cut_by(k=lambda b: slice(b), left=lambda S: S, right=np.ones_like):
    def dylora_cut(A, B, b):
        U, S, Vt = np.linalg.svd(B @ A, full_matrices=False)
        keep = k(b)
        return right(S[keep])[:, None] * Vt[keep], U[:, keep] * left(S[keep])
    return dylora_cut


def cut_thin(A, B, b):
    """Without forming B A: QR of both factors, and the decomposition of an (R, R) matrix. Roots of S in both."""
    Q, T = np.linalg.qr(B)
    P, L = np.linalg.qr(A.T)
    U, S, Vt = np.linalg.svd(T @ L.T)
    root = np.sqrt(S[:b])
    return root[:, None] * (Vt[:b] @ P.T), Q @ U[:, :b] * root


def cut_of_v(A, B, b):
    U, S, V = np.linalg.svd(B @ A, full_matrices=False)
    return V[:, :b].T, U[:, :b] * S[:b]


def sorted_search(losses, tolerance):
    for b in sorted(losses):
        if losses[b] - min(losses.values()) <= tolerance: return b


def emptying(losses, tolerance):
    lowest, good = min(losses.values()), []
    while losses:
        b, loss = losses.popitem()
        if loss <= lowest + tolerance: good.append(b)
    return min(good)


WRONG = {
    "dylora.forward": [
        (sliced(lambda a, b, R: a / R), "not α/R"), (sliced(lambda a, b, R: a / b, lambda b, R: R), "nothing is masked"),
        (detached, "no gradient reaches A"), (sliced(lambda a, b, R: a), "not α"),
        (sliced(lambda a, b, R: a / b, lambda b, R: b + 1), "must be below b"),
        (row_alone, "row b alone is used"),
        (lambda x, W, A, B, b, alpha: sliced(lambda a, b, R: a / b)(x, W, A, B, b, alpha) - x @ W.T, "W₀ x is missing")],
    "dylora.bug": [
        (momentum_everywhere, "rows after row b still move"), (fading, "leave it as it was there"), (forgetting, "is gone"),
        (decaying, "A is right, but M fades"), (by_gradient, "may have the gradient 0"), (late, "the old M"),
        (step(lambda b, frozen: slice(b, b + 1) if frozen else slice(0, b)), "counted from 1"),
        (step(lambda b, frozen: slice(b - 1 if frozen else 0, b if frozen else b - 1)), "row b is left out"),
        (step(lambda b, frozen: slice(b if frozen else 0, b + 1)), "row b − 1"), (step(lambda b, frozen: slice(0, b)), "row b alone"),
        (step(lambda b, frozen: slice(b - 1, b)), "all rows up to b"), (step(along="dA"), "along M"), (step(sign=-1), "subtract"),
        (in_place, "argument A")],
    "dylora.search": [
        (lambda losses, tolerance: min(losses, key=losses.get), "within the tolerance"),
        (lambda losses, tolerance: max(b for b in losses if losses[b] <= min(losses.values()) + tolerance), "largest"),
        (lambda losses, tolerance: min(b for b in losses if losses[b] <= min(losses.values()) * (1 + tolerance)), "share"),
        (emptying, "argument losses"), (lambda losses, tolerance: min(losses.values()), "return the rank"),
        (lambda losses, tolerance: next(b for b in losses if losses[b] <= min(losses.values()) + tolerance), "dict's order"),
        (lambda losses, tolerance: min(b for b in losses if losses[b] <= losses[max(losses)] + tolerance), "the lowest of all"),
        (lambda losses, tolerance: next((b for b in sorted(losses) if losses[b] < min(losses.values()) + tolerance), None), "<=, not <"),
        (lambda losses, tolerance: min(b for b in losses if losses[b] < min(losses.values()) + tolerance), "<= and not <")],
    "dylora.cut": [
        (lambda A, B, b: (A[:b], B[:, :b]), "the first rows of A"), (cut_by(lambda b: slice(-b, None)), "smallest"),
        (cut_by(left=np.ones_like), "are missing"), (cut_by(right=lambda S: S), "counted twice"), (cut_of_v, "returns Vᵀ"),
        (lambda A, B, b: (A, B), "nothing is cut"), (cut_by(lambda b: slice(b + 1)), "one singular value too many"),
        (lambda *a: cut_thin(*a)[::-1], "return A, which is")],
}
RIGHT = {
    "dylora.forward": [sliced(lambda a, b, R: a / b), doubled],
    "dylora.bug": [step(), by_loop, lambda *a: list(step()(*a))],
    "dylora.search": [sorted_search, lambda *a: np.int64(sorted_search(*a))],
    "dylora.cut": [cut_by(), cut_thin, lambda *a: [part.tolist() for part in cut_thin(*a)]],
}
