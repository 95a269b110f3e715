"""Named arrays and a little JSON in one file, written whole or not at all, read without trusting it."""
import json
import os
from pathlib import Path

import numpy as np

__all__ = ["load_arrays", "save_arrays"]


def save_arrays(path, arrays, meta):
    """Write named arrays and a JSON-able `meta` to one .npz file, atomically: complete, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            np.savez(f, **arrays, __meta__=np.frombuffer(json.dumps(meta).encode(), np.uint8))
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
