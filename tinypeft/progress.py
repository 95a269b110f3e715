"""One line that says how far a long job is: redrawn on a terminal and in a notebook, silent in a pipe."""
import sys
import time

__all__ = ["Progress"]


class Progress:
    """`with Progress(total, "training") as bar: bar(step, "loss 3.21")`. At most ten redraws a second."""

    def __init__(self, total, label="", show=None):
        self.total, self.label, self.start, self.drawn = total, label, time.perf_counter(), 0.0
        self.notebook = "ipykernel" in sys.modules
        self.show = (self.notebook or sys.stderr.isatty()) if show is None else show
        self.stream = sys.stdout if self.notebook else sys.stderr

    def __enter__(self):
        return self

    def __call__(self, done, text=""):
        now = time.perf_counter()
        if not self.show or now - self.drawn < 0.1 and done < self.total: return
        self.drawn = now
        left = (now - self.start) / max(done, 1) * (self.total - done)
        line = f"{self.label} {done}/{self.total}  {text}  {left:.0f} s left" if done < self.total else \
               f"{self.label} {done}/{self.total}  {text}  {now - self.start:.1f} s"
        self.stream.write("\r" + line.ljust(100)[:100])
        self.stream.flush()

    def __exit__(self, *_):
        if self.show and self.drawn:
            self.stream.write("\n")
