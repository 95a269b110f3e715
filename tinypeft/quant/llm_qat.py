"""LLM-QAT: quantization-aware training without data. The model writes its text and is its teacher.

Weights, inputs of linear layers, keys and values are rounded. The rounded model learns to predict
as the original does, on text that the original wrote (Liu et al., arXiv 2305.17888, eq. 1 to 3):

    X̂ = s ⌊X/s⌉,   s = max|X| / (2ᵇ⁻¹ − 1)                       ∂X̂/∂X = 1, straight through
    L = (1/n) Σᵢ KL(p_teacher(· | x_<i) ‖ p_student(· | x_<i))

    paper     here                 numbers that share a step
    W         bits                 an output channel
    A         activation_bits      a token
    KV        kv_bits              a token: the outputs of the layers `key` and `value`
    n         tokens of a batch

A row starts with a random token. The likeliest tokens follow up to the 3rd, 4th or 5th, so that it
starts as text does; the rest are drawn from the teacher (§2.1, "hybrid"). W-A-KV 4-8-4 by default.

    task = tp.self_distillation(model)               # the teacher is a copy of the present model
    tp.train(tp.quantize(model, tp.LLMQAT()), task, steps=200, lr=1e-4); tp.convert(model)

Where things differ. The paper's loss is the cross-entropy: this KL plus a constant, the teacher's
entropy. Its repository (facebookresearch/LLM-QAT) sums over tokens and averages over rows. It stops
the gradient where |X| ≥ 2, although the forward pass clips nothing; `cutoff=2.0` does that. It has
other quantizers for 1 and 2 bits, and adds 1e-6 to max|X| and to 1/s, which float16 would not show.
Its rows stop at an end of text; here they go on. Parameters are trained as floats, so training
saves no memory. Converted: b + 32/d_in bits per weight. Keys and values are rounded but stay
floats; `QuantizedKVCache` stores them in few bits.
"""
import copy
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Seed
from ..common.hyper import real, whole
from ..engine.nn import Linear, replace_modules
from ..models.decoder import Decoder
from ..models.generation import generate
from ..text.tasks.distillation import Distillation
from ..text.tasks.task import Rows
from .fake_quant import FakeQuantLinear
from .qtensor import QTensor
from .rounding import MinMax
from .scheme import Scheme, checked, code_bits
from .uniform import Uniform

__all__ = ["LLMQAT", "SelfDistillation", "self_distillation"]


@dataclass(frozen=True)
class LLMQAT(Scheme):
    """bits: of weights. activation_bits, kv_bits: of inputs, of keys and values; None: not rounded.
    cutoff: the |X| from which on gradients are stopped, or None."""
    bits: int = code_bits(4, least=2)
    activation_bits: int | None = whole(8, least=2, most=8, or_none=True, also=("a_bits",))
    kv_bits: int | None = whole(4, least=2, most=8, or_none=True)
    cutoff: float | None = real(None, above=0, or_none=True)
    trains = True
    shown = ("bits", "activation_bits", "kv_bits")

    def quantize(self, W: Array) -> QTensor:
        return Uniform(self.bits).quantize(W)

    def layer(self, linear: Linear, caches: bool = False) -> FakeQuantLinear:
        """Make the layer that replaces `linear`. caches: True if a generation cache keeps its
        outputs, which are then rounded too."""
        checked(linear.weight.data)
        kv_bits = self.kv_bits if caches else None
        return FakeQuantLinear(linear, self.rounding(self.bits),
                               self.rounding(self.activation_bits), self.rounding(kv_bits))

    def rounding(self, bits: int | None) -> MinMax | None:
        return None if bits is None else MinMax(Uniform(bits), self.cutoff)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        replace_modules(model, {path: self.layer(linear, path.endswith((".key", ".value")))
                                for path, linear in layers.items()})


def self_distillation(model: Decoder, rows: int = 256, held_out: int = 32,
                      length: int | None = None, temperature: float = 1.0,
                      rng: Seed = 0) -> "SelfDistillation":
    """Let a copy of `model` write training data and be the teacher → a task for `train`.

    rows: how many to train on. held_out: how many to validate and to test on. length: tokens per
    row; None: 128, or the context if that is less. temperature: of the drawn tokens. Raises
    TypeError for anything but a model and ValueError for numbers that do not fit."""
    if not isinstance(model, Decoder):
        raise TypeError(f"self_distillation: expected a language model, got {type(model).__name__}")
    context = model.config.context_length
    length = min(128, context) if length is None else length
    if not 6 <= length <= context or rows < 1 or held_out < 1:
        raise ValueError(f"self_distillation: need length in 6 … {context}, rows ≥ 1 and "
                         f"held_out ≥ 1, got {length}, {rows} and {held_out}")
    rng = np.random.default_rng(rng)
    teacher = copy.deepcopy(model).eval()
    numbers = {"train": rows, "validation": held_out, "test": held_out}
    texts = {split: write(teacher, n, length, temperature, rng)
             for split, n in numbers.items()}
    return SelfDistillation(teacher, texts)


def write(teacher: Decoder, n: int, length: int, temperature: float, rng: Seed) -> Array:
    """Write n rows of `length` tokens: a random one, the likeliest up to the 3rd, 4th or 5th, then
    drawn ones."""
    first = rng.integers(0, teacher.config.vocab_size, (n, 1))
    texts = []
    for greedy, tokens in zip((3, 4, 5), np.array_split(first, 3), strict=True):
        if len(tokens):
            opening = generate(teacher, tokens, greedy - 1)
            texts.append(generate(teacher, opening, length - greedy, temperature, rng=rng))
    return np.concatenate(texts)


class SelfDistillation(Distillation, Rows):
    """Predict as `teacher` does on its rows: split → int (n, T). A batch is (tokens (B, T),)."""

    def __init__(self, teacher: Decoder, rows: dict[str, Array]):
        super().__init__("self-distillation", rows)
        self.teach(teacher)

    def collate(self, examples: list[Array]) -> tuple[Array]:
        return (np.array(examples),)

    def count(self, batch: tuple[Array]) -> int:
        return batch[0].size

    def measure_baselines(self) -> dict[str, dict[str, float]]:
        return {"the teacher": {"loss": 0.0, "agreement": 1.0}}

    def describe(self) -> str:
        rows = " / ".join(f"{len(r)} rows ({s})" for s, r in self.splits.items())
        return f"text that the model wrote, {rows}"
