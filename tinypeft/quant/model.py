"""quantize: the one verb that puts any scheme on a model, and the layer it leaves there."""
import numpy as np

from ..gpt import GPT
from ..nn import Linear, Module, replace_modules
from ..targets import match_targets
from ..tensor import Tensor
from .scheme import Scheme

__all__ = ["QuantizedLinear", "quantize"]


def quantize(model, scheme, calibration=None, targets="all"):
    """Replace the linear layers in the blocks by quantized ones, in place; return the model.

    scheme: such as `NF4()`. calibration: batches of tokens (B, T), for schemes that look at activations.
    targets: names of layers as in `attach`, or "all". Embeddings and norms stay as they are.
    Raises ValueError when a method is attached (quantize first, then attach), when a layer is quantized already.
    """
    if not isinstance(model, GPT):
        raise TypeError(f"quantize: expected a GPT, got {type(model).__name__}")
    if not isinstance(scheme, Scheme):
        raise TypeError(f"quantize: expected a scheme such as tinypeft.NF4(), got {scheme!r}")
    if model.attached is not None:
        raise ValueError(f"quantize: {model.attached} is attached; merge or detach it, or quantize before attaching")
    layers = dict(match_targets(model, targets))
    for path, layer in layers.items():
        if not isinstance(layer, Linear):
            raise ValueError(f"quantize: {path} is a {type(layer).__name__} already")
    replace_modules(model, {path: QuantizedLinear(scheme.quantize(layer.weight.data), layer.bias)
                            for path, layer in layers.items()})
    return model


class QuantizedLinear(Module):
    """y = x Ŵᵀ + b with a weight that is kept as codes and cannot be trained."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias                    # a QTensor (d_out, d_in); a Parameter or None

    d_in = property(lambda self: self.weight.shape[1])
    d_out = property(lambda self: self.weight.shape[0])

    def forward(self, x):
        return quantized_linear(x, self.weight, self.bias)

    def dense_weight(self):
        """Ŵ, float32 (d_out, d_in)."""
        return self.weight.dequantize()

    def describe(self):
        return f"({self.d_in} → {self.d_out}, {self.weight.bits_per_weight:.2f} bits/weight)"


def quantized_linear(x, q, b):
    """y = x Ŵᵀ + b.    dx = dy Ŵ,   db = Σ dy;   there is no dŴ.

    Ŵ is decoded for the product and dropped, and decoded again for dx: memory holds one layer's at a time.
    """
    if x.shape[-1] != q.shape[1]:
        raise ValueError(f"quantized linear: x {x.shape} does not fit a weight of shape {q.shape}")
    dense = lambda: q.dequantize().astype(x.dtype, copy=False)
    Y = x.data.reshape(-1, q.shape[1]) @ dense().T
    if b is not None: Y += b.data
    need, shape = [t is not None and t.requires_grad for t in (x, b)], x.shape

    def vjp(dy):
        dY = dy.reshape(-1, dy.shape[-1])
        dx = (dY @ dense()).reshape(shape) if need[0] else None
        db = dY.sum(0)                     if need[1] else None
        return (dx,) if b is None else (dx, db)
    return Tensor.fused(Y.reshape(*shape[:-1], -1), (x,) if b is None else (x, b), vjp)


def weight_error(model_before, model_after):
    """Relative Frobenius error ‖Ŵ − W‖/‖W‖ over all layers that differ in kind (a number)."""
    before, after = dict(model_before.named_modules()), dict(model_after.named_modules())
    pairs = [(before[p].dense_weight(), m.dense_weight()) for p, m in after.items() if not isinstance(m, Linear)
             and hasattr(m, "dense_weight")]
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a ** 2).sum() for a, _ in pairs)))
