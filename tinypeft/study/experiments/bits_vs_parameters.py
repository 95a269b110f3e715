"""More parameters at fewer bits, or fewer at more (Dettmers & Zettlemoyer, arXiv 2212.09720, who find 4 bits best)?

Three bases were trained on the same text; their matrices are quantized by GPTQ in groups of 32. Embeddings and norms stay in
16 bits and count. Small models hold much of their weight there, so the matrices are also counted alone.
"""
import copy
import functools
from dataclasses import dataclass

from ...models.gpt import GPT
from ...quant import GPTQ, QuantizedLinear, bits_per_weight, quantize
from ..bases import SIZES, small_base
from ..experiment import Experiment
from ..quantized import draw, logits_of, mean_loss

of_size = functools.cache(small_base)


@dataclass(frozen=True)
class Model:
    """size: a name in `bases.SIZES`. bits: per weight of its matrices; 16 means that they are not quantized."""
    size: str
    bits: int


def measure(which: Model, seed: int, settings: dict) -> dict:
    sample, model = draw(seed, settings["calibration"], settings["test"]), copy.deepcopy(of_size(which.size))
    n = model.n_parameters()
    if which.bits < 16: quantize(model, GPTQ(which.bits, settings["group_size"]), sample.calibration, progress=False)
    return {"loss": mean_loss([logits_of(model, x) for x, _ in sample.windows], sample.windows), "parameters": n,
            **nbytes(model)}


def nbytes(model: GPT) -> dict:
    """bytes: of the codes, and two per number that is not quantized; matrices: those of the blocks' linear layers."""
    quantized = [m for _, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    linear = [m for path, m in model.named_modules() if path.startswith("blocks.") and hasattr(m, "dense_weight")]
    matrices = sum(m.nbytes for m in quantized) if quantized else 2 * sum(m.weight.size for m in linear)
    return {"bytes": matrices + 2 * (model.n_parameters() - sum(m.weight.size for m in linear)), "matrices": matrices,
            "bits": bits_per_weight(model) if quantized else 16}


BITS_VS_PARAMETERS = Experiment(
    "bits_vs_parameters", "Three bases of 66 thousand to 1.2 million parameters, trained on the same text, at 16, 8, 4, 3 and "
    "2 bits (GPTQ, groups of 32), on held-out text of that kind; a seed draws the calibration and the test windows.",
    {"loss": "nats/token", "parameters": "parameters of the base", "bytes": "bytes of all, embeddings in 16 bits",
     "matrices": "bytes of the blocks' matrices", "bits": "bits per weight of these"},
    measure, {f"{size}, {bits} bits": Model(size, bits) for size in SIZES for bits in (16, 8, 4, 3, 2)},
    {"group_size": 32, "calibration": 32, "test": 64},
    {"calibration": 8, "test": 16, "conditions": ("base, 16 bits", "base, 2 bits"), "seeds": (0,)},
    seeds=tuple(range(8)))
