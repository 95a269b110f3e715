"""Lesson 13: NF4's table and code, quantized scales, QLoRA's gradient, and better levels."""
from functools import partial

import numpy as np
from scipy.special import ndtri

from ...engine import functional as F
from ...engine.tensor import Tensor
from ...quant.codebooks import codebook
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]

DELTA = 1 - (1 / 32 + 1 / 30) / 2
NF4 = codebook("nf4").astype(float)
DYNAMIC = codebook("dynamic").astype(float)


# -- the table -------------------------------------------------------------------------------------
def levels(delta, positive, negative):
    def side(n):
        return ndtri(np.linspace(delta, 0.5, n + 1)[:-1])
    values = np.sort(np.concatenate([side(positive), [0.0], -side(negative)]))
    return values / np.abs(values).max()


def scaled(values):
    return values / np.abs(values).max()


def itself(value):
    return value


def levels_variant(points=lambda n: n + 1, keep=lambda p: p[:-1], scale=scaled,
                   order=np.sort, zeros=(0.0,), quantile=ndtri):
    """Make `levels` with a mistake: in its points, zeros, scale, order or quantiles."""
    def wrong(delta, positive, negative):
        def side(n):
            return quantile(keep(np.linspace(delta, 0.5, points(n))))
        return scale(order(np.concatenate([side(positive), zeros, -side(negative)])))
    return wrong


def unsorted_levels(got, expected, args):
    return np.allclose(np.sort(got), expected)


def sides_exchanged(delta, positive, negative):
    return levels(delta, negative, positive)


def even_probabilities(delta, positive, negative):
    return scaled(ndtri(np.linspace(1 - delta, delta, positive + 1 + negative)))


def levels_case(rng):
    return rng.uniform(0.93, 0.99), int(rng.integers(4, 9)), int(rng.integers(3, 8))


# -- the code --------------------------------------------------------------------------------------
def encode(x, levels):
    a = np.abs(x).max()
    middle = (levels[:-1] + levels[1:]) / 2
    return np.searchsorted(middle, x / a), float(a)


def largest(x):
    return np.abs(x).max()


def nearest(v, levels):
    return np.abs(v[:, None] - levels).argmin(1)


def below(v, levels):
    return np.searchsorted(levels, v, "right") - 1


def above(v, levels):
    return np.minimum(np.searchsorted(levels, v), len(levels) - 1)


def even(v, levels):
    return np.rint((v + 1) / 2 * (len(levels) - 1)).astype(int)


def encode_variant(a=largest, divide=np.divide, code=nearest):
    """Make `encode` with a mistake: another scale, no division, or another code."""
    return lambda x, levels: (code(divide(x, a(x)), levels), float(a(x)))


def levels_of_codes(x, levels):
    q, a = encode(x, levels)
    return levels[q], a


def encode_case(rng):
    return rng.normal(0, rng.uniform(0.1, 3), 64), NF4


def multiples(rng):
    return 0.5 * NF4[[15, 7, 0, 3, 9]], NF4


# -- QLoRA's gradient ------------------------------------------------------------------------------
def backward(x, codes, scales, levels, A, B, s, dy):
    W = levels[codes] * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
    x, A, B = (Tensor(a, requires_grad=True) for a in (x, A, B))
    y = F.linear(x, Tensor(W)) + F.linear(F.linear(x, A), B) * s
    y.backward(dy)
    return x.grad, A.grad, B.grad


def spread(scales, g):
    return np.repeat(scales, g, axis=1)


def tiled(scales, g):
    return np.tile(scales, (1, g))


def unscaled(scales, g):
    return 1


def one(s):
    return 1


def backward_variant(base=1, adapter=1, sa=itself, sb=itself, sx=itself, sw=one, spread=spread,
                     decode=lambda levels, codes: levels[codes]):
    """Make `backward` with a mistake.

    base, adapter: 0 leaves one of them out of dx. sa, sb, sx, sw: what becomes of s in dA, in dB,
    and in the adapter's and the frozen weight's part of dx.
    spread: of the scales.
    """
    def wrong(x, codes, scales, levels, A, B, s, dy):
        g = codes.shape[1] // scales.shape[1]
        W = decode(levels, codes) * spread(scales, g)
        dyB = dy @ B
        dx = base * sw(s) * dy @ W + adapter * sx(s) * dyB @ A
        return dx, sa(s) * dyB.T @ x, sb(s) * dy.T @ (x @ A.T)
    return wrong


