"""LoRA: Low-Rank Adaptation (Hu et al., arXiv 2106.09685).

LoRA freezes a weight matrix and trains a low-rank change of it, the product of two thin matrices.
The change can be added to the weight afterwards. Section 4.1, equation (3):

    h = W₀ x + ΔW x = W₀ x + s B A x,      s = α/r

    paper      here           shape
    W₀         base           (d_out, d_in), frozen, quantized or not
    A          A              (r, d_in)
    B          B              (d_out, r), starts at 0, so that ΔW = 0
    r, α, s    rank, alpha, scale

At the start ∂L/∂A = s Bᵀ(…) is 0, so the first step moves B alone. Dropout acts on the input of A
in training only, so merging needs no correction. Trained: Σ r (d_in + d_out) over the targets.

Where implementations differ. The paper draws A from a Gaussian of unnamed width. loralib and PEFT
use Kaiming's uniform U(−1/√d_in, 1/√d_in), `init="kaiming"`, the default here; `init="gaussian"` is
PEFT's N(0, 1/r²). `rank_stabilized` takes s = α/√r (Kalajdzievski, arXiv 2312.03732), with which
large ranks keep learning. PEFT adapts GPT-2's fused query-key-value matrix by one pair with one A;
here, as in the paper, query and value have a pair each. The defaults r = 8, α = 16 are the paper's
for RoBERTa large (Table 9), so s = 2. For GPT-2 it takes 4 and 32 (Table 11, s = 8), and PEFT's
defaults are 8 and 8 (s = 1): with another s, another learning rate is best.
"""
import math
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import flag, layer_names, mapping, one_of, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter, kaiming_uniform
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import chosen, match_targets
from .changed import ChangedLinear
from .method import Method, MethodError, Wrapper

__all__ = ["LoRA", "LoRALinear", "LowRankLinear", "check_rank", "thin_svd"]


@dataclass(frozen=True)
class LoRA(Method):
    """Train a low-rank change s B A of the linear layers named in `targets`.

    dropout: probability, on the input of A. init: how A starts. rank_pattern, alpha_pattern: r or α
    of some of them: {"value": 16, "blocks.0.value": 2}. Of the keys that match a layer, one with
    more parts comes before others, then the last. `models/targets.py` says how names match layers.
    """
    rank: int = whole(8, least=1, also=("r",))
    alpha: float = real(16.0, above=0, also=("lora_alpha",))
    dropout: float = real(0.0, least=0, below=1, also=("lora_dropout",))
    targets: Targets = layer_names(("query", "value"))
    init: str = one_of("kaiming", "gaussian", also=("init_lora_weights",))
    rank_stabilized: bool = flag(False, also=("use_rslora",))
    rank_pattern: dict[str, int] | None = mapping(whole(8, least=1))
    alpha_pattern: dict[str, float] | None = mapping(real(16.0, above=0))
    learning_rate = 1e-2
    shown = ("rank",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        layers = dict(match_targets(model, self.targets))
        r = by_path("rank_pattern", self.rank_pattern, layers, self.rank)
        alpha = by_path("alpha_pattern", self.alpha_pattern, layers, self.alpha)
        dtype = model.dtype
        wrappers = {}
        for path, layer in layers.items():
            A = self.start(r[path], layer.d_in, rng).astype(dtype, copy=False)
            s = self.scale(r[path], alpha[path])
            wrappers[path] = self.adapted(layer, A, s, rng)
        return wrappers

    def adapted(self, layer: Module, A: Array, scale: float, rng: Rng) -> Wrapper:
        """Make the wrapper of a layer."""
        return LoRALinear(layer, A, scale, self.dropout, rng)

    def scale(self, r: int, alpha: float) -> float:
        """Return s: α/r, or α/√r."""
        return alpha / math.sqrt(r) if self.rank_stabilized else alpha / r

    def start(self, r: int, d_in: int, rng: Rng) -> Array:
        """Draw A, (r, d_in)."""
        if self.init == "kaiming":
            return kaiming_uniform((r, d_in), rng)
        return rng.normal(0, 1 / r, (r, d_in)).astype(np.float32)


class LowRankLinear(ChangedLinear):
    """A changed layer whose ΔW has rank r; shared by LoRA and its relatives.

    A layer that computes something else than base(x) + ΔW x must have its own `merge`.
    """

    def __init__(self, base: Module, r: int, dropout: float, rng: Rng):
        check_rank(r, base)
        super().__init__(base, dropout, rng)

    @property
    def rank(self) -> int:
        return self.factors()[0].shape[1]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (d_out, r) and (r, d_in), whose product is ΔW, including the scale."""
        raise NotImplementedError

    def change(self) -> Tensor:
        left, right = self.factors()
        return left @ right

    @property
    def is_low_rank(self) -> bool:
        return type(self).merge is ChangedLinear.merge   # its own: it is more than base(x) + ΔW x

    def svd(self) -> tuple[Array, Array, Array]:
        """Decompose ΔW = U diag(S) Vᵀ, without forming it: U (d_out, r), S (r,), Vᵀ (r, d_in)."""
        left, right = self.factors()
        return thin_svd(left.data, right.data)

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, rank {self.rank})"


class LoRALinear(LowRankLinear):
    """h = W₀ x + s B A x. A (r, d_in) is given, in its own precision, and B starts at 0."""

    def __init__(self, base: Module, A: Array, scale: float, dropout: float, rng: Rng):
        super().__init__(base, len(A), dropout, rng)
        self.scale = scale
        self.A = Parameter(np.array(A))
        self.B = Parameter(np.zeros((base.d_out, len(A)), A.dtype))

    def forward(self, x: Tensor) -> Tensor:
        Ax = F.linear(self.dropout(x), self.A) * self.scale                   # (…, r)
        return self.base(x) + F.linear(Ax, self.B)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.B, self.A


def check_rank(r: int, layer: Module) -> None:
    """Raise MethodError for a rank that no matrix of the layer's size has."""
    most = min(layer.d_in, layer.d_out)
    if r > most:
        raise MethodError(f"rank {r} exceeds {most}, the largest that a "
                          f"{layer.d_out} × {layer.d_in} matrix can have")


def thin_svd(left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Decompose left (d_out, r) times right (r, d_in): U (d_out, k), S (k,), Vᵀ (k, d_in), k ≤ r.
    """
    Q1, R1 = np.linalg.qr(left)
    Q2, R2 = np.linalg.qr(right.T)
    U, S, Vt = np.linalg.svd(R1 @ R2.T, full_matrices=False)
    return Q1 @ U, S, Vt @ Q2.T


def by_path(field, pattern, paths, default):
    """Give each path the value of the key of `pattern` that matches it best, or the default."""
    values = dict.fromkeys(paths, default)
    for key in sorted(pattern or {}, key=lambda key: key.count(".")):
        matches = chosen(paths, (key,), field, "targets")
        values |= dict.fromkeys(matches, pattern[key])
    return values
