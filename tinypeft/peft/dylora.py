"""DyLoRA: Dynamic Search-Free Low-Rank Adaptation (Valipour et al., arXiv 2210.07558).

LoRA is trained for one rank; cut to a smaller one it collapses. DyLoRA trains all ranks at once: in
every step it draws a rank b and trains only the first b rows of A and columns of B. The important
directions then come first, and the model works at any b. Section 3:

    h = W₀ x + α/b B↓b A↓b x,      b ~ p_B, one draw per step for all layers

    paper              here             shape
    W_dw↓b, W_up↓b     the first b rows of A, columns of B
    W_dw, W_up         A, B             (R, d_in), (d_out, R)
    r_min, r_max = R   rank_min, rank
    p_B, α             distribution (uniform, or geometric: p_B(b) ∝ (1 − p)^(b/n)), alpha
    n                  block_size: b is a multiple of n

With m = α/b · (1 … 1 0 … 0), b ones, this is h = W₀ x + B (m ⊙ A x). Outside the mask the gradient
is zero, but weight decay and the optimizer's moments would still move A and B. Therefore the mask
is also the parameters' `update_mask`; between steps it covers all. `frozen=True` trains only the
last n of the b rows and holds the earlier ones constant, so that small ranks are not overwritten.
Trained parameters: Σ R (d_in + d_out).

Where implementations differ. The authors' code multiplies α/R by √(R/b) on A and again on B, which
is α/b. Others keep α/R at every b: `rescale=False`. The authors' training script always freezes the
earlier rows, and draws b uniformly; here `frozen=True` is an option. In their code AdamW also moves
rows outside the mask, by its moments and a weight decay of 0.1; here it never does. The authors
count ranks from 0, this file from 1. Some draw a b for each layer, or also in evaluation; here, as
in the paper, all layers share it, and evaluation uses the rank last set by `set_rank`, at first R.
Merging makes the rank final.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import flag, layer_names, one_of, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter, kaiming_uniform
from ..engine.tensor import Tensor, where
from .lora import LoRALinear
from .low_rank import LowRankLinear
from .method import Layers, Method, MethodError

__all__ = ["DyLoRA", "DyLoRALinear"]

ALL = np.ones((1, 1), bool)                      # the mask between steps


class DyLoRALinear(LoRALinear):
    """h = W₀ x + B (m ⊙ A x) at b = `rank`, or at b = `rank_drawn` in a training step."""

    def __init__(self, base: Module, method: DyLoRA, rng: Rng):
        A = kaiming_uniform((method.rank, base.d_in), rng)
        LowRankLinear.__init__(self, base, len(A), method.dropout, rng)      # LoRA's has a fixed s
        self.method = method
        self.A = Parameter(A)
        self.B = Parameter(np.zeros((base.d_out, len(A)), A.dtype))
        self.b = np.array(method.rank)                                # a buffer, so it is saved
        self.end_step()

    @property
    def rank(self) -> int:
        return int(self.b)

    @property
    def scale(self) -> float:
        """The scale at the present rank."""
        return self.scale_at(self.rank)

    def scale_at(self, b: int) -> float:
        """Return α/b, or α/R."""
        method = self.method
        return method.alpha / (b if method.rescale else method.rank)

    def check_parts(self) -> None:
        if self.b not in self.method.ranks:
            raise ValueError(f"b is {self.b}, expected one of the ranks {self.method.ranks}")

    def start_step(self, b: int) -> None:
        """Train at rank b until `end_step`: the optimizer moves nothing outside the mask."""
        mask = np.zeros(len(self.A), bool)
        mask[self.method.first_trained(b):b] = True
        self.rank_drawn = b
        self.A.update_mask = mask[:, None]
        self.B.update_mask = mask[None]

    def end_step(self) -> None:
        """Let the optimizer move everything again."""
        self.rank_drawn = None
        self.A.update_mask = ALL
        self.B.update_mask = ALL

    def forward(self, x: Tensor) -> Tensor:
        A, B, b = self.A, self.B, self.rank
        if self.training and self.rank_drawn:
            b = self.rank_drawn
            if self.method.frozen:                                    # outside the mask: constants
                A = where(A.update_mask, A, A.data)
                B = where(B.update_mask, B, B.data)
        m = self.scale_at(b) * (np.arange(len(A)) < b)
        Ax = F.linear(self.dropout(x), A)                             # (…, R)
        return self.base(x) + F.linear(Ax * m, B)

    def pair(self) -> tuple[Tensor, Tensor]:
        b = self.rank
        return self.B[:, :b], self.A[:b]

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, rank {self.rank} of {self.method.rank})"


@dataclass(frozen=True)
class DyLoRA(Method):
    """Train a LoRA at every rank from rank_min to rank R, in steps of block_size.

    distribution: of b; "geometric" prefers small ranks, the more the larger p is. frozen: train
    only the last block of the b rows. rescale: the factor is α/b, else α/R.
    """
    rank: int = whole(8, least=1, also=("r", "r_max"))
    alpha: float = real(16.0, above=0, also=("lora_alpha",))
    rank_min: int = whole(1, least=1, also=("r_min",))
    distribution: str = one_of("uniform", "geometric")
    p: float = real(0.15, above=0, below=1)
    frozen: bool = flag(False)
    block_size: int = whole(1, least=1)
    rescale: bool = flag(True)
    dropout: float = real(0.0, least=0, below=1, also=("lora_dropout",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("rank",)
    wrapper = DyLoRALinear

    def check(self) -> None:
        if self.rank % self.block_size:
            raise MethodError(f"{self}: block_size does not divide rank {self.rank}")
        if self.rank_min > self.rank:
            raise MethodError(f"DyLoRA: rank_min {self.rank_min} exceeds rank {self.rank}")

    @property
    def ranks(self) -> list[int]:
        """List the ranks b that are trained."""
        n = self.block_size
        return [b for b in range(n, self.rank + 1, n) if b >= self.rank_min]

    def probabilities(self) -> Array:
        """Compute p_B over `ranks`; the sum is 1."""
        ratio = 1 - self.p if self.distribution == "geometric" else 1.0
        p = ratio ** np.arange(len(self.ranks))
        return p / p.sum()

    def first_trained(self, b: int) -> int:
        """Find the first row of A that a step at rank b trains. The smallest rank trains all of its
        rows, because no other step would train them."""
        if self.frozen and b > self.ranks[0]:
            return b - self.block_size
        return 0

    def before_step(self, layers: Layers, step: int, total: int, rng: Rng) -> None:
        b = int(rng.choice(self.ranks, p=self.probabilities()))
        for layer in layers.values():
            layer.start_step(b)

    def after_step(self, layers: Layers, step: int, total: int) -> None:
        self.end_training(layers)

    def end_training(self, layers: Layers) -> None:
        for layer in layers.values():
            layer.end_step()

    def set_rank(self, layers: Layers, rank: int) -> None:
        if rank not in self.ranks:
            raise MethodError(f"set_rank: {self} learns at ranks {self.ranks}, not at {rank!r}")
        for layer in layers.values():
            layer.b = np.array(int(rank))
