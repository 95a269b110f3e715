"""Lesson 14: gradients through rounding, of scales and zero points; training; distillation."""
import math

import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- two questions of three exercises --------------------------------------------------------------
def place(x, s, z):
    """Return u, the place of x among the codes."""
    if slip("the zero point is missing in u = x/s + z"): return x / s
    if slip("the zero point is added: u = x/s + z"): return x / s - z
    if slip("compare x/s + z with the codes, not x itself"): return x
    if slip("x must be divided by s: u = x/s + z"): return x + z
    if slip("u = x/s + z divides x by s; yours multiplies it"): return x * s + z
    if slip("z is a code and is added after the division: u = x/s + z"): return (x + z) / s
    if slip("(x − z)/s is another formula; here x̂ = s (q − z), so that u = x/s + z"):
        return (x - z) / s
    if slip("this is the way back from codes to numbers; u = x/s + z"): return s * (x - z)
    if slip("compare u with the limits, not the rounded u"): return np.floor(x / s) + z
    return x / s + z


def within(u, low, high):
    """Is u inside the range, so that it is not clipped?"""
    match which("a number may lie outside on either side: compare u with both ends", 2):
        case 1: return low < u
        case 2: return u < high
    if slip("the lower end of the range need not be 0"): low = 0
    match which("the inequalities are strict: exactly at an end, the lower or the upper one, "
                "a number counts as clipped", 3):
        case 1: return (low <= u) & (u <= high)
        case 2: return (low <= u) & (u < high)
        case 3: return (low < u) & (u <= high)
    return (low < u) & (u < high)


def both_sides(rng):
    """Return two numbers inside the range, and seven that other formulas for u take for such."""
    x = np.array([0.2, -0.7, 0.7, 1.3, 2.2, 3.2, -1.5, 5.0, -9.0])
    return x, 0.5, 2, 0, 3, 2.0 ** np.arange(9)


def both_ends(rng):
    x, dy = np.array([-1.0, 0.5, 0.25]), np.array([1.5, 1.0, 1.0])
    return x, 0.5, 2, 0, 3, dy


# -- qat.ste ---------------------------------------------------------------------------------------
def ste(x, s, z, low, high, dy):
    u = place(x, s, z)
    inside = within(u, low, high)
    if slip("outside the range the gradient is 0"): inside = np.ones(u.shape, bool)
    if slip("you gave the clipped numbers a gradient; only the others have one"): inside = ~inside
    if slip("compare u with the limits, not the rounded u: PyTorch's mask reaches half a "
            "step further on each side"):
        inside = (low <= np.rint(x / s) + z) & (np.rint(x / s) + z <= high)
    if slip("compare u with the limits, not the rounded u: numbers whose code is the lowest or "
            "the highest may still lie inside"):
        inside = (low < np.rint(x / s) + z) & (np.rint(x / s) + z < high)
    dx = dy * inside
    if slip("∂x̂/∂x is 1, not s: the step multiplies and divides"): dx = dx * s
    if slip("∂x̂/∂x is 1, not 1/s: the step multiplies and divides"): dx = dx / s
    if slip("this is ∂x̂/∂x; multiply it by dy"): dx = 1.0 * inside
    if slip("this is x̂ itself; return dx, the gradient"):
        dx = s * (np.clip(np.rint(x / s) + z, low, high) - z)
    return dx


def ste_case(rng):
    steps, s = 2**int(rng.integers(2, 5)) - 1, float(rng.uniform(0.2, 0.6))
    low = -int(rng.integers(1, 4))
    high = low + steps
    z = int(rng.integers(low + 1, high))
    x = rng.normal(0, 1, (4, 11))
    return x, s, z, low, high, rng.normal(0, 1, (4, 11))


# -- qat.lsq ---------------------------------------------------------------------------------------
def lsq(x, s, bits, dy):
    Q_N, Q_P = 2**(bits - 1), 2**(bits - 1) - 1
    if slip("Q_N is 2^(b−1), one more than Q_P"): Q_N = Q_P
    u = x / s[:, None]
    k = np.clip(np.rint(u), -Q_N, Q_P)
    inside = within(u, -Q_N, Q_P)
    if slip("compare u with the limits, not the rounded u: PyTorch's mask reaches half a "
            "step further on each side"):
        inside = (-Q_N <= np.rint(u)) & (np.rint(u) <= Q_P)
    if slip("compare u with the limits, not the rounded u: numbers whose code is the lowest or "
            "the highest may still lie inside"):
        inside = (-Q_N < np.rint(u)) & (np.rint(u) < Q_P)
    slope = np.where(inside, k - u, k)
    if slip("inside, the slope is round(u) − u, not u − round(u)"):
        slope = np.where(inside, u - k, k)
    if slip("inside, the slope is round(u) − u: s also divides, in u"): slope = k
    if slip("a clipped number's slope is its code alone: u does not come in, "
            "because clip is flat there"):
        slope = k - u
    if slip("clipped numbers have a slope too: −Q_N or Q_P"): slope = np.where(inside, k - u, 0)
    g = 1 / math.sqrt(x.shape[1] * Q_P)
    if slip("the factor g = 1/√(n Q_P) is missing in ds"): g = 1
    if slip("this is the mean over the row; ds is the sum times g = 1/√(n Q_P)"):
        g = 1 / x.shape[1]
    if slip("g is 1/√(n Q_P); take the root"): g = 1 / (x.shape[1] * Q_P)
    if slip("n counts the numbers that share one step, those of a row; yours counts the rows"):
        g = 1 / math.sqrt(len(x) * Q_P)
    if slip("n counts the numbers that share one step, those of a row; "
            "yours counts all numbers of x"):
        g = 1 / math.sqrt(x.size * Q_P)
    x_hat, dx, ds = s[:, None] * k, dy * inside, g * (dy * slope).sum(1)
    if slip("x̂ is s times the code; yours is the code"): x_hat = k
    if slip("x has no gradient where it is clipped"): dx = dy
    if slip("g belongs to ds alone; dx does not have it"): dx = g * dx
    if slip("multiply the slopes by dy before you sum them"): ds = g * slope.sum(1)
    return x_hat, dx, ds


