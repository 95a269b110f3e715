"""export --to training: a run of finetune as a folder that goes on in PyTorch, on several GPUs."""
from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..common.progress import Progress
from .arguments import leave_out, loaded, model_of
from .data import task_of
from .finished import shown
from .probing import PROBE
from .results import new_folder, write_run
from .training import (
    attached,
    methods_of,
    model_line,
    set_rates,
    shared_options,
    training_options,
)

if TYPE_CHECKING:
    from ..peft import PeftModel
    from ..text.tasks import Task

__all__ = ["check_no_training", "export_run"]


def check_no_training(args: Namespace) -> None:
    """Raise ValueError if METHOD or an option was given that only a training has."""
    parser = ArgumentParser()
    training_options(parser, optional=True)
    names = *vars(parser.parse_args([])), "quick", "seed"
    leave_out(args, names, f"export --to {args.to} does not train")


def export_run(args: Namespace) -> None:
    """Write the folder of a run of METHOD, or of an adapter that goes on; say how to run it."""
    from ..interop.export import export_training
    if bool(args.method) == bool(args.adapter):
        raise ValueError("export --to training: give METHOD, such as lora, or --adapter FOLDER")
    if args.method:
        tuned, task = new_run(args)
    else:                                                # one's own data in the adapter's form
        model, tuned = loaded(args)
        task = task_of(args, model, tuned.task.form if tuned.task else None)
    steps, options = shared_options(args, tuned, task)
    set_rates(args, task, options)
    record = {"method": str(tuned.method), "task": task.name, "steps": steps,
              "saved": str(args.out)}
    with new_folder(args.out) as folder, Progress(None, "writing"):
        export_training(tuned, task, folder, steps, lr=args.lr, checkpoint=args.checkpoint,
                        **options)
        write_run(args, folder, record)
    shown(args, record, f"saved in {args.out}; `accelerate launch {args.out / 'train.py'}` runs it "
                        "where torch, transformers, peft and accelerate are installed")


def new_run(args: Namespace) -> tuple[PeftModel, Task]:
    """Return METHOD on the model, and its task."""
    if args.method == PROBE:
        raise ValueError("export --to training: probe is solved and not trained, so nothing is "
                         "left to do in PyTorch; finetune probe solves it")
    methods_of(args)                                     # its errors come before the reading
    line = model_line(args)
    model = model_of(args)
    task = task_of(args, model)
    if line and not args.json:
        print(line, flush=True)
    return attached(args, model, task, head_bias=False), task
