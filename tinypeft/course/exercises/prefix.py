"""Lesson 06: trained keys and values before those of every layer."""
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor
from ..exercise import Exercise
from ..slips import inputs, slip, slips, which

__all__ = ["EXERCISES"]


# -- prefix.backward -------------------------------------------------------------------------------
def backward(q, k, v, P_K, P_V, do):
    K, V, P = np.concatenate([P_K, k]), np.concatenate([P_V, v]), len(P_K)
    root = np.sqrt(len(q))
    s = K @ q / root
    if slip("the scores are divided by √d_head before the softmax"): s = K @ q
    if slip("the softmax covers prefix and text together; you took the prefix alone"):
        s, V = s[:P], P_V
    p = np.exp(s - s.max())
    p /= p.sum()
    dp = V @ do
    if slip("the softmax covers prefix and text on the way back, too: the sum p·dp runs over both"):
        p, dp = p[:P], dp[:P]
    ds = p * (dp - p @ dp)
    if slip("on the way back through the softmax the sum p·dp is missing"): ds = p * dp
    if slip("on the way back through the softmax the factor p is missing"): ds = dp - p @ dp
    if slip("the gradient of the shares, dp, is not that of the scores: go back through the "
            "softmax"):
        ds = dp
    if slip("from dp the weighted sum p·dp is subtracted, not the mean"): ds = p * (dp - dp.mean())
    if slip("from dp the weighted sum p·dp is subtracted, not the sum"): ds = p * (dp - dp.sum())
    if slip("on the way back through the softmax dp has the sign +, and p·dp −"): ds = -ds
    dP_K, dP_V = np.outer(ds[:P], q) / root, np.outer(p[:P], do)
    if slip("dP_K lacks the division by √d_head"): dP_K = np.outer(ds[:P], q)
    if slip("the division is by √d_head, not by d_head"): dP_K = dP_K / root
    if slip("a value's gradient is its share p times do, not its score times do"):
        dP_V = np.outer(s[:P], do)
    if slip("a value's gradient is its share p times do, and not do itself"):
        dP_V = np.outer(np.ones(P), do)
    if slip("dP_K and dP_V are exchanged: return (dP_K, dP_V)"): return dP_V, dP_K
    return dP_K, dP_V


_of_sizes = inputs("q:d k:T,d v:T,d P_K:P,d P_V:P,d do:d", T=(3, 6), P=(2, 4), d=(4, 8))


def _query(rng, seen=1.0):
    """Draw one query, keys and values, and the gradient of the output."""
    q, k, v, P_K, P_V, do = _of_sizes(rng)
    return q, k, v, P_K * seen, P_V, do


def _of_the_page(rng):
    """Return the numbers of the lesson's example: q, k, v, P_K, P_V and do."""
    zero = np.zeros((1, 1))
    return np.ones(1), zero, zero + 4, zero, zero + 8, np.ones(1)


def _unseen(rng):
    """Draw a prefix whose scores are far below those of the text, so that it has no share."""
    q, k, v, P_K, P_V, do = _query(rng)
    return q, k, v, P_K - 1e4 * q, P_V, do


def _row_vector(got, expected, args):
    return np.shape(got) == np.shape(expected)[::-1] != np.shape(expected)


def _of_the_text_too(got, expected, args):
    return np.shape(got) == (len(args[1]) + len(args[3]), len(args[0]))


def _one_row(got, expected, args):
    return np.shape(got) == np.shape(args[0]) and np.ndim(expected) == 2


