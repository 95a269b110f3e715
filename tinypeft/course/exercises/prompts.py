"""Lesson 05: a prompt in the input, its cost, its nearest tokens, and where pseudo-tokens go."""
from functools import partial

import numpy as np

from ...engine.tensor import Tensor, concatenate
from ...peft.ptuning import places
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- the input -----------------------------------------------------------------------------------
def reference_input(P_e, X_e, positions):
    x = concatenate([P_e, X_e], axis=0)
    return x + positions[:x.shape[0]]


def input_cases(rng):
    P, T, d = (int(n) for n in rng.integers((2, 3, 4), (5, 7, 8)))
    return tuple(Tensor(rng.standard_normal((n, d)).astype(np.float32)) for n in (P, T, P + T + 3))


# -- the cost ------------------------------------------------------------------------------------
def reference_cost(P, T, d):
    F = lambda S: 12 * d * d * S + d * S * (S + 1)
    return F(P + T) / F(T) - 1


def by(work):
    """The extra cost by another count of the work of S positions: work(S, d)."""
    return lambda P, T, d: work(P + T, d) / work(T, d) - 1


def cost_cases(rng):
    return tuple(int(n) for n in rng.integers((5, 20, 16), (60, 200, 128)))


# -- nearest words -------------------------------------------------------------------------------
def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def reference_nearest(P_e, E, k):
    return np.argsort(-(unit(P_e) @ unit(E).T), axis=1, kind="stable")[:, :k]


def nearest_cases(rng, many=False):
    P, V, d, k = (int(n) for n in rng.integers((2, 12, 3, 2), (5, 20, 6, 5)))
    if many: V, k = 2000, 600
    return rng.standard_normal((P, d)), rng.standard_normal((V, d)) * rng.uniform(0.2, 5, (V, 1)), k


# -- places --------------------------------------------------------------------------------------
def reference_places(tokens, counts, separator):
    return places(np.asarray(tokens)[None], tuple(counts), separator)[0]


def places_by(tokens, counts, separator, shift=True, behind=1):
    """Places with mistakes: pseudo-tokens before it not counted, or the separator taken for part of what follows."""
    ends = np.nonzero(tokens == separator)[0][:len(counts) - 1] + behind
    placed, before = [], 0
    for start, n in zip([0, *ends], counts, strict=True):
        placed += range(start + before, start + before + n)
        if shift: before += n
    return np.array(placed, int)


def moved_by(counts):
    """How far each part is moved: by all pseudo-tokens of the parts before it."""
    return np.cumsum(counts) - counts


def within(counts):
    """0, 1, … for the pseudo-tokens of each part."""
    return np.arange(sum(counts)) - np.repeat(moved_by(counts), counts)


def repeated(tokens, counts, separator, shift):
    """All pseudo-tokens of a part at one place, in the row as it is or in the lengthened row."""
    starts = np.append(0, np.nonzero(tokens == separator)[0][:len(counts) - 1] + 1)
    return np.repeat(starts + shift * moved_by(counts), counts)


def unmoved(tokens, counts, separator, which=lambda found: found):
    """Places one behind another from the start of each part in the row as it is."""
    starts = np.append(0, which(np.nonzero(tokens == separator)[0])[:len(counts) - 1] + 1)
    return np.repeat(starts, counts) + within(counts)


def at_separators(tokens, counts, separator, which=lambda ends: ends, count=lambda counts, j: counts[min(j, len(counts) - 1)]):
    """Pseudo-tokens behind other separators than the first len(counts) − 1."""
    found = which(np.nonzero(tokens == separator)[0])
    placed, before = list(range(counts[0])), counts[0]
    for j, end in enumerate(found, 1):
        placed += range(end + 1 + before, end + 1 + before + count(counts, j))
        before += count(counts, j)
    return np.array(placed, int)


