"""Wrong answers of readers of the course: those that a check once accepted, and those whose cause was not told or misled."""
import numpy as np
from scipy.special import ndtri

from tinypeft.course.exercises import find

__all__ = ["ACCEPTED", "UNNAMED", "reference"]


def reference(name):
    return find(name).reference


# -- lesson 01 -------------------------------------------------------------------------------------
def one_direction(where, eps=1e-5):
    """A test that changes one number of x, or one row or column, and no other."""
    def autograd_catches(f, vjp, x):
        rng = np.random.default_rng(0)
        u, v = rng.standard_normal(x.shape), np.zeros_like(x)
        v[where] = rng.standard_normal(x.shape)[where]
        d = vjp(x, u)
        a, b = np.vdot(d, v), np.vdot(u, f(x + eps * v) - f(x - eps * v)) / (2 * eps)
        return bool(abs(a - b) > 1e-7 * np.linalg.norm(d) * np.linalg.norm(v))
    return autograd_catches


def first_use(tape, dy):
    grads = [None] * len(tape)
    grads[-1] = dy
    for k in reversed(range(len(tape))):
        if grads[k] is None: continue
        for j, vjp in tape[k]:
            if grads[j] is None: grads[j] = vjp(grads[k])
    return grads


# -- lessons 02 to 08 ------------------------------------------------------------------------------
def attention_over_queries(q, k, v):
    S = q @ k.T / np.sqrt(q.shape[1])
    S = np.where(np.arange(len(k)) <= np.arange(len(q))[:, None] + len(k) - len(q), S, -np.inf)
    P = np.exp(S - S.max())
    return (P / P.sum(0) @ v).astype(q.dtype)


