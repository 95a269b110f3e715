"""Prompts: is the gap to full fine-tuning smaller in a larger model, and does depth close it in a small one?

Prompt tuning equals full fine-tuning in models of ten billion parameters and falls short in small ones (arXiv 2104.08691);
prompts in every layer work in small ones too (2110.07602).
"""
from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from ...files import fingerprint
from ...peft import PrefixTuning
from ..bases import draws_of, small_base
from ..experiment import Experiment
from ..tuning import SEEDS, Arm, fine_tune, test_loss, tested
from .arms import tuned
from .rank import METRICS, measure


def measure_gain(arm: Arm, seed: int, settings: dict) -> dict:
    """What an arm gains on its base."""
    base, before = small_base(arm.base), untrained(arm.base)
    parameters = base.n_parameters()
    model, history = arm.train(seed, settings)
    after, trained = tested(model), model.summary().trained
    gained = {"gain": before["loss"] - after["loss"],
              "gain_documents": np.round(np.subtract(before["loss_documents"], after["loss_documents"]), 2)}
    return gained | {"before": before["loss"], "loss": after["loss"], "weights": fingerprint(base.state_dict())[:16],
                     "parameters": parameters, "trained": trained, "share_trained": trained / parameters,
                     "seconds": history.seconds}


@functools.cache
def untrained(base: str) -> dict:
    return tested(small_base(base))


def over_draws(arms: dict[str, Arm]) -> dict[str, Arm]:
    """Every arm on all bases of its size, at the rate that is the best on the shipped one: "prompt small" and, on the base of
    seed 1, "prompt small:1"."""
    return {f"{label.removesuffix(arm.base)}{base}": replace(arm, base=base)
            for label, arm in arms.items() for base in draws_of(arm.base)}


GAINS = {"before": "nats/token, domain test, before training", "loss": "nats/token, domain test, after training",
         "gain": "nats/token, the difference", "gain_documents": "nats, one sum per document of the test text",
         "weights": "hash of the base's weights", "parameters": "parameters of the base", "trained": "trained parameters",
         "share_trained": "trained parameters over the base's", "seconds": "seconds in training steps"}
BASES = ("three sizes of bases, each drawn three times (`study/bases.py`; \":1\" and \":2\" are the seeds of those that are "
         "not shipped)")
PROMPTS = Experiment(
    "prompts", f"Full fine-tuning, prompt tuning and P-tuning v2 (both P = 20) of {BASES}, each at its best learning rate on "
    "the shipped base of its size (experiment `rates`).",
    GAINS, measure_gain, over_draws(tuned("prompts")), {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1), "conditions": ("full base", "prompt base", "ptuning_v2 base")}, seeds=SEEDS[:2])

SIZES = Experiment(
    "sizes", f"LoRA on all matrices, sequential adapters and prompts on {BASES}, each method at about the same share of the "
    "parameters of every base (LoRA and adapters 5 %, prompts 0.4 %), and LoRA with r = 4 on all matrices of every base; full "
    "fine-tuning of the same bases is in `prompts`.",
    GAINS, measure_gain, over_draws(tuned("sizes")), {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1), "conditions": ("r = 4 small", "lora_all small")}, seeds=SEEDS[:2])


def measure_rate(tried: OverRates, seed: int, settings: dict) -> dict:
    """Lists over learning rates."""
    runs = [fine_tune(tried.method, seed, settings, lr=lr) for lr in tried.rates[:settings.get("tried")]]
    found = [tested(model) for model, _ in runs]
    return {"rate": tried.rates[:settings.get("tried")], "loss": [f["loss"] for f in found],
            "loss_documents": [f["loss_documents"] for f in found],
            "validation": [test_loss(model, split="validation") for model, _ in runs],
            "roughness": [roughness(h.loss) for _, h in runs], "seconds": sum(h.seconds for _, h in runs)}


@dataclass(frozen=True)
class OverRates:
    """A method, and the learning rates that are tried."""
    method: PrefixTuning
    rates: tuple[float, ...]


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
    measure_rate, {"reparameterized": OverRates(PrefixTuning(length=10), (2.9e-3, 5e-3, 8.7e-3, 0.015, 0.026, 0.045)),
                   "direct": OverRates(PrefixTuning(length=10, reparameterize=False), (0.039, 0.067, 0.116, 0.2, 0.35, 0.6))},
    {"steps": 100, "batch_size": 4}, {"steps": 4, "tried": 2, "seeds": (0, 1)}, seeds=SEEDS)

PREFIX_LENGTH = Experiment(
    "prefix_length", "Prompt tuning (embedding only) and prefix tuning (direct: keys and values in every layer) at length P, "
    "each at its best learning rate (experiment `rates`). \"prompt 100\" stores as many numbers as \"prefix 10\".",
    METRICS, measure, tuned("prefix_length"), {"steps": 150, "batch_size": 4},
    {"steps": 4, "seeds": (0, 1), "conditions": ("prompt 1", "prefix 10")}, seeds=SEEDS)
