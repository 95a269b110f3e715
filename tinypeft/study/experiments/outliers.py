"""Eight bits for weights and inputs when a few input features are large: what LLM.int8() and SmoothQuant are for.

The base has no such features by itself, as no small model has. `plant_outliers` gives a few channels of the norms' output
`factor` times their size, and divides the weights that read them: in float32 the function stays the same.
"""
from dataclasses import dataclass

from ...engine.nn import Linear
from ...models.gpt import GPT
from ...quant import W8A8, FakeQuantLinear, LLMInt8, Scheme, SmoothQuant, Uniform, plant_outliers
from ...quant.rounding import MinMax
from ..experiment import Experiment, as_lists
from ..quantized import PARTS, costs, draw, rounded
from ..tuning import pretrained
from .schemes import COSTS


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


# LLM.int8() (its table 1, figure 1).
def measure_int8(scheme: Scheme, seed: int, settings: dict) -> dict:
    """Lists over the factors."""
    sample = draw(seed, settings["calibration"], settings["test"])
    return as_lists(costs(rounded(scheme, sample, planted(seed, settings["channels"], factor)), sample)
                    for factor in settings["factors"])


INT8_OUTLIERS = Experiment(
    "int8_outliers", "Weights and inputs rounded to 8 bits, for every factor by which 3 planted channels exceed their size; a "
    "seed draws the channels, the calibration and the test windows.",
    {name: f"{what}, one per factor" for name, what in COSTS.items()},
    measure_int8, {"absmax": W8A8("tensor", "tensor"), "zero-point": ZeroPoint(), "row-wise": W8A8("tensor", "token"),
                   "vector-wise": W8A8("channel", "token"), "LLM.int8()": LLMInt8()},
    {"channels": 3, "calibration": 16, "test": 64, "factors": [1, 4, 8, 16, 32, 64, 128]},
    {"factors": [1, 64], "calibration": 4, "test": 16}, seeds=PARTS)


# SmoothQuant's α: how much of the outliers to move from the inputs into the weights (its figure 10, the U). Outliers that are
# planted are undone exactly, whatever α: a channel f times as large that meets a weight f times as small gets s_j f times as
# large. So the U here is that of the base's own channels. The cost of planting is seen in W8A8 without smoothing.
def measure_smoothing(activations: str, seed: int, settings: dict) -> dict:
    """For every α; and without smoothing, planted or not. activations: what shares a scale of the inputs."""
    sample = draw(seed, settings["calibration"], settings["test"])
    model = lambda factor: planted(seed, settings["channels"], factor)
    schemes = [SmoothQuant(activations=activations, alpha=alpha) for alpha in settings["alphas"]]
    found = as_lists(costs(rounded(scheme, sample, model(settings["factor"])), sample) for scheme in schemes)
    without = {name: costs(rounded(W8A8("tensor", activations), sample, model(factor)), sample)
               for name, factor in (("as_it_is", 1), ("planted", settings["factor"]))}
    return found | {f"{metric}_{name}": c[metric] for name, c in without.items() for metric in c}


SMOOTHQUANT = Experiment(
    "smoothquant", "W8A8 after SmoothQuant for every α from 0 to 1, inputs with one scale per token, per call (tensor) or for "
    "all calls (static), 3 planted channels of 64 times their size; the same without smoothing, with (planted) and without "
    "(as_it_is) these channels. A seed draws the channels, the calibration and the test windows.",
    {name: f"{what}, one per α" for name, what in COSTS.items()}
    | {f"{metric}_{name}": f"{what}, without smoothing" for name in ("as_it_is", "planted") for metric, what in COSTS.items()},
    measure_smoothing, {name: name for name in ("token", "tensor", "static")},
    {"channels": 3, "factor": 64, "alphas": [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], "calibration": 16, "test": 64},
    {"alphas": [0, 0.5, 1], "calibration": 4, "test": 16}, seeds=PARTS)
