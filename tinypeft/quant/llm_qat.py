"""LLM-QAT: quantization-aware training without data. The model writes its own, and is its own teacher.

Weights, inputs of every linear layer, and the keys and values that a generation cache would hold are rounded, each by its
own largest number, and the rounded model learns to predict as the original does on text that the original wrote
(Liu et al., arXiv 2305.17888, equations 1 to 3):

    X̂ = s ⌊X/s⌉,   s = max|X| / (2ᵇ⁻¹ − 1)                       ∂X̂/∂X = 1, straight through
    L = (1/n) Σᵢ KL(p_teacher(· | x_<i) ‖ p_student(· | x_<i))

    paper          here                    what shares a step
    W              bits                    an output channel
    A              activation_bits         a token
    KV             kv_bits                 a token: the outputs of the layers `key` and `value`
    n              tokens of a batch

A row starts with a token drawn from the vocabulary; the next few are the likeliest, until it has 3 to 5, so that it starts
as text does; the rest are drawn from the teacher's distribution (their §2.1, "hybrid"). W-A-KV 4-8-4 is the default.

    task = tp.self_distillation(model)               # the teacher is a copy of the model as it is now
    tp.quantize(model, tp.LLMQAT())
    tp.train(model, task, steps=200, lr=1e-4)
    tp.convert(model)

Where the paper and its repository (facebookresearch/LLM-QAT) differ. The paper's loss is the cross-entropy, which is this KL
plus a constant, the teacher's entropy; theirs sums over tokens and averages over rows. Their backward pass stops the
gradient where |X| ≥ 2, though the forward pass clips nothing: `cutoff=2.0` does that. They add 1e-6 to max|X| and again to
1/s, below what float16 would show; at 1 and 2 weight bits they use other quantizers, not these. Rows there go on to an end of
text; here the model writes past it, into the next document, as it has been trained to.
All parameters are trained, in floating point: training saves no memory. Converted: b + 32/d_in bits per weight. A cache
that stores keys and values in few bits is `QuantizedKVCache`; here they are rounded, and stored as floats.
"""
import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..generate import generate
from ..gpt import GPT
from ..nn import replace_modules
from ..text.tasks.planting import divergence
from ..text.tasks.task import Rows
from .fake_quant import FakeQuantLinear, check_bits
from .rounding import MinMax
from .scheme import Scheme, checked
from .uniform import Uniform

__all__ = ["LLMQAT", "SelfDistillation", "self_distillation"]


@dataclass(frozen=True)
class LLMQAT(Scheme):
    """bits of the weights, activation_bits, kv_bits: 2 … 8 each; None leaves inputs, or keys and values, as they are.

    cutoff: None, or the |X| from which on gradients are stopped.
    """
    bits: int = 4
    activation_bits: int | None = 8
    kv_bits: int | None = 4
    cutoff: float | None = None
    shown = ("bits", "activation_bits", "kv_bits")
    trains: ClassVar[bool] = True

    def __post_init__(self):
        check_bits("LLMQAT", self.bits, activation_bits=self.activation_bits, kv_bits=self.kv_bits)
        if self.cutoff is not None and not self.cutoff > 0:
            raise ValueError(f"LLMQAT: cutoff must be positive or None, got {self.cutoff!r}")

    def quantize(self, W):
        return Uniform(self.bits).quantize(W)

    def layer(self, linear, caches=False):
        """`caches`: whether its outputs are what a generation cache keeps."""
        checked(linear.weight.data)
        rounding = lambda bits: None if bits is None else MinMax(Uniform(bits), self.cutoff)
        return FakeQuantLinear(linear, rounding(self.bits), rounding(self.activation_bits),
                               rounding(self.kv_bits) if caches else None)

    def apply(self, model, layers, batches):
        replace_modules(model, {path: self.layer(linear, path.endswith((".key", ".value"))) for path, linear in layers.items()})


def self_distillation(model, rows=256, held_out=32, length=None, temperature=1.0, rng=0):
    """Let `model` write its own training data, and be the teacher → `SelfDistillation`, a task for `train`.

    model: a GPT, which is copied. rows, held_out: how many rows to train on, and to validate and to test on.
    length: tokens per row, default 128 or the model's context if that is less. temperature: of what is drawn.
    Raises TypeError for anything but a GPT, ValueError for numbers that make no sense.
    """
    if not isinstance(model, GPT):
        raise TypeError(f"self_distillation: expected a GPT, got {type(model).__name__}")
    length = min(128, model.config.context_length) if length is None else length
    if not 6 <= length <= model.config.context_length or rows < 1 or held_out < 1:
        raise ValueError(f"self_distillation: need length in 6 … {model.config.context_length}, rows ≥ 1 and held_out ≥ 1, "
                         f"got {length}, {rows} and {held_out}")
    rng = np.random.default_rng(rng)
    teacher = copy.deepcopy(model).eval()
    for p in teacher.parameters(): p.requires_grad = False                         # so that it records nothing
    written = {split: write(teacher, n, length, temperature, rng)
               for split, n in (("train", rows), ("validation", held_out), ("test", held_out))}
    return SelfDistillation(teacher, written)


def write(teacher, n, length, temperature, rng):
    """n rows of `length` tokens: a random one, the likeliest until there are 3, 4 or 5, then drawn ones."""
    start = rng.integers(0, teacher.config.vocab_size, (n, 1))
    parts = []
    for greedy, first in zip((3, 4, 5), np.array_split(start, 3), strict=True):
        if len(first):
            opening = generate(teacher, first, greedy - 1)
            parts.append(generate(teacher, opening, length - greedy, temperature=temperature, rng=rng))
    return np.concatenate(parts)


class SelfDistillation(Rows):
    """Predict as `teacher` does. rows: split → int (n, T), what it wrote; a batch is (tokens (B, T),)."""

    def __init__(self, teacher, rows):
        super().__init__("self-distillation", rows)
        self.teacher = teacher

    def collate(self, examples):
        return (np.array(examples),)

    def count(self, batch):
        return batch[0].size

    def loss(self, model, batch):
        return divergence(F.log_softmax(self.teacher(batch[0])).data, model(batch[0]))

    def metrics(self, model, batch):
        """KL in nats/token, and the share of places where both find the same token likeliest."""
        log_p, logits = F.log_softmax(self.teacher(batch[0])).data, model(batch[0])
        agree = log_p.argmax(-1) == logits.data.argmax(-1)
        return {"loss": divergence(log_p, logits).item(), "agreement": float(agree.mean())}

    def measure_baselines(self):
        return {"the teacher": {"loss": 0.0, "agreement": 1.0}}

    def describe(self):
        return "what the model wrote, " + " / ".join(f"{len(r)} rows ({s})" for s, r in self.splits.items())
