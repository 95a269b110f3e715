"""How much a run of `finetune` reads: its steps, their rows, the rows of a batch in a test."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..common.wording import counted

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..peft import PeftModel
    from ..text.tasks import Task

__all__ = ["default_size", "passes_over", "rows_in_test", "search_steps"]

LARGE = 256                  # width: a step of a wider model takes seconds on two cores


def is_large(model: Decoder | PeftModel) -> bool:
    """Tell if a step takes seconds."""
    return model.config.d_model > LARGE


def default_size(model: Decoder | PeftModel, task: Task) -> tuple[int, int]:
    """Return steps, and rows a step, where the command line leaves them open.

    A large model that writes learns the form of a text in 30 steps of 2 rows: on SmolLM2, more rows
    a step cost more seconds than they gain."""
    if hasattr(task, "classes"):
        return 300, 16
    return (30, 2) if is_large(model) else (300, 8)


def search_steps(model: Decoder | PeftModel) -> int:
    """Return the steps of --find-rate. Each also measures 16 rows."""
    return 30 if is_large(model) else 60


def rows_in_test(model: Decoder | PeftModel, task: Task) -> int:
    """Return the rows of a batch in a test. The logits of 16 windows are 0.4 GB for the vocabulary
    of SmolLM2, and each worker holds some of them at a time."""
    return 4 if is_large(model) and not hasattr(task, "classes") else 16


def passes_over(task: Task, steps: int, rows: int, says_more: bool = True) -> str:
    """Return how often training sees its rows, such as "30 steps of 2 rows: 0.2 passes over 279
    rows", and which --steps would read everything, if these do not. The rows of a text are windows.
    """
    step = counted(rows, "row")
    if hasattr(task, "streams"):
        step = f"{counted(rows, 'window')} of {task.context} tokens"
    whole = len(task.data("train"))
    passes = steps * size_of_step(task, rows) / whole
    shown = f"{passes:.1f}" if passes >= 0.1 else f"{passes:.1g}"
    once = math.ceil(whole / size_of_step(task, rows))
    more = f"; --steps {once} would read every {noun_of(task)} once, --steps {2 * once} twice"
    return (f"{counted(steps, 'step')} of {step}: {shown} passes over "
            f"{counted(whole, noun_of(task))}{more * (says_more and steps < once)}")


def size_of_step(task: Task, rows: int) -> int:
    """Return how many rows a step reads, or tokens of a text."""
    return rows * task.context if hasattr(task, "streams") else rows


def noun_of(task: Task) -> str:
    """Return the word for what `size_of_step` counts."""
    return "token" if hasattr(task, "streams") else "row"
