"""safetensors files, the format in which models are shared, with nothing but NumPy; nothing in a file is believed.

    8 bytes          n, the length of the header, little-endian
    n bytes          JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [start, end]}, …}, padded by spaces;
                     "__metadata__", if there is one, maps strings to strings
    the rest         the arrays, in C order and little-endian; offsets count from here

A file is mapped into memory: what is not asked for is not read. It is refused unless its arrays lie end to end from the
first byte after the header to the last of the file, each as long as its shape and dtype say; so no header, however
long its numbers, makes this module ask for more memory than the file has bytes. Written files are, byte for byte, what
the safetensors library writes. Format: https://github.com/huggingface/safetensors (its README).
"""
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..files import parse_json, replacing

__all__ = ["SafeTensors", "SafeTensorsError", "read_safetensors", "write_safetensors"]

# dtype → (NumPy's, None where it has none; bits per element), in the library's order: it writes the last ones first
DTYPES = {"BOOL": ("?", 8), "F4": (None, 4), "F6_E2M3": (None, 6), "F6_E3M2": (None, 6), "U8": ("u1", 8), "I8": ("i1", 8),
          "F8_E5M2": (None, 8), "F8_E4M3": (None, 8), "F8_E8M0": (None, 8), "F8_E4M3FNUZ": (None, 8),
          "F8_E5M2FNUZ": (None, 8), "I16": ("<i2", 16), "U16": ("<u2", 16), "F16": ("<f2", 16), "BF16": ("<u2", 16),
          "I32": ("<i4", 32), "U32": ("<u4", 32), "F32": ("<f4", 32), "C64": ("<c8", 64), "F64": ("<f8", 64),
          "I64": ("<i8", 64), "U64": ("<u8", 64)}
NAMES = {np.dtype(kind): name for name, (kind, _) in DTYPES.items() if kind and name != "BF16"}
LONGEST_HEADER = 100_000_000                                             # bytes; the library's limit
MOST_AXES = 32


class SafeTensorsError(ValueError):
    """The file is not what the format allows; the message names the file, and the tensor if it is about one."""


class SafeTensors(Mapping):
    """The arrays of one file by name, each read when it is asked for; see `read_safetensors`.

    `metadata`: the file's own str → str. `file[name]` is a read-only view of the mapped file, or a new float32 array for
    BF16. `shape(name)` and `dtype(name)` (such as "F16") read nothing.
    """

    def __init__(self, path, entries, metadata, data):
        self.path, self.metadata, self._entries, self._data = path, metadata, entries, data

    def __getitem__(self, name):
        if name not in self._entries:
            raise KeyError(f"{self.path} has no tensor {name!r}; it has {len(self)}: {', '.join(list(self)[:8])}"
                           f"{', …' if len(self) > 8 else ''}")
        dtype, shape, start, end = self._entries[name]
        kind, _ = DTYPES[dtype]
        if kind is None:
            raise SafeTensorsError(f"{self.path}: tensor {name!r} is {dtype}, which NumPy has no type for; "
                                   "store it as F32, F16 or BF16")
        array = self._data[start:end].view(kind)
        if dtype == "BF16":                                              # the upper half of a float32
            array = (array.astype("<u4") << 16).view("<f4")
        if dtype == "BOOL" and self._data[start:end].max(initial=0) > 1:
            raise SafeTensorsError(f"{self.path}: tensor {name!r} is BOOL, but has bytes other than 0 and 1")
        return array.reshape(shape)

    def __iter__(self): return iter(self._entries)
    def __len__(self): return len(self._entries)
    def __contains__(self, name): return name in self._entries
    def shape(self, name): return self._entries[name][1]
    def dtype(self, name): return self._entries[name][0]

    def __repr__(self):
        return f"SafeTensors({str(self.path)!r}, {len(self)} tensors, {self._data.size:,} bytes)"