def places_cases(rng, more=None):
    counts = tuple(int(n) for n in rng.integers(1, 4, rng.integers(2, 4)))
    separator = int(rng.integers(90, 99))
    parts = [[*rng.integers(0, 90, rng.integers(1, 5)), separator] for _ in counts[1:]]
    last = [*rng.integers(0, 90, 3), *([separator] if (rng.random() < 0.5 if more is None else more) else []), *rng.integers(0, 90, 2)]
    return np.array([t for part in (*parts, last) for t in part]), counts, separator


# -- where to read -------------------------------------------------------------------------------
def reference_bug(at, n):
    real = np.setdiff1d(np.arange(n), at)
    return np.append(real[1:], n) - 1


def at_cases(rng, front=None, behind=None):
    n = int(rng.integers(9, 14))
    P = int(rng.integers(3, 5))
    if front is not None: return np.arange(P) if front else np.arange(0), n
    if behind is None: behind = rng.random() < 0.5
    last = [n - 2, n - 1] if behind else [n - 2]                 # vectors before the last token, or behind it
    return np.append(np.sort(rng.choice(np.arange(1, n - 3), P - 1, replace=False)), last), n


# -- the LSTM's numbers --------------------------------------------------------------------------
def reference_lstm(P, d, n):
    one = lambda k: 4 * (n * k + n * n + 2 * n)
    return P * d + 2 * one(d) + 2 * one(2 * n) + (2 * n * 2 * n + 2 * n) + (2 * n * d + d)


def less(term):
    return lambda P, d, n: reference_lstm(P, d, n) - term(P, d, n)


