"""Lesson 07: what students write, wrong and right."""
import numpy as np

from tinypeft import Tensor


def forward(scale, base=True):
    def lora_forward(x, W, A, B, alpha):
        low = (x @ A.T) @ B.T * scale(alpha, A.shape[0])
        return x @ W.T + low if base else low
    return lora_forward


def dense(x, W, A, B, alpha):
    return x @ (W + (B @ A) * (alpha / A.shape[0])).T


def exchanged(x, W, A, B, alpha):
    """The survey's letters: A B."""
    return x @ W.T + x @ (A @ B).T * (alpha / A.shape[0])


def detached(x, W, A, B, alpha):
    return x @ W.T + Tensor(x.data @ A.data.T @ B.data.T * np.float32(alpha / A.shape[0]))


def backward(s=lambda alpha, r: alpha / r, frozen=True, low=True, order=(0, 1, 2), transposed=False):
    def lora_backward(x, W, A, B, alpha, dh):
        f = s(alpha, A.shape[0])
        dA, dB = f * np.einsum("no,or,ni->ri", dh, B, x), f * np.einsum("no,ni,ri->or", dh, x, A)
        dx = (dh @ W if frozen else 0) + (f * dh @ B @ A if low else 0)
        g = (dA.T if transposed else dA, dB, dx)
        return tuple(g[i] for i in order)
    return lora_backward


def by_projections(A1, A2, i, j):
    """tr(P₁ P₂) / min."""
    V1, V2 = (np.linalg.svd(A, full_matrices=False)[2][:n] for A, n in ((A1, i), (A2, j)))
    return np.trace(V1.T @ V1 @ V2.T @ V2) / min(i, j)


def rows(A1, A2, i, j):
    return np.sum((A1[:i] @ A2[:j].T) ** 2) / min(i, j)


def in_place(W, A, B, alpha):
    W += alpha / len(A) * B @ A
    return W


def spectral(power):
    def lora_overlap(A1, A2, i, j):
        V1, V2 = np.linalg.svd(A1)[2][:i], np.linalg.svd(A2)[2][:j]
        return np.linalg.norm(V1 @ V2.T, 2) ** power / min(i, j)
    return lora_overlap


WRONG = {
    "lora.forward": [
        (forward(lambda a, r: a), "α/r, not α"), (forward(lambda a, r: a / r, base=False), "W₀ x is missing"),
        (forward(lambda a, r: a / r ** 0.5), "rank-stabilised"), (exchanged, "matmul"), (detached, "no gradient reaches"),
        (dense, "you formed B A"), (lambda x, W, A, B, alpha: forward(lambda a, r: a / B.shape[0])(x, W, A, B, alpha), "columns of B"),
        (lambda x, W, A, B, alpha: forward(lambda a, r: a / A.shape[1])(x, W, A, B, alpha), "rows of A"),
        (lambda *a: forward(lambda a, r: a / r)(*a).data, "expected a tinypeft.Tensor")],
    "lora.backward": [
        (backward(lambda a, r: 1.0), "missing in all three"), (backward(frozen=False), "frozen weight"), (backward(low=False), "through A and B"),
        (backward(order=(1, 0, 2)), "exchanged"), (backward(transposed=True), "transpose"),
        (backward(lambda a, r: a), "α/r, not α"), (lambda x, W, A, B, alpha, dh: backward()(x, W, A, B, alpha, dh)[:2], "3 results")],
    "lora.overlap": [
        (rows, "not orthonormal"), (lambda A1, A2, i, j: by_projections(A1, A2, i, j) * min(i, j), "missing"),
        (lambda A1, A2, i, j: np.sqrt(by_projections(A1, A2, i, j) * min(i, j)) / min(i, j), "squared"),
        (lambda A1, A2, i, j: by_projections(A1, A2, i, j) * min(i, j) / max(i, j), "max(i, j)"),
        (spectral(2), "spectral"), (spectral(1), "and squared"), (lambda A1, A2, i, j: by_projections(A1, A2, len(A1), len(A2)), "only the top i")],
    "lora.merge": [
        (lambda W, A, B, alpha: W + alpha * B @ A, "α/r, not α"), (in_place, "argument W"), (lambda W, A, B, alpha: alpha / len(A) * B @ A, "add W₀"),
        (lambda W, A, B, alpha: W + alpha / len(B) * B @ A, "columns of B"), (lambda W, A, B, alpha: W - alpha / len(A) * B @ A, "subtracted"),
        (lambda W, A, B, alpha: W + alpha / len(A) * A @ B, "must be transposed")],
}
RIGHT = {"lora.forward": [forward(lambda a, r: a / r), lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ (B * (alpha / A.shape[0])).T],
         "lora.backward": [backward(), lambda *a: list(backward()(*a)), lambda *a: [g.tolist() for g in backward()(*a)]],
         "lora.overlap": [by_projections, lambda *a: np.float32(by_projections(*a))],
         "lora.merge": [lambda W, A, B, alpha: W + (B * (alpha / A.shape[0])) @ A, lambda W, A, B, alpha: (W + alpha / len(A) * B @ A).tolist()]}
