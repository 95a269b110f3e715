"""Freed memory, kept for the next step.

A training step takes and frees hundreds of arrays. glibc, the C library of most Linux systems,
gives large ones back to the system when they are freed. The next step then takes them again, and
the system clears every page before it hands it over: by the machine, up to a quarter of the time of
a small model's step (`tests/benchmarks/README.md`). `keep_freed_memory` asks glibc not to. The
process then stays as large as its largest step.
"""
import ctypes
import functools

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8           # the names in glibc's malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory, once for the whole process; False if it cannot.

    An array of up to 32 MiB, the most that glibc allows, no longer has a mapping of its own. The
    end of the heap is not returned, and all threads share one heap, because a heap of their own
    would be returned whole. https://man7.org/linux/man-pages/man3/mallopt.3.html"""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):                 # Windows, macOS, musl
        return False
    wanted = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 2**31 - 1, ARENA_MAX: 1}
    return all([mallopt(name, value) == 1 for name, value in wanted.items()])
