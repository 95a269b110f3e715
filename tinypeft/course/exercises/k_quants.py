"""Lesson 18: a superblock is read, the type of decoded weights, a search for scales and minima,
codes for stored scales, bits for layers, and inputs that mislead importance."""
from functools import lru_cache
from itertools import product

import numpy as np

from ...quant.gguf import quantize_as
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]

NAMES = "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"


@lru_cache(maxsize=400)
def rounded_bytes(data, shape, kind, importance):
    W = np.frombuffer(data, np.float32).reshape(shape)
    h = None if importance is None else np.frombuffer(importance, np.float32)
    return quantize_as(kind, W, h).dequantize()


def rounded(W, kind, h=None):
    """Return Ŵ, float32, of W (rows, d_in) in a type of GGUF. What was rounded before is kept."""
    W = np.ascontiguousarray(W, np.float32)
    importance = None if h is None else np.float32(h).tobytes()
    return rounded_bytes(W.tobytes(), W.shape, kind, importance)


# -- reading a superblock --------------------------------------------------------------------------
def read(d, sc, e, mn, q):
    return (d * sc)[:, None] * q - (e * mn)[:, None]


def read_with_one_scale(d, sc, e, mn, q):
    return (d * sc)[:, None] * q - (d * mn)[:, None]


def read_without_e(d, sc, e, mn, q):
    return (d * sc)[:, None] * q - mn[:, None]


def read_shifted_codes(d, sc, e, mn, q):
    return (d * sc)[:, None] * (q - mn[:, None])


def read_shifted_levels(d, sc, e, mn, q):
    return (d * sc)[:, None] * (q - (e * mn)[:, None])


def read_with_minima_added(d, sc, e, mn, q):
    return (d * sc)[:, None] * q + (e * mn)[:, None]


def read_without_minima(d, sc, e, mn, q):
    return (d * sc)[:, None] * q


def codes_case(rng):
    """Draw what a superblock of Q4_K stores."""
    d, e = (float(np.float16(top)) for top in rng.uniform(0.001, 0.01, 2))
    sc, mn = rng.integers(1, 64, (2, 8))
    return d, sc, e, mn, rng.integers(0, 16, (8, 32))


def without_minima(rng):
    d, sc, _, mn, q = codes_case(rng)
    return d, sc, 0.0, 0 * mn, q


# -- which type ------------------------------------------------------------------------------------
def grids(W_hat, width):
    """For blocks of `width` weights: the step of each, how many steps lie between its ends, and
    which blocks lie on one grid."""
    x = np.sort(np.asarray(W_hat, float).reshape(-1, width), axis=1)
    span = x[:, -1] - x[:, 0]
    gaps = np.diff(x, axis=1)
    step = np.where(gaps > 1e-4 * span[:, None], gaps, np.inf).min(axis=1)
    codes = (x - x[:, :1]) / step[:, None]
    fits = np.abs(codes - np.rint(codes)).max(axis=1) < 0.05
    return step, np.rint(span / step), fits


def has_zero(W_hat, step):
    """Is 0 one of the levels, in most blocks?"""
    multiples = np.asarray(W_hat, float).reshape(len(step), -1) / step[:, None]
    return np.mean(np.abs(multiples - np.rint(multiples)).max(axis=1) < 0.05) > 0.5


def in_superblocks(step):
    """Are the eight steps of most superblocks whole multiples of a 63rd of the largest?"""
    eight = step.reshape(-1, 8)
    multiples = 63 * eight / eight.max(axis=1, keepdims=True)
    return np.mean(np.abs(multiples - np.rint(multiples)).max(axis=1) < 0.1) > 0.5


def which(W_hat):
    return by_levels(lambda spans, fits: spans[fits].max())(W_hat)


def by_levels(most):
    """Make the function. most: how many steps lie between the ends of a block, of all blocks."""
    def named(W_hat):
        step, spans, fits = grids(W_hat, 32)
        if np.mean(fits) <= 0.5:
            return "Q6_K"
        steps = most(spans, fits)
        if steps > 31:
            return "Q8_0"
        bits = "Q4" if steps <= 15 else "Q5"
        if has_zero(W_hat, step):
            return f"{bits}_0"
        return f"{bits}_K" if in_superblocks(step) else f"{bits}_1"
    return named


def of_first_superblock(W_hat):
    return which(np.reshape(W_hat, -1)[:256])


def weights_of(rng):
    """Draw weights of some distribution, uneven from block to block and a little lopsided."""
    shape = int(rng.integers(3, 5)), 256 * int(rng.integers(1, 3))
    blocks = shape[0] * shape[1] // 32
    draws = [rng.standard_normal, lambda size: rng.laplace(size=size),
             lambda size: rng.standard_t(5, size=size)]
    x = draws[rng.integers(3)]((blocks, 32)) + 0.4 * rng.standard_normal((blocks, 1))
    x *= 0.05 * np.exp(0.4 * rng.standard_normal((blocks, 1)))
    return np.float32(x).reshape(shape)


