"""Lesson 11: the cost of outliers, LLM.int8()'s decomposition, and SmoothQuant's smoothing."""
from functools import partial

import numpy as np

from ...engine.nn import LayerNorm, Linear
from ...quant.folding import fold_scale
from ...quant.int8 import int8_inputs, scaled_matmul
from ...quant.llm_int8 import inputs
from ...quant.smoothquant import smoothing_factors
from ...quant.uniform import Uniform
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- codes that are left ---------------------------------------------------------------------------
def codes_left(X, O):
    s = np.abs(X).max(1) / 127
    return 2 * np.rint(np.delete(np.abs(X), O, axis=1).max(1) / s).astype(int) + 1


def codes_left_variant(both=True, zero=True, axis=1, rest=partial(np.delete, axis=1), size=np.abs, n=127,
                       top=lambda X, O: np.abs(X).max(1), whole=np.rint, most=lambda m, axis: m.max(axis)):
    """codes_left with a mistake: one sign only, no code for 0, features instead of tokens, other columns, signed entries,
    another scale or largest code, another rounding, or something else than the largest entry."""
    def wrong(X, O):
        m = size(rest(X, O))
        largest = top(X, O) if axis else np.abs(X).max(0)[:m.shape[1]]
        return (2 if both else 1) * whole(n * most(m, axis) / largest).astype(int) + zero
    return wrong


def codes_left_late(whole):
    """2c + 1, where c is rounded last."""
    def wrong(X, O):
        rest, largest = np.delete(np.abs(X), O, axis=1).max(1), np.abs(X).max(1)
        return whole(2 * 127 * rest / largest + 1).astype(int)
    return wrong


def codes_in_use(X, O):
    """How many different codes occur, which is not what is asked."""
    q = np.rint(np.delete(X, O, axis=1) / (np.abs(X).max(1, keepdims=True) / 127))
    return np.array([len(np.unique(row)) for row in q])


def with_outliers(rng, n=None, d=None):
    """(X, O): inputs with two columns some 20 times larger."""
    n, d = n or int(rng.integers(4, 8)), d or int(rng.integers(9, 14))
    X, O = rng.normal(0, 1, (n, d)), np.sort(rng.choice(d, 2, replace=False))
    X[:, O] *= rng.uniform(10, 30)
    return X, O


# -- a product of integers -------------------------------------------------------------------------
def bug(q_x, q_w):
    return q_x.astype(np.int64) @ q_w.astype(np.int64).T


def in_type(kind, then=lambda product: product):
    """bug with a mistake: codes and their sums in another type."""
    def wrong(q_x, q_w):
        with np.errstate(over="ignore", invalid="ignore"):
            return then(q_x.astype(kind) @ q_w.astype(kind).T)
    return wrong


def integer_codes(rng, K=None):
    n, d_out, K = int(rng.integers(2, 5)), int(rng.integers(5, 8)), K or int(rng.integers(8, 40))
    return tuple(rng.integers(-127, 128, (rows, K)).astype(np.int8) for rows in (n, d_out))


# -- vector-wise -----------------------------------------------------------------------------------
def vector_wise(X, W):
    Q, s = int8_inputs(X, "token")
    return (s * scaled_matmul(Q, Uniform(8).quantize(W), X.dtype)).astype(X.dtype)


def vector_wise_in_int8(X, W):
    s_x, s_w = (np.abs(a).max(1, keepdims=True) / 127 for a in (X, W))
    return s_x * s_w.T * (np.rint(X / s_x).astype(np.int8) @ np.rint(W / s_w).astype(np.int8).T)


def itself(x): return x


CUT = (np.trunc, np.trunc), (np.trunc, np.rint), (np.rint, np.trunc)          # the inputs' and the weights' rounding
DOWN = (np.floor, np.floor), (np.floor, np.rint), (np.rint, np.floor)
ONE_ONLY = (np.rint, itself), (itself, np.rint)


