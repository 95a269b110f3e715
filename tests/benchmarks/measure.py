"""How a benchmark measures: its sides in turn in one process, medians, and a record that says where and when.

A ratio is the median over pairs: what else the machine does meets both sides of a pair.
"""
import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from tests.benchmarks.machine import machine

__all__ = ["about", "commit", "in_turn", "medians", "mib", "parser", "ratio", "seconds", "torch_peak", "traced_peak", "write"]

ROOT = Path(__file__).resolve().parents[2]


# -- time ----------------------------------------------------------------------------------------
def seconds(run, clock=time.perf_counter):
    start = clock()
    run()
    return clock() - start


def in_turn(runs, rounds, warmup=3, clock=time.perf_counter, twice=True):
    """name → seconds of each round. runs: name → function; they run A B C A B C …

    Each runs twice in a round, and the second time counts: the first one brings its arrays into the caches, and meanwhile the
    threads of the side before, which wait for work, go to sleep. twice=False: for runs so long that this does not matter."""
    for _ in range(warmup):
        for run in runs.values(): run()
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if twice: run()
            times[name].append(seconds(run, clock))
    return times


def medians(times, unit=1.0, digits=4):
    """name → median time, divided by `unit` seconds."""
    return {name: round(statistics.median(t) / unit, digits) for name, t in times.items()}


def mib(size):
    """Bytes in MiB, exactly; None stays None."""
    return None if size is None else size / 2**20


def ratio(a, b):
    """Median over rounds of a/b, pair by pair."""
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


# -- memory --------------------------------------------------------------------------------------
def traced_peak(step, times=3):
    """Peak bytes that one step allocates through NumPy, beyond what was there: the largest of a few peaks, because two workers
    do not always hold the most at the same moment."""
    step()
    peaks = []
    for _ in range(times):
        tracemalloc.start()
        try:
            step()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return max(peaks)


def torch_peak(step):
    """Peak bytes that one step allocates through PyTorch's CPU allocator, beyond what was there."""
    import torch
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = sorted((e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"),
                    key=lambda e: e.start_ns())
    return int(max(np.cumsum([e.nbytes() for e in events])))


# -- a run ---------------------------------------------------------------------------------------
def parser(doc, rounds):
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, help="write the record of this run to a file")
    return parser


def without_gaps(cells):
    """The cells of a row, column → number or words, but for those that were not measured."""
    return {column: value for column, value in cells.items() if value is not None}


def write(name, args, tables, settings=None):
    """Write the record of a run, if `--json` asks for it: where, when and with what, then what was measured.

    tables: name → row → column → number or words. settings: name of a table → what all of its rows share.
    `tinypeft/study/speed.py` prints both. A column that a row lacks was not measured there.
    """
    if args.json is None: return
    tables = {title: {row: without_gaps(cells) for row, cells in rows.items()} for title, rows in tables.items()}
    record = {"command": f"python -m tests.benchmarks {name}", "rounds": args.rounds, **about(), "settings": settings or {},
              "tables": tables}
    args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def about():
    """The machine, the day, the commit (with + if the code differs from it), and the versions of what was imported."""
    loaded = [sys.modules[name] for name in ("numpy", "torch", "transformers", "peft", "bitsandbytes") if name in sys.modules]
    return {"machine": machine(), "date": datetime.date.today().isoformat(), "commit": commit(),
            "versions": {"python": platform.python_version(), **{m.__name__: m.__version__ for m in loaded}}}


def commit():
    """The commit of the checkout, short; None outside of one."""
    ask = lambda *words: subprocess.run(["git", "-C", ROOT, *words], capture_output=True, encoding="utf-8")
    head = ask("rev-parse", "--short", "HEAD")
    if head.returncode: return None
    return head.stdout.strip() + "+" * bool(ask("status", "--porcelain", "--", "tinypeft", "tests").stdout)
