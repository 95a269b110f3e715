"""Decode packed codes to float32, about as fast as NumPy can: x̂ = s·(c[q] − z) + o.

The first pass over a chunk looks up c[q] − z for all codes of a byte at once, in a table of 256
rows. A large array is read two bytes at a time, in a table of 65,536 rows: a look-up costs about
the same whether it brings two numbers or four. The second pass multiplies every block by its scale;
the third adds the offset, if any. Threads share a large array, because NumPy releases Python's
lock in these passes. In a worker of `parallel_map` one thread decodes: the others are busy anyway.
Chunks that fit in a core's cache would be smaller, but then the threads wait for the lock.

Each pass reads and writes the whole chunk, so decoding takes as long as a few multiplications of
the array in place; bitsandbytes' compiled loop does all three in registers
(`tests/benchmarks/quant.py` measures both). `plain.decode` is the formula alone.
"""
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..common.hints import Array
from ..common.threads import cores, parallel_map
from .codebooks import codebook
from .packing import unpack

CHUNK, SHARED = 2**18, 2**20     # elements at a time; arrays from this size on use threads


def decode(flat: Array, look_up: Callable[[int, Array], None], block_size: int,
           scales: Array | None, zeros: Array | None, offsets: Array | None) -> None:
    """Write x̂ of all N elements, in stored order, into flat, float32 (N,).

    look_up(start, x) writes c[q] − z of the elements start … start + len(x) into x. scales, zeros,
    offsets: of every block, float32 (n_blocks,); None for none; an offset () is one for all."""
    B = block_size
    n_blocks = -(-len(flat) // B)
    if offsets is not None:
        offsets = np.broadcast_to(offsets, n_blocks)
    step = 8 * max(1, CHUNK // (8 * B))                    # eight blocks always end on a whole byte

    def affine(x, first):                                  # x (n, B): blocks first, first + 1, …
        blocks = slice(first, first + len(x))
        if zeros is not None:
            x -= zeros[blocks, None]
        if scales is not None:
            x *= scales[blocks, None]
        if offsets is not None:
            x += offsets[blocks, None]

    def decode_chunks(starts):
        for first in starts:
            x = flat[first * B:(first + step) * B]
            look_up(first * B, x)
            whole = len(x) // B
            affine(x[:whole * B].reshape(whole, B), first)
            if len(x) % B:                                 # the short block at the end
                affine(x[whole * B:].reshape(1, -1), first + whole)

    starts = range(0, n_blocks, step)
    if len(flat) < SHARED:
        decode_chunks(starts)
        return
    share = -(-len(starts) // cores())
    parallel_map(decode_chunks, [starts[i:i + share] for i in range(0, len(starts), share)])


def expand(packed: Array, bits: int, x: Array, name: str | None = None, zero: int = 0,
           wide: bool = False) -> None:
    """Write c[q] − z of the first len(x) of packed codes of 1 … 8 bits into x, float32. wide: two
    bytes at a time. No index needs clipping, but only mode="clip" lets NumPy write into `out`
    without a buffer."""
    n = len(x)
    done = 0
    if 8 % bits == 0:
        octets = 2 if wide else 1
        table = decoding_table(bits, name, zero, octets)
        lanes = table.shape[1]
        rows = n // lanes
        done = rows * lanes
        words = packed[:rows * octets].view(f"u{octets}")
        out = x[:done].reshape(rows, lanes)
        np.take(table, words, axis=0, out=out, mode="clip")
    if done < n:                                           # codes that straddle bytes, or the last
        rest = unpack(packed[done * bits // 8:], bits, n - done)
        np.take(decoding_table(bits, name, zero), rest, out=x[done:], mode="clip")


@lru_cache(maxsize=32)
def decoding_table(bits: int, name: str | None, zero: int, octets: int = 0) -> Array:
    """Make a look-up table, float32: code → c[q] − z (2**bits,), or with octets, if bits divides 8,
    one row of decoded codes per word of so many bytes, (256**octets, octets·8/bits)."""
    c = np.arange(2**bits, dtype=np.float32) if name is None else codebook(name)
    c = c - np.float32(zero)
    if not octets:
        return c
    words = np.arange(256**octets, dtype=f"u{octets}")
    codes = unpack(words.view(np.uint8), bits, words.nbytes * 8 // bits)
    return c[codes].reshape(len(words), -1)
