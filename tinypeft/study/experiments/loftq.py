"""LoftQ: a LoRA that starts from what rounding lost, at 4, 3 and 2 bits (its tables 1 to 4)."""
from dataclasses import replace

from ..experiment import Experiment
from ..tuning import SEEDS, Arm, tested
from .arms import tuned


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    return tested(arm.start(seed), "before") | tested(arm.train(seed, settings)[0], "after")


AT_BEST = tuned("loftq")
LONGER = {f"{label}, 300 steps": replace(arm, times=2) for label, arm in AT_BEST.items() if label[-6:] in ("3 bits", "2 bits")}
LOFTQ = Experiment(
    "loftq", "A LoRA of rank 8 on all layers of a rounded base (NF4; integers in groups of 32, asymmetric), started at zero "
    "(QLoRA) or by LoftQ, and trained for 150 steps of 4 × 128 tokens, or 300, at its best learning rate for 150 (experiment "
    "`rates`); a seed draws the LoRA and the batches.",
    {"before": "nats/token, domain test, before training", "before_documents": "nats, one sum per document of the test text",
     "after": "nats/token, domain test, after training",
     "after_documents": "the same"},
    measure, AT_BEST | LONGER, {"steps": 150, "batch_size": 4},
    {"steps": 2, "conditions": ("QLoRA, 2 bits", "LoftQ, 2 bits"), "seeds": (0,)}, seeds=SEEDS)
