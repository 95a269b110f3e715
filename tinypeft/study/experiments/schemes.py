"""Every scheme of the main job on the base's own text: bits per weight and what they cost, over seeds."""
from ... import quant as q
from ...train import train
from ..compare import COMPARED_SCHEMES
from ..experiment import Experiment
from ..quantized import base, costs, draw, own_text, rounded


def measure(condition, seed, settings):
    """bits per weight, relative error of the weights, loss, excess and error; schemes that train do so on the base's text."""
    sample, scheme = draw(seed, settings["calibration"], settings["test"]), COMPARED_SCHEMES[condition]
    model = rounded(scheme, sample)
    trained = isinstance(scheme, (q.FakeQuant, q.PEQA, q.LLMQAT))
    if trained:
        itself = isinstance(scheme, q.LLMQAT)
        task = q.self_distillation(base(), settings["rows"], held_out=1, length=128, rng=seed) if itself else own_text()
        train(model, task, settings["steps"], batch_size=4, lr=settings["lr"], seed=seed, workers=1, progress=False)
        q.convert(model)
    cost = costs(model, sample)
    return {"bits": q.bits_per_weight(model), "weight_error": q.weight_error(base(), model, trained),
            "loss": sample.loss + cost["excess"]} | cost


SCHEMES = Experiment(
    "schemes", "every scheme of the main job on held-out text of the base's kind: bits (per weight, all that is stored), "
    "weight_error (relative Frobenius norm), loss (nats/token), excess (over float32), error (of the logits' norm); those "
    "with a star are trained for 40 steps of 4 × 128 tokens; a seed draws the calibration, the batches and the test windows",
    measure, tuple(COMPARED_SCHEMES), {"calibration": 32, "test": 64, "steps": 40, "rows": 32, "lr": 3e-4},
    {"calibration": 8, "test": 16, "steps": 2, "rows": 4, "conditions": ("NF4", "PEQA 3 bit *"), "seeds": (0,)})
