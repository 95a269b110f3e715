"""`python -m tinypeft`: the main job without arguments, and one subcommand per thing to do.

    python -m tinypeft                    compare every method and every scheme; tables, picture, JSON
    python -m tinypeft finetune lora      fine-tune the base by one method and save the adapter
    python -m tinypeft quantize nf4       quantize the base by one scheme and say what it costs
    python -m tinypeft generate "…"       continue a text, with an adapter if you have one
    python -m tinypeft pretrain           train the base model again (an hour; resumes)
    python -m tinypeft figures            draw the pictures again from their stored numbers; --rerun measures again
    python -m tinypeft lessons list       the course: list, build and run its notebooks
    python -m tinypeft check lora.forward file.py    is a solution in a file right?
    python -m tinypeft assign 07 --out DIR   hand out a lesson;  grade DIR   take it back
    python -m tinypeft memory             what fine-tuning a model of any size takes, by formula
    python -m tinypeft doctor             what is installed, and whether everything is as it should be
"""
import argparse
import ast
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

from .generate import generate
from .interop import load_model
from .nn import Linear
from .peft import METHODS, attach, load_adapter
from .peft.model import FORMATS
from .pretrained import FOLDER, load_pretrained, training_record
from .quant import SCHEMES
from .text import tasks
from .train import evaluate, train

__all__ = ["main"]


def main(argv=None):
    """Run the command line; returns the exit status. Mistakes in arguments are said in one line, without a traceback."""
    args = parser().parse_args(argv)
    for name in {"seed", "model", "json", "quick"} - set(getattr(args, "takes", ("seed", "model", "json", "quick"))):
        if getattr(args, name):
            parser().error(f"this command does not take --{name}")
    try:
        return args.run(args) or 0
    except (ValueError, KeyError, TypeError, FileNotFoundError) as e:
        if os.environ.get("TINYPEFT_TRACEBACK"): raise
        print(f"tinypeft: {e.args[0] if isinstance(e, KeyError) and e.args else e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntinypeft: stopped", file=sys.stderr)
        return 130