def adamw_whole_gradient(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    m, v = beta1 * m + g, beta2 * v + (1 - beta2) * g * g
    return w - lr * decay * w - lr * m / (1 - beta1 ** t) / (np.sqrt(v / (1 - beta2 ** t)) + eps), m, v


def counts_from_zero(w, gradients, lr, beta1, beta2, decay):
    m = v = 0 * w
    for t, g in enumerate(gradients):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w = w - lr * decay * w - lr * m / (1 - beta1 ** t) / (np.sqrt(v / (1 - beta2 ** t)) + 1e-8)
    return w


def cut_at(limit):
    def adalora_export(P, Lam, Q):
        left = abs(Lam) > limit
        return P[:, left] * Lam[left], Q[left]
    return adalora_export


def last_separator(tokens, counts, separator):
    """Right, but with two parts the LAST separator ends the first."""
    if len(counts) != 2: return reference("prompts.places")(tokens, counts, separator)
    start = np.flatnonzero(tokens == separator)[-1] + 1 + counts[0]
    return np.array([*range(counts[0]), *range(start, start + counts[1])])


def zero_at_the_end(W0, A0, B0, W1, A1, B1):
    word = reference("lora.bug")(W0, A0, B0, W1, A1, B1)
    zero = not (A0.any() or B0.any() or A1.any() or B1.any())
    return word if word in ("base trained", "start changed") else "both zero" if zero else \
        "not trained" if np.array_equal(A0, A1) and np.array_equal(B0, B1) else "fine"


def with_additions(B, T, d, H, L, V):
    return reference("full.activations")(B, T, d, H, L, V) + 4 * B * T * d * L


def at_or_above(scores, b):
    if b == 0: return np.zeros(scores.shape, bool)
    return scores >= np.sort(scores.ravel())[-b]


# -- lessons 09 to 16 ------------------------------------------------------------------------------
def both_faults(A, M, dA, b, beta, lr, frozen):
    """All rows up to b with frozen=True, and the others fade and move."""
    trained = (np.arange(len(A)) < b)[:, None]
    M = beta * M + np.where(trained, dA, 0)
    return A - lr * M, M


def softened(change):
    """Distillation with ε in the logarithm."""
    def qat_distillation(teacher, student):
        p, q = (np.exp(a - a.max(1, keepdims=True)) for a in (teacher, student))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        return float((p * (np.log(change(p)) - np.log(change(q)))).sum() / len(p)), (q - p) / len(p)
    return qat_distillation


def levels(points, kept):
    def nf4_levels(delta, positive, negative):
        up, down = (ndtri(np.linspace(delta, 0.5, points(n)))[:kept(n)] for n in (positive, negative))
        c = np.sort(np.concatenate([up, [0], -down]))
        return c / abs(c).max()
    return nf4_levels


def place_of_clip(x, bits, fractions):
    n, m = 2 ** (bits - 1) - 1, abs(x).max(1, keepdims=True)
    s = [np.where(m == 0, 1, p * m / n) for p in fractions]
    return np.argmin([((np.clip(np.rint(x / a), -n, n) * a - x) ** 2).sum(1) for a in s], axis=0)


def wrapping_peqa(x, dy, q, z, g):
    G = (dy.T @ x) * (q.astype(np.uint8) - np.repeat(z, g, axis=1).astype(np.uint8))
    return G.reshape(len(q), -1, g).sum(2)


def small_zero_point(product, z, q_w):
    return product - z[:, None] * q_w.sum(1, dtype=np.int8)


def gptq_from_the_right(W, U, quant):
    V = W.copy()
    for j in reversed(range(W.shape[1])):
        w = V[:, j].copy()
        V[:, j] = quant(w)
        V[:, :j] -= np.outer((w - V[:, j]) / U[j, j], U[j, :j])
    return V


def damped_by(size):
    def calibrated_bug(H, damping):
        return np.linalg.cholesky(np.linalg.inv(H + damping * size(H) * np.eye(len(H)))).T
    return calibrated_bug


def best_rate_and_seed(validation, test):
    i, k = divmod(int(validation.argmin()), validation.shape[1])
    return i, test[i, k]


def strided_peqa(x, dy, q, z, g):
    """Every (d_in/g)-th weight of a row in one group, with its zero point."""
    C = q.reshape(len(q), g, -1) - z[:, None]
    return ((dy.T @ x).reshape(C.shape) * C).sum(1)


def gain_left_out(x, gamma, eps, dy):
    r = np.sqrt((x**2).mean(1, keepdims=True) + eps)
    return gamma * dy / r - x * (dy * x).mean(1, keepdims=True) / r**3, (dy * x / r).sum(0)


def rows_between_heads(W, d_head, n):
    return W.reshape(n, d_head, len(W) // d_head // n, W.shape[1]).mean(2).reshape(n * d_head, -1)


ACCEPTED = [                                             # exercise, wrong answer, words of the message or the cause
    ("gradients.catches", one_direction((0, 0)), "one number"),
    ("gradients.catches", one_direction((-1, -1)), "one number"),
    ("gradients.catches", one_direction(0), "one number"),
    ("gradients.catches", one_direction(-1), "one number"),
    ("gradients.catches", one_direction((slice(None), 0)), "one number"),
    ("gradients.catches", one_direction((slice(None), -1)), "one number"),
    ("adalora.export", cut_at(1e-3), "Lam != 0"),
    ("adalora.export", cut_at(0.1), "Lam != 0"),
    ("prompts.places", last_separator, "a separator in the last part"),
    ("lora.bug", zero_at_the_end, "before training"),
    ("qat.distillation", softened(lambda p: p + 1e-9), "ε"),
    ("qat.distillation", softened(lambda p: p + 1e-12), "ε"),
    ("qat.distillation", softened(lambda p: np.clip(p, 1e-30, 1)), "logarithm")]
UNNAMED = [
    ("map.bug", lambda q, s, z: (s[:, None] * q - z[:, None]).astype(np.float32), "brackets"),
    ("autograd.walk", first_use, "keeps only one of its gradients"),
    ("transformer.attention", attention_over_queries, "over the keys"),
    ("full.adamw", adamw_whole_gradient, "(1 − β₁)"),
    ("full.activations", with_additions, "an addition needs nothing"),
    ("full.bug", counts_from_zero, "t counts from 1"),
    ("adalora.allocate", at_or_above, "threshold"),
    ("dylora.bug", both_faults, "still move"),
    ("quantization.best_clip", place_of_clip, "the place of the fraction"),
    ("outliers.zero_point", small_zero_point, "int8"),
    ("calibrated.gptq", gptq_from_the_right, "begin with the first column"),
    ("calibrated.bug", damped_by(np.trace), "mean of H's diagonal"),
    ("calibrated.bug", damped_by(np.mean), "mean of H's diagonal"),
    ("nf4.levels", levels(lambda n: n, lambda n: -1), "n + 1 points"),
    ("nf4.levels", levels(lambda n: n + 1, lambda n: None), "dropped"),
    ("qat.peqa", wrapping_peqa, "uint8"),
    ("qat.peqa", strided_peqa, "g neighbouring weights"),
    ("real.norm_backward", gain_left_out, "inside the mean"),
    ("real.fewer", rows_between_heads, "rows stay together"),
    ("choosing.bug", best_rate_and_seed, "best seed is luck"),
    ("choosing.bug", lambda validation, test: (int(validation.argmin()), float(test[validation.argmin()].mean())),
     "through all rates and seeds"),
    ("choosing.memory", lambda n, bits, t: 16 * n + 16 * t, "frozen weights"),
    ("choosing.memory", lambda n, bits, t: n * bits / 8 + 4 * t, "gradient")]
