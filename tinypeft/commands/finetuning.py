"""One run of `finetune`: train, save, test, and say what came out.

Of one's own rows with labels, the head starts at the probe, and training is kept only if it lowers
the probe's validation loss, as on few rows it may not. Otherwise the probe is what is saved.

The adapter is saved before the test, so that a stop or an error there loses nothing. Where --out
holds an adapter, the new one is saved beside it first, and takes its place only if it tests better
than the frozen model; otherwise both stay. --keep does without this.
"""
from __future__ import annotations

import contextlib
import itertools
import math
import operator
import shlex
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.progress import Progress
from ..common.signals import HeldSignals
from ..common.wording import counted
from .data import OWN, data_facts, kind_of
from .kept import kept, noted
from .results import results_in, write_run
from .scores import interval_of, n_measured
from .sizes import rows_in_test
from .using import compared

if TYPE_CHECKING:
    from ..peft import PeftModel
    from ..text.tasks import Task
    from ..training.history import History

OF_A_RUN = "losses.csv", "curve.svg", "confusions.svg", "run.json"
WRITTEN = "README.md", "config.json", "tokenizer.json", "tokenizer_config.json", *OF_A_RUN

__all__ = ["check_folders", "describe", "finetuned", "refused", "show_finetuned", "starts_at_probe"]


def starts_at_probe(args: Namespace) -> bool:
    """Tell if the head starts at the probe: for rows of one's own."""
    return kind_of(args) == "labelled"


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
            base, frozen = "the frozen model with a head of zeros", chance(task)
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
            "stopped": history.stopped, "resumed": history.resumed, "replaced": replaced,
            "saved": folder and str(folder)}
        if folder:
            describe(args, folder, tuned, task, record, history)
    return tuned, record


def stopped_in_test(args: Namespace, folder: Path | None) -> str:
    """Return what a stop in the test leaves, and the command that measures it."""
    text = f"stopped in the test; {kept(args.checkpoint, folder)}"
    if folder is None:
        return text
    own = kind_of(args)
    files = vars(args)[OWN[own][2:]] if own else []
    paths = files if isinstance(files, list) else [files]
    words = [*(["--model", args.model] if args.model else []), *([OWN[own], *paths] if own else []),
             *(["--skip-empty"] if args.skip_empty else []), "--adapter", folder]
    return f"{text}; to measure it: python -m tinypeft evaluate {shlex.join(map(str, words))}"


# -- the probe that training starts at -------------------------------------------------------------
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
    if probe is not tuned:
        probe.detach()
        tuned.reattach()
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


def chance(task: Task) -> dict:
    """Return the metrics of a head of zeros: all classes are equally likely."""
    return {"loss": math.log(len(task.classes))}


def worse_than(after: dict, others: dict[str, dict]) -> dict[str, dict]:
    """name → its loss or accuracy, where `after` does not reach it; a loss of NaN reaches none."""
    reaches = {"loss": operator.le, "accuracy": operator.ge}
    worse = {}
    for name, metrics in others.items():
        missed = {metric: x for metric, x in metrics.items()
                  if metric in reaches and not reaches[metric](after[metric], x)}
        if missed: worse[name] = missed
    return worse


# -- where the adapter is saved --------------------------------------------------------------------
def holds_adapter(folder: Path) -> bool:
    """Tell if an adapter lies in a folder, in any format."""
    from ..peft.formats import FORMATS
    return any((folder / format.file).exists() for format in FORMATS.values())


def check_folders(args: Namespace) -> None:
    """Raise an error, before any training, if a folder cannot be written to, or if --out holds
    files of another kind that would be replaced."""
    from ..files import check_writable
    for folder in (args.out, args.checkpoint and args.checkpoint.parent):
        if folder: check_writable(folder)
    saves = args.out and not args.find_rate
    if saves and holds_adapter(args.out):
        if not args.keep: check_writable(args.out.parent)
    elif saves and (others := [name for name in WRITTEN if (args.out / name).exists()]):
        raise ValueError(f"--out {args.out} holds {', '.join(others)}, and no adapter; give a "
                         "folder of its own")


def save_first(args: Namespace, tuned: PeftModel, task: Task,
               history: History | None = None) -> Path:
    """Save to --out if no adapter is lost by it, or else to a new folder beside it; say where."""
    from ..text.tasks.saved import FILE
    if args.keep or not holds_adapter(args.out):
        return save(args, tuned, task, args.out, history)
    folder = folder_beside(args.out)
    try:
        return save(args, tuned, task, folder, history)
    except BaseException:
        if not (folder / FILE).exists():                 # the last file of an adapter
            shutil.rmtree(folder)
        raise


