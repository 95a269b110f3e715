"""Solutions of lesson 10's exercises, right and wrong."""
import numpy as np


def table_of_floats(x, e, m):
    """By looking every value up, instead of computing its exponent."""
    bias, values = 2**(e - 1) - 1, []
    for E in range(2**e):
        for M in range(2**m):
            values.append((E > 0) * 2.0**(max(E, 1) - bias) + M / 2**m * 2.0**(max(E, 1) - bias))
    codes = np.arange(len(values))
    values = np.array(values)
    a = np.abs(x)[..., None]
    distance = np.abs(a - values)
    near = np.isclose(distance, distance.min(-1, keepdims=True), rtol=0, atol=1e-12)
    best = np.where(near, codes % 2 * 1000 + codes, 10**6).argmin(-1)                # of two, the even code
    return np.where(x < 0, -1, 1) * values[best]


def loop_of_rows(x, bits, fractions):
    best = []
    for row in x:
        least, chosen = np.inf, fractions[0]
        for p in fractions:
            s = p * abs(row).max() / (2**(bits - 1) - 1) or 1
            q = np.round(np.clip(row, -p * abs(row).max(), p * abs(row).max()) / s)
            error = ((s * q - row)**2).mean()
            if error < least: least, chosen = error, p
        best.append(chosen)
    return np.array(best)


def by_library(x, bits):
    """The libraries' z, its sign changed at the end."""
    low, high = np.minimum(0, np.min(x)), np.maximum(0, np.max(x))
    s = (high - low) / (2**bits - 1) or 1.0
    z = np.rint(-low / s)
    return np.clip(np.rint(x / s) + z, 0, 2**bits - 1).astype(np.uint8), s, -z


half_up = lambda v: np.floor(v + 0.5)
half_away = lambda v: np.trunc(v + np.copysign(0.5, v))


def absmax_with(whole):
    def quantization_absmax(x, bits):
        s = np.abs(x).max() / (2**(bits - 1) - 1)
        return whole(x / s) * s if s else np.zeros_like(x)
    return quantization_absmax


def float_with(whole, V=lambda e, m, bias: 2.0**(2**e - 1 - bias) * (2 - 2.0**-m)):
    def quantization_to_float(x, e, m):
        bias = 2**(e - 1) - 1
        step = 2.0**(np.maximum(np.frexp(np.abs(x))[1] - 1, 1 - bias) - m)
        return np.clip(whole(x / step) * step, -V(e, m, bias), V(e, m, bias))
    return quantization_to_float


def numbers_with(kind, spread=lambda a, g: np.repeat(a, g, axis=1), product=lambda s, u: s * u):
    """s (q − z), computed in the type `kind`."""
    return lambda q, s, z, group: product(spread(s, group), q.astype(kind) - spread(z, group).astype(kind))


