"""The command merge: an adapter merged into its base, as a folder of Hugging Face."""
from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from ..common.progress import Progress
from .arguments import adapter_option, output
from .finished import FinishedModel, activations_option, check_head, next_command, plain, shown
from .results import check_new, new_folder

__all__ = ["add_commands", "write_model"]


def add_commands(command: Callable) -> None:
    """Add the command; see `cli.parser`."""
    p = command("merge", run_merge, "merge an adapter into its base: a folder of Hugging Face that "
                "--model takes", takes=("model", "json"))
    adapter_option(p, required=True)
    activations_option(p)
    output(p, "the model", required=True)


def run_merge(args: Namespace) -> None:
    """Write the merged model as a folder of Hugging Face."""
    check_new(args)
    write_model(args)


def write_model(args: Namespace) -> None:
    """Write a model, with --adapter merged into it, to a folder of Hugging Face."""
    from ..interop.loading import save_model
    job = FinishedModel(args, "hf")
    check_head(job.model)
    model = plain(job.model, args.activations)
    record = {"base": str(args.model or "shipped"), "method": job.method, "saved": str(args.out)}
    with new_folder(args.out) as folder, Progress(None, "writing"):
        save_model(model, folder)
        job.finish(folder, record)
    what = f"merged {job.method}" if job.method else "wrote the model"
    shown(args, record, f"{what}; saved in {args.out}\nnext: python -m tinypeft "
                        f"{next_command(job.task)} --model {args.out}")
