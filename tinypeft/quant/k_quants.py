"""The K types of GGUF files, Q4_K, Q5_K and Q6_K, as llama.cpp writes them. K_QUANTS.md tells how.

256 weights of a row are a *superblock*. It is cut into sub-blocks, and the scales of these are
integers themselves. So a sub-block's scale costs 6 or 8 bits, where Q4_0 spends 16 on one.

    Q4_K, Q5_K   x̂ = d·sc·q − e·mn     8 sub-blocks of 32   sc, mn: 6 bits   4.5, 5.5 bits/weight
    Q6_K         x̂ = d·sc·(q − 32)    16 sub-blocks of 16   sc: 8 bits       6.5625 bits/weight

    d, e   float16, one of each per superblock      q   the code of a weight, 4, 5 or 6 bits
    sc     the scale of a sub-block, an integer     mn  its minimum, an integer ≥ 0

First each sub-block gets its own s and m, x ≈ s q − m, by a search. A trial takes a step, rounds
the weights to codes with it, and then solves for the best s and m of these codes:

    q = round((x − low)/step)                       for 21 trials (Q5_K: 16) around (max − min)/15
    s, m = argmin Σ w (s q − m − x)²                weighted least squares, m ≥ 0
    keep the trial with the smallest Σ w (s q − m − x)²

A trial that improves also moves `low` to its −m, so a later trial has another step and rounds from
another place than an earlier one: the order of the trials decides, too. m ≥ 0 keeps the
lowest level at 0 or below, so a block of positive weights has m = 0.

Then the s of a superblock are rounded to d·sc, the m to e·mn, and the weights are rounded once more
with these. w is √mean(x²) + |x|, because large weights matter most. With an *importance matrix* it
is h √(2 mean(x²) + x²), h being the mean square of the input that the weight multiplies, and d and
e are searched for, too (`fit_codes`).

There is no paper. Source: llama.cpp's ggml-quants.c, and its pull request 1684 (k-quants) and 4861
(importance). The bytes are llama.cpp's, because sums are float32 here and are added in its order.
They differ in sub-blocks whose scale is below 1e-36, and where the importance of nearly all inputs
is 0: a fit may then give a scale below 0, which llama.cpp writes into a byte without a sign and so
spoils its neighbours. Here it becomes 0.
"""
import numpy as np

from ..common.hints import Array
from ..common.threads import parallel_map
from .packing import pack
from .qtensor import QTensor

SUPERBLOCK = 256
AT_ONCE = 256                            # superblocks: a float32 of each weight fits in cache
BITS = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
NOTHING = 1e-15                          # llama.cpp takes smaller numbers for 0
LEAST = 2e-37                            # 63/LEAST is still finite
LINE_TRIALS = {4: (-1, 0.1, 21), 5: (-0.5, 0.1, 16)}
WEIGHED_TRIALS = -0.9, 0.05, 37
CODE_TRIALS = 0, -4, -3, -2, -1, 1, 2, 3, 4
SCALE_TRIALS = 0, *range(-9, 0), *range(1, 10)


def k_quantize(W: Array, name: str, importance: Array | None = None) -> QTensor:
    """Round W, float32 (…, d_in), to the type `name`. importance: h (d_in,). 256 must divide d_in.
    ValueError if d or e overflows float16."""
    x = W.reshape(-1, SUPERBLOCK)
    h = None
    if importance is not None:
        h = np.broadcast_to(importance, W.shape).reshape(x.shape)

    def of_chunk(start):
        chunk = slice(start, start + AT_ONCE)
        h_chunk = None if h is None else h[chunk]
        encode = encode_q6 if name == "Q6_K" else encode_with_minimum
        with np.errstate(over="ignore", invalid="ignore"):   # what overflows is refused below
            return encode(x[chunk], h_chunk, BITS[name])
    chunks = parallel_map(of_chunk, range(0, len(x), AT_ONCE))
    arrays = [np.concatenate(parts, axis=-1) for parts in zip(*chunks, strict=True)]
    for array in arrays:
        if not np.isfinite(array).all():
            raise ValueError(f"a scale of {name} overflows GGUF's float16; the largest weight is "
                             f"{np.abs(x).max():g}")
    if name == "Q6_K":
        q, sc, d = arrays
        scale = integer_scales(sc, 8, d, zero=128)
        return QTensor(pack(q.T, 6), 6, W.shape, 16, scale, 32)
    q, sc, d, mn, e = arrays
    scale = integer_scales(sc, 6, d)
    offset = integer_scales(mn, 6, -e)
    bits = BITS[name]
    return QTensor(pack(q.T, bits), bits, W.shape, 32, scale, offset=offset)