def unknown(rng):
    return (rounded(weights_of(rng), NAMES[rng.integers(len(NAMES))]),)


def of_type(kind):
    return lambda rng: (rounded(weights_of(rng), kind),)


def few_levels(kind):
    """The first superblock has positive weights of about the same size, which need few levels."""
    def case(rng):
        W = weights_of(rng)
        W.reshape(-1)[:256] = rng.uniform(0.08, 0.1, 256)
        return (rounded(W, kind),)
    return case


def every_other_level(kind):
    """The first block uses every other level, so its step looks twice as large as it is."""
    def case(rng):
        x = rounded(weights_of(rng), kind).copy()
        block = x.reshape(-1)[:32]
        two_steps = 2 * grids(block, 32)[0][0]
        block[:] = block.min() + two_steps * np.rint((block - block.min()) / two_steps - 0.25)
        return (x,)
    return case


def equal_ones(rng):
    """Half of the weights of a block are equal, so a block of Q8_0 has at most 17 values."""
    W = weights_of(rng)
    blocks = W.reshape(-1, 32)
    blocks[:, 1:16] = blocks[:, :1]
    return (rounded(W, "Q8_0"),)


def no_name(got, expected, args):
    return not isinstance(got, str) or got not in NAMES


def of_sixteen(got, expected, args):
    return "Q6_K" in (got, expected)


def other_levels(got, expected, args):
    return got[:2] != expected[:2]


def no_minimum(got, expected, args):
    return got.endswith("_0") and not expected.endswith("_0")


def a_minimum(got, expected, args):
    return expected.endswith("_0") and not got.endswith("_0")


def no_superblock(got, expected, args):
    return expected.endswith("_K")


# -- a search --------------------------------------------------------------------------------------
def max_min(x, w):
    low = np.minimum(x.min(axis=1), 0)
    return (x.max(axis=1) - low) / 15, -low


def codes_of(x, s, m):
    return np.clip(np.rint((x + m[:, None]) / s[:, None]), 0, 15)


def errors(x, w, s, m):
    """The weighted squared error of each block, with the best codes."""
    near = s[:, None] * codes_of(x, s, m) - m[:, None]
    return np.sum(w * (near - x)**2, axis=1)


def fitted(x, w, s, m, rounds):
    """Fit s and m to the codes, and choose the codes anew, some times."""
    for _ in range(rounds):
        q = codes_of(x, s, m)
        W, Q, QQ, X, QX = (np.sum(w * part, axis=1) for part in (1, q, q * q, x, q * x))
        D = np.maximum(W * QQ - Q * Q, 1e-300)
        slope, minimum = (W * QX - X * Q) / D, (Q * QX - QQ * X) / D
        slope = np.where(minimum < 0, QX / np.maximum(QQ, 1e-300), slope)
        minimum = np.maximum(minimum, 0)
        good = slope > 0
        s, m = np.where(good, slope, s), np.where(good, minimum, m)
    return s, m


def search(x, w):
    return search_variant()(x, w)


def search_variant(shares=(0.5, 0.65, 0.8, 0.95, 1.05), rounds=3, seen=lambda w: w, keep=True):
    """Make a search that begins at all pairs of shares of max–min's lowest and highest level."""
    def found(x, w):
        step, start = max_min(x, w)
        high, of = 15 * step - start, seen(w)
        best = [step, start, errors(x, of, step, start) if keep else np.full(len(x), np.inf)]
        for low, top in product(shares, shares):
            m = low * start
            s, m = fitted(x, of, (top * high + m) / 15, m, rounds)
            error = errors(x, of, s, m)
            better = error < best[2]
            pairs = zip((s, m, error), best, strict=True)
            best = [np.where(better, new, old) for new, old in pairs]
        return best[0], best[1]
    return found


def ones(w):
    return np.ones_like(w)


def ratios(result, args):
    """The weighted error over that of max–min, in all and in the worst block."""
    x, w = args
    s, m = (np.asarray(part, float) for part in result)
    before, after = errors(x, w, *max_min(x, w)), errors(x, w, np.where(s > 0, s, 1e-9), m)
    return after.sum() / before.sum(), (after / before).max()


def is_found(result, args):
    s, m = (np.asarray(part, float) for part in result)
    if not (np.isfinite(s).all() and np.isfinite(m).all() and (s > 0).all() and (m >= 0).all()):
        return False
    whole, worst = ratios(result, args)
    most = 0.72 if (args[0] < 0).any() else 0.85
    return bool(whole <= most and worst <= 1 + 1e-9)


