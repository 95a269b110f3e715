"""Training with rounded weights against rounding after training, at 3 and 2 bits.

Everything is trained on the text the base was trained on (LLM-QAT on what the base writes), and a float32 model is trained
just as long beside it: what rounding costs is counted from there, so that no gain is a new domain. One grid for all, one
scale and zero point per output channel; LLM-QAT's is symmetric, as it defines it.
"""
from ...peft import FullFineTuning, attach
from ...quant import GPTQ, LLMQAT, PEQA, FakeQuant, Uniform, convert, quantize, self_distillation
from ...train import train
from ..experiment import Experiment
from ..quantized import base, costs, draw, own_text, rounded
from ..tuning import pretrained

SCHEMES = {"round to nearest": lambda b: Uniform(b, False, scale_dtype="float16"), "GPTQ": lambda b: GPTQ(b),
           "PEQA": lambda b: PEQA(b), "STE": lambda b: FakeQuant(b, symmetric=False),
           "LSQ": lambda b: FakeQuant(b, learn_step=True, symmetric=False), "LLM-QAT": lambda b: LLMQAT(b, None, None)}
CONDITIONS = ("float32, trained as long", *(f"{name}, {bits} bits" for bits in (3, 2) for name in SCHEMES))


def measure(condition, seed, settings):
    """excess over the base as it is."""
    sample = draw(seed, settings["calibration"], settings["test"])
    name, what = condition.split(", ")
    bits = None if name == "float32" else int(what[0])
    model, task = pretrained(), own_text()
    if name in ("round to nearest", "GPTQ"):
        return costs(rounded(SCHEMES[name](bits), sample, model), sample)
    if bits is None: tuned = attach(model, FullFineTuning())
    else:            tuned = quantize(model, SCHEMES[name](bits))
    if name == "LLM-QAT":
        task = self_distillation(base(), settings["rows"], held_out=1, length=128, rng=seed)
    train(tuned, task, settings["steps"], batch_size=4, lr=settings["lr"][f"{name}, {bits}" if bits else name], seed=seed,
          workers=1, progress=False)
    return costs(tuned if bits is None else convert(tuned), sample)


SETTINGS = {"steps": 80, "rows": 64, "calibration": 64, "test": 64,
            "lr": {"float32": 1e-4, **{f"{name}, {bits}": 1e-3 if name == "PEQA" else 3e-4 if bits > 2 else 1e-3
                                       for name in ("PEQA", "STE", "LSQ", "LLM-QAT") for bits in (3, 2)}}}

QAT = Experiment(
    "qat", "excess (nats/token over the float32 base as shipped) and error (of the logits' norm) after rounding to 3 and 2 "
    "bits per output channel: at once, by GPTQ, or with 80 steps of 4 × 128 tokens of the base's own text; a seed draws the "
    "calibration, the batches, what LLM-QAT writes, and the test windows",
    measure, CONDITIONS, SETTINGS,
    {"steps": 2, "rows": 4, "calibration": 8, "test": 16, "conditions": ("STE, 2 bits", "round to nearest, 2 bits"),
     "seeds": (0,)})