def vector_wise_variant(per_x=1, per_w=1, n=127, scale_x=True, scale_w=True, decoded=False, whole=(np.rint, np.rint), size=np.abs,
                        kind=float, power=1):
    """vector_wise with a mistake: scales over everything or over tokens, 128 steps, a scale that is left out, from signed
    numbers or to another power, codes rounded otherwise or in another type. decoded: the codes are decoded first, so that a
    scale of any axis fits."""
    def wrong(X, W):
        s_x, s_w = size(X).max(per_x, keepdims=True) / n, size(W).max(per_w, keepdims=True) / n
        q_x, q_w = whole[0](X / s_x).astype(kind), whole[1](W / s_w).astype(kind)
        if decoded: return (q_x * s_x) @ (q_w * s_w).T
        return q_x @ q_w.T * (s_x ** power if scale_x else 1) * (s_w.T ** power if scale_w else 1)
    return wrong


# -- LLM.int8() ------------------------------------------------------------------------------------
def llm_int8(X, W, threshold=6.0):
    Q, s, O = inputs(X, threshold)
    return (X[:, O] @ W[:, O].T + s * scaled_matmul(Q, Uniform(8).quantize(W), X.dtype)).astype(X.dtype), O


def llm_int8_variant(over="column", zeroed=True, rest_scale=True, added=True, whole_w=True, strict=False, float_w=True,
                     half=False, fixed=None, whole=(np.rint, np.rint), n=127, kind=float, axis=1):
    """llm_int8 with a mistake, one of: O from means, sums or minima; outliers not taken out; s_x over everything; the float
    part left out; s_w without outlier columns; > instead of ≥; outlier columns of W from their codes; the float part in
    float16; a fixed threshold; codes rounded otherwise, to another number or in another type; one scale for everything."""
    def wrong(X, W, threshold=6.0):
        threshold = fixed or threshold
        A = {"column": np.abs(X).max, "mean": np.abs(X).mean, "signed": X.max, "sum": np.abs(X).sum,
             "all": np.abs(X).min}[over](0)
        O = np.flatnonzero(A > threshold if strict else A >= threshold)
        rest = X.copy()
        if zeroed: rest[:, O] = 0
        s_x = np.abs(rest if rest_scale else X).max(axis, keepdims=True) / n
        s_x = np.where(s_x == 0, 1, s_x)
        s_w = np.abs(W if whole_w else np.delete(W, O, 1)).max(axis, keepdims=True) / n
        q_x, q_w = whole[0](rest / s_x).astype(kind), whole[1](W / s_w).astype(kind)
        Y = s_x * s_w.T * (q_x @ q_w.T)
        L, R = X[:, O], (W if float_w else q_w * s_w)[:, O]
        if half: L, R = L.astype(np.float16), R.astype(np.float16)
        return Y + (L @ R.T if added else 0), O
    return wrong


def llm_int8_by_entry(X, W, threshold=6.0):
    """Single entries are taken out, not columns."""
    large = np.abs(X) >= threshold
    rest = np.where(large, 0, X)
    s_x = np.abs(rest).max(1, keepdims=True) / 127
    s_x = np.where(s_x == 0, 1, s_x)
    s_w = np.abs(W).max(1, keepdims=True) / 127
    return np.where(large, X, 0) @ W.T + s_x * s_w.T * (np.rint(rest / s_x) @ np.rint(W / s_w).T), np.flatnonzero(large.any(0))


def _indices(got, expected):
    return np.asarray(got).dtype.kind in "iu" and np.asarray(expected).dtype.kind in "iu"


# -- smoothing -------------------------------------------------------------------------------------
def smooth(gamma, beta, weights, max_abs, alpha=0.5):
    norm, layers = LayerNorm(len(gamma)), [Linear(W.shape[1], W.shape[0], bias=False, rng=0) for W in weights]
    norm.weight.data, norm.bias.data = gamma, beta
    for layer, W in zip(layers, weights, strict=True): layer.weight.data = W
    s = smoothing_factors(max_abs, weights, alpha)
    fold_scale(norm, layers, s)
    return norm.weight.data, norm.bias.data, [layer.weight.data for layer in layers]


