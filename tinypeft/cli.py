"""`python -m tinypeft`: the main job without arguments, and one subcommand for everything else.

    python -m tinypeft                    compare every method and scheme: tables, picture, JSON
    python -m tinypeft finetune lora      fine-tune the base with one method and save the adapter
    python -m tinypeft quantize nf4       quantize the base with one scheme and measure the cost
    python -m tinypeft generate "…"       continue a text, with an adapter if you have one
    python -m tinypeft generate --model smollm2 --chat "…"    ask a real model
    python -m tinypeft pretrain           train the base again (an hour; it resumes)
    python -m tinypeft figures            draw the pictures from stored numbers; --rerun measures
    python -m tinypeft lessons list       the course: list, build or run its notebooks
    python -m tinypeft check lora.forward file.py    check the functions in a file
    python -m tinypeft assign 07 --out DIR           hand out a lesson;  grade DIR  grades it
    python -m tinypeft memory             the memory that fine-tuning takes, by formula
    python -m tinypeft doctor             what is installed, and whether all is well
"""
import contextlib
import os
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .arguments import SHARED, build, fields, known, model_of, number, output, shared, show_json
from .study import commands as study

# A command imports what it needs when it runs, so that `--help` does not wait for all modules.
__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. A wrong argument, or a file or folder that
    cannot be used, gives one line on stderr and status 2; with TINYPEFT_TRACEBACK set in the
    environment it gives a traceback."""
    args = parser().parse_args(argv)
    for name in set(SHARED) - set(getattr(args, "takes", SHARED)):
        if getattr(args, name):
            parser().error(f"this command does not take --{name}")
    try:
        status = args.run(args) or 0
        if sys.stdout is not None: sys.stdout.flush()    # a full disk is found here, not at exit
        return status
    except BrokenPipeError:                              # `… | head`: the reader has enough
        _drop_output()
        return 141                                       # 128 + 13, as a shell says of SIGPIPE
    except KeyboardInterrupt:
        kept = getattr(args, "checkpoint", None)
        kept = f"; the same command goes on from {kept}" if kept and kept.exists() else ""
        return _tell(f"stopped{kept}", 130)              # 128 + 2, as a shell says of SIGINT
    except Exception as e:
        if os.environ.get("TINYPEFT_TRACEBACK") or not (message := explained(e)): raise
        if isinstance(e, OSError): _drop_output()
        return _tell(message, 2)


def explained(e: Exception) -> str | None:
    """One line about an error that the user can do something about; None for any other."""
    from .train import DivergedError
    if isinstance(e, KeyError): return str(e.args[0] if e.args else e)
    if isinstance(e, OSError) and e.strerror:
        return (f"{e.filename or 'the output'}: {e.strerror}; give another place, or change what "
                "may be written there")
    if isinstance(e, (ValueError, TypeError, OSError, DivergedError, ImportError)): return str(e)
    if isinstance(e, ArithmeticError):
        return f"a number is out of range ({e}); if a model was trained, try a smaller --lr"
    if isinstance(e, MemoryError):
        return f"there is not enough memory ({e}); try a smaller batch or a smaller model"
    return None


def _tell(message, status):
    with contextlib.suppress(OSError): print(f"tinypeft: {message}", file=sys.stderr)
    return status


def _drop_output():
    """Nobody takes the output: what is still buffered must not raise again when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- arguments -------------------------------------------------------------------------------------
class Command(ArgumentParser):
    """The parser of a command. options: adds arguments to it when it is used."""
    options: Callable | None = None

    def parse_known_args(self, *args, **kwargs):
        add, self.options = self.options, None
        if add: add(self)
        return super().parse_known_args(*args, **kwargs)


def parser() -> ArgumentParser:
    """All commands and their options."""
    top = ArgumentParser(prog="python -m tinypeft", description=__doc__,
                         formatter_class=RawDescriptionHelpFormatter)
    top.set_defaults(run=study.run_compare)
    shared(top)
    output(top, "the picture and the JSON", study.LATEST)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", parser_class=Command)

    def command(name, run, about, takes=SHARED, options=None):
        sub = commands.add_parser(name, help=about, description=about)
        sub.options = options
        sub.set_defaults(run=run, takes=takes)
        shared(sub, takes, default=SUPPRESS)    # a value before the command stays valid
        return sub
    study.add_commands(command)
    add_model_commands(command)
    add_course_commands(command)
    command("doctor", run_doctor, "what is installed, and whether all is well", takes=("json",))
    return top


