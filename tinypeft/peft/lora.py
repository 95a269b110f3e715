"""LoRA: Low-Rank Adaptation (Hu et al., arXiv 2106.09685).

The change of a weight matrix during fine-tuning is given the form of a product of two thin
matrices, and only these are trained. Section 4.1, equation (3):

    h = W₀ x + ΔW x = W₀ x + s B A x,      s = α/r

    paper      here           shape
    W₀         base           (d_out, d_in), frozen, quantized or not
    A          A              (r, d_in)
    B          B              (d_out, r), starts at 0, so that ΔW = 0
    r, α       rank, alpha
    α/r        scale          a number

At the start only B has a gradient: ∂L/∂A = s Bᵀ(…) = 0. Dropout acts on x on its way to A, in training
only, so a merged model needs no correction. Trained parameters: Σ r (d_in + d_out) over the targets.

Where things differ. The paper draws A from a Gaussian without naming its width; loralib and PEFT draw it
from Kaiming's uniform U(−1/√d_in, 1/√d_in), which is `init="kaiming"`, the default here; `init="gaussian"`
is PEFT's N(0, 1/r²). `rank_stabilized` takes s = α/√r (Kalajdzievski, arXiv 2312.03732), with which
large ranks keep learning. On GPT-2, PEFT adapts the fused query-key-value matrix by one pair with a
shared A; here, as in the paper, query and value have pairs of their own. Other programs call other
numbers "scale" or "alpha"; here α is always divided by r or √r.
"""
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..nn import Dropout, Linear, Module, Parameter, kaiming_uniform
from ..targets import match_targets
from .method import Method, MethodError

__all__ = ["LoRA", "LoRALinear", "LowRankLinear"]


@dataclass(frozen=True)
class LoRA(Method):
    """rank r, alpha α, dropout on x, targets: names of linear layers, or "all".

    init: "kaiming" or "gaussian". rank_stabilized: s = α/√r. rank_pattern and alpha_pattern give targets a rank or an
    α of their own, by the last part of the path or all of it: {"value": 16, "blocks.0.attention.value": 2}.
    """
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple | str = ("query", "value")
    init: str = "kaiming"
    rank_stabilized: bool = False
    rank_pattern: dict | None = None
    alpha_pattern: dict | None = None
    learning_rate: ClassVar[float] = 1e-2
    shown: ClassVar[tuple] = ("rank",)

    def __post_init__(self):
        check_ranks("LoRA", rank=self.rank, **{f"rank_pattern[{k!r}]": r for k, r in (self.rank_pattern or {}).items()})
        for a in (self.alpha, *(self.alpha_pattern or {}).values()):
            if not 0 < a < math.inf:
                raise MethodError(f"LoRA: alpha must be a positive number, got {a!r}")
        if self.init not in ("kaiming", "gaussian"):
            raise MethodError(f"LoRA: init must be 'kaiming' or 'gaussian', got {self.init!r}")

    def wrap(self, model, rng):
        layers = dict(match_targets(model, self.targets))
        r = by_path("rank_pattern", self.rank_pattern, layers, self.rank)
        alpha = by_path("alpha_pattern", self.alpha_pattern, layers, self.alpha)
        return {path: LoRALinear(layer, self.start(r[path], layer.d_in, rng), self.scale(r[path], alpha[path]),
                                 self.dropout, rng) for path, layer in layers.items()}

    def scale(self, r, alpha):
        """s: α/r, or α/√r."""
        return alpha / (math.sqrt(r) if self.rank_stabilized else r)

    def start(self, r, d_in, rng):
        """A at the start, (r, d_in)."""
        return kaiming_uniform((r, d_in), rng) if self.init == "kaiming" else rng.normal(0, 1 / r, (r, d_in))


class LowRankLinear(Module):
    """What LoRA and its relatives share: a frozen layer `base`, and a ΔW of rank r beside it that is never formed."""

    def __init__(self, base, r, dropout, rng):
        if r > min(base.d_in, base.d_out):
            raise MethodError(f"rank {r} exceeds what a {base.d_out} × {base.d_in} matrix can have, "
                              f"{min(base.d_in, base.d_out)}")
        self.base, self.dropout = base, Dropout(dropout, rng)

    d_in = property(lambda self: self.base.d_in)
    d_out = property(lambda self: self.base.d_out)

    def factors(self):
        """Arrays (d_out, r) and (r, d_in) whose product is ΔW, the scale included."""
        raise NotImplementedError

    rank = property(lambda self: self.factors()[0].shape[1])

    def delta(self):
        """ΔW, an array (d_out, d_in)."""
        left, right = self.factors()
        return left @ right

    def svd(self):
        """U (d_out, r), S (r,), Vᵀ (r, d_in) with ΔW = U diag(S) Vᵀ: of the thin factors' triangles, not of ΔW."""
        left, right = self.factors()
        (Q1, R1), (Q2, R2) = np.linalg.qr(left), np.linalg.qr(right.T)
        U, S, Vt = np.linalg.svd(R1 @ R2.T)
        return Q1 @ U, S, Vt @ Q2.T

    def merge(self):
        """A plain Linear with the weight W₀ + ΔW (W₀ dequantized, if it was quantized) and the base's bias."""
        base, merged = self.base, Linear(self.d_in, self.d_out, bias=self.base.bias is not None)
        merged.weight.data = base.dense_weight() + self.delta()
        if base.bias is not None: merged.bias.data = base.bias.data.copy()
        return merged

    def describe(self):
        return f"({self.d_in} → {self.d_out}, rank {self.rank})"


class LoRALinear(LowRankLinear):
    """h = W₀ x + s B A x;  A (r, d_in) is given, B starts at 0."""

    def __init__(self, base, A, scale, dropout=0.0, rng=None):
        r = len(A)
        super().__init__(base, r, dropout, rng)
        self.scale = scale
        self.A, self.B = Parameter(A.astype(np.float32)), Parameter(np.zeros((base.d_out, r), np.float32))

    def forward(self, x):
        Ax = F.linear(self.dropout(x), self.A) * self.scale                   # (…, r)
        return self.base(x) + F.linear(Ax, self.B)

    def factors(self):
        return self.scale * self.B.data, self.A.data


def check_ranks(method, **ranks):
    """Every rank is a positive integer, or MethodError."""
    for name, r in ranks.items():
        if not isinstance(r, (int, np.integer)) or isinstance(r, bool) or r < 1:
            raise MethodError(f"{method}: {name} must be a positive integer, got {r!r}")


def by_path(name, pattern, paths, default):
    """path → pattern[path], or pattern[last part of path], or the default. MethodError for a key that names no path."""
    last = lambda path: path.rsplit(".", 1)[-1]
    pattern = pattern or {}
    for key in pattern:
        if key not in paths and key not in map(last, paths):
            raise MethodError(f"{name}: {key!r} is none of the targets, which are {', '.join(paths)}")
    return {path: pattern.get(path, pattern.get(last(path), default)) for path in paths}
