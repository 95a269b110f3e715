"""The commands at the end of a job: merge, combine, export, quantize.

Each loads a model and adapters, calls the function that does the work in Python, and fills a new
folder: what was made, the adapter's task.json, a model card, and run.json.
"""
from __future__ import annotations

import contextlib
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.progress import Progress
from .arguments import build, fields, model_of, number, output, show_json
from .data import BUILT_IN, OWN, built_in, data_options, kind_of, own_task, show_data, task_of
from .results import check_new, facts_in, new_folder, record_of, results_in, write_run
from .training import (
    calibration_of,
    export_attached,
    run_export,
    training_options,
)
from .using import adapter_option, folder_of_task

if TYPE_CHECKING:
    from ..common.hints import Calibration
    from ..models.decoder import Decoder
    from ..peft import PeftModel
    from ..text.tasks import Task

__all__ = ["add_commands"]

ABOUT_TRAINING = "data", "before", "after", "baselines", "measured"      # of an adapter's record
NO_WEIGHTS = ("no weights can replace that", "has no `merge`")


def add_commands(command: Callable) -> None:
    """Add the commands to the command line. command: (name, run, about, takes, options) → a parser
    for its options."""
    p = command("merge", run_merge, "merge an adapter into its base: a folder of Hugging Face that "
                "--model takes", takes=("model", "json"))
    adapter_option(p, required=True)
    activations_option(p)
    output(p, "the model", required=True)
    command("combine", run_combine, "make one adapter of several low-rank ones of the same base",
            takes=("seed", "model", "json"), options=combine_options)
    command("export", run_export_to, "write a model or an adapter for other programs",
            options=export_options)
    command("quantize", run_quantize, "quantize with one scheme, measure the cost, and save it",
            options=quantize_options)


# -- options ---------------------------------------------------------------------------------------
def activations_option(p: ArgumentParser) -> None:
    p.add_argument("--activations", choices=("kept", "exact"), default="kept",
                   help="exact: layers that round their inputs become plain ones, which round "
                        "nothing (default kept: refuse)")


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
    p.add_argument("--sign", default="total", choices=("total", "frequency"),
                   help="of ties: whether a number or a vote elects the sign (default total)")
    p.add_argument("--factors", action="store_true",
                   help="of ties and dare: work on the factors, not on their product")
    p.add_argument("--head", type=Path, metavar="FOLDER",
                   help="the adapter whose classifier is kept, since these are not combined")
    p.add_argument("--format", default="tinypeft", choices=FORMATS, help="of the new adapter")
    output(p, "the new adapter", required=True)


def gguf_types() -> list[str]:
    """Return the types that --type takes."""
    from ..quant.gguf import BITS, LAYOUTS, MIXTURES
    return ["F32", *LAYOUTS, *BITS, *MIXTURES]


def export_options(p: ArgumentParser) -> None:
    training_options(p.add_argument_group("for --to training"), optional=True)
    adapter_option(p)
    p.add_argument("--to", required=True, choices=EXPORTS,
                   help="hf: a folder of Hugging Face; gguf: a file for llama.cpp; peft: an "
                        "adapter for PEFT; training: a run that goes on in PyTorch, of METHOD or "
                        "of the adapter, on your data")
    p.add_argument("--type", choices=gguf_types(), metavar="TYPE",
                   help="of gguf: how weights are stored (default F32; Q8_0 and Q4_K_M are common)")
    activations_option(p)
    output(p, "the result; for gguf also the name of a file that ends in .gguf", required=True)


def quantize_options(p: ArgumentParser) -> None:
    from ..quant import SCHEMES
    p.add_argument("scheme", metavar="SCHEME", help=f"one of {', '.join(SCHEMES)}")
    fields(p, "hyperparameters, such as bits=4")
    adapter_option(p)
    activations_option(p)
    data_options(p, "Matplotlib's documentation")
    output(p, "the quantized model, which --model then takes (default: it is not saved)")


