"""Lesson 10: grids, ranges, clipping, and floating point with few bits."""
import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


def half_up(v):
    return np.floor(v + 0.5)


def half_away(v):
    return np.sign(v) * np.floor(np.abs(v) + 0.5)


def half_down(v):
    return np.ceil(v - 0.5)


def half_to_zero(v):
    return np.sign(v) * np.ceil(np.abs(v) - 0.5)


# -- quantization.absmax ---------------------------------------------------------------------------
def absmax(x, bits):
    short = which("with max|x|/2**(bits - 1) the largest number has no code of its own and is "
                  "clipped; divide by 2**(bits - 1) - 1", 2)
    between = which("2·max|x|/(2**bits - 1) puts max|x| midway between two integers; the "
                    "integers go from −n to n, so divide max|x| by n = 2**(bits - 1) - 1", 3)
    signed = which("use the largest magnitude, max|x|, not the largest number, max x", 3)
    n, m = 2**(bits - 1) - 1, np.abs(x).max()
    if m == 0: return np.zeros_like(x)
    s = m / n
    if slip("the scale is max|x|/(2**(bits - 1) - 1): the largest code is one "
            "less than a power of two"):
        s = m / (n + 1)
    if short: s = m / (n + 1)
    if between: s = m / (n + 0.5)
    if slip("the range is ±max|x|, so only half of the codes are for positive numbers: "
            "divide by 2**(bits - 1) - 1"):
        s = m / (2**bits - 1)
    if signed: s = x.max() / n
    if slip("there is one scale for all of x: take the maximum over the whole array"):
        s = np.abs(x).max(-1, keepdims=True) / n
    q = np.rint(x / s)
    match short, between, signed:
        case (1, 0, 0) | (0, 2, 0) | (0, 0, 2): q = np.clip(q, -n - 1, n)
        case (2, 0, 0) | (0, 3, 0) | (0, 0, 3): q = np.clip(q, -n, n)
    if slip("np.rint rounds a half to the even integer; floor(v + ½) rounds it up"):
        q = half_up(x / s)
    if slip("np.rint rounds a half to the even integer; yours rounds it away from 0"):
        q = half_away(x / s)
    if slip("you cut x/s off; round it to the nearest integer"): q = np.trunc(x / s)
    if slip("you rounded x/s down; round it to the nearest integer"): q = np.floor(x / s)
    if slip("these are the codes; multiply them by the scale to get x̂"): return q
    return q * s


def absmax_case(rng):
    spread = rng.uniform(0.1, 3)
    x = rng.normal(0, spread, (rng.integers(2, 5), rng.integers(5, 9)))
    return x, int(rng.integers(2, 9))


def midway(rng):
    return (np.array([-1.5, -0.75, -0.25, 0.25, 0.75, 1.25]), 3)


