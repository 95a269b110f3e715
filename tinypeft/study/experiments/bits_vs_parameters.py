"""More parameters at fewer bits, or fewer at more (Dettmers & Zettlemoyer, arXiv 2212.09720, who find 4 bits best)? And does
rounding cost more if a base was trained for longer (2411.17691)?

Bases of three sizes were trained on the same text; their matrices are quantized by GPTQ in groups of 32. Embeddings and norms
stay in 16 bits and count. Small models hold much of their weight there, so the matrices are also counted alone.
"""
import copy
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...models.gpt import GPT
from ...pretrained.base import drawn_name
from ...pretrained.make import RECIPE, pretrain_size
from ...quant import GPTQ, QuantizedLinear, Uniform, bits_per_weight, quantize
from ..bases import DRAWS, SIZES, draws_of, read_base, small_base
from ..experiment import Experiment, as_lists
from ..quantized import PARTS, Sample, logits_of, mean_loss
from ..quantized import draw as draw_text

of_name = functools.cache(small_base)


@dataclass(frozen=True)
class Model:
    """base: a name that `small_base` reads. bits: per weight of its matrices; 16 means that they are not quantized."""
    base: str
    bits: int


def measure(which: Model, seed: int, settings: dict) -> dict:
    sample, model = draw_text(seed, settings["calibration"], settings["test"]), copy.deepcopy(of_name(which.base))
    n = model.n_parameters()
    if which.bits < 16: quantize(model, GPTQ(which.bits, settings["group_size"]), sample.calibration, progress=False)
    return {"loss": loss_on(model, sample), "parameters": n, **nbytes(model)}


def loss_on(model: GPT, sample: Sample) -> float:
    """Nats/token on the sample's test windows."""
    return mean_loss([logits_of(model, x) for x, _ in sample.windows], sample.windows)


def nbytes(model: GPT) -> dict:
    """bytes: of the codes, and two per number that is not quantized; matrices: those of the blocks' linear layers."""
    quantized = [m for _, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    linear = [m for path, m in model.named_modules() if path.startswith("blocks.") and hasattr(m, "dense_weight")]
    matrices = sum(m.nbytes for m in quantized) if quantized else 2 * sum(m.weight.size for m in linear)
    return {"bytes": matrices + 2 * (model.n_parameters() - sum(m.weight.size for m in linear)), "matrices": matrices,
            "bits": bits_per_weight(model) if quantized else 16}


BITS_VS_PARAMETERS = Experiment(
    "bits_vs_parameters", "Bases of 66 thousand to 1.2 million parameters, trained on the same text, each size drawn three "
    "times, at 16, 8, 4, 3 and 2 bits (GPTQ, groups of 32), on held-out text of that kind; a seed draws the calibration and "
    "the test windows.",
    {"loss": "nats/token", "parameters": "parameters of the base", "bytes": "bytes of all, embeddings in 16 bits",
     "matrices": "bytes of the blocks' matrices", "bits": "bits per weight of these"},
    measure, {f"{base}, {bits} bits": Model(base, bits)
              for size in SIZES for base in draws_of(size) for bits in (16, 8, 4, 3, 2)},
    {"group_size": 32, "calibration": 32, "test": 64},
    {"calibration": 8, "test": 16, "conditions": ("base, 16 bits", "base, 2 bits"), "seeds": (0,)}, seeds=PARTS)


def measure_trained_for(size: str, draw: int, settings: dict) -> dict:
    """Lists over the lengths of training; "parts" also over the parts of the text. draw: the seed of the pretraining. Each
    length has a schedule of its own."""
    samples = [draw_text(seed, settings["calibration"], settings["test"]) for seed in settings["parts"]]
    grid = Uniform(settings["bits"], False, "group", settings["group_size"])

    def after(steps):
        model = trained_for(size, draw, steps)
        rounded = quantize(copy.deepcopy(model), grid, progress=False)
        exact, off = (np.array([loss_on(m, sample) for sample in samples]) for m in (model, rounded))
        return {"loss": exact.mean(), "excess": (off - exact).mean(), "parts": off - exact}
    return as_lists(map(after, settings["pretrained_for"]))


def trained_for(size: str, draw: int, steps: int) -> GPT:
    """A base of a size, pretrained for some steps; the whole length is that of `small_base`."""
    if steps == RECIPE["steps"]: return small_base(draws_of(size)[draw])
    with tempfile.TemporaryDirectory() as folder:
        pretrain_size(size, folder, RECIPE | {"steps": steps, "seed": draw}, progress=False)
        return read_base(Path(folder) / f"{drawn_name(size, draw)}.safetensors")


PRETRAINED_FOR = Experiment(
    "pretrained_for", "Two sizes of bases, each drawn three times (the seed), pretrained for 2,000 or 16,000 steps, and "
    "rounded to nearest at 3 bits in groups of 32; on eight parts of held-out text of that kind.",
    {"loss": "nats/token as it is, one per length of the pretraining", "excess": "nats/token that rounding adds, the same",
     "parts": "the same on each part of the text"},
    measure_trained_for, {"small": "small", "medium": "medium"},
    {"pretrained_for": [2000, 16000], "bits": 3, "group_size": 32, "calibration": 1, "test": 64, "parts": list(PARTS)},
    {"pretrained_for": [2, 16000], "parts": [23], "test": 16, "seeds": (0,), "conditions": ("small",)}, seeds=DRAWS)
