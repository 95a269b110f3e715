"""Sixteen levels: NF4, the three things called FP4, and integers, on numbers from a bell curve and on real weights.

QLoRA's claim is about normal weights in blocks of 64 (its §3 and table 2); here block sizes and tails vary as well.
"""
import numpy as np

from ...nn import Linear
from ...quant import NF4, FloatFormat, Uniform
from ..experiment import Experiment
from ..quantized import base, costs, draw, rounded

FORMATS = {
    "NF4": lambda block: NF4(block),
    "FP4 E2M1": lambda block: FloatFormat("E2M1", "block", block),
    "FP4 bitsandbytes": lambda block: FloatFormat("FP4", "block", block),
    "FP4 E3M0": lambda block: FloatFormat("E3M0", "block", block),
    "int4 symmetric": lambda block: Uniform(4, True, "group", block),
    "int4 asymmetric": lambda block: Uniform(4, False, "group", block),
}


def rmse(scheme, x):
    """‖x̂ − x‖/‖x‖."""
    return float(np.linalg.norm(scheme.quantize(x).dequantize() - x) / np.linalg.norm(x))


def measure(condition, seed, settings):
    """Relative RMSE on normal numbers over block sizes, on Student's t over its degrees of freedom, on the base's weights
    over block sizes; and, block 64, excess and error of the base."""
    make, rng, n = FORMATS[condition], np.random.default_rng([seed, 2]), settings["numbers"]
    normal = rng.standard_normal(n).astype(np.float32)[None]
    weights = [m.weight.data.reshape(1, -1) for _, m in base().named_modules() if isinstance(m, Linear)]
    weights = np.concatenate(weights, axis=1)
    blocks, block = settings["blocks"], settings["block"]
    tails = [rng.standard_t(df, n).astype(np.float32)[None] for df in settings["degrees"]]
    sample = draw(seed, 1, settings["test"])
    return {"normal": [rmse(make(b), normal) for b in blocks], "tails": [rmse(make(block), x) for x in tails],
            "weights": [rmse(make(b), weights) for b in blocks], **costs(rounded(make(block), sample), sample)}


SETTINGS = {"numbers": 2**19, "blocks": [16, 32, 64, 128], "degrees": [3, 4, 5, 8, 16], "block": 64, "test": 64}

FORMATS_4_BIT = Experiment(
    "formats", "4-bit formats: relative RMSE on normal numbers (normal) and on the base's weights (weights) for blocks of 16 "
    "… 128, on Student's t with 3 … 16 degrees of freedom for blocks of 64 (tails); on the base, blocks of 64: excess "
    "(nats/token), error (of the logits' norm); a seed draws the numbers and the test windows (the weights are the same for "
    "all)",
    measure, tuple(FORMATS), SETTINGS, {"numbers": 2**14, "test": 16, "seeds": (0, 1)})
