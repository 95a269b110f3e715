"""Every benchmark, one after another, each in a process of its own, and its record filed under figures/results.

    python -m tests.benchmarks                  what this commit has not measured on this make of processor
    python -m tests.benchmarks step gpt2        these, measured or not
    python -m tests.benchmarks NAME --rounds 9  further options go to the benchmarks
    python -m tinypeft figures                  then writes the tables and the picture

A file of records keeps one run per make of processor, the newest. Interrupted, the command goes on where it stopped.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.machine import machine
from tests.benchmarks.measure import ROOT, about, commit
from tinypeft.files import write_atomically
from tinypeft.study.speed import make

__all__ = ["ORDER", "file_of", "filed"]

ORDER = "step", "operations", "tricks", "methods", "generation", "scaling", "cores", "quant", "smollm2", "gpt2"


def file_of(name, root=ROOT):
    """The file of a benchmark's records."""
    return root / "figures" / "results" / f"benchmark_{name}.json"


def runs_in(file):
    """The runs in a file of records, the newest first."""
    return json.loads(file.read_text("utf-8"))["runs"] if file.exists() else []


def filed(file, record):
    """Put the record of a run into its file, in place of the run on the same make of processor."""
    others = [run for run in runs_in(file) if make(run["machine"]) != make(record["machine"])]
    text = json.dumps({"runs": [record, *others]}, indent=1, ensure_ascii=False)
    write_atomically(file, text + "\n")


def is_measured(name):
    """Is there a run of this very commit on this make of processor?"""
    here = make(machine()), commit()
    return not here[1].endswith("+") and here in [(make(run["machine"]), run["commit"]) for run in runs_in(file_of(name))]


def measure(name, options):
    """Run a benchmark in a process of its own and file its record."""
    with tempfile.TemporaryDirectory() as folder:
        path, command = Path(folder) / "record.json", [sys.executable, "-m", f"tests.benchmarks.{name}", *options]
        subprocess.run([*command, "--json", path], cwd=ROOT, check=True)
        record = json.loads(path.read_text("utf-8"))
    when = about()
    record = {"command": f"python -m tests.benchmarks {name}", "date": when["date"], "commit": when["commit"]} | record
    filed(file_of(name), record)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ORDER)}; default: all that are not measured")
    args, options = parser.parse_known_args(argv)
    if unknown := sorted(set(args.names) - set(ORDER)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ORDER)}")
    for name in args.names or [name for name in ORDER if not is_measured(name)]:
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        measure(name, options)
        print(f"== {name} took {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
