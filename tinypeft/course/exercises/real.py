"""Lesson 16: the parts of a Llama that a GPT-2 has not, and rows and blocks of a GGUF file."""
from functools import partial

import numpy as np

from ...interop.gguf_types import TYPES, decode
from ...interop.llama import halves
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]

Q4_1 = next(kind for kind in TYPES.values() if kind.name == "Q4_1")


# -- real.rms_norm ---------------------------------------------------------------------------------
def rms_norm(x, gamma, eps):
    return gamma * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def _vectors(rng):
    d = int(rng.integers(5, 9))
    x = rng.normal(0.7, 1, (int(rng.integers(2, 5)), d))
    return x, rng.uniform(0.5, 2, d), float(rng.choice([0.1, 0.3]))


def _equal_sizes(rng):
    x = np.array([[3.0, 3.0, 3.0, -3.0]])
    return x, np.array([1.0, 2.0, 1.0, 1.0]), 0.0


def _root_of(size):
    """Divide by the root of another size of the row."""
    return lambda x, gamma, eps: gamma * x / np.sqrt(size(x) + eps)


def _layer_norm(x, gamma, eps):
    centred = x - x.mean(-1, keepdims=True)
    return gamma * centred / np.sqrt(x.var(-1, keepdims=True) + eps)


def _late_eps(x, gamma, eps):
    return gamma * x / (np.sqrt((x * x).mean(-1, keepdims=True)) + eps)


# -- real.rotary -----------------------------------------------------------------------------------
def rotary(x, theta):
    return _rotated(x, theta)


