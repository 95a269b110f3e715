"""Do the tests notice a single fault? Mutation testing: a fault is planted, and the tests that reach its line must fail.

    python -m tests.stress.reached                            once: which tests reach which lines
    python -m tests.stress.mutants --count 330 --seed 1       plant 330 faults, one at a time, and print who caught them
    python -m tests.stress.mutants --count 330 --seed 1 --record        and write results/mutants.json

The faults are drawn from every module of `AREAS` by a hash of what they change, so that a change elsewhere draws the same
ones. For each, a process is forked that has NumPy, PyTorch, PEFT and pytest in memory, but not the package: it imports
the package with one module changed, and runs the module's own tests first (tests/a/test_b.py of tinypeft/a/b.py), then
others that reach the line, quick ones first, until one fails that passes without the fault. A hang or a crash counts as a
failure. `equivalent.py` lists the faults that change no result, and the ones that no test can see, each with its reason.

Faults that were tried are kept in build/mutants/: an interrupted run goes on where it was. After a change of the code, the
test that caught a fault in the committed table is tried first. `--again` tries those anew that survived.
"""
import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from tests.stress import RESULTS, record
from tests.stress.equivalent import EQUIVALENT, EXPLAINED
from tests.stress.faults import faults, planted
from tests.stress.reached import FILE, ROOT, functions, place_of
from tinypeft.files import cache_directory

__all__ = ["AREAS", "main", "sampled"]

AREAS = {
    "engine": ["engine/*.py", "models/*.py", "common/*.py"],
    "methods": ["peft/*.py"],
    "schemes": ["quant/*.py"],
    "training": ["training/*.py"],
    "interop": ["interop/*.py", "interop/families/*.py", "files/*.py"],
    "text": ["text/*.py", "text/tasks/*.py"],
    "exercises": ["course/exercises/*.py", "course/judge.py", "course/diagnose.py", "course/causes.py", "course/calls.py",
                  "course/check.py"]}
SHARES = {"engine": 2, "training": 3}                    # of few and large modules; 1 for the other areas
WITH_US = ["numpy", "scipy.linalg", "scipy.special", "torch", "hypothesis", "hypothesis.strategies", "transformers", "peft",
           "ml_dtypes", "gguf", "bitsandbytes", "safetensors.numpy", "safetensors.torch", "nbformat"]
STATE = FILE.parent / "tried.jsonl"
OWN, OTHERS, REST = 20, 12, 20                           # seconds of tests in each of three rounds


# -- which faults ----------------------------------------------------------------------------------
def modules():
    """{module: area}, such as tinypeft/peft/lora.py."""
    out = {}
    for area, patterns in AREAS.items():
        for pattern in patterns:
            for path in sorted((ROOT / "tinypeft").glob(pattern)):
                if path.name != "__init__.py": out[path.relative_to(ROOT).as_posix()] = area
    return out


def area_of(module):
    """The area of a module that a record names; it may be gone since."""
    return next(area for area, patterns in AREAS.items() if any(fnmatch(module, f"tinypeft/{p}") for p in patterns))


def sampled(count, seed, only=""):
    """[(module, its source, fault)]: from each module a share that grows as the root of its number of faults."""
    found = {}
    for module, area in modules().items():
        source = (ROOT / module).read_text("utf-8")
        wanted = [f for f in faults(ast.parse(source)) if area != "exercises" or is_check(source, f)]
        if wanted: found[module] = drawn(module, wanted, seed), source
    weight = {module: SHARES.get(modules()[module], 1) * math.sqrt(len(fs)) for module, (fs, _) in found.items()}
    share = count / max(sum(weight.values()), 1e-9)
    taken = {module: [(module, source, f) for f in fs[:max(1, round(share * weight[module]))]]
             for module, (fs, source) in found.items()}
    turns = range(max(map(len, taken.values()), default=0))
    return [row for turn in turns for module, rows in taken.items() if only in module for row in rows[turn:turn + 1]]


