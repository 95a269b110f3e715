"""Lesson 05: a prompt in the input, its length, its gradient, and where pseudo-tokens go."""
import math
from functools import partial

import numpy as np

from ...engine.tensor import Tensor, concatenate
from ...peft.ptuning import places
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- the input -----------------------------------------------------------------------------------
def reference_input(P_e, X_e, positions):
    x = joined(P_e, X_e)
    return x + rows(positions, x)


def joined(P, X):
    return concatenate([P, X], axis=0)


def rows(positions, x, start=0):
    """Take as many rows of the table as x has, from row `start` on."""
    return positions[start:start + x.shape[0]]


def positions_from(start):
    """Begin at another row of the table. start: number of rows too many → first row."""
    def wrong(P, X, positions):
        x = joined(P, X)
        return x + rows(positions, x, start(positions.shape[0] - x.shape[0]))
    return wrong


def text_alone(got, expected, args):
    return np.shape(got) == args[1].shape and np.shape(got) != np.shape(expected)


def lesson_rows(rng):
    """Return the prompt, the tokens and the positions of the lesson's example."""
    P, X = np.float32([[5, 5]]), np.float32([[1, 0], [0, 1]])
    positions = np.float32([[0.1, 0], [0.2, 0], [0.3, 0], [0.4, 0]])
    return Tensor(P), Tensor(X), Tensor(positions)


def input_cases(rng):
    P, T, d = rng.integers((2, 3, 4), (5, 7, 8)).tolist()
    def draw(n):
        return Tensor(rng.standard_normal((n, d)).astype(np.float32))
    return draw(P), draw(T), draw(P + T + 3)


# -- the longest prompt --------------------------------------------------------------------------
def reference_longest(T, d, share):
    return longest()(T, d, share)


def work_of(S, d):
    return 12 * d * d * S + d * S * (S + 1)


def longest(work=work_of, limit=lambda work, T, d, share: (1 + share) * work(T, d), offset=0):
    """Make the search with another count of the work of S positions, or another limit."""
    def wrong(T, d, share):
        P, most = 0, limit(work, T, d, share)
        while work(P + 1 + T, d) <= most:
            P += 1
        return P + offset
    return wrong


def below(T, d, share):
    """Stop before the share, even if a prompt takes exactly that."""
    P = 0
    while work_of(P + 1 + T, d) < (1 + share) * work_of(T, d):
        P += 1
    return P


def reaching(T, d, share):
    """Stop at the first prompt that reaches the share."""
    P = 0
    while work_of(P + T, d) < (1 + share) * work_of(T, d):
        P += 1
    return P


def by_root(T, d, share, whole=round):
    """Solve the quadratic for P + T, and make the root a whole number."""
    b = 12 * d + 1
    most = (1 + share) * work_of(T, d) / d
    return whole(((b * b + 4 * most) ** 0.5 - b) / 2 - T)


def of_prompt_alone(T, d, share):
    P = 0
    while work_of(P + 1, d) <= share * work_of(T, d):
        P += 1
    return P


def budget_cases(rng):
    T, d = rng.integers((20, 16), (200, 128)).tolist()
    return T, d, round(float(rng.uniform(0.1, 0.9)), 2)


# -- the gradient --------------------------------------------------------------------------------
def reference_gradient(dx, at):
    return picked(dx, at).sum(0)


def picked(dx, at):
    """Take the gradients at the places of each row: (B, P, d)."""
    return dx[np.arange(len(dx))[:, None], at]


def row_cases(rng, front=False, B=None, ascending=True):
    low = (2, 2, 3, 4)
    rows, P, T, d = rng.integers(low, (5, 4, 6, 8)).tolist()
    B = B or rows
    at = np.stack([rng.permutation(P + T)[:P] for _ in range(B)])
    if ascending:
        at.sort(axis=1)
    if front:
        at = np.tile(np.arange(P), (B, 1))
    return rng.standard_normal((B, P + T, d)), at


def behind(dx, at):
    """Take the place after each vector, the last one again at the end of a row."""
    return reference_gradient(dx, np.minimum(at + 1, dx.shape[1] - 1))


def not_added(got, expected, args):
    dx, at = args
    return np.shape(got) == (*at.shape, dx.shape[2])


def over_vectors(got, expected, args):
    dx, at = args
    return np.shape(got) == (len(dx), dx.shape[2])


# -- places --------------------------------------------------------------------------------------
def reference_places(tokens, counts, separator):
    return places(np.asarray(tokens)[None], tuple(counts), separator)[0]


