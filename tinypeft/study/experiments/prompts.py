"""Prompts: is the gap to full fine-tuning smaller in a larger model, and does depth close it in a small one?

Prompt tuning equals full fine-tuning in models of ten billion parameters and falls short in small ones (arXiv 2104.08691);
prompts in every layer work in small ones too (2110.07602).
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...peft import PrefixTuning
from ..bases import small_base
from ..experiment import Experiment
from ..tuning import Arm, fine_tune, test_loss, tested
from .arms import tuned
from .rank import METRICS, measure


def measure_gain(arm: Arm, seed: int, settings: dict) -> dict:
    """What an arm gains on its base."""
    base = small_base(arm.base)
    before, parameters = tested(base, "before"), base.n_parameters()
    model, history = arm.train(seed, settings)
    after, trained = tested(model), model.summary().trained
    windows = np.subtract(before.pop("before_windows"), after.pop("loss_windows"))
    return before | after | {"gain": before["before"] - after["loss"], "gain_windows": np.round(windows, 4),
                             "parameters": parameters, "trained": trained, "share_trained": trained / parameters,
                             "seconds": history.seconds}


GAINS = {"before": "nats/token, domain test, before training", "loss": "nats/token, domain test, after training",
         "gain": "nats/token, the difference", "gain_windows": "the same, one per window of the test text",
         "parameters": "parameters of the base", "trained": "trained parameters",
         "share_trained": "trained parameters over the base's", "seconds": "seconds in training steps"}


PROMPTS = Experiment(
    "prompts", "Full fine-tuning, prompt tuning and P-tuning v2 (both P = 20) of three bases that were trained on the same "
    "text (`study/bases.py`), each at its best learning rate (experiment `rates`).",
    GAINS, measure_gain, tuned("prompts"), {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1), "conditions": ("full base", "prompt base", "ptuning_v2 base")}, seeds=tuple(range(8)))

SIZES = Experiment(
    "sizes", "Full fine-tuning, LoRA on all matrices, sequential adapters and prompts on three bases that were trained on the "
    "same text, each method at about the same share of the parameters of every base (LoRA and adapters 5 %, prompts 0.4 %) and "
    "at its best learning rate (experiment `rates`).",
    GAINS, measure_gain,
    {label: arm for label, arm in tuned("prompts").items() if label.startswith("full")} | tuned("sizes"),
    {"steps": 150, "batch_size": 4}, {"steps": 5, "seeds": (0, 1), "conditions": ("full small", "lora_all small")},
    seeds=tuple(range(8)))


def measure_rate(tried: OverRates, seed: int, settings: dict) -> dict:
    """Lists over learning rates."""
    runs = [fine_tune(tried.method, seed, settings, lr=lr) for lr in tried.rates[:settings.get("tried")]]
    found = [tested(model) for model, _ in runs]
    return {"rate": tried.rates[:settings.get("tried")], "loss": [f["loss"] for f in found],
            "loss_windows": [f["loss_windows"] for f in found],
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
    "(direct), over learning rates.",
    {"rate": "the learning rates, ascending", "loss": "nats/token, domain test, one per rate",
     "loss_windows": "the same, one per rate and window of the test text", "validation": "nats/token, domain validation",
     "roughness": "nats, mean absolute change of the training loss from step to step in the second half, one per rate",
     "seconds": "seconds in training steps"},
    measure_rate, {"reparameterized": OverRates(PrefixTuning(length=10), (1e-3, 2.5e-3, 6e-3, 0.015, 0.036, 0.09)),
                   "direct": OverRates(PrefixTuning(length=10, reparameterize=False), (0.01, 0.03, 0.08, 0.2, 0.5, 1.2))},
    {"steps": 100, "batch_size": 4}, {"steps": 4, "tried": 2, "seeds": (0, 1)}, seeds=tuple(range(8)))

PREFIX_LENGTH = Experiment(
    "prefix_length", "Prompt tuning (embedding only) and prefix tuning (direct: keys and values in every layer) at length P, "
    "each at its best learning rate (experiment `rates`). \"prompt 100\" stores as many numbers as \"prefix 10\".",
    METRICS, measure, tuned("prefix_length"), {"steps": 150, "batch_size": 4},
    {"steps": 4, "seeds": (0, 1), "conditions": ("prompt 1", "prefix 10")}, seeds=tuple(range(8)))
