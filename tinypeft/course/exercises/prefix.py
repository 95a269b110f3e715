"""Lesson 06: trained keys and values before those of every layer."""
import numpy as np

from ... import functional as F
from ...peft.prefix import Prefix
from ...tensor import Tensor, concatenate
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- prefix.attention ------------------------------------------------------------------------------
def attention(q, k, v, P_K, P_V):
    return F.attention(q, concatenate([P_K, k], axis=0), concatenate([P_V, v], axis=0))


def _head(rng, T=None, P=None):
    T, P, d = T or rng.integers(2, 7), P or rng.integers(2, 5), rng.integers(3, 9)
    return tuple(Tensor(rng.standard_normal((n, d)).astype(np.float32)) for n in (T, T, T, P, P))


def _masked(q, k, v, P_K, P_V, offset, scale=None, mask=True):
    """The composition, with the places where people go wrong left open."""
    K, V = concatenate([P_K, k], axis=0), concatenate([P_V, v], axis=0)
    T, S = q.shape[0], K.shape[0]
    M = np.triu(np.full((T, S), -np.inf, np.float32), offset) if mask else 0.0
    return F.softmax(q @ K.T * (q.shape[1] ** -0.5 if scale is None else scale) + M) @ V


# -- prefix.share ----------------------------------------------------------------------------------
def share(q, k, P_K):
    s = np.concatenate([P_K, k]) @ q / np.sqrt(len(q))
    return F._softmax(s, -1)[:len(P_K)].sum()


def _scores(rng, size=1.0):
    d = rng.integers(3, 9)
    return (size * rng.standard_normal(d), rng.standard_normal((rng.integers(3, 8), d)), rng.standard_normal((rng.integers(1, 5), d)))


def _exp_share(q, k, P_K, scale=True):
    s, p = k @ q, P_K @ q
    if scale: s, p = s / np.sqrt(len(q)), p / np.sqrt(len(q))
    return np.exp(p).sum(), np.exp(s).sum()


def _mixes(fn, rng):
    q, k, P_K = _scores(rng)
    v, P_V = rng.standard_normal(k.shape), rng.standard_normal(P_K.shape)
    attend = lambda k, v: F.attention(Tensor(q[None]), Tensor(k), Tensor(v)).data
    lam = fn(q, k, P_K)
    whole = attend(np.concatenate([P_K, k]), np.concatenate([P_V, v]))
    return np.allclose(whole, (1 - lam) * attend(k, v) + lam * attend(P_K, P_V), atol=1e-6)


# -- prefix.count ----------------------------------------------------------------------------------
def count(P, L, d, m):
    return P * d + (d * m + m) + (2 * L * d * m + 2 * L * d), 2 * P * L * d


# -- prefix.cut ------------------------------------------------------------------------------------
def cut(table, n_layers, n_heads):
    prefix = Prefix(table, n_layers, n_heads, dropout=0.0, rng=None)
    return [(K.data, V.data) for K, V in prefix.seams(None)["prefix"]]


def _table(rng):
    P, L, H, d_head = rng.integers(5, 8), rng.integers(2, 4), rng.integers(2, 4), rng.integers(2, 5)
    return rng.standard_normal((P, 2 * L * H * d_head)), int(L), int(H)


def _halves(table, L, H):
    """All layers' keys first, then all layers' values."""
    parts = table.reshape(len(table), 2, L, H, -1).transpose(1, 2, 3, 0, 4)
    return list(zip(parts[0], parts[1], strict=True))


