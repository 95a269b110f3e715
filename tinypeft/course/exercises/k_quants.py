"""Lesson 18: a superblock is read, the type of decoded weights, a search for scales and minima,
codes for stored scales, bits for layers, and inputs that mislead importance."""
from functools import lru_cache
from itertools import product

import numpy as np

from ...quant.gguf import quantize_as
from ..exercise import Exercise
from ..slips import inputs, slip, slips

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


def change(W, kind="Q4_K", h=None):
    """Return D = Ŵ − W."""
    return rounded(W, kind, h).astype(float) - W


# -- reading a superblock --------------------------------------------------------------------------
def read(d, sc, e, mn, q):
    if slip("d is the scale of the steps, and e that of the minima"): d, e = e, d
    step, minimum = (d * sc)[:, None], (e * mn)[:, None]
    if slip("minima have a scale of their own, e"): minimum = (d * mn)[:, None]
    if slip("mn is a whole number; the minimum is e·mn"): minimum = mn[:, None]
    if slip("the minimum e·mn is subtracted"): minimum = -minimum
    if slip("the minima are missing: subtract e·mn from each row"): minimum = 0
    if slip("a minimum is no zero point: the step multiplies the code alone, and e·mn is "
            "subtracted from the product", 1):
        return step * (q - mn[:, None])
    if slip("a minimum is no zero point: the step multiplies the code alone, and e·mn is "
            "subtracted from the product", 2):
        return step * (q - minimum)
    return step * q - minimum


def codes_case(rng):
    """Draw what a superblock of Q4_K stores."""
    d, e = (float(np.float16(top)) for top in rng.uniform(0.001, 0.01, 2))
    sc, mn = rng.integers(1, 64, (2, 8))
    return d, sc, e, mn, rng.integers(0, 16, (8, 32))


def without_minima(rng):
    d, sc, _, mn, q = codes_case(rng)
    return d, sc, 0.0, 0 * mn, q


# -- which type ------------------------------------------------------------------------------------
def type_of_weights(W_hat):
    if slip("only the first superblock is read: take them all"): W_hat = W_hat.reshape(-1)[:256]
    x = np.sort(W_hat.reshape(-1, 32).astype(float), axis=1)
    span = x[:, -1] - x[:, 0]
    gaps = np.diff(x, axis=1)
    step = np.where(gaps > 1e-4 * span[:, None], gaps, np.inf).min(axis=1)
    whole = lambda v: np.abs(v - np.rint(v)).max(axis=1) < 0.05
    on_a_grid = whole((x - x[:, :1]) / step[:, None])
    if on_a_grid.mean() <= 0.5: return "Q6_K"                     # 32 weights share no step
    n = np.rint(span / step)[on_a_grid].max()
    if slip("the levels are counted in the first block alone, which need not use all of them"):
        n = np.rint(span / step)[0]
    if n > 31: return "Q8_0"
    bits = "Q4" if n <= 15 else "Q5"
    if whole(x / step[:, None]).mean() > 0.5: return bits + "_0"  # 0 is one of the levels
    eight = step.reshape(-1, 8)
    common = whole(63 * eight / eight.max(axis=1, keepdims=True)).mean() > 0.5
    return bits + ("_K" if common else "_1")


def weights_of(rng):
    """Draw weights of some distribution, uneven from block to block and a little lopsided."""
    shape = int(rng.integers(3, 5)), 256 * int(rng.integers(1, 3))
    blocks = shape[0] * shape[1] // 32
    draws = [rng.standard_normal, lambda size: rng.laplace(size=size),
             lambda size: rng.standard_t(5, size=size)]
    x = draws[rng.integers(3)]((blocks, 32)) + 0.4 * rng.standard_normal((blocks, 1))
    x *= 0.05 * np.exp(0.4 * rng.standard_normal((blocks, 1)))
    return np.float32(x).reshape(shape)


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
        two_steps = 2 * np.diff(np.unique(block)).min()
        block[:] = block.min() + two_steps * np.rint((block - block.min()) / two_steps - 0.25)
        return (x,)
    return case


def equal_ones(rng):
    """Half of the weights of a block are equal, so a block of Q8_0 has at most 17 values."""
    W = weights_of(rng)
    blocks = W.reshape(-1, 32)
    blocks[:, 1:16] = blocks[:, :1]
    return (rounded(W, "Q8_0"),)


