"""Named arrays and a description of them in one file: models, adapters, checkpoints.

The file is a safetensors file. Its `__metadata__` has two entries: "tinypeft" is the description as
JSON, and "sha256" is a hash over the description and the arrays, which finds any damage. Somebody
who builds a file on purpose can compute the hash as well, so a reader still checks every value
that it uses.
"""
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from .content import naming, parse_json
from .safetensors import read_safetensors, write_safetensors

__all__ = ["fingerprint", "load_arrays", "save_arrays"]


def save_arrays(path: str | Path, arrays: Mapping[str, Array], meta: dict[str, Any]) -> None:
    """Write named arrays of real, finite numbers, and `meta` as JSON, to one safetensors file,
    completely or not at all. ValueError for other arrays, which `load_arrays` would refuse."""
    with naming(path): check_numbers(arrays)
    arrays = {name: np.asarray(a, a.dtype.newbyteorder("=")) for name, a in arrays.items()}
    text = json.dumps(meta, allow_nan=False,
                      default=lambda number: number.item())      # NumPy's numbers are allowed
    write_safetensors(path, arrays, {"tinypeft": text, "sha256": _checksum(text, arrays)})


def load_arrays(path: str | Path) -> tuple[dict[str, Array], dict]:
    """Read what `save_arrays` wrote: (arrays, meta).

    The arrays are real and finite. Nothing else is promised about them or about `meta`: see
    `check_fields`. Takes no more memory than the file. Raises FileNotFoundError, or ValueError,
    naming the file, for one that is damaged or that tinypeft did not write."""
    try:
        arrays, meta = _read(path)
        if not isinstance(meta, dict):
            raise ValueError(f"the description must be an object, got {type(meta).__name__}")
        check_numbers(arrays)
    except ValueError as e:
        reason = shortened(str(e).removeprefix(f"{path}: "))
        raise ValueError(f"{path} is not a file that tinypeft wrote, or it is damaged: {reason}; "
                         "write it again") from e
    return arrays, meta


def _read(path):
    file = read_safetensors(path)
    text, checksum = file.metadata.get("tinypeft"), file.metadata.get("sha256")
    if text is None: raise ValueError("__metadata__ has no entry 'tinypeft'")
    arrays = {name: np.array(file[name]) for name in file}
    if checksum != _checksum(text, arrays): raise ValueError("the checksum does not fit")
    return arrays, parse_json(text)


def check_numbers(arrays: Mapping[str, Array]) -> None:
    """ValueError, naming the array, unless all are real and finite numbers."""
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{brief(name)} is of type {array.dtype}, expected real numbers")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{brief(name)} has numbers that are not finite")


def fingerprint(arrays: Mapping[str, Array],
                dtypes: Mapping[str, Any] = MappingProxyType({})) -> str:
    """SHA-256 (hex) of named arrays, such as a model's `state_dict()`. dtypes: name → the precision
    to which an array is cast before, one array at a time."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = array.astype(dtypes.get(name, array.dtype), copy=False)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _checksum(text, arrays):
    return hashlib.sha256(f"{text}\n{fingerprint(arrays)}".encode()).hexdigest()
