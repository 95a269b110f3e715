"""A finished model or adapter, and what lies beside it in a new folder: task, card and run.json.

merge, combine, export and quantize load a model and adapters, call the function that does the work
in Python, and write what was made.
"""
from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.progress import Progress
from .arguments import folder_of_task, model_of, show_json
from .results import facts_in, new_folder, record_of, results_in, write_run

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..peft import PeftModel
    from ..text.tasks import Task

__all__ = ["FinishedModel", "activations_option", "check_head", "finish", "next_command", "plain",
           "save_adapter", "shown"]

ABOUT_TRAINING = "data", "before", "after", "baselines", "measured"      # of an adapter's record
NO_WEIGHTS = ("no weights can replace that", "has no `merge`")


def activations_option(p: ArgumentParser) -> None:
    p.add_argument("--activations", choices=("kept", "exact"), default="kept",
                   help="exact: layers that round their inputs become plain ones, which round "
                        "nothing (default kept: refuse)")


class FinishedModel:
    """A model to write, with what its folder says beside it: the task that it learned, by the
    adapter that was merged into it or before, and the model card. stored: the type or scheme of
    its weights, if they are rounded."""

    def __init__(self, args: Namespace, kind: str, stored: str | None = None):
        from ..peft import load_adapter
        self.args, self.stored = args, stored
        self.model = model_of(args)
        self.method = None
        self.task = self.model.task
        folder = folder_of_task(args)
        self.learned = record_of(folder) if folder else {}
        if not args.adapter:
            self.card = self.card_for(self.model, kind)
            return
        tuned = load_adapter(self.model, args.adapter)
        self.task = tuned.task
        self.method = str(tuned.method)
        self.card = self.card_for(tuned, kind)
        self.model = merged(tuned, args.activations)

    def card_for(self, what: PeftModel | Decoder, kind: str) -> str:
        """Return the model card, with the facts and results that the folder's run.json holds."""
        from ..interop.card import card_of
        results, notes = results_in(self.learned), []
        if self.stored:
            notes = [f"Its weights are stored in {self.stored}."]
            rounded = {"after training": "after training, before the weights were rounded"}
            results = {rounded.get(name, name): row for name, row in results.items()}
        return card_of(what, kind, facts_in(self.learned), results=results, notes=notes)

    def finish(self, folder: Path, record: dict) -> None:
        """Write the task, the card and run.json to the folder that holds the model. What the
        folder before said of data and results goes with it."""
        passed_on = {name: self.learned[name] for name in ABOUT_TRAINING if name in self.learned}
        finish(self.args, folder, self.task, self.card, passed_on | record)


def finish(args: Namespace, folder: Path, task: Task | None, card: str, record: dict) -> None:
    """Write task.json, the model card and run.json to a folder."""
    from ..interop.card import write_page
    from ..text.tasks import save_task
    if task is not None:
        save_task(task, folder)
    write_page(folder, card)
    write_run(args, folder, record)


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


def plain(model: Decoder, activations: str) -> Decoder:
    """Return the model in plain weights, which folders of Hugging Face hold."""
    from ..quant import dequantize
    return dequantize(model, activations)


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


def save_adapter(args: Namespace, tuned: PeftModel, format: str, record: dict,
                 notes: Sequence[str] = ()) -> None:
    """Write an adapter to a new folder, with the tokenizer and the card."""
    from ..interop.bpe import write_tokenizer
    from ..interop.card import card_of
    if format == "peft":
        check_head(tuned)
    source = vars(args).get("adapter")
    stored = record_of(source) if source else {}
    card = card_of(tuned, format, facts_in(stored), results=results_in(stored), notes=notes)
    with new_folder(args.out) as folder:
        tuned.save(folder, format)
        write_tokenizer(folder, tuned.tokenizer)
        finish(args, folder, None, card, record)


def next_command(task: Task | None) -> str:
    """Return the command that uses a model that learned a task."""
    return 'classify "…"' if hasattr(task, "classes") else 'generate "…"'
