"""Does the gap to full fine-tuning close with more training steps?"""
from dataclasses import replace

from ..bases import kept_text
from ..experiment import Experiment
from ..tuning import DOCUMENTS, SEEDS, Arm, pretrained, test_loss, tested
from .arms import tuned


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    model, history = arm.train(seed, settings)
    forgotten = test_loss(model, kept_text()) - test_loss(pretrained(), kept_text())
    return tested(model) | {"forgetting": forgotten, "steps": len(history.loss)}


AT_600 = tuned("lengths")
LENGTHS = Experiment(
    "lengths", "Full fine-tuning, LoRA with r = 4 on all matrices and sequential adapters (m = 16) after 600 and 1,500 steps, "
    "both at the best learning rate for 600 (experiment `rates`).",
    DOCUMENTS | {"forgetting": "nats/token, lost on test text of the base's own kind", "steps": "training steps"},
    measure, AT_600 | {label.replace("600", "1500"): replace(arm, times=10) for label, arm in AT_600.items()},
    {"steps": 150, "batch_size": 4}, {"steps": 1, "seeds": (0, 1), "conditions": ("full 600", "lora_all 600")}, seeds=SEEDS[:2])
