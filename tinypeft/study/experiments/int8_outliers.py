"""Eight bits for weights and inputs when a few input features are large: what LLM.int8() is for (its table 1, figure 1).

The base has no such features by itself, as no small model has. `plant_outliers` gives a few channels of the norms' output
`factor` times their size, and divides the weights that read them: in float32 the function stays the same.
"""
from dataclasses import dataclass

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
