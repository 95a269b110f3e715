"""Lesson 07: a low-rank change of a weight: forward, backward, its subspace, and merging."""
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- lora.forward ----------------------------------------------------------------------------------
def forward(x, W0, A, B, alpha):
    return F.linear(x, W0) + F.linear(F.linear(x, A), B) * (alpha / A.shape[0])


def _arrays(rng, dtype=np.float64):
    """x, W0, A, B with r, d_in, d_out and rows all different, and α."""
    r, d_in, d_out = rng.integers(3, 5), rng.integers(6, 9), rng.integers(9, 12)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
    return draw(5, d_in), draw(d_out, d_in), draw(r, d_in), draw(d_out, r), float(rng.uniform(5, 20))


def _tensors(rng, zero=False):
    x, W0, A, B, alpha = _arrays(rng, np.float32)
    if rng.integers(2): x = np.stack([x, 2 * x[::-1] + 1])                    # (B, T, d_in) in place of (N, d_in)
    return Tensor(x), Tensor(W0), Tensor(A), Tensor(B * (not zero)), alpha


def _vast(rng):
    """x so small, and A and B so large, that B A is infinite in float32, but W₀ x and B (A x) are not."""
    x, W0, A, B, alpha = _tensors(rng)
    return x * 1e-36, W0 * 1e37, A * 1e18, B * 1e22, alpha


def _scaled(scale, base=True, bend=lambda y: y):
    def wrong(x, W0, A, B, alpha):
        low = F.linear(bend(F.linear(x, A)), B) * scale(alpha, A.shape[0])
        return F.linear(x, W0) + low if base else low
    return wrong


# -- lora.backward ---------------------------------------------------------------------------------
def backward(x, W0, A, B, alpha, dh):
    """By the engine."""
    t = [Tensor(a, requires_grad=True) for a in (x, A, B)]
    forward(t[0], Tensor(W0), t[1], t[2], alpha).backward(dh)
    return t[1].grad, t[2].grad, t[0].grad


def _with_upstream(rng, zero=False):
    x, W0, A, B, alpha = _arrays(rng)
    return x, W0, A, B * (not zero), alpha, rng.standard_normal((len(x), len(W0)))


def _changed(part, change):
    """The gradients with one of them wrong: 0 is dA, 1 dB, 2 dx."""
    def wrong(x, W0, A, B, alpha, dh):
        gradients = list(backward(x, W0, A, B, alpha, dh))
        gradients[part] = change(gradients[part], x, W0, A, B, alpha / len(A), dh)
        return tuple(gradients)
    return wrong


# -- lora.overlap ----------------------------------------------------------------------------------
def overlap(M1, M2, i, j):
    V1, V2 = np.linalg.svd(M1)[2][:i], np.linalg.svd(M2)[2][:j]
    return np.sum((V1 @ V2.T) ** 2) / min(i, j)


def _two(rng):
    r, d = int(rng.integers(5, 7)), 12
    i = int(rng.integers(2, 4))
    M1 = rng.standard_normal((r, d)) * np.linspace(3, 1, r)[:, None]
    i, j = rng.permutation([i, rng.integers(i + 1, r)])
    return M1, 0.7 * M1 + 0.5 * rng.standard_normal((r, d)), int(i), int(j)


def _variant(vectors=lambda M, n: np.linalg.svd(M)[2][:n], finish=lambda M, i, j: (M ** 2).sum() / min(i, j)):
    return lambda M1, M2, i, j: finish(vectors(M1, i) @ vectors(M2, j).T, i, j)


# -- lora.merge ------------------------------------------------------------------------------------
def merge(W0, A, B, alpha):
    return W0 + alpha / len(A) * B @ A


def _weights(rng):
    _, W0, A, B, alpha = _arrays(rng)
    return W0, A, B, alpha


# -- lora.bug --------------------------------------------------------------------------------------
def bug(W_before, A_before, B_before, W_after, A_after, B_after):
    if not np.array_equal(W_before, W_after): return "base trained"
    if np.any(B_before @ A_before): return "start changed"
    if not (A_before.any() or B_before.any()): return "both zero"
    return "not trained" if np.array_equal(A_before, A_after) and np.array_equal(B_before, B_after) else "fine"


