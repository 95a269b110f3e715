"""Pack codes of b bits into an array of bytes, and unpack them.

A code is an integer 0 … 2ᵇ−1, b = 1 … 8. The codes form a stream of bits without gaps; zero bits
fill up the last byte. Libraries differ only in the direction of the stream, named as in
`np.packbits`, which does the same for b = 1:

    "big"      the first code is in the high bits of the first byte: bitsandbytes; the default
    "little"   the first code is in the low bits: GPTQ's int32 words, compressed-tensors

Two libraries permute the codes before "little" packing. GGUF's Q4_0 puts elements i and i + 16 of a
block of 32 into one byte (`gguf_blocks.py`). AWQ orders the eight codes of a word 0 2 4 6 1 3 5 7.
"""
import numpy as np

from ..common.hints import Array


def packed_size(n: int, bits: int) -> int:
    """Return how many bytes n codes of `bits` bits take: ⌈n·bits/8⌉."""
    return -(-n * bits // 8)


def pack(codes: Array, bits: int, bitorder: str = "big") -> Array:
    """Integers 0 … 2**bits − 1 of any shape → uint8 (⌈n·bits/8⌉,). Raises ValueError for bits
    outside 1 … 8, an unknown bitorder, or a code that does not fit."""
    lanes, word, shifts = word_layout(bits, bitorder)
    codes = np.asarray(codes).reshape(-1)
    n = codes.size
    if codes.dtype.kind not in "ui":
        raise ValueError(f"pack: codes must be integers, got {codes.dtype}")
    if n and (codes.min() < 0 or codes.max() >> bits):
        raise ValueError(f"pack: codes must lie in 0 … {2**bits - 1} for {bits} bits, "
                         f"got {codes.min()} … {codes.max()}")
    if n % lanes:
        codes = np.append(codes, np.zeros(-n % lanes, codes.dtype))
    codes = codes.astype(np.uint8, copy=False).reshape(-1, lanes)
    words = np.zeros(len(codes), word)
    for lane, shift in enumerate(shifts):
        words |= codes[:, lane].astype(word, copy=False) << word(shift)
    if word is np.uint8:
        return words
    dtype, used = word_bytes(bits, bitorder)
    octets = words.astype(dtype).view(np.uint8).reshape(-1, 8)[:, used]
    return np.ascontiguousarray(octets).reshape(-1)[:packed_size(n, bits)]


def unpack(packed: Array, bits: int, n: int, bitorder: str = "big") -> Array:
    """Return the first n codes of a packed array, uint8 (n,). Inverts `pack`; the same errors."""
    lanes, word, shifts = word_layout(bits, bitorder)
    packed = np.asarray(packed)
    size = packed_size(n, bits)
    if packed.dtype != np.uint8 or packed.size < size:
        raise ValueError(f"unpack: {n} codes of {bits} bits need {size} bytes (uint8), "
                         f"got {packed.size} of {packed.dtype}")
    words = packed.reshape(-1)[:size]
    if word is np.uint64:
        dtype, used = word_bytes(bits, bitorder)
        octets = np.append(words, np.zeros(-size % bits, np.uint8)).reshape(-1, bits)
        padded = np.zeros((len(octets), 8), np.uint8)
        padded[:, used] = octets
        words = padded.view(dtype).astype(np.uint64).reshape(-1)
    codes = np.empty((len(words), lanes), np.uint8)
    for lane, shift in enumerate(shifts):
        codes[:, lane] = words >> word(shift) & word(2**bits - 1)
    return codes.reshape(-1)[:n]


def word_layout(bits: int, bitorder: str) -> tuple[int, type, list[int]]:
    """Return codes per word, dtype of a word, and each code's shift in it. A word holds whole
    codes: it is a byte if `bits` divides 8, otherwise 8 codes in a uint64."""
    if bits not in range(1, 9):
        raise ValueError(f"bits must be 1 … 8, got {bits!r}")
    if bitorder not in ("big", "little"):
        raise ValueError(f"bitorder must be 'big' or 'little', got {bitorder!r}")
    lanes = 8
    word = np.uint64
    if 8 % bits == 0:
        lanes = 8 // bits
        word = np.uint8
    shifts = [bits * lane for lane in range(lanes)]
    return lanes, word, shifts[::-1] if bitorder == "big" else shifts


def word_bytes(bits: int, bitorder: str) -> tuple[str, slice]:
    """Return the byte order of a uint64 of 8 codes, and which of its bytes hold them: `bits` of
    them."""
    return (">u8", slice(8 - bits, 8)) if bitorder == "big" else ("<u8", slice(bits))