def moved_by(counts):
    """Count the pseudo-tokens of the parts before each part: it is moved so far."""
    return np.cumsum(counts) - counts


def unmoved(counts):
    return 0


def moved_by_first(counts):
    """Count those of the first part alone."""
    return np.append(0, np.full(len(counts) - 1, counts[0]))


def moved_by_last(counts):
    """Count those of the part before alone."""
    return np.append(0, counts[:-1])


def first_ends(ends, counts):
    return ends[:len(counts) - 1]


def last_ends(ends, counts):
    return ends[len(ends) - len(counts) + 1:]


def placed(tokens, counts, separator, shift=moved_by, which=first_ends, behind=1, apart=True):
    """Return the places, with another shift of each part, or other separators that end parts.

    behind: how far behind a separator a part begins. apart: does each pseudo-token of a part have a
    place of its own?
    """
    ends = which(np.flatnonzero(tokens == separator), counts)
    starts = np.repeat(np.append(0, ends + behind) + shift(counts), counts)
    within = np.arange(sum(counts)) - np.repeat(moved_by(counts), counts)
    return starts + apart * within


def behind_parts(tokens, counts, separator):
    ends = first_ends(np.flatnonzero(tokens == separator), counts)
    added = placed(tokens, counts, separator) - np.repeat(np.append(0, ends + 1), counts)
    return np.repeat(np.append(ends + 1, len(tokens)), counts) + added


def of_tokens(tokens, counts, separator):
    every = np.arange(len(tokens) + sum(counts))
    return np.setdiff1d(every, reference_places(tokens, counts, separator))


def last_again(counts, j):
    return counts[min(j, len(counts) - 1)]


def at_separators(tokens, counts, separator, which=lambda ends: ends, count=last_again,
                  behind=1):
    """Put pseudo-tokens behind, or before, other separators than the first len(counts) − 1."""
    ends = which(np.flatnonzero(tokens == separator))
    places, before = list(range(counts[0])), counts[0]
    for j, end in enumerate(ends, 1):
        n = count(counts, j)
        places += range(end + behind + before, end + behind + before + n)
        before += n
    return np.array(places, int)


LATER_SEPARATOR = ("only the first len(counts) − 1 separators end parts; "
                   "a later one is a token like others")


def whole_row(got, expected, args):
    tokens, counts, _ = args
    return np.shape(got) == (len(tokens) + sum(counts),)


def in_parts(got, expected, args):
    counts = args[1]
    return len(got) == len(counts) and np.shape(got[0]) == (counts[0],)


def places_cases(rng, more=None):
    parts = rng.integers(2, 4) if more is None else 2
    counts = tuple(rng.integers(1, 4, parts).tolist())
    separator = int(rng.integers(90, 99))
    def draw(n):
        return rng.integers(0, 90, n).tolist()
    tokens = []
    for _ in counts[1:]:
        tokens += [*draw(rng.integers(1, 5)), separator]
    tokens += draw(3)
    if rng.random() < 0.5 if more is None else more:
        tokens.append(separator)
    return np.array(tokens + draw(2)), counts, separator


# -- where to read -------------------------------------------------------------------------------
def tokens_of(at, n):
    """Return the places that no vector has."""
    return np.setdiff1d(np.arange(n), at)


def reference_bug(at, n):
    return np.append(tokens_of(at, n)[1:], n) - 1


def last_token_itself(at, n):
    real = tokens_of(at, n)
    return np.append(real[1:] - 1, real[-1])


def one_vector(at, n):
    real = tokens_of(at, n)
    return real + np.isin(real + 1, at)


def at_cases(rng, front=None, behind=None):
    n = int(rng.integers(9, 14))
    P = int(rng.integers(3, 5))
    if front is not None:
        return np.arange(P if front else 0), n
    if behind is None:
        behind = rng.random() < 0.5
    last = [n - 2, n - 1] if behind else [n - 2]         # before the last token, or behind it
    others = rng.choice(np.arange(1, n - 3), P - 1, replace=False)
    return np.append(np.sort(others), last), n


def of_all_places(got, expected, args):
    return len(got) == args[1] > len(expected)


