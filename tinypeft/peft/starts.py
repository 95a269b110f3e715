"""Starts of LoRA: where A and B begin, by the weight, by the layer's inputs or by its gradient.

LoRA draws A and starts B at 0. These starts take A and B from a decomposition instead: of the
weight, of the inputs or of the gradient. Where their product is not 0, it is taken off the weight,
so that the model starts unchanged:

    h = (W₀ − s B₀ A₀) x + s B A x,      trained: A and B, from A₀ and B₀;      s = α/r

    start    B₀, (d_out, r)            A₀, (r, d_in)      of                     arXiv
    pissa    U[:r] √(S[:r]/s)          √(S[:r]/s) V[:r]ᵀ  W₀ = U S Vᵀ            2404.02948
    milora   the same with the last r of U, S and V       W₀ = U S Vᵀ            2406.09044
    olora    Q[:r]                     R[:r]              W₀ = Q R               2406.01775
    mica     the last r of U, frozen   0                  W₀ = U S Vᵀ            2604.01694
    eva      0                         V[:r]ᵀ             X − μ = U S Vᵀ         2410.07170
    corda    U[:r] √(S[:r]/s)          √(S[:r]/s) V[:r]ᵀ C⁻¹   W₀ C = U S Vᵀ     2406.05223
    lora_ga  ζ U[r:2r]                 ζ V[:r]ᵀ           G = U S Vᵀ             2407.05000

    [:r]   the first r columns of U, V and Q, rows of R, and singular values, the largest first
    X, μ   the layer's n inputs (n, d_in), and their mean
    C      (1/n) Σ x xᵀ + 0.01 c I (d_in, d_in), where c is the mean of the diagonal of the sum
    G      the gradient of W₀ (d_out, d_in): of the mean loss of the next token
    ζ      d_out^¼/√γ with γ = 16

eva, corda and lora_ga need text: `attach(model, method, calibration=batches)`.

Where implementations differ. The papers and PEFT change W₀. Here W₀ stays: `StartedLinear` in
`lora.py` computes W₀ x + s (B A − B₀ A₀) x, so the base stays as it is, two adapters can be
on one base, and ΔW is a LoRA of rank 2r for any base: B′ = [B, −B₀], A′ = [A; A₀]. The price is a
second thin product. A quantized base stays as it was, too, and is dequantized for the start.
There QPiSSA, of PiSSA's authors, and PEFT's olora quantize W₀ − s B₀ A₀ anew, and PEFT's pissa,
mica, corda and lora_ga refuse it.

    pissa    The paper writes y = x W: its W, A and B are W₀ᵀ, A₀ᵀ and B₀ᵀ, so its U is V here. It
             has no s; PEFT divides S by it, as here.
    milora   PEFT does not have it. The authors' code divides S by s, as here.
    olora    The author's code, which is PEFT's, does not divide by s: s Q_r R_r is taken off.
    eva      The authors' code and PEFT centre the inputs, and update a truncated SVD batch by
             batch; here it is exact. They also give layers other ranks (ρ = 2); here ρ = 1.
    corda    This is the instruction-previewed mode, PEFT's default, for text of the task. The
             knowledge-preserved mode, the last r on other text, is left out. The authors' code
             and PEFT sum x xᵀ of a batch and divide x by its largest number. B₀ A₀ is the same for
             one batch, but a sum, unlike a mean, makes B₀ larger and A₀ smaller with more tokens.
             Both double the damping until ‖C C⁻¹ − I‖ < 0.05; here it stays at 0.01.
    lora_ga  The authors' code scales A₀ and B₀ by ζ. PEFT scales B₀ alone, and by S_{r+1 … 2r},
             too. Signs of singular vectors are arbitrary; the first step does not depend on them.
"""
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..common.hints import Array
from ..engine.nn import Module
from .low_rank import halves
from .method import Layers, MethodError
from .start_data import Inputs, inputs_of, weight_gradients

__all__ = ["NEEDS_DATA", "STARTS", "TAKEN_OFF", "starts_of"]

