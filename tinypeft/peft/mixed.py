"""One call, several tasks: each row of a batch has its own method on the same frozen base.

Virtual tokens do not change the model. Rows that bring equally many of them to the same seam
therefore share one pass (Lester et al., arXiv 2104.08691, figure 2: one frozen model serves all
tasks). Methods that change the model, such as LoRA or adapters, take turns, each with its own rows.
"""
import contextlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ..common.hints import Array
from ..engine.tensor import Tensor, no_grad
from ..models.decoder import Decoder
from .method import MethodError
from .model import PeftModel

__all__ = ["mixed_batch", "mixed_classify"]


def mixed_batch(model: Decoder, tuned: Mapping[Hashable, PeftModel], tokens: Array,
                tasks: Sequence[Hashable]) -> Tensor:
    """Logits (B, T, V) of tokens (B, T): row b by `tuned[tasks[b]]`, or by the base if it is None.

    model: the base. tuned: task → PeftModel on `model` or on a copy of it, attached or detached.
    Each is put on for its rows, and all are left as they were, so threads must not share a model.
    Nothing is recorded for `backward`. Raises ValueError for rows without a known task, and
    MethodError when a method that is not in `tuned` is on the model.
    """
    tokens = np.asarray(tokens)

    def alone(m, rows): logits[rows] = m(tokens[rows]).data

    def shared(group, rows, seams): logits[rows] = model(tokens[rows], **seams).data
    run = _Turns("mixed_batch", model, tuned, tokens, tasks)
    logits = np.empty((*tokens.shape, model.config.vocab_size), model.token_embedding.weight.dtype)
    run(alone, shared)
    return Tensor(logits)


def mixed_classify(model: Decoder, tuned: Mapping[Hashable, PeftModel], tokens: Array,
                   lengths: Array, tasks: Sequence[Hashable]) -> list[Array]:
    """Class logits (C,) of each row of tokens (B, T), by the head of its task; C is the task's.

    lengths (B,): row b has lengths[b] tokens. All else is as in `mixed_batch`. MethodError for a
    task whose PeftModel has no head.
    """
    tokens, lengths = np.asarray(tokens), np.asarray(lengths)
    classes = [None] * len(tokens)
    for task in dict.fromkeys(tasks):
        if task in tuned and tuned[task].head is None and tuned[task].model.head is None:
            raise MethodError(f"mixed_classify: the task {task!r} has no classification head; "
                              "attach(model, method, head=n_classes) adds one")

    def fill(rows, logits):
        for b, row in zip(rows, logits.data, strict=True): classes[b] = row

    def alone(m, rows): fill(rows, m.classify(tokens[rows], lengths[rows]))

    def shared(group, rows, seams):
        last = model.hidden(tokens[rows], **seams)[np.arange(len(rows)), lengths[rows] - 1]
        for t, own, _ in group:
            fill(own, (t.head or model.head)(last[[rows.index(b) for b in own]]))
    _Turns("mixed_classify", model, tuned, tokens, tasks, lengths)(alone, shared)
    return classes


class _Turns:
    """Which rows go through the model together. Calling it runs alone(model, rows) for those with
    a method of their own, and shared(group, rows, seams) for virtual tokens, where group holds
    (PeftModel, its rows, its seams)."""

    def __init__(self, verb, model, tuned, tokens, tasks, lengths=None):
        if not isinstance(model, Decoder) or not all(isinstance(t, PeftModel)
                                                     for t in tuned.values()):
            raise TypeError(f"{verb}: expected a language model and a dict task → PeftModel")
        tasks = list(tasks)
        if len(tasks) != len(tokens):
            raise ValueError(f"{verb}: {len(tokens)} rows but {len(tasks)} tasks")
        self.rows = defaultdict(list)
        for b, task in enumerate(tasks):
            if task is not None and task not in tuned:
                raise ValueError(f"{verb}: row {b} has the task {task!r}; there are "
                                 f"{', '.join(map(repr, tuned))}")
            self.rows[task].append(b)
        self.verb, self.model, self.tuned = verb, model, tuned
        self.tokens, self.lengths = tokens, lengths

    def __call__(self, alone, shared):
        with no_grad(), contextlib.ExitStack() as afterwards:
            for t in self.tuned.values():
                if t.active:
                    t.detach()
                    afterwards.callback(t.reattach)
            for m in [self.model, *(t.model for t in self.tuned.values())]:
                if m.attached is not None:
                    raise MethodError(f"{self.verb}: {m.attached} is on the model, but not among "
                                      "the tasks' methods; detach it")
            together = defaultdict(list)
            for task, rows in self.rows.items():
                t = self.tuned.get(task)
                if t and t.model is self.model and t.virtual and not (t.wrappers or t.trained):
                    t.check_base(self.verb)
                    lengths = None if self.lengths is None else self.lengths[rows]
                    seams = t.virtual.seams(self.tokens[rows], lengths)
                    kinds = "prefix" in seams, "prompt" in seams, t.virtual.length
                    together[kinds].append((t, rows, seams))
                elif t is None: alone(self.model, rows)
                else:
                    t.reattach()
                    try: alone(t, rows)
                    finally: t.detach()
            for group in together.values():
                shared(group, [b for _, rows, _ in group for b in rows], _row_by_row(group))


def _row_by_row(group):
    """One call's seams from those of several tasks: each vector repeated for its task's rows."""
    def join(read, k):                                       # an array of k axes → (rows, *k axes)
        arrays = [(read(seams), len(rows)) for _, rows, seams in group]
        return np.concatenate([np.broadcast_to(a, (n, *a.shape[-k:])) for a, n in arrays])
    first, joined = group[0][2], {}
    if "prefix" in first:
        layer = lambda l, kv: Tensor(join(lambda seams: seams["prefix"][l][kv].data, 3))
        joined["prefix"] = [(layer(l, 0), layer(l, 1)) for l in range(len(first["prefix"]))]
    if "prompt" in first:
        default = np.arange(first["prompt"].shape[-2])
        joined["prompt"] = Tensor(join(lambda seams: seams["prompt"].data, 2))
        joined["prompt_at"] = join(lambda seams: np.asarray(seams.get("prompt_at", default)), 1)
    return joined
