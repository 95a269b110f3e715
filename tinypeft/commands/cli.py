"""`python -m tinypeft`: the main job without arguments, and one subcommand for everything else.

    python -m tinypeft                                compare methods and schemes
    python -m tinypeft finetune lora --csv reviews.csv --out judge      also --text, --pairs
    python -m tinypeft classify "A lovely lamp" --adapter judge
    python -m tinypeft export --to gguf --adapter helper --out a.gguf
    python -m tinypeft COMMAND --help                 all options of a command
"""
import contextlib
import errno
import os
import sys
import warnings
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..common.progress import in_lines
from ..common.wording import printable
from . import (
    classifying,
    combining,
    evaluating,
    exporting,
    finetuning,
    quantizing,
    study,
    writing,
)
from .arguments import SHARED, number, output, shared, show_json

# A command imports what it needs when it runs, so that `--help` does not wait for all modules.
__all__ = ["main"]

REMEDIES = {errno.ENOENT: "look at the path", errno.EISDIR: "give a file",
            errno.ENOSPC: "make room, or give another place",
            errno.EACCES: "give another place, or change its permissions"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. A wrong argument, or a file or folder that
    cannot be used, gives one line on stderr and status 2, a training that diverges one and status
    1; with TINYPEFT_TRACEBACK set in the environment it gives a traceback."""
    try:
        with in_lines(), plain_warnings():
            args = parsed_arguments(list(sys.argv[1:] if argv is None else argv))
            status = args.run(args) or 0
        if sys.stdout is not None: sys.stdout.flush()    # a full disk is found here, not at exit
        return status
    except KeyboardInterrupt as e:
        return _tell("; ".join(_notes(e)) or "stopped", 130)      # 128 + 2, as a shell says of it
    except Exception as e:
        if nobody_reads(e):                              # `… | head`: the reader has enough
            _drop_output()
            return 141                                   # 128 + 13, as a shell says of SIGPIPE
        if os.environ.get("TINYPEFT_TRACEBACK") or not (message := explained(e)): raise
        from ..training.diagnosis import DivergedError
        if isinstance(e, OSError): _drop_output()
        message = "; ".join([message, *_notes(e)]).replace(".; ", "; ")
        return _tell(message, 1 if isinstance(e, DivergedError) else 2)


def parsed_arguments(argv: list[str]) -> Namespace:
    """Parse the command line. `argv` of the result is the command itself, for run.json."""
    args, unknown = parser().parse_known_args(argv)
    args.argv = argv
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name in set(SHARED) - set(getattr(args, "takes", SHARED)):
        if getattr(args, name):
            args.parser.error(f"this command does not take --{name}")
    return args


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, a warning is one line on stderr, without the line of code that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *rest: f"tinypeft: {printable(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def explained(e: Exception) -> str | None:
    """Return one line about an error that the user can mend; None for any other."""
    from ..training.diagnosis import DivergedError
    if isinstance(e, KeyError): return str(e.args[0] if e.args else e)
    if isinstance(e, OSError) and e.strerror:
        remedy = REMEDIES.get(e.errno, "give another place, or change what may be written there")
        return f"{e.filename or 'the output'}: {e.strerror}; {remedy}"
    if isinstance(e, (ValueError, TypeError, OSError, DivergedError, ImportError)): return str(e)
    if isinstance(e, ArithmeticError):
        return f"a number is out of range ({e}); if a model was trained, try a smaller --lr"
    if isinstance(e, MemoryError):
        return f"there is not enough memory ({e}); try a smaller batch or a smaller model"
    return None


def nobody_reads(e: Exception) -> bool:
    """Tell if the output is a pipe whose reader has gone. Windows calls that an invalid argument,
    and names no file."""
    if isinstance(e, BrokenPipeError): return True
    is_write = isinstance(e, OSError) and e.filename is None
    return sys.platform == "win32" and is_write and e.errno == errno.EINVAL


def _notes(e): return getattr(e, "__notes__", [])


def _tell(message, status):
    with contextlib.suppress(OSError): print(f"tinypeft: {printable(message)}", file=sys.stderr)
    return status


def _drop_output():
    """Nobody takes the output: what is still buffered must not raise again when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- arguments -------------------------------------------------------------------------------------
class Command(ArgumentParser):
    """The parser of a command. options: adds arguments to it when it is used."""
    options: Callable | None = None

    def error(self, message):
        """Say what is wrong in one line, without all options before it."""
        self.exit(2, f"tinypeft: {printable(message)}; `{self.prog} --help` lists what there is\n")

    def parse_known_args(self, *args, **kwargs):
        add, self.options = self.options, None
        if add: add(self)
        return super().parse_known_args(*args, **kwargs)


def parser() -> ArgumentParser:
    """All commands. `command` makes one, and returns a parser for its options; what makes many
    options is called only if the command is used."""
    top = Command(prog="python -m tinypeft", description=__doc__,
                  formatter_class=RawDescriptionHelpFormatter)
    top.set_defaults(run=study.run_compare, parser=top)
    shared(top)
    output(top, "the picture and the JSON", study.LATEST)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", parser_class=Command)

    def command(name, run, about, takes=SHARED, options=None):
        sub = commands.add_parser(name, help=about, description=about)
        sub.options = options
        sub.set_defaults(run=run, takes=takes, parser=sub)
        shared(sub, takes, default=SUPPRESS)    # a value before the command stays valid
        return sub
    for commands_of in (study, finetuning, evaluating, classifying, writing, combining, exporting,
                        quantizing):
        commands_of.add_commands(command)
    add_commands(command)
    return top


def add_commands(command: Callable) -> None:
    """Add the commands of the base and the course, and doctor."""
    p = command("pretrain", run_pretrain, "train the base again (an hour; it resumes)", takes=())
    output(p, "weights, tokenizer, record and checkpoint", required=True)

    p = command("lessons", run_lessons, "the course's notebooks, made from lessons/src", takes=())
    p.add_argument("action", choices=("list", "build", "run"), help="build runs and writes them")
    p.add_argument("which", nargs="*", metavar="NN",
                   help="numbers of lessons, or projects (default: all)")

    p = command("check", run_check, "check the functions in a file", takes=("seed", "json"))
    p.add_argument("exercise", metavar="NAME", help="an exercise (lora.forward) or a topic (lora)")
    p.add_argument("file", type=Path, help="it defines lora_forward or the like; it is executed")
    p.add_argument("--hint", type=number(int, least=1, most=3), metavar="STEP",
                   help="1 is a question (the default for a wrong function), 2 the shapes, "
                        "3 nearly the code")

    p = command("assign", run_assign, "write what students get, or the open questions' answers",
                takes=())
    p.add_argument("lesson", metavar="NN", nargs="?", help="needed for --out")
    output(p, "the assignment")
    p.add_argument("--nbgrader", action="store_true", help="write nbgrader's source notebook")
    p.add_argument("--answers", type=Path, metavar="FILE|FOLDER",
                   help="write the answers of the open questions, for instructors, to FILE.md or "
                        "into a folder (without NN those of all lessons)")
    p.add_argument("--course", type=Path, metavar="FOLDER",
                   help="write what a student needs for all lessons, without solutions")

    p = command("grade", run_grade, "grade notebooks with fresh data", takes=("seed", "json"))
    p.add_argument("submissions", nargs="+", metavar="FILE|FOLDER",
                   help="notebooks; grading executes them, and not in a sandbox")
    p.add_argument("--lesson", metavar="NN", help="default: by name or content of each file")
    p.add_argument("--csv", type=Path, metavar="FILE", help="write the points to this file")
    p.add_argument("--timeout", type=number(float, above=0), default=300,
                   help="seconds per notebook (default 300)")
    p.add_argument("--cell-timeout", type=number(float, above=0), default=120,
                   help="seconds per cell (default 120); what the others define counts")
    p.add_argument("--jobs", type=number(int, least=1), default=2,
                   help="submissions at a time (default 2)")

    command("doctor", run_doctor, "what is installed, and whether all is well", takes=("json",))


# -- commands --------------------------------------------------------------------------------------
def run_pretrain(args: Namespace) -> None:
    from ..files import check_writable
    from ..pretrained.make import pretrain
    from .results import kept, noted
    check_writable(args.out)
    checkpoint = args.out / "checkpoint.safetensors"
    with noted(KeyboardInterrupt, lambda: f"stopped; {kept(checkpoint)}"):
        show_json(pretrain(args.out, args.out)["results"])


def run_lessons(args: Namespace) -> None:
    from ..course import build, projects
    which = args.which or [*(path.stem for path in build.sources()), "projects"]
    chosen = [path for name in which if name != "projects" for path in build.sources(name)]
    if args.action == "list":
        return print(build.table(chosen), build.kinds(chosen), sep="\n\n")
    if chosen: build.build(chosen, write=args.action == "build")
    if "projects" in which: projects.build(write=args.action == "build")


def run_check(args: Namespace) -> int:
    from ..course.check import check_file
    if not args.file.is_file(): raise FileNotFoundError(f"check: there is no file {args.file}")
    results = check_file(args.exercise, args.file, args.seed)
    if args.json:
        show_json({r.exercise.name: {"passed": r.passed, "message": r.message, "cause": r.cause}
                   for r in results})
    else: print("\n".join(r.told(args.hint) for r in results))
    return 0 if all(results) else 1


def run_assign(args: Namespace) -> None:
    from ..course import assign
    from ..course.handout import hand_out
    from ..files import check_writable
    if not (args.out or args.answers or args.course) or args.out and not args.lesson:
        raise ValueError("assign: say what to write: NN --out FOLDER, --answers FILE or --course "
                         "FOLDER")
    written = []
    for folder in filter(None, (args.out, args.course)): check_writable(folder)
    if args.out: written += assign.assign(args.lesson, args.out, args.nbgrader)
    if args.answers: written += assign.answers(args.lesson, args.answers)
    if args.course: written.append(hand_out(args.course))
    print("\n".join(map(str, written)))


def run_grade(args: Namespace) -> None:
    from ..course.grade import as_json, grade, write_csv
    from ..files import check_writable
    if args.csv: check_writable(args.csv.parent)
    say = None if args.json else lambda result: print(result, flush=True)
    seed = args.seed + 1                                 # students practise with seed 0
    grades = grade(args.submissions, args.lesson, seed, args.timeout, args.jobs, args.cell_timeout,
                   say)
    if args.csv: write_csv(grades, args.csv)
    if args.json: print(as_json(grades))


def run_doctor(args: Namespace) -> int:
    from .doctor import report
    found = report()
    if args.json: show_json(found)
    else: print("\n".join(f"{name:<14}{value}" for name, value in found.items()))
    return 0 if found["verdict"] == "all is well" else 1
