"""Lesson 11: the cost of outliers, LLM.int8()'s decomposition, and SmoothQuant's smoothing."""
import numpy as np

from ...engine.nn import LayerNorm, Linear
from ...quant.folding import fold_scale
from ...quant.int8 import int8_inputs, scaled_matmul
from ...quant.llm_int8 import inputs
from ...quant.smoothquant import smoothing_factors
from ...quant.uniform import Uniform
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


def itself(x):
    return x


def as_floats(product):
    return np.asarray(product, np.float64)


def scale_of(A, axis=1, n=127, size=np.abs):
    return size(A).max(axis, keepdims=True) / n


# How the inputs and the weights are rounded.
CUT = (np.trunc, np.trunc), (np.trunc, np.rint), (np.rint, np.trunc)
DOWN = (np.floor, np.floor), (np.floor, np.rint), (np.rint, np.floor)
ONE_ONLY = (np.rint, itself), (itself, np.rint)


# -- an outlier that leaves nothing ----------------------------------------------------------------
def drown(x):
    return 254.0 * float(np.abs(x).max())


def drown_variant(factor=254.0, of=lambda x: np.abs(x).max()):
    """Make `drown` with another factor, or for another number of the token."""
    return lambda x: factor * float(of(x))


def all_drowned(m, args):
    """Are all codes of x 0 beside the entry m, which is at most 0.5 % larger than need be?"""
    (x,) = args
    most = np.abs(x).max()
    return bool(0 < m <= 1.005 * 254 * most and np.rint(127 * most / m - 1e-9) == 0)


def some_left(got, expected, args):
    return abs(got) < expected


def far_above(got, expected, args):
    return got > expected


def a_token(rng):
    """Draw a token whose largest magnitude belongs to a negative entry, half of the time."""
    x = rng.normal(0, 1, int(rng.integers(5, 9)))
    return (x if rng.integers(2) else -np.sort(x) - 2,)


def of_one_size(rng):
    return (np.array([1.0, -1.0, 1.0]),)


def largest_is_negative(rng):
    return (np.array([0.5, -2.0, 1.0]),)


def others(X, O):
    return np.delete(X, O, axis=1)


def with_outliers(rng, d=None):
    """Draw (X, O): inputs with two columns some 20 times larger."""
    n, d = int(rng.integers(4, 8)), d or int(rng.integers(9, 14))
    X = rng.normal(0, 1, (n, d))
    O = np.sort(rng.choice(d, 2, replace=False))
    X[:, O] *= rng.uniform(10, 30)
    return X, O


# -- a product of integers -------------------------------------------------------------------------
def bug(q_x, q_w):
    return q_x.astype(np.int64) @ q_w.astype(np.int64).T


def in_type(kind, then=itself):
    """Make `bug` with a mistake: codes and their sums in another type."""
    def wrong(q_x, q_w):
        with np.errstate(over="ignore", invalid="ignore"):
            return then(q_x.astype(kind) @ q_w.astype(kind).T)
    return wrong


def reshaped(q_x, q_w):
    return q_x.astype(np.int64) @ q_w.astype(np.int64).reshape(q_w.shape[::-1])


def integer_codes(rng):
    n, d_out = int(rng.integers(2, 5)), int(rng.integers(5, 8))
    K = int(rng.integers(8, 40))
    def draw(rows):
        return rng.integers(-127, 128, (rows, K)).astype(np.int8)
    return draw(n), draw(d_out)


def full(K, rows):
    """Return a token and `rows` outputs, with all K codes 127."""
    def arguments(rng):
        return np.full((1, K), 127, np.int8), np.full((rows, K), 127, np.int8)
    return arguments


def off_by_float16(got, expected, arguments):
    return np.allclose(got, expected, rtol=1e-2, atol=0)


def off_by_float32(got, expected, arguments):
    return np.allclose(got, expected, rtol=1e-5, atol=0)


