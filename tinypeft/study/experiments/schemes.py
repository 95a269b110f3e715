"""Every scheme of the main job on the base's own text: bits per weight and what they cost, over seeds."""
from ...quant import Scheme, bits_per_weight, weight_error
from ..compared import COMPARED_SCHEMES
from ..experiment import Experiment
from ..quantized import PARTS, base_model, costs, draw, rounded
from .qat import SETTINGS, Trained, at_best, trained


def measure(arm: Trained | Scheme, seed: int, settings: dict) -> dict:
    """Schemes that work by training are trained on the base's own text, LLM-QAT on what the base writes."""
    sample, trains = draw(seed, settings["calibration"], settings["test"]), isinstance(arm, Trained)
    model = trained(arm, sample, seed, settings) if trains else rounded(arm, sample)
    cost = costs(model, sample)
    return {"bits": bits_per_weight(model), "weight_error": weight_error(base_model(), model, trains),
            "loss": sample.loss + cost["excess"]} | cost


SCHEMES_OVER_SEEDS = Experiment(
    "schemes", "Every scheme of the main job on held-out text of the base's kind; those with a star are trained for 80 steps "
    "of 4 × 128 tokens at their best learning rate (experiment `quant_rates`); a seed draws the calibration, the batches and "
    "the test windows.",
    {"bits": "bits per weight, all that is stored", "weight_error": "relative Frobenius norm", "loss": "nats/token",
     "excess": "nats/token over float32", "error": "relative error of the logits"},
    measure, {label: at_best(label) if scheme.trains else scheme for label, scheme in COMPARED_SCHEMES.items()}, SETTINGS,
    {"calibration": 8, "test": 16, "steps": 2, "rows": 4, "conditions": ("NF4", "PEQA 3 bit *"), "seeds": (0,)},
    seeds=PARTS)
