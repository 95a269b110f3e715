"""signals.py: a signal waits for the end of a step, and then does what it would have done."""
import signal
import threading

import pytest

from tinypeft.common.signals import HeldSignals


def test_a_signal_waits_until_it_is_delivered():
    after = []
    with pytest.raises(KeyboardInterrupt), HeldSignals() as signals:
        signals.deliver()                                # none waits
        signal.raise_signal(signal.SIGINT)
        after.append(list(signals.waiting))
        signals.deliver()
        after.append("not reached")
    assert after == [[signal.SIGINT]] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_waits_for_the_end_of_the_block():
    after = []
    with pytest.raises(KeyboardInterrupt), HeldSignals():
        signal.raise_signal(signal.SIGINT)
        after.append("reached")
    assert after == ["reached"]


def test_the_second_one_acts_at_once():
    with pytest.raises(KeyboardInterrupt), HeldSignals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it must not wait")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_returns_lets_the_block_go_on_and_signals_are_held_again(monkeypatch):
    seen, before = [], signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with HeldSignals() as signals:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
                assert signals.waiting == [signal.SIGTERM]
                signals.deliver()
        assert seen == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with HeldSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert not signals.waiting and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_block_in_another():
    with pytest.raises(KeyboardInterrupt), HeldSignals() as outer:
        with HeldSignals():
            signal.raise_signal(signal.SIGINT)
        assert outer.waiting == [signal.SIGINT]


def test_in_another_thread_nothing_is_held():
    held = []
    def work():
        with HeldSignals() as signals: held.append(dict(signals.before))
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    assert held == [{}]
