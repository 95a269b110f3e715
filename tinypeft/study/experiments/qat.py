"""Training with rounded weights against rounding after training, at 3 and 2 bits.

Everything is trained on the text that the base was trained on (LLM-QAT on what the base writes), and a float32 model is
trained just as long beside it. The cost of rounding is counted from there, so that no gain is mere domain adaptation. All use
one grid, with one scale and zero point per output channel; only LLM-QAT's grid is symmetric, as its paper defines it.
"""
from dataclasses import dataclass

from ...peft import FullFineTuning, attach
from ...quant import GPTQ, LLMQAT, PEQA, FakeQuant, Scheme, Uniform, convert, quantize, self_distillation
from ...train import train
from ..experiment import Experiment
from ..quantized import base_model, costs, draw, own_text, rounded
from ..tuning import pretrained


@dataclass(frozen=True)
class Trained:
    """A scheme (None: float32), its learning rate (None: it is not trained), and whether it learns from what the base
    writes."""
    scheme: Scheme | None
    lr: float | None = None
    distilled: bool = False


def arms(bits: int) -> dict[str, Trained]:
    """name → what is compared at so many bits."""
    lr = 3e-4 if bits > 2 else 1e-3
    return {"round to nearest": Trained(Uniform(bits, False, scale_dtype="float16")), "GPTQ": Trained(GPTQ(bits)),
            "PEQA": Trained(PEQA(bits), 1e-3), "STE": Trained(FakeQuant(bits, symmetric=False), lr),
            "LSQ": Trained(FakeQuant(bits, learn_step=True, symmetric=False), lr),
            "LLM-QAT": Trained(LLMQAT(bits, None, None), lr, distilled=True)}


def measure(arm: Trained, seed: int, settings: dict) -> dict:
    """Costs over the base as it is."""
    sample = draw(seed, settings["calibration"], settings["test"])
    model, task = pretrained(), own_text()
    if arm.lr is None:
        return costs(rounded(arm.scheme, sample, model), sample)
    tuned = attach(model, FullFineTuning()) if arm.scheme is None else quantize(model, arm.scheme)
    if arm.distilled:
        task = self_distillation(base_model(), settings["rows"], held_out=1, length=128, rng=seed)
    train(tuned, task, settings["steps"], batch_size=4, lr=arm.lr, seed=seed, workers=1, progress=False)
    return costs(tuned if arm.scheme is None else convert(tuned), sample)


QAT = Experiment(
    "qat", "The base rounded to 3 and 2 bits per output channel: at once, by GPTQ, or with 80 steps of 4 × 128 tokens of its "
    "own text; a seed draws the calibration, the batches, what LLM-QAT writes, and the test windows.",
    {"excess": "nats/token over the float32 base as shipped", "error": "relative error of the logits"},
    measure, {"float32, trained as long": Trained(None, 1e-4),
              **{f"{name}, {bits} bits": arm for bits in (3, 2) for name, arm in arms(bits).items()}},
    {"steps": 80, "rows": 64, "calibration": 64, "test": 64},
    {"steps": 2, "rows": 4, "calibration": 8, "test": 16, "conditions": ("STE, 2 bits", "round to nearest, 2 bits"),
     "seeds": (0,)})
