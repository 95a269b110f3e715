"""Sixteen levels: NF4, the three formats called FP4, and integers, on made numbers and on real weights; and NF4's scales.

QLoRA's claim is about normal weights in blocks of 64 (its §3 and table 2); here block sizes and tails vary as well. Double
quantization, NF4's scales in 8 bits instead of 32, saves 0.373 bits per weight (its §3). The scales are rounded around their
common mean, which assumes that blocks resemble each other. So the rows of a matrix are multiplied by factors: σ is the standard
deviation of their logarithm.
"""
from dataclasses import replace

import numpy as np

from ...engine.nn import Linear
from ...quant import NF4, FloatFormat, Scheme, Uniform, bits_per_weight
from ..experiment import Experiment, as_lists
from ..quantized import PARTS, base_model, costs, draw, rounded
from .schemes import COSTS


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
     **{name: f"{what}, blocks of 64" for name, what in COSTS.items()}},
    measure, {"NF4": NF4(), "FP4 E2M1": FloatFormat("E2M1", "block"), "FP4 bitsandbytes": FloatFormat("FP4", "block"),
              "FP4 E3M0": FloatFormat("E3M0", "block"), "int4 symmetric": Uniform(4, True, "group", 64),
              "int4 asymmetric": Uniform(4, False, "group", 64)},
    {"numbers": 2**19, "blocks": [16, 32, 64, 128], "degrees": [3, 4, 5, 8, 16], "block": 64, "test": 64},
    {"numbers": 2**14, "test": 16, "seeds": (0, 1)}, seeds=PARTS)


def measure_scales(scheme: NF4, seed: int, settings: dict) -> dict:
    """A normal matrix for every σ, and the base."""
    n, rng = settings["side"], np.random.default_rng([seed, 3])
    W, factors = rng.standard_normal((n, n)), rng.standard_normal((n, 1))
    found = as_lists(of_scales(scheme, (W * np.exp(sigma * factors)).astype(np.float32)) for sigma in settings["sigmas"])
    sample = draw(seed, 1, settings["test"])
    model = rounded(scheme, sample)
    return found | {"bits": found["bits"][-1], "bits_of_the_base": bits_per_weight(model)} | costs(model, sample)


def of_scales(scheme: NF4, x: np.ndarray) -> dict:
    q, exact = scheme.quantize(x), NF4().quantize(x).scale
    off = np.abs(q.scales() / exact - 1)
    return {"bits": q.bits_per_weight, "rmse": rmse(scheme, x), "scale_error": float(off.mean()),
            "worst_scale": float(off.max())}


DOUBLE_QUANTIZATION = Experiment(
    "double_quantization", "NF4 with scales in float32 and doubly quantized, on a normal 1024 × 1024 matrix whose rows differ "
    "by factors e^(σz), for σ = 0 … 2, and on the base; a seed draws the matrix, the factors and the test windows.",
    {"bits": "bits per weight of the matrix", "bits_of_the_base": "bits per weight of the base",
     "rmse": "relative RMSE of the matrix, one per σ", "scale_error": "mean relative error of the scales, one per σ",
     "worst_scale": "largest relative error of a scale, one per σ",
     **{name: f"{what}, of the base" for name, what in COSTS.items()}},
    measure_scales, {"one": NF4(), "double": NF4(double_quant=True)},
    {"side": 1024, "sigmas": [0, 0.25, 0.5, 1, 1.5, 2], "test": 64}, {"side": 256, "test": 16, "seeds": (0, 1)},
    seeds=PARTS)
