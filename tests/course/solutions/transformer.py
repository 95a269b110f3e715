"""Lesson 02: what students write, wrong and right."""
import math

import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F


def attention(scale=lambda d, S: math.sqrt(d), diagonal=lambda T, S: S - T + 1, axis=-1, late=False, low=-np.inf, more=0):
    def transformer_attention(q, k, v):
        scores = q @ k.T / scale(q.shape[1], len(k))
        mask = np.triu(np.ones(scores.shape, bool), diagonal(*scores.shape)) if diagonal else np.zeros(scores.shape, bool)
        if not late: scores[mask] = scores[mask] * bool(more) + more if more else low
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


def weights(q, k):
    """What a query takes of each key, before the division by the sum, and after it."""
    S, T, scores = len(k), len(q), q @ k.T / math.sqrt(q.shape[1])
    scores[np.arange(S) > np.arange(T)[:, None] + S - T] = -np.inf
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def unnormalized(q, k, v):
    A = weights(q, k)
    return A / A.max(1, keepdims=True) @ v


def maximum_first(q, k, v):
    """The largest score of all keys, hidden ones included, is subtracted, and then the hidden ones are left out."""
    S, T, scores = len(k), len(q), q @ k.T / math.sqrt(q.shape[1])
    e = np.exp(scores - scores.max(1, keepdims=True)) * np.tri(T, S, S - T, dtype=np.float32)
    return e / e.sum(1, keepdims=True) @ v


def of_columns(q, k, v):
    """The largest score of each key is subtracted, not that of each query."""
    S, T, scores = len(k), len(q), q @ k.T / math.sqrt(q.shape[1])
    scores[np.arange(S) > np.arange(T)[:, None] + S - T] = -np.inf
    e = np.exp(scores - scores.max(0))
    return e / e.sum(1, keepdims=True) @ v


def softmax_of_all(logits, tokens):
    """A softmax with one maximum, whose logarithm is taken where it is defined."""
    e = np.exp(logits[:, :-1] - logits.max())
    p = np.take_along_axis(e / e.sum(-1, keepdims=True), tokens[:, 1:, None], -1)
    return float(-np.log(p).mean())


def one_maximum(logits, tokens):
    """One maximum is subtracted from all logits."""
    z = logits[:, :-1] - logits.max()
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return float(-np.take_along_axis(log_p, tokens[:, 1:, None], -1).mean())


def guarded(bound=lambda p: p + 1e-12):
    def transformer_loss(logits, tokens):
        z = logits[:, :-1] - logits[:, :-1].max(-1, keepdims=True)
        p = bound(np.exp(z) / np.exp(z).sum(-1, keepdims=True))
        return float(-np.log(np.take_along_axis(p, tokens[:, 1:, None], -1)).mean())
    return transformer_loss


def sees(new=lambda row, rng: rng.standard_normal(row.shape), fresh=True, by_row=True, turned=False, in_place=False, back=False,
         of_row=lambda differs: differs.any(1), differ=lambda a, b: abs(a - b) > 1e-10):
    def transformer_sees(f, x):
        rng, y, before = np.random.default_rng(4), x if in_place else x.copy(), f(x)
        columns = []
        for j in range(len(x)):
            if fresh: y = x.copy()
            old = y[j].copy()
            y[j] = new(old, rng)
            differs = differ(f(y), before)
            columns.append(of_row(differs) if by_row else np.full(len(x), differs.any()))
            if back: y[j] = old
        return np.array(columns) if turned else np.array(columns).T
    return transformer_sees


def one_number(f, x):
    """Two loops, and one number of a row at a time."""
    T, before = len(x), f(x)
    seen = np.zeros((T, T), dtype=bool)
    for j in range(T):
        y = np.array(x)
        y[j, 0] += 0.37
        y[j, -1] -= 1.1
        for i in range(T): seen[i, j] = not np.allclose(f(y)[i], before[i], rtol=0, atol=1e-12)
    return seen


def alibi(slope=lambda h, H: 2 ** (-8 * h / H), sign=1, shift=True, hide=True):
    def transformer_alibi(T, S, H):
        bias = np.empty((H, T, S))
        for h in range(H):
            for i in range(T):
                at = i + (S - T if shift else 0)
                for j in range(S): bias[h, i, j] = -sign * slope(h + 1, H) * (at - j) if j <= at or not hide else 0
        return bias
    return transformer_alibi