def smooth_variant(a=lambda alpha: alpha, b=lambda alpha: 1 - alpha, shared=True, beta=True, inverse=False, move_w=True,
                   over=np.max, divide_w=False):
    """smooth with a mistake: α and 1 − α exchanged, s of the first layer, β forgotten, the wrong way round, weights left
    alone or divided, too, a mean over the layers."""
    def wrong(gamma, bet, weights, max_abs, alpha=0.5):
        largest = over([np.abs(W).max(0) for W in (weights if shared else weights[:1])], axis=0)
        s = max_abs**a(alpha) / largest**b(alpha)
        if inverse: s = 1 / s
        return gamma / s, bet / s if beta else bet, [W / s if divide_w else W * s if move_w else W for W in weights]
    return wrong


def smooth_by(s=lambda m, largest, alpha: m**alpha / largest**(1 - alpha), over=np.max, largest=lambda W: np.abs(W).max(0),
              of_gamma=np.divide, of_beta=np.divide):
    """smooth with a mistake in s, in max|W_j|, or in what becomes of γ or β."""
    def wrong(gamma, beta, weights, max_abs, alpha=0.5):
        factor = s(max_abs, over([largest(W) for W in weights], axis=0), alpha)
        return of_gamma(gamma, factor), of_beta(beta, factor), [W * factor for W in weights]
    return wrong


def smooth_each(of_norm):
    """Each layer has an s of its own; of_norm chooses the one that divides γ and β."""
    def wrong(gamma, beta, weights, max_abs, alpha=0.5):
        each = [max_abs**alpha / np.abs(W).max(0)**(1 - alpha) for W in weights]
        return gamma / of_norm(each), beta / of_norm(each), [W * s for W, s in zip(weights, each, strict=True)]
    return wrong


def smooth_case(rng):
    d = int(rng.integers(5, 9))
    weights = [rng.normal(0, 0.3, (int(rng.integers(3, 7)), d)) * rng.uniform(0.5, 2) for _ in range(3)]
    return (rng.uniform(0.5, 2, d), rng.normal(0, 1, d), weights, rng.uniform(1, 4, d) * 10.0**rng.integers(0, 2, d),
            [0.25, 0.4, 0.7][rng.integers(3)])


def _unchanged(fn, rng):
    gamma, beta, weights, max_abs, alpha = smooth_case(rng)
    x = rng.normal(0, 1, (4, len(gamma)))
    new_gamma, new_beta, new_weights = fn(gamma, beta, weights, max_abs, alpha)
    return all(np.allclose((gamma * x + beta) @ W.T, (new_gamma * x + new_beta) @ V.T) for W,
               V in zip(weights, new_weights, strict=True))


# -- zero points ------------------------------------------------------------------------------------
def zero_point(product, z, q_w):
    return product - z[:, None] * q_w.sum(1, dtype=np.int64)


def products(rng):
    n, d_out, K = int(rng.integers(2, 5)), int(rng.integers(5, 8)), int(rng.integers(8, 20))
    q_x, q_w = rng.integers(0, 256, (n, K)), rng.integers(-127, 128, (d_out, K)).astype(np.int8)
    return q_x @ q_w.T.astype(np.int64), rng.integers(1, 200, n), q_w


