"""The gradients of a batch, by several threads and in several parts.

For one thread and one part it is `task.loss(model, batch).backward()`, and the method's penalty.
"""
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..common.heap import keep_freed_memory
from ..common.hints import Array
from ..common.threads import parallel_map, workers_for
from ..engine.nn import Dropout, Module, Parameter

__all__ = ["backward", "most_workers"]

ENOUGH = 1 << 16            # numbers in a layer's input; below that threads wait for Python's lock


def backward(model: Module, task: Any, batch: tuple, workers: int | None = 1,
             accumulate: int = 1) -> float:
    """Add the gradients of the batch's mean loss and the penalty to the parameters; return the sum.

    The batch is cut into one part per worker, or `accumulate` times as many, of which the workers
    take one each at a time. Each part is weighted by its share of what counts. workers=None: as
    many as suit the cores, the rows and their length. One worker takes all if dropout draws,
    because threads would draw in no fixed order. The first call asks the C library to keep freed
    memory for the next step (`common/heap.py`).
    """
    keep_freed_memory()
    if draws_dropout(model):
        workers = 1
    elif workers is None:
        most = min(len(batch[0]), most_workers(model, batch))
        workers = workers_for(most // accumulate)
    parts = cut(task, batch, workers * accumulate)
    total = sum(task.count(part) for part in parts)
    losses = []
    for first in range(0, len(parts), workers):
        losses += add_parts(model, task, parts[first:first + workers], total, workers)
    penalty = model.penalty()
    if penalty is not None:
        losses.append(penalty.item())
        add(penalty.gradients())
    return sum(losses)


def most_workers(model: Module, batch: tuple) -> int:
    """Return how many threads have enough to do at once with a batch.

    NumPy releases Python's lock while it computes. On two cores, two workers take 1.5 times one
    worker's time where a part has 128 tokens 128 wide, 1.2 times with 256 tokens, and 0.8 times
    with 512 (`tests/benchmarks/cores.py`)."""
    return batch[0].size * model.config.d_model // ENOUGH


def add_parts(model: Module, task: Any, parts: list[tuple], total: int,
              workers: int) -> list[float]:
    """Add the gradients of some parts of a batch, one thread each; return their weighted losses.

    The parts come in pairs. Of a pair, the thread that is second adds to the first one's array: a
    sum of two is the same in either order, so no number depends on which thread was quicker. The
    pairs are then added in their order.
    """
    sums = {}                                            # (pair, parameter) → gradient

    def differentiate(numbered):
        number, part = numbered
        loss = task.loss(model, part)
        share = task.count(part) / total
        for p, g in loss.gradients(share):
            first = sums.setdefault((number // 2, p), g)
            if first is not g:
                first += g
        return share * loss.item()

    losses = parallel_map(differentiate, enumerate(parts), workers)
    for pair in range(len(parts)):
        add((p, g) for (of_pair, p), g in sums.items() if of_pair == pair)
    return losses


def draws_dropout(model: Module) -> bool:
    """Is there a Dropout in `model` that sets anything to zero?"""
    return any(isinstance(module, Dropout) and module.p for _, module in model.named_modules())


def cut(task: Any, batch: tuple, n: int) -> list[tuple]:
    """Cut the rows of `batch` into at most `n` parts; leave out parts in which nothing counts."""
    rows = len(batch[0])
    edges = np.linspace(0, rows, min(n, rows) + 1).astype(int)
    parts = [tuple(a[i:j] for a in batch) for i, j in itertools.pairwise(edges)]
    parts = [part for part in parts if task.count(part)]
    if not parts:
        raise ValueError(f"train: nothing counts in a batch of {rows} rows")
    return parts


def add(gradients: Iterable[tuple[Parameter, Array]]) -> None:
    """Add each gradient to the `grad` of its parameter."""
    for p, g in gradients:
        if p.grad is None:
            p.grad = g
        else:
            p.grad += g