# -- prefix.share ----------------------------------------------------------------------------------
def share(q, k, P_K):
    P, T = len(P_K), len(k)
    root = np.sqrt(len(q))
    if slip("the scores are not divided by √d_head"): root = 1
    if slip("the scores are divided by √d_head, not by d_head"): root = len(q)
    match which("the scores are divided by √d_head, the length of q, and not by the root of a "
                "number of keys", 3):
        case 1: root = np.sqrt(P)
        case 2: root = np.sqrt(T)
        case 3: root = np.sqrt(P + T)
    s = np.concatenate([P_K, k]) @ q / root                       # (P + T,)
    if slip("this is the prefix's share of the keys; keys with a larger score get more attention"):
        return P / (P + T)
    if slip("the sums are of scores, not of their exponentials"): return s[:P].sum() / s.sum()
    e = np.exp(s - s.max())
    if slip("prefix and text had a maximum each subtracted; subtract the same one, the "
            "largest of all, or λ changes"):
        e = np.concatenate([np.exp(part - part.max()) for part in (s[:P], s[P:])])
    if slip("these are the odds of prefix against text; divide by the sum of both"):
        return e[:P].sum() / e[P:].sum()
    if slip("this is the share of the text, 1 − λ"): return e[P:].sum() / e.sum()
    if slip("λ is made of the sums over prefix and text, not of the means"):
        return e[:P].mean() / (e[:P].mean() + e[P:].mean())
    if slip("add up the probabilities of all keys of the prefix, not the largest one alone"):
        return e[:P].max() / e.sum()
    if slip("the prefix comes first: add up the first P probabilities, not the last"):
        return e[-P:].sum() / e.sum()
    if slip("the numerator is a sum over the prefix, not a mean"): return e[:P].mean() / e.sum()
    return e[:P].sum() / e.sum()


_scores = inputs("q:d k:T,d P_K:P,d", d=(3, 9), T=(3, 8), P=(1, 5))


def _far_below(rng):
    k = np.diag([9.0, 4, 4.5, 8])[[2, 1]]
    return np.full(4, -500.0), k, np.diag([9.0, 4, 4.004, 8])[[0, 2, 3]]


def _all_equal(rng):
    return np.ones(4), np.ones((6, 4)), np.ones((2, 4))


def _text_large(rng):
    return np.full(4, 5000.0), np.eye(4)[:3], 0.5 * np.eye(4)[:2]


def _prefix_large(rng):
    return np.full(4, 5000.0), 0.5 * np.eye(4)[:3], np.eye(4)[:2]


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
    P, L, H = len(table), n_layers, n_heads
    parts = table.reshape(P, 2 * L, H, -1).transpose(1, 2, 0, 3)  # (2 L, H, P, d_head)
    if slip("the row holds layer 0's keys, layer 0's values, layer 1's keys …; you read all "
            "keys first, then all values"):
        parts = _in_memory("PKLHd", table, L, H)
    if slip("within a layer the keys of all heads come first, then all values; you read "
            "keys and values head by head"):
        parts = _in_memory("PLHKd", table, L, H)
    if slip("the layer changes slowest: all heads of layer 0 come first; you read "
            "all layers of head 0 first"):
        parts = _in_memory("PHLKd", table, L, H)
    if slip("keys and values lie in blocks of d numbers, not number by number in turn"):
        parts = _in_memory("PLHdK", table, L, H)
    if slip("reshape alone does not move axes: reshape to the order in memory, (P, 2 L, "
            "H, d_head), then transpose"):
        parts = table.reshape(2 * L, H, P, -1)
    if slip("a head's columns lie together: split a part into (H, d_head), not (d_head, H)"):
        parts = table.reshape(P, 2 * L, -1, H).transpose(1, 3, 0, 2)
    if slip("reshape does not move axes: a part (P, H · d_head) becomes (P, H, d_head) by "
            "reshape, and then needs a transpose"):
        parts = np.reshape(np.split(table, 2 * L, axis=1), (2 * L, H, P, -1))
    pairs = [(parts[2 * i], parts[2 * i + 1]) for i in range(L)]
    if slip("the layers are in the wrong order: the list begins with layer 0"): return pairs[::-1]
    if slip("the values are the keys once more: they lie behind them"):
        return [(K, K) for K, V in pairs]
    if slip("return a list with one pair (K, V) for each layer, not all keys and then all values"):
        return parts[::2], parts[1::2]
    if slip("keys and values are the wrong way round"): return [(V, K) for K, V in pairs]
    return pairs


def _in_memory(order, table, L, H):
    """Cut a table whose axes have another order in memory.

    P: rows. L: layers. K: keys and values. H: heads. d: a head's columns.
    """
    sizes = {"P": len(table), "L": L, "K": 2, "H": H, "d": -1}
    parts = table.reshape([sizes[axis] for axis in order])
    parts = parts.transpose([order.index(axis) for axis in "LKHPd"])
    return parts.reshape(2 * L, H, len(table), -1)


def _tables(rng):
    P, L = int(rng.integers(5, 8)), int(rng.integers(2, 4))
    H, d_head = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    return rng.standard_normal((P, 2 * L * H * d_head)), L, H


