"""LoReFT: Low-rank Linear Subspace ReFT (Wu et al., arXiv 2404.03592): states change, not weights.

Behind a block each position of the text has a state. LoReFT changes the states of a few positions
of the prompt, and each only in a subspace of r dimensions. What follows reads the changed states.
Section 3.2, equation (2), and section 3.3, equation (7), with the P of section 4.1:

    Φ(h) = h + Rᵀ (W h + b − R h)
    h_t ← Φ(h_t) for t ∈ P,      P = {1, …, p} ∪ {n − s + 1, …, n}

    paper    here           shape
    h        x              (B, T, d), the states that a block gives
    R        R()            (r, d), with orthonormal rows; computed from M (d, r), which is trained
    W, b     W, b           (r, d), (r,); W starts at R and b at 0, so that Φ(h) = h
    p, s     first, last    numbers of positions
    n        lengths        (B,), the tokens of each row's prompt
    L        targets        the blocks: "all", or names such as ("blocks.2-5",)

R h says where h is in the subspace, and W h + b says where it goes. Whatever a step makes of M, the
rows of R are orthonormal. Where n < p + s, p becomes min(p, ⌊n/2⌋) and s becomes min(s, ⌈n/2⌉)
(section 4.1), so no state changes twice. Trained: 2 r d + r numbers a block, twice as many if not
`tied`. Nothing can be merged.

The prompt is what `generate` continues, the prompt of a pair, or a row to classify. What the model
writes behind it stays as it is. Other text, such as a row of language modelling, is all prompt; a
task of your own says where prompts end by `prompted` of `models/generation.py`. Virtual tokens of
another method are not counted. `plain.loreft` walks along a prompt, state by state.

Where implementations differ. The defaults are those of the authors' command for commonsense and
arithmetic. If the positions do not share R, W and b, the paper has a Φ for each of them, and the
authors' code has one for the first and one for the last positions, as this file does. Their code
draws W and b from Kaiming's uniform, so Φ changes states from the start. It bounds p and s by ⌊n/2⌋
for every n. It makes R of Householder's reflections, this file makes it of M (`orthonormal.py`):
Φ is the same, but steps of AdamW differ. Dropout acts on Φ(h), as there. DiReFT, the paper's
ablation without R h and without orthonormal rows, is not here.
"""
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import flag, layer_names, real, whole
from ..engine import functional as F
from ..engine.nn import Dropout, Module, Parameter
from ..engine.tensor import Tensor, where
from ..models.decoder import Decoder
from ..models.generation import prompt_lengths
from ..models.targets import chosen
from .method import Method, MethodError, VirtualTokens
from .orthonormal import orthonormal

__all__ = ["Interventions", "LoReFT", "Phi"]


@dataclass(frozen=True)
class LoReFT(Method):
    """Change states behind the blocks of `targets`, at the `first` and `last` positions of prompts.

    tied: is there one Φ in a block, or one for the first and one for the last positions? dropout:
    probability, on the changed states.
    """
    rank: int = whole(8, least=1, also=("r", "low_rank_dimension"))
    first: int = whole(7, most=1 << 31, also=("first_n", "prefix_positions", "p"))
    last: int = whole(7, most=1 << 31, also=("last_n", "suffix_positions", "s"))
    tied: bool = flag(True, also=("share_weights", "tied_weights"))
    dropout: float = real(0.0, least=0, below=1)
    targets: Targets = layer_names("all", also=("layers",))
    learning_rate = 3e-3
    shown = ("rank", "first", "last")

    def check(self) -> None:
        if not self.first + self.last:
            raise MethodError("LoReFT: first and last are both 0, so no state would change")

    def virtual(self, model: Decoder, rng: Rng) -> "Interventions":
        d = model.config.d_model
        if self.rank > d:
            raise MethodError(f"LoReFT: rank {self.rank} exceeds {d}, the width of a state")
        return Interventions(self, model, rng)


class Phi(Module):
    """Φ(h) = h + Rᵀ (W h + b − R h)."""

    def __init__(self, d: int, r: int, dropout: float, dtype: Any, rng: Rng):
        M = rng.standard_normal((d, r)).astype(dtype)
        self.M = Parameter(orthonormal(Tensor(M)).data)
        self.W = Parameter(self.R().data.copy())
        self.b = Parameter(np.zeros(r, dtype))
        self.dropout = Dropout(dropout, rng)

    def R(self) -> Tensor:
        """Compute R (r, d) from M (d, r)."""
        return orthonormal(self.M).T

    def forward(self, h: Tensor) -> Tensor:
        R = self.R()
        edit = F.linear(h, self.W - R, self.b)                                # W h + b − R h
        return self.dropout(h + edit @ R)                                     # Rᵀ edit, as a row

    def describe(self) -> str:
        d, r = self.M.shape
        return f"({d}, rank {r})"


class Interventions(VirtualTokens):
    """Every block's Φ, which changes states and adds no tokens."""
    seam = "hook"
    length = 0

    def __init__(self, method: LoReFT, model: Decoder, rng: Rng):
        c = model.config
        paths = [f"blocks.{i}" for i in range(c.n_layers)]
        changed = chosen(paths, method.targets, kind="blocks")

        def one_for_each_block():
            return [Phi(c.d_model, method.rank, method.dropout, model.dtype, rng)
                    if path in changed else None for path in paths]
        self.p = method.first
        self.s = method.last
        self.phi = one_for_each_block()
        self.phi_last = [] if method.tied else one_for_each_block()

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        n = prompt_lengths(tokens) if lengths is None else np.asarray(lengths)
        is_first, is_last = ends(tokens.shape[1], n, self.p, self.s)
        return {"hook": functools.partial(self.change, is_first, is_last)}

    def change(self, is_first: Array, is_last: Array, i: int, x: Tensor, places: Array) -> Tensor:
        """Change x (B, n, d), the states behind block i, at the tokens that the two arrays (B, T)
        name; places (B, T): where these tokens are in x."""
        if self.phi[i] is None:
            return x
        if not self.phi_last:
            return changed_at(is_first | is_last, self.phi[i], x, places)
        x = changed_at(is_first, self.phi[i], x, places)
        return changed_at(is_last, self.phi_last[i], x, places)

    def describe(self) -> str:
        return f"({self.p} first and {self.s} last positions)"


def ends(T: int, n: Array, p: int, s: int) -> tuple[Array, Array]:
    """Mark the first p and the last s of the first n (B,) of T positions: two arrays (B, T)."""
    n = n[:, None]
    is_short = n < p + s
    p = np.where(is_short, np.minimum(p, n // 2), p)
    s = np.where(is_short, np.minimum(s, n - n // 2), s)
    t = np.arange(T)
    return t < p, (n - s <= t) & (t < n)


def changed_at(is_changed, phi, x, places):
    """Equation (7): Φ(h) for the states of the tokens that `is_changed` (B, T) names."""
    in_x = np.zeros(x.shape[:2], bool)
    np.put_along_axis(in_x, places, is_changed, axis=1)
    return where(in_x[..., None], phi(x), x)
