"""Lesson 06: what students write, wrong and right."""
import numpy as np

import tinypeft as tp


def backward(back=lambda p, dp: p * (dp - p @ dp), of_scores=lambda q: 1 / len(q) ** 0.5, shares=lambda p, s: p, rows=slice,
             order=(0, 1), scaled=True):
    def prefix_backward(q, k, v, P_K, P_V, do):
        K, V, P = np.vstack([P_K, k]), np.vstack([P_V, v]), len(P_K)
        s = K @ q / (len(q) ** 0.5 if scaled else 1)
        p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        g = back(p, V @ do)[:, None] * q * of_scores(q), shares(p, s)[:, None] * do
        return tuple(g[i][rows(P)] for i in order)
    return prefix_backward


def by_jacobian(q, k, v, P_K, P_V, do):
    """With the softmax's Jacobian written out."""
    return backward(back=lambda p, dp: (np.diag(p) - np.outer(p, p)) @ dp)(q, k, v, P_K, P_V, do)


def back_in_the_prefix_alone(q, k, v, P_K, P_V, do):
    """The forward softmax over all keys, its Jacobian of the prefix's alone."""
    s = np.vstack([P_K, k]) @ q / len(q) ** 0.5
    p = (np.exp(s - s.max()) / np.exp(s - s.max()).sum())[:len(P_K)]
    ds = (np.diag(p) - np.outer(p, p)) @ P_V @ do
    return np.outer(ds, q) / len(q) ** 0.5, np.outer(p, do)


def of_the_prefix_alone(q, k, v, P_K, P_V, do):
    return backward()(q, k[:0], v[:0], P_K, P_V, do)


def share_with(maxima):
    """λ, with these maxima of the prefix's and of the text's scores subtracted."""
    def prefix_share(q, k, P_K):
        p, s = P_K @ q / len(q) ** 0.5, k @ q / len(q) ** 0.5
        a, b = maxima(p, s)
        p, s = np.exp(p - a).sum(), np.exp(s - b).sum()
        return p / (p + s)
    return prefix_share


def share_of(part, minus=np.max, scale=lambda d: d ** 0.5):
    """Something of all exponentials: part(them, P)."""
    def prefix_share(q, k, P_K):
        s = np.concatenate([P_K, k]) @ q / scale(len(q))
        return part(np.exp(s - minus(s)), len(P_K))
    return prefix_share


first_sum = lambda e, P: e[:P].sum() / e.sum()


def overflowing(q, k, P_K):
    with np.errstate(over="ignore", invalid="ignore"):
        p, s = (np.exp(a @ q / np.sqrt(len(q))).sum() for a in (P_K, k))
        return p / (p + s)


def by_logs(q, k, P_K):
    log_sum = lambda s: s.max() + np.log(np.exp(s - s.max()).sum())
    p, s = (log_sum(a @ q / len(q) ** 0.5) for a in (P_K, k))
    return 1 / (1 + np.exp(s - p))


def in_memory(shape, axes):
    """A cut by a shape and by axes of a table that lies in another order."""
    return lambda t, L, H: [tuple(p) for p in t.reshape(len(t), *shape(L, H)).transpose(axes)]


