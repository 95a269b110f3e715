"""Quantization-aware training in PyTorch, by its own autograd: rounding is detached, everything else is differentiated."""
import math

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["LSQ", "QATLinear", "ScaledLinear", "min_max"]


def through(x, value):
    """`value`, with the gradient of x."""
    return x + (value - x).detach()


def scaled_gradient(x, g):
    """x, with g times the gradient."""
    return through(x * g, x)


def min_max(bits, symmetric=True, cutoff=None, blocks=None):
    """x ↦ x rounded over the range of each of its rows (blocks(x) of its blocks), straight through below the cutoff."""
    def quantize(x):
        X = x.detach() if blocks is None else blocks(x.detach())
        low, high = (X.amin(-1, True).float().clamp(max=0), X.amax(-1, True).float().clamp(min=0))
        if symmetric:
            s = torch.maximum(high, -low) / (2**(bits - 1) - 1)
            y = (X / s).round() * s
        else:
            s = high / (2**bits - 1) - low / (2**bits - 1)
            z = (-low / s).round()
            y = ((X / s).round() + z).clamp(0, 2**bits - 1).sub(z) * s
        y = y.reshape(x.shape).to(x.dtype)
        return through(x, y) if cutoff is None else through(torch.where(x.abs() < cutoff, x, x.detach()), y)
    return quantize


class LSQ(nn.Module):
    """A learned step and offset per block, from the paper's text: clip first, round then; the clamp's own gradient."""

    def __init__(self, bits, step, offset, n_sharing, blocks):
        super().__init__()
        Q_P = 2**(bits - 1) - 1 if offset is None else 2**bits - 1
        self.bits, self.blocks, self.g = bits, blocks, 1 / math.sqrt(n_sharing * Q_P)
        self.step = nn.Parameter(step.clone())
        self.offset = None if offset is None else nn.Parameter(offset.clone())

    def forward(self, x):
        s = through(self.step, self.step.clamp(min=torch.finfo(torch.float32).eps))     # a step that would turn negative
        s = scaled_gradient(s, self.g)[:, None]
        if self.offset is None:
            n, p = -2**(self.bits - 1), 2**(self.bits - 1) - 1
            v = (self.blocks(x) / s).clamp(n, p)
            return (through(v, v.round()) * s).reshape(x.shape)
        z = -scaled_gradient(self.offset, self.g)[:, None] / s
        z = through(z, z.round().clamp(0, 2**self.bits - 1))
        v = (self.blocks(x) / s + z).clamp(0, 2**self.bits - 1)
        return ((through(v, v.round()) - z) * s).reshape(x.shape)


class QATLinear(nn.Module):
    """An nn.Linear whose weight, input and output pass through functions first."""

    def __init__(self, linear, weight, inputs=None, outputs=None):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        same = lambda x: x
        self.round_weight, self.round_input, self.round_output = weight, inputs or same, outputs or same

    def forward(self, x):
        return self.round_output(F.linear(self.round_input(x), self.round_weight(self.weight), self.bias))


class ScaledLinear(nn.Module):
    """PEQA: integers C (n, B) that stay, scales (n,) that are trained."""

    def __init__(self, linear, C, scale):
        super().__init__()
        self.bias, self.C, self.scale = linear.bias, C, nn.Parameter(scale.clone())

    def forward(self, x):
        return F.linear(x, (self.C * self.scale[:, None]).reshape(-1, x.shape[-1]), self.bias)
