"""What shares a scale: the finer, the smaller the error, and the more bits the scales take."""
from ...quant import Uniform, bits_per_weight, weight_error
from ..experiment import Experiment
from ..quantized import PARTS, base_model, costs, draw, rounded

SHARED = {"tensor": ("tensor", None), "channel": ("channel", None),
          **{f"group {g}": ("group", g) for g in (128, 64, 32, 16, 8)}}


def measure(scheme: Uniform, seed: int, settings: dict) -> dict:
    sample = draw(seed, 1, settings["test"])
    model = rounded(scheme, sample)
    return {"bits": bits_per_weight(model), "weight_error": weight_error(base_model(), model)} | costs(model, sample)


GRANULARITY = Experiment(
    "granularity", "Round to nearest with zero points and float16 scales, by what shares a scale; a seed draws the test "
    "windows.",
    {"bits": "bits per weight, scales and zero points included", "weight_error": "relative Frobenius norm",
     "excess": "nats/token over float32", "error": "relative error of the logits"},
    measure, {f"{bits} bits, {name}": Uniform(bits, False, *shared, scale_dtype="float16")
              for bits in (4, 3) for name, shared in SHARED.items()}, {"test": 64}, {"test": 16, "seeds": (0,)}, seeds=PARTS)
