"""Is what came after LoRA better than LoRA, with as many trained parameters? Also starts, optimizers, and a base in NF4."""
import numpy as np

from ...engine.nn import Linear
from ..experiment import Experiment
from ..tuning import SEEDS, Arm, pretrained, tested
from .arms import tuned
from .rank import METRICS


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """Also by how much training changes the length of a neuron's weights, which OFT keeps."""
    model, history = arm.train(seed, settings)
    counts = model.summary()
    return tested(model) | {"trained": counts.trained, "stored": counts.stored, "seconds": history.seconds,
                            "norms": change_of_norms(model)}


def change_of_norms(model) -> float:
    """The mean over the neurons of all changed layers of |‖w′‖/‖w‖ − 1|, w a row of W; 0 if no layer's weight is changed."""
    base, changes = pretrained(), []
    for path, layer in model.wrappers.items():
        if not layer.is_mergeable: continue
        before = np.linalg.norm(base.get(path).weight.data, axis=1)
        changes.append(np.abs(np.linalg.norm(layer.dense_weight(), axis=1) / before - 1))
    if not model.wrappers:                               # full fine-tuning
        layers = [(path, m) for path, m in model.model.named_modules() if path.startswith("blocks.") and isinstance(m, Linear)]
        changes = [np.abs(np.linalg.norm(m.weight.data, axis=1) / np.linalg.norm(base.get(path).weight.data, axis=1) - 1)
                   for path, m in layers]
    return float(np.mean(np.concatenate(changes))) if changes else 0.0


SUCCESSORS = Experiment(
    "successors", "What came after LoRA on domain: methods at three budgets of trained parameters (LoRA's at ranks 1, 4 and 16 "
    "on all matrices, within a third), starts of LoRA with r = 4, DoRA on the base in NF4, and full fine-tuning by other "
    "optimizers, each at its best learning rate (experiment `rates`).",
    METRICS | {"norms": "mean relative change of the length of a neuron's weights"},
    measure, tuned("successors"), {"steps": 150, "batch_size": 4},
    {"steps": 2, "seeds": (0,), "conditions": ("DoRA, middle", "LoRA from lora_ga", "full by Muon")}, seeds=SEEDS)
