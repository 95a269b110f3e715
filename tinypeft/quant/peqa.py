"""PEQA: Parameter-Efficient and Quantization-aware Adaptation. Codes stay as they are, and only their scales are trained.

A weight is rounded to nearest, once, and what the model then learns is one number per output channel, or per group. The
result is a quantized model like any other, of the same size: nothing is merged, and nothing is rounded again (Kim et al.,
arXiv 2305.14152, equations 1 and 2):

    Ŵ = (s₀ + Δs) ⊙ (q − z₀),    q = clip(⌊W/s₀⌉ + z₀, 0, 2ᵇ − 1)          trained: Δs
    ∂L/∂Δsᵢ = Σⱼ Gᵢⱼ (qᵢⱼ − z₀ᵢ),    G = ∂L/∂Ŵ = dyᵀ x                      the sum over what shares sᵢ

    paper     here            shape
    s₀ + Δs   scale           (n,): n = d_out, or d_out d_in/g for groups of g
    q, z₀     base.weight     a QTensor (d_out, d_in), frozen
    G         dW              (d_out, d_in), not kept

One value does both steps, and its scales are an adapter: small, saved and taken off like any other.

    peqa = tp.PEQA(bits=4)
    tp.train(tp.quantize(model, peqa), task, steps=300); tp.convert(model)      # as quantization, or
    tuned = tp.attach(tp.quantize(model, peqa), peqa)                             # as fine-tuning: .save, .detach, .merge

`attach` also takes a model that another weight scheme quantized (Uniform, GPTQ, GGUF, NF4 without double quantization):
the formula is the same, with c[q] for q − z₀ where there is a codebook. Scales that are codes themselves cannot be trained.
Scales that the base keeps in float16 are trained in the model's precision, and rounded when it is merged or converted.

As in the paper, grids are asymmetric, with one scale per output channel, or per group. Trained: Σ n over the layers.
"""
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..nn import Module, Parameter, replace_modules
from ..peft.folders import KNOWN
from ..peft.method import Method, MethodError
from ..targets import match_targets
from ..tensor import Tensor
from .linear import QuantizedLinear
from .qtensor import blocks_of
from .scheme import Scheme
from .uniform import Uniform

__all__ = ["PEQA", "PEQALinear"]


@dataclass(frozen=True)
class PEQA(Scheme, Method):
    """bits 1 … 8; symmetric; group_size: numbers that share a scale, None for all of an output channel.

    targets: when attached, names of quantized layers, or "all".
    """
    bits: int = 4
    symmetric: bool = False
    group_size: int | None = None
    targets: tuple | str = "all"
    learning_rate: ClassVar[float] = 1e-3
    shown: ClassVar[tuple] = ("bits",)

    def __post_init__(self):
        _ = self.uniform                                 # raises for bits and sizes that make no sense

    uniform = property(lambda self: Uniform(self.bits, self.symmetric, "channel" if self.group_size is None else "group",
                                            self.group_size))

    # -- quantize -------------------------------------------------------------------------------
    def quantize(self, W):
        return self.uniform.quantize(W)

    def layer(self, linear):
        q = self.quantize(linear.weight.data)
        return PEQALinear(QuantizedLinear(q, linear.bias), q.scales().astype(linear.weight.dtype))

    def apply(self, model, layers, batches):
        new = {path: self.layer(linear) for path, linear in layers.items()}
        for p in model.parameters(): p.requires_grad = False
        replace_modules(model, new)

    # -- attach ---------------------------------------------------------------------------------
    def wrap(self, model, rng):
        wrappers = {}
        for path, layer in match_targets(model, self.targets):
            base, scale = (layer.base, layer.scale.data) if isinstance(layer, PEQALinear) else (layer, None)
            self.check(path, base)
            wrappers[path] = PEQALinear(base, scale)
        return wrappers

    def check(self, path, base):
        """MethodError unless `base` is a quantized layer that this describes, and has scales that can be trained."""
        if type(base) is not QuantizedLinear:
            quantized = isinstance(base, QuantizedLinear)
            raise MethodError(f"PEQA: {path} is a {type(base).__name__}" + (", which changes its input as well; PEQA is for "
                              "layers that multiply by a weight and do no more" if quantized else ", not quantized; call "
                              f"tinypeft.quantize(model, {self}) first"))
        q = base.weight
        if not isinstance(q.scale, np.ndarray):
            raise MethodError(f"PEQA: {path} has {'no scales' if q.scale is None else 'scales that are codes themselves'}, "
                              "and codes cannot be trained; quantize with float scales (no double quantization)")
        width = base.d_in if self.group_size is None else self.group_size
        if (q.bits, q.block_size) != (self.bits, width):
            raise MethodError(f"PEQA: {path} has {q.bits} bits and a scale for every {q.block_size} weights, {self} expects "
                              f"{self.bits} and {width}; use PEQA(bits={q.bits}, group_size={q.block_size})")


