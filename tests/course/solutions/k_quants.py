"""Solutions of lesson 18's exercises, right and wrong."""
from itertools import combinations

import numpy as np

import tinypeft as tp
from tinypeft.course.exercises import k_quants as reference
from tinypeft.quant.k_quants import WEIGHED_TRIALS, fit_line, steps


# -- reading a superblock --------------------------------------------------------------------------
def read_by_rows(d, sc, e, mn, q):
    return np.stack([d * sc[j] * q[j] - e * mn[j] for j in range(8)])


def with_steps(f): return lambda d, sc, e, mn, q: f(np.outer(d * sc, np.ones(32)), np.outer(e * mn, np.ones(32)), d, mn[:, None], q)


# -- which type ------------------------------------------------------------------------------------
def measured(block):
    """The step of a block, the steps between its ends, whether 0 is a level; None off a grid."""
    values = np.unique(block)
    step = np.min(np.diff(values)[np.diff(values) > 1e-5 * np.ptp(values)])
    codes = (values - values[0]) / step
    if np.abs(codes - codes.round()).max() > 0.05: return None
    phase = values / step
    return step, codes[-1].round(), np.abs(phase - phase.round()).max() < 0.05


def by_votes(W_hat):
    """Each block votes."""
    blocks = [measured(b) for b in W_hat.reshape(-1, 32).astype(float)]
    good = [b for b in blocks if b]
    if len(good) < len(blocks) / 2: return "Q6_K"
    longest = max(n for _, n, _ in good)
    if longest > 31: return "Q8_0"
    first = "Q4_" if longest < 16 else "Q5_"
    if np.mean([zero for *_, zero in good]) > 0.5: return first + "0"
    spans = [n for _, n, _ in good]
    return first + ("1" if np.mean(np.array(spans) == longest) > 0.97 and whole_steps(blocks) < 0.5 else "K")


def of_values(W_hat):
    """The bits by different values in all, and never by their distance."""
    truth, blocks = by_votes(W_hat), W_hat.reshape(-1, 32)
    if truth == "Q6_K": return truth
    n = max(len(np.unique(b)) for b in blocks)
    return "Q8_0" if n > 31 else ("Q4" if n <= 16 else "Q5") + (truth[2:] if truth != "Q8_0" else "_0")


def on_the_grid(any_block=False, near=0.05):
    """0 is a level of some block; or it is near one."""
    def which(W_hat):
        truth = by_votes(W_hat)
        if truth in ("Q6_K", "Q8_0"): return truth
        blocks = W_hat.reshape(-1, 32).astype(float)
        phases = np.array([b / measured(b)[0] for b in blocks if measured(b)])
        there = abs(phases - phases.round()).max(axis=1) < near
        if there.any() if any_block else there.mean() > 0.5: return truth[:3] + "0"
        return truth[:3] + "1" if truth.endswith("0") else truth
    return which


def by_the_first_block(W_hat):
    """As many levels as the first sub-block uses."""
    truth, first = by_votes(W_hat), measured(W_hat.reshape(-1, 32)[0].astype(float))
    if truth == "Q6_K" or not first: return truth
    if first[1] > 31: return "Q8_0"
    return ("Q4" if first[1] < 16 else "Q5") + (truth[2:] if truth != "Q8_0" else "_0")


def of_every_superblock(W_hat):
    """A K only if the steps of every superblock have a common measure."""
    truth = by_votes(W_hat)
    if truth not in ("Q4_K", "Q5_K"): return truth
    return truth if whole_steps([measured(b) for b in W_hat.reshape(-1, 32).astype(float)]) == 1 else truth[:3] + "1"


def whole_steps(blocks):
    """The share of superblocks whose steps have a common measure."""
    there = [[b[0] for b in blocks[i:i + 8] if b] for i in range(0, len(blocks), 8)]
    multiples = [63 * np.array(s) / max(s) for s in there]
    return np.mean([np.abs(m - m.round()).max() < 0.1 for m in multiples])


