"""Lesson 16: what students write, wrong and right."""
import numpy as np

import tinypeft as tp


# -- the gradient of RMSNorm ---------------------------------------------------------------------
def norm_gradient(x, gamma, eps, dy, of_dx=lambda dx, g, y, r: dx, of_dgamma=lambda dgamma, x, y, dy: dgamma):
    """By the Jacobian of each row: ∂y_i/∂x_j = δ_ij / r − x_i x_j / (d r³)."""
    n, d = x.shape
    dx = np.empty_like(x)
    for i, row in enumerate(x):
        r = np.sqrt(row @ row / d + eps)
        J = np.eye(d) / r - np.outer(row, row) / (d * r**3)
        g = gamma * dy[i]
        dx[i] = of_dx(J.T @ g, g, row / r, r)
    y = x / np.sqrt((x**2).mean(1, keepdims=True) + eps)
    return dx, of_dgamma((dy * y).sum(0), x, y, dy)


def of_layer_norm(x, gamma, eps, dy):
    c = x - x.mean(1, keepdims=True)
    s = np.sqrt(c.var(1, keepdims=True) + eps)
    g, y = gamma * dy, c / s
    return (g - g.mean(1, keepdims=True) - y * (g * y).mean(1, keepdims=True)) / s, (dy * y).sum(0)


def late_gain(x, gamma, eps, dy): return gamma * norm_gradient(x, np.ones_like(gamma), eps, dy)[0], norm_gradient(x, gamma, eps, dy)[1]


def outer_eps(x, gamma, eps, dy):
    r = np.sqrt((x**2).mean(1, keepdims=True)) + eps
    y, g = x / r, gamma * dy
    return (g - y * (g * y).mean(1, keepdims=True)) / r, (dy * y).sum(0)


def by_autograd(x, gamma, eps, dy):
    x, gamma = tp.Tensor(x, requires_grad=True), tp.Tensor(gamma, requires_grad=True)
    (x * ((x * x).mean(-1, keepdims=True) + eps) ** -0.5 * gamma).backward(dy)
    return x.grad, gamma.grad


