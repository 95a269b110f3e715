"""Sixteen levels: NF4, the three formats called FP4, and integers, on numbers from a bell curve and on real weights.

QLoRA's claim is about normal weights in blocks of 64 (its §3 and table 2); here block sizes and tails vary as well.
"""
from dataclasses import replace

import numpy as np

from ...engine.nn import Linear
from ...quant import NF4, FloatFormat, Scheme, Uniform
from ..experiment import Experiment
from ..quantized import PARTS, base_model, costs, draw, rounded


def of_block(scheme: Scheme, block: int) -> Scheme:
    """The scheme with blocks of another size."""
    return replace(scheme, **{"group_size" if hasattr(scheme, "group_size") else "block_size": block})


def rmse(scheme: Scheme, x: np.ndarray) -> float:
    """‖x̂ − x‖/‖x‖."""
    return float(np.linalg.norm(scheme.quantize(x).dequantize() - x) / np.linalg.norm(x))


def measure(scheme: Scheme, seed: int, settings: dict) -> dict:
    """The base's weights are the same for all seeds."""
    rng, n = np.random.default_rng([seed, 2]), settings["numbers"]
    normal = rng.standard_normal(n).astype(np.float32)[None]
    weights = [m.weight.data.reshape(1, -1) for _, m in base_model().named_modules() if isinstance(m, Linear)]
    weights = np.concatenate(weights, axis=1)
    tails = [rng.standard_t(df, n).astype(np.float32)[None] for df in settings["degrees"]]
    sized, scheme = [of_block(scheme, b) for b in settings["blocks"]], of_block(scheme, settings["block"])
    sample = draw(seed, 1, settings["test"])
    return {"normal": [rmse(s, normal) for s in sized], "tails": [rmse(scheme, x) for x in tails],
            "weights": [rmse(s, weights) for s in sized], **costs(rounded(scheme, sample), sample)}


FORMATS_4_BIT = Experiment(
    "formats", "4-bit formats on normal numbers, on Student's t, on the base's weights, and in the base; a seed draws the "
    "numbers and the test windows.",
    {"normal": "relative RMSE on normal numbers, one per block size of 16, 32, 64, 128",
     "weights": "relative RMSE on the base's weights, one per block size",
     "tails": "relative RMSE on Student's t, blocks of 64, one per 3, 4, 5, 8, 16 degrees of freedom",
     "excess": "nats/token over float32, blocks of 64", "error": "relative error of the logits, blocks of 64"},
    measure, {"NF4": NF4(), "FP4 E2M1": FloatFormat("E2M1", "block"), "FP4 bitsandbytes": FloatFormat("FP4", "block"),
              "FP4 E3M0": FloatFormat("E3M0", "block"), "int4 symmetric": Uniform(4, True, "group", 64),
              "int4 asymmetric": Uniform(4, False, "group", 64)},
    {"numbers": 2**19, "blocks": [16, 32, 64, 128], "degrees": [3, 4, 5, 8, 16], "block": 64, "test": 64},
    {"numbers": 2**14, "test": 16, "seeds": (0, 1)}, seeds=PARTS)