def is_check(source, fault):
    """In a file of exercises: a check that is weakened, or a fault in the right solution that others are compared with."""
    right = {name for name in re.findall(r"reference=(\w+)", source)}
    return not right or fault.kind == "weaken a check" or fault.function.split(".")[0] in right


def drawn(module, found, seed):
    """The faults in the order in which they are taken: kinds take turns, and a statement has one before any has two."""
    luck = lambda f: hashlib.sha256(f"{seed} {module} {f.key}".encode()).digest()
    turn, kinds, lines = {}, Counter(), Counter()
    for f in sorted(found, key=luck):
        turn[f.key] = lines[f.function, f.statement], kinds[f.kind]
        lines[f.function, f.statement] += 1
        kinds[f.kind] += 1
    return sorted(found, key=lambda f: (*turn[f.key], luck(f)))


# -- which tests -----------------------------------------------------------------------------------
class Reach:
    """The measurement of `reached.py`."""

    def __init__(self):
        if not FILE.exists(): raise SystemExit("run `python -m tests.stress.reached` first: which tests reach which lines?")
        data = json.loads(FILE.read_text("utf-8"))
        self.names, self.places = data["tests"], data["places"]
        self.seconds = dict(zip(data["tests"], data["seconds"], strict=True))
        self.sound, self.unsound = set(), set()          # tests that pass without a fault, and those that do not

    def trust(self, by, module):
        """Does the test that caught a fault pass without it?"""
        if by in self.sound or "::" not in by: return True
        whole = ast.parse((ROOT / module).read_text("utf-8"))
        failed = first_failure(module, whole, [by.removesuffix(" (import)")], self.seconds.get(by, 5))
        (self.unsound if failed else self.sound).add(by)
        return not failed

    def tests(self, module, fault):
        """Tests that reach the fault's line, and if none is known its function or its module; its own first, then the quick."""
        places = self.places.get(module, {})
        function, distance = place_of(fault.line, functions(ast.parse((ROOT / module).read_text("utf-8"))))
        lines = places.get(function, {})
        numbers = lines.get(str(distance)) if function else None
        if not numbers: numbers = {n for tests in lines.values() for n in tests} if function else None
        if not numbers: numbers = self.naming(module) or {n for ls in places.values() for tests in ls.values() for n in tests}
        own = f"tests/{Path(module).parent.relative_to('tinypeft').as_posix()}/test_{Path(module).stem}.py".replace("/./", "/")
        if "/tasks/" in module: own = "tests/text/test_tasks.py"
        if "/exercises/" in module: own = "tests/course/test_exercises.py"
        return sorted((self.names[n] for n in numbers), key=lambda t: (t.split("::")[0] != own, self.seconds[t])), own

    def naming(self, module):
        """Tests in files that name what the module exports, and those of all fields: for what is computed at its import."""
        public = re.search(r"__all__ = \[(.*?)\]", (ROOT / module).read_text("utf-8"), re.S)
        names = re.findall(r'"(\w+)"', public.group(1)) if public else []
        files = {"tests/common/test_hyper.py"} | {file for file in {t.split("::")[0] for t in self.names} if any(
            re.search(rf"\b{name}\b", (ROOT / file).read_text("utf-8")) for name in names)}
        return {n for n, t in enumerate(self.names) if t.split("::")[0] in files}

    def rounds(self, module, fault):
        """Lists of tests to try one after the other."""
        tests, own = self.tests(module, fault)
        mine = within([t for t in tests if t.startswith(own + "::")], self.seconds, OWN)
        others = spread([t for t in tests if t not in mine], 4)
        first = within(others, self.seconds, OTHERS)
        rest = within([t for t in tests if t not in mine and t not in first], self.seconds, REST)
        known = {*mine, *first, *rest}                   # and those that were measured when the line was another
        more = within([t for t in self.names if t.startswith(own + "::") and t not in known], self.seconds, OWN)
        about = f"[{Path(module).stem}." if "/exercises/" in module else ""
        measured = any(t.startswith(own + "::") for t in self.names) or not (ROOT / own).exists()
        whole = [] if measured else [f"{own}::*{about}"]
        return [tests for tests in (whole, mine, first, rest, more) if tests]