# -- vector-wise -----------------------------------------------------------------------------------
def vector_wise(X, W):
    Q, s = int8_inputs(X, "token")
    return (s * scaled_matmul(Q, Uniform(8).quantize(W), X.dtype)).astype(X.dtype)


def vector_wise_in_int8(X, W):
    s_x, s_w = scale_of(X), scale_of(W)
    q_x = np.rint(X / s_x).astype(np.int8)
    q_w = np.rint(W / s_w).astype(np.int8)
    return s_x * s_w.T * (q_x @ q_w.T)


def vector_wise_variant(per_x=1, per_w=1, n=127, scale_x=1, scale_w=1,
                        whole=(np.rint, np.rint), size=np.abs, kind=float):
    """Make `vector_wise` with a mistake.

    per_x, per_w: the axis of each scale. scale_x, scale_w: the power of each scale in the result.
    whole: how inputs and weights are rounded.
    """
    def wrong(X, W):
        s_x, s_w = scale_of(X, per_x, n, size), scale_of(W, per_w, n, size)
        of_x, of_w = whole
        q_x, q_w = of_x(X / s_x).astype(kind), of_w(W / s_w).astype(kind)
        return q_x @ q_w.T * s_x ** scale_x * s_w.T ** scale_w
    return wrong


def decoded_first(per_x, per_w):
    """Decode the codes before the product, so that a scale of any axis fits."""
    def wrong(X, W):
        s_x, s_w = scale_of(X, per_x), scale_of(W, per_w)
        return (np.rint(X / s_x) * s_x) @ (np.rint(W / s_w) * s_w).T
    return wrong


def column_scales_left_out(X, W):
    s_w = scale_of(W)
    return np.rint(X / scale_of(X, axis=0)) @ np.rint(W / s_w).T * s_w.T


def scaled_columns(rng, rows, low, high):
    """Draw a matrix of 12 columns, with a number of rows in the range `rows`."""
    A = rng.normal(0, 1, (int(rng.integers(*rows)), 12))
    return A * rng.uniform(low, high, (1, 12))


def vector_wise_case(rng):
    return scaled_columns(rng, (4, 7), 0.2, 5), scaled_columns(rng, (8, 11), 0.5, 2)


def exact_case(rng):
    X, W = np.full((3, 5), 127.0), np.full((2, 5), 127.0)
    X[:, 1:] = np.rint(rng.uniform(-90, 90, (3, 4)))
    W[:, 1:] = np.rint(rng.uniform(-90, 90, (2, 4)))
    return X, W


# -- LLM.int8() ------------------------------------------------------------------------------------
def llm_int8(X, W, threshold=6.0):
    Q, s, O = inputs(X, threshold)
    low = s * scaled_matmul(Q, Uniform(8).quantize(W), X.dtype)
    return (X[:, O] @ W[:, O].T + low).astype(X.dtype), O


def scale_or_one(A, axis=1, n=127):
    s = scale_of(A, axis, n)
    return np.where(s == 0, 1, s)


def llm_int8_variant(size=lambda X: np.abs(X).max(0), reaches=np.greater_equal, zeroed=True,
                     rest_scale=True, added=True, whole_w=True, float_w=True, half=False,
                     fixed=None, whole=(np.rint, np.rint), n=127, kind=float, axis=1):
    """Make `llm_int8` with a mistake.

    size: the size of each column. zeroed: are the outliers taken out? rest_scale: does s_x leave
    them out? added: is the float part added? whole_w: does s_w have the outlier columns? float_w:
    are W's own numbers used there? half: is the float part in float16? fixed: a threshold.
    """
    def wrong(X, W, threshold=6.0):
        O = np.flatnonzero(reaches(size(X), fixed or threshold))
        rest = X.copy()
        if zeroed:
            rest[:, O] = 0
        s_x = scale_or_one(rest if rest_scale else X, axis, n)
        s_w = scale_of(W if whole_w else others(W, O), axis, n)
        of_x, of_w = whole
        q_x, q_w = of_x(rest / s_x).astype(kind), of_w(W / s_w).astype(kind)
        Y = s_x * s_w.T * (q_x @ q_w.T)
        L, R = X[:, O], (W if float_w else q_w * s_w)[:, O]
        if half:
            L, R = L.astype(np.float16), R.astype(np.float16)
        return Y + (L @ R.T if added else 0), O
    return wrong