def lsq_case(rng):
    n, B = int(rng.integers(3, 6)), int(rng.integers(10, 15))
    x, s = rng.normal(0, 1, (n, B)), rng.uniform(0.2, 0.7, n)
    return x, s, int(rng.integers(2, 5)), rng.normal(0, 1, (n, B))


def one_row(x, dy):
    return lambda rng: (np.array([x]), np.array([1.0]), 3, np.array([dy]))


# -- qat.peqa --------------------------------------------------------------------------------------
def peqa(x, dy, q, z, g):
    G = dy.T @ x
    C = q - np.repeat(z, g, axis=1)
    if slip("the zero points are missing: the scale multiplies q − z"): C = q
    if slip("the scale multiplies q − z, not q + z"): C = q + np.repeat(z, g, axis=1)
    if slip("a zero point belongs to g neighbouring weights: use np.repeat, not np.tile"):
        C = q - np.tile(z, (1, g))
    if slip("the gradient has the other sign: the scale multiplies q − z, not z − q"): C = -C
    if slip("q − z is a uint8 here, in which 3 − 8 is 251: take integers with a sign, or floats"):
        C = C.astype(np.uint8).astype(int)
    products = (G * C).reshape(len(q), -1, g)
    if slip("this is one number for each weight; the g weights of a group share "
            "one scale: take their sum"):
        return G * C
    if slip("this is one number for each row; each group of g weights has a scale of its own"):
        return products.sum((1, 2))
    if slip("sum the products of gradient and q − z, not the gradients and the codes by "
            "themselves"):
        return G.reshape(products.shape).sum(2) * C.reshape(products.shape).sum(2)
    if slip("take the sum over the group, not the mean"): return products.mean(2)
    match which("a group is g neighbouring weights of a row: the last axis of the reshaped "
                "array is g, and the sum is over it", 2):
        case 1: return products.reshape(len(q), g, -1).sum(1)
        case 2: return (G * (q - np.tile(z, (1, g)))).reshape(len(q), g, -1).sum(1)
    if slip("this is a mean over the tokens; dyᵀ x sums over them"): return products.sum(2) / len(x)
    return products.sum(2)


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


# -- qat.distillation ------------------------------------------------------------------------------
def distillation(teacher, student):
    def log_softmax(a):
        a = a - a.max(1, keepdims=True)
        return a - np.log(np.exp(a).sum(1, keepdims=True))
    n, V = teacher.shape
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    p, q = np.exp(log_p), np.exp(log_q)
    kl = p * (log_p - log_q)
    if slip("this is the cross-entropy: the teacher's entropy, Σ p log p, is missing"):
        kl = -p * log_q
    loss, gradient = float(kl.sum()) / n, (q - p) / n
    match which("this is the other divergence, KL(student ‖ teacher)", 2):
        case 1: loss = float(np.sum(q * (log_q - log_p))) / n
        case 2:
            kl = np.sum(q * (log_q - log_p), axis=1, keepdims=True)
            loss, gradient = float(kl.mean()), q * (log_q - log_p - kl) / n
    if slip("take the mean over the n rows in the loss as well, not only in the gradient"):
        loss = loss * n
    if slip("take the mean over the n rows in the gradient as well, not only in the loss"):
        gradient = gradient * n
    if slip("take the mean over the n rows, in the loss and in the gradient"):
        loss, gradient = loss * n, gradient * n
    if slip("the gradient has the wrong sign: where the student gives too "
            "much, its logit must fall"):
        gradient = -gradient
    if slip("this is the gradient with respect to the student's probabilities; the softmax turns "
            "it into one of the logits"):
        gradient = -p / q / n
    match which("the loss is a sum over the V tokens and a mean over the n rows; yours is a "
                "mean over all n V numbers", 2):
        case 1: loss = loss / V
        case 2: loss, gradient = loss / V, gradient / V
    return loss, gradient


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


