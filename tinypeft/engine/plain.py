"""A transformer's operations, and a step of AdamW, as one reads them. Read this file first.

Each operation is a composition of the primitives of `tensor.py`. It computes the same value as its
fused twin in `functional.py`; the engine derives its gradient by the chain rule. `adamw` is the
twin of `adamw_step` in `optim/adamw.py`. The tests compare the two. An array in place of a Tensor
is a constant.
"""
import math

import numpy as np

from ..common.hints import Array
from .tensor import Tensor, accepts_arrays, concatenate

__all__ = ["adamw", "attention", "cross_entropy", "embedding", "flash_attention", "geglu", "gelu",
           "grouped_attention", "layer_norm", "linear", "linear_cross_entropy", "log_softmax",
           "rms_norm", "rotary", "softmax", "swiglu"]


@accepts_arrays
def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b."""
    y = x @ W.T
    return y if b is None else y + b


@accepts_arrays
def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """y = γ (x − mean) / √(var + ε) + β, over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    var = (centred * centred).mean(-1, keepdims=True)
    return centred / (var + eps).sqrt() * gamma + beta


@accepts_arrays
def rms_norm(x: Tensor, gamma: Tensor, eps: float = 1e-6) -> Tensor:
    """y = γ x / √(mean x² + ε), over the last axis."""
    mean_square = (x * x).mean(-1, keepdims=True)
    return x / (mean_square + eps).sqrt() * gamma


@accepts_arrays
def rotary(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Rotate the pair of numbers (x_i, x_{i + d/2}) of position t by the angle φ_{t,i}."""
    half = x.shape[-1] // 2
    x1 = x[..., :half]
    x2 = x[..., half:]
    return concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


@accepts_arrays
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = silu(g) u, silu(g) = g σ(g)."""
    return gate * gate.sigmoid() * up


@accepts_arrays
def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = GELU(g) u."""
    return gelu(gate) * up


@accepts_arrays
def gelu(x: Tensor) -> Tensor:
    """y = x Φ(x), Φ(x) ≈ (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³): GPT-2's form."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)
    return x * (1 + u.tanh()) * 0.5


@accepts_arrays
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """p = eˣ / Σ eˣ; subtracting the maximum first changes nothing and prevents overflow."""
    e = (x - x.data.max(axis, keepdims=True)).exp()
    return e / e.sum(axis, keepdims=True)


@accepts_arrays
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """y = x − log Σ eˣ."""
    x = x - x.data.max(axis, keepdims=True)
    return x - x.exp().sum(axis, keepdims=True).log()


@accepts_arrays
def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True,
              drop: Array | None = None) -> Tensor:
    """O = P V, P = softmax(Q Kᵀ/√d): query i sees the keys up to i + S − T.

    q (…, T, d), k and v (…, S, d) → (…, T, d). drop: dropout's mask for P, (…, T, S).
    """
    T, d = q.shape[-2:]
    S = k.shape[-2]
    batch = range(k.ndim - 2)
    scores = q @ k.transpose(*batch, -1, -2) / math.sqrt(d)                # (…, T, S)
    if causal:
        scores = scores + np.where(_hidden(T, S), -1e30, 0)
    P = softmax(scores)
    if drop is not None:
        P = P * drop
    return P @ v


def _hidden(T, S):
    """Return where (T, S) query i may not see key j: it sees the keys up to i + S − T."""
    return np.arange(S) > np.arange(T)[:, None] + S - T


@accepts_arrays
def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """`attention` whose backward pass computes P again, so that nothing of its size is kept.

    P has T S numbers for each head: for a long text it is most of what a step holds. Its gradient
    needs P, but not a stored one. P = exp(Q Kᵀ/√d − L) with one number for each query,
    L = log Σ exp(Q Kᵀ/√d). So the forward pass keeps Q, K, V and L, which grow with T and not with
    T², and the backward pass pays for one product, Q Kᵀ, and its exponential a second time:

        dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ⊙ (dP − rowsum(P ⊙ dP)),   dQ = dS K/√d,   dK = dSᵀ Q/√d

    This is the arithmetic of FlashAttention (Dao et al., arXiv 2205.14135), and L is that of its
    second version (arXiv 2307.08691). There P is never whole either. It comes in tiles that fit in
    a processor's fastest memory. A row of O is summed up tile by tile with the largest score m so
    far: when a tile has a larger one, m′, the sums of before are multiplied by exp(m − m′).
    """
    d = q.shape[-1]
    hidden = causal and _hidden(q.shape[-2], k.shape[-2])
    Q, K, V = q.data / math.sqrt(d), k.data, v.data

    def scores():
        return np.where(hidden, -1e30, Q @ K.swapaxes(-1, -2))             # (…, T, S)
    S = scores()
    largest = S.max(-1, keepdims=True)
    L = largest + np.log(np.exp(S - largest).sum(-1, keepdims=True))       # (…, T, 1)
    O = np.exp(S - L) @ V

    def vjp(dO):
        P = np.exp(scores() - L)                                           # S is gone
        dV = P.swapaxes(-1, -2) @ dO
        dP = dO @ V.swapaxes(-1, -2)
        dS = P * (dP - (P * dP).sum(-1, keepdims=True))
        return dS @ K / math.sqrt(d), dS.swapaxes(-1, -2) @ Q, dV
    return Tensor.fused(O, (q, k, v), vjp)


@accepts_arrays
def grouped_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Attention in which H/G consecutive heads of q (…, H, T, d) share one of k, v (…, G, S, d)."""
    H, G = q.shape[-3], k.shape[-3]
    shared = np.arange(H) // (H // G)                                      # query head → key head
    return attention(q, k[..., shared, :, :], v[..., shared, :, :], causal)


@accepts_arrays
def cross_entropy(logits: Tensor, targets: Array, ignore_index: int = -100,
                  label_smoothing: float = 0.0) -> Tensor:
    """Mean of −log softmax(logits)[target] over the positions that count, in nats."""
    y = log_softmax(logits.reshape(-1, logits.shape[-1]))
    t = np.reshape(targets, -1)
    rows = np.flatnonzero(t != ignore_index)
    hit = y[rows, t[rows]]
    spread = y[rows].mean(-1)
    return -((1 - label_smoothing) * hit + label_smoothing * spread).mean()


@accepts_arrays
def linear_cross_entropy(x: Tensor, W: Tensor, targets: Array,
                         ignore_index: int = -100) -> Tensor:
    """The loss of logits x Wᵀ."""
    return cross_entropy(linear(x, W), targets, ignore_index)


@accepts_arrays
def embedding(ids: Array, E: Tensor) -> Tensor:
    """y = E[ids]: rows of a table."""
    return E[np.asarray(ids)]


def adamw(w: Array, g: Array, m: Array, v: Array, t: int,
          lr: float, beta1: float, beta2: float, eps: float,
          decay: float) -> tuple[Array, Array, Array]:
    """Take step t = 1, 2, … of AdamW with the gradient g; return the new w, m and v.

    It is Algorithm 2 of arXiv 1711.05101 for one parameter; m and v start as zeros.
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g ** 2
    m_hat = m / (1 - beta1 ** t)
    v_hat = v / (1 - beta2 ** t)
    w = w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v
