"""The command quantize: round a model, measure what that costs, and save it."""
from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..common.progress import Progress
from .arguments import adapter_option, build, fields, output
from .data import BUILT_IN, OWN, built_in, data_options, kind_of, own_task, show_data
from .finished import Finished, activations_option, next_command, shown
from .results import check_new, new_folder
from .training import calibration_of

if TYPE_CHECKING:
    from ..common.hints import Calibration
    from ..models.decoder import Decoder
    from ..text.tasks import Task

__all__ = ["add_commands"]


def add_commands(command: Callable) -> None:
    """Add the command; see `cli.parser`."""
    command("quantize", run_quantize, "quantize with one scheme, measure the cost, and save it",
            options=quantize_options)


def quantize_options(p: ArgumentParser) -> None:
    from ..quant import SCHEMES
    p.add_argument("scheme", metavar="SCHEME", help=f"one of {', '.join(SCHEMES)}")
    fields(p, "hyperparameters, such as bits=4")
    adapter_option(p)
    activations_option(p)
    data_options(p, "Matplotlib's documentation")
    output(p, "the quantized model, which --model then takes (default: it is not saved)")


def run_quantize(args: Namespace) -> None:
    """Quantize a model, with --adapter merged into it; measure what that costs, and save it."""
    from ..interop.loading import QUANTIZED
    from ..quant import SCHEMES, dequantize, save_quantized
    from ..study.cost import described, quantized_at_cost
    scheme = build("scheme", SCHEMES, args.scheme, args.set)
    own = kind_of(args)
    if args.out:
        check_new(args)
    job = Finished(args, "quantized", args.scheme)
    model = dequantize(job.model, args.activations)
    if model.head is None and (own == "labelled" or args.task == "classify"):
        raise ValueError("quantize: this model has no classes; --adapter FOLDER of a classifier "
                         "gives it some")
    task = task_to_measure(args, model, own, job.task)
    if own:
        show_data(args, task)
    calibration, rows = calibration_in(task, args.seed), 32 if args.quick else 128
    result, cost = quantized_at_cost(model, scheme, task, calibration, rows, args.seed)
    job.record |= cost
    text = described(cost)
    job.card += f"\n## Quantized\n\n```text\n{text}\n```\n"
    if args.out:
        with new_folder(args.out) as folder, Progress(None, "writing"):
            save_quantized(result, folder / QUANTIZED)
            job.finish(folder)
        text += (f"\nsaved in {args.out}\nnext: python -m tinypeft {next_command(job.task)} "
                 f"--model {args.out}")
    shown(args, job.record, text)


def task_to_measure(args: Namespace, model: Decoder, own: str | None,
                    learned: Task | None) -> Task:
    """Return the task that the cost is measured on: one's own data, split as the adapter's were, or
    --task, or the task of the package that the adapter learned, or the text of *domain*."""
    from ..text import tasks
    form = learned.form if learned else {}
    if own and form.get("kind") not in (None, own) and "held_out" in form:
        raise ValueError(f"the adapter was trained on {OWN[form['kind']]}, not on {OWN[own]}")
    if own:
        options = {name: form[name] for name in ("held_out", "seed") if name in form}
        if options.get("held_out", [0, 1])[1] == 0:      # a probe holds out nothing
            options = {}
        return own_task(args, model, own, form, **options)
    if args.task or learned and learned.name in BUILT_IN and "held_out" not in form:
        return built_in(args.task or learned.name, model)
    return tasks.domain(model, context=min(128, model.config.context_length))


def calibration_in(task: Task, seed: int) -> Calibration:
    """Return tokens of the training rows: of a text 16 windows, of rows each alone, since padding
    is no text."""
    import numpy as np
    if hasattr(task, "streams"):
        return task.batch("train", 16, np.random.default_rng(seed))[0]
    return calibration_of(task)
