"""progress.py: a line that is redrawn, and lines in a pipe; the clock and the streams are made up."""
import io
import sys
import threading
import time
import types

import numpy as np
import pytest

import tinypeft as tp
from tests.toys import Noise, small
from tinypeft.common import progress
from tinypeft.common.progress import Progress, in_lines, watched


class Terminal(io.StringIO):
    def isatty(self): return True


class Clock:
    """A clock that only moves when somebody waits; and the waiting of a ticker, which ends after `seconds`."""

    def __init__(self, monkeypatch, seconds=100.0):
        self.now, self.end = 50.0, 50.0 + seconds
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def wait(self, seconds):
        self.now += seconds
        return self.now > self.end


@pytest.fixture(autouse=True)
def one_second(monkeypatch): monkeypatch.setattr(progress, "FIRST", 1)


@pytest.fixture
def pipe(): return io.StringIO()


@pytest.fixture
def terminal(): return Terminal()


@pytest.fixture(autouse=True)
def errors(request, monkeypatch):
    """Standard error is the stream that a test asks for. Pytest puts its own there before the test begins."""
    stream = next((request.getfixturevalue(name) for name in ("pipe", "terminal") if name in request.fixturenames), None)
    if stream is not None: monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream, modules=sys.modules))


def states(stream): return [state.strip() for state in stream.getvalue().split("\r") if state.strip()]


# -- in a pipe -------------------------------------------------------------------------------------
def test_a_command_writes_a_line_after_a_second_and_then_every_ten(monkeypatch, pipe):
    """It needs no step to end: the thread writes what is known. The last line comes when the job ends."""
    clock = Clock(monkeypatch, seconds=25)
    bar = Progress(40, "training")
    bar(10, "loss 3.210")
    bar._tick(clock)
    assert pipe.getvalue().splitlines() == [f"training 10/40  loss 3.210  {seconds} s left" for seconds in (3, 33, 63, 93)]


def test_what_is_over_within_a_second_writes_nothing(monkeypatch, pipe):
    Progress(40, "training")._tick(Clock(monkeypatch, seconds=0.5))
    assert pipe.getvalue() == ""


def test_a_job_without_parts_says_for_how_long(monkeypatch, pipe):
    clock = Clock(monkeypatch, seconds=11)
    Progress(None, "reading notes")._tick(clock)
    assert pipe.getvalue().splitlines() == ["reading notes  1.0 s", "reading notes  11.0 s", "reading notes  21.0 s"]


def test_the_thread_runs_only_in_a_command_and_ends_with_the_job(monkeypatch, pipe):
    monkeypatch.setattr(progress, "FIRST", 0.001)
    with Progress(3, "steps") as bar: assert bar.ticker is None
    with in_lines():
        with Progress(3, "hidden", show=False) as bar: assert bar.ticker is None
        with Progress(3, "steps") as bar:
            while "steps 0/3" not in pipe.getvalue(): time.sleep(0.001)
            bar(3)
    assert pipe.getvalue().endswith("s\n") and "steps 3/3" in pipe.getvalue().splitlines()[-1]
    assert bar.ticker not in threading.enumerate()


def test_an_error_ends_the_thread_too(pipe):
    with in_lines(), pytest.raises(ValueError), Progress(3, "steps") as bar: raise ValueError
    assert not bar.ticker.is_alive() and pipe.getvalue() == ""


def test_a_library_call_is_silent(pipe):
    tp.train(small(), Noise(), 2)
    tp.evaluate(small(), Noise())
    assert list(watched([1, 2], "items")) == [1, 2] and pipe.getvalue() == ""


# -- on a terminal ---------------------------------------------------------------------------------
def test_a_phase_of_a_command_has_a_name_at_once(monkeypatch, terminal):
    Clock(monkeypatch)
    with in_lines(), Progress(40, "training"): assert states(terminal) == ["training 0/40    0.0 s"]
    assert terminal.getvalue().endswith("\n")


def test_what_a_command_begins_with_is_shown_at_once(monkeypatch, terminal):
    """Not only when its first part has ended, which may be a while."""
    Clock(monkeypatch)
    with in_lines(), Progress(40, "compare") as bar:
        bar(0, "full; lora_all")
        assert states(terminal)[-1] == "compare 0/40  full; lora_all  0.0 s"


def test_a_job_without_parts_leaves_a_line_only_if_it_was_long(monkeypatch, terminal):
    clock = Clock(monkeypatch)
    with in_lines():
        with Progress(None, "loading the model"): clock.now += 0.5
        assert terminal.getvalue().endswith("\r" + " " * 100 + "\r")
        with Progress(None, "reading notes"): clock.now += 12
    assert states(terminal)[-1] == "reading notes  12.0 s" and terminal.getvalue().endswith("\n")


def test_evaluation_and_prediction_of_a_command_show_how_far_they_are(terminal):
    with in_lines():
        tp.evaluate(small(), Noise(), label="testing", workers=2)
        assert list(watched("abc", "classifying")) == ["a", "b", "c"]
        classified = states(terminal)[-1]
        assert len(list(watched([np.arange(n) for n in (16, 16, 5)], "writing"))) == 3 and not list(watched([], "writing"))
    found = states(terminal)
    assert found[0].startswith("testing 0/4") and any(line.startswith("testing 4/4") for line in found)
    assert classified.startswith("classifying 3/3")
    assert any(state.startswith("writing 37/37") for state in found)     # answers, not batches of them


def test_a_library_call_says_nothing_of_an_evaluation(terminal):
    tp.evaluate(small(), Noise())
    assert list(watched("abc", "classifying")) == ["a", "b", "c"] and terminal.getvalue() == ""


# -- the numbers -----------------------------------------------------------------------------------
def test_what_an_earlier_run_did_is_no_speed_of_this_one(monkeypatch, pipe):
    clock = Clock(monkeypatch)
    bar = Progress(100, "training", first=90)
    assert bar.line() == "training 90/100    0.0 s"
    clock.now += 4
    bar(92)
    assert bar.line() == "training 92/100    16 s left"


def test_how_long_it_will_take_is_said_after_two_steps(monkeypatch, pipe):
    """The first step alone is slower than those that follow."""
    clock, bar, lines = Clock(monkeypatch), Progress(40, "training"), []
    for done, seconds in (1, 5), (2, 1), (3, 1):
        clock.now += seconds
        bar(done)
        lines.append(bar.line())
    assert lines == ["training 1/40    5.0 s", "training 2/40    114 s left", "training 3/40    86 s left"]


def test_the_seconds_of_a_training_are_its_historys(terminal):
    """What the line says at the end is what the history says, evaluations apart."""
    history = tp.train(small(), Noise(), 4, eval_every=1)
    mean = sum(history.loss) / 4
    assert f"training 4/4  loss {mean:.3f}, mean of 4 steps  {history.seconds:.1f} s" == states(terminal)[-1]
