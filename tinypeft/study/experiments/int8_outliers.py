"""Eight bits for weights and inputs when a few input features are large: what LLM.int8() is for (its table 1, figure 1).

The base has no such features by itself, as no small model has. `plant_outliers` gives a few channels of the norms' output
`factor` times their size, and divides the weights that read them: in float32 the function stays the same.
"""
from dataclasses import dataclass

import numpy as np

from ...engine.nn import Linear
from ...models.gpt import GPT
from ...quant import W8A8, FakeQuantLinear, LLMInt8, Scheme, Uniform, plant_outliers
from ...quant.rounding import MinMax
from ..experiment import Experiment
from ..quantized import PARTS, costs, draw, rounded
from ..tuning import pretrained


@dataclass(frozen=True)
class ZeroPoint(Scheme):
    """Weights and inputs on the levels of `grid`, from their minimum to their maximum, one range for all of a matrix."""
    grid: Uniform = Uniform(8, symmetric=False, granularity="tensor")
    shown = ()

    def layer(self, linear: Linear) -> FakeQuantLinear:
        return FakeQuantLinear(linear, MinMax(self.grid), MinMax(self.grid))


def planted(seed: int, channels: int, factor: float) -> GPT:
    """The base with `channels` outlier features, which `seed` draws."""
    model = pretrained()
    plant_outliers(model, channels, factor, rng=seed)
    return model


def measure(scheme: Scheme, seed: int, settings: dict) -> dict:
    """Lists over the factors."""
    sample = draw(seed, settings["calibration"], settings["test"])
    found = [costs(rounded(scheme, sample, planted(seed, settings["channels"], factor)), sample)
             for factor in settings["factors"]]
    return {"excess": [c["excess"] for c in found], "error": [c["error"] for c in found]}


SETTINGS = {"channels": 3, "calibration": 16, "test": 64}

INT8_OUTLIERS = Experiment(
    "int8_outliers", "Weights and inputs rounded to 8 bits, for every factor by which 3 planted channels exceed their size; a "
    "seed draws the channels, the calibration and the test windows.",
    {"excess": "nats/token over float32, one per factor", "error": "relative error of the logits, one per factor"},
    measure, {"absmax": W8A8("tensor", "tensor"), "zero-point": ZeroPoint(), "row-wise": W8A8("tensor", "token"),
              "vector-wise": W8A8("channel", "token"), "LLM.int8()": LLMInt8()},
    SETTINGS | {"factors": [1, 4, 8, 16, 32, 64, 128]}, {"factors": [1, 64], "calibration": 4, "test": 16},
    seeds=PARTS)


def measure_threshold(outliers: bool, seed: int, settings: dict) -> dict:
    """Lists over the thresholds, with planted outliers or without."""
    sample = draw(seed, settings["calibration"], settings["test"])
    found = []
    for threshold in settings["thresholds"]:
        model = planted(seed, settings["channels"], settings["factor"] if outliers else 1)
        rounded(LLMInt8(threshold), sample, model)
        layers = [m for _, m in model.named_modules() if hasattr(m, "columns")]
        found.append(costs(model, sample) | {"columns": float(np.mean([len(m.columns) / m.d_in for m in layers]))})
    return {name: [c[name] for c in found] for name in ("excess", "error", "columns")}


INT8_THRESHOLD = Experiment(
    "int8_threshold", "LLM.int8() over its threshold, on the base as it is and with 3 planted channels of 64 times their size; "
    "a seed draws the channels, the calibration and the test windows.",
    {"excess": "nats/token over float32, one per threshold", "error": "relative error of the logits, one per threshold",
     "columns": "share of the columns that stay in float16, one per threshold"},
    measure_threshold, {"as it is": False, "planted": True},
    SETTINGS | {"factor": 64, "thresholds": [1, 2, 3, 4.5, 6, 9, 12, 24, 48, 96, 192, 1000]},
    {"thresholds": [6, 1000], "calibration": 4, "test": 16}, seeds=PARTS)


def measure_activations(outliers: bool, seed: int, settings: dict) -> dict:
    """The inputs of the second block's queries, keys and values for the first tokens of a test window: (tokens, features)."""
    model = planted(seed, settings["channels"], settings["factor"] if outliers else 1)
    tokens = draw(seed, 1, 16).windows[0][0][:1, :settings["tokens"]]
    seen = []

    class Look:
        def __init__(self, layer): self.layer = layer
        def __call__(self, x):
            seen.append(x.data[0])
            return self.layer(x)
    attention = model.blocks[1].attention
    attention.query = Look(attention.query)
    model(tokens)
    return {"activations": np.round(seen[0].astype(float), 3).tolist()}


INT8_ACTIVATIONS = Experiment(
    "int8_activations", "The inputs of blocks.1.attention.query for a test window, without and with 3 planted channels of 32 "
    "times their size: a picture, not a measurement, with one seed, which draws channels and window.",
    {"activations": "tokens × features"},
    measure_activations, {"as it is": False, "planted": True}, {"channels": 3, "factor": 32, "tokens": 48},
    {"tokens": 8}, (0,))
