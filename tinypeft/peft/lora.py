"""LoRA: Low-Rank Adaptation (Hu et al., arXiv 2106.09685).

LoRA freezes a weight matrix and trains a low-rank change of it, the product of two thin matrices.
The change can be added to the weight afterwards. Section 4.1, equation (3):

    h = W₀ x + ΔW x = W₀ x + s B A x,      s = α/r

    paper      here           shape
    W₀         base           (d_out, d_in), frozen, quantized or not
    A          A              (r, d_in)
    B          B              (d_out, r), starts at 0, so that ΔW = 0
    r, α, s    rank, alpha, scale

    ∂L/∂B = ∂L/∂h (s A x)ᵀ,   ∂L/∂A = s Bᵀ ∂L/∂h xᵀ

No line here computes these two: `functional.linear` gives dW = dyᵀ x, where a row is one x, for its
own weight, which is A in the first line of `LoRALinear.forward` and B in the second. At the start
∂L/∂A is 0, so the first step moves B alone. Dropout acts on the input of A in training only, so
merging needs no correction. Trained: Σ r (d_in + d_out) over the targets.

Where implementations differ. The paper draws A from a Gaussian of unnamed width. loralib and PEFT
use Kaiming's uniform U(−1/√d_in, 1/√d_in), `init="kaiming"`, the default here; `init="gaussian"` is
PEFT's N(0, 1/r²); `starts.py` has those of later papers. `rank_stabilized` takes s = α/√r
(Kalajdzievski, arXiv 2312.03732), with which large ranks keep learning. PEFT adapts GPT-2's fused
query-key-value matrix by one pair with one A; here, as in the paper, query and value have a pair
each. The defaults r = 8, α = 16 are the paper's for RoBERTa large (Table 9), so s = 2. For GPT-2 it
takes 4 and 32 (Table 11, s = 8), and PEFT's defaults are 8 and 8 (s = 1): with another s, another
learning rate is best.
"""
import math
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import flag, layer_names, mapping, one_of, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter, kaiming_uniform
from ..engine.tensor import Tensor, concatenate
from ..models.decoder import Decoder
from ..models.targets import chosen, match_targets
from .low_rank import LowRankLinear, check_rank, thin_svd
from .method import Layers, Method, Wrapper
from .starts import NEEDS_DATA, STARTS, TAKEN_OFF, starts_of

__all__ = ["LoRA", "LoRALinear", "LowRankLinear", "StartedLinear", "check_rank", "thin_svd"]


@dataclass(frozen=True)
class LoRA(Method):
    """Train a low-rank change s B A of the linear layers named in `targets`.

    dropout: probability, on the input of A. init: how A starts, or A and B: see `starts.py`.
    rank_pattern, alpha_pattern: r or α of some of them: {"value": 16, "blocks.0.value": 2}. Of the
    keys that match a layer, one with more parts comes before others, then the last.
    `models/targets.py` says how names match layers.
    """
    rank: int = whole(8, least=1, also=("r",))
    alpha: float = real(16.0, above=0, also=("lora_alpha",))
    dropout: float = real(0.0, least=0, below=1, also=("lora_dropout",))
    targets: Targets = layer_names(("query", "value"))
    init: str = one_of("kaiming", "gaussian", *STARTS, also=("init_lora_weights",))
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
        kind = StartedLinear if self.init in TAKEN_OFF else LoRALinear
        wrapper = kind(layer, A, scale, self.dropout, rng)
        wrapper.B.requires_grad = self.init != "mica"
        return wrapper

    @property
    def needs_data(self) -> bool:
        return self.init in NEEDS_DATA

    def begin(self, layers: Layers, tuned: Module, batches: list[Array]) -> None:
        if self.init not in STARTS:
            return
        for layer, B, A in starts_of(self.init, layers, tuned, batches):
            layer.B.assign(B.astype(layer.B.dtype))
            layer.A.assign(A.astype(layer.A.dtype))
            if self.init in TAKEN_OFF:
                layer.keep_start()

    def scale(self, r: int, alpha: float) -> float:
        """Return s: α/r, or α/√r."""
        return alpha / math.sqrt(r) if self.rank_stabilized else alpha / r

    def start(self, r: int, d_in: int, rng: Rng) -> Array:
        """Draw A, (r, d_in)."""
        if self.init == "gaussian":
            return rng.normal(0, 1 / r, (r, d_in)).astype(np.float32)
        return kaiming_uniform((r, d_in), rng)


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

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (d_out, r) and (r, d_in), whose product is ΔW/s."""
        return self.B, self.A

    def factors(self) -> tuple[Tensor, Tensor]:
        B, A = self.pair()
        return self.scale * B, A


class StartedLinear(LoRALinear):
    """h = W₀ x + s (B A − B₀ A₀) x, where B₀ and A₀ are what B and A started from.

    It is the papers' h = (W₀ − s B₀ A₀) x + s B A x, but W₀ stays as it is. Dropout acts on the
    input of A alone.
    """

    def __init__(self, base: Module, A: Array, scale: float, dropout: float, rng: Rng):
        super().__init__(base, A, scale, dropout, rng)
        self.A0 = Parameter(np.zeros_like(self.A.data), requires_grad=False)
        self.B0 = Parameter(np.zeros_like(self.B.data), requires_grad=False)

    @property
    def rank(self) -> int:
        return min(2 * len(self.A), self.d_in, self.d_out)

    def keep_start(self) -> None:
        """Make what B and A are now the start B₀ and A₀."""
        self.B0.assign(self.B.data.copy())
        self.A0.assign(self.A.data.copy())

    def forward(self, x: Tensor) -> Tensor:
        Ax = F.linear(self.dropout(x), self.A) * self.scale                   # (…, r)
        A0x = F.linear(x, self.A0) * self.scale
        change = F.linear(Ax, self.B) - F.linear(A0x, self.B0)                # 0 at the start
        return self.base(x) + change

    def pair(self) -> tuple[Tensor, Tensor]:
        B = concatenate([self.B, -self.B0], axis=1)
        A = concatenate([self.A, self.A0])
        return B, A

    def change(self) -> Tensor:
        return self.scale * (self.B @ self.A - self.B0 @ self.A0)             # 0 at the start


def by_path(field, pattern, paths, default):
    """Give each path the value of the key of `pattern` that matches it best, or the default."""
    values = dict.fromkeys(paths, default)
    for key in sorted(pattern or {}, key=lambda key: key.count(".")):
        matches = chosen(paths, (key,), field, "targets")
        values |= dict.fromkeys(matches, pattern[key])
    return values
