"""Lesson 00: what merges, what is trained, two signs of a zero point, bytes, and packed codes."""
from functools import partial

import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- map.trained -----------------------------------------------------------------------------------
def trained(d, L, r, P, m):
    lora, prompt, prefix = 2 * L * r * (d + d), P * d, 2 * P * L * d
    if slip("LoRA: count two adapted matrices in a block, query and value"): lora = L * r * (d + d)
    match which("LoRA: A is (r, d) and B is (d, r), so that each has r·d numbers, and not d²", 2):
        case 1: lora = 2 * L * r * d * d
        case 2: lora = 2 * r * d * d
    if slip("LoRA: this counts one block; there are L"): lora = 2 * r * (d + d)
    if slip("LoRA: this counts all four matrices of attention; only query and value are adapted"):
        lora = 4 * L * r * (d + d)
    if slip("LoRA: only query and value are adapted, two matrices in a block"):
        lora = 3 * L * r * (d + d)
    if slip("a prompt has one vector for each position, and not a key and a value"):
        prompt = 2 * P * d
    if slip("a prompt enters once, at the input; it has no vectors in the blocks"):
        prompt = P * L * d
    if slip("a prompt enters once, at the input; it is no prefix"): prompt = prefix
    if slip("a prefix is in every block, with a key and a value for each position"): prefix = P * d
    if slip("a prefix has a key and a value for each position"): prefix = P * L * d
    if slip("a prefix is in every one of the L layers"): prefix = 2 * P * d
    one = 2 * d * m + m + d
    if slip("the adapters' biases are missing, m and d each"): one = 2 * d * m
    match which("an adapter has two biases, b_d of m numbers and b_u of d numbers", 4):
        case 1: one = 2 * d * m + m
        case 2: one = 2 * d * m + d
        case 3: one = 2 * d * m + 2 * m
        case 4: one = 2 * d * m + 2 * d
    if slip("an adapter has two matrices, W_d and W_u"): one = d * m + m + d
    adapters = 2 * L * one
    if slip("adapters: this counts one block; there are L"): adapters = 2 * one
    if slip("there are two adapters in a block, one after attention and one after the MLP"):
        adapters = L * one
    return lora, prompt, prefix, adapters


def trained_cases(rng):
    low, high = (40, 3, 2, 5, 6), (200, 9, 17, 30, 40)
    return tuple(rng.integers(low, high).tolist())


# -- map.merges ------------------------------------------------------------------------------------
class Layers:
    """Layers of 5 numbers to 4, with some method on them. The first five are matrices."""
    W, A, B, U = (np.random.default_rng(i).standard_normal(shape)
                  for i, shape in enumerate(((4, 5), (2, 5), (4, 2), (2, 4))))

    @staticmethod
    def plain(x):
        return x @ Layers.W.T

    @staticmethod
    def lora(x):
        return x @ Layers.W.T + 2 * (x @ Layers.A.T) @ Layers.B.T

    @staticmethod
    def rescaled(x):
        return x @ Layers.W.T * Layers.B[:, 0]

    @staticmethod
    def linear_adapter(x):
        h = x @ Layers.W.T
        return h + h @ Layers.U.T @ Layers.B.T

    @staticmethod
    def zero(x):
        return 0 * x @ Layers.W.T

    @staticmethod
    def adapter(x):
        """A sequential adapter with a ReLU: doubling the input doubles the output."""
        h = x @ Layers.W.T
        return h + np.maximum(h @ Layers.U.T, 0) @ Layers.B.T

    @staticmethod
    def beside(x):
        """A curve that is odd: f(−x) = −f(x)."""
        return x @ Layers.W.T + np.tanh(x @ Layers.A.T) @ Layers.B.T

    @staticmethod
    def sizes(x):
        """A matrix as long as no input is negative."""
        return np.abs(x) @ Layers.W.T

    @staticmethod
    def squares(x):
        return x * x @ Layers.W.T

    @staticmethod
    def waves(x):
        """A matrix for whole numbers, between which the curve rises and falls."""
        return (x + 0.1 * np.sin(2 * np.pi * x)) @ Layers.W.T

    @staticmethod
    def biased(x):
        return x @ Layers.W.T + Layers.B[:, 1]

    @staticmethod
    def faint(x):
        """A matrix, and so little of a curve that `np.allclose` does not see it by default."""
        return x @ Layers.W.T + 1e-8 * np.tanh(x @ Layers.A.T) @ Layers.B.T

    @staticmethod
    def faint_in_one(x):
        """A matrix, and in one of the four outputs a curve so faint that a mean hides it."""
        return x @ Layers.W.T + 1.5e-8 * np.tanh(x[:, :1]) * (np.arange(4) == 2)


MATRICES = Layers.plain, Layers.lora, Layers.rescaled, Layers.linear_adapter