def integer_scales(sc: Array, bits: int, d: Array, zero: int = 0) -> QTensor:
    """Store the scales d·(sc − zero) of sub-blocks; sc (k, n), d (n,)."""
    packed = pack(sc.T, bits)
    return QTensor(packed, bits, (sc.size,), len(sc), d, zero)


# -- Q4_K and Q5_K ---------------------------------------------------------------------------------
def encode_with_minimum(x: Array, h: Array | None, bits: int) -> tuple[Array, ...]:
    """Encode superblocks x (n, 256) → q (32, 8 n), sc (8, n), d (n,), mn (8, n), e (n,)."""
    most = 2**bits - 1
    blocks = sub_blocks(x, 32)
    if h is None:
        mean = total(blocks * blocks) / 32
        w = np.sqrt(mean) + np.abs(blocks)
        trials = steps(*LINE_TRIALS[bits], most)
    else:
        mean = total((x * x).T) / SUPERBLOCK
        size = np.repeat(2 * mean, 8)
        w = sub_blocks(h, 32) * np.sqrt(size + blocks * blocks)
        trials = steps(*WEIGHED_TRIALS, most)
    s, m, q = fit_line(blocks, w, most, trials)
    importances = None if h is None else of_superblocks(total(w), 8)
    d, sc = six_bits(of_superblocks(s, 8), importances)
    e, mn = six_bits(of_superblocks(m, 8), importances)
    step = (d.astype(np.float32) * sc).T.reshape(-1)
    minimum = (e.astype(np.float32) * mn).T.reshape(-1)
    nearest = np.rint(quotient(blocks + minimum, step))
    nearest = np.clip(nearest, 0, most)
    q = np.where(step > 0, nearest, q)
    return codes(q), codes(sc), d, codes(mn), e


def steps(first: float, step: float, n: int, most: int) -> Array:
    """Return how many steps lie between low and high in each trial, float32 (n,)."""
    tried = np.float32(step) * np.arange(n, dtype=np.float32)
    return tried + np.float32(first) + most


def fit_line(x: Array, w: Array, most: int, trials: Array) -> tuple[Array, Array, Array]:
    """Find s and m, (n,), and codes q (k, n) with s q − m ≈ x in each column of x (k, n)."""
    low = np.minimum(x.min(0), 0)
    high = x.max(0)
    flat = high - low < LEAST
    width = np.where(flat, 1, high - low)
    q = levels(x, low, most / width, most)
    s = 1 / (most / width)
    error = total(w * np.square(s * q + low - x))
    sum_w = total(w)
    sum_x = total(w * x)
    for trial in trials:
        tried = levels(x, low, trial / width, most)
        weighted = w * tried
        sum_q = total(weighted)
        sum_qq = total(weighted * tried)
        sum_qx = total(weighted * x)
        D = sum_w * sum_qq - sum_q * sum_q
        slope = quotient(sum_w * sum_qx - sum_x * sum_q, D)
        start = quotient(sum_qq * sum_x - sum_q * sum_qx, D)
        slope = np.where(start > 0, quotient(sum_qx, sum_qq), slope)
        start = np.minimum(start, 0)
        tried_error = total(w * np.square(slope * tried + start - x))
        better = (D > 0) & (tried_error < error)
        keep(better, q, tried)
        keep(better, s, slope)
        keep(better, low, start)
        keep(better, error, tried_error)
        width = np.where(flat, 1, high - low)
    s[flat] = 0
    q[:, flat] = 0
    return s, 0 - low, q


def levels(x: Array, low: Array, per_unit: Array, most: int) -> Array:
    """Round x − low to whole steps, of which `per_unit` make 1: 0 … most."""
    nearest = np.rint(per_unit * (x - low))
    return np.clip(nearest, 0, most)


def six_bits(s: Array, w: Array | None) -> tuple[Array, Array]:
    """Round the numbers s, (8, n), to d·sc in each column: d, float16 (n,), sc, 0 … 63.

    A number below 0 becomes 0. `fit_line` finds such a slope where w is 0 but for one number of a
    block, so that D is a rounding error."""
    s = np.maximum(s, 0)
    top = s.max(0)
    if w is not None:
        d, sc = fit_codes(s, w, top)
    else:
        d = top / 63
        per_unit = 63 / np.maximum(top, LEAST)
        sc = np.minimum(np.rint(per_unit * s), 63)
    return d.astype(np.float16), sc


