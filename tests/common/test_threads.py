"""threads.py: results in order, no error lost, the BLAS left as it was found; from several threads, nested, after fork."""
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import tinypeft as tp
from tests.toys import Noise
from tinypeft.common import threads
from tinypeft.common.progress import in_lines
from tinypeft.common.threads import blas_threads, parallel_map, slices


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


def test_numpys_error_state_reaches_the_workers():
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        parallel_map(lambda i: np.ones(2) / np.zeros(2), range(2), 2)


def test_a_workers_no_grad_stays_in_its_item():
    def enter(i):
        if i == 0: entered.append(block := tp.no_grad()) or block.__enter__()
        return (x * 2).requires_grad
    entered = []                                         # a block that is forgotten would end at once
    x = tp.Tensor([1.0], requires_grad=True)
    assert sorted(parallel_map(enter, range(6), 2)) == [False] + [True] * 5
    assert (x * 2).requires_grad


# -- where no thread can start -----------------------------------------------------------------------
@contextlib.contextmanager
def no_threads():
    """Python as browsers have it."""
    def start(thread): raise RuntimeError("can't start new thread")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        threads._pool.cache_clear()
        threads.threads_start.cache_clear()
        yield
    threads.threads_start.cache_clear()


def test_without_threads_a_map_is_a_loop():
    here = threading.get_ident()
    with no_threads():
        assert parallel_map(lambda i: (i, threading.get_ident()), range(3), 2) == [(i, here) for i in range(3)]


def test_without_threads_a_model_trains_and_is_evaluated(gpt):
    """With the same numbers, and below a command, where a thread says how far it is."""
    def numbers():
        tuned = tp.attach(gpt(np.float32), tp.LoRA(rank=2), rng=0)
        return tp.train(tuned, Noise(), 2).loss, tp.evaluate(tuned, Noise(), label="evaluation")
    with no_threads(), in_lines(): one_by_one = numbers()
    assert numbers() == one_by_one


