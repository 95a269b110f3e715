"""One call, several tasks: each row of a batch has its own method on the same frozen base.

Virtual tokens do not change the model. Rows that bring equally many of them to the same seam
therefore share one pass (Lester et al., arXiv 2104.08691, figure 2: one frozen model serves all
tasks). Methods that change the model, such as LoRA or adapters, take turns, each with its own rows.
"""
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Array
from ..engine.nn import are_twins
from ..engine.tensor import Tensor, no_grad
from ..files import naming
from ..models.decoder import Decoder
from .method import MethodError
from .model import PeftModel

__all__ = ["mixed_batch", "mixed_classify"]


def mixed_batch(model: Decoder, tuned: Mapping[Hashable, PeftModel], tokens: Array,
                tasks: Sequence[Hashable]) -> Tensor:
    """Logits (B, T, V) of tokens (B, T): row b by `tuned[tasks[b]]`, or by the base if it is None.

    model: the base. tuned: task → PeftModel, of `model` or of another model of its sizes. Nothing
    is recorded for `backward`. A row's logits are those of the row alone, unless the base rounds
    inputs by what all tokens of a call hold: W8A8 and SmoothQuant with activations "tensor", and
    LLMInt8.
    Raises ValueError for rows without a known task, and MethodError, which names the task, for one
    whose method cannot serve its rows.
    """
    tokens = np.asarray(tokens)
    logits = np.empty((*tokens.shape, model.config.vocab_size), model.dtype)

    def compute(group, rows, seams):
        logits[rows] = group[0].model(tokens[rows], **seams).data

    in_turns(compute, "mixed_batch", model, tuned, tokens, tasks)
    return Tensor(logits)


def mixed_classify(model: Decoder, tuned: Mapping[Hashable, PeftModel], tokens: Array,
                   lengths: Array, tasks: Sequence[Hashable]) -> list[Array]:
    """Class logits (C,) of each row of tokens (B, T), by the head of its task; C is the task's.

    lengths (B,): row b has lengths[b] tokens. All else is as in `mixed_batch`. MethodError for a
    task whose PeftModel has no head.
    """
    tokens, lengths = np.asarray(tokens), np.asarray(lengths)
    B, T = tokens.shape
    if lengths.shape != (B,) or (lengths < 1).any() or (lengths > T).any():
        raise ValueError(f"mixed_classify: lengths must be {B} numbers in [1, {T}], got {lengths}")
    for task in dict.fromkeys(tasks):
        t = tuned.get(task)
        if t and t.parts and t.called_model().head is None:
            raise MethodError(f"mixed_classify: the task {task!r} has no classification head; "
                              "attach(model, method, head=n_classes) adds one")
    classes = [None] * B

    def compute(group, rows, seams):
        h = group[0].model.hidden(tokens[rows], **seams)
        last = h[np.arange(len(rows)), lengths[rows] - 1]
        for member in group:
            places = [rows.index(b) for b in member.rows]
            for b, row in zip(member.rows, member.model.head(last[places]).data, strict=True):
                classes[b] = row

    in_turns(compute, "mixed_classify", model, tuned, tokens, tasks, lengths)
    return classes


@dataclass
class Member:
    """A task's rows, the model that its method made, and what it gives that model for them."""
    task: Hashable
    model: Decoder
    rows: list[int]
    seams: dict[str, Any]


def in_turns(compute, verb, model, tuned, tokens, tasks, lengths=None):
    """Call compute(group, rows, seams) for all rows, each time with those that go through a model
    together: rows of one method that changes it, or of several Members with virtual tokens."""
    rows_of = rows_by_task(verb, model, tuned, tokens, tasks)
    groups = defaultdict(list)
    with no_grad():
        for task, rows in rows_of.items():
            if task is None:
                compute([Member(None, model, rows, {})], rows, {})
                continue
            t = tuned[task]
            ends = None if lengths is None else lengths[rows]
            with naming(f"{verb}: task {task!r}", MethodError):
                seams = t.seams(tokens[rows], lengths=ends)
                member = Member(task, t.called_model(), rows, seams)
                is_shared = (t.virtual and not (t.wrappers or t.trained)
                             and are_twins(t.frozen, model))
                if is_shared and "hook" not in seams:
                    groups[t.training, virtual_lengths(seams)].append(member)
                else:
                    compute([member], rows, seams)
        for group in groups.values():
            rows = [b for member in group for b in member.rows]
            sharing = ", ".join(repr(member.task) for member in group)
            with naming(f"{verb}: task {sharing}", MethodError):
                compute(group, rows, row_by_row(group))


def virtual_lengths(seams):
    """Count the virtual tokens that enter by each seam: by the prefix, by the prompt."""
    prefix = seams["prefix"][0][0].shape[-2] if "prefix" in seams else 0
    prompt = seams["prompt"].shape[-2] if "prompt" in seams else 0
    return prefix, prompt


def rows_by_task(verb, model, tuned, tokens, tasks):
    """Check the arguments, and list the rows of each task: task → rows."""
    tuned_models = all(isinstance(t, PeftModel) for t in tuned.values())
    if not isinstance(model, Decoder) or not tuned_models:
        raise TypeError(f"{verb}: expected a language model and a dict task → PeftModel")
    tasks = list(tasks)
    if len(tasks) != len(tokens):
        raise ValueError(f"{verb}: {len(tokens)} rows but {len(tasks)} tasks")
    rows = defaultdict(list)
    for b, task in enumerate(tasks):
        if task is not None and task not in tuned:
            raise ValueError(f"{verb}: row {b} has the task {task!r}; there are "
                             f"{', '.join(map(repr, tuned))}")
        rows[task].append(b)
    return rows


def row_by_row(group):
    """Join the seams of several tasks for one call: each vector repeated for its task's rows."""
    first, joined = group[0].seams, {}
    if "prefix" in first:
        layers = zip(*(member.seams["prefix"] for member in group), strict=True)
        joined["prefix"] = [tuple(Tensor(repeated(group, [t.data for t in tensors], 3))
                                  for tensors in zip(*layer, strict=True)) for layer in layers]
    if "prompt" in first:
        in_front = np.arange(first["prompt"].shape[-2])
        prompts = [member.seams["prompt"].data for member in group]
        places = [np.asarray(member.seams.get("prompt_at", in_front)) for member in group]
        joined["prompt"] = Tensor(repeated(group, prompts, 2))
        joined["prompt_at"] = repeated(group, places, 1)
    return joined


def repeated(group, arrays, ndim):
    """Repeat each member's array, of `ndim` axes or with one for rows, for its rows; join all."""
    return np.concatenate([
        np.broadcast_to(array, (len(member.rows), *array.shape[-ndim:]))
        for member, array in zip(group, arrays, strict=True)])