# -- a search --------------------------------------------------------------------------------------
def search(x, w):
    s0, m0 = max_min(x)
    if slip("this is max–min itself, from which you start", 1): return s0, m0
    if slip("this is max–min itself, from which you start", 2):
        return np.ptp(x, axis=1) / 15, -x.min(axis=1)
    if slip("this lowers the error of all weights alike; multiply each square by its w", 1):
        w = np.ones_like(w)
    if slip("this lowers the error of all weights alike; multiply each square by its w", 2):
        for _ in range(10): s0, m0 = fitted(x, np.ones_like(w), s0, m0)
        return s0, m0
    best_s, best_m, least = s0, m0, errors(x, w, s0, m0)
    high = x.max(axis=1)
    for a, b in product((0.5, 0.65, 0.8, 0.95, 1.05), repeat=2):
        s, m = (b * high + a * m0) / 15, a * m0
        for _ in range(3): s, m = fitted(x, w, s, m)
        E = errors(x, w, s, m)
        better = E < least
        best_s, best_m, least = (np.where(better, new, old) for new, old in (
            (s, best_s), (m, best_m), (E, least)))
    if slip("m is stored without a sign, and x̂ = s q − m: turn the sign of m"): best_m = -best_m
    return best_s, best_m


def max_min(x):
    m0 = -np.minimum(x.min(axis=1), 0)
    return (x.max(axis=1) + m0) / 15, m0


def codes_of(x, s, m):
    return np.clip(np.rint((x + m[:, None]) / s[:, None]), 0, 15)


def errors(x, w, s, m):
    """The weighted squared error of each block, with the best codes."""
    q = codes_of(x, s, m)
    return np.sum(w * (s[:, None] * q - m[:, None] - x)**2, axis=1)


def fitted(x, w, s, m):
    """Fit s and m to the codes that are best for these s and m."""
    q = codes_of(x, s, m)
    S, Sq, Sqq, Sx, Sqx = (np.sum(w * part, axis=1) for part in (1, q, q * q, x, q * x))
    D = np.maximum(S * Sqq - Sq**2, 1e-12)
    new_s, new_m = (S * Sqx - Sx * Sq) / D, (Sq * Sqx - Sqq * Sx) / D
    new_s = np.where(new_m < 0, Sqx / np.maximum(Sqq, 1e-12), new_s)
    return np.where(new_s > 0, new_s, s), np.maximum(new_m, 0)


def ratios(result, args):
    """The weighted error over that of max–min, in all and in the worst block."""
    x, w = args
    s, m = (np.asarray(part, float) for part in result)
    before, after = errors(x, w, *max_min(x)), errors(x, w, np.where(s > 0, s, 1e-9), m)
    return after.sum() / before.sum(), (after / before).max()


def is_found(result, args):
    if bad_scale(result, None, args) or np.min(result[1]) < 0: return False
    whole, worst = ratios(result, args)
    most = 0.72 if (args[0] < 0).any() else 0.85
    return bool(whole <= most and worst <= 1 + 1e-9)


def reached(result, args):
    """Say how far a search came."""
    if bad_scale(result, None, args): return ""
    whole, worst = ratios(result, args)
    return f"; your sum is {whole:.2f} of max–min's, and in the worst block {worst:.2f}"


def bad_scale(got, expected, args):
    s, m = (np.asarray(part, float) for part in got)
    return not (np.isfinite(s).all() and (s > 0).all() and np.isfinite(m).all())


def one_factor(got, expected, args):
    """Are s and m of all blocks the same multiples of max–min's?"""
    factors = [np.asarray(part, float)[start > 0] / start[start > 0]
               for part, start in zip(got, max_min(args[0]), strict=True)]
    return all(np.ptp(factor) < 1e-6 for factor in factors if factor.size)


def ignores_w(got, expected, args):
    """Is no block worse than max–min if all weights count alike, and some as they are counted?"""
    x, w = args
    alike, worst = ratios(got, (x, np.ones_like(w)))
    return worst <= 1 + 1e-9 and alike < 0.97 and ratios(got, args)[1] > 1 + 1e-9


def not_fitted(got, expected, args):
    """Would one fit more lower the error of most blocks by a fiftieth?"""
    s, m = (np.asarray(part, float) for part in got)
    return np.median(errors(*args, *fitted(*args, s, m)) / errors(*args, s, m)) < 0.98


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