def merges(f, d):
    W = f(np.eye(d)).T
    x = np.random.default_rng(0).standard_normal((20, d))
    if slip("every f agrees with this W on the rows of np.eye: compare f(x) and x Wᵀ on "
            "other inputs", 1):
        return W
    if slip("every f agrees with this W on the rows of np.eye: compare f(x) and x Wᵀ on "
            "other inputs", 2):
        x = np.eye(d)
    both = which("try negative inputs, too, and let a faint curve count: the limit is 1e-9, "
                 "which np.allclose has with rtol=0, atol=1e-9", 2)
    if both or slip("try negative inputs, too: |x| is x where no number is negative"):
        x = np.abs(x)
    if slip("a curve may be a matrix for whole numbers: take others, too"): x = np.rint(3 * x)
    same = np.allclose(f(x), x @ W.T, rtol=0, atol=1e-9)
    match both:
        case 1: same = np.allclose(f(x), x @ W.T)
        case 2: same = np.allclose(f(x), x @ W.T, atol=1e-4)
    if slip("f(2x) = 2 f(x) holds for a ReLU without bias as well: compare f(x) with x Wᵀ"):
        same = np.allclose(f(2 * x), 2 * f(x))
    if slip("f(−x) = −f(x) holds for an odd curve as well: compare f(x) with x Wᵀ"):
        same = np.allclose(f(-x), -f(x))
    biased = which("a matrix gives 0 for x = 0: with a bias there is no matrix that does it "
                   "alone", 2)
    if biased: W = (f(np.eye(d)) - f(np.zeros((d, d)))).T
    match biased:
        case 1: same = np.allclose(f(x) - f(0 * x), x @ W.T, rtol=0, atol=1e-9)
        case 2: same = np.allclose(f(x) - f(0 * x), x @ W.T)
    match which("a faint curve counts: the limit is a billionth, and np.allclose has it with "
                "rtol=0, atol=1e-9", 2):
        case 1: same = np.allclose(f(x), x @ W.T)
        case 2: same = np.allclose(f(x), x @ W.T, atol=1e-4)
    if slip("a single number that is off by more than 1e-9 counts: your limit is larger, or a "
            "mean hides it, or you try too few inputs"):
        same = np.abs(f(x) - x @ W.T).mean() < 1e-9
    if slip("some of the functions are matrices: is your limit above rounding?"): same = False
    if slip("this is Wᵀ: row i of f(np.eye(d)) is what input i does, a column of W"): W = W.T
    return W if same else None


def merges_cases(rng, f=None):
    return f or MATRICES[rng.integers(len(MATRICES))], 5


# -- map.signs -------------------------------------------------------------------------------------
def signs(codes, scale, zero):
    z = np.abs(zero)                                              # 0's own code is never negative
    if slip("this takes every row for a library's, s (q − z)"): z = zero
    if slip("this takes every row for the survey's, s (q + Z)"): z = -zero
    match which("each row has a sign of its own: decide row by row, not for all at once", 2):
        case 1: z = zero if zero[0] > 0 else -zero
        case 2: z = zero if zero.sum() > 0 else -zero
    if slip("it is the other way round: where 0 has a code z ≥ 0, the libraries write z, and the "
            "survey −z"):
        z = -z
    if slip("a negative zero point is one in the survey's sign, and not 0"): z = np.maximum(zero, 0)
    if slip("the scale is missing"): return codes - z[:, None]
    if slip("the scale multiplies the zero point as well: s (q − z), with brackets"):
        return scale[:, None] * codes - z[:, None]
    return scale[:, None] * (codes - z[:, None])


def signs_cases(rng, written=None, shift=0.0):
    """Rows of weights, and for each the sign in which its zero point was written."""
    n, g = rng.integers(3, 7, 2).tolist()
    x = rng.standard_normal((n, g)) + shift
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    levels = 2 ** int(rng.integers(3, 9)) - 1
    scale = (high - low) / levels
    z = np.rint(-low / scale)
    codes = np.clip(np.rint(x / scale[:, None]) + z[:, None], 0, levels)
    mixed = rng.permutation([1, -1, *rng.choice([1, -1], n - 2)])
    return codes, scale, z * (mixed if written is None else written)


# -- map.bug ---------------------------------------------------------------------------------------
def decoded(codes, scale, zero):
    q, z = codes.astype(np.float32), zero.astype(np.float32)
    if slip("the brackets are missing: s (q − z) is not s q − z"):
        return scale[:, None] * q - z[:, None]
    if slip("the difference is taken in uint8, where 3 − 8 is 251: turn the codes into floats "
            "(or wide integers) before it"):
        q, z = codes, zero
    if slip("int8 ends at 127, and codes go to 255: take a wider type"):
        q, z = codes.astype(np.int8), zero.astype(np.int8)
    if slip("this adds the zero point; s (q − z) subtracts it"): z = -z
    if slip("the scale is missing"): return q - z[:, None]
    if slip("a code below the zero point is a negative weight: the difference keeps its sign"):
        return scale[:, None] * np.abs(q - z[:, None])
    return scale[:, None] * (q - z[:, None])


