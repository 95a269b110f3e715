"""Files written whole or not at all, and read without trusting them."""
import contextlib
import json
import os
import uuid
from pathlib import Path

import numpy as np

__all__ = ["cache_directory", "load_arrays", "parse_json", "replacing", "save_arrays", "write_atomically"]


def cache_directory():
    """The directory for what can be computed again: $TINYPEFT_CACHE, else $XDG_CACHE_HOME/tinypeft, else
    ~/.cache/tinypeft → `Path`, which need not exist."""
    if chosen := os.environ.get("TINYPEFT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinypeft"


@contextlib.contextmanager
def replacing(path):
    """A binary file to write that becomes `path` once it is complete and on disk: a reader finds the old one or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")                # beside it: a rename must not copy
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path, text):
    """Write `text` (UTF-8, newlines as they are) to `path`, whole or not at all."""
    with replacing(path) as f:
        f.write(text.encode("utf-8"))


def save_arrays(path, arrays, meta):
    """Write named arrays and a JSON-able `meta` to one .npz file, whole or not at all."""
    text = json.dumps(meta, default=lambda number: number.item())                 # NumPy's numbers among them
    with replacing(path) as f:
        np.savez(f, **arrays, __meta__=np.frombuffer(text.encode(), np.uint8))


def load_arrays(path):
    """(arrays, meta) of a file that `save_arrays` wrote. Raises FileNotFoundError, or ValueError for another file."""
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {name: f[name] for name in f.files}
        return arrays, json.loads(arrays.pop("__meta__").tobytes())
    except FileNotFoundError:
        raise
    except Exception as e:
        raise ValueError(f"{path} is not a file that tinypeft wrote, or it is damaged: {e}") from e


def parse_json(text):
    """`json.loads` for text that a stranger wrote: names that occur twice in an object, NaN and infinities, and nesting
    without end are ValueErrors, too."""
    try:
        return json.loads(text, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _without_twins(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        seen = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {twin!r} occurs twice in one object")
    return content


def _no_constant(name):
    raise ValueError(f"{name} is not JSON")
