"""The experiments that round the base by schemes and ask what that costs: for each its question and its schemes.

A seed draws the calibration and the test windows. A scheme that trains is trained on the base's own text, at its best rate
(`qat.py`).
"""
from dataclasses import replace

import numpy as np

from ...quant import GPTQ, Scheme, Uniform, bits_per_weight, layer_errors, weight_error
from ..compared import COMPARED_SCHEMES
from ..experiment import Experiment
from ..quantized import PARTS, base_model, costs, draw
from .qat import SETTINGS, Trained, applied, at_best

__all__ = ["BY_SCHEMES", "COSTS"]

COSTS = {"excess": "nats/token over float32", "error": "relative error of the logits"}
SHARED = {"tensor": ("tensor", None), "channel": ("channel", None),
          **{f"group {g}": ("group", g) for g in (128, 64, 32, 16, 8)}}
OPTIONS = {"GPTQ, act-order": {"act_order": True}, "GPTQ, act-order, static groups": {"act_order": True, "static_groups": True},
           "GPTQ, fresh scales": {"group_scales": "fresh"}}


def measure_costs(arm: Trained | Scheme, seed: int, settings: dict) -> dict:
    return costs(*applied(arm, seed, settings))


def measure_bits(arm: Trained | Scheme, seed: int, settings: dict) -> dict:
    model, sample = applied(arm, seed, settings)
    return {"bits": bits_per_weight(model), "weight_error": weight_error(base_model(), model, isinstance(arm, Trained)),
            **costs(model, sample)}


def measure_loss(arm: Trained | Scheme, seed: int, settings: dict) -> dict:
    found, sample = measure_bits(arm, seed, settings), draw(seed, settings["calibration"], settings["test"], split="test")
    return found | {"loss": sample.loss + found["excess"]}


def measure_layers(scheme: Scheme, seed: int, settings: dict) -> dict:
    """The errors of a layer, mean over layers."""
    model, sample = applied(scheme, seed, settings)
    errors = np.array(list(layer_errors(base_model(), model, [x for x, _ in sample.windows]).values()))
    return costs(model, sample) | {"weight_error": float(errors[:, 0].mean()), "output_error": float(errors[:, 1].mean())}


def on_grids() -> dict[str, Scheme]:
    """Round to nearest and GPTQ on six grids. GPTQ's options are tried on one of them."""
    found = {}
    for bits in (4, 3, 2):
        for shared, group in (("channel", None), ("group 32", 32)):
            plain, grid = GPTQ(bits, group_size=group), f"{bits} bits, {shared}"
            found |= {f"round to nearest, {grid}": plain.nearest, f"GPTQ, {grid}": plain}
            if grid == "3 bits, group 32":
                found |= {f"{name}, {grid}": replace(plain, **options) for name, options in OPTIONS.items()}
    return found


BY_SCHEMES = (
    # What shares a scale: the finer, the smaller the error, and the more bits the scales take.
    Experiment(
        "granularity", "Round to nearest with zero points and float16 scales, by what shares a scale; a seed draws the test "
        "windows.",
        {"bits": "bits per weight, scales and zero points included", "weight_error": "relative Frobenius norm", **COSTS},
        measure_bits, {f"{bits} bits, {name}": Uniform(bits, False, *shared, scale_dtype="float16")
                       for bits in (4, 3) for name, shared in SHARED.items()},
        {"test": 64}, {"test": 16, "seeds": (0,)}, PARTS),
    # GPTQ against round to nearest on the same grid: the weights are further off, the outputs nearer (its tables 3 and 4).
    Experiment(
        "gptq", "GPTQ and round to nearest on the same asymmetric grids, 4, 3 and 2 bits; a seed draws the calibration and the "
        "test windows.",
        COSTS | {"weight_error": "relative Frobenius norm, of a layer's weight, mean over layers",
                 "output_error": "relative Frobenius norm, of a layer's output on test windows, mean over layers"},
        measure_layers, on_grids(), {"calibration": 64, "test": 64},
        {"calibration": 8, "test": 16, "conditions": ("round to nearest, 3 bits, channel", "GPTQ, 3 bits, channel"),
         "seeds": (0, 1)}, PARTS),
    # Training with rounded weights against rounding after training. All use one grid, with one scale and zero point per output
    # channel; only LLM-QAT's grid is symmetric, as its paper defines it.
    Experiment(
        "qat", "The base rounded to 3 and 2 bits per output channel: at once, by GPTQ, or with 80 steps of 4 × 128 tokens of "
        "its own text, each at its best learning rate (experiment `quant_rates`); a seed draws the calibration, the batches, "
        "what LLM-QAT writes, and the test windows.",
        COSTS | {"excess": "nats/token over the float32 base as shipped"},
        measure_costs, {"float32, trained as long": at_best("float32, trained as long"),
                        **{f"{name}, {bits} bits": arm for bits in (3, 2) for name, arm in {
                            "round to nearest": Uniform(bits, False, scale_dtype="float16"), "GPTQ": GPTQ(bits),
                            **{name: at_best(f"{name}, {bits} bits") for name in ("PEQA", "STE", "LSQ", "LLM-QAT")}}.items()}},
        SETTINGS,
        {"steps": 2, "rows": 4, "calibration": 8, "test": 16, "conditions": ("STE, 2 bits", "round to nearest, 2 bits"),
         "seeds": (0,)}, PARTS),
    # Every scheme of the main job.
    Experiment(
        "schemes", "Every scheme of the main job on held-out text of the base's kind; those with a star are trained for 80 "
        "steps of 4 × 128 tokens at their best learning rate (experiment `quant_rates`); a seed draws the calibration, the "
        "batches and the test windows.",
        COSTS | {"bits": "bits per weight, all that is stored", "weight_error": "relative Frobenius norm",
                 "loss": "nats/token"},
        measure_loss, {label: at_best(label) if scheme.trains else scheme for label, scheme in COMPARED_SCHEMES.items()},
        SETTINGS, {"calibration": 8, "test": 16, "steps": 2, "rows": 4, "conditions": ("NF4", "PEQA 3 bit *"), "seeds": (0,)},
        PARTS),
)