# -- quantization.survey ---------------------------------------------------------------------------
def survey(x, bits):
    both = slip("two things: the range must be stretched to contain 0, and the survey subtracts Z, "
                "which is round(l/S), when it encodes")
    cut = which("all numbers are cut off or rounded down; x/S and l/S are "
                "rounded to the nearest integer", 2)
    symmetric = which("Z depends on the range: the code of l must be 0; -2**(bits - 1) is "
                      "the Z of a symmetric grid", 3)
    broken = slip("Z must be an integer: round it")
    l, h = min(x.min(), 0), max(x.max(), 0)
    if both or slip("the range does not contain 0 here; stretch it: l = min(l, 0), h = max(h, 0)"):
        l, h = x.min(), x.max()
    S = (h - l) / (2**bits - 1) or 1.0
    if slip("S is (h − l)/(2**bits - 1): there is one step fewer than there are points"):
        S = (h - l) / 2**bits
    match which("S is exactly (h − l)/(2**bits - 1): an added ε moves numbers from midway "
                "between two points to one side; look only whether S is 0", 3):
        case 1: S = S + 1e-9
        case 2: S = S + 1e-6
        case 3: S = S + 1e-4
    Z = int(np.rint(l / S))
    if broken: Z = l / S
    match which("round l/S to the nearest integer; your Z is cut off or rounded down", 2):
        case 1: Z = np.trunc(l / S)
        case 2: Z = np.floor(l / S)
    match symmetric:
        case 1 | 2: Z = -2**(bits - 1)
        case 3: S, Z = max(-l, h) / (2**(bits - 1) - 1), -2**(bits - 1)
    codes = np.rint(x / S) - Z
    if broken: codes = np.rint(codes)
    if slip("round x/S before you subtract Z: a half may go to the other side when Z is odd"):
        codes = np.rint(x / S - Z)
    match which("round x/S to the nearest integer; yours is cut off or rounded down", 2):
        case 1: codes = np.trunc(x / S) - Z
        case 2: codes = np.floor(x / S) - Z
    match cut:
        case 1: codes, Z = np.trunc(x / S) - np.trunc(l / S), np.trunc(l / S)
        case 2: codes, Z = np.floor(x / S) - np.floor(l / S), np.floor(l / S)
    x_q = np.clip(codes, 0, 2**bits - 1).astype(int)
    if slip("the codes are not clipped to 0 … 2**bits - 1"): x_q = codes.astype(int)
    match which("Z is not subtracted: the code of l must be 0", 2):
        case 1: x_q = np.clip(np.rint(x / S), 0, 2**bits - 1).astype(int)
        case 2: x_q = np.rint(x / S).astype(int)
    match symmetric:
        case 2: x_q = codes.astype(int)
    if both or slip("this is the libraries' sign: the survey subtracts Z when it encodes, so Z is "
                    "round(l/S), not −round(l/S)"):
        Z = -Z
    return x_q, S, Z


def survey_case(rng):
    middle = rng.uniform(-1, 1)
    x = rng.normal(middle, 1, (3, rng.integers(6, 10)))
    return x, int(rng.integers(2, 9))


def _zeros_come_back(fn, rng):
    codes, S, Z = fn(np.zeros((2, 3)), 4)
    return S > 0 and not (S * (np.asarray(codes) + Z)).any()


def _zeros_come_back(fn, rng):
    codes, S, Z = fn(np.zeros((2, 3)), 4)
    return S > 0 and not (S * (np.asarray(codes) + Z)).any()


# -- quantization.bug ------------------------------------------------------------------------------
def bug(q, s, z, group):
    def spread(a):
        return np.repeat(a, group, axis=1)
    steps, codes, zeros = spread(s), q.astype(np.float32), spread(z)
    if slip("uint8 has no negative numbers: 3 − 8 wraps to 251. Turn the codes into float32 or "
            "int16 before you subtract"):
        codes = q
    if slip("int8 ends at 127, and codes of 8 bits go up to 255: they wrap, "
            "too; take float32 or int16"):
        codes, zeros = q.astype(np.int8), zeros.astype(np.int8)
    if slip("np.tile repeats a row of scales as a whole; neighbours of one group share a "
            "scale, so repeat each of them"):
        steps, zeros = tiled(s, group), tiled(z, group)
    if slip("np.tile repeats a row of zero points as a whole; repeat each of them, as you do with "
            "the scales"):
        zeros = tiled(z, group)
    if slip("np.tile repeats a row of scales as a whole; repeat each of them, as you do with the "
            "zero points"):
        steps = tiled(s, group)
    if slip("two faults: uint8 wraps below 0, and np.tile repeats a row of scales as a whole; "
            "repeat each of them"):
        steps, codes, zeros = tiled(s, group), q, tiled(z, group)
    if slip("z is subtracted here, x̂ = s (q − z); q + z is the survey's "
            "convention, whose Z is −z"):
        return steps * (codes + zeros)
    if slip("the scale must multiply q − z, not q alone"): return steps * codes - zeros
    if slip("the zero point is missing"): return steps * codes
    if slip("the scale is missing"): return codes - zeros
    return steps * (codes - zeros)


def tiled(a, group):
    """Repeat the rows as a whole, where each number should be repeated."""
    return np.tile(a, (1, group))