# -- what the commands share -----------------------------------------------------------------------
class Job:
    """A model to hand on, with what its folder says beside it: the task that it learned, by the
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


def shown(args: Namespace, record: dict, text: str) -> None:
    """Print what a command made, as JSON or as text."""
    if args.json:
        show_json(record)
    else:
        print(text)


# -- merge -----------------------------------------------------------------------------------------
def run_merge(args: Namespace) -> None:
    """Write the merged model as a folder of Hugging Face."""
    check_new(args)
    write_model(args, "merged")


def write_model(args: Namespace, verb: str) -> None:
    """Write a model, with --adapter merged into it, to a folder of Hugging Face."""
    from ..interop.loading import save_model
    job = Job(args, "hf")
    model = plain(job.model, args.activations)
    record = {"base": str(args.model or "shipped"), "method": job.method, "saved": str(args.out)}
    with new_folder(args.out) as folder, Progress(None, "writing"):
        save_model(model, folder)
        job.finish(folder, record)
    what = f"{verb} {job.method}" if job.method else "wrote the model"
    shown(args, record, f"{what}; saved in {args.out}\nnext: python -m tinypeft "
                        f"{next_command(job.task)} --model {args.out}")


def next_command(task: Task | None) -> str:
    """Return the command that uses a model that learned a task."""
    return 'classify "…"' if hasattr(task, "classes") else 'generate "…"'


# -- combine ---------------------------------------------------------------------------------------
def run_combine(args: Namespace) -> None:
    """Combine adapters by their numbers, and save the result as an adapter."""
    from ..peft import combine
    check_new(args)
    weights = dict(args.adapters)
    if len(weights) < len(args.adapters):
        raise ValueError("combine: an adapter is named twice; give its two numbers as one")
    if args.head is None:
        tell_if_no_task(weights)
    model = model_of(args)
    with Progress(None, "combining"):
        tuned = combine(weights, args.how, rank=args.rank, density=args.density, sign=args.sign,
                        factors=args.factors, head=args.head, model=model, rng=args.seed)
    record = {"adapters": {str(folder): w for folder, w in weights.items()}, "how": args.how,
              "method": str(tuned.method), "saved": str(args.out)}
    parts = " + ".join(f"{w:g} × {folder}" for folder, w in weights.items())
    save_adapter(args, tuned, args.format, record, [f"Combined by {args.how}: {parts}."])
    rest = f"{base_option(args)} --adapter {args.out}"
    lines = [str(tuned.method), f"saved in {args.out}",
             f"next: python -m tinypeft {next_command(tuned.task)}{rest}"]
    if tuned.task and tuned.task.sha256:
        option = OWN[tuned.task.form["kind"]]
        lines.append(f"to measure it, with each of {', '.join(tuned.task.sha256)} as FILE: "
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
    listed = [f"{folder} learned {OWN[content['kind']][2:]} ({content['name']})"
              for folder, content in contents.items()]
    listed += [f"{folder} has no task.json" for folder in missing]
    print(f"these are different tasks: {', '.join(listed)}. So the new adapter has no task.json: "
          "`generate` takes a text to continue, and a prompt with --chat --temperature 0; "
          "`evaluate` needs --text or --pairs", file=sys.stderr)


def save_adapter(args: Namespace, tuned: PeftModel, format: str, record: dict,
                 notes: Sequence[str] = ()) -> None:
    """Write an adapter to a new folder, with the tokenizer and the card."""
    from ..interop.bpe import write_tokenizer
    from ..interop.card import card_of
    source = vars(args).get("adapter")
    stored = record_of(source) if source else {}
    card = card_of(tuned, format, facts_in(stored), results=results_in(stored), notes=notes)
    with new_folder(args.out) as folder:
        tuned.save(folder, format)
        write_tokenizer(folder, tuned.tokenizer)
        finish(args, folder, None, card, record)


def base_option(args: Namespace) -> str:
    """Return --model as it was given, for the command that a user may type next."""
    return f" --model {args.model}" if args.model else ""


# -- export ----------------------------------------------------------------------------------------
def export_hf(args: Namespace) -> None:
    write_model(args, "merged")


def export_gguf(args: Namespace) -> None:
    """Write a model as a file of llama.cpp, alone or in a folder with its card."""
    from ..interop.card import temperature_option
    from ..interop.gguf import write_gguf
    from ..interop.loading import GGUF_FILE
    from ..quant import GGUF, quantize
    kind = args.type or "F32"
    job = Job(args, "gguf", None if kind == "F32" else kind)
    if job.model.head is not None:
        raise ValueError("export --to gguf: llama.cpp has no place for a classifier; "
                         "`export --to hf` has one")
    model = plain(job.model, args.activations)
    if kind != "F32":
        model = quantize(model, GGUF(kind, embeddings=True))
    record = {"base": str(args.model or "shipped"), "method": job.method, "type": kind,
              "saved": str(args.out)}
    is_file = args.out.suffix == ".gguf"
    path = args.out if is_file else args.out / GGUF_FILE
    with Progress(None, "writing"):
        if is_file:
            write_gguf(path, model)
        else:
            with new_folder(args.out) as folder:
                write_gguf(folder / GGUF_FILE, model)
                job.finish(folder, record)
    record["bytes"] = path.stat().st_size
    record["bits for each weight"] = round(8 * record["bytes"] / model.n_parameters(), 2)
    use = f'generate "…" --model {path if is_file else args.out}'
    if is_file and getattr(job.task, "chat", None):      # a file alone does not hold the task
        use += " --chat --temperature 0"
    shown(args, record, f"saved in {path}, {record['bytes'] / 1e6:,.0f} MB, "
                        f"{record['bits for each weight']:.1f} bits for each weight\n"
                        f"next: python -m tinypeft {use}, or llama-cli -m {path}"
                        f"{temperature_option(job.task)}")


def export_peft(args: Namespace) -> None:
    """Write an adapter in PEFT's format."""
    from ..peft import load_adapter
    if not args.adapter:
        raise ValueError("export --to peft needs --adapter FOLDER")
    tuned = load_adapter(model_of(args), args.adapter)
    record = {"base": str(args.model or "shipped"), "method": str(tuned.method),
              "saved": str(args.out)}
    save_adapter(args, tuned, "peft", record)
    shown(args, record, f"saved in {args.out}; peft.PeftModel.from_pretrained(model, "
                        f"{str(args.out)!r}) loads it")


