"""Lesson 02: attention, who sees whom, the loss of a language model, and its size."""
import math
from functools import partial

import numpy as np

from ...engine import plain
from ...engine.tensor import Tensor
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- transformer.attention -------------------------------------------------------------------------
def attention(q, k, v):
    if slip("the keys before the queries are left out; all queries see them"):
        k, v = k[-len(q):], v[-len(q):]
    if slip("k and v are exchanged"): k, v = v, k
    (T, d), S = q.shape, len(k)
    root = math.sqrt(d)
    if slip("the scores are not divided by √d_head"): root = 1
    if slip("the scores are divided by d_head, not by its root"): root = d
    if slip("you divided by the root of the number of keys; divide by the root of d_head"):
        root = math.sqrt(S)
    if slip("you divided by the root of the number of queries; divide by the root of d_head"):
        root = math.sqrt(T)
    if slip("you multiplied by √d_head; divide by it"): root = 1 / root
    scores = q @ k.T / root                                       # (T, S)
    hidden = np.arange(S) > np.arange(T)[:, None] + S - T
    low = np.array(-np.inf, scores.dtype)
    if slip("there is no mask: a query sees keys of the future"): hidden = np.zeros((T, S), bool)
    if slip("the mask forgets the past: query i stands at position i + S − T"):
        hidden = np.arange(S) > np.arange(T)[:, None]
    if slip("the mask is off by one: your query sees the key after its own"):
        hidden = np.arange(S) > np.arange(T)[:, None] + S - T + 1
    match which("the mask is off by one: a query must also see its own key", 2):
        case 1: hidden = np.arange(S) >= np.arange(T)[:, None] + S - T
        case 2: hidden, low = np.arange(S) >= np.arange(T)[:, None] + S - T, np.float32(-1e30)
    if slip("a hidden score of 0 still has the weight e⁰ = 1: put −∞ in its place"):
        low = np.array(0, scores.dtype)
    late = slip("you masked after the softmax, so the remaining weights no longer sum to one; put "
                "−∞ into the scores before it")
    if not late: scores = np.where(hidden, low, scores)
    A = np.exp(scores - scores.max(-1, keepdims=True))
    if slip("the maximum that you subtract runs over the queries, and so it changes the weights: "
            "each row of scores has its own, over the keys"):
        A = np.exp(scores - scores.max(0, keepdims=True))
    if not slip("the weights of a row do not sum to one: divide by the sum of the row"):
        A = A / A.sum(-1, keepdims=True)
    if slip("the softmax runs over all scores; each row has its own"): A = softmax(scores, None)
    if slip("the softmax runs over the queries; it must run over the keys"): A = softmax(scores, 0)
    if late: A = A * ~hidden
    return A @ v


def softmax(scores, axis):
    A = np.exp(scores - scores.max(axis, keepdims=True))
    return A / A.sum(axis, keepdims=True)


def keeps_ones(fn, rng):
    q, k = rng.standard_normal((3, 4)), rng.standard_normal((5, 4))
    return np.allclose(fn(q, k, np.ones((5, 4))), 1)


def first_sees_nothing(got, expected, args):
    """Has the first query, without a past, no key to see?"""
    q, k, _ = args
    nothing = np.isnan(got).all(1)
    return len(q) == len(k) and nothing[0] and not np.isnan(got[1:]).any()


def weights_alone(got, expected, args):
    q, k, _ = args
    return got.shape == (len(q), len(k)) != expected.shape


def large_scores(rng):
    """Draw whole numbers, with √d_head = 2: scores of about 1,000 are exact in float32."""
    def draw(n):
        return rng.integers(-30, 31, (n, 4)).astype(np.float32)
    return draw(3), draw(5), draw(5)


def hidden_and_large(rng):
    """Draw seen scores near −1,000 and hidden ones near 1,000, exact in float32.

    q kᵀ/√4 is kᵀ in three columns.
    """
    seen = np.arange(5)[:, None] <= np.arange(3) + 2
    k = np.zeros((5, 4), np.float32)
    noise = rng.integers(-2, 3, (5, 3))
    k[:, :3] = np.where(seen, -1000, 1000) + noise
    v = rng.integers(-9, 10, (5, 4)).astype(np.float32)
    return 2 * np.eye(3, 4, dtype=np.float32), k, v


