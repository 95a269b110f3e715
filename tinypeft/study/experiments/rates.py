"""The learning rate of every arm that is compared, chosen on validation text, with seeds that are not reported.

A search tries three rates, each 1.8 times the one before, around the rate that is expected (`arms.py`). As long as the best
lies at an edge, it tries the next one. A training that diverges counts as infinitely bad. The other experiments take the best
rates from the files of these (`best.py`), and a test holds that each lies inside its grid.
"""
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...training.diagnosis import DivergedError
from ..experiment import Experiment
from ..quantized import costs
from ..tuning import Arm, classify, evaluate, test_loss
from .arms import TRIED
from .qat import SETTINGS as QAT_SETTINGS
from .qat import TRAINED, Trained, applied

__all__ = ["CLASSIFY_RATES", "QUANT_RATES", "RATES", "search"]

FACTOR = 1.8


def search(loss: Callable[[float, int], float], expected: float, settings: dict, factor: float = FACTOR,
           below: int | None = None) -> dict:
    """Rates in ascending order, the mean loss at each, and the losses of the seeds. loss: of a rate and a seed.

    settings["first"] rates, each `factor` times the one before, lie around the expected one, `below` of them (default: half)
    below it. Others are added while the best is the smallest or the largest, up to `most` in all.
    """
    found, first = {}, settings["first"]

    def measure(k: int) -> None:
        rate = float(f"{expected * factor ** k:.2g}")
        by_seed = [attempt(loss, rate, seed) for seed in settings["tuning_seeds"]]
        found[k] = rate, float(np.mean(by_seed)), by_seed
    for k in range(first): measure(k - (first // 2 if below is None else below))
    while len(found) < settings["most"]:
        low, high, best = min(found), max(found), min(found, key=lambda k: found[k][1])
        if low < best < high: break
        measure(low - 1 if best == low else high + 1)
    rate, mean, by_seed = zip(*(found[k] for k in sorted(found)), strict=True)
    return {"rate": rate, "loss": mean, "by_seed": by_seed}


def attempt(loss: Callable[[float, int], float], rate: float, seed: int) -> float:
    """The loss; infinity if the training diverges."""
    try: return loss(rate, seed)
    except DivergedError: return float("inf")


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """The arm's rate is where the search begins."""
    trained = lambda rate, s: replace(arm, lr=rate).train(s, settings)[0]
    return search(lambda rate, s: test_loss(trained(rate, s), split="validation"), arm.lr, settings)


def measure_classify(arm: Arm, seed: int, settings: dict) -> dict:
    """The same on classify, with a classification head, which keeps its own rate."""
    accuracy = {}

    def loss(rate, s):
        tuned, _ = replace(arm, classify_lr=rate).train_on_classify(s, settings)
        found = evaluate(tuned, classify(), "validation", batch_size=32, workers=1)
        accuracy.setdefault(rate, []).append(found["accuracy"])
        return found["loss"]
    found = search(loss, arm.classify_lr, settings)
    return found | {"accuracy": [float(np.mean(accuracy.get(rate, 0))) for rate in found["rate"]]}


def measure_quant(arm: Trained, seed: int, settings: dict) -> dict:
    """The same for a scheme that trains, on validation windows of the base's own text."""
    loss = lambda rate, s: costs(*applied(replace(arm, lr=rate), s, settings, "validation"))["excess"]
    return search(loss, arm.lr, settings)


SEARCH = {"tuning_seeds": [100, 101], "first": 3, "most": 9}
METRICS = {"rate": "the learning rates that were tried, ascending", "loss": "nats/token, domain validation, one per rate",
           "by_seed": "the same, a list over the two seeds for every rate"}
BRIEF = {"steps": 2, "tuning_seeds": [100], "first": 1, "most": 1}
RATES = Experiment(
    "rates", "Every arm that is compared on domain, at learning rates between which the best one lies; two seeds, which no "
    "other experiment uses.",
    METRICS, measure, TRIED["domain"], SEARCH | {"steps": 150, "batch_size": 4},
    BRIEF | {"conditions": ("full", "rank: 1", "loftq: LoftQ, 2 bits")}, seeds=(100,))
CLASSIFY_RATES = Experiment(
    "classify_rates", "Every arm that is compared on classify, at learning rates between which the best one lies.",
    METRICS | {"loss": "nats, classify validation, one per rate", "accuracy": "share of the validation set, one per rate"},
    measure_classify, TRIED["classify"], SEARCH | {"steps": 200, "batch_size": 16}, BRIEF | {"conditions": ("full",)},
    seeds=(100,))
QUANT_RATES = Experiment(
    "quant_rates", "Every scheme that trains, at learning rates between which the best one lies.",
    METRICS | {"loss": "nats/token over float32, validation windows of the base's own text, one per rate"},
    measure_quant, TRAINED, SEARCH | QAT_SETTINGS,
    BRIEF | {"rows": 4, "calibration": 8, "test": 16, "conditions": ("STE, 2 bits",)}, seeds=(100,))