# -- nested, and from several threads ----------------------------------------------------------------
def in_time(fn, seconds=20):
    """fn() in a thread of its own, which must end in time."""
    results = []
    thread = threading.Thread(target=lambda: results.append(fn()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return results[0]


def test_a_map_inside_a_map():
    """Both workers would wait for a worker."""
    meet = threading.Barrier(2, timeout=10)

    def outer(i):
        meet.wait()
        return parallel_map(lambda j: 10 * i + j, range(3), 2)
    assert in_time(lambda: parallel_map(outer, range(2), 2)) == [[0, 1, 2], [10, 11, 12]]
    inner = lambda i: parallel_map(lambda j: parallel_map(lambda k: k, range(j), 3), range(i), 2)      # three deep
    assert in_time(lambda: parallel_map(inner, range(4), 2)) == [[[*range(j)] for j in range(i)] for i in range(4)]


def test_maps_from_several_threads():
    run = lambda i: parallel_map(lambda j: (i, j), range(20), 2)
    threads_, results = [], {}
    for i in range(6):
        threads_.append(threading.Thread(target=lambda i=i: results.update({i: run(i)}), daemon=True))
        threads_[-1].start()
    for thread in threads_: thread.join(20)
    assert results == {i: [(i, j) for j in range(20)] for i in range(6)}


def test_nothing_is_computed_after_an_error():
    """Items that had begun are finished before it is raised; those that had not never begin."""
    begun, ended = [], []

    def work(i):
        begun.append(i)
        if i == 0: raise KeyError(i)
        time.sleep(0.1)
        ended.append(i)
    with pytest.raises(KeyError): parallel_map(work, range(50), 2)
    assert sorted(ended) == sorted(begun)[1:] and len(begun) < 10
    count = len(begun)
    time.sleep(0.15)
    assert len(begun) == count


def test_overlapping_requests_for_blas_threads():
    """In whatever order the blocks end, the last one begun that is still open decides, and the first count comes back."""
    before = blas()
    first, second, third = (blas_threads(n) for n in (1, 2, 1))
    for block in (first, second, third): block.__enter__()
    assert blas() in (1, None)
    third.__exit__(None, None, None)
    assert blas() in (2, None)
    first.__exit__(None, None, None)
    assert blas() in (2, None)
    second.__exit__(None, None, None)
    assert blas() == before
    others = [threading.Thread(target=enter_and_leave, args=(n,)) for n in (1, 2, 1, 2)]
    for thread in others: thread.start()
    for thread in others: thread.join()
    assert blas() == before


def enter_and_leave(n):
    for _ in range(50):
        with blas_threads(n): pass


# -- after fork --------------------------------------------------------------------------------------
def in_child(fn, seconds=20):
    """Run fn in a forked process: it must end in time, and return True."""
    with warnings.catch_warnings():                      # Python 3.12 warns of fork beside threads: that is the subject
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try: os._exit(0 if fn() else 1)
        except BaseException as e:
            os.write(2, f"{type(e).__name__}: {e}\n".encode())
        finally: os._exit(2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")


forks = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin",
                           reason="no fork, or macOS's Accelerate, which may hang in a forked child")


@forks
def test_a_forked_child_has_workers_of_its_own():
    meet = threading.Barrier(2, timeout=10)
    parallel_map(lambda i: meet.wait(), range(2), 2)     # both threads of the pool exist now
    run = lambda: parallel_map(lambda i: i * i, range(8), 2) == [i * i for i in range(8)]
    in_child(run)
    assert run()
    in_child(lambda: in_child(run) is None)              # and a child of the child


@forks
def test_a_forked_child_trains(gpt):
    model = gpt(np.float32)
    train = lambda: len(tp.train(model, Noise(), 2, progress=False).loss) == 2
    assert train()
    in_child(train)


@forks
def test_a_forked_worker_maps():
    """The child's one thread was a worker, so that its maps are loops."""
    run = lambda: parallel_map(lambda j: j, range(3), 2) == [0, 1, 2]
    def work(i):
        if i == 0: in_child(run)
        return i
    assert parallel_map(work, range(2), 2) == [0, 1]


@forks
def test_a_forked_child_has_the_blas_threads_of_its_own_blocks():
    """The block of a thread that does not exist there would never end; nor would its lock be released."""
    before = blas()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with blas_threads(1):
            inside.set()
            leave.wait(30)
    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)

    def own_block():
        with blas_threads(2): two = blas()
        A = np.ones((300, 300), np.float32)
        return two in (2, None) and blas() == before and (A @ A == 300).all()
    with threads._requests.lock: in_child(own_block)
    with blas_threads(2): in_child(lambda: blas() in (2, None))
    leave.set()
    thread.join()
    assert blas() == before


@forks
def test_no_grad_goes_on_in_a_forked_child():
    x = tp.Tensor([1.0], requires_grad=True)
    with tp.no_grad(): in_child(lambda: not (x * 2).requires_grad)
    in_child(lambda: (x * 2).requires_grad)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (7, 0), (1,), (1000,), (131, 7), (5, 1000), (3, 4, 100)])
@pytest.mark.parametrize("budget", [1, 100, 1 << 17])
def test_slices_hold_every_row_once_and_about_the_budget(shape, budget):
    cut = slices(shape, budget)
    assert [i for s in cut for i in range(s.start, min(s.stop, shape[0]))] == list(range(shape[0]))
    sizes = [s.stop - s.start for s in cut]
    assert len(set(sizes)) <= 1                          # equal ones: the last may only reach over the end
    row = int(np.prod(shape[1:]))
    if shape[0] * row > budget >= row: assert budget / 2 <= sizes[0] * row <= 1.5 * budget + row
    elif shape[0] * row <= budget: assert len(cut) == (shape[0] > 0)


# -- how many workers ------------------------------------------------------------------------------
def test_workers_are_never_slower_than_one_by_the_rules_own_sum(monkeypatch):
    for n in range(1, 65):
        monkeypatch.setattr(threads, "cores", lambda n=n: n)
        for parts in range(100):
            workers = threads.workers_for(parts)
            assert workers in (1, min(parts, n))
            assert 8 / 7 / workers <= 0.2 + 0.8 / n or workers == 1
            assert parts < n or workers == n             # as many parts as cores keep all of them busy


def test_cores_are_those_of_this_process():
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" \
              "from tinypeft.common.threads import cores, workers_for; print(cores(), workers_for(8))"
    if hasattr(os, "sched_setaffinity"):
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1 1\n"
    assert threads.cores() >= 1


def test_four_parts_meet_on_four_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 4)
    meet = threading.Barrier(4, timeout=10)
    assert sorted(parallel_map(lambda i: meet.wait(), range(4))) == [0, 1, 2, 3]
    here = threading.get_ident()
    assert parallel_map(lambda _: threading.get_ident(), range(2)) == [here] * 2         # two of four would idle