def bug_cases(rng, low=0, high=256, zero=None):
    n, g = rng.integers((2, 4), (5, 9)).tolist()
    z = rng.integers(100, 160, n) if zero is None else np.full(n, zero)
    codes = rng.integers(low, high, (n, g)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, n).astype(np.float32)
    return codes, scale, z.astype(np.uint8)


# -- map.pack --------------------------------------------------------------------------------------
def packed(codes, bits):
    if slip("code 0 comes first: the codes are in reverse order"): codes = codes[::-1]
    stream = (codes[:, None] >> np.arange(bits) & 1).astype(np.uint8)
    both = slip("the first code belongs into the low bits of its byte: bit k of "
                "the stream is bit k mod 8")
    if both or slip("the bits of each code are reversed: its lowest bit comes first"):
        stream = stream[:, ::-1]
    if slip("every code has a byte of its own: leave no gaps"):
        stream = np.pad(stream, ((0, 0), (0, 8 - bits)))
    if both or slip("the bits of each byte are reversed: the stream's first bit is the lowest one"):
        return np.packbits(stream.reshape(-1))
    if slip("a byte holds whole codes only, and a gap remains: a code may lie in two bytes"):
        return whole_codes(codes, bits)
    return np.packbits(stream.reshape(-1), bitorder="little")


def whole_codes(codes, bits):
    """Put as many whole codes into a byte as fit."""
    n = 8 // bits
    rows = np.pad(codes, (0, -len(codes) % n)).reshape(-1, n)
    return (rows.astype(int) << bits * np.arange(n)).sum(1).astype(np.uint8)


def are_bits(got, expected, args):
    codes, bits = args
    return bits > 1 and got.size == len(codes) * bits


def pack_cases(rng, bits=None):
    bits = int(rng.integers(1, 9)) if bits is None else bits
    n = int(rng.integers(9, 22))
    return rng.integers(0, 2**bits, n).astype(np.uint8), bits


