"""Wrong command lines, and right ones in a hostile place: no traceback, a message that helps, and nothing lost.

    nice python -m tests.stress.commands --record

A wrong command line ends with status 2. It says what it got (the option or field, and its value), what it expected, and it
leaves the folder that it runs in as it was. `ABUSES` are shell scripts: a full disk, a broken pipe, closed streams, a
folder where nothing can be written (/proc, because the superuser may write anywhere else), signals.
"""
import argparse
import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tinypeft as tp
from tests.bad_values import bad_values
from tests.stress import record
from tinypeft.commands.arguments import parsed
from tinypeft.commands.cli import main as tinypeft
from tinypeft.common.wording import brief

ROOT = Path(__file__).parents[2]
POSITIVE, WHOLE = "must be a positive integer", "must be a non-negative integer"


# -- wrong command lines ---------------------------------------------------------------------------
def wrong_numbers() -> Iterator[tuple]:
    """(arguments, what the message must contain)"""
    options = {
        (POSITIVE, ("0", "-1", "1.5", "x", "", "nan", "1e3")): [
            "finetune lora --steps", "finetune lora --batch-size", "finetune lora --validate-every",
            "generate x --top-k", "figures --jobs", "grade a --jobs", "memory --batch-size", "memory --tokens"],
        (WHOLE, ("-1", "0.5", "x", "", "inf")): ["finetune lora --seed", "generate x --max-new-tokens", "--seed"],
        ("must be a non-negative number", ("-1", "nan", "inf", "x", "")): ["finetune lora --lr", "generate x --temperature"],
        ("must be a positive number", ("0", "-1", "nan", "inf", "x")): ["grade a --timeout", "memory --params"],
        ("must be a number in (0, 1]", ("0", "-1", "1.1", "nan", "x")): ["generate x --top-p"]}
    for (expected, values), lines in options.items():
        for line in lines:
            for value in values: yield [*line.split(), value], (line.split()[-1], repr(value), expected)


def wrong_fields() -> Iterator[tuple]:
    """Each field of each method and scheme with values that it refuses, as its declaration says."""
    for command, classes in (("finetune", tp.METHODS), ("quantize", tp.SCHEMES)):
        for name, cls in classes.items():
            if name == "probe": continue                         # it is solved, and refuses --set
            yield [command, name, "--set", "nosuch=1"], (cls.__name__, "no field 'nosuch'")
            yield [command, name, "--set", "nosuch"], ("nosuch", "expected FIELD=VALUE")
            for field in dataclasses.fields(cls):
                limit = field.metadata.get("limit")
                for bad in bad_values(limit) if limit and field.init else ():
                    if isinstance(bad, str) and limit.holds((bad,)): continue                 # the command line takes one name
                    text = f"{field.name}={bad!r}"           # nan and inf are no literals, and stay text
                    yield [command, name, "--set", text], (cls.__name__, *text.split("=")[:1], limit.expected,
                                                           f"got {brief(parsed(text)[1])}")


