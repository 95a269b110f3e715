"""What is on the disk: writing a file in one step, and opening regular files only."""
import contextlib
import errno
import glob
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:                                              # Windows
    fcntl = None

__all__ = ["cache_directory", "check_writable", "open_regular", "read_text", "replacing",
           "write_atomically"]

LONGEST_TEXT = 100_000_000                  # bytes; the largest tokenizers have a third of it


def cache_directory() -> Path:
    """Return the directory for files that can be computed again: $TINYPEFT_CACHE, or else tinypeft/
    in $XDG_CACHE_HOME or ~/.cache. It need not exist. OSError for a user without a home."""
    if chosen := os.environ.get("TINYPEFT_CACHE"): return Path(chosen)
    if caches := os.environ.get("XDG_CACHE_HOME"): return Path(caches) / "tinypeft"
    try:
        return Path.home() / ".cache" / "tinypeft"
    except RuntimeError as e:
        raise OSError("this user has no home directory, so there is no place for a cache; set "
                      "TINYPEFT_CACHE to a folder") from e


# -- writing -------------------------------------------------------------------------------------
def check_writable(folder: str | Path) -> None:
    """Raise OSError unless files can be written to `folder`, or it can be made. Leaves nothing."""
    import tempfile  # 3 ms that only a writer waits for
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
    _sweep(path)
    part = path.with_name(f".{path.name}.{os.urandom(16).hex()}.part")  # the same disk: atomic
    try:
        with open(part, "wb") as f:
            with contextlib.suppress(OSError): _lock(f)          # says that its writer is alive
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        if e.strerror and e.filename is None: e.filename = str(path)     # a full disk names none
        raise
    finally:
        part.unlink(missing_ok=True)


def _sweep(path):
    """Remove the parts that writers of `path` left behind when they were killed. A part is closed
    before it is removed, because Windows removes no open file."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.part"):
        with contextlib.suppress(OSError):
            with open(part, "rb") as f:
                _lock(f)                             # OSError: its writer is alive
                age = time.time() - os.fstat(f.fileno()).st_mtime
            if age > 1: part.unlink()                # a younger one may not have been locked yet


def _lock(f):
    """Lock a file until it is closed or its process ends. OSError if another one holds the lock.
    Windows needs no lock: there what another process has open cannot be removed."""
    if fcntl is not None: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path`, completely or not at all: UTF-8, with line ends as they are."""
    with replacing(path) as f: f.write(text.encode("utf-8"))


# -- reading -------------------------------------------------------------------------------------
def open_regular(path: str | Path, error: type[ValueError] = ValueError) -> BinaryIO:
    """Open a file for reading. FileNotFoundError if there is none; `error` for a folder, a device,
    a named pipe, which would block as soon as it is opened, or a link that leads to itself."""
    try:
        mode = os.stat(path).st_mode
    except OSError as e:
        if e.errno not in (errno.ELOOP, errno.ENAMETOOLONG): raise
        raise error(f"{str(path)[:300]} cannot be opened: {e.strerror}") from e
    if not stat.S_ISREG(mode):
        raise error(f"{path} is not a regular file; give the path of a file")
    return open(path, "rb")


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file of at most 100 MB, its line ends as "\\n". FileNotFoundError,
    or ValueError."""
    with open_regular(path) as f:
        if (n := os.fstat(f.fileno()).st_size) > LONGEST_TEXT:
            raise ValueError(f"{path} has {n:,} bytes; no text that is read here has more than "
                             f"{LONGEST_TEXT:,}")
        data = f.read()
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text: byte {e.start:,} does not fit; copy the file "
                         "again, or save it as UTF-8") from e
