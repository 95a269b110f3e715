"""Numbers of 8 bits: the dynamic type, and blocks that each have a scale of their own.

Dettmers et al. (arXiv 2110.02861, sections 2.1 and 2.2) cut numbers into blocks. Of a block x they
keep the largest magnitude, in float32, and for each number the code of the entry of a table q that
is nearest to its share of it. One large number spoils its own block alone.

    a = max |x|,   code_i = argmin_j |x_i / a − q_j|,   x̂_i = a q[code_i]

    paper   here           shape
    T       x              (n,), padded to blocks of 256
    N_b     absmax, a      (⌈n/256⌉, 1), one maximum for each block
    T^Q     codes          (⌈n/256⌉, 256), uint8
    Q^map   q              (256,), the table, `dynamic_map()`

The table's values lie close where numbers are small, over seven powers of ten. Numbers without a
sign, such as Adam's v, have a table of twice as many positive values.

torchao lets a be no less than 1e-12, too coarse for v where gradients are below 1e-6; here any a
serves. bitsandbytes' CPU kernel (0.50) does not take the nearest entry for v: 0 becomes code 7.
"""
import functools

import numpy as np

from ...common.hints import Array

__all__ = ["BLOCK", "dynamic_map", "pack", "unpack"]

BLOCK = 256                                              # numbers that share a maximum


def pack(x: Array, signed: bool) -> tuple[Array, Array]:
    """Return the codes of x (n,), uint8 (⌈n/256⌉, 256), and the maxima, float32 (⌈n/256⌉, 1)."""
    x = np.pad(x.astype(np.float32, copy=False), (0, -x.size % BLOCK))
    x = x.reshape(-1, BLOCK)
    absmax = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.maximum(absmax, np.finfo(np.float32).tiny)            # not 0
    table = dynamic_map(signed)
    edges = (table[:-1] + table[1:]) / 2                 # code: how many of these are at most x
    codes = np.zeros(x.shape, np.intp)
    for half in 128, 64, 32, 16, 8, 4, 2, 1:             # halve the range, for all x at once
        codes += half * (x >= edges.take(codes + (half - 1)))
    return codes.astype(np.uint8), absmax


def unpack(codes: Array, absmax: Array, signed: bool) -> Array:
    """Return the numbers, float32 (⌈n/256⌉, 256), that codes and maxima stand for."""
    return dynamic_map(signed)[codes] * absmax


@functools.cache
def dynamic_map(signed: bool = True) -> Array:
    """Return the 256 values of the 8-bit dynamic type, ascending, float32, read-only.

    The number of leading zero bits is a decimal exponent; the other bits are a linear fraction.
    Signed, numbers near 1 get 64 steps per sign, and those near 1e-6 get one:

        ± 10^(i−6) · midpoints of 2^i equal parts of [0.1, 1], i = 0 … 6;  0;  1

    There is no −1; the smallest value is −0.99297. Unsigned, there are 2^(i+1) parts. The edges are
    float32, spaced from both ends as in bitsandbytes: exact edges would change a quarter of the
    last bits.
    """
    low = np.float32(0.1)
    width = np.float32(1) - low
    values = [np.float32([0, 1])]
    for i in range(7):
        n_parts = 2**i if signed else 2**(i + 1)
        t = np.arange(n_parts + 1) / n_parts
        edges = np.where(t < 0.5, low + width * t, 1 - width * (1 - t))
        edges = edges.astype(np.float32)
        midpoints = (edges[:-1] + edges[1:]) / np.float32(2)
        positive = np.float32(10.0**(i - 6)) * midpoints
        values.append(positive)
        if signed:
            values.append(-positive)
    values = np.sort(np.concatenate(values))
    values.flags.writeable = False
    return values
