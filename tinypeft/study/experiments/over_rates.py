"""What a learning rate decides: three experiments that train at several rates."""
from dataclasses import dataclass, replace

import numpy as np

from ...peft import PrefixTuning
from ..bases import kept_text
from ..experiment import Experiment, as_lists
from ..tuning import SEEDS, Arm, fine_tune, test_loss, tested
from .arms import tuned
from .probes import changes, untrained
from .rates import search

__all__ = ["BEST_RATES", "FRONTIER", "PREFIX_RATES"]


# What is said of LoRA's learning rate ("LoRA Without Regret", Schulman et al., Thinking Machines Lab, 2025), on the base. The
# best rate is estimated by a parabola in log(rate) through the three points around the least loss, with seeds that choose
# nothing else.
def measure_best(arm: Arm, seed: int, settings: dict) -> dict:
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
    measure_best, OF_RATES, {"steps": 150, "batch_size": 4, "first": 5, "most": 9},
    {"steps": 2, "first": 3, "most": 3, "seeds": (0,), "conditions": ("full, small", "LoRA, small")},
    seeds=(102, 103, 104, 105))


# Is the MLP that makes a prefix steadier to train than the prefix (arXiv 2101.00190)?
@dataclass(frozen=True)
class OverRates:
    """A method, and the learning rates that are tried."""
    method: PrefixTuning
    rates: tuple[float, ...]


def measure_prefix(tried: OverRates, seed: int, settings: dict) -> dict:
    """Lists over learning rates."""
    def at(rate):
        model, history = fine_tune(tried.method, seed, settings, lr=rate)
        return tested(model) | {"rate": rate, "validation": test_loss(model, split="validation"),
                                "roughness": roughness(history.loss), "seconds": history.seconds}
    found = as_lists(map(at, tried.rates[:settings.get("tried")]))
    return found | {"seconds": sum(found["seconds"])}


def roughness(losses: list[float]) -> float:
    """Mean absolute change of the training loss from step to step in the second half, nats."""
    late = losses[len(losses) // 2:]
    return sum(abs(b - a) for a, b in zip(late, late[1:], strict=False)) / (len(late) - 1)


PREFIX_RATES = Experiment(
    "prefix_rates", "Prefix tuning, P = 10, of the MLP that makes the prefix (reparameterized) or of the prefix itself "
    "(direct), over learning rates, each √3 times the one before: two steps are three times a rate.",
    {"rate": "the learning rates, ascending", "loss": "nats/token, domain test, one per rate",
     "loss_documents": "nats, one sum per rate and document of the test text", "validation": "nats/token, domain validation",
     "roughness": "nats, mean absolute change of the training loss from step to step in the second half, one per rate",
     "seconds": "seconds in training steps"},
    measure_prefix, {"reparameterized": OverRates(PrefixTuning(length=10), (2.9e-3, 5e-3, 8.7e-3, 0.015, 0.026, 0.045)),
                     "direct": OverRates(PrefixTuning(length=10, reparameterize=False), (0.039, 0.067, 0.116, 0.2, 0.35, 0.6))},
    {"steps": 100, "batch_size": 4}, {"steps": 4, "tried": 2, "seeds": (0, 1)}, seeds=SEEDS)


# One curve for every method: a single rate cannot tell whether one method forgets less than another or has only learned less
# (arXiv 2405.09673). The rates of a method are its best one on domain times 1/16 … 2.
METHODS = "full", "lora_all", "adalora", "adapter", "parallel_adapter", "prefix", "prompt"


def measure_both(arm: Arm, seed: int, settings: dict) -> dict:
    """Lists over the learning rates. The arm's own rate is its best one."""
    def at(rate):
        model, _ = replace(arm, lr=rate).train(seed, settings)
        learned = changes(untrained("base", "learned"), tested(model, "learned"), sign=-1)
        forgotten = changes(untrained("base", "forgotten", kept_text), tested(model, "forgotten", kept_text()))
        return {"rate": rate} | learned | forgotten
    return as_lists(at(float(f"{arm.lr * factor:.2g}")) for factor in settings["factors"])


FRONTIER = Experiment(
    "frontier", "What a method learns of domain and what it forgets of the base's own text, at learning rates from 1/16 to "
    "twice its best one on domain (experiment `rates`).",
    {"rate": "the learning rates, ascending", "learned": "nats/token gained on domain's test text, one per rate",
     "forgotten": "nats/token lost on test text of the base's own kind, one per rate",
     "learned_documents": "nats, one sum per rate and document", "forgotten_documents": "the same of the other text"},
    measure_both, {name: arm for name, arm in tuned("methods").items() if name in METHODS},
    {"steps": 150, "batch_size": 4, "factors": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2]},
    {"steps": 3, "factors": [1], "seeds": (0, 1), "conditions": ("full", "lora_all")}, seeds=SEEDS)
