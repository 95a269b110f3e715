"""A task's rows as arrays, from which a script without tinypeft draws the same batches.

    tokens     (N,)        of all rows, or of the text that they are windows of
    spans      (rows, 2)   row i is tokens[spans[i, 0] : spans[i, 1]]
    targets    (N,) the next tokens, −100 where the loss ignores them; or (rows,) classes

The rows of a step are default_rng([seed, step]).integers(0, rows, batch_size): each of our tasks
draws so. Evaluation goes through the rows in order. A row is padded on the right.
"""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..common.hints import Array
from ..text.tasks import Classification, LanguageModelling, Summarization, Task

__all__ = ["check_batches", "check_loss", "padding", "rows_of"]

Rows = dict[str, Array]


def rows_of(task: Task, split: str) -> Rows:
    """Return the rows of a split."""
    if isinstance(task, LanguageModelling):
        ids, T = task.data(split), task.context
        tokens, targets, n = ids[:-1], ids[1:], len(ids) - 1
        starts = np.arange(n + 1 - T) if split == "train" else np.arange(0, n, T)
        ends = np.minimum(starts + T, n)
    else:
        single = [task.collate([row]) for row in task.data(split)]
        tokens = np.concatenate([batch[0][0] for batch in single])
        targets = np.concatenate([batch[-1].reshape(-1) for batch in single])
        ends = np.cumsum([batch[0].size for batch in single])
        starts = np.append(0, ends[:-1])
    rows = {"tokens": tokens, "spans": np.stack([starts, ends], 1), "targets": targets}
    return {name: array.astype(np.int32) for name, array in rows.items()}


def padding(splits: Iterable[Rows]) -> int:
    """Return a token that ends no row: transformers' classifier reads the last token that is
    another."""
    last = {int(i) for rows in splits for i in rows["tokens"][rows["spans"][:, 1] - 1]}
    return min(set(range(len(last) + 1)) - last)


def check_loss(task: Task) -> None:
    """ValueError for a task of another loss than the script's."""
    known = LanguageModelling.loss, Classification.loss, Summarization.loss
    if getattr(type(task), "loss", None) not in known:
        raise ValueError(f"export_training: {type(task).__name__} has a loss of its own; expected "
                         "language modelling, classification, or prompts and answers")


def check_batches(task: Task, rows: Rows, size: int, seed: int) -> None:
    """ValueError unless the rows give the first batches of `train`."""
    for step in range(2):
        theirs = task.batch("train", size, np.random.default_rng([seed, step]))
        drawn = np.random.default_rng([seed, step]).integers(0, len(rows["spans"]), size)
        if len(theirs[0]) == size and all(map(same, [rows] * size, drawn, theirs[0], theirs[-1])):
            continue
        raise ValueError(f"export_training: {type(task).__name__} draws batches in a way of its "
                         "own, which the script does not know")


def same(rows, i, tokens, targets):
    """Is row i what a batch has in a row, padding aside?"""
    span, classes = slice(*rows["spans"][i]), np.ndim(targets) == 0
    ours, n = rows["targets"][i if classes else span], span.stop - span.start
    return (np.array_equal(tokens[:n], rows["tokens"][span])
            and np.array_equal(targets if classes else targets[:n], ours))
