"""Lesson 13: NF4's table and code, quantized scales, QLoRA's gradient, and better levels."""
from functools import partial

import numpy as np
from scipy.special import ndtri

from ...quant.codebooks import codebook
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]

DELTA = 1 - (1 / 32 + 1 / 30) / 2
NF4 = codebook("nf4").astype(float)
DYNAMIC = codebook("dynamic").astype(float)


# -- nf4.levels ------------------------------------------------------------------------------------
def levels(delta, positive, negative):
    twice = slip("0 is there twice: each side ends at ½, whose quantile is 0; drop it on "
                 "both sides, and add one 0")
    if slip("the two sides are exchanged: `positive` levels lie above 0"):
        positive, negative = negative, positive

    def side(n):
        p = np.linspace(delta, 0.5, n + 1)[:-1]
        if slip("n levels need n + 1 points from δ to ½, the last of which is dropped"):
            p = np.linspace(delta, 0.5, n + 2)[:-1]
        if slip("n levels need n + 1 points from δ to ½; with n points one level is missing"):
            p = np.linspace(delta, 0.5, n)[:-1]
        if twice or slip("the last of the n + 1 points is ½, whose level is 0: it is dropped on "
                         "both sides"):
            p = np.linspace(delta, 0.5, n + 1)
        if slip("n levels need n + 1 points; with n points the last kept level is ½'s, which is "
                "0"):
            p = np.linspace(delta, 0.5, n)
        if slip("the levels are evenly spaced: the quantile function Φ⁻¹ is not applied"):
            return p - 0.5
        return ndtri(p)
    values = np.concatenate([side(positive), [0.0], -side(negative)])
    if twice or slip("0 is missing"): values = np.concatenate([side(positive), -side(negative)])
    if slip("these are evenly spaced probabilities from 1 − δ to δ; each side of ½ has a spacing "
            "of its own, so that 0 is a level"):
        values = ndtri(np.linspace(1 - delta, delta, positive + 1 + negative))
    if slip("these levels are evenly spaced from −1 to 1; take quantiles, and 0 itself as a level"):
        values = np.linspace(-1, 1, positive + 1 + negative)
    if not slip("the levels are not sorted"): values = np.sort(values)
    if slip("the levels are not scaled to a largest magnitude of 1"): return values
    if slip("the levels must ascend; yours fall"): values = values[::-1]
    return values / np.abs(values).max()


def unsorted_levels(got, expected, args):
    return np.allclose(np.sort(got), expected)


def levels_case(rng):
    return rng.uniform(0.93, 0.99), int(rng.integers(4, 9)), int(rng.integers(3, 8))


# -- nf4.encode ------------------------------------------------------------------------------------
def encode(x, levels):
    a = np.abs(x).max()
    if slip("a is the largest magnitude, max|x|, not the largest number"): a = x.max()
    v = x / a
    if slip("divide by a before you look for the nearest level"): v = x
    if slip("the levels have both signs, so keep the sign of x: these are the codes of |x|"):
        v = np.abs(x) / a
    codes = np.abs(v[:, None] - levels).argmin(1)
    match which("you took the next level below or above, not the nearest", 2):
        case 1: codes = np.searchsorted(levels, v, "right") - 1
        case 2: codes = np.minimum(np.searchsorted(levels, v), len(levels) - 1)
    if slip("the levels are not evenly spaced: compare with each of them"):
        codes = np.rint((v + 1) / 2 * (len(levels) - 1)).astype(int)
    if slip("these are the levels; return their numbers, the codes"): codes = levels[codes]
    return codes, float(a)


def encode_case(rng):
    return rng.normal(0, rng.uniform(0.1, 3), 64), NF4


def multiples(rng):
    return 0.5 * NF4[[15, 7, 0, 3, 9]], NF4


