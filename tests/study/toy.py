"""An experiment of made-up numbers."""
import dataclasses

import numpy as np

from tinypeft.study.experiment import Experiment

MEASURED = []


@dataclasses.dataclass(frozen=True)
class Length:
    """A condition's value: what the seed of a random vector begins with. wide: a field that stays at its default."""
    n: int
    wide: bool = False


def measure(length, seed, settings):
    MEASURED.append((length.n, seed))
    if len(MEASURED) > settings.get("stop", 99): raise KeyboardInterrupt
    x = np.random.default_rng([length.n, seed]).standard_normal(3)
    return {"loss": np.float32(settings["size"] + x[0]), "curve": x, "n": np.int64(3), "seconds": len(MEASURED)}


METRICS = {"loss": "nothing", "curve": "nothing, three numbers", "n": "three", "seconds": "a clock"}
TOY = Experiment("toy", "Made-up numbers.", METRICS, measure, {"a": Length(1), "bb": Length(2)}, {"size": 2.0}, {"size": 1.0})
