"""FakeQuant: quantization-aware training. The forward pass computes with rounded weights, training changes the floats.

    y = x̂ Ŵᵀ + b,      Ŵ = s (q − z),   q = clip(⌊W/s⌉ + z, 0, 2ᵇ − 1),      x̂ likewise, or x itself

"Fake": Ŵ is on the grid, but a float. `rounding.py` has the gradients: straight through the rounding (STE, Jacob et al.,
arXiv 1712.05877) with a step from the range of W as it is now, or with steps that are trained too (LSQ, Esser et al.,
arXiv 1902.08153; with zero points: LSQ+, Bhalgat et al., arXiv 2004.09576).

    paper        here              shape
    w, ŵ         weight, Ŵ         (d_out, d_in)
    s_w, β_w     round_weight      (n,): n = 1 per "tensor", d_out per "channel", d_out d_in/g per "group"
    x, x̂         the input         (…, d_in)
    s_x, β_x     round_input       (1,) learned; without `learn_step` one per token, from its own range

Where things differ. LSQ has one step per layer, `granularity="tensor"`, and 8 bits in the first and last layer; here the
default is one per output channel, and what is not a linear layer in a block stays as it is. An input's step starts from
the calibration tokens, the paper's from the first batch.

Trained: all the model's parameters, and n per layer more, 2n with `symmetric=False`, 1 or 2 for the input. While that
goes on nothing is smaller: weights, gradients and the optimizer's state are floats. `convert` then puts integers in the
weights' place, b + 32/B bits per weight (B weights share a step), and the function stays the same, bit for bit.
"""
from dataclasses import dataclass

import numpy as np

from .. import functional as F
from ..gpt import GPT
from ..nn import Module, replace_modules
from .calibration import capture
from .linear import QuantizedLinear, quantized_linear
from .rounding import LearnedStep, MinMax, round_to_grid
from .scheme import Scheme, check_choice, checked
from .uniform import Grid, Uniform

__all__ = ["FakeQuant", "FakeQuantLinear", "RoundedLinear", "convert"]


@dataclass(frozen=True)
class FakeQuant(Scheme):
    """Round weights to `bits` while they train; `convert` makes them integers afterwards. bits: 2 … 8.

    learn_step: False, the range is that of the weights as they are (STE); True, steps are parameters (LSQ).
    symmetric: False gives weights a zero point, learned if the step is. granularity, group_size: what shares a step, as
    in `Uniform`. activation_bits: rounds inputs too (None: it does not), per token by their own range, or with
    `learn_step` by one learned step per layer, which needs calibration; activation_symmetric=False learns an offset.
    mask: where a learned step clips, "paper" or "torch" (`rounding.py`). Steps are of the size of weights, so a learning
    rate for weights suits them: on the base 1e-3, and 3e-4 for steps of 3 bits or more with offsets.
    """
    bits: int = 4
    learn_step: bool = False
    symmetric: bool = True
    granularity: str = "channel"
    group_size: int | None = None
    activation_bits: int | None = None
    activation_symmetric: bool = True
    mask: str = "paper"
    shown = ("bits", "learn_step")

    def __post_init__(self):
        check_bits("FakeQuant", self.bits, activation_bits=self.activation_bits)
        check_choice("mask", self.mask, ("paper", "torch"))
        if not (self.activation_symmetric or self.calibrated):
            raise ValueError("FakeQuant: activation_symmetric=False learns an offset for inputs; it needs "
                             "learn_step=True and activation_bits")
        _ = self.uniform                                 # raises for a granularity or group size that makes no sense

    calibrated = property(lambda self: self.learn_step and self.activation_bits is not None)
    uniform = property(lambda self: Uniform(self.bits, self.symmetric, self.granularity, self.group_size))

    def rounding(self, W):
        """The module that rounds W."""
        if not self.learn_step:
            return MinMax(self.uniform)
        blocks = self.uniform.blocks(checked(W))
        return LearnedStep(self.uniform, np.abs(blocks).mean(1), blocks.min(1), blocks.max(1), blocks.shape[1], self.mask)

    def quantize(self, W):
        """What W becomes when it is converted without training."""
        return self.rounding(W).quantize(checked(W))

    def layer(self, linear, seen=None):
        """`seen`: the `Statistics` of its inputs, where steps of inputs are learned."""
        self.quantize(linear.weight.data)                # raises where that cannot be done
        round_input = None
        if self.calibrated:
            inputs = Uniform(self.activation_bits, self.activation_symmetric, "tensor")
            start = seen.mean_abs.mean(keepdims=True), seen.low.min(keepdims=True), seen.high.max(keepdims=True)
            round_input = LearnedStep(inputs, *start, linear.d_in, self.mask)
        elif self.activation_bits is not None:
            round_input = MinMax(Uniform(self.activation_bits))
        return FakeQuantLinear(linear, self.rounding(linear.weight.data), round_input)

    def apply(self, model, layers, batches):
        seen = capture(model, batches, list(layers)) if self.calibrated else {}
        replace_modules(model, {path: self.layer(linear, seen.get(path)) for path, linear in layers.items()})