def cut_loop(table, n_layers, n_heads):
    d = table.shape[1] // (2 * n_layers)
    part = lambda i: np.stack([table[:, i * d:(i + 1) * d][:, h * d // n_heads:(h + 1) * d // n_heads] for h in range(n_heads)])
    return [(part(2 * i), part(2 * i + 1)) for i in range(n_layers)]


def seen_where(condition, first=lambda P: P):
    """Columns j that token t sees by `condition(t, j, P)`, and positions from `first(P)` on."""
    def prefix_bug(T, P):
        t, j = np.arange(T)[:, None], np.arange(P + T)
        return np.broadcast_to(condition(t, j, P), (T, P + T)), first(P) + np.arange(T)
    return prefix_bug


def glued(T, P):
    return np.concatenate([np.ones((T, P), bool), np.tri(T, dtype=bool)], axis=1), np.arange(P + T)[P:]


def of_odds(lam, n):
    odds = n * lam / (1 - lam)
    return odds / (1 + odds)


def by_odds(lam, n):
    with np.errstate(divide="ignore"): return 1 / (1 + (1 / lam - 1) / n)


WRONG = {
    "prefix.backward": [
        (backward(of_scores=lambda q: 1), "lacks the division by √d_head"),
        (backward(of_scores=lambda q: 1 / len(q)), "not by d_head"),
        (backward(scaled=False), "before the softmax"),
        (backward(back=lambda p, dp: p * dp), "sum p·dp is missing"),
        (backward(back=lambda p, dp: dp - p @ dp), "factor p is missing"),
        (backward(back=lambda p, dp: dp), "go back through the softmax"),
        (backward(back=lambda p, dp: p * (dp - dp.mean())), "not the mean"),
        (backward(back=lambda p, dp: p * (p @ dp - dp)), "has the sign +"),
        (backward(shares=lambda p, s: s), "not its score times do"),
        (backward(shares=lambda p, s: 1 + 0 * p), "not do itself"),
        (of_the_prefix_alone, "covers prefix and text together"),
        (back_in_the_prefix_alone, "on the way back, too"),
        (backward(order=(1, 0)), "dP_K and dP_V are exchanged"),
        (backward(rows=lambda P: slice(None)), "the prefix's rows alone"),
        (lambda *a: [g.T for g in backward()(*a)], "rows belong to virtual tokens"),
        (lambda *a: [g.sum(0) for g in backward()(*a)], "take the outer product")],
    "prefix.share": [
        (overflowing, "overflows"),
        (share_of(first_sum, lambda s: s[0]), "the largest score"),
        (share_of(first_sum, lambda s: abs(s).max()), "become 0"),
        (share_of(first_sum, scale=lambda d: d), "not by d_head"),
        (lambda q, k, P_K: share_of(first_sum, scale=lambda d: len(P_K) ** 0.5)(q, k, P_K), "a number of keys"),
        (share_of(lambda e, P: e[:P].mean() / (e[:P].mean() + e[P:].mean())), "not of the means"),
        (share_of(lambda e, P: e[:P].max() / e.sum()), "largest one alone"),
        (share_of(lambda e, P: e[-P:].sum() / e.sum()), "not the last"),
        (share_of(lambda e, P: e[:P] / e.sum()), "is one number"),
        (share_with(lambda p, s: (s.max(), s.max())), "subtract the largest score"),
        (share_with(lambda p, s: (p.max(), s.max())), "subtract the same one"),
        (lambda q, k, P_K: 1 - by_logs(q, k, P_K), "1 − λ"),
        (lambda q, k, P_K: np.exp(P_K @ q / len(q) ** 0.5).sum() / np.exp(k @ q / len(q) ** 0.5).sum(), "odds"),
        (lambda q, k, P_K: by_logs(q * len(q) ** 0.5, k, P_K), "√d_head"),
        (lambda q, k, P_K: len(P_K) / len([*P_K, *k]), "share of the keys"),
        (lambda q, k, P_K: by_logs(q, k, P_K) / P_K.shape[0], "not a mean")],
    "prefix.cut": [
        (lambda t, L, H: [(v, k) for k, v in cut_loop(t, L, H)], "wrong way round"),
        (in_memory(lambda L, H: (L, H, 2, -1), (1, 3, 2, 0, 4)), "head by head"),
        (in_memory(lambda L, H: (H, L, 2, -1), (2, 3, 1, 0, 4)), "all layers of head 0"),
        (in_memory(lambda L, H: (L, H, -1, 2), (1, 4, 2, 0, 3)), "number by number"),
        (lambda *a: cut_loop(*a)[::-1], "list begins with layer 0"),
        (lambda *a: [(k, k) for k, v in cut_loop(*a)], "the keys once more"),
        (lambda t, L, H: [*zip(*[iter(np.split(t, 2 * L, axis=1))] * 2, strict=True)], "heads are not apart"),
        (lambda *a: [(tp.Tensor(k), tp.Tensor(v)) for k, v in cut_loop(*a)], "not Tensors"),
        (lambda *a: [x for pair in cut_loop(*a) for x in pair], "one pair (K, V)"),
        (lambda t, L, H: [tuple(p) for p in t.reshape(L, 2, H, len(t), -1)], "reshape alone"),
        (lambda t, L, H: list(zip(*t.reshape(len(t), 2, L, H, -1).transpose(1, 2, 3, 0, 4), strict=True)),
         "all keys first"),
        (lambda t, L, H: [tuple(t[:, i * t.shape[1] // (2 * L):][:, :t.shape[1] // (2 * L)].reshape(H, len(t), -1)
                                for i in (2 * j, 2 * j + 1)) for j in range(L)],
         "then needs a transpose"),
        (lambda t, L, H: [(k.swapaxes(0, 1), v.swapaxes(0, 1)) for k, v in cut_loop(t, L, H)], "(H, P, d_head)")],
    "prefix.bug": [
        (seen_where(lambda t, j, P: j <= t), "positions are right"),
        (seen_where(lambda t, j, P: j <= t + P, lambda P: 0), "still begin at 0"),
        (seen_where(lambda t, j, P: j < t + P), "not P − 1"),
        (seen_where(lambda t, j, P: j <= t + P + 1), "one future token"),
        (seen_where(lambda t, j, P: (j <= t + P) & (j >= P)), "hidden from all"),
        (seen_where(lambda t, j, P: j > t + P), "may not see"),
        (seen_where(lambda t, j, P: j <= t + P, lambda P: P + 1), "first token stands at P"),
        (seen_where(lambda t, j, P: j <= t, lambda P: 0), "as it was"),
        (seen_where(lambda t, j, P: j >= 0 * t), "and so the future"),
        (seen_where(lambda t, j, P: np.where(j < P, j, j - P) <= t), "first t + 1 of them"),
        (lambda T, P: (np.ones((T, P + T), bool), np.arange(T)), "sees every column"),
        (seen_where(lambda t, j, P: j <= t + 1), "whatever P is"),
        (lambda T, P: (np.roll(glued(T, P)[0], T, axis=1), np.arange(P, P + T)), "its P columns come first"),
        (seen_where(lambda t, j, P: j < P + 0 * t), "the prefix alone"),
        (seen_where(lambda t, j, P: j >= t + P), "np.tril keeps the past"),
        (seen_where(lambda t, j, P: j <= t + P, lambda P: P - 1), "behind P virtual tokens"),
        (lambda T, P: (np.tri(P + T, dtype=bool), np.arange(P, P + T)), "has T rows"),
        (lambda T, P: (glued(T, P)[0] * 1.0, glued(T, P)[1]), "dtype bool"),
        (lambda *a: glued(*a)[::-1], "comes first, then"),
        (lambda T, P: (glued(T, P)[0], np.arange(P + T)), "of the T tokens alone")],
    "prefix.copies": [
        (lambda lam, n: n * lam, "more than 1"),
        (lambda lam, n: 1 - (1 - lam) ** n, "independent chances"),
        (lambda lam, n: np.clip(n * lam, 0, 1), "cutting"),
        (lambda lam, n: by_odds(lam, n) / n, "one of the n copies"),
        (lambda lam, n: lam / n, "not a smaller"),
        (lambda lam, n: 1 - (1 - lam) / n, "have the sum 1 again"),
        (lambda lam, n: by_odds(lam, n + 1), "n in all"),
        (lambda lam, n: 1 - by_odds(lam, n), "share of the text"),
        (lambda lam, n: n * lam / (1 + n * lam), "not 1")],
}
RIGHT = {
    "prefix.backward": [backward(), by_jacobian, lambda *a: list(backward()(*a))], "prefix.share": [
        by_logs,
        share_with(lambda p, s: 2 * [max(p.max(), s.max())]),
        lambda *a: np.array(by_logs(*a))],
    "prefix.cut": [
        cut_loop,
        lambda *a: np.array(cut_loop(*a)),
        lambda *a: tuple([k.tolist(), v.tolist()] for k, v in cut_loop(*a))],
    "prefix.bug": [
        glued,
        lambda T, P: (glued(T, P)[0], range(P, P + T)),
        seen_where(lambda t, j, P: j <= t + P),
        lambda *a: tuple(x.tolist() for x in glued(*a))],
    "prefix.copies": [by_odds, of_odds, lambda lam, n: [float(n * x / (n * x + 1 - x)) for x in lam]],
}
