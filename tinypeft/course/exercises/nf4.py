"""Lesson 13: NF4's table and code, QLoRA's gradient, LoftQ, and better levels."""
import numpy as np
from scipy.special import ndtri

from ...engine import functional as F
from ...engine.tensor import Tensor
from ...quant.codebooks import codebook
from ...quant.loftq import loftq_rounds
from ...quant.uniform import Uniform
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]

DELTA = 1 - (1 / 32 + 1 / 30) / 2
NF4 = codebook("nf4").astype(float)


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


def backward_variant(base=1, adapter=1, sa=itself, sb=itself, sx=itself, spread=spread,
                     decode=lambda levels, codes: levels[codes]):
    """Make `backward` with a mistake.

    base, adapter: 0 leaves one of them out of dx. sa, sb, sx: what becomes of s in dA, dB and dx.
    spread: of the scales.
    """
    def wrong(x, codes, scales, levels, A, B, s, dy):
        g = codes.shape[1] // scales.shape[1]
        W = decode(levels, codes) * spread(scales, g)
        dyB = dy @ B
        dx = base * dy @ W + adapter * sx(s) * dyB @ A
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


# -- LoftQ -----------------------------------------------------------------------------------------
def asymmetric2(W):
    """Round to nearest, 2 bits, one asymmetric grid per row."""
    u = Uniform(2, symmetric=False)
    return u.fit(W).round(W)


def loftq(W, quant, r, T):
    *_, (Q, B, A) = loftq_rounds(W, quant, r, T)
    return Q, B, A


def loftq_variant(rounds=itself, target=np.subtract, of=lambda W, Q, BA: W - Q,
                  root=np.sqrt):
    """Make `loftq` with a mistake: in the rounds, the quantized or the decomposed matrix, or Σ."""
    def wrong(W, quant, r, T):
        BA = np.zeros_like(W)
        for _ in range(rounds(T)):
            Q = quant(target(W, BA))
            U, S, Vt = np.linalg.svd(of(W, Q, BA), full_matrices=False)
            part = root(S[:r])
            B, A = U[:, :r] * part, part[:, None] * Vt[:r]
            BA = B @ A
        return Q, B, A
    return wrong


def weight_alone(W, BA):
    return W


def weight_decomposed(W, Q, BA):
    return W


def same_signs(result):
    """Give each column of B the sign that makes its largest entry positive.

    A singular vector and its negative are equally right.
    """
    Q, B, A = result
    largest_entries = np.take_along_axis(B, np.abs(B).argmax(0)[None], 0)[0]
    sign = np.sign(largest_entries)
    return Q, B * sign, A * sign[:, None]


def loftq_sided(W, quant, r, T):
    """Put all of Σ into B."""
    Q, B, A = loftq(W, quant, r, T)
    root = np.linalg.norm(B, axis=0)
    return Q, B * root, A / root[:, None]


def loftq_stale(W, quant, r, T):
    """Return Q a round later than its factors."""
    Q, B, A = loftq(W, quant, r, T)
    return quant(W - B @ A), B, A


def loftq_best(W, quant, r, T):
    """Return the round that comes nearest to W."""
    def error(result):
        Q, B, A = result
        return np.linalg.norm(W - Q - B @ A)
    return min(loftq_rounds(W, quant, r, T), key=error)


def weight(rng):
    d_out, d_in = int(rng.integers(8, 12)), int(rng.integers(13, 16))
    return rng.normal(0, 1, (d_out, d_in))


def loftq_case(rng):
    return weight(rng), asymmetric2, int(rng.integers(2, 4)), int(rng.integers(2, 5))


# -- LoftQ on a LoRA that is scaled ----------------------------------------------------------------
def scaled_loftq(W, quant, r, alpha):
    Q, B, A = loftq(W, quant, r, 1)
    root = np.sqrt(alpha / r)
    return Q, B / root, A / root


def by_root(s):
    return s**-0.5


def by_itself(s):
    return 1 / s


def scaled_variant(of_B=by_root, of_A=by_root, scale=np.divide, of_Q=one):
    """Make `scaled_loftq` with a mistake: other factors of B, A and Q, or another scale."""
    def wrong(W, quant, r, alpha):
        Q, B, A = loftq(W, quant, r, 1)
        s = scale(alpha, r)
        return Q * of_Q(s), B * of_B(s), A * of_A(s)
    return wrong