# -- codes for scales that are codes ---------------------------------------------------------------
def stored(x, s, m):
    d, e = s.max() / 63, m.max() / 63
    if slip("the largest of sc is 63: six bits hold 0 … 63"): d, e = s.max() / 64, m.max() / 64
    if slip("minima have a scale e of their own"): d = e = max(d, e)
    sc = np.rint(s / d) if d > 0 else np.zeros(8)
    mn = np.rint(m / e) if e > 0 else np.zeros(8)
    if slip("sc and mn stay as in the code above, the nearest whole numbers, also where these "
            "are 0"):
        sc, mn = np.maximum(sc, s > 0), np.maximum(mn, m > 0)
    step, minimum = (d * sc)[:, None], (e * mn)[:, None]
    if slip("the steps are the stored ones; take the stored minima e·mn as well"):
        minimum = m[:, None]
    if slip("the minima are the stored ones; take the stored steps d·sc as well", 1):
        step = s[:, None]
    if slip("the codes belong to s and m, which are not stored: this is the fault of the code "
            "above", 1):
        step, minimum = s[:, None], m[:, None]
    divisor = np.where(step > 0, step, 1)
    if slip("the minima are the stored ones; take the stored steps d·sc as well", 2):
        divisor = np.where(s > 0, s, 1)[:, None]
    if slip("the codes belong to s and m, which are not stored: this is the fault of the code "
            "above", 2):
        divisor, minimum = np.where(s > 0, s, 1)[:, None], m[:, None]
    if slip("x̂ = d·sc·q − e·mn, so the code is that of x + e·mn, not of x − e·mn"):
        minimum = -minimum
    q = np.rint((x + minimum) / divisor)
    codes = np.clip(q, 0, 15)
    if slip("codes have four bits: 0 … 15", 1): codes = q
    if slip("codes have four bits: 0 … 15", 2): codes = np.maximum(q, 0)
    return d, sc, e, mn, np.where(step > 0, codes, 0)


def superblock(rng):
    x = rng.standard_normal((8, 32)) * np.exp(0.8 * rng.standard_normal((8, 1)))
    return x, *max_min(x)


def a_small_one(rng, size=1.0):
    """The step of one sub-block becomes 0. size: of the weights in the others."""
    x, *_ = superblock(rng)
    x[2] *= 1e-4
    return size * x, *max_min(size * x)


def no_minima(rng):
    x = np.abs(rng.standard_normal((8, 32)))
    return x, *max_min(x)


def no_steps(rng):
    """The weights of each sub-block are equal and negative: minima and no steps."""
    x = -np.ones((8, 32)) * rng.uniform(0.5, 2, (8, 1))
    return x, *max_min(x)


# -- bits for layers -------------------------------------------------------------------------------
def by_gain_per_bit(weights, inputs, budget):
    sizes = np.array([W.size for W in weights])
    pairs = list(zip(weights, inputs, strict=True))
    gains = [output_error(W, X, "Q4_K") - output_error(W, X, "Q6_K") for W, X in pairs]
    if slip("the error of the weights chooses here; measure that of the output, (Ŵ − W) Xᵀ"):
        gains = [np.sum(change(W)**2) for W in weights]
    if slip("the inputs alone choose here; round the layers and measure"):
        gains = [np.sum(X**2) for X in inputs]
    if slip("no layer is rounded here, and how large its output is does not say how well Q4_K "
            "represents its weights: round, and measure what that changes", 1):
        gains = [np.sum((W @ X.T)**2) for W, X in pairs]
    if slip("no layer is rounded here, and how large its output is does not say how well Q4_K "
            "represents its weights: round, and measure what that changes", 2):
        gains = [np.sum(W**2) * np.sum(X**2) for W, X in pairs]
    if slip("no layer is rounded here, and how large its output is does not say how well Q4_K "
            "represents its weights: round, and measure what that changes", 3):
        gains = [np.mean(W**2) * np.sum(X**2) for W, X in pairs]
    per_bit = np.array(gains) / sizes
    if slip("the order is by what a layer gains in all; a large layer also takes more of the "
            "budget: divide by its bits"):
        per_bit = np.array(gains)
    if slip("the largest layers come first; measure what each gains"): per_bit = sizes
    if slip("the smallest layers come first; measure what each gains"): per_bit = -sizes
    if slip("layers are taken in their order; measure what each gains"):
        per_bit = -np.arange(len(sizes))
    better, left = np.zeros(len(sizes), bool), budget - 4.5 * sizes.sum()
    cost = 2.0625 * sizes
    if slip("Q6_K costs 2.0625 bits more than Q4_K, and the 4.5 are paid already"):
        cost = 6.5625 * sizes
    for i in np.argsort(-per_bit, kind="stable"):
        fits = cost[i] <= left
        if slip("the last choice goes beyond the budget"): fits = left > 0
        if fits:
            better[i] = True
            left -= cost[i]
        elif slip("the choice ends at the first layer that does not fit; a smaller one after it "
                  "may"):
            break
    return better


