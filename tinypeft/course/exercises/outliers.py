"""Lesson 11: the cost of outliers, LLM.int8()'s decomposition, and SmoothQuant's smoothing."""
import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


def as_floats(product):
    return np.asarray(product, np.float64)


def scale_of(A, axis):
    return np.abs(A).max(axis, keepdims=True) / 127


# -- outliers.drown --------------------------------------------------------------------------------
def drown(x):
    most = float(np.abs(x).max())
    if slip("entries may be negative: take the largest magnitude |x|, not the largest x"):
        most = float(x.max())
    if slip("all codes must be 0, so the largest |x| counts, not the mean"):
        most = float(np.abs(x).mean())
    if slip("all codes must be 0, so the largest |x| counts, not the smallest"):
        most = float(np.abs(x).min())
    if slip("an entry of 127 m′ leaves the codes −1, 0 and 1"): return 127 * most
    if slip("a code is 0 below one half: you asked for less than a quarter"): return 4 * 127 * most
    if slip("return the number m, not its scale m/127"): return 2 * most
    if slip("6 is LLM.int8()'s threshold; here the token decides"): return 6.0
    return 2 * 127 * most


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


def with_outliers(rng, d=None):
    """Draw (X, O): inputs with two columns some 20 times larger."""
    n, d = int(rng.integers(4, 8)), d or int(rng.integers(9, 14))
    X = rng.normal(0, 1, (n, d))
    O = np.sort(rng.choice(d, 2, replace=False))
    X[:, O] *= rng.uniform(10, 30)
    return X, O


# -- outliers.bug ----------------------------------------------------------------------------------
def bug(q_x, q_w):
    x, w = q_x.astype(np.int32), q_w.astype(np.int32)
    if slip("a product of int8 arrays is int8, from −128 to 127, and wraps beyond; turn the "
            "codes into a wider type first"):
        x, w = q_x, q_w
    if slip("int16 ends at 32,767, and three products of 127 · 127 exceed that; take int32"):
        x, w = q_x.astype(np.int16), q_w.astype(np.int16)
    match which("unsigned integers have no negative numbers; take int32", 3):
        case 1: x, w = q_x.astype(np.uint8), q_w.astype(np.uint8)
        case 2: x, w = q_x.astype(np.uint16), q_w.astype(np.uint16)
        case 3: x, w = q_x.astype(np.uint32), q_w.astype(np.uint32)
    if slip("reshape keeps the order of the numbers, so rows do not become "
            "columns; q_w.T does that"):
        return x @ w.reshape(w.shape[::-1])
    if slip("the sums must not be clipped to 127: the codes are int8, their sums need more bits"):
        return np.clip(x @ w.T, -127, 127)
    return x @ w.T


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


# -- outliers.vector_wise --------------------------------------------------------------------------
def vector_wise(X, W):
    s_x = np.abs(X).max(1, keepdims=True) / 127
    s_w = np.abs(W).max(1, keepdims=True) / 127
    if slip("X has one scale for everything; it should have one per row, with keepdims=True"):
        s_x = scale_of(X, None)
    if slip("W has one scale for everything; it should have one per row"): s_w = scale_of(W, None)
    if slip("both arrays have one scale for everything; each row should have its own, "
            "with max(1, keepdims=True)"):
        s_x, s_w = scale_of(X, None), scale_of(W, None)
    match which("the largest code is 127", 2):
        case 1: s_x, s_w = s_x * 127 / 128, s_w * 127 / 128
        case 2: s_x, s_w = s_x * 127 / 255, s_w * 127 / 255
    if slip("a scale comes from the largest magnitude of its row, max|x|, "
            "not from the largest number"):
        s_x, s_w = X.max(1, keepdims=True) / 127, W.max(1, keepdims=True) / 127
    columns = which("a scale belongs to a row here, and you took one per column, a feature; "
                    "take the maximum over axis 1", 3)
    match columns:
        case 1: s_x, s_w = scale_of(X, 0), scale_of(W, 0)
        case 2: s_x = scale_of(X, 0)
        case 3: s_w = scale_of(W, 0)
    left_out = slip("s_x belongs to a row, a token, and you took one per column and "
                    "left it out of the product")
    if left_out: s_x = scale_of(X, 0)
    u_x, u_w = X / s_x, W / s_w
    q_x, q_w = np.rint(u_x), np.rint(u_w)
    match which("a cast to integers cuts off; round first, np.rint(X / s_x)", 3):
        case 1: q_x, q_w = np.trunc(u_x), np.trunc(u_w)
        case 2: q_x = np.trunc(u_x)
        case 3: q_w = np.trunc(u_w)
    match which("you rounded down; np.rint rounds to the nearest integer", 3):
        case 1: q_x, q_w = np.floor(u_x), np.floor(u_w)
        case 2: q_x = np.floor(u_x)
        case 3: q_w = np.floor(u_w)
    match which("only one of the two arrays is rounded; both have codes", 2):
        case 1: q_w = u_w
        case 2: q_x = u_x
    if slip("nothing is rounded: this is the exact product X Wᵀ"): q_x, q_w = u_x, u_w
    if slip("a product of int8 arrays is int8 again and wraps beyond 127: keep the "
            "codes in floats, or in int32"):
        q_x, q_w = q_x.astype(np.int8), q_w.astype(np.int8)
    if slip("int16 ends at 32,767, and sums of products of codes exceed that: take int32, or "
            "keep the codes in floats"):
        q_x, q_w = q_x.astype(np.int16), q_w.astype(np.int16)
    if columns: return (q_x * s_x) @ (q_w * s_w).T
    product = q_x @ q_w.T
    if left_out or slip("the result is not multiplied by s_x"): return product * s_w.T
    if slip("the result is not multiplied by s_w"): return s_x * product
    if slip("the scales are missing: this is the product of the codes; multiply it by s_x and s_w"):
        return product
    if slip("the product of the codes is multiplied by both scales; you divided by them"):
        return product / s_x / s_w.T
    return s_x * s_w.T * product


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


