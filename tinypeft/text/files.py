"""Where remembered files live, and writing them so that nobody ever reads half of one."""

import os
import uuid
from pathlib import Path


def cache_directory():
    """The directory for what can be computed again: $TINYPEFT_CACHE, else $XDG_CACHE_HOME/tinypeft, else
    ~/.cache/tinypeft → `Path`, which need not exist."""
    if chosen := os.environ.get("TINYPEFT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinypeft"


def write_atomically(path, text):
    """Write `text` so that `path` is at every moment either the old file or the new one, whole. Raises `OSError`."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")                 # beside it: a rename must not copy
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
