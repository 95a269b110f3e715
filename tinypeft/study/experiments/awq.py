"""AWQ: which weights matter is told by the inputs they meet, not by their size (its table 1); scales need no exceptions.

The weights are rounded to nearest at 3 bits, and 1 % of the input channels of every layer stay in floating point: those of
the largest mean |x|, those of the largest weights, or random ones. AWQ itself keeps none. All is done on the base as it is,
and on the base with planted outliers.
"""
import math
from dataclasses import dataclass, replace

import numpy as np

from ...quant import AWQ, capture
from ...quant.measure import output_error
from ..experiment import Experiment
from ..quantized import PARTS, costs, draw, rounded
from .outliers import planted
from .schemes import COSTS

SCORES = {"activation": lambda W, x, rng: x, "weight": lambda W, x, rng: np.abs(W).mean(0),
          "random": lambda W, x, rng: rng.random(len(x))}


@dataclass(frozen=True)
class Rounding:
    """What is done to the base. kept: the rule, in SCORES, by which 1 % of the channels stay in floating point, if any do.
    awq: AWQ in place of round to nearest, with its ranges clipped or not. planted: on a base with planted outliers."""
    kept: str | None = None
    awq: bool = False
    clip: bool = False
    planted: bool = False


ROUNDINGS = {"round to nearest": Rounding(), "1 % by activation": Rounding("activation"),
             "1 % by weight": Rounding("weight"), "1 % at random": Rounding("random"),
             "AWQ": Rounding(awq=True, clip=True), "AWQ without clipping": Rounding(awq=True)}
CONDITIONS = {f"{name}, {where}": replace(how, planted=where == "planted") for where in ("as it is", "planted")
              for name, how in ROUNDINGS.items()}


def measure(how: Rounding, seed: int, settings: dict) -> dict:
    """excess, error, and the mean relative output error of the layers on test windows."""
    sample, rng = draw(seed, settings["calibration"], settings["test"]), np.random.default_rng([seed, 1])
    model = planted(seed, settings["channels"], settings["factor"] if how.planted else 1)
    paths = [path for path, m in model.named_modules() if path.startswith("blocks.") and hasattr(m, "d_in")]
    scheme = AWQ(settings["bits"], settings["group_size"], clip=how.clip)
    if how.awq:
        return costs(rounded(scheme, sample, model), sample)
    seen = capture(model, [x for x, _ in sample.windows], paths, hessian=True)
    mean_abs = {path: s.mean_abs for path, s in capture(model, sample.calibration, paths).items()}
    before = {path: model.get(path).weight.data for path in paths}
    for path, W in before.items():
        W_hat = scheme.nearest.quantize(W).dequantize()
        if how.kept:
            largest = np.argsort(-SCORES[how.kept](W, mean_abs[path], rng))[:math.ceil(0.01 * W.shape[1])]
            W_hat[:, largest] = W[:, largest]
        model.get(path).weight.data = W_hat
    errors = [output_error(before[p], model.get(p).weight.data, seen[p].H) for p in paths]
    return costs(model, sample) | {"output_error": float(np.mean(errors))}


AWQ_KEEPING = Experiment(
    "awq", "3 bits in groups of 32, asymmetric; 1 % of a layer's input channels (rounded up: 2 of 128, 6 of 512) stay in "
    "floating point, by three rules, or AWQ is used; on the base as it is and with two planted channels of 32 times their "
    "size. A seed draws these channels, the calibration, the test windows and the random channels.",
    {**COSTS,
     "output_error": "relative, of a layer's outputs on test windows, mean over layers; not for AWQ, which changes inputs too"},
    measure, CONDITIONS, {"bits": 3, "group_size": 32, "channels": 2, "factor": 32, "calibration": 32, "test": 64},
    {"calibration": 8, "test": 16, "conditions": ("round to nearest, planted", "1 % by activation, planted"), "seeds": (0, 1)},
    seeds=PARTS)
