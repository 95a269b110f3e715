"""Ctrl-C and SIGTERM between the steps of a job, and never in the middle of one.

A step that is cut in two leaves a model with half an update, which no checkpoint can describe. A
job therefore holds the signals back, and lets them act where its state is whole:

    with HeldSignals() as signals:
        for step in steps:
            ...
            if signals.waiting: save()
            signals.deliver()                # KeyboardInterrupt, or the end of the process
"""
import signal
import threading
from types import FrameType
from typing import Self

__all__ = ["HeldSignals"]

HELD = signal.SIGINT, signal.SIGTERM


class HeldSignals:
    """Inside `with HeldSignals() as signals:` the first signal of each kind waits for `deliver`, or
    for the end of the block. The second one acts at once, for a user who does not want to wait.

    waiting: the signals that wait. A signal that is ignored stays so. Python gives signals to its
    main thread alone: in another thread nothing is held.
    """

    def __init__(self):
        self.waiting: list[int] = []
        self.before: dict = {}                           # signal → its handler outside the block

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in HELD:
            handler = signal.getsignal(number)
            if handler in (None, signal.SIG_IGN):             # None: not Python's, so it stays
                continue
            self.before[number] = handler
            signal.signal(number, self._hold)
        return self

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.waiting.append(number)
        signal.signal(number, self.before[number])

    def deliver(self) -> None:
        """Let the signals that wait act as they would have. If one returns, it is held again."""
        while self.waiting:
            number = self.waiting.pop()
            signal.raise_signal(number)
            signal.signal(number, self._hold)

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        while self.waiting:
            signal.raise_signal(self.waiting.pop())
