"""What shares a scale: the finer, the smaller the error, and the more bits the scales take."""
from ...quant import Uniform, bits_per_weight, weight_error
from ..experiment import Experiment
from ..quantized import base, costs, draw, rounded

SHARED = {"tensor": ("tensor", None), "channel": ("channel", None),
          **{f"group {g}": ("group", g) for g in (128, 64, 32, 16, 8)}}
CONDITIONS = {f"{bits} bits, {name}": Uniform(bits, False, *shared, scale_dtype="float16")
              for bits in (4, 3) for name, shared in SHARED.items()}


def measure(condition, seed, settings):
    """bits per weight with scales and zero points, the weights' relative error, excess and error."""
    sample = draw(seed, 1, settings["test"])
    model = rounded(CONDITIONS[condition], sample)
    return {"bits": bits_per_weight(model), "weight_error": weight_error(base(), model)} | costs(model, sample)


GRANULARITY = Experiment(
    "granularity", "round to nearest with zero points and float16 scales, by what shares a scale: bits (per weight, scales "
    "and zero points included), weight_error (relative Frobenius norm), excess (nats/token), error (of the logits' norm); a "
    "seed draws the test windows",
    measure, tuple(CONDITIONS), {"test": 64}, {"test": 16, "seeds": (0,)})