# -- nf4.backward ----------------------------------------------------------------------------------
def backward(x, codes, scales, levels, A, B, s, dy):
    g = codes.shape[1] // scales.shape[1]
    W = levels[codes] * np.repeat(scales, g, axis=1)
    if slip("W is made of the levels that the codes stand for, levels[codes], not of the codes"):
        W = codes * np.repeat(scales, g, axis=1)
    if slip("the levels must be multiplied by the scale of their group"): W = levels[codes]
    if slip("a scale belongs to g neighbouring weights: use np.repeat, not np.tile"):
        W = levels[codes] * np.tile(scales, (1, g))
    dyB = dy @ B                                                          # (n, r)
    high, low = dy @ W, s * dyB @ A
    dA, dB = s * dyB.T @ x, s * dy.T @ (x @ A.T)
    if slip("the gradient also passes through the quantized weight: dx has a term dy Ŵ"): high = 0
    if slip("the gradient also passes through the adapter: dx has a term s (dy B) A"): low = 0
    if slip("the factor s is missing in dA"): dA = dA / s
    if slip("the factor s is missing in dB"): dB = dB / s
    if slip("the factor s is missing in the adapter's part of dx"): low = low / s
    if slip("s belongs to the adapter alone: the frozen weight's part of dx is dy Ŵ, without s"):
        high = s * high
    if slip("s is missing in all three gradients"): low, dA, dB = low / s, dA / s, dB / s
    if slip("s is missing in dA and in dB"): dA, dB = dA / s, dB / s
    match which("return (dx, dA, dB), in this order", 3):
        case 1: return high + low, dB, dA
        case 2: return dA, dB, high + low
        case 3: return dB, dA, high + low
    return high + low, dA, dB


