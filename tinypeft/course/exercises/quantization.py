"""Lesson 10: grids, ranges, clipping, and floating point with few bits."""
from functools import partial

import numpy as np

from ...quant.formats import decode, encode
from ...quant.packing import pack
from ...quant.uniform import Uniform, make_grid
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


def half_up(v):
    return np.floor(v + 0.5)


def half_away(v):
    return np.sign(v) * np.floor(np.abs(v) + 0.5)


def half_down(v):
    return np.ceil(v - 0.5)


def half_to_zero(v):
    return np.sign(v) * np.ceil(np.abs(v) - 0.5)


# -- absmax ----------------------------------------------------------------------------------------
def absmax(x, bits):
    row = x.reshape(1, -1)
    return Uniform(bits, granularity="tensor").fit(row).round(row).reshape(x.shape)


def largest_code(bits):
    return 2**(bits - 1) - 1


def largest(x):
    return np.abs(x).max()


def absmax_variant(n=largest_code, m=largest, round=np.rint, back=True, low=None):
    """Make `absmax` with a mistake in the steps, maximum or rounding, or return codes.

    low: the codes are clipped to −n + low … n, where n = 2**(bits - 1) - 1.
    """
    def wrong(x, bits):
        s = m(x) / n(bits)
        q = round(x / s)
        if low is not None:
            q = np.clip(q, low - largest_code(bits), largest_code(bits))
        return q * s if back else q
    return wrong


def half_levels(bits):
    return (2**bits - 1) / 2


def absmax_case(rng):
    spread = rng.uniform(0.1, 3)
    x = rng.normal(0, spread, (rng.integers(2, 5), rng.integers(5, 9)))
    return x, int(rng.integers(2, 9))


def midway(rng):
    return (np.array([-1.5, -0.75, -0.25, 0.25, 0.75, 1.25]), 3)


# -- the survey's letters --------------------------------------------------------------------------
def survey(x, bits):
    grid = make_grid(x.min().reshape(1), x.max().reshape(1), bits, symmetric=False)
    codes = grid.encode(x.reshape(1, -1)).reshape(x.shape)
    return codes.astype(int), grid.scale.item(), -int(grid.zero.item())


def itself(x):
    return x


def stretched(x):
    """Return the least and the largest number, with 0 between them."""
    return min(x.min(), 0), max(x.max(), 0)


def usual_scale(l, h, bits):
    return (h - l) / (2**bits - 1)


def symmetric_scale(l, h, bits):
    return max(-l, h) / largest_code(bits)


def usual_zero(l, S, bits):
    return np.rint(l / S)


def symmetric_zero(l, S, bits):
    return -2**(bits - 1)


def whole_codes(u, Z):
    return np.rint(u) - Z


def survey_variant(scale=usual_scale, ends=stretched, sign=1, clip=True, zero=usual_zero,
                   code=whole_codes, more=0):
    """Make `survey` with a mistake: another S or Z, other ends of the range, or other codes.

    sign: of Z. code: of u = x/S. more: what is added to S.
    """
    def wrong(x, bits):
        l, h = ends(x)
        S = scale(l, h, bits) + more
        Z = zero(l, S, bits)
        q = np.rint(code(x / S, Z))
        if clip:
            q = np.clip(q, 0, 2**bits - 1)
        return q.astype(int), S, sign * Z
    return wrong


def zero_by(whole):
    return lambda l, S, bits: whole(l / S)


def codes_by(whole):
    return lambda u, Z: whole(u) - Z


def survey_case(rng):
    middle = rng.uniform(-1, 1)
    x = rng.normal(middle, 1, (3, rng.integers(6, 10)))
    return x, int(rng.integers(2, 9))


def _zeros_come_back(fn, rng):
    codes, S, Z = fn(np.zeros((2, 3)), 4)
    return S > 0 and not (S * (np.asarray(codes) + Z)).any()


# -- codes back to numbers -------------------------------------------------------------------------
def bug(q, s, z, group):
    def spread(a):
        return np.repeat(a, group, axis=1)
    return spread(s) * (q.astype(np.float32) - spread(z))


def as_float32(x):
    return np.asarray(x, np.float32)


def each_repeated(a, group):
    return np.repeat(a, group, axis=1)


def row_repeated(a, group):
    return np.tile(a, (1, group))


def bug_variant(kind=np.float32, spread=each_repeated, sum=lambda s, q, z: s * (q - z)):
    """Make `bug` with a mistake: another type, another order of the scales, or another use of z."""
    def wrong(q, s, z, group):
        return sum(spread(s, group), q.astype(kind), spread(z.astype(kind), group))
    return wrong