Pair = tuple[Array, Array]                               # B (d_out, r) and A (r, d_in)


def pissa(W: Array, r: int, s: float) -> Pair:
    """Return B and A with s B A = the r largest terms of the SVD of W."""
    U, S, Vt = svd(W)
    return halves(U, S / s, Vt, r)


def milora(W: Array, r: int, s: float) -> Pair:
    """Return B and A with s B A = the r smallest terms of the SVD of W."""
    U, S, Vt = svd(W)
    last = len(S) - r
    return halves(U[:, last:], S[last:] / s, Vt[last:], r)


def olora(W: Array, r: int, s: float) -> Pair:
    """Return the first r columns of Q and rows of R."""
    Q, R = np.linalg.qr(W)
    return Q[:, :r], R[:r]


def mica(W: Array, r: int, s: float) -> Pair:
    """Return the r left singular vectors that W uses least, and A = 0."""
    U, S, Vt = svd(W)
    A = np.zeros_like(Vt[:r])
    return U[:, -r:], A


def eva(W: Array, r: int, s: float, inputs: Inputs) -> Pair:
    """Return B = 0 and the r directions in which the inputs vary most."""
    if inputs.n <= r:
        raise MethodError(f"eva: {inputs.n} tokens do not vary in {r} directions; give more")
    # (X − μ)ᵀ (X − μ)/n = V S²/n Vᵀ, so its eigenvectors are V.
    variances, V = np.linalg.eigh(inputs.covariance)         # the largest last
    A = V.T[::-1][:r]
    B = np.zeros((len(W), r))
    return B, A


def corda(W: Array, r: int, s: float, inputs: Inputs) -> Pair:
    """Return B and A with s B A = the r largest terms of the SVD of W C, times C⁻¹."""
    C = inputs.second_moment
    damping = 0.01 * C.diagonal().mean()
    C = C + damping * np.eye(len(C))
    U, S, Vt = svd(W @ C)
    B, AC = halves(U, S / s, Vt, r)
    A = np.linalg.solve(C, AC.T).T                           # C is symmetric
    return B, A


def lora_ga(W: Array, r: int, s: float, G: Array) -> Pair:
    """Return B and A of which the first step comes nearest to one of full fine-tuning."""
    d_out, d_in = G.shape
    if 2 * r > min(d_out, d_in):
        raise MethodError(f"lora_ga: rank {r} takes {2 * r} singular vectors, and a "
                          f"{d_out} × {d_in} matrix has {min(d_out, d_in)}")
    U, S, Vt = svd(G.astype(float))
    zeta = d_out ** 0.25 / math.sqrt(16)
    return zeta * U[:, r:2 * r], zeta * Vt[:r]


def svd(W):
    """Decompose W = U diag(S) Vᵀ."""
    return np.linalg.svd(W, full_matrices=False)


BY_WEIGHT = {"pissa": pissa, "milora": milora, "olora": olora, "mica": mica}
BY_INPUTS = {"eva": eva, "corda": corda}
BY_GRADIENT = {"lora_ga": lora_ga}
STARTS = BY_WEIGHT | BY_INPUTS | BY_GRADIENT
NEEDS_DATA = BY_INPUTS | BY_GRADIENT
TAKEN_OFF = STARTS.keys() - {"mica", "eva"}              # their B₀ A₀ is not 0


def starts_of(name: str, layers: Layers, tuned: Module,
              batches: list[Array]) -> Iterator[tuple[Any, Array, Array]]:
    """Yield (layer, B₀, A₀) for each LoRA of `layers`, in float64."""
    start = STARTS[name]
    data = {}
    if name in BY_INPUTS:
        data = inputs_of(layers, tuned, batches)
    if name in BY_GRADIENT:
        data = weight_gradients(layers, tuned, batches)
    for path, layer in layers.items():
        W = layer.base.dense_weight().astype(float)
        arguments = [W, len(layer.A), layer.scale]
        if data:
            arguments.append(data[path])
        B, A = start(*arguments)
        yield layer, B, A