def output_error(W, X, kind):
    """The squared error of a layer's output."""
    if slip("the errors of all tokens count, not those of one", 1): X = X[:1]
    if slip("the errors of all tokens count, not those of one", 2): X = X[-1:]
    if slip("the errors of all tokens count, not those of one", 3):
        X = X.mean(axis=0, keepdims=True)
    error = np.sum((change(W, kind) @ X.T)**2)
    if slip("each error is divided by its own output; the sum to be made small has them undivided"):
        error = error / np.sum((W @ X.T)**2)
    return error


def bits_of(weights, chosen):
    """The bits of a choice (n,), or of several (…, n)."""
    sizes = np.array([W.size for W in weights])
    return np.sum(sizes * np.where(chosen, 6.5625, 4.5), axis=-1)


def error_of(weights, inputs, chosen):
    """The sum of the squared output errors of a choice (n,), or of several (…, n)."""
    usual, better = np.array([[output_error(W, X, kind) for kind in ("Q4_K", "Q6_K")]
                              for W, X in zip(weights, inputs, strict=True)]).T
    return np.sum(np.where(chosen, better, usual), axis=-1)


def least_error(weights, inputs, budget):
    """The least sum within the budget, of all choices."""
    choices = np.array(list(product((False, True), repeat=len(weights))))
    return error_of(weights, inputs, choices)[bits_of(weights, choices) <= budget].min()


def is_good_mixture(result, args):
    weights, inputs, budget = args
    if bits_of(weights, result) > budget: return False
    return bool(error_of(weights, inputs, result) <= 1.05 * least_error(*args))


def mixture_reached(result, args):
    """Say how good a choice is."""
    weights, inputs, budget = args
    share = bits_of(weights, result) / budget
    ratio = error_of(weights, inputs, result) / least_error(*args)
    return f"; yours takes {share:.3f} of the budget, and its sum is {ratio:.2f} of the least"


def layers(rng, low, high):
    """Six small, uneven layers, and bits enough for Q6_K in a share of the weights."""
    weights, inputs = [], []
    for _ in range(6):
        rows = int(rng.integers(2, 9))
        W = rng.standard_normal((rows, 256)) * np.exp(0.7 * rng.standard_normal())
        X = rng.standard_normal((16, 256)) * np.exp(0.9 * rng.standard_normal())
        weights.append(np.float32(W))
        inputs.append(X * np.exp(0.5 * rng.standard_normal(256)))
    bits = 4.5 + 2.0625 * rng.uniform(low, high)
    return weights, inputs, bits * sum(W.size for W in weights)


def mixture_case(rng):
    """A budget at which the order by gain per bit is nearly the best choice, and matters."""
    while True:
        weights, inputs, budget = layers(rng, 0.3, 0.6)
        chosen = by_gain_per_bit(weights, inputs, budget)
        if error_of(weights, inputs, chosen) <= 1.03 * least_error(weights, inputs, budget):
            return weights, inputs, budget


def of_24_rows(rng, rows, sizes):
    """Layers of so many rows, with weights of such sizes. The budget is enough for 8 of 24 rows."""
    weights = [np.float32(s * rng.standard_normal((n, 256)))
               for n, s in zip(rows, sizes, strict=True)]
    inputs = [rng.standard_normal((16, 256)) for _ in rows]
    return weights, inputs, 256 * (24 * 4.5 + 8 * 2.0625)


def small_ones_first(rng):
    """The first layer gains most, and four small ones together gain more for the same bits. On the
    first and the last token the sixth layer gains most."""
    weights, inputs, budget = of_24_rows(rng, (8, 2, 2, 2, 2, 8), (1, 1.5, 1.5, 1.5, 1.5, 0.3))
    for X in inputs[1:5]: X[[0, -1]] *= 0.01
    inputs[5][[0, -1]] *= 5
    return weights, inputs, budget


def one_on_few_levels(rng):
    """The weights of the largest outputs have two values, which both types represent."""
    weights, inputs, budget = small_ones_first(rng)
    weights = [np.float32(3 * rng.choice([-1, 1], (8, 256))), *weights[:-1]]
    inputs = [rng.standard_normal((16, 256)), *inputs[:-1]]
    return weights, inputs, budget


