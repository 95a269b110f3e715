"""What is said of LoRA's learning rate ("LoRA Without Regret", Schulman et al., Thinking Machines Lab, 2025), on the base.

The best rate is estimated by a parabola in log(rate) through the three points around the least loss, with seeds that choose
nothing else.
"""
from dataclasses import replace

import numpy as np

from ..experiment import Experiment
from ..tuning import Arm, test_loss
from .arms import tuned
from .rates import search


def measure_rate(arm: Arm, seed: int, settings: dict) -> dict:
    """The loss at rates around the arm's, five or more, and the logarithm (base 10) of the rate where a parabola is least."""
    loss = lambda rate, s: test_loss(replace(arm, lr=rate).train(s, settings)[0], split="validation")
    found = search(loss, arm.lr, settings | {"tuning_seeds": [seed]})
    best = least(np.log10(found["rate"]), np.array(found["loss"]))
    return {"rate": found["rate"], "loss": found["loss"], "log_best": best}


def least(x: np.ndarray, y: np.ndarray) -> float:
    """Where the parabola through the least of the points (x, y) and its two neighbours is least; x are equally far apart. NaN
    if the least point is an end, or a neighbour diverged."""
    i = int(np.argmin(y))
    if not 0 < i < len(y) - 1 or not np.isfinite(y[i - 1:i + 2]).all(): return float("nan")
    left, middle, right = y[i - 1:i + 2]
    return float(x[i] + (x[1] - x[0]) / 2 * (left - right) / (left - 2 * middle + right))


OF_RATES = {"full, 60 steps": tuned("first_look")["full"], "LoRA, 60 steps": tuned("first_look")["lora_all"],
            "full, 150 steps": tuned("methods")["full"], "LoRA, 150 steps": tuned("methods")["lora_all"],
            **{f"{name}, {size}": arm for size in ("small", "medium") for name, arm in
               (("full", tuned("prompts")[f"full {size}"]), ("LoRA", tuned("sizes")[f"lora_all {size}"]))},
            **{f"r = {r}": tuned("rank")[str(r)] for r in (1, 8, 64)}}
BEST_RATES = Experiment(
    "best_rates", "Full fine-tuning and LoRA on domain at five rates or more, each 1.8 times the one before, and the best rate "
    "by a parabola: after 60 and 150 steps, on smaller bases, and at ranks 1, 8 and 64 of query and value with the scale α/r.",
    {"rate": "the learning rates, ascending", "loss": "nats/token, domain validation, one per rate",
     "log_best": "logarithm (base 10) of the best rate"},
    measure_rate, OF_RATES, {"steps": 150, "batch_size": 4, "first": 5, "most": 9},
    {"steps": 2, "first": 3, "most": 3, "seeds": (0,), "conditions": ("full, small", "LoRA, small")},
    seeds=(102, 103, 104, 105))