EXERCISES = (
    Exercise(
        name="prefix.attention", title="Attention with a prefix", stars=2,
        reference=attention, cases=_head, gradient=("q", "k", "v", "P_K", "P_V"),
        special=(("one token, which sees everything", lambda rng: _head(rng, T=1)),),
        avoids=("attention",),
        mistakes=(
            ("the mask begins at column 1, as without a prefix, so tokens cannot see all of the prefix; the diagonal is P + 1",
             lambda q, k, v, P_K, P_V: _masked(q, k, v, P_K, P_V, 1)),
            ("each token sees one future token: the diagonal of the mask is P + 1, not P + 2",
             lambda q, k, v, P_K, P_V: _masked(q, k, v, P_K, P_V, P_K.shape[0] + 2)),
            ("tokens do not see themselves: the diagonal of the mask is P + 1, not P",
             lambda q, k, v, P_K, P_V: _masked(q, k, v, P_K, P_V, P_K.shape[0])),
            ("there is no causal mask: token t may not look at later tokens",
             lambda q, k, v, P_K, P_V: _masked(q, k, v, P_K, P_V, 0, mask=False)),
            ("the scores are not divided by √d_head",
             lambda q, k, v, P_K, P_V: _masked(q, k, v, P_K, P_V, P_K.shape[0] + 1, 1.0)),
            ("you put the prefix behind the text; it comes first, as a past that all tokens see",
             lambda q, k, v, P_K, P_V: _masked(q, P_K, P_V, k, v, P_K.shape[0] + 1)),
            ("prefix and text are normalised separately and added; one softmax must cover both",
             lambda q, k, v, P_K, P_V: F.attention(q, k, v) + F.attention(q, P_K, P_V, causal=False))),
        hints=("Which columns may token t see: how many of the prefix, and how many of the text?",
               "K and V are (P + T, d). The scores and the mask M are (T, P + T). Token t sees the columns 0 … P + t.",
               "K = tp.concatenate([P_K, k], axis=0), and V likewise. M = np.triu(np.full((T, P + T), −np.inf, "
               "np.float32), P + 1). Then F.softmax(q @ K.T * d**−0.5 + M) @ V.")),
    Exercise(
        name="prefix.share", title="The prefix's share of attention", stars=2,
        reference=share, cases=_scores,
        special=(
            ("all keys are equal: λ is P/(P + S)", lambda rng: (np.ones(4), np.ones((6, 4)), np.ones((2, 4)))),
            ("scores in the thousands, the text's larger, where exp overflows",
             lambda rng: (np.full(4, 5000.0), np.eye(4)[:3], 0.5 * np.eye(4)[:2])),
            ("scores in the thousands, the prefix's larger",
             lambda rng: (np.full(4, 5000.0), 0.5 * np.eye(4)[:3], np.eye(4)[:2]))),
        invariants=(
            ("λ is the weight that mixes the two attentions (equation 4)", _mixes),),
        mistakes=(
            ("these are the odds of prefix against text; divide by the sum of both",
             lambda q, k, P_K: (lambda p, s: p / s)(*_exp_share(q, k, P_K))),
            ("prefix and text had a maximum each subtracted; subtract the same one, the largest of all, or λ changes",
             lambda q, k, P_K: (lambda p, s: np.exp(p - p.max()).sum() / (np.exp(p - p.max()).sum() + np.exp(s - s.max()).sum()))(
                 P_K @ q / np.sqrt(len(q)), k @ q / np.sqrt(len(q)))),
            ("this is the share of the text, 1 − λ", lambda q, k, P_K: 1 - share(q, k, P_K)),
            ("the scores are not divided by √d_head",
             lambda q, k, P_K: (lambda p, s: p / (p + s))(*_exp_share(q, k, P_K, False))),
            ("the sums are of scores, not of their exponentials",
             lambda q, k, P_K: (P_K @ q).sum() / ((P_K @ q).sum() + (k @ q).sum()))),
        symptoms=(
            ("exp overflows: subtract the largest score, of prefix and text together; λ stays the same",
             lambda got, expected, arguments: not np.isfinite(got)),),
        hints=("Does λ change if one number is subtracted from all scores? Must it be the same number for prefix and text?",
               "P_K @ q is (P,), k @ q is (S,). Both are divided by √d_head. λ is one number.",
               "s = np.concatenate([P_K, k]) @ q / √d_head; e = np.exp(s − s.max()); λ is the sum of the first P entries "
               "of e over the sum of all.")),
    Exercise(
        name="prefix.count", title="Parameters trained and parameters stored", stars=1,
        reference=count,
        cases=lambda rng: tuple(int(n) for n in (rng.integers(2, 30), rng.integers(2, 12), 8 * rng.integers(2, 20), rng.integers(9, 300))),
        mistakes=(
            ("the biases of the two layers are missing",
             lambda P, L, d, m: (P * d + d * m + 2 * L * d * m, 2 * P * L * d)),
            ("a virtual token has a key and a value in every layer: 2 L d, not L d",
             lambda P, L, d, m: (P * d + (d * m + m) + (L * d * m + L * d), P * L * d)),
            ("the counts of trained and stored numbers are the wrong way round",
             lambda P, L, d, m: count(P, L, d, m)[::-1]),
            ("P′ is missing: it is trained too", lambda P, L, d, m: (count(P, L, d, m)[0] - P * d, 2 * P * L * d)),
            ("the network is dropped after training: only the table is stored",
             lambda P, L, d, m: (count(P, L, d, m)[0],) * 2),
            ("the network computes the table, so the table itself is not trained",
             lambda P, L, d, m: (count(P, L, d, m)[0] + 2 * P * L * d, 2 * P * L * d))),
        tolerance=0,
        hints=("Which part of the network is still needed after training?",
               "P′ is (P, d). The two layers are (m, d) and (2 L d, m), with m and 2 L d biases. The table is (P, 2 L d).",
               "Trained: P d, d m + m, and 2 L d m + 2 L d. Stored: the table alone.")),
    Exercise(
        name="prefix.cut", title="From the table to keys and values", stars=2,
        reference=cut, cases=_table,
        mistakes=(
            ("the row holds layer 0's keys, layer 0's values, layer 1's keys …; you read all keys first, then all values",
             _halves),
            ("keys and values are the wrong way round", lambda t, L, H: [(v, k) for k, v in cut(t, L, H)]),
            ("reshape alone does not move axes: reshape to the order in memory, (P, 2 L, H, d_head), then transpose",
             lambda t, L, H: (lambda p: [(p[2 * i], p[2 * i + 1]) for i in range(L)])(t.reshape(2 * L, H, len(t), -1))),
            ("a head's columns lie together: split a part into (H, d_head), not (d_head, H)",
             lambda t, L, H: (lambda p: [(p[2 * i], p[2 * i + 1]) for i in range(L)])(
                 t.reshape(len(t), 2 * L, -1, H).transpose(1, 3, 0, 2)))),
        symptoms=(
            ("the axes of each K and V are (H, P, d_head), in this order",
             lambda got, expected, arguments: np.shape(got) != np.shape(expected)
             and sorted(np.shape(got)) == sorted(np.shape(expected))),),
        hints=("In which order do the numbers of a row lie? Which index changes slowest, and which fastest?",
               "A row is (L, 2, H, d_head), so the table is (P, L, 2, H, d_head). K and V of a layer are (H, P, d_head).",
               "Reshape to (P, L, 2, H, −1), then transpose to (L, 2, H, P, d_head). parts[l, 0] is the K of layer l, and "
               "parts[l, 1] its V.")),
)