# -- outliers.llm_int8 -----------------------------------------------------------------------------
def llm_int8(X, W, threshold=6.0):
    size = np.abs(X).max(0)
    if slip("outliers may be negative: compare |X| with the threshold"): size = X.max(0)
    if slip("you compared a column's mean; a column is an outlier if any "
            "entry reaches the threshold"):
        size = np.abs(X).mean(0)
    if slip("you compared a column's sum; a column is an outlier if any "
            "entry reaches the threshold"):
        size = np.abs(X).sum(0)
    if slip("you compared a column's smallest entry; a column is an outlier if any "
            "entry reaches the threshold"):
        size = np.abs(X).min(0)
    if slip("no column was taken out: O has those of X in which any |x| reaches the threshold"):
        threshold = np.inf
    if slip("the threshold is an argument, and you took a fixed 6"): threshold = 6.0
    O = np.flatnonzero(size >= threshold)
    if slip("an entry equal to the threshold is an outlier too: |X| ≥ threshold"):
        O = np.flatnonzero(size > threshold)
    rest = X.copy()
    if not slip("the outlier columns are still in the integers: set them to 0 in a copy of X"):
        rest[:, O] = 0
    entries = slip("outliers are whole columns; you took single entries out")
    if entries: rest = np.where(np.abs(X) >= threshold, 0, X)
    s_x = np.abs(rest).max(1, keepdims=True) / 127
    s_w = np.abs(W).max(1, keepdims=True) / 127
    if slip("s_x must be taken over the ordinary entries alone: that is the "
            "point of the decomposition"):
        s_x = scale_of(X, 1)
    if slip("s_w must be taken over the whole row: W is quantized before any input is seen"):
        s_w = scale_of(np.delete(W, O, axis=1), 1)
    if slip("the largest code is 127"): s_x, s_w = s_x * 127 / 128, s_w * 127 / 128
    if slip("each row of X and of W has its own scale; you took one for everything"):
        s_x, s_w = scale_of(rest, None), scale_of(W, None)
    s_x[s_x == 0] = 1
    u_x, u_w = rest / s_x, W / s_w
    q_x, q_w = np.rint(u_x), np.rint(u_w)
    match which("a cast to integers cuts off; round first, np.rint(rest / s_x)", 3):
        case 1: q_x, q_w = np.trunc(u_x), np.trunc(u_w)
        case 2: q_x = np.trunc(u_x)
        case 3: q_w = np.trunc(u_w)
    match which("you rounded down; np.rint rounds to the nearest integer", 3):
        case 1: q_x, q_w = np.floor(u_x), np.floor(u_w)
        case 2: q_x = np.floor(u_x)
        case 3: q_w = np.floor(u_w)
    match which("only one of the two arrays is rounded; both have codes", 2):
        case 1: q_w = u_w
        case 2: q_x = u_x
    if slip("nothing is rounded: this is the exact product X Wᵀ"): q_x, q_w = u_x, u_w
    if slip("a product of int8 arrays is int8 again and wraps beyond 127: keep the "
            "codes in floats, or in int32"):
        q_x, q_w = q_x.astype(np.int8), q_w.astype(np.int8)
    if slip("int16 ends at 32,767, and sums of products of codes exceed that: take int32, or "
            "keep the codes in floats"):
        q_x, q_w = q_x.astype(np.int16), q_w.astype(np.int16)
    low, high = s_x * s_w.T * (q_x @ q_w.T), X[:, O] @ W[:, O].T
    if slip("the product of the outlier columns is not added"): high = 0
    if slip("the outlier columns are multiplied in the type of X here, not in float16"):
        high = X[:, O].astype(np.float16) @ W[:, O].astype(np.float16).T
    if slip("use W's own numbers in the outlier columns, not its decoded codes"):
        high = X[:, O] @ (q_w * s_w)[:, O].T
    if entries: high = (X - rest) @ W.T
    return high + low, O


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


