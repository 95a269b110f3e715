"""Lesson 09: what students write, wrong and right."""
import numpy as np

from tinypeft import Tensor
from tinypeft.engine import functional as F


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


def step(trained=lambda b, frozen: slice(b - 1 if frozen else 0, b), sign=1, along="M", fades=lambda beta: beta, new=lambda beta: 1,
         moved=None, speed=lambda lr: lr):
    """Only the rows in question, in copies. moved: the rows of A, if they are others than those of M."""
    def dylora_bug(A, M, dA, b, beta, lr, frozen):
        A, M, rows = A.copy(), M.copy(), trained(b, frozen)
        M[rows] = fades(beta) * M[rows] + new(beta) * dA[rows]
        if moved: rows = moved(b, frozen)
        A[rows] -= sign * speed(lr) * (M if along == "M" else dA)[rows]
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


def cut_rows_of_u(A, B, b):
    U, S, Vt = np.linalg.svd(B @ A)
    return Vt[:b], U[:b].T * S[:b]


def cut_each(A, B, b):
    return np.linalg.svd(A)[2][:b], B[:, :b]


def cut_by_size(A, B, b):
    k = np.argsort(np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=0))[::-1][:b]
    return A[k], B[:, k]


def cut_by_zeros(A, B, b):
    U, S, Vt = np.linalg.svd(B @ A, full_matrices=False)
    S[b:] = 0
    return Vt, U * S


def cut_of_v(A, B, b):
    U, S, V = np.linalg.svd(B @ A, full_matrices=False)
    return V[:, :b].T, U[:, :b] * S[:b]


def solved(shares):
    """By the triangular system Σ_{b ≥ i} p_b = t_i."""
    R = len(shares)
    return np.linalg.solve(np.triu(np.ones((R, R))), [shares[i] for i in range(1, R + 1)])


def by_loop_of_ranks(shares):
    return [shares[b] - shares.get(b + 1, 0) for b in range(1, len(shares) + 1)]


def emptying(shares):
    p = solved(shares)
    shares.clear()
    return p


def in_the_order_of_the_dict(shares):
    t = [*shares.values(), 0]
    return np.array([t[i] - t[i + 1] for i in range(len(shares))])


