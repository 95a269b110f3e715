"""Lesson 16: what students write, wrong and right."""
import numpy as np

import tinypeft as tp
from tinypeft import functional as F


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
def attention(q, k, v, scale=True, causal=True):
    S = q @ k.transpose(0, 2, 1) / (np.sqrt(q.shape[-1]) if scale else 1)
    if causal: S = S + np.triu(np.full(S.shape[1:], -np.inf), 1)
    P = np.exp(S - S.max(-1, keepdims=True))
    return P / P.sum(-1, keepdims=True) @ v


def shared(places, **options):
    """Head h reads the key and value `places(H, G)[h]`."""
    return lambda q, k, v: attention(q, k[places(len(q), len(k))], v[places(len(q), len(k))], **options)


def in_order(H, G): return np.arange(H) // (H // G)


def by_functional(q, k, v):
    return F.attention(*(tp.Tensor(a) for a in (q, k, v))).data


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


def q4_0(octets):
    return numbers(octets)[:, :1] * (np.concatenate(codes(octets), axis=1).astype(np.float32) - 8)


def minus(octets):
    d, m = numbers(octets).T
    return d[:, None] * np.concatenate(codes(octets), axis=1) - m[:, None]


WRONG = {
    "real.rms_norm": [
        (layer_norm, "layer norm"), (by_length, "of their sum"), (outer_eps, "under the root"), (over_all, "a norm of its own"),
        (by_std, "mean of the squares"), (gemma, "Gemma")],
    "real.rotary": [
        (interleaved, "paired neighbours"), (lambda x, theta: rotary(x, theta, sign=-1), "sign of sin"), (by_head, "grows with the head"),
        (lambda x, theta: rotary(x, theta, start=1), "first position is 0"), (lambda x, theta: rotary(x, theta, power=-1.0), "yours is −i/d"),
        (lambda x, theta: rotary(x, theta, power=2.0), "more slowly")],
    "real.grouped": [
        (shared(lambda H, G: np.arange(H) % G), "do not tile"), (shared(in_order, causal=False), "the future"),
        (shared(in_order, scale=False), "divided by √d"), (shared(lambda H, G: np.zeros(H, int)), "the first one")],
    "real.q4_1": [
        (lambda b: q4_1(b, lambda low, high: np.concatenate([high, low], axis=1)), "low halves"),
        (lambda b: q4_1(b, lambda low, high: np.stack([low, high], axis=2).reshape(len(low), 32)), "no neighbours"),
        (q4_0, "is Q4_0"), (minus, "m is added"), (lambda b: q4_1(b, dtype=">f2"), "little-endian")],
}
RIGHT = {
    "real.rms_norm": [by_dot, lambda *a: by_dot(*a).tolist()], "real.rotary": [rotary, by_complex, by_rotate_half], "real.grouped": [shared(in_order), by_functional],
    "real.q4_1": [q4_1, q4_1_loop],
}