def nearer_together(fn, rng):
    W, quant, r, alpha = scaled_case(rng)
    Q, B, A = fn(W, quant, r, alpha)
    change = alpha / r * np.asarray(B) @ A
    return np.linalg.norm(W - Q - change) < np.linalg.norm(W - Q)


def product(result):
    """Return (Q, B A, r): the scale may be shared in any way, and the signs are free."""
    Q, B, A = result
    return Q, np.asarray(B) @ np.asarray(A), len(A)


def _other_rounds(got, expected, args):
    """Is it another Q than that of the first round?"""
    W, quant, *_ = args
    first = quant(W)
    other = np.shape(got) == first.shape and not np.array_equal(got, first)
    return other and np.array_equal(expected, first)


def scaled_case(rng):
    W = weight(rng)
    r = int(rng.integers(2, 4))
    return W, asymmetric2, r, float(r * rng.choice([2, 3, 8]))


# -- better levels ---------------------------------------------------------------------------------
def lloyd(x, levels):
    q = np.searchsorted((levels[:-1] + levels[1:]) / 2, x)
    n = np.bincount(q, minlength=len(levels))
    means = np.bincount(q, x, len(levels)) / np.maximum(n, 1)
    return np.where(n > 0, means, levels)


def lloyd_variant(centre=np.mean, empty=itself, code=nearest):
    """Make `lloyd` with a mistake in the centre, in unused levels, or in the codes."""
    def wrong(x, levels):
        q = code(x, levels)
        new = np.array([empty(level) for level in levels])
        for i in set(q):
            new[i] = centre(x[q == i])
        return new
    return wrong


def middle(v):
    return (v.min() + v.max()) / 2


def below_or_first(x, levels):
    return np.maximum(below(x, levels), 0)


def lloyd_one_by_one(x, levels):
    """Move each level before the next one gets its numbers."""
    levels = levels.copy()
    for i in range(len(levels)):
        numbers = nearest(x, levels) == i
        if numbers.any():
            levels[i] = x[numbers].mean()
    return levels


def lloyd_case(rng):
    x = rng.normal(0, 0.4, int(rng.integers(60, 90)))
    return x, np.sort(rng.uniform(-1, 1, int(rng.integers(4, 7))))


