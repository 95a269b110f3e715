"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., arXiv 2402.09353).

A weight has a length and a direction for each of its outputs. LoRA changes both at once, and in
training they move together. DoRA takes the weight apart: a vector m is trained as the lengths, and
a LoRA changes the direction. Section 4.1, equation (5):

    W′ = m V′/‖V′‖,      V′ = W₀ + ΔV = W₀ + s B A

    paper     here     shape
    W₀        base     (d_out, d_in), frozen, quantized or not
    A, B      A, B     (r, d_in), (d_out, r), as in LoRA: B starts at 0
    m         m        (d_out,), starts at ‖W₀‖, so that W′ = W₀
    ‖V′‖      norm()   (d_out,), the length of each row
    m/‖V′‖    g        (d_out,)
    s         scale    α/r, as in LoRA; the paper writes none

The gradient takes ‖V′‖ as a constant (section 4.3, equation (11)), which saves memory. So it is not
the gradient of the function: that of V′ is m/‖V′‖ times that of W′. Each step forms V′ once for its
lengths, r d_out d_in products, and decodes a quantized W₀ for it. `plain.dora` is equation (5)
alone. Trained parameters: Σ r (d_in + d_out) + d_out over the targets.

Where implementations differ. The paper speaks of the columns of W, because there W has its inputs
as rows, as its author says (issue 1 of its repository); the authors' code and PEFT have one m for
each output, a row here. The bias is not scaled. With dropout, which makes z of x, both codes
compute W₀x + (m/‖V′‖ − 1) W₀z + m/‖V′‖ sBAz, and so does this file. The defaults are those of LoRA
here, so that the two can be compared. The paper's for LLaMA-7B are r = 32, α = 64 and a dropout of
0.05, on query, key, value, up and down. PEFT divides by 0 where a row of W₀ is 0; here such a row
stays 0.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng
from ..common.hyper import one_of
from ..engine import functional as F
from ..engine.memo import kept
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from .changed import ChangedLinear
from .lora import LoRA, check_rank

__all__ = ["DoRA", "DoRALinear"]


@dataclass(frozen=True)
class DoRA(LoRA):
    """Train lengths m, and a low-rank change of the directions, of the layers named in `targets`.

    The fields are those of `LoRA`. Of its starts, there are those at which ΔV = 0.
    """
    init: str = one_of("kaiming", "gaussian", also=("init_lora_weights",))

    def adapted(self, layer: Module, A: Array, scale: float, rng: Rng) -> DoRALinear:
        return DoRALinear(layer, A, scale, self.dropout, rng)


class DoRALinear(ChangedLinear):
    """y = m ⊙ (W₀ + s B A) x/‖W₀ + s B A‖ + b."""
    innermost = True                                              # it reads W₀

    def __init__(self, base: Module, A: Array, scale: float, dropout: float, rng: Rng):
        check_rank(len(A), base)
        super().__init__(base, dropout, rng)
        self.scale = scale
        self.A = Parameter(np.array(A))
        self.B = Parameter(np.zeros((base.d_out, len(A)), A.dtype))
        # In the type of A, as `norm` computes it, so that m/‖V′‖ is exactly 1 at the start.
        W0 = base.dense_weight().astype(A.dtype, copy=False)
        self.m = Parameter(lengths(W0))

    def norm(self) -> Array:
        """Compute ‖V′‖, (d_out,), by (11) a constant: `.data` keeps the gradient out."""
        V = self.base.dense_weight() + self.scale * self.B.data @ self.A.data
        norm = lengths(V)
        return np.where(norm > 0, norm, 1)

    def change(self) -> Tensor:
        """Compute W′ − W₀, which has full rank."""
        W0 = self.base.dense_weight()
        V = W0 + self.scale * self.B @ self.A
        g = self.m / self.norm()
        return g.reshape(-1, 1) * V - W0

    def forward(self, x: Tensor) -> Tensor:
        g = self.m / kept(self, self.norm)
        y = self.base(x)
        z = self.dropout(x)
        W0z = y if z is x else self.base(z)
        if self.base.bias is not None:
            W0z = W0z - self.base.bias
        Az = F.linear(z, self.A) * self.scale
        # g V′z = W₀z + (g − 1) W₀z + g sBAz; the first W₀z is W₀x here, as in both codes.
        return y + (g - 1) * W0z + g * F.linear(Az, self.B)

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, rank {len(self.A)} and {self.d_out} lengths)"


def lengths(W):
    """Compute the length of each row of W."""
    return np.sqrt(np.vecdot(W, W))