# -- the LSTM's numbers --------------------------------------------------------------------------
def lstm(P, d, n, embeddings=1, first=2, second=2, reads=lambda d, n: 2 * n, gates=4,
         states=1, biases=2, first_map=1, second_map=1, first_bias=1, second_bias=1):
    """Count the trained numbers. The options are the numbers of each part, for the mistakes.

    first, second: directions of the two layers. reads: the width of what the second layer reads.
    """
    def layer(k):
        return gates * (n * k + states * n * n + biases * n)
    maps = first_map * (4 * n * n + first_bias * 2 * n) + second_map * (2 * n + second_bias) * d
    return embeddings * P * d + first * layer(d) + second * layer(reads(d, n)) + maps


def reference_lstm(P, d, n):
    return lstm(P, d, n)


def lstm_cases(rng):
    return tuple(rng.integers((3, 10, 4), (9, 40, 10)).tolist())


EXERCISES = (
    Exercise(
        name="prompts.input", title="The input with a prompt before it", stars=1,
        kind="design",
        example=lesson_rows,
        reference=reference_input, cases=input_cases, gradient=("P_e",),
        mistakes=(
            ("the text's positions begin at 0; they should begin behind the prompt, at P",
             lambda P, X, pos: joined(P + rows(pos, P), X + rows(pos, X))),
            ("the prompt's vectors have positions, too",
             lambda P, X, pos: joined(P, X + rows(pos, X, start=P.shape[0]))),
            ("the prompt's vectors have positions, too, and the text's begin at P",
             lambda P, X, pos: joined(P, X + rows(pos, X))),
            ("positions begin at 0, so the first row of the table is needed, too",
             positions_from(lambda rest: 1)),
            ("positions begin at 0: take the first rows of the table, not the last",
             positions_from(lambda rest: rest)),
            ("the position vectors are missing", lambda P, X, pos: joined(P, X)),
            ("you put the prompt behind the text; it stands before the text, not behind it",
             lambda P, X, pos: reference_input(X, P, pos))),
        symptoms=(
            ("the prompt's rows are missing: the result has P + T rows", text_alone),),
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
        name="prompts.longest", title="The longest prompt that you can afford", stars=2,
        kind="design",
        reference=reference_longest, cases=budget_cases,
        special=(
            ("nothing more is allowed: no prompt", lambda rng: (64, 32, 0.0)),
            ("vectors of two numbers, and as much work again", lambda rng: (34, 2, 1.0)),
            ("87 vectors take exactly the share, which is allowed", lambda rng: (203, 128, 0.5)),
            ("a long text, and half of the work again", lambda rng: (512, 128, 0.5)),
            ("a narrow model, and twice the work", lambda rng: (512, 16, 1.0))),
        mistakes=(
            ("“at most” allows exactly the share: compare with <=, not with <", below),
            *several("the loop ends at the first P that reaches the share; the largest that stays "
                     "within it is asked for, so try P + 1 before you take it",
                     reaching,
                     partial(by_root, whole=math.ceil)),
            ("round the root down, not to the nearest number: P must stay within the share",
             by_root),
            ("P + 1 vectors would be too many; this is one more than fits", longest(offset=1)),
            ("one vector more still fits", longest(offset=-1)),
            ("P positions more also see the text: attention's work is not that of P positions "
             "alone", of_prompt_alone),
            ("only the matrices are counted; attention grows faster than the length",
             longest(lambda S, d: S)),
            ("only attention is counted: add 12 d² for each position",
             longest(lambda S, d: d * S * (S + 1))),
            ("attention's share is d S (S + 1): one product for the scores and one for the values",
             longest(lambda S, d: 12 * d * d * S + d * S * (S + 1) / 2)),
            ("attention is causal, and a position sees itself as well: S (S + 1), not S²",
             longest(lambda S, d: 12 * d * d * S + d * S * S)),
            ("attention is causal: S (S + 1), not 2 S²",
             longest(lambda S, d: 12 * d * d * S + 2 * d * S * S)),
            ("the matrices do 12 d² multiplications, not 12 d",
             longest(lambda S, d: 12 * d * S + d * S * (S + 1))),
            ("the share is of the text's work, not of the longer input's",
             longest(limit=lambda work, T, d, share: work(T, d) / (1 - share))),
            ("`share` is a share, not per cent",
             longest(limit=lambda work, T, d, share: (1 + share / 100) * work(T, d)))),
        tolerance=0,
        hints=("How does the work change with one vector more? When do you stop?",
               "One whole number comes out. work(P + T) may be at most (1 + share) · work(T).",
               "work = lambda S: 12 * d * d * S + d * S * (S + 1). Begin with P = 0, and add 1 "
               "while work(P + 1 + T) <= (1 + share) * work(T).")),
    Exercise(
        name="prompts.gradient", title="One vector in many rows", stars=2,
        kind="gradient",
        reference=reference_gradient, cases=row_cases,
        special=(
            ("in front of every row", partial(row_cases, front=True)),
            ("a single row", partial(row_cases, B=1)),
            ("vector p of a row stands at at[row, p], behind a later vector or before it",
             partial(row_cases, ascending=False))),
        mistakes=(
            ("row p of the result belongs to vector p, wherever it stands: do not sort `at`",
             lambda dx, at: reference_gradient(dx, np.sort(at, axis=1))),
            ("the gradient is a sum over the rows, not a mean: the loss has its division already",
             lambda dx, at: picked(dx, at).mean(0)),
            ("the places differ from row to row: `at` has a row of its own for each",
             lambda dx, at: dx[:, at[0]].sum(0)),
            ("the vectors stand at the places `at`, and not always in front",
             lambda dx, at: dx[:, :at.shape[1]].sum(0)),
            ("the vectors stand at the places `at`, and not at the end of the rows",
             lambda dx, at: dx[:, -at.shape[1]:].sum(0)),
            ("all rows count, not the first one alone", lambda dx, at: picked(dx, at)[0]),
            ("all rows count, not the last one alone", lambda dx, at: picked(dx, at)[-1]),
            ("the gradient of a vector is that at its own place, not at the next one", behind),
            ("the gradient has the sign of dx", lambda dx, at: -reference_gradient(dx, at))),
        symptoms=(
            ("the same vector stands in every row: add the rows up", not_added),
            ("each vector has a gradient of its own: add over the rows, not over the vectors",
             over_vectors)),
        tolerance=1e-7,
        hints=("A vector is used once in every row. What becomes of a value that is used several "
               "times, on the way back?",
               "From dx (B, n, d) take the P places of each row, (B, P, d). The result is (P, d).",
               "np.take_along_axis(dx, at[..., None], axis=1) is (B, P, d). Add it over axis 0.")),
    Exercise(
        name="prompts.places", title="The places of pseudo-tokens", stars=2,
        kind="design",
        reference=reference_places, cases=places_cases,
        special=(
            ("the example of the text", lambda rng: (np.array([7, 8, 10, 9]), (2, 1), 10)),
            ("a separator in the last part is a token like others",
             partial(places_cases, more=True))),
        mistakes=(
            ("earlier pseudo-tokens are not counted: each of them moves "
             "everything after it by one place",
             partial(placed, shift=unmoved)),
            ("the separator belongs to the part that it ends; the next part begins after it",
             partial(placed, behind=0)),
            ("these pseudo-tokens stand before the separators, and before every one: a separator "
             "belongs to the part that it ends, and in the last part it is a token like others",
             partial(at_separators, behind=0)),
            *several("all pseudo-tokens placed so far move a part: you counted those of one part "
                     "alone",
                     partial(placed, shift=moved_by_first),
                     partial(placed, shift=moved_by_last)),
            ("a part moves by the number of all pseudo-tokens before it, "
             "not by the number of parts",
             partial(placed, shift=lambda counts: np.arange(len(counts)))),
            ("pseudo-tokens of a part do not move themselves: count those of the parts before it",
             partial(placed, shift=np.cumsum)),
            ("the first separators of the row end parts, not the last ones",
             partial(placed, which=last_ends)),
            ("pseudo-tokens stand before their part, not behind it", behind_parts),
            ("the counts are taken in the wrong order",
             lambda t, counts, s: reference_places(t, counts[::-1], s)),
            ("these are the places of the tokens, not of the pseudo-tokens", of_tokens),
            ("these are places in the original row, as np.insert takes them: the answer is in the "
             "lengthened row, where each pseudo-token has a place of its own",
             partial(placed, shift=unmoved, apart=False)),
            ("each pseudo-token has a place of its own: those of a part stand one behind another",
             partial(placed, apart=False)),
            ("here all pseudo-tokens stand in front: later parts have theirs behind the separator",
             lambda t, counts, s: np.arange(sum(counts))),
            *several("there are pseudo-tokens behind every separator: in the last part a "
                     "separator is a token like others",
                     at_separators,
                     partial(at_separators, count=lambda counts, j: 1)),
            *several("only the first separator is used: each part but the last "
                     "ends with one of its own",
                     partial(at_separators, which=lambda ends: ends[:1]),
                     partial(at_separators, which=lambda ends: ends[:1].repeat(2)))),
        symptoms=(
            ("this is a whole row: return the places of the pseudo-tokens "
             "alone, sum(counts) integers",
             whole_row),
            ("the places of all parts belong in one array, not in one for each part", in_parts)),
        errors=(
            ("IndexError", LATER_SEPARATOR),
            ("zip() argument", LATER_SEPARATOR)),
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
        kind="fault",
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
             tokens_of),
            ("these are the last T places; that is right only if all vectors stand in front",
             lambda at, n: np.arange(len(at), n)),
            ("these are the places of the next tokens; read one place before them",
             lambda at, n: np.append(tokens_of(at, n)[1:], n)),
            ("each prediction is one token too early: these are the places "
             "before the tokens themselves",
             lambda at, n: tokens_of(at, n) - 1),
            ("the last token is missing: its prediction is read at the last place, n − 1",
             lambda at, n: tokens_of(at, n)[1:] - 1),
            ("for the last token the answer is n − 1, even if vectors stand behind it",
             last_token_itself),
            ("there is no place n: for the last token the answer is n − 1",
             lambda at, n: np.append(tokens_of(at, n)[1:] - 1, n)),
            ("several vectors may stand behind a token: read at the last of them, not at the first",
             one_vector),
            ("behind a token there may be no vector, or several: the place "
             "is not always one further",
             lambda at, n: tokens_of(at, n) + 1),
            ("these are the places of the vectors", lambda at, n: at),
            ("these are all places of the row, those of the vectors included",
             lambda at, n: np.arange(n))),
        symptoms=(
            ("there is one answer for each of the T = n − len(at) tokens, and none for a vector",
             of_all_places),),
        tolerance=0,
        hints=("Which place is the last one before token t + 1?",
               "np.setdiff1d(np.arange(n), at) are the places of the T real tokens. The "
               "result has T integers, too.",
               "Take the places of tokens 1 … T − 1, and n as the place after the last. "
               "Subtract 1 from all of them.")),
    Exercise(
        name="prompts.lstm", title="What the LSTM costs", stars=2,
        kind="count",
        reference=reference_lstm, cases=lstm_cases,
        special=(
            ("the package's P-tuning: P = 6, d = 128, n = 64", lambda rng: (6, 128, 64)),),
        mistakes=(
            ("each layer has two directions", partial(lstm, first=1, second=1)),
            ("the second layer is missing", partial(lstm, second=0)),
            ("the second layer reads both directions of the first, 2 n numbers",
             partial(lstm, reads=lambda d, n: n)),
            ("each of the four gates has its matrices and biases", partial(lstm, gates=1)),
            ("the gates of an LSTM are four, not three", partial(lstm, gates=3)),
            ("the first layer is missing", partial(lstm, first=0)),
            ("the first layer has two directions, too", partial(lstm, first=1)),
            ("the second layer has two directions, too", partial(lstm, second=1)),
            ("the second layer reads both directions of the first, 2 n numbers, not d",
             partial(lstm, reads=lambda d, n: d)),
            ("the first linear map, (2n, 2n) with 2n biases, is missing",
             partial(lstm, first_map=0)),
            ("the second linear map, (d, 2n) with d biases, is missing",
             partial(lstm, second_map=0)),
            ("the first linear map has 2n biases", partial(lstm, first_bias=0)),
            ("the second linear map has d biases", partial(lstm, second_bias=0)),
            ("the biases of all gates and of both linear maps are missing",
             partial(lstm, biases=0, first_bias=0, second_bias=0)),
            ("the biases of all gates are missing", partial(lstm, biases=0)),
            ("each gate has two biases of n", partial(lstm, biases=1)),
            ("the embeddings of the pseudo-tokens, P d, are trained, too",
             partial(lstm, embeddings=0)),
            ("the matrices of the state, (n, n), are missing", partial(lstm, states=0)),
            ("the biases of the two linear maps are missing",
             partial(lstm, first_bias=0, second_bias=0)),
            ("the two linear maps are missing", partial(lstm, first_map=0, second_map=0)),
            ("this is the stored count: the network is trained, too", lambda P, d, n: P * d)),
        tolerance=0,
        hints=("How many numbers has one gate that reads k numbers? How many gates are there in "
               "all, and what is k in each layer?",
               "A gate: (n, k), (n, n), n and n. Linear maps: (2n, 2n) with 2n, and (d, 2n) "
               "with d. Embeddings: (P, d).",
               "one = lambda k: 4 * (n * k + n * n + 2 * n). The sum is P * d + 2 * one(d) + 2 "
               "* one(2 * n), and the two linear maps.")),
)