# -- importance that misleads ----------------------------------------------------------------------
def misled(W):
    X = np.random.default_rng(0).standard_normal((16, W.shape[1]))
    if slip("on inputs that are drawn one by one h says all there is to know: importance helps, or "
            "makes no difference"):
        return X
    error = change(W)
    if slip("these are at right angles to the error with importance; take that without it"):
        error = change(W, h=np.mean(X**2, axis=0))
    return X - X @ np.linalg.pinv(error) @ error                  # error @ X.T is 0


def output_with_and_without(W, X):
    """The squared output errors on X, with importance measured on X and without it; NaN where the
    package cannot round by an importance that is 0 nearly everywhere."""
    X = np.asarray(X, float)
    try:
        return [np.sum((change(W, h=h) @ X.T)**2) for h in (np.mean(X**2, axis=0), None)]
    except ValueError:
        return np.nan, np.nan


def misleads(result, args):
    if not np.isfinite(result).all() or not np.any(result): return False
    with_h, without = output_with_and_without(*args, result)
    return bool(with_h >= 2 * without)


def misled_reached(result, args):
    """Say how many times as large the error is with importance."""
    with_h, without = output_with_and_without(*args, result)
    return f"; on yours it is {with_h / without:.3g} times as large" if without > 0 else ""


def of_tokens(predicate):
    """Make a symptom of a predicate (X, W), for inputs X of the right shape."""
    def symptom(got, expected, args):
        (W,) = args
        X = np.asarray(got, float)
        return X.shape == (16, W.shape[1]) and predicate(X, W.astype(float))
    return symptom


def in_the_rows(X, rows):
    """The share of X, by its norm, that lies in the space of some rows."""
    return np.linalg.norm(X @ np.linalg.pinv(rows) @ rows) / np.linalg.norm(X)


def equal_importance(X, W):
    h = np.mean(X**2, axis=0)
    return np.ptp(h) <= 1e-6 * h.max()


def less_than(times):
    """Make a predicate: the error with importance is less than so many times that without."""
    def predicate(X, W):
        with_h, without = output_with_and_without(W, X)
        return with_h < times * without
    return predicate


