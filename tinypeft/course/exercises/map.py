"""Lesson 00: count numbers, quantize in both sign conventions, decode bytes, and pack codes."""
import operator
from functools import partial

import numpy as np

from ...quant.packing import pack
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- counts --------------------------------------------------------------------------------------
def trained(d, L, r, P, m, lora=4, lora_blocks=lambda L: L, lora_rows=lambda d: d,
            prompt=1, prompt_layers=lambda L: 1, prefix=2, prefix_layers=lambda L: L, adapters=2,
            matrices=2, biases=operator.add, adapter_blocks=lambda L: L):
    """Count the four. The options are the numbers of each part, for the mistakes.

    lora: its matrices in a block. prompt, prefix: the vectors of a position. matrices, biases:
    those of one of the adapters.
    """
    one = matrices * d * m + biases(d, m)
    return (lora * lora_blocks(L) * r * lora_rows(d), prompt * prompt_layers(L) * P * d,
            prefix * prefix_layers(L) * P * d, adapters * adapter_blocks(L) * one)


def reference_trained(d, L, r, P, m):
    return trained(d, L, r, P, m)


def none(d, m):
    return 0


def once(L):
    return 1


def itself(n):
    return n


def trained_cases(rng):
    low, high = (40, 3, 2, 5, 6), (200, 9, 17, 30, 40)
    return tuple(rng.integers(low, high).tolist())


# -- bits ----------------------------------------------------------------------------------------
def reference_bits(bits, group, scale_bits, zero_bits, outer):
    return bits + (scale_bits + zero_bits + (32 / outer if outer else 0)) / group


def added_bits(of_group, per=lambda group: group):
    """Count otherwise what a group adds, or divide it by another number."""
    def wrong(bits, group, scale_bits, zero_bits, outer):
        return bits + of_group(scale_bits, zero_bits, outer) / per(group)
    return wrong


def second_level(outer):
    return 32 / outer if outer else 0


