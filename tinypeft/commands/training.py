"""What a training is made of on the command line: its method, its steps and its rates."""
from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.progress import Progress
from .arguments import build, chosen_model, fields, known, named_model, number
from .data import data_options, kind_of
from .sizes import default_size

if TYPE_CHECKING:
    from ..common.hints import Array
    from ..models.decoder import Decoder
    from ..peft import Method, PeftModel
    from ..text.tasks import Task

__all__ = ["attached", "calibration_of", "methods_of", "model_line", "rate_line", "set_rates",
           "shared_options", "starts_at_probe", "training_options"]

PROBE_FACTOR = 0.2           # on each method's own rate where the head starts at the probe
PROBE_HEAD_LR = 1e-3         # of that head
CALIBRATION_ROWS = 64        # of the training data, for a method that starts from data


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


def optimizers() -> dict[str, type]:
    """name → class of the optimizers that the commands offer."""
    from ..engine import optim
    classes = optim.AdamW, optim.SGD, optim.Muon, optim.AdamW8bit, optim.GaLore
    return {cls.__name__.lower(): cls for cls in classes}


def starts_at_probe(args: Namespace) -> bool:
    """Tell if the head starts at the probe: for rows of one's own."""
    return kind_of(args) == "labelled"


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


def model_line(args: Namespace) -> str | None:
    """Say which model learns from one's own data, if that is given. For text and pairs take SmolLM2
    where its wheel is installed: the shipped base, trained, is worse than counting words on most
    texts."""
    own = kind_of(args)
    if own == "labelled":
        return named_model(args)
    return chosen_model(args) if own else None
