"""Schemes that train, as arms: what they are trained on, and at which rate.

Everything is trained on the text that the base was trained on (LLM-QAT on what the base writes), and a float32 model is
trained just as long beside it. The cost of rounding is counted from there, so that no gain is mere domain adaptation. All use
one grid, with one scale and zero point per output channel; only LLM-QAT's grid is symmetric, as its paper defines it.
"""
from dataclasses import dataclass, replace

from ...models.decoder import Decoder
from ...peft import FullFineTuning, attach
from ...quant import LLMQAT, PEQA, FakeQuant, Scheme, convert, self_distillation
from ...training.loop import train
from ..compared import COMPARED_SCHEMES
from ..quantized import Sample, base_model, draw, own_text, rounded
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


def applied(arm: Trained | Scheme, seed: int, settings: dict, split: str = "test") -> tuple[Decoder, Sample]:
    """The base after a scheme, trained if the arm says so, and the windows of `split` that it is judged on."""
    sample = draw(seed, settings.get("calibration", 1), settings["test"], split=split)
    return trained(arm, sample, seed, settings) if isinstance(arm, Trained) else rounded(arm, sample), sample
