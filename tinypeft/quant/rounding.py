"""Rounding through which gradients pass: it replaces the quantizer in quantization-aware training.

    u = x/s,   q = clip(⌊u⌉ + z, l, h),   x̂ = s (q − z)

⌊·⌉ has derivative 0 wherever it has one. The straight-through estimator (STE; Bengio et al., arXiv
1308.3432) takes 1. This gives x a gradient, and in LSQ (Esser et al., arXiv 1902.08153) also s:

    ∂x̂/∂x = 1 inside the range,  0 outside                      (LSQ's equations 2, 3 and 5)
    ∂x̂/∂s = ⌊u⌉ − u  inside,     l − z or h − z outside         × g = 1/√(N Q_P)
    ∂x̂/∂z = 0  inside,           −s outside                     × g

    paper     here            shape
    v, v̂      x, x̂            (n, B): n blocks of B numbers, each with a step of its own
    s         step            (n,): starts at 2⟨|x|⟩/√Q_P, at 1 if x is 0, with β at the range of x
    Q_N, Q_P  z − l, h − z    2ᵇ⁻¹ and 2ᵇ⁻¹ − 1: codes start at 0 and z = 2ᵇ⁻¹, as in `uniform.py`
    N         n_sharing       numbers that share a step: B weights, or d_in features of an input
    β (LSQ+)  offset          (n,): z = ⌊−β/s⌉; then l = 0, and Q_P = h

Where things differ. The paper's "inside" is l < u + z < h. torch.fake_quantize* tests the rounded
value, l ≤ ⌊u⌉ + z ≤ h, half a step further out on either side: `mask="torch"`. LSQ+ (Bhalgat et
al., arXiv 2004.09576) adds β as it is, x̂ = s q + β, and starts at the least squared error. Here z
is a whole number as in torch, so that sums of products stay integers, and the start is the range.
The trained parameter is β, in the units of x, because a z that moves by one learning rate a step
would take thousands of steps to the next integer. g is meant for SGD; Adam divides it out again.
"""
import math

import numpy as np

from ..common.hints import Array
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor, unbroadcast
from .qtensor import QTensor
from .uniform import Grid, Uniform, bounded

EPS = np.finfo(np.float32).eps                # the smallest learned step, as in torch's module


def fake_quantize(x: Tensor, s: Tensor, z: Tensor, low: int, high: int, mask: str = "torch",
                  g: float = 1.0) -> Tensor:
    """x̂ = s (clip(⌊x/s⌉ + z, low, high) − z), with LSQ's gradients; g scales ds and dz. x (n, B);
    s and z broadcast to it; z is rounded and clipped to [low, high] first → (n, B)."""
    S = s.data
    Z = np.clip(np.rint(z.data), low, high)
    u = x.data / S
    r = np.rint(u)
    q = np.clip(r + Z, low, high)
    k = q - Z
    if mask == "torch":
        inside = q == r + Z                                               # not clipped
    else:
        inside = (low < u + Z) & (u + Z < high)
    slope = np.where(inside, r - u, k) if s.requires_grad else None

    def dx(dy):
        return dy * inside

    def ds(dy):
        return unbroadcast(dy * slope, S.shape) * g

    def dz(dy):
        return unbroadcast(dy * ~inside * -S, Z.shape) * g
    return Tensor.op(k * S, (x, dx), (s, ds), (z, dz))


def round_to_grid(x: Tensor, grid: Grid, cutoff: float | None = None) -> Tensor:
    """Round x to a constant `Grid`, one block of x per row of it; dx = dy inside, 0 outside (STE),
    and also 0 where |x| ≥ cutoff, if that is given."""
    blocks = x.reshape(len(grid.scale), -1)
    s = Tensor(np.asarray(grid.scale, x.dtype))
    z = Tensor(np.asarray(grid.zero, x.dtype))
    y = fake_quantize(blocks, s, z, grid.low, 2**grid.bits - 1).reshape(x.shape)
    if cutoff is None:
        return y
    kept = np.abs(x.data) < cutoff
    return Tensor.op(y.data, (y, lambda dy: dy * kept))


class MinMax(Module):
    """x̂ on the grid that spans each block's range in this pass: nothing is clipped, dx = dy."""

    def __init__(self, uniform: Uniform, cutoff: float | None = None):
        self.uniform = uniform
        self.cutoff = cutoff

    def forward(self, x: Tensor) -> Tensor:
        grid = self.uniform.fit(self.uniform.blocks(x.data))
        return round_to_grid(x, grid, self.cutoff)

    def quantize(self, W: Array) -> QTensor:
        return self.uniform.quantize(W)

    def describe(self) -> str:
        return f"({self.uniform}, straight through)"


class LearnedStep(Module):
    """LSQ: x̂ with a step, and an offset unless `uniform` is symmetric, that are Parameters. They
    start from mean_abs, low and high, ⟨|x|⟩, min x and max x of every block (n,). n_sharing: N."""

    def __init__(self, uniform: Uniform, mean_abs: Array, low: Array, high: Array, n_sharing: int,
                 mask: str = "paper"):
        self.uniform = uniform
        self.mask = mask
        self.top = 2**uniform.bits - 1
        self.middle = 2**(uniform.bits - 1)
        Q_P = self.top - self.middle if uniform.symmetric else self.top
        self.g = 1 / math.sqrt(n_sharing * Q_P)
        if uniform.symmetric:
            s = bounded(2 * mean_abs / math.sqrt(Q_P), self.middle)
            s = np.where(s < EPS, 1, s).astype(np.float32)
            self.offset = None
        else:
            grid = uniform.grid(low, high)
            s = grid.scale[:, 0]
            self.offset = Parameter(-s * grid.zero[:, 0])
        self.step = Parameter(s.copy())

    def step_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return s (n, 1), and z, (n, 1) or a number, not yet rounded."""
        step = self.step.reshape(-1, 1)
        s = np.maximum(step.data, EPS).astype(step.dtype)
        s = Tensor.op(s, (step, lambda ds: ds))
        if self.offset is None:
            return s, s._constant(self.middle)
        return s, -self.offset.reshape(-1, 1) / s

    def forward(self, x: Tensor) -> Tensor:
        s, z = self.step_and_zero()
        blocks = x.reshape(self.uniform.blocks(x.data).shape)
        return fake_quantize(blocks, s, z, 0, self.top, self.mask, self.g).reshape(x.shape)

    def grid(self) -> Grid:
        """Make the `Grid` of the step and offset as they are now."""
        s, z = self.step_and_zero()
        zero = self.middle
        if self.offset is not None:
            zero = np.clip(np.rint(z.data.astype(np.float32)), 0, self.top)
        return Grid(s.data.astype(np.float32), zero, self.uniform.bits)

    def quantize(self, W: Array) -> QTensor:
        return self.uniform.quantize(W, self.grid())

    def describe(self) -> str:
        return f"({self.uniform}, {'step' if self.offset is None else 'step and offset'} learned)"
