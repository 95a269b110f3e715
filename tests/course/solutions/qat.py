"""Solutions of lesson 14's exercises, right and wrong."""
import math

import numpy as np
from scipy.special import kl_div, log_softmax, softmax


def ste_where(x, s, z, low, high, dy):
    return np.where(x <= s * (low - z), 0, np.where(x >= s * (high - z), 0, dy))


def lsq_in_loops(x, s, bits, dy):
    lowest, highest = -2**(bits - 1), 2**(bits - 1) - 1
    x_hat, dx, ds = np.empty_like(x), np.zeros_like(x), np.zeros_like(s)
    for i, j in np.ndindex(*x.shape):
        u = x[i, j] / s[i]
        if u <= lowest:    k, slope = lowest, lowest
        elif u >= highest: k, slope = highest, highest
        else:
            k = round(u)
            slope, dx[i, j] = k - u, dy[i, j]
        x_hat[i, j] = s[i] * k
        ds[i] += dy[i, j] * slope / math.sqrt(x.shape[1] * highest)
    return x_hat, dx, ds


def peqa_einsum(x, dy, q, z, g):
    d_out, d_in = q.shape
    C = q.reshape(d_out, d_in // g, g) - z[:, :, None]
    return np.einsum("no,nka,oka->ok", dy, x.reshape(len(x), d_in // g, g), C)


def distil_scipy(teacher, student):
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    kl = np.sum(p * (log_softmax(teacher, axis=1) - log_softmax(student, axis=1)))
    return kl / len(p), (q - p) / len(p)


def descend(w, X, y, s, lr, steps, in_place=False, at_floats=False, sum_=False, up=False, floats=False, two=2, late=False,
            near=lambda v, s: s * round(v / s), start=False, once=False, more=0, slope=lambda X, s: 1):
    w = [near(v, s) if start else v for v in w]
    used = first = [near(v, s) for v in w]
    for _ in range(steps + more):
        if in_place: w = [near(v, s) for v in w]
        used = first if once else w if at_floats else [near(v, s) for v in w]
        residual = X @ np.array(used) - y
        gradient = two * X.T @ residual / (1 if sum_ else len(X)) * slope(X, s)
        w = [v + (lr if up else -lr) * g for v, g in zip(w, gradient, strict=True)]
    return np.array(w if floats else used if late else [near(v, s) for v in w])


def descend_with(**fault): return lambda w, X, y, s, lr, steps: descend(w, X, y, s, lr, steps, **fault)


def after_the_loop(w, X, y, s, lr, steps): return np.rint(descend(w, X, y, s, lr, steps, floats=True) / s)


def zero_by_sides(x, s, z, low, high, dy):
    below, above = x <= s * (low - z), x >= s * (high - z)
    return -s * (dy[below].sum() + dy[above].sum())


RIGHT = {"qat.bug": [descend_with(), lambda *a: descend(*a).tolist()],
         "qat.zero": [zero_by_sides, lambda *a: np.float32(zero_by_sides(*a))],
         "qat.ste": [ste_where, lambda *a: ste_where(*a).tolist()], "qat.lsq": [lsq_in_loops, lambda *a: [x.tolist() for x in lsq_in_loops(*a)]],
         "qat.peqa": [peqa_einsum, lambda *a: peqa_einsum(*a).tolist()],
         "qat.distillation": [
        distil_scipy,
        lambda *a: [float(distil_scipy(*a)[0]), distil_scipy(*a)[1].tolist()]]}


def ste_everywhere(x, s, z, low, high, dy):
    return dy * 1.0


def ste_staircase(x, s, z, low, high, dy):
    return 0 * dy


def ste_scaled(x, s, z, low, high, dy):
    u = x / s + z
    return s * dy * ((u > low) & (u < high))


def masked(u=lambda x, s, z: x / s + z, inside=lambda u, low, high: (u > low) & (u < high)):
    """The gradient of x, and that of z, of what another u or another inside makes of them."""
    def qat_ste(x, s, z, low, high, dy): return np.where(inside(u(x, s, z), low, high), dy, 0)
    def qat_zero(x, s, z, low, high, dy): return -s * np.where(inside(u(x, s, z), low, high), 0, dy).sum()
    return qat_ste, qat_zero


MASKED = [(masked(u), words) for u, words in (
              (lambda x, s, z: x / s, "zero point is missing"), (lambda x, s, z: x, "not x itself"), (lambda x, s, z: x + z, "divided by s"),
              (lambda x, s, z: x * s + z, "yours multiplies it"), (lambda x, s, z: (x + z) / s, "after the division"),
              (lambda x, s, z: (x - z) / s, "another formula"), (lambda x, s, z: s * (x - z), "the way back"),
              (lambda x, s, z: np.floor(x / s) + z, "with the limits, not the rounded u"))] + [
          (masked(inside=inside), words) for inside, words in (
              (lambda u, low, high: u > low, "with both ends"), (lambda u, low, high: u < high, "either side: compare u"),
              (lambda u, low, high: (u > 0) & (u < high), "need not be 0"),
              (lambda u, low, high: (u >= low) & (u < high), "the lower or"), (lambda u, low, high: (u > low) & (u <= high), "the upper one"))]


def lsq_changed(change): return lambda *a: change(*lsq()(*a), *a)


def lsq_strict(x, s, bits, dy):
    low, high = -2**(bits - 1), 2**(bits - 1) - 1
    u = x / s[:, None]
    k = np.clip(np.rint(u), low, high)
    inside = (k > low) & (k < high)
    return k * s[:, None], dy * inside, (dy * np.where(inside, k - u, k)).sum(1) / math.sqrt(x.shape[1] * high)


def lsq(slope=lambda k, u: k - u, clipped=True, g=True, stop=True, ends=False, outer=lambda k, u: k, mean=False):
    def solve(x, s, bits, dy):
        N, P = 2**(bits - 1), 2**(bits - 1) - 1
        u = x / s[:, None]
        k = np.clip(np.rint(u), -N, P)
        inside = (u >= -N) & (u <= P) if ends else (u > -N) & (u < P)
        d = np.where(inside, slope(k, u), outer(k, u) * clipped)
        if mean: return k * s[:, None], dy * inside, (dy * d).mean(1)
        return k * s[:, None], dy * (inside if stop else 1.0), (dy * d).sum(1) / (math.sqrt(x.shape[1] * P) if g else 1)
    return solve


def peqa_codes(x, dy, q, z, g):
    return ((dy.T @ x) * q).reshape(len(q), -1, g).sum(2)


def peqa_plus(x, dy, q, z, g): return peqa_einsum(x, dy, q, -z, g)


def peqa_each(x, dy, q, z, g): return (dy.T @ x) * (q - np.repeat(z, g, axis=1))


def peqa_mean(x, dy, q, z, g):
    return ((dy.T @ x) * (q - np.repeat(z, g, axis=1))).reshape(len(q), -1, g).mean(2)


def peqa_row(x, dy, q, z, g):
    return ((dy.T @ x) * (q - np.repeat(z, g, axis=1))).sum(1)


def distil_reverse(teacher, student):
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    return float(kl_div(q, p).sum() / len(p)), (q - p) / len(p)


def distil_cross_entropy(teacher, student):
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    return float(-(p * log_softmax(student, axis=1)).sum() / len(p)), (q - p) / len(p)


def distil_sign(teacher, student):
    loss, gradient = distil_scipy(teacher, student)
    return loss, -gradient


def distil_sum(teacher, student):
    loss, gradient = distil_scipy(teacher, student)
    return loss, gradient * len(teacher)


def distil_one_maximum(teacher, student):
    def logs(a):
        a = a - a.max()
        return a - np.log(np.exp(a).sum(1, keepdims=True))
    p, q = np.exp(logs(teacher)), np.exp(logs(student))
    return float((p * (logs(teacher) - logs(student))).sum() / len(p)), (q - p) / len(p)


def distil_of_probabilities(teacher, student):
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    return distil_scipy(teacher, student)[0], -p / q / len(p)


def distil_unstable(teacher, student):
    p = np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True)
    q = np.exp(student) / np.exp(student).sum(1, keepdims=True)
    return float((p * np.log(p / q)).sum() / len(p)), (q - p) / len(p)


def distil_of_p(teacher, student):
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    return float((p * (np.log(p) - np.log(q))).sum() / len(p)), (q - p) / len(p)


def zero_of(slope=lambda s: -s, ends=True, where=None, mean=False, weighted=True, u=lambda x, s, z: x / s + z):
    def qat_zero(x, s, z, low, high, dy):
        u = u_of(x, s, z)
        clipped = (u <= low) | (u >= high) if ends else (u < low) | (u > high)
        chosen = {"inside": ~clipped, "all": np.ones(u.shape), None: clipped}[where]
        terms = (dy if weighted else 1) * slope(s) * chosen
        return float(terms.mean() if mean else terms.sum())
    u_of = u
    return qat_zero


def distil_other_way(teacher, student):
    """The mean of KL(student ‖ teacher), with the gradient that belongs to it."""
    q, far = softmax(student, 1), log_softmax(student, 1) - log_softmax(teacher, 1)
    return (q * far).sum() / len(q), q * (far - (q * far).sum(1)[:, None]) / len(q)


WRONG = {
    "qat.bug": [
        (descend_with(in_place=True), "rounded in place"),
        (descend_with(at_floats=True), "at the rounded weights"),
        (descend_with(floats=True), "return the rounded"),
        (descend_with(up=True), "uphill"),
        (descend_with(sum_=True), "mean over the rows"),
        (descend_with(late=True), "before the last update"),
        (descend_with(two=1), "square has a factor 2"),
        (descend_with(two=1, sum_=True), "factor 2/n"),
        (descend_with(start=True), "before the first step"),
        (descend_with(once=True), "anew in each step"),
        (descend_with(more=1), "one step too many"),
        (descend_with(near=lambda v, s: float(round(v / s))), "these are the codes"),
        (descend_with(near=lambda v, s: s * round(v)), "before it is rounded: s"),
        (descend_with(near=lambda v, s: float(round(v))), "multiplied afterwards"),
        (descend_with(near=lambda v, s: s * math.floor(v / s)), "next one below"),
        (descend_with(near=lambda v, s: s * int(v / s)), "towards 0"),
        (descend_with(slope=lambda X, s: s), "and not s"),
        (descend_with(slope=lambda X, s: len(X) / X.shape[1]), "over its columns"),
        (after_the_loop, "these are the codes; ŵ is")],
    "qat.zero": [
        (zero_of(lambda s: s), "moves a clipped number down"),
        (zero_of(where="inside"), "only clipped numbers"),
        (zero_of(where="inside", ends=False), "have a slope"),
        (zero_of(lambda s: s, where="inside"), "added and subtracted again"),
        (zero_of(where="all"), "not −s"),
        (zero_of(lambda s: -1), "not −1"),
        (zero_of(mean=True), "not the mean"),
        (zero_of(weighted=False), "before you sum"),
        (zero_of(ends=False), "counts as clipped"),
        (zero_of(u=lambda x, s, z: x / s - z), "zero point is added"),
        (zero_of(u=lambda x, s, z: np.rint(x / s) + z), "the rounded u"),
        (zero_of(ends=False, u=lambda x, s, z: np.rint(x / s) + z), "not the rounded u"),
        (zero_of(lambda s: 1), "not 1"),
        (zero_of(lambda s: -1 / s), "not −1/s"),
        (lambda x, s, z, low, high, dy: -s * dy * ((x / s + z <= low) | (x / s + z >= high)), "one number for each x"),
        *((both[1], words) for both, words in MASKED)],
    "qat.ste": [
        (ste_everywhere, "outside the range"),
        *((both[0], words) for both, words in MASKED),
        (lambda *a: ste_where(*a) / a[1], "not 1/s"),
        (lambda x, s, z, low, high, dy: s * (np.clip(np.rint(x / s) + z, low, high) - z), "this is x̂ itself"),
        (ste_staircase, "0 everywhere"),
        (ste_scaled, "not s"),
        (lambda x, s, z, low, high, dy: dy * ((low <= x / s + z) & (x / s + z <= high)), "strict"),
        (lambda x, s, z, low, high, dy: 1.0 * ((low < x / s + z) & (x / s + z < high)), "multiply it by dy"),
        (lambda x, s, z, low, high, dy: (low < x / s + z) & (x / s + z < high), "True and False"),
        (lambda x, s, z, low, high, dy: dy * ((low <= np.rint(x / s + z)) & (np.rint(x / s + z) <= high)),
         "half a step further"),
        (lambda x, s, z, low, high, dy: dy * ((low < np.rint(x / s + z)) & (np.rint(x / s + z) < high)),
         "may still lie inside"),
        (lambda x, s, z, low, high, dy: dy * ((low < x / s - z) & (x / s - z < high)), "point is added")],
    "qat.lsq": [
        (lsq(slope=lambda k, u: u - k), "round(u) − u"),
        (lsq(slope=lambda k, u: k), "s also divides"),
        (lsq(clipped=False), "clipped numbers"),
        (lsq(g=False), "factor g"),
        (lsq(stop=False), "no gradient where it is clipped"),
        (lsq(ends=True), "strict"),
        (lsq(outer=lambda k, u: k - u), "its code alone"),
        (lsq(mean=True), "the sum times g"),
        (lsq_strict, "the lowest or the highest"),
        (lsq_changed(lambda x_hat, dx, ds, x, s, bits, dy: (x_hat / s[:, None], dx, ds)), "yours is the code"),
        (lsq_changed(lambda x_hat, dx, ds, x, s, bits, dy: (x_hat, dx, ds * math.sqrt(x.shape[1] / len(x)))),
         "counts the rows"),
        (lsq_changed(lambda x_hat, dx, ds, x, s, bits, dy: (x_hat, dx, ds / math.sqrt(len(x)))), "all numbers of x"),
        (lsq_changed(lambda x_hat, dx, ds, x, s, bits, dy: (x_hat, dx, ds / math.sqrt(x.shape[1] * (2**(bits - 1) - 1)))),
         "take the root"),
        (lsq_changed(lambda x_hat, dx, ds, x, s, bits, dy: (x_hat, dx / math.sqrt(x.shape[1] * (2**(bits - 1) - 1)), ds)),
         "to ds alone"),
        (lambda *a: lsq()(*a)[1:], "3 results")],
    "qat.peqa": [
        (peqa_codes, "zero points"),
        (peqa_mean, "sum over the group"),
        (lambda x, dy, q, z, g: (dy.T @ x).reshape(*z.shape, g).sum(2) * ((q - z.repeat(g, 1)).reshape(*z.shape, g).sum(2)), "by themselves"),
        (peqa_row, "one number for each row"),
        (peqa_plus, "not q + z"),
        (peqa_each, "one number for each weight"),
        (lambda *a: -peqa_einsum(*a), "not z − q"),
        (lambda x, dy, q, z, g: ((dy.T @ x) * (q - np.tile(z, g))).reshape(len(q), -1, g).sum(2),
         "np.repeat, not np.tile"),
        (lambda x, dy, q, z, g: ((dy.T @ x) * (q - np.repeat(z, g, axis=1))).reshape(len(q), g, -1).sum(1),
         "last axis of the reshaped"),
        (lambda x, *a: peqa_einsum(x, *a) / len(x), "mean over the tokens"),
        (lambda x, dy, q, z, g: peqa_einsum(x, dy, q, 0 * z, g) + z, "numbers differ")],
    "qat.distillation": [
        (distil_reverse, "other divergence"),
        (distil_other_way, "KL(student ‖ teacher)"),
        (distil_cross_entropy, "entropy"),
        (distil_sign, "sign"),
        (distil_sum, "gradient as well"),
        (lambda p, q: tuple(len(p) * x for x in distil_scipy(p, q)), "in the loss and in the gradient"),
        (lambda p, q: (len(p) * distil_scipy(p, q)[0], distil_scipy(p, q)[1]), "loss as well"),
        (distil_unstable, "NaN"),
        (distil_of_p, "do not take the logarithm of p"),
        (distil_one_maximum, "its own maximum"),
        (distil_of_probabilities, "probabilities"),
        (lambda p, q: (distil_scipy(p, q)[0] / p.shape[1], distil_scipy(p, q)[1]), "all n V numbers")],
}
