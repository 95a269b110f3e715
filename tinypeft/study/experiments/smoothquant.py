"""SmoothQuant's α: how much of the outliers to move from the inputs into the weights (its figure 10, the U)."""
import numpy as np

from ...quant import SmoothQuant, capture
from ...quant.folding import followers
from ..experiment import Experiment
from ..quantized import costs, draw, rounded
from .int8_outliers import planted

CONDITIONS = {"planted, per token": ("planted", "token"), "planted, static": ("planted", "static"),
              "as it is, per token": ("as it is", "token"), "as it is, static": ("as it is", "static")}


def measure(condition, seed, settings):
    """excess and error for every α."""
    where, activations = CONDITIONS[condition]
    sample = draw(seed, settings["calibration"], settings["test"])
    factor = settings["factor"] if where == "planted" else 1
    found = [costs(rounded(SmoothQuant(activations=activations, alpha=alpha), sample,
                           planted(seed, settings["channels"], factor)), sample) for alpha in settings["alphas"]]
    return {"excess": [c["excess"] for c in found], "error": [c["error"] for c in found]}


SETTINGS = {"channels": 3, "factor": 64, "alphas": [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], "calibration": 16,
            "test": 64}

smoothquant = Experiment(
    "smoothquant", "W8A8 after SmoothQuant, for every α from 0 (nothing moved) to 1 (all of it), with 3 planted channels of 64 "
    "times their size and without: excess (nats/token) and error (of the logits' norm); a seed draws the channels, the "
    "calibration and the test windows", measure, tuple(CONDITIONS), SETTINGS,
    SETTINGS | {"alphas": [0, 0.5, 1], "calibration": 4, "test": 16})


def measure_maxima(condition, seed, settings):
    """max|X_j| and max|W_j| of every channel j that the second block's attention reads."""
    model, norm = planted(seed, settings["channels"], settings["factor"]), "blocks.1.norm1"
    sample = draw(seed, settings["calibration"], 16)
    if condition == "after": rounded(SmoothQuant(alpha=settings["alpha"]), sample, model)
    readers = followers(model)[norm]
    X = capture(model, sample.calibration, readers[:1])[readers[0]].max_abs
    W = np.max([np.abs(model.get(path).dense_weight()).max(0) for path in readers], axis=0)
    return {"inputs": np.round(X.astype(float), 4).tolist(), "weights": np.round(W.astype(float), 5).tolist()}


maxima = Experiment(
    "smoothquant_maxima", "max|X_j| and max|W_j| of the 128 channels j that blocks.1's attention reads, before and after "
    "SmoothQuant (α = 0.5), 3 channels of 32 times their size planted; one seed, which draws channels and calibration; a "
    "picture, not a measurement", measure_maxima, ("before", "after"),
    {"channels": 3, "factor": 32, "alpha": 0.5, "calibration": 16}, {"channels": 3, "factor": 32, "alpha": 0.5, "calibration": 4},
    (0,))
