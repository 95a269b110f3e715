"""The fused operations of a transformer, each with its backward beside it.

`plain.py` has the same operations composed from primitives: read them there first. Here each is one
operation with a backward written by hand, which saves memory and is several times faster. GELU,
cross-entropy and attention work on slices whose temporary arrays stay in a core's cache.
Notation: `dx` is ∂L/∂x, the gradient of the loss L with respect to x; weights are (d_out, d_in).
Shapes: B batch, T tokens, S keys (S − T of them from a prefix or cache), H heads, V vocabulary.
"""
import functools
import math

import numpy as np

from .hints import Array, Seed
from .tensor import Tensor, gated

__all__ = ["IGNORED", "attention", "cross_entropy", "dropout", "embedding", "gelu", "layer_norm",
           "linear", "log_softmax", "softmax"]

IGNORED = -100        # the target of a position that does not count; PyTorch's number


def _slices(n, width, budget=1 << 16):
    """Cut n rows of `width` numbers into slices of about `budget` numbers."""
    step = max(1, budget // max(1, width))
    return [slice(i, i + step) for i in range(0, n, step)]


def _rows(a):
    """(…, d) → (N, d): one large two-dimensional product beats many small ones."""
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])  # −1 would fail where d = 0


def _ids(ids, n, what):
    """`ids` as an integer array, each in [0, n)."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, got an array of {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        bad = ids[(ids < 0) | (ids >= n)][0]
        raise ValueError(f"{what} must lie in [0, {n}), got {bad}")
    return ids


def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b.    dx = dy W,   dW = dyᵀ x,   db = Σ dy.

    x (…, d_in), W (d_out, d_in), b (d_out,) or None → (…, d_out).
    """
    if W.ndim != 2 or x.shape[-1:] != W.shape[1:] or b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"linear: x {x.shape}, W {W.shape}, b {None if b is None else b.shape}; "
                         "expected x (…, d_in), W (d_out, d_in), b (d_out,)")
    X, M, shape = _rows(x.data), W.data, x.shape
    Y = X @ M.T
    if b is not None: Y += b.data
    return Tensor.op(Y.reshape(*shape[:-1], len(M)),
                     (x, lambda dy: (_rows(dy) @ M).reshape(shape)),
                     (W, lambda dy: _rows(dy).T @ X),        # a frozen W drops this, and X with it
                     (b, lambda dy: _rows(dy).sum(0)))


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """y = γ x̂ + β,   x̂ = (x − mean) / √(var + ε), over the last axis.

    dx = (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) / √(var + ε),  dx̂ = γ dy;   dγ = Σ dy x̂;   dβ = Σ dy.
    """
    if not gamma.shape == beta.shape == x.shape[-1:] != ():
        raise ValueError(f"layer_norm: x {x.shape}, gamma {gamma.shape}, beta {beta.shape}; "
                         "expected (…, d), (d,), (d,)")
    d = max(1, x.shape[-1])
    mean = lambda a: a.sum(-1, keepdims=True) / d
    mean_product = lambda a, b: np.einsum("...i,...i->...", a, b)[..., None] / d
    xhat, g = x.data - mean(x.data), gamma.data
    r = 1 / np.sqrt(mean_product(xhat, xhat) + eps)          # 1/σ  (…, 1)
    if r.all(): xhat *= r
    else:                                                    # var is infinite: scale by s before
        s = np.where(r == 0, np.abs(xhat).max(-1, keepdims=True), 1)
        xhat /= s
        r = 1 / np.sqrt(mean_product(xhat, xhat) + eps / s / s)
        xhat *= r
        r /= s
    y = xhat * g
    y += beta.data

    def dx(dy):
        dx = dy * g                                          # dx̂, then dx in place
        m = mean_product(dx, xhat)
        dx -= mean(dx)
        dx -= np.multiply(xhat, m, out=xhat)                 # x̂ is used up: this edge runs last
        dx *= r
        return dx
    return Tensor.op(y, (gamma, lambda dy: np.einsum("ij,ij->j", _rows(dy), _rows(xhat))),
                     (beta, lambda dy: _rows(dy).sum(0)), (x, dx))


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """y = x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel, arXiv 1606.08415).

    approximate="tanh", as GPT-2: Φ(x) ≈ (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³);
    approximate="none": Φ(x) = (1 + erf(x/√2))/2.
    The forward pass keeps the slope y′ = Φ + x Φ′ in place of x, and dx = dy y′.
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f"gelu: approximate must be 'tanh' or 'none', got {approximate!r}")
    y = np.empty(x.shape, x.dtype)
    slope = np.empty_like(y) if x.requires_grad else None
    X, Y = np.ascontiguousarray(x.data).reshape(-1), y.reshape(-1)
    for s in _slices(X.size, 1):
        phi = _phi(X[s], approximate)
        Y[s] = X[s] * phi
        if slope is not None: slope.reshape(-1)[s] = _x_dphi(X[s], phi, approximate) + phi
    return Tensor.op(y, (x, lambda dy: np.multiply(slope, dy, out=slope)))


C, A = math.sqrt(2 / math.pi), 0.044715                      # tanh: u = C (x + A x³)


def _phi(x, approximate):
    if approximate == "tanh": return (np.tanh((x * x * (C * A) + C) * x) + 1) * 0.5
    from scipy.special import erf
    return (erf(x * math.sqrt(0.5)) + 1) * 0.5


def _x_dphi(x, phi, approximate):
    """x Φ′: for tanh x Φ · 2 u′ · (1 − Φ), otherwise x e^(−x²/2) / √(2π)."""
    x = np.clip(x, -50, 50)                                  # further out Φ′ = 0, and x³ overflows
    if approximate == "none": return x * np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    t = (x * x * (6 * C * A) + 2 * C) * (x * phi)
    return t - t * phi


def _softmax(x, axis):
    """The softmax of an array, computed in place. An empty axis has the empty softmax."""
    x -= x.max(axis, keepdims=True, initial=-math.inf)
    np.exp(x, out=x)
    x /= x.sum(axis, keepdims=True)
    return x


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """p = eˣ / Σ eˣ.    dx = p (dp − Σ p dp)."""
    p = _softmax(x.data.copy(), axis)

    def dx(dp):
        dx = p * dp
        dx -= p * dx.sum(axis, keepdims=True)
        return dx
    return Tensor.op(p, (x, dx))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """y = x − log Σ eˣ.    dx = dy − eʸ Σ dy."""
    y = x.data - x.data.max(axis, keepdims=True, initial=-math.inf)
    if y.size: y -= np.log(np.exp(y).sum(axis, keepdims=True))
    return Tensor.op(y, (x, lambda dy: dy - np.exp(y) * dy.sum(axis, keepdims=True)))


@functools.cache
def _largest_scores(dtype):
    """∞ for the keys that a query sees and −∞ for those after it, (64 queries, 64 keys)."""
    return np.where(np.tri(64, dtype=bool), np.inf, -np.inf).astype(dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: float = 0.0,
              rng: Seed | None = None) -> Tensor:
    """Scaled dot-product attention: O = P V,   P = softmax(Q Kᵀ / √d).

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ⊙ (dP − rowsum(P ⊙ dP)),   dQ = dS K/√d,   dK = dSᵀ Q/√d.

    q (…, T, d), k and v (…, S, d) → (…, T, d), d being a head's width. With `causal`, query i sees
    the keys up to i + S − T: all see the first S − T keys (a prefix, or a cache of past tokens).
    `dropout` is the probability that an entry of P is dropped; it needs an `rng`. A block of 64
    queries skips the keys that all its rows are hidden from. Heads go in groups that fit in cache.
    """
    outer = lambda t: (t.shape[:-2], t.shape[-1:])
    if min(q.ndim, k.ndim) < 2 or k.shape != v.shape or outer(q) != outer(k):
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape}; "
                         "expected (…, T, d), (…, S, d), (…, S, d)")
    (T, d), S = q.shape[-2:], k.shape[-2]
    if causal and S < T:
        raise ValueError(f"attention: {T} queries but only {S} keys; causal attention needs S ≥ T")
    if dropout and rng is not None: rng = np.random.default_rng(rng)         # one for all blocks
    scale = 1 / math.sqrt(max(1, d))
    heads = math.prod(q.shape[:-2])
    Q, K, V = (t.data.reshape(heads, *t.shape[-2:]) for t in (q, k, v))      # (B·H, T or S, d)
    trained, shapes = [t.requires_grad for t in (q, k, v)], [t.shape for t in (q, k, v)]
    transposed = lambda a: a.swapaxes(1, 2)
    groups = lambda t, seen: _slices(len(Q), (t.stop - t.start) * seen, 1 << 18)
    most = _largest_scores(Q.dtype) if causal else None
    O, blocks = np.empty(Q.shape, Q.dtype), []
    for t in (slice(a, min(a + 64, T)) for a in range(0, T, 64)):
        n, seen = t.stop - t.start, S - T + t.stop if causal else S          # queries, keys
        P = np.empty((len(Q), n, seen), Q.dtype)
        drop = _keep_mask(P.shape, dropout, rng, P.dtype) if dropout else None
        for h in groups(t, seen):
            p = np.matmul(Q[h, t] * scale, transposed(K[h, :seen]), out=P[h])
            if causal: np.fmin(p[..., seen - n:], most[:n, :n], out=p[..., seen - n:])
            _softmax(p, -1)
            np.matmul(p if drop is None else p * drop[h], V[h, :seen], out=O[h, t])
        if any(trained): blocks.append((t, seen, P, drop))

    def vjp(do):
        dO = do.reshape(O.shape)
        dQ, dK, dV = (np.zeros_like(A) for A in (Q, K, V))
        for t, seen, P, drop in blocks:
            for h in groups(t, seen):
                p, do = P[h], dO[h, t]
                if trained[2]: dV[h, :seen] += transposed(p if drop is None else p * drop[h]) @ do
                if not (trained[0] or trained[1]): continue
                dS = do @ transposed(V[h, :seen])                             # dP, then dS in place
                if drop is not None: dS *= drop[h]
                dS -= np.einsum("hij,hij->hi", p, dS)[..., None]
                dS *= p
                dS *= scale
                if trained[0]: np.matmul(dS, K[h, :seen], out=dQ[h, t])
                if trained[1]: dK[h, :seen] += transposed(dS) @ Q[h, t]
        return [g.reshape(s) for g, s in zip((dQ, dK, dV), shapes, strict=True)]
    return Tensor.fused(O.reshape(shapes[0]), (q, k, v), vjp)


def cross_entropy(logits: Tensor, targets: Array, ignore_index: int = IGNORED,
                  label_smoothing: float = 0.0) -> Tensor:
    """Mean of −log softmax(logits)[target], in nats.    dlogits = (softmax(logits) − onehot) / n.

    logits (…, V), targets (…) integers in [0, V) → a single number. The n positions whose target is
    not `ignore_index` count; ValueError when none does. With `label_smoothing` ε the aim is
    (1 − ε) onehot + ε/V in place of onehot, as in PyTorch.
    """
    targets = np.asarray(targets)
    if logits.ndim < 1 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"cross_entropy: logits {logits.shape}, targets {targets.shape}; "
                         "expected (…, V) and (…)")
    V, shape, eps = logits.shape[-1], logits.shape, label_smoothing
    if not 0 <= eps < 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie in [0, 1), got {eps}")
    t = targets.reshape(-1)
    counted = t != ignore_index
    n = int(counted.sum())
    _ids(t[counted], V, "cross_entropy: targets")
    if n == 0:
        raise ValueError("cross_entropy: no target counts; all are ignore_index, or the batch is "
                         "empty")
    t = np.where(counted, t, 0)
    Z = logits.data.reshape(-1, V)
    P = np.empty_like(Z) if logits.requires_grad else None
    total = 0.0
    for s in _slices(len(Z), V, 1 << 18):
        z = np.subtract(Z[s], Z[s].max(-1, keepdims=True), out=None if P is None else P[s])
        rows = np.arange(len(z))
        aim = (1 - eps) * z[rows, t[s]] + eps * z.mean(-1) if eps else z[rows, t[s]]
        np.exp(z, out=z)
        sums = z.sum(-1, keepdims=True)
        total += np.dot(np.where(counted[s], np.log(sums[:, 0]) - aim, 0), counted[s])
        if P is not None: z /= sums                      # P = softmax(Z)

    def dlogits(dy):
        w = np.where(counted, dy / n, 0).astype(P.dtype)
        for s in _slices(len(P), V, 1 << 18):
            p = P[s]
            if eps: p -= eps / V
            p[np.arange(len(p)), t[s]] -= 1 - eps
            p *= w[s, None]
            if n < len(t): p[~counted[s]] = 0            # not 0·∞, if a row's logits are infinite
        return P.reshape(shape)
    return Tensor.op(np.asarray(total / n, dtype=Z.dtype), (logits, dlogits))


def embedding(ids: Array, E: Tensor) -> Tensor:
    """Rows of a table: y = E[ids].    dE[i] = Σ dy over the places where ids = i.

    ids integers (…) in [0, n), E (n, d) → (…, d). The gradient sorts the places by id and sums each
    run: that is numpy.add.at, an order of magnitude faster.
    """
    ids, shape = _ids(ids, E.shape[0], "token ids"), E.shape

    def dE(dy):
        out, flat = np.zeros(shape, dy.dtype), ids.reshape(-1)
        if ids.size:
            order = np.argsort(flat, kind="stable")
            unique, first = np.unique(flat[order], return_index=True)
            out[unique] = np.add.reduceat(_rows(dy)[order], first, axis=0)
        return out
    return Tensor.op(E.data[ids], (E, dE))


def _keep_mask(shape, p, rng, dtype):
    """0 with probability p, else 1/(1 − p)."""
    if not 0 <= p < 1: raise ValueError(f"dropout: the probability must lie in [0, 1), got {p}")
    if rng is None:
        raise ValueError("dropout draws random numbers: give rng, a seed or a Generator")
    keep = (np.random.default_rng(rng).random(shape, dtype=np.float32) >= p).astype(dtype)
    keep *= 1 / (1 - p)
    return keep


def dropout(x: Tensor, p: float, rng: Seed | None = None) -> Tensor:
    """Set each number to 0 with probability p and divide the others by 1 − p.    dx = mask dy."""
    if p == 0: return x
    mask = _keep_mask(x.shape, p, rng, x.dtype)
    return Tensor.op(x.data * mask, (x, lambda dy: gated(dy, mask)))
