"""Lesson 02: attention, who sees whom, the loss of a language model, and its size."""
import math
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine import plain
from ...engine.tensor import Tensor
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- attention -----------------------------------------------------------------------------------
def reference_attention(q, k, v):
    # A lesson replaces F.attention, so this is the plain one.
    return plain.attention(Tensor(q), Tensor(k), Tensor(v)).data


def attention(q, k, v, scale=lambda d, T, S: math.sqrt(d), offset=lambda T, S: S - T,
              mask=True, axis=-1, top=None, late=False, low=-np.inf, divided=True):
    """Return what attention gives; the options are for the mistakes.

    offset: of the mask. axis: of the softmax. top: of its maximum. late: the mask comes after it.
    low: a hidden score.
    """
    (T, d), S = q.shape, len(k)
    scores = q @ k.T / scale(d, T, S)
    seen = np.arange(S) <= np.arange(T)[:, None] + offset(T, S)
    if mask and not late:
        scores = np.where(seen, scores, np.array(low, scores.dtype))
    A = np.exp(scores - scores.max(axis if top is None else top, keepdims=True))
    if divided:
        A = A / A.sum(axis, keepdims=True)
    if late:
        A = A * seen
    return (A @ v).astype(q.dtype)


def last_keys(q, k, v):
    return attention(q, k[-len(q):], v[-len(q):])


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


# -- who sees whom -------------------------------------------------------------------------------
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


def sees(f, x, changed=None, copied=True, first_copied=True, restored=False, nan=False,
         of_row=lambda differs: differs.any(-1)):
    """(T, T): does row i of f(x) change with row j of x? The options make the mistakes.

    changed: what becomes of row j. copied: begin each time with a copy of x. first_copied: begin
    with a copy. restored: put row j back. nan: NaN counts as a change.
    """
    rng = np.random.default_rng(2)
    before = f(x)
    after = x.copy() if first_copied else x
    seen = np.zeros((len(x), len(x)), bool)
    for j in range(len(x)):
        if copied:
            after = x.copy()
        old = after[j].copy()
        after[j] = rng.standard_normal(x.shape[1]) if changed is None else changed(old)
        distance = abs(f(after) - before)
        seen[:, j] = of_row(~(distance <= 1e-9) if nan else distance > 1e-9)
        if restored:
            after[j] = old
    return seen


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
NOT_FINITE = ("0 times NaN or infinity is NaN, so also rows that do not see row j become NaN: "
              "put finite random numbers into the row")
WRITES = ("your function writes into its argument x, or the rows stay changed: "
          "begin each time with a copy of x")


def reference_sees(f, x):
    return sees(f, x)


def sees_cases(rng, f=None):
    f = f or READERS[rng.integers(len(READERS))]
    return f, rng.standard_normal((int(rng.integers(4, 7)), 5))


# -- attention with linear biases ----------------------------------------------------------------
def usual_slope(h, H):
    return 2.0 ** (-8 * h / H)


def alibi(T, S, H, slope=usual_slope, sign=-1, past=lambda T, S: S - T, hidden=False):
    """Return (H, T, S): −slope · distance where key j is seen, 0 where it is not.

    The options make the mistakes. hidden: hidden keys have a distance, too.
    """
    distance = np.arange(T)[:, None] + past(T, S) - np.arange(S)
    if not hidden:
        distance = np.maximum(distance, 0)
    slopes = slope(np.arange(1, H + 1), H)
    return sign * slopes[:, None, None] * distance + 0.0


def reference_alibi(T, S, H):
    return alibi(T, S, H)


def alibi_cases(rng):
    T, H = int(rng.integers(2, 6)), int(2 ** rng.integers(1, 4))
    return T, T + int(rng.integers(1, 4)), H


def heads_last(got, expected, args):
    return got.shape == (*args[:2], args[2]) != expected.shape


# -- the loss ------------------------------------------------------------------------------------
def reference_loss(logits, tokens):
    return F.cross_entropy(Tensor(logits[:, :-1]), tokens[:, 1:]).item()


def loss_cases(rng, scale=2.0):
    B, T, V = rng.integers((2, 4, 6), (4, 7, 10)).tolist()
    return scale * rng.standard_normal((B, T, V)), rng.integers(0, V, (B, T))


