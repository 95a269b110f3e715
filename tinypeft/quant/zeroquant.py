"""ZeroQuant: groups for weights, tokens for activations, distillation that repairs 4-bit blocks.

Each of g groups of a weight matrix has a scale; inputs have 8 bits and one scale per token, found
at run time. With 4 bits, each transformer block is then trained alone to give the outputs it gave
before: layer-by-layer knowledge distillation (Yao et al., arXiv 2206.01861, §4.1 and §4.2),

    min over Ŵ of  MSE( L_k(x), L̂_k(x) ),     x = L̂_{k−1} … L̂_1 (h₀)

    paper    here                  shape
    W        linear.weight         (d_out, d_in)
    g        groups                runs of d_out·d_in/g consecutive weights: rows, or parts of rows
    L_k      the block as it was   the teacher; only one block and its copy are held and trained
    L̂_k      its copy              of `FakeQuantLinear`s: rounds forward, straight through backward
    x        inputs                (B, T, d), from the blocks before, already quantized

The inputs x of a block come here from the quantized blocks before it, as they will in use. (Whether
the paper takes these or the original blocks' outputs could not be checked.)

The paper and DeepSpeed count groups, the survey of Zhao et al. counts
weights per group ("usually 128"): the fields `groups` and `group_size`. DeepSpeed's symmetric step
is max/2ᵇ⁻¹, whose code 2ᵇ⁻¹ is clipped; here, as in the other schemes, it is max/(2ᵇ⁻¹ − 1). If
groups are whole rows, the product stays an integer one (`int8.py`).

The paper has two settings: W8A8 without distillation, `ZeroQuant()`, and W4/8 with it, 4 bits in
the MLP and 8 in the attention, `ZeroQuant(mlp_bits=4, steps=100)`. DeepSpeed released only the
first, so tests compare the second with its definition. Stored: bits + 32 g/(d_out d_in) per weight.
"""
import copy
import math
from dataclasses import dataclass

from ..common.hints import Array
from ..common.hyper import real, whole
from ..engine.nn import Linear, Module, replace_modules
from ..engine.optim import AdamW
from ..engine.tensor import Tensor, enable_grad
from ..models.decoder import Decoder
from .calibration import below, block_by_block
from .fake_quant import FakeQuantLinear
from .int8 import Int8Linear
from .qtensor import QTensor
from .rounding import MinMax
from .scheme import Scheme, checked, code_bits, weights_per_scale
from .uniform import Uniform


@dataclass(frozen=True)
class ZeroQuant(Scheme):
    """bits: of the attention's weights; mlp_bits: of the MLP's (None: the same); 8-bit inputs.
    groups: equal runs of weights per matrix; group_size: weights per group instead, a divisor of a
    row. steps: distillation steps per block, each on the next batch of calibration; some hundred
    overfit a few thousand tokens. lr: their learning rate; large models want a smaller one."""
    bits: int = code_bits(8, least=2)
    mlp_bits: int | None = whole(None, least=2, most=8, or_none=True)
    groups: int = whole(64, least=1, also=("num_groups", "quantize_groups"))
    group_size: int | None = weights_per_scale()
    steps: int = whole(0)
    lr: float = real(1e-4, above=0, also=("learning_rate",))

    @property
    def calibrated(self) -> bool:
        return self.steps > 0

    def uniform(self, shape: tuple[int, int], bits: int) -> Uniform:
        """Return the quantizer of a weight (d_out, d_in)."""
        if self.group_size is not None:
            return Uniform(bits, granularity="group", group_size=self.group_size)
        size = math.prod(shape)
        if size % self.groups:
            raise ValueError(f"groups={self.groups} does not divide {shape}, {size} weights")
        return Runs(bits, granularity="group", group_size=size // self.groups)

    def quantize(self, W: Array, bits: int | None = None) -> QTensor:
        W = checked(W)
        return self.uniform(W.shape, bits or self.bits).quantize(W)

    def layer(self, linear: Linear, bits: int | None = None) -> Int8Linear:
        return Int8Linear(self.quantize(linear.weight.data, bits), linear.bias, "token")

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        if not self.steps:
            replace_modules(model, {path: self.layer(linear, self.bits_of(path))
                                    for path, linear in layers.items()})
            return
        for path, block, inputs in block_by_block(model, batches):
            linears = below(path, layers)
            if not linears:
                continue
            student = copy.deepcopy(block)
            replace_modules(student, {name: self.student(student.get(name), self.bits_of(name))
                                      for name in linears})
            distill(block, student, inputs, self.steps, self.lr)
            new = {}
            for name, linear in linears.items():
                q = student.get(name).convert().weight
                new[name] = Int8Linear(q, linear.bias, "token")
            replace_modules(block, new)

    def bits_of(self, path: str) -> int:
        """Return the bits of the layer at `path`."""
        return self.mlp_bits or self.bits if "mlp." in path else self.bits

    def student(self, linear: Linear, bits: int) -> FakeQuantLinear:
        """Make the layer that computes what `layer(linear, bits)` does, with a weight to train."""
        weight = self.uniform(checked(linear.weight.data).shape, bits)
        return FakeQuantLinear(linear, MinMax(weight), MinMax(Uniform(8)))


class Runs(Uniform):
    """`Uniform` by groups of `group_size` consecutive weights, wherever rows end."""

    def blocks(self, W: Array) -> Array:
        return W.reshape(-1, self.group_size)


def distill(teacher: Module, student: Module, inputs: list[Tensor], steps: int, lr: float
            ) -> list[float]:
    """Train the rounded weights of the block `student` by Adam towards the outputs of `teacher`.
    inputs: Tensors (B, T, d), one per step, in turn. Returns the loss of every step."""
    pairs = [(x, teacher(x)) for x in inputs]
    for parameter in student.parameters():
        parameter.requires_grad = False
    weights = [module.weight for _, module in student.named_modules()
               if isinstance(module, FakeQuantLinear)]
    for W in weights:
        W.requires_grad = True
    optimizer = AdamW(weights, lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        x, y = pairs[step % len(pairs)]
        with enable_grad():
            error = student(x) - y
            loss = (error * error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