def named(minimum=None, K=None, sixteen=True, values=False):
    """With an answer that is always the same, or by the number of different values."""
    def which(W_hat):
        truth = by_votes(W_hat)
        if truth == "Q6_K": return truth if sixteen else "Q8_0"
        if values:
            n = max(len(np.unique(b)) for b in W_hat.reshape(-1, 32))
            truth = ("Q4" if n <= 16 else "Q5") + (truth[2:] if truth != "Q8_0" else "_0")
        if truth == "Q8_0": return truth
        if minimum is False: return truth[:3] + "0"
        if minimum is True and truth.endswith("0"):
            return truth[:3] + ("K" if whole_steps([measured(b) for b in W_hat.reshape(-1, 32).astype(float)]) > 0.5 else "1")
        if K is True and truth.endswith("1"): return truth[:3] + "K"
        if K is False and truth.endswith("K"): return truth[:3] + "1"
        return truth
    return which


# -- the search ------------------------------------------------------------------------------------
def start(x, w):
    low = np.minimum(0, x.min(1))
    return (x.max(1) - low) / 15, 0 - low


def codes(x, s, m): return np.rint((x + m[:, None]) / s[:, None]).clip(0, 15)
def cost(x, w, s, m): return (w * (s[:, None] * codes(x, s, m) - m[:, None] - x)**2).sum(1)


def tenfold(x, w):
    """A hundred grids without a fit, then ten fits from the best one."""
    s0, m0 = start(x, w)
    high = 15 * s0 - m0
    s, m, least = s0, m0, cost(x, w, s0, m0)
    def offer(new_s, new_m):
        nonlocal s, m, least
        error = cost(x, w, new_s, new_m)
        s, m, least = (np.where(error < least, a, b) for a, b in ((new_s, s), (new_m, m), (error, least)))
    for a in np.linspace(0.5, 1.05, 10):
        for b in np.linspace(0.5, 1.05, 10): offer((b * high + a * m0) / 15, a * m0)
    for _ in range(10): offer(*refit(x, w, s, m))
    return s, m


def refit(x, w, s, m):
    """Weighted least squares, block by block."""
    q, out = codes(x, s, m), []
    for k, (x_k, w_k, q_k) in enumerate(zip(x, w, q, strict=True)):
        root = np.sqrt(w_k)
        (slope, minimum), *_ = np.linalg.lstsq(root[:, None] * np.stack([q_k, -np.ones(32)], 1), root * x_k, rcond=None)
        if minimum < 0: slope, minimum = (w_k * q_k * x_k).sum() / max((w_k * q_k * q_k).sum(), 1e-12), 0.0
        out.append((slope, minimum) if slope > 0 else (s[k], m[k]))
    return np.array(out)[:, 0], np.array(out)[:, 1]


def refitted(rounds, of=lambda w: w):
    def search(x, w):
        s, m = start(x, w)
        for _ in range(rounds): s, m = refit(x, of(w), s, m)
        return s, m
    return search


def llama_cpp(x, w):
    s, m, _ = fit_line(np.float32(x.T), np.float32(w.T), 15, steps(*WEIGHED_TRIALS, 15))
    return s.astype(float), m.astype(float)


def alike(x, w):
    """The best factor for all blocks together."""
    s, m = start(x, w)
    return min(((f * s, f * m) for f in np.linspace(0.6, 1, 21)), key=lambda pair: cost(x, w, *pair).sum())


def never_back(x, w):
    """The fit to a narrower grid, whether it is better or not."""
    s, m = start(x, w)
    return refit(x, w, 0.7 * s, 0.7 * m)


def kept_unweighted(x, w):
    """Many starts, of which the best without weights is kept."""
    s0, m0 = start(x, w)
    tried = [(s0, m0)] + [refit(x, np.ones_like(w), f * s0, g * m0) for f in (0.5, 0.75, 1) for g in (0.5, 1)]
    best = np.argmin([cost(x, np.ones_like(w), s, m) for s, m in tried], axis=0)
    return tuple(np.stack(parts)[best, np.arange(len(x))] for parts in zip(*tried, strict=True))