def search_case(rng):
    n = int(rng.integers(180, 220))
    x = rng.standard_normal((n, 32)) + 0.4 * rng.standard_normal((n, 1))
    x *= np.exp(0.2 * rng.standard_normal((n, 1)))
    return x, np.exp(rng.standard_normal((n, 32)))


def unimportant_outliers(rng):
    x, w = rng.standard_normal((64, 32)), np.exp(0.5 * rng.standard_normal((64, 32)))
    x[:, 3] = 7 * rng.choice([-1, 1], 64)
    w[:, 3] = 0.001
    return x, w


def all_positive(rng):
    x, w = search_case(rng)
    return np.abs(x), w


def reached(result, args):
    """Say how far a search came."""
    if bad_scale(result, None, args):
        return ""
    whole, worst = ratios(result, args)
    return f"; your sum is {whole:.2f} of max–min's, and in the worst block {worst:.2f}"


def ignores_w(got, expected, args):
    """Is no block worse than max–min if all weights count alike, and some as they are counted?"""
    x, w = args
    alike, worst = ratios(got, (x, ones(w)))
    return worst <= 1 + 1e-9 and alike < 0.97 and ratios(got, args)[1] > 1 + 1e-9


def one_factor(got, expected, args):
    """Are s and m of all blocks the same multiples of max–min's?"""
    factors = [np.asarray(part, float)[start > 0] / start[start > 0]
               for part, start in zip(got, max_min(*args), strict=True)]
    return all(np.ptp(factor) < 1e-6 for factor in factors if factor.size)


def bad_scale(got, expected, args):
    s, m = (np.asarray(part, float) for part in got)
    return not (np.isfinite(s).all() and (s > 0).all() and np.isfinite(m).all())


def negative_minimum(got, expected, args):
    return (np.asarray(got[1], float) < 0).any()


def exchanged(got, expected, args):
    return is_found(got[::-1], args)


def worse_block(got, expected, args):
    return ratios(got, args)[1] > 1 + 1e-9


def not_fitted(got, expected, args):
    """Would one fit more lower the error of most blocks by a fiftieth?"""
    x, w = args
    s, m = (np.asarray(part, float) for part in got)
    return np.median(errors(x, w, *fitted(x, w, s, m, 1)) / errors(x, w, s, m)) < 0.98


def not_enough(got, expected, args):
    return not is_found(got, args)


def other_sign(x, w):
    s, m = search(x, w)
    return s, -m


# -- codes for scales that are codes ---------------------------------------------------------------
def of_63(numbers):
    """Return d and whole numbers up to 63 with d·(whole number) ≈ numbers."""
    d = numbers.max() / 63
    return d, np.rint(numbers / d) if d > 0 else np.zeros_like(numbers)


def stored(x, s, m):
    return stored_variant()(x, s, m)


def steps_of_codes(s, d, sc):
    return d * sc


def itself(s, d, sc):
    return s


def at_least_1(numbers):
    return np.maximum(np.rint(numbers), 1)


def stored_variant(step=steps_of_codes, minimum=steps_of_codes, least=0, largest=15,
                   whole=np.rint, of_minima=np.rint, most=63, sign=1, empty=steps_of_codes):
    """Make the function that rounds scales and weights, with a mistake. empty: the steps of which
    those that are 0 have the codes 0; None for no such rule."""
    def wrong(x, s, m):
        d, e = s.max() / most, m.max() / most
        sc = whole(s / d) if d > 0 else 0 * s
        mn = of_minima(m / e) if e > 0 else 0 * m
        steps, minima = step(s, d, sc)[:, None], minimum(m, e, mn)[:, None]
        q = np.rint((x + sign * minima) / np.where(steps > 0, steps, 1))
        q = np.clip(q, least, largest)
        there = True if empty is None else empty(s, d, sc)[:, None] > 0
        return d, sc, e, mn, np.where(there, q, 0)
    return wrong


def one_scale(x, s, m):
    """Take the larger of d and e for both."""
    d = max(s.max(), m.max()) / 63
    sc, mn = np.rint(s / d), np.rint(m / d)
    steps = (d * sc)[:, None]
    q = np.clip(np.rint((x + (d * mn)[:, None]) / np.where(steps > 0, steps, 1)), 0, 15)
    return d, sc, d, mn, np.where(steps > 0, q, 0)


def in_floats(result):
    """Whole numbers may be of any type."""
    return [np.asarray(part, float) for part in result]


def superblock(rng):
    x = rng.standard_normal((8, 32)) * np.exp(0.8 * rng.standard_normal((8, 1)))
    return x, *max_min(x, None)


def a_small_one(rng):
    x, *_ = superblock(rng)
    x[2] *= 1e-4
    return x, *max_min(x, None)


def no_minima(rng):
    x = np.abs(rng.standard_normal((8, 32)))
    return x, *max_min(x, None)


def a_large_one(rng):
    """Numbers above 0.5 in the sub-block whose step becomes 0."""
    x, *_ = a_small_one(rng)
    return x * 1e5, *max_min(x * 1e5, None)


