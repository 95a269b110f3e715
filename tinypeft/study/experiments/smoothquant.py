"""SmoothQuant's α: how much of the outliers to move from the inputs into the weights (its figure 10, the U).

Outliers that `plant_outliers` makes are undone exactly, whatever α: a channel f times as large that meets a weight f times
as small gets s_j f times as large. So the U here is that of the base's own channels. The cost of planting is seen in W8A8
without smoothing, beside it.
"""
import numpy as np

from ...quant import W8A8, SmoothQuant, capture
from ...quant.folding import followers
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


def measure_maxima(smoothed: bool, seed: int, settings: dict) -> dict:
    model, norm = planted(seed, settings["channels"], settings["factor"]), "blocks.1.norm1"
    sample = draw(seed, settings["calibration"], 16)
    readers = followers(model)[norm]
    if smoothed: rounded(SmoothQuant(alpha=settings["alpha"]), sample, model)
    X = capture(model, sample.calibration, readers[:1])[readers[0]].max_abs
    W = np.max([np.abs(model.get(path).dense_weight()).max(0) for path in readers], axis=0)
    return {"inputs": np.round(X.astype(float), 4).tolist(), "weights": np.round(W.astype(float), 5).tolist()}


SMOOTHQUANT_MAXIMA = Experiment(
    "smoothquant_maxima", "The 128 channels j that the attention of blocks.1 reads, before and after SmoothQuant (α = 0.5), 3 "
    "channels of 32 times their size planted: a picture, not a measurement, with one seed, which draws channels and "
    "calibration.", {"inputs": "max |X_j| of every channel", "weights": "max |W_j| of every channel"},
    measure_maxima, {"before": False, "after": True},
    {"channels": 3, "factor": 32, "alpha": 0.5, "calibration": 16}, {"calibration": 4}, (0,))
