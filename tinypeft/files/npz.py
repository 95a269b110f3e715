"""Reading the .npz files that tinypeft wrote before it wrote safetensors. They are not trusted.

An .npz file is a ZIP archive of .npy files. NumPy stored them as they are, so each has its declared
size in the file, and a compressed member, which could unpack to any size, is not from tinypeft.
"""
import io
import math
import zipfile
from pathlib import Path

import numpy as np

from ..common.hints import Array
from .disk import open_regular

__all__ = ["read_npz"]

LONGEST_HEADER = 1_000          # of a .npy file, in bytes; `savez` wrote 118. Parsing is quadratic


def read_npz(path: str | Path) -> dict[str, Array]:
    """The arrays of an .npz file by name. Takes no more memory than the file. ValueError for any
    that NumPy's `savez` did not write, and for arrays of objects."""
    with open_regular(path) as f:
        size = f.seek(0, io.SEEK_END)
        with zipfile.ZipFile(f) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise ValueError("a member is compressed; tinypeft stored all members as they are")
            if (total := sum(m.file_size for m in members)) > size:
                raise ValueError(f"the members have {total:,} bytes, the file only {size:,}")
            names = [m.filename for m in members]
            if len(set(names)) < len(names): raise ValueError("two members have the same name")
            return {m.filename.removesuffix(".npy"): _read_npy(archive.read(m)) for m in members}


def _read_npy(data):
    """The array in the bytes of a .npy file."""
    f = io.BytesIO(data)
    if np.lib.format.read_magic(f) != (1, 0): raise ValueError("a member is no .npy file of 1.0")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(f, LONGEST_HEADER)
    if dtype.kind not in "biuf":
        raise ValueError(f"an array is of type {str(dtype)[:80]}, expected numbers")
    n, given = math.prod(shape) * dtype.itemsize, len(data) - f.tell()
    if n != given or min(shape, default=0) < 0:
        raise ValueError(f"an array {dtype} {shape} has {n:,} bytes, the member has {given:,}")
    array = np.frombuffer(data, dtype, offset=f.tell())
    return array.reshape(shape, order="F" if columns_first else "C").astype(dtype, order="C")