class FakeQuantLinear(Module):
    """y = r(x̂ Ŵᵀ + b) with Ŵ = round_weight(W), x̂ = round_input(x), r = round_output, each a module of `rounding.py`,
    or None for what stays as it is. W is trained, in floating point."""

    def __init__(self, linear, round_weight, round_input=None, round_output=None):
        self.weight, self.bias = linear.weight, linear.bias
        self.round_weight, self.round_input, self.round_output = round_weight, round_input, round_output
        for _, rounding in self.children(): rounding.to(self.weight.dtype)

    d_in = property(lambda self: self.weight.shape[1])
    d_out = property(lambda self: self.weight.shape[0])

    def forward(self, x):
        if self.round_input: x = self.round_input(x)
        y = F.linear(x, self.round_weight(self.weight), self.bias)
        return self.round_output(y) if self.round_output else y

    def dense_weight(self):
        """Ŵ, an array (d_out, d_in)."""
        return self.round_weight(self.weight).data

    def convert(self):
        """The layer with integers in place of W."""
        q = self.round_weight.quantize(self.weight.data)
        if not (self.round_input or self.round_output):
            return QuantizedLinear(q, self.bias)
        return RoundedLinear(q, self.bias, self.round_input, self.round_output)

    def describe(self):
        return f"({self.d_in} → {self.d_out})"


class RoundedLinear(QuantizedLinear):
    """y = r(x̂ Ŵᵀ + b) with Ŵ as codes: what `FakeQuantLinear` becomes if it rounds more than its weight.

    x̂ and Ŵ stand for integers, but their product is formed in floating point; `int8.py` multiplies the integers.
    """

    def __init__(self, weight, bias, round_input, round_output):
        super().__init__(weight, bias)
        one = round_input or round_output
        self.input_bits = round_input and round_input.uniform.bits
        self.output_bits = round_output and round_output.uniform.bits
        self.cutoff = getattr(one, "cutoff", None)
        self.input_scale = self.input_zero = None                          # every token has its own
        if isinstance(round_input, LearnedStep):
            grid = round_input.grid()
            self.input_scale, self.input_zero = grid.scale, np.full((1, 1), grid.zero, np.float32)

    def forward(self, x):
        per_token = lambda x, bits: x if bits is None else MinMax(Uniform(bits), self.cutoff)(x)
        if self.input_scale is None: x = per_token(x, self.input_bits)
        else:                        x = round_to_grid(x, Grid(self.input_scale, self.input_zero, self.input_bits))
        return per_token(quantized_linear(x, self.weight, self.bias), self.output_bits)

    def describe(self):
        rounds = [f"{bits}-bit {what}" for what, bits in (("inputs", self.input_bits), ("outputs", self.output_bits)) if bits]
        return f"{super().describe()[:-1]}, {', '.join(rounds)})"


def convert(model):
    """Replace every layer that was trained in quantized form by its integers, in place; return the model.

    A float32 model computes the same function, bit for bit. Raises ValueError when a method is attached, or when
    there is nothing to convert.
    """
    if not isinstance(model, GPT):
        raise TypeError(f"convert: expected a GPT, got {type(model).__name__}")
    if model.attached is not None:
        raise ValueError(f"convert: {model.attached} is attached; merge or detach it first")
    new = {path: m.convert() for path, m in model.named_modules() if hasattr(m, "convert")}
    if not new:
        raise ValueError("convert: no layer of this model was trained in quantized form; tinypeft.quantize(model, "
                         "FakeQuant(…)) makes such layers, and other schemes leave integers at once")
    replace_modules(model, new)
    return model


def check_bits(who, bits, **others):
    """ValueError unless bits is 2 … 8, and each of the others too, or None."""
    for name, b in {"bits": bits, **others}.items():
        if b not in range(2, 9) and (b is not None or name == "bits"):
            raise ValueError(f"{who}: {name} must be 2 … 8{'' if name == 'bits' else ', or None'}, got {b!r}")