WRONG = [(line.split("|"), says) for line, *says in (
    ("nosuch", "nosuch", "finetune"), ("finetune", "METHOD"), ("quantize", "SCHEME"), ("generate", "TEXT"),
    ("lessons", "action"), ("lessons|nosuch", "nosuch", "list"), ("check", "NAME"), ("assign|07", "--out"), ("grade", "FILE"),
    ("assign|--out|x", "NN --out"), ("assign|--out|x|--answers|a.md", "NN --out"), ("assign|99|--answers|x", "'99'", "07_lora"),
    ("pretrain", "--out"), ("--nosuch", "--nosuch"), ("finetune|lora|--nosuch", "--nosuch"), ("doctor|x", "x"),
    ("finetune|lora|--format|nosuch", "nosuch", "peft"), ("finetune|lora|--steps", "--steps", "expected one argument"),
    # an option that the command would ignore
    ("pretrain|--out|x|--quick", "--quick"), ("--quick|pretrain|--out|x", "does not take --quick"),
    ("doctor|--model|x", "--model"), ("--model|x|doctor", "does not take --model"), ("--seed|1|doctor", "does not take --seed"),
    ("--json|assign|07|--out|x", "does not take --json"), ("lessons|list|--json", "--json"),
    # names that do not exist
    ("finetune|lorra", "no method 'lorra'", "lora"), ("finetune|", "no method ''", "lora"),
    ("finetune|LoRA", "no method 'LoRA'", "lora"), ("quantize|nf5", "no scheme 'nf5'", "nf4"),
    ("finetune|lora|--task|translate", "no task 'translate'", "domain, classify, summarize"),
    ("figures|rnak", "no picture 'rnak'", "rank"), ("figures|rnak|--rerun", "no experiment 'rnak'", "rank"),
    ("figures|rnak|--check", "no experiment 'rnak'", "rank"), ("figures|rank|--all", "--all goes with --check"),
    ("check|lora.frwrd|right.py", "lora.frwrd", "lora.forward"), ("check|nosuch|right.py", "nosuch", "lora"),
    ("lessons|list|99", "no lesson '99'", "07_lora"), ("lessons|run|x", "no lesson 'x'", "07_lora"),
    ("lessons|build|07|99", "no lesson '99'", "07_lora"), ("assign|99|--out|x", "no lesson '99'", "07_lora"),
    ("grade|right.py|--lesson|99", "no lesson '99'", "07_lora"), ("memory|--shape|llama-70b", "'llama-70b'", "llama-7b"),
    ("memory|--method|magic", "'magic'", "qlora"),
    # options that do not go together, or not with this model
    ("memory|--params|7e9|--shape|gpt2", "--params or --shape, not both"), ("memory|--params|1e30", "1e+30", "expected"),
    ("memory|--params|10", "got 10", "expected"), ("memory|--set|rank=-1", "rank", POSITIVE, "-1"),
    ("memory|--set|rank=x", "rank", POSITIVE, "'x'"), ("memory|--set|bits=-4", "bits", "-4"),
    ("memory|--set|bits=nan", "bits", "'nan'"), ("memory|--set|targets=key", "targets", "'key'", "'all'"),
    ("memory|--method|adapter|--set|bottleneck=0", "bottleneck", POSITIVE, "0"),
    ("memory|--method|prefix|--set|length=2.5", "length", POSITIVE, "2.5"), ("memory|--set|rnak=3", "'rnak'", "rank"),
    ("memory|--set|rank", "rank", "expected FIELD=VALUE"), ("memory|--method|full|--set|bits=4", "bits"),
    ("finetune|adalora|--steps|9|--set|t_init=6", "9 steps are too few", "lower t_init"),
    ("finetune|lora|--set|targets=('nosuch',)", "nosuch", "query"), ("finetune|lora|--set|targets=qeury,up", "qeury", "query"),
    ("finetune|lora|--set|rank=" + "(" * 500, "rank", POSITIVE),
    ("finetune|lora|--set|rank={[]: 1}", "rank", POSITIVE), ("finetune|lora|--set|r=4", "called rank"),
    ("finetune|lora|--set|=4", "no field ''"), ("finetune|dylora|--set|rank=5|block_size=2", "block_size", "5"),
    ("finetune|adapter|--format|peft|--steps|1", "BottleneckAdapter", "PEFT"),
    # files of one's own
    ("finetune|lora|--csv|nosuch", "nosuch", "No such file"), ("finetune|lora|--csv|empty", "empty", "folder"),
    ("finetune|lora|--csv|file", "file has no row"), ("finetune|lora|--csv|right.py", "right.py has no row"),
    ("finetune|lora|--pairs|file", "file has no row"), ("finetune|lora|--pairs|c", "c is not a text file", "byte"),
    ("finetune|lora|--text|nosuch", "nosuch", "No such file"), ("finetune|lora|--text|empty", "empty holds no text file"),
    ("finetune|lora|--text|file", "file", "give more text"),
    ("finetune|lora|--text|/dev/zero", "not a regular file"),
    ("finetune|lora|--text|file|--encoding|nosuch", "no encoding 'nosuch'"), ("finetune|lora|--text", "--text", "expected"),
    ("finetune|lora|--csv|a|--pairs|b", "--pairs", "not allowed with argument --csv"),
    ("finetune|lora|--label-column|x", "--label-column needs --csv"), ("finetune|lora|--context|9", "--context needs --text"),
    ("classify|x", "--adapter"), ("classify||--adapter|adapter", "empty"),
    ("classify|x|--adapter|empty", "no adapter.safetensors"),
    ("classify|x|--adapter|adapter", "domain", "no classes", "generate"), ("evaluate|--csv|file", "--csv needs --adapter"),
    ("evaluate|--adapter|empty", "empty", "adapter"), ("evaluate|--task|nosuch", "no task 'nosuch'", "domain"),
    ("generate|", "empty"), ("generate|" + "word " * 2000, "the model takes 256", "shorten"),
    # files and folders
    *((f"{command}|--model|{folder}", folder, "model") for command in ("generate|x", "quantize|nf4", "finetune|lora", "--quick")
      for folder in ("nosuch", "file", "empty")),
    *((f"generate|x|--adapter|{folder}", folder, "adapter") for folder in ("nosuch", "file", "empty")),
    ("check|lora.forward|nosuch.py", "nosuch.py", "no file"), ("check|lora.forward|empty", "empty", "no file"),
    ("check|lora.forward|file", "file", "does not run"), ("check|lora.forward|syntax.py", "syntax.py", "SyntaxError"),
    ("check|lora.forward|raises.py", "raises.py", "ZeroDivisionError"), ("check|lora.forward|exits.py", "SystemExit"),
    ("check|lora.forward|right.py", "right.py", "lora_forward"), ("check|lora|right.py", "right.py", "lora_forward"),
    ("grade|nosuch", "nosuch", "no notebook"), ("grade|empty", "empty", "no notebook"), ("grade|file", "file", "no notebook"),
    *((line, "cannot write to the folder", where, "give a folder") for where in ("file", "file/x", "/proc/x", "/dev/full/x")
      for line in (f"--out|{where}", f"--quick|--out|{where}", f"figures|--out|{where}", f"figures|rank|--rerun|--out|{where}",
                   f"figures|--quick|--out|{where}", f"assign|07|--out|{where}", f"assign|--course|{where}",
                   f"pretrain|--out|{where}", f"finetune|lora|--out|{where}",
                   f"finetune|lora|--checkpoint|{where}/c", f"grade|right.py|--csv|{where}/c.csv")),
    ("finetune|lora|--steps|2|--checkpoint|empty", "empty", "file"),
    ("finetune|lora|--steps|2|--checkpoint|file", "file", "not a file that tinypeft wrote"),
    ("finetune|lora|--steps|2|--checkpoint|c", "c", "belongs to another run", "steps was 4, is 2", "give another file"),
)]


