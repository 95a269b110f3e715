"""What a method learns against what it forgets, over its learning rates: one curve for every method.

A single rate cannot tell whether one method forgets less than another or has only learned less (arXiv 2405.09673). The rates
of a method are its best one on domain times 1/16 … 2.
"""
import functools
from dataclasses import replace

import numpy as np

from ..bases import kept_text
from ..experiment import Experiment
from ..tuning import SEEDS, Arm, domain, pretrained, tested
from .arms import tuned

METHODS = "full", "lora_all", "adalora", "adapter", "parallel_adapter", "prefix", "prompt"


TEXTS = {"learned": (functools.partial(domain, held_out=None), -1), "forgotten": (kept_text, 1)}      # the sign of a change


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """Lists over the learning rates. The arm's own rate is its best one."""
    found = {"rate": [float(f"{arm.lr * factor:.2g}") for factor in settings["factors"]]}
    for rate in found["rate"]:
        model = replace(arm, lr=rate).train(seed, settings)[0]
        for name, (text, sign) in TEXTS.items():
            before, after = untrained(name), tested(model, name, text())
            for metric in before:
                change = sign * np.subtract(after[metric], before[metric])
                found.setdefault(metric, []).append(np.round(change, 2 if change.ndim else 9).tolist())
    return found


@functools.cache
def untrained(name: str) -> dict:
    """The frozen base on one of TEXTS."""
    return tested(pretrained(), name, TEXTS[name][0]())


FRONTIER = Experiment(
    "frontier", "What a method learns of domain and what it forgets of the base's own text, at learning rates from 1/16 to "
    "twice its best one on domain (experiment `rates`).",
    {"rate": "the learning rates, ascending", "learned": "nats/token gained on domain's test text, one per rate",
     "forgotten": "nats/token lost on test text of the base's own kind, one per rate",
     "learned_documents": "nats, one sum per rate and document", "forgotten_documents": "the same of the other text"},
    measure, {name: arm for name, arm in tuned("methods").items() if name in METHODS},
    {"steps": 150, "batch_size": 4, "factors": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2]},
    {"steps": 3, "factors": [1], "seeds": (0, 1), "conditions": ("full", "lora_all")}, seeds=SEEDS)