def attention_cases(rng, T=None, past=None):
    T = T or int(rng.integers(3, 6))
    past = int(rng.integers(1, 4)) if past is None else past
    d = int(rng.integers(3, 7))
    def draw(n):
        return rng.standard_normal((n, d)).astype(np.float32)
    return draw(T), draw(T + past), draw(T + past)


# -- transformer.sees ------------------------------------------------------------------------------
def sees(f, x):
    equal = which("a row of equal numbers gives 0/0 in a layer norm or a division by its length, "
                  "and the NaN spreads to rows that do not see it: put random numbers into the "
                  "row", 2)
    endless = which("0 times NaN or infinity is NaN, so also rows that do not see row j become "
                    "NaN: put finite random numbers into the row", 2)
    writes = which("your function writes into its argument x, or the rows stay changed: "
                   "begin each time with a copy of x", 2)
    back = slip("you write into x and put the old row back; but f may return x itself, and then "
                "f(x) changes with x: begin each time with a copy of x")
    rng, before = np.random.default_rng(0), f(x)
    last = None
    seen = np.zeros((len(x), len(x)), bool)
    for j in range(len(x)):
        y = x.copy()
        match writes:
            case 1 if j: y = last
            case 2: y = x
        if back: y, old = x, x[j].copy()
        y[j] = rng.standard_normal(x.shape[1])
        if slip("a constant that is added to a row vanishes in a layer norm: put "
                "random numbers into the row"):
            y[j] = x[j] + 1
        if slip("a multiple of a row may change nothing, and a row of zeros gives 0/0 in a layer "
                "norm: put random numbers into the row"):
            y[j] = 2 * x[j]
        match equal:
            case 1: y[j] = 0
            case 2: y[j] = 1
        match endless:
            case 1: y[j] = np.nan
            case 2: y[j] = np.inf
        distance = abs(f(y) - before)
        changed = distance > 1e-9
        if equal or endless: changed = ~(distance <= 1e-9)        # NaN counts
        seen[:, j] = changed.any(-1)
        if slip("compare row by row: this says only that some row has changed"):
            seen[:, j] = changed.any()
        if slip("a row has changed if any of its numbers has: do not compare one number of each "
                "row alone, its sum or its mean, and do not ask for a change of all"):
            seen[:, j] = changed.all(-1)
        if back: y[j] = old
        last = y
    if slip("it is transposed: i is the row of the output, and j the row of the input"):
        return seen.T
    return seen


class Readers:
    """Models of rows (T, d) → (T, d). On which rows of the input does a row of f(x) depend?"""

    @staticmethod
    def causal(x, ahead=0, behind=99):
        """Attention with equal queries, keys and values.

        ahead: how many later rows are seen. behind: how many earlier ones.
        """
        i, j = np.arange(len(x))[:, None], np.arange(len(x))
        seen = (j <= i + ahead) & (j >= i - behind)
        scores = np.where(seen, 0.1 * x @ x.T, -np.inf)
        return plain.softmax(Tensor(scores)).data @ x

    @staticmethod
    def off_by_one(x):
        return Readers.causal(x, ahead=1)

    @staticmethod
    def without_mask(x):
        return Readers.causal(x, ahead=99)

    @staticmethod
    def window(x):
        return Readers.causal(x, behind=1)

    @staticmethod
    def normalized(x):
        """Causal, behind a layer norm, which does not notice a constant that is added to a row."""
        centred = x - x.mean(-1, keepdims=True)
        return Readers.causal(centred / x.std(-1, keepdims=True))

    @staticmethod
    def centred(x):
        """A "layer norm" over the wrong axis: each row depends on all."""
        return x - x.mean(0)

    @staticmethod
    def scaled(x):
        """Causal, and each row is divided by its length: a multiple of it would change nothing."""
        return Readers.causal(x / np.linalg.norm(x, axis=-1, keepdims=True))

    @staticmethod
    def opposite(x):
        """Causal, but only two numbers of a row tell it, with the sum 0; the others stay 0."""
        return Readers.causal(x)[:, -1:] * np.array([0, 1, 0, -1, 0])

    @staticmethod
    def faint(x):
        """Causal, with a millionth of the mean over all rows."""
        return Readers.causal(x) + 1e-6 * x.mean(0)

    @staticmethod
    def itself(x):
        return x


