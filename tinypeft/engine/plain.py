"""A transformer's operations as one reads them: compositions of the primitives of `tensor.py`.

Each function computes the same value as its fused twin in `functional.py`; the engine derives its
gradient by the chain rule. The tests compare the two. Read this file first.
"""
import math

import numpy as np

from ..common.hints import Array
from .tensor import Tensor, concatenate

__all__ = ["attention", "cross_entropy", "embedding", "geglu", "gelu", "grouped_attention",
           "layer_norm", "linear", "log_softmax", "rms_norm", "rotary", "softmax", "swiglu"]


def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b."""
    return x @ W.T if b is None else x @ W.T + b


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """y = γ (x − mean) / √(var + ε) + β, over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    var = (centred * centred).mean(-1, keepdims=True)
    return centred / (var + eps).sqrt() * gamma + beta


def rms_norm(x: Tensor, gamma: Tensor, eps: float = 1e-6) -> Tensor:
    """y = γ x / √(mean x² + ε), over the last axis."""
    return x / ((x * x).mean(-1, keepdims=True) + eps).sqrt() * gamma


def rotary(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Rotate the pair of numbers (x_i, x_{i + d/2}) of position t by the angle φ_{t,i}."""
    d = x.shape[-1]
    x1, x2 = x[..., :d // 2], x[..., d // 2:]
    return concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = silu(g) u, silu(g) = g σ(g)."""
    return gate * gate.sigmoid() * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = GELU(g) u."""
    return gelu(gate) * up


def gelu(x: Tensor) -> Tensor:
    """y = x Φ(x), Φ(x) ≈ (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³): GPT-2's form."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)
    return x * (1 + u.tanh()) * 0.5


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """p = eˣ / Σ eˣ; subtracting the maximum first changes nothing and prevents overflow."""
    e = (x - x.data.max(axis, keepdims=True)).exp()
    return e / e.sum(axis, keepdims=True)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """y = x − log Σ eˣ."""
    x = x - x.data.max(axis, keepdims=True)
    return x - x.exp().sum(axis, keepdims=True).log()


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True,
              drop: Array | None = None) -> Tensor:
    """O = P V, P = softmax(Q Kᵀ/√d): query i sees the keys up to i + S − T.

    q (…, T, d), k and v (…, S, d) → (…, T, d). drop: dropout's mask for P, (…, T, S).
    """
    (T, d), S = q.shape[-2:], k.shape[-2]
    scores = q @ k.transpose(*range(k.ndim - 2), -1, -2) / math.sqrt(d)            # (…, T, S)
    if causal: scores = scores + np.triu(np.full((T, S), -1e30), 1 + S - T)
    P = softmax(scores)
    return (P if drop is None else P * drop) @ v


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Attention in which H/G consecutive heads of q (…, H, T, d) share one of k, v (…, G, S, d)."""
    shared = np.arange(q.shape[-3]) // (q.shape[-3] // k.shape[-3])        # query head → key head
    return attention(q, k[..., shared, :, :], v[..., shared, :, :], causal)


def cross_entropy(logits: Tensor, targets: Array, ignore_index: int = -100,
                  label_smoothing: float = 0.0) -> Tensor:
    """Mean of −log softmax(logits)[target] over the positions that count, in nats."""
    y, t = log_softmax(logits.reshape(-1, logits.shape[-1])), np.reshape(targets, -1)
    rows = np.flatnonzero(t != ignore_index)
    hit, spread = y[rows, t[rows]], y[rows].mean(-1)
    return -((1 - label_smoothing) * hit + label_smoothing * spread).mean()


def embedding(ids: Array, E: Tensor) -> Tensor:
    """y = E[ids]: rows of a table."""
    return E[np.asarray(ids)]
