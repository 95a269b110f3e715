"""Double quantization: 8 bits for NF4's scales instead of 32, 0.373 bits per weight saved (QLoRA, §3), and at what price.

The scales are rounded around their common mean, which supposes that blocks resemble each other. How unlike they are is
varied: σ is the standard deviation of ln of the factor that every row of the matrix is multiplied by.
"""
import numpy as np

from ...quant import NF4, bits_per_weight
from ..experiment import Experiment
from ..quantized import costs, draw, rounded
from .formats import rmse

CONDITIONS = {"one": NF4(), "double": NF4(double_quant=True)}


def measure(condition, seed, settings):
    """bits per weight and relative RMSE of a normal matrix for every σ; how far the scales themselves are off, and the worst
    of them; on the base: bits per weight, excess and error."""
    scheme, n = CONDITIONS[condition], settings["side"]
    rng = np.random.default_rng([seed, 3])
    W, factors = rng.standard_normal((n, n)), rng.standard_normal((n, 1))
    found = {"bits": 0.0, "rmse": [], "scale_error": [], "worst_scale": []}
    for sigma in settings["sigmas"]:
        x = (W * np.exp(sigma * factors)).astype(np.float32)
        q, exact = scheme.quantize(x), NF4().quantize(x).scale
        off = np.abs(q.scales() / exact - 1)
        found["rmse"].append(rmse(scheme, x))
        found["scale_error"].append(float(off.mean()))
        found["worst_scale"].append(float(off.max()))
    sample = draw(seed, 1, settings["test"])
    model = rounded(scheme, sample)
    return found | {"bits": q.bits_per_weight, "bits_of_the_base": bits_per_weight(model)} | costs(model, sample)


SETTINGS = {"side": 1024, "sigmas": [0, 0.25, 0.5, 1, 1.5, 2], "test": 64}

DOUBLE_QUANTIZATION = Experiment(
    "double_quantization", "NF4 with scales in float32 and doubly quantized: bits per weight of a 1024 × 1024 matrix, and of "
    "the base; relative RMSE, mean and worst relative error of the scales, where rows of a normal matrix differ by factors "
    "e^(σz), for σ = 0 … 2; excess (nats/token) and error (of the logits' norm) of the base; a seed draws the matrix, the "
    "factors and the test windows",
    measure, tuple(CONDITIONS), SETTINGS, {"side": 256, "test": 16, "seeds": (0, 1)})
