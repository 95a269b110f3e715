"""Does LoRA need its rank? The loss over r, and what the scale does at the extremes (arXiv 2106.09685, table 6; 2312.03732)."""
from ..experiment import Experiment
from ..tuning import DOCUMENTS, SEEDS, Arm, tested
from .arms import tuned


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """Also of the other experiments that compare arms by the test loss alone."""
    model, history = arm.train(seed, settings)
    return tested(model) | {"trained": model.summary().trained, "stored": model.summary().stored,
                            "seconds": history.seconds}


METRICS = DOCUMENTS | {"trained": "trained parameters", "stored": "stored parameters",
                     "seconds": "seconds in training steps"}

RANK = Experiment(
    "rank", "LoRA on query and value at rank r, scale α/r (α = 16) or, with /sqrt, α/√r (α = 16/√8, equal at r = 8), each at "
    "its best learning rate (experiment `rates`).",
    METRICS, measure, tuned("rank"), {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1), "conditions": ("1", "8")}, seeds=SEEDS)
