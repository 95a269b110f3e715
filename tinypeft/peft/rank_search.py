"""search_rank: which rank of a trained DyLoRA is enough?"""
from typing import Any

from ..training.evaluation import evaluate
from .method import MethodError
from .model import PeftModel

__all__ = ["search_rank"]


def search_rank(tuned: PeftModel, task: Any, split: str = "validation", tolerance: float = 0.0,
                batch_size: int = 16, max_batches: int | None = None) -> tuple[int, dict]:
    """(best, metrics by rank): the smallest rank whose loss is near the lowest, and all metrics.

    tolerance: how near, in nats. Each batch is read once and measured at all trained ranks. `tuned`
    keeps its rank; `tuned.set_rank(best)` applies the answer. Other methods may be on the model.
    Raises MethodError unless one of them is a DyLoRA.
    """
    tuned.check_parts_there()
    several = [part for part in tuned.used() if part.method.ranks]
    if len(several) != 1:
        raise MethodError("search_rank: expected one method that learns at several ranks, a "
                          f"DyLoRA; {len(several)} of those that are on do")
    part, = several
    before = next(iter(part.wrappers.values())).rank
    at_every_rank = AtEveryRank(task, part.method.ranks)
    try:
        metrics = evaluate(tuned, at_every_rank, split, batch_size, max_batches, workers=1)
    finally:
        tuned.set_rank(before)
    losses = {b: metrics[b]["loss"] for b in metrics}
    enough = min(losses.values()) + tolerance
    return min(b for b, loss in losses.items() if loss <= enough), metrics


class AtEveryRank:
    """`task` as `evaluate` sees a task, but with metrics for each of `ranks`."""

    def __init__(self, task, ranks):
        self.task = task
        self.ranks = ranks

    def __getattr__(self, name):
        return getattr(self.task, name)

    def metrics(self, tuned, batch):
        return {(b, name): value for b in self.ranks
                for name, value in self.task.metrics(tuned.set_rank(b), batch).items()}

    def finish(self, means, split):
        finished = {}
        for b in self.ranks:
            at_b = {name: mean for (rank, name), mean in means.items() if rank == b}
            finished[b] = self.task.finish(at_b, split)
        return finished
