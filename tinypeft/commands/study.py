"""The study's commands: `compare` (also the main job), `figures` and `memory`."""
from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from .arguments import fields, known, model_of, number, output, parsed, show_json

__all__ = ["LATEST", "add_commands", "run_compare"]

LATEST = Path("figures/latest")
MAIN_JOB = "compare"                                     # its results are no experiment's


def add_commands(command: Callable) -> None:
    """Add the commands; see `cli.parser`."""
    p = command("compare", run_compare,
                "ways to fine-tune and schemes, side by side (the default)")
    p.add_argument("--all", action="store_true", help="every method and every scheme; some minutes")
    output(p, "the picture and the JSON", LATEST)

    p = command("figures", run_figures,
                "draw the pictures from their stored numbers; --rerun measures",
                takes=("json", "quick"))
    p.add_argument("names", nargs="*", metavar="NAME",
                   help="pictures; with --rerun or --check experiments, too (default: all)")
    p.add_argument("--rerun", action="store_true",
                   help="measure results that are missing; hours for all, it resumes")
    p.add_argument("--check", action="store_true",
                   help="measure some stored results again and say which numbers moved; it resumes")
    p.add_argument("--all", action="store_true",
                   help="with --check: every condition; hours")
    p.add_argument("--jobs", type=number(int, least=1), metavar="N",
                   help="processes that measure (default: one per core)")
    output(p, "results/ and the pictures (default figures, with --quick figures/latest)")

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
    command = shlex.join(["python", "-m", "tinypeft", *args.argv])
    record = {"command": command, **compare.compare(model, size, args.seed)}
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
    from ..study.pictures import PICTURES, measured_for
    folder = args.out or (LATEST if args.quick else Path("figures"))
    results = folder / "results"
    if args.rerun and not (args.names or args.quick or args.json):
        from ..study.whole import measure_all
        check_writable(folder)
        return measure_all(results, args.jobs)
    if args.all and not args.check: raise ValueError("figures: --all goes with --check")
    if args.check or args.rerun or args.quick:
        args.names = measured_for(args.names)
        return (check_results if args.check else run_experiments)(args, results)
    from ..study.gallery import figures
    check_writable(folder)
    figures(folder, known(args.names, PICTURES, "picture") or None)
    return None


def run_experiments(args: Namespace, results: Path) -> None:
    """Measure the experiments that `args` names. results: the folder of their JSON files."""
    from ..files import check_writable
    from ..study.experiments import EXPERIMENTS
    from ..study.measuring import run
    names = known(args.names or EXPERIMENTS, EXPERIMENTS, "experiment")
    check_writable(results.parent)
    say = (lambda line: None) if args.json else print
    for name in names:
        measured = run(EXPERIMENTS[name], results, args.quick, args.jobs, say=say)
        print(json.dumps(measured.record) if args.json else results / f"{name}.json")


def check_results(args: Namespace, results: Path) -> int:
    """Check the stored results that `args` names; return 1 if one does not hold."""
    from ..study import checking, pages
    from ..study.experiments import EXPERIMENTS
    if args.quick or args.rerun: raise ValueError("figures: give --check, or --rerun, or --quick")
    everything = {**EXPERIMENTS, MAIN_JOB: None}
    names = known(args.names or everything, everything, "experiment")
    experiments = [EXPERIMENTS[name] for name in names if name != MAIN_JOB]
    say = (lambda line: None) if args.json else functools.partial(print, flush=True)
    found = checking.check(experiments, results, LATEST / "checked", pages.on_first_page(results),
                           args.all, args.jobs, say=say)
    if MAIN_JOB in names:
        found[MAIN_JOB] = checking.check_main_job(results, args.jobs)
        for line in found[MAIN_JOB].lines(): say(f"{MAIN_JOB} {line}")
    if args.json: show_json({name: dataclasses.asdict(of) for name, of in found.items()})
    measured = sum(len(of.measured) for of in found.values())
    lacking = sum(len(of.not_here) for of in found.values())
    wrong = [name for name, of in found.items() if not of.holds()]
    holds = f"These do not hold: {', '.join(wrong)}." if wrong else "All that was measured holds."
    say(f"{measured} conditions of {len(found)} experiments were measured again"
        + f", and {lacking} cannot be measured here" * bool(lacking) + f". {holds}")
    return int(bool(wrong))


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
