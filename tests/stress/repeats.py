"""Do three experiments come out alike with seeds that nobody has used, and with other kernels of BLAS?

    python -m tests.stress.repeats                      about fifteen CPU minutes
    python -m tests.stress.repeats --record             the same, with the figures in results/repeats.json

Trainings have the seeds 40 to 43. What is rounded has seeds whose parts of the test text the study has not used. Each contrast
is the difference of two conditions, seed by seed. If the study's seeds and these come from one distribution, the new mean lies
in the interval that the stored seeds predict for it (`study/prediction.py`) 95 times of 100.
"""
import argparse
import os
import subprocess
import sys

import numpy as np

from tests.stress import record
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.measuring import measure_one, rounding, workers
from tinypeft.study.pages import ROOT
from tinypeft.study.prediction import verdict
from tinypeft.study.stored import load

OTHER = "Nehalem"                                        # kernels without AVX: other sums in every product
NEW_PARTS = 34, 35, 36, 45, 46, 47                       # parts 0, 1, 2, 11, 12 and 13 of the 17
CONTRASTS = {                                            # experiment → seeds, metric, pairs of conditions
    "rank": ((40, 41, 42, 43), "loss", (("1", "8"), ("8", "64"), ("64", "64/sqrt"))),
    "formats": (NEW_PARTS, "excess", tuple((c, "NF4") for c in EXPERIMENTS["formats"].conditions if c != "NF4")),
    "gptq": (NEW_PARTS, "excess", tuple((f"round to nearest, {grid}", f"GPTQ, {grid}")
                                        for grid in ("4 bits, channel", "3 bits, channel", "2 bits, channel")))}


def repeated(name: str) -> dict:
    """The contrasts of an experiment, stored and measured again."""
    seeds, metric, pairs = CONTRASTS[name]
    e, stored, new = EXPERIMENTS[name], load(ROOT / "figures" / "results", name), {}
    tasks = [(e.measure, c, e.conditions[c], seed, e.settings) for c in dict.fromkeys(sum(pairs, ())) for seed in seeds]
    with workers(os.cpu_count()) as each:
        for label, seed, metrics, _ in each(measure_one, tasks): new[label, seed] = metrics[metric]
    found = {}
    for a, b in pairs:
        old = stored.values(a, metric) - stored.values(b, metric)
        differences = [new[a, seed] - new[b, seed] for seed in seeds]
        of, again = verdict(differences, old), float(np.mean(differences))
        found[f"{a} − {b}"] = {"stored": of["mean"], "again": again, "predicted ±": of["half"],
                               "inside": abs(again - of["mean"]) <= of["half"]}
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args(arguments)
    if os.environ.get("OPENBLAS_CORETYPE") != OTHER:     # BLAS chooses its kernels when it is loaded
        again = [sys.executable, "-m", "tests.stress.repeats", *["--record"] * args.record]
        sys.exit(subprocess.run(again, env=os.environ | {"OPENBLAS_CORETYPE": OTHER}, check=False).returncode)
    stored = load(ROOT / "figures" / "results", "rank").record["rounding"]
    figures = {"rounding here": rounding(), "rounding of the study": stored}
    for name in CONTRASTS:
        figures[name] = repeated(name)
        for contrast, of in figures[name].items():
            print(f"{name}: {contrast}: stored {of['stored']:+.4f} ± {of['predicted ±']:.4f}, again {of['again']:+.4f}"
                  f"{'' if of['inside'] else ': OUTSIDE'}", flush=True)
    inside = [of["inside"] for name in CONTRASTS for of in figures[name].values()]
    figures |= {"contrasts": len(inside), "inside": sum(inside)}
    print(f"{sum(inside)} of {len(inside)} contrasts lie inside")
    if args.record: print(record("repeats", figures))


if __name__ == "__main__":
    main()