# -- the mended function ---------------------------------------------------------------------------
def stored_with(d_of=63, s_read=True, m_read=True, last=15, sign=1, whole=np.rint, zero=True):
    def bug(x, s, m):
        d, e = s.max() / d_of, m.max() / d_of
        sc, mn = (whole(s / d) if d else s * 0), np.rint(m / e) if e else m * 0
        step, low = (d * sc if s_read else s), (e * mn if m_read else m)
        q = np.zeros_like(x)
        for j in range(8):
            if sc[j] or not zero: q[j] = np.clip(np.rint((x[j] + sign * low[j]) / (step[j] or 1)), 0, last)
        return d, sc.astype(int), e, mn.astype(int), q.astype(int)
    return bug


def divides_by_zero(x, s, m):
    d, e = s.max() / 63, m.max() / 63
    sc, mn = np.rint(s / d), np.rint(m / e)
    return d, sc, e, mn, np.clip(np.rint((x + (e * mn)[:, None]) / (d * sc)[:, None]), 0, 15)


def divides_by_d(x, s, m):
    d, e = s.max() / 63, m.max() / 63
    return stored_of(x, d, np.rint(s / d), e, np.rint(m / e) if e else 0 * m)


def rounded_up(x, s, m):
    d, e = s.max() / 63, max(m.max() / 63, 1e-30)
    return stored_of(x, d, np.ceil(s / d) if d else s, e if m.any() else 0.0, np.ceil(m / e))


def stored_of(x, d, sc, e, mn):
    step = (d * sc)[:, None]
    q = np.clip(np.rint((x + (e * mn)[:, None]) / np.where(step > 0, step, 1)), 0, 15)
    return d, sc, e, mn, np.where(step > 0, q, 0)


def shared(x, s, m):
    d = max(s.max(), m.max()) / 63
    return stored_of(x, d, np.rint(s / d), d, np.rint(m / d))


# -- bits for layers -------------------------------------------------------------------------------
def squared(W, X, kind): return np.square((tp.GGUF(kind).quantize(W).dequantize().astype(float) - W) @ X.T).sum()
def bits(W, better): return W.size * (6.5625 if better else 4.5)


def best_of_all(weights, inputs, budget):
    n = len(weights)
    table = [(squared(W, X, "Q4_K"), squared(W, X, "Q6_K")) for W, X in zip(weights, inputs, strict=True)]
    choices = [[i in chosen for i in range(n)] for k in range(n + 1) for chosen in combinations(range(n), k)]
    fitting = [c for c in choices if sum(map(bits, weights, c)) <= budget]
    return min(fitting, key=lambda c: sum(table[i][c[i]] for i in range(n)))


def by(gain, per_bit=True):
    def mixture(weights, inputs, budget):
        score = [gain(W, X) / (W.size if per_bit else 1) for W, X in zip(weights, inputs, strict=True)]
        better = np.zeros(len(weights), bool)
        for i in sorted(range(len(weights)), key=lambda i: -score[i]):
            better[i] = True
            if sum(map(bits, weights, better)) > budget: better[i] = False
        return better
    return mixture


def paid_twice(weights, inputs, budget):
    """Q6_K at its whole price, out of what Q4_K leaves."""
    better, left = np.zeros(len(weights), bool), budget - sum(bits(W, False) for W in weights)
    for i in np.argsort([-gain(W, X) / W.size for W, X in zip(weights, inputs, strict=True)]):
        if bits(weights[i], True) <= left: better[i], left = True, left - bits(weights[i], True)
    return better