def _other_axes(got, expected, args):
    shape, right = np.shape(got), np.shape(expected)
    return shape != right and sorted(shape) == sorted(right)


def _wrong_number(got, expected, args):
    return isinstance(got, (tuple, list)) and len(got) != len(expected)


def _heads_together(got, expected, args):
    return np.ndim(got) == 2 and np.size(got) == np.size(expected)


# -- prefix.bug ------------------------------------------------------------------------------------
def bug(T, P):
    columns = np.ones((T, P + T), bool)
    seen, positions = np.tril(columns, P), np.arange(P, P + T)
    if slip("the positions are right, but tokens still do not see all of the prefix: token t "
            "sees the columns 0 … P + t"):
        seen = np.tril(columns)
    if slip("the mask is right; the positions still begin at 0, but P virtual "
            "tokens stand before the text"):
        positions = np.arange(T)
    if slip("tokens do not see themselves: token t is column P + t, so the "
            "diagonal is P, not P − 1"):
        seen = np.tril(columns, P - 1)
    if slip("each token sees one future token: the diagonal is P, not P + 1"):
        seen = np.tril(columns, P + 1)
    if slip("the prefix is hidden from all tokens: they may see all of it"): seen[:, :P] = False
    match which("token t sees all P columns of the prefix; you let it see the first t + 1 of "
                "them, as of the text", 2):
        case 1: seen[:, :P] = np.tri(T, P)
        case 2: seen[:, :P], positions = np.tri(T, P), np.arange(T)
    match which("the diagonal of `seen` is P, whatever P is", 2):
        case 1: seen = np.tril(columns, 1)
        case 2: seen = np.tril(columns, 2)
    if slip("the prefix stands before the text: its P columns come first"):
        seen = np.roll(seen, T, axis=1)
    if slip("tokens see the prefix alone: token t also sees the tokens 0 … t"): seen[:, P:] = False
    if slip("np.triu keeps what is right of the diagonal, which is the "
            "future: np.tril keeps the past"):
        seen = np.triu(columns, P)
    if slip("the first token stands behind P virtual tokens, at P: their positions are 0 … P − 1"):
        positions = positions - 1
    if slip("these are the places that tokens may not see; True means that a token may look"):
        seen = ~seen
    if slip("the first token stands at P: its P virtual tokens have the positions 0 … P − 1"):
        positions = positions + 1
    if slip("this is the colleague's function as it was: neither result is mended"):
        return np.tril(columns), np.arange(T)
    return seen, positions


_places = inputs("T=3|8 P=2|6")


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
    if slip("n λ can be more than 1: the text's share shrinks as the prefix's grows"):
        return n * lam
    if slip("cutting n λ off at 1 is no softmax: the text keeps a share, however many copies"):
        return np.minimum(1, n * lam)
    if slip("copies are no independent chances: add their exponentials"):
        return 1 - (1 - lam) ** n
    if slip("these are the odds of n copies against the text; turn them into a share"):
        return n * lam / (1 - lam)
    if slip("the text's part is 1 − λ, not 1"): return n * lam / (1 + n * lam)
    if slip("this is the share of one of the n copies; all of them together have n times as much"):
        return lam / (1 + (n - 1) * lam)
    if slip("n copies have a larger share than one, not a smaller"): return lam / n
    if slip("the text's share is not 1/n of what it was: prefix and text have the sum 1 again"):
        return 1 - (1 - lam) / n
    if slip("n copies are n in all, not n beside the first one"): n = n + 1
    if slip("this is the share of the text"): return (1 - lam) / (1 + (n - 1) * lam)
    if slip("the exponentials add up; their exponents, the scores, do not"):
        return lam ** n / (lam ** n + (1 - lam) ** n)
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
        mistakes=slips(backward),
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
        mistakes=slips(share),
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
        mistakes=slips(cut),
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
        mistakes=slips(bug),
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
        mistakes=slips(copies),
        tolerance=1e-9,
        hints=("Let prefix and text have the sums of exponentials p and t. What is λ, and what is "
               "it if p is n times as large?",
               "lam is an array, n a number. The result has the shape of lam.",
               "Prefix against text is λ : (1 − λ), and with n copies n λ : (1 − λ). The share "
               "is the first part over the sum of both.")),
)