EXERCISES = (
    Exercise(
        name="k_quants.read", title="Find the bug: a superblock is read", stars=2,
        kind="fault",
        reference=read, cases=codes_case,
        special=(
            ("e and all mn are 0", without_minima),),
        mistakes=slips(read),
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
        reference=type_of_weights,
        cases=lambda rng: (rounded(weights_of(rng), NAMES[rng.integers(8)]),),
        special=(
            *(("one matrix of each type", of_type(kind)) for kind in NAMES),
            *(("the first superblock uses few of the levels", few_levels(kind))
              for kind in ("Q5_0", "Q5_K", "Q8_0")),
            *(("the first block uses every other level", every_other_level(kind))
              for kind in ("Q4_K", "Q5_K")),
            ("half of the weights of a block are equal", equal_ones)),
        mistakes=slips(type_of_weights),
        symptoms=(
            ("return one of the eight names, as text",
             lambda got, expected, args: not isinstance(got, str) or got not in NAMES),
            ("in Q6_K, and in no other type, 16 weights share a step: then 32 do not lie on one "
             "grid in most blocks", lambda got, expected, args: "Q6_K" in (got, expected)),
            ("the levels are counted wrong: count the steps between the lowest and the highest "
             "weight of each block, since some levels in between are not in use, and take the "
             "largest number of all blocks", lambda got, expected, args: got[:2] != expected[:2]),
            ("this type has a minimum: 0 lies on the grid of some blocks by chance, and with a "
             "wide tolerance of many; call whole what is within 0.05, and let most blocks decide",
             lambda got, expected, args: got.endswith("_0") and not expected.endswith("_0")),
            ("this type has no minimum: in most blocks x/step is whole",
             lambda got, expected, args: expected.endswith("_0") and not got.endswith("_0")),
            ("the eight steps of most superblocks are whole multiples of one number: 63·step/(the "
             "largest) is whole", lambda got, expected, args: expected.endswith("_K")),
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
        mistakes=slips(search),
        symptoms=(
            ("s and m are exchanged", lambda got, expected, args: is_found(got[::-1], args)),
            ("a scale is 0, negative or not finite", bad_scale),
            ("m is stored without a sign, so it must not be negative",
             lambda got, expected, args: (np.asarray(got[1], float) < 0).any()),
            ("all blocks get max–min's s and m times the same factor: choose for each block by its "
             "own error", one_factor),
            ("w is not used: each square counts w times, in the fit and where the best is chosen",
             ignores_w),
            ("in some block the error is larger than max–min's: keep the start until something "
             "better comes", lambda got, expected, args: ratios(got, args)[1] > 1 + 1e-9),
            ("these s and m are not the best ones for their codes: fit them by the two equations "
             "above, from several starts", not_fitted),
            ("a fit from one start stops where neither the codes nor s and m change any more: "
             "begin at several lowest and highest levels, some of them within the weights, and "
             "keep the best for each block",
             lambda got, expected, args: not is_found(got, args))),
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
        reference=stored, cases=superblock, quiet=True,
        normalize=lambda result: [np.asarray(part, float) for part in result],
        special=(
            ("a sub-block that is much smaller than the others", a_small_one),
            ("the same with weights of thousands", lambda rng: a_small_one(rng, 1e5)),
            ("no weight is negative, so all minima are 0", no_minima),
            ("all weights of a sub-block are equal, so all s are 0", no_steps)),
        mistakes=slips(stored),
        symptoms=(
            ("where all s or all m are 0, or a step became 0, nothing may be divided by it",
             lambda got, expected, args: not np.isfinite(got).all()),
            ("where the step d·sc is 0, the codes are 0, and nothing is divided by it",
             lambda got, expected, args: np.shape(got) == (8, 32) and
             np.any(got[~np.any(expected, axis=1)])),
            ("sc and mn stay as in the code above, the nearest whole numbers of s/d and m/e, also "
             "where these are 0", lambda got, expected, args: np.shape(got) == (8,))),
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
             lambda rng: of_24_rows(rng, (2, 8, 2, 2, 2, 8), (2.5, 1.1, 1, 1, 1, 0.3))),
            ("the budget is enough for all layers", lambda rng: layers(rng, 1.2, 1.2)),
            ("the budget is enough for no layer", lambda rng: layers(rng, 0, 0))),
        mistakes=slips(by_gain_per_bit, output_error),
        symptoms=(
            ("these bits are more than the budget",
             lambda got, expected, args: np.shape(got) == np.shape(expected) and
             bits_of(args[0], got) > args[2]),
            ("nothing was chosen, and the budget is enough for some layer",
             lambda got, expected, args: np.shape(got) == np.shape(expected) and not np.any(got))),
        hints=("By how much does the error of a layer's output fall if it gets Q6_K, and how many "
               "bits does that cost?",
               "For each layer two numbers: the squared error of (Ŵ − W) Xᵀ in Q4_K and in Q6_K. "
               "The result is (n,), True or False.",
               "Sort the layers by (error in Q4_K − error in Q6_K)/W.size, the largest first. "
               "Give Q6_K to each that still fits into the budget. Or try all 2ⁿ choices.")),
    Exercise(
        name="k_quants.misled", title="Inputs that mislead importance", stars=3,
        kind="design",
        reference=misled, cases=inputs("W:rows,d_in", np.float32, rows=(12, 20), d_in=256),
        goal=("on these inputs, the squared output error of Q4_K with their importance is at least "
              "twice that without importance", misleads, misled_reached),
        mistakes=slips(misled),
        symptoms=(
            ("all inputs are 0, so nothing can be measured",
             lambda got, expected, args: not np.any(got)),
            ("no token has two inputs that are not 0, so h says all there is to know; let inputs "
             "be related", of_tokens(lambda X, W: (np.count_nonzero(X, axis=1) <= 1).all())),
            ("these inputs lie along the error without importance, where it is largest; you need "
             "the opposite", of_tokens(lambda X, W: in_the_rows(X, change(W)) > 0.99)),
            ("these are at right angles to W; take what rounding changes, D = Ŵ − W",
             of_tokens(lambda X, W: in_the_rows(X, W) < 0.01)),
            ("all inputs are equally important here, so h says nothing; choose X by the error "
             "D = Ŵ − W", of_tokens(equal_importance)),
            ("importance helps on these inputs", of_tokens(less_than(0.95))),
            ("importance makes little difference on these inputs: they need a relation to each "
             "other that h, which looks at each alone, does not see", of_tokens(less_than(2)))),
        hints=("Which inputs make an error D of the weights vanish? Does h, the mean square of "
               "each input, show it?",
               "D = Ŵ − W without importance is (rows, d_in), with fewer rows than columns. X is "
               "(16, d_in), and D Xᵀ should be 0.",
               "Draw X, and take away its part along the rows of D: X − X Dᵀ (D Dᵀ)⁻¹ D.")),
)