def whole_bits(b, g, s, z, o):
    return b + (s + z + (32 // o if o else 0)) // g


def added_in_bytes(b, *others):
    return b + (reference_bits(b, *others) - b) / 8


NOTHING = ("scales and zero points add nothing in yours, or a whole number: "
           "they are stored as well, and / divides them, not //")
NO_SECOND = "`outer` = 0 means that there is no second level: add 32/outer only if it is not 0"


def bits_cases(rng):
    bits, group = int(rng.integers(2, 9)), int(2 ** rng.integers(4, 8))
    scale_bits, zero_bits = int(rng.choice([8, 16])), int(rng.integers(2, 9))
    return bits, group, scale_bits, zero_bits, int(2 ** rng.integers(6, 9))


# -- signs ---------------------------------------------------------------------------------------
def signs(x, bits, convention, contain=True, levels=-1, flip=True, both=False, clip=True,
          whole=np.rint, whole_z=None, once=False, early=False):
    """Return codes, scale and zero point; the options are for the mistakes.

    contain: the range contains 0. flip, both: the survey's sign turns that of z, or that in the
    codes, too. once: (x − l)/s is rounded. early: the survey's codes are clipped without z.
    """
    l, h = x.min(), x.max()
    if contain:
        l, h = min(l, 0.0), max(h, 0.0)
    s = (h - l) / (2 ** bits + levels)
    z, last = (whole_z or whole)(-l / s), 2 ** bits - 1
    survey = convention == "survey"
    codes = whole(x / s) + (-z if both and survey else z)
    if once:
        codes = whole((x - l) / s)
    if clip:
        codes = np.clip(codes, 0, last)
    if early and survey:
        codes = np.clip(whole(x / s), 0, last) + z
    return codes, float(s), float(-z if flip and survey else z)


def reference_signs(x, bits, convention):
    return signs(x, bits, convention)


def decoded_numbers(*args):
    codes, s, z = signs(*args)
    return s * (codes - signs(*args, flip=False)[2]), s, z


def inverse_scale(*args):
    codes, s, z = signs(*args)
    return codes, 1 / s, z


def half_up(v):
    return np.floor(v + 0.5)


def signs_cases(rng, shift=None, convention=None):
    shift = float(rng.uniform(-1, 1)) if shift is None else shift
    x = rng.standard_normal((3, 5)) + shift
    bits = int(rng.integers(2, 7))
    return x, bits, convention or str(rng.choice(["library", "survey"]))


def other_order(got, expected, args):
    return got in reference_signs(*args)[1:]


def integers(got, expected, args):
    return got.ndim == 2 and got.dtype.kind in "iu"


# -- codes that are bytes ------------------------------------------------------------------------
def decoded(codes, scale, zero, whole=np.int64, sign=-1, times=True, after=False):
    """Return x̂ = s (q − z), with z one number per row; the options are for the mistakes."""
    z = zero[:, None]
    if not after:
        codes, z = codes.astype(whole), z.astype(whole)
    q = (codes + z if sign > 0 else codes - z).astype(np.float32)
    return q * (scale[:, None] if times else 1)


def _without_brackets(codes, scale, zero):
    return (scale[:, None] * codes - zero[:, None]).astype(np.float32)


def reference_bug(codes, scale, zero):
    return decoded(codes, scale, zero)


def bug_cases(rng, low=0, high=256, zero=None):
    n, g = rng.integers((2, 4), (5, 9)).tolist()
    z = rng.integers(100, 160, n) if zero is None else np.full(n, zero)
    codes = rng.integers(low, high, (n, g)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, n).astype(np.float32)
    return codes, scale, z.astype(np.uint8)


# -- packing -------------------------------------------------------------------------------------
def reference_pack(codes, bits):
    return pack(codes, bits, "little")


def packed(codes, bits, order="little", within="little", whole=False):
    """Put the bits of all codes in a row, eight to a byte. within: the order of a code's bits."""
    stream = codes[:, None] >> np.arange(bits)[::1 if within == "little" else -1] & 1
    if whole:
        stream = np.pad(stream, ((0, 0), (0, 8 - bits)))
    return np.packbits(stream.astype(np.uint8).reshape(-1), bitorder=order)


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
        reference=reference_trained, cases=trained_cases,
        special=(
            ("the base, with r = 8, P = 20, m = 64", lambda rng: (128, 5, 8, 20, 64)),),
        mistakes=(
            ("LoRA: count two adapted matrices in a block, query and value",
             partial(trained, lora=2)),
            ("LoRA: A is (r, d) and B is (d, r), so that each has r·d numbers, and not d²",
             partial(trained, lora=2, lora_rows=lambda d: d * d)),
            ("LoRA: A is (r, d) and B is (d, r), so that each has r·d numbers, and not d²",
             partial(trained, lora=2, lora_blocks=once, lora_rows=lambda d: d * d)),
            ("LoRA: this counts one block; there are L", partial(trained, lora_blocks=once)),
            ("LoRA: this counts all four matrices of attention; only query and value are adapted",
             partial(trained, lora=8)),
            ("LoRA: only query and value are adapted, two matrices in a block",
             partial(trained, lora=6)),
            ("a prompt has one vector for each position, and not a key and a value",
             partial(trained, prompt=2)),
            ("a prompt enters once, at the input; it has no vectors in the layers",
             partial(trained, prompt_layers=itself)),
            ("a prompt enters once, at the input; it is no prefix",
             partial(trained, prompt=2, prompt_layers=itself)),
            ("a prefix is in every layer, with a key and a value for each position",
             partial(trained, prefix=1, prefix_layers=once)),
            ("a prefix has a key and a value for each position", partial(trained, prefix=1)),
            ("a prefix is in every one of the L layers", partial(trained, prefix_layers=once)),
            ("the adapters' biases are missing, m and d each", partial(trained, biases=none)),
            *several("an adapter has two biases, b_d of m numbers and b_u of d numbers",
                     partial(trained, biases=lambda d, m: m),
                     partial(trained, biases=lambda d, m: d),
                     partial(trained, biases=lambda d, m: 2 * m),
                     partial(trained, biases=lambda d, m: 2 * d)),
            ("an adapter has two matrices, W_d and W_u", partial(trained, matrices=1)),
            ("adapters: this counts one block; there are L", partial(trained, adapter_blocks=once)),
            ("there are two adapters in a block, one after attention and one after the MLP",
             partial(trained, adapters=1))),
        symptoms=(
            ("this is another one of the four counts: they are asked for in the order of the table",
             lambda got, expected, args: got in reference_trained(*args)),),
        tolerance=0,
        hints=("How many matrices does LoRA change in a block, and how many numbers describe each "
               "change? In how many layers does a prompt stand, and in how many a prefix?",
               "LoRA: A (r, d) and B (d, r) for each of 2 L matrices. Prompt: (P, d). Prefix: a "
               "key and a value, (P, d) each, in L layers. An adapter: (m, d), m, (d, m) and d.",
               "LoRA: 2 * L * r * (d + d). Prompt: P * d. Prefix: 2 * P * L * d. Adapters: 2 * "
               "L times 2 * d * m and the two biases.")),
    Exercise(
        name="map.bits", title="Bits per weight, scales included", stars=1,
        kind="count",
        reference=reference_bits, cases=bits_cases,
        special=(
            ("NF4: blocks of 64 with a float32 scale", lambda rng: (4, 64, 32, 0, 0)),
            ("NF4, doubly quantized", lambda rng: (4, 64, 8, 0, 256))),
        mistakes=(
            ("the scales' own scales are missing: 32 bits for every `outer` scales",
             added_bits(lambda s, z, o: s + z)),
            ("the second level is one number per `outer` scales, not per `outer` weights",
             lambda b, g, s, z, o: b + (s + z) / g + second_level(o)),
            ("the second level comes on top of scale_bits, and does not replace them",
             added_bits(lambda s, z, o: (second_level(o) or s) + z)),
            (NO_SECOND, added_bits(lambda s, z, o: s + z + 32 / (o or 1))),
            ("the scales are missing", lambda b, g, s, z, o: reference_bits(b, g, 0, z, o)),
            (NOTHING, lambda b, g, s, z, o: b),
            (NOTHING, whole_bits),
            ("the codes' own bits are missing: a weight has `bits` of them",
             lambda *a: reference_bits(*a) - a[0]),
            ("this is what a whole group takes: divide by its weights",
             lambda *a: reference_bits(*a) * a[1]),
            ("scale_bits and zero_bits are in bits already: do not divide by 8", added_in_bytes),
            ("the zero points are missing", lambda b, g, s, z, o: reference_bits(b, g, s, 0, o)),
            ("the whole group shares one scale: divide by g",
             added_bits(lambda s, z, o: s + z + second_level(o), per=once)),
            ("you gave every scale 32 bits of a second level; `outer` scales share them",
             added_bits(lambda s, z, o: s + z + 32 * (o > 0)))),
        errors=(
            ("ZeroDivisionError", NO_SECOND),),
        tolerance=1e-9,
        hints=("What is stored once per group, and not once per weight? With double quantization, "
               "how many scales share one number of 32 bits?",
               "All are numbers. A group of `group` weights stores scale_bits + zero_bits beside "
               "its codes. Every `outer` groups store 32 bits more.",
               "extra = scale_bits + zero_bits, plus 32/outer if outer is not 0. The "
               "answer is bits + extra/group.")),
    Exercise(
        name="map.signs", title="One quantizer in two sign conventions", stars=2,
        kind="formula",
        reference=reference_signs, cases=signs_cases,
        special=(
            ("the libraries' sign", partial(signs_cases, shift=0.3, convention="library")),
            ("the survey's sign", partial(signs_cases, shift=0.3, convention="survey")),
            ("all numbers are positive: the range still contains 0",
             partial(signs_cases, shift=9.0, convention="survey")),
            ("a symmetric range, whose ends lie midway between two codes",
             lambda rng: (np.linspace(-1, 1, 5), 8, "library"))),
        mistakes=(
            ("the zero point has the libraries' sign in both conventions: the survey's Z is −z",
             partial(signs, flip=False)),
            ("only the zero point's sign changes, the codes are the same: with Z = −z, "
             "R(x/S) − Z is round(x/s) + z",
             partial(signs, both=True)),
            ("the range must contain 0: l = min(x_min, 0), h = max(x_max, 0)",
             partial(signs, contain=False)),
            ("there are 2ᵇ − 1 steps between 2ᵇ codes", partial(signs, levels=0)),
            ("there are 2ᵇ − 1 steps between 2ᵇ codes", partial(signs, levels=-2)),
            ("the codes are not clipped to 0 … 2ᵇ − 1; 2ᵇ would become 0 in the bits of a code",
             partial(signs, clip=False)),
            ("np.rint rounds a half to the even integer; floor(v + ½) rounds it up",
             partial(signs, whole=half_up)),
            ("np.floor rounds down; np.rint rounds to the nearest number",
             partial(signs, whole=np.floor)),
            ("this cuts the digits off; np.rint rounds to the nearest number",
             partial(signs, whole=np.trunc)),
            ("these are the decoded numbers; the codes are asked for", decoded_numbers),
            ("s is the step between two codes, (h − l)/(2ᵇ − 1), and not its inverse",
             inverse_scale),
            ("x/s and l/s are rounded each by itself; yours rounds (x − l)/s once",
             partial(signs, once=True)),
            ("the zero point is a code: round l/s with np.rint, too",
             partial(signs, whole_z=itself)),
            ("the survey's codes are clipped too early: subtract Z first, and clip R(x/S) − Z",
             partial(signs, early=True))),
        symptoms=(
            ("the codes are asked for as a float64 array", integers),
            ("the order is (codes, scale, zero point)", other_order)),
        tolerance=1e-6,
        hints=("Which of the codes, the scale and the zero point differ "
               "between the two conventions?",
               "The codes have the shape of x. s and the zero point are "
               "numbers, computed from all of x.",
               "s = (h - l) / (2**bits - 1); z = np.rint(-l / s); codes = np.clip(np.rint(x / "
               "s) + z, 0, 2**bits - 1), in both conventions. Return z or -z.")),
    Exercise(
        name="map.bug", title="Find the bug: weights that come back wrong", stars=2,
        kind="fault",
        reference=reference_bug, cases=bug_cases,
        special=(
            ("all codes lie above the zero point: here the wrong program is right",
             partial(bug_cases, low=200, high=256, zero=128)),
            ("all codes lie below the zero point", partial(bug_cases, low=0, high=100, zero=128))),
        mistakes=(
            ("the brackets are missing: s (q − z) is not s q − z", _without_brackets),
            ("the difference is taken in uint8, where 3 − 8 is 251: turn the codes into floats "
             "(or wide integers) before it",
             partial(decoded, after=True)),
            ("int8 ends at 127, and codes go to 255: take a wider type",
             partial(decoded, whole=np.int8)),
            ("this adds the zero point; s (q − z) subtracts it", partial(decoded, sign=1)),
            ("the scale is missing", partial(decoded, times=False))),
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
        reference=reference_pack, cases=pack_cases,
        special=(
            ("two codes of 4 bits in a byte", lambda rng: (np.array([1, 2, 15, 0], np.uint8), 4)),
            ("codes of 8 bits are the bytes", partial(pack_cases, bits=8)),
            ("three bits: a code may lie in two bytes",
             lambda rng: (np.array([7, 0, 5, 1, 6], np.uint8), 3))),
        mistakes=(
            ("the first code belongs into the low bits of its byte: bit k of "
             "the stream is bit k mod 8",
             partial(packed, order="big", within="big")),
            ("the bits of each code are reversed: its lowest bit comes first",
             partial(packed, within="big")),
            ("the bits of each byte are reversed: the stream's first bit is the lowest one",
             partial(packed, order="big")),
            ("a byte holds whole codes only, and a gap remains: a code may lie in two bytes",
             whole_codes),
            ("code 0 comes first: the codes are in reverse order",
             lambda codes, bits: packed(codes[::-1], bits)),
            ("every code has a byte of its own: leave no gaps", partial(packed, whole=True))),
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
