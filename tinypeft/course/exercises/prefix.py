"""Lesson 06: trained keys and values before those of every layer."""
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor, concatenate
from ...peft.prefix import Prefix
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- prefix.backward -------------------------------------------------------------------------------
def backward(q, k, v, P_K, P_V, do):
    """Return dP_K and dP_V, by the engine."""
    prefix = [Tensor(a, requires_grad=True) for a in (P_K, P_V)]
    K, V = (concatenate([of_prefix, Tensor(of_text)], axis=0)
            for of_prefix, of_text in zip(prefix, (k, v), strict=True))
    F.attention(Tensor(q[None]), K, V).backward(do[None])
    return prefix[0].grad, prefix[1].grad


def _query(rng, seen=1.0):
    """Draw one query, keys and values, and the gradient of the output."""
    T, P, d = rng.integers(3, 6), rng.integers(2, 4), rng.integers(4, 8)
    q, do, k, v, P_K, P_V = (rng.standard_normal(n) for n in ((d,), (d,), *2 * [(T, d)],
                                                            *2 * [(P, d)]))
    return q, k, v, P_K * seen, P_V, do


def _of_the_page(rng):
    """Return the numbers of the lesson's example: q, k, v, P_K, P_V and do."""
    zero = np.zeros((1, 1))
    return np.ones(1), zero, zero + 4, zero, zero + 8, np.ones(1)


def _unseen(rng):
    """Draw a prefix whose scores are far below those of the text, so that it has no share."""
    q, k, v, P_K, P_V, do = _query(rng)
    return q, k, v, P_K - 1e4 * q, P_V, do


def _derived(q, k, v, P_K, P_V, do, scale=lambda d: d ** -0.5, scored=lambda d: d ** -0.5,
             through=lambda p, dp: p * (dp - p @ dp), values=lambda p, s: p, prefix_alone=False,
             back_alone=False):
    """Derive by hand, with an option where people go wrong."""
    K, V = np.concatenate([P_K, k]), np.concatenate([P_V, v])
    s = K @ q * scored(len(q))
    if prefix_alone:
        s, V = s[:len(P_K)], P_V
    p = F._softmax(s.copy(), -1)
    P = len(P_K)
    seen = slice(P) if back_alone else slice(None)
    ds = through(p[seen], V[seen] @ do)
    return np.outer(ds[:P], q) * scale(len(q)), np.outer(values(p, s)[:P], do)


def _in_other_order(*args):
    return backward(*args)[::-1]


def _row_vector(got, expected, args):
    return np.shape(got) == np.shape(expected)[::-1] != np.shape(expected)


def _of_the_text_too(got, expected, args):
    return np.shape(got) == (len(args[1]) + len(args[3]), len(args[0]))


def _one_row(got, expected, args):
    return np.shape(got) == np.shape(args[0]) and np.ndim(expected) == 2


# -- prefix.share ----------------------------------------------------------------------------------
def share(q, k, P_K):
    s = np.concatenate([P_K, k]) @ q / np.sqrt(len(q))
    return F._softmax(s, -1)[:len(P_K)].sum()


def _scores(rng):
    d = rng.integers(3, 9)
    q = rng.standard_normal(d)
    k = rng.standard_normal((rng.integers(3, 8), d))
    return q, k, rng.standard_normal((rng.integers(1, 5), d))


def _far_below(rng):
    k = np.diag([9.0, 4, 4.5, 8])[[2, 1]]
    return np.full(4, -500.0), k, np.diag([9.0, 4, 4.004, 8])[[0, 2, 3]]


def _all_equal(rng):
    return np.ones(4), np.ones((6, 4)), np.ones((2, 4))


def _text_large(rng):
    return np.full(4, 5000.0), np.eye(4)[:3], 0.5 * np.eye(4)[:2]


def _prefix_large(rng):
    return np.full(4, 5000.0), 0.5 * np.eye(4)[:3], np.eye(4)[:2]


