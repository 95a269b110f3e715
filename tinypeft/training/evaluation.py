"""Evaluation: the metrics of a model on a split of a task."""
import itertools
from typing import Any

from ..common.progress import Progress
from ..common.threads import parallel_map
from ..engine.nn import Module
from ..engine.tensor import no_grad
from .backward import most_workers

__all__ = ["batches_of", "evaluate", "require_task"]


def evaluate(model: Module, task: Any, split: str = "test", batch_size: int = 16,
             max_batches: int | None = None, workers: int | None = None,
             label: str | None = None) -> dict:
    """Return the metrics of `model` on a split: means over what counts, tokens or examples.

    max_batches: measure only the first rows, this many batches of them. workers: threads that take
    a batch each (default: one per core, or one if the batches are small). label: a name; shows a
    line of progress that begins with it."""
    def measure(batch):
        measured = task.count(batch), task.metrics(model, batch)
        bar(next(numbers))
        return measured

    require_task(task, "evaluate", "batches", "count", "metrics")
    model.eval()
    batches = batches_of(task, split, batch_size, max_batches)
    numbers = itertools.count(1)
    with no_grad(), Progress(len(batches), label, None if label else False) as bar:
        if workers is None and batches and not most_workers(model, batches[0]):
            workers = 1
        results = parallel_map(measure, batches, workers)
    total = sum(count for count, _ in results)
    if not total:
        raise ValueError(f"evaluate: the split {split!r} of {task} is empty")
    sums = {}
    for count, metrics in results:
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + count * value
    return task.finish({name: value / total for name, value in sums.items()}, split)


def batches_of(task: Any, split: str, size: int, most: int | None = None) -> list[tuple]:
    """Return the batches of a split, or of its first `most` ones: with rows of similar length
    together, if the task can do that (`Rows` of `text/tasks/task.py`)."""
    if hasattr(task, "batches_by_length"):
        return task.batches_by_length(split, size, most)
    return [*itertools.islice(task.batches(split, size), most)]


def require_task(task: Any, verb: str, *needed: str) -> None:
    """Raise TypeError unless `task` has what `verb` needs of one."""
    if isinstance(task, Module):
        raise TypeError(f"{verb}: the model comes first, and then the task; got a "
                        f"{type(task).__name__} as the task")
    missing = [name for name in needed if not hasattr(task, name)]
    if missing:
        raise TypeError(f"{verb}: expected a model and a task, got a {type(task).__name__} as the "
                        f"task, which has no {missing[0]!r}. tinypeft.tasks makes tasks: "
                        "tasks.text(files, model), tasks.labelled(rows, model) of (text, label) "
                        "and tasks.pairs(rows, model) of (prompt, answer)")