EXERCISES = (
    Exercise(
        name="map.trained", title="Four counts of trained parameters", stars=1,
        kind="count",
        reference=trained, cases=trained_cases,
        special=(
            ("the base, with r = 8, P = 20, m = 64", lambda rng: (128, 5, 8, 20, 64)),),
        mistakes=slips(trained),
        symptoms=(
            ("this is another one of the four counts: they are asked for in the order of the table",
             lambda got, expected, args: got in trained(*args)),),
        tolerance=0,
        hints=("How many matrices does LoRA change in a block, and how many numbers describe each "
               "change? In how many layers does a prompt stand, and in how many a prefix?",
               "LoRA: A (r, d) and B (d, r) for each of 2 L matrices. Prompt: (P, d). Prefix: a "
               "key and a value, (P, d) each, in L layers. An adapter: (m, d), m, (d, m) and d.",
               "LoRA: 2 * L * r * (d + d). Prompt: P * d. Prefix: 2 * P * L * d. Adapters: 2 * "
               "L times 2 * d * m and the two biases.")),
    Exercise(
        name="map.merges", title="Can it be merged?", stars=2,
        kind="design",
        reference=merges, cases=merges_cases,
        special=(
            ("a plain layer", partial(merges_cases, f=Layers.plain)),
            ("LoRA beside it", partial(merges_cases, f=Layers.lora)),
            ("outputs times numbers", partial(merges_cases, f=Layers.rescaled)),
            ("an adapter without a curve", partial(merges_cases, f=Layers.linear_adapter)),
            ("a layer that gives zeros: the matrix of zeros", partial(merges_cases, f=Layers.zero)),
            ("an adapter with a ReLU: None", partial(merges_cases, f=Layers.adapter)),
            ("an odd curve, f(−x) = −f(x): None", partial(merges_cases, f=Layers.beside)),
            ("the sizes of the inputs, |x|: None", partial(merges_cases, f=Layers.sizes)),
            ("the squares of the inputs: None", partial(merges_cases, f=Layers.squares)),
            ("waves between the whole numbers: None", partial(merges_cases, f=Layers.waves)),
            ("a matrix and a bias: None", partial(merges_cases, f=Layers.biased)),
            ("a faint curve: None", partial(merges_cases, f=Layers.faint)),
            ("a faint curve in one of four outputs: None",
             partial(merges_cases, f=Layers.faint_in_one))),
        mistakes=slips(merges),
        symptoms=(
            ("a limit that is a part of the size of f(x) is 0 for a layer that gives zeros, and "
             "0 < 0 is False: the limit is 1e-9 itself",
             lambda got, expected, args: got is None and args[0] is Layers.zero),
            ("this f is no matrix for negative inputs: does your x have some?",
             lambda got, expected, args: got is not None and args[0] is Layers.sizes),
            ("this f is a matrix and 1e-8 of a curve: is your limit 1e-9?",
             lambda got, expected, args: got is not None and args[0] is Layers.faint)),
        tolerance=1e-9,
        hints=("What does f give for an input that is 1 at one place and 0 elsewhere? And how "
               "would you notice that f is not what these inputs suggest?",
               "f(np.eye(d)) is (d, d_out); W is (d_out, d).",
               "W = f(np.eye(d)).T. Draw x = rng.standard_normal((20, d)), and return W if f(x) is "
               "x @ W.T to 1e-9, else None.")),
    Exercise(
        name="map.signs", title="Whose sign is it?", stars=2,
        kind="design",
        reference=signs, cases=signs_cases,
        special=(
            ("all rows have the libraries' sign", partial(signs_cases, written=1)),
            ("all rows have the survey's sign", partial(signs_cases, written=-1)),
            ("all weights are positive, so every zero point is 0", partial(signs_cases, shift=9.0)),
            ("all weights are negative", partial(signs_cases, shift=-9.0))),
        mistakes=slips(signs),
        tolerance=1e-9,
        hints=("The range of each row contains 0, so 0 has a code. What does that say of z in "
               "equation (3), and of Z in equation (4)?",
               "codes (n, g); scale and zero (n,), one for each row. z lies in 0 … 2ᵇ − 1, so Z = "
               "−z is never above 0.",
               "The code of 0 is abs(zero), whoever wrote it. Subtract it from the codes of its "
               "row, and multiply by the row's scale: scale[:, None] * (codes − …).")),
    Exercise(
        name="map.bug", title="Find the bug: weights that come back wrong", stars=2,
        kind="fault",
        reference=decoded, cases=bug_cases,
        special=(
            ("all codes lie above the zero point: here the wrong program is right",
             partial(bug_cases, low=200, high=256, zero=128)),
            ("all codes lie below the zero point", partial(bug_cases, low=0, high=100, zero=128))),
        mistakes=slips(decoded),
        symptoms=(
            ("uint16 and uint32 have no negative numbers either: 3 − 8 becomes very large; take "
             "floats, or integers with a sign",
             lambda got, expected, args: abs(got).max() > 100),
            ("an integer array of 32 or 64 bits times float32 is float64: turn codes and zero "
             "points into float32 first",
             lambda got, expected, args: got.dtype == np.float64)),
        errors=(
            ("broadcast",
             "one scale and one zero point belong to a row: scale[:, None] "
             "stands beside codes (n, g)"),),
        hints=("Take one weight that comes back wrong. Which number do you get by hand, "
               "from its code, its scale and its zero point? At which step does the "
               "program get another one?",
               "codes (n, g) are uint8. scale (n,) is float32 and zero (n,) is uint8, one for "
               "each row. The result is (n, g) in float32.",
               "q = codes.astype(np.float32) and z = zero.astype(np.float32)[:, None]. The "
               "result is scale[:, None] * (q - z).")),
    Exercise(
        name="map.pack", title="Codes of 3 bits in bytes of 8", stars=2,
        kind="design",
        reference=packed, cases=pack_cases,
        special=(
            ("two codes of 4 bits in a byte", lambda rng: (np.array([1, 2, 15, 0], np.uint8), 4)),
            ("codes of 8 bits are the bytes", partial(pack_cases, bits=8)),
            ("three bits: a code may lie in two bytes",
             lambda rng: (np.array([7, 0, 5, 1, 6], np.uint8), 3))),
        mistakes=slips(packed),
        symptoms=(
            ("these are the bits, one in each number: eight of them make a byte", are_bits),
            ("there is one byte too many: ⌈n b/8⌉ bytes hold the stream",
             lambda got, expected, args: got.size == expected.size + 1),
            ("the last byte is missing: zeros fill it up",
             lambda got, expected, args: got.size == expected.size - 1)),
        tolerance=0,
        hints=("Think of all bits of all codes in one row. In which order do they stand, and "
               "where is it cut into bytes?",
               "codes (n,) have `bits` bits each: together a stream of n * bits bits, (n, bits) "
               "before you flatten it. The result is uint8, of ⌈n b/8⌉ bytes.",
               "stream = (codes[:, None] >> np.arange(bits)) & 1 has the lowest bit "
               "first. np.packbits(stream.reshape(-1), bitorder=\"little\") cuts it into "
               "bytes and fills up the last one.")),
)