def _of_weights(part=lambda p, P: p[:P].sum(), scale=np.sqrt):
    """Take another part of the probabilities of all P + T keys, or other scores."""
    def wrong(q, k, P_K):
        s = np.concatenate([P_K, k]) @ q / scale(len(q))
        return part(F._softmax(s, -1), len(P_K))
    return wrong


def _scaled_by_rows(count):
    """Divide the scores by the root of a number of rows: count(P, T)."""
    def wrong(q, k, P_K):
        rows = count(len(P_K), len(k))
        return _of_weights(scale=lambda d: np.sqrt(rows))(q, k, P_K)
    return wrong


def _share_of_means(p, P):
    prefix = p[:P].mean()
    return prefix / (prefix + p[P:].mean())


def _two_maxima(q, k, P_K):
    """Subtract one maximum from the prefix's scores and another from the text's."""
    p, s = P_K @ q / np.sqrt(len(q)), k @ q / np.sqrt(len(q))
    prefix = np.exp(p - p.max()).sum()
    return prefix / (prefix + np.exp(s - s.max()).sum())


def _share_of_scores(q, k, P_K):
    prefix, text = (P_K @ q).sum(), (k @ q).sum()
    return prefix / (prefix + text)


def _mixes(fn, rng):
    q, k, P_K = _scores(rng)
    v, P_V = rng.standard_normal(k.shape), rng.standard_normal(P_K.shape)
    def attend(k, v):
        return F.attention(Tensor(q[None]), Tensor(k), Tensor(v)).data
    lam = fn(q, k, P_K)
    whole = attend(np.concatenate([P_K, k]), np.concatenate([P_V, v]))
    mixed = (1 - lam) * attend(k, v) + lam * attend(P_K, P_V)
    return np.allclose(whole, mixed, atol=1e-6)


# -- prefix.cut ------------------------------------------------------------------------------------
def cut(table, n_layers, n_heads):
    prefix = Prefix(table, n_layers, n_heads, dropout=0.0, rng=None)
    return [(K.data, V.data) for K, V in prefix.seams(None)["prefix"]]


def _tables(rng):
    P, L = int(rng.integers(5, 8)), int(rng.integers(2, 4))
    H, d_head = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    return rng.standard_normal((P, 2 * L * H * d_head)), L, H


def _in_memory(order):
    """Cut a table that has another order of axes.

    P: rows. L: layers. K: keys and values. H: heads. d: a head's columns.
    """
    def wrong(table, L, H):
        sizes = {"P": len(table), "L": L, "K": 2, "H": H, "d": -1}
        parts = table.reshape([sizes[axis] for axis in order])
        return list(map(tuple, parts.transpose([order.index(axis) for axis in "LKHPd"])))
    return wrong


def _pairs(parts):
    """Pair K and V of each layer, from the parts of a row one after another."""
    return list(zip(parts[::2], parts[1::2], strict=True))


def _reshaped(t, L, H):
    return _pairs(t.reshape(2 * L, H, len(t), -1))


def _in_turn(t, L, H):
    """Take each head's columns from all over a part."""
    return _pairs(t.reshape(len(t), 2 * L, -1, H).transpose(1, 3, 0, 2))


def _parts_reshaped(t, L, H):
    parts = np.split(t, 2 * L, axis=1)
    return _pairs([a.reshape(H, len(t), -1) for a in parts])


def _other_axes(got, expected, args):
    shape, right = np.shape(got), np.shape(expected)
    return shape != right and sorted(shape) == sorted(right)


def _wrong_number(got, expected, args):
    return isinstance(got, (tuple, list)) and len(got) != len(expected)


def _halves(table, L, H):
    """Read all layers' keys first, then all layers' values."""
    parts = table.reshape(len(table), 2, L, H, -1).transpose(1, 2, 3, 0, 4)
    return list(zip(parts[0], parts[1], strict=True))


def _heads_together(got, expected, args):
    return np.ndim(got) == 2 and np.size(got) == np.size(expected)