def no_steps(rng):
    """The weights of each sub-block are equal and negative: minima and no steps."""
    x = -np.ones((8, 32)) * rng.uniform(0.5, 2, (8, 1))
    return x, *max_min(x, None)


def not_finite(got, expected, args):
    return not np.isfinite(got).all()


def codes_of_nothing(got, expected, args):
    """Are there codes in a sub-block whose step is 0?"""
    return np.shape(got) == (8, 32) and np.any(got[~np.any(expected, axis=1)])


def other_whole_numbers(got, expected, args):
    return np.shape(got) == (8,)


# -- bits for layers -------------------------------------------------------------------------------
USUAL, BETTER = "Q4_K", "Q6_K"
BITS = {USUAL: 4.5, BETTER: 6.5625}


def output_errors(weights, inputs):
    """The squared error of each layer's output, (n, 2), in the usual and in the better type."""
    return np.array([[np.sum(((rounded(W, kind).astype(float) - W) @ X.T)**2)
                      for kind in (USUAL, BETTER)] for W, X in zip(weights, inputs, strict=True)])


def bits_of(weights, chosen):
    sizes = np.array([W.size for W in weights])
    return np.sum(sizes * np.where(chosen, BITS[BETTER], BITS[USUAL]))


def by_gain_per_bit(weights, inputs, budget):
    return greedy()(weights, inputs, budget)


def output_gain(weights, inputs):
    before, after = output_errors(weights, inputs).T
    return before - after


def greedy(gain=output_gain, per_bit=True, over=False, price=None, stop=False):
    """Make a function that gives the better type in the order of a gain, as long as it fits. price:
    what a weight in the better type is thought to take beyond the usual bits of all weights. stop:
    the first layer that does not fit is the last one that is looked at."""
    def chosen(weights, inputs, budget):
        sizes = np.array([W.size for W in weights])
        order = np.argsort(-gain(weights, inputs) / (sizes if per_bit else 1), kind="stable")
        better = np.zeros(len(sizes), bool)
        for i in order:
            before = bits_of(weights, better)
            better[i] = True
            bits = bits_of(weights, better)
            if price is not None:
                bits = BITS[USUAL] * sizes.sum() + price * sizes[better].sum()
            if over:
                if before >= budget: better[i] = False
            elif bits > budget:
                better[i] = False
                if stop: break
        return better
    return chosen


def of_token(token):
    """The gain on one token alone."""
    return lambda weights, inputs: output_gain(weights, [X[[token]] for X in inputs])


def of_mean_token(weights, inputs):
    return output_gain(weights, [X.mean(axis=0, keepdims=True) for X in inputs])


def weight_gain(weights, inputs):
    return np.array([np.sum((rounded(W, USUAL) - W)**2.0) for W in weights])


def relative_gain(weights, inputs):
    size = [np.sum((W @ X.T)**2) for W, X in zip(weights, inputs, strict=True)]
    return output_gain(weights, inputs) / size


def input_gain(weights, inputs):
    return np.array([np.sum(X**2) for X in inputs])


def output_size(weights, inputs):
    return np.array([np.sum((W @ X.T)**2.0) for W, X in zip(weights, inputs, strict=True)])


def sizes_of_both(weights, inputs):
    """The squared size of the weights times that of the inputs."""
    return input_gain(weights, inputs) * np.array([np.sum(W**2.0) for W in weights])


def sizes_per_weight(weights, inputs):
    return input_gain(weights, inputs) * np.array([np.mean(W**2.0) for W in weights])


def largest_layers(weights, inputs):
    return np.array([W.size for W in weights])


def in_order(weights, inputs):
    return -np.arange(len(weights), dtype=float)


def least_error(weights, inputs, budget):
    """The least sum of squared output errors within the budget, of all choices."""
    table = output_errors(weights, inputs)
    sums = [table[np.arange(len(table)), np.array(choice)].sum()
            for choice in product((0, 1), repeat=len(table))
            if bits_of(weights, np.array(choice, bool)) <= budget]
    return min(sums)


def error_of(chosen, weights, inputs):
    table = output_errors(weights, inputs)
    return table[np.arange(len(table)), np.asarray(chosen, int)].sum()


def is_good_mixture(result, args):
    weights, inputs, budget = args
    chosen = np.asarray(result, bool)
    if bits_of(weights, chosen) > budget:
        return False
    return bool(error_of(chosen, weights, inputs) <= 1.05 * least_error(weights, inputs, budget))


def over_budget(got, expected, args):
    return np.shape(got) == np.shape(expected) and bits_of(args[0], np.asarray(got, bool)) > args[2]


def nothing_chosen(got, expected, args):
    return np.shape(got) == np.shape(expected) and not np.any(got)