# -- outliers.smooth -------------------------------------------------------------------------------
def smooth(gamma, beta, weights, max_abs, alpha=0.5):
    each = [np.abs(W).max(0) for W in weights]
    if slip("max|W_j| is the largest magnitude, of np.abs(W), not the largest number"):
        each = [W.max(0) for W in weights]
    if slip("max|W_j| is the largest magnitude of column j, not the mean one"):
        each = [np.abs(W).mean(0) for W in weights]
    if slip("each column j has its own max|W_j|: the maximum of np.abs(W) over axis 0"):
        each = [np.abs(W).max() for W in weights]
    largest = np.max(each, axis=0)
    if slip("max|W_j| must be taken over all layers that read the norm, not only the first"):
        largest = each[0]
    if slip("max|W_j| must be taken over all layers that read the norm, not only the last"):
        largest = each[-1]
    if slip("max|W_j| is the maximum over all layers, and you took the mean of theirs"):
        largest = np.mean(each, axis=0)
    if slip("max|W_j| is the maximum over all layers, and you took the sum of theirs"):
        largest = np.sum(each, axis=0)
    if slip("max|W_j| is the maximum over all layers, and you took the smallest of theirs"):
        largest = np.min(each, axis=0)
    if slip("α belongs to the inputs and 1 − α to the weights; they are exchanged"):
        alpha = 1 - alpha
    s = max_abs**alpha / largest**(1 - alpha)
    if slip("this is the wrong way round: divide γ by s and multiply W by s"): s = 1 / s
    if slip("max|X_j|**α is divided by max|W_j|**(1 − α), not multiplied"):
        s = max_abs**alpha * largest**(1 - alpha)
    if slip("max|X_j| has the exponent α and max|W_j| has 1 − α; yours have the same"):
        s = (max_abs / largest)**alpha
    if slip("max|W_j| is missing in s"): s = max_abs**alpha
    if slip("s is max|X_j| alone, which moves everything, whatever alpha is"): s = max_abs
    if slip("max|X_j| is missing in s"): s = 1 / largest**(1 - alpha)
    if slip("alpha is an argument, and you took ½"): s = (max_abs / largest)**0.5
    smoothed = [W * s for W in weights]
    if slip("the weights must be multiplied by s, or the function changes"): smoothed = weights
    if slip("γ and W are both divided by s; multiply W by s, or the function changes"):
        smoothed = [W / s for W in weights]
    if slip("β is part of the norm's output: divide it too"): return gamma / s, beta, smoothed
    if slip("β is part of the norm's output, which is divided by s; you multiplied β by it"):
        return gamma / s, beta * s, smoothed
    if slip("γ is divided by s; you multiplied it"): return gamma * s, beta / s, smoothed
    own = which("all layers that read the norm share one s; you gave each layer its own", 4)
    if own:
        factors = np.array([max_abs**alpha / of_W**(1 - alpha) for of_W in each])
        smoothed = [W * s for W, s in zip(weights, factors, strict=True)]
    match own:
        case 1: s = factors[0]
        case 2: s = factors[-1]
        case 3: s = factors.max(0)
        case 4: s = factors.mean(0)
    return gamma / s, beta / s, smoothed


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


# -- outliers.zero_point ---------------------------------------------------------------------------
def zero_point(product, z, q_w):
    sums = q_w.sum(1)
    if slip("sum q_w over its columns, the features: one sum for each output"): sums = q_w.sum()
    if slip("the sum of q_w is an int8, which ends at 127: sum in a wider type"):
        sums = q_w.sum(1, dtype=np.int8)
    if slip("sum the codes q_w of an output; you took their mean"): sums = q_w.mean(1)
    if slip("q_w is missing: each z was multiplied by a code of W"): sums = q_w.shape[1]
    if slip("the sum over the features is missing: this takes one code of W alone"):
        sums = q_w[:, 0].astype(int)
    if slip("z is the zero point of the inputs alone; W has none"):
        sums = (q_w - z.mean()).sum(1, dtype=np.int64)
    if slip("the sign: the sum of (q_x − z) q_w is the product minus z times the sum of q_w"):
        return product + z[:, None] * sums
    if slip("z belongs to a token, a row of the product: z[:, None]. The sum of q_w "
            "belongs to an output, a column"):
        return product - z.mean() * sums
    if slip("z is missing: multiply each token's z by the sum of q_w"): return product - sums
    if slip("you subtracted z alone: each code q_w is multiplied by z, so subtract z times their "
            "sum"):
        return product - z[:, None]
    return product - z[:, None] * sums


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
        mistakes=slips(bug),
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
        mistakes=slips(drown),
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
        mistakes=slips(vector_wise),
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
        mistakes=slips(llm_int8),
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
        mistakes=slips(smooth),
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
        mistakes=slips(zero_point),
        tolerance=0,
        hints=("Multiply out (q_x − z) q_w under the sum. Which of the two "
               "sums do you have already?",
               "product is (n, d_out), z is (n,), q_w is (d_out, K). The sums of the "
               "rows of q_w are (d_out,).",
               "product - z[:, None] * q_w.sum(1).")),
)
