"""Lesson 09: what students write, wrong and right."""
import numpy as np

from tinypeft import Tensor
from tinypeft import functional as F


def truncate(scale):
    return lambda A, B, b, alpha: scale(alpha, b, len(A)) * (B[:, :b] @ A[:b])


def sliced(scale, b_of=lambda b, R: b):
    def dylora_forward(x, W, A, B, b, alpha):
        R = A.shape[0]
        n = b_of(b, R)
        return x @ W.T + (x @ A[:n].T) @ B[:, :n].T * scale(alpha, b, R)
    return dylora_forward


def detached(x, W, A, B, b, alpha):
    return F.linear(x, W) + F.linear(F.linear(x, Tensor(A.data[:b])), Tensor(B.data[:, :b])) * (alpha / b)


def doubled(x, W, A, B, b, alpha):
    m = np.sqrt(A.shape[0] / b) * (np.arange(A.shape[0]) < b)
    return F.linear(x, W) + F.linear(F.linear(x, A) * m.astype(np.float32), B * m.astype(np.float32)) * (alpha / A.shape[0])


def step(index=lambda b: b - 1, whole=False):
    def dylora_frozen_step(A, B, dA, dB, b, lr):
        A, B, i = A.copy(), B.copy(), slice(0, b) if whole else index(b)
        A[i] -= lr * dA[i]
        B[:, i] -= lr * dB[:, i]
        return A, B
    return dylora_frozen_step


def in_place(A, B, dA, dB, b, lr):
    A[b - 1] -= lr * dA[b - 1]
    B[:, b - 1] -= lr * dB[:, b - 1]
    return A, B


def masked(A, B, dA, dB, b, lr):
    here = np.arange(1, len(A) + 1) == b
    return A - lr * here[:, None] * dA, B - lr * here * dB


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
    "dylora.truncate": [
        (truncate(lambda a, b, R: a / R), "not α/R"), (truncate(lambda a, b, R: 1.0), "missing"),
        (lambda A, B, b, alpha: alpha / b * B[:, -b:] @ A[-b:], "last b rows"), (lambda A, B, b, alpha: alpha / b * (B @ A), "nothing is cut"),
        (lambda A, B, b, alpha: alpha / b * B[:, :b + 1] @ A[:b + 1], "one row too many"),
        (lambda A, B, b, alpha: alpha / b * (B[:, :b] @ A[:b]).T, "it is transposed"), (lambda A, B, b, alpha: alpha / b * A[:b] @ B[:, :b], "must one of")],
    "dylora.forward": [
        (sliced(lambda a, b, R: a / R), "not α/R"), (sliced(lambda a, b, R: a / b, lambda b, R: R), "nothing is masked"),
        (detached, "no gradient reaches A"), (sliced(lambda a, b, R: a), "not α"),
        (sliced(lambda a, b, R: a / b, lambda b, R: b + 1), "must be below b"),
        (lambda x, W, A, B, b, alpha: sliced(lambda a, b, R: a / b)(x, W, A, B, b, alpha) - x @ W.T, "W₀ x is missing")],
    "dylora.frozen_step": [
        (step(lambda b: b), "row b − 1"), (step(whole=True), "only the b-th"), (in_place, "argument A"),
        (lambda A, B, dA, dB, b, lr: (masked(A, B, dA, dB, b, lr)[0], B.copy()), "column b of B"),
        (lambda A, B, dA, dB, b, lr: masked(A, B, dA, dB, b, -lr), "subtract"), (lambda A, B, dA, dB, b, lr: masked(A, B, dA, dB, b, 1), "rate lr")],
    "dylora.search": [
        (lambda losses, tolerance: min(losses, key=losses.get), "within the tolerance"),
        (lambda losses, tolerance: max(b for b in losses if losses[b] <= min(losses.values()) + tolerance), "largest"),
        (lambda losses, tolerance: min(b for b in losses if losses[b] <= min(losses.values()) * (1 + tolerance)), "share"),
        (emptying, "argument losses"), (lambda losses, tolerance: min(losses.values()), "return the rank"),
        (lambda losses, tolerance: next(b for b in losses if losses[b] <= min(losses.values()) + tolerance), "dict's order"),
        (lambda losses, tolerance: min(b for b in losses if losses[b] < min(losses.values()) + tolerance), "ValueError")],
}
RIGHT = {
    "dylora.truncate": [truncate(lambda a, b, R: a / b), lambda *a: truncate(lambda a, b, R: a / b)(*a).tolist()], "dylora.forward": [sliced(lambda a, b, R: a / b), doubled],
    "dylora.frozen_step": [masked, step(), lambda *a: list(step()(*a))],
    "dylora.search": [sorted_search, lambda *a: np.int64(sorted_search(*a))],
}
