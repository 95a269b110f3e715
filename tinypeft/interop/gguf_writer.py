"""Write the container of a GGUF file: its fields and its tensors. `gguf_reader.py` reads it.

    "GGUF", version 3        uint32 each; all numbers are little-endian
    tensors, fields          uint64 each: how many there are
    fields                   name, type, value: the sizes, and the tokenizer
    tensors                  name, number of axes, axes (last first), type, offset in the data
    data                     starts at a multiple of 32 bytes; so does every tensor in it

A string is its length (uint64) and its bytes. Format: github.com/ggml-org/ggml, docs/gguf.md.
"""
import struct
from pathlib import Path

from ..common.hints import Array
from ..files import replacing
from .gguf_types import TYPES

__all__ = ["field", "write_container"]

ALIGNMENT = 32
NUMBERS = {kind.name: number for number, kind in TYPES.items()}          # type → its number


def write_container(path: str | Path, fields: dict[str, bytes],
                    tensors: dict[str, tuple[str, tuple[int, ...], Array]]) -> None:
    """Write a file, completely or not at all. fields: name → type and value, see `field`. tensors:
    name → (type, shape, array of the bytes or numbers)."""
    infos, at = [], 0
    for name, (kind, shape, array) in tensors.items():
        n = len(shape)
        infos.append(_string(name) + struct.pack(f"<I{n}QIQ", n, *shape[::-1], NUMBERS[kind], at))
        at += array.nbytes + -array.nbytes % ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join([*(_string(name) + octets for name, octets in fields.items()), *infos])
    with replacing(path) as f:
        f.write(head + bytes(-len(head) % ALIGNMENT))
        for _, _, array in tensors.values():
            f.write(array)
            f.write(bytes(-array.nbytes % ALIGNMENT))


def field(value: str | bool | int | float | list) -> bytes:
    """Encode type and value: uint32 4, float32 6, bool 7, string 8, array 9 (of strings, or of
    int32 5)."""
    n = len(value) if isinstance(value, list) else 0
    if isinstance(value, str):                return struct.pack("<I", 8) + _string(value)
    if isinstance(value, bool):               return struct.pack("<I?", 7, value)
    if isinstance(value, int):                return struct.pack("<II", 4, value)
    if isinstance(value, float):              return struct.pack("<If", 6, value)
    if value and isinstance(value[0], int):   return struct.pack(f"<IIQ{n}i", 9, 5, n, *value)
    return struct.pack("<IIQ", 9, 8, n) + b"".join(map(_string, value))


def _string(text): return struct.pack("<Q", len(text.encode())) + text.encode()
