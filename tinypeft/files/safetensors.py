"""Read and write safetensors files, the format in which models are shared, with NumPy alone.

    8 bytes          n, the length of the header, little-endian
    n bytes          JSON, padded with spaces; "__metadata__", if present, maps str to str:
                     {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [start, end]}, …}
    the rest         the arrays, in C order and little-endian; offsets count from here

A file is mapped into memory, so an array that is not used is not read. Files are not trusted. The
arrays must fill the data without a gap or an overlap, and each must be as long as its shape and
dtype say, so no header can make this module ask for more memory than the file has bytes. Written
files equal the library's byte for byte. Format: https://github.com/huggingface/safetensors.
"""
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from .content import naming, parse_json
from .disk import open_regular, replacing

__all__ = ["SafeTensors", "SafeTensorsError", "read_safetensors", "write_safetensors"]

# dtype → (NumPy's name or None, bits per element), in the library's order: it writes the last first
DTYPES = {"BOOL": ("?", 8), "F4": (None, 4), "F6_E2M3": (None, 6), "F6_E3M2": (None, 6),
          "U8": ("u1", 8), "I8": ("i1", 8), "F8_E5M2": (None, 8), "F8_E4M3": (None, 8),
          "F8_E8M0": (None, 8), "F8_E4M3FNUZ": (None, 8), "F8_E5M2FNUZ": (None, 8),
          "I16": ("<i2", 16), "U16": ("<u2", 16), "F16": ("<f2", 16), "BF16": ("<u2", 16),
          "I32": ("<i4", 32), "U32": ("<u4", 32), "F32": ("<f4", 32), "C64": ("<c8", 64),
          "F64": ("<f8", 64), "I64": ("<i8", 64), "U64": ("<u8", 64)}
DTYPE_NAMES = {np.dtype(kind): n for n, (kind, _) in DTYPES.items() if kind and n != "BF16"}
LONGEST_HEADER = 100_000_000                                         # bytes; the library's limit
MOST_AXES = 32


class SafeTensorsError(ValueError):
    """A file breaks the format. The message names the file, and the tensor if one is at fault."""


class SafeTensors(Mapping[str, Array]):
    """The arrays of one file by name, each read when it is used; made by `read_safetensors`.

    `file[name]` is a read-only view of the mapped file; for BF16 it is a new float32 array.
    `shape(name)` and `dtype(name)` (such as "F16") come from the header and read no data.
    `metadata` is the file's own mapping str → str."""

    def __init__(self, path: Path, entries: dict, metadata: dict[str, str], data: Array):
        self.path, self.metadata, self._entries, self._data = path, metadata, entries, data

    def __getitem__(self, name: str) -> Array:
        if name not in self._entries:
            raise KeyError(f"{self.path} has no tensor {brief(name)}; it has {len(self)}: "
                           f"{shortened(', '.join(self), 80)}")
        dtype, shape, start, end = self._entries[name]
        kind, _ = DTYPES[dtype]
        if kind is None:
            raise SafeTensorsError(f"{self.path}: tensor {brief(name)} is {dtype}, which NumPy "
                                   "does not have; store it as F32, F16 or BF16")
        data = self._data[start:end]
        if dtype == "BOOL" and data.max(initial=0) > 1:
            raise SafeTensorsError(f"{self.path}: {brief(name)} is BOOL, with bytes other than "
                                   "0 and 1")
        array = data.view(kind)
        if dtype == "BF16":                                      # the upper half of a float32
            wide = array.astype("<u4")
            wide <<= 16
            array = wide.view("<f4")
        return array.reshape(shape)

    def __iter__(self) -> Iterator[str]: return iter(self._entries)
    def __len__(self) -> int: return len(self._entries)
    def __contains__(self, name: object) -> bool: return name in self._entries
    def shape(self, name: str) -> tuple[int, ...]: return self._entries[name][1]
    def dtype(self, name: str) -> str: return self._entries[name][0]

    def __repr__(self):
        return f"SafeTensors({str(self.path)!r}, {len(self)} tensors, {self._data.size:,} bytes)"


