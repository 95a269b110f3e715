"""Double quantization: NF4's scales in 8 bits instead of 32 save 0.373 bits per weight (QLoRA, §3); what does it cost?

The scales are rounded around their common mean, which assumes that blocks resemble each other. The experiment varies how
unlike they are: every row of the matrix is multiplied by a factor, and σ is the standard deviation of its logarithm.
"""
import numpy as np

from ...quant import NF4, bits_per_weight
from ..experiment import Experiment
from ..quantized import PARTS, costs, draw, rounded
from .formats import rmse


def measure(scheme: NF4, seed: int, settings: dict) -> dict:
    """A normal matrix for every σ, and the base."""
    n, rng = settings["side"], np.random.default_rng([seed, 3])
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


DOUBLE_QUANTIZATION = Experiment(
    "double_quantization", "NF4 with scales in float32 and doubly quantized, on a normal 1024 × 1024 matrix whose rows differ "
    "by factors e^(σz), for σ = 0 … 2, and on the base; a seed draws the matrix, the factors and the test windows.",
    {"bits": "bits per weight of the matrix", "bits_of_the_base": "bits per weight of the base",
     "rmse": "relative RMSE of the matrix, one per σ", "scale_error": "mean relative error of the scales, one per σ",
     "worst_scale": "largest relative error of a scale, one per σ", "excess": "nats/token over float32, of the base",
     "error": "relative error of the logits, of the base"},
    measure, {"one": NF4(), "double": NF4(double_quant=True)},
    {"side": 1024, "sigmas": [0, 0.25, 0.5, 1, 1.5, 2], "test": 64}, {"side": 256, "test": 16, "seeds": (0, 1)},
    seeds=PARTS)