def backward_case(rng):
    n, r, g = int(rng.integers(3, 6)), int(rng.integers(2, 4)), 4
    d_out = int(rng.integers(5, 8))
    d_in = g * int(rng.integers(2, 4))
    def normal(*shape):
        return rng.normal(0, 1, shape)
    x, codes = normal(n, d_in), rng.integers(0, 16, (d_out, d_in))
    scales = rng.uniform(0.2, 2, (d_out, d_in // g))
    A, B = normal(r, d_in), normal(d_out, r)
    s = float(rng.choice([0.5, 2.0, 4.0]))
    return x, codes, scales, NF4, A, B, s, normal(n, d_out)


def one_of_each(rng):
    def matrix(number):
        return np.array([[number]])
    x, code, scale, A = matrix(2.0), matrix(15), matrix(3.0), matrix(5.0)
    return x, code, scale, NF4, A, matrix(7.0), 2.0, matrix(1.0)


# -- nf4.bug ---------------------------------------------------------------------------------------
def decoded(codes, rho, m, o, d, levels):
    n = len(rho) // len(m)                               # neighbouring blocks that share an m
    a = np.repeat(m, n) * d[rho] + o
    if slip("the mean o of the scales is missing: it was subtracted before the scales were coded, "
            "so it is added again"):
        a = np.repeat(m, n) * d[rho]
    if slip("the mean is there again, but each m belongs to neighbouring scales: use np.repeat, "
            "not np.tile"):
        a = np.tile(m, n) * d[rho] + o
    if slip("both faults are still there: o is not added, and np.tile repeats all m as a whole"):
        a = np.tile(m, n) * d[rho]
    if slip("o is added after the multiplication by m, not before it"):
        a = np.repeat(m, n) * (d[rho] + o)
    if slip("the mean was subtracted, so it is added, not subtracted again"):
        a = np.repeat(m, n) * d[rho] - o
    if slip("rho are codes: the numbers are in the table, d[rho]"): a = np.repeat(m, n) * rho + o
    if slip("each block has a scale of its own; yours all have the mean"): a = np.full(len(rho), o)
    if slip("codes are not weights: the levels are in the table, levels[codes]"):
        return a[:, None] * codes
    return a[:, None] * levels[codes]


def all_zero(got, expected, args):
    return not np.any(got)


def stored_case(rng):
    """Draw n blocks of codes, whose scales have k superblocks."""
    k, each, g = int(rng.integers(2, 4)), int(rng.integers(3, 6)), int(rng.integers(6, 9))
    n = k * each
    codes, rho = rng.integers(0, 16, (n, g)), rng.integers(0, 256, n)
    return codes, rho, rng.uniform(0.05, 0.4, k), float(rng.uniform(0.3, 0.6)), DYNAMIC, NF4


def one_block(rng):
    """Return two blocks of one weight each, whose level is 1: scales 0.5 and 0.3."""
    d = np.array([-1.0, 0, 1])
    return np.array([[15], [15]]), np.array([2, 0]), np.array([0.1]), 0.4, d, NF4


# -- nf4.better ------------------------------------------------------------------------------------
def better(x):
    levels = codebook("nf4").astype(float)                        # levels[7] is 0
    if slip("these are NF4's own levels"): return levels
    if slip("levels that are used equally often do not have the least squared error: a few far "
            "numbers need levels, too"):
        used = np.quantile(x, (np.arange(16) + 0.5) / 16)
        return np.where(np.abs(used) == np.abs(used).min(), 0, used)
    if slip("these levels are evenly spaced, which suits uniform weights alone"):
        return np.where(np.arange(16) == 7, 0, np.linspace(-1, 1, 16))
    for _ in range(20):                                           # Lloyd's algorithm
        codes = np.abs(x[:, None] - levels).argmin(1)
        for i in set(codes):
            if levels[i] != 0: levels[i] = x[codes == i].mean()
    return levels


def error_of_levels(x, levels):
    return np.sum(np.abs(x[:, None] - levels).min(1)**2)


def are_better(result, args):
    """Are they ascending, with a 0, and is their squared error at most 0.97 of NF4's?"""
    (x,) = args
    new = np.asarray(result, float)
    if not np.isfinite(new).all() or not (np.diff(new) >= 0).all() or not (new == 0).any():
        return False
    return bool(error_of_levels(x, new) <= 0.97 * error_of_levels(x, NF4))


def equal_steps(got, expected, args):
    """Are the steps between levels of one sign all alike, below 0 and above it?"""
    got = np.asarray(got, float)
    return all(np.ptp(np.diff(side)) < 1e-6 for side in (got[got < 0], got[got > 0]))


def without_zero(got, expected, args):
    return not (np.asarray(got) == 0).any()


def not_ascending(got, expected, args):
    return not (np.diff(np.asarray(got, float)) >= 0).all()


def normed_blocks(rng):
    """Draw blocks of 64 normal or uniform numbers, each divided by its largest magnitude."""
    x = rng.normal(size=(96, 64)) if rng.integers(2) else rng.uniform(-1, 1, (96, 64))
    return ((x / np.abs(x).max(1, keepdims=True)).ravel(),)


def normal_blocks(rng):
    x = rng.normal(size=(96, 64))
    return ((x / np.abs(x).max(1, keepdims=True)).ravel(),)


# -- nf4.loses -------------------------------------------------------------------------------------
def loses(levels):
    if slip("these numbers are the given levels, which have no error on them"):
        return np.resize(levels, 64)
    if slip("evenly spread numbers are not enough: most of them lie on neither grid"):
        return np.linspace(-1, 1, 64)
    if slip("on normal numbers the given levels are the better ones, or nearly so"):
        x = np.random.default_rng(0).normal(size=64)
        return x / np.abs(x).max()
    if slip("numbers that both grids have, such as 1 and −1, have no error in either"):
        return np.resize([1.0, -1.0], 64)
    if slip("the number that you repeat is a level of some tables: use many, or look into "
            "`levels`"):
        return np.array([1] + 63 * [3 / 7])
    return np.resize(np.arange(-7, 8) / 7, 64)


SEVENTHS = np.arange(-7, 8) / 7


def prefers_integers(result, args):
    """Is the largest magnitude 1, and int4's squared error at most half of that of the levels?"""
    (levels,) = args
    x = np.asarray(result, float)
    if not np.isfinite(x).all() or np.abs(x).max() != 1:
        return False
    theirs = error_of_levels(x, levels)
    return bool(theirs > 1e-6 and error_of_levels(x, SEVENTHS) <= 0.5 * theirs)


def not_scaled(got, expected, args):
    return np.abs(got).max() != 1


def tables(rng):
    e2m1 = codebook("E2M1").astype(float)
    return (np.unique((NF4, e2m1 / e2m1.max())[rng.integers(2)]),)


def some_sevenths(rng, inside=(3,)):
    """Draw a table with numbers k/7: those of `inside`, four others, and ±1."""
    others = rng.choice([k for k in range(-6, 7) if k not in inside], 4, replace=False)
    return (np.array(sorted([-7, *inside, *others, 7])) / 7,)


EXERCISES = (
    Exercise(
        name="nf4.levels", title="NF4's table of levels", stars=2,
        kind="design",
        example=lambda rng: (0.9, 2, 1),
        reference=levels, cases=levels_case,
        special=(
            ("NF4 itself", lambda rng: (DELTA, 8, 7)),
            ("one level on either side of 0", lambda rng: (0.9, 1, 1))),
        mistakes=slips(levels),
        symptoms=(
            ("these are the right levels, but they are not sorted", unsorted_levels),),
        hints=("The last point of each side is ½, whose quantile is 0, and it is dropped. How "
               "many points does a side of n levels need?",
               "One side is (n,). The table is (positive + 1 + negative,), ascending, with "
               "a largest magnitude of 1.",
               "side = lambda n: norm.ppf(np.linspace(delta, 0.5, n + 1)[:-1]). "
               "Sort side(positive), 0 and -side(negative) together, and divide "
               "by the largest magnitude.")),
    Exercise(
        name="nf4.encode", title="The nearest level", stars=1,
        kind="formula",
        example=lambda rng: (np.array([0.2, -0.8, 0.4, 0.1]), np.array([-1, 0, 0.409, 1])),
        reference=encode, cases=encode_case,
        special=(
            ("multiples of the levels", multiples),),
        mistakes=slips(encode),
        tolerance=1e-9,
        hints=("The levels are not evenly spaced. How do you find the nearest one all the same?",
               "x[:, None] / a is (n, 1) and levels (L,), so their difference is (n, L). The "
               "codes are (n,), integers.",
               "a = np.abs(x).max(); the codes are np.abs(x[:, None] / a - levels).argmin(1).")),
    Exercise(
        name="nf4.backward", title="The gradient of QLoRA", stars=3,
        kind="gradient",
        reference=backward, cases=backward_case,
        special=(
            ("one number of each: W is 3", one_of_each),),
        mistakes=slips(backward),
        hints=("In which two ways does x reach y? Which of the arrays get a gradient?",
               "The decoded W is (d_out, d_in). dy is (n, d_out), dy B is (n, r). A group has g = "
               "codes.shape[1] // scales.shape[1] weights.",
               "W = levels[codes] * np.repeat(scales, g, axis=1). dA = s * (dy @ B).T @ x, dB = "
               "s * dy.T @ (x @ A.T), and dx = dy @ W + s * (dy @ B) @ A.")),
    Exercise(
        name="nf4.bug", title="Find the bug: weights that come back with the other sign", stars=2,
        kind="fault",
        reference=decoded, cases=stored_case,
        special=(
            ("two blocks of one weight, with m = 0.1 and o = 0.4", one_block),),
        mistakes=slips(decoded),
        symptoms=(
            ("nothing is left: every weight is 0", all_zero),),
        tolerance=1e-9,
        hints=("A scale is the largest magnitude of a block. Can it be negative?",
               "codes are (n, g), rho (n,) and m (k,), so that n/k neighbouring blocks share an m. "
               "The scales are (n,).",
               "a = np.repeat(m, len(rho) // len(m)) * d[rho] + o, and the weights are a[:, None] "
               "* levels[codes].")),
    Exercise(
        name="nf4.better", title="Better levels for these weights", stars=3,
        kind="design",
        reference=better, cases=normed_blocks,
        goal=("the 16 levels ascend, 0 is one of them, and the squared error of x is at most 0.97 "
              "of NF4's", are_better),
        special=(
            ("blocks of normal weights, for which NF4 was made", normal_blocks),),
        mistakes=slips(better),
        symptoms=(
            ("these levels are evenly spaced, which suits uniform weights alone", equal_steps),
            ("0 must be one of the levels, exactly: padding and pruned weights are 0",
             without_zero),
            ("the levels must ascend", not_ascending)),
        hints=("Let the codes stay as they are. Where does a level have to lie, so that the "
               "squared error of its own numbers is least? And what do the codes do then?",
               "codes = np.abs(x[:, None] - levels).argmin(1) is (N,). The result is (16,).",
               "Lloyd's algorithm: begin with NF4; give each number the code of its nearest level; "
               "move each level, apart from 0, to the mean of its numbers; repeat both ten "
               "times.")),
    Exercise(
        name="nf4.loses", title="Weights for which the table is bad", stars=2,
        kind="design",
        reference=loses, cases=tables,
        goal=("the largest magnitude is 1, and with the levels −7/7 … 7/7 the squared error is at "
              "most half of that with the given levels", prefers_integers),
        special=(
            ("a table that has some of the numbers k/7, 3/7 among them", some_sevenths),
            ("a table that has 1/7, 2/7, 5/7 and some others",
             partial(some_sevenths, inside=(1, 2, 5)))),
        mistakes=slips(loses),
        symptoms=(
            ("the largest magnitude must be 1, as after the division by a", not_scaled),),
        hints=("On which numbers has the grid −7/7 … 7/7 no error at all?",
               "x is (64,), and the levels (L,). Its largest magnitude is 1.",
               "Repeat the fifteen numbers −7/7 … 7/7 until there are 64: np.resize.")),
)
