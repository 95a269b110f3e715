"""AWQ: which weights matter is told by the inputs they meet, not by their size (its table 1), and scales do without exceptions.

Round to nearest at 3 bits, with 1 % of the input channels of every layer left in floating point: those of the largest mean
|x|, of the largest weights, or any; and AWQ itself, which leaves none. On the base as it is, and with planted outliers.
"""
import math

import numpy as np

from ...quant import AWQ, capture
from ...quant.measure import output_error
from ..experiment import Experiment
from ..quantized import base, costs, draw, rounded
from .int8_outliers import planted

KEPT = {"round to nearest": None, "1 % by activation": lambda W, x, rng: x,
        "1 % by weight": lambda W, x, rng: np.abs(W).mean(0), "1 % at random": lambda W, x, rng: rng.random(len(x))}
CONDITIONS = tuple(f"{method}, {where}" for where in ("as it is", "planted")
                   for method in (*KEPT, "AWQ", "AWQ without clipping"))


def measure(condition, seed, settings):
    """excess, error, and the mean relative output error of the layers on test windows."""
    method, where = condition.rsplit(", ", 1)
    sample, rng = draw(seed, settings["calibration"], settings["test"]), np.random.default_rng([seed, 1])
    model = planted(seed, settings["channels"], settings["factor"] if where == "planted" else 1)
    paths = [path for path, m in model.named_modules() if path.startswith("blocks.") and hasattr(m, "d_in")]
    seen = capture(model, [x for x, _ in sample.windows], paths, hessian=True)
    mean_abs = {path: s.mean_abs for path, s in capture(model, sample.calibration, paths).items()}
    scheme = AWQ(settings["bits"], settings["group_size"])
    before = {path: model.get(path).weight.data for path in paths}
    if method in KEPT:
        for path in paths:
            W = before[path]
            W_hat = scheme.nearest.quantize(W).dequantize()
            if KEPT[method]:
                largest = np.argsort(-KEPT[method](W, mean_abs[path], rng))[:math.ceil(0.01 * W.shape[1])]
                W_hat[:, largest] = W[:, largest]
            model.get(path).weight.data = W_hat
        errors = {"output_error": float(np.mean([output_error(before[p], model.get(p).weight.data, seen[p].H) for p in paths]))}
    else:
        rounded(AWQ(settings["bits"], settings["group_size"], clip=method == "AWQ"), sample, model)
        errors = {}
    return costs(model, sample) | errors


SETTINGS = {"bits": 3, "group_size": 32, "channels": 2, "factor": 32, "calibration": 32, "test": 64}

AWQ_KEEPING = Experiment(
    "awq", "3 bits in groups of 32, asymmetric; 1 % of a layer's input channels (rounded up: 2 of 128, 6 of 512) left in "
    "floating point, by three rules, or AWQ; on the base as it is and with two planted channels of 32 times their size: "
    "excess (nats/token), error (of the logits' norm), output_error (relative, of a layer on test windows, mean over layers; "
    "not for AWQ, which changes inputs as well); a seed draws the channels, the calibration, the test windows and the random "
    "channels",
    measure, CONDITIONS, SETTINGS,
    {"calibration": 8, "test": 16, "conditions": ("round to nearest, planted", "1 % by activation, planted"), "seeds": (0, 1)})


def measure_search(condition, seed, settings):
    """L(α)/L(0) for the 20 α that AWQ tries, each layer judged by its own output: the mean over the layers of that name."""
    sample = draw(seed, settings["calibration"], 16)
    scheme, curves = AWQ(settings["bits"], settings["group_size"]), []
    for i in range(base().config.n_layers):
        path = f"blocks.{i}.{condition}"
        seen = capture(base(), sample.calibration, [path], hessian=True)[path]
        W = base().get(path).weight.data
        losses = scheme.search(W, seen.mean_abs, scheme.output_loss(W, seen.H))[1]
        curves.append(losses / losses[0])
    return {"loss": np.mean(curves, 0).tolist(), "best": float(np.mean([c.min() for c in curves]))}


AWQ_SEARCH = Experiment(
    "awq_search", "AWQ's search at 3 bits in groups of 32: L(α)/L(0) for α = 0, 1/20, … 19/20, a mean over the five layers "
    "of a name, and the mean of what is best for each; a seed draws the calibration",
    measure_search, ("attention.query", "attention.output", "mlp.up", "mlp.down"),
    {"bits": 3, "group_size": 32, "calibration": 32}, {"calibration": 4, "seeds": (0,)})