def _halves(d):
    return np.arange(d // 2), np.arange(d // 2, d)


def _overwritten(x, theta):
    """Write the first half into x before the second is computed from it."""
    y, (first, second) = _rotated(x, theta), _halves(x.shape[-1])
    T, d = x.shape[-2:]
    phi = np.arange(T)[:, None] * theta ** (-2 * first / d)
    y[..., second] = x[..., second] * np.cos(phi) + y[..., first] * np.sin(phi)
    return y


def _first_half(x, theta):
    y, half = x.copy(), x.shape[-1] // 2
    y[..., :half] = _rotated(x, theta)[..., :half]
    return y


def _neighbours(d):
    return np.arange(0, d, 2), np.arange(1, d, 2)


def _rotated(x, theta, pairs=_halves, sign=1, positions=np.arange, power=2, back=None):
    """Rotate the pairs `pairs(d)`, and put them back at the places `back(d)`."""
    T, d = x.shape[-2:]
    first, second = pairs(d)
    phi = sign * positions(T)[:, None] * theta ** (-power * np.arange(d // 2) / d)
    x1, x2, y = x[..., first], x[..., second], np.empty_like(x)
    first, second = (back or pairs)(d)
    y[..., first] = x1 * np.cos(phi) - x2 * np.sin(phi)
    y[..., second] = x2 * np.cos(phi) + x1 * np.sin(phi)
    return y


def _by_head(x, theta):
    """Take the number of the head in place of the position."""
    return _rotated(x.swapaxes(0, 1), theta).swapaxes(0, 1)


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


# -- real.grouped ----------------------------------------------------------------------------------
def grouped(q, k, v):
    return _attended(q, k, v)


def _repeated(a, n):
    """Repeat each head of keys or values n times in a row."""
    return np.repeat(a, n, axis=0)


def _attended(q, k, v, shared=_repeated, scale=lambda d, H: d ** -0.5, causal=True,
              ahead=0, hidden=-np.inf, late=False, axis=-1, largest=None):
    """Return what attention gives; the options are for the mistakes.

    hidden: the score of the future. late: the future is taken out after the softmax. axis: of the
    softmax. largest: the axis of the maximum, if it is another.
    """
    (H, T, d), G = q.shape, len(k)
    k, v = shared(k, H // G), shared(v, H // G)
    past = np.tri(T, k=ahead, dtype=bool)
    S = scale(d, H) * q @ k.swapaxes(1, 2)
    if causal and not late:
        S = np.where(past, S, hidden)
    P = np.exp(S - S.max(largest or axis, keepdims=True))
    P = P / P.sum(axis, keepdims=True)
    if late:
        P = np.where(past, P, 0)
    return P @ v


def _in_turn(a, n):
    """Repeat all heads n times."""
    return np.tile(a, (n, 1, 1))


def _first(a, n):
    """Let all heads read the first one."""
    return np.repeat(a[:1], n * len(a), axis=0)


def _mean(a, n):
    """Let all heads read the mean."""
    return np.repeat(a.mean(0, keepdims=True), n * len(a), axis=0)


def _groups(rng):
    n, T = int(rng.integers(2, 4)), int(rng.integers(3, 6))
    d = int(rng.integers(2, 5))
    def draw(heads):
        return rng.standard_normal((heads, T, d))
    return draw(3 * n), draw(3), draw(3)


def _one_token(rng):
    v = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    return np.ones((4, 1, 2)), np.ones((2, 1, 2)), v


def _first_sees_nothing(got, expected, args):
    return np.shape(got) == np.shape(expected) and not np.isfinite(got[:, 0]).any()


# -- real.q4_1 -------------------------------------------------------------------------------------
def q4_1(octets):
    return decode(Q4_1, octets, (len(octets), 32))


def _low_first(low, high):
    return np.concatenate([low, high], axis=1)


def _high_first(low, high):
    return np.concatenate([high, low], axis=1)


def _interleaved(low, high):
    return np.stack([low, high], axis=2).reshape(len(low), 32)


def _weight(d, m, q):
    return d * q + m


def _decoded(octets, order=_low_first, weight=_weight, floats="<f2", dtype=np.float32,
             high=lambda byte: byte >> 4):
    """Decode blocks. floats: the type in the file. dtype: that to compute in. high: of a byte."""
    numbers = np.ascontiguousarray(octets[:, :4]).view(floats).astype(dtype)
    d, m = numbers.T[:, :, None]
    q = order(octets[:, 4:] & 15, high(octets[:, 4:])).astype(dtype)
    return weight(d, m, q).astype(np.float32)


def _byte_by_byte(second):
    """Take Δ and m from single bytes, 0 and `second`."""
    def wrong(octets):
        d, m = octets[:, [0, second]].astype(np.float32).T[:, :, None]
        return _weight(d, m, _low_first(octets[:, 4:] & 15, octets[:, 4:] >> 4))
    return wrong


BIG_ENDIAN = partial(_decoded, floats=">f2"), partial(_decoded, floats=">f2", dtype=np.float16)


def _byte_order(got, expected, args):
    """Were the numbers read in the wrong byte order? They may be NaN."""
    with np.errstate(all="ignore"):
        wrong = [decoded(*args) for decoded in BIG_ENDIAN]
    return any(np.allclose(got, a, equal_nan=True, rtol=1e-3) for a in wrong)


def _is_float32(fn, rng):
    return np.asarray(fn(*_blocks(rng))).dtype == np.float32


def _blocks(rng):
    n = int(rng.integers(2, 5))
    d, m = rng.uniform(0.01, 0.1, n), rng.uniform(-1, -0.1, n)
    numbers = np.stack([d, m], axis=1).astype("<f2").view(np.uint8)
    codes = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    return (np.concatenate([numbers, codes], axis=1),)


def _counting(rng):
    """Return a block with d = 1, m = 0 and the codes 0 … 15, twice."""
    q = np.arange(16, dtype=np.uint8)
    numbers = np.array([1, 0], "<f2").view(np.uint8)
    return (np.concatenate([numbers, q | q << 4])[None],)


def _in_blocks(rng):
    """Draw weights of blocks that use the codes 0 and 15: their range shows Δ and m."""
    (octets,) = _blocks(rng)
    octets[:, 4], octets[:, 5] = 0x20, 0xF3
    return (q4_1(octets),)


def _off_grid(rng):
    """Move the weights of such blocks by up to 0.4 steps, apart from both ends.

    They get the same codes whether the step is rounded to float16 before or after.
    """
    (W,) = _in_blocks(rng)
    low, high = W.min(1, keepdims=True), W.max(1, keepdims=True)
    moved = W + rng.uniform(-0.4, 0.4, W.shape) * (high - low) / 15
    return (np.where((W == low) | (W == high), W, moved.astype(np.float32)),)


def encoded(W):
    """Return the blocks of W (n, 32), by their range."""
    return _encoded(W)


def _encoded(W, levels=15, order=lambda q: q[:, :16] | q[:, 16:] << 4,
             numbers=lambda d, m: [d, m], floats="<f2"):
    m = W.min(1)
    d = (W.max(1) - m) / levels
    divisor = np.where(d > 0, d, 1)[:, None]
    q = np.rint((W - m[:, None]) / divisor)
    q = q.clip(0, 15).astype(np.uint8)
    head = np.stack(numbers(d, m), axis=1).astype(floats)
    return np.concatenate([np.ascontiguousarray(head).view(np.uint8), order(q)], axis=1)


def _divisor_stored(W):
    """Store a step of 1 where it is 0."""
    equal = np.ptp(W, axis=1) == 0
    octets = encoded(W)
    octets[equal, :2] = np.array([1], "<f2").view(np.uint8)
    return octets


def _codes(octets):
    return _low_first(octets[:, 4:] & 15, octets[:, 4:] >> 4).astype(int)


def _one_off(got, expected, args):
    """Are Δ and m right, and codes one too small or one too large?"""
    if _other_shape(got, expected, args) or (got[:, :4] != expected[:, :4]).any():
        return False
    return np.abs(_codes(np.asarray(got, np.uint8)) - _codes(expected)).max() == 1


def _other_shape(got, expected, args):
    return np.shape(got) != np.shape(expected)


# -- real.bug --------------------------------------------------------------------------------------
def reordered(W, d_head):
    return halves(W, d_head)


def _as_pairs(H, d):
    return H, d // 2, 2


def _reordered(W, d_head, axes=(0, 2, 1, 3), shape=_as_pairs, turned=False):
    """Order the rows as (heads, pairs, members), with these axes exchanged."""
    H = len(W) // d_head
    V = W.reshape(*shape(H, d_head), -1).transpose(axes)
    return (V[:, ::-1] if turned else V).reshape(W.shape)


def _rows(rng):
    H, d = int(rng.integers(2, 4)), int(rng.choice([6, 8]))
    return rng.standard_normal((H * d, int(rng.integers(3, 6)))), d


def _columns_moved(W, d_head):
    return np.concatenate([W[:, 0::2], W[:, 1::2]], axis=1)


EXERCISES = (
    Exercise(
        name="real.rms_norm", title="A norm without a mean", stars=1,
        kind="formula",
        example=lambda rng: (np.array([[3.0, 3, 3, -3]]), np.ones(4), 0.0),
        reference=rms_norm, cases=_vectors,
        special=(
            ("ε = 0 and equal numbers: every one becomes ±1, times γ", _equal_sizes),),
        mistakes=(
            ("RMSNorm subtracts no mean: this is a layer norm", _layer_norm),
            ("the root of the mean of the squares; you took that of their sum",
             _root_of(lambda x: (x * x).sum(-1, keepdims=True))),
            ("ε is added under the root", _late_eps),
            ("each row has a norm of its own: take the mean over the last axis",
             _root_of(lambda x: (x * x).mean())),
            ("the variance is about the mean; RMSNorm takes the mean of the squares",
             _root_of(lambda x: x.var(-1, keepdims=True))),
            ("1 + γ is Gemma's norm; Llama's multiplies by γ",
             lambda x, gamma, eps: rms_norm(x, 1 + gamma, eps)),
            ("multiply by γ", lambda x, gamma, eps: rms_norm(x, 1, eps)),
            ("ε is missing under the root", lambda x, gamma, eps: rms_norm(x, gamma, 0)),
            ("take the mean over the last axis; yours is over the rows",
             _root_of(lambda x: (x * x).mean(0)))),
        tolerance=1e-9,
        hints=("Which step of a layer norm is left out here?",
               "The mean of the squares is (n, 1), with keepdims=True. gamma is (d,).",
               "Square, take the mean over the last axis, add ε, take the root; divide x "
               "by it and multiply by γ.")),
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
        mistakes=(
            ("you paired neighbours, x_{2i} and x_{2i+1}; here x_i belongs to x_{i + d/2}",
             partial(_rotated, pairs=_neighbours)),
            ("the rotated numbers go back to their places, the halves; yours are interleaved",
             partial(_rotated, back=_neighbours)),
            ("you paired neighbours, x_{2i} and x_{2i+1}, and joined the results as halves; here "
             "x_i belongs to x_{i + d/2}",
             partial(_rotated, pairs=_neighbours, back=_halves)),
            ("the second half was computed from a first half that was overwritten before: compute "
             "both from x, then join them",
             _overwritten),
            ("both halves of a pair change; yours leaves the second half as it was", _first_half),
            ("the pairs turn the other way: the sign of sin φ is wrong",
             partial(_rotated, sign=-1)),
            ("the angle grows with the position, axis 1; yours grows with the head", _by_head),
            ("the first position is 0, and is not rotated",
             partial(_rotated, positions=lambda T: 1 + np.arange(T))),
            ("the exponent is −2i/d; yours is −i/d", partial(_rotated, power=1)),
            ("the exponent is −2i/d, and i counts the pairs; yours is −4i/d",
             partial(_rotated, power=4)),
            ("the exponent is −2i/d, so that later pairs turn more slowly",
             partial(_rotated, power=-2))),
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
        name="real.grouped", title="Many queries, few keys", stars=2,
        kind="formula",
        reference=grouped, cases=_groups,
        special=(
            ("one token: each head returns the value of its group", _one_token),),
        mistakes=(
            ("consecutive heads share a key: repeat each of them (0, 0, 1, 1), do "
             "not tile them (0, 1, 0, 1)",
             partial(_attended, shared=_in_turn)),
            ("a token sees itself and what came before; yours sees the future, too",
             partial(_attended, causal=False)),
            ("the scores of the future are −∞ before the softmax; a score of 0 still gets a share",
             partial(_attended, hidden=0)),
            ("hide the future before the softmax; what is taken out after it is missing in "
             "the sum, which must be 1",
             partial(_attended, late=True)),
            *several("the softmax runs over the keys, the last axis of the scores; "
                     "yours runs over the queries",
                     partial(_attended, axis=-2),
                     partial(_attended, axis=-2, largest=-1)),
            ("the scores are divided by √d, the root of a head's width, not by the "
             "root of the number of heads",
             partial(_attended, scale=lambda d, H: H ** -0.5)),
            *several("the scores are divided by √d, the root of a head's width",
                     partial(_attended, scale=lambda d, H: 1),
                     partial(_attended, scale=lambda d, H: 1 / d)),
            ("a token sees one key too many, the one after its own",
             partial(_attended, ahead=1)),
            ("each group of heads has its own key and value; yours reads "
             "the first one in all heads",
             partial(_attended, shared=_first)),
            ("heads of different groups read different keys; yours read their mean",
             partial(_attended, shared=_mean))),
        symptoms=(
            ("a token also sees itself: the diagonal of the mask is open; with a strict mask the "
             "first token sees nothing",
             _first_sees_nothing),),
        errors=(
            ("remapped shapes",
             "q has H heads, so k and v need as many: each of their G = len(k) heads "
             "is repeated H // G times"),),
        tolerance=1e-9,
        hints=("How many heads of queries share one key, and which ones?",
               "np.repeat(k, H // G, axis=0) is (H, T, d), and the same for v. "
               "The scores are (H, T, T).",
               "With repeated k and v: S = q @ k.swapaxes(1, 2) / np.sqrt(d), -np.inf above the "
               "diagonal, softmax over the last axis, @ v.")),
    Exercise(
        name="real.q4_1", title="A block of 32 weights", stars=2,
        kind="formula",
        reference=q4_1, cases=_blocks,
        special=(
            ("Δ = 1, m = 0, and the codes 0 … 15 twice", _counting),),
        mistakes=(
            ("the low halves of the 16 bytes come first: weights 0 … 15",
             partial(_decoded, order=_high_first)),
            ("a byte holds the codes j and j + 16 of the block, which are no neighbours",
             partial(_decoded, order=_interleaved)),
            ("Q4_1 adds m: Δ q + m; Δ (q − 8) is Q4_0",
             partial(_decoded, weight=lambda d, m, q: d * (q.astype(np.float32) - 8))),
            ("m is added: Δ q + m", partial(_decoded, weight=lambda d, m, q: d * q - m)),
            ("the first number of a block is the step Δ, the second the offset m",
             partial(_decoded, weight=lambda d, m, q: m * q + d)),
            ("shift the high halves of the bytes to the right by four bits: byte & "
             "240 is 16 times the code",
             partial(_decoded, high=lambda byte: byte & 240)),
            *several("two bytes are one float16: .view('<f2') reads them together; .astype "
                     "makes a number of each byte",
                     _byte_by_byte(1), _byte_by_byte(2)),
            ("Δ and m are stored in float16, but compute in float32: "
             "float16 keeps three digits only",
             partial(_decoded, dtype=np.float16)),
            *several("the two float16 are little-endian: the dtype '<f2'",
                     *BIG_ENDIAN)),
        invariants=(
            ("the weights are float32", _is_float32),),
        symptoms=(
            ("the two float16 are little-endian: the dtype '<f2'", _byte_order),
            ("each block of 20 bytes holds 32 weights: 16 bytes have two codes each",
             _other_shape)),
        tolerance=1e-6,
        hints=("Which 16 of the 32 weights are in the low halves of the bytes?",
               "octets[:, :4].copy().view('<f2') is (n, 2): Δ and m. octets[:, 4:] is (n, 16), "
               "with two codes in each byte.",
               "low = octets[:, 4:] & 15, high = octets[:, 4:] >> 4. Low before high, they are "
               "the codes q (n, 32). The weights are Δ q + m, in float32.")),
    Exercise(
        name="real.bug", title="Find the bug: a loader without an error", stars=2,
        kind="fault",
        reference=reordered, cases=_rows, avoids=("halves", "neighbours"),
        special=(
            ("one head of six rows, 0 … 5", lambda rng: (np.arange(6.0)[:, None], 6)),
            ("two heads of four rows", lambda rng: (np.arange(8.0)[:, None], 4))),
        mistakes=(
            ("the rows are reordered within each head, not over all heads: this is the fault above",
             lambda W, d_head: np.concatenate([W[0::2], W[1::2]])),
            ("this is the way back, from halves to neighbours",
             partial(_reordered, shape=lambda H, d: (H, 2, d // 2))),
            ("the first members of the pairs come first, the even rows; yours "
             "begins with the odd ones",
             partial(_reordered, turned=True)),
            ("nothing has changed", lambda W, d_head: W),
            ("the rows change their places, not the columns", _columns_moved),
            ("the heads stay one behind the other; yours are mixed",
             partial(_reordered, axes=(1, 2, 0, 3)))),
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
        mistakes=(
            ("weights 0 … 15 go into the low halves of the bytes",
             partial(_encoded, order=lambda q: q[:, 16:] | q[:, :16] << 4)),
            ("a byte holds the codes j and j + 16, which are no neighbours",
             partial(_encoded, order=lambda q: q[:, 0::2] | q[:, 1::2] << 4)),
            ("sixteen levels have fifteen steps between them: divide the range by 15",
             partial(_encoded, levels=16)),
            ("the first number of a block is the step Δ, the second the offset m",
             partial(_encoded, numbers=lambda d, m: [m, d])),
            ("the two float16 are little-endian: the dtype '<f2'", partial(_encoded, floats=">f2")),
            ("1 takes the place of a step of 0 as a divisor alone; the step in the file stays 0",
             _divisor_stored)),
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