def wrong_lines() -> list[tuple[list[str], tuple]]:
    """All wrong command lines: (arguments, what the message must contain)."""
    return [*WRONG, *wrong_numbers(), *wrong_fields()]


def furnish(folder: Path) -> None:
    """What the command lines and scripts find in the folder that they run in."""
    (folder / "empty").mkdir()
    for name, text in {"file": "not what you think\n", "right.py": "x = 1\n", "syntax.py": "def (\n", "raises.py": "1 / 0\n",
                       "exits.py": "import sys; sys.exit()\n"}.items():
        (folder / name).write_text(text)
    outputs = "--out", str(folder / "adapter"), "--checkpoint", str(folder / "c")
    quietly(["finetune", "lora", "--quick", "--steps", "4", *outputs])


def quietly(argv: list[str]) -> tuple[int | str, str, str]:
    """Status (or the exception that got out), stdout and stderr of a command line, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try: status = tinypeft(argv)
        except SystemExit as e: status = e.code
        except BaseException as e: status = f"traceback of {type(e).__name__}: {e}"
    return status, out.getvalue(), err.getvalue()


def contents(folder: Path) -> dict:
    """path → bytes of everything in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def faults(lines: list[tuple], folder: Path) -> list[str]:
    """Run wrong command lines in a folder made by `furnish`; one sentence for each that is not answered well."""
    found, before, here = [], contents(folder), Path.cwd()
    os.chdir(folder)
    try:
        for argv, says in lines:
            status, _, err = quietly(argv)
            told = err.rsplit("usage: ", 1)[-1]
            lacks = [word for word in says if word not in told]
            if status != 2:               wrong = f"status {status}"
            elif "Traceback" in err:      wrong = "a traceback"
            elif lacks:                   wrong = f"the message lacks {lacks}: {told.splitlines()[-1][:300]}"
            elif contents(folder) != before: wrong, before = "it left or changed files", contents(folder)
            else: continue
            found.append(f"{' '.join(argv)[:150]}: {wrong}")
    finally:
        os.chdir(here)
    return found


