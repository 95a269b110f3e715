"""K-quants against other ways to 4.5 bits, and the importance of inputs, from text of the model's kind or of another kind.

A superblock has 256 weights, and the rows of the base have 128 or 512. So two rows of 128 lie side by side in a superblock,
each under the same importance. llama.cpp would take a larger plain type for such rows.
"""
from dataclasses import dataclass

import numpy as np

from ...models.decoder import Decoder
from ...models.targets import match_targets
from ...quant import GPTQ, NF4, Scheme, Uniform, capture
from ...quant.gguf import quantize_as
from ...quant.k_quants import SUPERBLOCK
from ..experiment import Experiment
from ..quantized import PARTS, Sample, base_model, costs, draw, rounded
from ..tuning import domain, pretrained
from .schemes import COSTS


@dataclass(frozen=True)
class Blocks:
    """A type of GGUF. importance: "own" or "domain", the text on which inputs are seen; "shuffled", that of "own" at other
    inputs of the layer; "equal", 1 for all; "" for none, which llama.cpp rounds by another search."""
    kind: str
    importance: str = ""

    def apply(self, model: Decoder, sample: Sample, rng: np.random.Generator) -> float:
        """Round the model's layers in place; return the bits of a weight."""
        paths, bits, weights = [path for path, _ in match_targets(model, "all")], 0.0, 0
        h = self.importances(model, paths, sample, rng)
        for path in paths:
            weight = model.get(path).weight
            rows = weight.data.reshape(-1, max(SUPERBLOCK, weight.shape[1]))
            q = quantize_as(self.kind, rows, np.resize(h[path], rows.shape[1]) if h else None)
            weight.data = q.dequantize().reshape(weight.shape)
            bits, weights = bits + q.bits_per_weight * rows.size, weights + rows.size
        return bits / weights

    def importances(self, model: Decoder, paths: list[str], sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the importance of each input of the layers, {} for none."""
        if not self.importance: return {}
        tokens = sample.calibration if self.importance != "domain" else domain().batch("train", len(sample.calibration), rng)[0]
        h = {path: seen.mean_square for path, seen in capture(model, tokens, paths).items()}
        if self.importance == "equal": return {path: np.ones_like(of_inputs) for path, of_inputs in h.items()}
        if self.importance == "shuffled": return {path: rng.permutation(of_inputs) for path, of_inputs in h.items()}
        return h


def measure(how: Blocks | Scheme, seed: int, settings: dict) -> dict:
    sample, model = draw(seed, settings["calibration"], settings["test"]), pretrained()
    if isinstance(how, Blocks):
        bits = how.apply(model, sample, np.random.default_rng([seed, 9]))
        return {"bits": bits} | costs(model, sample)
    q = how.nearest if isinstance(how, GPTQ) else how
    bits = q.quantize(base_model().get("blocks.0.mlp.down").weight.data).bits_per_weight
    return {"bits": bits} | costs(rounded(how, sample, model), sample)


K_QUANTS = Experiment(
    "k_quants", "The base in types of GGUF, with and without importance, from 64 windows of its own kind of text or of "
    "*domain*, and in other formats of about 4.5 bits; on held-out text of the base's own kind. A seed draws the calibration "
    "and the test text.",
    {"bits": "bits per weight", **COSTS},
    measure, {"Q4_0": Blocks("Q4_0"), "Q4_K": Blocks("Q4_K"), "Q4_K, importance": Blocks("Q4_K", "own"),
              "Q4_K, importance from other text": Blocks("Q4_K", "domain"),
              "Q4_K, equal importance": Blocks("Q4_K", "equal"), "Q4_K, shuffled importance": Blocks("Q4_K", "shuffled"),
              "Q5_K": Blocks("Q5_K"), "Q6_K": Blocks("Q6_K"),
              "NF4": NF4(), "int4 asymmetric": Uniform(4, False, "group", 32, scale_dtype="float16"),
              "GPTQ": GPTQ(4, group_size=32)},
    {"calibration": 64, "test": 64}, {"calibration": 4, "test": 16, "seeds": (0,), "conditions": ("Q4_K, importance", "GPTQ")},
    seeds=PARTS)
