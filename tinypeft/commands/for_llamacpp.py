"""export --to gguf and gguf-lora: a model, or an adapter alone, as a file of llama.cpp."""
from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.progress import Progress
from .arguments import base_option
from .finished import Finished, shown
from .results import new_folder

if TYPE_CHECKING:
    from ..models.decoder import Decoder

__all__ = ["export_gguf", "export_gguf_lora", "gguf_types"]


def gguf_types() -> list[str]:
    """Return the types that --type takes."""
    from ..interop.gguf import NUMBER_TYPES
    from ..quant.gguf import BITS, LAYOUTS, MIXTURES
    return [*NUMBER_TYPES, *LAYOUTS, *BITS, *MIXTURES]


def written(args: Namespace, job: Finished, name: str, write: Callable[[Path], None]) -> Path:
    """Write a file, alone or under a name in a folder with its card; return its path."""
    with Progress(None, "writing"):
        if args.out.suffix == ".gguf":
            write(args.out)
            return args.out
        with new_folder(args.out) as folder:
            write(folder / name)
            job.finish(folder)
    return args.out / name


def export_gguf(args: Namespace) -> None:
    """Write a model as a file of llama.cpp, alone or in a folder with its card."""
    from ..interop.card import temperature_option
    from ..interop.gguf import NUMBER_TYPES, write_gguf
    from ..interop.loading import GGUF_FILE
    from ..quant import GGUF, dequantize, quantize
    kind = args.type
    job = Finished(args, "gguf", None if kind == "F32" else kind)
    if job.model.head is not None:
        raise ValueError("export --to gguf: llama.cpp has no place for a classifier; "
                         "`export --to hf` has one")
    model = dequantize(job.model, args.activations)
    note = about_codes(args, job.model, model)
    numbers = kind if kind in NUMBER_TYPES else None
    if kind and not numbers:
        model = quantize(model, GGUF(kind, embeddings=True))
    record = job.record
    record |= {"type": kind, "note": note}
    path = written(args, job, GGUF_FILE, lambda path: write_gguf(path, model, numbers))
    record["bytes"] = path.stat().st_size
    record["bits for each weight"] = round(8 * record["bytes"] / model.n_parameters(), 2)
    use = f'generate "…" --model {args.out}'
    if path is args.out and getattr(job.task, "chat", None):     # a file alone has no task.json
        use += " --chat --temperature 0"
    shown(args, record, f"saved in {path}, {record['bytes'] / 1e6:,.0f} MB, "
                        f"{record['bits for each weight']:.1f} bits for each weight\n"
                        f"{note}{chr(10) if note else ''}"
                        f"next: python -m tinypeft {use}, or llama-cli -m {path}"
                        f"{temperature_option(job.task)}")


def about_codes(args: Namespace, before: Decoder, model: Decoder) -> str:
    """Say what becomes of the codes that the weights of `before` are, or were in its GGUF file. If
    no type is asked for, put those that still hold into `model`, the same in plain weights."""
    from ..interop.gguf import NUMBER_TYPES, keep_codes
    from ..interop.loading import load_model
    from ..quant.model import coded_layers
    types = before.origin.types.values() if before.origin else ()
    is_coded = coded_layers(before)
    if args.type == "F32" or not (is_coded or set(types) - set(NUMBER_TYPES)):
        return ""
    if args.type:
        return (f"the weights were codes already, and --type {args.type} rounded them once more: "
                "without --type, what no adapter changed keeps its codes")
    kept, others = keep_codes(model, before if is_coded else load_model(args.model, quantized=True))
    return f"{kept} matrices have the codes that they had, {others} are numbers"


def export_gguf_lora(args: Namespace) -> None:
    """Write an adapter as a file that llama.cpp takes beside that of the base."""
    from ..interop.card import temperature_option
    from ..interop.gguf_adapter import ADAPTER_FILE, write_gguf_adapter
    job = Finished(args, "gguf-lora", merges=False)
    path = written(args, job, ADAPTER_FILE, lambda path: write_gguf_adapter(path, job.model))
    shown(args, job.record, f"saved in {path}\nnext: llama-cli -m BASE.gguf --lora {path}"
                            f"{temperature_option(job.task)}, where BASE.gguf is the base's file, "
                            f"or what `export --to gguf{base_option(args)} --out BASE.gguf` writes")
