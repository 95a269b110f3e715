"""Rounding through which gradients pass: what quantization-aware training puts in the place of a quantizer.

    u = x/s,   q = clip(⌊u⌉ + z, l, h),   x̂ = s (q − z)

⌊·⌉ has derivative 0 wherever it has one. The straight-through estimator (STE; Bengio et al., arXiv 1308.3432) takes 1
instead, which gives x a gradient, and in LSQ (Esser et al., arXiv 1902.08153, equations 2, 3 and 5) s as well:

    ∂x̂/∂x = 1 inside the range,  0 outside
    ∂x̂/∂s = ⌊u⌉ − u  inside,     l − z or h − z outside                          × g = 1/√(N Q_P)
    ∂x̂/∂z = 0  inside,           −s outside                                      × g

    paper     here            shape
    v, v̂      x, x̂            (n, B): n blocks of B numbers, each with a step of its own
    s         step            (n,)
    Q_N, Q_P  z − l, h − z    2ᵇ⁻¹ and 2ᵇ⁻¹ − 1: codes are stored from 0 up, and z = 2ᵇ⁻¹, as in `uniform.py`
    N         n_sharing       how many numbers share a step: B weights, or the d_in features of a layer's input
    β (LSQ+)  offset          (n,): z = ⌊−β/s⌉; then l = 0, and Q_P = h

A step starts at 2⟨|x|⟩/√Q_P, or at 1 where all of a block is 0; with an offset, both start from the range of x.

Where things differ. The paper's "inside" is l < u + z < h; torch.fake_quantize* tests what was rounded,
l ≤ ⌊u⌉ + z ≤ h, half a step further out on either side: `mask="torch"`. LSQ+ (Bhalgat et al., arXiv 2004.09576) adds β
as it is, x̂ = s q + β, and starts where the squared error is least; here, as in torch, z is a whole number, so that sums
of products stay integer, and the start is the range. But what is learned is β, in x's own units: a z that moves by one
learning rate a step would take thousands to reach the next integer. g is meant for SGD: Adam divides it out again.
"""
import math

import numpy as np

from ..nn import Module, Parameter
from ..tensor import Tensor, unbroadcast
from .uniform import Grid

__all__ = ["LearnedStep", "MinMax", "fake_quantize", "rounded"]

EPS = np.finfo(np.float32).eps                           # a learned step counts as at least this, as in torch's module


def fake_quantize(x, s, z, low, high, mask="torch", g=1.0):
    """x̂ = s (clip(⌊x/s⌉ + z, low, high) − z), and the gradients at the head of this file; g scales ds and dz.

    x (n, B); s and z broadcast to it, z is rounded and clipped to [low, high] first → (n, B).
    """
    X, S, Z = x.data, s.data, np.clip(np.rint(z.data), low, high)
    u = X / S
    r = np.rint(u)
    k = np.clip(r + Z, low, high) - Z                                     # q − z
    if mask == "torch": inside = (low <= r + Z) & (r + Z <= high)
    else:               inside = (low < u + Z) & (u + Z < high)
    slope = np.where(inside, r - u, k) if s.requires_grad else None
    need, shapes = [p.requires_grad for p in (x, s, z)], (s.shape, z.shape)

    def vjp(dy):
        dx = dy * inside                                      if need[0] else None
        ds = unbroadcast(dy * slope, shapes[0]) * g           if need[1] else None
        dz = unbroadcast(dy * ~inside * -S, shapes[1]) * g    if need[2] else None
        return dx, ds, dz
    return Tensor.fused(k * S, (x, s, z), vjp)


def rounded(x, grid, cutoff=None):
    """x on a constant `Grid`, whose rows cut x into as many blocks; dx = dy inside, 0 outside (STE).

    `cutoff` c, if not None: dx = 0 where |x| ≥ c as well.
    """
    constant = lambda a: Tensor(np.asarray(a, x.dtype))
    blocks = x.reshape(len(grid.scale), -1)
    y = fake_quantize(blocks, constant(grid.scale), constant(grid.zero), grid.low, 2**grid.bits - 1).reshape(x.shape)
    if cutoff is None:
        return y
    kept = np.abs(x.data) < cutoff
    return Tensor.op(y.data, (y, lambda dy: dy * kept))


class MinMax(Module):
    """x̂ on the grid that spans x's own range, block by block, anew in every pass: nothing is clipped, dx = dy."""

    def __init__(self, uniform, cutoff=None):
        self.uniform, self.cutoff = uniform, cutoff

    def forward(self, x):
        return rounded(x, self.uniform.fit(self.uniform.blocks(x.data)), self.cutoff)

    def quantize(self, W):
        return self.uniform.quantize(W)

    def describe(self):
        return f"({self.uniform}, straight through)"


class LearnedStep(Module):
    """LSQ: x̂ with a step, and unless `uniform` is symmetric an offset, that are Parameters.

    mean_abs, low, high: ⟨|x|⟩, min x and max x of every block, (n,), where they start from. n_sharing: N.
    """

    def __init__(self, uniform, mean_abs, low, high, n_sharing, mask="paper"):
        self.uniform, self.mask, self.top = uniform, mask, 2**uniform.bits - 1
        self.middle = 2**(uniform.bits - 1)
        Q_P = self.top - self.middle if uniform.symmetric else self.top
        self.g = 1 / math.sqrt(n_sharing * Q_P)
        s = 2 * mean_abs / math.sqrt(Q_P)
        s, self.offset = np.where(s < EPS, 1, s).astype(np.float32), None
        if not uniform.symmetric:
            grid = uniform.grid(low, high)
            s, z = grid.scale[:, 0], grid.zero[:, 0]
            self.offset = Parameter(-s * z)
        self.step = Parameter(s.copy())

    def parts(self):
        """s (n, 1) and z, (n, 1) or a number, not yet rounded: Tensors."""
        step = self.step.reshape(-1, 1)
        s = Tensor.op(np.maximum(step.data, EPS).astype(step.dtype), (step, lambda ds: ds))
        return s, s._constant(self.middle) if self.offset is None else -self.offset.reshape(-1, 1) / s

    def forward(self, x):
        blocks = x.reshape(self.uniform.blocks(x.data).shape)
        return fake_quantize(blocks, *self.parts(), 0, self.top, self.mask, self.g).reshape(x.shape)

    def grid(self):
        """The same as a `Grid`."""
        s, z = (t.data.astype(np.float32) for t in self.parts())
        return Grid(s, self.middle if self.offset is None else np.clip(np.rint(z), 0, self.top), self.uniform.bits)

    def quantize(self, W):
        return self.uniform.quantize(W, self.grid())

    def describe(self):
        return f"({self.uniform}, {'step' if self.offset is None else 'step and offset'} learned)"
