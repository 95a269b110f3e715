"""Parallel adapters (He et al., arXiv 2110.04366): a bottleneck beside a sublayer, not behind it.

The scaled parallel adapter reads the sublayer's input and adds to the sublayer's output:

    h ← h + s f(x W_down) W_up,      h = sublayer(x)

    paper      here           shape
    W_down     W_down         (m, d), starts at Kaiming's uniform U(−1/√d, 1/√d)
    W_up       W_up           (d, m), starts at 0, so that the model starts unchanged
    s, f       scale, activation; in the paper s = 4 and f is ReLU

`beside="ffn"` (the default, and the best place in the paper), "attention" or "both". x is the
sublayer's input after the norm, since GPT-2 and Llama normalize there, and a gated MLP is one
sublayer with its gate. Where Gemma 3 normalizes a sublayer's output, h is what enters that norm.
The adapter is not linear in x, so it cannot be merged. Trained parameters: n (2 d m + d + m) for
n = L adapters ("both": 2 L).

Where implementations differ. The equation has no biases; the authors' code, the `adapters` library
and this file have them. The paper's m is 512 in a model 1,024 wide; the default is Houlsby's 64.
"""
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Rng
from ..common.hyper import one_of, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter, kaiming_uniform
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from .adapter import ACTIVATIONS, check_narrower
from .method import Method, Wrapper

__all__ = ["Parallel", "ParallelAdapter"]

BESIDE = {"ffn": ("mlp",), "attention": ("attention",), "both": ("attention", "mlp")}


@dataclass(frozen=True)
class ParallelAdapter(Method):
    """Train an MLP of `bottleneck` hidden units beside the sublayers named by `beside`."""
    bottleneck: int = whole(64, least=1, also=("m", "adapter_size", "bottleneck_size"))
    scale: float = real(4.0, above=0, also=("s", "scaling"))
    beside: str = one_of(*BESIDE)
    activation: str = one_of(*ACTIVATIONS, default="relu", also=("non_linearity",))
    learning_rate = 3e-3
    shown = ("bottleneck",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        check_narrower(self, model)
        wrappers = {}
        for i in range(model.config.n_layers):
            for sublayer in BESIDE[self.beside]:
                path = f"blocks.{i}.{sublayer}"
                wrappers[path] = Parallel(model.get(path), model.config.d_model, self, rng)
        return wrappers


class Parallel(Wrapper):
    """sublayer(x) + s f(x W_down) W_up."""

    def __init__(self, base: Module, d: int, method: ParallelAdapter, rng: Rng):
        m = method.bottleneck
        self.base = base
        self.scale = float(method.scale)
        self.f = ACTIVATIONS[method.activation]
        self.W_down = Parameter(kaiming_uniform((m, d), rng))
        self.b_down = Parameter(np.zeros(m))
        self.W_up = Parameter(np.zeros((d, m)))
        self.b_up = Parameter(np.zeros(d))

    def forward(self, x: Tensor, *seams: Any) -> Tensor:
        """Add to the sublayer's output for x (B, T, d). seams: the attention's prefix and cache."""
        y = self.f(F.linear(x, self.W_down, self.b_down))                     # (B, T, m)
        return self.base(x, *seams) + F.linear(y, self.W_up, self.b_up) * self.scale

    def describe(self) -> str:
        m, d = self.W_down.shape
        return f"({d} → {m} → {d}, scale {self.scale:g})"