def parser():
    top = argparse.ArgumentParser(prog="python -m tinypeft", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.set_defaults(run=run_compare)
    shared(top)
    top.add_argument("--out", type=Path, default=Path("figures/latest"), help="folder for the picture and the JSON")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    def command(name, run, about, takes=("seed", "model", "json", "quick")):
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run, takes=takes)
        shared(sub, takes, default=argparse.SUPPRESS)    # what stands before the command holds unless repeated after it
        return sub

    p = command("compare", run_compare, "every method and every scheme, side by side (the default)")
    p.add_argument("--out", type=Path, default=Path("figures/latest"), help="folder for the picture and the JSON")

    p = command("finetune", run_finetune, "fine-tune by one method and save what it learned")
    p.add_argument("method", metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    p.add_argument("--task", default="domain", help="domain, classify or summarize (default domain)")
    p.add_argument("--steps", type=int, default=None, help="optimizer steps (default 300, with --quick 12)")
    p.add_argument("--batch-size", type=int, default=None)
    p.add_argument("--lr", type=float, default=None, help="learning rate (default: the method's)")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                   help="hyperparameters, such as rank=4")
    p.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="where the adapter goes")
    p.add_argument("--format", default="tinypeft", choices=list(FORMATS),
                   help="of the adapter: our own, or that of Hugging Face's PEFT")
    p.add_argument("--checkpoint", type=Path, default=None, metavar="FILE", help="go on from here if it exists, write it")

    p = command("quantize", run_quantize, "quantize by one scheme and say what it costs")
    p.add_argument("scheme", metavar="SCHEME", help=f"one of {', '.join(SCHEMES)}")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                   help="hyperparameters, such as bits=4")

    p = command("generate", run_generate, "continue a text")
    p.add_argument("prompt", metavar="TEXT")
    p.add_argument("--max-new-tokens", type=int, default=120)
    p.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default 0.7)")
    p.add_argument("--top-k", type=int, default=None)
    p.add_argument("--top-p", type=float, default=None)
    p.add_argument("--adapter", type=Path, default=None, metavar="FOLDER", help="what finetune --out, or PEFT, wrote")

    p = command("pretrain", run_pretrain, "train the base model; an hour on two cores, resumes where it was stopped", takes=())
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where weights, tokenizer and record go")
    p.add_argument("--work", type=Path, default=None, metavar="FOLDER", help="where the checkpoint lives (default OUT)")

    p = command("figures", run_figures, "draw the pictures again from their stored numbers; --rerun measures these again",
                takes=("json", "quick"))
    p.add_argument("names", nargs="*", metavar="NAME", help="pictures, or with --rerun experiments (default: all)")
    p.add_argument("--rerun", action="store_true", help="measure what is missing or no longer holds; hours for all, resumes")
    p.add_argument("--jobs", type=int, default=None, metavar="N", help="processes that measure (default: one per core)")
    p.add_argument("--out", type=Path, default=None, metavar="FOLDER",
                   help="where results/ lies and pictures go (default figures, with --quick figures/latest)")

    p = command("memory", run_memory, "what fine-tuning takes: weights, gradients, optimizer, activations, by formula",
                takes=("json",))
    p.add_argument("--params", type=float, default=None, metavar="N", help="of a GPT of about so many parameters, such as 7e9")
    p.add_argument("--shape", default=None, help="base, gpt2 or llama-7b instead (default llama-7b)")
    p.add_argument("--method", nargs="+", default=["full", "lora", "qlora"], metavar="METHOD",
                   help="full, lora, qlora, adapter, prefix or prompt (default full lora qlora)")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                   help="of these: rank=64, targets=all, bottleneck=64, length=10; or bits=4.5 for frozen matrices")
    p.add_argument("--batch-size", type=int, default=1, help="rows (default 1)")
    p.add_argument("--tokens", type=int, default=512, help="per row (default 512)")
    p.add_argument("--float32", action="store_true", help="everything in 32 bits, as in this engine")

    p = command("lessons", run_lessons, "the course's notebooks, made from lessons/src", takes=())
    p.add_argument("action", choices=("list", "build", "run"), help="build: execute and write them; run: execute")
    p.add_argument("which", nargs="*", metavar="NN", help="numbers of lessons (default: all)")

    p = command("check", run_check, "check the functions of a Python file against exercises", takes=("seed", "json"))
    p.add_argument("exercise", metavar="NAME", help="an exercise, such as lora.forward, or a topic, such as lora")
    p.add_argument("file", type=Path, help="defines lora_forward and the like; it is executed")

    p = command("assign", run_assign, "write a lesson's assignment into a folder", takes=())
    p.add_argument("lesson", metavar="NN")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    p.add_argument("--nbgrader", action="store_true", help="the source notebook for nbgrader's own commands")

    p = command("grade", run_grade, "grade notebooks, or folders of them, with fresh data", takes=("seed", "json"))
    p.add_argument("submissions", nargs="+", metavar="FILE|FOLDER", help="they are executed, and not in a sandbox")
    p.add_argument("--lesson", default=None, metavar="NN", help="default: by name or content of each file")
    p.add_argument("--csv", type=Path, default=None, metavar="FILE")
    p.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="for running one notebook (default 300)")
    p.add_argument("--jobs", type=int, default=2, help="submissions at a time (default 2)")

    command("doctor", run_doctor, "what is installed, and whether everything is as it should be", takes=("json",))
    return top


def shared(p, takes=("seed", "model", "json", "quick"), **same):
    """The options that mean the same everywhere, those of them that a command takes."""
    flags = {"json": "print JSON instead of text", "quick": "far fewer steps and test batches"}
    if "seed" in takes:
        p.add_argument("--seed", type=int, help="seed of everything random (default 0)", **{"default": 0, **same})
    if "model" in takes:
        p.add_argument("--model", type=Path, metavar="FOLDER", help="a GPT-2 folder of Hugging Face's, or what `pretrain "
                       "--out FOLDER` wrote, in place of the shipped base", **{"default": None, **same})
    for name in flags.keys() & set(takes):
        p.add_argument(f"--{name}", action="store_true", help=flags[name], **same)


# -- the commands ---------------------------------------------------------------------------------
def run_compare(args):
    from .study import compare
    record = compare.compare(model_of(args), compare.QUICK if args.quick else compare.Size(), args.seed)
    if args.json:
        print(json.dumps(record, indent=1))
        return
    print(compare.tables(record))
    data = args.out / "results" / "compare.json"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    picture = compare.draw(record, args.out / "compare.svg")
    print(f"\n{record['seconds']:.0f} s, seed {record['seed']}. Picture: {picture}   Numbers: {data}\n"
          "Next: python -m tinypeft finetune lora --out my-adapter, or the methods' code in tinypeft/peft and tinypeft/quant.")