def save(args: Namespace, tuned: PeftModel, task: Task, folder: Path,
         history: History | None = None) -> Path:
    """Write the adapter, what prediction needs of the task, the tokenizer, the losses, and a card
    and run.json without results, which come later; return the folder."""
    from ..interop.bpe import write_tokenizer
    from ..interop.card import write_card
    tuned.save(folder, args.format, task)
    with noted(OSError, lambda: f"the adapter is saved in {folder}"):
        for name in OF_A_RUN:                            # an older run may have left them
            (folder / name).unlink(missing_ok=True)
        write_tokenizer(folder, tuned.tokenizer)
        if history:
            history.save(folder)
        write_card(folder, tuned, args.format, task, history)
        write_run(args, folder, {})
    return folder


def describe(args: Namespace, folder: Path, tuned: PeftModel, task: Task, record: dict,
             history: History | None = None) -> None:
    """Write the model card with the results, and run.json."""
    from ..interop.card import write_card
    notes = []
    if "verdict" in record:                              # of a probe, on all rows
        notes = [record["verdict"]]
    elif args.quick:
        notes = ["Tested on two batches only, without baselines: --quick asks for that."]
    write_card(folder, tuned, args.format, task, history, results_in(record), notes)
    write_run(args, folder, record)


def folder_beside(out: Path) -> Path:
    """Make a folder beside another one: judge.new, or judge.new2 if that is there, and so on."""
    for n in itertools.count(1):
        folder = out.parent / f"{out.resolve().name}.new{n if n > 1 else ''}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


# -- what is printed -------------------------------------------------------------------------------
def refused(args: Namespace, record: dict) -> bool:
    """Whether the adapter that --out held stays there."""
    return record["saved"] != (args.out and str(args.out))


def show_finetuned(args: Namespace, tuned: PeftModel, task: Task, record: dict) -> None:
    """Print the record. The last line says if the result is worse than what it is compared with."""
    saved = record["saved"]
    if record["steps"] == record["resumed"]:
        print(f"all steps were taken in {args.checkpoint}")
    print(tuned.summary())
    if record["stopped"]: print(f"stopped early: {record['stopped']}")
    validation = record["validation"]
    keeps_probe = validation and validation["keeps_probe"]
    if record["best"] and not keeps_probe:
        print(f"kept: the state after step {record['best']}, the best on validation"
              + (f": loss {losses(validation)}" if validation else ""))
    steps = counted(record["steps"], "step")
    n_rows = sum(map(len, task.splits.values()))
    of_all = f", {record['rows']} of {counted(n_rows, 'row')}" if record["rows"] else ""
    part = "two batches (--quick) of " if args.quick else ""
    print(f"{task.name}, {steps} in {record['seconds']} s; on {part}the test split{of_all}:")
    print(compared(record["before"], record["after"], record["baselines"], record["rows"]))
    if starts_at_probe(args):
        print(f"`finetune probe` measures all {n_rows} rows, by cross-validation, so its numbers "
              "are not comparable" + (": the probe above is measured on these rows"
                                      if "the probe" in (record["baselines"] or {}) else ""))
    if saved:
        loader = f"tinypeft.load_adapter(model, {saved!r})"
        theirs = f"peft.PeftModel.from_pretrained(model, {saved!r}) loads it, and so does "
        command = "classify" if hasattr(task, "classes") else "generate"
        base = f" --model {args.model}" if args.model else ""
        if record["replaced"]: print(f"it took the place of the adapter that was in {saved}")
        print(f'next: python -m tinypeft {command} "…"{base} --adapter {saved}')
        if kind_of(args) == "pairs":
            skip = " --skip-empty" if args.skip_empty else ""
            print("to count exact answers: python -m tinypeft evaluate --pairs "
                  f"{shlex.quote(str(args.pairs))}{skip}{base} --adapter {saved} --exact")
        print(f"saved in {saved}; "
              + (theirs + loader if args.format == "peft" else f"{loader} loads it"))
    if record["worse_than"]:
        worse = [f"{name} ({beside(record['after'], metrics)})"
                 for name, metrics in record["worse_than"].items()]
        stays = f"; not saved over the adapter in {args.out}: --keep saves it all the same"
        print(f"worse than {' and '.join(worse)}{stays * refused(args, record)}")
    if keeps_probe:
        print(f"kept: the probe, not {args.method}: validation loss {losses(validation)}")


def losses(validation: dict) -> str:
    """Say what training and the probe reach on the validation rows."""
    return (f"{validation['trained']:.4f} after training, {validation['probe']:.4f} of the probe "
            f"({counted(validation['rows'], 'row')})")


def beside(after: dict, metrics: dict) -> str:
    """Return what was measured beside the numbers that it is compared with."""
    return ", ".join(f"{name} {after[name]:.4f} against {x:.4f}" for name, x in metrics.items())
