"""Where remembered files live, and writing them so that nobody ever reads half of one."""

import os
import tempfile
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
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