def run_finetune(args):
    model = model_of(args)
    method = build(METHODS, args.method, args.set)
    if args.task not in ("domain", "classify", "summarize"):
        raise ValueError(f"--task: expected domain, classify or summarize, got {args.task!r}")
    task = getattr(tasks, args.task)(model)
    tuned = attach(model, method, rng=args.seed, head=len(task.classes) if args.task == "classify" else None,
                   head_bias=args.format != "peft")
    FORMATS[args.format].check(tuned)
    batches = 2 if args.quick else None
    before = None
    if args.task != "classify":
        with tuned.disabled(): before = evaluate(tuned, task, "test", max_batches=batches)
    steps = args.steps if args.steps is not None else 12 if args.quick else 300
    history = train(tuned, task, steps, seed=args.seed, lr=args.lr, checkpoint=args.checkpoint,
                    batch_size=args.batch_size or (16 if args.task == "classify" else 8))
    after = evaluate(tuned, task, "test", max_batches=batches)
    if args.out: tuned.save(args.out, args.format)
    record = {"method": str(method), "task": args.task, "steps": len(history.loss), "seconds": round(history.seconds, 1),
              "trained": tuned.summary().trained, "before": before, "after": after, "saved": args.out and str(args.out)}
    if args.json:
        print(json.dumps(record, indent=1))
        return
    print(tuned.summary())
    print(f"{args.task}, {record['steps']} steps in {record['seconds']} s; on the test split:")
    for name, value in after.items():
        print(f"  {name:<15}{'' if before is None else f'{before[name]:.4f} → '}{value:.4f}")
    if args.out: print(f"saved in {args.out}; tinypeft.load_adapter(model, {str(args.out)!r}) reads it")


def run_quantize(args):
    from .study.compare import Size, measure_scheme
    model = model_of(args)
    scheme = build(SCHEMES, args.scheme, args.set)
    domain = tasks.domain(model, context=128)
    size = Size(test_batches=2 if args.quick else 8)
    exact = evaluate(model, domain, "test", max_batches=size.test_batches)["perplexity"]
    record = {**measure_scheme(model, scheme, domain, size), "perplexity of float32": exact}
    if args.json:
        print(json.dumps(record, indent=1))
        return
    weights = sum(m.weight.size for _, m in model.named_modules() if isinstance(m, Linear))
    print(f"{record['scheme']}\n"
          f"  weights       {weights:,} in the blocks' linear layers, {4 * weights / 1024:,.0f} KiB in float32\n"
          f"  stored in     {record['bytes'] / 1024:,.0f} KiB, {record['bits_per_weight']:.3f} bits/weight, scales included\n"
          f"  weight error  {100 * record['weight_error']:.2f} % of the weights' norm\n"
          f"  output error  {100 * record['output_error']:.2f} % of the logits' norm\n"
          f"  perplexity    {exact:.3f} → {record['perplexity']:.3f} on matplotlib's documentation (test)")


def run_generate(args):
    model = model_of(args)
    tokenizer = model.tokenizer
    tokens = tokenizer.encode(args.prompt)[None]
    if tokens.size == 0:
        raise ValueError("generate: the text is empty; give the model something to continue")
    tuned = load_adapter(model, args.adapter) if args.adapter else model
    room = model.config.context_length - tokens.shape[1]
    if room < 1:
        raise ValueError(f"generate: the text has {tokens.shape[1]} tokens, the model sees {model.config.context_length}")
    start = time.perf_counter()
    out = generate(tuned, tokens, min(args.max_new_tokens, room), temperature=args.temperature, top_k=args.top_k,
                   top_p=args.top_p, rng=args.seed, stop=tokenizer.end_of_text)[0]
    seconds = time.perf_counter() - start
    new = out[tokens.shape[1]:]
    text = tokenizer.decode(new[(new != tokenizer.end_of_text) & (new < tokenizer.vocab_size)])   # some vocabularies are padded
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": text, "tokens": len(new), "tokens_per_second": len(new) / seconds}))
    else:
        print(args.prompt + text)


def run_pretrain(args):
    from .pretrained.make import pretrain
    record = pretrain(args.work or args.out, args.out)
    print(json.dumps(record["results"], indent=1))


def run_figures(args):
    folder = args.out or Path("figures/latest" if args.quick else "figures")
    if args.rerun or args.quick:
        from .study.experiment import run
        from .study.experiments import EXPERIMENTS
        for name in known(args.names or EXPERIMENTS, EXPERIMENTS, "experiment"):
            results = run(EXPERIMENTS[name], folder / "results", args.quick, args.jobs)
            print(json.dumps(results.record) if args.json else f"{folder / 'results' / name}.json")
        return
    from .study.gallery import figures
    from .study.pictures import PICTURES
    figures(folder, known(args.names, PICTURES, "picture") or None)


