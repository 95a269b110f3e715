"""Solutions of lesson 13's exercises, right and wrong."""
import numpy as np
from scipy.special import ndtri


def levels_in_loops(delta, positive, negative):
    up = [ndtri(delta + (0.5 - delta) * k / positive) for k in range(positive)]
    down = [-ndtri(delta + (0.5 - delta) * k / negative) for k in range(negative)]
    return np.array(sorted([*up, 0.0, *down])) / ndtri(delta)


def code_by_midpoints(x, levels):
    s = max(x.max(), -x.min())
    return np.array([int(sum(v > (a + b) / 2 for a, b in zip(levels[:-1], levels[1:], strict=True))) for v in x / s]), s


def gradients_by_parts(x, codes, scales, levels, A, B, s, dy):
    d_out, G = scales.shape
    W = (levels[codes].reshape(d_out, G, -1) * scales[:, :, None]).reshape(codes.shape)
    M = W + s * B @ A                                                     # y = x Mᵀ
    dM = dy.T @ x
    return dy @ M, s * B.T @ dM, s * dM @ A.T


def alternate(W, quant, r, T):
    B, A = np.zeros((W.shape[0], r)), np.zeros((r, W.shape[1]))
    for _ in range(T):
        Q = quant(W - B @ A)
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
        root = np.diag(np.sqrt(S[:r]))
        B, A = U[:, :r] @ root, root @ Vt[:r]
    return Q, B, A


def by_eigenvectors(W, quant, r, T):
    """Right singular vectors from RᵀR: other signs than the SVD's."""
    BA = np.zeros_like(W)
    for _ in range(T):
        Q = quant(W - BA)
        R = W - Q
        V = np.linalg.eigh(R.T @ R)[1][:, ::-1][:, :r]
        s = np.sqrt(np.linalg.norm(R @ V, axis=0))
        B, A = R @ V / s, (V * s).T
        BA = B @ A
    return Q, B, A


def scaled_on_B(W, quant, r, alpha):
    """All of α/r on B."""
    Q, B, A = alternate(W, quant, r, 1)
    return Q, B * r / alpha, A


def scaled_on_singular_values(W, quant, r, alpha):
    Q = quant(W)
    U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
    root = np.sqrt(S[:r] * r / alpha)
    return Q, U[:, :r] * root, root[:, None] * Vt[:r]


def lloyd_in_loops(x, levels):
    new = np.array(levels)
    codes = [int(np.argmin([abs(v - c) for c in levels])) for v in x]
    for i in set(codes): new[i] = np.mean([v for v, q in zip(x, codes, strict=True) if q == i])
    return new


RIGHT = {"nf4.bug": [
        scaled_on_B,
        scaled_on_singular_values,
        lambda *a: [x.tolist() for x in scaled_on_B(*a)]],
         "nf4.lloyd": [lloyd_in_loops, lambda *a: lloyd_in_loops(*a).tolist()],
         "nf4.levels": [
        levels_in_loops,
        lambda *a: levels_in_loops(*a).astype(np.float32),
        lambda *a: levels_in_loops(*a).tolist()],
         "nf4.encode": [
        code_by_midpoints,
        lambda *a: (code_by_midpoints(*a)[0].astype(np.uint8), np.array(code_by_midpoints(*a)[1])),
        lambda *a: [code_by_midpoints(*a)[0].tolist(), code_by_midpoints(*a)[1]]],
         "nf4.backward": [gradients_by_parts, lambda *a: [g.tolist() for g in gradients_by_parts(*a)]],
         "nf4.loftq": [
        alternate,
        by_eigenvectors,
        lambda *a: (lambda Q, B, A: (Q, -B, -A))(*alternate(*a))]}


def levels_short(delta, positive, negative):
    up, down = ndtri(np.linspace(delta, 0.5, positive)), -ndtri(np.linspace(delta, 0.5, negative))
    values = np.sort(np.concatenate([up, [0.0], down]))
    return values / np.abs(values).max()


def levels_unscaled(delta, positive, negative):
    side = lambda n: ndtri(np.linspace(delta, 0.5, n + 1)[:-1])
    return np.sort(np.concatenate([side(positive), [0.0], -side(negative)]))


def levels_two_zeros(delta, positive, negative):
    up, down = ndtri(np.linspace(delta, 0.5, positive + 1)), -ndtri(np.linspace(delta, 0.5, negative + 1))
    values = np.sort(np.concatenate([up, down]))
    return values / np.abs(values).max()


