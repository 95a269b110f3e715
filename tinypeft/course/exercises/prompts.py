"""Lesson 05: a prompt in the input, its length, its gradient, and where pseudo-tokens go."""
import math
from functools import partial

import numpy as np

from ...engine.tensor import Tensor, concatenate
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- prompts.input ---------------------------------------------------------------------------------
def model_input(P_e, X_e, positions):
    if slip("you put the prompt behind the text; it stands before the text, not behind it"):
        P_e, X_e = X_e, P_e
    P, T = P_e.shape[0], X_e.shape[0]
    if slip("the text's positions begin at 0; they should begin behind the prompt, at P"):
        return concatenate([P_e + positions[:P], X_e + positions[:T]], axis=0)
    if slip("the prompt's vectors have positions, too"):
        return concatenate([P_e, X_e + positions[P:P + T]], axis=0)
    if slip("the prompt's vectors have positions, too, and the text's begin at P"):
        return concatenate([P_e, X_e + positions[:T]], axis=0)
    x = concatenate([P_e, X_e], axis=0)
    if slip("positions begin at 0, so the first row of the table is needed, too"):
        return x + positions[1:P + T + 1]
    if slip("positions begin at 0: take the first rows of the table, not the last"):
        return x + positions[positions.shape[0] - P - T:]
    if slip("the position vectors are missing"): return x
    return x + positions[:P + T]


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


# -- prompts.longest -------------------------------------------------------------------------------
def longest(T, d, share):
    work = lambda S: 12 * d * d * S + d * S * (S + 1)
    if slip("only the matrices are counted; attention grows faster than the length"):
        work = lambda S: S
    if slip("only attention is counted: add 12 d² for each position"):
        work = lambda S: d * S * (S + 1)
    if slip("attention's share is d S (S + 1): one product for the scores and one for the values"):
        work = lambda S: 12 * d * d * S + d * S * (S + 1) / 2
    if slip("attention is causal, and a position sees itself as well: S (S + 1), not S²"):
        work = lambda S: 12 * d * d * S + d * S * S
    if slip("attention is causal: S (S + 1), not 2 S²"):
        work = lambda S: 12 * d * d * S + 2 * d * S * S
    if slip("the matrices do 12 d² multiplications, not 12 d"):
        work = lambda S: 12 * d * S + d * S * (S + 1)
    most = (1 + share) * work(T)
    if slip("the share is of the text's work, not of the longer input's"):
        most = work(T) / (1 - share)
    if slip("`share` is a share, not per cent"): most = (1 + share / 100) * work(T)
    if slip("“at most” allows exactly the share: compare with <=, not with <"):
        return counted(lambda P: work(P + 1 + T) < most)
    match which("the loop ends at the first P that reaches the share; the largest that stays "
                "within it is asked for, so try P + 1 before you take it", 2):
        case 1: return counted(lambda P: work(P + T) < most)
        case 2: return math.ceil(root(T, d, most))
    if slip("round the root down, not to the nearest number: P must stay within the share"):
        return round(root(T, d, most))
    if slip("P positions more also see the text: attention's work is not that of P positions "
            "alone"):
        return counted(lambda P: work(P + 1) <= share * work(T))
    P = 0
    while work(P + 1 + T) <= most: P += 1
    if slip("P + 1 vectors would be too many; this is one more than fits"): P += 1
    if slip("one vector more still fits"): P -= 1
    return P


def counted(more):
    P = 0
    while more(P): P += 1
    return P


def root(T, d, most):
    """Solve the quadratic for P + T."""
    b = 12 * d + 1
    return ((b * b + 4 * most / d) ** 0.5 - b) / 2 - T


def budget_cases(rng):
    T, d = rng.integers((20, 16), (200, 128)).tolist()
    return T, d, round(float(rng.uniform(0.1, 0.9)), 2)


# -- prompts.gradient ------------------------------------------------------------------------------
def gradient(dx, at):
    if slip("row p of the result belongs to vector p, wherever it stands: do not sort `at`"):
        at = np.sort(at, axis=1)
    if slip("the gradient of a vector is that at its own place, not at the next one"):
        at = np.minimum(at + 1, dx.shape[1] - 1)
    P = at.shape[1]
    picked = np.take_along_axis(dx, at[..., None], axis=1)        # (B, P, d)
    if slip("the gradient is a sum over the rows, not a mean: the loss has its division already"):
        return picked.mean(0)
    if slip("the places differ from row to row: `at` has a row of its own for each"):
        return dx[:, at[0]].sum(0)
    if slip("the vectors stand at the places `at`, and not always in front"):
        return dx[:, :P].sum(0)
    if slip("the vectors stand at the places `at`, and not at the end of the rows"):
        return dx[:, -P:].sum(0)
    if slip("all rows count, not the first one alone"): return picked[0]
    if slip("all rows count, not the last one alone"): return picked[-1]
    if slip("the gradient has the sign of dx"): return -picked.sum(0)
    return picked.sum(0)


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