def read_safetensors(path):
    """Open a safetensors file → `SafeTensors`, a mapping name → ndarray.

    The file must not shrink while arrays of it are in use. Raises `SafeTensorsError`, a ValueError, for a file that is
    damaged, cut off or built to mislead, and FileNotFoundError.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise SafeTensorsError(f"{path} is not a regular file")
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size < 8:
            raise SafeTensorsError(f"{path}: {size} bytes, too short for a safetensors file")
        data = np.frombuffer(mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
    n = int(data[:8].view("<u8")[0])
    if n > min(size - 8, LONGEST_HEADER):
        raise SafeTensorsError(f"{path}: a header of {n:,} bytes in a file of {size:,} (at most {LONGEST_HEADER:,} are "
                               "allowed); it is cut off or no safetensors file")
    try:
        header = parse_json(str(data[8:8 + n].data, "utf-8"))
    except ValueError as e:
        raise SafeTensorsError(f"{path}: the header is not the JSON of a safetensors file: {e}") from e
    if not isinstance(header, dict):
        raise SafeTensorsError(f"{path}: the header must be a JSON object, got {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafeTensorsError(f"{path}: __metadata__ must map strings to strings")
    entries = {}
    for name, entry in header.items():
        try:
            entries[name] = _checked(name, entry)
        except ValueError as e:
            raise SafeTensorsError(f"{path}: tensor {name!r}: {e}") from e
    _end_to_end(path, entries, size - 8 - n)
    return SafeTensors(path, entries, metadata, data[8 + n:])


def _checked(name, entry):
    """One entry of the header → (dtype, shape, start, end)."""
    name.encode()                                                        # a lone surrogate is a ValueError
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"expected dtype, shape and data_offsets, got {str(entry)[:80]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"unknown dtype {str(dtype)[:40]!r}; there are {', '.join(DTYPES)}")
    for what, numbers in ("shape", shape), ("data_offsets", offsets):
        if not isinstance(numbers, list) or not all(type(i) is int and 0 <= i < 1 << 63 for i in numbers):
            raise ValueError(f"{what} must be a list of whole numbers in [0, 2⁶³), got {str(numbers)[:80]}")
    if len(shape) > MOST_AXES or math.prod(max(i, 1) for i in shape) >= 1 << 59:           # even if one is 0, for NumPy
        raise ValueError(f"a shape of {len(shape)} axes, {str(shape)[:80]}, is more than an array can have")
    if len(offsets) != 2 or 8 * (offsets[1] - offsets[0]) != math.prod(shape) * DTYPES[dtype][1]:
        raise ValueError(f"{dtype} {tuple(shape)} has {math.prod(shape) * DTYPES[dtype][1] / 8:g} bytes, "
                         f"data_offsets are {str(offsets)[:80]}")
    return dtype, tuple(shape), *offsets


def _end_to_end(path, entries, size):
    at = 0
    for name, (*_, start, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != at:
            raise SafeTensorsError(f"{path}: tensor {name!r} starts at byte {start:,} of the data, expected {at:,}: arrays "
                                   f"must lie end to end, without {'a gap' if start > at else 'an overlap'}")
        at = end
    if at != size:
        raise SafeTensorsError(f"{path}: the arrays end at byte {at:,} of the data, the file at {size:,}; it is "
                               f"{'cut off' if at > size else 'longer than its header says'}")


def write_safetensors(path, arrays, metadata=None):
    """Write named arrays to a safetensors file, whole or not at all.

    arrays: name → ndarray of a dtype the format has. metadata: str → str; transformers asks for {"format": "pt"}.
    Raises TypeError for another dtype and ValueError for a name or metadata that the format cannot hold.
    """
    metadata = dict(metadata or {})
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError(f"write_safetensors: metadata must map strings to strings, got {metadata}")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    kinds = {}
    for name, array in arrays.items():
        kinds[name] = NAMES.get(array.dtype.newbyteorder("<"))
        if kinds[name] is None:
            raise TypeError(f"write_safetensors: {name!r} is {array.dtype}; the format has {', '.join(map(str, NAMES))}")
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"write_safetensors: a name must be a string other than '__metadata__', got {name!r}")
    rank = list(DTYPES).index
    order = sorted(arrays, key=lambda name: (-rank(kinds[name]), name.encode()))
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name in order:
        header[name] = {"dtype": kinds[name], "shape": list(arrays[name].shape), "data_offsets": [at, at + arrays[name].nbytes]}
        at += arrays[name].nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in order:                                               # one contiguous copy at a time, if any
            f.write(np.asarray(arrays[name], arrays[name].dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8))
