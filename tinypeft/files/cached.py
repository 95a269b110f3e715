"""Rows of numbers that took long to compute, kept in the user's cache.

A file holds rows of one computation, each with its key. It is not trusted: one that is damaged, or
whose arrays have other sizes, is as if it were not there, and so is one that cannot be written. Two
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
KEY = 32                                   # bytes, of a SHA-256


def cached_rows(name: str, keys: Sequence[bytes], width: int,
                compute: Callable[[list[int]], Array]) -> Array:
    """Return one row for each key, (N, width), from the file `name` as far as it has them.

    compute: (places of the keys that are missing) → their rows (n, width). name: what the rows
    depend on beside their keys, as a hash; keys: SHA-256, of 32 bytes."""
    path = cache_directory() / "features" / f"{name}.safetensors"
    rows = _read(path, width)
    missing = [i for i, key in enumerate(keys) if key not in rows]
    if missing:
        rows |= zip([keys[i] for i in missing], compute(missing), strict=True)
    for key in dict.fromkeys(keys):
        rows[key] = rows.pop(key)          # what was used last is dropped last
    with contextlib.suppress(OSError, ValueError):
        if missing:
            _write(path, rows)
        os.utime(path)
    return np.stack([rows[key] for key in keys])


def _read(path: Path, width: int) -> dict[bytes, Array]:
    """Return key → row of a file; nothing of one that is not as `_write` makes it."""
    try:
        arrays, _ = load_arrays(path)
        keys, rows = arrays["keys"], arrays["rows"]
    except (OSError, ValueError, KeyError):
        return {}
    fits = keys.shape == (len(rows), KEY) and keys.dtype == np.uint8
    if not fits or rows.shape[1:] != (width,) or rows.dtype.kind != "f":
        return {}
    return dict(zip(map(bytes, keys), rows, strict=True))


def _write(path: Path, rows: dict[bytes, Array]) -> None:
    """Write the last rows, at most half of the limit, and delete the oldest files beyond it."""
    most = LIMIT // 2 // (next(iter(rows.values())).nbytes + KEY)
    keys = list(rows)[-most:]
    key_bytes = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY)
    save_arrays(path, {"keys": key_bytes, "rows": np.stack([rows[key] for key in keys])}, {})
    total = 0
    for file in sorted(path.parent.glob("*.safetensors"), key=os.path.getmtime, reverse=True):
        total += file.stat().st_size
        if total > LIMIT:
            file.unlink(missing_ok=True)
