"""Lesson 14: gradients through rounding, of scales and zero points; training; distillation."""
import math

import numpy as np

from ...engine import functional as F
from ...engine import plain
from ...engine.tensor import Tensor
from ...quant.packing import pack
from ...quant.peqa import scaled_linear
from ...quant.qtensor import QTensor
from ...quant.rounding import fake_quantize
from ...text.tasks.distillation import divergence
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


def strictly(u, low, high):
    return (low < u) & (u < high)


def closed(u, low, high):
    return (low <= u) & (u <= high)


def ramp(x, s, z):
    return x / s + z


def staircase(x, s, z):
    return np.rint(x / s) + z


INSIDE = (                                               # what is inside, for three exercises
    *several("a number may lie outside on either side: compare u with both ends",
             lambda u, low, high: low < u,
             lambda u, low, high: u < high),
    ("the lower end of the range need not be 0", lambda u, low, high: strictly(u, 0, high)),
    *several("the inequalities are strict: exactly at an end, the lower or the upper one, "
             "a number counts as clipped",
             closed,
             lambda u, low, high: (low <= u) & (u < high),
             lambda u, low, high: (low < u) & (u <= high)))
PLACE = (                                                # what u is, for two exercises
    ("the zero point is missing in u = x/s + z", lambda x, s, z: x / s),
    ("the zero point is added: u = x/s + z", lambda x, s, z: x / s - z),
    ("compare x/s + z with the codes, not x itself", lambda x, s, z: x),
    ("x must be divided by s: u = x/s + z", lambda x, s, z: x + z),
    ("u = x/s + z divides x by s; yours multiplies it", lambda x, s, z: x * s + z),
    ("z is a code and is added after the division: u = x/s + z", lambda x, s, z: (x + z) / s),
    ("(x − z)/s is another formula; here x̂ = s (q − z), so that u = x/s + z",
     lambda x, s, z: (x - z) / s),
    ("this is the way back from codes to numbers; u = x/s + z", lambda x, s, z: s * (x - z)),
    ("compare u with the limits, not the rounded u", lambda x, s, z: np.floor(x / s) + z))


def made_of(variant, option, table):
    """Make the mistakes of a table, for an exercise whose variants have that option."""
    return [(sentence, variant(**{option: function})) for sentence, function in table]


def shared(variant):
    return made_of(variant, "inside", INSIDE) + made_of(variant, "u", PLACE)


def both_sides(rng):
    """Return two numbers inside the range, and seven that other formulas for u take for such."""
    x = np.array([0.2, -0.7, 0.7, 1.3, 2.2, 3.2, -1.5, 5.0, -9.0])
    return x, 0.5, 2, 0, 3, 2.0 ** np.arange(9)


def both_ends(rng):
    x, dy = np.array([-1.0, 0.5, 0.25]), np.array([1.5, 1.0, 1.0])
    return x, 0.5, 2, 0, 3, dy


# -- STE -------------------------------------------------------------------------------------------
def ste(x, s, z, low, high, dy):
    x = Tensor(x, requires_grad=True)
    s = Tensor(np.array(s, x.dtype))
    z = Tensor(np.array(float(z), x.dtype))
    fake_quantize(x, s, z, low, high, mask="paper").backward(dy)
    return x.grad


def ste_variant(u=ramp, inside=strictly, factor=lambda s: 1, keep=True):
    """Make `ste` with a mistake: another u, another inside, a factor, or the mask alone."""
    def wrong(x, s, z, low, high, dy):
        return (dy if keep else 1.0) * inside(u(x, s, z), low, high) * factor(s)
    return wrong


def outside(u, low, high):
    return (u <= low) | (u >= high)


def forward_alone(x, s, z, low, high, dy):
    return s * (np.clip(staircase(x, s, z), low, high) - z)


def ste_case(rng):
    steps, s = 2**int(rng.integers(2, 5)) - 1, float(rng.uniform(0.2, 0.6))
    low = -int(rng.integers(1, 4))
    high = low + steps
    z = int(rng.integers(low + 1, high))
    x = rng.normal(0, 1, (4, 11))
    return x, s, z, low, high, rng.normal(0, 1, (4, 11))