# -- prefix.bug ------------------------------------------------------------------------------------
def bug(T, P):
    seen = np.tril(np.ones((T, P + T), bool), P)
    return seen, np.arange(P, P + T)


def _places(rng):
    return tuple(rng.integers((3, 2), (8, 6)).tolist())


def _placed(diagonal=lambda P: P, first=lambda P: P):
    """Let the mask and the positions begin elsewhere."""
    def wrong(T, P):
        seen = np.tril(np.ones((T, P + T), bool), diagonal(P))
        return seen, np.arange(T) + first(P)
    return wrong


def _seen(mask):
    """Return another mask, and the right positions."""
    return lambda T, P: (mask(T, P), np.arange(P, P + T))


def _text_alone(T, P):
    seen, _ = bug(T, P)
    seen[:, :P] = False
    return seen


def _prefix_causal(T, P):
    """Let a token see no more of the prefix than of the text."""
    return np.concatenate([np.tri(T, P, dtype=bool), np.tri(T, dtype=bool)], axis=1)


def _prefix_last(T, P):
    seen = np.ones((T, T + P), bool)
    seen[:, :T] = np.tri(T)
    return seen


def _prefix_alone(T, P):
    return np.arange(P + T) < np.full((T, 1), P)


def _future(T, P):
    return np.triu(np.ones((T, P + T), bool), P)


def _sees_all(got, expected, args):
    return np.ndim(got) == 2 and np.all(got)


def _all_positions(got, expected, args):
    T, P = args
    return np.ndim(got) == 1 and len(got) == T + P and P > 0


def _prefix_looks(got, expected, args):
    T, P = args
    return np.shape(got) == (T + P, T + P) and P > 0


def _no_bools(got, expected, args):
    same_shape = np.shape(got) == np.shape(expected)
    return same_shape and np.ndim(got) == 2 and np.asarray(got).dtype != bool


def _exchanged(got, expected, args):
    return np.ndim(got) == 1 and np.ndim(expected) == 2


# -- prefix.copies ---------------------------------------------------------------------------------
def copies(lam, n):
    return n * lam / (1 + (n - 1) * lam)


def _shares(rng):
    shares = rng.uniform(0.05, 0.95, int(rng.integers(3, 6)))
    return shares, int(rng.integers(2, 9))


