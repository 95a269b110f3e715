"""What the main job prints of methods, over eight seeds: a first run, which has three, checks the study.

The rows on schemes are those of experiment `schemes`; "float32, trained as long" is in experiment `qat`.
"""
from ...peft import LinearProbe
from .. import tuning
from ..experiment import Experiment
from ..tuning import DOCUMENTS, EIGHT, Arm, pretrained, tested
from .arms import tuned

COMPARED = {"frozen": Arm(LinearProbe()), **tuned("first_look")}


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """A linear probe changes nothing of the model: on domain it is the frozen base."""
    if isinstance(arm.method, LinearProbe): return tested(pretrained(), task=tuning.domain()) | {"trained": 0, "share": 0.0}
    model, _ = arm.train(seed, settings)
    counts = model.summary()
    return tested(model, task=tuning.domain()) | {"trained": counts.trained, "share": counts.share}


FIRST_LOOK = Experiment(
    "first_look", "The frozen base, full fine-tuning, LoRA with r = 4 on all matrices, the same on a base in NF4 (QLoRA), "
    "adapters and a prompt after 60 steps on domain, each at its best learning rate for 60 steps (experiment `rates`).",
    DOCUMENTS | {"trained": "trained parameters", "share": "trained parameters over all"},
    measure, COMPARED, {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1), "conditions": ("frozen", "full", "qlora_all")}, seeds=EIGHT)
