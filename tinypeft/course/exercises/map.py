"""Lesson 00: count trained and stored numbers, and quantize in both sign conventions."""
import numpy as np

from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- counts --------------------------------------------------------------------------------------
def reference_trained(d, L, r, P, m):
    return 4 * L * r * d, P * d, 2 * P * L * d, 2 * L * (2 * d * m + m + d)


def trained_cases(rng):
    return tuple(int(n) for n in rng.integers((40, 3, 2, 5, 6), (200, 9, 17, 30, 40)))


def replaced(i, value):
    """The reference with another i-th count."""
    def wrong(*args):
        counts = list(reference_trained(*args))
        counts[i] = value(*args)
        return tuple(counts)
    return wrong


# -- bits ----------------------------------------------------------------------------------------
def reference_bits(bits, group, scale_bits, zero_bits, outer):
    return bits + (scale_bits + zero_bits + (32 / outer if outer else 0)) / group


def bits_cases(rng):
    return int(rng.integers(2, 9)), int(2 ** rng.integers(4, 8)), int(rng.choice([8, 16])), int(rng.integers(2, 9)), int(2 ** rng.integers(6, 9))


# -- signs ---------------------------------------------------------------------------------------
def signs(x, bits, convention, contain=True, levels=-1, flip=True, both=False, clip=True, whole=np.rint):
    l, h = (min(x.min(), 0.0), max(x.max(), 0.0)) if contain else (x.min(), x.max())
    s = (h - l) / (2 ** bits + levels)
    z = whole(-l / s)
    codes = whole(x / s) + (-z if both and convention == "survey" else z)
    if clip: codes = np.clip(codes, 0, 2 ** bits - 1)
    return codes, float(s), float(-z if flip and convention == "survey" else z)


def reference_signs(x, bits, convention):
    return signs(x, bits, convention)


def signs_cases(rng, shift=None, convention=None):
    shift = float(rng.uniform(-1, 1)) if shift is None else shift
    x = rng.standard_normal((3, 5)) + shift
    return x, int(rng.integers(2, 7)), str(rng.choice(["library", "survey"])) if convention is None else convention