def fit_codes(s: Array, w: Array, top: Array) -> tuple[Array, Array]:
    """Find d (n,) and codes sc (8, n) with a small Σ w (d sc − s)²: nine trials of a step, then
    five walks in which single codes move. For codes as they are, the best d is Σ w s sc / Σ w sc²,
    and the sum falls as (Σ w s sc)² / Σ w sc² grows."""
    something = top >= NOTHING
    top = np.where(something, top, 1)
    per_unit = 63 / top
    error = np.full_like(top, np.inf)
    for i in CODE_TRIALS:
        trial = np.float32(0.1) * i + 63
        tried = trial / top
        sc = np.minimum(np.rint(tried * s), 63)
        tried_error = total(w * np.square(s - 1 / tried * sc))
        better = tried_error < error
        keep(better, per_unit, tried)
        keep(better, error, tried_error)
    sc = np.minimum(np.rint(per_unit * s), 63)
    product = total(w * s * sc)
    square = total(w * sc * sc)
    for _ in range(5):
        for code, weight, number in zip(sc, w, s, strict=True):
            weighed = weight * number
            other_product = product - weighed * code
            other_square = square - weight * code * code
            movable = (other_product > 0) & (other_square > 0)
            moved = np.rint(quotient(number * other_square, other_product))
            moved = np.minimum(moved, 63)
            new_product = other_product + weighed * moved
            new_square = other_square + weight * moved * moved
            gain = new_product * new_product * square > product * product * new_square
            better = movable & (moved != code) & gain
            keep(better, code, moved)
            keep(better, product, new_product)
            keep(better, square, new_square)
    return quotient(product, square) * something, sc * something


# -- Q6_K ------------------------------------------------------------------------------------------
def encode_q6(x: Array, h: Array | None, bits: int = 6) -> tuple[Array, ...]:
    """Encode superblocks x (n, 256) → q (16, 16 n), sc + 128 (16, n), d (n,)."""
    blocks = sub_blocks(x, 16)
    w = blocks * blocks if h is None else sub_blocks(h, 16)
    s, q = fit_scale(blocks, w, 32)
    s = of_superblocks(s, 16)
    top = largest(s)
    something = np.abs(top) >= NOTHING
    per_unit = -128 / np.where(something, top, 1)
    d = np.where(something, 1 / per_unit, 0).astype(np.float16)
    sc = something * np.minimum(np.rint(per_unit * s), 127)
    step = (d.astype(np.float32) * sc).T.reshape(-1)
    nearest = np.rint(blocks / np.where(step == 0, 1, step))
    nearest = np.clip(nearest, -32, 31)
    q = np.where(step == 0, q, nearest + 32)
    q = q * np.repeat(something, 16)
    return codes(q), codes(sc + 128), d


def fit_scale(x: Array, w: Array, zero: int) -> tuple[Array, Array]:
    """Find s (n,) and codes q, 0 … 2 zero − 1, with s (q − zero) ≈ x in each column of x (k, n). Of
    19 trials of a step, the best has the largest (Σ w x (q − zero))² / Σ w (q − zero)²."""
    top = largest(x)
    something = np.abs(top) >= NOTHING
    top = np.where(something, top, 1)
    q = np.zeros_like(x)
    s = np.zeros_like(top)
    best = np.zeros_like(top)
    for i in SCALE_TRIALS:
        trial = np.float32(0.1) * i + zero
        tried = np.rint(-trial / top * x)
        tried = np.clip(tried, -zero, zero - 1)
        product = total(w * x * tried)
        square = total(w * tried * tried)
        better = (i == 0) | (product * product > best * square)
        slope = quotient(product, square)
        keep(better, q, tried)
        keep(better, s, slope)
        keep(better, best, slope * product)
    return s * something, (q + zero) * something


# -- small parts -----------------------------------------------------------------------------------
def sub_blocks(x: Array, width: int) -> Array:
    """Turn each `width` numbers of x, in C order, into a column: (width, x.size/width)."""
    return np.ascontiguousarray(x.reshape(-1, width).T)


def of_superblocks(x: Array, k: int) -> Array:
    """Turn each k numbers of x into a column, one for each superblock: (n k,) → (k, n)."""
    return x.reshape(-1, k).T


def total(terms: Array) -> Array:
    """Add the rows of `terms` one after the other, as a loop in C does: (k, n) → (n,)."""
    sums = np.zeros(terms.shape[1:], np.float32)
    for row in terms:
        sums += row
    return sums


def quotient(a: Array, b: Array) -> Array:
    """Return a/b, and 0 where b is not positive."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def keep(better: Array, kept: Array, tried: Array) -> None:
    """Overwrite `kept` where the trial is better."""
    np.copyto(kept, tried, where=better)


def largest(x: Array) -> Array:
    """Return each column's element of largest magnitude, with its sign; the first of equals."""
    places = np.abs(x).argmax(0)
    return np.take_along_axis(x, places[None], axis=0)[0]


def codes(x: Array) -> Array:
    return x.astype(np.uint8)
