"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., arXiv 2310.11454).

LoRA trains two matrices for each layer. VeRA draws two matrices once, freezes them, and uses them
in all layers. It trains two vectors for each layer, which scale their rows. Equation (2):

    h = W₀ x + ΔW x = W₀ x + Λ_b B Λ_d A x

    paper   here        shape
    A, B    A, B        (r, d_in) and (d_out, r), random, frozen, the same for all layers
    Λ_d     d           (r,), the diagonal; starts at `d_initial`
    Λ_b     b           (d_out,), the diagonal; starts at 0, so that ΔW = 0

Trained: Σ r + d_out over the targets. `shared` draws A and B once for all layers, with the seed of
`attach(…, rng=)`, and a file holds them once: r (d_in + d_out) numbers. They are as large as the
largest layer needs, and a smaller one reads a slice. So they depend on all targets: with other
targets the same seed draws other numbers.

The rank may exceed the layer's width, since A and B are not trained: the paper takes r = 1024 for
a model 768 wide. With so large a rank, ΔW x takes fewer products than A x and B z together, so
`forward` forms ΔW where there are tokens enough to pay for that.

Where implementations differ. A and B are drawn from PyTorch's `kaiming_uniform_` in the paper, in
PEFT and here: U(−√(6/k), √(6/k)) for k columns. The paper keeps a seed in place of A and B. PEFT
saves them unless it is told not to; here they are always saved. The paper has no α, and tunes the
rate: 4e-3 to 3e-2 for GLUE, 2e-2 and 1e-1 for GPT-2.
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
from ..models.targets import match_targets
from .changed import ChangedLinear
from .method import Method

__all__ = ["VeRA", "VeRALinear", "constant", "is_cheaper_formed", "largest"]


class VeRALinear(ChangedLinear):
    """h = W₀ x + Λ_b B Λ_d A x + bias."""

    def __init__(self, base: Module, method: VeRA, rng: Rng):
        super().__init__(base, method.dropout, rng)
        self.d = Parameter(np.full(method.rank, method.d_initial))
        self.b = Parameter(np.zeros(base.d_out))

    def bases(self) -> tuple[Tensor, Tensor]:
        """Cut A (r, d_in) and B (d_out, r) to this layer's size."""
        A = self.shared["A"][:, :self.d_in]
        B = self.shared["B"][:self.d_out]
        return constant(A, self.d), constant(B, self.d)

    def forward(self, x: Tensor) -> Tensor:
        if is_cheaper_formed(self, x, len(self.d)):
            return super().forward(x)
        A, B = self.bases()
        z = F.linear(self.dropout(x), A)                                      # (…, r)
        z = F.linear(self.d * z, B)                                           # (…, d_out)
        return self.base(x) + self.b * z

    def change(self) -> Tensor:
        A, B = self.bases()
        dA = self.d.reshape(-1, 1) * A
        b = self.b.reshape(-1, 1)
        return b * (B @ dA)


@dataclass(frozen=True)
class VeRA(Method):
    """Train vectors b and d beside random matrices, for the layers named in `targets`."""
    rank: int = whole(256, least=1, also=("r",))
    d_initial: float = real(0.1, above=0)
    dropout: float = real(0.0, least=0, below=1, also=("vera_dropout",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-1
    shown = ("rank",)
    wrapper = VeRALinear

    def shared(self, model: Decoder, rng: Rng) -> dict[str, Array]:
        d_in, d_out = largest(model, self.targets)
        A = kaiming_uniform((self.rank, d_in), rng)
        B = kaiming_uniform((d_out, self.rank), rng)
        gain = math.sqrt(6)                              # from our bound 1/√k to PyTorch's √(6/k)
        return {"A": gain * A, "B": gain * B}


def is_cheaper_formed(layer: ChangedLinear, x: Tensor, r: int) -> bool:
    """Does ΔW, a product of (d_out, r) and (r, d_in), cost less than to apply the two to x?"""
    positions = x.size // layer.d_in
    dense = layer.d_in * layer.d_out
    thin = r * (layer.d_in + layer.d_out)
    return (r + positions) * dense < positions * thin


def constant(array: Array, like: Tensor) -> Tensor:
    """Make a Tensor of a frozen array, in the dtype of another Tensor."""
    return Tensor(array.astype(like.dtype, copy=False))


def largest(model: Decoder, targets: Targets) -> tuple[int, int]:
    """Return the largest d_in and the largest d_out of the named layers."""
    layers = dict(match_targets(model, targets)).values()
    d_in = max(layer.d_in for layer in layers)
    d_out = max(layer.d_out for layer in layers)
    return d_in, d_out
