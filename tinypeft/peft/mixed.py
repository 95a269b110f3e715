"""One call, several tasks: each row of a batch has its own method on the same frozen base.

Virtual tokens do not change the model. Rows that bring equally many of them to the same seam
therefore share one pass (Lester et al., arXiv 2104.08691, figure 2: one frozen model serves all
tasks). Methods that change the model, such as LoRA or adapters, take turns, each with its own rows.
"""
import contextlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ..decoder import Decoder
from ..hints import Array
from ..tensor import Tensor, no_grad
from .method import MethodError
from .model import PeftModel

__all__ = ["mixed_batch"]


def mixed_batch(model: Decoder, tuned: Mapping[Hashable, PeftModel], tokens: Array,
                tasks: Sequence[Hashable]) -> Tensor:
    """Logits (B, T, V) of tokens (B, T): row b by `tuned[tasks[b]]`, or by the base if it is None.

    model: the base. tuned: task → PeftModel on `model` or on a copy of it, attached or detached.
    Each is put on for its rows, and all are left as they were, so threads must not share a model.
    Nothing is recorded for `backward`. Raises ValueError for rows without a known task, and
    MethodError when a method that is not in `tuned` is on the model.
    """
    if not isinstance(model, Decoder) or not all(isinstance(t, PeftModel) for t in tuned.values()):
        raise TypeError("mixed_batch: expected a language model and a dict task → PeftModel")
    tokens, tasks = np.asarray(tokens), list(tasks)
    if len(tasks) != len(tokens):
        raise ValueError(f"mixed_batch: {len(tokens)} rows but {len(tasks)} tasks")
    rows, together = defaultdict(list), defaultdict(list)
    for b, task in enumerate(tasks):
        if task is not None and task not in tuned:
            raise ValueError(f"mixed_batch: row {b} has the task {task!r}; there are "
                             f"{', '.join(map(repr, tuned))}")
        rows[task].append(b)

    logits = np.empty((*tokens.shape, model.config.vocab_size), model.token_embedding.weight.dtype)
    with no_grad(), contextlib.ExitStack() as afterwards:
        for t in tuned.values():
            if t.active:
                t.detach()
                afterwards.callback(t.reattach)
        for m in [model, *(t.model for t in tuned.values())]:
            if m.attached is not None:
                raise MethodError(f"mixed_batch: {m.attached} is on the model, but not among the "
                                  "tasks' methods; detach it")
        for task, at in rows.items():
            t = tuned.get(task)
            if t and t.model is model and t.virtual and not (t.wrappers or t.trained):
                t.check_base("mixed_batch")
                seams = t.virtual.seams(tokens[at])
                together["prefix" in seams, t.virtual.length].append((at, seams))
            elif t is None:
                logits[at] = model(tokens[at]).data
            else:
                t.reattach()
                try: logits[at] = t(tokens[at]).data
                finally: t.detach()
        for group in together.values():
            at = [b for rows_of_task, _ in group for b in rows_of_task]
            logits[at] = model(tokens[at], **_row_by_row(group)).data
    return Tensor(logits)


def _row_by_row(group):
    """One call's seams from [(rows of a task, its seams)]: each vector repeated for its rows."""
    def join(read, k):                                       # an array of k axes → (rows, *k axes)
        arrays = [(read(seams), len(at)) for at, seams in group]
        return np.concatenate([np.broadcast_to(a, (n, *a.shape[-k:])) for a, n in arrays])
    first = group[0][1]
    if "prefix" in first:
        layer = lambda l, kv: Tensor(join(lambda seams: seams["prefix"][l][kv].data, 3))
        return {"prefix": [(layer(l, 0), layer(l, 1)) for l in range(len(first["prefix"]))]}
    default = np.arange(first["prompt"].shape[-2])
    return {"prompt": Tensor(join(lambda seams: seams["prompt"].data, 2)),
            "prompt_at": join(lambda seams: np.asarray(seams.get("prompt_at", default)), 1)}
