"""A changed layer whose ΔW is the product of two thin matrices: what LoRA and its relatives share.

    ΔW = L R,     L (d_out, r),     R (r, d_in)
"""
from __future__ import annotations

import numpy as np

from ..common.hints import Array, Rng
from ..engine.nn import Module
from ..engine.tensor import Tensor
from .changed import ChangedLinear
from .method import MethodError

__all__ = ["LowRankLinear", "check_rank", "halves", "thin_svd"]


CHANGE = {"change", "delta"}
FACTORS = {"factors", "pair"}


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
        """Is it base(x) + ΔW x, with the ΔW of `factors`? A class that says ΔW or its merged layer
        in another way may be more."""
        says = next(vars(cls) for cls in type(self).__mro__ if not CHANGE.isdisjoint(vars(cls)))
        return type(self).merge is ChangedLinear.merge and not FACTORS.isdisjoint(says)

    def svd(self) -> tuple[Array, Array, Array]:
        """Decompose ΔW = U diag(S) Vᵀ, without forming it: U (d_out, r), S (r,), Vᵀ (r, d_in)."""
        left, right = self.factors()
        return thin_svd(left.data, right.data)

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, rank {self.rank})"


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


def halves(U: Array, S: Array, Vt: Array, r: int) -> tuple[Array, Array]:
    """Split the first r terms of U S Vᵀ, or all of them: B = U √S and A = √S Vᵀ."""
    root = np.sqrt(S[:r])
    return U[:, :r] * root, root[:, None] * Vt[:r]
