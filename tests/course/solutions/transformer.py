"""Lesson 02: what students write, wrong and right."""
import math

import numpy as np

import tinypeft as tp
from tinypeft import functional as F


def attention(scale=lambda d, S: math.sqrt(d), diagonal=lambda T, S: S - T + 1, axis=-1, late=False):
    def transformer_attention(q, k, v):
        scores = q @ k.T / scale(q.shape[1], len(k))
        mask = np.triu(np.ones(scores.shape, bool), diagonal(*scores.shape)) if diagonal else np.zeros(scores.shape, bool)
        if not late: scores[mask] = -np.inf
        A = np.exp(scores - scores.max(axis, keepdims=True))
        A /= A.sum(axis, keepdims=True)
        if late: A[mask] = 0
        return (A @ v).astype(q.dtype)
    return transformer_attention


def row_by_row(q, k, v):
    rows = []
    for i in range(len(q)):
        seen = i + len(k) - len(q) + 1
        s = k[:seen] @ q[i] / math.sqrt(len(q[i]))
        a = np.exp(s - s.max())
        rows.append(a / a.sum() @ v[:seen])
    return np.array(rows)


def loss(targets=lambda z, t: (z[:, :-1], t[:, 1:]), reduce=np.mean, safe=True, axis=-1):
    def transformer_loss(logits, tokens):
        z, t = targets(logits, tokens)
        if safe: z = z - z.max(axis, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(axis, keepdims=True)
        if not safe: return float(reduce(-np.log(np.take_along_axis(p, t[..., None], -1))))
        log_p = z - np.log(np.exp(z).sum(axis, keepdims=True))
        return float(reduce(-np.take_along_axis(log_p, t[..., None], -1)))
    return transformer_loss


def loops(logits, tokens):
    B, T, _ = logits.shape
    total = 0.0
    for b in range(B):
        for t in range(T - 1):
            z = logits[b, t] - logits[b, t].max()
            total -= z[tokens[b, t + 1]] - math.log(np.exp(z).sum())
    return total / (B * (T - 1))


def count(V, C, d, L):
    return V * d + C * d + L * (12 * d * d + 13 * d) + 2 * d


def summed(V, C, d, L):
    config = tp.GPTConfig(V, C, d, L, 1)
    return sum(p.size for p in tp.GPT(config).parameters())



def overflowing(q, k, v):
    S, T = len(k), len(q)
    e = np.where(np.arange(S) <= np.arange(T)[:, None] + S - T, np.exp(q @ k.T / math.sqrt(q.shape[1])), np.float32(0))
    return e / e.sum(1, keepdims=True) @ v


WRONG = {
    "transformer.attention": [
        (attention(scale=lambda d, S: 1), "not divided by √d_head"), (attention(scale=lambda d, S: d), "not by its root"),
        (attention(diagonal=None), "keys of the future"), (attention(diagonal=lambda T, S: 1), "forgets the past"),
        (attention(diagonal=lambda T, S: S - T + 2), "the key after its own"), (attention(axis=0), "over the queries"),
        (overflowing, "np.exp overflows"), (lambda q, k, v: F.attention(*map(tp.Tensor, (q, k, v))).data, "uses attention of the package"),
        (lambda q, k, v: attention()(q, k, v).astype(np.float64), "float64"), (lambda q, k, v: tp.Tensor(attention()(q, k, v)), "a Tensor"),
        (attention(late=True), "after the softmax")],
    "transformer.loss": [
        (loss(lambda z, t: (z, t)), "are about token t + 1"), (loss(lambda z, t: (z[:, 1:], t[:, :-1])), "wrong way"),
        (loss(reduce=np.sum), "a sum where"), (loss(safe=False), "np.exp overflows"), (loss(axis=1), "over positions"),
        (lambda z, t: loops(z, t) / math.log(2), "in bits"), (lambda z, t: -loops(z, t), "the sign")],
    "transformer.count": [
        (lambda V, C, d, L: count(V, C, d, L) + V * d, "tied"), (lambda V, C, d, L: count(V, C, d, L) - 2 * d, "final norm"),
        (lambda V, C, d, L: count(V, C, d, L) - 9 * d * L, "biases"), (lambda V, C, d, L: count(V, C, d, L) - C * d, "position table"),
        (lambda V, C, d, L: count(V, C, d, L) - 4 * d * L, "layer norms of the blocks"),
        (lambda V, C, d, L: count(V, C, d, L) + 1, "another number")],
}
RIGHT = {
    "transformer.attention": [row_by_row, attention(), lambda q, k, v: attention()(q, k, v).tolist()],
    "transformer.loss": [loops, loss(), lambda z, t: np.float32(loops(z, t)), lambda z, t: np.array(loops(z, t))],
    "transformer.count": [count, summed, lambda *a: float(count(*a))],
}