def mixture_reached(result, args):
    """Say how good a choice is."""
    weights, inputs, budget = args
    share = bits_of(weights, np.asarray(result, bool)) / budget
    ratio = error_of(result, weights, inputs) / least_error(*args)
    return f"; yours takes {share:.3f} of the budget, and its sum is {ratio:.2f} of the least"


def layers(rng):
    """Six small layers, in which sizes, weights and inputs are uneven."""
    weights, inputs = [], []
    for _ in range(6):
        rows = int(rng.integers(2, 9))
        W = rng.standard_normal((rows, 256)) * np.exp(0.7 * rng.standard_normal())
        X = rng.standard_normal((16, 256)) * np.exp(0.9 * rng.standard_normal())
        weights.append(np.float32(W))
        inputs.append(X * np.exp(0.5 * rng.standard_normal(256)))
    return weights, inputs


def mixture_case(rng):
    """A budget at which the order by gain per bit is nearly the best choice, and matters."""
    while True:
        weights, inputs = layers(rng)
        sizes = np.array([W.size for W in weights])
        budget = float(sizes.sum() * 4.5 + rng.uniform(0.3, 0.6) * sizes.sum() * 2.0625)
        args = weights, inputs, budget
        best = least_error(*args)
        if error_of(by_gain_per_bit(*args), weights, inputs) <= 1.03 * best:
            return args


def small_ones_first(rng):
    """The first layer gains most, and four small ones together gain more for the same bits. On the
    first and the last token the sixth layer gains most."""
    rows, sizes = (8, 2, 2, 2, 2, 8), (1, 1.5, 1.5, 1.5, 1.5, 0.3)
    weights = [np.float32(s * rng.standard_normal((n, 256)))
               for n, s in zip(rows, sizes, strict=True)]
    inputs = [rng.standard_normal((16, 256)) for _ in rows]
    for X in inputs[1:5]: X[[0, -1]] *= 0.01
    inputs[5][[0, -1]] *= 5
    return weights, inputs, 256 * (24 * 4.5 + 8 * 2.0625)


def one_on_few_levels(rng):
    """The weights of the largest outputs have two values, which both types represent: nothing is
    gained there."""
    weights, inputs, budget = small_ones_first(rng)
    weights[1:] = weights[:-1]
    inputs[1:] = inputs[:-1]
    weights[0] = np.float32(3 * rng.choice([-1, 1], (8, 256)))
    inputs[0] = rng.standard_normal((16, 256))
    return weights, inputs, 4.5 * sum(W.size for W in weights) + 256 * 8 * 2.0625


def the_second_is_too_large(rng):
    """After the first choice the next one does not fit, and three smaller ones do."""
    rows, sizes = (2, 8, 2, 2, 2, 8), (2.5, 1.1, 1, 1, 1, 0.3)
    weights = [np.float32(s * rng.standard_normal((n, 256)))
               for n, s in zip(rows, sizes, strict=True)]
    inputs = [rng.standard_normal((16, 256)) for _ in rows]
    return weights, inputs, 256 * (24 * 4.5 + 8 * 2.0625)


def enough_for_all(rng):
    weights, inputs = layers(rng)
    return weights, inputs, 7.0 * sum(W.size for W in weights)


def enough_for_none(rng):
    weights, inputs = layers(rng)
    return weights, inputs, 4.5 * sum(W.size for W in weights)


# -- importance that misleads ----------------------------------------------------------------------
TOKENS = 16


def misled(W):
    """Inputs at right angles to what rounding without importance leaves."""
    D = rounded(W, USUAL).astype(float) - W
    X = np.random.default_rng(0).standard_normal((TOKENS, W.shape[1]))
    return X - X @ D.T @ np.linalg.solve(D @ D.T, D)


def output_with_and_without(W, X):
    """The squared output errors on X, with importance measured on X and without it; NaN where the
    package cannot round by an importance that is 0 nearly everywhere."""
    X = np.asarray(X, float)
    h = np.mean(X**2, axis=0)
    try:
        return [np.sum(((rounded(W, USUAL, of).astype(float) - W) @ X.T)**2) for of in (h, None)]
    except ValueError:
        return np.nan, np.nan


def misleads(result, args):
    (W,) = args
    X = np.asarray(result, float)
    if not np.isfinite(X).all() or not X.any():
        return False
    with_h, without = output_with_and_without(W, X)
    return bool(with_h >= 2 * without)


def misled_reached(result, args):
    """Say how many times as large the error is with importance."""
    with_h, without = output_with_and_without(args[0], result)
    return f"; on yours it is {with_h / without:.3g} times as large" if without > 0 else ""


def inputs_of(make):
    """Make a function that draws inputs (TOKENS, d_in) without looking at the rounding."""
    return lambda W: make(np.random.default_rng(1), (TOKENS, W.shape[1]), W)