def as_float32(x):
    return np.asarray(x, np.float32)


def _codes(rng):
    n = 2**int([2, 4, 8][rng.integers(3)])
    rows, groups = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    group = int(rng.choice([2, 3, 5]))
    q = rng.integers(0, n, (rows, groups * group)).astype(np.uint8)
    z = rng.integers(n // 4, 3 * n // 4, (rows, groups)).astype(np.uint8)
    return q, rng.uniform(0.1, 2, (rows, groups)).astype(np.float32), z, group


def _two_groups(q, s, z):
    return lambda rng: (np.uint8([q]), np.float32([s]), np.uint8([z]), 2)


# -- quantization.best_clip ------------------------------------------------------------------------
def best_clip(x, bits, fractions):
    free = which("a smaller range costs nothing in your error: the codes are not clipped, "
                 "np.clip(…, -n, n), or the error is that against the clipped x, where it must "
                 "be that against x itself", 2)
    short = which("the step is p·m/(2**(bits - 1) - 1)", 3)
    wide = which("the step is p·m/(2**(bits - 1) - 1), half of the codes "
                 "are for negative numbers", 2)
    whole = which("every row has its own fraction: sum the errors over axis 1 only", 2)
    n = 2**(bits - 1) - 1
    match wide:
        case 1: n = 2**bits - 1
    m = np.abs(x).max(1, keepdims=True)
    if slip("every row has its own range: m is the largest |x| of the row, "
            "np.abs(x).max(1, keepdims=True)"):
        m = np.abs(x).max(keepdims=True)
    if slip("m is the largest magnitude of the row, max|x|, not its largest number"):
        m = x.max(1, keepdims=True)
    errors = []
    for p in fractions:
        s = np.where(m == 0, 1, p * m / n)
        if short: s = np.where(m == 0, 1, p * m / (n + 1))
        match wide:
            case 2: s = np.where(m == 0, 1, p * m / (2 * n + 1))
        match whole:
            case 1: s = p * m / n
        q = np.clip(np.rint(x / s), -n, n)
        match which("round x/s to the nearest integer; yours is cut off or rounded down", 2):
            case 1: q = np.clip(np.trunc(x / s), -n, n)
            case 2: q = np.clip(np.floor(x / s), -n, n)
        match short:
            case 2: q = np.clip(np.rint(x / s), -n - 1, n)
            case 3: q = np.clip(np.rint(x / s), -n - 1, n + 1)
        if slip("the smallest code in use is -(2**(bits - 1) - 1): the "
                "symmetric grid leaves one unused"):
            q = np.clip(np.rint(x / s), -n - 1, n)
        match free:
            case 1: q = np.rint(x / s)
        off = s * q - x
        match free:
            case 2: off = s * q - np.clip(x, -p * m, p * m)
        error = np.sum(off**2, axis=1)
        if slip("the error must be squared"): error = np.sum(np.abs(off), axis=1)
        if slip("errors of both signs cancel: square them before you sum"):
            error = np.sum(off, axis=1)
        if slip("this is the largest error of a row; sum the squares of all"):
            error = np.max(off**2, axis=1)
        if whole: error = np.full(len(x), error.sum())
        errors.append(error)
    best = np.argmin(errors, axis=0)
    if slip("of equally good fractions, the first one is wanted; with <= the last one wins"):
        best = len(errors) - 1 - np.argmin(errors[::-1], axis=0)
    if slip("this is the worst fraction: take argmin, not argmax"):
        best = np.argmax(errors, axis=0)
    if slip("the largest range always wins here: round x/s, and decode the codes "
            "with the same step s = p·m/n"):
        best = np.full(len(x), np.argmax(fractions))
    if slip("this is the place of the fraction; return the fraction itself"): return best
    if slip("these are the ends of the ranges, p·m; return p"):
        return np.asarray(fractions)[best] * np.abs(x).max(1)
    if slip("these are the least errors; return the fractions that have them"):
        return np.min(errors, axis=0)
    return np.asarray(fractions)[best]


def best_clip_case(rng):
    x = rng.standard_t(6, (rng.integers(4, 7), 40))
    return x, int(rng.integers(2, 5)), np.linspace(1, 0.2, 17)


ONE_LARGE = [1.0] * 30 + [3.0]


def beside_one_large(row):
    def arguments(rng):
        return np.array(row), 2, np.array([1.0, 0.5, 1 / 3])
    return arguments


def equally_good(rng):
    return np.array([[1.0, -1, 0.5, 0.5]]), 2, np.array([1.0, 0.5])


# -- quantization.to_float -------------------------------------------------------------------------
def to_float(x, e, m):
    both = which("two faults: the exponent is one less than np.frexp's second result, and "
                 "below 2**(1 - bias) it stops at 1 − bias", 2)
    if slip("2**m intervals lie between two powers of two; yours are half as wide"): m = m + 1
    if slip("numbers keep their sign; this is |x| rounded"): x = np.abs(x)
    bias = 2**(e - 1) - 1
    if slip("the bias is 2**(e - 1) - 1"): bias = 2**(e - 1)
    V = 2.0**(2**e - 1 - bias) * (2 - 2.0**-m)
    if slip("no exponent is reserved here: the largest one is 2**e - 1 - "
            "bias, not 2**e - 2 - bias"):
        V = V / 2
    match which("the largest mantissa is 2 - 2**-m, all bits 1", 2):
        case 1: V = 2.0**(2**e - 1 - bias)
        case 2: V = 2.0**(2**e - 1 - bias) * (1 - 2.0**-m)
    E = np.maximum(np.frexp(np.abs(x))[1] - 1, 1 - bias)
    if slip("np.frexp gives a mantissa in [½, 1): the exponent is one less than its second result"):
        E = np.maximum(np.frexp(np.abs(x))[1], 1 - bias)
    if slip("numbers below 2**(1 - bias) are subnormal: their exponent stops at 1 − bias"):
        E = np.frexp(np.abs(x))[1] - 1
    if both: E = np.frexp(np.abs(x))[1]
    if slip("subnormal numbers have the exponent 1 − bias, like the smallest normal ones; "
            "yours goes down to −bias"):
        E = np.maximum(np.frexp(np.abs(x))[1] - 1, -bias)
    step = 2.0**(E - m)
    n = np.rint(x / step)
    if slip("nothing is rounded, only what lies beyond ±V is cut"): n = x / step
    if slip("np.rint rounds a half to the even n; floor(v + ½) rounds it up"): n = half_up(x / step)
    if slip("np.rint rounds a half to the even n; yours rounds it away from 0"):
        n = half_away(x / step)
    match which("midway between two values the even multiple is taken; yours is the lower "
                "one, or the one nearer to 0", 2):
        case 1: n = half_down(x / step)
        case 2: n = half_to_zero(x / step)
    if slip("you cut off; round to the nearest value"): n = np.trunc(x / step)
    if slip("you rounded down; round to the nearest value"): n = np.floor(x / step)
    if slip("you rounded up; round to the nearest value"): n = np.ceil(x / step)
    y = np.clip(n * step, -V, V)
    if slip("the subnormal numbers are missing: below 2**(1 - bias) there are multiples of 2**(1 "
            "- bias - m), not 0 alone"):
        y = np.where(np.abs(x) < 2.0**(1 - bias), 0, y)
    if slip("numbers beyond the largest value V must become ±V"): y = n * step
    match both:
        case 2: y = n * step
    return y


FORMATS = (
    (2, 1), (3, 2), (2, 3),
    (3, 1), (4, 2), (3, 0),
)


def float_case(rng):
    e, m = FORMATS[rng.integers(len(FORMATS))]
    x = rng.normal(0, 1, (4, 9))
    return x * 2.0**rng.integers(-4, 3, (4, 9)), e, m


def midway_e2m1(rng):
    return np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -2.5, -5.0]), 2, 1


