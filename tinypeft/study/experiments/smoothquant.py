"""SmoothQuant's α: how much of the outliers to move from the inputs into the weights (its figure 10, the U).

Outliers that `plant_outliers` makes are undone exactly, whatever α: a channel f times as large that meets a weight f times
as small gets s_j f times as large. So the U here is that of the base's own channels, and what planting costs is seen in
W8A8 without smoothing, beside it.
"""
import numpy as np

from ...quant import W8A8, SmoothQuant, capture
from ...quant.folding import followers
from ..experiment import Experiment
from ..quantized import costs, draw, rounded
from .int8_outliers import planted


def measure(condition, seed, settings):
    """excess and error for every α; and without smoothing, planted or not."""
    sample = draw(seed, settings["calibration"], settings["test"])
    model = lambda factor: planted(seed, settings["channels"], factor)
    schemes = [SmoothQuant(activations=condition, alpha=alpha) for alpha in settings["alphas"]]
    found = [costs(rounded(scheme, sample, model(settings["factor"])), sample) for scheme in schemes]
    without = {name: costs(rounded(W8A8("tensor", condition), sample, model(factor)), sample)
               for name, factor in (("as_it_is", 1), ("planted", settings["factor"]))}
    return {"excess": [c["excess"] for c in found], "error": [c["error"] for c in found],
            **{f"{metric}_{name}": c[metric] for name, c in without.items() for metric in c}}


SETTINGS = {"channels": 3, "factor": 64, "alphas": [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], "calibration": 16,
            "test": 64}

SMOOTHQUANT = Experiment(
    "smoothquant", "W8A8 after SmoothQuant for every α from 0 to 1, inputs with one scale per token, per call (tensor) or "
    "for all (static), 3 planted channels of 64 times their size: excess (nats/token) and error (of the logits' norm); the "
    "same without smoothing, with (planted) and without (as_it_is) these channels; a seed draws the channels, the "
    "calibration and the test windows",
    measure, ("token", "tensor", "static"), SETTINGS,
    {"alphas": [0, 0.5, 1], "calibration": 4, "test": 16})


def measure_maxima(condition, seed, settings):
    """max|X_j| and max|W_j| of every channel j that the second block's attention reads."""
    model, norm = planted(seed, settings["channels"], settings["factor"]), "blocks.1.norm1"
    sample = draw(seed, settings["calibration"], 16)
    readers = followers(model)[norm]
    if condition == "after": rounded(SmoothQuant(alpha=settings["alpha"]), sample, model)
    X = capture(model, sample.calibration, readers[:1])[readers[0]].max_abs
    W = np.max([np.abs(model.get(path).dense_weight()).max(0) for path in readers], axis=0)
    return {"inputs": np.round(X.astype(float), 4).tolist(), "weights": np.round(W.astype(float), 5).tolist()}


SMOOTHQUANT_MAXIMA = Experiment(
    "smoothquant_maxima", "max|X_j| and max|W_j| of the 128 channels j that blocks.1's attention reads, before and after "
    "SmoothQuant (α = 0.5), 3 channels of 32 times their size planted; one seed, which draws channels and calibration; a "
    "picture, not a measurement",
    measure_maxima, ("before", "after"),
    {"channels": 3, "factor": 32, "alpha": 0.5, "calibration": 16}, {"calibration": 4}, (0,))
