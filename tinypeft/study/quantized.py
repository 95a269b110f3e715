"""What the experiments on quantization share: the base, the text that judges it, and the windows that a seed draws of it.

Rounding is judged on held-out text of the kind that the base was trained on (Python, NumPy and SciPy documentation). There
is nothing left to learn there, so gains from quantization-aware training are not mere domain adaptation. A seed draws the
calibration windows (from the training part) and the test windows. The test windows of two seeds share no document, so seeds
are independent, and an interval over seeds says how much other text would change the result. Costs are differences to float32
on the same windows:

    excess    loss of the rounded model − loss of the float32 model                 nats/token
    error     ‖logits of the rounded model − logits of the float32 model‖ / ‖logits of the float32 model‖
"""
import functools
from dataclasses import dataclass

import numpy as np

from ..engine import functional as F
from ..engine.tensor import Tensor, no_grad
from ..models.decoder import Decoder
from ..pretrained import load_base
from ..quant import Scheme, quantize
from ..text import corpus
from ..text.tasks import LanguageModelling
from .tuning import pretrained

__all__ = ["PARTS", "Sample", "base_model", "costs", "draw", "logits_of", "mean_loss", "own_text", "rounded"]


PARTS = tuple(range(23, 31))                             # the seeds of what is rounded: 0 to 7 had been seen
CONTEXT = 128                                            # tokens of a window
LONGEST = 2048                                           # tokens of a document: a quarter of a part
base_model = functools.cache(load_base)                  # shared by all: to change one, take `tuning.pretrained()`


@functools.cache
def own_text() -> LanguageModelling:
    """Language modelling of the text that the base was trained on, to train on and to test."""
    return LanguageModelling.of_corpus("base", corpus.base_corpus(), base_model().tokenizer, CONTEXT)


@dataclass(frozen=True, eq=False)
class Sample:
    """calibration: tokens (n, T). windows: [(tokens, targets)], each (16, T) or less. logits, loss: the base's own on them."""
    calibration: np.ndarray
    windows: list
    logits: list
    loss: float


@functools.lru_cache(maxsize=2)
def draw(seed: int, calibration: int = 32, test: int = 64, split: str = "test") -> Sample:
    """Windows of CONTEXT tokens of the base's own text that `seed` draws, to calibrate on and to test on. A rate is chosen on
    windows of split "validation", which are drawn anywhere; two seeds may then share a document."""
    task, rng = own_text(), np.random.default_rng([seed, 0])
    tokens = task.batch("train", calibration, rng)[0]
    windows = [task.batch(split, 16, rng) for _ in range(-(-test // 16))] if split == "validation" else apart(seed, test)
    logits = [logits_of(base_model(), x) for x, _ in windows]
    return Sample(tokens, windows, logits, mean_loss(logits, windows))


def apart(seed: int, test: int) -> list:
    """[(tokens, targets)], each (16, T) or less: the part of the test text that belongs to a seed.

    The documents are shuffled, always in the same way, laid end to end, and cut into parts of `test` windows. A document that a
    cut divides is left out of the later part, which then has fewer windows, and those of more than LONGEST tokens are left out
    of all. Seeds that differ by the number of parts (14 of 64 windows) share one.
    """
    task = own_text()
    ids = task.data("test")
    documents = np.split(ids, np.flatnonzero(ids[:-1] == task.tokenizer.end_of_text) + 1)[1:]
    documents = [document for document in documents if len(document) <= LONGEST]
    shuffled = [documents[i] for i in np.random.default_rng(0).permutation(len(documents))]
    starts = np.cumsum([0, *map(len, shuffled)])
    size = test * CONTEXT
    part = seed % ((starts[-1] - 1) // size)
    first = starts[starts >= part * size][0]
    ids = np.concatenate(shuffled)[first:(part + 1) * size + 1]
    n = (len(ids) - 1) // CONTEXT
    windows = ids[np.arange(n)[:, None] * CONTEXT + np.arange(CONTEXT + 1)]        # (n, T + 1)
    return [(windows[i:i + 16, :-1], windows[i:i + 16, 1:]) for i in range(0, n, 16)]


def rounded(scheme: Scheme, sample: Sample, model: Decoder | None = None) -> Decoder:
    """The base (or `model`, which is changed) quantized by `scheme` on the sample's calibration tokens."""
    return quantize(pretrained() if model is None else model, scheme, calibration=sample.calibration, progress=False)


def costs(model: Decoder, sample: Sample) -> dict[str, float]:
    """{"excess", "error"} of a model on the sample; see the top of the file."""
    logits = [logits_of(model, x) for x, _ in sample.windows]
    squares = lambda arrays: sum(float(np.vdot(a, a)) for a in arrays)
    off = squares(a - b for a, b in zip(logits, sample.logits, strict=True))
    return {"excess": mean_loss(logits, sample.windows) - sample.loss, "error": (off / squares(sample.logits))**0.5}


def logits_of(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    with no_grad():
        return model.eval()(tokens).data


def mean_loss(logits: list, windows: list) -> float:
    """Nats/token of logits [(16, T, V)] on [(tokens, targets)]."""
    targets = [y for _, y in windows]
    losses = [F.cross_entropy(Tensor(a), y).item() for a, y in zip(logits, targets, strict=True)]
    return float(np.average(losses, weights=[y.size for y in targets]))
