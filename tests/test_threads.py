"""threads.py: results in order, errors not lost, and a BLAS that is left as it was found."""
import threading
import time

import pytest

import tinypeft as tp
from tinypeft import threads
from tinypeft.threads import blas_threads, parallel_map


def blas():
    library = threads._openblas()
    return library[0]() if library else None             # None where NumPy brings another BLAS


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers):
    def slow_first(i):
        time.sleep(0.02 * (i == 0))
        return i * i
    assert parallel_map(slow_first, range(8), workers) == [i * i for i in range(8)]
    assert parallel_map(slow_first, iter(()), workers) == []


def test_two_workers_work_at_once():
    meet = threading.Barrier(2, timeout=10)              # each waits until the other has come
    assert sorted(parallel_map(lambda i: meet.wait(), range(2), 2)) == [0, 1]


def test_one_worker_or_one_item_stays_in_this_thread():
    here = threading.get_ident()
    assert parallel_map(lambda _: threading.get_ident(), range(3), 1) == [here] * 3
    assert parallel_map(lambda _: threading.get_ident(), [0], 4) == [here]
    assert here not in parallel_map(lambda _: threading.get_ident(), range(3), 2)


def test_an_error_is_raised():
    def bad(i):
        if i == 1: raise KeyError("one")
    for workers in (1, 2):
        before = blas()
        with pytest.raises(KeyError, match="one"):
            parallel_map(bad, range(3), workers)
        assert blas() == before


def test_blas_threads_are_set_and_put_back():
    before = blas()
    with blas_threads(2):
        two = blas()
        with blas_threads(1):
            assert blas() in (1, None)
        assert blas() == two
        assert all(n in (1, None) for n in parallel_map(lambda _: blas(), range(4), 2))
        assert blas() == two
    assert blas() == before
    with pytest.raises(KeyError), blas_threads(1):
        raise KeyError
    assert blas() == before


def test_no_grad_reaches_the_workers():
    x = tp.Tensor([1.0], requires_grad=True)
    with tp.no_grad():
        assert parallel_map(lambda _: (x * 2).requires_grad, range(4), 2) == [False] * 4
    assert parallel_map(lambda _: (x * 2).requires_grad, range(4), 2) == [True] * 4