EXERCISES = (
    Exercise(
        name="map.trained", title="Four counts of trained parameters", stars=1,
        reference=reference_trained, cases=trained_cases,
        special=(("the base, with r = 8, P = 20, m = 64", lambda rng: (128, 5, 8, 20, 64)),),
        mistakes=(
            ("LoRA: count two adapted matrices in a block, query and value",
             replaced(0, lambda d, L, r, P, m: 2 * L * r * d)),
            ("LoRA: A is (r, d) and B is (d, r), so that each has r·d numbers, and not d²",
             replaced(0, lambda d, L, r, P, m: 2 * L * r * d * d)),
            ("LoRA: A is (r, d) and B is (d, r), so that each has r·d numbers, and not d²",
             replaced(0, lambda d, L, r, P, m: 2 * r * d * d)),
            ("LoRA: this counts one block; there are L", replaced(0, lambda d, L, r, P, m: 4 * r * d)),
            ("LoRA: this counts all four matrices of attention; only query and value are adapted",
             replaced(0, lambda d, L, r, P, m: 8 * L * r * d)),
            ("a prompt enters once, at the input; it has no vectors in the layers",
             replaced(1, lambda d, L, r, P, m: L * P * d)),
            ("a prefix has a key and a value for each position", replaced(2, lambda d, L, r, P, m: P * L * d)),
            ("a prefix is in every one of the L layers", replaced(2, lambda d, L, r, P, m: 2 * P * d)),
            ("the adapters' biases are missing, m and d each", replaced(3, lambda d, L, r, P, m: 4 * L * d * m)),
            ("there are two adapters in a block, one after attention and one after the MLP",
             replaced(3, lambda d, L, r, P, m: L * (2 * d * m + m + d)))),
        tolerance=0,
        hints=("How many matrices does LoRA change in a block, and how many numbers describe each change? In how many "
               "layers does a prompt stand, and in how many a prefix?",
               "LoRA: A (r, d) and B (d, r) for each of 2 L matrices. Prompt: (P, d). Prefix: a key and a value, (P, d) "
               "each, in L layers. An adapter: (m, d), m, (d, m) and d.",
               "LoRA: 2 L · r · (d + d). Prompt: P · d. Prefix: 2 · P · L · d. Adapters: 2 L · (2 d m and the two biases).")),
    Exercise(
        name="map.bits", title="Bits per weight, scales included", stars=1,
        reference=reference_bits, cases=bits_cases,
        special=(
            ("NF4: blocks of 64 with a float32 scale", lambda rng: (4, 64, 32, 0, 0)),
            ("NF4, doubly quantized", lambda rng: (4, 64, 8, 0, 256))),
        mistakes=(
            ("the scales' own scales are missing: 32 bits for every `outer` scales",
             lambda b, g, s, z, o: b + (s + z) / g),
            ("the second level is one number per `outer` scales, not per `outer` weights",
             lambda b, g, s, z, o: b + (s + z) / g + (32 / o if o else 0)),
            ("the zero points are missing", lambda b, g, s, z, o: reference_bits(b, g, s, 0, o)),
            ("the whole group shares one scale: divide by g", lambda b, g, s, z, o: b + s + z + (32 / o if o else 0)),
            ("you gave every scale 32 bits of a second level; `outer` scales share them",
             lambda b, g, s, z, o: b + (s + z + 32 * (o > 0)) / g)),
        tolerance=1e-9,
        hints=("What is stored once per group, and not once per weight? With double quantization, how many scales share "
               "one number of 32 bits?",
               "All are numbers. A group of `group` weights stores scale_bits + zero_bits beside its codes. Every `outer` "
               "groups store 32 bits more.",
               "extra = scale_bits + zero_bits, plus 32/outer if outer is not 0. The answer is bits + extra/group.")),
    Exercise(
        name="map.signs", title="One quantizer in two sign conventions", stars=2,
        reference=reference_signs, cases=signs_cases,
        special=(
            ("the libraries' sign", lambda rng: signs_cases(rng, 0.3, "library")),
            ("the survey's sign", lambda rng: signs_cases(rng, 0.3, "survey")),
            ("all numbers are positive: the range still contains 0", lambda rng: signs_cases(rng, 9.0, "survey")),
            ("a symmetric range, whose ends lie midway between two codes", lambda rng: (np.linspace(-1, 1, 5), 8, "library"))),
        mistakes=(
            ("the zero point has the libraries' sign in both conventions: the survey's Z is −z",
             lambda *a: signs(*a, flip=False)),
            ("only the zero point's sign changes, the codes are the same: with Z = −z, R(x/S) − Z is round(x/s) + z",
             lambda *a: signs(*a, both=True)),
            ("the range must contain 0: l = min(x_min, 0), h = max(x_max, 0)", lambda *a: signs(*a, contain=False)),
            ("there are 2ᵇ − 1 steps between 2ᵇ codes", lambda *a: signs(*a, levels=0)),
            ("the codes are not clipped to 0 … 2ᵇ − 1; 2ᵇ would become 0 in the bits of a code", lambda *a: signs(*a, clip=False)),
            ("np.rint rounds a half to the even integer; floor(v + ½) rounds it up",
             lambda *a: signs(*a, whole=lambda v: np.floor(v + 0.5)))),
        tolerance=1e-6,
        hints=("Which of the codes, the scale and the zero point differ between the two conventions?",
               "The codes have the shape of x. s and the zero point are numbers, computed from all of x.",
               "s = (h − l)/(2**bits − 1); z = np.rint(−l/s); codes = np.clip(np.rint(x/s) + z, 0, 2**bits − 1), in both "
               "conventions. Return z or −z.")),
)
