"""Files that are written completely or not at all, and read without trusting them."""
import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .hints import Array

__all__ = ["cache_directory", "check_writable", "fingerprint", "load_arrays", "parse_json",
           "replacing", "save_arrays", "write_atomically"]


def cache_directory() -> Path:
    """The directory for files that can be computed again: $TINYPEFT_CACHE, or else tinypeft/ in
    $XDG_CACHE_HOME or ~/.cache. It need not exist."""
    if chosen := os.environ.get("TINYPEFT_CACHE"): return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinypeft"


def check_writable(folder: str | Path) -> None:
    """Raise OSError unless files can be written to `folder`, or it can be made. Leaves nothing."""
    folder = Path(folder)
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryFile(dir=there): pass
    except OSError as e:
        raise OSError(f"cannot write to the folder {folder}: {there}: {e.strerror}; give a folder "
                      "that can be written to") from e


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` once it is complete and on disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")   # same disk: renaming is atomic
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path`, completely or not at all: UTF-8, with line ends as they are."""
    with replacing(path) as f: f.write(text.encode("utf-8"))


def save_arrays(path: str | Path, arrays: Mapping[str, Array], meta: dict) -> None:
    """Write named arrays, and `meta` as JSON, to one .npz file, completely or not at all."""
    text = json.dumps(meta, default=lambda number: number.item())     # NumPy's numbers are allowed
    with replacing(path) as f:
        np.savez(f, **arrays, __meta__=np.frombuffer(text.encode(), np.uint8))


def load_arrays(path: str | Path) -> tuple[dict[str, Array], dict]:
    """(arrays, meta) from `save_arrays`; FileNotFoundError, or ValueError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {name: f[name] for name in f.files}
        return arrays, json.loads(arrays.pop("__meta__").tobytes())
    except FileNotFoundError: raise
    except Exception as e:
        raise ValueError(f"{path} is not a file that tinypeft wrote, or it is damaged: {e}") from e


def fingerprint(arrays: Mapping[str, Array]) -> str:
    """SHA-256 (hex) of named arrays, such as a model's `state_dict()`."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """`json.loads` for untrusted text: ValueError also for a name that occurs twice in an object,
    for NaN and infinities, and for nesting that is too deep."""
    try:
        return json.loads(text, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _without_twins(pairs):
    for name, n in Counter(name for name, _ in pairs).items():
        if n > 1: raise ValueError(f"the name {name!r} occurs twice in one object")
    return dict(pairs)


def _no_constant(name): raise ValueError(f"{name} is not JSON")
