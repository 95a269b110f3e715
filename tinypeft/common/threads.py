"""All cores, used well: one thread per part of a batch, and one BLAS thread in each.

NumPy spreads only large matrix products over cores. Everything between them (GELU, softmax, layer
norm) stays on one core, and small products lose more to the hand-over than they gain. Splitting the
batch keeps every core busy, because NumPy releases Python's lock while it computes. A step of the
base takes a third longer with BLAS threads alone (`tests/benchmarks/README.md`). Only where a batch
has too few parts for many cores, one thread takes all of it, and NumPy spreads its products
(`workers_for`).

Both functions may be used from several threads at once, one inside the other, and in a process made
by `os.fork`. Only the forking thread lives on in that process, so that it starts new workers. Where
no thread can start, as in a browser's Python, `parallel_map` is a loop.
"""
import contextlib
import contextvars
import ctypes
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["blas_threads", "cores", "parallel_map", "slices", "threads_start", "workers_for"]


# -- threads of the BLAS --------------------------------------------------------------------------
@functools.cache
def _openblas():
    """Find (get, set) of the thread count in the OpenBLAS of NumPy's wheels; None without it."""
    root = Path(np.__file__).parent
    for lib in [*root.parent.glob("numpy.libs/*openblas*"), *root.glob(".dylibs/*openblas*")]:
        with contextlib.suppress(OSError, AttributeError):
            blas = ctypes.CDLL(str(lib))
            return blas.scipy_openblas_get_num_threads64_, blas.scipy_openblas_set_num_threads64_
    return None


class _Requests:
    """Who asks for how many BLAS threads. The process has one count, and the latest request sets
    it; when the last block ends, the count is what it was before the first."""

    def __init__(self):
        self.lock = threading.Lock()
        self.open = []                           # (thread, count)
        self.before = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forked)

    def begin(self, n):
        read, write = _openblas()
        request = [threading.get_ident(), n]
        with self.lock:
            if not self.open:
                self.before = read()
            self.open.append(request)
            write(n)
        return request

    def end(self, request):
        with self.lock:
            self.keep(lambda r: r is not request)

    def keep(self, wanted):
        requests = [r for r in self.open if wanted(r)]
        _, write = _openblas()
        write(requests[-1][1] if requests else self.before)
        self.open = requests

    def forked(self):
        """Forget the blocks of other threads: they never end here, and one may hold the lock."""
        self.lock = threading.Lock()
        if self.open:
            self.keep(lambda r: r[0] == threading.get_ident())


_requests = _Requests()


@contextlib.contextmanager
def blas_threads(n: int) -> Iterator[None]:
    """Inside `with blas_threads(n):` a matrix product uses n threads, if the BLAS is OpenBLAS.

    The count belongs to the whole process: of several open blocks the one begun last decides.
    """
    if _openblas() is None:
        yield
        return
    request = _requests.begin(n)
    try:
        yield
    finally:
        _requests.end(request)


# -- workers --------------------------------------------------------------------------------------
def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers_for(parts: int) -> int:
    """Choose how many threads share `parts` equal pieces of work: one per core as far as there are
    pieces, or a single one if that is quicker.

    w workers take 1/w of the time, and a seventh of that more for parts that are small. A single
    one spreads its matrix products over all cores. What is no product stays on one core, and that
    is about a fifth of a step (`tests/benchmarks/cores.py` measures both)."""
    workers = max(1, min(parts, cores()))
    shared = 8 / 7 / workers
    single = 1 / 5 + 4 / 5 / cores()
    return workers if shared <= single else 1


@functools.cache
def _pool(workers):
    return ThreadPoolExecutor(workers, thread_name_prefix="tinypeft")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
_in_worker = contextvars.ContextVar("in_worker", default=False)


@functools.cache
def threads_start() -> bool:
    """Try to start a thread, once; say whether it started."""
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return False
    return True


def parallel_map(fn: Callable[[Any], Any], items: Iterable, workers: int | None = None) -> list:
    """Return [fn(item) for item in items], computed by `workers` threads; 1 is a plain loop, None
    is as many as `workers_for` says.

    A worker has the caller's `no_grad`, `tape` and NumPy error state. In a worker this is a plain
    loop, too: the pool's threads would wait for each other. When an item fails, the items that have
    begun are finished before its error is raised, so that nothing is computed after the call.
    """
    items = list(items)
    if workers is None:
        workers = workers_for(len(items))
    one_by_one = workers <= 1 or len(items) <= 1 or _in_worker.get()
    if one_by_one or not threads_start():
        return [fn(item) for item in items]

    def work(item):
        _in_worker.set(True)
        return fn(item)
    with blas_threads(1):
        pool, jobs = _pool(workers), []
        try:
            for item in items:
                jobs.append(pool.submit(contextvars.copy_context().run, work, item))
            return [job.result() for job in jobs]
        finally:
            wait([job for job in jobs if not job.cancel()])
            jobs.clear()                                 # an error and its future hold each other


def slices(shape: tuple[int, ...], budget: int = 1 << 17) -> list[slice]:
    """Cut the rows of an array of this shape into equal slices of about `budget` numbers.

    They stay in a core's cache, yet take long enough: two threads hinder each other where an
    operation takes only microseconds.
    """
    n_slices = max(1, round(math.prod(shape) / budget))
    step = max(1, math.ceil(shape[0] / n_slices))
    return [slice(i, i + step) for i in range(0, shape[0], step)]
