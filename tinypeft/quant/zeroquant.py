"""ZeroQuant: groups for weights, tokens for activations, and a block-by-block repair of what 4 bits break.

A weight matrix is cut into g groups, each with a scale of its own; inputs are quantized to 8 bits with one scale per
token, found at run time. Where 4 bits are asked for, each transformer block is then trained, alone, to give the outputs
it gave before (Yao et al., arXiv 2206.01861, §4.1 and §4.2, layer-by-layer knowledge distillation):

    min over Ŵ of  MSE( L_k(x), L̂_k(x) ),     x = L̂_{k−1} … L̂_1 (h₀)

    paper    here                     shape
    W        linear.weight            (d_out, d_in)
    g        groups                   runs of d_out·d_in/g consecutive weights: whole rows of outputs, or parts of rows
    L_k      the block as it was      the teacher; nothing but this one block and its copy is held or trained at a time
    L̂_k      its copy                 of `FakeQuantLinear`s: rounds going forward, passes gradients straight through
    x        inputs                   (B, T, d), from the blocks before, already quantized

Groups: the paper and DeepSpeed count them (64 per matrix for GPT-3), the survey of Zhao et al. counts weights per
group ("usually 128"): `groups` and `group_size`. DeepSpeed's symmetric step is max/2ᵇ⁻¹, whose code 2ᵇ⁻¹ is clipped;
here as in the other schemes it is max/(2ᵇ⁻¹ − 1). Groups of whole rows leave the product an integer one (`int8.py`).

The paper's two settings are W8A8 without distillation, `ZeroQuant()`, and W4/8 with it, 4 bits in the MLP and 8 in the
attention: `ZeroQuant(mlp_bits=4, steps=100)`. DeepSpeed released the first only, so nothing but the definition checks
the second. Trained: the weights that are quantized, by Adam. Stored: bits + 32 g/(d_out d_in) per weight.
"""
import copy
import math
from dataclasses import dataclass

from ..nn import replace_modules
from ..optim import AdamW
from ..tensor import enable_grad
from .calibration import walk
from .fake_quant import FakeQuantLinear
from .int8 import Int8Linear
from .rounding import MinMax
from .scheme import Scheme, check_choice, checked
from .uniform import Uniform


@dataclass(frozen=True)
class ZeroQuant(Scheme):
    """bits 2 … 8 of the attention's weights, mlp_bits of the MLP's (the same if None); 8-bit inputs per token.

    groups: equal runs of weights per matrix; group_size: weights per group instead, dividing a row.
    steps: of distillation per block, 0 for none; each takes one batch of the calibration, in turn, and so needs it.
    A few thousand tokens are overfitted after some hundred steps. lr: their learning rate; large models want a smaller
    one. Raises ValueError for groups that do not divide.
    """
    bits: int = 8
    mlp_bits: int | None = None
    groups: int = 64
    group_size: int | None = None
    steps: int = 0
    lr: float = 1e-4
    shown = ("bits",)

    def __post_init__(self):
        for bits in (self.bits, self.mlp_bits):
            if bits is not None: check_choice("bits", bits, tuple(range(2, 9)))
        if self.groups < 1 or self.steps < 0 or not self.lr > 0:
            raise ValueError("ZeroQuant: need groups ≥ 1, steps ≥ 0 and lr > 0, "
                             f"got {self.groups}, {self.steps} and {self.lr}")

    calibrated = property(lambda self: self.steps > 0)

    def uniform(self, shape, bits):
        """The quantizer of a weight (d_out, d_in)."""
        if self.group_size is not None:
            return Uniform(bits, granularity="group", group_size=self.group_size)
        if math.prod(shape) % self.groups:
            raise ValueError(f"groups={self.groups} does not divide {shape}, {math.prod(shape)} weights")
        return Runs(bits, granularity="group", group_size=math.prod(shape) // self.groups)

    def quantize(self, W, bits=None):
        W = checked(W)
        return self.uniform(W.shape, bits or self.bits).quantize(W)

    def layer(self, linear, bits=None):
        return Int8Linear(self.quantize(linear.weight.data, bits), linear.bias, "token")

    def apply(self, model, layers, batches):
        bits = {path: self.mlp_bits if ".mlp." in path else self.bits for path in layers}
        if not self.steps:
            replace_modules(model, {path: self.layer(linear, bits[path]) for path, linear in layers.items()})
            return
        for name, block, inputs in walk(model, batches):
            inside = {path.removeprefix(f"{name}."): path for path in layers if path.startswith(f"{name}.")}
            if not inside: continue
            student = copy.deepcopy(block)
            replace_modules(student, {short: self.student(student.get(short), bits[path]) for short, path in inside.items()})
            distill(block, student, inputs, self.steps, self.lr)
            replace_modules(block, {short: Int8Linear(student.get(short).convert().weight, layers[path].bias, "token")
                                    for short, path in inside.items()})

    def student(self, linear, bits):
        """The layer that computes what `layer(linear, bits)` does, from a weight that can be trained."""
        weight = self.uniform(checked(linear.weight.data).shape, bits or self.bits)
        return FakeQuantLinear(linear, MinMax(weight), MinMax(Uniform(8)))


class Runs(Uniform):
    """`Uniform` by groups of `group_size` consecutive weights, wherever rows end."""

    def blocks(self, W):
        return W.reshape(-1, self.group_size)


def distill(teacher, student, inputs, steps, lr):
    """Train the weights of the rounded layers in the block `student` towards the outputs of the block `teacher`.

    inputs: Tensors (B, T, d), one of which each step takes in turn. Returns the loss of every step, a list.
    """
    targets = [teacher(x) for x in inputs]
    weights = [m.weight for _, m in student.named_modules() if isinstance(m, FakeQuantLinear)]
    for p in student.parameters(): p.requires_grad = any(p is W for W in weights)
    optimizer, losses = AdamW(weights, lr=lr, weight_decay=0.0), []
    for step in range(steps):
        x, y = inputs[step % len(inputs)], targets[step % len(inputs)]
        with enable_grad():
            error = student(x) - y
            loss = (error * error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