def _run(rng, fault=None, steps=20, zero="B", move=lambda W, noise: W + 0.01 * noise):
    """W, A and B before and after a training with one fault or with none. move: what training makes of the base."""
    _, W, A, B, _ = _arrays(rng, np.float32)
    W = np.round(64 * W) / 64                            # so that its sum is exact, in any order
    fault = fault or str(rng.choice(["fine", "base trained", "start changed", "both zero", "not trained"]))
    A0, B0 = A * (zero != "A"), B * (zero != "B")
    if fault == "start changed": B0 = B
    if fault == "both zero": A0, B0 = 0 * A, 0 * B
    noise = lambda a: rng.standard_normal(a.shape).astype(np.float32)
    moved = lambda a: a + np.float32(0.01) * noise(a)
    W1, A1, B1 = W.copy(), A0.copy(), B0.copy()
    if fault == "base trained": W1 = move(W, noise(W)).astype(np.float32)
    if fault in ("fine", "base trained", "start changed"):
        if steps > 1 or zero == "B": B1 = moved(B0)
        if steps > 1 or zero == "A": A1 = moved(A0)
    return W, A0, B0, W1, A1, B1


def _one_number(W, noise=None):
    """The last number moved, by the smallest step that float32 has."""
    W = W.copy()
    W.flat[-1] = np.nextafter(W.flat[-1], np.float32(np.inf))
    return W


def _last(W):
    """The last number alone, and zeros."""
    return np.where(np.arange(W.size).reshape(W.shape) == W.size - 1, W, np.float32(0))


def _paired(W):
    """The first row, in the second row the same with the other sign, and zeros: the sum is 0."""
    return np.concatenate([W[:1], -W[:1], 0 * W[2:]])


def _start(rng, A=lambda A: A, B=lambda B: 0 * B, after=_one_number):
    """W, A and B before and after a training that leaves the base alone. A, B: what the start makes of random numbers."""
    _, W, *random, _ = _arrays(rng, np.float32)
    A0, B0 = ((np.floor(8 * a) + 0.5) / 8 for a in random)       # not zero, and their sums are exact, in any order
    A0, B0 = A(A0), B(B0)
    return W, A0, B0, W, after(A0), after(B0)


def _exchanged(W, noise):
    """Two rows exchanged: the sum is as before."""
    return np.concatenate([W[1::-1], W[2:]])


def _last_row(W, noise):
    """The last row moved."""
    return np.concatenate([W[:-1], W[-1:] + 0.25])


def _asked(same=np.array_equal, start=lambda A, B: (B @ A).any(), zero=lambda A, B: not A.any() and not B.any(),
           still=lambda A, A1, B, B1: np.array_equal(A, A1) and np.array_equal(B, B1)):
    """The right diagnosis, but with other questions: is the base the same, is the start changed, are both zero, has neither
    moved?"""
    def wrong(W, A, B, W1, A1, B1):
        if not same(W, W1): return "base trained"
        if start(A, B): return "start changed"
        if zero(A, B): return "both zero"
        return "not trained" if still(A, A1, B, B1) else "fine"
    return wrong


def _told(**words):
    """The right diagnosis, with some of its words exchanged."""
    return lambda *run: words.get(bug(*run).replace(" ", "_"), bug(*run))


# -- lora.dora -------------------------------------------------------------------------------------
def dora(x, W0, A, B, alpha, m):
    V = W0 + (B @ A) * (alpha / A.shape[0])
    return F.linear(x, V * (m / (V * V).sum(axis=1).sqrt()).reshape(-1, 1))


def _with_magnitude(rng, start=False):
    x, W0, A, B, alpha = _tensors(rng, zero=start)
    lengths = np.sqrt((W0.data ** 2).sum(1))
    return x, W0, A, B, alpha, Tensor(lengths if start else lengths * rng.uniform(0.5, 2, len(lengths)).astype(np.float32))


def _constant(x, W0, A, B, alpha, m):
    V = W0 + (B @ A) * (alpha / A.shape[0])
    return F.linear(x, V * (m / Tensor(np.sqrt((V.data ** 2).sum(axis=1)))).reshape(-1, 1))