def to_the_first_that_is_too_large(weights, inputs, budget):
    order = np.argsort([-gain(W, X) / W.size for W, X in zip(weights, inputs, strict=True)])
    taken = np.cumsum([2.0625 * weights[i].size for i in order]) <= budget - 4.5 * sum(W.size for W in weights)
    return np.isin(np.arange(len(order)), order[taken])


def gain(W, X): return squared(W, X, "Q4_K") - squared(W, X, "Q6_K")


# -- inputs ----------------------------------------------------------------------------------------
def error(W): return tp.GGUF("Q4_K").quantize(W).dequantize().astype(float) - W


def in_the_null_space(W):
    """From the singular vectors that belong to no row of the error."""
    Vt = np.linalg.svd(error(W))[2]
    return np.random.default_rng(5).normal(0, 3, (16, W.shape[1] - len(W))) @ Vt[len(W):]


def drawn(make): return lambda W: make(np.random.default_rng(0), (16, W.shape[1]))


def along(W): return np.random.default_rng(1).standard_normal((16, len(W))) @ error(W)


def away_from(W):
    """Inputs that W itself turns into 0."""
    Vt = np.linalg.svd(W.astype(float))[2]
    return np.random.default_rng(5).normal(0, 3, (16, W.shape[1] - len(W))) @ Vt[len(W):]


def of_the_other(W):
    X = np.random.default_rng(0).standard_normal((16, W.shape[1]))
    D = tp.GGUF("Q4_K", importance=True).quantize(W, np.float32((X**2).mean(0))).dequantize().astype(float) - W
    return X - X @ np.linalg.pinv(D) @ D


RIGHT = {"k_quants.read": [read_by_rows, lambda *a: read_by_rows(*a).tolist()],
         "k_quants.which": [by_votes, lambda W_hat: np.str_(by_votes(W_hat))],
         "k_quants.search": [tenfold, lambda x, w: [part.tolist() for part in tenfold(x, w)]],
         "k_quants.bug": [stored_with(), lambda *a: [np.asarray(part).tolist() for part in stored_with()(*a)]],
         "k_quants.mixture": [best_of_all, lambda *a: np.array(best_of_all(*a)), by(gain)],
         "k_quants.misled": [in_the_null_space, lambda W: (2 * in_the_null_space(W)).tolist()]}