def unused_level(rng):
    return (np.array([0.1, 0.3, 0.9, 0.7]), np.array([-1.0, 0.0, 1.0]))


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
            ("the levels are not sorted", levels_variant(order=itself)),
            ("the levels must ascend; yours fall", lambda *a: levels(*a)[::-1]),
            ("0 is missing", levels_variant(zeros=())),
            ("the levels are evenly spaced: the quantile function Φ⁻¹ is not applied",
             levels_variant(quantile=lambda p: p - 0.5))),
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
             encode_variant(code=even))),
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
        name="nf4.loftq", title="LoftQ's alternating rounds", stars=2,
        kind="formula",
        reference=loftq,
        cases=loftq_case,
        normalize=same_signs,
        special=(
            ("one round", lambda rng: (rng.normal(0, 1, (8, 13)), asymmetric2, 2, 1)),),
        mistakes=(
            ("this is what one round gives: from the second on, quantize W − B A, which the "
             "low-rank part leaves, not W",
             loftq_variant(target=weight_alone)),
            ("Q must round W − B A, which the low-rank part leaves, not W + B A",
             loftq_variant(target=np.add)),
            *several("decompose W − Q, which quantization leaves, not W itself",
                     loftq_variant(target=weight_alone, of=weight_decomposed),
                     loftq_variant(of=weight_decomposed)),
            ("this is the best of the rounds; return the last one", loftq_best),
            ("decompose W − Q, which quantization leaves, not W − Q − B A",
             loftq_variant(of=lambda W, Q, BA: W - Q - BA)),
            ("Σ must be split: each factor gets √Σ", loftq_variant(root=itself)),
            ("Σ must be split: each factor gets √Σ", loftq_sided),
            ("Q, B and A must come from the same round", loftq_stale),
            *several("return (Q, B, A), in this order",
                     in_order(loftq, 0, 2, 1),
                     in_order(loftq, 1, 2, 0),
                     in_order(loftq, 2, 1, 0)),
            ("this is one round too few: there are T", loftq_variant(rounds=lambda T: T - 1 or 1)),
            ("this is one round too many: there are T", loftq_variant(rounds=lambda T: T + 1))),
        hints=("What should Q round, once there is a low-rank part? And what should the "
               "low-rank part make up for?",
               "B is (d_out, r), A is (r, d_in). U[:, :r] * np.sqrt(S[:r]) is (d_out, r).",
               "Begin with BA = 0. In each of T rounds: Q = quant(W - BA); U, S, Vt = "
               "np.linalg.svd(W - Q, full_matrices=False); root = np.sqrt(S[:r]); B = U[:, :r] "
               "* root; A = root[:, None] * Vt[:r]; BA = B @ A.")),
    Exercise(
        name="nf4.bug", title="Find the bug: a LoftQ that starts too far away", stars=2,
        kind="fault",
        reference=scaled_loftq, cases=scaled_case, normalize=product,
        special=(
            ("α = r: nothing is scaled",
             lambda rng: (rng.normal(0, 1, (8, 13)), asymmetric2, 2, 2.0)),),
        invariants=(
            ("Q + (α/r) B A is nearer to W than Q alone", nearer_together),),
        mistakes=(
            ("the LoRA multiplies B A by α/r once more; that is the fault of the code above",
             scaled_variant(of_B=one, of_A=one)),
            ("you multiply by the scale; LoRA does that already, so divide by it",
             scaled_variant(of_B=np.sqrt, of_A=np.sqrt)),
            ("each factor is divided by α/r, so their product is divided by "
             "its square: take the root",
             scaled_variant(of_B=by_itself, of_A=by_itself)),
            ("LoRA's scale is α/r, not α", scaled_variant(scale=lambda alpha, r: alpha)),
            *several("Q is not scaled, only the product B A",
                     scaled_variant(of_Q=by_itself),
                     scaled_variant(of_B=one, of_A=one, of_Q=by_itself)),
            ("the product must be divided by α/r, not by its root: divide one "
             "factor, or both by the root",
             scaled_variant(of_A=one))),
        symptoms=(
            ("this is another Q than quant(W): keep the one round, which begins with B A = 0",
             _other_rounds),),
        hints=("What does the model compute with Q, B and A? Which product "
               "should be near to W − Q?",
               "The shapes do not change: B (d_out, r), A (r, d_in). Their product must be "
               "smaller by the factor α/r.",
               "Compute B and A as before. root = np.sqrt(alpha / r). Return "
               "Q, B / root and A / root.")),
    Exercise(
        name="nf4.lloyd", title="Levels that fit the weights", stars=2,
        kind="design",
        reference=lloyd, cases=lloyd_case,
        special=(
            ("four numbers and three levels, one of which no number is near to", unused_level),),
        mistakes=(
            ("a level that no number is nearest to stays as it is",
             lloyd_variant(empty=lambda c: 0.0)),
            ("take the mean of the numbers of a level, not their median", lloyd_variant(np.median)),
            ("take the mean of the numbers of a level, not the middle of their range",
             lloyd_variant(middle)),
            ("divide the sum by the number of weights of the level", lloyd_variant(np.sum)),
            ("a number belongs to the nearest level, not to the next one below",
             lloyd_variant(code=below_or_first)),
            ("all numbers get their codes first, from the old levels; then the levels move",
             lloyd_one_by_one)),
        symptoms=(
            ("the mean of no numbers is NaN: a level that no number is nearest to stays as it is",
             lambda got, expected, args: np.isnan(got).any()),),
        tolerance=1e-9,
        hints=("Which numbers belong to level i? Which single number is nearest to "
               "all of them, in squares?",
               "The codes are (N,). The result is (L,), like levels. The mean "
               "of an empty array is NaN.",
               "q = np.abs(x[:, None] - levels).argmin(1). Entry i is x[q == i].mean(), "
               "or levels[i] if no q is i.")),
)
