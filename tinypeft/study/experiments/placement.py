"""Where should LoRA's parameters go: one matrix at a high rank, or more matrices at lower ranks (arXiv 2106.09685, table 5)?"""
from dataclasses import replace

from ..experiment import Experiment
from ..tuning import Arm, fine_tune, test_loss
from .rates import TRIED


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    tuned, history = fine_tune(arm.method, seed, settings, lr=arm.lr)
    return {"loss": test_loss(tuned), "trained": tuned.summary().trained, "seconds": history.seconds}


PLACEMENT = Experiment(
    "placement", "LoRA with 9,216 parameters in every layer, in one matrix or in more, each at the best of three learning "
    "rates (experiment `rates`).",
    {"loss": "nats/token, domain test", "trained": "trained parameters", "seconds": "seconds in training steps"},
    measure, {label: replace(TRIED[label], lr=lr) for label, lr in
              {"Wq r=36": 0.03, "Wv r=36": 0.03, "Wq, Wv r=18": 0.01, "all four r=9": 0.01, "all six r=4": 0.01}.items()},
    {"steps": 150, "batch_size": 4}, {"steps": 5, "seeds": (0, 1), "conditions": ("Wq r=36", "all six r=4")})
