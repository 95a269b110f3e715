"""FakeQuant, quantization-aware training: the forward pass rounds weights, training moves floats.

"Fake" quantization computes with floats that lie on the quantized grid. After training, `convert`
stores them as integers, and the model computes the same function:

    y = x̂ Ŵᵀ + b,    Ŵ = s (q − z),   q = clip(⌊W/s⌉ + z, 0, 2ᵇ − 1),    x̂ likewise, or x itself

`rounding.py` has the gradients: straight through the rounding (STE, Jacob et al., arXiv 1712.05877)
with a step from the current range of W, or with trained steps (LSQ, Esser et al., arXiv 1902.08153;
with trained zero points LSQ+, Bhalgat et al., arXiv 2004.09576).

    paper        here              shape
    w, ŵ         weight, Ŵ         (d_out, d_in)
    s_w, β_w     round_weight      (n,): n = 1 (tensor), d_out (channel) or d_out d_in/g (group)
    x, x̂         the input         (…, d_in)
    s_x, β_x     round_input       (1,) with `learn_step`; otherwise one per token, from its range

Where the paper and this file differ. LSQ has one step per layer (`granularity="tensor"`) and 8 bits
in the first and last layer. Here the default is one step per output channel, and only linear layers
in blocks are rounded. An input's step starts from the calibration tokens, not the first batch.

Trained, as floats, which saves no memory: all parameters, and per layer n steps, n offsets with
`symmetric=False`, 1 or 2 numbers for the input. Converted: b + 32/B bits per weight, B per step.
"""
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..common.hyper import flag, one_of, whole
from ..engine import functional as F
from ..engine.nn import Linear, Module, Parameter, replace_modules
from ..engine.tensor import Tensor
from ..models.decoder import Decoder, require_free
from .calibration import Statistics, capture
from .linear import QuantizedLinear, quantized_linear
from .qtensor import QTensor
from .rounding import LearnedStep, MinMax, round_to_grid
from .scheme import Scheme, checked, code_bits, weights_per_scale
from .uniform import Grid, Uniform

__all__ = ["FakeQuant", "FakeQuantLinear", "RoundedLinear", "convert"]


@dataclass(frozen=True)
class FakeQuant(Scheme):
    """Round weights to `bits` bits while they train; `convert` makes them integers afterwards.

    learn_step: False takes the range of the current weights (STE); True trains the steps (LSQ).
    symmetric: False gives weights a zero point, which is trained if the step is.
    granularity, group_size: the weights that share a step, as in `Uniform`.
    activation_bits: rounds inputs too, unless None: per token by their range, or with `learn_step`
    by one trained step per layer, which needs calibration tokens.
    activation_symmetric: False trains an offset for inputs.
    mask: where a trained step clips, "paper" or "torch" (`rounding.py`).
    Learning rates for weights suit steps too: 1e-3, or 3e-4 with offsets at 3 bits or more."""
    bits: int = code_bits(4, least=2)
    learn_step: bool = flag(False)
    symmetric: bool = flag(True, also=("sym",))
    granularity: str = one_of("channel", "tensor", "group")
    group_size: int | None = weights_per_scale()
    activation_bits: int | None = whole(None, least=2, most=8, or_none=True, also=("a_bits",))
    activation_symmetric: bool = flag(True)
    mask: str = one_of("paper", "torch")
    trains = True
    shown = ("bits", "learn_step")

    @property
    def calibrated(self) -> bool:
        return self.learn_step and self.activation_bits is not None

    def check(self) -> None:
        if not (self.activation_symmetric or self.calibrated):
            raise ValueError("activation_symmetric=False needs learn_step=True and activation_bits")
        _ = self.uniform                                 # raises for a group size without groups

    @property
    def uniform(self) -> Uniform:
        return Uniform(self.bits, self.symmetric, self.granularity, self.group_size)

    def rounding(self, W: Array) -> MinMax | LearnedStep:
        """Make the module that rounds W (d_out, d_in)."""
        if not self.learn_step:
            return MinMax(self.uniform)
        x = self.uniform.blocks(checked(W))
        with np.errstate(over="ignore"):                  # the step is bounded
            mean_abs = np.abs(x).mean(1)
        n_sharing = x.shape[1]
        return LearnedStep(self.uniform, mean_abs, x.min(1), x.max(1), n_sharing, self.mask)

    def quantize(self, W: Array) -> QTensor:
        """Convert W without training."""
        return self.rounding(W).quantize(checked(W))

    def layer(self, linear: Linear, seen: Statistics | None = None) -> "FakeQuantLinear":
        """Make the layer that replaces `linear`. seen: the `Statistics` of its inputs; needed if
        steps of inputs are trained."""
        self.quantize(linear.weight.data)                # raises if W cannot be quantized
        round_input = None
        if self.calibrated:
            inputs = Uniform(self.activation_bits, self.activation_symmetric, "tensor")
            round_input = LearnedStep(inputs, seen.mean_abs.mean(keepdims=True),
                                      seen.low.min(keepdims=True), seen.high.max(keepdims=True),
                                      linear.d_in, self.mask)
        elif self.activation_bits:
            round_input = MinMax(Uniform(self.activation_bits))
        return FakeQuantLinear(linear, self.rounding(linear.weight.data), round_input)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        seen = capture(model, batches, list(layers)) if self.calibrated else {}
        replace_modules(model, {path: self.layer(linear, seen.get(path))
                                for path, linear in layers.items()})