def factor(text: str) -> tuple[str, float]:
    """"B=16" as ("B", 16.0)."""
    try:
        name, value = text.split("=")
        return name, float(value)
    except ValueError:
        raise ValueError(f"--rates {text}: expected NAME=FACTOR, such as B=16") from None


def finetune_options(p: ArgumentParser) -> None:
    from .peft import METHODS
    from .peft.folders import formats
    p.add_argument("method", metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    p.add_argument("--task", default="domain", help="domain (default), classify or summarize")
    p.add_argument("--steps", type=number(int, least=1),
                   help="optimizer steps (default 300, with --quick 12)")
    p.add_argument("--batch-size", type=number(int, least=1),
                   help="rows per step (default 8, classify 16)")
    p.add_argument("--lr", type=number(float, least=0),
                   help="learning rate (default: the method's own for a model 128 wide, times "
                        "√(128/d); tinypeft/interop/README.md has better ones for SmolLM2)")
    p.add_argument("--find-rate", action="store_true",
                   help="do not train: measure which rate suits the method and the task, and draw "
                        "the loss over the rate into rates.svg in the folder")
    p.add_argument("--rates", nargs="+", action="extend", default=[], metavar="NAME=FACTOR",
                   help="factors on the rate by name of the parameter, such as blocks.0=0.5; B=16 "
                        "is LoRA+")
    p.add_argument("--validate-every", type=number(int, least=1), metavar="N",
                   help="measure the validation loss every N steps, and end with the best state")
    p.add_argument("--patience", type=number(int, least=1), metavar="K",
                   help="stop after K of these measurements without a lower loss")
    p.add_argument("--accumulate", type=number(int, least=1), default=1, metavar="K",
                   help="cut a step's rows into K parts, one after the other, to save memory")
    p.add_argument("--checkpoint-activations", action="store_true",
                   help="compute each block again in the backward pass, to save memory")
    fields(p, "hyperparameters, such as rank=4")
    output(p, "the adapter (default: it is not saved)")
    p.add_argument("--format", default="tinypeft", choices=formats(), help="the adapter's format")
    p.add_argument("--checkpoint", type=Path, metavar="FILE",
                   help="write training's state to this file; resume from it if it exists")


def quantize_options(p: ArgumentParser) -> None:
    from .quant import SCHEMES
    p.add_argument("scheme", metavar="SCHEME", help=f"one of {', '.join(SCHEMES)}")
    fields(p, "hyperparameters, such as bits=4")


def add_model_commands(command: Callable) -> None:
    command("finetune", run_finetune, "fine-tune with one method and save the adapter",
            options=finetune_options)
    command("quantize", run_quantize, "quantize with one scheme and measure the cost",
            options=quantize_options)

    p = command("generate", run_generate, "continue a text")
    p.add_argument("prompt", metavar="TEXT")
    p.add_argument("--max-new-tokens", type=number(int, least=0), default=120)
    p.add_argument("--temperature", type=number(float, least=0), default=0.7,
                   help="0 is greedy (default 0.7)")
    p.add_argument("--top-k", type=number(int, least=1),
                   help="sample from the k most probable tokens")
    p.add_argument("--top-p", type=number(float, above=0, most=1),
                   help="sample from the tokens that hold probability p")
    p.add_argument("--adapter", type=Path, metavar="FOLDER", help="saved by finetune --out or PEFT")
    p.add_argument("--chat", action="store_true",
                   help="TEXT is a message to a model that was trained on conversations, such as "
                        "smollm2; print its answer")

    p = command("pretrain", run_pretrain, "train the base again (an hour; it resumes)", takes=())
    output(p, "weights, tokenizer and record", required=True)
    p.add_argument("--work", type=Path, metavar="FOLDER", help="for the checkpoint (default: OUT)")


def add_course_commands(command: Callable) -> None:
    p = command("lessons", run_lessons, "the course's notebooks, made from lessons/src", takes=())
    p.add_argument("action", choices=("list", "build", "run"), help="build runs and writes them")
    p.add_argument("which", nargs="*", metavar="NN", help="numbers of lessons (default: all)")

    p = command("check", run_check, "check the functions in a file", takes=("seed", "json"))
    p.add_argument("exercise", metavar="NAME", help="an exercise (lora.forward) or a topic (lora)")
    p.add_argument("file", type=Path, help="it defines lora_forward or the like; it is executed")

    p = command("assign", run_assign, "write a lesson's assignment into a folder", takes=())
    p.add_argument("lesson", metavar="NN")
    output(p, "the assignment", required=True)
    p.add_argument("--nbgrader", action="store_true", help="write nbgrader's source notebook")

    p = command("grade", run_grade, "grade notebooks with fresh data", takes=("seed", "json"))
    p.add_argument("submissions", nargs="+", metavar="FILE|FOLDER",
                   help="notebooks; grading executes them, and not in a sandbox")
    p.add_argument("--lesson", metavar="NN", help="default: by name or content of each file")
    p.add_argument("--csv", type=Path, metavar="FILE", help="write the points to this file")
    p.add_argument("--timeout", type=number(float, above=0), default=300,
                   help="seconds per notebook (default 300)")
    p.add_argument("--jobs", type=number(int, least=1), default=2,
                   help="submissions at a time (default 2)")


# -- commands --------------------------------------------------------------------------------------
def training_of(args: Namespace) -> dict:
    """The options that `train` takes and `find_rate` does not. Raises ValueError for an option that
    would do nothing."""
    options = dict(lr=args.lr, checkpoint=args.checkpoint, eval_every=args.validate_every,
                   patience=args.patience)
    given = [name for name in ("lr", "checkpoint", "validate_every", "patience")
             if vars(args)[name] is not None]
    if args.find_rate and given:
        raise ValueError("--find-rate does not train; leave out "
                         + ", ".join(f"--{name.replace('_', '-')}" for name in given))
    if args.patience and not args.validate_every:
        raise ValueError("--patience counts measurements of the validation loss; give "
                         "--validate-every, too")
    return options | {"keep_best": args.validate_every is not None}


def show_rates(found: Any, args: Namespace) -> None:
    """Print a `RateSearch`, and draw it."""
    from .curves import draw_rates, svg
    from .files import write_atomically
    picture = args.out and args.out / "rates.svg"
    if picture: write_atomically(picture, svg(draw_rates, found))
    if args.json:
        return show_json({"suggestion": found.suggestion, "rates": found.rates.tolist(),
                          "losses": found.losses.tolist(), "picture": picture and str(picture)})
    print(found)
    print(f"next: the same command with --lr {found.suggestion:.2g} instead of --find-rate"
          + (f"; the curve is in {picture}" if picture else ""))


def run_finetune(args: Namespace) -> None:
    from .files import check_writable
    from .finder import find_rate
    from .peft import METHODS, attach
    from .peft.folders import formats
    from .text import tasks
    from .train import evaluate, train
    options = training_of(args)
    model, classify = model_of(args), args.task == "classify"
    method = build("method", METHODS, args.method, args.set)
    known([args.task], ("domain", "classify", "summarize"), "task")
    for folder in (args.out, args.checkpoint and args.checkpoint.parent):
        if folder: check_writable(folder)
    task = getattr(tasks, args.task)(model)
    tuned = attach(model, method, rng=args.seed, head=len(task.classes) if classify else None,
                   head_bias=args.format != "peft")
    formats()[args.format].check(tuned)
    both = dict(batch_size=args.batch_size or (16 if classify else 8), seed=args.seed,
                rates=dict(map(factor, args.rates)), accumulate=args.accumulate,
                checkpoint_activations=args.checkpoint_activations)
    if args.find_rate:
        tried = args.steps or (12 if args.quick else 60)
        return show_rates(find_rate(tuned, task, steps=tried, **both), args)
    test = lambda: evaluate(tuned, task, "test", max_batches=2 if args.quick else None)
    before = None
    if not classify:
        with tuned.disabled(): before = test()
    steps = args.steps if args.steps is not None else 12 if args.quick else 300
    history = train(tuned, task, steps, **both, **options)
    after = test()
    if args.out: tuned.save(args.out, args.format)
    record = {"method": str(method), "task": args.task, "steps": len(history.loss),
              "seconds": round(history.seconds, 1), "trained": tuned.summary().trained,
              "before": before, "after": after, "best": history.best and history.best[0],
              "stopped": history.stopped, "saved": args.out and str(args.out)}
    if args.json: return show_json(record)
    print(tuned.summary())
    if history.stopped: print(f"stopped early: {history.stopped}")
    if record["best"]: print(f"kept: the state after step {record['best']}, the best on validation")
    print(f"{args.task}, {record['steps']} steps in {record['seconds']} s; on the test split:")
    for name, value in after.items():
        print(f"  {name:<15}{'' if before is None else f'{before[name]:.4f} → '}{value:.4f}")
    if args.out:
        loader = f"tinypeft.load_adapter(model, {str(args.out)!r})"
        theirs = f"peft.PeftModel.from_pretrained(model, {str(args.out)!r}) loads it, and so does "
        print(f"saved in {args.out}; "
              + (theirs + loader if args.format == "peft" else f"{loader} loads it"))


def run_quantize(args: Namespace) -> None:
    from .quant import SCHEMES
    from .study.compare import Size, cost_of_scheme, described
    scheme = build("scheme", SCHEMES, args.scheme, args.set)
    record = cost_of_scheme(model_of(args), scheme, Size(test_batches=2 if args.quick else 8))
    if args.json: return show_json(record)
    print(described(record))


def run_generate(args: Namespace) -> None:
    from .generate import generate
    from .peft import load_adapter
    from .text.chat import chat_end, chat_prompt
    model = model_of(args)
    tokenizer, context = model.tokenizer, model.config.context_length
    if args.chat: tokens, stop = chat_prompt(tokenizer, args.prompt), chat_end(tokenizer)
    else:         tokens, stop = tokenizer.encode_prompt(args.prompt), tokenizer.end_of_text
    n = tokens.size
    if n == 0: raise ValueError("generate: the text is empty; give the model something to continue")
    if n >= context:
        raise ValueError(f"generate: the text has {n} tokens and the model takes {context}, "
                         "continuation included; shorten the text")
    tuned = load_adapter(model, args.adapter) if args.adapter else model
    start = time.perf_counter()
    out = generate(tuned, tokens[None], min(args.max_new_tokens, context - n), args.temperature,
                   args.top_k, args.top_p, rng=args.seed, stop=stop)
    new, seconds = out[0, n:], time.perf_counter() - start
    in_vocabulary = new < tokenizer.vocab_size           # some vocabularies are padded
    text = tokenizer.decode(new[in_vocabulary & (new != stop)], continued=not args.chat)
    if not args.json: return print(text if args.chat else args.prompt + text)
    show_json({"prompt": args.prompt, "text": text, "tokens": len(new),
               "tokens_per_second": len(new) / seconds})


def run_pretrain(args: Namespace) -> None:
    from .files import check_writable
    from .pretrained.make import pretrain
    for folder in (args.out, args.work or args.out): check_writable(folder)
    show_json(pretrain(args.work or args.out, args.out)["results"])


def run_lessons(args: Namespace) -> None:
    from .course import build
    chosen = [path for which in args.which or (None,) for path in build.sources(which)]
    if args.action == "list": print(build.table(chosen))
    else: build.build(chosen, write=args.action == "build")


def run_check(args: Namespace) -> int:
    from .course.check import check_file
    if not args.file.is_file(): raise FileNotFoundError(f"check: there is no file {args.file}")
    results = check_file(args.exercise, args.file, args.seed)
    if args.json:
        show_json({r.exercise.name: {"passed": r.passed, "message": r.message, "cause": r.cause}
                   for r in results})
    else: print("\n".join(map(repr, results)))
    return 0 if all(results) else 1


def run_assign(args: Namespace) -> None:
    from .course.assign import assign
    from .files import check_writable
    check_writable(args.out)
    print("\n".join(map(str, assign(args.lesson, args.out, args.nbgrader))))


def run_grade(args: Namespace) -> None:
    from .course.grade import as_json, grade, write_csv
    from .files import check_writable
    if args.csv: check_writable(args.csv.parent)
    say = None if args.json else lambda result: print(result, flush=True)
    seed = args.seed + 1                                 # students practise with seed 0
    grades = grade(args.submissions, args.lesson, seed, args.timeout, args.jobs, say)
    if args.csv: write_csv(grades, args.csv)
    if args.json: print(as_json(grades))


def run_doctor(args: Namespace) -> int:
    from .doctor import report
    found = report()
    if args.json: show_json(found)
    else: print("\n".join(f"{name:<14}{value}" for name, value in found.items()))
    return 0 if found["verdict"] == "all is well" else 1