def _codes(rng):
    n = 2**int([2, 4, 8][rng.integers(3)])
    rows, groups = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    group = int(rng.choice([2, 3, 5]))
    q = rng.integers(0, n, (rows, groups * group)).astype(np.uint8)
    z = rng.integers(n // 4, 3 * n // 4, (rows, groups)).astype(np.uint8)
    return q, rng.uniform(0.1, 2, (rows, groups)).astype(np.float32), z, group


def _two_groups(q, s, z):
    return lambda rng: (np.uint8([q]), np.float32([s]), np.uint8([z]), 2)


# -- the best clip ---------------------------------------------------------------------------------
def best_clip(x, bits, fractions):
    m = np.abs(x).max(1)
    rounded = [make_grid(-p * m, p * m, bits).round(x) for p in fractions]
    errors = [np.square(x_hat - x).sum(1) for x_hat in rounded]
    return np.asarray(fractions)[np.argmin(errors, axis=0)]


def best_clip_variant(below=0, above=0, steps=lambda n: n, size=np.square, pick=np.argmin,
                      rows=True, range_of=1, against=lambda x, end: x, sizes=np.abs, whole=np.rint,
                      sum=np.sum, of_zeros=1, returned=lambda p, m, error: p):
    """Make `best_clip` with a mistake.

    below, above: how many codes there are beyond −n and n. size, sum: of the errors. rows: each row
    has its own fraction. range_of: the axis of the maxima of `sizes`. against: what the error is
    measured from. of_zeros: the step of a row of zeros; 0 makes NaN of its errors.
    """
    def wrong(x, bits, fractions):
        n, m = largest_code(bits), sizes(x).max(range_of, keepdims=True)
        errors = []
        for p in fractions:
            s = np.where(m == 0, of_zeros, p * m / steps(n))
            q = np.clip(whole(x / s), -n - below, n + above)
            errors.append(sum(size(s * q - against(x, p * m)), axis=1))
        if not rows:
            errors = [np.full(len(x), error.sum()) for error in errors]
        best = np.asarray(fractions)[pick(errors, axis=0)]
        return returned(best, np.abs(x).max(1), np.min(errors, axis=0))
    return wrong


def last_of_equal(errors, axis):
    return len(errors) - 1 - np.argmin(errors[::-1], axis)


def clipped(x, end):
    return np.clip(x, -end, end)


def place_of_best(x, bits, fractions):
    return np.searchsorted(-np.asarray(fractions), -best_clip(x, bits, fractions))


def best_clip_all_codes(x, bits, fractions):
    """Take codes from −2**bits + 1 to 2**bits - 1, as if the sign had a bit of its own."""
    return best_clip(x, bits + 1, fractions)


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


# -- rounding to a float ---------------------------------------------------------------------------
def to_float(x, e, m):
    name = f"E{e}M{m}"
    return decode(encode(x, name), name).astype(x.dtype)


def largest_mantissa(m):
    return 2 - 2.0**-m


def to_float_variant(bias=largest_code, shift=1, least=1, saturate=True, round=np.rint, reserved=1,
                     mantissa=largest_mantissa):
    """Make `to_float` with a mistake.

    shift: of frexp's exponent. least: the exponent of the subnormals, without the bias. saturate:
    numbers are cut to the largest value, which `reserved` and `mantissa` make.
    """
    def wrong(x, e, m):
        V = 2.0**(2**e - reserved - bias(e)) * mantissa(m)
        E = np.maximum(np.frexp(np.abs(x))[1] - shift, least - bias(e))
        y = round(x / 2.0**(E - m)) * 2.0**(E - m)
        return np.clip(y, -V, V) if saturate else y
    return wrong


def to_float_flushed(x, e, m):
    least = 2.0**(2 - 2**(e - 1))
    return np.where(np.abs(x) < least, 0, to_float(x, e, m))


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


# -- two codes in a byte ---------------------------------------------------------------------------
def pack_codes(q):
    return pack(q, 4)


def pack_case(rng):
    n = 2 * int(rng.integers(4, 9))
    return (rng.integers(0, 16, n).astype(np.uint8),)


def halves_paired(q):
    half = len(q) // 2
    return q[:half] << 4 | q[half:]


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
        mistakes=(
            ("the scale is max|x|/(2**(bits - 1) - 1): the largest code is one "
             "less than a power of two",
             absmax_variant(lambda b: 2**(b - 1))),
            *several("with max|x|/2**(bits - 1) the largest number has no code of its own and is "
                     "clipped; divide by 2**(bits - 1) - 1",
                     absmax_variant(lambda b: 2**(b - 1), low=-1),
                     absmax_variant(lambda b: 2**(b - 1), low=0)),
            *several("2·max|x|/(2**bits - 1) puts max|x| midway between two integers; the "
                     "integers go from −n to n, so divide max|x| by n = 2**(bits - 1) - 1",
                     absmax_variant(half_levels),
                     absmax_variant(half_levels, low=-1),
                     absmax_variant(half_levels, low=0)),
            ("the range is ±max|x|, so only half of the codes are for positive numbers: "
             "divide by 2**(bits - 1) - 1",
             absmax_variant(lambda b: 2**b - 1)),
            *several("use the largest magnitude, max|x|, not the largest number, max x",
                     absmax_variant(m=np.max),
                     absmax_variant(m=np.max, low=-1),
                     absmax_variant(m=np.max, low=0)),
            ("there is one scale for all of x: take the maximum over the whole array",
             absmax_variant(m=lambda x: np.abs(x).max(-1, keepdims=True))),
            ("these are the codes; multiply them by the scale to get x̂",
             absmax_variant(back=False)),
            ("np.rint rounds a half to the even integer; floor(v + ½) rounds it up",
             absmax_variant(round=half_up)),
            ("np.rint rounds a half to the even integer; yours rounds it away from 0",
             absmax_variant(round=half_away)),
            ("you cut x/s off; round it to the nearest integer", absmax_variant(round=np.trunc)),
            ("you rounded x/s down; round it to the nearest integer",
             absmax_variant(round=np.floor))),
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
        mistakes=(
            ("this is the libraries' sign: the survey subtracts Z when it encodes, so Z is "
             "round(l/S), not −round(l/S)",
             survey_variant(sign=-1)),
            ("the range does not contain 0 here; stretch it: l = min(l, 0), h = max(h, 0)",
             survey_variant(ends=lambda x: (x.min(), x.max()))),
            ("two things: the range must be stretched to contain 0, and the survey subtracts Z, "
             "which is round(l/S), when it encodes",
             survey_variant(ends=lambda x: (x.min(), x.max()), sign=-1)),
            ("the codes are not clipped to 0 … 2**bits - 1", survey_variant(clip=False)),
            ("S is (h − l)/(2**bits - 1): there is one step fewer than there are points",
             survey_variant(lambda l, h, bits: (h - l) / 2**bits)),
            ("round x/S before you subtract Z: a half may go to the other side when Z is odd",
             survey_variant(code=codes_by(itself))),
            ("Z must be an integer: round it", survey_variant(zero=zero_by(itself))),
            *several("S is exactly (h − l)/(2**bits - 1): an added ε moves numbers from midway "
                     "between two points to one side; look only whether S is 0",
                     survey_variant(more=1e-9),
                     survey_variant(more=1e-6),
                     survey_variant(more=1e-4)),
            *several("round x/S to the nearest integer; yours is cut off or rounded down",
                     survey_variant(code=codes_by(np.trunc)),
                     survey_variant(code=codes_by(np.floor))),
            *several("round l/S to the nearest integer; your Z is cut off or rounded down",
                     survey_variant(zero=zero_by(np.trunc)),
                     survey_variant(zero=zero_by(np.floor))),
            *several("all numbers are cut off or rounded down; x/S and l/S are "
                     "rounded to the nearest integer",
                     survey_variant(code=codes_by(np.trunc), zero=zero_by(np.trunc)),
                     survey_variant(code=codes_by(np.floor), zero=zero_by(np.floor))),
            *several("Z is not subtracted: the code of l must be 0",
                     survey_variant(code=lambda u, Z: u),
                     survey_variant(code=lambda u, Z: u, clip=False)),
            *several("Z depends on the range: the code of l must be 0; -2**(bits - 1) is "
                     "the Z of a symmetric grid",
                     survey_variant(zero=symmetric_zero),
                     survey_variant(zero=symmetric_zero, clip=False),
                     survey_variant(symmetric_scale, zero=symmetric_zero))),
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
        mistakes=(
            ("uint8 has no negative numbers: 3 − 8 wraps to 251. Turn the codes into float32 or "
             "int16 before you subtract",
             bug_variant(np.uint8)),
            ("int8 ends at 127, and codes of 8 bits go up to 255: they wrap, "
             "too; take float32 or int16",
             bug_variant(np.int8)),
            ("z is subtracted here, x̂ = s (q − z); q + z is the survey's "
             "convention, whose Z is −z",
             bug_variant(sum=lambda s, q, z: s * (q + z))),
            ("the scale must multiply q − z, not q alone",
             bug_variant(sum=lambda s, q, z: s * q - z)),
            ("np.tile repeats a row of scales as a whole; neighbours of one group share a "
             "scale, so repeat each of them",
             bug_variant(spread=row_repeated)),
            ("np.tile repeats a row of zero points as a whole; repeat each of them, as you do with "
             "the scales",
             lambda q, s, z, group: each_repeated(s, group) * (q - row_repeated(z * 1.0, group))),
            ("np.tile repeats a row of scales as a whole; repeat each of them, as you do with the "
             "zero points",
             lambda q, s, z, group: row_repeated(s, group) * (q - each_repeated(z * 1.0, group))),
            ("two faults: uint8 wraps below 0, and np.tile repeats a row of scales as a whole; "
             "repeat each of them",
             bug_variant(np.uint8, row_repeated)),
            ("the zero point is missing", bug_variant(sum=lambda s, q, z: s * q)),
            ("the scale is missing", bug_variant(sum=lambda s, q, z: q - z))),
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
        mistakes=(
            ("a smaller range costs nothing in your error: the codes are not clipped, "
             "np.clip(…, -n, n), or the error is that against the clipped x, where it must "
             "be that against x itself",
             best_clip_variant(below=np.inf, above=np.inf)),
            ("a smaller range costs nothing in your error: the codes are not clipped, "
             "np.clip(…, -n, n), or the error is that against the clipped x, where it must "
             "be that against x itself",
             best_clip_variant(against=clipped)),
            ("every row has its own range: m is the largest |x| of the row, "
             "np.abs(x).max(1, keepdims=True)",
             best_clip_variant(range_of=None)),
            ("of equally good fractions, the first one is wanted; with <= the last one wins",
             best_clip_variant(pick=last_of_equal)),
            ("this is the place of the fraction; return the fraction itself", place_of_best),
            ("the error must be squared", best_clip_variant(size=np.abs)),
            *several("the step is p·m/(2**(bits - 1) - 1)",
                     best_clip_variant(steps=lambda n: n + 1),
                     best_clip_variant(steps=lambda n: n + 1, below=1),
                     best_clip_variant(steps=lambda n: n + 1, below=1, above=1)),
            *several("the step is p·m/(2**(bits - 1) - 1), half of the codes "
                     "are for negative numbers",
                     best_clip_all_codes,
                     best_clip_variant(steps=lambda n: 2 * n + 1)),
            *several("round x/s to the nearest integer; yours is cut off or rounded down",
                     best_clip_variant(whole=np.trunc),
                     best_clip_variant(whole=np.floor)),
            ("m is the largest magnitude of the row, max|x|, not its largest number",
             best_clip_variant(sizes=itself)),
            ("errors of both signs cancel: square them before you sum",
             best_clip_variant(size=itself)),
            ("this is the largest error of a row; sum the squares of all",
             best_clip_variant(sum=np.max)),
            ("these are the ends of the ranges, p·m; return p",
             best_clip_variant(returned=lambda p, m, error: p * m)),
            ("these are the least errors; return the fractions that have them",
             best_clip_variant(returned=lambda p, m, error: error)),
            ("the smallest code in use is -(2**(bits - 1) - 1): the "
             "symmetric grid leaves one unused",
             best_clip_variant(below=1)),
            *several("every row has its own fraction: sum the errors over axis 1 only",
                     best_clip_variant(rows=False, of_zeros=0),
                     best_clip_variant(rows=False)),
            ("this is the worst fraction: take argmin, not argmax",
             best_clip_variant(pick=np.argmax)),
            ("the largest range always wins here: round x/s, and decode the codes "
             "with the same step s = p·m/n",
             lambda x, bits, fractions: np.full(len(x), np.max(fractions)))),
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
        mistakes=(
            ("np.frexp gives a mantissa in [½, 1): the exponent is one less than its second result",
             to_float_variant(shift=0)),
            ("numbers below 2**(1 - bias) are subnormal: their exponent stops at 1 − bias",
             to_float_variant(least=-np.inf)),
            *several("two faults: the exponent is one less than np.frexp's second result, and "
                     "below 2**(1 - bias) it stops at 1 − bias",
                     to_float_variant(shift=0, least=-np.inf),
                     to_float_variant(shift=0, least=-np.inf, saturate=False)),
            ("subnormal numbers have the exponent 1 − bias, like the smallest normal ones; "
             "yours goes down to −bias",
             to_float_variant(least=0)),
            ("numbers beyond the largest value V must become ±V", to_float_variant(saturate=False)),
            ("no exponent is reserved here: the largest one is 2**e - 1 - "
             "bias, not 2**e - 2 - bias",
             to_float_variant(reserved=2)),
            ("the largest mantissa is 2 - 2**-m, all bits 1",
             to_float_variant(mantissa=lambda m: 1)),
            ("the largest mantissa is 2 - 2**-m, all bits 1",
             to_float_variant(mantissa=lambda m: 1 - 2.0**-m)),
            ("2**m intervals lie between two powers of two; yours are half as wide",
             lambda x, e, m: to_float(x, e, m + 1)),
            ("numbers keep their sign; this is |x| rounded",
             lambda x, e, m: to_float(np.abs(x), e, m)),
            ("the subnormal numbers are missing: below 2**(1 - bias) there are multiples of 2**(1 "
             "- bias - m), not 0 alone",
             to_float_flushed),
            ("nothing is rounded, only what lies beyond ±V is cut", to_float_variant(round=itself)),
            ("np.rint rounds a half to the even n; floor(v + ½) rounds it up",
             to_float_variant(round=half_up)),
            ("np.rint rounds a half to the even n; yours rounds it away from 0",
             to_float_variant(round=half_away)),
            *several("midway between two values the even multiple is taken; yours is the lower "
                     "one, or the one nearer to 0",
                     to_float_variant(round=half_down),
                     to_float_variant(round=half_to_zero)),
            ("the bias is 2**(e - 1) - 1", to_float_variant(bias=lambda e: 2**(e - 1))),
            ("you cut off; round to the nearest value", to_float_variant(round=np.trunc)),
            ("you rounded down; round to the nearest value", to_float_variant(round=np.floor)),
            ("you rounded up; round to the nearest value", to_float_variant(round=np.ceil))),
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
        reference=pack_codes, cases=pack_case,
        special=(
            ("1, 2, 15, 0 become the bytes 18 and 240", lambda rng: (np.uint8([1, 2, 15, 0]),)),),
        invariants=(
            ("the result is uint8, one byte for two codes; an int64 takes eight bytes",
             stays_uint8),),
        mistakes=(
            ("the first code of a pair belongs into the high half of the byte",
             lambda q: q[1::2] << 4 | q[::2]),
            ("neighbours share a byte; you paired the first half of the array with the second",
             halves_paired),
            ("a shift by 8 pushes a code out of its byte; shift by 4",
             lambda q: q[::2].astype(int) << 8 | q[1::2]),
            ("of each pair only the second code is left: a shift by 8 would push the first one "
             "out of its byte; shift it by 4",
             lambda q: q[1::2]),
            ("of each pair only the first code is left: add the second one in the low half",
             lambda q: q[::2] << 4),
            ("of each pair only the first code is left: move it to the high "
             "half, and add the second one",
             lambda q: q[::2]),
            ("np.packbits packs bits, and takes each code that is not 0 for a bit 1; shift "
             "the codes and combine them",
             np.packbits),
            ("np.packbits packs bits, and takes each code that is not 0 for a bit 1; shift "
             "the codes and combine them",
             partial(np.packbits, bitorder="little")),
            ("the codes of a pair are added; shift the first one by 4 bits, or multiply it by 16",
             lambda q: q[::2] + q[1::2]),
            ("only the first code of a pair is shifted; both are shifted here",
             lambda q: q[::2] << 4 | q[1::2] << 4),
            *several("the first code is shifted by 3 bits or multiplied by "
                     "8; half a byte has 4 bits",
                     lambda q: q[::2] << 3 | q[1::2],
                     lambda q: 8 * q[::2] + q[1::2]),
            ("the codes of a pair lie over each other; shift the first one by 4 "
             "bits, or multiply it by 16",
             lambda q: q[::2] | q[1::2]),
            ("16 · q₁ + q₂: a half of a byte has 16 values, not 15",
             lambda q: q[::2] * np.uint8(15) + q[1::2])),
        symptoms=(
            ("nothing is packed: one byte for each code; return one for two", unpacked),),
        tolerance=0,
        hints=("How many values has half a byte? By what must a number be multiplied "
               "to move it by four bits?",
               "q[::2] and q[1::2] are (n/2,): the first and the second code of each pair. "
               "The result is uint8 (n/2,).",
               "q[::2] << 4 | q[1::2], which is the same as 16 * q[::2] + q[1::2].")),
)