KNOWN["PEQA"] = PEQA                                     # `load_adapter` finds it by this name


class PEQALinear(Module):
    """y = x Ŵᵀ + b with the codes of `base`, a QuantizedLinear, and `scale`, a Parameter (n,), in place of its scales."""

    def __init__(self, base, scale=None):
        self.base, self.scale = base, Parameter(np.array(base.weight.scales() if scale is None else scale))

    d_in = property(lambda self: self.base.d_in)
    d_out = property(lambda self: self.base.d_out)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return scaled_linear(x, self.base.weight, self.scale, self.bias)

    def dense_weight(self):
        """Ŵ, an array (d_out, d_in)."""
        return scaled(self.base.weight, self.scale.data)

    def convert(self):
        """A QuantizedLinear with these scales, rounded to what the base stores scales in."""
        q = self.base.weight
        return QuantizedLinear(replace(q, scale=self.scale.data.astype(q.scale.dtype)), self.bias)

    merge = convert

    def describe(self):
        return f"({self.d_in} → {self.d_out}, {self.scale.size} scales trained)"


def scaled_linear(x, q, s, b):
    """y = x Ŵᵀ + b,  Ŵ = s ⊙ C,  C = c[q] − z.    dx = dy Ŵ,  ds = Σ (dyᵀ x) ⊙ C over each block,  db = Σ dy.

    x (…, d_in), q a QTensor (d_out, d_in), s (n_blocks,), b (d_out,) or None → (…, d_out).
    """
    if x.shape[-1] != q.shape[1]:
        raise ValueError(f"PEQA: x {x.shape} does not fit a weight of shape {q.shape}")
    X, S = x.data.reshape(-1, q.shape[1]), s.data
    Y = X @ scaled(q, S).T
    if b is not None: Y += b.data
    need, shape = [t is not None and t.requires_grad for t in (x, s, b)], x.shape

    def vjp(dy):
        dY = dy.reshape(-1, dy.shape[-1])
        dx = ds = None
        if need[0]: dx = (dY @ scaled(q, S)).reshape(shape)
        if need[1]:
            dW = dY.T @ X                                                 # (d_out, d_in)
            if q.order is not None: dW = dW[:, q.order]                   # to where codes are stored
            ds = np.einsum("nb,nb->n", blocks_of(dW, q.block_size), integers(q).astype(S.dtype, copy=False))
        db = dY.sum(0) if need[2] else None
        return (dx, ds) if b is None else (dx, ds, db)
    return Tensor.fused(Y.reshape(*shape[:-1], -1), (x, s) if b is None else (x, s, b), vjp)


def integers(q):
    """C = c[q] − z in stored order, (n_blocks, block_size); zeros fill up the last block."""
    return blocks_of(replace(q, scale=None, order=None).dequantize(), q.block_size)


def scaled(q, s):
    """Ŵ = s ⊙ C, of the shape of q and the dtype of s."""
    W = (integers(q).astype(s.dtype, copy=False) * s[:, None]).reshape(-1)[:q.size].reshape(q.shape)
    if q.order is None:
        return W
    out = np.empty_like(W)
    out[:, q.order] = W
    return out
