"""MiSS: Matrix Shard Sharing (Kang and Yin, arXiv 2409.15371; called Bone in its first version).

MiSS trains one thin matrix D and writes it beside itself until it is as wide as the weight. So
inputs share weights: input j has column j mod r of D. Nobody writes that large matrix: the inputs
that share a column are added up first. Equations (2) and (4) to (7):

    y = W₀ x + expand(D) x = W₀ x + D S,      S_i = x_i + x_{i+r} + x_{i+2r} + …

    paper   here      shape
    W₀      base      (d_out, d_in), frozen, quantized or not
    D       D         (d_out, r), starts at 0
    S       A x       (r,), with A (r, d_in), which is 1 where j mod r = i and else 0
    r       rank

So MiSS is a LoRA with s = 1 whose A is fixed, and `combine` takes it as one. Dropout acts on x.
Trained parameters: Σ r d_out over the targets.

Where implementations differ. This is the paper's efficient form, which its code and PEFT compute
(`init_weights=True`); D is (r, d_out) there. The paper's first form (3) repeats rows of D along the
outputs, and in an example below (7) neighbours share a column; in (4) to (6), its code and PEFT
every r-th input does. If r does not divide d_in, PEFT fills x up with zeros, so the last copy of D
is cut off, as here. Not here: PEFT's `"bat"`, whose ΔW reads W₀ as well, and `"mini"`, which
repeats D along the outputs, too. PEFT's default is r = 64; here it is that of LoRA, which trains
twice as much at the same r where d_in = d_out.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.hints import Rng, Targets
from ..common.hyper import layer_names, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from .lora import LowRankLinear
from .method import Method

__all__ = ["MiSS", "MiSSLinear"]


class MiSSLinear(LowRankLinear):
    """y = W₀ x + D A x + b, with an A of zeros and ones."""
    scale = 1.0

    def __init__(self, base: Module, method: MiSS, rng: Rng):
        super().__init__(base, method.rank, method.dropout, rng)
        self.D = Parameter(np.zeros((base.d_out, method.rank), np.float32))

    def factors(self) -> tuple[Tensor, Tensor]:
        r = self.D.shape[1]
        column = np.arange(self.d_in) % r
        A = np.eye(r, dtype=self.D.dtype)[:, column]
        return self.D, Tensor(A)

    def forward(self, x: Tensor) -> Tensor:
        # `plain.miss` adds up pieces of x. At r = 8 a product with A takes a sixth of that time, at
        # r = 64 two to four times as long (measured: 2048 rows, d_in = 128 and 512).
        D, A = self.factors()
        S = F.linear(self.dropout(x), A)                              # (…, r)
        return self.base(x) + F.linear(S, D)


@dataclass(frozen=True)
class MiSS(Method):
    """Train a matrix D that is repeated along the inputs of the layers named in `targets`."""
    rank: int = whole(8, least=1, also=("r",))
    dropout: float = real(0.0, least=0, below=1, also=("miss_dropout",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("rank",)
    wrapper = MiSSLinear
