"""Do the tests notice a single fault? Faults are drawn over the whole package and planted one at a time.

    python -m tests.stress.mutants --draw 320 --seed 1              plant them, print those that no test notices
    python -m tests.stress.mutants --draw 320 --seed 1 --again      and plant once more what survived: there are new tests now
    python -m tests.stress.mutants --draw 320 --seed 1 --record     and write the counts to results/mutants.json

A file is drawn with a weight of the root of its number of faults; no file of pages and pictures, which hold words, colours
and sizes. A fault meets the module's own tests first: tests/a/test_b.py of tinypeft/a/b.py. What survives meets six other files
of tests, see `mentions`. Faults are planted in copies of the checkout. What happened is appended to a file at once, so the same
command goes on after a stop. equivalent.json names faults that change no result, with the reason.
"""
import argparse
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.stress import RESULTS, record
from tests.stress.planting import ROOT, Fault, faults

__all__ = ["draw", "main", "own_tests", "wider_tests"]

EQUIVALENT = RESULTS.parent / "equivalent.json"
WORDS = ("study/pictures/", "course/schematics/", "study/plot.py", "study/gallery.py", "study/glance.py")
ORACLES = ("torch", "transformers", "peft", "bitsandbytes", "hypothesis", "matplotlib.pyplot", "gguf", "tokenizers", "nbformat")
STALE = ["tests/study/test_experiment.py::test_no_stored_result_is_stale", "tests/course/test_lessons.py"]
# they notice any edit of what a stored number depends on
OF_EXERCISES = ["tests/course/test_exercises.py", "tests/course/test_mistakes.py"]
VERDICTS = ("own", "wider", "timeout", "new", "equivalent", "undecided", "survived", "survived own", "to be planted")


def modules() -> list[str]:
    """The files whose faults are drawn."""
    paths = sorted(path.relative_to(ROOT / "tinypeft").as_posix() for path in (ROOT / "tinypeft").rglob("*.py"))
    return [path for path in paths if not path.startswith(WORDS)]


def draw(n: int, seed: int) -> list[Fault]:
    """Draw `n` different faults."""
    rng, drawn, places = np.random.default_rng(seed), {}, {name: faults(name) for name in modules()}
    roots = np.sqrt([len(of_file) for of_file in places.values()])
    while len(drawn) < n:
        of_file = list(places.values())[rng.choice(len(roots), p=roots / roots.sum())]
        drawn[of_file[rng.integers(len(of_file))]] = True
    return list(drawn)


# -- which tests ---------------------------------------------------------------------------------
@cache
def mentions(module: str) -> dict[str, int]:
    """How often each file of tests names the module or what it defines. First come the tests of the files that import it, if
    they are six at most, and of hyperparameters if it has some: a thousand more. Then those of its folder, then by number."""
    path, text_of = Path(module), lambda name: (ROOT / "tinypeft" / name).read_text("utf-8")
    source = text_of(module)
    names = {path.stem, *re.findall(r"^ *(?:def|class) (\w+)", source, re.M), *re.findall(r"^(\w+) = ", source, re.M)}
    named, folder = rf"\b({'|'.join(names)})\b", f"tests/{path.parts[0]}/"
    imports = re.compile(rf"^ *from \.[\w.]*\b{path.parent.name if path.stem == '__init__' else path.stem} import", re.M)
    near = {f"tests/{Path(name).parts[0]}/test_{Path(name).name}" for name in modules() if imports.search(text_of(name))}
    of_fields = {"tests/common/test_hyper.py", "tests/common/test_limits.py"} if "common.hyper import" in source else set()
    near = of_fields | (near if len(near) <= 6 else set())
    paths = [*(ROOT / "tests").glob("[!s]*/test_*.py"), *(ROOT / "tests/study").glob("test_*.py"),
             *(ROOT / "tests").glob("test_[bpds][aerm]*.py")]         # not those of style and this folder
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(paths)}
    counts = {path: len(re.findall(named, text)) + 1000 * (path in near) for path, text in texts.items()}
    return dict(sorted(counts.items(), key=lambda item: (item[1] < 1000, not item[0].startswith(folder), -item[1])))


def own_tests(module: str) -> list[str]:
    """The arguments for pytest that run the tests of a module: of its name, of its folder's, or the first of `mentions`."""
    path = Path(module)
    if module.startswith("course/exercises/"): return [*OF_EXERCISES, "-k", f"{path.stem}."]
    if module.startswith("study/experiments/"):
        return ["tests/study/test_measured.py", "-m", "long or not long", "-k", f"stored_numbers or {path.stem}"]
    folder, *below = path.parent.parts or [""]
    names = [path.stem, *below, *["cli"] * (folder == "commands")]
    files = [f"tests/{folder}/test_{name}.py" for name in names] + [f"tests/test_{folder}.py"]
    of_folder = [name for name in mentions(module) if name.startswith(f"tests/{folder}/")]
    return [name for name in (*files, *of_folder, *mentions(module)) if (ROOT / name).is_file()][:1]


def wider_tests(module: str) -> list[str]:
    """The first six other files of tests."""
    return [name for name, count in mentions(module).items() if count and name not in own_tests(module)][:6]