def in_order(fn, *order):
    """Return the results of `fn` in another order."""
    def wrong(*args):
        results = fn(*args)
        return tuple(results[i] for i in order)
    return wrong


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


# -- scales that were quantized --------------------------------------------------------------------
def decoded(codes, rho, m, o, d, levels):
    return decoded_variant()(codes, rho, m, o, d, levels)


def block_scales(rho, m, o, d, spread=np.repeat, mean=itself, table=lambda d, rho: d[rho]):
    return spread(m, len(rho) // len(m)) * table(d, rho) + mean(o)


def decoded_variant(levels_of=lambda levels, codes: levels[codes], scales=block_scales, **options):
    """Make `decoded` with a mistake, in the levels or in an option of `block_scales`."""
    def wrong(codes, rho, m, o, d, levels):
        a = scales(rho, m, o, d, **options)
        return a[:, None] * levels_of(levels, codes)
    return wrong


def without_mean(o):
    return 0


def mean_inside(rho, m, o, d):
    return np.repeat(m, len(rho) // len(m)) * (d[rho] + o)


def codes_as_numbers(d, rho):
    return (rho - 128) / 127


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


# -- levels for the weights at hand ----------------------------------------------------------------
def error_of_levels(x, levels):
    return np.sum((levels[nearest(x, levels)] - x)**2)


def better(x):
    return moved_levels(x)


def moved_levels(x, rounds=10, centre=np.mean, fixed=0.0, start=NF4):
    """Move each level but 0 to the centre of its numbers, some times."""
    new = start.copy()
    for _ in range(rounds):
        codes = nearest(x, new)
        for i in set(codes):
            if new[i] != fixed:
                new[i] = centre(x[codes == i])
    return new


def are_better(result, args):
    """Are they ascending, with a 0, and is their squared error at most 0.97 of NF4's?"""
    (x,) = args
    new = np.asarray(result, float)
    if not np.isfinite(new).all() or not (np.diff(new) >= 0).all() or not (new == 0).any():
        return False
    return bool(error_of_levels(x, new) <= 0.97 * error_of_levels(x, NF4))


def equally_used(x):
    values = np.quantile(x, (np.arange(16) + 0.5) / 16)
    values[np.abs(values).argmin()] = 0
    return values


def evenly_spaced(x):
    values = np.linspace(-1, 1, 16)
    values[7] = 0
    return values


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


# -- weights that suit another grid ----------------------------------------------------------------
SEVENTHS = np.arange(-7, 8) / 7


def loses(levels):
    return np.resize(SEVENTHS[np.abs(SEVENTHS[:, None] - levels).min(1).argsort()[::-1]], 64)


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


def suits_the_levels(levels):
    return np.resize(levels, 64)


def spread_evenly(levels):
    return np.linspace(-1, 1, 64)


def normal_weights(levels):
    x = np.random.default_rng(0).normal(size=64)
    return x / np.abs(x).max()


def one_number(levels):
    """Return a largest magnitude of 1 and one number that NF4 and E2M1 lack."""
    return np.array([1] + 63 * [3 / 7])


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
        mistakes=(
            ("n levels need n + 1 points from δ to ½, the last of which is dropped",
             levels_variant(points=lambda n: n + 2)),
            ("n levels need n + 1 points from δ to ½; with n points one level is missing",
             levels_variant(points=itself)),
            ("the last of the n + 1 points is ½, whose level is 0: it is dropped on both sides",
             levels_variant(keep=itself)),
            ("n levels need n + 1 points; with n points the last kept level is ½'s, which is 0",
             levels_variant(points=itself, keep=itself)),
            ("the levels are not scaled to a largest magnitude of 1", levels_variant(scale=itself)),
            ("the two sides are exchanged: `positive` levels lie above 0", sides_exchanged),
            ("0 is there twice: each side ends at ½, whose quantile is 0; drop it on "
             "both sides, and add one 0",
             levels_variant(keep=itself, zeros=())),
            ("these are evenly spaced probabilities from 1 − δ to δ; each side of ½ has a spacing "
             "of its own, so that 0 is a level",
             even_probabilities),
            ("these levels are evenly spaced from −1 to 1; take quantiles, and 0 itself as a level",
             lambda delta, positive, negative: np.linspace(-1, 1, positive + 1 + negative)),
            ("the levels are not sorted", levels_variant(order=itself)),
            ("the levels must ascend; yours fall", lambda *a: levels(*a)[::-1]),
            ("0 is missing", levels_variant(zeros=())),
            ("the levels are evenly spaced: the quantile function Φ⁻¹ is not applied",
             levels_variant(quantile=lambda p: p - 0.5))),
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
        mistakes=(
            ("divide by a before you look for the nearest level",
             encode_variant(divide=lambda x, a: x)),
            ("a is the largest magnitude, max|x|, not the largest number",
             encode_variant(a=np.max)),
            ("these are the levels; return their numbers, the codes", levels_of_codes),
            ("you took the next level below or above, not the nearest", encode_variant(code=below)),
            ("you took the next level below or above, not the nearest", encode_variant(code=above)),
            ("the levels are not evenly spaced: compare with each of them",
             encode_variant(code=even)),
            ("the levels have both signs, so keep the sign of x: these are the codes of |x|",
             encode_variant(divide=lambda x, a: np.abs(x) / a))),
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
        mistakes=(
            ("the gradient also passes through the quantized weight: dx has a term dy Ŵ",
             backward_variant(base=0)),
            ("the gradient also passes through the adapter: dx has a term s (dy B) A",
             backward_variant(adapter=0)),
            ("the factor s is missing in dA", backward_variant(sa=one)),
            ("the factor s is missing in dB", backward_variant(sb=one)),
            ("the factor s is missing in the adapter's part of dx", backward_variant(sx=one)),
            ("s belongs to the adapter alone: the frozen weight's part of dx is dy Ŵ, without s",
             backward_variant(sw=itself)),
            ("s is missing in all three gradients", backward_variant(sa=one, sb=one, sx=one)),
            ("s is missing in dA and in dB", backward_variant(sa=one, sb=one)),
            ("W is made of the levels that the codes stand for, levels[codes], not of the codes",
             backward_variant(decode=lambda levels, codes: codes)),
            *several("return (dx, dA, dB), in this order",
                     in_order(backward, 0, 2, 1),
                     in_order(backward, 1, 2, 0),
                     in_order(backward, 2, 1, 0)),
            ("the levels must be multiplied by the scale of their group",
             backward_variant(spread=unscaled)),
            ("a scale belongs to g neighbouring weights: use np.repeat, not np.tile",
             backward_variant(spread=tiled))),
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
        mistakes=(
            ("the mean o of the scales is missing: it was subtracted before the scales were coded, "
             "so it is added again",
             decoded_variant(mean=without_mean)),
            ("the mean is there again, but each m belongs to neighbouring scales: use np.repeat, "
             "not np.tile",
             decoded_variant(spread=np.tile)),
            ("both faults are still there: o is not added, and np.tile repeats all m as a whole",
             decoded_variant(mean=without_mean, spread=np.tile)),
            ("o is added after the multiplication by m, not before it",
             decoded_variant(scales=mean_inside)),
            ("the mean was subtracted, so it is added, not subtracted again",
             decoded_variant(mean=np.negative)),
            ("rho are codes: the numbers are in the table, d[rho]",
             decoded_variant(table=lambda d, rho: rho)),
            ("codes are not weights: the levels are in the table, levels[codes]",
             decoded_variant(levels_of=lambda levels, codes: codes)),
            ("each block has a scale of its own; yours all have the mean",
             decoded_variant(scales=lambda rho, m, o, d: np.full(len(rho), o)))),
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
        mistakes=(
            ("these are NF4's own levels", lambda x: NF4),
            ("levels that are used equally often do not have the least squared error: a few far "
             "numbers need levels, too",
             equally_used),
            ("these levels are evenly spaced, which suits uniform weights alone", evenly_spaced)),
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
        mistakes=(
            ("these numbers are the given levels, which have no error on them", suits_the_levels),
            ("evenly spread numbers are not enough: most of them lie on neither grid",
             spread_evenly),
            ("on normal numbers the given levels are the better ones, or nearly so",
             normal_weights),
            ("numbers that both grids have, such as 1 and −1, have no error in either",
             lambda levels: np.resize([1.0, -1.0], 64)),
            ("the number that you repeat is a level of some tables: use many, or look into "
             "`levels`",
             one_number)),
        symptoms=(
            ("the largest magnitude must be 1, as after the division by a", not_scaled),),
        hints=("On which numbers has the grid −7/7 … 7/7 no error at all?",
               "x is (64,), and the levels (L,). Its largest magnitude is 1.",
               "Repeat the fifteen numbers −7/7 … 7/7 until there are 64: np.resize.")),
)
