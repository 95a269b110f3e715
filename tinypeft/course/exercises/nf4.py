"""Lesson 13: NF4's table and code, QLoRA's gradient, LoftQ, and better levels."""
import numpy as np
from scipy.special import ndtri

from ...engine import functional as F
from ...engine.tensor import Tensor
from ...quant.codebooks import codebook
from ...quant.loftq import loftq_rounds
from ...quant.uniform import Uniform
from ..exercise import Exercise

__all__ = ["EXERCISES"]

DELTA = 1 - (1 / 32 + 1 / 30) / 2


# -- the table -------------------------------------------------------------------------------------
def levels(delta, positive, negative):
    side = lambda n: ndtri(np.linspace(delta, 0.5, n + 1)[:-1])
    values = np.sort(np.concatenate([side(positive), [0.0], -side(negative)]))
    return values / np.abs(values).max()


def levels_variant(points=lambda n: n + 1, drop=True, scale=True, swap=False, order=True, zero=True, quantile=ndtri):
    """levels with a mistake: other points, no zero, not scaled, sides exchanged, not sorted, evenly spaced."""
    def wrong(delta, positive, negative):
        def side(n):
            p = np.linspace(delta, 0.5, points(n))
            return quantile(p[:-1] if drop else p[:n])
        up, down = (negative, positive) if swap else (positive, negative)
        values = np.concatenate([side(up), [0.0] if zero else [], -side(down)])
        if order: values = np.sort(values)
        return values / np.abs(values).max() if scale else values
    return wrong


# -- the code --------------------------------------------------------------------------------------
def encode(x, levels):
    a = np.abs(x).max()
    middle = (levels[:-1] + levels[1:]) / 2
    return np.searchsorted(middle, x / a), float(a)


def encode_variant(a=lambda x: np.abs(x).max(), scaled=True, code=lambda v, c: np.abs(v[:, None] - c).argmin(1)):
    """encode with a mistake: another scale, no division, or another code."""
    def wrong(x, levels):
        return code(x / a(x) if scaled else x, levels), float(a(x))
    return wrong


# -- QLoRA's gradient ------------------------------------------------------------------------------
def backward(x, codes, scales, levels, A, B, s, dy):
    W = levels[codes] * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
    x, A, B = (Tensor(a, requires_grad=True) for a in (x, A, B))
    y = F.linear(x, Tensor(W)) + F.linear(F.linear(x, A), B) * s
    y.backward(dy)
    return x.grad, A.grad, B.grad


def backward_variant(base=True, adapter=True, sa=True, sb=True, sx=True, scaled=True, tiled=False, decoded=True,
                     order=(0, 1, 2)):
    """backward with a mistake: dx without the base or without the adapter, s left out somewhere, codes not scaled or not
    decoded, or another order."""
    def wrong(x, codes, scales, levels, A, B, s, dy):
        g = codes.shape[1] // scales.shape[1]
        spread = np.tile(scales, (1, g)) if tiled else np.repeat(scales, g, axis=1)
        W = (levels[codes] if decoded else codes) * (spread if scaled else 1)
        dyB = dy @ B
        dx = (dy @ W if base else 0) + ((s if sx else 1) * dyB @ A if adapter else 0)
        gradients = dx, (s if sa else 1) * dyB.T @ x, (s if sb else 1) * dy.T @ (x @ A.T)
        return tuple(gradients[i] for i in order)
    return wrong


