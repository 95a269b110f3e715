"""The layer a quantizer leaves behind: y = x Ŵᵀ + b with Ŵ kept as codes."""
from ..nn import Module
from ..tensor import Tensor

__all__ = ["QuantizedLinear", "quantized_linear"]


class QuantizedLinear(Module):
    """y = x Ŵᵀ + b. The weight is a QTensor (d_out, d_in), which has no gradient and cannot be trained; b is the
    Parameter of the layer it stands for, or None.

    Layers that also quantize their input are subclasses. They keep what everybody relies on, `d_in`, `d_out`, `bias`,
    `dense_weight()` and the call, and whatever else they need as attributes that are arrays, QTensors, Parameters,
    numbers, strings or None, so that `save_quantized` can write them.
    """

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    d_in = property(lambda self: self.weight.shape[1])
    d_out = property(lambda self: self.weight.shape[0])

    def forward(self, x):
        return quantized_linear(x, self.weight, self.bias)

    def dense_weight(self):
        """Ŵ, float32 (d_out, d_in)."""
        return self.weight.dequantize()

    @property
    def nbytes(self):
        """Bytes that stand for the weight: all the layer keeps but its bias."""
        return sum(array.nbytes for name, array in self.state_dict().items() if name != "bias")

    def describe(self):
        return f"({self.d_in} → {self.d_out}, {8 * self.nbytes / self.weight.size:.2f} bits/weight)"


def quantized_linear(x, q, b):
    """y = x Ŵᵀ + b.    dx = dy Ŵ,   db = Σ dy;   there is no dŴ.

    x (…, d_in), q a QTensor (d_out, d_in), b (d_out,) or None → (…, d_out). Ŵ is decoded for the product and dropped,
    and decoded again for dx: memory holds one layer's at a time.
    """
    if x.shape[-1] != q.shape[1]:
        raise ValueError(f"quantized linear: x {x.shape} does not fit a weight of shape {q.shape}")
    need, shape, dtype = [t is not None and t.requires_grad for t in (x, b)], x.shape, x.dtype
    dense = lambda: q.dequantize().astype(dtype, copy=False)
    Y = x.data.reshape(-1, q.shape[1]) @ dense().T
    if b is not None: Y += b.data

    def vjp(dy):
        dY = dy.reshape(-1, dy.shape[-1])
        dx = (dY @ dense()).reshape(shape) if need[0] else None
        db = dY.sum(0)                     if need[1] else None
        return (dx,) if b is None else (dx, db)
    return Tensor.fused(Y.reshape(*shape[:-1], -1), (x,) if b is None else (x, b), vjp)