def against_importance(rng, shape, W):
    """At right angles to what is left with the importance of other inputs."""
    X = rng.standard_normal(shape)
    D = rounded(W, USUAL, np.mean(X**2, axis=0)).astype(float) - W
    return X - X @ D.T @ np.linalg.solve(D @ D.T, D)


def of_tokens(predicate):
    """Make a symptom of a predicate (X, W), for inputs X of the right shape."""
    def symptom(got, expected, args):
        (W,) = args
        X = np.asarray(got, float)
        return X.shape == (TOKENS, W.shape[1]) and predicate(X, W.astype(float))
    return symptom


def unrelated(X, W):
    """Has no token two inputs that are not 0?"""
    return (np.count_nonzero(X, axis=1) <= 1).all()


def in_the_rows(X, rows):
    """The share of X, by its norm, that lies in the space of some rows."""
    return np.linalg.norm(X @ np.linalg.pinv(rows) @ rows) / np.linalg.norm(X)


def along_the_error(X, W):
    return in_the_rows(X, rounded(W, USUAL) - W) > 0.99


def away_from_weights(X, W):
    return in_the_rows(X, W) < 0.01


def equal_importance(X, W):
    h = np.mean(X**2, axis=0)
    return np.ptp(h) <= 1e-6 * h.max()


def helps(X, W):
    with_h, without = output_with_and_without(W, X)
    return with_h < 0.95 * without


def hardly(X, W):
    with_h, without = output_with_and_without(W, X)
    return 0.95 * without <= with_h < 2 * without


def misled_case(rng):
    rows = int(rng.integers(12, 20))
    return (np.float32(0.05 * rng.standard_normal((rows, 256))),)


