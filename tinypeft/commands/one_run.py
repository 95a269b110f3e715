"""One run of finetune: train, save, test.

Of one's own rows with labels, the head starts at the probe, and training is kept only if it lowers
the probe's validation loss, as on few rows it may not. Otherwise the probe is what is saved.
"""
from __future__ import annotations

import math
import operator
import shlex
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.progress import Progress
from ..common.signals import HeldSignals
from .data import OWN, data_facts, kind_of
from .results import kept, noted
from .saving import describe, save, save_first
from .scores import interval_of, n_measured
from .sizes import rows_in_test
from .training import starts_at_probe

if TYPE_CHECKING:
    from ..peft import PeftModel
    from ..text.tasks import Task
    from ..training.history import History

__all__ = ["finetuned", "measuring"]


def finetuned(args: Namespace, tuned: PeftModel, task: Task, steps: int,
              options: dict) -> tuple[PeftModel, dict]:
    """Train, save and test; return what was kept, and the record of it. options: of `train`."""
    from ..training.diagnosis import DivergedError
    from ..training.evaluation import evaluate
    from ..training.loop import train
    folder, before, baselines, most = None, None, {}, 2 if args.quick else None
    replaced, validation = False, None
    unsaved = f"nothing was saved in {args.out}" if args.out else "nothing was saved"
    with (noted(KeyboardInterrupt, lambda: f"stopped; {kept(args.checkpoint, folder)}"),
          noted(DivergedError, lambda: unsaved)):
        if hasattr(task, "classes"):
            base = "the frozen model with a head of zeros"       # all classes are equally likely
            frozen = {"loss": math.log(len(task.classes))}
        else:
            with tuned.disabled():
                before = evaluate(tuned, task, "test", rows_in_test(tuned, task), most,
                                  label="testing the frozen model")
            base, frozen = "the frozen model", before
        if starts_at_probe(args):
            probe_loss, on_test = measured_probe(tuned, task, most, not args.no_cache)
            baselines = {"the probe": on_test}
        history = train(tuned, task, steps, **options)
        if starts_at_probe(args):
            tuned, validation = choose_better(tuned, task, probe_loss, history,
                                              not args.no_cache)
            if validation["keeps_probe"]:                # it is no baseline of itself
                baselines = {}
        if args.out:
            with HeldSignals(): folder = save_first(args, tuned, task, history)
    with noted(BaseException, lambda: stopped_in_test(args, folder)):
        try:
            after = evaluate(tuned, task, "test", rows_in_test(tuned, task), most, label="testing")
        except OverflowError:                            # of a perplexity beyond all floats
            after = {"loss": math.inf}
        if kind_of(args) and not args.quick:
            with Progress(None, "measuring the baselines"):
                baselines |= baselines_of(task)
        worse = worse_than(after, {base: frozen} | baselines)
        if folder != args.out and base not in worse:
            with HeldSignals():
                save(args, tuned, task, args.out, history)
                shutil.rmtree(folder)
                folder, replaced = args.out, True
        n = n_measured(task, args.quick)
        record = {
            "method": str(tuned.method), "task": task.name, "data": data_facts(task),
            "steps": len(history.loss), "seconds": round(history.seconds, 1),
            "trained": tuned.summary().trained, "rows": n, "interval": interval_of(after, n),
            "before": before, "after": after, "baselines": baselines or None, "worse_than": worse,
            "best": history.best and history.best[0], "validation": validation,
            "resumed": history.resumed, "replaced": replaced,
            "saved": folder and str(folder)}
        if folder:
            describe(args, folder, tuned, task, record, history)
    return tuned, record


def stopped_in_test(args: Namespace, folder: Path | None) -> str:
    """Return what a stop in the test leaves, and the command that measures it."""
    text = f"stopped in the test; {kept(args.checkpoint, folder)}"
    return f"{text}; to measure it: {measuring(args, folder)}" if folder else text


def measuring(args: Namespace, folder: Path | str) -> str:
    """Return the command that measures the adapter in a folder on the data of the run."""
    own = kind_of(args)
    files = vars(args)[OWN[own][2:]] if own else []
    paths = files if isinstance(files, list) else [files]
    words = [*([OWN[own], *paths] if own else []), *(["--skip-empty"] if args.skip_empty else []),
             *(["--model", args.model] if args.model else []), "--adapter", folder]
    return f"python -m tinypeft evaluate {shlex.join(map(str, words))}"


def measured_probe(tuned: PeftModel, task: Task, most: int | None,
                   cache: bool) -> tuple[float, dict]:
    """Return the probe's validation loss, and its metrics on the rows of the test that training is
    measured on, `most` batches at most. Virtual tokens change what a head reads, so that their
    start is not the probe; then it is solved beside them."""
    from ..peft.probe import fit_probe
    from ..training.evaluation import evaluate
    probe = tuned
    if tuned.virtual is not None:
        head_bias = tuned.head.bias is not None
        probe = fit_probe(tuned.detach(), task, splits=("train",), head_bias=head_bias,
                          cache=cache)
    loss = evaluate(probe, task, "validation", label="validating the probe")["loss"]
    on_test = evaluate(probe, task, "test", rows_in_test(probe, task), most,
                       label="testing the probe")
    return loss, on_test


def choose_better(tuned: PeftModel, task: Task, probe_loss: float, history: History,
                  cache: bool) -> tuple[PeftModel, dict]:
    """Return the trained model or the probe, whose validation loss is lower, and these losses. The
    probe is solved again: it may learn from the validation rows now."""
    from ..peft.probe import fit_probe
    trained_loss = history.best[1]["loss"] if history.best else math.inf
    keeps_probe = not trained_loss < probe_loss
    if keeps_probe:
        head_bias = tuned.head.bias is not None
        tuned = fit_probe(tuned.detach(), task, head_bias=head_bias, cache=cache)
    return tuned, {"rows": len(task.data("validation")), "probe": probe_loss,
                   "trained": trained_loss, "keeps_probe": keeps_probe}


def baselines_of(task: Task) -> dict:
    """Measure the task's baselines; of classes also a bag of letters, as of a probe."""
    from ..text.tasks.bags import bag_of_words, letters
    if not hasattr(task, "classes"): return task.baselines
    bag = bag_of_words(task.rows, len(task.classes), letters)
    return task.baselines | {"bag of letters": bag}


def worse_than(after: dict, others: dict[str, dict]) -> dict[str, dict]:
    """name → its loss or accuracy, where `after` does not reach it; a loss of NaN reaches none."""
    reaches = {"loss": operator.le, "accuracy": operator.ge}
    worse = {}
    for name, metrics in others.items():
        missed = {metric: x for metric, x in metrics.items()
                  if metric in reaches and not reaches[metric](after[metric], x)}
        if missed: worse[name] = missed
    return worse