# -- right command lines in a hostile place --------------------------------------------------------
@dataclass(frozen=True)
class Abuse:
    """A script for bash, in a folder made by `furnish`; $T is the command line. `says` must be in stderr. The files named in
    `keeps` must be as they were; nothing may be left half written."""
    script: str
    status: int
    says: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ("c", "adapter")


TRAIN = "$T finetune lora --quick --steps 4"
LONG = "$T finetune lora --quick --steps 300 --batch-size 1 --checkpoint new & until [ -e new ]; do sleep 0.1; done; "
SMALL = "ulimit -f 8; "                                  # no file may become larger than 8 KiB, as on a full disk
ABUSES = {
    "broken pipe": Abuse("$T lessons list | true; exit ${PIPESTATUS[0]}", 141),
    "full disk, doctor": Abuse("$T doctor --json > /dev/full", 2, ("No space left",)),
    "full disk, lessons": Abuse("$T lessons list > /dev/full", 2, ("No space left",)),
    "full disk, memory": Abuse("$T memory > /dev/full", 2, ("No space left",)),
    "full disk, generate": Abuse("$T generate 'Return the' --max-new-tokens 4 > /dev/full", 2, ("No space left",)),
    "full disk, finetune": Abuse(f"{TRAIN} --checkpoint c > /dev/full", 2, ("No space left",)),
    "full disk, stderr": Abuse("$T finetune nosuch 2> /dev/full", 2),
    "full disk, checkpoint": Abuse(f"{SMALL}{TRAIN} --checkpoint new", 2, ("new", "File too large")),
    "full disk, checkpoint that is there": Abuse(f"rm c; {TRAIN} --checkpoint c --seed 1 && cp c d && {SMALL}"
                                                 "$T finetune full --quick --steps 4 --checkpoint d", 2, ("d",), ("adapter",)),
    "full disk, adapter": Abuse(f"{SMALL}{TRAIN} --out adapter", 2, ("adapter", "File too large")),
    "full disk, adapter of PEFT": Abuse(f"{SMALL}{TRAIN} --out new --format peft", 2, ("new", "File too large")),
    "full disk, assignment": Abuse("mkdir a; echo old > a/07_lora.ipynb; ulimit -f 4; $T assign 07 --out a; "
                                   "s=$?; [ $(cat a/07_lora.ipynb) = old ] && exit $s", 2, ("07_lora", "File too large")),
    "full disk, picture": Abuse("mkdir f; cp -r $ROOT/figures/results f; echo old > f/rank.svg; ulimit -f 4; "
                                "$T figures rank --out f; s=$?; [ $(cat f/rank.svg) = old ] && exit $s", 2,
                                ("File too large",)),
    "full disk, cache": Abuse(f"{SMALL}TINYPEFT_CACHE=cache {TRAIN}", 0),
    "closed streams": Abuse("$T doctor <&- >&- 2>&-", 0),
    "closed stderr": Abuse(f"{TRAIN} 2>&-", 0),
    "closed stdout": Abuse(f"{TRAIN} >&-", 0),
    "closed stdin": Abuse(f"{TRAIN} <&-", 0),
    "no HOME": Abuse(f"unset HOME TINYPEFT_CACHE XDG_CACHE_HOME; {TRAIN}", 0),
    "HOME does not exist": Abuse(f"unset TINYPEFT_CACHE XDG_CACHE_HOME; HOME=/proc/nosuch {TRAIN}", 0),
    "cache under a file": Abuse(f"TINYPEFT_CACHE=file/x {TRAIN}", 0),
    "cache is a file": Abuse(f"TINYPEFT_CACHE=file {TRAIN}", 0),
    "ASCII terminal": Abuse("PYTHONIOENCODING=ascii $T lessons list", 2, ("ascii", "encode")),
    "folder that cannot be written to, doctor": Abuse("cd /proc; $T doctor", 0),
    "folder that cannot be written to, finetune": Abuse(f"cd /proc; {TRAIN}", 0),
    "folder that cannot be written to, main job": Abuse("cd /proc; $T --quick", 2, ("cannot write", "figures/latest")),
    "folder that cannot be written to, figures": Abuse("cd /proc; $T figures", 2, ("cannot write", "figures")),
    "folder that cannot be written to, checkpoint": Abuse(f"cd /proc; {TRAIN} --checkpoint c", 2, ("cannot write",)),
    "folder that cannot be written to, csv": Abuse("cp right.py 07_lora.py; here=$PWD; cd /proc; $T grade $here/07_lora.py "
                                                   "--csv p.csv", 2, ("cannot write",)),
    "Ctrl-C": Abuse(f"set -m; {LONG}kill -INT %1; wait %1", 130, ("stopped; the same command goes on from new",)),
    "Ctrl-C without a checkpoint": Abuse("set -m; export TINYPEFT_CACHE=$PWD/new; $T finetune lora --quick --steps 3000 & "
                                         "until [ -e new ]; do sleep 0.1; done; kill -INT %1; wait %1", 130, ("stopped",)),
    "Ctrl-C in the test": Abuse("set -m; $T finetune lora --steps 1 --out new & until [ -e new/task.json ]; do sleep 0.1; "
                                "done; kill -INT %1; wait %1", 130, ("stopped", "the adapter is saved in new")),
    "SIGTERM": Abuse(f"set -m; {LONG}kill -TERM %1; wait %1", 143),
    "killed, and again": Abuse(f"{LONG.replace('300', '20')}kill -KILL %1; wait %1; $T finetune lora --quick --steps 20 "
                               "--batch-size 1 --checkpoint new", 0),
    "two processes, one checkpoint": Abuse("for i in 1 2; do $T finetune lora --quick --steps 9 --checkpoint new & done; "
                                           "wait %1 && wait %2", 0),
    "two processes, one cache": Abuse(f"export TINYPEFT_CACHE=$PWD/cache; {TRAIN} & {TRAIN}; s=$?; wait %1 && exit $s", 0),
    "two processes, one adapter": Abuse("for i in 1 2; do $T finetune lora --quick --steps 9 --out new & done; "
                                        "wait %1 && wait %2 && $T generate x --max-new-tokens 2 --adapter new", 0),
}