EXERCISES = (
    Exercise(
        name="k_quants.read", title="Find the bug: a superblock is read", stars=2,
        kind="fault",
        reference=read, cases=codes_case,
        special=(
            ("e and all mn are 0", without_minima),),
        mistakes=(
            ("the minimum e·mn is subtracted", read_with_minima_added),
            ("the minima are missing: subtract e·mn from each row", read_without_minima),
            ("minima have a scale of their own, e", read_with_one_scale),
            ("mn is a whole number; the minimum is e·mn", read_without_e),
            ("d is the scale of the steps, and e that of the minima",
             lambda d, sc, e, mn, q: read(e, sc, d, mn, q)),
            *several("a minimum is no zero point: the step multiplies the code alone, and e·mn is "
                     "subtracted from the product", read_shifted_codes, read_shifted_levels)),
        errors=(
            ("broadcast", "sc has a number for each row of q: (d * sc)[:, None] is (8, 1), and "
             "(8,) would be one for each column"),),
        hints=("Which two numbers does a sub-block share, and what makes of them a step and a "
               "minimum?",
               "q is (8, 32), sc and mn are (8,). (d * sc)[:, None] is (8, 1), the step of each "
               "row.",
               "return (d * sc)[:, None] * q - (e * mn)[:, None].")),
    Exercise(
        name="k_quants.which", title="Which type made these weights?", stars=2,
        kind="design",
        reference=which, cases=unknown,
        special=(
            *(("one matrix of each type", of_type(kind)) for kind in NAMES),
            *(("the first superblock uses few of the levels", few_levels(kind))
              for kind in ("Q5_0", "Q5_K", "Q8_0")),
            *(("the first block uses every other level", every_other_level(kind))
              for kind in ("Q4_K", "Q5_K")),
            ("half of the weights of a block are equal", equal_ones)),
        mistakes=(
            ("only the first superblock is read: take them all", of_first_superblock),
            ("the levels are counted in the first block alone, which need not use all of them",
             by_levels(lambda spans, fits: spans[0]))),
        symptoms=(
            ("return one of the eight names, as text", no_name),
            ("in Q6_K, and in no other type, 16 weights share a step: then 32 do not lie on one "
             "grid in most blocks", of_sixteen),
            ("the levels are counted wrong: count the steps between the lowest and the highest "
             "weight of each block, since some levels in between are not in use, and take the "
             "largest number of all blocks", other_levels),
            ("this type has a minimum: 0 lies on the grid of some blocks by chance, and with a "
             "wide tolerance of many; call whole what is within 0.05, and let most blocks decide",
             no_minimum),
            ("this type has no minimum: in most blocks x/step is whole", a_minimum),
            ("the eight steps of most superblocks are whole multiples of one number: 63·step/(the "
             "largest) is whole", no_superblock),
            ("each block has a step of its own: eight steps are whole multiples of one number by "
             "chance only", lambda got, expected, args: got.endswith("_K"))),
        hints=("How many weights share a step? How many steps lie between the lowest and the "
               "highest of them? Is 0 one of the levels? Have the steps of eight blocks a common "
               "measure?",
               "W_hat.reshape(-1, 32) has a row for each block, and the steps are (n_blocks,).",
               "step: the least gap that is not 0 between the sorted weights of a block. If "
               "(x − lowest)/step is not whole in most blocks, it is Q6_K. The largest span/step "
               "is at most 15, 31 or 255. x/step is whole: no minimum. 63·step/(largest of the "
               "eight) is whole: K.")),
    Exercise(
        name="k_quants.search", title="Scales and minima that are searched for", stars=3,
        kind="design",
        reference=search, cases=search_case, avoids=("fit_line", "searched"),
        goal=("s > 0, m ≥ 0, the weighted error in all is at most 0.72 of max–min's (0.85 where no "
              "weight is negative), and in no block it is larger than max–min's", is_found,
              reached),
        special=(
            ("each block has a far weight that hardly counts", unimportant_outliers),),
        extremes=(
            ("all weights are positive", all_positive),),
        mistakes=(
            *several("this is max–min itself, from which you start", max_min,
                     lambda x, w: (np.ptp(x, axis=1) / 15, -x.min(axis=1))),
            ("m is stored without a sign, and x̂ = s q − m: turn the sign of m", other_sign),
            *several("this lowers the error of all weights alike; multiply each square by its w",
                     search_variant(seen=ones),
                     lambda x, w: fitted(x, np.ones_like(w), *max_min(x, w), 10))),
        symptoms=(
            ("s and m are exchanged", exchanged),
            ("a scale is 0, negative or not finite", bad_scale),
            ("m is stored without a sign, so it must not be negative", negative_minimum),
            ("all blocks get max–min's s and m times the same factor: choose for each block by its "
             "own error", one_factor),
            ("w is not used: each square counts w times, in the fit and where the best is chosen",
             ignores_w),
            ("in some block the error is larger than max–min's: keep the start until something "
             "better comes", worse_block),
            ("these s and m are not the best ones for their codes: fit them by the two equations "
             "above, from several starts", not_fitted),
            ("a fit from one start stops where neither the codes nor s and m change any more: "
             "begin at several lowest and highest levels, some of them within the weights, and "
             "keep the best for each block",
             not_enough)),
        hints=("With fixed codes, which s and m are best? And with fixed s and m, which codes? "
               "Where does this end, and does it depend on the start?",
               "x and w are (n, 32), s and m (n,). A start: m = a·m₀ and s = (b·high + m)/15, for "
               "shares a and b from 0.5 to 1.",
               "For each pair of shares: three times, q = clip(rint((x + m)/s), 0, 15), then the "
               "weighted fit of the page, with m = 0 and s = Σwqx/Σwq² where it is negative. Keep "
               "s and m with np.where(error < best, …), beginning with max–min.")),
    Exercise(
        name="k_quants.bug", title="Find the bug: codes for scales that are not stored", stars=2,
        kind="fault",
        reference=stored, cases=superblock, normalize=in_floats, quiet=True,
        special=(
            ("a sub-block that is much smaller than the others", a_small_one),
            ("the same with weights of thousands", a_large_one),
            ("no weight is negative, so all minima are 0", no_minima),
            ("all weights of a sub-block are equal, so all s are 0", no_steps)),
        mistakes=(
            *several("the codes belong to s and m, which are not stored: this is the fault of the "
                     "code above", stored_variant(step=itself, minimum=itself),
                     stored_variant(step=itself, minimum=itself, empty=None)),
            ("the steps are the stored ones; take the stored minima e·mn as well",
             stored_variant(minimum=itself)),
            *several("the minima are the stored ones; take the stored steps d·sc as well",
                     stored_variant(step=itself), stored_variant(step=itself, empty=None)),
            ("x̂ = d·sc·q − e·mn, so the code is that of x + e·mn, not of x − e·mn",
             stored_variant(sign=-1)),
            *several("codes have four bits: 0 … 15",
                     stored_variant(least=-np.inf, largest=np.inf),
                     stored_variant(largest=np.inf)),
            *several("sc and mn stay as in the code above, the nearest whole numbers, also where "
                     "these are 0",
                     *(stored_variant(whole=of_s, of_minima=of_m)
                       for way in (np.floor, np.ceil, at_least_1)
                       for of_s, of_m in ((way, way), (way, np.rint), (np.rint, way)))),
            ("the largest of sc is 63: six bits hold 0 … 63", stored_variant(most=64)),
            ("minima have a scale e of their own", one_scale)),
        symptoms=(
            ("where all s or all m are 0, or a step became 0, nothing may be divided by it",
             not_finite),
            ("where the step d·sc is 0, the codes are 0, and nothing is divided by it",
             codes_of_nothing),
            ("sc and mn stay as in the code above, the nearest whole numbers of s/d and m/e, also "
             "where these are 0", other_whole_numbers)),
        hints=("From which numbers will a reader of the file compute the weights?",
               "sc and mn are (8,), q is (8, 32). (d * sc)[:, None] is the step of each row.",
               "q = np.clip(np.rint((x + (e * mn)[:, None]) / step), 0, 15) with step = (d * "
               "sc)[:, None], and 0 where the step is 0. Divide by np.where(step > 0, step, 1).")),
    Exercise(
        name="k_quants.mixture", title="Bits for layers", stars=2,
        kind="design",
        reference=by_gain_per_bit, cases=mixture_case,
        goal=("the bits are within the budget, and the sum of the squared output errors is at most "
              "1.05 of the least that fits", is_good_mixture, mixture_reached),
        special=(
            ("a large layer gains most, and four small ones gain more for the same bits",
             small_ones_first),
            ("the weights of the layer with the largest outputs have only two values, so it gains "
             "nothing", one_on_few_levels),
            ("the layer that comes second is too large for what is left, and smaller ones fit",
             the_second_is_too_large),
            ("the budget is enough for all layers", enough_for_all),
            ("the budget is enough for no layer", enough_for_none)),
        mistakes=(
            ("the error of the weights chooses here; measure that of the output, (Ŵ − W) Xᵀ",
             greedy(weight_gain)),
            ("the order is by what a layer gains in all; a large layer also takes more of the "
             "budget: divide by its bits", greedy(per_bit=False)),
            ("each error is divided by its own output; the sum to be made small has them "
             "undivided", greedy(relative_gain)),
            ("the inputs alone choose here; round the layers and measure", greedy(input_gain)),
            *several("no layer is rounded here, and how large its output is does not say how well "
                     "Q4_K represents its weights: round, and measure what that changes",
                     greedy(output_size), greedy(sizes_of_both), greedy(sizes_per_weight)),
            ("the choice ends at the first layer that does not fit; a smaller one after it may",
             greedy(stop=True)),
            ("the largest layers come first; measure what each gains",
             greedy(largest_layers, per_bit=False)),
            ("the smallest layers come first; measure what each gains",
             greedy(lambda weights, inputs: -largest_layers(weights, inputs), per_bit=False)),
            ("layers are taken in their order; measure what each gains",
             greedy(in_order, per_bit=False)),
            ("the last choice goes beyond the budget", greedy(over=True)),
            ("Q6_K costs 2.0625 bits more than Q4_K, and the 4.5 are paid already",
             greedy(price=BITS[BETTER])),
            *several("the errors of all tokens count, not those of one", greedy(of_token(0)),
                     greedy(of_token(-1)), greedy(of_mean_token))),
        symptoms=(
            ("these bits are more than the budget", over_budget),
            ("nothing was chosen, and the budget is enough for some layer", nothing_chosen)),
        hints=("By how much does the error of a layer's output fall if it gets Q6_K, and how many "
               "bits does that cost?",
               "For each layer two numbers: the squared error of (Ŵ − W) Xᵀ in Q4_K and in Q6_K. "
               "The result is (n,), True or False.",
               "Sort the layers by (error in Q4_K − error in Q6_K)/W.size, the largest first. "
               "Give Q6_K to each that still fits into the budget. Or try all 2ⁿ choices.")),
    Exercise(
        name="k_quants.misled", title="Inputs that mislead importance", stars=3,
        kind="design",
        reference=misled, cases=misled_case,
        goal=("on these inputs, the squared output error of Q4_K with their importance is at least "
              "twice that without importance", misleads, misled_reached),
        mistakes=(
            ("on inputs that are drawn one by one h says all there is to know: importance helps, "
             "or makes no difference",
             inputs_of(lambda rng, shape, W: rng.standard_normal(shape))),
            ("these are at right angles to the error with importance; take that without it",
             inputs_of(against_importance))),
        symptoms=(
            ("all inputs are 0, so nothing can be measured",
             lambda got, expected, args: not np.any(got)),
            ("no token has two inputs that are not 0, so h says all there is to know; let inputs "
             "be related", of_tokens(unrelated)),
            ("these inputs lie along the error without importance, where it is largest; you need "
             "the opposite", of_tokens(along_the_error)),
            ("these are at right angles to W; take what rounding changes, D = Ŵ − W",
             of_tokens(away_from_weights)),
            ("all inputs are equally important here, so h says nothing; choose X by the error "
             "D = Ŵ − W", of_tokens(equal_importance)),
            ("importance helps on these inputs", of_tokens(helps)),
            ("importance makes little difference on these inputs: they need a relation to each "
             "other that h, which looks at each alone, does not see", of_tokens(hardly))),
        hints=("Which inputs make an error D of the weights vanish? Does h, the mean square of "
               "each input, show it?",
               "D = Ŵ − W without importance is (rows, d_in), with fewer rows than columns. X is "
               "(16, d_in), and D Xᵀ should be 0.",
               "Draw X, and take away its part along the rows of D: X − X Dᵀ (D Dᵀ)⁻¹ D.")),
)

