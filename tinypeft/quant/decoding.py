"""Decode packed codes to float32, about as fast as NumPy can: x̂ = s·(c[q] − z) + o.

The first pass over a chunk looks up c[q] − z for all codes of a byte at once, in a table of 256
rows. A large array is read two bytes at a time, in a table of 65,536 rows: a look-up costs about
the same whether it brings two numbers or four. The second pass multiplies every block by its scale;
the third adds the offset, if any. Two threads share a large array, because NumPy releases Python's
lock in these passes. In a worker of `parallel_map` one thread decodes: the others are busy anyway.
Chunks that fit in a core's cache would be smaller, but then the threads wait for the lock.

4 M codes of 4 bits take about 2.5 times as long as one in-place multiplication of the array
(`tests/benchmarks/quant.py`), which reads and writes as many numbers; writing zeros takes 0.8 of
it, the look-ups 1.5 and the scales 1.4, each alone. bitsandbytes' compiled loop works in registers.
"""
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..common.hints import Array
from ..common.threads import parallel_map
from .codebooks import codebook
from .packing import unpack

CHUNK, SHARED = 2**18, 2**20     # elements at a time; arrays from this size on use two threads


def decode(flat: Array, look_up: Callable[[int, Array], None], block_size: int,
           scales: Array | None, zeros: Array | None, offsets: Array | None) -> None:
    """Write x̂ of all N elements, in stored order, into flat, float32 (N,).

    look_up(start, x) writes c[q] − z of the elements start … start + len(x) into x. scales, zeros,
    offsets: of every block, float32 (n_blocks,); None for none; an offset () is one for all."""
    B, n_blocks = block_size, -(-len(flat) // block_size)
    if offsets is not None: offsets = np.broadcast_to(offsets, n_blocks)
    step = 8 * max(1, CHUNK // (8 * B))                    # eight blocks always end on a whole byte

    def affine(x, first):                                  # x (n, B): blocks first, first + 1, …
        blocks = slice(first, first + len(x))
        if zeros is not None:   x -= zeros[blocks, None]
        if scales is not None:  x *= scales[blocks, None]
        if offsets is not None: x += offsets[blocks, None]

    def chunks(starts):
        for first in starts:
            x = flat[first * B:(first + step) * B]
            look_up(first * B, x)
            whole = len(x) // B
            affine(x[:whole * B].reshape(whole, B), first)
            if len(x) % B:                                 # the short block at the end
                affine(x[whole * B:].reshape(1, -1), first + whole)

    starts = range(0, n_blocks, step)
    half = -(-len(starts) // 2)
    if len(flat) < SHARED: chunks(starts)
    else:                  parallel_map(chunks, (starts[:half], starts[half:]), workers=2)


def expand(packed: Array, bits: int, x: Array, name: str | None = None, zero: int = 0,
           wide: bool = False) -> None:
    """Write c[q] − z of the first len(x) of packed codes of 1 … 8 bits into x, float32. wide: two
    bytes at a time. No index needs clipping, but only mode="clip" lets NumPy write into `out`
    without a buffer."""
    done = 0
    if 8 % bits == 0:
        octets = 2 if wide else 1
        table, lanes = decoding_table(bits, name, zero, octets), octets * 8 // bits
        rows = len(x) // lanes
        words, done = packed[:rows * octets].view(f"u{octets}"), rows * lanes
        np.take(table, words, axis=0, out=x[:done].reshape(rows, lanes), mode="clip")
    if done < len(x):                                      # codes that straddle bytes, or the last
        rest = unpack(packed[done * bits // 8:], bits, len(x) - done)
        np.take(decoding_table(bits, name, zero), rest, out=x[done:], mode="clip")


@lru_cache(maxsize=32)
def decoding_table(bits: int, name: str | None, zero: int, octets: int = 0) -> Array:
    """c[q] − z, float32: of every code q (2**bits,), or of all the codes in every word of so many
    octets, (256**octets, octets·8/bits), if bits divides 8."""
    c = np.arange(2**bits, dtype=np.float32) if name is None else codebook(name)
    c = c - np.float32(zero)
    if not octets: return c
    words = np.arange(256**octets, dtype=f"u{octets}")
    return c[unpack(words.view(np.uint8), bits, words.nbytes * 8 // bits)].reshape(len(words), -1)