WRONG = {
    "transformer.attention": [
        (attention(scale=lambda d, S: 1), "not divided by √d_head"),
        (attention(scale=lambda d, S: d), "not by its root"),
        (attention(diagonal=None), "keys of the future"),
        (attention(diagonal=lambda T, S: 1), "forgets the past"),
        (attention(diagonal=lambda T, S: S - T + 2), "the key after its own"),
        (attention(diagonal=lambda T, S: S - T), "must also see its own key"),
        (attention(axis=0), "over the queries"),
        (attention(scale=lambda d, S: 1 / math.sqrt(d)), "you multiplied"),
        (lambda q, k, v: attention(scale=lambda d, S: math.sqrt(len(q)))(q, k, v), "number of queries"),
        (attention(scale=lambda d, S: math.sqrt(S)), "number of keys"),
        (lambda q, k, v: attention()(q, k[-len(q):], v[-len(q):]), "are left out"),
        (lambda q, k, v: attention()(q, v, k), "exchanged"),
        (attention(axis=None), "over all scores"),
        (unnormalized, "do not sum to one"),
        (lambda q, k, v: weights(q, k), "the weights A"),
        (overflowing, "np.exp overflows"),
        (lambda q, k, v: F.attention(*map(tp.Tensor, (q, k, v))).data, "uses attention of the package"),
        (lambda q, k, v: attention()(q, k, v).astype(np.float64), "float64"),
        (lambda q, k, v: tp.Tensor(attention()(q, k, v)), "a Tensor"),
        (attention(late=True), "after the softmax"),
        (attention(low=0), "e⁰"),
        (attention(low=-100), "not low enough"),
        (attention(more=-1000), "near −1,000, so put"),
        (of_columns, "it changes the weights"),
        (maximum_first, "0/0 follows")],
    "transformer.loss": [
        (loss(lambda z, t: (z, t)), "are about token t + 1"),
        (loss(lambda z, t: (z[:, 1:], t[:, :-1])), "wrong way"),
        (loss(reduce=np.sum), "a sum over all positions"),
        (guarded(), "makes large losses smaller"),
        (guarded(lambda p: np.maximum(p, 1e-9)), "a bound for it"),
        (guarded(lambda p: p), "the log of the softmax"),
        (one_maximum, "the maximum of each position"),
        (softmax_of_all, "not one for all"),
        (loss(lambda z, t: (z, np.roll(t, -1, 1))), "np.roll brings"),
        (loss(lambda z, t: (z, np.roll(t, 1, 1))), "you rolled"),
        (lambda z, t: -np.mean([row[range(len(i) - 1), i[1:]] for row, i in zip(z, t, strict=True)]),
         "the softmax is missing"),
        (lambda z, t: -np.mean([row[range(len(i) - 1), i[1:]] - row[:-1].max(1) for row, i in zip(z, t, strict=True)]),
         "the last term is missing"),
        (lambda z, t: np.exp(loops(z, t)), "perplexity"),
        (lambda z, t: np.exp(-loops(z, t)), "this is a probability"),
        (lambda z, t: loops(z, t) / math.log(10), "to the base 10"),
        (lambda z, t: loops(z, t) * (t.shape[1] - 1), "divide by T − 1"),
        (loss(safe=False), "np.exp overflows"),
        (loss(axis=1), "over positions"),
        (lambda z, t: loops(z, t) / math.log(2), "in bits"),
        (lambda z, t: -loops(z, t), "the sign")],
    "transformer.count": [
        (lambda V, C, d, L: count(V, C, d, L) + V * d, "tied"),
        (lambda V, C, d, L: count(V, C, d, L) - 2 * d, "final norm"),
        (lambda V, C, d, L: count(V, C, d, L) - 9 * d * L, "biases"),
        (lambda V, C, d, L: (V + C) * d + 12 * L * d * d, "the biases and the norms"),
        (lambda V, C, d, L: count(V, C, d, L) - C * d, "position table"),
        (lambda V, C, d, L: count(V, C, d, L) - 4 * d * L, "4 d numbers are missing"),
        (lambda V, C, d, L: count(V, C, d, L) + V, "the head has no bias"),
        (lambda V, C, d, L: count(0, C, d, L), "token table is missing"),
        (lambda V, C, d, L: count(V, 0, d, L) + C, "a vector of d numbers"),
        (lambda V, C, d, L: count(V, C, d, 1), "there are L"),
        (lambda V, C, d, L: count(V, C, d, L) + 2 * d * L - 2 * d, "exists once"),
        (lambda V, C, d, L: count(V, C, d, L) - d, "both a weight and a bias"),
        (lambda V, C, d, L: count(V, C, d, L) - 2 * d * L, "two layer norms"),
        (lambda V, C, d, L: count(V, C, d, L) - 5 * d * L, "biases of the MLP"),
        (lambda V, C, d, L: count(V, C, d, L) - d * L, "a bias of d numbers"),
        (lambda V, C, d, L: count(V, C, d, L) + 3 * d * L, "bias of `down`"),
        (lambda V, C, d, L: count(V, C, d, L) - 6 * d * d * L, "(4d, d) and (d, 4d)"),
        (lambda V, C, d, L: count(V, C, d, L) * 4, "in bytes"),
        (lambda V, C, d, L: count(V, C, d, L) - L * d * (d + 1), "matrix of attention"),
        (lambda V, C, d, L: count(V, C, d, L) - L * d * (4 * d + 1), "matrix of the MLP"),
        (lambda V, C, d, L: count(V, C, d, L) - 3 * d * L, "the bias of `up`"),
        (lambda V, C, d, L: count(V, C, d, L) + 1, "another number")],
    "transformer.sees": [
        (sees(lambda row, rng: row + 1), "vanishes in a layer norm"),
        (sees(lambda row, rng: row + 1, differ=lambda a, b: ~np.isclose(a, b)), "a constant that is added to a row, or"),
        (sees(lambda row, rng: 3 * row), "a multiple of a row"),
        (sees(fresh=False), "a copy of x"),
        (sees(turned=True), "it is transposed"),
        (sees(by_row=False), "row by row"),
        (sees(lambda row, rng: 0 * row), "a row of zeros"),
        (sees(of_row=lambda differs: differs[:, 0]), "one number of each row alone"),
        (sees(of_row=lambda differs: differs.all(1)), "a change of all"),
        (sees(differ=lambda a, b: abs(a - b) > 0.3), "in any number of the row"),
        (sees(differ=lambda a, b: abs(a - b) > 1e-3), "accepted difference is too large"),
        (sees(lambda row, rng: row + 1e-12 * rng.standard_normal(row.shape), differ=np.not_equal),
         "your change of the row too small"),
        (sees(differ=lambda a, b: a.sum(1, keepdims=True) != b.sum(1, keepdims=True)), "its sum or its mean"),
        (sees(fresh=False, in_place=True, back=True), "put the old row back"),
        (sees(lambda row, rng: row + 1, differ=np.not_equal), "a difference of rounding"),
        (sees(lambda row, rng: 0 * row, differ=np.not_equal), "a row of equal numbers"),
        (sees(lambda row, rng: row * np.nan, differ=np.not_equal), "0 times NaN"),
        (sees(lambda row, rng: row * np.nan), "comparison with NaN is False"),
        (sees(lambda row, rng: row + 1, fresh=False), "begin with a fresh copy"),
        (sees(lambda row, rng: 0 * row, differ=lambda a, b: ~np.isclose(a, b)), "the NaN spreads"),
        (sees(fresh=False, in_place=True), "writes into its argument x"),
        (lambda f, x: np.tril(np.ones((len(x), len(x)), bool)), "other numbers"),
        (lambda f, x: sees()(f, x).astype(int), "dtype int64")],
    "transformer.alibi": [
        (alibi(sign=-1), "further away gets less"),
        (alibi(shift=False), "stands at i + S − T"),
        (alibi(lambda h, H: 2 ** (-8 * (h - 1) / H)), "yours begin at 1"),
        (alibi(lambda h, H: 2 ** (-8 / H)), "the same slope"),
        (alibi(lambda h, H: 2.0 ** -h), "not 2^(−h)"),
        (alibi(hide=False), "the mask hides"),
        (alibi(lambda h, H: 2 ** (-h / H)), "not 2^(−h/H)"),
        (alibi(lambda h, H: 2 ** (-8 * h)), "not 2^(−8h)"),
        (alibi(lambda h, H: 2 ** (8 * h / H)), "not 2^(8h/H)"),
        (lambda T, S, H: alibi()(T, S, H)[::-1], "in reverse order"),
        (lambda T, S, H: alibi()(T, S, H).transpose(1, 2, 0), "the heads come first"),
        (lambda T, S, H: np.where(np.arange(S) > np.arange(T)[:, None] + S - T, -np.inf, alibi()(T, S, H)), "not −∞"),
        (lambda T, S, H: alibi()(T, S, H)[0], "shape")],
}
RIGHT = {
    "transformer.attention": [row_by_row, attention(), lambda q, k, v: attention()(q, k, v).tolist()],
    "transformer.loss": [
        loops,
        loss(),
        lambda z, t: np.float32(loops(z, t)),
        lambda z, t: np.array(loops(z, t))],
    "transformer.count": [count, summed, lambda *a: float(count(*a))],
    "transformer.sees": [
        sees(),
        sees(differ=np.not_equal),
        sees(lambda row, rng: row[::-1]),
        one_number,
        lambda *a: sees()(*a).tolist()],
    "transformer.alibi": [
        alibi(),
        lambda *a: alibi()(*a).astype(np.float32),
        lambda *a: alibi()(*a).tolist()],
}
