"""Every scheme of the main job on the base's own text: bits per weight and what they cost, over seeds."""
from ...quant import LLMQAT, Scheme, bits_per_weight, convert, self_distillation, weight_error
from ...train import train
from ..compare import COMPARED_SCHEMES
from ..experiment import Experiment
from ..quantized import base_model, costs, draw, own_text, rounded


def measure(scheme: Scheme, seed: int, settings: dict) -> dict:
    """Schemes that work by training are trained on the base's own text, LLM-QAT on what the base writes."""
    sample = draw(seed, settings["calibration"], settings["test"])
    model = rounded(scheme, sample)
    if scheme.trains:
        task = own_text()
        if isinstance(scheme, LLMQAT):
            task = self_distillation(base_model(), settings["rows"], held_out=1, length=128, rng=seed)
        train(model, task, settings["steps"], batch_size=4, lr=settings["lr"], seed=seed, workers=1, progress=False)
        convert(model)
    cost = costs(model, sample)
    return {"bits": bits_per_weight(model), "weight_error": weight_error(base_model(), model, scheme.trains),
            "loss": sample.loss + cost["excess"]} | cost


SCHEMES_OVER_SEEDS = Experiment(
    "schemes", "Every scheme of the main job on held-out text of the base's kind; those with a star are trained for 40 steps "
    "of 4 × 128 tokens; a seed draws the calibration, the batches and the test windows.",
    {"bits": "bits per weight, all that is stored", "weight_error": "relative Frobenius norm", "loss": "nats/token",
     "excess": "nats/token over float32", "error": "relative error of the logits"},
    measure, COMPARED_SCHEMES, {"calibration": 32, "test": 64, "steps": 40, "rows": 32, "lr": 3e-4},
    {"calibration": 8, "test": 16, "steps": 2, "rows": 4, "conditions": ("NF4", "PEQA 3 bit *"), "seeds": (0,)})