READERS = (Readers.causal, Readers.off_by_one, Readers.without_mask, Readers.window,
           Readers.normalized, Readers.centred, Readers.scaled, Readers.opposite, Readers.faint,
           Readers.itself)


def where(reader, holds):
    """Make a symptom for the case of one of the readers."""
    return lambda got, expected, args: args[0] is reader and holds(got, expected)


def misses(got, expected):
    """Are some changes not seen, and none too many?"""
    return (expected & ~got).any() and not (got & ~expected).any()


def too_many(got, expected):
    return (got & ~expected).any()


ANY = ("a row has changed if any of its numbers has: do not compare one number of each row alone, "
       "its sum or its mean, and do not ask for a change of all")
EQUAL = ("a row of equal numbers gives 0/0 in a layer norm or a division by its length, and the "
         "NaN spreads to rows that do not see it: put random numbers into the row")


def sees_cases(rng, f=None):
    f = f or READERS[rng.integers(len(READERS))]
    return f, rng.standard_normal((int(rng.integers(4, 7)), 5))


# -- transformer.loss ------------------------------------------------------------------------------
def loss(logits, tokens):
    z, targets = logits[:, :-1], tokens[:, 1:]
    if slip("the logits at t are compared with token t; they are about token t + 1"):
        z, targets = logits, tokens
    if slip("you shifted the wrong way: the logits at t + 1 are compared with token t"):
        z, targets = logits[:, 1:], tokens[:, :-1]
    if slip("np.roll brings the first token to the end: the last position has no "
            "next token, so leave it out"):
        z, targets = logits, np.roll(tokens, -1, 1)
    if slip("you rolled the wrong way: the logits at t are about token t + 1"):
        z, targets = logits, np.roll(tokens, 1, 1)
    raw = z
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    if slip("these are logits and not logarithms of probabilities: the softmax is missing"):
        log_p = raw
    if slip("the log softmax is z − max − log Σ exp(z − max): the last term is missing"): log_p = z
    if slip("the softmax runs over positions; it must run over the vocabulary"):
        log_p = np.log(softmax(raw, 1))
    nats = float(-np.take_along_axis(log_p, targets[..., None], -1).mean())
    if slip("this is a sum over all positions; the loss is their mean"): return nats * targets.size
    if slip("you divided by B T, but only T − 1 positions have a next token"):
        return nats * targets.size / tokens.size
    if slip("this is the perplexity, e to the power of the loss"): return float(np.exp(nats))
    if slip("this is a probability; the loss is −log p"): return float(np.exp(-nats))
    if slip("nats come from the natural logarithm, not from that to the base 10"):
        return nats / math.log(10)
    if slip("this is in bits; nats come from the natural logarithm"): return nats / math.log(2)
    if slip("the sign is wrong: −log p is positive"): return -nats
    if slip("this is the mean over rows of the sum over positions: divide by T − 1, too"):
        return nats * (tokens.shape[1] - 1)
    if slip("this is the sum over rows of the mean over positions: divide by B, too"):
        return nats * len(tokens)
    return nats


def loss_cases(rng, scale=2.0):
    B, T, V = rng.integers((2, 4, 6), (4, 7, 10)).tolist()
    return scale * rng.standard_normal((B, T, V)), rng.integers(0, V, (B, T))


def far_apart(rng):
    """Draw logits for which one constant cannot prevent both an overflow and a logarithm of 0."""
    logits, tokens = loss_cases(rng)
    signs = np.cos(np.pi * np.arange(tokens.shape[1]))
    return logits + 1000 * signs[:, None], tokens


def too_small(got, expected, args):
    return abs(args[0]).max() > 500 and got < expected


def all_zero(rng):
    return (np.zeros((2, 3, 8)), rng.integers(0, 8, (2, 3)))


