"""Does a new run agree with what the study stored? An interval for the mean of m new seeds.

    x̄ ± t(0.975, n − 1) s √(1/n + 1/m)

x̄ and s are the mean and the standard deviation over the n stored seeds. If old and new values
come from one normal distribution, 95 % of all new means lie inside: both means are uncertain, so
the interval is wider than that of x̄ alone. A frozen base has s = 0; half of the last digit that
is shown is added, because machines round differently.

The rows of a run share batches, calibration and test text. So several can lie outside together, for
one reason. `figures --check` asks another question: does the code give the same numbers again, with
the same seeds?
"""
import math
from pathlib import Path

import numpy as np

from .experiment import half_width
from .experiments.best import RESULTS
from .measuring import unlike_here
from .stored import load_whole

__all__ = ["beside", "verdict"]

DIGIT = 0.0005                                           # half of the last of three decimals


def verdict(new: list[float], stored: np.ndarray) -> dict:
    """Return what stands beside the mean of new values: "mean" and "half" of the interval, stored
    "seeds", and whether it is "inside". stored: (n,), at least two."""
    n, mean = len(stored), float(stored.mean())
    half = float(half_width(stored)) * math.sqrt(1 + n / len(new))
    inside = bool(abs(np.mean(new) - mean) <= half + DIGIT)
    return {"mean": mean, "half": half, "seeds": n, "inside": inside}


def beside(record: dict, folder: Path = RESULTS) -> list[str]:
    """Put a `verdict`, "study", into every row of a record of `compare` whose number is stored in
    `folder`. Return sentences that say which are not, and why, and what is another thing here."""
    rows = {r["label"]: (r, [r["excess"]]) for r in record["schemes"]}
    rows |= {r["name"]: (r, r["losses"]) for r in record["methods"]}
    said = []
    for name, metric in (("first_look", "loss"), ("schemes", "excess"), ("qat", "excess")):
        try: stored = load_whole(folder, name)
        except (FileNotFoundError, KeyError) as why:
            said.append(f"Not compared with the study: {why.args[0]}.")
            continue
        said += [f"The study had other input: {why}." for why in unlike_here(stored.record)]
        for label in rows.keys() & {*stored.conditions}:
            row, values = rows[label]
            row["study"] = verdict(values, stored.values(label, metric))
    return [*dict.fromkeys(said)]
