"""Decode packed codes to float32, about as fast as NumPy can: x̂ = s·(c[q] − z) + o.

Each chunk fits in a core's L2 cache. The first pass over it looks up c[q] − z for all codes of a
byte at once, in a table of 256 rows. The second multiplies every block by its scale; the third adds
the offset, if any. Two threads share a large array, because NumPy releases Python's lock in these
passes. In a worker of `parallel_map` one thread decodes, because the others are busy anyway.

4 M codes of 4 bits take 2.5 ms with one thread and 1.6 ms with two (`tests/benchmarks/quant.py`).
One in-place multiplication takes 0.6 to 1.0 ms; splitting the bytes first would take 11 ms. The
compiled loop of bitsandbytes, which works in registers, takes 0.3 to 1.2 ms.
"""
from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..hints import Array
from ..threads import parallel_map
from .codebooks import codebook
from .packing import unpack

if TYPE_CHECKING:
    from .qtensor import QTensor

CHUNK, SHARED = 2**18, 2**20     # elements at a time; arrays from this size on use two threads


def decode(q: QTensor, flat: Array) -> None:
    """Write x̂ of all N elements of the QTensor q, in stored order, into flat, float32 (N,)."""
    table = decoding_table(q.bits, q.codebook, q.zero if isinstance(q.zero, int) else 0)
    scales, zeros, offsets, B = q.scales(), q.zeros(), q.offsets(), q.block_size
    if offsets is not None: offsets = np.broadcast_to(offsets, q.n_blocks)
    step = 8 * max(1, CHUNK // (8 * B))                    # eight blocks always end on a whole byte

    def affine(x, first):                                  # x (n, B): blocks first, first + 1, …
        blocks = slice(first, first + len(x))
        if zeros is not None:   x -= zeros[blocks, None]
        if scales is not None:  x *= scales[blocks, None]
        if offsets is not None: x += offsets[blocks, None]

    def chunks(starts):
        for first in starts:
            x = flat[first * B:(first + step) * B]
            look_up(table, q, first * B, x)
            whole = len(x) // B
            affine(x[:whole * B].reshape(whole, B), first)
            if len(x) % B:                                 # the short block at the end
                affine(x[whole * B:].reshape(1, -1), first + whole)

    starts = range(0, q.n_blocks, step)
    if q.size < SHARED: chunks(starts)
    else:               parallel_map(chunks, (starts[0::2], starts[1::2]), workers=2)


def look_up(table: Array, q: QTensor, start: int, x: Array) -> None:
    """Write the table's values of elements start … start + len(x) of q into x. No index needs
    clipping, but only mode="clip" lets NumPy write into `out` without a buffer."""
    if table.ndim == 1:
        np.take(table, q.unpack(start, len(x)), out=x, mode="clip")
        return
    lanes = table.shape[1]
    octets, whole = q.codes[start // lanes:], len(x) // lanes
    np.take(table, octets[:whole], axis=0, out=x[:whole * lanes].reshape(whole, lanes), mode="clip")
    if len(x) % lanes:
        x[whole * lanes:] = table[octets[whole], :len(x) % lanes]


@lru_cache(maxsize=32)
def decoding_table(bits: int, name: str | None, zero: int) -> Array:
    """c[q] − z of the codes in every byte, float32 (256, 8/bits). If bits does not divide 8, codes
    straddle bytes: then (2**bits,), indexed by unpacked codes."""
    c = np.arange(2**bits, dtype=np.float32) if name is None else codebook(name)
    c = c - np.float32(zero)
    if 8 % bits: return c
    return c[unpack(np.arange(256, dtype=np.uint8), bits, 256 * 8 // bits)].reshape(256, -1)
