"""PEQA (Parameter-Efficient and Quantization-aware Adaptation): frozen codes, trained scales.

A weight is rounded once. Fine-tuning then learns one number per output channel or group, so the
result is a quantized model of the same size (Kim et al., arXiv 2305.14152):

    Ŵ = (s₀ + Δs) ⊙ (q − z₀),    q = clip(⌊W/s₀⌉ + z₀, 0, 2ᵇ − 1)          trained: Δs
    ∂L/∂Δsᵢ = Σⱼ Gᵢⱼ (qᵢⱼ − z₀ᵢ),    G = ∂L/∂Ŵ = dyᵀ x        summed over what shares sᵢ

    paper     here            shape
    s₀ + Δs   scale           (n,): n = d_out, or d_out d_in/g for groups of g
    q, z₀     base.weight     a QTensor (d_out, d_in), frozen
    G         dW              (d_out, d_in), not kept

PEQA is a scheme and a method. The scales are an adapter that can be saved and switched off.

    peqa = tp.PEQA(bits=4)
    tp.train(tp.quantize(model, peqa), task, steps=300); tp.convert(model)    # as quantization
    tuned = tp.attach(tp.quantize(model, peqa), peqa)                         # or as fine-tuning

As in the paper, grids are asymmetric by default. What differs: `attach` also takes a model that
another weight scheme quantized (Uniform, GPTQ, GGUF, NF4 without double quantization; with a
codebook, c[q] replaces q − z₀; an offset per block, as in GGUF's Q4_1, stays as it is). Scales that
are stored as codes cannot be trained. float16 scales are trained in the model's precision and
rounded by `merge` and `convert`.
"""
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ..common.hints import Array, Seed, Targets
from ..common.hyper import flag, layer_names
from ..engine.nn import Linear, Module, Parameter, replace_modules
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import match_targets
from ..peft.folders import KNOWN
from ..peft.method import Method, MethodError, Wrapper
from .linear import QuantizedLinear, rows, straight_through
from .qtensor import QTensor, blocks_of
from .scheme import Scheme, code_bits, weights_per_scale
from .uniform import Uniform

__all__ = ["PEQA", "PEQALinear"]


@dataclass(frozen=True)
class PEQA(Scheme, Method):
    """bits: 1 … 8 (symmetric: 2 … 8). group_size: how many weights share a scale; None: all weights
    of an output channel. targets: the quantized layers to attach to."""
    bits: int = code_bits(4)
    symmetric: bool = flag(False, also=("sym",))
    group_size: int | None = weights_per_scale()
    targets: Targets = layer_names("all")
    trains = True
    error = ValueError

    def check(self) -> None:
        _ = self.uniform                                 # raises for a symmetric grid of 1 bit

    @property
    def uniform(self) -> Uniform:
        granularity = "channel" if self.group_size is None else "group"
        return Uniform(self.bits, self.symmetric, granularity, self.group_size)

    def quantize(self, W: Array) -> QTensor:
        return self.uniform.quantize(W)

    def layer(self, linear: Linear) -> "PEQALinear":
        q = self.quantize(linear.weight.data)
        scale = q.scales().astype(linear.weight.dtype)
        return PEQALinear(QuantizedLinear(q, linear.bias), scale)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        new = {path: self.layer(linear) for path, linear in layers.items()}
        for parameter in model.parameters():
            parameter.requires_grad = False
        replace_modules(model, new)

    def wrap(self, model: Decoder, rng: Seed) -> dict[str, Wrapper]:
        wrappers = {}
        for path, layer in match_targets(model, self.targets):
            scale = None
            if isinstance(layer, PEQALinear):
                scale = layer.scale.data
                layer = layer.base
            self.check_base(path, layer)
            wrappers[path] = PEQALinear(layer, scale)
        return wrappers

    def check_base(self, path: str, base: Module) -> None:
        """Raise MethodError unless `base` is quantized like this and has trainable scales."""
        it_is = f"PEQA: {path} is a {type(base).__name__}"
        if not isinstance(base, QuantizedLinear):
            raise MethodError(f"{it_is}, not quantized; call tinypeft.quantize(model, {self})")
        if type(base) is not QuantizedLinear:
            raise MethodError(f"{it_is}, which changes its input as well; PEQA trains layers that "
                              "only multiply by a quantized weight")
        q = base.weight
        width = self.group_size or base.d_in
        if not isinstance(q.scale, np.ndarray):
            scales = "no scales" if q.scale is None else "scales that are codes themselves"
            raise MethodError(f"PEQA: {path} has {scales}, and codes cannot be trained; quantize "
                              "with float scales (no double quantization)")
        if q.bits != self.bits or q.block_size != width:
            raise MethodError(f"PEQA: {path} has {q.bits} bits in blocks of {q.block_size}, not "
                              f"{self.bits} in {width}; "
                              f"use PEQA(bits={q.bits}, group_size={q.block_size})")