def backward_case(rng):
    n, r, g, d_out = int(rng.integers(3, 6)), int(rng.integers(2, 4)), 4, int(rng.integers(5, 8))
    d_in = g * int(rng.integers(2, 4))
    normal = lambda *shape: rng.normal(0, 1, shape)
    return (normal(n, d_in), rng.integers(0, 16, (d_out, d_in)), rng.uniform(0.2, 2, (d_out, d_in // g)),
            codebook("nf4").astype(float),
            normal(r, d_in), normal(d_out, r), float(rng.choice([0.5, 2.0, 4.0])), normal(n, d_out))


# -- LoftQ -----------------------------------------------------------------------------------------
def asymmetric2(W):
    """Round to nearest, 2 bits, one asymmetric grid per row."""
    u = Uniform(2, symmetric=False)
    return u.fit(W).round(W)


def loftq(W, quant, r, T):
    *_, (Q, B, A) = loftq_rounds(W, quant, r, T)
    return Q, B, A


def loftq_variant(rounds=lambda T: T, target=lambda W, BA: W - BA, of=lambda W, Q, BA: W - Q, rank=lambda r: r, split=True):
    """loftq with a mistake: in the rounds, the quantized or the decomposed matrix, the rank, or Σ."""
    def wrong(W, quant, r, T):
        BA = np.zeros_like(W)
        for _ in range(rounds(T)):
            Q = quant(target(W, BA))
            U, S, Vt = np.linalg.svd(of(W, Q, BA), full_matrices=False)
            root, k = (np.sqrt(S) if split else S), rank(r)
            B, A = U[:, :k] * root[:k], root[:k, None] * Vt[:k]
            BA = B @ A
        return Q, B, A
    return wrong


def same_signs(result):
    """The result, with the sign of each column of B such that its largest entry is positive. A singular vector and its
    negative are equally right."""
    Q, B, A = result
    sign = np.sign(B[np.abs(B).argmax(0), np.arange(B.shape[1])])
    return Q, B * sign, A * sign[:, None]


def loftq_sided(W, quant, r, T):
    """All of Σ on B."""
    Q, B, A = loftq(W, quant, r, T)
    root = np.linalg.norm(B, axis=0)
    return Q, B * root, A / root[:, None]


def loftq_stale(W, quant, r, T):
    """Q a round later than its factors."""
    Q, B, A = loftq(W, quant, r, T)
    return quant(W - B @ A), B, A


def loftq_best(W, quant, r, T):
    """The round that comes nearest to W."""
    return min(loftq_rounds(W, quant, r, T), key=lambda found: np.linalg.norm(W - found[0] - found[1] @ found[2]))


# -- LoftQ on a LoRA that is scaled ----------------------------------------------------------------
def scaled_loftq(W, quant, r, alpha):
    Q, B, A = loftq(W, quant, r, 1)
    root = np.sqrt(alpha / r)
    return Q, B / root, A / root


def scaled_variant(of_B=lambda s: s**-0.5, of_A=lambda s: s**-0.5, scale=lambda alpha, r: alpha / r, of_Q=False):
    """scaled_loftq with a mistake: other divisors, another scale, or Q scaled as well."""
    def wrong(W, quant, r, alpha):
        Q, B, A = loftq(W, quant, r, 1)
        s = scale(alpha, r)
        return Q / s if of_Q else Q, B * of_B(s), A * of_A(s)
    return wrong


def product(result):
    """(Q, B A, r): however the scale is shared between B and A, and whatever their signs."""
    Q, B, A = result
    return Q, np.asarray(B) @ np.asarray(A), len(A)


def _other_rounds(got, expected, arguments):
    """Is it another Q than that of the first round?"""
    first = arguments[1](arguments[0])
    return np.shape(got) == first.shape and np.array_equal(expected, first) and not np.array_equal(got, first)


def scaled_case(rng):
    W = rng.normal(0, 1, (int(rng.integers(8, 12)), int(rng.integers(13, 16))))
    r = int(rng.integers(2, 4))
    return W, asymmetric2, r, float(r * rng.choice([2, 3, 8]))


# -- better levels ---------------------------------------------------------------------------------
def lloyd(x, levels):
    q = np.searchsorted((levels[:-1] + levels[1:]) / 2, x)
    n = np.bincount(q, minlength=len(levels))
    return np.where(n > 0, np.bincount(q, x, len(levels)) / np.maximum(n, 1), levels)


def lloyd_variant(centre=np.mean, empty=lambda c: c, code=lambda x, c: np.abs(x[:, None] - c).argmin(1)):
    """lloyd with a mistake: another centre, something else for an unused level, or another code."""
    def wrong(x, levels):
        q = code(x, levels)
        return np.array([centre(x[q == i]) if (q == i).any() else empty(c) for i, c in enumerate(levels)])
    return wrong


def lloyd_one_by_one(x, levels):
    """Each level moves before the next one gets its numbers."""
    levels = levels.copy()
    for i in range(len(levels)):
        mine = np.abs(x[:, None] - levels).argmin(1) == i
        if mine.any(): levels[i] = x[mine].mean()
    return levels


def lloyd_case(rng):
    return rng.normal(0, 0.4, int(rng.integers(60, 90))), np.sort(rng.uniform(-1, 1, int(rng.integers(4, 7))))


EXERCISES = (
    Exercise(
        name="nf4.levels", title="NF4's table of levels", stars=2,
        reference=levels, cases=lambda rng: (rng.uniform(0.93, 0.99), int(rng.integers(4, 9)), int(rng.integers(3, 8))),
        special=(
            ("NF4 itself", lambda rng: (DELTA, 8, 7)),
            ("one level on either side of 0", lambda rng: (0.9, 1, 1))),
        mistakes=(
            ("n levels need n + 1 points from δ to ½, the last of which is dropped",
             levels_variant(points=lambda n: n + 2)),
            ("n levels need n + 1 points; with n points the last kept level is ½'s, which is 0",
             levels_variant(points=lambda n: n, drop=False)),
            ("the levels are not scaled to a largest magnitude of 1", levels_variant(scale=False)),
            ("the two sides are exchanged: `positive` levels lie above 0",
             levels_variant(swap=True)),
            ("0 is there twice: each side ends at ½, whose quantile is 0; drop it on "
             "both sides, and add one 0",
             lambda delta, positive, negative: (lambda values: values / np.abs(values).max())(np.sort(np.concatenate(
                 [ndtri(np.linspace(delta, 0.5, positive + 1)), -ndtri(np.linspace(delta, 0.5, negative + 1))])))),
            ("these are evenly spaced probabilities from 1 − δ to δ; each side of ½ has a spacing "
             "of its own, so that 0 is a level",
             lambda delta, positive, negative: (lambda values: values / np.abs(values).max())(
                 ndtri(np.linspace(1 - delta, delta, positive + 1 + negative)))),
            ("the levels are not sorted", levels_variant(order=False)),
            ("the levels must ascend; yours fall", lambda *a: levels(*a)[::-1]),
            ("0 is missing", levels_variant(zero=False)),
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
        reference=encode, cases=lambda rng: (rng.normal(0, rng.uniform(0.1, 3), 64), codebook("nf4").astype(float)),
        special=(
            ("multiples of the levels",
             lambda rng: (0.5 * codebook("nf4").astype(float)[[15, 7, 0, 3, 9]], codebook("nf4").astype(float))),),
        mistakes=(
            ("divide by a before you look for the nearest level", encode_variant(scaled=False)),
            ("a is the largest magnitude, max|x|, not the largest number",
             encode_variant(a=np.max)),
            ("these are the levels; return their numbers, the codes",
             lambda x, levels: (lambda q, a: (levels[q], a))(*encode(x, levels))),
            ("you took the next level below or above, not the nearest",
             encode_variant(code=lambda v, c: np.searchsorted(c, v, "right") - 1)),
            ("you took the next level below or above, not the nearest",
             encode_variant(code=lambda v, c: np.minimum(np.searchsorted(c, v), len(c) - 1))),
            ("the levels are not evenly spaced: compare with each of them",
             encode_variant(code=lambda v, c: np.rint((v + 1) / 2 * (len(c) - 1)).astype(int)))),
        tolerance=1e-9,
        hints=("The levels are not evenly spaced. How do you find the nearest one all the same?",
               "x[:, None] / a is (n, 1) and levels (L,), so their difference is (n, L). The "
               "codes are (n,), integers.",
               "a = np.abs(x).max(); the codes are np.abs(x[:, None] / a - levels).argmin(1).")),
    Exercise(
        name="nf4.backward", title="The gradient of QLoRA", stars=2,
        reference=backward, cases=backward_case,
        special=(
            ("one number of each: W is 3",
             lambda rng: (
np.array([[2.0]]), np.array([[15]]), np.array([[3.0]]), codebook("nf4").astype(float), np.array([[5.0]]),
np.array([[7.0]]), 2.0, np.array([[1.0]]))),),
        mistakes=(
            ("the gradient also passes through the quantized weight: dx has a term dy Ŵ",
             backward_variant(base=False)),
            ("the gradient also passes through the adapter: dx has a term s (dy B) A",
             backward_variant(adapter=False)),
            ("the factor s is missing in dA", backward_variant(sa=False)),
            ("the factor s is missing in dB", backward_variant(sb=False)),
            ("the factor s is missing in the adapter's part of dx", backward_variant(sx=False)),
            ("s is missing in all three gradients", backward_variant(sa=False, sb=False, sx=False)),
            ("s is missing in dA and in dB", backward_variant(sa=False, sb=False)),
            ("W is made of the levels that the codes stand for, levels[codes], not of the codes",
             backward_variant(decoded=False)),
            *(("return (dx, dA, dB), in this order", backward_variant(order=order)) for order in ((0, 2, 1), (1, 2, 0), (2, 1, 0))),
            ("the levels must be multiplied by the scale of their group",
             backward_variant(scaled=False)),
            ("a scale belongs to g neighbouring weights: use np.repeat, not np.tile",
             backward_variant(tiled=True))),
        hints=("In which two ways does x reach y? Which of the arrays get a gradient?",
               "The decoded W is (d_out, d_in). dy is (n, d_out), dy B is (n, r). A group has g = "
               "codes.shape[1] // scales.shape[1] weights.",
               "W = levels[codes] * np.repeat(scales, g, axis=1). dA = s * (dy @ B).T @ x, dB = s "
               "* dy.T @ (x @ A.T), and dx = dy @ W + s * (dy @ B) @ A.")),
    Exercise(
        name="nf4.loftq", title="LoftQ's alternating rounds", stars=2,
        reference=loftq,
        cases=lambda rng: (rng.normal(0, 1, (int(rng.integers(8, 12)), int(rng.integers(13, 16)))), asymmetric2,
                           int(rng.integers(2, 4)), int(rng.integers(2, 5))),
        normalize=same_signs,
        special=(
            ("one round", lambda rng: (rng.normal(0, 1, (8, 13)), asymmetric2, 2, 1)),),
        mistakes=(
            ("this is what one round gives: from the second on, quantize W − B A, which the "
             "low-rank part leaves, not W",
             loftq_variant(target=lambda W, BA: W)),
            ("Q must round W − B A, which the low-rank part leaves, not W + B A",
             loftq_variant(target=lambda W, BA: W + BA)),
            *(("decompose W − Q, which quantization leaves, not W itself", loftq_variant(target=target, of=lambda W, Q, BA: W))
              for target in (lambda W, BA: W, lambda W, BA: W - BA)),
            ("this is the best of the rounds; return the last one", loftq_best),
            ("decompose W − Q, which quantization leaves, not W − Q − B A",
             loftq_variant(of=lambda W, Q, BA: W - Q - BA)),
            ("Σ must be split: each factor gets √Σ", loftq_variant(split=False)),
            ("Σ must be split: each factor gets √Σ", loftq_sided),
            ("Q, B and A must come from the same round", loftq_stale),
            *(("return (Q, B, A), in this order", lambda *a, order=order: tuple(loftq(*a)[i] for i in order))
              for order in ((0, 2, 1), (1, 2, 0), (2, 1, 0))),
            ("this is one round too few: there are T", loftq_variant(rounds=lambda T: T - 1 or 1)),
            ("this is one round too many: there are T", loftq_variant(rounds=lambda T: T + 1))),
        hints=("What should Q round, once there is a low-rank part? And what should the "
               "low-rank part make up for?",
               "B is (d_out, r), A is (r, d_in). U[:, :r] * np.sqrt(S[:r]) is (d_out, r).",
               "Begin with BA = 0. In each of T rounds: Q = quant(W - BA); U, S, Vt = "
               "np.linalg.svd(W - Q, full_matrices=False); root = np.sqrt(S[:r]); B = U[:, :r] * "
               "root; A = root[:, None] * Vt[:r]; BA = B @ A.")),
    Exercise(
        name="nf4.bug", title="Find the bug: a LoftQ that starts too far away", stars=2,
        reference=scaled_loftq, cases=scaled_case, normalize=product,
        special=(
            ("α = r: nothing is scaled",
             lambda rng: (rng.normal(0, 1, (8, 13)), asymmetric2, 2, 2.0)),),
        invariants=(
            ("Q + (α/r) B A is nearer to W than Q alone",
             lambda fn, rng: (lambda W, quant, r, alpha: (lambda Q, B, A: np.linalg.norm(W - Q - alpha / r * np.asarray(B) @ A)
                                                          < np.linalg.norm(W - Q))(*fn(W, quant, r, alpha)))(*scaled_case(rng))),),
        mistakes=(
            ("the LoRA multiplies B A by α/r once more; that is the fault of the code above",
             scaled_variant(of_B=lambda s: 1, of_A=lambda s: 1)),
            ("you multiply by the scale; LoRA does that already, so divide by it",
             scaled_variant(of_B=lambda s: s**0.5, of_A=lambda s: s**0.5)),
            ("each factor is divided by α/r, so their product is divided by "
             "its square: take the root",
             scaled_variant(of_B=lambda s: 1 / s, of_A=lambda s: 1 / s)),
            ("LoRA's scale is α/r, not α", scaled_variant(scale=lambda alpha, r: alpha)),
            *(("Q is not scaled, only the product B A", scaled_variant(of_B=of, of_A=of, of_Q=True))
              for of in (lambda s: s**-0.5, lambda s: 1)),
            ("the product must be divided by α/r, not by its root: divide one "
             "factor, or both by the root",
             scaled_variant(of_B=lambda s: s**-0.5, of_A=lambda s: 1))),
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
        reference=lloyd, cases=lloyd_case,
        special=(
            ("four numbers and three levels, one of which no number is near to",
             lambda rng: (np.array([0.1, 0.3, 0.9, 0.7]), np.array([-1.0, 0.0, 1.0]))),),
        mistakes=(
            ("a level that no number is nearest to stays as it is",
             lloyd_variant(empty=lambda c: 0.0)),
            ("take the mean of the numbers of a level, not their median", lloyd_variant(np.median)),
            ("take the mean of the numbers of a level, not the middle of their range",
             lloyd_variant(lambda v: (v.min() + v.max()) / 2)),
            ("divide the sum by the number of weights of the level", lloyd_variant(np.sum)),
            ("a number belongs to the nearest level, not to the next one below",
             lloyd_variant(code=lambda x, c: np.maximum(np.searchsorted(c, x, "right") - 1, 0))),
            ("all numbers get their codes first, from the old levels; then the levels move",
             lloyd_one_by_one)),
        symptoms=(
            ("the mean of no numbers is NaN: a level that no number is nearest to stays as it is",
             lambda got, expected, arguments: np.isnan(got).any()),),
        tolerance=1e-9,
        hints=("Which numbers belong to level i? Which single number is nearest to "
               "all of them, in squares?",
               "The codes are (N,). The result is (L,), like levels. The mean "
               "of an empty array is NaN.",
               "q = np.abs(x[:, None] - levels).argmin(1). Entry i is x[q == i].mean(), "
               "or levels[i] if no q is i.")),
)
