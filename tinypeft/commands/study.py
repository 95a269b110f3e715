"""The study's commands: `compare` (also the main job), `figures`, `memory` and `missing`."""
from __future__ import annotations

import dataclasses
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from .arguments import fields, known, model_of, number, output, parsed, show_json

__all__ = ["LATEST", "add_commands", "run_compare"]

LATEST = Path("figures/latest")


def add_commands(command: Callable) -> None:
    """Add the commands to the command line. command: (name, run, about, takes) → a parser for its
    options."""
    add_compare(command)
    add_figures(command)
    add_memory(command)
    add_missing(command)


def add_compare(command: Callable) -> None:
    p = command("compare", run_compare,
                "ways to fine-tune and schemes, side by side (the default)")
    p.add_argument("--all", action="store_true", help="every method and every scheme; some minutes")
    output(p, "the picture and the JSON", LATEST)


def add_figures(command: Callable) -> None:
    p = command("figures", run_figures,
                "draw the pictures from their stored numbers; --rerun measures",
                takes=("json", "quick"))
    p.add_argument("names", nargs="*", metavar="NAME",
                   help="pictures; with --rerun, --status or --accept experiments (default: all)")
    p.add_argument("--rerun", action="store_true",
                   help="measure results that are missing or stale; hours for all, it resumes")
    p.add_argument("--status", action="store_true",
                   help="list which stored results are fresh, stale or missing, and why")
    p.add_argument("--accept", action="store_true",
                   help="after a change that should move no number: measure a few runs again and "
                        "keep the stored results if they agree")
    p.add_argument("--best", action="store_true",
                   help="write the best learning rates that were measured to "
                        "tinypeft/study/experiments/best.py")
    p.add_argument("--jobs", type=number(int, least=1), metavar="N",
                   help="processes that measure (default: one per core)")
    output(p, "results/ and the pictures (default figures, with --quick figures/latest)")


def add_memory(command: Callable) -> None:
    p = command("memory", run_memory,
                "the memory that fine-tuning takes, by formula: weights, gradients, optimizer, "
                "activations",
                takes=("json",))
    p.add_argument("--params", type=number(float, above=0), metavar="N",
                   help="for a GPT with about this many parameters, such as 7e9")
    p.add_argument("--shape", help="for base, gpt2 or llama-7b (default llama-7b)")
    p.add_argument("--method", nargs="+", default=["full", "lora", "qlora"], metavar="METHOD",
                   help="full, lora, qlora, adapter, prefix or prompt (default full lora qlora)")
    fields(p, "options of the methods: rank=64, targets=all, bottleneck=64, length=10; or bits=4.5 "
              "for frozen matrices")
    p.add_argument("--batch-size", type=number(int, least=1), default=1, help="rows (default 1)")
    p.add_argument("--tokens", type=number(int, least=1), default=512,
                   help="tokens per row (default 512)")
    p.add_argument("--float32", action="store_true",
                   help="everything in 32 bits, as in this engine")


def add_missing(command: Callable) -> None:
    p = command("missing", run_missing,
                "what a method, scheme or experiment still lacks, for who adds one",
                takes=("json",))
    p.add_argument("name", nargs="?", metavar="NAME",
                   help="such as lora, nf4 or rank (default: everything)")


# -- compare ---------------------------------------------------------------------------------------
def run_compare(args: Namespace) -> None:
    from ..files import check_writable, write_atomically
    from ..study import compare, glance
    every = getattr(args, "all", False)                  # the main job has no such option
    if every and args.quick: raise ValueError("compare: give --all or --quick, not both")
    if not args.json: check_writable(args.out)
    model = model_of(args) if args.model else None
    size = compare.QUICK if args.quick else compare.ALL if every else None
    if every and model is None: print(compare.announcement(size), file=sys.stderr)
    record = compare.compare(model, size, args.seed)
    record["command"] = " ".join(["python -m tinypeft", *["compare --all"] * every,
                                  f"--model {args.model}" if model else "--out figures"])
    if args.json: return show_json(record)
    print(glance.tables(record))
    name = "compare_all" if every else "compare"
    data = args.out / "results" / f"{name}.json"
    write_atomically(data, json.dumps(record, indent=1) + "\n")
    picture = glance.draw(record, args.out / f"{name}.svg")
    print()
    print(f"{record['seconds']:.0f} s, seed {record['seed']}. Picture: {picture}   Numbers: {data}")
    print("Next: python -m tinypeft finetune lora --out my-adapter, or read the methods in "
          "tinypeft/peft and the schemes in tinypeft/quant.")