class FakeQuantLinear(Module):
    """y = r(x̂ Ŵᵀ + b), Ŵ = round_weight(W), x̂ = round_input(x), r = round_output. W is trained.
    Each of the three is a module of `rounding.py`, or None to leave x or y unchanged."""

    def __init__(self, linear: Linear, round_weight: Module, round_input: Module | None = None,
                 round_output: Module | None = None):
        self.weight = linear.weight
        self.bias = linear.bias
        self.round_weight = round_weight
        self.round_input = round_input
        self.round_output = round_output
        for _, rounding in self.children():
            rounding.to(self.weight.dtype)

    @property
    def d_in(self) -> int:
        return self.weight.shape[1]

    @property
    def d_out(self) -> int:
        return self.weight.shape[0]

    @property
    def is_affine(self) -> bool:
        return not (self.round_input or self.round_output)

    def forward(self, x: Tensor) -> Tensor:
        if self.round_input:
            x = self.round_input(x)
        y = F.linear(x, self.round_weight(self.weight), self.bias)
        return self.round_output(y) if self.round_output else y

    def dense_weight(self) -> Array:
        """Ŵ (d_out, d_in)."""
        return self.round_weight(self.weight).data

    def convert(self) -> QuantizedLinear:
        """Make the layer with integers in place of W."""
        q = self.round_weight.quantize(self.weight.data)
        if self.is_affine:
            return QuantizedLinear(q, self.bias)
        return RoundedLinear(q, self.bias, self.round_input, self.round_output)

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out})"


class RoundedLinear(QuantizedLinear):
    """y = r(x̂ Ŵᵀ + b), Ŵ as codes: a converted `FakeQuantLinear` that rounds inputs or outputs.
    x̂ and Ŵ stand for integers, but are multiplied as floats; `int8.py` multiplies the integers."""
    parts: ClassVar[dict[str, Any]] = QuantizedLinear.parts | {
        "input_bits": (int, None), "output_bits": (int, None), "cutoff": (float, None),
        "input_scale": (np.ndarray, None), "input_zero": (np.ndarray, None)}

    def __init__(self, weight: QTensor, bias: Parameter | None, round_input: Module | None,
                 round_output: Module | None):
        super().__init__(weight, bias)
        self.input_bits = round_input and round_input.uniform.bits
        self.output_bits = round_output and round_output.uniform.bits
        self.cutoff = getattr(round_input or round_output, "cutoff", None)
        self.input_scale = None                          # then inputs have one per token
        self.input_zero = None
        if isinstance(round_input, LearnedStep):
            grid = round_input.grid()
            self.input_scale = grid.scale
            self.input_zero = np.full((1, 1), grid.zero, np.float32)

    def check_parts(self) -> None:
        super().check_parts()
        for bits in self.input_bits, self.output_bits:
            if bits is not None:
                Uniform(bits)                            # raises for a number it does not take
        if self.cutoff is not None and not self.cutoff > 0:
            raise ValueError(f"cutoff must be positive, got {self.cutoff}")
        s = self.input_scale
        z = self.input_zero
        if s is None and z is None:
            return
        complete = self.input_bits is not None and s is not None and z is not None
        if not complete or s.size != 1 or z.size != 1 or not (s > 0).all():
            raise ValueError("input_scale, input_zero and input_bits belong together: one positive "
                             f"number, one number and an integer; got {s}, {z}, {self.input_bits}")

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is None:
            x = self.per_token(x, self.input_bits)
        else:
            x = round_to_grid(x, Grid(self.input_scale, self.input_zero, self.input_bits))
        y = quantized_linear(x, self.weight, self.bias)
        return self.per_token(y, self.output_bits)

    def per_token(self, x: Tensor, bits: int | None) -> Tensor:
        """Round x to the range of each token; with None, return x."""
        return x if bits is None else MinMax(Uniform(bits), self.cutoff)(x)

    def describe(self) -> str:
        text = super().describe()[:-1]
        if self.input_bits:
            text += f", {self.input_bits}-bit inputs"
        if self.output_bits:
            text += f", {self.output_bits}-bit outputs"
        return f"{text})"


def convert(model: Decoder) -> Decoder:
    """Replace every layer that was trained in quantized form by its integers, in place → model. A
    float32 model computes the same function, bit for bit. Raises ValueError for the
    model inside a PeftModel, or if there is nothing to convert."""
    require_free(model, "convert")
    new = {path: module.convert() for path, module in model.named_modules()
           if hasattr(module, "convert")}
    if not new:
        raise ValueError("convert: no layer was trained in quantized form; quantize by FakeQuant")
    replace_modules(model, new)
    return model
