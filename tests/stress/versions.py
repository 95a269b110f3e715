"""Do the tests pass with the oldest and the newest libraries, and on each Python?

    python -m tests.stress.versions                     make the environments, run the tests, print the table
    python -m tests.stress.versions --record            the same, with the table in results/versions.json
    python -m tests.stress.versions NAME …              these combinations only; with --record, the others' rows stay

Each combination is a virtual environment, kept in --where for the next time, with NumPy, SciPy, Matplotlib, Jupyter and
pytest, and no oracle. Tests that need an oracle skip themselves. The quick main job runs in each, too, where no socket can
be made. A Python that this machine lacks is stated as such.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.stress import RESULTS, record

ROOT = Path(__file__).parents[2]
NEWEST = ["numpy", "scipy", "matplotlib", "jupyter", "pytest"]
COMBINATIONS = {                                         # name → Python, packages
    "oldest-3.11": ("3.11", ["numpy==2.0.0", "scipy==1.13.0", "matplotlib==3.9.0", "jupyter", "pytest"]),
    "newest-3.11": ("3.11", NEWEST),
    "oldest-3.13": ("3.13", ["numpy==2.1.0", "scipy==1.14.1", "matplotlib==3.9.2", "jupyter", "pytest"]),
    "newest-3.13": ("3.13", NEWEST),
    "newest-3.14": ("3.14", NEWEST),
    "numpy-alone": ("3.11", ["numpy"]),
}
IMPORTED = """
import sys, tinypeft as tp
assert not {"scipy", "matplotlib", "IPython"} & set(sys.modules)
from tests.toys import Noise
tuned = tp.attach(tp.load_pretrained(), tp.LoRA(rank=2), rng=0)
tp.train(tuned, Noise(tuned.model.config.vocab_size), 2, progress=False)
tp.quantize(tp.load_pretrained(), tp.NF4())
tp.load_pretrained().generate(tp.load_pretrained().tokenizer.encode("def ")[None], 3)
"""
MAIN_JOB = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, *args, **kwargs): raise OSError("a socket was asked for")
socket.socket = Refused
from tinypeft.commands.cli import main
sys.exit(main(["--quick", "--out", sys.argv[1]]))
"""


def interpreter(version: str) -> str | None:
    """The path of python3.x, or None."""
    places = os.environ["PATH"].split(os.pathsep) + ["/usr/bin", "/usr/local/bin"]
    for path in (Path(place, f"python{version}") for place in places):
        if path.exists() and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0: return str(path)
    return None


def run(name: str, where: Path, tests: list[str]) -> dict:
    """One row of the table: versions, tests passed, failed and skipped, the main job, seconds."""
    version, packages = COMBINATIONS[name]
    if not (python := interpreter(version)): return {"python": version, "missing": "there is no such Python here"}
    inside = where / name / "bin" / "python"
    if not inside.exists(): subprocess.run([python, "-m", "venv", where / name], check=True)
    if subprocess.run([inside, "-m", "pip", "install", "-q", *packages]).returncode:
        return {"python": version, "missing": "pip finds no wheels"}
    listed = json.loads(subprocess.check_output([inside, "-m", "pip", "list", "--format", "json"], text=True))
    versions = {p["name"]: p["version"] for p in listed if p["name"] in ("numpy", "scipy", "matplotlib")}
    row = {"python": subprocess.check_output([inside, "-V"], text=True).split()[1], **versions}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TINYPEFT_CACHE": str(where / name / "cache")}
    start = time.monotonic()
    if "scipy" not in versions:                          # NumPy alone: no tests, but it works
        done = subprocess.run([inside, "-c", IMPORTED], env=environment, capture_output=True, text=True)
        return row | {"result": "passed" if done.returncode == 0 else done.stderr.strip()[-300:]}
    with tempfile.TemporaryDirectory() as out:
        checkout = Path(out, "checkout")                 # what tests write stays out of this one
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
        environment["PYTHONPATH"] = str(checkout)
        done = subprocess.run([inside, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors",
                               *tests], cwd=checkout, env=environment, capture_output=True, text=True)
        (where / f"{name}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        last = next((line for line in reversed(done.stdout.splitlines()) if re.search(r"\d+ passed", line)), "")
        counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
        if done.returncode > 1 or not counts: counts["result"] = (done.stdout + done.stderr).strip()[-300:]
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        job = subprocess.run([inside, "-c", MAIN_JOB, Path(out, "job")], cwd=out, env=environment, text=True,
                             capture_output=True)
    return row | counts | {"failing": failed, "main job": "passed" if job.returncode == 0 else job.stderr.strip()[-300:],
                           "tests": " ".join(tests) or "all", "seconds": round(time.monotonic() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMBINATIONS)} (default: all)")
    parser.add_argument("--record", action="store_true", help="write results/versions.json")
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir(), "tinypeft-versions"), metavar="FOLDER")
    parser.add_argument("--tests", default="tests", help="what pytest runs (default: tests)")
    args = parser.parse_args()
    args.where.mkdir(parents=True, exist_ok=True)
    rows = {name: run(name, args.where, args.tests.split()) for name in args.names or COMBINATIONS}
    print(json.dumps(rows, indent=1))
    if args.record:
        path = RESULTS / "versions.json"
        before = json.loads(path.read_text(encoding="utf-8"))["combinations"] if path.exists() and args.names else {}
        print(record("versions", {"combinations": before | rows}))
    sys.exit(any(row.get("failing") or row.get("main job", "passed") != "passed" or row.get("result", "passed") != "passed"
                 for row in rows.values()))


if __name__ == "__main__":
    main()