def not_added(got, expected, args):
    dx, at = args
    return np.shape(got) == (*at.shape, dx.shape[2])


def over_vectors(got, expected, args):
    dx, at = args
    return np.shape(got) == (len(dx), dx.shape[2])


# -- prompts.places --------------------------------------------------------------------------------
def places(tokens, counts, separator):
    if slip("the counts are taken in the wrong order"): counts = counts[::-1]
    every = np.nonzero(tokens == separator)[0]
    ends = every[:len(counts) - 1]                       # where each part but the last ends
    if slip("the first separators of the row end parts, not the last ones"):
        ends = every[len(every) - len(counts) + 1:]
    match which("there are pseudo-tokens behind every separator: in the last part a "
                "separator is a token like others", 2):
        case 1: ends, counts = every, last_again(counts, len(every) + 1)
        case 2: ends, counts = every, [counts[0]] + [1] * len(every)
    match which("only the first separator is used: each part but the last "
                "ends with one of its own", 2):
        case 1: ends, counts = every[:1], counts[:2]
        case 2: ends, counts = every[:1].repeat(2), last_again(counts, 3)
    starts = np.concatenate([[0], ends + 1])             # in the row as it is
    if slip("the separator belongs to the part that it ends; the next part begins after it"):
        starts = np.concatenate([[0], ends])
    if slip("these pseudo-tokens stand before the separators, and before every one: a separator "
            "belongs to the part that it ends, and in the last part it is a token like others"):
        starts, counts = np.concatenate([[0], every]), last_again(counts, len(every) + 1)
    if slip("pseudo-tokens stand before their part, not behind it"):
        starts = np.append(ends + 1, len(tokens))
    original = slip("these are places in the original row, as np.insert takes them: the answer is "
                    "in the lengthened row, where each pseudo-token has a place of its own")
    piled = slip("each pseudo-token has a place of its own: those of a part stand one behind "
                 "another")
    placed, before = [], 0
    for start, n in zip(starts, counts, strict=True):
        at = start + before
        if slip("pseudo-tokens of a part do not move themselves: count those of the parts before "
                "it"):
            at += n
        part = range(at, at + n)
        if original or piled: part = [at] * n
        placed += part
        before += n
        if original or slip("earlier pseudo-tokens are not counted: each of them moves "
                            "everything after it by one place"):
            before = 0
        match which("all pseudo-tokens placed so far move a part: you counted those of one part "
                    "alone", 2):
            case 1: before = counts[0]
            case 2: before = n
        if slip("a part moves by the number of all pseudo-tokens before it, "
                "not by the number of parts"):
            before += 1 - n
    if slip("these are the places of the tokens, not of the pseudo-tokens"):
        return np.setdiff1d(np.arange(len(tokens) + sum(counts)), placed)
    if slip("here all pseudo-tokens stand in front: later parts have theirs behind the separator"):
        return np.arange(sum(counts))
    return np.array(placed)


def last_again(counts, n):
    """Return n counts: of what is missing, the last one again."""
    return [counts[min(j, len(counts) - 1)] for j in range(n)]


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


# -- prompts.bug -----------------------------------------------------------------------------------
def read_at(at, n):
    real = np.setdiff1d(np.arange(n), at)
    read = np.append(real[1:], n) - 1
    if slip("these are the places 0 … T − 1, as before: the vectors take places, too"):
        return np.arange(len(real))
    if slip("these are the tokens' own places; but vectors behind a token stand before the next "
            "one, so read at the last of them"):
        return real
    if slip("these are the last T places; that is right only if all vectors stand in front"):
        return np.arange(len(at), n)
    if slip("these are the places of the next tokens; read one place before them"): return read + 1
    if slip("each prediction is one token too early: these are the places "
            "before the tokens themselves"):
        return real - 1
    if slip("the last token is missing: its prediction is read at the last place, n − 1"):
        return read[:-1]
    if slip("for the last token the answer is n − 1, even if vectors stand behind it"):
        return np.append(read[:-1], real[-1])
    if slip("there is no place n: for the last token the answer is n − 1"):
        return np.append(read[:-1], n)
    if slip("several vectors may stand behind a token: read at the last of them, not at the first"):
        return real + np.isin(real + 1, at)
    if slip("behind a token there may be no vector, or several: the place "
            "is not always one further"):
        return real + 1
    if slip("these are the places of the vectors"): return at
    if slip("these are all places of the row, those of the vectors included"): return np.arange(n)
    return read


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


