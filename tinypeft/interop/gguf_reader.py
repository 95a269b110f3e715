"""Read GGUF files: the metadata and the tensors, with NumPy alone. `gguf.py` has the format.

A file is mapped into memory, and a tensor is decoded when it is used. A tensor of a type that is
not known here stops only its use. Files are not trusted: every count is compared with the bytes
that are left before anything is read, and the tensors must lie inside the file, apart from each
other. Reading takes no more memory than ten times the file.
"""
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..files import naming, open_regular
from .gguf_types import TYPES, BlockType, decode

__all__ = ["GGUFError", "GGUFFile", "read_gguf"]

# type of a field → struct's letter; 8 is a string and 9 an array
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
           12: "d"}
STRING, ARRAY = 8, 9
MOST_AXES, MOST_ENTRIES = 4, 1 << 14                     # of a tensor; in a list of the file


# types of tensors that are named and not read
UNREAD = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
          21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
          28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0"}


class GGUFError(ValueError):
    """A file breaks the format, or a tensor is used whose type is not known. Names file and
    place."""


class GGUFFile(Mapping[str, Array]):
    """The tensors of one file by name, each decoded to float32 when it is used.

    fields: the metadata, name → number, str, list of str, or array (n,) of numbers. `file[name]`
    has rows as in tinypeft, so a weight is (d_out, d_in). `shape(name)` and `kind(name)` read no
    data; `octets(name)` are the bytes of its blocks, a view of the mapped file."""

    def __init__(self, path: Path, fields: dict[str, Any], places: dict[str, tuple[int, int]],
                 tensors: dict[str, tuple], data: Array):
        self.path, self.fields, self._tensors, self._data = path, fields, tensors, data
        self._places = places                            # of the fields: where type and value are

    def __getitem__(self, name: str) -> Array:
        if name not in self._tensors:
            raise KeyError(f"{self.path} has no tensor {brief(name)}; it has {len(self)}: "
                           f"{shortened(', '.join(self), 80)}")
        return decode(self.kind(name), self.octets(name), self.shape(name))

    def __iter__(self) -> Iterator[str]: return iter(self._tensors)
    def __len__(self) -> int: return len(self._tensors)
    def __contains__(self, name: object) -> bool: return name in self._tensors
    def kind(self, name: str) -> BlockType: return self._tensors[name][0]
    def shape(self, name: str) -> tuple[int, ...]: return self._tensors[name][1]

    def octets(self, name: str) -> Array:
        kind, _, start, end = self._tensors[name]
        if kind.parts is None:
            known = ", ".join(t.name for t in TYPES.values())
            raise GGUFError(f"{self.path}: tensor {brief(name)} has type {kind.name}, which is not "
                            f"supported; the types are {known}")
        return self._data[start:end]

    def field_octets(self) -> dict[str, bytes]:
        """Copy the type and the value of every field, as they are in the file."""
        return {name: self._data[start:end].tobytes()
                for name, (start, end) in self._places.items()}

    def __repr__(self):
        return f"GGUFFile({str(self.path)!r}, {len(self)} tensors, {self._data.size:,} bytes)"


def read_gguf(path: str | Path) -> GGUFFile:
    """Open a GGUF file (version 2 or 3) as a mapping from names to float32 arrays.

    Raises FileNotFoundError, or GGUFError (a ValueError) for a file that is damaged, cut off or
    built to mislead; using a tensor raises it, too, if the type is not known here."""
    with open_regular(path := Path(path), GGUFError) as f, naming(path, GGUFError):
        size, begins = os.fstat(f.fileno()).st_size, f.read(4)
        if size < 24: raise GGUFError(f"{size} bytes, too short for a GGUF file")
        if begins != b"GGUF": raise GGUFError(f"expected it to begin with GGUF, got {begins}")
        try: mapped = mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as e:
            raise GGUFError(f"{size:,} bytes cannot be mapped into memory: {e.strerror}") from e
        return _read(path, _Cursor(mapped), np.frombuffer(mapped, np.uint8))