def read_safetensors(path: str | Path) -> SafeTensors:
    """Open a safetensors file as a `SafeTensors`, a mapping from names to arrays.

    The file must not shrink while its arrays are in use. Raises FileNotFoundError, or
    SafeTensorsError (a ValueError) for a file that is damaged, cut off or built to mislead."""
    path = Path(path)
    with open_regular(path, SafeTensorsError) as f, naming(path, SafeTensorsError):
        size, n = os.fstat(f.fileno()).st_size, int.from_bytes(f.read(8), "little")
        if size < 8: raise ValueError(f"{size} bytes, too short for the format")
        if n > min(size - 8, LONGEST_HEADER):
            raise ValueError(f"a header of {n:,} bytes in a file of {size:,} (the limit is "
                             f"{LONGEST_HEADER:,}); it is cut off or no safetensors file")
        entries, metadata = _read_header(f.read(n), size - 8 - n)
        data = np.frombuffer(mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
    return SafeTensors(path, entries, metadata, data[8 + n:])


def _read_header(header, size):
    """(name → (dtype, shape, start, end), metadata), checked against `size`, the bytes of data."""
    with naming("the header is not the JSON of a safetensors file"):
        header = parse_json(header)
    if not isinstance(header, dict):
        raise ValueError(f"the header must be a JSON object, got {type(header).__name__}")
    metadata, entries, at = header.pop("__metadata__", {}), {}, 0
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ must map strings to strings")
    for name, entry in header.items():
        with naming(f"tensor {brief(name)}"): entries[name] = _read_entry(name, entry)
    for name, (*_, start, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != at:
            raise ValueError(f"tensor {brief(name)} starts at byte {start:,} of the data, expected "
                             f"{at:,}: there is {'a gap' if start > at else 'an overlap'}")
        at = end
    if at != size:
        raise ValueError(f"the arrays end at byte {at:,} of the data, the file at {size:,}; it is "
                         f"{'cut off' if at > size else 'longer than its header says'}")
    return entries, metadata


def _read_entry(name, entry):
    """One entry of the header → (dtype, shape, start, end)."""
    name.encode()                                                # ValueError for a lone surrogate
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"expected dtype, shape and data_offsets, got {brief(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"unknown dtype {brief(dtype)}; there are {', '.join(DTYPES)}")
    for field, value in ("shape", shape), ("data_offsets", offsets):
        if type(value) is not list or not all(type(i) is int and 0 <= i < 1 << 63 for i in value):
            got = brief(value)
            raise ValueError(f"{field} must be a list of whole numbers in [0, 2⁶³), got {got}")
    # NumPy multiplies the other axes even if one of them is 0
    if len(shape) > MOST_AXES or math.prod(max(i, 1) for i in shape) >= 1 << 59:
        raise ValueError(f"an array cannot have {len(shape)} axes of {brief(shape)}")
    bits = math.prod(shape) * DTYPES[dtype][1]
    if len(offsets) != 2 or 8 * (offsets[1] - offsets[0]) != bits:
        got = brief(offsets)
        raise ValueError(f"{dtype} {brief(tuple(shape))} has {bits / 8:g} bytes, data_offsets "
                         f"are {got}")
    return dtype, tuple(shape), *offsets


def write_safetensors(path: str | Path, arrays: Mapping[str, Array],
                      metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays to a safetensors file, completely or not at all.

    metadata: str → str; transformers asks for {"format": "pt"}. Raises TypeError for a dtype and
    ValueError for a name or metadata that the format cannot hold."""
    metadata = dict(metadata or {})
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError(f"write_safetensors: metadata must map strings to strings, got {metadata}")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    kinds = {name: DTYPE_NAMES.get(a.dtype.newbyteorder("<")) for name, a in arrays.items()}
    for name, kind in kinds.items():
        if kind is None:
            raise TypeError(f"write_safetensors: {name!r} is {arrays[name].dtype}; the format has "
                            f"{', '.join(map(str, DTYPE_NAMES))}")
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"write_safetensors: {name!r} cannot name an array, use another str")
    rank = list(DTYPES).index
    order = sorted(arrays, key=lambda name: (-rank(kinds[name]), name.encode()))
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name in order:
        header[name] = {"dtype": kinds[name], "shape": list(arrays[name].shape),
                        "data_offsets": [at, at + arrays[name].nbytes]}
        at += arrays[name].nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in order:                                     # copies at most one array at a time
            little = arrays[name].dtype.newbyteorder("<")
            f.write(np.asarray(arrays[name], little, order="C").reshape(-1).view(np.uint8))