def levels_swapped(delta, positive, negative):
    return -levels_in_loops(delta, positive, negative)[::-1]


def code_unscaled(x, levels):
    return np.abs(x[:, None] - levels).argmin(1), np.abs(x).max()


def code_below(x, levels):
    s = np.abs(x).max()
    return np.searchsorted(levels, x / s, side="right") - 1, s


def code_even(x, levels):
    s = np.abs(x).max()
    return np.rint((x / s + 1) * (len(levels) - 1) / 2).astype(int), s


def gradients_adapter_only(x, codes, scales, levels, A, B, s, dy):
    dyB = dy @ B
    return s * dyB @ A, s * dyB.T @ x, s * dy.T @ (x @ A.T)


def gradients_unscaled(x, codes, scales, levels, A, B, s, dy):
    W = levels[codes] * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
    return dy @ W + dy @ B @ A, (dy @ B).T @ x, dy.T @ (x @ A.T)


def gradients_tiled(x, codes, scales, levels, A, B, s, dy):
    W = levels[codes] * np.tile(scales, codes.shape[1] // scales.shape[1])
    return dy @ W + s * dy @ B @ A, s * (dy @ B).T @ x, s * dy.T @ (x @ A.T)


def gradients_transposed(x, codes, scales, levels, A, B, s, dy):
    dx, dA, dB = gradients_by_parts(x, codes, scales, levels, A, B, s, dy)
    return dx, dA.T, dB.T


def loftq_never_back(W, quant, r, T):
    for _ in range(T):
        Q = quant(W)
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
    return Q, U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]


def loftq_one_sided(W, quant, r, T):
    B, A = np.zeros((W.shape[0], r)), np.zeros((r, W.shape[1]))
    for _ in range(T):
        Q = quant(W - B @ A)
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
        B, A = U[:, :r] * S[:r], Vt[:r]
    return Q, B, A


def loftq_twice(W, quant, r, T):
    B, A = np.zeros((W.shape[0], r)), np.zeros((r, W.shape[1]))
    for _ in range(T):
        Q = quant(W - B @ A)
        U, S, Vt = np.linalg.svd(W - Q - B @ A, full_matrices=False)
        B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]
    return Q, B, A


def loftq_of(target, of):
    def nf4_loftq(W, quant, r, T):
        P = np.zeros_like(W)
        for _ in range(T):
            Q = quant(target(W, P))
            U, S, Vt = np.linalg.svd(of(W, Q), full_matrices=False)
            B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]
            P = B @ A
        return Q, B, A
    return nf4_loftq


def loftq_nearest(W, quant, r, T):
    """Of all rounds, the one that comes nearest to W."""
    rounds = [alternate(W, quant, r, t + 1) for t in range(T)]
    return rounds[int(np.argmin([np.linalg.norm(W - Q - B @ A) for Q, B, A in rounds]))]


def loftq_stale(W, quant, r, T):
    """Q of one round, and factors of the next."""
    Q, B, A = alternate(W, quant, r, T)
    return quant(W - B @ A), B, A


def scaled_by(of_B, of_A, of_Q=1):
    def nf4_bug(W, quant, r, alpha):
        Q, B, A = alternate(W, quant, r, 1)
        s = alpha / r
        return Q * s**(of_Q - 1), B * s**of_B, A * s**of_A
    return nf4_bug


def lloyd_of(centre, empty=lambda c: c, nearest=True):
    def nf4_lloyd(x, levels):
        q = np.abs(x[:, None] - levels).argmin(1) if nearest else np.maximum(np.searchsorted(levels, x, "right") - 1, 0)
        return np.array([centre(x[q == i]) if np.any(q == i) else empty(c) for i, c in enumerate(levels)])
    return nf4_lloyd


def lloyd_recoded(x, levels):
    new = list(levels)
    for i in range(len(new)):
        near = x[[int(np.argmin(np.abs(v - np.array(new)))) == i for v in x]]
        if len(near): new[i] = near.mean()
    return np.array(new)


def lloyd_nan(x, levels):
    q = np.abs(x[:, None] - levels).argmin(1)
    with np.errstate(all="ignore"): return np.bincount(q, x, len(levels)) / np.bincount(q, minlength=len(levels))


