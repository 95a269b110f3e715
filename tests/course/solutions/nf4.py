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


def decoded_in_loops(codes, rho, m, o, d, levels):
    each = len(rho) // len(m)
    return np.array([[(m[i // each] * d[rho[i]] + o) * levels[q] for q in row] for i, row in enumerate(codes)])


def sorted_sums(x):
    """Lloyd's rounds over sorted numbers, whose levels keep their order; 0 is put back after each round."""
    x, levels = np.sort(x), np.linspace(-0.95, 0.95, 16)
    for _ in range(60):
        ends = np.searchsorted(x, (levels[:-1] + levels[1:]) / 2)
        levels = np.array([part.mean() if len(part) else c for part, c in zip(np.split(x, ends), levels, strict=True)])
        levels[np.abs(levels).argmin()] = 0
    return levels


RIGHT = {"nf4.bug": [decoded_in_loops, lambda *a: decoded_in_loops(*a).tolist()],
         "nf4.better": [sorted_sums, lambda x: sorted_sums(x).tolist()],
         "nf4.loses": [lambda levels: np.repeat(np.arange(-7, 8) / 7, 5)[:64] * -1,
                       lambda levels: [k / 7 for k in (-7, *range(-6, 7), 7)] * 4 + [1.0] * 4],
         "nf4.levels": [
        levels_in_loops,
        lambda *a: levels_in_loops(*a).astype(np.float32),
        lambda *a: levels_in_loops(*a).tolist()],
         "nf4.encode": [
        code_by_midpoints,
        lambda *a: (code_by_midpoints(*a)[0].astype(np.uint8), np.array(code_by_midpoints(*a)[1])),
        lambda *a: [code_by_midpoints(*a)[0].tolist(), code_by_midpoints(*a)[1]]],
         "nf4.backward": [gradients_by_parts, lambda *a: [g.tolist() for g in gradients_by_parts(*a)]]}


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


def equal_use(x):
    q = np.quantile(x, np.linspace(1 / 32, 31 / 32, 16))
    return np.where(np.abs(q) == np.abs(q).min(), 0, q)


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


WRONG = {
    "nf4.levels": [
        (levels_short, "n + 1 points"),
        (levels_unscaled, "largest magnitude of 1"),
        (levels_two_zeros, "0 is there twice"),
        (lambda d, p, n: (lambda v: v / np.abs(v).max())(ndtri(np.linspace(1 - d, d, p + n + 1))), "from 1 − δ to δ"),
        (levels_swapped, "exchanged"),
        (lambda delta, p, n: np.linspace(-1, 1, p + n + 1), "take quantiles"),
        (lambda *a: levels_in_loops(*a)[::-1], "must ascend"),
        (lambda d, p, n: np.sort(np.concatenate([np.linspace(0, 1, p + 1), np.linspace(-1, 0, n + 1)[:-1]])),
         "evenly spaced")],
    "nf4.encode": [
        (code_unscaled, "divide by a"),
        (code_below, "not the nearest"),
        (code_even, "not evenly spaced"),
        (lambda x, levels: code_by_midpoints(np.abs(x), levels), "keep the sign"),
        (lambda x, levels: (levels[code_by_midpoints(x, levels)[0]], np.abs(x).max()), "these are the levels"),
        (lambda x, levels: (np.abs(x[:, None] / x.max() - levels).argmin(1), x.max()), "not the largest number"),
        (lambda x, levels: code_by_midpoints(x, levels)[0], "2 results")],
    "nf4.backward": [
        (gradients_adapter_only, "dy Ŵ"),
        (gradients_unscaled, "s is missing"),
        (gradients_tiled, "np.repeat"),
        (lambda x, codes, scales, levels, A, B, s, dy: (s * dy @ (levels[codes] * np.repeat(scales, codes.shape[1] // scales.shape[1], 1)
         + B @ A), *gradients_by_parts(x, codes, scales, levels, A, B, s, dy)[1:]), "s belongs to the adapter alone"),
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
    "nf4.bug": [
        (lambda codes, rho, m, o, d, levels: (np.tile(m, len(rho) // len(m)) * d[rho])[:, None] * levels[codes], "both faults"),
        (lambda codes, rho, m, o, d, levels: decoded_in_loops(codes, rho, m, 0, d, levels), "mean o of the scales"),
        (lambda codes, rho, m, o, d, levels: (np.tile(m, len(rho) // len(m)) * d[rho] + o)[:, None] * levels[codes], "np.tile"),
        (lambda codes, rho, m, o, d, levels: decoded_in_loops(codes, rho, m, 0, d + o, levels), "not before it"),
        (lambda codes, rho, m, o, d, levels: decoded_in_loops(codes, rho, m, -o, d, levels), "not subtracted again"),
        (lambda codes, rho, m, o, d, levels: decoded_in_loops(codes, rho, m, o, np.arange(256), levels), "rho are codes"),
        (lambda codes, rho, m, o, d, levels: decoded_in_loops(codes, rho, m, o, d, np.arange(16)), "levels[codes]"),
        (lambda codes, rho, m, o, d, levels: decoded_in_loops(codes, rho, m, o, d, levels)[0], "shape")],
    "nf4.better": [
        (lambda x: levels_in_loops(1 - (1 / 32 + 1 / 30) / 2, 8, 7), "NF4's own levels"),
        (lambda x: equal_use(x), "used equally often"),
        (lambda x: np.where(np.arange(16) == 7, 0, np.linspace(-1, 1, 16)), "evenly spaced"),
        (lambda x: (np.arange(16) - 7) / 8, "uniform weights alone"),
        (lambda x: np.sort([*np.linspace(-1, 1, 15), 0]), "which suits uniform"),
        (lambda x: np.concatenate([np.linspace(-1, 0, 8), np.linspace(0, 1, 9)[1:]]), "these levels are evenly"),
        (lambda x: np.where(np.arange(16) == 8, 0, np.linspace(-1, 1, 16)), "evenly spaced, which"),
        (lambda x: sorted_sums(x) + 1e-3, "0 must be one"),
        (lambda x: sorted_sums(x)[::-1], "must ascend"),
        (lambda x: sorted_sums(x)[1:], "shape")],
    "nf4.loses": [
        (lambda levels: np.resize(levels, 64), "the given levels, which"),
        (lambda levels: np.linspace(-1, 1, 64), "evenly spread"),
        (lambda levels: np.resize([1.0, -1.0], 64), "both grids have"),
        (lambda levels: [1] + [3 / 7] * 63, "a level of some tables"),
        (lambda levels: np.resize(np.arange(-7.0, 8), 64), "must be 1"),
        (lambda levels: (lambda x: x / np.abs(x).max())(np.random.default_rng(0).normal(size=64)), "on normal numbers"),
        (lambda levels: np.arange(-7, 8) / 7, "shape")],
}
