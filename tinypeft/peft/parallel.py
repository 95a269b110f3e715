"""Parallel adapters (He et al., arXiv 2110.04366): a bottleneck beside a sublayer instead of behind it.

The adapter reads what the sublayer reads, and what it makes is scaled and added to the sublayer's output. The paper
calls it the scaled parallel adapter:

    h ← h + s f(x W_down) W_up,      h = sublayer(x)

    paper      here           shape
    W_down     W_down         (m, d), starts at Kaiming's uniform U(−1/√d, 1/√d)
    W_up       W_up           (d, m), starts at 0, so that the model starts unchanged
    s          scale          a number, 4 in the paper
    f          activation     ReLU

`beside="ffn"` (the default, and the best place in the paper), "attention" or "both". x is the sublayer's input after
the layer norm, since GPT-2 normalizes there. Trained parameters: n (2 d m + d + m) for n = L adapters ("both": 2 L).
Not linear in x, so it cannot be merged.

Where things differ. The equation has no biases, the authors' code and the `adapters` library have them, and so does
this file. The paper's m is 512 in a model 1,024 wide; here the default is Houlsby's 64.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..nn import Module, Parameter, kaiming_uniform
from .adapter import ACTIVATIONS, check_bottleneck
from .method import Method, MethodError

__all__ = ["Parallel", "ParallelAdapter"]

BESIDE = {"ffn": ("mlp",), "attention": ("attention",), "both": ("attention", "mlp")}


@dataclass(frozen=True)
class ParallelAdapter(Method):
    """bottleneck m, scale s, beside "ffn", "attention" or "both", activation "relu", "gelu", "tanh" or "silu"."""
    bottleneck: int = 64
    scale: float = 4.0
    beside: str = "ffn"
    activation: str = "relu"
    learning_rate: ClassVar[float] = 3e-3
    shown: ClassVar[tuple] = ("bottleneck",)

    def __post_init__(self):
        check_bottleneck("ParallelAdapter", self.bottleneck, self.activation)
        if self.beside not in BESIDE:
            raise MethodError(f"ParallelAdapter: beside must be one of {', '.join(BESIDE)}, got {self.beside!r}")
        if not 0 < self.scale < np.inf:
            raise MethodError(f"ParallelAdapter: scale must be a positive number, got {self.scale!r}")

    def wrap(self, model, rng):
        check_bottleneck("ParallelAdapter", self.bottleneck, self.activation, model)
        paths = [f"blocks.{i}.{name}" for i in range(model.config.n_layers) for name in BESIDE[self.beside]]
        return {path: Parallel(model.get(path), model.config.d_model, self, rng) for path in paths}


class Parallel(Module):
    """sublayer(x) + s f(x W_down) W_up."""

    def __init__(self, base, d, method, rng):
        m = method.bottleneck
        self.base, self.f, self.scale = base, ACTIVATIONS[method.activation], float(method.scale)
        self.W_down, self.b_down = Parameter(kaiming_uniform((m, d), rng)), Parameter(np.zeros(m))
        self.W_up, self.b_up = Parameter(np.zeros((d, m))), Parameter(np.zeros(d))

    def forward(self, x, *seams):
        """x (B, T, d); `seams` are the attention's prefix and cache."""
        y = self.f(F.linear(x, self.W_down, self.b_down))                     # (B, T, m)
        return self.base(x, *seams) + F.linear(y, self.W_up, self.b_up) * self.scale

    def describe(self):
        return "({1} → {0} → {1}, scale {2:g})".format(*self.W_down.shape, self.scale)
