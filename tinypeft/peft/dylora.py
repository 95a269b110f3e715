"""DyLoRA: Dynamic Search-Free Low-Rank Adaptation (Valipour et al., arXiv 2210.07558).

LoRA is trained for one rank; cut to a smaller one it collapses. DyLoRA trains all ranks at once, by drawing in
every step a rank b and training only the first b rows of A and columns of B: what matters most comes first, and
afterwards the model works at any b. One training replaces a search over ranks. Section 3 of the paper:

    h = W₀ x + α/b B↓b A↓b x,      b ~ p_B, one draw per step for all layers

    paper              here             shape
    W_dw↓b, W_up↓b     the first b rows of A, columns of B
    W_dw, W_up         A, B             (R, d_in), (d_out, R)
    r_min, r_max = R   rank_min, rank
    p_B                distribution     uniform, or geometric: p_B(b) ∝ (1 − p)ᵇ
    α                  alpha

With the rank mask m = α/b · (1 … 1 0 … 0), b ones, this is h = W₀ x + B (m ⊙ A x), and rows behind the mask have
gradient zero. Their optimizer moments would move them all the same, and so would weight decay; therefore the
mask is also the parameters' `update_mask`. `frozen=True` goes further: of the b rows only the last is trained
(with `block_size` n: the last n), the ones before it serve as constants, so that
what was learned at small ranks is not overwritten. Trained parameters, as for LoRA: Σ R (d_in + d_out).

Where things differ. The authors' code multiplies α/R by √(R/b) on A and again on B, which is α/b. Other programs
keep α/R at every b: `rescale=False`. The authors' ranks count from 0, here from 1. Some draw b for every layer
by itself, or also in evaluation; here, as in the paper, all layers share it, and evaluation is at the rank last
set by `set_rank`, at first R. Merging makes the rank final.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..nn import kaiming_uniform
from ..targets import match_targets
from ..tensor import where
from ..train import evaluate
from .lora import LoRALinear, check_ranks
from .method import Method, MethodError

__all__ = ["DyLoRA", "DyLoRALinear", "search_rank"]


@dataclass(frozen=True)
class DyLoRA(Method):
    """rank R, the largest; ranks from rank_min to R are trained, in steps of block_size.

    distribution of b: "uniform" or "geometric" with parameter p, which prefers small ranks. frozen: train only the last
    block of the b rows. rescale: α/b, else α/R at every rank. alpha, dropout, targets as for LoRA.
    """
    rank: int = 8
    alpha: float = 16.0
    rank_min: int = 1
    distribution: str = "uniform"
    p: float = 0.15
    frozen: bool = False
    block_size: int = 1
    rescale: bool = True
    dropout: float = 0.0
    targets: tuple | str = ("query", "value")
    learning_rate: ClassVar[float] = 1e-2
    shown: ClassVar[tuple] = ("rank",)

    def __post_init__(self):
        check_ranks("DyLoRA", rank=self.rank, rank_min=self.rank_min, block_size=self.block_size)
        if self.rank % self.block_size:
            raise MethodError(f"DyLoRA: rank {self.rank} does not divide into blocks of {self.block_size}")
        if self.rank_min > self.rank:
            raise MethodError(f"DyLoRA: rank_min {self.rank_min} exceeds rank {self.rank}")
        if not self.alpha > 0:
            raise MethodError(f"DyLoRA: alpha must be positive, got {self.alpha}")
        if self.distribution not in ("uniform", "geometric"):
            raise MethodError(f"DyLoRA: distribution must be 'uniform' or 'geometric', got {self.distribution!r}")
        if not 0 < self.p < 1:
            raise MethodError(f"DyLoRA: p must lie in (0, 1), got {self.p}")

    @property
    def ranks(self):
        """The ranks b that are trained."""
        return [b for b in range(self.block_size, self.rank + 1, self.block_size) if b >= self.rank_min]

    def probabilities(self):
        """p_B over `ranks`, an array that sums to 1."""
        p = (1 - self.p) ** np.arange(len(self.ranks)) if self.distribution == "geometric" else np.ones(len(self.ranks))
        return p / p.sum()

    def wrap(self, model, rng):
        return {path: DyLoRALinear(layer, self, rng) for path, layer in match_targets(model, self.targets)}

    def before_step(self, tuned, step, total):
        b = int(tuned.rng.choice(self.ranks, p=self.probabilities()))
        for layer in tuned.wrappers.values(): layer.train_at(b)

    def after_step(self, tuned, step, total):
        for layer in tuned.wrappers.values(): layer.train_at(None)

    def set_rank(self, tuned, b):
        if b not in self.ranks:
            raise MethodError(f"set_rank: {self} learns at ranks {', '.join(map(str, self.ranks))}, not at {b!r}")
        for layer in tuned.wrappers.values(): layer.b = np.array(b)


class DyLoRALinear(LoRALinear):
    """h = W₀ x + B (m ⊙ A x), m = α/b for the first b of R rows and 0 for the others."""

    def __init__(self, base, method, rng):
        super().__init__(base, kaiming_uniform((method.rank, base.d_in), rng), None, method.dropout, rng)
        self.method = method
        self.b = np.array(method.rank)                                        # saved with what was learned
        self.drawn = None                                                     # this training step's rank

    rank = property(lambda self: int(self.b))

    def scale_at(self, b):
        """α/b, or α/R."""
        return self.method.alpha / (b if self.method.rescale else self.method.rank)

    def train_at(self, b):
        """Train at rank b: outside the mask nothing moves. None: no longer."""
        self.drawn, R = b, self.method.rank
        first = b - self.method.block_size if b and self.method.frozen else 0
        mask = None if b is None else (first <= np.arange(R)) & (np.arange(R) < b)
        self.A.update_mask, self.B.update_mask = (None, None) if b is None else (mask[:, None], mask[None])

    def forward(self, x):
        A, B, b = self.A, self.B, self.rank
        if self.training and self.drawn:
            b = self.drawn
            if self.method.frozen: A, B = (where(w.update_mask, w, w.data) for w in (A, B))
        m = self.scale_at(b) * (np.arange(len(A)) < b)
        return self.base(x) + F.linear(F.linear(self.dropout(x), A) * m, B)

    def factors(self):
        b = self.rank
        return self.scale_at(b) * self.B.data[:, :b], self.A.data[:b]

    def describe(self):
        return f"({self.d_in} → {self.d_out}, rank {self.rank} of {self.method.rank})"


# -- every rank in one pass ----------------------------------------------------------------------
class AtEveryRank:
    """A task that measures a model at all ranks on each batch it reads."""

    def __init__(self, task, ranks):
        self.task, self.ranks = task, ranks
        self.count, self.batches = task.count, task.batches

    def metrics(self, tuned, batch):
        return {(b, name): m for b in self.ranks for name, m in self.task.metrics(tuned.set_rank(b), batch).items()}

    def finish(self, means, split):
        return {b: self.task.finish({name: m for (r, name), m in means.items() if r == b}, split) for b in self.ranks}


def search_rank(tuned, task, split="validation", tolerance=0.0, batch_size=16, max_batches=None):
    """(best, metrics): the smallest rank whose loss is within `tolerance` nats of the lowest, and metrics by rank.

    One pass over the split: each batch is read once and measured at every rank DyLoRA was trained for. The rank of
    `tuned` stays as it was; `tuned.set_rank(best)` makes use of the answer. Raises MethodError for another method.
    """
    if not isinstance(tuned.method, DyLoRA):
        raise MethodError(f"search_rank: {tuned.method} learns at one rank only; DyLoRA learns at all ranks at once")
    before = {layer: layer.b for layer in tuned.wrappers.values()}
    try:
        metrics = evaluate(tuned, AtEveryRank(task, tuned.method.ranks), split, batch_size, max_batches, workers=1)
    finally:
        for layer, b in before.items(): layer.b = b
    lowest = min(m["loss"] for m in metrics.values())
    return min(b for b, m in metrics.items() if m["loss"] <= lowest + tolerance), metrics