def export_training(args: Namespace) -> None:
    """Write a run of METHOD, or of an adapter that goes on, for PyTorch."""
    from ..peft import load_adapter
    if bool(args.method) == bool(args.adapter):
        raise ValueError("export --to training: give METHOD, such as lora, or --adapter FOLDER")
    if args.method:
        return run_export(args)
    model = model_of(args)
    tuned = load_adapter(model, args.adapter)
    own = kind_of(args)
    form = tuned.task.form if tuned.task else {}
    task = own_task(args, model, own, form) if own else task_of(args, model)
    return export_attached(args, tuned, task)


EXPORTS = {"hf": export_hf, "gguf": export_gguf, "peft": export_peft, "training": export_training}


def run_export_to(args: Namespace) -> None:
    """Check that the options belong to what --to names, and do it."""
    if args.to != "training":
        given = training_names(args)
        if args.method:
            given.insert(0, "METHOD")
        if given:
            raise ValueError(f"export --to {args.to} does not train; leave out {', '.join(given)}")
    if args.type and args.to != "gguf":
        raise ValueError("--type needs --to gguf")
    check_new(args)
    EXPORTS[args.to](args)


def training_names(args: Namespace) -> list[str]:
    """Return the options that were given and that only a training has."""
    parser = ArgumentParser()
    training_options(parser, optional=True)
    defaults = vars(parser.parse_args([])) | {"quick": False, "seed": 0}
    return [f"--{name.replace('_', '-')}" for name, value in defaults.items()
            if name != "method" and vars(args)[name] != value]


# -- quantize --------------------------------------------------------------------------------------
def run_quantize(args: Namespace) -> None:
    """Quantize a model, with --adapter merged into it; measure what that costs, and save it."""
    from ..quant import SCHEMES
    from ..study.compare import Size, cost_of_scheme, described
    scheme = build("scheme", SCHEMES, args.scheme, args.set)
    own = kind_of(args)
    size = Size(steps=30, test_batches=2 if args.quick else 8)
    if args.out:
        check_new(args)
    if not (own or args.task or args.adapter or args.out):
        model = plain(model_of(args), args.activations)
        with Progress(None, f"quantizing by {args.scheme} and measuring"):
            record = cost_of_scheme(model, scheme, size)
        return shown(args, record, described(record))
    job = Job(args, "quantized", args.scheme)
    model = plain(job.model, args.activations)
    if model.head is None and (own == "labelled" or args.task == "classify"):
        raise ValueError("quantize: this model has no classes; --adapter FOLDER of a classifier "
                         "gives it some")
    task = task_to_measure(args, model, own, job.task)
    if own:
        show_data(args, task)
    record = quantized(args, job, model, scheme, size, task)
    text = described(record)
    if args.out:
        text += (f"\nsaved in {args.out}\nnext: python -m tinypeft {next_command(job.task)} "
                 f"--model {args.out}")
    return shown(args, record, text)


def quantized(args: Namespace, job: Job, model: Decoder, scheme: Any, size: Any,
              task: Task) -> dict:
    """Quantize, measure and save; return the record."""
    from ..interop.loading import QUANTIZED
    from ..quant import save_quantized
    from ..study.compare import described, quantized_at_cost
    calibration = calibration_in(task, args.seed)
    result, record = quantized_at_cost(model, scheme, size, task, calibration, args.seed)
    record |= {"method": job.method, "saved": args.out and str(args.out)}
    job.card += f"\n## Quantized\n\n```text\n{described(record)}\n```\n"
    if args.out:
        with new_folder(args.out) as folder, Progress(None, "writing"):
            save_quantized(result, folder / QUANTIZED)
            job.finish(folder, record)
    return record


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
