"""C³A: fine-tuning via circular convolution (Chen et al., arXiv 2407.19342).

In a circulant matrix each row is the row above it, moved by one place. So b numbers make b × b of
them, and the rank may still be b. C³A trains a change that consists of circulant blocks. Sections
3.2 and 3.4, equations (1), (3) and (4):

    h = W₀ x + ΔW x,      ΔW = C_blk(Δw)/d₂, whose block i, j is C(Δw_ij)/d₂
    C(Δw) x = FFT(FFT(Δw) ∘ iFFT(x)),      C(Δw)_kl = Δw_m, m = l − k modulo b

    paper     here       shape
    d₁, d₂               (d_out, d_in) are the sides of W₀
    b         b          the side of a block, a divisor of d₁ and d₂
    Δw        w          (d₁/b, d₂/b, b), the first row of each block

This file writes the blocks out and multiplies by them, so its gradient for x is that of any linear
layer. `plain.circular` is equation (1), which pays where blocks are wide, and `plain.circular_dx`
is its gradient. Trained: Σ d₁ d₂/b over the targets. By default b is the greatest common divisor of
d₁ and d₂, as in section 3.5.

Where implementations differ. The paper divides by nothing, PEFT by d₂, and so does this file.
Section 3.3 has ∂L/∂x = C(Δw) ∂L/∂z, where the transpose of C(Δw) belongs, and its Algorithm A1,
which PEFT took over, multiplies by yet another matrix: FFT(FFT(g) ∘ iFFT(Δw)) for g = ∂L/∂z, where
iFFT(FFT(g) ∘ FFT(Δw)) is right. So in PEFT (0.21.2) layers below a C³A learn from wrong gradients.
The gradient of Δw is right there. The paper and PEFT draw Δw from Xavier's uniform distribution.
In the paper's Figure 3 a start at zero does as well, and here it is the default, so that the model
starts as its base.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..common.hints import Rng, Targets
from ..common.hyper import layer_names, one_of, whole
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import match_targets
from .changed import ChangedLinear
from .method import Method, MethodError, Wrapper

__all__ = ["C3A", "CircularLinear"]


@dataclass(frozen=True)
class C3A(Method):
    """Train circulant blocks as a change of the layers named in `targets`.

    block_size: b, or None for the largest that fits each layer. init: how the blocks start.
    """
    block_size: int | None = whole(None, least=1, or_none=True)
    init: str = one_of("zeros", "xavier", also=("init_weights",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 3e-1
    shown = ("block_size",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        layers = dict(match_targets(model, self.targets))
        if self.block_size is not None:
            check_block_size(self.block_size, layers.values())
        return {path: CircularLinear(layer, self, rng) for path, layer in layers.items()}


class CircularLinear(ChangedLinear):
    """h = (W₀ + C_blk(Δw)/d₂) x + b."""

    def __init__(self, base: Module, method: C3A, rng: Rng):
        super().__init__(base, 0.0, rng)
        d1, d2 = base.d_out, base.d_in
        b = method.block_size or math.gcd(d1, d2)
        most = 0.0                                       # Xavier's bound, or a start at 0
        if method.init == "xavier":
            most = math.sqrt(6 / (d1 + d2))
        w = rng.uniform(-most, most, (d1 // b, d2 // b, b))
        self.w = Parameter(w.astype(np.float32))

    def change(self) -> Tensor:
        b = self.w.shape[2]
        k, l = np.ogrid[:b, :b]
        blocks = self.w[:, :, (l - k) % b]                        # (d₁/b, d₂/b, b, b)
        rows = blocks.transpose(0, 2, 1, 3)
        return rows.reshape(self.d_out, self.d_in) / self.d_in


def check_block_size(b: int, layers: Iterable[Module]) -> None:
    """Raise MethodError unless b divides both sides of every layer."""
    sides = [side for layer in layers for side in (layer.d_out, layer.d_in)]
    common = math.gcd(*sides)
    if common % b:
        divisors = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise MethodError(f"block_size {b} does not divide the sides of all target layers; "
                          f"{', '.join(divisors)} do")