def far_apart(rng):
    """Draw logits for which one constant cannot prevent both an overflow and a logarithm of 0."""
    logits, tokens = loss_cases(rng)
    signs = np.cos(np.pi * np.arange(tokens.shape[1]))
    return logits + 1000 * signs[:, None], tokens


def log_softmax(z, axis=-1):
    return plain.log_softmax(Tensor(z), axis).data


def mean_loss(log_p, targets):
    """Return minus the mean of the targets' entries."""
    return float(-np.take_along_axis(log_p, targets[..., None], -1).mean())


def without_logarithm(z, t):
    centred = z - z.max(-1, keepdims=True)
    return mean_loss(centred[:, :-1], t[:, 1:])


def too_small(got, expected, args):
    return abs(args[0]).max() > 500 and got < expected


def all_zero(rng):
    return (np.zeros((2, 3, 8)), rng.integers(0, 8, (2, 3)))


# -- counting ------------------------------------------------------------------------------------
def count(V, C, d, L, tables=1, head_bias=0, position=lambda d: d, matrices=12,
          vectors=13, last=2):
    """Count the parameters. The options are the numbers of each part, for the mistakes.

    tables: of the tokens. position: the numbers of a position. matrices, vectors: of a block, in
    d² and d numbers. last: the vectors of the final norm.
    """
    block = matrices * d * d + vectors * d
    return tables * V * d + head_bias * V + C * position(d) + L * block + last * d


def reference_count(V, C, d, L):
    return count(V, C, d, L)


def count_cases(rng):
    low, high = (500, 100, 8, 2), (900, 300, 60, 9)
    return tuple(rng.integers(low, high).tolist())


