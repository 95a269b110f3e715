"""From packed codes to float32, about as fast as NumPy can.

Three passes over a chunk that stays in a core's L2 cache: look up c[q] − z of all the codes of a byte at once, in a table
of 256 rows; multiply every block by its scale; add the offset, if there is one. Two threads share a large array: NumPy
lets go of Python's lock in the passes.
Measured on 4 M codes of 4 bits (`tests/benchmarks/quant.py`): 2.5 ms alone and 1.6 ms shared, where one in-place
multiplication takes 0.6 ms (from a warm cache) to 1.0 ms, and splitting the bytes first takes 11 ms. A compiled loop can
look codes up in a register and multiply them there; NumPy cannot, and bitsandbytes' takes 0.3 to 1.2 ms.
"""
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache

import numpy as np

from .codebooks import codebook
from .packing import unpack

CHUNK = 2**18                # elements at a time
SHARED = 2**20               # from this size on, two threads decode every other chunk


def decode(q, flat: np.ndarray):
    """Write s·(c[q] − z) + o of all N elements of the QTensor q, in stored order, into flat, float32 (N,)."""
    table = decoding_table(q.bits, q.codebook, q.zero if isinstance(q.zero, int) else 0)
    scales, zeros, B = q.scales(), q.zeros(), q.block_size
    step = 8 * max(1, CHUNK // (8 * B))                    # blocks; eight blocks always end on a whole byte

    def affine(x, first):                                  # x (n, B): blocks first, first + 1, …
        if zeros is not None:
            x -= zeros[first:first + len(x), None]
        if scales is not None:
            x *= scales[first:first + len(x), None]
        if q.offset is not None:
            x += q.offset

    def chunks(starts):
        for first in starts:
            x = flat[first * B:(first + step) * B]
            look_up(table, q, first * B, x)
            whole = len(x) // B
            affine(x[:whole * B].reshape(whole, B), first)
            if len(x) % B:                                 # the short block at the end
                affine(x[whole * B:].reshape(1, -1), first + whole)

    starts = range(0, q.n_blocks, step)
    if q.size < SHARED:
        return chunks(starts)
    other = helper().submit(chunks, starts[1::2])
    chunks(starts[0::2])
    other.result()


@cache
def helper() -> ThreadPoolExecutor:
    """One thread that only ever decodes. It waits for nobody, so that workers of `threads.py` can wait for it."""
    return ThreadPoolExecutor(1, thread_name_prefix="tinypeft-decoding")


def look_up(table: np.ndarray, q, start: int, x: np.ndarray):
    """Write the table's values of elements start … start + len(x) of q into x."""
    if table.ndim == 1:
        np.take(table, q.unpack(start, len(x)), out=x, mode="clip")            # "clip" is never needed, but writes
        return                                                                 # into out directly, as "raise" does not
    lanes = table.shape[1]
    octets, whole = q.codes[start // lanes:], len(x) // lanes
    np.take(table, octets[:whole], axis=0, out=x[:whole * lanes].reshape(whole, lanes), mode="clip")
    if len(x) % lanes:
        x[whole * lanes:] = table[octets[whole], :len(x) % lanes]


@lru_cache(maxsize=32)
def decoding_table(bits: int, name: str | None, zero: int) -> np.ndarray:
    """(256, 8/bits) float32: for every byte, c[q] − z of the codes it holds.

    When bits does not divide 8, a byte holds no whole number of codes: (2**bits,), to be indexed by unpacked codes."""
    c = np.arange(2**bits, dtype=np.float32) if name is None else codebook(name)
    c = c - np.float32(zero)
    if 8 % bits:
        return c
    return c[unpack(np.arange(256, dtype=np.uint8), bits, 256 * 8 // bits)].reshape(256, -1)
