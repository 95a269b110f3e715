"""LoRA: Low-Rank Adaptation (Hu et al., arXiv 2106.09685).

The change of a weight matrix during fine-tuning is given the form of a product of two thin
matrices, and only these are trained. Section 4.1, equation (3):

    h = W₀ x + ΔW x = W₀ x + s B A x,      s = α/r

    paper      here           shape
    W₀         base.weight    (d_out, d_in), frozen
    A          A              (r, d_in)
    B          B              (d_out, r), starts at 0, so that ΔW = 0
    r, α       rank, alpha

At the start only B has a gradient (∂L/∂A = s Bᵀ … = 0). Trained parameters: Σ r (d_in + d_out) over
the targets. Dropout acts on x on its way to A, in training only.

Where things differ: the paper draws A from a Gaussian without naming its width, loralib and PEFT
draw A from Kaiming's uniform U(−1/√d_in, 1/√d_in) (`init="kaiming"`, the default here), PEFT's
`init="gaussian"` is N(0, 1/r²). `rank_stabilized` takes s = α/√r (Kalajdzievski, arXiv 2312.03732).
PEFT's LoRA on GPT-2 adapts the fused query-key-value matrix by one pair with a shared A; here, as in
the paper, query and value have pairs of their own.
"""
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..nn import Dropout, Linear, Module, Parameter, kaiming_uniform
from ..targets import match_targets
from .model import Method, MethodError

__all__ = ["LoRA", "LoRALinear"]


@dataclass(frozen=True)
class LoRA(Method):
    """rank r, alpha α, dropout on x, targets: names of linear layers, or "all".

    init: "kaiming" or "gaussian". rank_stabilized: s = α/√r. rank_pattern and alpha_pattern give targets
    (by last part or full path) a rank or an α of their own.
    """
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple | str = ("query", "value")
    init: str = "kaiming"
    rank_stabilized: bool = False
    rank_pattern: dict | None = None
    alpha_pattern: dict | None = None
    learning_rate: ClassVar[float] = 3e-3
    shown: ClassVar[tuple] = ("rank",)

    def __post_init__(self):
        for r in (self.rank, *(self.rank_pattern or {}).values()):
            if not isinstance(r, (int, np.integer)) or r < 1:
                raise ValueError(f"LoRA: rank must be a positive integer, got {r!r}")
        if self.init not in ("kaiming", "gaussian"):
            raise ValueError(f"LoRA: init must be 'kaiming' or 'gaussian', got {self.init!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA: dropout must lie in [0, 1), got {self.dropout}")

    def wrap(self, model, rng):
        return {path: LoRALinear(layer, by_path(self.rank_pattern, path, self.rank),
                                 by_path(self.alpha_pattern, path, self.alpha), self, rng)
                for path, layer in match_targets(model, self.targets)}


class LoRALinear(Module):
    """h = W₀ x + s B A x."""

    def __init__(self, base, r, alpha, method, rng):
        if r > min(base.d_in, base.d_out):
            raise MethodError(f"LoRA: rank {r} exceeds that of a {base.d_out} × {base.d_in} matrix")
        self.base, self.dropout = base, Dropout(method.dropout, rng)
        self.scale = alpha / (math.sqrt(r) if method.rank_stabilized else r)
        A = kaiming_uniform((r, base.d_in), rng) if method.init == "kaiming" else rng.normal(0, 1 / r, (r, base.d_in))
        self.A = Parameter(A.astype(np.float32))
        self.B = Parameter(np.zeros((base.d_out, r), np.float32))

    d_in = property(lambda self: self.base.d_in)
    d_out = property(lambda self: self.base.d_out)

    def forward(self, x):
        Ax = F.linear(self.dropout(x), self.A) * self.scale                   # (…, r)
        return self.base(x) + F.linear(Ax, self.B)

    def delta(self):
        """ΔW = s B A, an array (d_out, d_in)."""
        return self.scale * (self.B.data @ self.A.data)

    def merge(self):
        """A plain Linear with W₀ + ΔW."""
        return merged_linear(self.base, self.delta())

    def describe(self):
        return f"({self.d_in} → {self.d_out}, rank {len(self.A)})"


def merged_linear(base, delta):
    """A Linear with the base's weight (dequantized, if it was quantized) plus `delta`, and its bias."""
    merged = Linear(base.d_in, base.d_out, bias=base.bias is not None)
    merged.weight.data = base.dense_weight() + delta
    if base.bias is not None: merged.bias.data = base.bias.data.copy()
    return merged


def by_path(pattern, path, default):
    """pattern[path], or pattern[last part of path], or the default."""
    pattern = pattern or {}
    return pattern.get(path, pattern.get(path.rsplit(".", 1)[-1], default))
