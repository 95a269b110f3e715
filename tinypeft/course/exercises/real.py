"""Lesson 16: the parts of a Llama that a GPT-2 has not, and rows and blocks of a GGUF file."""
import numpy as np

from ...interop.gguf_types import TYPES, decode
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]

Q4_1 = next(kind for kind in TYPES.values() if kind.name == "Q4_1")


# -- real.norm_backward ----------------------------------------------------------------------------
def norm_backward(x, gamma, eps, dy):
    layer_norm = slip("RMSNorm subtracts no mean; this is the gradient of a layer norm")
    inside = which("γ belongs inside the mean: first γ dy, then what r takes away", 2)
    if layer_norm: x = x - x.mean(-1, keepdims=True)
    if slip("ε is missing under the root"): eps = 0
    r = np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    if slip("ε is added under the root"): r = np.sqrt((x**2).mean(-1, keepdims=True)) + eps
    y, g = x / r, gamma * dy
    if slip("γ is missing in dx: the gradient of x / r is γ times dy"): g = dy
    along = y * (g * y).mean(-1, keepdims=True)
    if slip("r was taken as a constant; it depends on each number of the row"): along = 0
    if slip("RMSNorm subtracts no mean; you subtract that of γ dy as well, as in a layer norm"):
        along = along + g.mean(-1, keepdims=True)
    match inside:
        case 1: along = gamma * y * (dy * y).mean(-1, keepdims=True)
        case 2: along = y * (dy * y).mean(-1, keepdims=True)
    if slip("r falls out of y for a longer x, so this part is subtracted; you added it"):
        along = -along
    if slip("r is the root of a mean: there is a factor 1/d in its derivative; you took the sum"):
        along = y * (g * y).sum(-1, keepdims=True)
    dx, dgamma = (g - along) / r, (dy * y).sum(0)
    if slip("dx has to be divided by r"): dx = g - along
    if slip("dx is divided by r once"): dx = (g - along) / r**2
    if layer_norm: dx = dx - dx.mean(-1, keepdims=True)
    if slip("dγ is dy times x/r; you took x"): dgamma = (dy * x).sum(0)
    if slip("dγ is a sum over the rows; you took their mean"): dgamma = (dy * y).mean(0)
    return dx, dgamma


def _norm_and_gradient(rng):
    n, d = int(rng.integers(2, 5)), int(rng.integers(5, 9))
    x, gamma = rng.normal(0.7, 1, (n, d)), rng.uniform(0.5, 2, d)
    return x, gamma, float(rng.choice([0.1, 0.3])), rng.normal(size=(n, d))


def _of_the_page(rng):
    """Return the numbers of the lesson's example."""
    return np.array([[3.0, 3, 3, -3]]), np.ones(4), 0.0, np.array([[1.0, 0, 0, 0]])


def _across_x(fn, rng):
    """A longer x has the same y if ε is 0, so the gradient has no part along x."""
    x, gamma, _, dy = _norm_and_gradient(rng)
    dx, _ = fn(x, gamma, 0.0, dy)
    return bool(np.abs((np.asarray(dx) * x).sum(-1)).max() < 1e-9)


