"""One call, several tasks: each row of a batch has its own method on the same frozen base.

Virtual tokens do not change the model. Rows that bring equally many of them to the same seam
therefore share one pass (Lester et al., arXiv 2104.08691, figure 2: one frozen model serves all
tasks). Methods that change the model, such as LoRA or adapters, take turns, each with its own rows.
"""
import contextlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    turns = Turns("mixed_batch", model, tuned, tokens, tasks)
    logits = np.empty((*tokens.shape, model.config.vocab_size), model.token_embedding.weight.dtype)

    def alone(m, rows):
        logits[rows] = m(tokens[rows]).data

    def together(group, rows, seams):
        logits[rows] = model(tokens[rows], **seams).data

    turns.run(alone, together)
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
        for b, row in zip(rows, logits.data, strict=True):
            classes[b] = row

    def alone(m, rows):
        fill(rows, m.classify(tokens[rows], lengths[rows]))

    def together(group, rows, seams):
        ends = np.arange(len(rows)), lengths[rows] - 1
        last = model.hidden(tokens[rows], **seams)[ends]
        for member in group:
            head = member.tuned.head or model.head
            own = [rows.index(b) for b in member.rows]
            fill(member.rows, head(last[own]))

    turns = Turns("mixed_classify", model, tuned, tokens, tasks, lengths)
    turns.run(alone, together)
    return classes


@dataclass
class Member:
    """A task's rows in a shared pass. seams: what its virtual tokens give the model for them."""
    tuned: PeftModel
    rows: list[int]
    seams: dict[str, Any]


class Turns:
    """Which rows go through the model together: task → rows."""

    def __init__(self, verb: str, model: Decoder, tuned: Mapping[Hashable, PeftModel],
                 tokens: Array, tasks: Sequence[Hashable], lengths: Array | None = None):
        tuned_models = all(isinstance(t, PeftModel) for t in tuned.values())
        if not isinstance(model, Decoder) or not tuned_models:
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
        self.verb = verb
        self.model = model
        self.tuned = tuned
        self.tokens = tokens
        self.lengths = lengths

    def run(self, alone: Callable, together: Callable) -> None:
        """Call alone(model, rows) for each method that changes the model, and for the base, and
        together(group, rows, seams) for virtual tokens, where group is a list of Members."""
        with no_grad(), contextlib.ExitStack() as afterwards:
            for t in self.tuned.values():
                if t.active:
                    t.detach()
                    afterwards.callback(t.reattach)
            self._check_detached()
            groups = defaultdict(list)
            for task, rows in self.rows.items():
                t = self.tuned.get(task)
                if t is None:
                    alone(self.model, rows)
                elif t.model is self.model and t.virtual and not (t.wrappers or t.trained):
                    member = self._member(t, rows)
                    groups[kind_of(member)].append(member)
                else:
                    t.reattach()
                    try:
                        alone(t, rows)
                    finally:
                        t.detach()
            for group in groups.values():
                rows = [b for member in group for b in member.rows]
                together(group, rows, row_by_row(group))

    def _check_detached(self):
        for model in [self.model, *(t.model for t in self.tuned.values())]:
            if model.attached is not None:
                raise MethodError(f"{self.verb}: {model.attached} is on the model, but not among "
                                  "the tasks' methods; detach it")

    def _member(self, tuned, rows):
        tuned.check_base(self.verb)
        lengths = None if self.lengths is None else self.lengths[rows]
        return Member(tuned, rows, tuned.virtual.seams(self.tokens[rows], lengths))


def kind_of(member):
    """What members of one group have in common."""
    return "prefix" in member.seams, "prompt" in member.seams, member.tuned.virtual.length


def row_by_row(group):
    """Join the seams of several tasks for one call: each vector repeated for its task's rows."""
    first, joined = group[0].seams, {}
    if "prefix" in first:
        joined["prefix"] = []
        for layer in range(len(first["prefix"])):
            K = repeated(group, [member.seams["prefix"][layer][0].data for member in group], 3)
            V = repeated(group, [member.seams["prefix"][layer][1].data for member in group], 3)
            joined["prefix"].append((Tensor(K), Tensor(V)))
    if "prompt" in first:
        prompts = [member.seams["prompt"].data for member in group]
        in_front = np.arange(first["prompt"].shape[-2])
        places = [np.asarray(member.seams.get("prompt_at", in_front)) for member in group]
        joined["prompt"] = Tensor(repeated(group, prompts, 2))
        joined["prompt_at"] = repeated(group, places, 1)
    return joined


def repeated(group, arrays, ndim):
    """Repeat each member's array, of `ndim` axes or with one for rows, for its rows; join all."""
    return np.concatenate([
        np.broadcast_to(array, (len(member.rows), *array.shape[-ndim:]))
        for member, array in zip(group, arrays, strict=True)])
