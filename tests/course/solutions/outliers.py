"""Solutions of lesson 11's exercises, right and wrong."""
import numpy as np


def stepwise(x):
    """The first of a fine row of numbers beside which no code is left."""
    m = np.abs(x).max()
    while np.any(np.rint(127 * x / m)): m *= 1.001
    return m


def product_in_loops(X, W):
    Y = np.empty((len(X), len(W)))
    for t, x in enumerate(X):
        for o, w in enumerate(W):
            a, b = np.abs(x).max() / 127, np.abs(w).max() / 127
            Y[t, o] = a * b * (np.rint(x / a) * np.rint(w / b)).sum()
    return Y


def split_by_mask(X, W, threshold=6.0):
    out = (np.abs(X) >= threshold).any(axis=0)
    R = np.where(out, 0, X)
    a = np.abs(R).max(axis=1)
    a[a == 0] = 127
    b = np.abs(W).max(axis=1)
    integer = np.round(R / a[:, None] * 127) @ np.round(W / b[:, None] * 127).T
    return integer * np.outer(a, b) / 127**2 + X[:, out] @ W[:, out].T, np.where(out)[0]


def stacked(gamma, beta, weights, max_abs, alpha=0.5):
    s = max_abs**alpha * np.abs(np.vstack(weights)).max(0)**(alpha - 1)
    return gamma / s, beta / s, [np.multiply(W, s[None]) for W in weights]


def summed_in(kind):
    """The codes in `kind`, multiplied and summed there."""
    return lambda q_x, q_w: (q_x.astype(kind)[:, None] * q_w.astype(kind)).sum(-1, dtype=kind)


def corrected_by_loop(product, z, q_w):
    return [[int(y) - int(z[t]) * sum(int(w) for w in row) for y, row in zip(products, q_w, strict=True)]
            for t, products in enumerate(product)]


RIGHT = {"outliers.bug": [
        summed_in(np.int32),
        lambda q_x, q_w: np.einsum("nk,dk->nd", q_x, q_w, dtype=np.int64),
        lambda q_x, q_w: q_x.astype(float) @ q_w.T,
        lambda q_x, q_w: [[int(x @ w) for w in q_w.astype(int)] for x in q_x.astype(int)]],
         "outliers.zero_point": [
        corrected_by_loop,
        lambda product, z, q_w: product - np.outer(z, q_w @ np.ones(q_w.shape[1], int))],
         "outliers.drown": [stepwise, lambda x: 2 * 127 * max(map(abs, x.tolist()))],
         "outliers.vector_wise": [product_in_loops, lambda *a: product_in_loops(*a).tolist()],
         "outliers.llm_int8": [split_by_mask, lambda *a: [x.tolist() for x in split_by_mask(*a)]],
         "outliers.smooth": [
        stacked,
        lambda *a: [x.tolist() if isinstance(x, np.ndarray) else tuple(x) for x in stacked(*a)]]}


def vector_both_one(X, W):
    s_x, s_w = np.abs(X).max() / 127, np.abs(W).max() / 127
    return s_x * s_w * (np.rint(X / s_x) @ np.rint(W / s_w).T)


def vector_columns(X, W):
    s_x, s_w = np.abs(X).max(0) / 127, np.abs(W).max(0) / 127
    return (s_x * np.rint(X / s_x)) @ (s_w * np.rint(W / s_w)).T


def vector_columns_outside(X, W):
    s_x, s_w = np.abs(X).max(0) / 127, np.abs(W).max(0) / 127
    return s_x * s_w * (np.rint(X / s_x) @ np.rint(W / s_w).T)


def vector_codes(X, W):
    s_x, s_w = np.abs(X).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    return np.rint(X / s_x) @ np.rint(W / s_w).T


def vector_one_scale(X, W):
    s_x, s_w = np.abs(X).max() / 127, np.abs(W).max(1, keepdims=True) / 127
    return s_x * s_w.T * (np.rint(X / s_x) @ np.rint(W / s_w).T)


