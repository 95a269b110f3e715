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
        least, chosen = np.inf, None
        for p in fractions:
            s = p * abs(row).max() / (2**(bits - 1) - 1)
            q = np.round(np.clip(row, -p * abs(row).max(), p * abs(row).max()) / s)
            error = ((s * q - row)**2).mean()
            if error < least: least, chosen = error, p
        best.append(chosen)
    return np.array(best)


def by_library(x, bits):
    """The libraries' z, its sign changed at the end."""
    low, high = np.minimum(0, np.min(x)), np.maximum(0, np.max(x))
    s = (high - low) / (2**bits - 1)
    z = np.rint(-low / s)
    return np.clip(np.rint(x / s) + z, 0, 2**bits - 1).astype(np.uint8), s, -z


RIGHT = {
    "quantization.absmax": [lambda x, bits: x * 0 if not x.any() else np.round(x / abs(x).max() * (2**(bits - 1) - 1))
                            / (2**(bits - 1) - 1) * abs(x).max()],
    "quantization.survey": [by_library],
    "quantization.best_clip": [loop_of_rows],
    "quantization.to_float": [table_of_floats],
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


def clip_for_all(x, bits, fractions):
    m = np.abs(x).max(1, keepdims=True)
    errors = []
    for p in fractions:
        s, n = p * m / (2**(bits - 1) - 1), 2**(bits - 1) - 1
        errors.append(((np.clip(np.rint(x / s), -n, n) * s - x)**2).sum())
    return np.full(len(x), fractions[int(np.argmin(errors))])


def clip_absolute(x, bits, fractions):
    m, n = np.abs(x).max(1, keepdims=True), 2**(bits - 1) - 1
    errors = [np.abs(np.clip(np.rint(x / (p * m / n)), -n, n) * p * m / n - x).sum(1) for p in fractions]
    return np.asarray(fractions)[np.argmin(errors, 0)]


def float_frexp(x, e, m):
    bias = 2**(e - 1) - 1
    E = np.maximum(np.frexp(np.abs(x))[1], 1 - bias)
    V = 2.0**(2**e - 1 - bias) * (2 - 2.0**-m)
    return np.clip(np.rint(x / 2.0**(E - m)) * 2.0**(E - m), -V, V)


def float_normal_only(x, e, m):
    V = 2.0**(2**e - 2**(e - 1)) * (2 - 2.0**-m)
    E = np.floor(np.log2(np.where(x == 0, 1, np.abs(x))))
    return np.clip(np.rint(x / 2.0**(E - m)) * 2.0**(E - m), -V, V)


def float_endless(x, e, m):
    E = np.maximum(np.frexp(np.abs(x))[1] - 1, 2 - 2**(e - 1))
    return np.rint(x / 2.0**(E - m)) * 2.0**(E - m)


WRONG = {
    "quantization.absmax": [(absmax_128, "one less than a power of two"), (absmax_int, "cut x/s off"), (absmax_nan, "zeros"),
                            (lambda x, bits: np.rint(x / (np.abs(x).max() / (2**(bits - 1) - 1))), "codes"),
                            (absmax_by_axis, "whole array")],
    "quantization.survey": [(survey_sign, "libraries' sign"), (survey_min_max, "does not contain 0"), (survey_unclipped, "not clipped")],
    "quantization.best_clip": [(clip_without_clip, "not clipped"), (clip_for_all, "its own fraction"), (clip_absolute, "squared")],
    "quantization.to_float": [(float_frexp, "frexp"), (float_normal_only, "subnormal"), (float_endless, "±V")],
}