def _length(V):
    return (V * V).sum(axis=1, keepdims=True).sqrt()


def _normed(length=_length, scale=lambda alpha, r: alpha / r, of_base=False, magnitude=True, direction=True):
    def wrong(x, W0, A, B, alpha, m):
        V = W0 + (B @ A) * scale(alpha, A.shape[0])
        U = V / length(W0 if of_base else V) if direction else V
        return F.linear(x, U * m.reshape(-1, 1) if magnitude else U)
    return wrong


EXERCISES = (
    Exercise(
        name="lora.forward", title="The forward pass of LoRA", stars=1,
        reference=forward, cases=_tensors, gradient=("x", "A", "B"),
        special=(
            ("B = 0: the base, unchanged", partial(_tensors, zero=True)),
            ("A and B so large that B A is infinite, and B (A x) is not", _vast)),
        mistakes=(
            ("the scale is α/r, not α", _scaled(lambda alpha, r: alpha)),
            ("the scale α/r is missing", _scaled(lambda alpha, r: 1.0)),
            ("the scale is α/r, not r/α", _scaled(lambda alpha, r: r / alpha)),
            ("the scale is α/r; α/√r is the rank-stabilised one",
             _scaled(lambda alpha, r: alpha / r ** 0.5)),
            ("the scale is applied twice", _scaled(lambda alpha, r: (alpha / r) ** 2)),
            ("the scale is α/r, not 1/r", _scaled(lambda alpha, r: 1 / r)),
            ("the scale is α/r, a division with /; // cuts off what is behind the point",
             _scaled(lambda alpha, r: alpha // r)),
            ("you subtracted the low-rank part; add it", _scaled(lambda alpha, r: -alpha / r)),
            ("LoRA has no activation between A and B",
             _scaled(lambda alpha, r: alpha / r, bend=F.gelu)),
            ("LoRA has no activation between A and B",
             _scaled(lambda alpha, r: alpha / r, bend=Tensor.relu)),
            ("the frozen part W₀ x is missing", _scaled(lambda alpha, r: alpha / r, base=False)),
            ("the low-rank part B A x is missing", lambda x, W0, A, B, alpha: F.linear(x, W0)),
            ("the scale belongs to B A x alone, not to W₀ x",
             lambda x, W0, A, B, alpha: (F.linear(x, W0) + F.linear(F.linear(x, A), B)) * (alpha / A.shape[0])),
            ("r is the number of rows of A, not of its columns",
             lambda x, W0, A, B, alpha: F.linear(x, W0) + F.linear(F.linear(x, A), B) * (alpha / A.shape[1])),
            ("r is the number of columns of B, not of its rows",
             lambda x, W0, A, B, alpha: F.linear(x, W0) + F.linear(F.linear(x, A), B) * (alpha / B.shape[0]))),
        symptoms=(
            ("you formed B A, with d_out · d_in numbers: apply A to x "
             "first, and B to what comes out",
             lambda got, expected, args: not np.isfinite(got).all()),),
        hints=("Which product is small and should be taken first, B A or A x?",
               "F.linear(x, A) is (…, r). F.linear of that with B is (…, "
               "d_out), like F.linear(x, W0).",
               "low = F.linear(F.linear(x, A), B); then F.linear(x, W0) + "
               "low * (alpha / A.shape[0]).")),
    Exercise(
        name="lora.backward", title="The backward pass of LoRA", stars=2,
        reference=backward, cases=_with_upstream,
        invariants=(
            ("with B = 0, as at the start, dA is zero and dB is not",
             lambda fn, rng: (lambda g: not np.any(g[0]) and np.any(g[1]))(fn(*_with_upstream(rng, zero=True)))),),
        mistakes=(
            ("the scale s = α/r is missing in dA and dB",
             lambda x, W0, A, B, alpha, dh: (
(dh @ B).T @ x, dh.T @ (x @ A.T), dh @ W0 + alpha / len(A) * dh @ B @ A)),
            ("the scale s = α/r is missing in all three",
             lambda x, W0, A, B, alpha, dh: ((dh @ B).T @ x, dh.T @ (x @ A.T), dh @ W0 + dh @ B @ A)),
            ("the scale is α/r, not α",
             lambda x, W0, A, B, alpha, dh: (
alpha * (dh @ B).T @ x, alpha * dh.T @ (x @ A.T), dh @ W0 + alpha * dh @ B @ A)),
            *(("a gradient lacks the scale s = α/r: dA and dB both have it", _changed(part, lambda d, x, W0, A, B, s, dh: d / s))
              for part in (0, 1)),
            ("the scale s is applied twice",
             lambda x, W0, A, B, alpha, dh: backward(x, W0, A, B, alpha ** 2 / len(A), dh)),
            ("the scale is α/r, not r/α",
             lambda x, W0, A, B, alpha, dh: backward(x, W0, A, B, len(A) ** 2 / alpha, dh)),
            ("r is the number of rows of A, not of its columns",
             lambda x, W0, A, B, alpha, dh: backward(x, W0, A, B, alpha * len(A) / A.shape[1], dh)),
            ("the gradients are sums over the N inputs, not means: dH has any division already",
             lambda x, W0, A, B, alpha, dh: (
lambda dA, dB, dx: (dA / len(x), dB / len(x), dx))(*backward(x, W0, A, B, alpha, dh))),
            ("the scale s belongs to the path through A and B alone, not to dH W₀",
             _changed(2, lambda d, x, W0, A, B, s, dh: s * (dh @ W0 + dh @ B @ A))),
            ("dX is the sum of both paths; you subtracted one",
             _changed(2, lambda d, x, W0, A, B, s, dh: 2 * dh @ W0 - d)),
            ("dX lacks the path through the frozen weight, dH W₀",
             _changed(2, lambda d, x, W0, A, B, s, dh: d - dh @ W0)),
            ("dX lacks the path through A and B, s (dH B) A",
             _changed(2, lambda d, x, W0, A, B, s, dh: dh @ W0)),
            ("the low-rank part of dX lacks the scale s",
             _changed(2, lambda d, x, W0, A, B, s, dh: dh @ W0 + dh @ B @ A)),
            ("dA and dB are exchanged: return (dA, dB, dX)",
             lambda *args: (lambda g: (g[1], g[0], g[2]))(backward(*args))),
            ("the gradients are in the wrong order: return (dA, dB, dX)",
             lambda *args: (lambda g: (g[2], g[0], g[1]))(backward(*args)))),
        symptoms=(
            ("a gradient has the shape of its parameter: transpose it",
             lambda got, expected, arguments: np.shape(got) == np.shape(expected)[::-1] and np.shape(got) != np.shape(expected)),
            ("W₀ is frozen, so its gradient is not needed: return (dA, dB, dX)",
             lambda got, expected, arguments: isinstance(got, (tuple, list)) and len(got) == 4),
            ("the gradients are in the wrong order: return (dA, dB, dX)",
             lambda got, expected, arguments: np.shape(got) != np.shape(expected)
             and any(np.shape(got) == np.shape(arguments[i]) for i in (0, 2, 3))),
            ("a factor is missing: a gradient has the shape of its array, dA "
             "that of A and dB that of B",
             lambda got, expected, arguments: np.shape(got) != np.shape(expected))),
        tolerance=1e-7,
        hints=("h = W0 x + s B (A x). What stands to the left and to the right of A, "
               "and of B, in this product?",
               "dh is (N, d_out); x Aᵀ and dh B are (N, r). Each gradient has the shape of its "
               "array: A (r, d_in), B (d_out, r), x (N, d_in).",
               "s = alpha / len(A). dB = s * dh.T @ (x @ A.T). dA = s * (dh @ B).T @ x. dx is a "
               "sum: one term through W0, and s * dh @ B @ A.")),
    Exercise(
        name="lora.overlap", title="The overlap of two subspaces", stars=2,
        reference=overlap, cases=_two,
        special=(
            ("a space with itself: 1",
             lambda rng: (np.diag([3.0, 2.0, 1.0]), np.diag([3.0, 2.0, 1.0]), 2, 2)),
            ("orthogonal spaces: 0",
             lambda rng: (np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]]), np.array([[0, 0, 1.0, 0], [0, 0, 0, 2]]), 2, 2)),
            ("the smaller, the first, lies in the larger: 1",
             lambda rng: (np.diag([3.0, 2.0, 1.0]), np.diag([5.0, 4.0, 3.0]), 1, 3)),
            ("the smaller, the second, lies in the larger: 1",
             lambda rng: (np.diag([5.0, 4.0, 3.0]), np.diag([3.0, 2.0, 1.0]), 3, 1))),
        mistakes=(
            ("the numerator is the squared norm: sum the squares and take no root",
             _variant(finish=lambda M, i, j: np.linalg.norm(M) / min(i, j))),
            ("divide by min(i, j), not by max(i, j)",
             _variant(finish=lambda M, i, j: (M ** 2).sum() / max(i, j))),
            *(("divide by min(i, j), whichever of the two it is", _variant(finish=lambda M, i, j, which=which: (
                (M ** 2).sum() / (i, j)[which]))) for which in (0, 1)),
            ("sum the squares of all entries of V₁ V₂ᵀ, not the entries",
             _variant(finish=lambda M, i, j: M.sum() / min(i, j))),
            ("sum the squares of all entries of V₁ V₂ᵀ, not their sizes",
             _variant(finish=lambda M, i, j: abs(M).sum() / min(i, j))),
            ("φ is the quotient itself, without a root",
             _variant(finish=lambda M, i, j: np.sqrt((M ** 2).sum() / min(i, j)))),
            ("all entries of V₁ V₂ᵀ count, not those of its diagonal alone: the two bases "
             "need not have the same order",
             _variant(finish=lambda M, i, j: (np.diag(M) ** 2).sum() / min(i, j))),
            ("take the top i of the first matrix, and the top j of the second",
             lambda M1, M2, i, j: overlap(M1, M2, j, i)),
            *(("take the top i of the first matrix, and the top j of the second",
               lambda M1, M2, i, j, which=which: overlap(M1, M2, which(i, j), which(i, j)))
              for which in (min, max, lambda i, j: i, lambda i, j: j)),
            ("the vectors have length 1: do not multiply them by their singular values",
             _variant(lambda M, n: np.linalg.svd(M)[1][:n, None] * np.linalg.svd(M)[2][:n])),
            ("the first rows of M span another space than the top singular vectors do",
             _variant(lambda M, n: np.linalg.qr(M[:n].T)[0].T)),
            ("the division by min(i, j) is missing",
             _variant(finish=lambda M, i, j: (M ** 2).sum())),
            ("the norm of φ is Frobenius', the root of the sum of all squares; "
             "np.linalg.norm(M, 2) is the spectral norm",
             _variant(finish=lambda M, i, j: np.linalg.norm(M, 2) ** 2 / min(i, j))),
            ("the norm of φ is Frobenius', and squared; np.linalg.norm(M, 2) is the spectral norm",
             _variant(finish=lambda M, i, j: np.linalg.norm(M, 2) / min(i, j))),
            ("the division is by min(i, j), not i · j",
             _variant(finish=lambda M, i, j: (M ** 2).mean())),
            ("you took columns of Vᵀ; its rows are the right singular vectors",
             _variant(lambda M, n: np.linalg.svd(M)[2][:, :n].T)),
            ("you took the left singular vectors; the right ones are the rows of Vᵀ",
             _variant(lambda M, n: np.linalg.svd(M)[0][:, :n].T)),
            ("rows of a matrix neither have length 1 nor stand at right angles: take "
             "its singular vectors first",
             _variant(lambda M, n: M[:n])),
            ("you took the vectors of the smallest singular values; take the first ones",
             _variant(lambda M, n: np.linalg.svd(M, full_matrices=False)[2][-n:])),
            ("you used all singular vectors; use only the top i and j",
             lambda M1, M2, i, j: overlap(M1, M2, len(M1), len(M2)))),
        tolerance=1e-6,
        hints=("The rows of M1 span its space, but they are not orthonormal: they have "
               "other lengths than 1, and no right angles. Which vectors are "
               "orthonormal? When is φ equal to 1?",
               "V1 (i, d) and V2 (j, d) are the first rows of Vᵀ. V1 V2ᵀ is "
               "(i, j). φ is one number.",
               "np.linalg.svd(M)[2][:n] has the top n vectors as rows. Sum the squares of V1 V2ᵀ "
               "and divide by min(i, j).")),
    Exercise(
        name="lora.merge", title="Merging LoRA into the weight", stars=1,
        reference=merge, cases=_weights,
        mistakes=(
            ("the scale is α/r, not α", lambda W0, A, B, alpha: W0 + alpha * B @ A),
            ("the scale α/r is missing", lambda W0, A, B, alpha: W0 + B @ A),
            ("the scale is α/r, not r/α", lambda W0, A, B, alpha: W0 + len(A) / alpha * B @ A),
            ("the scale is α/r; α/√r is the rank-stabilised one",
             lambda W0, A, B, alpha: W0 + alpha / len(A) ** 0.5 * B @ A),
            ("the scale is α/r, not 1/r", lambda W0, A, B, alpha: W0 + 1 / len(A) * B @ A),
            ("the scale is applied twice",
             lambda W0, A, B, alpha: W0 + (alpha / len(A)) ** 2 * B @ A),
            ("the scale is α/r, a division with /; // cuts off what is behind the point",
             lambda W0, A, B, alpha: W0 + alpha // len(A) * B @ A),
            ("the scale belongs to B A alone, not to W₀",
             lambda W0, A, B, alpha: alpha / len(A) * (W0 + B @ A)),
            ("this is W₀ alone: its change B A is missing", lambda W0, A, B, alpha: W0.copy()),
            ("this is ΔW; add W₀", lambda W0, A, B, alpha: alpha / len(A) * B @ A),
            ("you subtracted the change; add it",
             lambda W0, A, B, alpha: W0 - alpha / len(A) * B @ A),
            ("r is the number of rows of A, not of its columns",
             lambda W0, A, B, alpha: W0 + alpha / A.shape[1] * B @ A),
            ("r is the number of columns of B, not of its rows",
             lambda W0, A, B, alpha: W0 + alpha / len(B) * B @ A)),
        errors=(
            ("matmul: ", "B is (d_out, r) and A is (r, d_in): their product is B A, not A B"),),
        tolerance=1e-9,
        hints=("Which single matrix gives the output of W0 and of the low-rank part together?",
               "B (d_out, r) times A (r, d_in) is (d_out, d_in), like W0.",
               "W0 + alpha / len(A) * B @ A. Write it as W0 + a change, not as W0 +=, "
               "which would change the base.")),
    Exercise(
        name="lora.bug", title="Find the bug: a LoRA that does not do what it should", stars=2,
        reference=bug, cases=_run,
        special=(
            ("nothing is wrong", partial(_run, fault="fine")),
            ("nothing is wrong, after one step: A has not moved yet",
             partial(_run, fault="fine", steps=1)),
            ("nothing is wrong: A started at zero, and B did not",
             partial(_run, fault="fine", zero="A")),
            ("nothing is wrong, after one step from A = 0: B has not moved yet",
             partial(_run, fault="fine", steps=1, zero="A")),
            ("nothing is wrong: one number of A and of B moved, by the "
             "smallest step that float32 has",
             _start),
            ("nothing is wrong: at the start A has a single number that is not zero",
             partial(_start, A=_last, after=lambda a: a + _last(np.ones_like(a)))),
            ("nothing is wrong: A and B moved, and their sums did not",
             partial(_start, A=_paired, after=lambda a: a[::-1] + _paired(np.ones_like(a)))),
            ("nothing is wrong: A and B are not zero, and B A is",
             partial(_start, A=lambda A: A * (np.arange(len(A)) == 0)[:, None], B=lambda B: B * (np.arange(B.shape[1]) > 0))),
            ("the base moved", partial(_run, fault="base trained")),
            ("the base moved by a millionth",
             partial(_run, fault="base trained", move=lambda W, noise: W + 1e-6 * noise)),
            ("one number of the base moved, by the smallest step that float32 has",
             partial(_run, fault="base trained", move=_one_number)),
            ("one row of the base moved", partial(_run, fault="base trained", move=_last_row)),
            ("the base moved, and its sum did not",
             partial(_run, fault="base trained", move=_exchanged)),
            ("B did not start at zero", partial(_run, fault="start changed")),
            ("one number of B did not start at zero", partial(_start, B=_last)),
            ("B started near zero", partial(_start, B=lambda B: np.float32(1e-9) * B)),
            ("B A is not zero at the start, but its sum is", partial(_start, B=_paired)),
            ("A and B started at zero", partial(_run, fault="both zero")),
            ("the optimizer has neither A nor B", partial(_run, fault="not trained"))),
        mistakes=(
            *(("a LoRA is fine after one step, when only one of its two matrices has moved: it is not trained if "
               "neither has", _asked(still=lambda A, A1, B, B1, of=of: of(np.array_equal(A, A1), np.array_equal(B, B1))))
              for of in (lambda a, b: a or b, lambda a, b: a, lambda a, b: b)),
            *(("the start is changed if B A is not zero; one of the two may be random", _asked(start=start))
              for start in (lambda A, B: B.any(), lambda A, B: B.all(), lambda A, B: A.any(), lambda A, B: A.any() or B.any())),
            ("the question is about the start: B_before @ A_before",
             lambda *run: (
"start changed" if np.array_equal(run[0], run[3]) and (run[5] @ run[4]).any() else bug(*run))),
            ("A and B may both differ from zero, and their product not: ask for B A",
             _asked(start=lambda A, B: A.any() and B.any())),
            *(("the start is changed if any number of B A is not zero at all; a tolerance overlooks a small one",
               _asked(start=start)) for start in (lambda A, B: not np.allclose(B @ A, 0), lambda A, B: abs(B @ A).max() > 1e-6)),
            *(("one number of B A that is not zero is enough: ask with .any()", _asked(start=start))
              for start in (lambda A, B: (B @ A).all(), lambda A, B: (B @ A)[0, 0] != 0, lambda A, B: A.all() and B.all())),
            *(("numbers with the sum 0 need not be zero: ask for any number of B A", _asked(start=start))
              for start in (lambda A, B: (B @ A).sum() != 0, lambda A, B: (B @ A).mean() != 0)),
            ("A and B are trained if any number has moved at all; a "
             "tolerance overlooks a small step",
             _asked(still=lambda A, A1, B, B1: np.allclose(A, A1) and np.allclose(B, B1))),
            *(("one number of A or B that has moved is enough: “not trained” means that none has", _asked(still=still))
              for still in (lambda A, A1, B, B1: (A == A1).any() and (B == B1).any(),
                            lambda A, A1, B, B1: A[0, 0] == A1[0, 0] and B[0, 0] == B1[0, 0])),
            ("two arrays with the same sum may differ: compare A and B number by number",
             _asked(still=lambda A, A1, B, B1: A.sum() == A1.sum() and B.sum() == B1.sum())),
            *(("an array is zero only if all of its numbers are: ask with not A.any(), and the same for B", _asked(zero=zero))
              for zero in (lambda A, B: not A.all() and not B.all(), lambda A, B: A[0, 0] == 0 and B[0, 0] == 0,
                           lambda A, B: A.sum() == 0 and B.sum() == 0)),
            ("one of the two may start at zero: “both zero” asks for both",
             _asked(zero=lambda A, B: not A.any() or not B.any())),
            *(("frozen means equal to the last bit; a tolerance, as np.allclose has one, overlooks a small step",
               _asked(lambda a, b, near=near: np.allclose(a, b, **near))) for near in ({}, {"rtol": 1e-4, "atol": 1e-5})),
            ("one number of the base that has moved is enough: ask with .any(), not with .all()",
             _asked(lambda a, b: not (a != b).all())),
            *(("two arrays with the same sum, length or largest number may differ: compare the base number by number",
               _asked(lambda a, b, of=of: of(a) == of(b))) for of in (np.sum, np.mean, np.linalg.norm, np.max)),
            ("you compared the base's first number only: any number may have moved",
             _asked(lambda a, b: a.flat[0] == b.flat[0])),
            ("if A and B both start at zero, nothing can move: say “both zero”, "
             "whatever the optimizer has",
             _told(both_zero="not trained")),
            ("“both zero” is about the start; A and B that do not move from "
             "another start are “not trained”",
             _told(not_trained="both zero")),
            ("W_before and W_after are the base's weight before and after: they must be equal",
             _told(base_trained="fine")),
            ("B A at the start must be zero", _told(start_changed="fine"))),
        symptoms=(
            ("return one of the five words, as they stand in the text",
             lambda got, expected, arguments: got not in ("base trained", "start changed", "both zero", "not trained", "fine")),),
        tolerance=0,
        hints=("Which of the six arrays must be equal in a sound LoRA? Which product "
               "must be zero at the start?",
               "np.array_equal(W_before, W_after) is one bool. B_before @ A_before is (d_out, "
               "d_in), and .any() tells whether a number of it is not zero.",
               "Ask in this order: W_before and W_after differ? (B_before @ A_before).any()? "
               "neither A_before.any() nor B_before.any()? A_before equals A_after and "
               "B_before equals B_after? Return the word of the first question that is "
               "answered by yes, else “fine”.")),
    Exercise(
        name="lora.dora", title="DoRA", stars=3,
        reference=dora, cases=_with_magnitude, gradient=("x", "A", "B", "m"),
        special=(
            ("B = 0 and m the lengths of W0's rows: the base, unchanged",
             partial(_with_magnitude, start=True)),),
        mistakes=(
            ("each row of W0 + s B A is divided by its own length; you divided the columns",
             _normed(lambda V: (V * V).sum(axis=0, keepdims=True).sqrt())),
            ("the length is that of the changed rows, W0 + s B A, not of W0's",
             _normed(of_base=True)),
            ("the length of a row is the root of the sum of its squares; the root is missing",
             _normed(lambda V: (V * V).sum(axis=1, keepdims=True))),
            ("the length of a row is the root of the sum of its squares, not of their mean",
             _normed(lambda V: (V * V).mean(axis=1, keepdims=True).sqrt())),
            ("the length of a row is the root of the sum of its squares, not the sum of its sizes",
             _normed(lambda V: (V * V).sqrt().sum(axis=1, keepdims=True))),
            ("each row has its own length: you divided by that of the whole matrix",
             _normed(lambda V: (V * V).sum().sqrt())),
            ("divide a row by its length, and multiply it by m; you did the opposite",
             lambda x, W0, A, B, alpha, m: (
lambda V: F.linear(x, V * _length(V) / m.reshape(-1, 1)))(W0 + (B @ A) * (alpha / A.shape[0]))),
            ("the rows of the weight are brought to the length m, not the outputs",
             lambda x, W0, A, B, alpha, m: (
lambda h: h / (h * h).sum(axis=-1, keepdims=True).sqrt() * m)(forward(x, W0, A, B, alpha))),
            ("the magnitude is the trained m, not the length of W0's rows",
             lambda x, W0, A, B, alpha, m: (
_normed()(x, W0, A, B, alpha, (W0 * W0).sum(axis=1).sqrt()))),
            ("the magnitude m is missing", _normed(magnitude=False)),
            ("the division by the lengths is missing", _normed(direction=False)),
            ("the scale α/r is missing in W0 + s B A", _normed(scale=lambda alpha, r: 1.0)),
            ("the scale is α/r, not α", _normed(scale=lambda alpha, r: alpha)),
            ("the scale is α/r, not r/α", _normed(scale=lambda alpha, r: r / alpha)),
            ("the scale is α/r; α/√r is the rank-stabilised one",
             _normed(scale=lambda alpha, r: alpha / r ** 0.5)),
            ("you took the rows' lengths as constants, which the paper allows to save memory: "
             "here gradients reach A and B through them as well",
             _constant)),
        hints=("The direction of a row has length 1. Of which matrix do you take the rows, and "
               "what are they divided by?",
               "V = W0 + s B A is (d_out, d_in). The lengths of its rows are (d_out,), like m. A "
               "column (d_out, 1) broadcasts over a row's numbers.",
               "V = W0 + (B @ A) * (alpha / A.shape[0]); length = (V * V).sum(axis=1).sqrt(); "
               "then F.linear(x, V * (m / length).reshape(-1, 1)).")),
)