EXERCISES = (
    Exercise(
        name="prompts.input", title="The input with a prompt before it", stars=1,
        reference=reference_input, cases=input_cases, gradient=("P_e",),
        mistakes=(
            ("the text's positions begin at 0; they should begin behind the prompt, at P",
             lambda P, X, pos: concatenate([P + pos[:P.shape[0]], X + pos[:X.shape[0]]], axis=0)),
            ("the prompt's vectors have positions, too",
             lambda P, X, pos: concatenate([P, X + pos[P.shape[0]:P.shape[0] + X.shape[0]]], axis=0)),
            ("the prompt's vectors have positions, too, and the text's begin at P",
             lambda P, X, pos: concatenate([P, X + pos[:X.shape[0]]], axis=0)),
            ("positions begin at 0, so the first row of the table is needed, too",
             lambda P, X, pos: concatenate([P, X], axis=0) + pos[1:P.shape[0] + X.shape[0] + 1]),
            ("positions begin at 0: take the first rows of the table, not the last",
             lambda P, X, pos: concatenate([P, X], axis=0) + pos[pos.shape[0] - P.shape[0] - X.shape[0]:]),
            ("the position vectors are missing", lambda P, X, pos: concatenate([P, X], axis=0)),
            ("you put the prompt behind the text; it stands before the text, not behind it",
             lambda P, X, pos: concatenate([X, P], axis=0) + pos[:P.shape[0] + X.shape[0]])),
        symptoms=(
            ("the prompt's rows are missing: the result has P + T rows",
             lambda got, expected, args: np.shape(got) == args[1].shape and np.shape(got) != np.shape(expected)),),
        errors=(
            ("concatenation axis",
             "rows go under rows, so join along axis 0: the columns are the d numbers of each row"),
            ("not be broadcast", "the table has more rows than you need: take its first P + T")),
        hints=("At which position does the first token of the text stand, if P "
               "vectors stand before it?",
               "P_e (P, d) and X_e (T, d) become (P + T, d). As many rows "
               "of `positions` are added.",
               "x = tp.concatenate([P_e, X_e], axis=0); then x + positions[:x.shape[0]].")),
    Exercise(
        name="prompts.cost", title="The price of a longer input", stars=1,
        reference=reference_cost, cases=cost_cases,
        special=(
            ("no prompt costs nothing", lambda rng: (0, 64, 32)),),
        mistakes=(
            ("this is the ratio of the work; the extra work is 1 less",
             lambda P, T, d: reference_cost(P, T, d) + 1),
            ("this is in per cent; return a share", lambda P, T, d: 100 * reference_cost(P, T, d)),
            ("only the matrices are counted; attention grows faster than the length",
             lambda P, T, d: P / T),
            ("this is the ratio of the lengths; attention grows faster than the length, and the "
             "extra work is 1 less than a ratio",
             lambda P, T, d: (P + T) / T),
            ("only attention is counted: add 12 d² for each position",
             by(lambda S, d: d * S * (S + 1))),
            ("attention's share is d S (S + 1): one product for the scores and one for the values",
             by(lambda S, d: 12 * d * d * S + d * S * (S + 1) / 2)),
            ("attention has twice its weight beside the matrices: S (S + "
             "1)/2 pairs see one another",
             by(lambda S, d: 12 * d * d * S + 2 * d * S * (S + 1))),
            ("each pair takes d multiplications for the score and d for the value, not one each",
             by(lambda S, d: 12 * d * d * S + S * (S + 1))),
            ("the matrices do 12 d² multiplications, not 12 d",
             by(lambda S, d: 12 * d * S + d * S * (S + 1))),
            ("the matrices do 12 d² multiplications for each of the S positions",
             by(lambda S, d: 12 * d * d + d * S * (S + 1))),
            ("attention is causal: S (S + 1), not 2 S²",
             by(lambda S, d: 12 * d * d * S + 2 * d * S * S)),
            ("a position sees itself as well: S (S + 1)/2 pairs, not S²/2",
             by(lambda S, d: 12 * d * d * S + d * S * S)),
            ("this is the number of additional multiplications; divide it by "
             "the work of the text alone",
             lambda P, T, d: reference_cost(P, T, d) * (12 * d * d * T + d * T * (T + 1))),
            ("// cuts off what is behind the point: divide with /",
             lambda P, T, d: int(1 + reference_cost(P, T, d)) - 1),
            ("this is the work of the prompt's positions alone; the text's "
             "queries see P more keys as well",
             lambda P, T, d: (12 * d * P + P * (P + 1)) / (12 * d * T + T * (T + 1))),
            ("you divided by the work of the longer input; a quarter more means more than "
             "the work of the text alone",
             lambda P, T, d: 1 - 1 / (1 + reference_cost(P, T, d))),
            ("a position sees itself as well: S (S + 1)/2 pairs, not S (S − 1)/2",
             by(lambda S, d: 12 * d * d * S + d * S * (S - 1)))),
        tolerance=1e-9,
        hints=("How much work is the longer input, and how much the text alone? If the ratio is "
               "1.2, what is the extra work?",
               "P, T, d and the result are numbers. F(S) = 12 d² S + d S (S + 1).",
               "Write F as a function of S, then F(P + T) / F(T) - 1.")),
    Exercise(
        name="prompts.nearest", title="The tokens nearest to a prompt", stars=2,
        reference=reference_nearest, cases=nearest_cases,
        special=(
            ("each prompt vector is three times a token's vector: that token is the nearest",
             lambda rng: (lambda P, E, k: (3 * E[:4], E, k))(*nearest_cases(rng))),
            ("600 of 2,000 tokens, in order", partial(nearest_cases, many=True))),
        mistakes=(
            ("these are the cosines; return the numbers of the tokens",
             lambda P, E, k: -np.sort(-(unit(P) @ unit(E).T), axis=1)[:, :k]),
            ("these are the largest dot products: long tokens win; divide by the lengths",
             lambda P, E, k: np.argsort(-(P @ E.T), axis=1, kind="stable")[:, :k]),
            ("a cosine of −1 is the largest angle, so do not take the sizes of the cosines",
             lambda P, E, k: np.argsort(-abs(unit(P) @ unit(E).T), axis=1, kind="stable")[:, :k]),
            ("the nearest token is one of the k as well: do not leave it out",
             lambda P, E, k: reference_nearest(P, E, k + 1)[:, 1:]),
            ("the numbers of the rows of E begin at 0",
             lambda P, E, k: reference_nearest(P, E, k) + 1),
            ("divide by the length, which is a root, not by its square",
             lambda P, E, k: np.argsort(-(P @ (E / (E ** 2).sum(1, keepdims=True)).T), axis=1, kind="stable")[:, :k]),
            ("np.argsort already gives the numbers of the tokens; a second one makes ranks of them",
             lambda P, E, k: np.argsort(np.argsort(-(unit(P) @ unit(E).T), axis=1), axis=1)[:, :k]),
            ("these are the tokens nearest by distance; use the angle",
             lambda P, E, k: np.argsort(((P[:, None] - E) ** 2).sum(-1), axis=1, kind="stable")[:, :k]),
            ("these are the k farthest tokens, because np.argsort sorts in ascending order",
             lambda P, E, k: np.argsort(unit(P) @ unit(E).T, axis=1, kind="stable")[:, :k]),
            ("the tokens are right, but the nearest should come first",
             lambda P, E, k: reference_nearest(P, E, k)[:, ::-1]),
            ("you divided by the wrong lengths: each vector has its own length, over axis 1",
             lambda P, E, k: np.argsort(-(P / np.linalg.norm(P, axis=0)) @ (E / np.linalg.norm(E, axis=0)).T, axis=1, kind="stable")[:, :k])),
        symptoms=(
            ("the tokens are right, but not in order: np.argpartition, for example, "
             "leaves the k nearest unordered",
             lambda got, expected, args: got.dtype.kind in "iu"
             and np.array_equal(np.sort(got, axis=1), np.sort(expected, axis=1))),
            ("these are all tokens: keep the k nearest of each row, the first k columns",
             lambda got, expected, args: np.shape(got) == (len(args[0]), len(args[1])) and len(args[1]) > args[2]),
            ("this is one token for each prompt vector: np.argmax finds the nearest, "
             "and k of them are asked for",
             lambda got, expected, args: np.shape(got) == (len(args[0]),)),
            ("you sorted over the prompt vectors: a row of cosines belongs to one prompt "
             "vector, so sort along axis 1",
             lambda got, expected, args: np.ndim(got) == 2 and len(args[1]) in np.shape(got))),
        tolerance=0,
        hints=("Which of two vectors of different length is nearer by angle? What "
               "must be divided out first?",
               "P_e (P, d) and E (V, d), with each row divided by its length, give cosines (P, "
               "V). The result is (P, k), integers.",
               "np.linalg.norm(a, axis=1, keepdims=True) is the length of each row. The first k "
               "columns of np.argsort(-cosines, axis=1) are the nearest.")),
    Exercise(
        name="prompts.places", title="The places of pseudo-tokens", stars=3,
        reference=reference_places, cases=places_cases,
        special=(
            ("the example of the text", lambda rng: (np.array([7, 8, 10, 9]), (2, 1), 10)),
            ("a separator in the last part is a token like others",
             partial(places_cases, more=True))),
        mistakes=(
            ("earlier pseudo-tokens are not counted: each of them moves "
             "everything after it by one place",
             partial(places_by, shift=False)),
            ("the separator belongs to the part that it ends; the next part begins after it",
             partial(places_by, behind=0)),
            ("a part moves by the number of all pseudo-tokens before it, "
             "not by the number of parts",
             lambda t, counts, s: unmoved(t, counts, s) + np.repeat(np.arange(len(counts)), counts)),
            ("pseudo-tokens of a part do not move themselves: count those of the parts before it",
             lambda t, counts, s: unmoved(t, counts, s) + np.repeat(np.cumsum(counts), counts)),
            ("the first separators of the row end parts, not the last ones",
             lambda t, counts, s: unmoved(
t, counts, s, which=lambda found: found[len(found) - len(counts) + 1:]) + np.repeat(moved_by(counts), counts)),
            ("pseudo-tokens stand before their part, not behind it",
             lambda t, counts, s: np.repeat(
np.append(np.nonzero(t == s)[0][:len(counts) - 1] + 1, len(t)) + moved_by(counts), counts) + within(counts)),
            ("the counts are taken in the wrong order",
             lambda t, counts, s: reference_places(t, counts[::-1], s)),
            ("these are the places of the tokens, not of the pseudo-tokens",
             lambda t, counts, s: np.setdiff1d(np.arange(len(t) + sum(counts)), reference_places(t, counts, s))),
            ("these are places in the original row, as np.insert takes them: the answer is in the "
             "lengthened row, where each pseudo-token has a place of its own",
             partial(repeated, shift=0)),
            ("each pseudo-token has a place of its own: those of a part stand one behind another",
             partial(repeated, shift=1)),
            ("here all pseudo-tokens stand in front: later parts have theirs behind the separator",
             lambda t, counts, s: np.arange(sum(counts))),
            *(("there are pseudo-tokens behind every separator: in the last part a separator is a token like others",
               lambda *a, count=count: at_separators(*a, count=count))
              for count in (lambda counts, j: counts[min(j, len(counts) - 1)], lambda counts, j: 1)),
            *(("only the first separator is used: each part but the last ends with one of its own",
               lambda t, counts, s, which=which: at_separators(t, counts, s, which))
              for which in (lambda ends: ends[:1], lambda ends: ends[:1].repeat(2)))),
        symptoms=(
            ("this is a whole row: return the places of the pseudo-tokens "
             "alone, sum(counts) integers",
             lambda got, expected, args: np.shape(got) == (len(args[0]) + sum(args[1]),)),
            ("the places of all parts belong in one array, not in one for each part",
             lambda got, expected, args: len(got) == len(args[1]) and np.shape(got[0]) == (args[1][0],))),
        errors=tuple((error, "only the first len(counts) − 1 separators end parts; a later one is a token like others")
                     for error in ("IndexError", "zip() argument")),
        tolerance=0,
        hints=("A pseudo-token moves everything behind it by one place. How many "
               "pseudo-tokens stand before part j?",
               "np.nonzero(tokens == separator)[0] are the separators; the first len(counts) − 1 "
               "of them end parts. The result has sum(counts) integers.",
               "Part j begins at 0, or one place behind the separator of part j − 1. Add the "
               "number of all pseudo-tokens placed so far: from there on stand counts[j] of "
               "them, one after another.")),
    Exercise(
        name="prompts.bug", title="Find the bug: a prompt that ruins the model", stars=2,
        reference=reference_bug, cases=at_cases,
        special=(
            ("the example of the text", lambda rng: (np.array([0, 1, 5]), 7)),
            ("all vectors stand in front: each token is read at its own place",
             partial(at_cases, front=True)),
            ("there are no vectors", partial(at_cases, front=False)),
            ("two vectors stand behind the last token: it is read at the last place, n − 1",
             partial(at_cases, behind=True))),
        mistakes=(
            ("these are the places 0 … T − 1, as before: the vectors take places, too",
             lambda at, n: np.arange(n - len(at))),
            ("these are the tokens' own places; but vectors behind a token stand before the next "
             "one, so read at the last of them",
             lambda at, n: np.setdiff1d(np.arange(n), at)),
            ("these are the last T places; that is right only if all vectors stand in front",
             lambda at, n: np.arange(len(at), n)),
            ("these are the places of the next tokens; read one place before them",
             lambda at, n: np.append(np.setdiff1d(np.arange(n), at)[1:], n)),
            ("each prediction is one token too early: these are the places "
             "before the tokens themselves",
             lambda at, n: np.setdiff1d(np.arange(n), at) - 1),
            ("the last token is missing: its prediction is read at the last place, n − 1",
             lambda at, n: np.setdiff1d(np.arange(n), at)[1:] - 1),
            ("for the last token the answer is n − 1, even if vectors stand behind it",
             lambda at, n: (
lambda real: np.append(real[1:] - 1, real[-1]))(np.setdiff1d(np.arange(n), at))),
            ("there is no place n: for the last token the answer is n − 1",
             lambda at, n: np.append(np.setdiff1d(np.arange(n), at)[1:] - 1, n)),
            ("several vectors may stand behind a token: read at the last of them, not at the first",
             lambda at, n: (lambda real: real + np.isin(real + 1, at))(np.setdiff1d(np.arange(n), at))),
            ("behind a token there may be no vector, or several: the place "
             "is not always one further",
             lambda at, n: np.setdiff1d(np.arange(n), at) + 1),
            ("these are the places of the vectors", lambda at, n: at),
            ("these are all places of the row, those of the vectors included",
             lambda at, n: np.arange(n))),
        symptoms=(
            ("there is one answer for each of the T = n − len(at) tokens, and none for a vector",
             lambda got, expected, args: len(got) == args[1] > len(expected)),),
        tolerance=0,
        hints=("Which place is the last one before token t + 1?",
               "np.setdiff1d(np.arange(n), at) are the places of the T real tokens. The "
               "result has T integers, too.",
               "Take the places of tokens 1 … T − 1, and n as the place after the last. "
               "Subtract 1 from all of them.")),
    Exercise(
        name="prompts.lstm", title="What the LSTM costs", stars=2,
        reference=reference_lstm, cases=lambda rng: tuple(int(n) for n in rng.integers((3, 10, 4), (9, 40, 10))),
        special=(
            ("the package's P-tuning: P = 6, d = 128, n = 64", lambda rng: (6, 128, 64)),),
        mistakes=(
            ("each layer has two directions",
             less(lambda P, d, n: 4 * (n * d + n * n + 2 * n) + 4 * (2 * n * n + n * n + 2 * n))),
            ("the second layer is missing", less(lambda P, d, n: 8 * (3 * n * n + 2 * n))),
            ("the second layer reads both directions of the first, 2 n numbers",
             less(lambda P, d, n: 8 * n * n)),
            ("each of the four gates has its matrices and biases",
             less(lambda P, d, n: 6 * (n * d + 4 * n * n + 4 * n))),
            ("the gates of an LSTM are four, not three",
             less(lambda P, d, n: 2 * (n * d + 4 * n * n + 4 * n))),
            ("the first layer is missing", less(lambda P, d, n: 8 * (n * d + n * n + 2 * n))),
            ("the first layer has two directions, too",
             less(lambda P, d, n: 4 * (n * d + n * n + 2 * n))),
            ("the second layer has two directions, too",
             less(lambda P, d, n: 4 * (3 * n * n + 2 * n))),
            ("the second layer reads both directions of the first, 2 n numbers, not d",
             less(lambda P, d, n: 8 * n * (2 * n - d))),
            ("the first linear map, (2n, 2n) with 2n biases, is missing",
             less(lambda P, d, n: 4 * n * n + 2 * n)),
            ("the second linear map, (d, 2n) with d biases, is missing",
             less(lambda P, d, n: 2 * n * d + d)),
            ("the first linear map has 2n biases", less(lambda P, d, n: 2 * n)),
            ("the second linear map has d biases", less(lambda P, d, n: d)),
            ("the biases of all gates and of both linear maps are missing",
             less(lambda P, d, n: 32 * n + 2 * n + d)),
            ("the biases of all gates are missing", less(lambda P, d, n: 32 * n)),
            ("each gate has two biases of n", less(lambda P, d, n: 16 * n)),
            ("the embeddings of the pseudo-tokens, P d, are trained, too",
             less(lambda P, d, n: P * d)),
            ("the matrices of the state, (n, n), are missing", less(lambda P, d, n: 16 * n * n)),
            ("the biases of the two linear maps are missing", less(lambda P, d, n: 2 * n + d)),
            ("the two linear maps are missing",
             less(lambda P, d, n: 4 * n * n + 2 * n + 2 * n * d + d)),
            ("this is the stored count: the network is trained, too", lambda P, d, n: P * d)),
        tolerance=0,
        hints=("How many numbers has one gate that reads k numbers? How many gates are there in "
               "all, and what is k in each layer?",
               "A gate: (n, k), (n, n), n and n. Linear maps: (2n, 2n) with 2n, and (d, 2n) "
               "with d. Embeddings: (P, d).",
               "one = lambda k: 4 * (n * k + n * n + 2 * n). The sum is P * d + 2 * one(d) + 2 * "
               "one(2 * n), and the two linear maps.")),
)
