"""How a model learns: one loop for pretraining, full fine-tuning and every method.

    plain.py        the loop as one reads it
    loop.py         train, and what one step computes
    options.py      what train can be told
    run.py          what a run keeps beside the mathematics, and when it ends
    backward.py     the gradients of a batch, by several threads
    evaluation.py   the metrics of a model on a split
    rates.py        the rate of each parameter: its own, the model's width, factors by name
    finder.py       which rate? one short run in which it rises
    history.py      what a run says of itself, step by step
    live.py         its losses as a picture that grows, in a notebook
    checkpoints.py  what a stopped run needs to go on, bit for bit
    diagnosis.py    where a loss or a gradient stopped being finite

A name is imported when it is first used.
"""
from typing import TYPE_CHECKING

from ..common.lazy import lazily

lazily(__name__)
if TYPE_CHECKING:
    from .diagnosis import DivergedError
    from .evaluation import evaluate
    from .finder import RateSearch, find_rate
    from .history import History, Step
    from .live import LiveCurve
    from .loop import train
    from .options import TrainOptions
