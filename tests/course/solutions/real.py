"""Lesson 16: what students write, wrong and right."""
import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F


# -- RMSNorm -------------------------------------------------------------------------------------
def layer_norm(x, gamma, eps):
    x = x - x.mean(-1, keepdims=True)
    return gamma * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def by_length(x, gamma, eps):
    return gamma * x / np.sqrt(np.linalg.norm(x, axis=-1, keepdims=True)**2 + eps)


def outer_eps(x, gamma, eps):
    return gamma * x / (np.sqrt(np.mean(x**2, axis=-1, keepdims=True)) + eps)


def over_all(x, gamma, eps):
    return gamma * x / np.sqrt(np.mean(x**2) + eps)


def by_std(x, gamma, eps):
    return gamma * x / np.sqrt(x.std(-1, keepdims=True)**2 + eps)


def gemma(x, gamma, eps):
    return (1 + gamma) * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps)


def by_dot(x, gamma, eps):
    return (x.T / np.sqrt(np.einsum("td,td->t", x, x) / x.shape[1] + eps)).T * gamma


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


# -- grouped heads -------------------------------------------------------------------------------
def attention(q, k, v, scale=True, causal=True, divisor=lambda q: q.shape[-1], above=1, zero=False, after=False, axis=-1, largest=None):
    S = q @ k.transpose(0, 2, 1) / (np.sqrt(divisor(q)) if scale else 1)
    future = np.triu(np.ones(S.shape[1:], bool), above)
    if causal and not after: S = np.where(future, 0 if zero else -np.inf, S)
    P = np.exp(S - S.max(largest or axis, keepdims=True))
    P = P / P.sum(axis, keepdims=True)
    return P * (~future if after else 1) @ v


def shared(places, **options):
    """Head h reads the key and value `places(H, G)[h]`."""
    return lambda q, k, v: attention(q, k[places(len(q), len(k))], v[places(len(q), len(k))], **options)


def two_groups(q, k, v):
    n = len(q) // 2
    return attention(q, np.repeat(k, n, axis=0), np.repeat(v, n, axis=0))


def in_order(H, G): return np.arange(H) // (H // G)


def by_functional(q, k, v):
    n = len(q) // len(k)
    return F.attention(*(tp.Tensor(a) for a in (q, np.repeat(k, n, axis=0), np.repeat(v, n, axis=0)))).data


# -- blocks of Q4_1 ------------------------------------------------------------------------------
def codes(octets): return octets[:, 4:] & 15, octets[:, 4:] >> 4


def numbers(octets, dtype="<f2"): return octets[:, :4].copy().view(dtype).astype(np.float32)


def q4_1_loop(octets):
    out = np.empty((len(octets), 32), np.float32)
    for row, block in zip(out, octets, strict=True):
        d, m = np.frombuffer(block[:4].tobytes(), "<f2").astype(np.float32)
        for j, byte in enumerate(block[4:]): row[j], row[j + 16] = d * (byte & 15) + m, d * (byte >> 4) + m
    return out


def q4_1(octets, order=lambda low, high: np.concatenate([low, high], axis=1), dtype="<f2"):
    d, m = numbers(octets, dtype).T
    return d[:, None] * order(*codes(octets)) + m[:, None]


def q4_1_half(octets):
    d, m = octets[:, :4].copy().view("<f2").T[:, :, None]
    return d * np.concatenate(codes(octets), axis=1) + m


def q4_1_swapped_half(octets):
    d, m = octets[:, :4].copy().view(">f2").T[:, :, None]
    return d * np.concatenate(codes(octets), axis=1) + m


def q4_1_unshifted(octets):
    d, m = numbers(octets).T
    return d[:, None] * np.concatenate([octets[:, 4:] & 15, octets[:, 4:] & 240], axis=1) + m[:, None]


def each_byte(octets, m=2):
    return octets[:, :1].astype(np.float32) * np.hstack(codes(octets)) + octets[:, m:m + 1].astype(np.float32)


def q4_0(octets):
    return numbers(octets)[:, :1] * (np.concatenate(codes(octets), axis=1).astype(np.float32) - 8)


def minus(octets):
    d, m = numbers(octets).T
    return d[:, None] * np.concatenate(codes(octets), axis=1) - m[:, None]


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
    "real.rms_norm": [
        (layer_norm, "layer norm"),
        (by_length, "of their sum"),
        (outer_eps, "under the root"),
        (over_all, "a norm of its own"),
        (by_std, "mean of the squares"),
        (gemma, "Gemma"),
        (lambda x, gamma, eps: by_dot(x, 1, eps), "multiply by γ"),
        (lambda x, gamma, eps: by_dot(x, gamma, 0), "ε is missing"),
        (lambda x, gamma, eps: gamma * x / np.sqrt((x**2).mean(0, keepdims=True) + eps), "over the rows")],
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
    "real.grouped": [
        (shared(lambda H, G: np.arange(H) % G), "do not tile"),
        (shared(in_order, causal=False), "the future"),
        (two_groups, "so k and v need as many"),
        (shared(in_order, zero=True), "score of 0"),
        (shared(in_order, after=True), "before the softmax; what"),
        (shared(in_order, axis=-2), "over the keys"),
        (shared(in_order, axis=-2, largest=-1), "over the queries"),
        (shared(in_order, divisor=len), "number of heads"),
        (shared(in_order, above=0), "also sees itself"),
        (shared(in_order, scale=False), "divided by √d"),
        (shared(lambda H, G: np.zeros(H, int)), "the first one")],
    "real.q4_1": [
        (lambda b: q4_1(b, lambda low, high: np.concatenate([high, low], axis=1)), "low halves"),
        (lambda b: q4_1(b, lambda low, high: np.stack([low, high], axis=2).reshape(len(low), 32)), "no neighbours"),
        (q4_0, "is Q4_0"),
        (minus, "m is added"),
        (lambda b: q4_1(b, dtype=">f2"), "little-endian"),
        (q4_1_swapped_half, "the dtype '<f2'"),
        (q4_1_half, "compute in float32"),
        (q4_1_unshifted, "16 times the code"),
        (each_byte, "two bytes are one float16"),
        (lambda b: each_byte(b, 1), "makes a number of each byte"),
        (lambda b: q4_1_loop(b).astype(float), "weights are float32")],
}
RIGHT = {
    "real.bug": [by_index, by_heads], "real.encode": [
        by_stored_step,
        whole(np.rint),
        written,
        lambda W: written(W.astype(float)).tolist()],
    "real.rms_norm": [by_dot, lambda *a: by_dot(*a).tolist()], "real.rotary": [rotary, by_complex, by_rotate_half], "real.grouped": [shared(in_order), by_functional],
    "real.q4_1": [q4_1, q4_1_loop],
}