# -- LSQ -------------------------------------------------------------------------------------------
def lsq(x, s, bits, dy):
    x, s = Tensor(x, requires_grad=True), Tensor(s, requires_grad=True)
    low, high = -2**(bits - 1), 2**(bits - 1) - 1
    g = 1 / math.sqrt(x.shape[1] * high)
    z = Tensor(np.zeros((1, 1), x.dtype))
    x_hat = fake_quantize(x, s.reshape(-1, 1), z, low, high, "paper", g)
    x_hat.backward(dy)
    return x_hat.data, x.grad, s.grad


def slope_inside(k, u):
    return k - u


def slope_of_clipped(k, u):
    return k


def lsq_variant(inner=slope_inside, clipped=slope_of_clipped, inside=strictly,
                g=lambda x, Q_P: 1 / math.sqrt(x.shape[1] * Q_P), masked=True, weighted=True,
                symmetric=False, scaled=True, both=False):
    """Make `lsq` with a mistake.

    inner, clipped: the slopes. masked: dx is 0 outside. weighted: the slopes are multiplied by dy.
    symmetric: −Q_P stands for −Q_N. scaled: x̂ is s times the codes. both: dx has g as well.
    """
    def wrong(x, s, bits, dy):
        Q_P = 2**(bits - 1) - 1
        Q_N = Q_P if symmetric else Q_P + 1
        u = x / s[:, None]
        k = np.clip(np.rint(u), -Q_N, Q_P)
        within, factor = inside(u, -Q_N, Q_P), g(x, Q_P)
        slope = np.where(within, inner(k, u), clipped(k, u))
        dx = dy * within if masked else dy
        ds = factor * (dy * slope if weighted else slope).sum(1)
        return s[:, None] * k if scaled else k, factor * dx if both else dx, ds
    return wrong


def inside_rounded(u, low, high):
    return strictly(np.rint(u), low, high)


def in_closed_rounded(u, low, high):
    return closed(np.rint(u), low, high)


def lsq_case(rng):
    n, B = int(rng.integers(3, 6)), int(rng.integers(10, 15))
    x, s = rng.normal(0, 1, (n, B)), rng.uniform(0.2, 0.7, n)
    return x, s, int(rng.integers(2, 5)), rng.normal(0, 1, (n, B))


def one_row(x, dy):
    return lambda rng: (np.array([x]), np.array([1.0]), 3, np.array([dy]))


# -- PEQA ------------------------------------------------------------------------------------------
def peqa(x, dy, q, z, g):
    q_bytes = pack(q.astype(np.uint8), 8)
    z_bytes = pack(z.astype(np.uint8).reshape(-1), 8)
    codes = QTensor(q_bytes, 8, q.shape, g, np.ones(z.size, np.float32), z_bytes)
    s = Tensor(np.ones(z.size), requires_grad=True)
    scaled_linear(Tensor(x), codes, s, None).backward(dy)
    return s.grad.reshape(z.shape)


def peqa_variant(zero=-1, tile=False, gather=lambda G: G.sum(2)):
    """Make `peqa` with a mistake: another factor of z, np.tile, or another sum."""
    def wrong(x, dy, q, z, g):
        spread = np.tile(z, (1, g)) if tile else np.repeat(z, g, axis=1)
        G = ((dy.T @ x) * (q + zero * spread)).reshape(len(q), -1, g)
        return gather(G)
    return wrong


def _wrapped(q, z, g):
    return (q - np.repeat(z, g, axis=1)).astype(np.uint8).astype(int)


