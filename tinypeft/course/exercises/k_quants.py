"""Lesson 18: which type made these weights, a search for scales and minima, codes for stored
scales, bits for layers, and inputs that mislead importance."""
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


def which(W_hat):
    return which_variant()(W_hat)


def has_zero(W_hat, step):
    """Is 0 one of the levels, in most blocks?"""
    multiples = np.asarray(W_hat, float).reshape(len(step), -1) / step[:, None]
    return np.mean(np.abs(multiples - np.rint(multiples)).max(axis=1) < 0.05) > 0.5


def in_superblocks(step):
    """Are the eight steps of most superblocks whole multiples of a 63rd of the largest?"""
    eight = step.reshape(-1, 8)
    multiples = 63 * eight / eight.max(axis=1, keepdims=True)
    return np.mean(np.abs(multiples - np.rint(multiples)).max(axis=1) < 0.1) > 0.5


def span_of(W_hat, spans, fits):
    return spans[fits].max()


def which_variant(sixteen=lambda fits: np.mean(fits) <= 0.5, most=span_of, zero=has_zero,
                  superblocks=in_superblocks):
    """Make the function, with another answer to one of its questions."""
    def named(W_hat):
        step, spans, fits = grids(W_hat, 32)
        if sixteen(fits):
            return "Q6_K"
        steps = most(W_hat, spans, fits if fits.any() else ~fits)
        if steps > 31:
            return "Q8_0"
        bits = "Q4" if steps <= 15 else "Q5"
        if zero(W_hat, step):
            return f"{bits}_0"
        return f"{bits}_K" if superblocks(step) else f"{bits}_1"
    return named


def different_values(W_hat, spans, fits):
    return max(len(np.unique(block)) for block in np.reshape(W_hat, (-1, 32))) - 1


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


def no_name(got, expected, args):
    return not isinstance(got, str) or got not in NAMES


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


def bad_scale(got, expected, args):
    s, m = (np.asarray(part, float) for part in got)
    return not (np.isfinite(s).all() and (s > 0).all() and np.isfinite(m).all())


def negative_minimum(got, expected, args):
    return (np.asarray(got[1], float) < 0).any()


def exchanged(got, expected, args):
    return is_found(got[::-1], args)


def worse_block(got, expected, args):
    return ratios(got, args)[1] > 1 + 1e-9


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


def stored_variant(step=steps_of_codes, minimum=steps_of_codes, least=0, largest=15,
                   whole=np.rint, most=63):
    """Make the function that rounds scales and weights, with a mistake."""
    def wrong(x, s, m):
        d, e = s.max() / most, m.max() / most
        sc, mn = (whole(v / c) if c > 0 else 0 * v for v, c in ((s, d), (m, e)))
        steps, minima = step(s, d, sc)[:, None], minimum(m, e, mn)[:, None]
        q = np.clip(np.rint((x + minima) / np.where(steps > 0, steps, 1)), least, largest)
        return d, sc, e, mn, np.where(steps > 0, q, 0)
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


def zero_divided(got, expected, args):
    """Are there numbers that are not finite, or codes in a sub-block whose step is 0?"""
    empty = ~np.any(expected, axis=-1)
    return not np.isfinite(got).all() or np.any(got[empty])


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


def greedy(gain=output_gain, per_bit=True, over=False):
    """Make a function that gives the better type in the order of a gain, as long as it fits."""
    def chosen(weights, inputs, budget):
        sizes = np.array([W.size for W in weights])
        order = np.argsort(-gain(weights, inputs) / (sizes if per_bit else 1), kind="stable")
        better = np.zeros(len(sizes), bool)
        for i in order:
            before = bits_of(weights, better)
            better[i] = True
            if over:
                if before >= budget: better[i] = False
            elif bits_of(weights, better) > budget:
                better[i] = False
        return better
    return chosen


def weight_gain(weights, inputs):
    return np.array([np.sum((rounded(W, USUAL) - W)**2.0) for W in weights])


def relative_gain(weights, inputs):
    size = [np.sum((W @ X.T)**2) for W, X in zip(weights, inputs, strict=True)]
    return output_gain(weights, inputs) / size


def input_gain(weights, inputs):
    return np.array([np.sum(X**2) for X in inputs])


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
    """The largest layer gains most, and four small ones together gain more for the same bits."""
    rows, sizes = (8, 2, 2, 2, 2, 8), (1, 1.5, 1.5, 1.5, 1.5, 0.3)
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
    """The squared output errors on X, with importance measured on X and without it."""
    h = np.mean(np.asarray(X, float)**2, axis=0)
    return [np.sum(((rounded(W, USUAL, of).astype(float) - W) @ X.T)**2) for of in (h, None)]


def misleads(result, args):
    (W,) = args
    X = np.asarray(result, float)
    if not np.isfinite(X).all() or not X.any():
        return False
    with_h, without = output_with_and_without(W, X)
    return bool(with_h >= 2 * without)


def inputs_of(make):
    """Make a function that draws inputs (TOKENS, d_in) without looking at the rounding."""
    return lambda W: make(np.random.default_rng(1), (TOKENS, W.shape[1]), W)


def along_the_error(rng, shape, W):
    D = rounded(W, USUAL).astype(float) - W
    return rng.standard_normal((shape[0], len(D))) @ D


def against_importance(rng, shape, W):
    """At right angles to what is left with the importance of other inputs."""
    X = rng.standard_normal(shape)
    D = rounded(W, USUAL, np.mean(X**2, axis=0)).astype(float) - W
    return X - X @ D.T @ np.linalg.solve(D @ D.T, D)


def helps(got, expected, args):
    with_h, without = output_with_and_without(args[0], got)
    return np.any(got) and with_h < 0.95 * without