def vector_wrong_axis(X, W):
    s_x, s_w = np.abs(X).max(0, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    return s_w.T * (np.rint(X / s_x) @ np.rint(W / s_w).T)


def vector_unscaled(X, W):
    s_x, s_w = np.abs(X).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    return s_x * (np.rint(X / s_x) @ np.rint(W / s_w).T)


def split_late(X, W, threshold=6.0):
    O = np.flatnonzero(np.abs(X).max(0) >= threshold)
    s_x, s_w = np.abs(X).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    Q = np.rint(X / s_x)
    Q[:, O] = 0
    return X[:, O] @ W[:, O].T + s_x * s_w.T * (Q @ np.rint(W / s_w).T), O


def split_in_place(X, W, threshold=6.0):
    O = np.flatnonzero(np.abs(X).max(0) >= threshold)
    Y = X[:, O] @ W[:, O].T
    X[:, O] = 0
    s_x, s_w = np.maximum(np.abs(X).max(1, keepdims=True), 1e-9) / 127, np.abs(W).max(1, keepdims=True) / 127
    return Y + s_x * s_w.T * (np.rint(X / s_x) @ np.rint(W / s_w).T), O


def split_entries(X, W, threshold=6.0):
    large = np.abs(X) >= threshold
    R = X * ~large
    s_x, s_w = np.abs(R).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    s_x[s_x == 0] = 1
    return (X * large) @ W.T + s_x * s_w.T * (np.rint(R / s_x) @ np.rint(W / s_w).T), np.flatnonzero(large.any(0))


def split_deleting(X, W, threshold=6.0):
    O = np.flatnonzero(np.abs(X).max(0) >= threshold)
    R, V = np.delete(X, O, 1), np.delete(W, O, 1)
    s_x, s_w = np.abs(R).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    s_x[s_x == 0] = 1
    return X[:, O] @ W[:, O].T + s_x * s_w.T * (np.rint(R / s_x) @ np.rint(V / s_w).T), O


def split_integers_only(X, W, threshold=6.0):
    O = np.flatnonzero(np.abs(X).max(0) >= threshold)
    R = X.copy()
    R[:, O] = 0
    s_x, s_w = np.maximum(np.abs(R).max(1, keepdims=True), 1e-9) / 127, np.abs(W).max(1, keepdims=True) / 127
    return s_x * s_w.T * (np.rint(R / s_x) @ np.rint(W / s_w).T), O


def split_zero_scale(X, W, threshold=6.0):
    O = np.flatnonzero(np.abs(X).max(0) >= threshold)
    R = X.copy()
    R[:, O] = 0
    s_x, s_w = np.abs(R).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    return X[:, O] @ W[:, O].T + s_x * s_w.T * (np.rint(R / s_x) @ np.rint(W / s_w).T), O


def smooth_exchanged(gamma, beta, weights, max_abs, alpha=0.5):
    s = max_abs**(1 - alpha) / np.abs(np.vstack(weights)).max(0)**alpha
    return gamma / s, beta / s, [W * s for W in weights]


def smooth_no_beta(gamma, beta, weights, max_abs, alpha=0.5):
    s = max_abs**alpha / np.abs(np.vstack(weights)).max(0)**(1 - alpha)
    return gamma / s, beta, [W * s for W in weights]


def smooth_by_mean(gamma, beta, weights, max_abs, alpha=0.5):
    s = max_abs**alpha / np.mean([np.abs(W).max(0) for W in weights], 0)**(1 - alpha)
    return gamma / s, beta / s, [W * s for W in weights]


def smooth_twice(gamma, beta, weights, max_abs, alpha=0.5):
    s = max_abs**alpha / np.abs(np.vstack(weights)).max(0)**(1 - alpha)
    return gamma / s, beta / s, [W / s for W in weights]


def smooth_each(gamma, beta, weights, max_abs, alpha=0.5):
    each = [max_abs**alpha / np.abs(W).max(0)**(1 - alpha) for W in weights]
    return gamma / each[0], beta / each[0], [W * s for W, s in zip(weights, each, strict=True)]


def vector_int8(X, W):
    s_x, s_w = np.abs(X).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
    return s_x * s_w.T * (np.rint(X / s_x).astype(np.int8) @ np.rint(W / s_w).astype(np.int8).T)


def vector_128(X, W):
    s_x, s_w = np.abs(X).max(1, keepdims=True) / 128, np.abs(W).max(1, keepdims=True) / 128
    return s_x * s_w.T * (np.rint(X / s_x) @ np.rint(W / s_w).T)


def split_with(O, product):
    def outliers_llm_int8(X, W, threshold=6.0):
        out = O(X, threshold)
        R = X.copy()
        R[:, out] = 0
        s_x, s_w = np.abs(R).max(1, keepdims=True) / 127, np.abs(W).max(1, keepdims=True) / 127
        s_x[s_x == 0] = 1
        return product(X[:, out], W[:, out]) + s_x * s_w.T * (np.rint(R / s_x) @ np.rint(W / s_w).T), out
    return outliers_llm_int8


split_half = split_with(lambda X, t: np.flatnonzero(np.abs(X).max(0) >= t), lambda x, w: x.astype(np.float16) @ w.astype(np.float16).T)
split_signed = split_with(lambda X, t: np.flatnonzero(X.max(0) >= t), lambda x, w: x @ w.T)


def smooth_inverse(gamma, beta, weights, max_abs, alpha=0.5):
    s = max_abs**alpha * np.abs(np.vstack(weights)).max(0)**(alpha - 1)
    return gamma * s, beta * s, [W / s for W in weights]


def rounded_by(whole_x, whole_w=None, kind=None, n=127, scaled=np.multiply, largest=np.abs):
    """The vector-wise product; kind: the type in which codes are multiplied."""
    def outliers_vector_wise(X, W):
        s_x, s_w = largest(X).max(1, keepdims=True) / n, largest(W).max(1, keepdims=True) / n
        s_x[s_x == 0] = 1
        q_x, q_w = whole_x(X / s_x), (whole_w or whole_x)(W / s_w)
        if kind: q_x, q_w = q_x.astype(kind), q_w.astype(kind)
        return scaled(q_x @ q_w.T, s_x * s_w.T)
    return outliers_vector_wise


def cast(codes):
    return codes.astype(np.int8).astype(np.int32)


def exact(codes):
    return codes


def split_by(product, out=lambda X, t: np.flatnonzero(np.abs(X).max(0) >= t)):
    """LLM.int8() with a product for the columns that are left."""
    def outliers_llm_int8(X, W, threshold=6.0):
        O = out(X, threshold)
        rest = X.copy()
        rest[:, O] = 0
        return X[:, O] @ W[:, O].T + product(rest, W), O
    return outliers_llm_int8


def split_named(name):
    """The right product, and other names of the columns; from X, the threshold and O."""
    def outliers_llm_int8(X, W, threshold=6.0):
        Y, O = split_by_mask(X, W, threshold)
        return Y, name(X, threshold, O)
    return outliers_llm_int8


def smooth_with(s=lambda m, largest, alpha: m**alpha / largest**(1 - alpha), largest=lambda all_W: np.abs(all_W).max(0), beta=np.divide,
                gamma=np.divide):
    def outliers_smooth(g, b, weights, max_abs, alpha=0.5):
        factor = s(max_abs, largest(np.concatenate(weights)), alpha)
        return gamma(g, factor), beta(b, factor), [W * factor for W in weights]
    return outliers_smooth


def over_layers(over):
    def outliers_smooth(g, b, weights, max_abs, alpha=0.5):
        s = max_abs**alpha * over([np.abs(W).max(0) for W in weights])**(alpha - 1)
        return g / s, b / s, [W * s for W in weights]
    return outliers_smooth


WRONG = {
    "outliers.bug": [
        (lambda q_x, q_w: q_x @ q_w.T, "turn the codes"),
        (summed_in(np.int16), "int16 ends"),
        (summed_in(np.float32), "every integer up to 2²⁴"),
        (summed_in(np.float16), "up to 2,048"),
        (lambda q_x, q_w: (q_x.astype(int) @ q_w.T.astype(int)).clip(-127, 127), "clipped"),
        (lambda q_x, q_w: q_x.astype(int) @ q_w.astype(int), "two shapes do not fit"),
        (summed_in(np.uint16), "unsigned integers"),
        (lambda q_x, q_w: q_x.astype(int) @ q_w.astype(int).reshape(q_w.shape[::-1]), "rows do not become columns")],
    "outliers.zero_point": [
        (lambda product, z, q_w: product + np.outer(z, q_w.sum(1)), "minus z times"),
        (lambda product, z, q_w: product - z[:, None] * q_w.sum(), "one sum for each output"),
        (lambda product, z, q_w: product - z[:, None] * q_w.shape[1], "q_w is missing"),
        (lambda product, z, q_w: product - z[:, None] * q_w[:, 0].astype(int), "one code of W alone"),
        (lambda product, z, q_w: product - z.mean() * q_w.sum(1), "belongs to a token"),
        (lambda product, z, q_w: product - z * q_w.sum(1), "broadcast"),
        (lambda product, z, q_w: product, "than expected"),
        (lambda product, z, q_w: product - q_w.sum(1), "z is missing"),
        (lambda product, z, q_w: product - z.reshape(-1, 1), "you subtracted z alone"),
        (lambda product, z, q_w: product - np.outer(z, q_w.mean(1)), "you took their mean")],
    "outliers.drown": [
        (lambda x: 127 * np.abs(x).max(), "leaves the codes"),
        (lambda x: 254 * x.max() if x.max() > 0 else 1.0, "magnitude"),
        (lambda x: 254 * np.abs(x).mean(), "not the mean"),
        (lambda x: 254 * np.abs(x).min(), "not the smallest"),
        (lambda x: 508 * np.abs(x).max(), "less than a quarter"),
        (lambda x: 2 * np.abs(x).max(), "not its scale"),
        (lambda x: 6.0, "threshold"),
        (lambda x: 200 * np.abs(x).max(), "leaves some codes"),
        (lambda x: 1e6, "larger than it has to be")],
    "outliers.vector_wise": [
        (vector_one_scale, "one per row"),
        (vector_wrong_axis, "left it out of the product"),
        (vector_both_one, "both arrays have one scale"),
        (vector_columns, "you took one per column, a feature; take"),
        (vector_columns_outside, "sits inside the sum"),
        (vector_codes, "the scales are missing"),
        (vector_unscaled, "s_w"),
        (vector_int8, "wraps beyond 127"),
        (vector_128, "largest code is 127"),
        (lambda X, W: product_in_loops(X, W).T, "transposed"),
        (rounded_by(cast), "a cast to integers cuts off"),
        (rounded_by(np.floor), "you rounded down"),
        (rounded_by(np.rint, exact), "only one of the two"),
        (lambda X, W: X @ W.T, "nothing is rounded"),
        (rounded_by(np.rint, kind=np.int16), "int16 ends at 32,767"),
        (rounded_by(np.rint, scaled=np.divide), "you divided by them"),
        (rounded_by(np.rint, largest=lambda A: A), "not from the largest number")],
    "outliers.llm_int8": [
        (split_late, "ordinary entries alone"),
        (split_in_place, "writes into its argument"),
        (split_integers_only, "not added"),
        (split_zero_scale, "NaN"),
        (split_half, "not in float16"),
        (split_signed, "compare |X|"),
        (lambda *a: split_by_mask(*a)[0], "2 results"),
        (lambda X, W, t: split_by_mask(X, W), "a fixed 6"),
        (split_deleting, "keep the shape"),
        (split_entries, "whole columns"),
        (lambda X, W, t: (split_by_mask(X, W, t)[0], (np.abs(X) >= t).any(0)), "np.flatnonzero(mask)"),
        (lambda X, W, t: split_by_mask(X, W, np.nextafter(t, 9)), "|X| ≥ threshold"),
        (split_by(rounded_by(cast)), "a cast to integers cuts off"),
        (split_by(rounded_by(np.rint, cast)), "round first"),
        (split_by(rounded_by(np.floor)), "you rounded down"),
        (split_by(rounded_by(exact)), "nothing is rounded"),
        (split_by(rounded_by(exact, np.rint)), "only one of the two"),
        (split_by(rounded_by(np.rint, kind=np.int8)), "beyond 127"),
        (split_by(rounded_by(np.rint, kind=np.int16)), "int16 ends at 32,767"),
        (split_by(rounded_by(np.rint, n=128)), "largest code is 127"),
        (split_by(rounded_by(np.rint), lambda X, t: np.flatnonzero(np.abs(X).sum(0) >= t)), "a column's sum"),
        (split_by(rounded_by(np.rint), lambda X, t: np.flatnonzero((np.abs(X) >= t).all(0))),
         "a column's smallest entry"),
        (split_by(rounded_by(np.rint), lambda X, t: []), "no column was taken out"),
        (lambda *a: split_by_mask(*a)[::-1], "results 1 and 2 are exchanged"),
        (split_named(lambda X, t, O: np.where(np.abs(X).max(0) >= t)), "return a tuple"),
        (split_named(lambda X, t, O: np.where(np.abs(X) >= t)[1]), "names each column once"),
        (split_named(lambda X, t, O: np.setdiff1d(np.arange(X.shape[1]), O)), "these are the ordinary columns"),
        (split_named(lambda X, t, O: O + 1), "counted from 0"),
        (split_named(lambda X, t, O: O[::-1]), "ascending")],
    "outliers.smooth": [
        (smooth_exchanged, "exchanged"),
        (lambda g, b, Ws, m, a: (g / m, b / m, [W * m for W in Ws]), "max|X_j| alone"),
        (smooth_no_beta, "β"),
        (smooth_each, "you gave each layer its own"),
        (smooth_by_mean, "the mean of theirs"),
        (smooth_twice, "both divided by s"),
        (lambda g, b, Ws, m, a: stacked(g, b, Ws[:1], m, a), "result 3 of 3"),
        (smooth_inverse, "wrong way round"),
        (lambda g, b, Ws, m, a: (*stacked(g, b, Ws, m, a)[:2], Ws), "multiplied by s"),
        (over_layers(sum), "the sum of theirs"),
        (over_layers(lambda each: np.min(each, 0)), "the smallest of theirs"),
        (over_layers(lambda each: each[-1]), "not only the last"),
        (smooth_with(largest=lambda W: W.max(0)), "not the largest number"),
        (smooth_with(largest=lambda W: np.abs(W).max()), "each column j"),
        (smooth_with(lambda m, w, a: m**a * w**(1 - a)), "not multiplied"),
        (smooth_with(lambda m, w, a: (m / w)**a), "yours have the same"),
        (smooth_with(lambda m, w, a: m**a), "max|W_j| is missing"),
        (smooth_with(lambda m, w, a: w**(a - 1)), "max|X_j| is missing"),
        (smooth_with(lambda m, w, a: np.sqrt(m / w)), "you took ½"),
        (smooth_with(beta=np.multiply), "you multiplied β"),
        (smooth_with(gamma=np.multiply), "γ is divided by s; you"),
        (lambda *a: tuple(stacked(*a)[i] for i in (1, 0, 2)), "results 1 and 2 are exchanged")],
}
