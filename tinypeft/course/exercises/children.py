"""Lesson 17: changes told by measurements, lengths beyond LoRA's rank, and a test of starts."""
from functools import partial
from math import gcd

import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]

TINY = 1e-4                                              # beside the largest number, this is 0


# -- children.which --------------------------------------------------------------------------------
def named(W, W2):
    W, D = W.astype(float), W2.astype(float) - W.astype(float)
    order = list(MARKS)
    match which("MiSS has a low rank, too: ask for the narrower mark first, in the order of "
                "the table", 2):
        case 1: order = ["LoRA", "MiSS", "C3A", "SHiRA", "OFT", "HiRA"]
        case 2: order = ["C3A", "SHiRA", "LoRA", "MiSS", "OFT", "HiRA"]
    if slip("a rotation of few inputs changes the weight by a low rank: ask for OFT before LoRA"):
        order = ["MiSS", "C3A", "SHiRA", "LoRA", "OFT", "HiRA"]
    return next((word for word in order if MARKS[word](W, D)), "none")


def small(E, D, limit=TINY):
    return abs(E).max() <= limit * abs(D).max()


def repeats(W, D):
    """Is column j the same as column j + r, for some r?"""
    n, limit = D.shape[1], TINY
    periods = range(1, n // 4 + 1)
    match which("MiSS is not recognised: up to rounding, column j + r is column j; try every "
                "r from 1 to a quarter of the inputs, also those that are no power of 2", 4):
        case 1: return False
        case 2: limit = 0
        case 3: periods = [4]
        case 4: periods = [1, 2, 4, 8]
    if slip("r may be a quarter of the inputs: range(1, n // 4) ends one before it"):
        periods = range(1, n // 4)
    match which("nobody knows MiSS's r: try every r up to a quarter of the inputs, whether it "
                "divides them or not", 3):
        case 1: periods = [r for r in periods if n % r == 0]
        case 2: periods = [6]
        case 3: periods = [5]
    match which("MiSS's r is at most a quarter of the inputs: your r goes further", 2):
        case 1: periods = range(1, n // 2 + 1)
        case 2: periods = range(1, n)
    if slip("you compare two copies; in MiSS all columns repeat, up to the last"):
        return any(small(D[:, r:2 * r] - D[:, :r], D) for r in periods)
    if slip("in MiSS every r-th input has the same column, not the neighbours"):
        return any(equal_neighbours(D, r) for r in range(4, n + 1) if n % r == 0)
    return any(small(D[:, r:] - D[:, :-r], D, limit) for r in periods)


def equal_neighbours(D, n):
    """Is column j the same as its neighbours, in groups of n?"""
    groups = D.reshape(len(D), -1, n)
    return small(groups - groups[:, :, :1], D)


def is_circular(W, D):
    """Is each row of a block the row above it, moved by one place?"""
    n, limit = gcd(*D.shape), TINY
    sizes = [b for b in range(2, n + 1) if n % b == 0]
    match which("the size of C3A's blocks is not known: try every divisor of both sides", 3):
        case 1: sizes = [4]
        case 2: sizes = [n]
        case 3: sizes = [b for b in sizes if b <= 16]
    match which("every block of C3A goes round: you look at some of the blocks only", 2):
        case 1: return any(goes_round(D[:b, :b], b) for b in sizes)
        case 2: return any(goes_round(D[:b], b) for b in sizes)
    if slip("blocks of 1 × 1 go round whatever is in them: b is at least 2"): sizes = [1]
    match which("C3A is not recognised: up to rounding, a block moved by one row and one "
                "column, to the right, is itself", 2):
        case 1: return False
        case 2: limit = 0
    return any(goes_round(D, b, limit) for b in sizes)


def goes_round(D, b, limit=TINY):
    blocks = D.reshape(len(D) // b, b, D.shape[1] // b, b)
    moved = np.roll(blocks, (1, 1), (1, 3)) - blocks
    if slip("the circle closes: the first number of a row is the last one of the row above it"):
        moved = moved[:, 1:, :, 1:]
    return small(moved, D, limit)


def is_sparse(W, D):
    share = np.mean(D == 0)
    match which("half of the numbers are not nine tenths of them", 2):
        case 1: return share >= 0.4
        case 2: return share > 0.1
    match which("SHiRA is not recognised: at least nine of ten numbers of ΔW are 0", 2):
        case 1: return False
        case 2: return share >= 0.95
    return share >= 0.9


def is_turned(W, D):
    """Do the lengths of the rows and the angles between them stay?"""
    W2 = W + D
    if slip("OFT is not recognised: W Wᵀ before and after is the same, up to rounding"):
        return False
    match which("equal lengths are not enough for OFT: the angles between the rows stay as "
                "well. W Wᵀ has both", 2):
        case 1: return small(row_lengths(W2) - row_lengths(W), W @ D.T)
        case 2: return small(np.diag(W2 @ W2.T - W @ W.T), W @ D.T)
    if slip("OFT keeps the rows' lengths and angles, which are in W Wᵀ; Wᵀ W has those of the "
            "columns"):
        return small(W2.T @ W2 - W.T @ W, W.T @ D)
    if slip("a small change hardly moves W Wᵀ, whatever it is: compare with W ΔWᵀ, not with W Wᵀ"):
        return small(W2 @ W2.T - W @ W.T, W @ W.T, 1e-2)
    return small(W2 @ W2.T - W @ W.T, W @ D.T)


def row_lengths(W):
    return np.linalg.norm(W, axis=1)


def is_low(W, D):
    match which("the weights are in float32, so that their difference carries rounding, which "
                "has full rank: count singular values above 10⁻⁴ of the largest. Their number "
                "may be up to a quarter of the smaller side", 6):
        case 1: return low(D, (1, 3), limit=1e-12)
        case 2: return low(D, (1, 3), limit=1e-7)
        case 3 | 4: return low_for_numpy(D)
        case 5 | 6: return low_for_numpy(D.astype(np.float32))
    return low(D, (1, 3))


def is_low_share(W, D):
    match which("the weights are in float32, so that their difference carries rounding, which "
                "has full rank: count singular values above 10⁻⁴ of the largest. Their number "
                "may be up to a quarter of the smaller side", 6):
        case 4: return low_for_numpy(D / W)
        case 6: return low_for_numpy((D / W).astype(np.float32))
    match which("HiRA's change is W times a matrix of low rank, number by number: divide by "
                "W, do not multiply, and count the quotient's singular values above 10⁻⁴ of "
                "the largest, since float32's rounding has full rank", 3):
        case 1: return low_for_numpy(D / W)
        case 2: return False
        case 3: return low(D * W, (2, 3))
    return low(D / W, (2, 3))


def low(M, here, limit=TINY):
    """Is the rank at most a quarter of the smaller side? here: which of three slips are made."""
    S = np.linalg.svd(M, compute_uv=False)
    most = min(M.shape) // 4
    number = which("the rank is at most a quarter of the smaller side of the weight: not of the "
                   "larger one, and not a half of it", 12)
    side, of = divmod(number - 1, 3)                     # for LoRA, for HiRA, for both
    if number and of + 1 in here:
        most = (max(M.shape) // 4, M.shape[1] // 4, len(M) // 4, min(M.shape) // 2)[side]
    return int((S > limit * S[0]).sum()) <= most


def low_for_numpy(M):
    """Ask for the rank with NumPy's own limit, which is that of rounding in M's dtype."""
    return np.linalg.matrix_rank(M) <= min(M.shape) // 4


MARKS = {"MiSS": repeats, "C3A": is_circular, "SHiRA": is_sparse, "OFT": is_turned,
         "LoRA": is_low, "HiRA": is_low_share}
CHILDREN = ("LoRA", "MiSS", "MiSS, cut off", "C3A", "one circle", "SHiRA", "OFT", "one rotation",
            "HiRA", "lengths", "DoRA", "LoHa", "rows turned", "outputs turned", "Toeplitz",
            "neighbours", "half", "full", "larger rank", "larger share", "wide MiSS",
            "quarter MiSS", "circles at the edge")
WIDE, TALL = (24, 36), (36, 24)


def trained(rng, kind=None, size=0.3, shape=None, times=1):
    """Draw a weight and what training made of it, both in float32, and `times` as large."""
    kind = kind or str(rng.choice(CHILDREN))
    d_out, d_in = shape = shape or (WIDE, TALL)[rng.integers(2)]
    r = int(rng.integers(2, 5))
    def draw(*shape):
        return rng.standard_normal(shape)
    def low(r):
        return draw(d_out, r) @ draw(r, d_in) / r ** 0.5
    W = draw(*shape)
    if kind in ("LoRA", "DoRA"): D = low(r)
    if kind == "MiSS": D = draw(d_out, 6)[:, np.arange(d_in) % 6]
    if kind == "MiSS, cut off": D = draw(d_out, 5)[:, np.arange(d_in) % 5]
    if kind == "quarter MiSS": D = draw(d_out, d_in // 4)[:, np.arange(d_in) % (d_in // 4)]
    if kind == "wide MiSS": D = draw(d_out, 3 * d_in // 8)[:, np.arange(d_in) % (3 * d_in // 8)]
    if kind == "larger rank": D = low(7)
    if kind == "larger share": D = W * low(7)
    if kind == "quarter share": D = W * low(min(shape) // 4)
    if kind in ("C3A", "one circle", "large circles"):
        b = {"C3A": 4, "one circle": 12, "large circles": 20}[kind]
        place = (np.arange(b) - np.arange(b)[:, None]) % b
        first = draw(d_out // b, d_in // b, b)
        D = first[..., place].swapaxes(1, 2).reshape(shape)
    if kind == "circles at the edge":
        D = draw(*shape)
        D[:4], D[:, :4] = nearest(D[:4], 4), nearest(D[:, :4], 4)
    if kind in ("SHiRA", "half"):
        n = d_out * d_in
        D = np.zeros(n)
        places = rng.permutation(n)[:n // (12 if kind == "SHiRA" else 2)]
        D[places] = draw(len(places))
        D = D.reshape(shape)
    if kind in ("OFT", "one rotation"): D = (W @ rotation(rng, d_in, kind == "OFT") - W) / size
    if kind == "outputs turned": D = (rotation(rng, d_out, True) @ W - W) / size
    if kind == "HiRA": D = W * low(r)
    if kind == "lengths": D = W * draw(d_out, 1)
    if kind == "LoHa": D = low(4) * low(4)
    if kind == "rows turned":
        V = W + size * draw(*shape)
        D = (V * (row_lengths(W) / row_lengths(V))[:, None] - W) / size
    if kind == "Toeplitz":
        D = draw(d_out + d_in)[np.arange(d_in) - np.arange(d_out)[:, None] + d_out]
    if kind == "neighbours": D = np.repeat(draw(d_out, 3), d_in // 3, 1)
    if kind == "full": D = draw(*shape)
    if kind in TWO_MARKS: W, D = two_marks(rng, kind, W, draw)
    W2 = W + size * D
    if kind == "DoRA": W2 = W2 * (1 + size * draw(d_out, 1))
    return (times * W).astype(np.float32), (times * W2).astype(np.float32)


TWO_MARKS = ("one row of MiSS", "equal circles", "sparse circles", "repeated weight",
             "circular weight", "two columns", "weight of rank 1")


def two_marks(rng, kind, W, draw):
    """Draw a weight and a change that bear two of the marks. A change of sign is a rotation."""
    d_out, d_in = W.shape
    if kind == "one row of MiSS":                        # and SHiRA
        D = np.zeros(W.shape)
        D[d_out // 2] = draw(5)[np.arange(d_in) % 5]
    if kind == "equal circles":                          # MiSS and C3A
        D = np.tile(nearest(draw(d_out, 4), 4), d_in // 4)
    if kind == "sparse circles":                         # C3A and SHiRA
        D = np.kron(draw(d_out // 12, d_in // 12), np.roll(np.eye(12), 5, 1))
    if kind == "repeated weight":                        # MiSS and OFT
        W = draw(d_out, 6)[:, np.arange(d_in) % 6]
    if kind == "circular weight":                        # C3A and OFT
        W = nearest(W, 12)
    if kind == "weight of rank 1":                       # LoRA and HiRA
        W = draw(d_out, 1) * draw(1, d_in)
        D = W * (draw(d_out, 2) @ draw(2, d_in))
    if kind in ("repeated weight", "circular weight"): D = -2 * W
    if kind == "two columns":                            # SHiRA and OFT
        D = -2 * W * (np.arange(d_in) % (d_in // 2) == 3)
    return W, D


def rotation(rng, d, everywhere):
    """Draw a rotation of blocks of 4; only the first block turns unless it is everywhere."""
    R = np.eye(d)
    for i in range(0, d if everywhere else 4, 4):
        Q = np.triu(0.5 * rng.standard_normal((4, 4)), 1)
        Q = Q - Q.T
        R[i:i + 4, i:i + 4] = np.linalg.solve(np.eye(4) - Q, np.eye(4) + Q)
    return R


def also_holds(got, expected, args):
    """Does the mark of the word hold, too? Then the right one stands before it in the table."""
    W, W2 = (M.astype(float) for M in args)
    return got in MARKS and MARKS[got](W, W2 - W)


def was(kind):
    return lambda got, expected, args: expected == kind


def said(word):
    return lambda got, expected, args: got == word


# -- children.stretch ------------------------------------------------------------------------------
def stretch(W, g):
    return (g - 1)[:, None], np.ones((1, W.shape[1]))


def change_of(result, W):
    """Compute HiRA's change W ⊙ B A, of columns B and rows A in whatever number."""
    B, A = (np.asarray(part, float) for part in result)
    if B.shape[1:] != A.shape[:1] or (len(B), *A.shape[1:]) != W.shape:
        return np.full(W.shape, np.nan)                  # no product as large as W
    return W * (B @ A)


def is_stretched(result, args):
    W, g = args
    return small(change_of(result, W) - (g - 1)[:, None] * W, (g - 1)[:, None] * W, 1e-9)


def is_change(of):
    """Is HiRA's change what `of` makes of the arguments?"""
    return lambda got, expected, args: small(change_of(got, args[0]) - of(*args), of(*args), 1e-9)


def some_factors(rng):
    shape = rng.permutation([rng.integers(4, 7), rng.integers(7, 10)])
    return rng.standard_normal(shape), rng.uniform(0.3, 3, shape[0])


# -- children.lengths ------------------------------------------------------------------------------
def lengths(W, r):
    rows = np.linalg.norm(W, axis=1)
    g = 1 + rows.min() / rows                     # each row changes by the same length
    match which("with one factor for all, the change is as W is: its few long rows are nearly "
                "all of it, and r directions hold them", 3):
        case 1: g = np.full_like(rows, 2.0)
        case 2: g = np.full_like(rows, 1.5)
        case 3: g = np.full_like(rows, 0.5)
    if slip("nothing changes: a factor of 1 leaves its row as it is"): g = np.ones_like(rows)
    match which("you change the long rows most, and these are few: let the short ones change "
                "as much", 2):
        case 1: g = 1 + rows / rows.max()
        case 2: g = np.where(rows >= np.sort(rows)[-r], 2.0, 1.0)
    if slip("one row has rank 1: LoRA makes that change exactly"):
        g = np.where(np.arange(len(rows)) == 0, 2.0, 1.0)
    if slip("these are the new lengths; return the factors, new length over old length"):
        g = rows * g
    if slip("all rows get the same length; that takes factors far below 0.5, or above 2"):
        g = rows.mean() / rows
    if slip("a factor multiplies a row, one for each output; these are factors of the columns"):
        columns = np.linalg.norm(W, axis=0)
        g = 1 + columns.min() / columns
    if slip("the change is (g − 1) W: return g itself, which is 1 where a row stays"): g = g - 1
    return g


def left_of(g, W, r):
    """Compute the part of the change that the nearest matrix of rank r leaves; 0 of none."""
    S = np.linalg.svd((g - 1)[:, None] * W, compute_uv=False)
    return np.linalg.norm(S[r:]) / (np.linalg.norm(S) or 1)


def in_range(g):
    return bool(np.all((g >= 0.5) & (g <= 2)))


def beyond(g, args):
    g = np.asarray(g, float)
    return in_range(g) and left_of(g, *args) >= 0.8


def reached(g, args):
    """Say how much of the goal the factors reach, if they lie in its range."""
    g = np.asarray(g, float)
    if not in_range(g): return ""
    return f"; of yours, with r = {args[1]}, it leaves {left_of(g, *args):.2f}"


def long_rows(rng):
    """Draw a weight of which r rows are ten times as long as the others."""
    n, d, r = rng.integers(32, 41), rng.integers(90, 111), int(rng.integers(2, 5))
    W = rng.standard_normal((n, d))
    W[rng.permutation(n)[:r]] *= 10
    return W, r


# -- children.bug ----------------------------------------------------------------------------------
def judged(start):
    r, s, limit = 3, 2.5, 1e-6
    if slip("with s = 1 a forgotten scale does no harm, so nobody sees it: choose another s"):
        s = 1.0
    if slip("at r = 1 one singular value is all of them: choose a larger r"): r = 1
    if slip("with r = all singular values nothing is left for the base, and the smallest are "
            "among the largest: choose a smaller r"):
        r = 8
    match which("a base in float16 is wrong from the fourth digit on: your limit is too large", 2):
        case 1: limit = 1e-2
        case 2: limit = 1e-3
    match which("a sound start differs from W by rounding: ask for a small distance, not for "
                "equality", 2):
        case 1: limit = 0
        case 2: limit = 1e-17
    if slip("float32 rounds in the eighth digit, and that is no fault: your limit is too small"):
        limit = 1e-10
    W = np.random.default_rng(0).standard_normal((8, 12))
    if slip("this W hides a fault: a diagonal one with falling numbers is its own decomposition, "
            "and of one of low rank (np.arange, or an outer product) nothing is left for the "
            "base. Draw W at random"):
        W = np.diag(np.arange(9.0, 0, -1))
    base, B, A = start(W, r, s)
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    largest = U[:, :r] * S[:r] @ Vt[:r]
    layer, made = base + s * B @ A, s * B @ A
    match which("the layer computes with base + s B A; you have left out s", 3):
        case 1: layer = base + B @ A
        case 2: made = B @ A
        case 3: layer, made = base + B @ A, B @ A
    if slip("base alone is not what the layer computes with: add s B A"): layer = base
    match which("equal norms or equal singular values do not make matrices equal: compare "
                "s B A itself, number by number", 2):
        case 1: made, largest = np.linalg.norm(made), np.linalg.norm(largest)
        case 2: made, largest = (np.linalg.svd(M, compute_uv=False) for M in (made, largest))
    if slip("B and A may share the singular values in another way, and have other signs: compare "
            "the product"):
        made, largest = B, U[:, :r] * np.sqrt(S[:r] / s)
    far = lambda M, right: np.linalg.norm(M - right) > limit * np.linalg.norm(right)
    moves, other = far(layer, W), far(made, largest)
    if slip("a start may leave the model as it is and still not be PiSSA: compare s B A with the "
            "r largest terms of the SVD"):
        other = False
    if slip("s B A may be right while the base is not: compare base + s B A with W"): moves = False
    match which("your words are exchanged", 2):
        case 1: return "PiSSA" if moves else "other" if other else "moves"
        case 2: return "other" if moves else "moves" if other else "PiSSA"
    if moves: return "moves"
    return "other" if other else "PiSSA"


def halves(W, r, s=1.0):
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(S[:r] / s)
    return U[:, :r] * root, root[:, None] * Vt[:r]


class Starts:
    """Starts (W, r, s) → base, B, A of a layer that computes base x + s B A x."""

    @staticmethod
    def pissa(W, r, s):
        B, A = halves(W, r, s)
        return W - s * B @ A, B, A

    @staticmethod
    def on_one_side(W, r, s):
        """PiSSA, with all of the singular values in B, and other signs."""
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        B, A = -U[:, :r] * S[:r] / s, -Vt[:r]
        return W - s * B @ A, B, A

    @staticmethod
    def in_float32(W, r, s):
        """PiSSA, with a base in float32."""
        base, B, A = Starts.pissa(W, r, s)
        return base.astype(np.float32), B, A

    @staticmethod
    def unscaled(W, r, s):
        """Right if s = 1."""
        B, A = halves(W, r)
        return W - B @ A, B, A

    @staticmethod
    def too_large(W, r, s):
        """Right if s = 1: s times the largest terms is taken off, and put on again."""
        B, A = halves(W, r)
        return W - s * B @ A, B, A

    @staticmethod
    def not_taken_off(W, r, s):
        _, B, A = Starts.pissa(W, r, s)
        return W, B, A

    @staticmethod
    def in_float16(W, r, s):
        base, B, A = Starts.pissa(W, r, s)
        return base.astype(np.float16).astype(float), B, A

    @staticmethod
    def one_value(W, r, s):
        """Right if r = 1: the largest singular value stands for all."""
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        B, A = U[:, :r] * S[0] / s, Vt[:r]
        return W - s * B @ A, B, A

    @staticmethod
    def olora(W, r, s):
        """The first r columns of Q and rows of R; right if W is diagonal, and its numbers fall."""
        Q, R = np.linalg.qr(W)
        B, A = Q[:, :r] / s, R[:r]
        return W - s * B @ A, B, A

    @staticmethod
    def milora(W, r, s):
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        B, A = U[:, -r:] * S[-r:] / s, Vt[-r:]
        return W - s * B @ A, B, A

    @staticmethod
    def crossed(W, r, s):
        """The largest singular values and their U, with the last rows of Vᵀ."""
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        B, A = U[:, :r] * S[:r] / s, Vt[-r:]
        return W - s * B @ A, B, A

    @staticmethod
    def lora(W, r, s):
        A = np.random.default_rng(7).standard_normal((r, W.shape[1]))
        return W, np.zeros((len(W), r)), A

    @staticmethod
    def added(W, r, s):
        _, B, A = Starts.pissa(W, r, s)
        return W + s * B @ A, B, A


STARTS = {
    "PiSSA": Starts.pissa, "PiSSA, with all of the singular values in B": Starts.on_one_side,
    "PiSSA, with a base in float32": Starts.in_float32,
    "the scale is forgotten": Starts.unscaled,
    "s times too large, and taken off": Starts.too_large,
    "nothing is taken off": Starts.not_taken_off, "a base in float16": Starts.in_float16,
    "the largest singular value for all": Starts.one_value,
    "the first columns of Q and rows of R": Starts.olora,
    "the smallest singular values": Starts.milora,
    "the largest values of U with the last rows of V": Starts.crossed,
    "LoRA's own start": Starts.lora,
    "added in place of taken off": Starts.added}


def one_start(rng):
    names = list(STARTS)
    return (STARTS[names[rng.integers(len(names))]],)


# -- children.nearest ------------------------------------------------------------------------------
def nearest(D, b):
    blocks = D.reshape(len(D) // b, b, D.shape[1] // b, b)
    if slip("the blocks have b rows and b columns; you cut D into b × b of them"):
        blocks = D.reshape(b, len(D) // b, b, D.shape[1] // b)
    turns = [np.roll(blocks, (k, k), (1, 3)) for k in range(b)]
    if slip("the diagonals run the other way: one row down and one column to the right"):
        turns = [np.roll(blocks, (k, -k), (1, 3)) for k in range(b)]
    near = np.mean(turns, axis=0)
    if slip("the mean is over all b places, not over two"): near = np.mean(turns[:2], axis=0)
    if slip("the median makes the sum of distances least; the nearest matrix has the least sum of "
            "squares, which the mean makes"):
        near = np.median(turns, axis=0)
    if slip("this is the sum along a diagonal; the nearest number is the mean"): near = b * near
    if slip("each block keeps b numbers, not one: take the mean along each diagonal"):
        near = 0 * blocks + blocks.mean((1, 3), keepdims=True)
    if slip("each block has numbers of its own; you took the mean over all blocks"):
        near = 0 * near + near.mean((0, 2), keepdims=True)
    match which("the numbers of a row are not equal in a circular block: those of a diagonal "
                "are", 2):
        case 1: near = 0 * blocks + blocks.mean(3, keepdims=True)
        case 2: near = 0 * blocks + blocks.mean(1, keepdims=True)
    if slip("the nearest number to several is their mean; you took the first row of each block"):
        return first_rows(D, b)
    if slip("a circle closes: a diagonal that leaves the block at the right comes in at the left"):
        return toeplitz(D, b)
    if slip("this is D itself, whose blocks are not circular"): return D.copy()
    return near.reshape(D.shape)


def first_rows(D, b):
    """Copy the first row of each block."""
    blocks = D.reshape(len(D) // b, b, D.shape[1] // b, b)
    place = (np.arange(b) - np.arange(b)[:, None]) % b
    return blocks[:, 0][..., place].swapaxes(1, 2).reshape(D.shape)


def toeplitz(D, b):
    """The mean of each diagonal of a block, which ends at the edge."""
    near, d = np.empty_like(D), np.arange(b) - np.arange(b)[:, None]
    for i in range(0, len(D), b):
        for j in range(0, D.shape[1], b):
            block = D[i:i + b, j:j + b]
            for k in range(1 - b, b): near[i:i + b, j:j + b][d == k] = block[d == k].mean()
    return near


def blocks_case(rng):
    b = int(rng.integers(3, 6))
    return rng.standard_normal((2 * b, 3 * b)), b


def circular_case(rng):
    D, b = blocks_case(rng)
    return nearest(D, b), b


EXERCISES = (
    Exercise(
        name="children.which", title="Name the method by its change", stars=2,
        kind="design",
        reference=named, cases=trained,
        special=(
            ("LoRA", partial(trained, kind="LoRA")),
            ("LoRA, and the change is a thousandth of the weight",
             partial(trained, kind="LoRA", size=1e-3)),
            ("MiSS: low rank, too, but its columns repeat",
             partial(trained, kind="MiSS", shape=WIDE)),
            ("MiSS, with a last copy that is cut off", partial(trained, kind="MiSS, cut off")),
            ("MiSS, and r is a quarter of the inputs",
             partial(trained, kind="quarter MiSS", shape=WIDE)),
            ("columns repeat, but r is 3/8 of the inputs: none",
             partial(trained, kind="wide MiSS", shape=TALL)),
            ("C3A", partial(trained, kind="C3A")),
            ("C3A with blocks of 12", partial(trained, kind="one circle")),
            ("C3A with blocks of 20", partial(trained, kind="large circles", shape=(40, 60))),
            ("MiSS, and all numbers of W and of W′ are a thousand times as large",
             partial(trained, kind="MiSS", shape=WIDE, times=1000)),
            ("the blocks at the top and at the left go round, the others do not: none",
             partial(trained, kind="circles at the edge")),
            ("SHiRA", partial(trained, kind="SHiRA")),
            ("OFT", partial(trained, kind="OFT")),
            ("OFT on a larger weight", partial(trained, kind="OFT", shape=(96, 144))),
            ("OFT, and only one block of 4 inputs turns", partial(trained, kind="one rotation")),
            ("HiRA", partial(trained, kind="HiRA")),
            ("each row times a number of its own: HiRA", partial(trained, kind="lengths")),
            ("DoRA: none of the six", partial(trained, kind="DoRA")),
            ("LoHa: none", partial(trained, kind="LoHa")),
            ("rank 7 of 24, which is more than a quarter: none",
             partial(trained, kind="larger rank", shape=WIDE)),
            ("rank 7 of 24 in a tall weight: none",
             partial(trained, kind="larger rank", shape=TALL)),
            ("W times a matrix of rank 7, number by number: none",
             partial(trained, kind="larger share", shape=WIDE)),
            ("the same in a tall weight: none",
             partial(trained, kind="larger share", shape=TALL)),
            ("each row turned in its own way: none", partial(trained, kind="rows turned")),
            ("the outputs turned, R W in place of W Rᵀ: none",
             partial(trained, kind="outputs turned")),
            ("equal along diagonals that end at the edge: none", partial(trained, kind="Toeplitz")),
            ("neighbours have the same column: LoRA", partial(trained, kind="neighbours")),
            ("W times a matrix whose rank is a quarter of the smaller side: HiRA",
             partial(trained, kind="quarter share")),
            ("only one row changed, and it repeats: MiSS, and not SHiRA",
             partial(trained, kind="one row of MiSS")),
            ("all blocks of a row are one circle: MiSS, and not C3A",
             partial(trained, kind="equal circles")),
            ("circles with one number in twelve: C3A, and not SHiRA",
             partial(trained, kind="sparse circles")),
            ("the columns of W repeat, and W′ is −W: MiSS, and not OFT",
             partial(trained, kind="repeated weight", size=1)),
            ("the blocks of W are circles, and W′ is −W: C3A, and not OFT",
             partial(trained, kind="circular weight", size=1)),
            ("two columns of W changed their sign: SHiRA, and not OFT",
             partial(trained, kind="two columns", size=1, shape=WIDE)),
            ("W has rank 1, so that W times a matrix of low rank has one, too: LoRA",
             partial(trained, kind="weight of rank 1")),
            ("half of all numbers stay: none", partial(trained, kind="half")),
            ("all numbers trained, by a ten-thousandth: none",
             partial(trained, kind="full", size=1e-4)),
            ("all numbers trained: none", partial(trained, kind="full"))),
        mistakes=slips(named, repeats, is_circular, goes_round, is_sparse, is_turned, is_low,
                       is_low_share, low),
        symptoms=(
            ("return one of the seven words, as they stand in the table",
             lambda got, expected, args: got not in (*MARKS, "none")),
            ("two marks hold here, and the first one in the table counts: ask in its order, and "
             "allow for rounding", also_holds),
            ("here W Wᵀ is the same before and after, up to rounding, which is some 10⁻⁴ of the "
             "largest number of W ΔWᵀ, and you do not say OFT",
             was("OFT")),
            ("here the columns repeat up to rounding, and you do not say MiSS", was("MiSS")),
            ("here each block goes round in a circle, and you do not say C3A", was("C3A")),
            ("here nearly all numbers stayed, and you do not say SHiRA", was("SHiRA")),
            ("you say MiSS, but here column j + r is not column j up to the last one, for any r up "
             "to a quarter of the inputs", said("MiSS")),
            ("you say C3A, but here it is not true that all b × b blocks go round, for one b from "
             "2 on", said("C3A")),
            ("you say SHiRA, but here more than a tenth of the numbers differ, if only by little: "
             "count those that are exactly 0", said("SHiRA")),
            ("you say OFT, but this is no rotation; a small change hardly moves W Wᵀ: compare with "
             "W ΔWᵀ", said("OFT")),
            ("the rank of ΔW is at most a quarter of the smaller side here, and you do not say "
             "LoRA: count singular values above 10⁻⁴ of the largest, since float32's rounding has "
             "full rank", was("LoRA")),
            ("the change over W, number by number, has a low rank here, and you do not say HiRA",
             was("HiRA")),
            ("one of your questions asks for too little: here the rank, of ΔW and of ΔW / W, is "
             "more than a quarter of the smaller side",
             lambda got, expected, args: expected == "none" and got in ("LoRA", "HiRA")),
            ("none of the six marks holds here: one of your questions asks for too little",
             was("none"))),
        hints=("Which array shows each mark? W2 − W shows four of them. Which two need W as well?",
               "W2 − W is (d_out, d_in), W Wᵀ is (d_out, d_out). A block of C3A moved by one row "
               "and one column is np.roll(block, (1, 1), (0, 1)).",
               "D = W2 - W in float64. MiSS: D[:, r:] equals D[:, :-r] for an r. C3A: blocks = "
               "D.reshape(d_out // b, b, d_in // b, b) equals np.roll(blocks, (1, 1), (1, 3)) for "
               "a b. SHiRA: np.mean(D == 0) >= 0.9. OFT: W2 @ W2.T - W @ W.T is small beside "
               "W @ D.T. LoRA: few singular values of D above 1e-4 of the first. HiRA: the same "
               "for D / W.")),
    Exercise(
        name="children.stretch", title="A HiRA that makes rows longer", stars=1, kind="design",
        reference=stretch, cases=some_factors,
        goal=("row i of W + W ⊙ B A is g_i times row i of W", is_stretched),
        symptoms=(
            ("B A must be as large as W: B has a row for each of W's, and A a column for each",
             lambda got, expected, args: np.isnan(change_of(got, args[0])).any()),
            ("the change is added to W: row i changes by g_i − 1 times itself",
             is_change(lambda W, g: g[:, None] * W)),
            ("the sign is wrong: the change is (g_i − 1) times the row",
             is_change(lambda W, g: (1 - g)[:, None] * W)),
            ("g is the new length over the old one: the change is g − 1 times the row, not 1/g − 1",
             is_change(lambda W, g: (1 / g - 1)[:, None] * W)),
            ("nothing changes: B A is 0 here", lambda got, expected, args:
             not change_of(got, args[0]).any()),
            ("A scales the columns, and a row keeps its direction only if A's numbers are equal",
             lambda got, expected, args: np.ptp(np.asarray(got[1], float)) > 1e-9)),
        hints=("What must B A be so that W ⊙ B A is the change of the rows?",
               "B A is (d_out, d_in). All its columns are alike: g_i − 1 in row i.",
               "return (g - 1)[:, None], np.ones((1, W.shape[1]))")),
    Exercise(
        name="children.lengths", title="A change that DoRA makes and LoRA misses", stars=2,
        kind="design",
        reference=lengths, cases=long_rows,
        goal=("each factor is from 0.5 to 2, and what a matrix of rank r leaves of the change has "
              "at least 0.8 of its norm", beyond, reached),
        mistakes=slips(lengths),
        symptoms=(
            ("return the factors, one for each row, not the rows themselves",
             lambda got, expected, args: np.shape(got) == args[0].shape),
            ("a factor is below 0.5 or above 2",
             lambda got, expected, args: not in_range(np.asarray(got, float))),
            ("a matrix of rank r comes too near to your change: look at the lengths of the rows of "
             "(g − 1) W, and make them alike",
             lambda got, expected, args: not beyond(got, args))),
        hints=("The change of row i is (g_i − 1) w_i. When do few rows hold nearly all of it?",
               "g is (d_out,), like the lengths of the rows. (g − 1)[:, None] * W is the change.",
               "rows = np.linalg.norm(W, axis=1); return 1 + rows.min() / rows: then each row "
               "changes by the same length.")),
    Exercise(
        name="children.bug", title="Find the bug: a PiSSA that is right if α = r", stars=2,
        kind="fault",
        reference=judged, cases=one_start,
        special=tuple((name, lambda rng, start=start: (start,)) for name, start in STARTS.items()),
        mistakes=slips(judged),
        symptoms=(
            ("return one of the three words", lambda got, expected, args:
             got not in ("moves", "other", "PiSSA")),
            ("this one is right, up to rounding, signs and the share of the singular values; do "
             "you multiply B A by s wherever you use it?",
             was("PiSSA")),
            ("base + s B A is not W here, for most choices of W, r and s: draw W at random",
             was("moves")),
            ("the model stays here, but s B A is not the r largest terms of W's SVD, for most "
             "choices of W, r and s",
             was("other"))),
        hints=("Which two matrices must be equal in every sound start? Which two in PiSSA's alone?",
               "base and s B A are (d_out, d_in), like W. You choose W, r and s so that no fault "
               "can hide: one start is wrong only for s ≠ 1, another only for r > 1, one is right "
               "for a diagonal W whose numbers fall, one if r is as large as it can be, and one "
               "has a base that was rounded to 16 bits.",
               "W = np.random.default_rng(0).standard_normal((8, 12)); base, B, A = start(W, 3, "
               "2.5). If ‖base + 2.5 B A − W‖ is above 1e-6 ‖W‖: “moves”. U, S, Vt = "
               "np.linalg.svd(W); compare 2.5 B A with (U[:, :3] * S[:3]) @ Vt[:3]: “other” or "
               "“PiSSA”.")),
    Exercise(
        name="children.nearest", title="The nearest change that goes in circles", stars=2,
        kind="design",
        reference=nearest, cases=blocks_case,
        special=(
            ("a change that goes in circles is its own nearest one", circular_case),),
        mistakes=slips(nearest),
        hints=("Which places of a block must have the same number? Which single number is nearest "
               "to several given ones?",
               "blocks = D.reshape(d_out // b, b, d_in // b, b). Moved by k rows and k columns, a "
               "number stays on its own diagonal.",
               "Take the mean of np.roll(blocks, (k, k), (1, 3)) over k = 0 … b − 1, and reshape "
               "it to D.shape.")),
)
