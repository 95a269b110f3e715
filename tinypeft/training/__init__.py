"""How a model learns: one loop for pretraining, full fine-tuning and every method.

    loop.py         train and evaluate
    rates.py        the rate of each parameter: its own, the model's width, factors by name
    finder.py       which rate? one short run in which it rises
    history.py      what a run says of itself, step by step
    curves.py       its losses as a picture
    checkpoints.py  what a stopped run needs to go on, bit for bit
    diagnosis.py    where a loss or a gradient stopped being finite

A name is imported when it is first used.
"""
from typing import TYPE_CHECKING

from ..common.lazy import lazily

lazily(__name__)
if TYPE_CHECKING:
    from .curves import LiveCurve
    from .diagnosis import DivergedError
    from .finder import RateSearch, find_rate
    from .history import History, Step
    from .loop import evaluate, train