def run_memory(args):
    from .study import memory
    if args.params is not None and args.shape is not None:
        raise ValueError("memory: give --params or --shape, not both")
    if args.shape is not None and args.shape not in memory.SHAPES:
        raise ValueError(f"memory: unknown shape {args.shape!r}; there are {', '.join(memory.SHAPES)}")
    if args.params is not None and not args.params > 0:
        raise ValueError(f"memory: --params must be positive, got {args.params:g}")
    shape = memory.SHAPES[args.shape or "llama-7b"] if args.params is None else memory.shape_of(args.params)
    options = {name: literal(value) for name, _, value in (text.partition("=") for text in args.set)}
    precision = memory.FLOAT32 if args.float32 else memory.MIXED
    rows = memory.compared(shape, args.batch_size, args.tokens, precision, args.method, **options)
    if args.json:
        print(json.dumps({"shape": dataclasses.asdict(shape), "parameters": shape.parameters,
                          "precision": dataclasses.asdict(precision), "bytes": rows}, indent=1))
        return
    print(f"{shape}: {shape.parameters:,} parameters\n{args.batch_size} × {args.tokens} tokens, in bytes: {precision}\n\n"
          f"{memory.table(rows)}\n\nAfter backward: gradients, and one block's activations. The peak is the larger moment's.")


def known(names, there, what):
    """The names, or ValueError if one is not among what there is."""
    for name in names:
        if name not in there: raise ValueError(f"there is no {what} {name!r}; there are {', '.join(there)}")
    return names


def run_lessons(args):
    from .course import build
    chosen = [path for which in args.which or (None,) for path in build.sources(which)]
    if args.action == "list": print(build.table(chosen))
    else: build.build(chosen, write=args.action == "build")


def run_check(args):
    from .course.check import check_file
    results = check_file(args.exercise, args.file, args.seed)
    if args.json:
        told = {r.exercise.name: {"passed": r.passed, "message": r.message, "cause": r.cause} for r in results}
        print(json.dumps(told, indent=1))
    else:
        print("\n".join(map(repr, results)))
    return 0 if all(results) else 1


def run_assign(args):
    from .course.assign import assign
    print("\n".join(map(str, assign(args.lesson, args.out, args.nbgrader))))


def run_grade(args):
    from .course.grade import as_json, grade, write_csv
    say = None if args.json else lambda result: print(result, flush=True)
    grades = grade(args.submissions, args.lesson, args.seed + 1, args.timeout, args.jobs, say)    # seed 0 is the students'
    if args.csv: write_csv(grades, args.csv)
    if args.json: print(as_json(grades))


def run_doctor(args):
    report = doctor()
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items(): print(f"{name:<14}{value}")
    return 0 if report["verdict"] == "all is well" else 1


def doctor():
    """What a bug report should say: versions, threads, the shipped files, the text this installation carries."""
    from .files import cache_directory
    from .text import base_corpus, domain_corpus
    from .threads import _openblas
    version = lambda name: importlib.metadata.version(name)
    record, problems = training_record(), []
    report = {"python": f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores",
              **{name: version(name) for name in ("numpy", "scipy", "matplotlib")},
              "BLAS": "OpenBLAS, threads under control" if _openblas() else "another BLAS; set its threads to 1 for best speed",
              "package": str(FOLDER.parent), "cache": str(cache_directory())}
    for name, corpus in (("base", base_corpus), ("domain", domain_corpus)):
        same = corpus().sha256 == record["corpus"][name]
        report[f"text: {name}"] = f"{corpus().sha256[:12]}, " + (
            "as in the shipped records" if same else "other library versions than the shipped records': numbers will differ")
    model = load_pretrained()
    ids = model.tokenizer.encode("Return the sum of the array elements.")
    if not np.isfinite(model(ids[None]).data).all(): problems.append("the base computes values that are not finite")
    report["base model"] = (f"{model.n_parameters():,} parameters, "
                            f"{record['results']['domain test']['loss']:.3f} nats/token on domain when it was made")
    report["verdict"] = "; ".join(problems) or "all is well"
    return report


def model_of(args):
    """The model of --model, which must come with a tokenizer, or the shipped base."""
    model = load_model(args.model)
    if model.tokenizer is None:
        raise ValueError(f"{args.model} holds no tokenizer; put tokenizer.json, or vocab.json and merges.txt, there")
    return model


def build(classes, name, assignments):
    """The method or scheme `name` with the fields that "field=value" strings set."""
    if name not in classes:
        raise ValueError(f"unknown name {name!r}; there are {', '.join(classes)}")
    fields = {f.name for f in dataclasses.fields(classes[name])}
    values = {}
    for text in assignments:
        field, equals, value = text.partition("=")
        if not equals or field not in fields:
            raise ValueError(f"--set {text}: expected FIELD=VALUE with one of the fields {', '.join(sorted(fields))}")
        values[field] = literal(value)
    return classes[name](**values)


def literal(text):
    """The Python value that `text` writes, or `text` itself: a plain word, such as a name."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
