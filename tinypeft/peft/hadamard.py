"""Changes of a larger rank from few numbers: LoHa, LoKr and HiRA, each one expression for ΔW.

LoRA's s B A has rank r and no more. A product of another kind has a larger rank at the same size:

    LoHa    ΔW = s (B₁ A₁) ⊙ (B₂ A₂)     rank up to r² (LyCORIS: Yeh et al., arXiv 2309.14859)
    LoKr    ΔW = s C ⊗ (B A)             rank C times rank BA (the same)
    HiRA    ΔW = W₀ ⊙ B A                rank up to r rank W₀ (Huang et al., ICLR 2025)

FedPara (Hyeon-Woo et al., arXiv 2108.06098) writes a whole W as LoHa writes ΔW, and KronA (Edalati
et al., arXiv 2212.10650) is LoKr with one matrix in place of B A.

    paper            here             shape
    B₁, B₂, A₁, A₂   B1, B2, A1, A2   (d_out, r) and (r, d_in) of LoHa; A₂ starts at 0
    C                C                (u, v) of LoKr, starts at 0
    B, A             B, A             LoKr: (d_out/u, r), (r, d_in/v); HiRA: (d_out, r), (r, d_in)
    s                scale            α/r; HiRA has none

⊙ multiplies number by number, and ⊗ is Kronecker's product: block (i, j) of C ⊗ M is C_ij M. The
numbers u and v are the divisors of d_out and d_in that are nearest to their roots, from below. HiRA
leaves what is 0 in W₀ at 0, and its B starts at 0. What does not start at 0 is drawn from Kaiming's
uniform, as in PEFT. So in LoKr's first step C moves alone, and in LoHa's A₂. Trained parameters
over the targets: LoHa Σ 2 r (d_in + d_out), LoKr Σ u v + r (d_out/u + d_in/v), HiRA Σ r (d_in +
d_out).

Where implementations differ. LyCORIS starts LoHa at normal numbers, with B₂ = 0 in place of A₂, and
LoKr with A = 0 in place of C. Where r is at least half of the larger side of B A, PEFT and LyCORIS
store LoKr's B A as one matrix, and LyCORIS then takes s = 1; here it stays a product. (It is so for
r = 8 on the shipped base, whose B A is 16 × 16.) HiRA's paper takes r = 32; here all three start
from r = 8, as LoRA does.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.hints import Rng, Targets
from ..common.hyper import layer_names, real, whole
from ..engine.nn import Module, Parameter, kaiming_uniform
from ..engine.tensor import Tensor
from .changed import ChangedLinear
from .lora import check_rank
from .method import Method

__all__ = ["HiRA", "HiRALinear", "LoHa", "LoHaLinear", "LoKr", "LoKrLinear"]


@dataclass(frozen=True)
class ScaledProduct(Method):
    """Train a change with a scale s = α/r; `layer`, the class of the wrappers, says which one."""
    rank: int = whole(8, least=1, also=("r",))
    alpha: float = real(8.0, above=0)
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("rank",)


class LoHaLinear(ChangedLinear):
    """y = (W₀ + s (B₁ A₁) ⊙ (B₂ A₂)) x + b."""

    def __init__(self, base: Module, method: ScaledProduct, rng: Rng):
        r = method.rank
        check_rank(r, base)
        super().__init__(base, 0.0, rng)
        d_out, d_in = base.d_out, base.d_in
        self.scale = method.alpha / r
        self.B1 = drawn((d_out, r), rng)
        self.A1 = drawn((r, d_in), rng)
        self.B2 = drawn((d_out, r), rng)
        self.A2 = zeros((r, d_in))

    def change(self) -> Tensor:
        first = self.B1 @ self.A1
        second = self.B2 @ self.A2
        return self.scale * first * second


@dataclass(frozen=True)
class LoHa(ScaledProduct):
    """Train a change s (B₁ A₁) ⊙ (B₂ A₂) of the layers named in `targets`."""
    wrapper = LoHaLinear


class LoKrLinear(ChangedLinear):
    """y = (W₀ + s C ⊗ (B A)) x + b."""

    def __init__(self, base: Module, method: ScaledProduct, rng: Rng):
        r = method.rank
        check_rank(r, base)
        super().__init__(base, 0.0, rng)
        u, v = divisor(base.d_out), divisor(base.d_in)
        self.scale = method.alpha / r
        self.C = zeros((u, v))
        self.B = drawn((base.d_out // u, r), rng)
        self.A = drawn((r, base.d_in // v), rng)

    def change(self) -> Tensor:
        BA = self.B @ self.A
        return self.scale * kronecker(self.C, BA)


@dataclass(frozen=True)
class LoKr(ScaledProduct):
    """Train a change s C ⊗ (B A) of the layers named in `targets`."""
    wrapper = LoKrLinear


def divisor(d):
    """Find the largest divisor of d that is at most √d."""
    return max(k for k in range(1, int(d ** 0.5) + 1) if d % k == 0)


def kronecker(C, M):
    """Compute C ⊗ M, whose block (i, j) is C_ij M."""
    u, v = C.shape
    p, q = M.shape
    blocks = C.reshape(u, 1, v, 1) * M.reshape(1, p, 1, q)
    return blocks.reshape(u * p, v * q)


class HiRALinear(ChangedLinear):
    """y = (W₀ + W₀ ⊙ B A) x + b."""
    innermost = True                                              # it reads W₀

    def __init__(self, base: Module, method: HiRA, rng: Rng):
        r = method.rank
        check_rank(r, base)
        super().__init__(base, method.dropout, rng)
        self.A = drawn((r, base.d_in), rng)
        self.B = zeros((base.d_out, r))

    def change(self) -> Tensor:
        W0 = self.base.dense_weight().astype(self.A.dtype, copy=False)
        return W0 * (self.B @ self.A)                     # W₀ ⊙ B A


@dataclass(frozen=True)
class HiRA(Method):
    """Train a change W₀ ⊙ B A of the layers named in `targets`."""
    rank: int = whole(8, least=1, also=("r",))
    dropout: float = real(0.0, least=0, below=1, also=("hira_dropout",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("rank",)
    wrapper = HiRALinear


def drawn(shape, rng):
    """Make a Parameter of numbers from Kaiming's uniform."""
    return Parameter(kaiming_uniform(shape, rng))


def zeros(shape):
    """Make a Parameter of zeros."""
    return Parameter(np.zeros(shape, np.float32))
