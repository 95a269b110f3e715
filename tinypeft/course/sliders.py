"""Sliders for lessons: each takes the arrays that a lesson has, and is a cell's last line.

    bits(W)  groups(W)      lesson 10: bits, and weights that share a scale
    gate(share, q, k, P_K)  lesson 06: the share λ of a prefix, against the length of its keys
    rank(image)             lesson 07: what a matrix of low rank keeps of a picture, or of ΔW
    smoothing(X, W)         lesson 11: SmoothQuant's exponent α
    step(f, derivative, x)  lesson 01: the step ε of a finite difference
    clipping(W)             lesson 14: where a grid ends
    valley(step)            lesson 12: the correlation of two inputs, in a step of OBQ
    levels(make, W)         lesson 13: δ, the last quantile of NF4's table
    leftover(make, W, Ŵ)    lesson 13b: the rank that LoftQ has
    budget(needed, n, …)    lesson 15: the bits of a base, and the rank beside it
    turning(rotary)         lesson 16: the base θ of the angles by which positions turn
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..common.hints import Array
from ..quant import Uniform
from .slider import Slider, power, slider

__all__ = ["bits", "budget", "clipping", "gate", "groups", "leftover", "levels", "rank",
           "smoothing", "step", "turning", "valley"]


def bits(W: Array, bits: Iterable[int] = range(2, 9), group_size: int = 32) -> Slider:
    """The first 64 weights of W (d_out, d_in), rounded to b bits; group_size weights share a scale.

    The caption has the relative error ‖Ŵ − W‖/‖W‖ of the whole matrix, and the bits per weight."""
    return _rounded("bits", W, {b: Uniform(b, True, "group", group_size) for b in bits})


def groups(W: Array, sizes: Iterable[int] = (4, 8, 16, 32, 64, 128), bits: int = 3) -> Slider:
    """The same, for groups of different sizes. Sizes that do not divide d_in are left out."""
    fitting = [g for g in sizes if W.shape[1] % g == 0]
    return _rounded("group size", W, {g: Uniform(bits, True, "group", g) for g in fitting})


def _rounded(label, W, schemes):
    i, first = np.arange(64), np.ravel(W)[:64]
    frames, captions = {}, {}
    for value, scheme in schemes.items():
        q = scheme.quantize(np.asarray(W, np.float32))
        near = q.dequantize()
        frames[value] = {"rounded": (i[:first.size], near.ravel()[:64])}
        captions[value] = (f"the error is {_percent(near, W)} of the weights, "
                           f"at {q.bits_per_weight:.2f} bits per weight")
    return slider(label, frames, captions=captions, behind={"weights": (i[:first.size], first)},
                  xlabel="weight", ylabel="value")


def gate(share: Callable, q: Array, k: Array, P_K: Array,
         scales: Iterable[float] = np.arange(0, 3.25, 0.25)) -> Slider:
    """Attention of one query q (d_head,) to a prefix P_K (P, d_head), whose keys are multiplied by
    each of the scales, and to the keys k (S, d_head) of the text. The caption has λ, which is
    share(q, k, P_K)."""
    P, frames, captions = len(P_K), {}, {}
    place = np.arange(P + len(k))
    for scale in scales:
        scores = np.concatenate([scale * P_K, k]) @ q / np.sqrt(len(q))
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        frames[float(scale)] = {"prefix": (place[:P], shares[:P]), "text": (place[P:], shares[P:])}
        lam = float(share(q, k, scale * P_K))
        captions[float(scale)] = f"λ = {lam:.3f}, so the text counts {1 - lam:.3f}"
    return slider("the prefix's keys times", frames, captions=captions, xlabel="key",
                  ylabel="share of attention")


def rank(matrix: Array, ranks: Iterable[int] = (1, 2, 4, 6, 8, 12, 16, 24, 32), most: int = 48,
         beside: bool = False) -> Slider:
    """The nearest matrix of each rank to `matrix` (rows, columns), as a picture of at most `most` ×
    `most` pixels: of a larger one every second row and column is drawn, or every third …

    The caption has the share of the sum of squares that is kept, and the numbers that are stored.
    beside: draw the whole matrix on the right of each.
    """
    U, S, Vt = np.linalg.svd(np.asarray(matrix, float), full_matrices=False)
    every = -(-max(matrix.shape) // most)
    ranks = [r for r in ranks if r < len(S)]
    if not ranks or (S[max(ranks):] ** 2).sum() > 1e-9 * (S ** 2).sum(): ranks.append(len(S))
    frames = {r: ((U[:, :r] * S[:r]) @ Vt[:r])[::every, ::every] for r in ranks}
    if beside:
        whole = frames[len(S)]
        gap = np.full((len(whole), 2), whole.max())
        frames = {r: np.concatenate([near, gap, whole], axis=1) for r, near in frames.items()}
    captions = {r: f"{100 * (S[:r] ** 2).sum() / (S ** 2).sum():.1f} % of the square, "
                   f"{r * sum(matrix.shape):,} numbers; the matrix itself has {matrix.size:,}"
                for r in ranks}
    return slider("rank", frames, captions=captions)


def smoothing(X: Array, W: Array, alphas: Iterable[float] = np.arange(0, 1.05, 0.1)) -> Slider:
    """SmoothQuant moves outliers from the inputs X (tokens, d_in) to the weights W (d_out, d_in).

    Drawn are the largest |X_j|/s_j and |W_j| s_j of 40 channels, in the order of their largest
    inputs, with s_j = max|X_j|^α / max|W_j|^(1−α). The caption has the relative error of the
    product in 8 bits, with a scale for each token and each row of W.
    """
    largest = lambda A: np.maximum(np.abs(A).max(0), 1e-9)
    int8 = lambda A: np.rint(A / (s := np.abs(A).max(1, keepdims=True) / 127 + 1e-30)) * s
    order = np.argsort(largest(X))[np.linspace(0, X.shape[1] - 1, min(40, X.shape[1])).astype(int)]
    place, frames, captions = np.arange(len(order)), {}, {}
    for alpha in alphas:
        s = largest(X) ** alpha / largest(W) ** (1 - alpha)
        frames[float(alpha)] = {"inputs ÷ s": (place, (largest(X) / s)[order]),
                                "weights × s": (place, (largest(W) * s)[order])}
        error = _percent(int8(X / s) @ int8(W * s).T, X @ W.T, digits=2)
        captions[float(alpha)] = f"the error is {error} of the product"
    return slider("α", frames, captions=captions, xlabel="channel, by its largest input",
                  ylabel="largest magnitude", ylog=True)


def step(f: Callable, derivative: float, x: float, exponents: Iterable[int] = range(-12, 0),
         dtype: type = np.float64) -> Slider:
    """The error of (f(x + ε) − f(x − ε)) / 2ε against the exact derivative, for ε = 10 ** exponent.

    f takes and returns a number of `dtype`. The bending of f goes with ε²: an error is called so
    if it is no more than three times what the largest step predicts by that."""
    exponents = list(exponents)
    steps = 10.0 ** np.array(exponents)
    quotients = [float((f(dtype(x + e)) - f(dtype(x - e))) / dtype(2 * e)) for e in steps]
    errors = np.maximum(np.abs(np.array(quotients) - derivative) / abs(derivative), 1e-16)
    best, ends = int(errors.argmin()), [errors.min(), errors.max()]
    bends = errors <= 3 * errors[steps.argmax()] * (steps / steps.max()) ** 2
    why = np.where(bends, "the step is so large that f bends within it",
                   "the step is so small that rounding shows").tolist()
    why[best] = "the best of these steps"
    names = [power(p) for p in exponents]
    frames = {name: {"this ε": ([e, e], ends)} for name, e in zip(names, steps, strict=True)}
    captions = {name: f"the quotient is {q:.10g}, off by {error:.1e}; {reason}"
                for name, q, error, reason in zip(names, quotients, errors, why, strict=True)}
    return slider("ε", frames, captions=captions, behind={"all steps": (steps, errors)},
                  xlabel="ε", ylabel="relative error", xlog=True, ylog=True)


def clipping(W: Array, bits: int = 3, shares: Iterable[float] = np.arange(0.2, 1.01, 0.1),
             rounding: Callable | None = None) -> Slider:
    """A grid of `bits` bits that ends at a share of max|W|, over the weights' histogram.

    The grid is symmetric. rounding, if it is given, makes another one: (weights (n,), step) → the
    rounded weights (n,). All its codes are drawn, those of no weight as well. The caption has the
    error, and the part of its square that is clipping.
    """
    w, end = np.ravel(W).astype(float), 2 ** (bits - 1) - 1
    counts, edges = np.histogram(w, 60)
    behind = {"weights": (np.repeat(edges, 2)[1:-1], np.repeat(counts, 2))}
    frames, captions = {}, {}
    for share in shares:
        scale = share * np.abs(w).max() / end
        near = np.clip(np.rint(w / scale), -end, end) * scale
        grid = np.arange(-end, end + 1) * scale
        if rounding is not None:
            near = np.asarray(rounding(w, scale), float)
            multiples = np.arange(-2 ** bits, 2 ** bits + 1) * scale
            grid = np.unique(np.asarray(rounding(multiples, scale), float))
        error = (near - w) ** 2
        outside = np.abs(near - w) > (0.5 + 1e-9) * scale
        comb = np.repeat(grid, 3)
        frames[float(share)] = {"grid": (comb, np.tile([0, counts.max() / 3, 0], len(grid)))}
        total = 100 * np.sqrt(error.sum() / (w ** 2).sum())
        captions[float(share)] = (f"the error is {total:.1f} % of the weights; of its square, "
                                  f"{100 * error[outside].sum() / error.sum():.0f} % is clipping")
    return slider("end of the grid ÷ largest weight", frames, captions=captions,
                  behind=behind, xlabel="weight", ylabel="how many")


def valley(step: Callable, w: Iterable[float] = (0.45, 0.45),
           correlations: Iterable[float] = (0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)) -> Slider:
    """Two weights, rounded to integers to nearest, and by `step`, a step of OBQ: (w, H⁻¹, number,
    value) → (w, H⁻¹). H is 2 [[1, c], [c, 1]], with the correlation c. The loss of the points on
    the ellipse is that of the better end."""
    w, angle, frames, captions = np.asarray(w, float), np.linspace(0, 2 * np.pi, 120), {}, {}
    for c in map(float, correlations):
        H = 2 * np.array([[1, c], [c, 1]])
        moved = np.asarray(step(w.copy(), np.linalg.inv(H), 0, float(np.rint(w[0])))[0])
        ends = {"to nearest": np.rint(w), "with the step": np.rint(moved)}
        loss = {name: (v - w) @ H @ (v - w) for name, v in ends.items()}
        circle = np.sqrt(min(loss.values())) * np.stack([np.cos(angle), np.sin(angle)])
        ellipse = w[:, None] + np.linalg.solve(np.linalg.cholesky(H).T, circle)
        frames[c] = {"with the step": tuple(zip(w, moved, ends["with the step"], strict=True)),
                     "to nearest": tuple(zip(w, ends["to nearest"], strict=True)),
                     "equal loss": tuple(ellipse)}
        captions[c] = "the loss is " + ", ".join(f"{v:.2f} {name}" for name, v in loss.items())
    low, high = np.floor(w), np.ceil(w)
    cell = np.array([low, (high[0], low[1]), high, (low[0], high[1]), low]).T
    return slider("correlation", frames, captions=captions, behind={"the cell": tuple(cell)},
                  xlabel="ŵ₁", ylabel="ŵ₂", equal=True)


def levels(make: Callable, W: Array, deltas: Iterable[float] = (0.9, 0.92, 0.94, 0.955, 0.9677083,
           0.98, 0.99, 0.995)) -> Slider:
    """The table make(δ, 8, 7) for each δ over the weights, divided by the largest of their 64.

    The caption has the relative error of the weights, rounded to the table in blocks of 64."""
    w = np.reshape(W, (-1, 64)).astype(float)
    largest = np.abs(w).max(1, keepdims=True)
    counts, edges = np.histogram(w / largest, 60, range=(-1, 1))
    behind = {"weights": (np.repeat(edges, 2)[1:-1], np.repeat(counts, 2))}
    frames, captions = {}, {}
    for delta in deltas:
        table = np.sort(np.asarray(make(delta, 8, 7), float))
        near = table[np.searchsorted((table[:-1] + table[1:]) / 2, w / largest)] * largest
        comb = np.tile([0, counts.max() / 3, 0], len(table))
        frames[delta] = {"levels": (np.repeat(table, 3), comb)}
        captions[delta] = f"the error is {100 * np.linalg.norm(near - w) / np.linalg.norm(w):.2f} %"
    return slider("δ", frames, captions=captions, behind=behind,
                  xlabel="weight ÷ largest of its block", ylabel="how many")


def leftover(make: Callable, W: Array, W_hat: Array,
             ranks: Iterable[int] = (1, 2, 4, 8, 16, 32, 64)) -> Slider:
    """The singular values of W − Q − B A, for (Q, B, A) = make(r) of each rank r, before those of
    W − Ŵ. The r that B A takes away come first, as 0. The caption has the norm that is left."""
    values = lambda M: np.linalg.svd(np.asarray(M, float), compute_uv=False)
    before, frames, captions = values(W - W_hat), {}, {}
    number = np.arange(1, len(before) + 1)
    for r in ranks:
        Q, B, A = map(np.asarray, make(r))
        after = values(W - Q - B @ A)
        frames[r] = {"after LoftQ": (number, np.roll(after, r))}
        share = np.linalg.norm(after) / np.linalg.norm(before)
        captions[r] = (f"‖W − Q − BA‖ is {share:.2f} of ‖W − Ŵ‖, which leaves "
                       f"{100 * share ** 2:.0f} % of its square")
    return slider("rank", frames, captions=captions, behind={"W − Ŵ": (number, before)},
                  xlabel="number", ylabel="singular value")


def budget(needed: Callable, n: int, per_rank: int, card: float = 16,
           widths: Iterable[float] = (16, 8, 4.5, 4.127, 3.25, 2.5),
           ranks: Iterable[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)) -> Slider:
    """The GiB that needed(n, bits, trained) tells in bytes, against the rank, for bases of `n`
    weights in each width. A rank trains `per_rank` numbers. card: its GiB, drawn behind."""
    ranks = np.array(list(ranks))
    frames, captions = {}, {}
    for width in widths:
        GiB = np.array([needed(n, width, int(r) * per_rank) for r in ranks]) / 2**30
        frames[width] = {"needed": (ranks, GiB)}
        most = sum(needed(n, width, r * per_rank) <= card * 2**30 for r in range(1, 1025))
        reach = f"ranks up to {most} fit" if most else "no rank fits"
        captions[width] = f"at rank 8 it is {GiB[list(ranks).index(8)]:.1f} GiB; {reach}"
    return slider("bits of the base", frames, captions=captions, xlabel="rank", ylabel="GiB",
                  behind={f"{card} GiB": (ranks, np.full(len(ranks), float(card)))}, xlog=True)


def turning(rotary: Callable, d: int = 64, positions: int = 400,
            bases: Iterable[float] = (10.0, 100.0, 1e3, 1e4, 1e5)) -> Slider:
    """The product of one vector of ones at two positions, over d, against their distance, for
    rotary(x (1, T, d), θ) of each θ. The caption has the turns of the slowest pair."""
    frames, captions, places = {}, {}, np.arange(positions)
    for theta in map(float, bases):
        y = np.asarray(rotary(np.ones((1, positions, d)), theta))[0]
        frames[theta] = places, y @ y[0] / d
        once = 2 * np.pi * theta ** (1 - 2 / d)
        captions[theta] = f"the slowest pair turns once in {once:,.0f} positions"
    return slider("θ", frames, captions=captions, xlabel="distance of the two positions",
                  ylabel="q·k ÷ d")


def _percent(near, exact, digits=1):
    return f"{100 * np.linalg.norm(near - exact) / np.linalg.norm(exact):.{digits}f} %"