# -- qat.bug ---------------------------------------------------------------------------------------
def trained(w, X, y, s, lr, steps):
    if slip("the floats are rounded before the first step; keep them as they come"):
        w = nearest(w, s)
    if slip("this is the ŵ of before the last update: take all steps, and round "
            "once more after the last one"):
        steps = max(steps - 1, 0)
    if slip("this is one step too many"): steps += 1
    start = w
    for _ in range(steps):
        if slip("the floats are rounded in place, so that every step smaller than half of s is "
                "lost: this is the fault above"):
            w = nearest(w, s)
        w_hat = nearest(w, s)
        if slip("round the floats anew in each step; yours takes every gradient at the ŵ of the "
                "start"):
            w_hat = nearest(start, s)
        if slip("take the gradient at the rounded weights; yours is the one of the floats, which "
                "are rounded only at the end"):
            w_hat = w
        gradient = 2 / len(X) * X.T @ (X @ w_hat - y)
        if slip("the derivative of a square has a factor 2: it is 2/n · Xᵀ(X ŵ − y)"):
            gradient = gradient / 2
        if slip("the derivative of the mean of squares has a factor 2/n"):
            gradient = gradient * len(X) / 2
        if slip("the weights go uphill: subtract the gradient"): gradient = -gradient
        if slip("straight through the rounding, ∂ŵ/∂w is 1, and not s"): gradient = gradient * s
        if slip("the loss is a mean over the rows of X; yours is one over its columns"):
            gradient = gradient * len(X) / X.shape[1]
        if slip("the loss is a mean over the rows of X: divide the gradient by their number"):
            gradient = gradient * len(X)
        w = w - lr * gradient
    if slip("return the rounded weights, not the floats behind them"): return w
    return nearest(w, s, last=True)


def nearest(w, s, last=False):
    """Return ŵ. A slip is made here each time, or the last time alone."""
    now = (1, 2) if last else (1,)
    if which("these are the codes; ŵ is s times them", 2) in now: return np.rint(w / s)
    if which("w is divided by s before it is rounded, and "
             "multiplied afterwards: s ⌊w/s⌉", 2) in now:
        return np.rint(w)
    if which("w is divided by s before it is rounded: s ⌊w/s⌉", 2) in now: return s * np.rint(w)
    if which("round to the nearest integer: np.rint, not the next one below", 2) in now:
        return s * np.floor(w / s)
    if which("round to the nearest integer: np.rint, not the next one towards 0", 2) in now:
        return s * np.trunc(w / s)
    return s * np.rint(w / s)


def trained_case(rng):
    n, d = int(rng.integers(20, 30)), int(rng.integers(4, 7))
    X = rng.normal(0, 1, (n, d))
    return rng.normal(0, 1, d), X, X @ rng.normal(0, 1, d), 0.25, 0.02, 60


def to_and_fro(rng):
    w, y = np.array([0.9, 5.2]), np.array([0.3, 5.3])
    return w, np.eye(2), y, 1.0, 0.1, 7


def no_steps(rng):
    return np.array([0.3, 0.6]), np.eye(2), np.ones(2), 0.5, 0.1, 0


# -- qat.zero --------------------------------------------------------------------------------------
def zero(x, s, z, low, high, dy):
    u = place(x, s, z)
    clipped, slope = ~within(u, low, high), -s
    if slip("a larger z moves a clipped number down: the slope is −s"): slope = s
    match which("inside the range z is added and subtracted again; only clipped numbers have "
                "a slope", 4):
        case 1: clipped = ~clipped
        case 2: clipped = (low <= u) & (u <= high)
        case 3: clipped, slope = ~clipped, s
        case 4: clipped, slope = (low <= u) & (u <= high), s
    if slip("inside the range z is added and subtracted again, so that its "
            "slope there is 0, not −s"):
        clipped = np.ones_like(u)
    if slip("z is counted in steps: the slope is −s, not −1"): slope = -1
    if slip("z is counted in steps: the slope is −s, not 1"): slope = 1
    if slip("z is counted in steps: the slope is −s, not −1/s"): slope = -1 / s
    if slip("compare u with the limits, not the rounded u", 2):
        clipped = (np.rint(x / s) + z <= low) | (np.rint(x / s) + z >= high)
    if slip("compare u with the limits, not the rounded u", 3):
        clipped = (np.rint(x / s) + z < low) | (np.rint(x / s) + z > high)
    slopes = dy * slope * clipped
    if slip("one z is shared by all numbers: take the sum, not the mean"):
        return float(slopes.mean())
    if slip("multiply the slope by dy before you sum"): slopes = slope * clipped
    return float(np.sum(slopes))


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
        mistakes=slips(ste, within, place),
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
        mistakes=slips(lsq, within),
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
        mistakes=slips(peqa),
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
        mistakes=slips(distillation),
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
        mistakes=slips(trained, nearest),
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
        mistakes=slips(zero, within, place),
        symptoms=(
            ("this is one number for each x; one z is shared by all of them: return the sum",
             of_each),),
        hints=("Write x̂ for a number inside, and for a clipped one. Where is z left in it?",
               "The slope has the shape of x. The result is one number, "
               "because one z is shared by all.",
               "u = x / s + z. Clipped are those with u <= low or u >= high. The result is -s "
               "times the sum of their dy.")),
)
