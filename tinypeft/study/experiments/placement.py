"""Where should LoRA's parameters go: one matrix at a high rank, or more matrices at lower ranks (arXiv 2106.09685, table 5)?"""
from ..experiment import Experiment
from ..tuning import fine_tune, test_loss
from .rates import TRIED


def measure(condition, seed, settings):
    tuned, history = fine_tune(TRIED[condition][0], seed, settings, lr=settings["lr"][condition])
    return {"loss": test_loss(tuned), "trained": tuned.summary().trained, "seconds": history.seconds}


PLACEMENT = Experiment(
    "placement", "LoRA with 9,216 parameters in every layer, in one matrix or in more, each at the best of three learning "
    "rates (experiment `rates`): test loss on domain (nats/token), trained parameters, seconds in training steps.", measure,
    ("Wq r=36", "Wv r=36", "Wq, Wv r=18", "all four r=9", "all six r=4"),
    {"steps": 150, "batch_size": 4,
     "lr": {"Wq r=36": 0.03, "Wv r=36": 0.03, "Wq, Wv r=18": 0.01, "all four r=9": 0.01, "all six r=4": 0.01}},
    {"steps": 5, "seeds": (0, 1), "conditions": ("Wq r=36", "all six r=4")})
