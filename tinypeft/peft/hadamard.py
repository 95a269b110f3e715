"""Changes of full rank from few numbers: LoHa, LoKr and HiRA, each one expression for ΔW.

LoRA's s B A has rank r and no more. A product of another kind has a larger rank at the same size:

    LoHa    ΔW = s (B₁ A₁) ⊙ (B₂ A₂)     rank up to r² (FedPara: Hyeon-Woo et al., arXiv 2108.06098)
    LoKr    ΔW = s C ⊗ (B A)             rank C times rank BA (Yeh et al., arXiv 2309.14859)
    HiRA    ΔW = W₀ ⊙ B A                rank up to r rank W₀ (Huang et al., ICLR 2025)

    paper            here             shape
    B₁, B₂, A₁, A₂   B1, B2, A1, A2   (d_out, r) and (r, d_in) of LoHa; A₂ starts at 0
    C                C                (u, v) of LoKr, starts at 0
    B, A             B, A             LoKr: (d_out/u, r), (r, d_in/v); HiRA: (d_out, r), (r, d_in)
    s                scale            α/r; HiRA has none

⊙ multiplies number by number, and ⊗ is Kronecker's product: block (i, j) of C ⊗ M is C_ij M. The
numbers u and v are the divisors of d_out and d_in that are nearest to their roots, from below. HiRA
leaves what is 0 in W₀ at 0, and its B starts at 0. What does not start at 0 is drawn from Kaiming's
uniform, as in PEFT. Trained parameters over the targets: LoHa Σ 2 r (d_in + d_out), LoKr
Σ u v + r (d_out/u + d_in/v), HiRA Σ r (d_in + d_out).

Where implementations differ. LyCORIS starts LoHa at normal numbers. Where r is at least half of the
larger side of B A, PEFT and LyCORIS store LoKr's B A as one matrix, and LyCORIS then takes s = 1;
here it stays a product. HiRA's paper takes r = 32; here all three start from r = 8, as LoRA does.
"""
from dataclasses import dataclass

import numpy as np

from ..common.hints import Rng, Targets
from ..common.hyper import layer_names, real, whole
from ..engine.nn import Module, Parameter, kaiming_uniform
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import match_targets
from .changed import ChangedLinear
from .lora import check_rank
from .method import Method, Wrapper

__all__ = ["HiRA", "HiRALinear", "LoHa", "LoHaLinear", "LoKr", "LoKrLinear"]


@dataclass(frozen=True)
class LoHa(Method):
    """Train a change s (B₁ A₁) ⊙ (B₂ A₂) of the layers named in `targets`."""
    rank: int = whole(8, least=1, also=("r",))
    alpha: float = real(8.0, above=0)
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("rank",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        layers = match_targets(model, self.targets)
        s = self.alpha / self.rank
        return {path: LoHaLinear(layer, self.rank, s, rng) for path, layer in layers}


@dataclass(frozen=True)
class LoKr(Method):
    """Train a change s C ⊗ (B A) of the layers named in `targets`."""
    rank: int = whole(8, least=1, also=("r",))
    alpha: float = real(8.0, above=0)
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("rank",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        layers = match_targets(model, self.targets)
        s = self.alpha / self.rank
        return {path: LoKrLinear(layer, self.rank, s, rng) for path, layer in layers}


@dataclass(frozen=True)
class HiRA(Method):
    """Train a change W₀ ⊙ B A of the layers named in `targets`."""
    rank: int = whole(8, least=1, also=("r",))
    dropout: float = real(0.0, least=0, below=1, also=("hira_dropout",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("rank",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        layers = match_targets(model, self.targets)
        return {path: HiRALinear(layer, self.rank, self.dropout, rng) for path, layer in layers}


class LoHaLinear(ChangedLinear):
    """y = (W₀ + s (B₁ A₁) ⊙ (B₂ A₂)) x + b."""

    def __init__(self, base: Module, r: int, scale: float, rng: Rng):
        check_rank(r, base)
        super().__init__(base, 0.0, rng)
        self.scale = scale
        self.B1 = Parameter(kaiming_uniform((base.d_out, r), rng))
        self.A1 = Parameter(kaiming_uniform((r, base.d_in), rng))
        self.B2 = Parameter(kaiming_uniform((base.d_out, r), rng))
        self.A2 = Parameter(np.zeros((r, base.d_in), np.float32))

    def change(self) -> Tensor:
        return self.scale * (self.B1 @ self.A1) * (self.B2 @ self.A2)


class LoKrLinear(ChangedLinear):
    """y = (W₀ + s C ⊗ (B A)) x + b."""

    def __init__(self, base: Module, r: int, scale: float, rng: Rng):
        check_rank(r, base)
        super().__init__(base, 0.0, rng)
        u, v = divisor(base.d_out), divisor(base.d_in)
        self.scale = scale
        self.C = Parameter(np.zeros((u, v), np.float32))
        self.B = Parameter(kaiming_uniform((base.d_out // u, r), rng))
        self.A = Parameter(kaiming_uniform((r, base.d_in // v), rng))

    def change(self) -> Tensor:
        u, v = self.C.shape
        BA = self.B @ self.A
        p, q = BA.shape
        blocks = self.C.reshape(u, 1, v, 1) * BA.reshape(1, p, 1, q)
        return self.scale * blocks.reshape(self.d_out, self.d_in)


class HiRALinear(ChangedLinear):
    """y = (W₀ + W₀ ⊙ B A) x + b."""
    innermost = True                                              # it reads W₀

    def __init__(self, base: Module, r: int, dropout: float, rng: Rng):
        check_rank(r, base)
        super().__init__(base, dropout, rng)
        self.A = Parameter(kaiming_uniform((r, base.d_in), rng))
        self.B = Parameter(np.zeros((base.d_out, r), np.float32))

    def change(self) -> Tensor:
        W0 = self.base.dense_weight().astype(self.A.dtype, copy=False)
        return self.B @ self.A * W0


def divisor(d):
    """Find the largest divisor of d that is at most √d."""
    return max(k for k in range(1, int(d ** 0.5) + 1) if d % k == 0)
