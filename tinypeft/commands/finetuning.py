"""The command finetune: train one method, or several, on a task or on one's own data."""
from __future__ import annotations

import functools
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.wording import counted
from .arguments import base_option, leave_out, model_of, number, output, show_json
from .data import kind_of, show_data, task_of
from .finished import next_command
from .one_run import finetuned, measuring
from .probing import PROBE, run_probe
from .saving import check_folders, refused
from .scores import compared
from .sizes import passes_over, search_steps
from .training import (
    attached,
    methods_of,
    model_line,
    rate_line,
    set_rates,
    shared_options,
    starts_at_probe,
    training_options,
)

if TYPE_CHECKING:
    from ..peft import PeftModel
    from ..text.tasks import Task
    from ..training.history import Step

__all__ = ["add_commands"]


def add_commands(command: Callable) -> None:
    """Add the command; see `cli.parser`."""
    command("finetune", run_finetune, "fine-tune with one method, or several, and save the adapter",
            options=finetune_options)


def finetune_options(p: ArgumentParser) -> None:
    from ..peft.formats import FORMATS
    training_options(p)
    p.add_argument("--find-rate", action="store_true",
                   help="do not train: measure which rate suits the method and the task, and draw "
                        "the loss over the rate into rates.svg in the folder")
    p.add_argument("--validate-every", type=number(int, least=1), metavar="N",
                   help="measure the validation loss every N steps, and end with the best state "
                        "(default: not; with --csv twice)")
    p.add_argument("--dry-run", action="store_true",
                   help="say what the data are and what in them needs a look, and stop there")
    p.add_argument("--no-cache", action="store_true",
                   help="of a probe: read all rows again. By default, rows that the model has read "
                        "before come from the user's cache, which `doctor` names")
    output(p, "the adapter (default: it is not saved). One in it is replaced if the new one "
              "tests better than the frozen model; otherwise the new one is saved beside it")
    p.add_argument("--keep", action="store_true",
                   help="save over an adapter in the folder even if the new one has a higher test "
                        "loss than the frozen model (for classes: with a head of zeros)")
    p.add_argument("--format", default="tinypeft", choices=FORMATS, help="the adapter's format")


def run_finetune(args: Namespace) -> int | None:
    from ..peft.formats import FORMATS
    from ..training.finder import find_rate
    if args.method == PROBE:
        return run_probe(args)
    if args.find_rate:
        leave_out(args, ("lr", "checkpoint", "validate_every", "keep"),
                  "--find-rate does not train")
    if args.keep and not args.out:
        raise ValueError("--keep needs --out FOLDER")
    own = kind_of(args)                                  # errors in these two come before the
    methods_of(args)                                     # reading
    say = (lambda *text: None) if args.json else functools.partial(print, flush=True)
    line = model_line(args)
    model = model_of(args)
    check_folders(args)
    task = task_of(args, model)
    if line:
        say(line)
    if (own or args.dry_run) and show_data(args, task):
        return None
    tuned = attached(args, model, task, head_bias=args.format != "peft")
    FORMATS[args.format].functions().check(tuned)
    steps, options = shared_options(args, tuned, task)
    if args.find_rate and not args.steps and not args.quick:
        steps = search_steps(tuned)
    if own:
        say(passes_over(task, steps, options["batch_size"], says_more=not args.find_rate))
    if args.find_rate:
        return show_rates(find_rate(tuned, task, steps=steps, **options), args)
    set_rates(args, task, options)
    options |= {"lr": args.lr, "checkpoint": args.checkpoint, "eval_every": args.validate_every,
                "keep_best": args.validate_every is not None}
    if starts_at_probe(args):
        options |= {"keep_best": True, "eval_every": args.validate_every or math.ceil(steps / 2)}
    say(rate_line(args, tuned, options))
    if args.checkpoint:
        options["callbacks"] = [resumption_from(args.checkpoint, say)]
    tuned, record = finetuned(args, tuned, task, steps, options)
    if args.json:
        show_json(record)
    else:
        show_finetuned(args, tuned, task, record)
    return int(refused(args, record))


def resumption_from(checkpoint: Path, say: Callable) -> Callable[[Step], None]:
    """Return a callback of `train` that says, after the first new step, where a run goes on."""
    def show(step):
        done = step.history.resumed
        if done and step.step == done + 1:
            say(f"going on from {checkpoint}, after step {done:,} of {step.total:,}")
    return show


def show_rates(found: Any, args: Namespace) -> None:
    """Print a `RateSearch`, and draw it."""
    from ..files import write_atomically
    picture = args.out and args.out / "rates.svg"
    if args.json:
        show_json({"suggestion": found.suggestion, "largest": found.largest,
                   "rates": found.rates.tolist(), "losses": found.losses.tolist(),
                   "picture": picture and str(picture)})
    else:
        print(found)
    if picture: write_atomically(picture, found.svg())
    if args.json: return
    print(f"next: the same command with --lr {found.suggestion:.2g} instead of --find-rate"
          + (f"; the curve is in {picture}" if picture else ""))


def show_finetuned(args: Namespace, tuned: PeftModel, task: Task, record: dict) -> None:
    """Print the record. The last line says if the result is worse than what it is compared with."""
    saved = record["saved"]
    if record["steps"] == record["resumed"]:
        print(f"all steps were taken in {args.checkpoint}")
    print(tuned.summary())
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
        if record["replaced"]: print(f"it took the place of the adapter that was in {saved}")
        print(f"next: python -m tinypeft {next_command(task)}{base_option(args)} --adapter {saved}")
        if kind_of(args) == "pairs":
            print(f"to count exact answers: {measuring(args, saved)} --exact")
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