class _Cursor:
    """A place in the bytes of a file, which moves on with each number or string."""

    def __init__(self, data): self.data, self.at = data, 0

    def need(self, n, what):
        if n > (left := len(self.data) - self.at):
            raise GGUFError(f"{what} at byte {self.at:,} needs {n:,} bytes, the file has {left:,} "
                            "more; it is cut off or damaged")

    def numbers(self, letter, n, what):
        self.need(n * struct.calcsize(letter), what)
        values = struct.unpack_from(f"<{n}{letter}", self.data, self.at)
        self.at += n * struct.calcsize(letter)
        return values

    def array(self, letter, n, what):
        kind = np.dtype(f"<{letter}")
        self.need(n * kind.itemsize, what)
        values = np.frombuffer(self.data, kind, n, self.at)
        self.at += values.nbytes
        return values

    def number(self, letter, what): return self.numbers(letter, 1, what)[0]

    def string(self, what): return self.strings(1, what)[0]

    def strings(self, n, what):
        texts, data, at, length = [], self.data, self.at, struct.Struct("<Q")
        for _ in range(n):
            if (end := at + 8) <= len(data): end += length.unpack_from(data, at)[0]
            if end > len(data):
                self.at = at
                self.need(end - at, what)
            try: texts.append(data[at + 8:end].decode())
            except UnicodeDecodeError as e:
                raise GGUFError(f"{what} at byte {at + 8:,} is not UTF-8: {e}") from e
            at = end
        self.at = at
        return texts


def _read(path, c, data):
    c.at = 4
    version, n_tensors, n_fields = c.number("I", "the version"), *c.numbers("Q", 2, "the counts")
    if version not in (2, 3): raise GGUFError(f"version {version}, expected 2 or 3")
    lists = f"the list of {n_tensors:,} tensors and {n_fields:,} fields"
    c.need(24 * n_tensors + 13 * n_fields, lists)
    if max(n_tensors, n_fields) > MOST_ENTRIES:
        raise GGUFError(f"{lists} is longer than {MOST_ENTRIES:,}")
    fields, places, found = {}, {}, {}
    for _ in range(n_fields):
        _once(name := c.string("the name of a field"), fields)
        start = c.at
        fields[name] = _value(c, f"field {brief(name)}")
        places[name] = start, c.at
    for _ in range(n_tensors):
        _once(name := c.string("the name of a tensor"), found)
        found[name] = _tensor(c, f"tensor {brief(name)}")
    align = fields.get("general.alignment", 32)
    if type(align) is not int or align < 8 or align & align - 1 or align > 1 << 16:
        raise GGUFError(f"general.alignment must be a power of 2 from 8 to 65536, got "
                        f"{brief(align)}")
    start, tensors, end = c.at + -c.at % align, {}, 0
    for name, (kind, shape, at) in sorted(found.items(), key=lambda item: item[1][2]):
        if at % align or at < end:
            raise GGUFError(f"tensor {brief(name)} starts at byte {at:,} of the data, expected a "
                            f"multiple of {align}, from {end:,} on")
        end = at + math.prod(shape) // kind.weights * kind.octets
        if start + end > len(data):
            raise GGUFError(f"tensor {brief(name)} {shape} of {kind.name} ends at byte "
                            f"{start + end:,}, the file at {len(data):,}; it is cut off")
        tensors[name] = kind, shape, start + at, start + end
    return GGUFFile(path, fields, places, {name: tensors[name] for name in found}, data)


def _once(name, names):
    if name in names: raise GGUFError(f"the name {brief(name)} occurs twice")


def _value(c, what):
    """Return the value of a field. Arrays of numbers are not copied: as Python's numbers they would
    take many times the file's bytes."""
    kind = c.number("I", what)
    if kind in NUMBERS: return c.number(NUMBERS[kind], what)
    if kind == STRING: return c.string(what)
    if kind != ARRAY: raise GGUFError(f"{what} has type {kind}, expected 0 … 12")
    inner, n = c.number("I", what), c.number("Q", what)
    if inner in NUMBERS: return c.array(NUMBERS[inner], n, what)
    if inner != STRING: raise GGUFError(f"{what} is an array of type {inner}; numbers and strings "
                                        "are supported")
    c.need(8 * n, what)
    return c.strings(n, what)


def _tensor(c, what):
    """(type, shape, offset) of a tensor."""
    if (n := c.number("I", what)) > MOST_AXES:
        raise GGUFError(f"{what} has {n} axes, at most {MOST_AXES} are allowed")
    shape = c.numbers("Q", n, what)[::-1]
    kind, at = c.number("I", what), c.number("Q", what)
    unread = BlockType(UNREAD.get(kind, str(kind)), 1, 0, None)      # its bytes are not counted
    type_ = TYPES.get(kind, unread)
    if not shape or 0 in shape or shape[-1] % type_.weights:
        raise GGUFError(f"{what} has shape {shape}, expected rows of whole blocks of "
                        f"{type_.weights} ({type_.name})")
    return type_, shape, at
