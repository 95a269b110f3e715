"""The curve of a run in a notebook, drawn again as it grows."""
import time
from typing import Any

import numpy as np

from ..common.progress import in_notebook
from ..common.show.markup import drawing

__all__ = ["LiveCurve"]


class LiveCurve:
    """A callback of `train`: in a notebook, the curve of the history, drawn again as it grows.

    seconds: the least time between two drawings; one takes about a tenth of a second. An evaluation
    and the last step are always drawn. Outside a notebook it does nothing.
    """

    def __init__(self, seconds: float = 2.0):
        self.seconds, self.drawn, self.handle = seconds, -np.inf, None

    def __call__(self, step: Any) -> None:
        soon = time.perf_counter() - self.drawn < self.seconds
        due = step.metrics is not None or step.step == step.total
        if not in_notebook() or soon and not due:
            return
        from IPython.display import display
        shown = {"text/html": drawing(step.history.svg(), "losses over steps")}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)
        self.drawn = time.perf_counter()