# -- prompts.lstm ----------------------------------------------------------------------------------
def lstm(P, d, n):
    one = lambda k: 4 * (n * k + n * n + 2 * n)                   # a direction of a layer
    no_bias = slip("the biases of all gates and of both linear maps are missing")
    if slip("each of the four gates has its matrices and biases"):
        one = lambda k: n * k + n * n + 2 * n
    if slip("the gates of an LSTM are four, not three"):
        one = lambda k: 3 * (n * k + n * n + 2 * n)
    if no_bias or slip("the biases of all gates are missing"):
        one = lambda k: 4 * (n * k + n * n)
    if slip("each gate has two biases of n"): one = lambda k: 4 * (n * k + n * n + n)
    if slip("the matrices of the state, (n, n), are missing"):
        one = lambda k: 4 * (n * k + 2 * n)
    first, second = 2 * one(d), 2 * one(2 * n)
    if slip("each layer has two directions"): first, second = one(d), one(2 * n)
    if slip("the second layer is missing"): second = 0
    if slip("the second layer reads both directions of the first, 2 n numbers"): second = 2 * one(n)
    if slip("the first layer is missing"): first = 0
    if slip("the first layer has two directions, too"): first = one(d)
    if slip("the second layer has two directions, too"): second = one(2 * n)
    if slip("the second layer reads both directions of the first, 2 n numbers, not d"):
        second = 2 * one(d)
    embeddings, maps = P * d, (2 * n * 2 * n + 2 * n) + (2 * n * d + d)
    if slip("the first linear map, (2n, 2n) with 2n biases, is missing"): maps = 2 * n * d + d
    if slip("the second linear map, (d, 2n) with d biases, is missing"): maps = 4 * n * n + 2 * n
    if slip("the first linear map has 2n biases"): maps -= 2 * n
    if slip("the second linear map has d biases"): maps -= d
    if no_bias or slip("the biases of the two linear maps are missing"): maps -= 2 * n + d
    if slip("the two linear maps are missing"): maps = 0
    if slip("the embeddings of the pseudo-tokens, P d, are trained, too"): embeddings = 0
    if slip("this is the stored count: the network is trained, too"): return P * d
    return embeddings + first + second + maps


def lstm_cases(rng):
    return tuple(rng.integers((3, 10, 4), (9, 40, 10)).tolist())


EXERCISES = (
    Exercise(
        name="prompts.input", title="The input with a prompt before it", stars=1,
        kind="design",
        example=lesson_rows,
        reference=model_input, cases=input_cases, gradient=("P_e",),
        mistakes=slips(model_input),
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
        reference=longest, cases=budget_cases,
        special=(
            ("nothing more is allowed: no prompt", lambda rng: (64, 32, 0.0)),
            ("vectors of two numbers, and as much work again", lambda rng: (34, 2, 1.0)),
            ("87 vectors take exactly the share, which is allowed", lambda rng: (203, 128, 0.5)),
            ("a long text, and half of the work again", lambda rng: (512, 128, 0.5)),
            ("a narrow model, and twice the work", lambda rng: (512, 16, 1.0))),
        mistakes=slips(longest),
        tolerance=0,
        hints=("How does the work change with one vector more? When do you stop?",
               "One whole number comes out. work(P + T) may be at most (1 + share) · work(T).",
               "work = lambda S: 12 * d * d * S + d * S * (S + 1). Begin with P = 0, and add 1 "
               "while work(P + 1 + T) <= (1 + share) * work(T).")),
    Exercise(
        name="prompts.gradient", title="One vector in many rows", stars=2,
        kind="gradient",
        reference=gradient, cases=row_cases,
        special=(
            ("in front of every row", partial(row_cases, front=True)),
            ("a single row", partial(row_cases, B=1)),
            ("vector p of a row stands at at[row, p], behind a later vector or before it",
             partial(row_cases, ascending=False))),
        mistakes=slips(gradient),
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
        reference=places, cases=places_cases,
        special=(
            ("the example of the text", lambda rng: (np.array([7, 8, 10, 9]), (2, 1), 10)),
            ("a separator in the last part is a token like others",
             partial(places_cases, more=True))),
        mistakes=slips(places),
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
        reference=read_at, cases=at_cases,
        special=(
            ("the example of the text", lambda rng: (np.array([0, 1, 5]), 7)),
            ("all vectors stand in front: each token is read at its own place",
             partial(at_cases, front=True)),
            ("there are no vectors", partial(at_cases, front=False)),
            ("two vectors stand behind the last token: it is read at the last place, n − 1",
             partial(at_cases, behind=True))),
        mistakes=slips(read_at),
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
        reference=lstm, cases=lstm_cases,
        special=(
            ("the package's P-tuning: P = 6, d = 128, n = 64", lambda rng: (6, 128, 64)),),
        mistakes=slips(lstm),
        tolerance=0,
        hints=("How many numbers has one gate that reads k numbers? How many gates are there in "
               "all, and what is k in each layer?",
               "A gate: (n, k), (n, n), n and n. Linear maps: (2n, 2n) with 2n, and (d, 2n) "
               "with d. Embeddings: (P, d).",
               "one = lambda k: 4 * (n * k + n * n + 2 * n). The sum is P * d + 2 * one(d) + 2 "
               "* one(2 * n), and the two linear maps.")),
)
