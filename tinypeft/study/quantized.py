"""What the experiments on quantization share: the base, the text it is judged on, and what a seed draws of it.

Text. Rounding is judged on text of the kind the base was trained on (Python, NumPy and SciPy documentation, its held-out
parts), where there is nothing left to learn: what training with rounded weights gains there is not a new domain.
A seed draws the calibration windows (from the training part) and the test windows, so an interval over seeds says what
other text would have given. Costs are differences to float32 on the same windows:

    excess    loss of the rounded model − loss of the float32 model                 nats/token
    error     ‖logits of the rounded model − logits of the float32 model‖ / ‖logits of the float32 model‖
"""
import functools
from dataclasses import dataclass

import numpy as np

from .. import functional as F
from ..pretrained import load_pretrained
from ..quant import quantize
from ..tensor import Tensor, no_grad
from ..text import corpus
from ..text.tasks import LanguageModelling
from .tuning import pretrained

__all__ = ["Sample", "base", "costs", "draw", "own_text", "rounded"]


base = functools.cache(load_pretrained)                  # shared: look at it, and change a `pretrained()` one


@functools.cache
def own_text(context=128):
    """Language modelling of the text the base was trained on, a `LanguageModelling`: to train on and to test."""
    text, encode = corpus.base_corpus(), base().tokenizer.encode_documents
    splits = "train", "validation", "test"
    return LanguageModelling("base", {s: encode(getattr(text, s)) for s in splits}, {s: text.n_bytes(s) for s in splits},
                             context, {"base": text.sha256})


@dataclass(frozen=True, eq=False)
class Sample:
    """calibration (n, T) tokens; windows: [(tokens, targets)], each (16, T); what the base makes of them: logits, loss."""
    calibration: np.ndarray
    windows: list
    logits: list
    loss: float


@functools.lru_cache(maxsize=2)
def draw(seed, calibration=32, test=64, context=128, split="test"):
    """What `seed` draws of the base's own text: windows of `context` tokens, to calibrate on and to test on."""
    task, rng = own_text(context), np.random.default_rng([seed, 0])
    tokens = task.batch("train", calibration, rng)[0]
    windows = [task.batch(split, 16, rng) for _ in range(-(-test // 16))]
    logits = [logits_of(base(), x) for x, _ in windows]
    return Sample(tokens, windows, logits, mean_loss(logits, windows))


def rounded(scheme, sample, model=None):
    """The base (or `model`, which is changed) quantized by `scheme` on the sample's calibration tokens."""
    return quantize(pretrained() if model is None else model, scheme, calibration=sample.calibration)


def costs(model, sample):
    """{"excess", "error"} of a model on the sample; see the top of the file."""
    logits = [logits_of(model, x) for x, _ in sample.windows]
    squares = lambda arrays: sum(float(np.vdot(a, a)) for a in arrays)
    off = squares(a - b for a, b in zip(logits, sample.logits, strict=True))
    return {"excess": mean_loss(logits, sample.windows) - sample.loss, "error": (off / squares(sample.logits))**0.5}


def logits_of(model, tokens):
    with no_grad():
        return model.eval()(tokens).data


def mean_loss(logits, windows):
    """Nats/token of logits [(16, T, V)] on [(tokens, targets)]."""
    return float(np.mean([F.cross_entropy(Tensor(a), y).item() for a, (_, y) in zip(logits, windows, strict=True)]))
