"""Optimizers: how a gradient becomes a step, and what each keeps for it. README.md has a table.

    optimizer.py   what all share: groups, state arrays, update masks, checkpoints
    sgd.py         SGD, with momentum
    adamw.py       AdamW; its plain form is `adamw` in `engine/plain.py`
    paged.py       AdamW whose state is a file
    adamw8bit.py   AdamW whose moments have 8 bits
    dynamic.py     numbers of 8 bits, in blocks
    galore.py      AdamW on a projection of the gradient
    muon.py        an orthogonal step for each matrix
    schedule.py    the factor on the rate at each step; clipping

A name is imported when it is first used.
"""
from typing import TYPE_CHECKING

from ...common.lazy import lazily

lazily(__name__)
if TYPE_CHECKING:
    from .adamw import AdamW, adamw_step
    from .adamw8bit import AdamW8bit
    from .dynamic import dynamic_map
    from .galore import GaLore
    from .muon import Muon
    from .optimizer import Optimizer, misfit
    from .paged import PagedAdamW
    from .schedule import clip_grad_norm, schedule
    from .sgd import SGD
