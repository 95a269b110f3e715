"""The whole study by one command, `python -m tinypeft figures --rerun`: first the learning rates, then all that uses them.

The rates decide the conditions of the other experiments. So the command measures the experiments of `best.FILES` first. If
the best ones are new, it starts itself again, because this process has read the old ones. What is stored is never measured
again, so an interrupted command goes on where it was.
"""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .conditions import changed
from .experiment import Experiment
from .experiments import EXPERIMENTS
from .experiments.best import FILES, RESULTS, best_rates
from .measuring import lacking, record_of, run

__all__ = ["estimate", "measure_all"]


def measure_all(folder: str | Path, jobs: int | None = None, say: Callable[[str], object] = print) -> int:
    """Measure everything that is missing in `folder`, in order. Returns 0, or the code of the process that goes on.

    The best rates are those of the checkout's figures/results, whatever `folder` is.
    """
    say(estimate(EXPERIMENTS.values(), folder))
    best = lambda: {name: best_rates(RESULTS, name) for name in FILES.values()}
    known = best()
    for e in sorted(EXPERIMENTS.values(), key=lambda e: e.name not in known):
        if e.name not in known and best() != known:
            say("The best rates are new; the study goes on with them.")
            again = "figures", "--rerun", "--out", str(Path(folder).parent), *(("--jobs", str(jobs)) if jobs else ())
            return subprocess.run([sys.executable, "-m", __name__.split(".")[0], *again], check=False).returncode
        run(e, folder, jobs=jobs, say=say)
        say(str(Path(folder) / f"{e.name}.json"))
    return 0


def estimate(experiments: Iterable[Experiment], folder: str | Path) -> str:
    """Say in a sentence how many runs are missing, and the processor time that they take, judged by the stored ones."""
    runs, seconds, unknown = 0, 0.0, []
    for e in experiments:
        record = record_of(e, folder)
        again = changed(e, record)
        todo = len(lacking(e, {c: by_seed for c, by_seed in record["runs"].items() if c not in again}))
        done = sum(map(len, record["runs"].values()))
        runs += todo
        if done: seconds += todo * record["seconds"] / done
        elif todo: unknown.append(e.name)
    more = f", and the time of what was never measured: {', '.join(unknown)}" if unknown else ""
    return f"{runs} runs are missing: about {seconds / 60:.0f} minutes of processor time{more}."