# -- transformer.count -----------------------------------------------------------------------------
def count(V, C, d, L):
    attention, mlp, norms = 4 * d * d + 4 * d, 8 * d * d + 5 * d, 4 * d
    match which("a block has two layer norms of 2 d numbers each", 2):
        case 1: norms = 2 * d
        case 2: norms = 6 * d
    if slip("the biases of the MLP are missing: 4 d + d"): mlp = 8 * d * d
    if slip("a bias of d numbers is missing in each block"): attention = 4 * d * d + 3 * d
    if slip("the bias of `down` has d numbers, and not 4 d"): mlp = 8 * d * d + 8 * d
    if slip("the matrices of the MLP are (4d, d) and (d, 4d)"): mlp = 2 * d * d + 5 * d
    if slip("the biases are missing: four of attention, 4 d + d of the MLP"):
        attention, mlp = 4 * d * d, 8 * d * d
    if slip("4 d numbers are missing in each block: its two layer norms, the biases of "
            "attention, or the bias of `up`"):
        attention = 4 * d * d
    if slip("the bias of `up` has 4 d numbers, and not d"): mlp = 8 * d * d + 2 * d
    match which("a matrix of the MLP is missing: there are two of 4 d²", 2):
        case 1: mlp = 4 * d * d + 4 * d
        case 2: mlp = 4 * d * d + 5 * d
    match which("a matrix of attention is missing: query, key, value and output have d² each", 2):
        case 1: attention = 3 * d * d + 3 * d
        case 2: attention = 3 * d * d + 4 * d
    tables, last = V * d + C * d, 2 * d
    if slip("you counted the output head; it is tied to the token table"):
        tables = 2 * V * d + C * d
    if slip("the head has no bias"): tables = V * d + V + C * d
    if slip("the token table is missing"): tables = C * d
    if slip("a position has a vector of d numbers"): tables = V * d + C
    if slip("the position table is missing"): tables = V * d
    if slip("the final norm exists once, and not in every block"): norms, last = 6 * d, 0
    if slip("the final norm has both a weight and a bias"): last = d
    if slip("the final norm is missing"): last = 0
    if slip("each layer norm has both a weight and a bias"): norms, last = 2 * d, d
    match which("the biases and the norms are missing: in a block 4 d + 4 d + d and two times "
                "2 d, and 2 d after the last one", 2):
        case 1: attention, mlp, norms = 4 * d * d, 8 * d * d, 0
        case 2: attention, mlp, norms, last = 4 * d * d, 8 * d * d, 0, 0
    if slip("this counts one block; there are L"): L = 1
    total = tables + L * (attention + mlp + norms) + last
    if slip("this is in bytes; count parameters"): total = 4 * total
    return total


def count_cases(rng):
    low, high = (500, 100, 8, 2), (900, 300, 60, 9)
    return tuple(rng.integers(low, high).tolist())


# -- transformer.alibi -----------------------------------------------------------------------------
def alibi(T, S, H):
    place = np.arange(T)[:, None] + S - T                         # of each query
    if slip("the queries are the last T of S positions: query i stands at i + S − T"):
        place = np.arange(T)[:, None]
    if slip("the key at the query's own position has the distance 0"): place = place + 1
    distance = np.maximum(place - np.arange(S), 0)
    match which("a key of the future, which the mask hides, gets 0", 2):
        case 1: distance = abs(place - np.arange(S))
        case 2: distance = place - np.arange(S)
    h = np.arange(1, H + 1)
    slopes = 2.0 ** (-8 * h / H)
    if slip("the slopes begin at 2^(−8/H), for h = 1; yours begin at 1"):
        slopes = 2.0 ** (-8 * (h - 1) / H)
    if slip("all heads have the same slope; that of head h is 2^(−8h/H)"):
        slopes = np.full(H, 2.0 ** (-8 / H))
    if slip("the slope of head h is 2^(−8h/H), and not 2^(−h)"): slopes = 2.0 ** -h
    if slip("the slope of head h is 2^(−8h/H), and not 2^(−h/H)"): slopes = 2.0 ** (-h / H)
    if slip("the slope of head h is 2^(−8h/H), and not 2^(−8h)"): slopes = 2.0 ** (-8 * h)
    if slip("the slope of head h is 2^(−8h/H), and not 2^(8h/H)"): slopes = 2.0 ** (8 * h / H)
    if slip("the heads are in reverse order: the first one has the largest slope"):
        slopes = slopes[::-1]
    biases = -slopes[:, None, None] * distance
    if slip("the sign is wrong: a key that is further away gets less"): biases = -biases
    return biases


