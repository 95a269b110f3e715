"""The commands merge and export: a model, or an adapter alone, for transformers and others."""
from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from ..common.progress import Progress
from .arguments import adapter_option, output
from .finished import (
    Finished,
    activations_option,
    check_head,
    next_command,
    save_adapter,
    shown,
)
from .for_llamacpp import export_gguf, export_gguf_lora, gguf_types
from .for_pytorch import check_no_training, export_run
from .results import check_new, new_folder
from .training import training_options

__all__ = ["add_commands"]

OF_ADAPTER = "gguf-lora", "peft"


def add_commands(command: Callable) -> None:
    """Add the commands; see `cli.parser`."""
    p = command("merge", run_merge, "merge an adapter into its base: a folder of Hugging Face that "
                "--model takes", takes=("model", "json"))
    adapter_option(p, required=True)
    activations_option(p)
    output(p, "the model", required=True)
    command("export", run_export, "write a model or an adapter for other programs",
            options=export_options)


def export_options(p: ArgumentParser) -> None:
    training_options(p.add_argument_group("for --to training"), optional=True)
    adapter_option(p)
    p.add_argument("--to", required=True, choices=EXPORTS,
                   help="hf: a folder of Hugging Face; gguf: a file for llama.cpp; gguf-lora: a "
                        "LoRA for llama.cpp; peft: an adapter for PEFT; training: a run that goes "
                        "on in PyTorch, of METHOD or of the adapter, on your data")
    p.add_argument("--type", choices=gguf_types(), metavar="TYPE",
                   help="of gguf: how weights are stored; Q8_0 and Q4_K_M are common (default: "
                        "codes that no adapter changed stay, all else is F32)")
    activations_option(p)
    output(p, "the result; for gguf and gguf-lora also the name of a file that ends in .gguf",
           required=True)


def run_merge(args: Namespace) -> None:
    """Write the merged model as a folder of Hugging Face."""
    check_new(args)
    export_model(args)


def run_export(args: Namespace) -> None:
    """Check that the options belong to what --to names, and write that."""
    if args.to != "training":
        check_no_training(args)
    if args.type and args.to != "gguf":
        raise ValueError("--type needs --to gguf")
    check_new(args)
    if args.to in OF_ADAPTER and not args.adapter:
        raise ValueError(f"export --to {args.to} needs --adapter FOLDER")
    EXPORTS[args.to](args)


def export_model(args: Namespace) -> None:
    """Write a model, with --adapter merged into it, to a folder of Hugging Face."""
    from ..interop.loading import save_model
    from ..quant import dequantize
    job = Finished(args, "hf")
    check_head(job.model)
    model = dequantize(job.model, args.activations)
    with new_folder(args.out) as folder, Progress(None, "writing"):
        save_model(model, folder)
        job.finish(folder)
    what = f"merged {job.method}" if job.method else "wrote the model"
    shown(args, job.record, f"{what}; saved in {args.out}\nnext: python -m tinypeft "
                            f"{next_command(job.task)} --model {args.out}")


def export_adapter(args: Namespace) -> None:
    """Write an adapter in PEFT's format."""
    job = Finished(args, "peft", merges=False)
    save_adapter(args, job.model, "peft", job.card, job.record)
    shown(args, job.record, f"saved in {args.out}; peft.PeftModel.from_pretrained(model, "
                            f"{str(args.out)!r}) loads it")


EXPORTS = {"hf": export_model, "gguf": export_gguf, "training": export_run,
           "gguf-lora": export_gguf_lora, "peft": export_adapter}
