"""One line that says how far a long job is: redrawn on a terminal and in a notebook, silent in a pipe."""
import sys
import time

__all__ = ["Progress"]


class Progress:
    """`with Progress(total, "training") as bar: bar(step, "loss 3.21")`. At most ten redraws a second.

    In a notebook the line is one output that is updated, so that what is saved holds its last state and nothing else.
    """

    def __init__(self, total, label="", show=None):
        self.total, self.label, self.start, self.drawn = total, label, time.perf_counter(), 0.0
        self.notebook, self.handle = in_notebook(), None
        self.show = (self.notebook or sys.stderr.isatty()) if show is None else show

    def __enter__(self):
        return self

    def __call__(self, done, text=""):
        now = time.perf_counter()
        if not self.show or now - self.drawn < 0.1 and done < self.total: return
        self.drawn = now
        left = (now - self.start) / max(done, 1) * (self.total - done)
        line = f"{self.label} {done}/{self.total}  {text}  {left:.0f} s left" if done < self.total else \
               f"{self.label} {done}/{self.total}  {text}  {now - self.start:.1f} s"
        self._draw(line)

    def _draw(self, line):
        if not self.notebook:
            sys.stderr.write("\r" + line.ljust(100)[:100])
            sys.stderr.flush()
        elif self.handle is None:
            from IPython.display import display
            self.handle = display({"text/plain": line}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": line}, raw=True)

    def __exit__(self, *_):
        if self.show and self.drawn and not self.notebook:
            sys.stderr.write("\n")


def in_notebook():
    """Does a kernel run this, so that what is displayed can be updated?"""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