# -- real.rotary -----------------------------------------------------------------------------------
def rotary(x, theta):
    T, d = x.shape[-2:]
    frequencies = theta ** (-2 * np.arange(d // 2) / d)
    if slip("the exponent is −2i/d; yours is −i/d"): frequencies = theta ** (-np.arange(d // 2) / d)
    if slip("the exponent is −2i/d, and i counts the pairs; yours is −4i/d"):
        frequencies = frequencies**2
    if slip("the exponent is −2i/d, so that later pairs turn more slowly"):
        frequencies = 1 / frequencies
    phi = np.arange(T)[:, None] * frequencies                     # (T, d/2)
    if slip("the pairs turn the other way: the sign of sin φ is wrong"): phi = -phi
    if slip("the angle grows with the position, axis 1; yours grows with the head"):
        phi = np.arange(len(x))[:, None, None] * frequencies
    if slip("the first position is 0, and is not rotated"):
        phi = (1 + np.arange(T))[:, None] * frequencies
    x1, x2 = x[..., :d // 2], x[..., d // 2:]
    neighbours = slip("you paired neighbours, x_{2i} and x_{2i+1}; here x_i belongs to x_{i + d/2}")
    if neighbours or slip("you paired neighbours, x_{2i} and x_{2i+1}, and joined the results as "
                          "halves; here x_i belongs to x_{i + d/2}"):
        x1, x2 = x[..., 0::2], x[..., 1::2]
    first, second = x1 * np.cos(phi) - x2 * np.sin(phi), x2 * np.cos(phi) + x1 * np.sin(phi)
    if slip("the second half was computed from a first half that was overwritten before: compute "
            "both from x, then join them"):
        second = x2 * np.cos(phi) + first * np.sin(phi)
    if slip("both halves of a pair change; yours leaves the second half as it was"): second = x2
    if neighbours or slip("the rotated numbers go back to their places, the halves; yours are "
                          "interleaved"):
        return np.stack([first, second], axis=-1).reshape(x.shape)
    return np.concatenate([first, second], axis=-1)


def _heads(rng):
    H, T = int(rng.integers(2, 4)), int(rng.integers(4, 7))
    x = rng.standard_normal((H, T, 2 * int(rng.integers(2, 5))))
    return x, float(rng.choice([10.0, 100.0]))


def _by_distance(fn, rng):
    """One query and one key, at every position: their product is the same along each diagonal."""
    def everywhere():
        return np.repeat(rng.standard_normal((1, 1, 6)), 8, axis=1)
    q, k = fn(everywhere(), 10.0)[0], fn(everywhere(), 10.0)[0]
    S = q @ k.T
    return all(np.ptp(np.diagonal(S, t)) < 1e-9 for t in range(-7, 8))


# -- real.fewer ------------------------------------------------------------------------------------
def fewer(W, d_head, n):
    heads = W.reshape(n, -1, d_head, W.shape[1])           # new head, old head, row, input
    if slip("consecutive heads are joined, (0, 1) and (2, 3); yours joins (0, 2) and (1, 3)"):
        heads = W.reshape(-1, n, d_head, W.shape[1]).swapaxes(0, 1)
    if slip("a head's rows stay together: the second axis is the old heads and the third their "
            "rows; yours has them the other way round"):
        heads = W.reshape(n, d_head, -1, W.shape[1]).swapaxes(1, 2)
    kept = heads.mean(1)
    if slip("the first head of each group stays; another one is nearer to all of them"):
        kept = heads[:, 0]
    if slip("the last head of each group stays; another one is nearer to all of them"):
        kept = heads[:, -1]
    if slip("the sum of the heads is far from each of them"): kept = heads.sum(1)
    if slip("the median makes the sum of the magnitudes least, not that of the squares"):
        kept = np.median(heads, axis=1)
    if slip("each group has a head of its own; yours has the mean of all"):
        kept = np.repeat(heads.mean((0, 1))[None], n, axis=0)
    if slip("the middle of the range makes the largest difference least, not the sum of squares"):
        kept = (heads.max(1) + heads.min(1)) / 2
    if slip("the mean over a group's heads, row by row; yours is also over the rows of a head"):
        kept = np.repeat(heads.mean((1, 2))[:, None], d_head, axis=1)
    return kept.reshape(n * d_head, -1)


def _keys(rng):
    n, d = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    G, d_in = n * int(rng.integers(2, 4)), int(rng.integers(4, 7))
    return rng.standard_normal((G * d, d_in)), d, n


def _one_row_each(rng):
    return np.array([[1.0], [3], [10], [20]]), 1, 2


def _stays(rng):
    W, d, n = _keys(rng)
    return W[:n * d], d, n


# -- real.block ------------------------------------------------------------------------------------
def block(W):
    m, step = W.min(1), np.ptp(W, axis=1) / 15
    if slip("this is the range, from the smallest weight to the largest"): return step, m
    if slip("sixteen codes have fifteen steps between them"): return step * 15 / 16, m
    if slip("a grid that ends at a fixed share of the range saves too little: let each block's "
            "weights decide"):
        return 0.95 * step, m + 0.05 * 7.5 * step
    if slip("a grid that ends so far inside the range cuts too much off"):
        return 0.8 * step, m + 0.2 * 7.5 * step
    if slip("this grid is symmetric; m may be any number"):
        return np.abs(W).max(1) / 7.5, -np.abs(W).max(1)
    if slip("two standard deviations cut too much off in one block, and too little in another"):
        return W.std(1) * 4 / 15, W.mean(1) - 2 * W.std(1)
    for _ in range(10):
        q = np.clip(np.rint((W - m[:, None]) / step[:, None]), 0, 15)
        dq, dw = q - q.mean(1, keepdims=True), W - W.mean(1, keepdims=True)
        step = (dq * dw).sum(1) / (dq**2).sum(1)                 # the line through (q, w)
        m = W.mean(1) - step * q.mean(1)
    if slip("each block has a step and an offset of its own"):
        return np.full_like(step, step.mean()), np.full_like(m, m.mean())
    if slip("return Δ first, and then m"): return m, step
    return step, m


def _square(W, step, m):
    """Return the squared error of W (n, 32), rounded to the codes 0 … 15 of each block."""
    step, m = np.reshape(step, (-1, 1)), np.reshape(m, (-1, 1))
    q = np.clip(np.rint((W - m) / np.where(step > 0, step, 1)), 0, 15)
    return np.sum((m + step * q - W)**2)


def _range(W):
    return (W.max(1) - W.min(1)) / 15, W.min(1)


def _better(result, args):
    """Is the squared error at most 0.93 of that by the range?"""
    (W,) = args
    step, m = (np.asarray(part, float) for part in result)
    if not (np.isfinite(step).all() and np.isfinite(m).all() and (step > 0).all()):
        return False
    return bool(_square(W, step, m) <= 0.93 * _square(W, *_range(W)))


def _not_positive(got, expected, args):
    return not (np.asarray(got[0], float) > 0).all()


def _worse(got, expected, args):
    (W,) = args
    return bool(_square(W, *got) > _square(W, *_range(W)))


def _weights(rng):
    """Draw 64 blocks of normal, uniform or long-tailed weights."""
    draw = rng.normal, rng.uniform, rng.laplace
    return (draw[rng.integers(3)](-0.1, 0.1, (64, 32)),)


def _normal_weights(rng):
    return (rng.normal(0, 1, (64, 32)),)


# -- real.encode -----------------------------------------------------------------------------------
def encoded(W):
    m = W.min(axis=1)
    step = (W.max(axis=1) - m) / 15
    sixteen = slip("sixteen levels have fifteen steps between them: divide the range by 15")
    if sixteen: step = (W.max(axis=1) - m) / 16
    divisor = np.where(step > 0, step, 1)
    q = np.rint((W - m[:, None]) / divisor[:, None]).astype(np.uint8)
    if sixteen: q = np.minimum(q, 15)
    head = np.stack([step, m], axis=1).astype("<f2")
    if slip("the first number of a block is the step Δ, the second the offset m"):
        head = np.stack([m, step], axis=1).astype("<f2")
    if slip("the two float16 are little-endian: the dtype '<f2'"): head = head.astype(">f2")
    if slip("1 takes the place of a step of 0 as a divisor alone; the step in the file stays 0"):
        head = np.stack([divisor, m], axis=1).astype("<f2")
    low, high = q[:, :16], q[:, 16:]
    if slip("weights 0 … 15 go into the low halves of the bytes"): low, high = high, low
    if slip("a byte holds the codes j and j + 16, which are no neighbours"):
        low, high = q[:, 0::2], q[:, 1::2]
    return np.concatenate([head.view(np.uint8), low | high << 4], axis=1)


def _blocks(rng):
    n = int(rng.integers(2, 5))
    d, m = rng.uniform(0.01, 0.1, n), rng.uniform(-1, -0.1, n)
    numbers = np.stack([d, m], axis=1).astype("<f2").view(np.uint8)
    codes = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    return (np.concatenate([numbers, codes], axis=1),)


def _in_blocks(rng):
    """Draw weights of blocks that use the codes 0 and 15: their range shows Δ and m."""
    (octets,) = _blocks(rng)
    octets[:, 4], octets[:, 5] = 0x20, 0xF3
    return (decode(Q4_1, octets, (len(octets), 32)),)


def _off_grid(rng):
    """Move the weights of such blocks by up to 0.4 steps, apart from both ends.

    They get the same codes whether the step is rounded to float16 before or after.
    """
    (W,) = _in_blocks(rng)
    low, high = W.min(1, keepdims=True), W.max(1, keepdims=True)
    moved = W + rng.uniform(-0.4, 0.4, W.shape) * (high - low) / 15
    return (np.where((W == low) | (W == high), W, moved.astype(np.float32)),)


def _codes(octets):
    return np.concatenate([octets[:, 4:] & 15, octets[:, 4:] >> 4], axis=1).astype(int)


def _one_off(got, expected, args):
    """Are Δ and m right, and codes one too small or one too large?"""
    if _other_shape(got, expected, args) or (got[:, :4] != expected[:, :4]).any():
        return False
    return np.abs(_codes(np.asarray(got, np.uint8)) - _codes(expected)).max() == 1


def _other_shape(got, expected, args):
    return np.shape(got) != np.shape(expected)


# -- real.bug --------------------------------------------------------------------------------------
def reordered(W, d_head):
    if slip("the rows are reordered within each head, not over all heads: this is the fault above"):
        return np.concatenate([W[0::2], W[1::2]])
    if slip("nothing has changed"): return W
    if slip("the rows change their places, not the columns"):
        return np.concatenate([W[:, 0::2], W[:, 1::2]], axis=1)
    pairs = W.reshape(-1, d_head // 2, 2, W.shape[1])            # head, pair, member, input
    if slip("this is the way back, from halves to neighbours"):
        pairs = W.reshape(-1, 2, d_head // 2, W.shape[1])
    moved = pairs.swapaxes(1, 2)
    if slip("the first members of the pairs come first, the even rows; yours "
            "begins with the odd ones"):
        moved = moved[:, ::-1]
    if slip("the heads stay one behind the other; yours are mixed"):
        moved = pairs.transpose(1, 2, 0, 3)
    return moved.reshape(W.shape)


def _rows(rng):
    H, d = int(rng.integers(2, 4)), int(rng.choice([6, 8]))
    return rng.standard_normal((H * d, int(rng.integers(3, 6)))), d


EXERCISES = (
    Exercise(
        name="real.norm_backward", title="The gradient of a norm without a mean", stars=3,
        kind="gradient",
        reference=norm_backward, cases=_norm_and_gradient,
        special=(
            ("x = (3, 3, 3, −3), γ = 1, ε = 0, and the gradient of the first number",
             _of_the_page),),
        invariants=(
            ("dx has no part along x if ε is 0, because a longer x has the same y", _across_x),),
        mistakes=slips(norm_backward),
        tolerance=1e-9,
        hints=("r depends on every number of its row. What is ∂r/∂x_j?",
               "x, dy and dx are (n, d); r, with keepdims=True, is (n, 1). dγ and γ are (d,).",
               "y = x / r and g = gamma * dy. Then dx = (g - y * (g * y).mean(-1, keepdims=True)) "
               "/ r, and dγ is (dy * y).sum(0).")),
    Exercise(
        name="real.rotary", title="Rotated by position", stars=2,
        kind="formula",
        example=lambda rng: (np.tile([1.0, 1, 0, 0], (1, 2, 1)), 100.0),
        reference=rotary, cases=_heads,
        special=(
            ("one pair, at the positions 0, 1 and 2",
             lambda rng: (np.array([[[1.0, 0.0]] * 3] * 2), 10.0)),),
        invariants=(
            ("the product of a rotated query and a rotated key depends on their distance alone",
             _by_distance),),
        mistakes=slips(rotary),
        errors=(
            ("broadcast",
             "a head has d/2 pairs, so i runs over 0 … d/2 − 1, and the angles are (T, "
             "d/2), as the halves of x are"),),
        tolerance=1e-9,
        hints=("Which two numbers of a head are pair i? By which angle does position t turn them?",
               "phi is (T, d/2). The halves x1 and x2 of the last axis are (H, T, d/2).",
               "phi = np.arange(T)[:, None] * theta ** (-2 * np.arange(d // 2) / d). Join "
               "x1 * np.cos(phi) - x2 * np.sin(phi) and x2 * np.cos(phi) + x1 * "
               "np.sin(phi) along the last axis.")),
    Exercise(
        name="real.fewer", title="Fewer heads of keys", stars=2,
        kind="design",
        reference=fewer, cases=_keys,
        special=(
            ("heads of one row each, (1), (3), (10) and (20): two are to remain", _one_row_each),
            ("as many heads as before: nothing changes", _stays)),
        mistakes=slips(fewer),
        symptoms=(
            ("n heads of d_head rows remain", _other_shape),),
        tolerance=1e-9,
        hints=("Which number has the least sum of squared distances to 1 and 3?",
               "W is (G d_head, d_in). As (n, G/n, d_head, d_in) its axes are: the new head, the "
               "old heads that it replaces, the rows of a head, and the input.",
               "W.reshape(n, -1, d_head, W.shape[1]), a mean over axis 1, and reshaped to "
               "(n * d_head, d_in).")),
    Exercise(
        name="real.block", title="A better block", stars=3,
        kind="design",
        reference=block, cases=_weights,
        goal=("rounded to the codes 0 … 15, the weights have a squared error of at most 0.93 times "
              "that by the range", _better),
        special=(
            ("normal weights", _normal_weights),),
        mistakes=slips(block),
        symptoms=(
            ("a step must be above 0", _not_positive),
            ("the error is larger than by the range", _worse)),
        hints=("If the codes of a block are given, which Δ and m are the best for them?",
               "W is (n, 32), and so are the codes q. Δ and m are (n,). With fixed codes Δ q + m "
               "is a straight line through 32 points (q, w).",
               "Start with the range. Repeat: q = np.clip(np.rint((W − m)/Δ), 0, 15); then Δ is "
               "the sum of (q − mean of q)(W − mean of W), divided by that of (q − mean of q)², "
               "and m is the mean of W minus Δ times the mean of q.")),
    Exercise(
        name="real.bug", title="Find the bug: a loader without an error", stars=2,
        kind="fault",
        reference=reordered, cases=_rows, avoids=("halves", "neighbours"),
        special=(
            ("one head of six rows, 0 … 5", lambda rng: (np.arange(6.0)[:, None], 6)),
            ("two heads of four rows", lambda rng: (np.arange(8.0)[:, None], 4))),
        mistakes=slips(reordered),
        tolerance=0,
        hints=("Rows 0, 1, 2, 3, 4, 5 of a head are three pairs: (0, 1), (2, 3), (4, 5). In which "
               "order should they stand, so that row i and row i + 3 are a pair?",
               "W is (H d, d_in). As (H, d/2, 2, d_in) its axes are head, pair, "
               "member of the pair, and input.",
               "W.reshape(H, d_head // 2, 2, -1), with the axes 1 and 2 exchanged by "
               ".swapaxes(1, 2), and reshaped to W.shape.")),
    Exercise(
        name="real.encode", title="Write the block", stars=2,
        kind="design",
        reference=encoded, cases=_in_blocks, quiet=True,
        special=(
            ("a block of equal weights: the step is 0, and so are the codes",
             lambda rng: (np.full((1, 32), 0.5, np.float32),)),
            ("weights between the levels, which get the nearest code", _off_grid)),
        mistakes=slips(encoded),
        symptoms=(
            ("take the nearest code: np.rint, not the next whole number below or above", _one_off),
            ("a block of 32 weights becomes 20 bytes: Δ, m, and 16 bytes with two codes each",
             _other_shape)),
        tolerance=0,
        hints=("Which weight of a block has code 0, and which has code 15? What "
               "does this say about m and Δ?",
               "m and Δ are (n,). The codes are (n, 32), uint8. np.stack([step, m], "
               "axis=1).astype('<f2').view(np.uint8) is (n, 4).",
               "q = np.rint((W - m) / step), with 1 in place of a step of 0. The bytes "
               "are q[:, :16] | q[:, 16:] << 4. Join the four bytes of Δ and m and "
               "these sixteen along axis 1.")),
)
