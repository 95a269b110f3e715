"""The command combine: one adapter of several low-rank ones of the same base."""
from __future__ import annotations

import contextlib
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

from ..common.progress import Progress
from ..common.wording import in_one_line
from .arguments import base_option, model_of, number, output
from .data import OWN
from .finished import next_command, save_adapter, shown
from .results import check_new

__all__ = ["add_commands"]


def add_commands(command: Callable) -> None:
    """Add the command; see `cli.parser`."""
    command("combine", run_combine, "make one adapter of several low-rank ones of the same base",
            takes=("seed", "model", "json"), options=combine_options)


def weighted(text: str) -> tuple[Path, float]:
    """"folder=0.7" as (folder, 0.7); "folder" as (folder, 1.0)."""
    folder, equals, weight = text.rpartition("=")
    if not equals:
        return Path(text), 1.0
    try:
        return Path(folder), float(weight)
    except ValueError:
        raise ArgumentTypeError(f"expected FOLDER=NUMBER, got {text!r}") from None


def combine_options(p: ArgumentParser) -> None:
    from ..peft.combine import SPARSE
    from ..peft.formats import FORMATS
    p.add_argument("adapters", nargs="+", type=weighted, metavar="FOLDER=NUMBER",
                   help="adapters, each with its factor, which may be negative (default 1)")
    p.add_argument("--how", default="cat", choices=("cat", "svd", "linear", *SPARSE),
                   help="cat: the sum of the changes, exactly, and of the ranks; svd: the nearest "
                        "change of one rank; the others are papers' (default cat)")
    p.add_argument("--rank", type=number(int, least=1), help="of the nearest change")
    p.add_argument("--density", type=number(float, above=0, most=1),
                   help="of ties and dare: the share of numbers that stay")
    p.add_argument("--head", type=Path, metavar="FOLDER",
                   help="the adapter whose classifier is kept, since these are not combined")
    p.add_argument("--format", default="tinypeft", choices=FORMATS, help="of the new adapter")
    output(p, "the new adapter", required=True)


def run_combine(args: Namespace) -> None:
    """Combine adapters by their numbers, and save the result as an adapter."""
    from ..interop.card import card_of
    from ..peft import combine
    check_new(args)
    weights = dict(args.adapters)
    if len(weights) < len(args.adapters):
        raise ValueError("combine: an adapter is named twice; give its two numbers as one")
    if args.head is None:
        tell_if_no_task(weights)
    model = model_of(args)
    with Progress(None, "combining"):
        tuned = combine(weights, args.how, rank=args.rank, density=args.density, head=args.head,
                        model=model, rng=args.seed)
    record = {"adapters": {str(folder): w for folder, w in weights.items()}, "how": args.how,
              "method": str(tuned.method), "saved": str(args.out)}
    parts = " + ".join(f"{w:g} × {folder}" for folder, w in weights.items())
    card = card_of(tuned, args.format, notes=[f"Combined by {args.how}: {parts}."])
    save_adapter(args, tuned, args.format, card, record)
    rest = f"{base_option(args)} --adapter {args.out}"
    lines = [str(tuned.method), f"saved in {args.out}",
             f"next: python -m tinypeft {next_command(tuned.task)}{rest}"]
    if tuned.task and tuned.task.sha256:
        option = OWN[tuned.task.form["kind"]]
        files = in_one_line(", ".join(tuned.task.sha256))
        lines.append(f"to measure it, with each of {files} as FILE: "
                     f"python -m tinypeft evaluate {option} FILE{rest}")
    shown(args, record, "\n".join(lines))


def tell_if_no_task(folders: Iterable[Path]) -> None:
    """Say on stderr, before any work, that adapters for different tasks make one without a task,
    and what that means for the commands that use it. Adapters that all have no task lose none."""
    from ..text.tasks.saved import common_content, read_content
    contents = {}
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):   # the adapter's loading says what is wrong
            contents[folder] = read_content(folder)
    missing = [folder for folder in folders if folder not in contents and folder.is_dir()]
    if any(content["kind"] == "labelled" for content in contents.values()):
        return                                           # a classifier's task is that of --head
    if not contents or not missing and common_content([*contents.values()]):
        return
    listed = [f"{folder} learned {OWN[content['kind']][2:]} ({in_one_line(content['name'])})"
              for folder, content in contents.items()]
    listed += [f"{folder} has no task.json" for folder in missing]
    print(f"these are different tasks: {', '.join(listed)}. So the new adapter has no task.json: "
          "`generate` takes a text to continue, and a prompt with --chat --temperature 0; "
          "`evaluate` needs --text or --pairs", file=sys.stderr)