def alibi_cases(rng):
    T, H = int(rng.integers(2, 6)), int(2 ** rng.integers(1, 4))
    return T, T + int(rng.integers(1, 4)), H


def heads_last(got, expected, args):
    return got.shape == (*args[:2], args[2]) != expected.shape


EXERCISES = (
    Exercise(
        name="transformer.attention", title="Causal attention of one head", stars=2,
        kind="design",
        reference=attention, cases=attention_cases,
        special=(
            ("as many keys as queries", partial(attention_cases, past=0)),
            ("one query and a past of three keys: nothing is hidden",
             partial(attention_cases, T=1, past=3))),
        extremes=(
            ("scores of about 1,000", large_scores),
            ("seen scores near −1,000, hidden ones near 1,000", hidden_and_large)),
        invariants=(
            ("weights are positive and sum to one: values that are all 1 give 1", keeps_ones),),
        mistakes=slips(attention),
        symptoms=(
            ("these are the weights A; the result is A times the values, (T, d_head)",
             weights_alone),
            ("the mask is off by one: a query must also see its own key", first_sees_nothing),
            ("np.exp overflows, or all weights of a row become 0 and 0/0 follows: first put −∞ "
             "into the hidden scores, then subtract the largest score of each row",
             lambda got, expected, args: not np.isfinite(got).all()),
            ("the hidden scores are not low enough: seen scores may be near −1,000, "
             "so put −∞ in their place",
             lambda got, expected, args: abs(args[1]).max() > 500)),
        avoids=("attention",),
        hints=("At which position does query i stand, if the queries are the last T of S "
               "positions? Which keys come after it?",
               "scores (T, S) = q (T, d) times kᵀ (d, S). The mask is (T, S), the softmax runs "
               "over the last axis, the result is (T, d).",
               "hidden = np.arange(S) > np.arange(T)[:, None] + S - T. Put -np.inf into the "
               "scores there, subtract the maximum of each row, np.exp, divide by the sum of "
               "each row, @ v. math.sqrt(d) keeps float32.")),
    Exercise(
        name="transformer.sees", title="Find the bug: who sees the future?", stars=2,
        kind="fault",
        reference=sees, cases=sees_cases,
        special=(
            ("causal attention: a triangle", partial(sees_cases, f=Readers.causal)),
            ("a mask that is off by one: the token after its own is seen",
             partial(sees_cases, f=Readers.off_by_one)),
            ("only the row itself and the one before it are seen",
             partial(sees_cases, f=Readers.window)),
            ("only two numbers of a row of f(x) ever change, and their sum stays 0",
             partial(sees_cases, f=Readers.opposite)),
            ("a layer norm comes first", partial(sees_cases, f=Readers.normalized)),
            ("each row is divided by its length first", partial(sees_cases, f=Readers.scaled)),
            ("a mean over all rows", partial(sees_cases, f=Readers.centred)),
            ("each row depends a little on all rows, by a millionth of their mean",
             partial(sees_cases, f=Readers.faint)),
            ("f(x) is x itself", partial(sees_cases, f=Readers.itself))),
        mistakes=slips(sees),
        symptoms=(
            (ANY, where(Readers.opposite, lambda got, expected: not got.any())),
            ("every row changes in yours: is each row compared by itself, and does each change "
             "begin with a fresh copy of x?",
             where(Readers.causal, lambda got, expected: got.all())),
            (EQUAL, where(Readers.normalized, too_many)),
            ("a layer norm takes away a constant that is added to a row, or a factor, and leaves "
             "a difference of rounding: put random numbers into the row",
             where(Readers.normalized, misses)),
            ("your function sees no change at all: is f called with the changed array? Note that "
             "a comparison with NaN is False",
             lambda got, expected, args: not got.any()),
            ("your accepted difference is too large, or your change of the row too small: any "
             "change counts, also a millionth of it",
             where(Readers.faint, misses)),
            ("you miss a change: any change counts, however small, in any number of the row",
             lambda got, expected, args: misses(got, expected))),
        hints=("If you change one row of the input, which rows of the output may "
               "change, and which must not?",
               "f(x) is (T, d). For each j, compare f(x) with f of a copy whose row j is new: T "
               "answers, one for each row of the output. They are column j of the result (T, T).",
               "before = f(x). For each j: y = x.copy(); y[j] = "
               "rng.standard_normal(x.shape[1]); sees[:, j] = (abs(f(y) - "
               "before) > 1e-9).any(-1).")),
    Exercise(
        name="transformer.loss", title="The loss of a language model", stars=2,
        kind="design",
        reference=loss, cases=loss_cases,
        special=(
            ("all logits are 0: the loss is log V", all_zero),),
        extremes=(
            ("logits of about 1,000", partial(loss_cases, scale=1000.0)),
            ("logits near 1,000 at one position, and near −1,000 at the next", far_apart)),
        mistakes=slips(loss),
        symptoms=(
            ("the logarithm of a probability that became 0: do not take the log of the softmax, "
             "compute z − max − log Σ exp(z − max), with the maximum of each position",
             lambda got, expected, args: np.isinf(got)),
            ("np.exp overflows, or makes 0 of all logits of a position, and 0/0 follows: subtract "
             "the largest logit of each position first, not one for all",
             lambda got, expected, args: np.isnan(got)),
            ("a small number beside p, or a bound for it, makes large losses smaller: compute z − "
             "max − log Σ exp(z − max)",
             too_small)),
        tolerance=1e-7,
        hints=("Which token do the logits at position t speak about? Which "
               "position has no next token?",
               "logits[:, :-1] is (B, T − 1, V), and its targets, tokens[:, 1:], are (B, T − 1). "
               "One log probability belongs to each target.",
               "z = logits[:, :-1]; the log softmax is z − max − log Σ exp(z − max), over the "
               "last axis. np.take_along_axis(log_p, targets[..., None], -1) picks the targets' "
               "entries; return minus their mean.")),
    Exercise(
        name="transformer.count", title="The number of parameters", stars=1,
        kind="count",
        reference=count, cases=count_cases,
        special=(
            ("the base", lambda rng: (1024, 256, 128, 5)),),
        mistakes=slips(count),
        tolerance=0,
        hints=("Which matrices, biases and norms does a block have? What "
               "stands outside the blocks?",
               "Attention: four (d, d) and four d. MLP: (4d, d), 4d, (d, 4d), d. A norm: a "
               "weight and a bias of d; there are two in a block and one at the end. "
               "Tables: (V, d) and (C, d).",
               "A block has 12 d² of matrices, 9 d of biases and 4 d of norms. Multiply by L; "
               "add V d + C d + 2 d. The output head is the token table, so it adds nothing.")),
    Exercise(
        name="transformer.alibi", title="Positions without a table (ALiBi)", stars=2,
        kind="formula",
        reference=alibi, cases=alibi_cases,
        special=(
            ("as many keys as queries, two heads", lambda rng: (3, 3, 2)),
            ("one query and a past of three keys", lambda rng: (1, 4, 4))),
        mistakes=slips(alibi),
        symptoms=(
            ("the mask is added elsewhere: a key of the future gets 0 here, and not −∞",
             lambda got, expected, args: np.isinf(got).any()),
            ("the axes are (H, T, S): the heads come first", heads_last)),
        tolerance=1e-9,
        hints=("How far is key j from query i, if the queries are the last T of S "
               "positions? Which keys are hidden?",
               "The distances are (T, S) and the slopes (H,), so that slopes[:, None, None] "
               "* distances is (H, T, S).",
               "distance = np.maximum(np.arange(T)[:, None] + S - T - np.arange(S), "
               "0), slopes = 2.0 ** (-8 * np.arange(1, H + 1) / H). The bias is "
               "-slopes[:, None, None] * distance.")),
)
