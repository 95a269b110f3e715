"""SmoothQuant's α: how much of the outliers to move from the inputs into the weights (its figure 10, the U).

Outliers that `plant_outliers` makes are undone exactly, whatever α: a channel f times as large that meets a weight f times
as small gets s_j f times as large. So the U here is that of the base's own channels. The cost of planting is seen in W8A8
without smoothing, beside it.
"""

from ...quant import W8A8, SmoothQuant
from ..experiment import Experiment
from ..quantized import PARTS, costs, draw, rounded
from .int8_outliers import planted


def measure(activations: str, seed: int, settings: dict) -> dict:
    """For every α; and without smoothing, planted or not. activations: what shares a scale of the inputs."""
    sample = draw(seed, settings["calibration"], settings["test"])
    model = lambda factor: planted(seed, settings["channels"], factor)
    schemes = [SmoothQuant(activations=activations, alpha=alpha) for alpha in settings["alphas"]]
    found = [costs(rounded(scheme, sample, model(settings["factor"])), sample) for scheme in schemes]
    without = {name: costs(rounded(W8A8("tensor", activations), sample, model(factor)), sample)
               for name, factor in (("as_it_is", 1), ("planted", settings["factor"]))}
    return {"excess": [c["excess"] for c in found], "error": [c["error"] for c in found],
            **{f"{metric}_{name}": c[metric] for name, c in without.items() for metric in c}}


SMOOTHQUANT = Experiment(
    "smoothquant", "W8A8 after SmoothQuant for every α from 0 to 1, inputs with one scale per token, per call (tensor) or for "
    "all calls (static), 3 planted channels of 64 times their size; the same without smoothing, with (planted) and without "
    "(as_it_is) these channels. A seed draws the channels, the calibration and the test windows.",
    {"excess": "nats/token over float32, one per α", "error": "relative error of the logits, one per α",
     **{f"excess_{name}": "nats/token over float32, without smoothing" for name in ("as_it_is", "planted")},
     **{f"error_{name}": "relative error of the logits, without smoothing" for name in ("as_it_is", "planted")}},
    measure, {name: name for name in ("token", "tensor", "static")},
    {"channels": 3, "factor": 64, "alphas": [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], "calibration": 16, "test": 64},
    {"alphas": [0, 0.5, 1], "calibration": 4, "test": 16}, seeds=PARTS)
