"""RandLoRA: changes of full rank from random matrices (Albert et al., arXiv 2502.00987).

A LoRA's change has rank r and no more. RandLoRA adds up n products of rank r, each of two random
matrices that are frozen. Vectors between them are trained. Equation (4), with one A for all terms:

    ΔW = s Σ_j B_j Λ_j A Γ_j,      j = 1 … n,      n = ⌈d/r⌉, so that the sum has full rank

    paper     here     shape
    d, D               the smaller and the larger one of d_in and d_out
    A, B_j    A, B     (r, d) and n times (D, r), random, frozen, the same for all layers
    Λ_j       Lam      n diagonals, (r, n); they start at 0, so that ΔW = 0
    Γ_j       Gam      n diagonals, (n, d); they start at 1/d
    s         scale    α/r

The paper's W is (D, d). Where d_in is larger than d_out, the sum is ΔWᵀ. Trained: Σ n (r + d) over
the targets, about d²/r + d for each, so a larger rank trains fewer numbers. A file holds A and B
once, r d + n r D numbers for the largest layer (`Method.shared`). All else about them is as in
`vera.py`: a smaller layer reads a slice, and they depend on all targets.

Where implementations differ. The paper scales by 10/r for CLIP and by 2/√n for language models;
its authors' later code in PEFT by α/r with α = 640 = 20 · 32, as here, so that another r has
another s unless α is set to 20 r. Both divide A and B, drawn from a uniform distribution, by their
standard deviation. In PEFT B_j is every n-th column of B, as here; in the authors' code for vision
it is a matrix of its own. The paper's sparse matrices are left out. To form ΔW takes d² D products,
so `forward` does it for many tokens only; PEFT never does.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import layer_names, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter, kaiming_uniform
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from .changed import ChangedLinear
from .method import Method
from .vera import constant, is_cheaper_formed, largest

__all__ = ["RandLoRA", "RandLoRALinear"]


class RandLoRALinear(ChangedLinear):
    """h = W₀ x + s Σ_j B_j Λ_j A Γ_j x + bias."""

    def __init__(self, base: Module, method: RandLoRA, rng: Rng):
        super().__init__(base, method.dropout, rng)
        r = method.rank
        d = min(base.d_in, base.d_out)
        n = math.ceil(d / r)
        self.scale = method.alpha / r
        self.Lam = Parameter(np.zeros((r, n)))
        self.Gam = Parameter(np.full((n, d), 1 / d))

    def bases(self) -> tuple[Tensor, Tensor]:
        """Cut A (r, d) and B (D, n r) to this layer's size. B_j is B[:, j::n]."""
        n, d = self.Gam.shape
        D = max(self.d_in, self.d_out)
        A = self.shared["A"][:, :d]
        B = self.shared["B"][:D, :n * len(A)]
        return constant(A, self.Lam), constant(B, self.Lam)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (d_out, n r) and (n r, d_in), whose product is ΔW; `plain.randlora` adds it up."""
        A, B = self.bases()
        r, n = self.Lam.shape
        sLam = self.scale * self.Lam
        # Row i, j: s (Λ_j)_ii A_i Γ_j. It meets column i n + j of B, which is column i of B_j.
        rows = sLam.reshape(r, n, 1) * A.reshape(r, 1, -1)
        rows = rows * self.Gam                                                # (r, n, d)
        rows = rows.reshape(r * n, -1)
        if self.d_in <= self.d_out:
            return B, rows
        return rows.T, B.T

    def forward(self, x: Tensor) -> Tensor:
        if is_cheaper_formed(self, x, self.Lam.size):
            return super().forward(x)
        left, right = self.factors()
        z = F.linear(self.dropout(x), right)                                  # (…, n r)
        return self.base(x) + F.linear(z, left)

    def change(self) -> Tensor:
        left, right = self.factors()
        return left @ right


@dataclass(frozen=True)
class RandLoRA(Method):
    """Train diagonals between random matrices, for the layers named in `targets`."""
    rank: int = whole(32, least=1, also=("r",))
    alpha: float = real(640.0, above=0, also=("randlora_alpha",))
    dropout: float = real(0.0, least=0, below=1, also=("randlora_dropout",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 3e-3
    shown = ("rank",)
    wrapper = RandLoRALinear

    def shared(self, model: Decoder, rng: Rng) -> dict[str, Array]:
        d, D = sorted(largest(model, self.targets))
        n = math.ceil(d / self.rank)
        A = kaiming_uniform((self.rank, d), rng)
        B = kaiming_uniform((D, n * self.rank), rng)
        return {"A": A / A.std(), "B": B / B.std()}