def suffered(abuse: Abuse, furnished: Path) -> str | None:
    """What went wrong in a script that ran in a copy of a folder made by `furnish`, or None."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(furnished, name, dirs_exist_ok=True))
        before = contents(folder)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "ROOT": str(ROOT), "T": f"{sys.executable} -m tinypeft",
                                    "OPENBLAS_NUM_THREADS": "1"}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile("w+", errors="replace") as errors:
            try: done = subprocess.run(["bash", "-c", abuse.script], cwd=folder, env=environment, stdout=out, stderr=errors,
                                       timeout=300)
            except subprocess.TimeoutExpired: return "no end after 300 s"
            errors.seek(0)
            after, err = contents(folder), errors.read()
        changed = [n for n in before if n.split("/")[0] in abuse.keeps and after.get(n) != before[n]]
        half = [n for n in after if n.endswith(".part")]
    lacks = [word for word in abuse.says if word not in err]
    if "Traceback" in err or "Exception ignored" in err: return f"a traceback: {err[-400:]}"
    if done.returncode != abuse.status: return f"status {done.returncode}, expected {abuse.status}: {err[-400:]}"
    if lacks: return f"the message lacks {lacks}: {err[-400:]}"
    if changed or half: return f"changed {changed}, half written {half}"
    return None


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", action="store_true", help="write results/commands.json")
    p.add_argument("--jobs", type=int, default=2, help="scripts at a time (default 2)")
    args = p.parse_args()
    begin, lines = time.perf_counter(), wrong_lines()
    with tempfile.TemporaryDirectory() as name:
        furnish(folder := Path(name))
        found = faults(lines, folder)
        for sentence in found: print(sentence, flush=True)
        bad = {}
        with ThreadPoolExecutor(args.jobs) as pool:
            for abuse, wrong in zip(ABUSES, pool.map(lambda a: suffered(a, folder), ABUSES.values()), strict=True):
                if wrong: bad[abuse] = wrong
                print(f"{abuse}: {wrong or 'survived'}", flush=True)
    figures = {"wrong command lines": len(lines), "not answered well": len(found), "abuses": len(ABUSES),
               "not survived": len(bad), "seconds": round(time.perf_counter() - begin)}
    print(figures)
    if args.record: print(record("commands", figures))
    if found or bad: raise SystemExit("commands: see above")


if __name__ == "__main__":
    main()