EXERCISES = (
    Exercise(
        name="transformer.attention", title="Causal attention of one head", stars=2,
        kind="design",
        reference=reference_attention, cases=attention_cases,
        special=(
            ("as many keys as queries", partial(attention_cases, past=0)),
            ("one query and a past of three keys: nothing is hidden",
             partial(attention_cases, T=1, past=3))),
        extremes=(
            ("scores of about 1,000", large_scores),
            ("seen scores near −1,000, hidden ones near 1,000", hidden_and_large)),
        invariants=(
            ("weights are positive and sum to one: values that are all 1 give 1", keeps_ones),),
        mistakes=(
            ("the scores are not divided by √d_head", partial(attention, scale=lambda d, T, S: 1)),
            ("the scores are divided by d_head, not by its root",
             partial(attention, scale=lambda d, T, S: d)),
            ("you divided by the root of the number of keys; divide by the root of d_head",
             partial(attention, scale=lambda d, T, S: math.sqrt(S))),
            ("you divided by the root of the number of queries; divide by the root of d_head",
             partial(attention, scale=lambda d, T, S: math.sqrt(T))),
            ("you multiplied by √d_head; divide by it",
             partial(attention, scale=lambda d, T, S: 1 / math.sqrt(d))),
            ("the weights of a row do not sum to one: divide by the sum of the row",
             partial(attention, divided=False)),
            ("the keys before the queries are left out; all queries see them", last_keys),
            ("k and v are exchanged", lambda q, k, v: attention(q, v, k)),
            ("the softmax runs over all scores; each row has its own",
             partial(attention, axis=None)),
            ("there is no mask: a query sees keys of the future", partial(attention, mask=False)),
            ("the mask forgets the past: query i stands at position i + S − T",
             partial(attention, offset=lambda T, S: 0)),
            ("the mask is off by one: your query sees the key after its own",
             partial(attention, offset=lambda T, S: S - T + 1)),
            *several("the mask is off by one: a query must also see its own key",
                     partial(attention, offset=lambda T, S: S - T - 1),
                     partial(attention, offset=lambda T, S: S - T - 1, low=-1e30)),
            ("the softmax runs over the queries; it must run over the keys",
             partial(attention, axis=0)),
            ("the maximum that you subtract runs over the queries, and so it changes the weights: "
             "each row of scores has its own, over the keys", partial(attention, top=0)),
            ("you masked after the softmax, so the remaining weights no longer sum to one; put −∞ "
             "into the scores before it",
             partial(attention, late=True)),
            ("a hidden score of 0 still has the weight e⁰ = 1: put −∞ in its place",
             partial(attention, low=0.0))),
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
        reference=reference_sees, cases=sees_cases,
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
        mistakes=(
            ("a constant that is added to a row vanishes in a layer norm: put "
             "random numbers into the row",
             partial(sees, changed=lambda row: row + 1.0)),
            ("a multiple of a row may change nothing, and a row of zeros gives 0/0 in a layer "
             "norm: put random numbers into the row",
             partial(sees, changed=lambda row: 2 * row)),
            (EQUAL, partial(sees, changed=lambda row: 0 * row, nan=True)),
            (EQUAL, partial(sees, changed=lambda row: 0 * row + 1, nan=True)),
            (NOT_FINITE, partial(sees, changed=lambda row: row + np.nan, nan=True)),
            (NOT_FINITE, partial(sees, changed=lambda row: row + np.inf, nan=True)),
            (WRITES, partial(sees, copied=False)),
            (WRITES, partial(sees, copied=False, first_copied=False)),
            ("you write into x and put the old row back; but f may return x itself, and then f(x) "
             "changes with x: begin each time with a copy of x",
             partial(sees, copied=False, first_copied=False, restored=True)),
            ("it is transposed: i is the row of the output, and j the row of the input",
             lambda f, x: sees(f, x).T),
            ("compare row by row: this says only that some row has changed",
             partial(sees, of_row=np.any)),
            (ANY, partial(sees, of_row=lambda differs: differs.all(-1)))),
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
        reference=reference_loss, cases=loss_cases,
        special=(
            ("all logits are 0: the loss is log V", all_zero),),
        extremes=(
            ("logits of about 1,000", partial(loss_cases, scale=1000.0)),
            ("logits near 1,000 at one position, and near −1,000 at the next", far_apart)),
        mistakes=(
            ("the logits at t are compared with token t; they are about token t + 1",
             lambda z, t: mean_loss(log_softmax(z), t)),
            ("you shifted the wrong way: the logits at t + 1 are compared with token t",
             lambda z, t: mean_loss(log_softmax(z[:, 1:]), t[:, :-1])),
            ("this is a sum over all positions; the loss is their mean",
             lambda z, t: reference_loss(z, t) * t[:, 1:].size),
            ("you divided by B T, but only T − 1 positions have a next token",
             lambda z, t: reference_loss(z, t) * t[:, 1:].size / t.size),
            ("np.roll brings the first token to the end: the last position has no "
             "next token, so leave it out",
             lambda z, t: mean_loss(log_softmax(z), np.roll(t, -1, 1))),
            ("you rolled the wrong way: the logits at t are about token t + 1",
             lambda z, t: mean_loss(log_softmax(z), np.roll(t, 1, 1))),
            ("these are logits and not logarithms of probabilities: the softmax is missing",
             lambda z, t: mean_loss(z[:, :-1], t[:, 1:])),
            ("the log softmax is z − max − log Σ exp(z − max): the last term is missing",
             without_logarithm),
            ("this is the perplexity, e to the power of the loss",
             lambda z, t: float(np.exp(reference_loss(z, t)))),
            ("this is a probability; the loss is −log p",
             lambda z, t: float(np.exp(-reference_loss(z, t)))),
            ("nats come from the natural logarithm, not from that to the base 10",
             lambda z, t: reference_loss(z, t) / math.log(10)),
            ("this is in bits; nats come from the natural logarithm",
             lambda z, t: reference_loss(z, t) / math.log(2)),
            ("the softmax runs over positions; it must run over the vocabulary",
             lambda z, t: mean_loss(log_softmax(z[:, :-1], 1), t[:, 1:])),
            ("the sign is wrong: −log p is positive", lambda z, t: -reference_loss(z, t)),
            ("this is the mean over rows of the sum over positions: divide by T − 1, too",
             lambda z, t: reference_loss(z, t) * (t.shape[1] - 1)),
            ("this is the sum over rows of the mean over positions: divide by B, too",
             lambda z, t: reference_loss(z, t) * len(t))),
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
        reference=reference_count, cases=count_cases,
        special=(
            ("the base", lambda rng: (1024, 256, 128, 5)),),
        mistakes=(
            ("you counted the output head; it is tied to the token table",
             partial(count, tables=2)),
            ("the head has no bias", partial(count, head_bias=1)),
            ("the token table is missing", partial(count, tables=0)),
            ("a position has a vector of d numbers", partial(count, position=lambda d: 1)),
            ("this counts one block; there are L", lambda V, C, d, L: reference_count(V, C, d, 1)),
            ("the final norm exists once, and not in every block",
             partial(count, vectors=15, last=0)),
            ("the final norm has both a weight and a bias", partial(count, last=1)),
            ("a block has two layer norms of 2 d numbers each", partial(count, vectors=11)),
            ("a block has two layer norms of 2 d numbers each", partial(count, vectors=15)),
            ("the biases of the MLP are missing: 4 d + d", partial(count, vectors=8)),
            ("a bias of d numbers is missing in each block", partial(count, vectors=12)),
            ("the bias of `down` has d numbers, and not 4 d", partial(count, vectors=16)),
            ("the matrices of the MLP are (4d, d) and (d, 4d)", partial(count, matrices=6)),
            ("this is in bytes; count parameters", lambda *a: 4 * reference_count(*a)),
            ("the final norm is missing", partial(count, last=0)),
            ("the position table is missing", partial(count, position=lambda d: 0)),
            ("the biases are missing: four of attention, 4 d + d of the MLP",
             partial(count, vectors=4)),
            *several("the biases and the norms are missing: in a block 4 d + 4 d + d and two times "
                     "2 d, and 2 d after the last one",
                     partial(count, vectors=0), partial(count, vectors=0, last=0)),
            ("4 d numbers are missing in each block: its two layer norms, the biases of "
             "attention, or the bias of `up`",
             partial(count, vectors=9)),
            ("each layer norm has both a weight and a bias", partial(count, vectors=11, last=1)),
            ("the bias of `up` has 4 d numbers, and not d", partial(count, vectors=10)),
            ("a matrix of the MLP is missing: there are two of 4 d²",
             partial(count, matrices=8, vectors=12)),
            ("a matrix of attention is missing: query, key, value and output have d² each",
             partial(count, matrices=11, vectors=12)),
            ("a matrix of the MLP is missing: there are two of 4 d²", partial(count, matrices=8)),
            ("a matrix of attention is missing: query, key, value and output have d² each",
             partial(count, matrices=11))),
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
        reference=reference_alibi, cases=alibi_cases,
        special=(
            ("as many keys as queries, two heads", lambda rng: (3, 3, 2)),
            ("one query and a past of three keys", lambda rng: (1, 4, 4))),
        mistakes=(
            ("the sign is wrong: a key that is further away gets less", partial(alibi, sign=1)),
            ("the queries are the last T of S positions: query i stands at i + S − T",
             partial(alibi, past=lambda T, S: 0)),
            ("the slopes begin at 2^(−8/H), for h = 1; yours begin at 1",
             partial(alibi, slope=lambda h, H: 2.0 ** (-8 * (h - 1) / H))),
            ("all heads have the same slope; that of head h is 2^(−8h/H)",
             partial(alibi, slope=lambda h, H: 0 * h + 2.0 ** (-8 / H))),
            ("the slope of head h is 2^(−8h/H), and not 2^(−h)",
             partial(alibi, slope=lambda h, H: 2.0 ** -h)),
            ("the slope of head h is 2^(−8h/H), and not 2^(−h/H)",
             partial(alibi, slope=lambda h, H: 2.0 ** (-h / H))),
            ("the slope of head h is 2^(−8h/H), and not 2^(−8h)",
             partial(alibi, slope=lambda h, H: 2.0 ** (-8 * h))),
            ("the slope of head h is 2^(−8h/H), and not 2^(8h/H)",
             partial(alibi, slope=lambda h, H: 2.0 ** (8 * h / H))),
            ("the heads are in reverse order: the first one has the largest slope",
             lambda *a: alibi(*a)[::-1]),
            ("the key at the query's own position has the distance 0",
             partial(alibi, past=lambda T, S: S - T + 1)),
            ("a key of the future, which the mask hides, gets 0",
             lambda *a: -abs(alibi(*a, hidden=True))),
            ("a key of the future, which the mask hides, gets 0", partial(alibi, hidden=True))),
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