# -- figures ---------------------------------------------------------------------------------------
def run_figures(args: Namespace) -> int | None:
    from ..files import check_writable
    folder = args.out or (LATEST if args.quick else Path("figures"))
    results = folder / "results"
    if args.best:
        from ..study.experiments import rates
        return print_best(rates.write_best(results))
    if args.rerun and not (args.names or args.quick or args.json):
        from ..study.whole import measure_all
        check_writable(folder)
        return measure_all(results, args.jobs)
    if args.rerun or args.quick or args.status or args.accept:
        return run_experiments(args, results)
    from ..study.gallery import figures
    from ..study.pictures import PICTURES
    check_writable(folder)
    figures(folder, known(args.names, PICTURES, "picture") or None)
    return None


def run_experiments(args: Namespace, results: Path) -> int | None:
    """Show the state of the experiments that `args` names, accept their stored results, or measure
    them. results: the folder of their JSON files."""
    from ..files import check_writable
    from ..study import acceptance
    from ..study.experiment import run
    from ..study.experiments import EXPERIMENTS
    names = known(args.names or EXPERIMENTS, EXPERIMENTS, "experiment")
    experiments = [EXPERIMENTS[name] for name in names]
    if args.status: return acceptance.show_status(experiments, results, args.json)
    check_writable(results.parent)
    if args.accept: return acceptance.accept(experiments, results, args.jobs)
    for experiment in experiments:
        measured = run(experiment, results, args.quick, args.jobs)
        if args.json: print(json.dumps(measured.record))
        else: print(results / f"{experiment.name}.json")
    return None


def print_best(best: dict) -> None:
    for task, rates in best.items(): print(f"{task}: {len(rates)} best rates")


# -- memory ----------------------------------------------------------------------------------------
def run_memory(args: Namespace) -> None:
    from ..study import memory
    if args.params is not None and args.shape is not None:
        raise ValueError("memory: give --params or --shape, not both")
    name = args.shape or "llama-7b"
    known([name], memory.SHAPES, "shape")
    shape = memory.SHAPES[name] if args.params is None else memory.shape_of(args.params)
    options = dict(map(parsed, args.set))
    precision = memory.FLOAT32 if args.float32 else memory.MIXED
    rows = memory.compared(shape, args.batch_size, args.tokens, precision, args.method, **options)
    if args.json:
        return show_json({"shape": dataclasses.asdict(shape), "parameters": shape.parameters,
                          "precision": dataclasses.asdict(precision), "bytes": rows})
    print(f"{shape}: {shape.parameters:,} parameters")
    print(f"{args.batch_size} × {args.tokens} tokens, in bytes: {precision}")
    print()
    print(memory.table(rows))
    print()
    print("After backward: gradients, and the activations of one block. The peak is the larger of "
          "the two.")


# -- missing ---------------------------------------------------------------------------------------
def run_missing(args: Namespace) -> int:
    from .missing import missing, stale
    lacks_by_thing = missing(args.name)
    count = sum(map(len, lacks_by_thing.values()))
    status = int(count > 0)
    if args.json:
        show_json({thing: list(map(str, lacks)) for thing, lacks in lacks_by_thing.items()})
        return status
    for thing, lacks in lacks_by_thing.items():
        if lacks: print(thing)
        for lack in lacks: print(f"  {lack}")
    if count:
        print(f"Missing: {count}. The steps are those of .github/CONTRIBUTING.md.")
    else:
        things = ", ".join(lacks_by_thing) if args.name else f"{len(lacks_by_thing)} things"
        print(f"Nothing is missing: {things}. Next: `pytest tests/test_pages.py tests/course`, "
              "which names the pages and lessons to write anew.")
    if args.name: return status
    if n := stale():
        print(f"Not counted: {n} stored measurements are stale; `python -m tinypeft figures "
              "--status` says which and why.")
    return status
