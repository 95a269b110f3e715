"""One call, several tasks: every row of a batch with its own method on the same frozen base.

Virtual tokens do not change the model, so rows that bring equally many of them to the same seam go through it in
one pass, each with its own (Lester et al., arXiv 2104.08691, figure 2: one frozen model serves all tasks). Methods
that change the model itself, LoRA or adapters, take turns with the rows that are theirs.
"""
import contextlib
from collections import defaultdict

import numpy as np

from ..gpt import GPT
from ..tensor import Tensor, no_grad
from .model import MethodError, PeftModel

__all__ = ["mixed_batch"]


def mixed_batch(model, tuned, tokens, tasks):
    """Logits (B, T, V) of tokens (B, T), row b computed as `tuned[tasks[b]](tokens[b:b+1])`; a task None is the base.

    model: the base, a GPT. tuned: task → PeftModel on `model` or on a copy of it, attached or detached; each is put on
    for its rows and everything left as it was found, so not for several threads at once. For inference: nothing is
    recorded for `backward`. Raises ValueError for rows without a known task, and MethodError when a method
    that is not in `tuned` is on the model.
    """
    if not isinstance(model, GPT) or not all(isinstance(t, PeftModel) for t in tuned.values()):
        raise TypeError("mixed_batch: expected a GPT and a dict task → PeftModel")
    tokens, tasks = np.asarray(tokens), list(tasks)
    if len(tasks) != len(tokens):
        raise ValueError(f"mixed_batch: {len(tokens)} rows but {len(tasks)} tasks")
    rows, together, seams = defaultdict(list), defaultdict(list), {}
    for b, task in enumerate(tasks):
        if task is not None and task not in tuned:
            raise ValueError(f"mixed_batch: row {b} has the task {task!r}; there are {', '.join(map(repr, tuned))}")
        rows[task].append(b)

    logits = np.empty((*tokens.shape, model.config.vocab_size), model.token_embedding.weight.dtype)
    with no_grad(), _all_off(model, tuned.values()):
        for task, at in rows.items():
            t = tuned.get(task)
            if t and t.model is model and t.virtual and not (t.wrappers or t.trained):
                seams[task] = t.virtual.seams(tokens[at])
                together["prefix" in seams[task], t.virtual.length].append(task)
            else:
                together[task].append(task)
        for group in together.values():
            at = [b for task in group for b in rows[task]]
            if group[0] in seams:
                out = model(tokens[at], **_row_by_row([(seams[task], len(rows[task])) for task in group]))
            elif group[0] is None:
                out = model(tokens[at])
            else:
                with _on(tuned[group[0]]) as t: out = t(tokens[at])
            logits[at] = out.data
    return Tensor(logits)


def _row_by_row(parts):
    """One call's seams from [(seams, number of rows)]: every vector with a batch axis, the parts' rows in order."""
    join = lambda arrays: np.concatenate([np.broadcast_to(a, (n, *a.shape[-k:])) for a, n, k in arrays])
    if "prefix" in parts[0][0]:
        layers = range(len(parts[0][0]["prefix"]))
        return {"prefix": [tuple(Tensor(join([(s["prefix"][l][kv].data, n, 3) for s, n in parts])) for kv in (0, 1))
                           for l in layers]}
    first = np.arange(parts[0][0]["prompt"].shape[-2])                        # the default places
    return {"prompt": Tensor(join([(s["prompt"].data, n, 2) for s, n in parts])),
            "prompt_at": join([(np.asarray(s.get("prompt_at", first)), n, 1) for s, n in parts])}


@contextlib.contextmanager
def _on(tuned):
    tuned.reattach()
    try:
        yield tuned
    finally:
        tuned.detach()


@contextlib.contextmanager
def _all_off(model, tuned):
    """Inside, no method is on any of the models; afterwards those that were are on again."""
    on = [t for t in tuned if t.active]
    for m in [model, *(t.model for t in tuned)]:
        if m.attached is not None and not any(t.model is m for t in on):
            raise MethodError(f"mixed_batch: {m.attached} is on the model, but not among the tasks' methods; detach it")
    for t in on: t.detach()
    try:
        yield
    finally:
        for t in on: t.reattach()