def llm_int8_by_entry(X, W, threshold=6.0):
    """Take out single entries, not columns."""
    large = np.abs(X) >= threshold
    rest = np.where(large, 0, X)
    s_x, s_w = scale_or_one(rest), scale_of(W)
    low = s_x * s_w.T * (np.rint(rest / s_x) @ np.rint(W / s_w).T)
    return np.where(large, X, 0) @ W.T + low, np.flatnonzero(large.any(0))


def llm_int8_case(rng):
    X, _ = with_outliers(rng, d=12)
    return X, scaled_columns(rng, (8, 11), 0.3, 3), 6.0


def two_tokens(first, second=(1, 2, 0.5), threshold=6.0):
    return lambda rng: (np.array([first, second]), rng.normal(0, 1, (2, 3)), threshold)


def no_outliers(rng):
    X = rng.uniform(-2, 2, (3, 5))
    return X, rng.normal(0, 1, (4, 5)), 6.0


def indices(which):
    """Make a symptom of O, if it holds integers."""
    def symptom(got, expected, args):
        whole = all(np.asarray(a).dtype.kind in "iu" for a in (got, expected))
        return whole and which(got, expected, args)
    return symptom


def all_columns(got, expected, args):
    return sorted([*got, *expected]) == list(range(args[0].shape[1]))


# -- smoothing -------------------------------------------------------------------------------------
def smooth(gamma, beta, weights, max_abs, alpha=0.5):
    norm = LayerNorm(len(gamma))
    norm.weight.data, norm.bias.data = gamma, beta
    layers = [Linear(W.shape[1], W.shape[0], bias=False, rng=0) for W in weights]
    for layer, W in zip(layers, weights, strict=True):
        layer.weight.data = W
    fold_scale(norm, layers, smoothing_factors(max_abs, weights, alpha))
    return norm.weight.data, norm.bias.data, [layer.weight.data for layer in layers]


def largest_of_columns(W):
    return np.abs(W).max(0)


def factors(m, largest, alpha):
    return m**alpha / largest**(1 - alpha)


def smooth_by(s=factors, over=np.max, largest=largest_of_columns, of_gamma=np.divide,
              of_beta=np.divide, of_W=np.multiply):
    """Make `smooth` with a mistake in s, in max|W_j|, or in what becomes of γ, β or the weights."""
    def wrong(gamma, beta, weights, max_abs, alpha=0.5):
        factor = s(max_abs, over([largest(W) for W in weights], axis=0), alpha)
        new_weights = [of_W(W, factor) for W in weights]
        return of_gamma(gamma, factor), of_beta(beta, factor), new_weights
    return wrong


def untouched(a, factor):
    return a


def of_first(each, axis):
    return each[0]


def of_last(each, axis):
    return each[-1]


def smooth_each(of_norm):
    """Give each layer an s of its own; of_norm chooses the one that divides γ and β."""
    def wrong(gamma, beta, weights, max_abs, alpha=0.5):
        each = [factors(max_abs, largest_of_columns(W), alpha) for W in weights]
        s, new_weights = of_norm(each, axis=0), list(map(np.multiply, weights, each))
        return gamma / s, beta / s, new_weights
    return wrong


def smooth_case(rng):
    d = int(rng.integers(5, 9))
    weights = []
    for _ in range(3):
        W = rng.normal(0, 0.3, (int(rng.integers(3, 7)), d))
        weights.append(W * rng.uniform(0.5, 2))
    gamma, beta = rng.uniform(0.5, 2, d), rng.normal(0, 1, d)
    max_abs = rng.uniform(1, 4, d) * 10.0**rng.integers(0, 2, d)
    return gamma, beta, weights, max_abs, [0.25, 0.4, 0.7][rng.integers(3)]