WRONG = {
    "dylora.forward": [
        (sliced(lambda a, b, R: a / R), "not α/R"),
        (sliced(lambda a, b, R: a / b, lambda b, R: R), "nothing is masked"),
        (detached, "no gradient reaches A"),
        (sliced(lambda a, b, R: a), "not α"),
        (sliced(lambda a, b, R: a / b, lambda b, R: b + 1), "must be below b"),
        (sliced(lambda a, b, R: a / R, lambda b, R: b + 1), "two faults: one row too many"),
        (row_alone, "row b alone is used"),
        (sliced(lambda a, b, R: a // b), "not with //"),
        (sliced(lambda a, b, R: b / a), "yours is b/α"),
        (sliced(lambda a, b, R: a / b ** 0.5), "without a root"),
        (sliced(lambda a, b, R: -a / b), "not subtracted"),
        (sliced(lambda a, b, R: a / b, lambda b, R: b - 1), "one row too few"),
        (lambda x, W, A, B, b, alpha: x @ W.T + (x @ A[-b:].T) @ B[:, -b:].T * (alpha / b), "the last b rows"),
        (lambda x, W, A, B, b, alpha: x @ W.T + (x @ A[b:].T) @ B[:, b:].T * (alpha / b),
         "rows after row b; at rank b"),
        (lambda x, W, A, B, b, alpha: sliced(lambda a, b, R: a / b)(x, W, A, B, b, alpha) - x @ W.T,
         "W₀ x is missing")],
    "dylora.bug": [
        (momentum_everywhere, "rows after row b still move"),
        (fading, "leave it as it was there"),
        (forgetting, "is gone"),
        (decaying, "A is right, but M fades"),
        (by_gradient, "may have the gradient 0"),
        (late, "the old M"),
        (step(lambda b, frozen: slice(b, b + 1) if frozen else slice(0, b)), "counted from 1"),
        (step(lambda b, frozen: slice(b - 1 if frozen else 0, b if frozen else b - 1)), "row b is left out"),
        (step(lambda b, frozen: slice(b if frozen else 0, b + 1)), "row b − 1"),
        (step(lambda b, frozen: slice(0, b)), "row b alone"),
        (step(lambda b, frozen: slice(b - 1, b)), "all rows up to b"),
        (step(along="dA"), "along M"),
        (step(sign=-1), "subtract"),
        (in_place, "argument A"),
        (lambda *a: step()(*a)[::-1], "results 1 and 2 are exchanged"),
        (step(lambda b, frozen: slice(b - 1, None)), "not the first"),
        (step(lambda b, frozen: slice(0 if frozen else b - 1, b)), "versions are exchanged"),
        (step(moved=lambda b, frozen: slice(None)), "M is right, but A moves"),
        (step(new=lambda beta: 1 - beta), "without a factor 1 − β"),
        (step(lambda b, frozen: slice(b), moved=lambda b, frozen: slice(b - 1 if frozen else 0, b)),
         "rows before row b stays"),
        (step(fades=lambda beta: 1), "M fades before"),
        (step(fades=lambda beta: 0), "M is the gradient alone"),
        (step(speed=lambda lr: 1), "lr is missing")],
    "dylora.draw": [
        (lambda shares: np.array([shares[i] for i in sorted(shares)]), "you returned the shares"),
        (lambda shares: np.array([shares[i] for i in sorted(shares)]) / sum(shares.values()), "by their sum"),
        (in_the_order_of_the_dict, "sort them"),
        (lambda shares: np.append(solved(shares)[:-1], 0), "largest rank is missing"),
        (lambda shares: solved(shares)[::-1], "rank 1 comes first"),
        (lambda shares: -solved(shares), "the negative of it"),
        (lambda shares: np.roll(solved(shares), 1), "b − 1 and b"),
        (lambda shares: np.ones(len(shares)) / len(shares), "uniform distribution"),
        (lambda shares: solved(shares)[:-1], "takes part at rank R alone"),
        (lambda shares: solved(shares)[None], "shape"),
        (lambda shares: 2 * solved(shares), "add up to 1"),
        (emptying, "argument shares")],
    "dylora.cut": [
        (lambda A, B, b: (A[:b], B[:, :b]), "the first rows of A"),
        (cut_by(lambda b: slice(-b, None)), "smallest"),
        (cut_by(left=np.ones_like), "are missing"),
        (cut_by(right=lambda S: S), "counted twice"),
        (cut_of_v, "returns Vᵀ"),
        (lambda A, B, b: (A, B), "nothing is cut"),
        (cut_by(lambda b: slice(b + 1)), "one singular value too many"),
        (lambda *a: cut_thin(*a)[::-1], "return A, which is"),
        (cut_rows_of_u, "U has the vectors in its columns"),
        (cut_by(left=np.sqrt), "in one factor only"),
        (cut_each, "decompose the product B A"),
        (cut_by_size, "the largest rows of A"),
        (cut_by_zeros, "its factors are not cut"),
        (cut_by(left=lambda S: 2 * S), "2 times the expected one"),
        (cut_by(lambda b: slice(1, b + 1)), "the first one has the index 0"),
        (cut_by(lambda b: slice(b - 1)), "one singular value too few"),
        (lambda A, B, b: (cut_by()(A, B, b)[0], B), "cut both"),
        (lambda A, B, b: (cut_by()(A, B, b)[0], cut_by()(A, B, b)[1] * len(A) / b), "no scale is involved")],
}
RIGHT = {
    "dylora.forward": [sliced(lambda a, b, R: a / b), doubled],
    "dylora.bug": [step(), by_loop, lambda *a: list(step()(*a))],
    "dylora.draw": [solved, by_loop_of_ranks],
    "dylora.cut": [cut_by(), cut_thin, lambda *a: [part.tolist() for part in cut_thin(*a)]],
}
