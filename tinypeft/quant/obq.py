"""OBQ, Optimal Brain Quantization: one weight at a time, the others make up for it. The ancestor of GPTQ.

Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022 (arXiv 2208.11580), §5; restated as eqs. (2) and (3) of
the GPTQ paper (arXiv 2210.17323), whose letters are used here. Every row w of W is a problem of its own: minimise
‖wX − ŵX‖² over ŵ on a grid. This error is a quadratic form with Hessian H = 2XXᵀ; F are the weights still free:

    q = argmin_q (quant(w_q) − w_q)² / [H_F⁻¹]_qq        δ_F = −(w_q − quant(w_q)) / [H_F⁻¹]_qq · (H_F⁻¹)_{:,q}      (2)

    H_F⁻¹ without q  =  H_F⁻¹ − (H_F⁻¹)_{:,q} (H_F⁻¹)_{q,:} / [H_F⁻¹]_qq                                            (3)

    paper      here      shape
    w          w         (d,)            a row of W (n, d), which becomes ŵ
    H_F⁻¹      Hinv      (d, d)          rows and columns of weights already quantized are zero
    quant      grid      a `Grid` with one row per row of W

The choice of q in (2) is greedy. It is not always the better order: the fixed order 0 … d−1, with which this is GPTQ,
has won as often. Cost: O(d³) per row; GPTQ is about that cost. The paper also quantizes at once any weight whose error
exceeds half a step, so that one pushed outside the grid does not wait; this file does not.
"""
import numpy as np

from ..hints import Array
from .uniform import Grid


def obq(W, H, grid: Grid, greedy: bool = True) -> np.ndarray:
    """W float (n, d), H (d, d) positive definite, grid of n rows → Ŵ, float64 (n, d), on the grid."""
    W, H = np.asarray(W, np.float64), np.asarray(H, np.float64)
    if H.shape != (W.shape[1],) * 2:
        raise ValueError(f"obq: W {W.shape} needs H of shape {(W.shape[1],) * 2}, got {H.shape}")
    Hinv, zero = np.linalg.inv(H), np.broadcast_to(grid.zero, grid.scale.shape)
    return np.array([obq_row(W[i], Hinv, Grid(grid.scale[[i]], zero[[i]], grid.bits, grid.low), greedy)
                     for i in range(len(W))])


def obq_row(w: Array, Hinv: Array, grid: Grid, greedy: bool) -> Array:
    """One row w (d,) → ŵ, weight after weight, with H⁻¹ (d, d) and a grid of one row."""
    free = np.ones(len(w), bool)
    for step in range(len(w)):
        rounded = grid.round(w[None].astype(np.float32))[0]
        loss = np.full(len(w), np.inf)
        loss[free] = (rounded - w)[free]**2 / Hinv.diagonal()[free]
        q = loss.argmin() if greedy else step
        w, Hinv = obq_step(w, Hinv, q, rounded[q])
        free[q] = False
    return w


def obq_step(w: Array, Hinv: Array, q: int, value: float) -> tuple[Array, Array]:
    """Fix w_q at `value` and let the free weights make up for it: new arrays w (d,) and H_F⁻¹ (d, d)."""
    column = Hinv[:, q] / Hinv[q, q]
    w = w + (value - w[q]) * column                                       # δ_F
    w[q] = value
    Hinv = Hinv - np.outer(column, Hinv[q])                               # (3)
    Hinv[q] = Hinv[:, q] = 0                                              # zero, up to rounding
    return w, Hinv
