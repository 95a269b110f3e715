"""What a run of `finetune` will do, said before the long work begins: steps, passes, seconds."""
from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.progress import Progress
from ..common.wording import counted

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..peft import PeftModel
    from ..text.tasks import Task

__all__ = ["default_size", "planned", "rows_in_test", "search_steps"]

LARGE = 256                  # width: a step of a wider model takes seconds on two cores
DRAWN = 50                   # batches whose mean size stands for all
WORKERS = 2                  # of `train` and `evaluate`
SHORT = 0.5                  # seconds


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


def planned(args: Namespace, tuned: PeftModel, task: Task, steps: int,
            options: dict[str, Any]) -> str:
    """Return one line: steps, passes over the rows, and the seconds to expect."""
    training, testing = expected_seconds(args, tuned, task, steps, options)
    tests = f" and {duration(testing)} of tests" if testing else ""
    rows = options["batch_size"]
    text = (f"{passes_over(task, steps, rows)}; about {duration(training)} of "
            f"{'search' if args.find_rate else 'training'}{tests}")
    one = math.ceil(len(task.data("train")) / size_of_step(task, rows))
    if steps < one and not args.find_rate:
        text += f"; --steps {one} would read every {noun_of(task)} once, --steps {2 * one} twice"
    return text


def passes_over(task: Task, steps: int, rows: int) -> str:
    """Return how often training sees its rows, such as "30 steps of 2 rows: 0.2 passes over 279
    rows". The rows of a text are windows."""
    step = counted(rows, "row")
    if hasattr(task, "streams"):
        step = f"{counted(rows, 'window')} of {task.context} tokens"
    whole = len(task.data("train"))
    passes = steps * size_of_step(task, rows) / whole
    shown = f"{passes:.1f}" if passes >= 0.1 else f"{passes:.1g}"
    return (f"{counted(steps, 'step')} of {step}: {shown} passes over "
            f"{counted(whole, noun_of(task))}")


def size_of_step(task: Task, rows: int) -> int:
    """Return how many rows a step reads, or tokens of a text."""
    return rows * task.context if hasattr(task, "streams") else rows


def noun_of(task: Task) -> str:
    """Return the word for what `size_of_step` counts."""
    return "token" if hasattr(task, "streams") else "row"


def duration(seconds: float) -> str:
    """Return seconds, or minutes if they are many, in words."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} minutes"


def expected_seconds(args: Namespace, tuned: PeftModel, task: Task, steps: int,
                     options: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of training, validation on the way included, and those of the tests.

    A step, and a batch of the test for each worker, are measured; nothing is learned from the step.
    The rest is in proportion to the tokens, padding included. --find-rate validates a batch after
    each step and does not test."""
    from ..training.evaluation import batches_of, evaluate
    rows, seed, test_rows = options["batch_size"], options["seed"], rows_in_test(tuned, task)
    drawn = [task.batch("train", rows, np.random.default_rng([seed, s]))
             for s in range(min(steps, DRAWN))]
    tokens = lambda batches: sum(batch[0].size for batch in batches)
    split_tokens = lambda split, most: tokens(batches_of(task, split, test_rows, most))
    validate = lambda: evaluate(tuned, task, "validation", max_batches=1)
    test = lambda: evaluate(tuned, task, "test", test_rows, WORKERS)

    with Progress(None, "measuring a step"):
        step_seconds = seconds_of(lambda: differentiate(tuned, task, drawn[0], options))
        training = step_seconds * steps * tokens(drawn) / len(drawn) / drawn[0][0].size
        if args.find_rate:
            return training + seconds_of(validate) * steps, 0.0
        of_token = seconds_of(test) / split_tokens("test", WORKERS)
    testing = 2 * of_token * split_tokens("test", 2 if args.quick else None)
    if options.get("eval_every"):
        n_validations = math.ceil(steps / options["eval_every"])
        training += of_token * n_validations * split_tokens("validation", None)
    return training, testing


def differentiate(tuned: PeftModel, task: Task, batch: tuple, options: dict[str, Any]) -> None:
    """Compute the gradients of a step, and drop them."""
    from ..engine.recompute import recomputing
    from ..training.backward import backward
    with recomputing(options["checkpoint_activations"]):
        backward(tuned, task, batch, WORKERS, options["accumulate"])
    for p in tuned.trainable_parameters():
        p.grad = None


def seconds_of(job: Callable[[], Any]) -> float:
    """Return what a call of `job` takes. A short one is called again: the first call of all is
    slower than those that follow."""
    for _ in range(2):
        start = time.perf_counter()
        job()
        seconds = time.perf_counter() - start
        if seconds > SHORT:
            break
    return seconds
