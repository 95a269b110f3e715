"""Muon: for each matrix, a step whose singular values are all about 1.

The gradient of a weight matrix has a few large singular values and many small ones, and so have the
steps of SGD and Adam. Muon keeps the directions and makes all lengths equal: of U S Vᵀ it takes
U Vᵀ (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, with their
code, github.com/KellerJordan/Muon; `torch.optim.Muon` computes the same):

    u ← μ u + (1 − μ) g
    O = NS₅(μ u + (1 − μ) g)                                       Nesterov: one step ahead
    w ← w − lr λ w
    w ← w − lr √max(1, d_out/d_in) O

NS₅ is five steps of X ← a X + (b A + c A²) X, A = X Xᵀ, which start from X = G/‖G‖. Each maps a
singular value σ to a σ + b σ³ + c σ⁵. The numbers a, b, c = 3.4445, −4.7750, 2.0315 raise a small σ
fast rather than settle at 1: after five steps, those that were above 0.003 lie between 0.68 and
1.21.

Muon keeps one number for each trained number, AdamW two. A step takes 10 to 15 min(d_out, d_in)
multiplications for each number of the matrix. Jordan trains vectors, embeddings and heads by AdamW:
a row of a table belongs to one token or class. So are vectors and `by_adamw` trained here.

An entry of O is about 1/√max(d_out, d_in), one of AdamW's step about 1, so that rates differ.
adjust="match_rms_adamw" (Liu et al., arXiv 2502.16982) makes an entry as large as AdamW's usually
is, so that one rate suits both: its factor is 0.2 √max(d_out, d_in).

PyTorch iterates in bfloat16, whatever the weights are; here NS₅ has the type of the weights. A
matrix of zeros, such as the gradient of LoRA's A while B is zero, stays one.
"""
import math
from collections.abc import Iterable

import numpy as np

from ...common.hints import Array
from ..tensor import Tensor
from .adamw import adamw_step
from .optimizer import MatrixOptimizer

__all__ = ["Muon", "orthogonalized"]

ADJUST = "original", "match_rms_adamw"


class Muon(MatrixOptimizer):
    """Muon for matrices, and AdamW for the rest; the equations stand at the head of this file.

    momentum: μ. adjust: the factor on the rate, "original" or "match_rms_adamw". betas, eps: of
    AdamW. by_adamw: matrices that AdamW trains, too: embeddings and heads. `train` names them.
    """
    slots = "u", "m", "v"
    squares = ("v",)

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float = 1e-3,
                 momentum: float = 0.95, weight_decay: float = 0.1, adjust: str = "original",
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 by_adamw: Iterable[Tensor] = ()):
        if adjust not in ADJUST:
            raise ValueError(f"Muon: adjust must be {' or '.join(map(repr, ADJUST))}, got "
                             f"{adjust!r}")
        self.by_adamw = {id(p) for p in by_adamw}
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay,
                         adjust=adjust, betas=betas, eps=eps)

    def allocate(self, p: Tensor, group: dict) -> dict[str, Array]:
        slots = ("u",) if self.is_hidden(p) else ("m", "v")
        return {slot: np.zeros_like(p.data) for slot in slots}

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict) -> None:
        if "u" not in state:
            return adamw_step(w, g, state["m"], state["v"], self.t, group)
        u, mu, lr = state["u"], group["momentum"], group["lr"]
        u *= mu
        u += (1 - mu) * g
        O = orthogonalized(mu * u + (1 - mu) * g)
        w *= 1 - lr * group["weight_decay"]
        w -= lr * rate_factor(w.shape, group["adjust"]) * O


def rate_factor(shape: tuple[int, int], adjust: str) -> float:
    """Return the factor on the rate of a matrix (d_out, d_in)."""
    d_out, d_in = shape
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(d_out, d_in))
    return math.sqrt(max(1, d_out / d_in))


def orthogonalized(G: Array, steps: int = 5) -> Array:
    """Return about U Vᵀ of G = U S Vᵀ, by the Newton–Schulz steps above; zeros of zeros."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = G.shape[0] > G.shape[1]
    X = G.T if is_tall else G                            # then A is the smaller of two products
    X = X / max(float(np.linalg.norm(X)), 1e-7)
    for _ in range(steps):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if is_tall else X