def within(tests, seconds, limit):
    out, total = [], 0.0
    for t in tests:
        total += seconds[t] + 0.01
        if total > limit and out: break
        out.append(t)
    return out


def spread(tests, each, files=8):
    """At most `each` tests of a file, of at most `files` files."""
    out = {}
    for t in tests:
        if (file := t.split("::")[0]) in out or len(out) < files: out.setdefault(file, []).append(t)
    return [t for tests in out.values() for t in tests[:each]]


# -- one fault -------------------------------------------------------------------------------------
class Planted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module before Python does, and runs the changed tree in its place."""

    def __init__(self, module, tree):
        self.name, self.path, self.tree = module.removesuffix(".py").replace("/", "."), ROOT / module, tree

    def find_spec(self, name, path, target=None):
        if name == self.name: return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


class Chosen:
    """A pytest plugin: runs the chosen tests in their order, and tells the first that fails. FILE::*WORD is all with a word."""

    def __init__(self, tests):
        self.order, self.failed = {t: i for i, t in enumerate(tests)}, None

    def pytest_collection_modifyitems(self, items):
        words = [t.split("::*") for t in self.order if "::*" in t]
        chosen = [item for item in items if item.nodeid in self.order
                  or any(item.nodeid.startswith(file + "::") and word in item.nodeid for file, word in words)]
        items[:] = sorted(chosen, key=lambda item: self.order.get(item.nodeid, 0))

    def pytest_runtest_logreport(self, report):
        if report.failed: self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report):
        if report.failed: self.failed = self.failed or f"{report.nodeid} (import)"


def first_failure(module, tree, tests, seconds):
    """The first of `tests` that fails with the module changed, "a hang", "a crash", or None. Forks."""
    read, write = os.pipe()
    folder = tempfile.mkdtemp()
    if not (child := os.fork()):
        os.close(read)
        try:
            os.setsid()
            told = in_child(module, tree, tests, seconds, folder)
            os.write(write, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        ready = select.select([read], [], [], 300 + 20 * seconds)[0]
        told = b"".join(iter(lambda: os.read(read, 65536), b"")) if ready else b""
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError): os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        shutil.rmtree(folder, ignore_errors=True)
    if told: return json.loads(told)
    return "a crash" if ready and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU) else "a hang"


def in_child(module, tree, tests, seconds, folder):
    """In the forked process: forget the package, plant the fault, run pytest, with a cache of its own."""
    cache, theirs = Path(folder, "cache"), cache_directory()           # what a fault computes is kept from others
    if theirs.exists() and not module.endswith("text/docstrings.py"):  # whose faults show where it reads the text anew
        shutil.copytree(theirs, cache, copy_function=linked)
    os.environ["TINYPEFT_CACHE"] = str(cache)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2): os.dup2(nowhere, stream)
    cpu = int(20 + 4 * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    for name in [n for n in sys.modules if n.split(".")[0] in ("tinypeft", "tests")]: del sys.modules[name]
    sys.meta_path.insert(0, Planted(module, tree))
    import pytest
    chosen = Chosen(tests)
    files = list(dict.fromkeys(str(ROOT / t.split("::")[0]) for t in tests))
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"),
                          "--basetemp", f"{folder}/tests", *files], plugins=[chosen])
    if chosen.failed is None and status not in (0, 5): return "the package's import"
    return chosen.failed


def linked(source, target):
    """A second name of a file, or a copy on another disk."""
    try: os.link(source, target)
    except OSError: shutil.copy(source, target)


# -- all of them -----------------------------------------------------------------------------------
def tried():
    """{(module, source's hash, key): row} of what was tried before."""
    rows = [json.loads(line) for line in STATE.read_text("utf-8").splitlines()] if STATE.exists() else []
    return {(r["module"], r["digest"], r["key"]): r for r in rows}


def catchers():
    """{(module, key): the test that caught it} by the committed table and by earlier runs."""
    out, table = {}, RESULTS / "mutants.json"
    if table.exists():
        for row in json.loads(table.read_text("utf-8"))["mutants"]:
            row = dict(zip(COLUMNS, row, strict=True))
            out[row["module"], " | ".join((row["function"], row["before"], row["after"]))] = row["caught by"]
    out |= {(module, key): row["by"] for (module, _, key), row in tried().items()}
    return {place: by for place, by in out.items() if by and "::" in by}


def attempt(module, source, fault, reach, hint, most):
    """(who caught it or None, seconds)."""
    start, tree = time.monotonic(), planted(ast.parse(source), fault)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile(tree, module, "exec")
    for tests in ([[hint]] if hint in reach.seconds else []) + reach.rounds(module, fault)[:most]:
        while tests := [t for t in tests if t not in reach.unsound]:
            by = first_failure(module, tree, tests, sum(reach.seconds.get(t, 60) for t in tests))
            if by is None: break
            if reach.trust(by, module): return by, time.monotonic() - start
            tests = [t for t in tests if t != by]
    return None, time.monotonic() - start


COLUMNS = ("module", "line", "function", "kind", "before", "after", "state", "caught by", "seconds")


def row_of(module, fault, by, seconds):
    place = module, fault.function, fault.before, fault.after
    state = "caught" if by else "equivalent" if place in EQUIVALENT else "explained" if place in EXPLAINED else "survived"
    return [module, fault.line, fault.function, fault.kind, fault.before, fault.after, state, by, round(seconds, 1)]


def summary(rows):
    """{area: numbers}, with the total last."""
    out = {}
    for area in [*AREAS, "all"]:
        states = Counter(row[6] for row in rows if area in ("all", area_of(row[0])))
        counted = sum(states.values()) - states["equivalent"]
        out[area] = {"planted": sum(states.values()), "equivalent": states["equivalent"], "caught": states["caught"],
                     "survived": states["survived"] + states["explained"],
                     "share caught": round(states["caught"] / max(counted, 1), 4)}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=330)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="modules whose path holds this")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many minutes")
    parser.add_argument("--rounds", type=int, default=9, help="how many lists of tests to try, the module's own first")
    parser.add_argument("--again", action="store_true", help="try anew what survived")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    start, reach, known, hints, rows = time.monotonic(), Reach(), tried(), catchers(), []
    for name in WITH_US:
        with contextlib.suppress(Exception): importlib.import_module(name)
    for module, source, fault in sampled(args.count, args.seed, args.only):
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        old = known.get((module, digest, fault.key))
        if old and (old["by"] or not args.again):
            rows.append(row_of(module, fault, old["by"], old["seconds"]))
            continue
        if (module, fault.function, fault.before, fault.after) in EQUIVALENT:
            rows.append(row_of(module, fault, None, 0))
            continue
        if time.monotonic() - start > 60 * args.minutes: break
        by, seconds = attempt(module, source, fault, reach, hints.get((module, fault.key)), args.rounds)
        rows.append(row_of(module, fault, by, seconds))
        with open(STATE, "a", encoding="utf-8") as f:
            f.write(json.dumps({"module": module, "digest": digest, "key": fault.key, "by": by, "seconds": seconds}) + "\n")
        state = rows[-1][6]
        print(f"{len(rows):4} {seconds:6.1f} s {module}:{fault.line} {fault.kind}: {fault.before} → {fault.after}: "
              f"{by or state.upper()}", flush=True)
    figures = summary(rows)
    for area, numbers in figures.items(): print(area, numbers)
    if args.record:
        rows.sort(key=lambda r: (r[0], r[1], r[4], r[5]))
        reasons = EQUIVALENT | EXPLAINED
        record("mutants", {"seed": args.seed, "areas": figures, "minutes": round(sum(r[8] for r in rows) / 60, 1),
                           "reasons": [[*place, reasons[place]] for r in rows if r[6] != "caught"
                                       and (place := (r[0], r[2], r[4], r[5])) in reasons],
                           "columns": COLUMNS, "mutants": rows})


if __name__ == "__main__":
    main()
