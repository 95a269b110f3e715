"""Training with rounded weights against rounding after training, at 3 and 2 bits.

Everything is trained on the text that the base was trained on (LLM-QAT on what the base writes), and a float32 model is
trained just as long beside it. The cost of rounding is counted from there, so that no gain is mere domain adaptation. All use
one grid, with one scale and zero point per output channel; only LLM-QAT's grid is symmetric, as its paper defines it.
"""
from dataclasses import dataclass, replace

from ...models.decoder import Decoder
from ...peft import FullFineTuning, attach
from ...quant import GPTQ, LLMQAT, PEQA, FakeQuant, Scheme, Uniform, convert, self_distillation
from ...training.loop import train
from ..compared import COMPARED_SCHEMES
from ..experiment import Experiment
from ..quantized import PARTS, Sample, base_model, costs, draw, own_text, rounded
from ..tuning import pretrained
from .best import measured_rate


@dataclass(frozen=True)
class Trained:
    """A scheme that trains (None: float32), and its learning rate. LLM-QAT learns from what the base writes."""
    scheme: Scheme | None
    lr: float


# label → arm, with the rate that is expected to be the best
TRAINED = {
    "float32, trained as long": Trained(None, 1e-4),
    **{f"{name}, {bits} bits": Trained(scheme, lr) for bits, lr in ((3, 4e-4), (2, 1.2e-3)) for name, scheme in {
        "PEQA": PEQA(bits), "STE": FakeQuant(bits, symmetric=False), "LSQ": FakeQuant(bits, learn_step=True, symmetric=False),
        "LLM-QAT": LLMQAT(bits, None, None)}.items()},
    **{label: Trained(scheme, 4e-4) for label, scheme in COMPARED_SCHEMES.items() if scheme.trains}}
SETTINGS = {"steps": 80, "rows": 64, "calibration": 64, "test": 64}


def at_best(label: str) -> Trained:
    """An arm of TRAINED at the best rate that was measured."""
    return replace(TRAINED[label], lr=measured_rate("quant", label, TRAINED[label].lr))


def trained(arm: Trained, sample: Sample, seed: int, settings: dict) -> Decoder:
    """The base after training with the scheme, in the form that is used afterwards."""
    model, task = pretrained(), own_text()
    tuned = attach(model, FullFineTuning()) if arm.scheme is None else rounded(arm.scheme, sample, model)
    if isinstance(arm.scheme, LLMQAT):
        task = self_distillation(base_model(), settings["rows"], held_out=1, length=128, rng=seed)
    train(tuned, task, settings["steps"], batch_size=4, lr=arm.lr, seed=seed, workers=1, progress=False)
    return tuned if arm.scheme is None else convert(tuned)


def excess_after(arm: Trained, seed: int, settings: dict, split: str) -> float:
    """Nats/token over float32 after training, on windows of `split`."""
    sample = draw(seed, settings["calibration"], settings["test"], split=split)
    return costs(trained(arm, sample, seed, settings), sample)["excess"]


def measure(arm: Trained | Scheme, seed: int, settings: dict) -> dict:
    """Costs over the base as it is. A scheme that does not train is applied at once."""
    sample = draw(seed, settings["calibration"], settings["test"])
    model = trained(arm, sample, seed, settings) if isinstance(arm, Trained) else rounded(arm, sample)
    return costs(model, sample)


QAT = Experiment(
    "qat", "The base rounded to 3 and 2 bits per output channel: at once, by GPTQ, or with 80 steps of 4 × 128 tokens of its "
    "own text, each at its best learning rate (experiment `quant_rates`); a seed draws the calibration, the batches, what "
    "LLM-QAT writes, and the test windows.",
    {"excess": "nats/token over the float32 base as shipped", "error": "relative error of the logits"},
    measure, {"float32, trained as long": at_best("float32, trained as long"),
              **{f"{name}, {bits} bits": arm for bits in (3, 2) for name, arm in {
                  "round to nearest": Uniform(bits, False, scale_dtype="float16"), "GPTQ": GPTQ(bits),
                  **{name: at_best(f"{name}, {bits} bits") for name in ("PEQA", "STE", "LSQ", "LLM-QAT")}}.items()}},
    SETTINGS,
    {"steps": 2, "rows": 4, "calibration": 8, "test": 16, "conditions": ("STE, 2 bits", "round to nearest, 2 bits"),
     "seeds": (0,)}, seeds=PARTS)