EXERCISES = (
    Exercise(
        name="outliers.bug", title="Find the bug: the product of the codes", stars=1,
        reference=bug, cases=integer_codes, normalize=lambda product: np.asarray(product, np.float64),
        special=(
            ("one token and one output: 2 · 3 + 4 · 5 = 26",
             lambda rng: (np.int8([[2, 4]]), np.int8([[3, 5]]))),
            ("three products of 127 and 127 are 48,387",
             lambda rng: (np.full((1, 3), 127, np.int8), np.full((1, 3), 127, np.int8))),
            ("the largest sum of 2,001 products is 32,274,129, an odd number",
             lambda rng: (np.full((1, 2001), 127, np.int8), np.full((2, 2001), 127, np.int8)))),
        mistakes=(
            ("a product of int8 arrays is int8, from −128 to 127, and wraps beyond; turn the "
             "codes into a wider type first",
             in_type(np.int8)),
            ("int16 ends at 32,767, and three products of 127 · 127 exceed that; take int32",
             in_type(np.int16)),
            ("the sums must not be clipped to 127: the codes are int8, their sums need more bits",
             in_type(np.int64, lambda product: np.clip(product, -127, 127))),
            *(("unsigned integers have no negative numbers; take int32", in_type(kind)) for kind in (np.uint8, np.uint16, np.uint32)),
            ("reshape keeps the order of the numbers, so rows do not become "
             "columns; q_w.T does that",
             lambda q_x, q_w: q_x.astype(np.int64) @ q_w.astype(np.int64).reshape(q_w.shape[::-1]))),
        symptoms=(
            ("float32 holds every integer up to 2²⁴ only, and long sums exceed "
             "that; take int32 or float64",
             lambda got, expected, arguments: np.allclose(got, expected, rtol=1e-5, atol=0)),
            ("float16 holds every integer up to 2,048 only; take int32",
             lambda got, expected, arguments: np.allclose(got, expected, rtol=1e-2, atol=0))),
        tolerance=0,
        hints=("How large can one product of two codes be, and a sum of 2,001 of them?",
               "q_x is (n, K), q_w is (d_out, K), the result (n, d_out). What is the largest "
               "number that its type holds?",
               "q_x.astype(np.int32) @ q_w.astype(np.int32).T. It is too late to "
               "turn the product into int32.")),
    Exercise(
        name="outliers.codes_left", title="The codes that outliers leave", stars=1,
        reference=codes_left, cases=with_outliers,
        special=(
            ("an outlier of 127 beside entries of at most 4: codes −4 … 4",
             lambda rng: (np.array([[1.0, -4, 127, 2]]), np.array([2]))),
            ("the largest entry of the token, −8, is not in the columns O: all 255 codes are left",
             lambda rng: (np.array([[1.0, -8, 4, 2]]), np.array([2])))),
        mistakes=(
            *(("entries may be negative: take the largest magnitude |x|, not the largest x",
               codes_left_variant(size=lambda A: A, top=top))
              for top in (lambda X, O: np.abs(X).max(1), lambda X, O: X.max(1))),
            ("entries may be negative: take the largest magnitude |x|, not the largest x",
             codes_left_variant(top=lambda X, O: X.max(1))),
            ("the scale belongs to the whole token, and its largest entry need "
             "not lie in the columns O",
             codes_left_variant(top=lambda X, O: np.abs(X[:, O]).max(1))),
            ("you rounded c down; the codes are rounded to nearest, so c = round(127·m′/m)",
             codes_left_variant(whole=np.floor)),
            ("these are the codes that occur; count all that can be reached, from −c to c",
             codes_in_use),
            ("this is c: the codes −c … c, with 0, are 2c + 1",
             codes_left_variant(both=False, zero=False)),
            ("codes have both signs: −c … c", codes_left_variant(both=False)),
            ("0 is a code too: 2c + 1", codes_left_variant(zero=False)),
            ("a token is a row of X: take the maxima over axis 1", codes_left_variant(axis=0)),
            ("these are the codes of the outliers; count those of the other columns",
             codes_left_variant(rest=lambda X, O: X[:, O])),
            ("you rounded c up; the codes are rounded to nearest, so c = round(127·m′/m)",
             codes_left_variant(whole=np.ceil)),
            *(("c is a whole number: round it, and then compute 2c + 1", codes_left_late(whole)) for whole in (np.rint, np.floor)),
            ("the largest code is 127", codes_left_variant(n=128)),
            ("each token has a scale of its own, from its own largest entry: np.abs(X).max(1)",
             codes_left_variant(top=lambda X, O: np.abs(X).max())),
            ("each token has its own largest entry outside O: the maximum over axis 1",
             codes_left_variant(most=lambda m, axis: np.full(len(m), m.max()))),
            ("the largest of the other entries is what counts, not their mean",
             codes_left_variant(most=lambda m, axis: m.mean(axis))),
            ("the columns O are to be left out", codes_left_variant(rest=lambda X, O: X))),
        tolerance=0,
        hints=("By which number is an entry divided before it is rounded? How "
               "many integers lie in −c … c?",
               "np.abs(X).max(1) is (n,): one maximum per token. The same maximum without "
               "the columns O is (n,), too.",
               "rest = np.delete(np.abs(X), O, axis=1).max(1); c = np.rint(127 * rest / "
               "np.abs(X).max(1)). Return 2 * c + 1 as integers.")),
    Exercise(
        name="outliers.vector_wise", title="Vector-wise quantization", stars=2,
        reference=vector_wise,
        cases=lambda rng: (rng.normal(0, 1, (int(rng.integers(4, 7)), 12)) * rng.uniform(0.2, 5, (1, 12)),
                           rng.normal(0, 1, (int(rng.integers(8, 11)), 12)) * rng.uniform(0.5, 2, (1, 12))),
        special=(
            ("integers with a 127 in every row are exact",
             lambda rng: (
np.hstack([np.full((3, 1), 127.0), np.rint(rng.uniform(-90, 90, (3, 4)))]),
np.hstack([np.full((2, 1), 127.0), np.rint(rng.uniform(-90, 90, (2, 4)))]))),),
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
            *(("a scale belongs to a row here, and you took one per column, a feature; take the maximum over axis 1",
               vector_wise_variant(per_x, per_w, decoded=True)) for per_x, per_w in ((0, 0), (0, 1), (1, 0))),
            *(("the largest code is 127", vector_wise_variant(n=n)) for n in (128, 255)),
            *(("a cast to integers cuts off; round first, np.rint(X / s_x)", vector_wise_variant(whole=whole)) for whole in CUT),
            *(("you rounded down; np.rint rounds to the nearest integer", vector_wise_variant(whole=whole)) for whole in DOWN),
            *(("only one of the two arrays is rounded; both have codes", vector_wise_variant(whole=whole)) for whole in ONE_ONLY),
            ("nothing is rounded: this is the exact product X Wᵀ", lambda X, W: X @ W.T),
            ("int16 ends at 32,767, and sums of products of codes exceed that: take int32, or "
             "keep the codes in floats",
             vector_wise_variant(kind=np.int16)),
            ("a scale comes from the largest magnitude of its row, max|x|, "
             "not from the largest number",
             vector_wise_variant(size=itself)),
            ("the product of the codes is multiplied by both scales; you divided by them",
             vector_wise_variant(power=-1)),
            ("the result is not multiplied by s_x", vector_wise_variant(scale_x=False)),
            ("the result is not multiplied by s_w", vector_wise_variant(scale_w=False)),
            ("the scales are missing: this is the product of the codes; multiply it by s_x and s_w",
             vector_wise_variant(scale_x=False, scale_w=False)),
            ("s_x belongs to a row, a token, and you took one per column and "
             "left it out of the product",
             vector_wise_variant(per_x=0, scale_x=False))),
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
        reference=llm_int8,
        cases=lambda rng: (with_outliers(rng, d=12)[0], rng.normal(0, 1,
                                                                   (int(rng.integers(8, 11)),
                                                                    12)) * rng.uniform(0.3, 3, (1, 12)), 6.0),
        special=(
            ("a token that has only an outlier",
             lambda rng: (np.array([[0.0, 8, 0], [1, 2, 0.5]]), rng.normal(0, 1, (2, 3)), 6.0)),
            ("an outlier that is negative",
             lambda rng: (np.array([[0.3, -8, 0.1], [1, 2, 0.5]]), rng.normal(0, 1, (2, 3)), 6.0)),
            ("an entry exactly at the threshold is an outlier",
             lambda rng: (np.array([[0.3, -6, 0.1], [1, 2, 0.5]]), rng.normal(0, 1, (2, 3)), 6.0)),
            ("no outliers",
             lambda rng: (rng.uniform(-2, 2, (3, 5)), rng.normal(0, 1, (4, 5)), 6.0)),
            ("all columns are outlier columns",
             lambda rng: (np.array([[7.0, -8, 6], [9, 0.5, 1]]), rng.normal(0, 1, (2, 3)), 6.0)),
            ("another threshold: 3",
             lambda rng: (np.array([[0.3, -4, 0.1], [1, 2, 0.5]]), rng.normal(0, 1, (2, 3)), 3.0))),
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
             llm_int8_variant(over="signed")),
            ("the outlier columns are multiplied in the type of X here, not in float16",
             llm_int8_variant(half=True)),
            ("an entry equal to the threshold is an outlier too: |X| ≥ threshold",
             llm_int8_variant(strict=True)),
            *((f"you compared a column's {word}; a column is an outlier if any entry reaches the threshold", llm_int8_variant(over=over))
              for word, over in (("mean", "mean"), ("sum", "sum"), ("smallest entry", "all"))),
            ("no column was taken out: O has those of X in which any |x| reaches the threshold",
             llm_int8_variant(fixed=np.inf)),
            *(("a cast to integers cuts off; round first, np.rint(rest / s_x)", llm_int8_variant(whole=whole)) for whole in CUT),
            *(("you rounded down; np.rint rounds to the nearest integer", llm_int8_variant(whole=whole)) for whole in DOWN),
            *(("only one of the two arrays is rounded; both have codes", llm_int8_variant(whole=whole)) for whole in ONE_ONLY),
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
             lambda got, expected, arguments: np.asarray(got).dtype == bool),
            ("np.where and np.nonzero return a tuple with an array for each axis; "
             "np.flatnonzero returns the indices",
             lambda got, expected, arguments: _indices(got, expected) and got.shape == (1, expected.size)),
            ("O names each column once, also if several of its entries reach "
             "the threshold: np.unique",
             lambda got, expected, arguments: _indices(got, expected) and len(got) > len(np.unique(got))),
            ("these are the ordinary columns; O holds those that reach the threshold",
             lambda got, expected, arguments:
_indices(got, expected) and sorted([*got, *expected]) == [*range(arguments[0].shape[1])]),
            ("the columns are counted from 0",
             lambda got, expected, arguments:
_indices(got, expected) and np.array_equal(got, expected + 1)),
            ("the outlier columns are ascending",
             lambda got, expected, arguments:
_indices(got, expected) and np.array_equal(np.sort(got), expected))),
        errors=(
            ("zero-size",
             "an array has no entries left: all columns may be outlier columns; set them to 0 in "
             "a copy of X, and keep the shape"),),
        tolerance=1e-6,
        hints=("Which entries of a token decide its scale, once the outlier columns are taken out?",
               "O holds indices of columns. X[:, O] is (n, len(O)), W[:, O] is (d_out, "
               "len(O)), Y is (n, d_out).",
               "O = np.flatnonzero(np.abs(X).max(0) >= threshold). Copy X and set the columns O "
               "to 0; quantize that as in the exercise before, with s_x = 1 where a row has only "
               "zeros and s_w over whole rows of W. Add X[:, O] @ W[:, O].T.")),
    Exercise(
        name="outliers.smooth", title="Smoothing a layer", stars=2,
        reference=smooth, cases=smooth_case,
        special=(
            ("α = 1 moves everything: s is max|X|", lambda rng: (*smooth_case(rng)[:4], 1.0)),),
        invariants=(
            ("the layers compute the same function: (γ x + β) Wᵀ is unchanged", _unchanged),),
        mistakes=(
            ("α belongs to the inputs and 1 − α to the weights; they are exchanged",
             smooth_variant(lambda a: 1 - a, lambda a: a)),
            ("max|W_j| must be taken over all layers that read the norm, not only the first",
             smooth_variant(shared=False)),
            ("β is part of the norm's output: divide it too", smooth_variant(beta=False)),
            ("this is the wrong way round: divide γ by s and multiply W by s",
             smooth_variant(inverse=True)),
            ("the weights must be multiplied by s, or the function changes",
             smooth_variant(move_w=False)),
            ("γ and W are both divided by s; multiply W by s, or the function changes",
             smooth_variant(divide_w=True)),
            *((f"max|W_j| is the maximum over all layers, and you took the {word} of theirs", smooth_by(over=over))
              for word, over in (("mean", np.mean), ("sum", np.sum), ("smallest", np.min))),
            ("max|W_j| must be taken over all layers that read the norm, not only the last",
             smooth_by(over=lambda each, axis: each[-1])),
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
            ("max|X_j| is missing in s",
             smooth_by(lambda m, largest, alpha: 1 / largest**(1 - alpha))),
            ("alpha is an argument, and you took ½",
             smooth_by(lambda m, largest, alpha: (m / largest)**0.5)),
            ("β is part of the norm's output, which is divided by s; you multiplied β by it",
             smooth_by(of_beta=np.multiply)),
            ("γ is divided by s; you multiplied it", smooth_by(of_gamma=np.multiply)),
            *(("all layers that read the norm share one s; you gave each layer its own", smooth_each(of_norm))
              for of_norm in (lambda each: each[0], lambda each: each[-1], partial(np.max, axis=0),
                              partial(np.mean, axis=0)))),
        tolerance=1e-6,
        hints=("If the output of the norm is divided by s, what must happen to the columns of W "
               "so that the layer computes the same?",
               "s, γ, β and max_abs are (d,). Column j of each W (d_out, d) belongs to input j. "
               "np.abs(W).max(0) is (d,).",
               "largest is the maximum over the layers of np.abs(W).max(0). s = max_abs**alpha / "
               "largest**(1 - alpha). Divide γ and β by s, and multiply each W by s.")),
    Exercise(
        name="outliers.zero_point", title="Zero points after the product", stars=2,
        reference=zero_point, cases=products, normalize=lambda product: np.asarray(product, np.float64),
        special=(
            ("(3 − 1) · 5 + (4 − 1) · 6 = 28, from 3 · 5 + 4 · 6 = 39",
             lambda rng: (np.array([[39]]), np.array([1]), np.int8([[5, 6]]))),),
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
            ("sum the codes q_w of an output; you took their mean",
             lambda product, z, q_w: product - z[:, None] * q_w.mean(1)),
            ("q_w is missing: each z was multiplied by a code of W",
             lambda product, z, q_w: product - z[:, None] * q_w.shape[1]),
            ("the sum over the features is missing: this takes one code of W alone",
             lambda product, z, q_w: product - z[:, None] * q_w[:, 0].astype(int)),
            ("z is the zero point of the inputs alone; W has none",
             lambda product, z, q_w: zero_point(product, z, q_w - z.mean()))),
        tolerance=0,
        hints=("Multiply out (q_x − z) q_w under the sum. Which of the two "
               "sums do you have already?",
               "product is (n, d_out), z is (n,), q_w is (d_out, K). The sums of the "
               "rows of q_w are (d_out,).",
               "product - z[:, None] * q_w.sum(1).")),
)
