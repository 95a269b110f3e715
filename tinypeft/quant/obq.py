"""OBQ, Optimal Brain Quantization: round one weight at a time; the others make up for its error.

Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022 (arXiv 2208.11580), §5. The paper of
GPTQ (arXiv 2210.17323) restates it as (2) and (3), in these letters. Each row w of W is a problem
of its own: minimise ‖wX − ŵX‖², with Hessian H = 2XXᵀ, over ŵ on a grid. F holds the free weights:

    q = argmin_q (quant(w_q) − w_q)² / [H_F⁻¹]_qq
    δ_F = −(w_q − quant(w_q)) / [H_F⁻¹]_qq · (H_F⁻¹)_{:,q}                                      (2)
    H_F⁻¹ without q  =  H_F⁻¹ − (H_F⁻¹)_{:,q} (H_F⁻¹)_{q,:} / [H_F⁻¹]_qq                        (3)

    paper      here      shape
    w          w         (d,)      a row of W (n, d), which becomes ŵ
    H_F⁻¹      Hinv      (d, d)    rows and columns of weights that are already fixed are zero
    quant      grid      a `Grid` with one row per row of W

The choice of q in (2) is greedy, which is not always better: the fixed order 0 … d−1, with which
OBQ is GPTQ, has won as often. OBQ costs O(d³) per row, GPTQ about that for all rows. This file
omits a rule of the paper: a weight pushed outside the grid by over half a step is rounded at once.
"""
import numpy as np

from ..common.hints import Array
from .uniform import Grid


def obq(W: Array, H: Array, grid: Grid, greedy: bool = True) -> Array:
    """W (n, d), H (d, d) positive definite, grid of n rows → Ŵ, float64 (n, d), on the grid."""
    W = np.asarray(W, np.float64)
    H = np.asarray(H, np.float64)
    d = W.shape[1]
    if H.shape != (d, d):
        raise ValueError(f"obq: W {W.shape} needs H of shape {(d, d)}, got {H.shape}")
    Hinv = np.linalg.inv(H)
    rows = [obq_row(w, Hinv, grid[i:i + 1], greedy) for i, w in enumerate(W)]
    return np.array(rows)


def obq_row(w: Array, Hinv: Array, grid: Grid, greedy: bool) -> Array:
    """Round one row w (d,) by H⁻¹ (d, d) and its grid of one row → ŵ (d,)."""
    d = len(w)
    free = np.ones(d, bool)
    for i in range(d):
        nearest = grid.round(w[None].astype(np.float32))[0]
        q = i
        if greedy:
            loss = np.full(d, np.inf)
            loss[free] = (nearest - w)[free]**2 / Hinv.diagonal()[free]
            q = loss.argmin()
        w, Hinv = obq_step(w, Hinv, q, nearest[q])
        free[q] = False
    return w


def obq_step(w: Array, Hinv: Array, q: int, value: float
             ) -> tuple[Array, Array]:
    """Fix weight q at `value`: return w (d,) and H_F⁻¹ (d, d) after (2) and (3), as new arrays."""
    column = Hinv[:, q] / Hinv[q, q]
    w = w + (value - w[q]) * column                                       # (2)
    w[q] = value                                                          # exactly
    Hinv = Hinv - np.outer(column, Hinv[q])                               # (3)
    Hinv[q] = 0                                                           # exactly
    Hinv[:, q] = 0
    return w, Hinv