KNOWN["PEQA"] = PEQA                                     # `load_adapter` finds it by this name


class PEQALinear(Wrapper):
    """y = x Ŵᵀ + b with the codes of `base`, a QuantizedLinear, and `scale`, a Parameter (n,)."""

    def __init__(self, base: QuantizedLinear, scale: Array | None = None):
        if scale is None:
            scale = base.weight.scales()
        self.base = base
        self.scale = Parameter(np.array(scale))

    is_affine = True
    innermost = True                                     # it computes with the codes of `base`

    @property
    def bias(self) -> Parameter | None:
        return self.base.bias

    def on(self, base: Module | None, made: dict | None = None) -> Self:
        return super().on(base.base if isinstance(base, PEQALinear) else base, made)

    def forward(self, x: Tensor) -> Tensor:
        return scaled_linear(x, self.base.weight, self.scale, self.bias)

    def dense_weight(self) -> Array:
        """Ŵ (d_out, d_in)."""
        return scaled(self.base.weight, self.scale.data)

    def convert(self) -> QuantizedLinear:
        """Make the QuantizedLinear with these scales, rounded to the dtype of the base's scales."""
        q = self.base.weight
        scale = self.scale.data.astype(q.scale.dtype)
        return QuantizedLinear(replace(q, scale=scale), self.bias)

    merge = convert

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, {self.scale.size} scales trained)"


def scaled_linear(x: Tensor, q: QTensor, s: Tensor, b: Tensor | None) -> Tensor:
    """y = x Ŵᵀ + b,  Ŵ = s ⊙ C + o,  C = c[q] − z.    x (…, d_in), q (d_out, d_in), s (n_blocks,)

    dx = dy Ŵ,   ds = Σ (dyᵀ x) ⊙ C over each block,   db = Σ dy."""
    X = rows(x.data)
    S = s.data

    def dense():
        return scaled(q, S)

    def ds(dy):
        dW = rows(dy).T @ X                                               # (d_out, d_in)
        if q.order is not None:
            dW = dW[:, q.order]                                           # in the codes' order
        C = unscaled(q).astype(S.dtype, copy=False)
        return np.einsum("nb,nb->n", blocks_of(dW, q.block_size), C)
    return straight_through(x, q, b, lambda X: X @ dense().T, dense, (s, ds))


def unscaled(q: QTensor) -> Array:
    """Return C = c[q] − z in stored order, (n_blocks, block_size); zeros fill up the last block."""
    return blocks_of(replace(q, scale=None, order=None, offset=None).dequantize(), q.block_size)


def scaled(q: QTensor, s: Array) -> Array:
    """Return Ŵ = s ⊙ C + o, of the shape of q and the dtype of s."""
    W = unscaled(q).astype(s.dtype, copy=False) * s[:, None]
    if q.offset is not None:
        W += q.offsets().reshape(-1, 1)
    W = W.reshape(-1)[:q.size].reshape(q.shape)
    return W if q.order is None else W.take(np.argsort(q.order), axis=1)
