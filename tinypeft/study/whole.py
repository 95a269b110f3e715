"""The whole study by one command, `python -m tinypeft figures --rerun`: first the learning rates, then all that uses them.

The rates decide the conditions of the other experiments. So the command measures `rates`, `classify_rates` and `quant_rates`
first and writes the best rates to `experiments/best.py`. If they are new, it starts itself again, because this process has
loaded the old ones. What is stored and fresh is never measured again, so an interrupted command goes on where it was.
"""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .acceptance import status
from .experiment import Experiment, Results, run
from .experiments import EXPERIMENTS, rates
from .experiments.best import BEST

__all__ = ["estimate", "measure_all"]

FIRST = rates.RATES, rates.CLASSIFY_RATES, rates.QUANT_RATES


def measure_all(folder: str | Path, jobs: int | None = None, say: Callable[[str], object] = print) -> int:
    """Measure everything that is missing or stale in `folder`, in order. Returns 0, or the code of the process that goes on."""
    say(estimate(EXPERIMENTS.values(), folder))
    for experiment in FIRST:
        run(experiment, folder, jobs=jobs, say=say)
        say(f"{Path(folder) / experiment.name}.json")
    if rates.write_best(folder) != BEST:
        say("The best rates are new; the study goes on with them.")
        again = "figures", "--rerun", "--out", str(Path(folder).parent), *(("--jobs", str(jobs)) if jobs else ())
        return subprocess.run([sys.executable, "-m", __name__.split(".")[0], *again], check=False).returncode
    for experiment in EXPERIMENTS.values():
        if experiment in FIRST: continue
        run(experiment, folder, jobs=jobs, say=say)
        say(f"{Path(folder) / experiment.name}.json")
    return 0


def estimate(experiments: Iterable[Experiment], folder: str | Path) -> str:
    """A sentence: how many runs are missing or stale, and the processor time that they take, judged by the stored ones."""
    runs, seconds, unknown = 0, 0.0, []
    for e in experiments:
        stored, found = Path(folder) / f"{e.name}.json", status(e, folder)
        record = Results.read(folder, e.name) if stored.exists() else {"runs": {}}
        there = {label: by_seed for label, by_seed in record["runs"].items() if label not in found["stale"]}
        todo = sum(str(seed) not in there.get(label, {}) for label in e.conditions for seed in e.seeds)
        done = sum(len(by_seed) for by_seed in record["runs"].values())
        runs += todo
        if done: seconds += todo * record["seconds"] / done
        elif todo: unknown.append(e.name)
    more = f", and the time of what was never measured: {', '.join(unknown)}" if unknown else ""
    return f"{runs} runs are missing or stale: about {seconds / 60:.0f} minutes of processor time{more}."