def move_everything(rng):
    return *smooth_case(rng)[:4], 1.0


def _unchanged(fn, rng):
    gamma, beta, weights, max_abs, alpha = smooth_case(rng)
    x = rng.normal(0, 1, (4, len(gamma)))
    new_gamma, new_beta, new_weights = fn(gamma, beta, weights, max_abs, alpha)
    old, new = gamma * x + beta, new_gamma * x + new_beta
    return all(np.allclose(old @ W.T, new @ V.T)
               for W, V in zip(weights, new_weights, strict=True))


# -- zero points -----------------------------------------------------------------------------------
def zero_point(product, z, q_w):
    return product - z[:, None] * q_w.sum(1, dtype=np.int64)


def first_code(product, z, q_w):
    return product - z[:, None] * q_w[:, 0].astype(int)


def one_token(rng):
    return np.array([[39]]), np.array([1]), np.int8([[5, 6]])


def products(rng):
    n, d_out = int(rng.integers(2, 5)), int(rng.integers(5, 8))
    K = int(rng.integers(8, 20))
    q_x = rng.integers(0, 256, (n, K))
    q_w = rng.integers(-127, 128, (d_out, K)).astype(np.int8)
    return q_x @ q_w.T.astype(np.int64), rng.integers(1, 200, n), q_w


