"""GaLore: AdamW on a projection of each matrix's gradient, so that the moments are small.

The weights are full and all of them train; what is taken to be of low rank is the gradient (Zhao et
al., arXiv 2403.03507, Algorithm 2). For a weight W (d_out, d_in) with d_out ≤ d_in:

    P = U[:, :r] of G = U S Vᵀ                         (d_out, r), every T steps
    R = Pᵀ G                                           (r, d_in)
    M, V ← the moments of R;  N = M̂ / (√V̂ + ε)         as in AdamW
    W ← W − lr α P N

A matrix with d_out > d_in is treated as its transpose. In place of AdamW's 2 d_out d_in numbers,
GaLore keeps r (d_out + 2 d_in). A step takes two thin products more, and every T-th a singular
value decomposition.

After T steps M and V stay, although the basis is another one, as in the authors' code (galore-torch
1.0). The signs of singular vectors are arbitrary: with another LAPACK, a run goes another way from
there on. The authors' code differs in four points: it adds ε to √V before the bias correction,
decays the weights after the step, projects a square matrix on the right, and takes ε = 1e-6 where
nothing else is asked for.

A gradient of zeros has no directions. LoRA's A has one in the first step, because B is zero. P then
waits for the next step; the authors' code would take any basis for T steps.
"""
from collections.abc import Iterable

import numpy as np

from ...common.hints import Array
from ..tensor import Tensor
from .adamw import adamw_step
from .optimizer import MatrixOptimizer, is_masked

__all__ = ["GaLore"]


class GaLore(MatrixOptimizer):
    """GaLore for matrices, and AdamW for the rest; the equations stand at the head of this file.

    rank: r, or the matrix's shorter side if that is less. every: T, in steps. scale: α. by_adamw:
    matrices that AdamW trains, too: embeddings and heads. `train` names them. It also trains those
    with an update mask, because M and V belong to directions, not to numbers.
    """
    slots = "m", "v"
    squares = "v", "V"

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float = 1e-3, rank: int = 8,
                 every: int = 200, scale: float = 0.25, weight_decay: float = 0.0,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 by_adamw: Iterable[Tensor] = ()):
        if min(rank, every) < 1:
            raise ValueError(f"GaLore: rank and every must be at least 1, got {rank} and {every}")
        self.by_adamw = {id(p) for p in by_adamw}
        super().__init__(parameters, lr=lr, rank=rank, every=every, scale=scale,
                         weight_decay=weight_decay, betas=betas, eps=eps)

    def allocate(self, p: Tensor, group: dict) -> dict[str, Array]:
        if not self.is_hidden(p) or is_masked(p):
            return super().allocate(p, group)
        short, long = sorted(p.shape)
        r = min(group["rank"], short)
        shapes = {"P": (short, r), "M": (r, long), "V": (r, long)}
        return {name: np.zeros(shape, p.dtype) for name, shape in shapes.items()}

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict) -> None:
        if "P" not in state:
            return adamw_step(w, g, state["m"], state["v"], self.t, group)
        if w.shape[0] > w.shape[1]:
            w, g = w.T, g.T                              # views: the shorter side comes first
        P = state["P"]
        is_due = (self.t - 1) % group["every"] == 0 or not P.any()               # t = 1, T + 1, …
        if is_due and g.any():
            U, _, _ = np.linalg.svd(g, full_matrices=False)
            P[...] = U[:, :P.shape[1]]
        R = P.T @ g
        step = np.zeros_like(R)                          # a weight at 0, which AdamW takes to −lr N
        adamw_step(step, R, state["M"], state["V"], self.t, group)
        w *= 1 - group["lr"] * group["weight_decay"]
        w += group["scale"] * (P @ step)                 # W ← W − lr α P N