def hardly(got, expected, args):
    with_h, without = output_with_and_without(args[0], got)
    return np.any(got) and 0.95 * without <= with_h < 2 * without


def misled_case(rng):
    rows = int(rng.integers(12, 20))
    return (np.float32(0.05 * rng.standard_normal((rows, 256))),)


EXERCISES = (
    Exercise(
        name="k_quants.which", title="Which type made these weights?", stars=2,
        kind="design",
        reference=which, cases=unknown,
        special=tuple(("one matrix of each type", of_type(kind)) for kind in NAMES),
        mistakes=(
            ("some levels of a block are not in use: count the steps between its lowest and its "
             "highest weight, not its different values",
             which_variant(most=different_values)),
            ("a type with a minimum is missing: see whether 0 is one of the levels of a block",
             which_variant(zero=lambda W_hat, step: True)),
            ("a type without a minimum is missing: its levels are multiples of the step, so 0 is "
             "one of them",
             which_variant(zero=lambda W_hat, step: False)),
            ("a K type is missing: its eight steps of a superblock are whole multiples of one "
             "number",
             which_variant(superblocks=lambda step: False)),
            ("you find superblocks where each block has a step of its own",
             which_variant(superblocks=lambda step: True)),
            ("in one of the types 16 weights share a step, and 32 do not lie on one grid",
             which_variant(sixteen=lambda fits: False))),
        symptoms=(
            ("return one of the eight names, as text", no_name),),
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
              "weight is negative), and in no block it is larger than max–min's", is_found),
        special=(
            ("each block has a far weight that hardly counts", unimportant_outliers),),
        extremes=(
            ("all weights are positive", all_positive),),
        mistakes=(
            ("this is max–min itself, from which you start", max_min),
            ("m is stored without a sign, and x̂ = s q − m: turn the sign of m", other_sign),
            *several("this lowers the error of all weights alike; multiply each square by its w",
                     search_variant(seen=ones),
                     lambda x, w: fitted(x, np.ones_like(w), *max_min(x, w), 10))),
        symptoms=(
            ("s and m are exchanged", exchanged),
            ("a scale is 0, negative or not finite", bad_scale),
            ("m is stored without a sign, so it must not be negative", negative_minimum),
            ("in some block the error is larger than max–min's: keep the start until something "
             "better comes", worse_block),
            ("a fit from one start ends in the nearest valley: begin at several lowest and highest "
             "levels, some of them within the weights, and keep the best for each block",
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
            ("no weight is negative, so all minima are 0", no_minima)),
        mistakes=(
            ("the codes belong to s and m, which are not stored: this is the fault of the code "
             "above", stored_variant(step=itself, minimum=itself)),
            ("the steps are the stored ones; take the stored minima e·mn as well",
             stored_variant(minimum=itself)),
            ("the minima are the stored ones; take the stored steps d·sc as well",
             stored_variant(step=itself)),
            *several("codes have four bits: 0 … 15",
                     stored_variant(least=-np.inf, largest=np.inf),
                     stored_variant(largest=np.inf)),
            ("sc and mn are the nearest whole numbers", stored_variant(whole=np.floor)),
            ("sc and mn are the nearest whole numbers", stored_variant(whole=np.ceil)),
            ("the largest of sc is 63: six bits hold 0 … 63", stored_variant(most=64)),
            ("minima have a scale e of their own", one_scale)),
        symptoms=(
            ("where all minima are 0, or a step became 0, nothing may be divided by it; the codes "
             "are 0 there", zero_divided),),
        hints=("From which numbers will a reader of the file compute the weights?",
               "sc and mn are (8,), q is (8, 32). (d * sc)[:, None] is the step of each row.",
               "q = np.clip(np.rint((x + (e * mn)[:, None]) / step), 0, 15) with step = (d * "
               "sc)[:, None], and 0 where the step is 0. Divide by np.where(step > 0, step, 1).")),
    Exercise(
        name="k_quants.mixture", title="Bits for layers", stars=2,
        kind="design",
        reference=by_gain_per_bit, cases=mixture_case,
        goal=("the bits are within the budget, and the sum of the squared output errors is at most "
              "1.05 of the least that fits", is_good_mixture),
        special=(
            ("a large layer gains most, and four small ones gain more for the same bits",
             small_ones_first),
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
            ("the largest layers come first; measure what each gains",
             greedy(largest_layers, per_bit=False)),
            ("layers are taken in their order; measure what each gains",
             greedy(in_order, per_bit=False)),
            ("the last choice goes beyond the budget", greedy(over=True))),
        symptoms=(
            ("these bits are more than the budget", over_budget),),
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
              "twice that without importance", misleads),
        mistakes=(
            ("on inputs that are drawn one by one h says all there is to know: importance helps, "
             "or makes no difference",
             inputs_of(lambda rng, shape, W: rng.standard_normal(shape))),
            ("these inputs lie along the error without importance, where it is largest; you need "
             "the opposite", inputs_of(along_the_error)),
            ("these are at right angles to the error with importance; take that without it",
             inputs_of(against_importance))),
        symptoms=(
            ("all inputs are 0, so nothing can be measured",
             lambda got, expected, args: not np.any(got)),
            ("importance helps on these inputs", helps),
            ("importance makes little difference on these inputs: they need a relation to each "
             "other that h, which looks at each alone, does not see", hardly)),
        hints=("Which inputs make an error D of the weights vanish? Does h, the mean square of "
               "each input, show it?",
               "D = Ŵ − W without importance is (rows, d_in), with fewer rows than columns. X is "
               "(16, d_in), and D Xᵀ should be 0.",
               "Draw X, and take away its part along the rows of D: X − X Dᵀ (D Dᵀ)⁻¹ D.")),
)