def exact(rng):
    return np.array([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6]), 2, 1


# -- quantization.pack -----------------------------------------------------------------------------
def pack(q):
    first, second = q[::2], q[1::2]
    if slip("the first code of a pair belongs into the high half of the byte"):
        first, second = second, first
    if slip("neighbours share a byte; you paired the first half of the array with the second"):
        first, second = np.split(q, 2)
    high = first << 4
    if slip("a shift by 8 pushes a code out of its byte; shift by 4"): high = first.astype(int) << 8
    if slip("of each pair only the second code is left: a shift by 8 would push the first one "
            "out of its byte; shift it by 4"):
        high = 0
    if slip("of each pair only the first code is left: add the second one in the low half"):
        second = 0
    if slip("of each pair only the first code is left: move it to the high "
            "half, and add the second one"):
        return first
    match which("np.packbits packs bits, and takes each code that is not 0 for a bit 1; shift "
                "the codes and combine them", 2):
        case 1: return np.packbits(q)
        case 2: return np.packbits(q, bitorder="little")
    if slip("the codes of a pair are added; shift the first one by 4 bits, or multiply it by 16"):
        return first + second
    if slip("only the first code of a pair is shifted; both are shifted here"):
        second = second << 4
    match which("the first code is shifted by 3 bits or multiplied by "
                "8; half a byte has 4 bits", 2):
        case 1: high = first << 3
        case 2: return 8 * first + second
    if slip("the codes of a pair lie over each other; shift the first one by 4 "
            "bits, or multiply it by 16"):
        high = first
    if slip("16 · q₁ + q₂: a half of a byte has 16 values, not 15"):
        return first * np.uint8(15) + second
    return high | second


