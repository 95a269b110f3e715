"""A finished model or adapter, and what lies beside it in a new folder: task, card and run.json.

merge, combine, export and quantize load a model and adapters, call the function that does the work
in Python, and write what was made.
"""
from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.progress import Progress
from .arguments import folder_of_task, loaded, show_json
from .results import facts_in, new_folder, record_of, results_in, write_run

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..peft import PeftModel
    from ..text.tasks import Task

__all__ = ["Finished", "activations_option", "check_head", "next_command", "save_adapter", "shown"]

ABOUT_TRAINING = "data", "before", "after", "baselines", "measured"      # of an adapter's record
NO_WEIGHTS = ("no weights can replace that", "has no `merge`")


def activations_option(p: ArgumentParser) -> None:
    p.add_argument("--activations", choices=("kept", "exact"), default="kept",
                   help="exact: layers that round their inputs become plain ones, which round "
                        "nothing (default kept: refuse)")


class Finished:
    """A model to write, or with merges=False an adapter on it, and what its folder says beside it:
    the task that was learned, by the adapter that is merged or before, the model card, and the
    record. stored: the type or scheme of the weights, if they are rounded."""

    def __init__(self, args: Namespace, kind: str, stored: str | None = None, merges: bool = True):
        self.args, self.stored = args, stored
        _, tuned = loaded(args)
        self.task = tuned.task
        self.method = str(tuned.method) if args.adapter else None
        folder = folder_of_task(args)
        self.learned = record_of(folder) if folder else {}
        self.card = self.card_for(tuned, kind)
        self.record = {"base": str(args.model or "shipped"), "method": self.method,
                       "saved": args.out and str(args.out)}
        self.model = merged(tuned, args.activations) if args.adapter and merges else tuned

    def card_for(self, what: PeftModel | Decoder, kind: str) -> str:
        """Return the model card, with the facts and results that the folder's run.json holds."""
        from ..interop.card import card_of
        results, notes = results_in(self.learned), []
        if self.stored:
            notes = [f"Its weights are stored in {self.stored}."]
            rounded = {"after training": "after training, before the weights were rounded"}
            results = {rounded.get(name, name): row for name, row in results.items()}
        return card_of(what, kind, facts_in(self.learned), results=results, notes=notes)

    def finish(self, folder: Path) -> None:
        """Write the task, the card and run.json to the folder that holds the model. What the
        folder before said of data and results goes with it."""
        from ..interop.card import write_page
        from ..text.tasks import save_task
        passed_on = {name: self.learned[name] for name in ABOUT_TRAINING if name in self.learned}
        if self.task is not None:
            save_task(self.task, folder)
        write_page(folder, self.card)
        write_run(self.args, folder, passed_on | self.record)


def merged(tuned: PeftModel, activations: str) -> Decoder:
    """Merge what is on, in place, and take off what is not."""
    from ..models.decoder import Decoder
    try:
        with Progress(None, "merging"):
            model = tuned.merge(activations=activations, in_place=True)
    except ValueError as e:
        if any(reason in str(e) for reason in NO_WEIGHTS):
            e.add_note("commands take it as it is, by --model and --adapter")
        raise
    return model if isinstance(model, Decoder) else model.detach()


def check_head(model: PeftModel | Decoder) -> None:
    """Raise ValueError for a classifier that is none of transformers', because it has a bias."""
    if model.head is not None and model.head.bias is not None:
        raise ValueError("the classifier has a bias, and transformers' has none; "
                         "`finetune --format peft` trains one without")


def shown(args: Namespace, record: dict, text: str) -> None:
    """Print what a command made, as JSON or as text."""
    if args.json:
        show_json(record)
    else:
        print(text)


def save_adapter(args: Namespace, tuned: PeftModel, format: str, card: str, record: dict) -> None:
    """Write an adapter to a new folder, with its task, the tokenizer, the card and run.json."""
    from ..interop.bpe import write_tokenizer
    from ..interop.card import write_page
    if format == "peft":
        check_head(tuned)
    with new_folder(args.out) as folder:
        tuned.save(folder, format)
        write_tokenizer(folder, tuned.tokenizer)
        write_page(folder, card)
        write_run(args, folder, record)


def next_command(task: Task | None) -> str:
    """Return the command that uses a model that learned a task."""
    return 'classify "…"' if hasattr(task, "classes") else 'generate "…"'