EXERCISES = (
    Exercise(
        name="outliers.bug", title="Find the bug: the product of the codes", stars=2,
        kind="fault",
        reference=bug, cases=integer_codes, normalize=as_floats,
        special=(
            ("one token and one output: 2 · 3 + 4 · 5 = 26",
             lambda rng: (np.int8([[2, 4]]), np.int8([[3, 5]]))),
            ("three products of 127 and 127 are 48,387", full(3, 1))),
        extremes=(
            ("the largest sum of 2,001 products is 32,274,129, an odd number", full(2001, 2)),),
        mistakes=(
            ("a product of int8 arrays is int8, from −128 to 127, and wraps beyond; turn the "
             "codes into a wider type first",
             in_type(np.int8)),
            ("int16 ends at 32,767, and three products of 127 · 127 exceed that; take int32",
             in_type(np.int16)),
            ("the sums must not be clipped to 127: the codes are int8, their sums need more bits",
             in_type(np.int64, lambda product: np.clip(product, -127, 127))),
            *several("unsigned integers have no negative numbers; take int32",
                     in_type(np.uint8), in_type(np.uint16), in_type(np.uint32)),
            ("reshape keeps the order of the numbers, so rows do not become "
             "columns; q_w.T does that",
             reshaped)),
        symptoms=(
            ("float32 holds every integer up to 2²⁴ only, and long sums exceed "
             "that; take int32 or float64",
             off_by_float32),
            ("float16 holds every integer up to 2,048 only; take int32", off_by_float16)),
        tolerance=0,
        hints=("How large can one product of two codes be, and a sum of 2,001 of them?",
               "q_x is (n, K), q_w is (d_out, K), the result (n, d_out). What is the largest "
               "number that its type holds?",
               "q_x.astype(np.int32) @ q_w.astype(np.int32).T. It is too late to "
               "turn the product into int32.")),
    Exercise(
        name="outliers.drown", title="An outlier that leaves nothing", stars=2,
        kind="design",
        reference=drown, cases=a_token,
        goal=("all codes of x are 0 beside the new entry, and it is at most 0.5 % larger than it "
              "has to be", all_drowned),
        special=(
            ("entries of 1 and −1", of_one_size),
            ("the largest magnitude is that of a negative entry", largest_is_negative)),
        mistakes=(
            ("an entry of 127 m′ leaves the codes −1, 0 and 1", drown_variant(127.0)),
            ("entries may be negative: take the largest magnitude |x|, not the largest x",
             drown_variant(of=np.max)),
            ("all codes must be 0, so the largest |x| counts, not the mean",
             drown_variant(of=lambda x: np.abs(x).mean())),
            ("all codes must be 0, so the largest |x| counts, not the smallest",
             drown_variant(of=lambda x: np.abs(x).min())),
            ("a code is 0 below one half: you asked for less than a quarter", drown_variant(508.0)),
            ("return the number m, not its scale m/127", drown_variant(2.0)),
            ("6 is LLM.int8()'s threshold; here the token decides", lambda x: 6.0)),
        symptoms=(
            ("so small an outlier leaves some codes", some_left),
            ("this is larger than it has to be", far_above)),
        hints=("Below which number is a number rounded to 0?",
               "x is (d,), and m one number. The codes are round(127 x/m).",
               "127 m′/m = ½, where m′ is the largest |x|.")),
    Exercise(
        name="outliers.vector_wise", title="Vector-wise quantization", stars=2,
        kind="formula",
        avoids=("int8_inputs", "scaled_matmul"),
        reference=vector_wise,
        cases=vector_wise_case,
        special=(
            ("integers with a 127 in every row are exact", exact_case),
            ("three products of 127 and 127 are 48,387",
             lambda rng: (np.full((1, 3), 127.0), np.full((2, 3), 127.0)))),
        mistakes=(
            ("X has one scale for everything; it should have one per row, with keepdims=True",
             vector_wise_variant(per_x=None)),
            ("W has one scale for everything; it should have one per row",
             vector_wise_variant(per_w=None)),
            ("a product of int8 arrays is int8 again and wraps beyond 127: keep the "
             "codes in floats, or in int32",
             vector_wise_in_int8),
            ("both arrays have one scale for everything; each row should have its own, "
             "with max(1, keepdims=True)",
             vector_wise_variant(per_x=None, per_w=None)),
            *several("a scale belongs to a row here, and you took one per column, a feature; "
                     "take the maximum over axis 1",
                     decoded_first(0, 0),
                     decoded_first(0, 1),
                     decoded_first(1, 0)),
            *several("the largest code is 127",
                     vector_wise_variant(n=128), vector_wise_variant(n=255)),
            *several("a cast to integers cuts off; round first, np.rint(X / s_x)",
                     *(vector_wise_variant(whole=whole) for whole in CUT)),
            *several("you rounded down; np.rint rounds to the nearest integer",
                     *(vector_wise_variant(whole=whole) for whole in DOWN)),
            *several("only one of the two arrays is rounded; both have codes",
                     *(vector_wise_variant(whole=whole) for whole in ONE_ONLY)),
            ("nothing is rounded: this is the exact product X Wᵀ", lambda X, W: X @ W.T),
            ("int16 ends at 32,767, and sums of products of codes exceed that: take int32, or "
             "keep the codes in floats",
             vector_wise_variant(kind=np.int16)),
            ("a scale comes from the largest magnitude of its row, max|x|, "
             "not from the largest number",
             vector_wise_variant(size=itself)),
            ("the product of the codes is multiplied by both scales; you divided by them",
             vector_wise_variant(scale_x=-1, scale_w=-1)),
            ("the result is not multiplied by s_x", vector_wise_variant(scale_x=0)),
            ("the result is not multiplied by s_w", vector_wise_variant(scale_w=0)),
            ("the scales are missing: this is the product of the codes; multiply it by s_x and s_w",
             vector_wise_variant(scale_x=0, scale_w=0)),
            ("s_x belongs to a row, a token, and you took one per column and "
             "left it out of the product",
             column_scales_left_out)),
        errors=(
            ("broadcast",
             "the scales do not fit the result (n, d_out): there is one for each row of X, "
             "(n, 1), and one for each row of W, (1, d_out). A scale per column, a "
             "feature, sits inside the sum"),),
        tolerance=1e-6,
        hints=("Along which axis of the result does the scale of a row of X run, and along which "
               "the scale of a row of W?",
               "s_x is (n, 1). s_w is (d_out, 1), so s_w.T is (1, d_out). The product of "
               "the codes is (n, d_out).",
               "s_x = np.abs(X).max(1, keepdims=True) / 127, and s_w likewise. With q_x = "
               "np.rint(X / s_x) and q_w = np.rint(W / s_w) it is s_x * s_w.T * (q_x @ q_w.T). "
               "Leave the codes in floats: a product of two int8 arrays wraps.")),
    Exercise(
        name="outliers.llm_int8", title="LLM.int8()'s decomposition", stars=2,
        kind="design",
        reference=llm_int8,
        cases=llm_int8_case,
        special=(
            ("a token that has only an outlier", two_tokens((0.0, 8, 0))),
            ("an outlier that is negative", two_tokens((0.3, -8, 0.1))),
            ("an entry exactly at the threshold is an outlier", two_tokens((0.3, -6, 0.1))),
            ("no outliers", no_outliers),
            ("all columns are outlier columns", two_tokens((7.0, -8, 6), (9, 0.5, 1))),
            ("another threshold: 3", two_tokens((0.3, -4, 0.1), threshold=3.0))),
        mistakes=(
            ("the outlier columns are still in the integers: set them to 0 in a copy of X",
             llm_int8_variant(zeroed=False)),
            ("s_x must be taken over the ordinary entries alone: that is the "
             "point of the decomposition",
             llm_int8_variant(rest_scale=False)),
            ("the product of the outlier columns is not added", llm_int8_variant(added=False)),
            ("s_w must be taken over the whole row: W is quantized before any input is seen",
             llm_int8_variant(whole_w=False)),
            ("outliers may be negative: compare |X| with the threshold",
             llm_int8_variant(size=lambda X: X.max(0))),
            ("the outlier columns are multiplied in the type of X here, not in float16",
             llm_int8_variant(half=True)),
            ("an entry equal to the threshold is an outlier too: |X| ≥ threshold",
             llm_int8_variant(reaches=np.greater)),
            ("you compared a column's mean; a column is an outlier if any "
             "entry reaches the threshold",
             llm_int8_variant(size=lambda X: np.abs(X).mean(0))),
            ("you compared a column's sum; a column is an outlier if any "
             "entry reaches the threshold",
             llm_int8_variant(size=lambda X: np.abs(X).sum(0))),
            ("you compared a column's smallest entry; a column is an outlier if any "
             "entry reaches the threshold",
             llm_int8_variant(size=lambda X: np.abs(X).min(0))),
            ("no column was taken out: O has those of X in which any |x| reaches the threshold",
             llm_int8_variant(fixed=np.inf)),
            *several("a cast to integers cuts off; round first, np.rint(rest / s_x)",
                     *(llm_int8_variant(whole=whole) for whole in CUT)),
            *several("you rounded down; np.rint rounds to the nearest integer",
                     *(llm_int8_variant(whole=whole) for whole in DOWN)),
            *several("only one of the two arrays is rounded; both have codes",
                     *(llm_int8_variant(whole=whole) for whole in ONE_ONLY)),
            ("nothing is rounded: this is the exact product X Wᵀ",
             llm_int8_variant(whole=(itself, itself))),
            ("a product of int8 arrays is int8 again and wraps beyond 127: keep the "
             "codes in floats, or in int32",
             llm_int8_variant(kind=np.int8)),
            ("int16 ends at 32,767, and sums of products of codes exceed that: take int32, or "
             "keep the codes in floats",
             llm_int8_variant(kind=np.int16)),
            ("the largest code is 127", llm_int8_variant(n=128)),
            ("each row of X and of W has its own scale; you took one for everything",
             llm_int8_variant(axis=None)),
            ("use W's own numbers in the outlier columns, not its decoded codes",
             llm_int8_variant(float_w=False)),
            ("the threshold is an argument, and you took a fixed 6", llm_int8_variant(fixed=6.0)),
            ("outliers are whole columns; you took single entries out", llm_int8_by_entry)),
        symptoms=(
            ("O holds the indices of the outlier columns, and this is a mask of True and "
             "False: np.flatnonzero(mask)",
             lambda got, expected, args: np.asarray(got).dtype == bool),
            ("np.where and np.nonzero return a tuple with an array for each axis; "
             "np.flatnonzero returns the indices",
             indices(lambda got, expected, args: got.shape == (1, expected.size))),
            ("O names each column once, also if several of its entries reach "
             "the threshold: np.unique",
             indices(lambda got, expected, args: len(got) > len(np.unique(got)))),
            ("these are the ordinary columns; O holds those that reach the threshold",
             indices(all_columns)),
            ("the columns are counted from 0",
             indices(lambda got, expected, args: np.array_equal(got, expected + 1))),
            ("the outlier columns are ascending",
             indices(lambda got, expected, args: np.array_equal(np.sort(got), expected)))),
        errors=(
            ("zero-size",
             "an array has no entries left: all columns may be outlier columns; set them to 0 in "
             "a copy of X, and keep the shape"),),
        tolerance=1e-6,
        hints=("Which entries of a token decide its scale, once the outlier columns are taken out?",
               "O holds indices of columns. X[:, O] is (n, len(O)), W[:, O] is (d_out, "
               "len(O)), Y is (n, d_out).",
               "O = np.flatnonzero(np.abs(X).max(0) >= threshold). Copy X and set the columns O "
               "to 0; quantize that as in the exercise before, with s_x = 1 where a row has "
               "only zeros and s_w over whole rows of W. Add X[:, O] @ W[:, O].T.")),
    Exercise(
        name="outliers.smooth", title="Smoothing a layer", stars=3,
        kind="design",
        reference=smooth, cases=smooth_case,
        special=(
            ("α = 1 moves everything: s is max|X|", move_everything),),
        invariants=(
            ("the layers compute the same function: (γ x + β) Wᵀ is unchanged", _unchanged),),
        mistakes=(
            ("α belongs to the inputs and 1 − α to the weights; they are exchanged",
             smooth_by(lambda m, largest, alpha: factors(m, largest, 1 - alpha))),
            ("max|W_j| must be taken over all layers that read the norm, not only the first",
             smooth_by(over=of_first)),
            ("β is part of the norm's output: divide it too", smooth_by(of_beta=untouched)),
            ("this is the wrong way round: divide γ by s and multiply W by s",
             smooth_by(lambda m, largest, alpha: 1 / factors(m, largest, alpha))),
            ("the weights must be multiplied by s, or the function changes",
             smooth_by(of_W=untouched)),
            ("γ and W are both divided by s; multiply W by s, or the function changes",
             smooth_by(of_W=np.divide)),
            ("max|W_j| is the maximum over all layers, and you took the mean of theirs",
             smooth_by(over=np.mean)),
            ("max|W_j| is the maximum over all layers, and you took the sum of theirs",
             smooth_by(over=np.sum)),
            ("max|W_j| is the maximum over all layers, and you took the smallest of theirs",
             smooth_by(over=np.min)),
            ("max|W_j| must be taken over all layers that read the norm, not only the last",
             smooth_by(over=of_last)),
            ("max|W_j| is the largest magnitude, of np.abs(W), not the largest number",
             smooth_by(largest=lambda W: W.max(0))),
            ("max|W_j| is the largest magnitude of column j, not the mean one",
             smooth_by(largest=lambda W: np.abs(W).mean(0))),
            ("each column j has its own max|W_j|: the maximum of np.abs(W) over axis 0",
             smooth_by(largest=lambda W: np.abs(W).max())),
            ("max|X_j|**α is divided by max|W_j|**(1 − α), not multiplied",
             smooth_by(lambda m, largest, alpha: m**alpha * largest**(1 - alpha))),
            ("max|X_j| has the exponent α and max|W_j| has 1 − α; yours have the same",
             smooth_by(lambda m, largest, alpha: (m / largest)**alpha)),
            ("max|W_j| is missing in s", smooth_by(lambda m, largest, alpha: m**alpha)),
            ("s is max|X_j| alone, which moves everything, whatever alpha is",
             smooth_by(lambda m, largest, alpha: m)),
            ("max|X_j| is missing in s",
             smooth_by(lambda m, largest, alpha: 1 / largest**(1 - alpha))),
            ("alpha is an argument, and you took ½",
             smooth_by(lambda m, largest, alpha: (m / largest)**0.5)),
            ("β is part of the norm's output, which is divided by s; you multiplied β by it",
             smooth_by(of_beta=np.multiply)),
            ("γ is divided by s; you multiplied it", smooth_by(of_gamma=np.multiply)),
            *several("all layers that read the norm share one s; you gave each layer its own",
                     smooth_each(of_first),
                     smooth_each(of_last),
                     smooth_each(np.max),
                     smooth_each(np.mean))),
        tolerance=1e-6,
        hints=("If the output of the norm is divided by s, what must happen to the columns of W "
               "so that the layer computes the same?",
               "s, γ, β and max_abs are (d,). Column j of each W (d_out, d) belongs to input j. "
               "np.abs(W).max(0) is (d,).",
               "largest is the maximum over the layers of np.abs(W).max(0). s = max_abs**alpha "
               "/ largest**(1 - alpha). Divide γ and β by s, and multiply each W by s.")),
    Exercise(
        name="outliers.zero_point", title="Zero points after the product", stars=2,
        kind="design",
        reference=zero_point, cases=products, normalize=as_floats,
        special=(
            ("(3 − 1) · 5 + (4 − 1) · 6 = 28, from 3 · 5 + 4 · 6 = 39", one_token),),
        mistakes=(
            ("the sign: the sum of (q_x − z) q_w is the product minus z times the sum of q_w",
             lambda product, z, q_w: product + z[:, None] * q_w.sum(1)),
            ("z belongs to a token, a row of the product: z[:, None]. The sum of q_w "
             "belongs to an output, a column",
             lambda product, z, q_w: product - z.mean() * q_w.sum(1)),
            ("sum q_w over its columns, the features: one sum for each output",
             lambda product, z, q_w: product - z[:, None] * q_w.sum()),
            ("z is missing: multiply each token's z by the sum of q_w",
             lambda product, z, q_w: product - q_w.sum(1, dtype=np.int64)),
            ("the sum of q_w is an int8, which ends at 127: sum in a wider type",
             lambda product, z, q_w: product - z[:, None] * q_w.sum(1, dtype=np.int8)),
            ("sum the codes q_w of an output; you took their mean",
             lambda product, z, q_w: product - z[:, None] * q_w.mean(1)),
            ("q_w is missing: each z was multiplied by a code of W",
             lambda product, z, q_w: product - z[:, None] * q_w.shape[1]),
            ("the sum over the features is missing: this takes one code of W alone", first_code),
            ("you subtracted z alone: each code q_w is multiplied by z, so subtract z times their "
             "sum",
             lambda product, z, q_w: product - z[:, None]),
            ("z is the zero point of the inputs alone; W has none",
             lambda product, z, q_w: zero_point(product, z, q_w - z.mean()))),
        tolerance=0,
        hints=("Multiply out (q_x − z) q_w under the sum. Which of the two "
               "sums do you have already?",
               "product is (n, d_out), z is (n,), q_w is (d_out, K). The sums of the "
               "rows of q_w are (d_out,).",
               "product - z[:, None] * q_w.sum(1).")),
)