def pack_case(rng):
    n = 2 * int(rng.integers(4, 9))
    return (rng.integers(0, 16, n).astype(np.uint8),)


def stays_uint8(fn, rng):
    return np.asarray(fn(np.uint8([1, 2]))).dtype == np.uint8


def unpacked(got, expected, args):
    return np.size(got) == 2 * np.size(expected)


EXERCISES = (
    Exercise(
        name="quantization.absmax", title="Symmetric quantization by absmax", stars=1,
        kind="formula",
        example=lambda rng: (np.array([-0.8, 0.1, 0.35, 1.5]), 3),
        reference=absmax,
        cases=absmax_case,
        special=(
            ("numbers that lie on the grid come back as they are",
             lambda rng: (np.array([-1.5, 0.0, 0.5, 1.5, 1.0]), 3)),
            ("numbers midway between two points go to the even code", midway)),
        invariants=(
            ("an array of zeros comes back as zeros",
             lambda fn, rng: not fn(np.zeros((2, 3)), 4).any()),),
        mistakes=slips(absmax),
        hints=("Which code should the largest magnitude have? What would the scale "
               "be if all numbers were 0?",
               "s is one number for all of x. The codes and x̂ have the shape of x.",
               "s = np.abs(x).max() / (2**(bits - 1) - 1). If s is 0, the result is zeros; "
               "otherwise np.rint(x / s) * s.")),
    Exercise(
        name="quantization.survey", title="The survey's quantizer", stars=3,
        kind="design",
        reference=survey,
        cases=survey_case,
        special=(
            ("all numbers are positive: the range still contains 0",
             lambda rng: (np.array([0.5, 1.0, 1.5]), 2)),
            ("both ends lie midway between two grid points",
             lambda rng: (np.array([-5.5, 0.0, 9.5]), 4)),
            ("numbers midway between two grid points, and Z = −1",
             lambda rng: (np.array([-1.0, 0.5, 1.5, 2.0]), 2))),
        invariants=(
            ("an array of zeros comes back as zeros, with a positive scale", _zeros_come_back),),
        mistakes=slips(survey),
        tolerance=1e-6,
        hints=("Which Z makes the code of l equal to 0? What would S be if all numbers were 0?",
               "x_q has the shape of x and an integer type. S and Z are numbers.",
               "l = min(x.min(), 0), h = max(x.max(), 0), S = (h - l) / (2**bits - 1), or any "
               "positive number if that is 0. Z = np.rint(l / S). Round x/S before you subtract "
               "Z, then clip to 0 … 2**bits - 1 and use .astype(int).")),
    Exercise(
        name="quantization.bug", title="Find the bug: weights that come back too large", stars=2,
        kind="fault",
        reference=bug, cases=_codes,
        normalize=as_float32,
        special=(
            ("one row, two groups: −1, 0 in steps of 0.5, then −6, 3 in steps of 3",
             _two_groups([2, 4, 5, 8], [0.5, 3], [4, 7])),
            ("codes of 8 bits, up to 255", _two_groups([0, 255, 128, 1], [1, 2], [128, 3]))),
        mistakes=slips(bug),
        tolerance=1e-6,
        hints=("What is the type of q and z, and what is 3 − 8 in that type?",
               "q is (d_out, d_in), s and z are (d_out, d_in/group). np.repeat(s, group, "
               "axis=1) is (d_out, d_in).",
               "q.astype(np.float32) - np.repeat(z, group, axis=1), multiplied by "
               "np.repeat(s, group, axis=1).")),
    Exercise(
        name="quantization.best_clip", title="The best clipping range", stars=2, quiet=True,
        kind="design",
        reference=best_clip,
        cases=best_clip_case,
        special=(
            ("one number far from the others, two bits: clipping it is best",
             beside_one_large([ONE_LARGE, [1.0] * 31])),
            ("both fractions are equally good: the first one", equally_good),
            ("a row of zeros: all fractions are equally good",
             beside_one_large([[0.0] * 31, ONE_LARGE]))),
        mistakes=slips(best_clip),
        hints=("What is gained when the range becomes smaller, and what is lost? Which of the two "
               "is invisible if the codes are not clipped?",
               "m is (n, 1). For one p the codes are (n, g) and the errors (n,). The errors for "
               "all p are (k, n), and the result is (n,).",
               "n = 2**(bits - 1) - 1. For every p: s = p * m / n, codes = np.clip(np.rint(x / "
               "s), -n, n), and np.square(s * codes - x).sum(1). np.argmin over the fractions "
               "takes the first of equals. A row of zeros needs an s that is not 0.")),
    Exercise(
        name="quantization.to_float", title="Rounding to a small float", stars=3,
        kind="design",
        reference=to_float, cases=float_case,
        special=(
            ("E2M1: values of the format stay as they are", exact),
            ("E2M1: beyond the largest value", lambda rng: (np.array([7.0, -100.0]), 2, 1)),
            ("E2M1: numbers smaller than the smallest",
             lambda rng: (np.array([0.1, 0.2, 0.3, -0.4]), 2, 1)),
            ("E2M1: numbers midway between two values", midway_e2m1)),
        mistakes=slips(to_float),
        errors=(
            ("negative integer powers",
             "2 to a negative power is no integer: write 2.0**(E - m), with a float"),),
        tolerance=1e-9,
        hints=("How far apart are the values of the format between 2**E and 2**(E + 1)? Where "
               "does this distance stop shrinking?",
               "E has the shape of x: np.frexp(np.abs(x))[1] - 1, but at least 1 - bias. The "
               "spacing is 2.0**(E - m), with the float 2.0.",
               "Round x/spacing with np.rint, multiply by the spacing, and clip to −V … V.")),
    Exercise(
        name="quantization.pack", title="Two codes in a byte", stars=1,
        kind="design",
        reference=pack, cases=pack_case,
        special=(
            ("1, 2, 15, 0 become the bytes 18 and 240", lambda rng: (np.uint8([1, 2, 15, 0]),)),),
        invariants=(
            ("the result is uint8, one byte for two codes; an int64 takes eight bytes",
             stays_uint8),),
        mistakes=slips(pack),
        symptoms=(
            ("nothing is packed: one byte for each code; return one for two", unpacked),),
        tolerance=0,
        hints=("How many values has half a byte? By what must a number be multiplied "
               "to move it by four bits?",
               "q[::2] and q[1::2] are (n/2,): the first and the second code of each pair. "
               "The result is uint8 (n/2,).",
               "q[::2] << 4 | q[1::2], which is the same as 16 * q[::2] + q[1::2].")),
)