EXERCISES = (
    Exercise(
        name="prefix.backward", title="What a prefix learns from", stars=3,
        kind="gradient",
        example=_of_the_page,
        reference=backward, cases=_query,
        special=(
            ("a prefix that the query does not look at: both gradients are zero", _unseen),
            ("keys of zeros: each has a share, and learns", partial(_query, seen=0.0))),
        mistakes=(
            ("dP_K lacks the division by √d_head", partial(_derived, scale=lambda d: 1)),
            ("the division is by √d_head, not by d_head", partial(_derived, scale=lambda d: 1 / d)),
            ("the scores are divided by √d_head before the softmax",
             partial(_derived, scored=lambda d: 1)),
            ("on the way back through the softmax the sum p·dp is missing",
             partial(_derived, through=lambda p, dp: p * dp)),
            ("on the way back through the softmax the factor p is missing",
             partial(_derived, through=lambda p, dp: dp - p @ dp)),
            ("the gradient of the shares, dp, is not that of the scores: go back through the "
             "softmax", partial(_derived, through=lambda p, dp: dp)),
            ("from dp the weighted sum p·dp is subtracted, not the mean",
             partial(_derived, through=lambda p, dp: p * (dp - dp.mean()))),
            ("from dp the weighted sum p·dp is subtracted, not the sum",
             partial(_derived, through=lambda p, dp: p * (dp - dp.sum()))),
            ("on the way back through the softmax dp has the sign +, and p·dp −",
             partial(_derived, through=lambda p, dp: p * (p @ dp - dp))),
            ("a value's gradient is its share p times do, not its score times do",
             partial(_derived, values=lambda p, s: s)),
            ("a value's gradient is its share p times do, and not do itself",
             partial(_derived, values=lambda p, s: np.ones_like(p))),
            ("the softmax covers prefix and text together; you took the prefix alone",
             partial(_derived, prefix_alone=True)),
            ("the softmax covers prefix and text on the way back, too: the sum p·dp runs over both",
             partial(_derived, back_alone=True)),
            ("dP_K and dP_V are exchanged: return (dP_K, dP_V)", _in_other_order)),
        symptoms=(
            ("rows belong to virtual tokens: (P, d_head)", _row_vector),
            ("return the prefix's rows alone, the first P", _of_the_text_too),
            ("each virtual token has a gradient of its own: take the outer product", _one_row)),
        tolerance=1e-7,
        hints=("Which part of o does one row of P_V make, and how large is it? Through which "
               "number does a row of P_K reach o?",
               "p, dp = [P_V; v] do and ds are (P + T,). dP_K and dP_V are outer products, "
               "(P, d_head).",
               "dp = V @ do; ds = p * (dp - p @ dp); np.outer(ds[:P], q) / np.sqrt(len(q)) and "
               "np.outer(p[:P], do).")),
    Exercise(
        name="prefix.share", title="The prefix's share of attention", stars=3,
        kind="design",
        example=lambda rng: (np.ones(1), np.zeros((1, 1)), np.array([[np.log(3)]])),
        reference=share, cases=_scores,
        special=(
            ("all keys are equal: λ is P/(P + T)", _all_equal),),
        extremes=(
            ("scores in the thousands, the text's larger, where exp overflows", _text_large),
            ("scores in the thousands, the prefix's larger", _prefix_large),
            ("scores of −1000 and less, the prefix's last one the largest", _far_below)),
        invariants=(
            ("λ is the weight that mixes the two attentions (equation 3)", _mixes),),
        mistakes=(
            ("these are the odds of prefix against text; divide by the sum of both",
             _of_weights(lambda p, P: p[:P].sum() / p[P:].sum())),
            ("prefix and text had a maximum each subtracted; subtract the same one, the "
             "largest of all, or λ changes",
             _two_maxima),
            ("this is the share of the text, 1 − λ", _of_weights(lambda p, P: p[P:].sum())),
            ("the scores are not divided by √d_head", _of_weights(scale=lambda d: 1)),
            ("the scores are divided by √d_head, not by d_head", _of_weights(scale=lambda d: d)),
            *several("the scores are divided by √d_head, the length of q, and not by the root of a "
                     "number of keys",
                     _scaled_by_rows(lambda P, T: P),
                     _scaled_by_rows(lambda P, T: T),
                     _scaled_by_rows(lambda P, T: P + T)),
            ("λ is made of the sums over prefix and text, not of the means",
             _of_weights(_share_of_means)),
            ("add up the probabilities of all keys of the prefix, not the largest one alone",
             _of_weights(lambda p, P: p[:P].max())),
            ("the prefix comes first: add up the first P probabilities, not the last",
             _of_weights(lambda p, P: p[-P:].sum())),
            ("this is the prefix's share of the keys; keys with a larger score get more attention",
             lambda q, k, P_K: len(P_K) / (len(P_K) + len(k))),
            ("the numerator is a sum over the prefix, not a mean",
             _of_weights(lambda p, P: p[:P].mean())),
            ("the sums are of scores, not of their exponentials", _share_of_scores)),
        symptoms=(
            ("exp overflows, or all exponentials become 0: subtract the largest score, of prefix "
             "and text together; λ stays the same",
             lambda got, expected, args: not np.isfinite(got)),
            ("λ is one number: the sum over the prefix is missing",
             lambda got, expected, args: np.shape(got) == (len(args[2]),))),
        hints=("Does λ change if one number is subtracted from all scores? Must it be the same "
               "number for prefix and text?",
               "P_K @ q is (P,), k @ q is (T,). Both are divided by √d_head. λ is one number.",
               "s = np.concatenate([P_K, k]) @ q / np.sqrt(len(q)); e = np.exp(s - s.max()); λ "
               "is the sum of the first P entries of e over the sum of all.")),
    Exercise(
        name="prefix.cut", title="From the table to keys and values", stars=2,
        kind="design",
        reference=cut, cases=_tables,
        mistakes=(
            ("the row holds layer 0's keys, layer 0's values, layer 1's keys …; you read all "
             "keys first, then all values",
             _halves),
            ("within a layer the keys of all heads come first, then all values; you read "
             "keys and values head by head",
             _in_memory("PLHKd")),
            ("the layer changes slowest: all heads of layer 0 come first; you read "
             "all layers of head 0 first",
             _in_memory("PHLKd")),
            ("keys and values lie in blocks of d numbers, not number by number in turn",
             _in_memory("PLHdK")),
            ("the layers are in the wrong order: the list begins with layer 0",
             lambda t, L, H: cut(t, L, H)[::-1]),
            ("the values are the keys once more: they lie behind them",
             lambda t, L, H: [(k, k) for k, v in cut(t, L, H)]),
            ("return a list with one pair (K, V) for each layer, not all keys and then all values",
             lambda t, L, H: tuple(np.array(part) for part in zip(*cut(t, L, H), strict=True))),
            ("keys and values are the wrong way round",
             lambda t, L, H: [(v, k) for k, v in cut(t, L, H)]),
            ("reshape alone does not move axes: reshape to the order in memory, (P, 2 L, "
             "H, d_head), then transpose",
             _reshaped),
            ("a head's columns lie together: split a part into (H, d_head), not (d_head, H)",
             _in_turn),
            ("reshape does not move axes: a part (P, H · d_head) becomes (P, H, d_head) by "
             "reshape, and then needs a transpose",
             _parts_reshaped)),
        symptoms=(
            ("the axes of each K and V are (H, P, d_head), in this order", _other_axes),
            ("the heads are not apart yet: split the columns of each K and V into (H, d_head)",
             _heads_together),
            ("keys and values are NumPy arrays here, not Tensors",
             lambda got, expected, args: isinstance(got[0][0], Tensor)),
            ("return a list with one pair (K, V) for each layer", _wrong_number)),
        hints=("In which order do the numbers of a row lie? Which index changes "
               "slowest, and which fastest?",
               "A row is (L, 2, H, d_head), so the table is (P, L, 2, H, d_head). K and V of a "
               "layer are (H, P, d_head).",
               "Reshape to (P, L, 2, H, -1), then transpose to (L, 2, H, P, d_head). parts[l, "
               "0] is the K of layer l, and parts[l, 1] its V.")),
    Exercise(
        name="prefix.bug", title="Find the bug: a prefix that does harm", stars=2,
        kind="fault",
        reference=bug, cases=_places,
        special=(
            ("no prefix: an ordinary causal mask, and positions from 0", lambda rng: (4, 0)),),
        mistakes=(
            ("the positions are right, but tokens still do not see all of the prefix: token t "
             "sees the columns 0 … P + t",
             _placed(diagonal=lambda P: 0)),
            ("the mask is right; the positions still begin at 0, but P virtual "
             "tokens stand before the text",
             _placed(first=lambda P: 0)),
            ("tokens do not see themselves: token t is column P + t, so the "
             "diagonal is P, not P − 1",
             _placed(diagonal=lambda P: P - 1)),
            ("each token sees one future token: the diagonal is P, not P + 1",
             _placed(diagonal=lambda P: P + 1)),
            ("the prefix is hidden from all tokens: they may see all of it", _seen(_text_alone)),
            *several("token t sees all P columns of the prefix; you let it see the first t + 1 of "
                     "them, as of the text",
                     _seen(_prefix_causal),
                     lambda T, P: (_prefix_causal(T, P), np.arange(T))),
            ("the diagonal of `seen` is P, whatever P is", _placed(diagonal=lambda P: 1)),
            ("the diagonal of `seen` is P, whatever P is", _placed(diagonal=lambda P: 2)),
            ("the prefix stands before the text: its P columns come first", _seen(_prefix_last)),
            ("tokens see the prefix alone: token t also sees the tokens 0 … t",
             _seen(_prefix_alone)),
            ("np.triu keeps what is right of the diagonal, which is the "
             "future: np.tril keeps the past",
             _seen(_future)),
            ("the first token stands behind P virtual tokens, at P: their positions are 0 … P − 1",
             _placed(first=lambda P: P - 1)),
            ("these are the places that tokens may not see; True means that a token may look",
             _seen(lambda T, P: ~bug(T, P)[0])),
            ("the first token stands at P: its P virtual tokens have the positions 0 … P − 1",
             _placed(first=lambda P: P + 1)),
            ("this is the colleague's function as it was: neither result is mended",
             _placed(diagonal=lambda P: 0, first=lambda P: 0))),
        symptoms=(
            ("every token sees every column, and so the future: token t sees the columns 0 … P + t",
             _sees_all),
            ("`positions` are those of the T tokens alone: P … P + T − 1", _all_positions),
            ("only the T tokens look: `seen` has T rows, and P + T columns", _prefix_looks),
            ("`seen` holds True where a token may look and False elsewhere: dtype bool", _no_bools),
            ("`seen` comes first, then `positions`", _exchanged)),
        tolerance=0,
        hints=("For T = 3 and P = 2: which of the five columns may the first token see? At "
               "which position does it stand?",
               "`seen` is (T, P + T): P columns for the prefix, then T for the text. `positions` "
               "is (T,) and begins behind the prefix.",
               "np.tril(a, k) keeps what lies up to k places right of the diagonal: use k = P. "
               "The positions are np.arange(P, P + T).")),
    Exercise(
        name="prefix.copies", title="Copies of a prefix", stars=3,
        kind="design",
        reference=copies, cases=_shares,
        special=(
            ("one copy: λ itself", lambda rng: (np.array([0.1, 0.5, 0.9]), 1)),
            ("a share of 0 stays 0", lambda rng: (np.array([0.0, 0.5]), 3)),
            ("λ = 1/2, three copies: 3/4", lambda rng: (np.array([0.5, 0.5]), 3))),
        mistakes=(
            ("n λ can be more than 1: the text's share shrinks as the prefix's grows",
             lambda lam, n: n * lam),
            ("cutting n λ off at 1 is no softmax: the text keeps a share, however many copies",
             lambda lam, n: np.minimum(1, n * lam)),
            ("copies are no independent chances: add their exponentials",
             lambda lam, n: 1 - (1 - lam) ** n),
            ("these are the odds of n copies against the text; turn them into a share",
             lambda lam, n: n * lam / (1 - lam)),
            ("the text's part is 1 − λ, not 1", lambda lam, n: n * lam / (1 + n * lam)),
            ("this is the share of one of the n copies; all of them together have n times as much",
             lambda lam, n: lam / (1 + (n - 1) * lam)),
            ("n copies have a larger share than one, not a smaller", lambda lam, n: lam / n),
            ("the text's share is not 1/n of what it was: prefix and text have the sum 1 again",
             lambda lam, n: 1 - (1 - lam) / n),
            ("n copies are n in all, not n beside the first one",
             lambda lam, n: copies(lam, n + 1)),
            ("this is the share of the text", lambda lam, n: (1 - lam) / (1 + (n - 1) * lam)),
            ("the exponentials add up; their exponents, the scores, do not",
             lambda lam, n: lam ** n / (lam ** n + (1 - lam) ** n))),
        tolerance=1e-9,
        hints=("Let prefix and text have the sums of exponentials p and t. What is λ, and what is "
               "it if p is n times as large?",
               "lam is an array, n a number. The result has the shape of lam.",
               "Prefix against text is λ : (1 − λ), and with n copies n λ : (1 − λ). The share "
               "is the first part over the sum of both.")),
)
