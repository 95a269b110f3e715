"""One line of progress of a long job: redrawn on a terminal or in a notebook, silent in a pipe."""
from __future__ import annotations

import contextlib
import sys
import time

__all__ = ["Progress"]


class Progress:
    """`with Progress(total, "training") as bar: bar(step, "loss 3.21")` redraws at most ten times a
    second. In a notebook it updates one output, so a saved notebook holds the last state."""

    def __init__(self, total: int, label: str = "", show: bool | None = None):
        self.total = total
        self.label = label
        self.start = time.perf_counter()
        self.drawn = 0.0
        self.notebook = in_notebook()
        self.handle = None
        terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
        self.show = (self.notebook or terminal) if show is None else show

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, text: str = "") -> None:
        now = time.perf_counter()
        remaining = self.total - done
        if not self.show or now - self.drawn < 0.1 and remaining > 0:
            return
        self.drawn = now
        spent = now - self.start
        when = f"{spent:.1f} s"
        if remaining > 0:
            when = f"{spent / max(done, 1) * remaining:.0f} s left"
        line = f"{self.label} {done}/{self.total}  {text}  {when}"
        if not self.notebook:
            self._write("\r" + line.ljust(100)[:100])
        elif self.handle is None:
            from IPython.display import display
            self.handle = display({"text/plain": line}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": line}, raw=True)

    def _write(self, text):
        with contextlib.suppress(OSError, ValueError):   # a terminal that has gone ends no job
            sys.stderr.write(text)
            sys.stderr.flush()

    def __exit__(self, *_):
        if self.show and self.drawn and not self.notebook:
            self._write("\n")


def in_notebook() -> bool:
    """Does a Jupyter kernel run this? Only a kernel can update what it has displayed."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
