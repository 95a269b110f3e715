"""Where should LoRA's parameters go: one matrix at a high rank, or more matrices at lower ranks (arXiv 2106.09685, table 5)?"""
from ..experiment import Experiment
from ..tuning import SEEDS
from .arms import tuned
from .rank import METRICS, measure

PLACEMENT = Experiment(
    "placement", "LoRA with 9,216 parameters in every layer, in one matrix or in more, each at its best learning rate "
    "(experiment `rates`).",
    METRICS, measure, tuned("placement"), {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1), "conditions": ("Wq r=36", "all six r=4")}, seeds=SEEDS)