# -- rotary embeddings ---------------------------------------------------------------------------
def rotary(x, theta, sign=1, start=0, power=-2.0):
    H, T, d = x.shape
    t, i = np.arange(start, start + T), np.arange(d // 2)
    phi = sign * np.outer(t, theta ** (power * i / d))
    x1, x2 = x[..., :d // 2], x[..., d // 2:]
    return np.concatenate([x1 * np.cos(phi) - x2 * np.sin(phi), x2 * np.cos(phi) + x1 * np.sin(phi)], axis=-1)


def interleaved(x, theta):
    H, T, d = x.shape
    phi = np.outer(np.arange(T), theta ** (-2 * np.arange(d // 2) / d))
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * np.cos(phi) - b * np.sin(phi), b * np.cos(phi) + a * np.sin(phi)], axis=-1).reshape(H, T, d)


def joined_interleaved(x, theta): return np.stack(np.split(rotary(x, theta), 2, axis=-1), axis=-1).reshape(x.shape)


def neighbours_joined(x, theta): return np.concatenate([interleaved(x, theta)[..., 0::2], interleaved(x, theta)[..., 1::2]], axis=-1)


def too_many_pairs(x, theta):
    H, T, d = x.shape
    phi = np.arange(T)[:, None] * theta ** (-2 * np.arange(d) / d)
    x1, x2 = x[..., :d // 2], x[..., d // 2:]
    return np.concatenate([x1 * np.cos(phi) - x2 * np.sin(phi), x2 * np.cos(phi) + x1 * np.sin(phi)], axis=-1)


def overwritten(x, theta):
    H, T, d = x.shape
    x, phi = x.copy(), np.outer(np.arange(T), theta ** (-2 * np.arange(d // 2) / d))
    x1, x2 = x[..., :d // 2], x[..., d // 2:]
    x1[:] = x1 * np.cos(phi) - x2 * np.sin(phi)
    x2[:] = x2 * np.cos(phi) + x1 * np.sin(phi)
    return x


def by_head(x, theta):
    H, T, d = x.shape
    phi = (np.arange(H)[:, None] * theta ** (-2 * np.arange(d // 2) / d))[:, None]
    x1, x2 = x[..., :d // 2], x[..., d // 2:]
    return np.concatenate([x1 * np.cos(phi) - x2 * np.sin(phi), x2 * np.cos(phi) + x1 * np.sin(phi)], axis=-1)


def by_complex(x, theta):
    """Pairs as complex numbers, times exp(iφ)."""
    H, T, d = x.shape
    z = x[..., :d // 2] + 1j * x[..., d // 2:]
    z = z * np.exp(1j * np.outer(np.arange(T), theta ** (-np.arange(0, d, 2) / d)))
    return np.concatenate([z.real, z.imag], axis=-1)


def by_rotate_half(x, theta):
    """As transformers writes it: cos and sin of the whole width, and a half with its sign turned."""
    H, T, d = x.shape
    phi = np.tile(np.outer(np.arange(T), theta ** (-np.arange(0, d, 2) / d)), 2)
    half = np.concatenate([-x[..., d // 2:], x[..., :d // 2]], axis=-1)
    return x * np.cos(phi) + half * np.sin(phi)


# -- fewer heads ---------------------------------------------------------------------------------
def heads_by(of, every=False):
    """New heads by `of` (members, d, d_in) → (d, d_in). every: the members are every n-th head."""
    def real_fewer(W, d_head, n):
        heads = np.split(W, len(W) // d_head)
        m = len(heads) // n
        groups = [heads[i::n] if every else heads[i * m:(i + 1) * m] for i in range(n)]
        return np.concatenate([of(np.array(group)) for group in groups])
    return real_fewer


def by_least_squares(W, d_head, n):
    """min ‖J M − W‖ over M, where J (G d, n d) hands each old head the new one of its group."""
    G = len(W) // d_head
    J = np.kron(np.kron(np.eye(n), np.ones((G // n, 1))), np.eye(d_head))
    return np.linalg.lstsq(J, W, rcond=None)[0]


def all_alike(W, d_head, n):
    return np.tile(W.reshape(-1, d_head, W.shape[1]).mean(0), (n, 1))


# -- a better block ------------------------------------------------------------------------------
def square(w, step, m): return np.sum((m + step * np.clip(np.rint((w - m) / step), 0, 15) - w)**2)


def searched(W):
    """The best of many pairs of ends, block by block."""
    steps, offsets = [], []
    for w in W:
        width = np.ptp(w)
        ends = [(w.min() + a * width, w.max() - b * width) for a in np.linspace(-0.04, 0.16, 21) for b in np.linspace(-0.04, 0.16, 21)]
        low, high = min(ends, key=lambda end: square(w, (end[1] - end[0]) / 15, end[0]))
        steps.append((high - low) / 15)
        offsets.append(low)
    return np.array(steps), np.array(offsets)


def by_polyfit(W):
    """A line through the codes and the weights, ten times."""
    pairs = []
    for w in W:
        step, m = np.ptp(w) / 15, w.min()
        for _ in range(10): step, m = np.polyfit(np.clip(np.rint((w - m) / step), 0, 15), w, 1)
        pairs.append((step, m))
    return tuple(np.array(pairs).T)


def by_range(W, steps=15, inside=0.0):
    width = np.ptp(W, axis=1)
    return width * (1 - 2 * inside) / steps, W.min(1) + inside * width


def symmetric(W): return np.abs(W).max(1) / 7.5, -np.abs(W).max(1)


def two_deviations(W): return W.std(1) * 4 / 15, W.mean(1) - 2 * W.std(1)


def one_for_all(W): return tuple(np.full(len(W), part.mean()) for part in by_polyfit(W))


# -- rows in order -------------------------------------------------------------------------------
def by_index(W, d_head):
    order = [h * d_head + 2 * i + member for h in range(len(W) // d_head) for member in (0, 1) for i in range(d_head // 2)]
    return W[order]


def by_heads(W, d_head): return np.concatenate([part for head in np.split(W, len(W) // d_head) for part in (head[0::2], head[1::2])])


def way_back(W, d_head):
    out = np.empty_like(W)
    for h in range(0, len(W), d_head):
        head = W[h:h + d_head]
        out[h:h + d_head:2], out[h + 1:h + d_head:2] = head[:d_head // 2], head[d_head // 2:]
    return out


def odd_first(W, d_head): return np.concatenate([part for head in np.split(W, len(W) // d_head) for part in (head[1::2], head[0::2])])


def mixed(W, d_head): return W.reshape(len(W) // d_head, d_head // 2, 2, -1).transpose(1, 2, 0, 3).reshape(W.shape)


# -- blocks, written -----------------------------------------------------------------------------
def written(W, steps=15, first=lambda d, m: (d, m), dtype="<f2", pair=lambda q, j: (q[j], q[j + 16])):
    blocks = []
    for w in W:
        m, d = w.min(), (w.max() - w.min()) / steps
        q = [int(round(float((v - m) / d))) if d else 0 for v in w]
        low_high = [pair(q, j) for j in range(16)]
        numbers = np.array(first(d, m)).astype(dtype).tobytes()
        blocks.append(np.frombuffer(numbers + bytes(min(low, 15) | min(high, 15) << 4 for low, high in low_high), np.uint8))
    return np.array(blocks)


def whole(how, safe=True):
    """In NumPy, with another way to a whole number; not safe: a step of 0 is a divisor."""
    def real_encode(W):
        m, step = W.min(1, keepdims=True), (W.max(1, keepdims=True) - W.min(1, keepdims=True)) / 15
        q = how((W - m) / (np.where(step == 0, 1, step) if safe else step)).astype(np.uint8)
        return np.hstack([np.hstack([step, m]).astype("<f2").view(np.uint8), q[:, :16] + 16 * q[:, 16:]])
    return real_encode


def divisor_stored(W):
    m, step = W.min(1, keepdims=True), (W.max(1, keepdims=True) - W.min(1, keepdims=True)) / 15
    step[step == 0] = 1
    q = np.rint((W - m) / step).astype(np.uint8)
    return np.hstack([np.hstack([step, m]).astype("<f2").view(np.uint8), q[:, :16] + 16 * q[:, 16:]])


def by_stored_step(W):
    """The nearest codes under the step and the offset as float16 has them."""
    m = W.min(1, keepdims=True)
    numbers = np.hstack([(W.max(1, keepdims=True) - m) / 15, m]).astype("<f2")
    d, m = numbers.astype(np.float32).T[:, :, None]
    q = np.rint((W - m) / np.where(d == 0, 1, d)).clip(0, 15).astype(np.uint8)
    return np.hstack([numbers.view(np.uint8), q[:, :16] + 16 * q[:, 16:]])


WRONG = {
    "real.bug": [
        (lambda W, d: np.concatenate([W[0::2], W[1::2]]), "not over all heads"),
        (way_back, "way back"),
        (odd_first, "odd ones"),
        (lambda W, d: W.copy(), "nothing has changed"),
        (mixed, "yours are mixed"),
        (lambda W, d: W[:, np.argsort(np.arange(W.shape[1]) % 2, kind="stable")], "not the columns")],
    "real.encode": [
        (lambda W: written(W, pair=lambda q, j: (q[j + 16], q[j])), "low halves"),
        (lambda W: written(W, pair=lambda q, j: (q[2 * j], q[2 * j + 1])), "no neighbours"),
        (lambda W: written(W, 16), "fifteen steps"),
        (lambda W: written(W, first=lambda d, m: (m, d)), "the offset m"),
        (lambda W: written(W, dtype=">f2"), "little-endian"),
        (whole(np.floor), "nearest code"),
        (whole(np.ceil), "np.rint"),
        (whole(np.rint, safe=False), "by luck"),
        (lambda W: written(W)[:, 4:], "20 bytes"),
        (divisor_stored, "as a divisor alone")],
    "real.norm_backward": [
        (lambda *a: norm_gradient(*a, of_dx=lambda dx, g, y, r: g / r), "taken as a constant"),
        (of_layer_norm, "of a layer norm"),
        (lambda *a: norm_gradient(*a, of_dx=lambda dx, g, y, r: dx - g.mean() / r), "subtracts no mean"),
        (lambda x, gamma, eps, dy: (norm_gradient(x, np.ones_like(gamma), eps, dy)[0], norm_gradient(x, gamma, eps, dy)[1]), "γ is missing in dx"),
        (late_gain, "inside the mean"),
        (lambda *a: norm_gradient(*a, of_dgamma=lambda dgamma, x, y, dy: (dy * x).sum(0)), "you took x"),
        (lambda *a: norm_gradient(*a, of_dx=lambda dx, g, y, r: (g + y * np.mean(g * y)) / r), "you added it"),
        (lambda *a: norm_gradient(*a, of_dx=lambda dx, g, y, r: (g - y * np.sum(g * y)) / r), "you took the sum"),
        (lambda *a: norm_gradient(*a, of_dx=lambda dx, g, y, r: r * dx), "divided by r"),
        (lambda *a: norm_gradient(*a, of_dx=lambda dx, g, y, r: dx / r), "by r once"),
        (lambda x, gamma, eps, dy: norm_gradient(x, gamma, 0, dy), "ε is missing"),
        (outer_eps, "added under the root"),
        (lambda *a: norm_gradient(*a, of_dgamma=lambda dgamma, x, y, dy: dgamma / len(x)), "took their mean"),
        (lambda *a: norm_gradient(*a, of_dgamma=lambda dgamma, x, y, dy: dy * y), "an additional axis"),
        (lambda *a: norm_gradient(*a)[::-1], "exchanged")],
    "real.rotary": [
        (interleaved, "paired neighbours"),
        (lambda x, theta: rotary(x, theta, sign=-1), "sign of sin"),
        (by_head, "grows with the head"),
        (lambda x, theta: rotary(x, theta, start=1), "first position is 0"),
        (lambda x, theta: rotary(x, theta, power=-1.0), "yours is −i/d"),
        (joined_interleaved, "yours are interleaved"),
        (neighbours_joined, "joined the results"),
        (too_many_pairs, "d/2 pairs"),
        (lambda x, theta: rotary(x, theta, power=2.0), "more slowly"),
        (overwritten, "overwritten before"),
        (lambda x, theta: np.where(np.arange(x.shape[-1]) < x.shape[-1] // 2, rotary(x, theta), x),
         "leaves the second half"),
        (lambda x, theta: rotary(x, theta, power=-4.0), "yours is −4i/d")],
    "real.fewer": [
        (heads_by(lambda heads: heads.mean(0), every=True), "consecutive heads"),
        (heads_by(lambda heads: heads[0]), "the first head"),
        (heads_by(lambda heads: heads[-1]), "the last head"),
        (heads_by(lambda heads: heads.sum(0)), "far from each"),
        (heads_by(lambda heads: np.median(heads, axis=0)), "the median"),
        (heads_by(lambda heads: (heads.min(0) + heads.max(0)) / 2), "middle of the range"),
        (all_alike, "mean of all"),
        (heads_by(lambda heads: np.tile(heads.mean((0, 1)), (heads.shape[1], 1))), "row by row"),
        (lambda W, d, n: by_least_squares(W, d, n).reshape(n, d, -1), "n heads of d_head rows")],
    "real.block": [
        (by_range, "this is the range"),
        (lambda W: by_range(W, 16), "fifteen steps"),
        (lambda W: by_range(W, inside=0.025), "fixed share of the range"),
        (lambda W: by_range(W, inside=0.1), "cuts too much off"),
        (symmetric, "symmetric"),
        (two_deviations, "deviations"),
        (one_for_all, "of its own"),
        (lambda W: by_polyfit(W)[::-1], "Δ first"),
        (lambda W: (-by_polyfit(W)[0], by_polyfit(W)[1]), "above 0"),
        (lambda W: (by_range(W)[0], by_range(W)[1] - 0.1), "larger than by the range")],
}
RIGHT = {
    "real.bug": [by_index, by_heads], "real.encode": [
        by_stored_step,
        whole(np.rint),
        written,
        lambda W: written(W.astype(float)).tolist()],
    "real.norm_backward": [norm_gradient, by_autograd, lambda *a: [part.tolist() for part in norm_gradient(*a)]],
    "real.rotary": [rotary, by_complex, by_rotate_half], "real.fewer": [heads_by(lambda heads: heads.mean(0)), by_least_squares],
    "real.block": [searched, by_polyfit],
}