WRONG = {
    "k_quants.read": [
        (with_steps(lambda s, m, d, mn, q: s * q + m), "the minimum e·mn is subtracted"),
        (with_steps(lambda s, m, d, mn, q: s * q), "the minima are missing"),
        (with_steps(lambda s, m, d, mn, q: s * q - d * mn), "a scale of their own, e"),
        (with_steps(lambda s, m, d, mn, q: s * q - mn), "mn is a whole number"),
        (with_steps(lambda s, m, d, mn, q: s * (q - m)), "the step multiplies the code alone"),
        (lambda d, sc, e, mn, q: d * sc * q - e * mn, "would be one for each column"),
        (lambda *a: read_by_rows(*a).ravel(), "look at .reshape")],
    "k_quants.which": [
        (of_every_superblock, "63·step/(the largest) is whole"),
        (named(values=True), "count the steps between"),
        (named(minimum=False), "this type has a minimum"),
        (named(minimum=True), "this type has no minimum"),
        (named(K=False), "the eight steps of most"),
        (named(K=True), "each block has a step of its own"),
        (named(sixteen=False), "and in no other type"),
        (of_values, "since some levels in between are not in use"),
        (on_the_grid(any_block=True), "let most blocks decide"),
        (on_the_grid(near=0.3), "with a wide tolerance"),
        (by_the_first_block, "counted in the first block alone"),
        (lambda W_hat: reference.type_of_weights(W_hat.reshape(-1)[:256]), "only the first superblock"),
        (lambda W_hat: "Q2_K", "one of the eight names"),
        (lambda W_hat: None, "is None")],
    "k_quants.search": [
        (start, "this is max–min itself"),
        (lambda x, w: tenfold(x, w)[::-1], "s and m are exchanged"),
        (lambda x, w: (tenfold(x, w)[0], -tenfold(x, w)[1]), "must not be negative"),
        (lambda x, w: (0 * x[:, 0], 0 * x[:, 0]), "a scale is 0"),
        (never_back, "keep the start"),
        (lambda x, w: tenfold(x, np.ones_like(w)), "w is not used: each square"),
        (kept_unweighted, "in the fit and where the best is chosen"),
        (alike, "the same factor"),
        (lambda x, w: tuple(0.9 * part for part in start(x, w)), "choose for each block by its own"),
        (refitted(2), "and in the worst block"),
        (refitted(1), "not the best ones for their codes"),
        (refitted(8), "a fit from one start stops"),
        (llama_cpp, "uses fit_line"),
        (lambda x, w: tenfold(x, w)[0], "2 results")],
    "k_quants.bug": [
        (stored_with(s_read=False, m_read=False), "the fault of the code"),
        (stored_with(m_read=False), "take the stored minima"),
        (stored_with(s_read=False), "take the stored steps"),
        (stored_with(last=99), "four bits"),
        (stored_with(s_read=False, zero=False), "d·sc as well"),
        (stored_with(sign=-1), "not of x − e·mn"),
        (stored_with(d_of=64), "the largest of sc is 63"),
        (rounded_up, "nearest whole numbers"),
        (stored_with(whole=lambda v: np.maximum(np.rint(v), 1)), "stay as in the code above"),
        (stored_with(zero=False), "the codes are 0, and"),
        (divides_by_d, "all s or all m are 0"),
        (shared, "a scale e of their own"),
        (divides_by_zero, "nothing is divided by it"),
        (lambda *a: stored_with()(*a)[1:], "5 results")],
    "k_quants.mixture": [
        (by(lambda W, X: np.square(tp.GGUF("Q4_K").quantize(W).dequantize() - W).sum()), "measure that of the output"),
        (by(gain, per_bit=False), "divide by its bits"),
        (by(lambda W, X: gain(W, X) / np.square(W @ X.T).sum()), "has them undivided"),
        (by(lambda W, X: np.square(X).sum()), "the inputs alone"),
        (by(lambda W, X: W.size, per_bit=False), "the largest layers come first"),
        (by(lambda W, X: 1 / W.size, per_bit=False), "the smallest layers come first"),
        (lambda weights, inputs, budget: np.ones(len(weights), bool), "more than the budget"),
        (lambda weights, inputs, budget: np.zeros(len(weights), bool), "nothing was chosen"),
        (by(lambda W, X: np.square(W @ X.T).sum()), "how large its output is"),
        (to_the_first_that_is_too_large, "ends at the first layer"),
        (paid_twice, "the 4.5 are paid already"),
        (by(lambda W, X: gain(W, X[:1])), "the errors of all tokens"),
        (lambda weights, inputs, budget: np.arange(len(weights)) == np.argmin([W.size for W in weights]), "of the least, in"),
        (lambda *a: np.array(best_of_all(*a), int), "True and False")],
    "k_quants.misled": [
        (drawn(lambda rng, shape: rng.standard_normal(shape)), "drawn one by one"),
        (along, "along the error"),
        (of_the_other, "at right angles to the error with"),
        (drawn(lambda rng, shape: np.zeros(shape)), "all inputs are 0"),
        (drawn(lambda rng, shape: np.ones(shape)), "all inputs are equally important"),
        (drawn(lambda rng, shape: np.eye(*shape)), "let inputs be related"),
        (drawn(lambda rng, shape: np.eye(1, shape[1]).repeat(16, 0)), "no token has two inputs"),
        (away_from, "at right angles to W; take"),
        (lambda W: 3 * along(W)[::-1], "you need the opposite"),
        (drawn(lambda rng, shape: np.eye(*shape) + 1), "times as large"),
        (lambda W: in_the_null_space(W)[:15], "shape (15, 256)")],
}