def numbers_by_block(q, s, z, group):
    d_out, d_in = q.shape
    blocks = q.reshape(d_out, d_in // group, group).astype(int) - z[:, :, None].astype(int)
    return (blocks * s[:, :, None]).reshape(d_out, d_in)


def packed_in_loops(q):
    return np.array([16 * int(a) + int(b) for a, b in zip(q[::2], q[1::2], strict=True)], np.uint8)


RIGHT = {
    "quantization.bug": [
        numbers_with(np.int16),
        numbers_by_block,
        lambda *a: numbers_with(np.float64)(*a).tolist()],
    "quantization.pack": [
        packed_in_loops,
        lambda q: q.reshape(-1, 2) @ np.uint8([16, 1]),
        lambda q: packed_in_loops(q).tolist()],
    "quantization.absmax": [
        lambda x, bits: x * 0 if not x.any() else np.round(x / abs(x).max() * (2**(bits - 1) - 1))
        / (2**(bits - 1) - 1) * abs(x).max(),
        absmax_with(np.rint),
        lambda *a: absmax_with(np.rint)(*a).tolist()],
    "quantization.survey": [by_library, lambda *a: (by_library(*a)[0].tolist(), *by_library(*a)[1:])],
    "quantization.best_clip": [loop_of_rows, lambda *a: loop_of_rows(*a).tolist()],
    "quantization.to_float": [
        table_of_floats,
        float_with(np.rint),
        lambda *a: float_with(np.rint)(*a).tolist()],
}


def absmax_by_axis(x, bits):
    s = np.abs(x).max(-1, keepdims=True) / (2**(bits - 1) - 1)
    return np.rint(x / np.where(s == 0, 1, s)) * s


def absmax_128(x, bits):
    s = max(np.abs(x).max(), 1e-30) / 2**(bits - 1)
    return np.rint(x / s) * s


def absmax_int(x, bits):
    s = max(np.abs(x).max(), 1e-30) / (2**(bits - 1) - 1)
    return (x / s).astype(int) * s


def absmax_clipped(n, low, largest=lambda x: np.abs(x).max()):
    def quantization_absmax(x, bits):
        s = largest(x) / n(bits) or 1
        return np.clip(np.rint(x / s), low(bits), 2**(bits - 1) - 1) * s
    return quantization_absmax


def absmax_nan(x, bits):
    s = np.abs(x).max() / (2**(bits - 1) - 1)
    return np.rint(x / s) * s


def survey_sign(x, bits):
    q, S, Z = by_library(x, bits)
    return q, S, -Z


def survey_min_max(x, bits):
    S = (x.max() - x.min()) / (2**bits - 1)
    Z = np.rint(x.min() / S)
    return np.clip(np.rint(x / S) - Z, 0, 2**bits - 1).astype(int), S, Z


def survey_middle(x, bits):
    low, high = min(0, x.min()), max(0, x.max())
    S, Z = (high - low) / (2**bits - 1) or 1.0, -(2**(bits - 1))
    return np.clip(np.rint(x / S) - Z, 0, 2**bits - 1).astype(int), S, Z


def survey_unclipped(x, bits):
    low, high = min(0, x.min()), max(0, x.max())
    S = (high - low) / (2**bits - 1)
    Z = np.rint(low / S)
    return (np.rint(x / S) - Z).astype(int), S, Z


def clip_without_clip(x, bits, fractions):
    m = np.abs(x).max(1, keepdims=True)
    errors = []
    for p in fractions:
        s = p * m / (2**(bits - 1) - 1)
        errors.append(((np.rint(x / s) * s - x)**2).sum(1))
    return np.asarray(fractions)[np.argmin(errors, 0)]


def clip_against_clipped(x, bits, fractions):
    m, n, errors = np.abs(x).max(1, keepdims=True), 2**(bits - 1) - 1, []
    for p in fractions:
        s, inside = np.where(m, p * m / n, 1), np.clip(x, -p * m, p * m)
        errors.append(np.square(np.rint(inside / s) * s - inside).sum(1))
    return np.asarray(fractions)[np.argmin(errors, 0)]


def clip_one_range(x, bits, fractions):
    m, n = np.abs(x).max(), 2**(bits - 1) - 1
    errors = [np.square(np.clip(np.rint(x / (p * m / n)), -n, n) * p * m / n - x).sum(1) for p in fractions]
    return np.asarray(fractions)[np.argmin(errors, 0)]


def clip_for_all(x, bits, fractions):
    m = np.abs(x).max(1, keepdims=True)
    errors = []
    for p in fractions:
        s, n = p * m / (2**(bits - 1) - 1), 2**(bits - 1) - 1
        errors.append(((np.clip(np.rint(x / s), -n, n) * s - x)**2).sum())
    return np.full(len(x), fractions[int(np.argmin(errors))])


def clip_absolute(x, bits, fractions):
    m, n = np.abs(x).max(1, keepdims=True), 2**(bits - 1) - 1
    steps = [np.where(m, p * m / n, 1) for p in fractions]
    errors = [np.abs(np.clip(np.rint(x / s), -n, n) * s - x).sum(1) for s in steps]
    return np.asarray(fractions)[np.argmin(errors, 0)]


def float_frexp(x, e, m):
    bias = 2**(e - 1) - 1
    E = np.maximum(np.frexp(np.abs(x))[1], 1 - bias)
    V = 2.0**(2**e - 1 - bias) * (2 - 2.0**-m)
    return np.clip(np.rint(x / 2.0**(E - m)) * 2.0**(E - m), -V, V)


def float_by_frexp_alone(x, e, m):
    V = 2.0**(2**e - 2**(e - 1)) * (2 - 2.0**-m)
    step = 2.0**(np.frexp(x)[1] - m)
    return np.clip(np.rint(x / step) * step, -V, V)


def float_normal_only(x, e, m):
    V = 2.0**(2**e - 2**(e - 1)) * (2 - 2.0**-m)
    E = np.floor(np.log2(np.where(x == 0, 1, np.abs(x))))
    return np.clip(np.rint(x / 2.0**(E - m)) * 2.0**(E - m), -V, V)


def float_too_fine(x, e, m):
    bias = 2**(e - 1) - 1
    step = 2.0**(np.maximum(np.frexp(np.abs(x))[1] - 1, -bias) - m)
    V = 2.0**(2**e - 1 - bias) * (2 - 2.0**-m)
    return np.clip(np.rint(x / step) * step, -V, V)


def float_endless(x, e, m):
    E = np.maximum(np.frexp(np.abs(x))[1] - 1, 2 - 2**(e - 1))
    return np.rint(x / 2.0**(E - m)) * 2.0**(E - m)


def absmax_in_place(x, bits):
    s = np.abs(x).max() / (2**(bits - 1) - 1)
    if s: x[...] = np.rint(x / s) * s
    return x


def survey_late(x, bits):
    low, high = min(0, x.min()), max(0, x.max())
    S = (high - low) / (2**bits - 1) or 1
    Z = np.rint(low / S)
    return np.clip(np.rint(x / S - Z), 0, 2**bits - 1).astype(int), S, Z


def survey_zeros(x, bits):
    low, high = min(0, x.min()), max(0, x.max())
    S = (high - low) / (2**bits - 1)
    Z = np.rint(low / S)
    return np.clip(np.rint(x / S) - Z, 0, 2**bits - 1).astype(int), S, Z


def clip_errors(x, bits, fractions):
    m, n = np.abs(x).max(1, keepdims=True), 2**(bits - 1) - 1
    steps = [np.where(m, p * m / n, 1) for p in fractions]
    return np.array([np.square(np.clip(np.rint(x / s), -n, n) * s - x).sum(1) for s in steps])


def clip_last(x, bits, fractions):
    errors, best, at = clip_errors(x, bits, fractions), np.full(len(x), np.inf), np.zeros(len(x), int)
    for i, e in enumerate(errors):
        at, best = np.where(e <= best, i, at), np.minimum(e, best)
    return np.asarray(fractions)[at]


def clip_by_zero(x, bits, fractions):
    """A row of zeros has the scale 0, and 0/0 is NaN, of which argmin takes the first."""
    m, top, errors = np.abs(x).max(1, keepdims=True), 2**(bits - 1) - 1, []
    for c in fractions:
        s = c * m / top
        errors.append(((s * np.clip(np.rint(x / s), -top, top) - x)**2).sum(1))
    return np.asarray(fractions)[np.argmin(errors, 0)]


def clip_place(x, bits, fractions):
    return clip_errors(x, bits, fractions).argmin(0)


def float_integers(x, e, m):
    E = np.maximum(np.frexp(np.abs(x))[1] - 1, 2 - 2**(e - 1))
    return np.rint(x / 2**(E - m)) * 2**(E - m)


def survey_both(x, bits):
    """No stretching, and the libraries' sign."""
    S = (x.max() - x.min()) / (2**bits - 1) or 1.0
    z = int(np.rint(-x.min() / S))
    return np.clip(np.rint(x / S) + z, 0, 2**bits - 1).astype(int), S, z


def survey_with(round_x=np.rint, round_z=np.rint, more=0):
    def quantization_survey(x, bits):
        low, high = min(0, x.min()), max(0, x.max())
        S = (high - low) / (2**bits - 1) + more or 1.0
        Z = int(round_z(low / S))
        return np.clip(round_x(x / S).astype(int) - Z, 0, 2**bits - 1), S, Z
    return quantization_survey


def clip_with(whole=np.rint, error=lambda d: (d**2).sum(1), largest=lambda x: np.abs(x).max(1, keepdims=True), ends=None, back=False):
    """ends: bits → the number that the codes go up to. back: decoded with the step of the whole range."""
    def quantization_best_clip(x, bits, fractions):
        n, m, errors = ends(bits) if ends else 2**(bits - 1) - 1, largest(x), []
        m[m == 0] = 1
        for p in fractions:
            s = p * m / n
            errors.append(error((m / n if back else s) * np.clip(whole(x / s), -n, n) - x))
        return fractions[np.argmin(errors, axis=0)]
    return quantization_best_clip


WRONG = {
    "quantization.bug": [
        (numbers_with(np.uint8), "3 − 8 wraps"),
        (numbers_with(np.int8), "int8 ends at 127"),
        (numbers_with(np.float32, lambda a, g: np.tile(a, (1, g))), "np.tile"),
        (numbers_with(np.uint8, lambda a, g: np.tile(a, (1, g))), "two faults: uint8 wraps"),
        (lambda q, s, z, group: np.repeat(s, group, 1) * (q - np.tile(z.astype(float), group)), "a row of zero points"),
        (lambda q, s, z, group: np.tile(s, group) * (q - np.repeat(z.astype(float), group, 1)), "as you do with the zero"),
        (numbers_with(np.float32, product=lambda s, u: u), "scale is missing"),
        (lambda q, s, z, group: numbers_by_block(q, s, -z.astype(int), group), "z is subtracted"),
        (lambda q, s, z, group: numbers_by_block(q, s, 0 * z, group), "zero point is missing"),
        (lambda q, s, z, group: np.repeat(s, group, 1) * q - np.repeat(z, group, 1), "not q alone"),
        (lambda q, s, z, group: s * (q.astype(float) - z), "broadcast")],
    "quantization.pack": [
        (lambda q: q[::2] + 16 * q[1::2], "high half"),
        (lambda q: q[::2] << 8 | q[1::2], "only the second code is left"),
        (lambda q: 16 * q[:len(q) // 2] + q[len(q) // 2:], "neighbours"),
        (lambda q: q, "nothing is packed"),
        (lambda q: q[::2] | q[1::2], "over each other"),
        (lambda q: 15 * q[::2] + q[1::2], "not 15"),
        (lambda q: (q[::2] << 4 | q[1::2]).astype(float), "use .astype(int)"),
        (lambda q: 16 * q[::2].astype(int) + q[1::2], "an int64 takes eight bytes"),
        (np.packbits, "np.packbits packs bits"),
        (lambda q: q[::2].astype(int) << 8 | q[1::2], "out of its byte; shift by 4"),
        (lambda q: q[::2] + q[1::2], "codes of a pair are added"),
        (lambda q: (q[::2] | q[1::2]) << 4, "both are shifted"),
        (lambda q: q[::2], "only the first code is left: move it"),
        (lambda q: q[::2] * 16, "add the second one in the low"),
        (lambda q: 8 * q[::2] + q[1::2], "multiplied by 8")],
    "quantization.absmax": [
        (absmax_128, "one less than a power of two"),
        (absmax_int, "cut x/s off"),
        (absmax_nan, "zeros"),
        (lambda x, bits: np.rint(x / (np.abs(x).max() / (2**(bits - 1) - 1))), "codes"),
        (absmax_by_axis, "whole array"),
        (absmax_with(half_up), "rounds it up"),
        (absmax_with(half_away), "away from 0"),
        (absmax_clipped(lambda b: 2**(b - 1), lambda b: -2**(b - 1)), "no code of its own"),
        (absmax_clipped(lambda b: (2**b - 1) / 2, lambda b: -2**(b - 1)), "midway between two integers"),
        (absmax_clipped(lambda b: 2**(b - 1) - 1, lambda b: 1 - 2**(b - 1), np.max), "not the largest number"),
        (absmax_in_place, "argument x"),
        (lambda x, bits: absmax_with(np.rint)(x, bits).astype(np.float32), "float32")],
    "quantization.survey": [
        (survey_sign, "libraries' sign"),
        (survey_min_max, "does not contain 0"),
        (survey_both, "two things"),
        (survey_unclipped, "not clipped"),
        (survey_middle, "Z of a symmetric grid"),
        (survey_late, "before you subtract Z"),
        (survey_zeros, "an array of zeros"),
        (survey_with(more=1e-12), "an added ε"),
        (survey_with(np.trunc), "round x/S to the nearest integer; yours"),
        (survey_with(round_z=np.floor), "your Z is cut off"),
        (survey_with(np.floor, np.floor), "x/S and l/S are rounded"),
        (lambda *a: tuple(survey_with()(*a)[i] for i in (0, 2, 1)), "results 2 and 3 are exchanged"),
        (lambda *a: survey_with()(*a)[1:] + survey_with()(*a)[:1], "stand in another order"),
        (lambda x, bits: (np.clip(np.rint(x / survey_with()(x, bits)[1]), 0, 2**bits - 1).astype(int),
                          *survey_with()(x, bits)[1:]),
         "Z is not subtracted"),
        (lambda *a: (by_library(*a)[0].astype(float), *by_library(*a)[1:]), "use .astype(int)")],
    "quantization.best_clip": [
        (clip_without_clip, "not clipped"),
        (clip_for_all, "its own fraction"),
        (clip_absolute, "squared"),
        (clip_against_clipped, "against the clipped x"),
        (clip_one_range, "its own range"),
        (clip_last, "the first one is wanted"),
        (clip_by_zero, "another divisor first"),
        (clip_place, "return the fraction itself"),
        (lambda x, bits, fractions: loop_of_rows(x, bits, fractions[::-1]), "equally good"),
        (clip_with(np.trunc), "cut off or rounded down"),
        (clip_with(back=True), "decode the codes with the same step"),
        (clip_with(error=lambda d: d.sum(1)), "errors of both signs cancel"),
        (clip_with(error=lambda d: abs(d).max(1)), "largest error of a row"),
        (clip_with(largest=lambda x: x.max(1, keepdims=True)), "not its largest number"),
        (clip_with(ends=lambda bits: 2**bits - 1), "half of the codes"),
        (clip_with(ends=lambda bits: 2**(bits - 1)), "the step is p·m/(2"),
        (lambda x, bits, fractions: loop_of_rows(x, bits, fractions) * abs(x).max(1), "these are the ends"),
        (lambda x, bits, fractions: clip_errors(x, bits, fractions).min(0), "these are the least errors")],
    "quantization.to_float": [
        (float_frexp, "frexp"),
        (float_normal_only, "subnormal"),
        (float_by_frexp_alone, "two faults: the exponent"),
        (float_endless, "±V"),
        (float_too_fine, "goes down to −bias"),
        (float_with(half_up), "rounds it up"),
        (float_with(lambda v: np.sign(v) * np.ceil(np.abs(v) - 0.5)), "nearer to 0"),
        (float_with(half_away), "away from 0"),
        (float_integers, "2.0**(E - m)"),
        (float_with(np.trunc), "you cut off"),
        (float_with(np.rint, lambda e, m, bias: 2.0**(2**e - 2 - bias) * (2 - 2.0**-m)), "is reserved"),
        (float_with(np.rint, lambda e, m, bias: 2.0**(2**e - 1 - bias)), "all bits 1"),
        (float_with(np.floor), "you rounded down"),
        (float_with(np.ceil), "you rounded up"),
        (float_with(lambda n: n), "nothing is rounded"),
        (lambda x, e, m: float_with(np.rint)(x, e, m + 1), "half as wide"),
        (lambda x, e, m: float_with(np.rint)(abs(x), e, m), "keep their sign"),
        (lambda x, e, m: float_with(np.rint)(x, e, m) * (abs(x) >= 2.0**(2 - 2**(e - 1))), "not 0 alone")],
}
