"""The command export: a model or an adapter for other programs."""
from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from .arguments import adapter_option, model_of, output
from .finished import activations_option, save_adapter, shown
from .for_llamacpp import export_gguf, export_gguf_lora, gguf_types
from .for_pytorch import check_no_training, export_run
from .merging import write_model
from .results import check_new
from .training import training_options

if TYPE_CHECKING:
    from ..peft import PeftModel

__all__ = ["add_commands"]

OF_MODEL = {"hf": write_model, "gguf": export_gguf, "training": export_run}


def add_commands(command: Callable) -> None:
    """Add the command; see `cli.parser`."""
    command("export", run_export_to, "write a model or an adapter for other programs",
            options=export_options)


def export_options(p: ArgumentParser) -> None:
    training_options(p.add_argument_group("for --to training"), optional=True)
    adapter_option(p)
    p.add_argument("--to", required=True, choices=[*OF_MODEL, *OF_ADAPTER],
                   help="hf: a folder of Hugging Face; gguf: a file for llama.cpp; gguf-lora: a "
                        "LoRA for llama.cpp; peft: an adapter for PEFT; training: a run that goes "
                        "on in PyTorch, of METHOD or of the adapter, on your data")
    p.add_argument("--type", choices=gguf_types(), metavar="TYPE",
                   help="of gguf: how weights are stored; Q8_0 and Q4_K_M are common (default: "
                        "codes that no adapter changed stay, all else is F32)")
    activations_option(p)
    output(p, "the result; for gguf and gguf-lora also the name of a file that ends in .gguf",
           required=True)


def export_peft(args: Namespace, tuned: PeftModel, record: dict) -> None:
    """Write an adapter in PEFT's format."""
    save_adapter(args, tuned, "peft", record)
    shown(args, record, f"saved in {args.out}; peft.PeftModel.from_pretrained(model, "
                        f"{str(args.out)!r}) loads it")


OF_ADAPTER = {"gguf-lora": export_gguf_lora, "peft": export_peft}


def run_export_to(args: Namespace) -> None:
    """Check that the options belong to what --to names, and do it."""
    from ..peft import load_adapter
    if args.to != "training":
        check_no_training(args)
    if args.type and args.to != "gguf":
        raise ValueError("--type needs --to gguf")
    check_new(args)
    if args.to in OF_MODEL:
        return OF_MODEL[args.to](args)
    if not args.adapter:
        raise ValueError(f"export --to {args.to} needs --adapter FOLDER")
    tuned = load_adapter(model_of(args), args.adapter)
    record = {"base": str(args.model or "shipped"), "method": str(tuned.method),
              "saved": str(args.out)}
    return OF_ADAPTER[args.to](args, tuned, record)
