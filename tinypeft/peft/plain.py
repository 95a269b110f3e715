"""What this folder computes in a faster order, once more in the paper's order.

The tests hold each function equal to its fast twin, which is in the file of its method; the table
in tests/README.md names both. Here nothing is masked, joined or written out: of these methods, read
it first. The others, LoRA among them, have the paper's order in their own files.
"""
from collections.abc import Mapping, Sequence

import numpy as np

from ..common.hints import Array
from ..engine import functional as F
from ..engine.tensor import Tensor, concatenate, stack
from .adalora import AdaLoRALinear
from .dora import DoRALinear
from .loreft import Phi
from .miss import MiSSLinear
from .model import PeftModel
from .randlora import RandLoRALinear

__all__ = ["allocate", "cayley", "circular", "circular_dx", "dora", "loreft", "lstm", "miss",
           "mixed_batch", "orthonormal", "places", "randlora", "waves"]


def allocate(layers: Mapping[str, AdaLoRALinear], budget: int) -> list[tuple[str, int]]:
    """AdaLoRA, (6): list the `budget` triplets (path, i) with the largest scores S."""
    S = {}
    for path, layer in layers.items():
        for i in range(len(layer.Lam)):
            S[path, i] = score(layer, i)
    return sorted(S, key=S.get, reverse=True)[:budget]


def score(layer, i):
    """AdaLoRA, (7) and (11): S = s(λ) + mean s(p) + mean s(q), with s = Ī U, of triplet i."""
    s = layer.sensitivity[i] * layer.uncertainty[i]
    d = layer.d_out
    return s[0] + s[1:1 + d].mean() + s[1 + d:].mean()


def dora(layer: DoRALinear) -> Array:
    """DoRA, (5): W′ = m V′/‖V′‖ with V′ = W₀ + s B A, row by row."""
    V = layer.base.dense_weight() + layer.scale * layer.B.data @ layer.A.data
    W = np.zeros_like(V)
    for i, row in enumerate(V):
        W[i] = layer.m.data[i] * row / np.linalg.norm(row)
    return W


def randlora(layer: RandLoRALinear) -> Tensor:
    """RandLoRA, (4): s Σ_j B_j Λ_j A Γ_j, (D, d). This is ΔW, or ΔWᵀ where d_in is larger."""
    A, B = layer.bases()
    r, n = layer.Lam.shape
    total = 0
    for j in range(n):
        B_j = B[:, j::n]                                                      # (D, r)
        Lam_j = layer.Lam[:, j].reshape(r, 1)
        total = total + B_j @ (Lam_j * A * layer.Gam[j])
    return layer.scale * total


def cayley(Q: Tensor) -> Tensor:
    """OFT, section 3.3: R = (I + Q)(I − Q)⁻¹ of each block."""
    I = np.eye(Q.shape[-1])
    return (I + Q) @ inverse(I - Q)


def inverse(M):
    """Y = M⁻¹.    dM = −Yᵀ dY Yᵀ."""
    Y = np.linalg.inv(M.data)
    Yt = Y.swapaxes(-1, -2)
    return Tensor.op(Y, (M, lambda dY: -Yt @ dY @ Yt))


def lstm(a: Tensor, U: Tensor) -> Tensor:
    """LSTM: the recurrence of `lstm.py`; the engine derives the gradients."""
    n = U.shape[1]
    h = c = Tensor(np.zeros((1, n), a.dtype))
    states = []
    for t in range(len(a)):
        z = a[t:t + 1] + h @ U.T                                              # (1, 4n)
        i = z[:, :n].sigmoid()
        f = z[:, n:2 * n].sigmoid()
        g = z[:, 2 * n:3 * n].tanh()
        o = z[:, 3 * n:].sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        states.append(h)
    return concatenate(states, axis=0)


def loreft(phi: Phi, h: Tensor, p: int, s: int) -> Tensor:
    """LoReFT, (2) and (7): walk along the states h (n, d) of a prompt, and change the first p and
    the last s."""
    n = len(h)
    R = orthonormal(phi.M).T
    states = []
    for t in range(n):
        state = h[t]
        if t < p or t >= n - s:
            state = state + R.T @ (phi.W @ state + phi.b - R @ state)
        states.append(state)
    return stack(states)


def orthonormal(M: Tensor) -> Tensor:
    """LoReFT: the columns of M, made orthonormal one after the other (Gram and Schmidt)."""
    columns = []
    for j in range(M.shape[1]):
        column = M[:, j]
        for q in columns:
            column = column - q * (q @ column)
        length = (column @ column).sqrt()
        columns.append(column / length)
    return stack(columns, axis=1)


def places(row: Array, counts: Sequence[int], separator: int) -> list[int]:
    """P-tuning: walk along a row of tokens, and put counts[j] pseudo-tokens before part j."""
    part, at = 0, counts[0]
    taken = list(range(at))
    for token in row:
        at += 1
        if token == separator and part < len(counts) - 1:
            part += 1
            taken += range(at, at + counts[part])
            at += counts[part]
    return taken


def miss(layer: MiSSLinear, x: Tensor) -> Tensor:
    """MiSS, (4) to (7): D times the sum of pieces of x of r numbers, the last one shorter."""
    y = layer.base(x)
    for start in range(0, layer.d_in, layer.rank):
        piece = x[..., start:start + layer.rank]
        y = y + F.linear(piece, layer.D[:, :piece.shape[-1]])
    return y


def mixed_batch(tuned: Mapping[str, PeftModel], tokens: Array, tasks: Sequence[str]) -> Array:
    """mixed: the logits of each row, one row after the other, with its task's method put on."""
    logits = []
    for b, task in enumerate(tasks):
        model = tuned[task]
        logits.append(model(tokens[b:b + 1]).data)
    return np.concatenate(logits)


def waves(c: Tensor, E: Array, shape: tuple[int, int]) -> Tensor:
    """FourierFT, (3): Re(S), a sum of n cosines, each over the whole matrix."""
    d1, d2 = shape
    p, q = np.ogrid[:d1, :d2]
    S = Tensor(np.zeros(shape, c.dtype))
    for l, (j, k) in enumerate(E.T):
        turns = p * j / d1 + q * k / d2
        S = S + c[l] * np.cos(2 * np.pi * turns)
    return S / (d1 * d2)


def circular(w: Array, x: Array) -> Array:
    """C³A, (1) and (3): C_blk(Δw) x/d₂ by transforms. w (m, n, b), x (N, n b) → (N, m b)."""
    m, n, b = w.shape
    N = len(x)
    pieces = x.reshape(N, 1, n, b)
    products = np.fft.fft(w) * np.fft.ifft(pieces)                            # (N, m, n, b)
    sums = products.sum(2)
    z = np.fft.fft(sums).real                                                 # (N, m, b)
    return z.reshape(N, m * b) / (n * b)


def circular_dx(w: Array, dz: Array) -> Array:
    """The gradient of `circular` for x: ΔWᵀ dz. w (m, n, b), dz (N, m b) → (N, n b)."""
    m, n, b = w.shape
    N = len(dz)
    pieces = dz.reshape(N, m, 1, b)
    products = np.fft.fft(w) * np.fft.fft(pieces)                             # (N, m, n, b)
    sums = products.sum(1)
    dx = np.fft.ifft(sums).real                                               # (N, n, b)
    return dx.reshape(N, n * b) / (n * b)
