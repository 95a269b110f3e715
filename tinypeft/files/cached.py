"""Rows of numbers that took long to compute, kept in the user's cache.

A file holds rows of one computation, each with its key. A file that is damaged, or whose arrays
have other sizes, is as if it were not there, and so is one that cannot be written. A file with the
right keys and sizes is believed: whoever may write to the folder decides what its numbers are. Two
processes may use a file at once: the last one that writes it decides what is in it.
"""
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..common.hints import Array
from .arrays import load_arrays, save_arrays
from .disk import cache_directory

__all__ = ["cached_rows"]

LIMIT = 100_000_000                        # bytes of all files; the oldest go first
OURS = f"{'[0-9a-f]' * 64}.safetensors"    # other files in the folder are not counted or deleted
KEY = 32                                   # bytes, of a SHA-256


def cached_rows(name: str, keys: Sequence[bytes], width: int,
                compute: Callable[[list[int]], Array]) -> Array:
    """Return one row for each key, (N, width), from the file `name` as far as it has them.

    compute: (places of the keys that are missing) → their rows (n, width). name: the SHA-256, in
    64 hexadecimal digits, of what the rows depend on beside their keys. keys: SHA-256, each of 32
    bytes. Where there is no place for a cache, all rows are computed."""
    rows = _read(name, width)
    missing = [i for i, key in enumerate(keys) if key not in rows]
    if missing:
        rows |= zip([keys[i] for i in missing], compute(missing), strict=True)
    for key in dict.fromkeys(keys):
        rows[key] = rows.pop(key)          # what was used last is dropped last
    with contextlib.suppress(OSError, ValueError):
        if missing:
            _write(name, rows)
        os.utime(_path(name))
    return np.stack([rows[key] for key in keys])


def _path(name: str) -> Path:
    """Return the path of a file. OSError where there is no place for a cache."""
    return cache_directory() / "features" / f"{name}.safetensors"


def _read(name: str, width: int) -> dict[bytes, Array]:
    """Return key → row of a file; nothing of one that is not as `_write` makes it."""
    try:
        arrays, _ = load_arrays(_path(name))
        keys, rows = arrays["keys"], arrays["rows"]
    except (OSError, ValueError, KeyError):
        return {}
    if rows.shape[1:] != (width,) or keys.shape != (len(rows), KEY):
        return {}
    if rows.dtype.kind != "f" or keys.dtype != np.uint8:
        return {}
    return dict(zip(map(bytes, keys), rows, strict=True))


def _write(name: str, rows: dict[bytes, Array]) -> None:
    """Write the last rows, at most half of the limit, and delete the oldest files beyond it."""
    path = _path(name)
    most = LIMIT // 2 // (next(iter(rows.values())).nbytes + KEY)
    keys = list(rows)[-most:]
    key_bytes = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY)
    save_arrays(path, {"keys": key_bytes, "rows": np.stack([rows[key] for key in keys])}, {})
    files = [file for file in path.parent.glob(OURS) if not file.is_symlink()]
    total = 0
    for file in sorted(files, key=os.path.getmtime, reverse=True):
        total += file.stat().st_size
        if total > LIMIT:
            file.unlink(missing_ok=True)
