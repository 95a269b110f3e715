"""What a method learns against what it forgets, over its learning rates: one curve for every method.

A single rate cannot tell whether one method forgets less than another or has only learned less (arXiv 2405.09673). The rates
of a method are its best one on domain times 1/16 … 2.
"""
from dataclasses import replace

from ..bases import base_text
from ..experiment import Experiment
from ..tuning import Arm, domain, pretrained, test_loss
from .arms import tuned

METHODS = "full", "lora_all", "adalora", "adapter", "parallel_adapter", "prefix", "prompt"


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """Lists over the learning rates. The arm's own rate is its best one."""
    texts = domain(), base_text(("test",), 128, 8)
    before = [test_loss(pretrained(), text) for text in texts]
    rates = [float(f"{arm.lr * factor:.2g}") for factor in settings["factors"]]
    trained = (replace(arm, lr=rate).train(seed, settings)[0] for rate in rates)
    after = [[test_loss(model, text) for text in texts] for model in trained]
    return {"rate": rates, "learned": [before[0] - a for a, _ in after], "forgotten": [b - before[1] for _, b in after]}


FRONTIER = Experiment(
    "frontier", "What a method learns of domain and what it forgets of the base's own text, at learning rates from 1/16 to "
    "twice its best one on domain (experiment `rates`).",
    {"rate": "the learning rates, ascending", "learned": "nats/token gained on domain's test text, one per rate",
     "forgotten": "nats/token lost on test text of the base's own kind, one per rate"},
    measure, {name: arm for name, arm in tuned("methods").items() if name in METHODS},
    {"steps": 150, "batch_size": 4, "factors": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2]},
    {"steps": 3, "factors": [1], "seeds": (0, 1), "conditions": ("full", "lora_all")})