def peqa_case(rng):
    n, d_out, g = int(rng.integers(3, 6)), int(rng.integers(5, 8)), 4
    d_in = g * int(rng.integers(2, 4))
    x, dy = rng.normal(0, 1, (n, d_in)), rng.normal(0, 1, (n, d_out))
    q = rng.integers(0, 8, (d_out, d_in))
    return x, dy, q, rng.integers(1, 7, (d_out, d_in // g)), g


def at_zero_point(rng):
    x, dy = rng.normal(0, 1, (3, 4)), rng.normal(0, 1, (3, 2))
    q, z = np.full((2, 4), 3), np.full((2, 2), 3)
    return x, dy, q, z, 2


def product_of_sums(x, dy, q, z, g):
    def of_groups(M): return M.reshape(len(q), -1, g).sum(2)
    return of_groups(dy.T @ x) * of_groups(q - np.repeat(z, g, axis=1))


def distant_weights(G):
    return G.reshape(len(G), G.shape[2], -1).sum(1)


# -- distillation ----------------------------------------------------------------------------------
def distillation(teacher, student):
    student = Tensor(student, requires_grad=True)
    loss = divergence(F.log_softmax(Tensor(teacher)).data, student)
    loss.backward()
    return float(loss.item()), student.grad


def log_softmax(a):
    return plain.log_softmax(Tensor(a)).data


def distillation_variant(reverse=False, gradient=lambda p, q: q - p, entropy=True):
    """Make `distillation` with a mistake: the other KL, another gradient, or the cross-entropy."""
    def wrong(teacher, student):
        log_p, log_q = log_softmax(teacher), log_softmax(student)
        p, q, n = np.exp(log_p), np.exp(log_q), len(teacher)
        kl = q * (log_q - log_p) if reverse else p * ((log_p if entropy else 0) - log_q)
        return float(np.sum(kl) / n), gradient(p, q) / n
    return wrong


def of_student_to_teacher(teacher, student):
    """The other KL, with its own gradient."""
    log_q = log_softmax(student)
    q, apart = np.exp(log_q), log_q - log_softmax(teacher)
    kl = np.sum(q * apart, axis=1, keepdims=True)
    return float(kl.mean()), q * (apart - kl) / len(teacher)


def multiplied(of_loss=lambda n, V: 1, of_gradient=lambda n, V: 1):
    """Multiply the results of `distillation` by a factor of n rows and V tokens."""
    def wrong(teacher, student):
        loss, gradient = distillation(teacher, student)
        return loss * of_loss(*teacher.shape), gradient * of_gradient(*teacher.shape)
    return wrong


def rows(n, V):
    return n


def per_token(n, V):
    return 1 / V


def distillation_case(rng):
    n, V = int(rng.integers(3, 6)), int(rng.integers(6, 9))
    teacher = rng.normal(0, 2, (n, V))
    return teacher, teacher + rng.normal(0, 1, teacher.shape)


def logits(teacher, student):
    return lambda rng: (np.array(teacher), np.array(student))


def cut_off(got, expected, args):
    """Is a large divergence too small?"""
    return np.size(got) == 1 and 20 < got < expected


def one_maximum(got, expected, args):
    return not np.all(np.isfinite(got)) and np.ptp(args[0].max(1)) > 500


def impossible(got, expected, args):
    return not np.all(np.isfinite(got)) and args[0].max() == 0


# -- training that stands still --------------------------------------------------------------------
def nearest(w, s):
    return s * np.rint(w / s)


def floats(w, s):
    return w


def trained(w, X, y, s, lr, steps):
    for _ in range(steps):
        w = w - lr * 2 / len(X) * X.T @ (X @ nearest(w, s) - y)
    return nearest(w, s)


def trained_variant(start=floats, in_place=floats, at=nearest, result=nearest,
                    factor=lambda X, s: 2 / len(X), count=lambda n: n, once=False):
    """Make `trained` with a mistake.

    start: of w. in_place: of w in each step. at: where the gradient is taken. result: of w at the
    end. factor: of the gradient. count: the number of steps. once: all gradients are those of the
    start.
    """
    def wrong(w, X, y, s, lr, steps):
        w = start(w, s)
        first = at(w, s)
        for _ in range(count(steps)):
            w = in_place(w, s)
            rounded = first if once else at(w, s)
            w = w - lr * factor(X, s) * X.T @ (X @ rounded - y)
        return result(w, s)
    return wrong


def rounded_by(sentence, rounded):
    """Make the mistake `rounded` in each step and at the end, or at the end alone."""
    everywhere = trained_variant(at=rounded, result=rounded)
    return several(sentence, everywhere, trained_variant(result=rounded))


def trained_case(rng):
    n, d = int(rng.integers(20, 30)), int(rng.integers(4, 7))
    X = rng.normal(0, 1, (n, d))
    return rng.normal(0, 1, d), X, X @ rng.normal(0, 1, d), 0.25, 0.02, 60


def to_and_fro(rng):
    w, y = np.array([0.9, 5.2]), np.array([0.3, 5.3])
    return w, np.eye(2), y, 1.0, 0.1, 7


def no_steps(rng):
    return np.array([0.3, 0.6]), np.eye(2), np.ones(2), 0.5, 0.1, 0


# -- the zero point --------------------------------------------------------------------------------
def zero(x, s, z, low, high, dy):
    z = Tensor(np.array(float(z), x.dtype), requires_grad=True)
    s = Tensor(np.array(s, x.dtype))
    fake_quantize(Tensor(x), s, z, low, high, mask="paper").backward(dy)
    return float(z.grad)


def zero_variant(slope=lambda s: -s, inside=strictly, where=np.logical_not, gather=np.sum,
                 weighted=True, u=ramp):
    """Make `zero` with a mistake: another slope, inside or u, other numbers, a mean, or no dy."""
    def wrong(x, s, z, low, high, dy):
        chosen = where(inside(u(x, s, z), low, high))
        return float(gather((dy if weighted else 1) * slope(s) * chosen))
    return wrong


def itself(inside):
    return inside


def of_each(got, expected, args):
    return np.shape(got) == np.shape(args[0])


EXERCISES = (
    Exercise(
        name="qat.ste", title="The straight-through gradient", stars=2,
        kind="gradient",
        reference=ste, cases=ste_case,
        example=lambda rng: (np.array([0.2, 0.7]), 0.5, 2, 0, 3, np.array([5.0, 5.0])),
        special=(
            ("two numbers inside the range, the others outside, on either side", both_sides),
            ("numbers exactly at both ends of the range", both_ends)),
        mistakes=(
            *shared(ste_variant,
                    ),
            ("outside the range the gradient is 0",
             ste_variant(inside=lambda u, low, high: np.ones(u.shape, bool))),
            ("you gave the clipped numbers a gradient; only the others have one",
             ste_variant(inside=outside)),
            ("∂x̂/∂x is 1, not s: the step multiplies and divides",
             ste_variant(factor=lambda s: s)),
            ("∂x̂/∂x is 1, not 1/s: the step multiplies and divides",
             ste_variant(factor=lambda s: 1 / s)),
            ("this is ∂x̂/∂x; multiply it by dy", ste_variant(keep=False)),
            ("this is x̂ itself; return dx, the gradient", forward_alone),
            ("compare u with the limits, not the rounded u: PyTorch's mask reaches half a "
             "step further on each side",
             ste_variant(u=staircase, inside=closed)),
            ("compare u with the limits, not the rounded u: numbers whose code is the lowest or "
             "the highest may still lie inside",
             ste_variant(u=staircase))),
        hints=("Where does x̂ follow x, and where does it stand still?",
               "u = x/s + z has the shape of x, and so has the mask.",
               "u = x / s + z. dx is dy where low < u < high, and 0 elsewhere.")),
    Exercise(
        name="qat.lsq", title="The gradient of the step", stars=3,
        kind="gradient",
        example=lambda rng: (np.array([[2.4], [7.0]]), np.ones(2), 3, np.ones((2, 1))),
        reference=lsq, cases=lsq_case,
        special=(
            ("one number inside, one clipped", one_row([0.6, 7.0], [1.0, 1.0])),
            ("numbers exactly at both ends of the range",
             one_row([3.0, -4.0, 0.6], [1.0, 2.0, 1.0]))),
        mistakes=(
            ("inside, the slope is round(u) − u, not u − round(u)",
             lsq_variant(inner=lambda k, u: u - k)),
            ("inside, the slope is round(u) − u: s also divides, in u",
             lsq_variant(inner=slope_of_clipped)),
            *made_of(lsq_variant,
                     "inside", INSIDE),
            ("the factor g = 1/√(n Q_P) is missing in ds", lsq_variant(g=lambda x, Q_P: 1)),
            ("this is the mean over the row; ds is the sum times g = 1/√(n Q_P)",
             lsq_variant(g=lambda x, Q_P: 1 / x.shape[1])),
            ("g is 1/√(n Q_P); take the root",
             lsq_variant(g=lambda x, Q_P: 1 / (x.shape[1] * Q_P))),
            ("n counts the numbers that share one step, those of a row; yours counts the rows",
             lsq_variant(g=lambda x, Q_P: 1 / math.sqrt(len(x) * Q_P))),
            ("n counts the numbers that share one step, those of a row; "
             "yours counts all numbers of x",
             lsq_variant(g=lambda x, Q_P: 1 / math.sqrt(x.size * Q_P))),
            ("g belongs to ds alone; dx does not have it", lsq_variant(both=True)),
            ("x̂ is s times the code; yours is the code", lsq_variant(scaled=False)),
            ("a clipped number's slope is its code alone: u does not come in, "
             "because clip is flat there",
             lsq_variant(clipped=slope_inside)),
            ("x has no gradient where it is clipped", lsq_variant(masked=False)),
            ("clipped numbers have a slope too: −Q_N or Q_P", lsq_variant(clipped=lambda k, u: 0)),
            ("Q_N is 2^(b−1), one more than Q_P", lsq_variant(symmetric=True)),
            ("multiply the slopes by dy before you sum them", lsq_variant(weighted=False)),
            ("compare u with the limits, not the rounded u: PyTorch's mask reaches half a "
             "step further on each side",
             lsq_variant(inside=in_closed_rounded)),
            ("compare u with the limits, not the rounded u: numbers whose code is the lowest or "
             "the highest may still lie inside",
             lsq_variant(inside=inside_rounded))),
        hints=("What is ∂x̂/∂s inside, where s also divides x? And what is it for a clipped "
               "number, whose code does not change?",
               "s[:, None] is (m, 1), u = x/s is (m, n). ds is (m,): a sum over each row.",
               "k = np.clip(np.rint(u), -Q_N, Q_P). The slope is k - u inside and k elsewhere. "
               "ds = g * (dy * slope).sum(1) with g = 1 / math.sqrt(x.shape[1] * Q_P). dx is "
               "dy inside and 0 elsewhere.")),
    Exercise(
        name="qat.peqa", title="The gradient of PEQA's scales", stars=3,
        kind="gradient",
        reference=peqa, cases=peqa_case,
        special=(
            ("all codes are at the zero point: scales do not matter", at_zero_point),),
        mistakes=(
            ("the zero points are missing: the scale multiplies q − z", peqa_variant(zero=0)),
            ("the scale multiplies q − z, not q + z", peqa_variant(zero=1)),
            ("this is one number for each weight; the g weights of a group share "
             "one scale: take their sum",
             peqa_variant(gather=lambda G: G.reshape(len(G), -1))),
            ("this is one number for each row; each group of g weights has a scale of its own",
             peqa_variant(gather=lambda G: G.sum((1, 2)))),
            ("a zero point belongs to g neighbouring weights: use np.repeat, not np.tile",
             peqa_variant(tile=True)),
            ("sum the products of gradient and q − z, not the gradients and the codes by "
             "themselves", product_of_sums),
            ("the gradient has the other sign: the scale multiplies q − z, not z − q",
             lambda *a: -peqa(*a)),
            ("q − z is a uint8 here, in which 3 − 8 is 251: take integers with a sign, or floats",
             lambda x, dy, q, z, g: peqa_variant(zero=0)(x, dy, _wrapped(q, z, g), z, g)),
            ("take the sum over the group, not the mean", peqa_variant(gather=lambda G: G.mean(2))),
            *several("a group is g neighbouring weights of a row: the last axis of the reshaped "
                     "array is g, and the sum is over it",
                     peqa_variant(gather=distant_weights),
                     peqa_variant(tile=True, gather=distant_weights)),
            ("this is a mean over the tokens; dyᵀ x sums over them",
             lambda x, *others: peqa(x, *others) / len(x))),
        hints=("Ŵ = s (q − z). What is its derivative with respect to s, and "
               "which weights share one s?",
               "G = dyᵀ x is (d_out, d_in). z, repeated g times along each row, is (d_out, d_in), "
               "too. The result is (d_out, d_in/g).",
               "Multiply G by q - np.repeat(z, g, axis=1), reshape to (d_out, -1, g), "
               "and sum over the last axis.")),
    Exercise(
        name="qat.distillation", title="Distillation from logits", stars=3,
        kind="gradient",
        reference=distillation,
        cases=distillation_case,
        example=lambda rng: (np.zeros((1, 2)), np.array([[math.log(3), 0.0]])),
        special=(
            ("a student that finds both tokens equally likely",
             logits([[2.0, 0.0]], [[3.0, 3.0]])),),
        extremes=(
            ("large logits", logits([[800.0, 798.0, 799.0]], [[801.0, 798.0, 799.0]])),
            ("one row of small logits, one of large ones",
             logits([[0.0, 1.0], [1000.0, 1001.0]], [[1.0, 0.0], [1001.0, 1001.5]])),
            ("a token that is all but impossible", logits([[0.0, -800.0]], [[0.0, -801.0]])),
            ("teacher and student are sure of different tokens: the divergences are 30 and 100",
             logits([[30.0, 0.0, 0.0], [100.0, 0.0, 0.0]], [[0.0, 30.0, 0.0], [0.0, 100.0, 0.0]]))),
        mistakes=(
            *several("this is the other divergence, KL(student ‖ teacher)",
                     distillation_variant(reverse=True), of_student_to_teacher),
            ("take the mean over the n rows in the loss as well, not only in the gradient",
             multiplied(of_loss=rows)),
            ("take the mean over the n rows in the gradient as well, not only in the loss",
             multiplied(of_gradient=rows)),
            ("take the mean over the n rows, in the loss and in the gradient",
             multiplied(rows, rows)),
            ("the gradient has the wrong sign: where the student gives too "
             "much, its logit must fall",
             distillation_variant(gradient=lambda p, q: p - q)),
            ("this is the cross-entropy: the teacher's entropy, Σ p log p, is missing",
             distillation_variant(entropy=False)),
            ("this is the gradient with respect to the student's probabilities; the softmax turns "
             "it into one of the logits",
             distillation_variant(gradient=lambda p, q: -p / q)),
            *several("the loss is a sum over the V tokens and a mean over the n rows; yours is a "
                     "mean over all n V numbers",
                     multiplied(of_loss=per_token),
                     multiplied(per_token, per_token))),
        symptoms=(
            ("each row needs its own maximum, a.max(1, keepdims=True); the largest number of all "
             "rows makes the others vanish",
             one_maximum),
            ("p becomes 0 here, and its logarithm −∞: do not take the logarithm of p; log p is a "
             "− max − log Σ exp(a − max)",
             impossible),
            ("the logarithm of a small p is wrong if an ε is added or p is cut off: log p is "
             "a − max − log Σ exp(a − max)",
             cut_off)),
        hints=("Which distribution stands in front of the logarithm, the teacher's or the "
               "student's? What is the gradient of a cross-entropy?",
               "log p and log q are (n, V). The loss is one number, its gradient (n, V).",
               "With m = a.max(1, keepdims=True) the log softmax is a - m - np.log(np.exp(a - "
               "m).sum(1, keepdims=True)). The loss is np.sum(p * (log_p - log_q)) / n. The "
               "gradient is (q - p) / n.")),
    Exercise(
        name="qat.bug", title="Find the bug: training that stands still", stars=2,
        kind="fault",
        reference=trained, cases=trained_case,
        special=(
            ("two weights, of which the first goes to and fro between 0 and 1", to_and_fro),
            ("no steps: the weights are rounded, and that is all", no_steps)),
        mistakes=(
            ("the floats are rounded in place, so that every step smaller than half of s is "
             "lost: this is the fault above",
             trained_variant(in_place=nearest)),
            ("the floats are rounded before the first step; keep them as they come",
             trained_variant(start=nearest)),
            ("round the floats anew in each step; yours takes every gradient at the ŵ of the start",
             trained_variant(once=True)),
            ("take the gradient at the rounded weights; yours is the one of the floats, which "
             "are rounded only at the end",
             trained_variant(at=floats)),
            ("return the rounded weights, not the floats behind them",
             trained_variant(result=floats)),
            ("this is the ŵ of before the last update: take all steps, and round "
             "once more after the last one",
             trained_variant(count=lambda n: max(n - 1, 0))),
            ("this is one step too many", trained_variant(count=lambda n: n + 1)),
            *rounded_by("these are the codes; ŵ is s times them",
                        lambda w, s: np.rint(w / s)),
            *rounded_by("w is divided by s before it is rounded, and "
                        "multiplied afterwards: s ⌊w/s⌉",
                        lambda w, s: np.rint(w)),
            *rounded_by("w is divided by s before it is rounded: s ⌊w/s⌉",
                        lambda w, s: s * np.rint(w)),
            *rounded_by("round to the nearest integer: np.rint, not the next one below",
                        lambda w, s: s * np.floor(w / s)),
            *rounded_by("round to the nearest integer: np.rint, not the next one towards 0",
                        lambda w, s: s * np.trunc(w / s)),
            ("the derivative of a square has a factor 2: it is 2/n · Xᵀ(X ŵ − y)",
             trained_variant(factor=lambda X, s: 1 / len(X))),
            ("the derivative of the mean of squares has a factor 2/n",
             trained_variant(factor=lambda X, s: 1)),
            ("the weights go uphill: subtract the gradient",
             trained_variant(factor=lambda X, s: -2 / len(X))),
            ("straight through the rounding, ∂ŵ/∂w is 1, and not s",
             trained_variant(factor=lambda X, s: 2 / len(X) * s)),
            ("the loss is a mean over the rows of X; yours is one over its columns",
             trained_variant(factor=lambda X, s: 2 / X.shape[1])),
            ("the loss is a mean over the rows of X: divide the gradient by their number",
             trained_variant(factor=lambda X, s: 2))),
        tolerance=1e-9,
        hints=("How large is one step, compared with half of s? What happens "
               "to it in the next round?",
               "Keep two arrays (d,): the floats w, which collect the steps, and their rounded "
               "copy, which is used in the loss.",
               "In each step: w_hat = s * np.rint(w / s); w = w - lr * 2 / len(X) * X.T @ (X @ "
               "w_hat - y). At the end return s * np.rint(w / s).")),
    Exercise(
        name="qat.zero", title="The gradient of the zero point", stars=3,
        kind="gradient",
        reference=zero, cases=ste_case,
        special=(
            ("two numbers inside the range, the others clipped, on either side", both_sides),
            ("numbers exactly at both ends of the range", both_ends)),
        mistakes=(
            *shared(zero_variant,
                    ),
            ("a larger z moves a clipped number down: the slope is −s", zero_variant(lambda s: s)),
            *several("inside the range z is added and subtracted again; only clipped numbers have "
                     "a slope",
                     zero_variant(where=itself),
                     zero_variant(where=itself, inside=closed),
                     zero_variant(lambda s: s, where=itself),
                     zero_variant(lambda s: s, where=itself, inside=closed)),
            ("inside the range z is added and subtracted again, so that its "
             "slope there is 0, not −s",
             zero_variant(where=np.ones_like)),
            ("z is counted in steps: the slope is −s, not −1", zero_variant(lambda s: -1)),
            ("z is counted in steps: the slope is −s, not 1", zero_variant(lambda s: 1)),
            ("z is counted in steps: the slope is −s, not −1/s", zero_variant(lambda s: -1 / s)),
            ("one z is shared by all numbers: take the sum, not the mean",
             zero_variant(gather=np.mean)),
            ("multiply the slope by dy before you sum", zero_variant(weighted=False)),
            *several("compare u with the limits, not the rounded u",
                     zero_variant(u=staircase),
                     zero_variant(u=staircase, inside=closed))),
        symptoms=(
            ("this is one number for each x; one z is shared by all of them: return the sum",
             of_each),),
        hints=("Write x̂ for a number inside, and for a clipped one. Where is z left in it?",
               "The slope has the shape of x. The result is one number, "
               "because one z is shared by all.",
               "u = x / s + z. Clipped are those with u <= low or u >= high. The result is -s "
               "times the sum of their dy.")),
)
