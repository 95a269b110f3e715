"""How far a long job is: one line, redrawn on a terminal and in a notebook.

A pipe shows nothing of a library call. A command calls `in_lines`, and then a pipe gets a line
after one second and from there every ten. A log then says what goes on, even during a long step.
"""
from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import numpy as np

from .threads import threads_start

__all__ = ["Progress", "in_lines", "watched"]

FIRST, EVERY = 1, 10                                     # seconds before a line in a pipe
_lines = ContextVar("lines", default=False)


@contextlib.contextmanager
def in_lines() -> Iterator[None]:
    """Inside, for a command: a pipe gets a line from time to time, and `watched` shows."""
    token = _lines.set(True)
    try:
        yield
    finally:
        _lines.reset(token)


def watched(items: Sequence, label: str) -> Iterator[Any]:
    """Yield the items. A command shows how many are done. An array of places counts as many."""
    ends = list(accumulate(map(np.size, items)))
    total = ends[-1] if ends else 0
    with Progress(total, label, None if _lines.get() else False) as bar:
        for done, item in zip(ends, items, strict=True):
            yield item
            bar(done)


class Progress:
    """`with Progress(total, "training") as bar: bar(step, "loss 3.21")` redraws at most ten times a
    second. In a notebook it updates one output, so a saved notebook holds the last state.

    total: None for a job whose parts are not counted. first: what was done before, by an earlier
    run. show: False for nothing, True for a line that is redrawn wherever it goes.
    """

    def __init__(self, total: int | None, label: str = "", show: bool | None = None,
                 first: int = 0):
        self.total, self.label, self.first = total, label, first
        self.done, self.text, self.seconds = first, "", None
        self.start = time.perf_counter()
        self.drawn = 0.0
        self.handle = None
        self.notebook = in_notebook()
        terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
        self.show = (self.notebook or terminal) if show is None else show
        self.ticks = show is None and not self.show and _lines.get() and threads_start()
        self.over = threading.Event()
        self.ticker = None

    def __enter__(self) -> Progress:
        if self.ticks:
            self.ticker = threading.Thread(target=self._tick, args=[self.over], daemon=True)
            self.ticker.start()
        elif self.show and _lines.get() and not self.notebook:
            self._draw()                                 # the phase has a name at once
        return self

    def __call__(self, done: int, text: str = "", seconds: float | None = None) -> None:
        """Say what is done, out of `total`. seconds: what the job counts as its time, if that is
        not the time since the start."""
        self.done = max(done, self.done)                 # threads may come in any order
        self.text, self.seconds = text, seconds
        soon = time.perf_counter() - self.drawn < 0.1
        midway = self.first < done < (self.total or 0)   # how it begins and ends is always shown
        if self.show and not (soon and midway):
            self._draw()

    def line(self) -> str:
        """Return the state in words, such as "training 3/40  loss 3.21  12 s left"."""
        spent = time.perf_counter() - self.start
        if self.total is None:
            return f"{self.label}  {spent:.1f} s"
        remaining, new = self.total - self.done, self.done - self.first
        when = f"{spent if self.seconds is None else self.seconds:.1f} s"
        if remaining > 0 and new > 1:                  # the first part alone is slower
            when = f"{spent / new * remaining:.0f} s left"
        return f"{self.label} {self.done}/{self.total}  {self.text}  {when}"

    def _draw(self):
        self.drawn = time.perf_counter()
        if not self.notebook:
            self._write("\r" + self.line().ljust(100)[:100])
        elif self.handle is None:
            from IPython.display import display
            self.handle = display({"text/plain": self.line()}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": self.line()}, raw=True)

    def _tick(self, over):
        """Write a line after a second and then every ten, until `over`; and one at the end."""
        wait = FIRST
        while not over.wait(wait):
            self._write(f"{self.line()}\n")
            wait = EVERY
        if wait == EVERY:
            self._write(f"{self.line()}\n")

    def _write(self, text):
        with contextlib.suppress(OSError, ValueError):   # a terminal that has gone ends no job
            sys.stderr.write(text)
            sys.stderr.flush()

    def __exit__(self, *_):
        self.over.set()
        if self.ticker is not None:
            self.ticker.join()
        elif self.show and self.drawn and not self.notebook:
            if self.total is None and time.perf_counter() - self.start < FIRST:
                self._write(f"\r{'':100}\r")             # too short to be worth a line
            else:
                self._draw()
                self._write("\n")


def in_notebook() -> bool:
    """Does a Jupyter kernel run this? Only a kernel can update what it has displayed."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