# -- one run -------------------------------------------------------------------------------------
class First:
    """A plugin of pytest that keeps the first failure."""
    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed: self.name = self.name or report.nodeid
    pytest_collectreport = pytest_runtest_logreport


def child(folder, tests, seconds, answers):
    """Run the tests of a copy in this new process, and put the name of the first that fails."""
    import resource  # POSIX alone has it
    os.setsid()
    os.chdir(folder)
    os.environ["PYTHONPATH"] = sys.path[0] = str(folder)
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for name in [name for name in sys.modules if name.split(".")[0] in ("tinypeft", "tests")]: del sys.modules[name]
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    options = ["-x", "-q", "-p", "no:cacheprovider", *[f"--deselect={name}" for name in STALE]]
    code = pytest.main([*options, *tests], plugins=[first := First()])
    answers.put(first.name or ("" if code in (0, pytest.ExitCode.NO_TESTS_COLLECTED) else f"pytest ends with {int(code)}"))
    os._exit(0)                                          # and wait for no thread that hangs


def first_failure(folder, tests, seconds) -> str:
    """The name of the test that fails first, "" if none does, "timeout" after so many seconds of work or six times as many."""
    fork = multiprocessing.get_context("fork")           # the oracles are imported once
    answers = fork.SimpleQueue()
    process = fork.Process(target=child, args=(folder, tests, seconds, answers))
    process.start()
    process.join(6 * seconds)
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: pass
    process.join()
    if process.exitcode == 0: return answers.get()
    return "timeout" if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) else f"exit code {process.exitcode}"


def planted(folder, fault: Fault, kind: str) -> dict:
    """Plant a fault in the copy, run its tests of a kind, and take it out again."""
    original, path, start = ROOT / "tinypeft" / fault.module, Path(folder, "tinypeft", fault.module), time.time()
    source = original.read_bytes()
    path.write_bytes(source[:fault.start] + fault.text.encode() + source[fault.end:])
    by = first_failure(folder, (wider_tests if kind == "wider" else own_tests)(fault.module), 90 if kind == "wider" else 60)
    shutil.copy2(original, path)
    return {"fault": str(fault), "tests": kind, "by": by, "seconds": round(time.time() - start, 1)}


def work(folder, faults, kind, stored):
    """Plant the faults of a queue that ends with None in a copy, and append what happened to a file."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "build"))
    while (fault := faults.get()) is not None:
        row = json.dumps(planted(folder, fault, kind), ensure_ascii=False)
        with open(stored, "a", encoding="utf-8") as out: out.write(row + "\n")


def plant(drawn: list[Fault], kind: str, stored: Path, children: int = 2) -> None:
    """Plant each fault in one of the copies."""
    fork = multiprocessing.get_context("fork")
    faults = fork.Queue()
    for fault in [*drawn, *[None] * children]: faults.put(fault)
    with tempfile.TemporaryDirectory() as where:
        workers = [fork.Process(target=work, args=(f"{where}/{i}", faults, kind, stored)) for i in range(children)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()


# -- what is known -------------------------------------------------------------------------------
def verdict(rows: list[dict]) -> str:
    """What is known of a fault: the tests that caught it, or VERDICTS' other words. timeout: all its tests took too long."""
    if not rows: return "to be planted"
    if rows[-1]["by"] not in ("", "timeout"): return rows[-1]["tests"]
    if not (wider := [row["by"] for row in rows if row["tests"] == "wider"]): return "survived own"
    if all(row["by"] == "timeout" for row in rows): return "timeout"
    return "undecided" if wider[-1] else "survived"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, default=320, help="how many faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="the own tests of the survivors once more")
    parser.add_argument("--stored", type=Path, help="where the results are kept; default: build/mutants-SEED.jsonl")
    parser.add_argument("--record", action="store_true", help="write the counts")
    args = parser.parse_args()
    stored = args.stored or ROOT / "build" / f"mutants-{args.seed}.jsonl"
    stored.parent.mkdir(exist_ok=True)
    drawn, equivalent = {str(fault): fault for fault in draw(args.draw, args.seed)}, json.loads(EQUIVALENT.read_text("utf-8"))

    def known():
        """The verdict on each fault, by its name."""
        rows = [json.loads(line) for line in stored.read_text("utf-8").splitlines()] if stored.exists() else []
        return {name: "equivalent" if name in equivalent else verdict([row for row in rows if row["fault"] == name])
                for name in drawn}

    for name in ORACLES: importlib.import_module(name)
    steps = [("own", {"to be planted"}), ("new", {"survived own", "survived", "undecided"} if args.again else {}),
             ("wider", {"survived own"})]
    for kind, now in steps:
        plant([drawn[name] for name, is_known in known().items() if is_known in now], kind, stored)
    verdicts = known()
    counts = {"drawn": len(drawn), **{verdict: [*verdicts.values()].count(verdict) for verdict in VERDICTS},
              "survivors": [name for name in drawn if verdicts[name] in ("survived", "undecided")],
              "equivalents": [[name, equivalent[name]] for name in drawn if name in equivalent]}
    print(json.dumps(counts, indent=1, ensure_ascii=False))
    if args.record: record("mutants", counts)


if __name__ == "__main__":
    main()