WRONG = {
    "nf4.bug": [
        (scaled_by(0, 0), "fault of the code above"),
        (scaled_by(0.5, 0.5), "you multiply by the scale"),
        (scaled_by(-1, -1), "its square"),
        (scaled_by(-0.5, -0.5, 0), "Q is not scaled"),
        (scaled_by(-0.5, 0), "not by its root"),
        (lambda W, quant, r, alpha: scaled_on_B(W, quant, r, alpha * r), "α/r, not α"),
        (lambda W, quant, r, alpha: (lambda Q, B, A: (Q * r / alpha, B, A))(*alternate(W, quant, r, 1)),
         "only the product"),
        (lambda W, quant, r, alpha: (lambda Q, B, A: (Q, B * r / alpha, A))(*alternate(W, quant, r, 5)),
         "keep the one round"),
        (lambda *a: scaled_on_B(*a)[1:], "3 results")],
    "nf4.lloyd": [
        (lloyd_of(np.mean, lambda c: 0.0), "stays as it is"),
        (lloyd_of(np.median), "median"),
        (lloyd_of(np.sum), "number of weights"),
        (lloyd_of(np.mean, nearest=False), "next one below"),
        (lambda x, levels: lloyd_of(lambda v: (v.min() + v.max()) / 2)(x, levels), "middle of their range"),
        (lloyd_nan, "the mean of no numbers"),
        (lloyd_recoded, "from the old levels")],
    "nf4.levels": [
        (levels_short, "n + 1 points"),
        (levels_unscaled, "largest magnitude of 1"),
        (levels_two_zeros, "0 is there twice"),
        (lambda d, p, n: (lambda v: v / np.abs(v).max())(ndtri(np.linspace(1 - d, d, p + n + 1))), "from 1 − δ to δ"),
        (levels_swapped, "exchanged"),
        (lambda *a: levels_in_loops(*a)[::-1], "must ascend"),
        (lambda d, p, n: np.sort(np.concatenate([np.linspace(0, 1, p + 1), np.linspace(-1, 0, n + 1)[:-1]])),
         "evenly spaced")],
    "nf4.encode": [
        (code_unscaled, "divide by a"),
        (code_below, "not the nearest"),
        (code_even, "not evenly spaced"),
        (lambda x, levels: (levels[code_by_midpoints(x, levels)[0]], np.abs(x).max()), "these are the levels"),
        (lambda x, levels: (np.abs(x[:, None] / x.max() - levels).argmin(1), x.max()), "not the largest number"),
        (lambda x, levels: code_by_midpoints(x, levels)[0], "2 results")],
    "nf4.backward": [
        (gradients_adapter_only, "dy Ŵ"),
        (gradients_unscaled, "s is missing"),
        (gradients_tiled, "np.repeat"),
        (gradients_transposed, "transposed"),
        (lambda x, codes, scales, levels, *a: gradients_by_parts(x, codes, scales, np.arange(16.0), *a),
         "not of the codes"),
        (lambda *a: (lambda dx, dA, dB: (dx, dB, dA))(*gradients_by_parts(*a)), "in this order"),
        (lambda x, codes, scales, levels, A, B, s, dy: (lambda dx, dA, dB: (dx, dA / s, dB / s))(
            *gradients_by_parts(x, codes, scales, levels, A, B, s, dy)),
         "in dA and in dB"),
        (lambda x, codes, scales, levels, *a: gradients_by_parts(x, codes, np.ones_like(scales), levels, *a),
         "scale of their group"),
        (lambda x, codes, scales, levels, A, B, s, dy: gradients_by_parts(x, codes, scales, levels, 0 * A, B, s, dy)[:1]
         + gradients_by_parts(x, codes, scales, levels, A, B, s, dy)[1:],
         "also passes through the adapter")],
    "nf4.loftq": [
        (loftq_never_back, "from the second on"),
        (lambda W, quant, r, T: alternate(W, quant, r, 1), "what one round gives"),
        (loftq_of(lambda W, P: W, lambda W, Q: W), "W itself"),
        (loftq_of(lambda W, P: W - P, lambda W, Q: W), "leaves, not W itself"),
        (loftq_of(lambda W, P: W + P, lambda W, Q: W - Q), "not W + B A"),
        (loftq_nearest, "return the last one"),
        (loftq_one_sided, "split"),
        (loftq_twice, "W − Q"),
        (loftq_stale, "same round"),
        (lambda W, quant, r, T: alternate(W, quant, r, T + 1), "too many"),
        (lambda W, quant, r, T: alternate(W, quant, r, T)[1:], "3 results"),
        (lambda W, quant, r, T: alternate(W, quant, r + 1, T), "shape"),
        (lambda *a: (lambda Q, B, A: (Q, A, B))(*alternate(*a)), "in this order")],
}
