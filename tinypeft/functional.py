"""The fused operations of a transformer, each with its backward beside it.

Each could be composed from the primitives of `tensor.py` (the tests do so and compare); written out
as one operation it is the field's own vocabulary, saves memory, and is several times faster.
Notation: `dx` is ∂L/∂x, the gradient of the loss with respect to `x`; weights are (d_out, d_in).
Shapes: B batch, T tokens, S keys (S − T of them from a prefix or cache), H heads, V vocabulary.
"""
import math

import numpy as np

from .tensor import Tensor

__all__ = ["IGNORED", "attention", "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "linear",
           "log_softmax", "softmax"]

IGNORED = -100        # the target of a position that does not count; PyTorch's number


def _blocks(n, width, budget=1 << 18):
    """Slices of n rows, `budget` numbers each: what is worked on at a time then stays in a core's cache."""
    step = max(1, budget // max(1, width))
    return [slice(i, i + step) for i in range(0, n, step)]


def _ids(ids, n, what):
    """`ids` as an integer array, every one of them in [0, n)."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, got an array of {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        bad = ids[(ids < 0) | (ids >= n)][0]
        raise ValueError(f"{what} must lie in [0, {n}), got {bad}")
    return ids


def linear(x, W, b=None):
    """y = x Wᵀ + b.    dx = dy W,   dW = dyᵀ x,   db = Σ dy.

    x (…, d_in), W (d_out, d_in), b (d_out,) or None → (…, d_out).
    """
    if x.ndim < 1 or W.ndim != 2 or x.shape[-1] != W.shape[1] or b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"linear: x {x.shape}, W {W.shape}, b {None if b is None else b.shape}; "
                         "expected x (…, d_in), W (d_out, d_in), b (d_out,)")
    X, Wd = x.data.reshape(-1, x.shape[-1]), W.data      # one large two-dimensional product beats many small ones
    Y = X @ Wd.T
    if b is not None: Y += b.data
    parents = (x, W) if b is None else (x, W, b)
    n, shape = len(parents), x.shape
    need = [t is not None and t.requires_grad for t in (x, W, b)]
    if not need[1]: X = None                             # only dW needs it: a frozen W frees the input

    def vjp(dy):
        dY = dy.reshape(-1, dy.shape[-1])                # (B·T, d_out)
        dx = (dY @ Wd).reshape(shape) if need[0] else None
        dW = dY.T @ X                 if need[1] else None
        db = dY.sum(0)                if need[2] else None
        return (dx, dW, db)[:n]
    return Tensor.fused(Y.reshape(*shape[:-1], len(Wd)), parents, vjp)


def layer_norm(x, gamma, beta, eps=1e-5):
    """y = γ x̂ + β,   x̂ = (x − mean) / √(var + ε), over the last axis.

    dx = (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) / √(var + ε),   dx̂ = γ dy;   dγ = Σ dy x̂;   dβ = Σ dy.
    """
    if not gamma.shape == beta.shape == x.shape[-1:] != ():
        raise ValueError(f"layer_norm: x {x.shape}, gamma {gamma.shape}, beta {beta.shape}; "
                         "expected (…, d), (d,), (d,)")
    d = x.shape[-1]
    xhat = x.data - x.data.mean(-1, keepdims=True)
    r = 1 / np.sqrt(np.einsum("...i,...i->...", xhat, xhat)[..., None] / d + eps)    # 1/σ  (…, 1)
    xhat *= r
    g = gamma.data
    y = xhat * g
    y += beta.data
    need = [t.requires_grad for t in (x, gamma, beta)]

    def vjp(dy):
        dx = dgamma = dbeta = None
        flat = lambda a: a.reshape(-1, d)
        if need[2]: dbeta = flat(dy).sum(0)
        if need[1]: dgamma = np.einsum("ij,ij->j", flat(dy), flat(xhat))
        if need[0]:
            dx = dy * g                                  # dx̂, then dx in place
            m = np.einsum("...i,...i->...", dx, xhat)[..., None] / d
            dx -= dx.mean(-1, keepdims=True)
            dx -= np.multiply(xhat, m, out=xhat)
            dx *= r
        return dx, dgamma, dbeta
    return Tensor.fused(y, (x, gamma, beta), vjp)


def gelu(x, approximate="tanh"):
    """y = x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel, arXiv 1606.08415).

    `approximate="tanh"`, GPT-2's: Φ(x) ≈ (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³);
    `approximate="none"`: Φ(x) = (1 + erf(x/√2))/2.
    The forward pass leaves the derivative y′ instead of x: one array kept, and dx = dy y′.
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f"gelu: approximate must be 'tanh' or 'none', got {approximate!r}")
    y = np.empty_like(x.data, order="C")
    slope = np.empty_like(y) if x.requires_grad else None
    X, Y = np.ascontiguousarray(x.data).reshape(-1), y.reshape(-1)
    c, a = math.sqrt(2 / math.pi), 0.044715
    for s in _blocks(X.size, 1):
        z = X[s]
        if approximate == "tanh":
            z2 = z * z
            phi = z2 * (c * a); phi += c; phi *= z       # u
            np.tanh(phi, out=phi); phi += 1; phi *= 0.5  # Φ = (1 + tanh u)/2
            np.multiply(z, phi, out=Y[s])
            if slope is not None:                        # y′ = Φ + x Φ′,   Φ′ = 2 Φ (1 − Φ) u′
                z2 *= 6 * c * a; z2 += 2 * c; z2 *= Y[s] # x Φ · 2u′
                z2 -= z2 * phi; z2 += phi
                slope.reshape(-1)[s] = z2
        else:
            from scipy.special import erf
            phi = erf(z * math.sqrt(0.5)); phi += 1; phi *= 0.5
            np.multiply(z, phi, out=Y[s])
            if slope is not None:                        # Φ′(x) = e^(−x²/2)/√(2π)
                slope.reshape(-1)[s] = phi + z * np.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return Tensor.op(y, (x, lambda dy: np.multiply(slope, dy, out=slope)))


def _softmax(x, axis):
    """softmax of an array, computed in place."""
    x -= x.max(axis, keepdims=True, initial=-math.inf)   # an empty axis has a softmax, too: nothing
    np.exp(x, out=x)
    x /= x.sum(axis, keepdims=True)
    return x


def softmax(x, axis=-1):
    """p = eˣ / Σ eˣ.    dx = p (dp − Σ p dp)."""
    p = _softmax(x.data.copy(), axis)

    def dx(dp):
        dx = p * dp
        dx -= p * dx.sum(axis, keepdims=True)
        return dx
    return Tensor.op(p, (x, dx))


def log_softmax(x, axis=-1):
    """y = x − log Σ eˣ.    dx = dy − eʸ Σ dy."""
    y = x.data - x.data.max(axis, keepdims=True, initial=-math.inf)
    y -= np.log(np.exp(y).sum(axis, keepdims=True))
    return Tensor.op(y, (x, lambda dy: dy - np.exp(y) * dy.sum(axis, keepdims=True)))


def attention(q, k, v, causal=True, dropout=0.0, rng=None):
    """Scaled dot-product attention: O = P V,   P = softmax(Q Kᵀ / √d_head).

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ⊙ (dP − rowsum(P ⊙ dP)),   dQ = dS K/√d,   dK = dSᵀ Q/√d.

    q (…, T, d_head), k and v (…, S, d_head) → (…, T, d_head). With `causal`, query i sees the keys
    up to i + S − T: the first S − T keys (a prefix, or a cache of past tokens) are seen by all.
    `dropout` drops entries of P and divides the others by 1 − dropout; it needs an `rng`.
    Queries go in blocks of 64 rows. A block's scores against the keys after its last query, which the mask would
    hide, are never computed; several heads are done at a time, as many as stay in cache.
    """
    if min(q.ndim, k.ndim) < 2 or q.shape[:-2] != k.shape[:-2] or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape}; "
                         "expected (…, T, d_head), (…, S, d_head), (…, S, d_head)")
    (T, d), S = q.shape[-2:], k.shape[-2]
    if causal and S < T:
        raise ValueError(f"attention: {T} queries but only {S} keys; a causal query needs its own key")
    if dropout: rng = _generator(rng, dropout)
    scale = 1 / math.sqrt(d)
    Q, K, V = (t.data.reshape(-1, *t.shape[-2:]) for t in (q, k, v))             # (B·H, T or S, d_head)
    need, shapes = [t.requires_grad for t in (q, k, v)], [t.shape for t in (q, k, v)]
    hidden = np.triu(np.full((64, 64), -np.inf, Q.dtype), 1)
    O, kept = np.empty(Q.shape, Q.dtype), []
    for a in range(0, T, 64):
        b = min(a + 64, T)
        seen = S - T + b if causal else S                                        # keys that queries a … b see
        P = np.empty((len(Q), b - a, seen), Q.dtype)
        drop = _keep_mask(P.shape, dropout, rng, P.dtype) if dropout else None
        for h in _blocks(len(Q), (b - a) * seen):
            p = np.matmul(Q[h, a:b] * scale, K[h, :seen].swapaxes(1, 2), out=P[h])
            if causal: p[..., seen - (b - a):] += hidden[:b - a, :b - a]
            _softmax(p, -1)
            np.matmul(p if drop is None else p * drop[h], V[h, :seen], out=O[h, a:b])
        if any(need): kept.append((a, b, seen, P, drop))

    def vjp(do):
        dO = do.reshape(O.shape)
        dQ, dK, dV = (np.zeros_like(A) if n else None for A, n in zip((Q, K, V), need, strict=True))
        for a, b, seen, P, drop in kept:
            for h in _blocks(len(Q), (b - a) * seen):
                p, do = P[h], dO[h, a:b]
                if dV is not None:
                    dV[h, :seen] += (p if drop is None else p * drop[h]).swapaxes(1, 2) @ do
                if dQ is None and dK is None: continue
                dS = do @ V[h, :seen].swapaxes(1, 2)                             # dP, then dS in place
                if drop is not None: dS *= drop[h]
                dS -= np.einsum("hij,hij->hi", p, dS)[..., None]
                dS *= p
                dS *= scale
                if dQ is not None: np.matmul(dS, K[h, :seen], out=dQ[h, a:b])
                if dK is not None: dK[h, :seen] += dS.swapaxes(1, 2) @ Q[h, a:b]
        return [g if g is None else g.reshape(s) for g, s in zip((dQ, dK, dV), shapes, strict=True)]
    return Tensor.fused(O.reshape(shapes[0]), (q, k, v), vjp)


def cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=0.0):
    """Mean of −log softmax(logits)[target], in nats; a single number.

    dlogits = (softmax(logits) − onehot(target)) / n.

    logits (…, V), targets (…) integers in [0, V); positions whose target is `ignore_index` do not
    count. `label_smoothing` ε aims at (1 − ε) onehot + ε/V instead, as PyTorch does.
    Raises ValueError when no position counts.
    """
    targets = np.asarray(targets)
    if logits.ndim < 1 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"cross_entropy: logits {logits.shape}, targets {targets.shape}; expected (…, V) and (…)")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: targets must be integers, got an array of {targets.dtype}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie in [0, 1), got {label_smoothing}")
    t = targets.reshape(-1)
    counted = t != ignore_index
    n = int(counted.sum())
    if n == 0:
        raise ValueError("cross_entropy: no target counts (empty batch, or all of them are ignore_index)")
    V, shape, eps = logits.shape[-1], logits.shape, label_smoothing
    _ids(t[counted], V, "cross_entropy: targets")
    t = np.where(counted, t, 0)

    Z = logits.data.reshape(-1, V)
    P = np.empty_like(Z) if logits.requires_grad else None
    total = 0.0
    for s in _blocks(len(Z), V):
        z = np.subtract(Z[s], Z[s].max(-1, keepdims=True), out=None if P is None else P[s])
        rows = np.arange(len(z))
        aim = (1 - eps) * z[rows, t[s]] + eps * z.mean(-1) if eps else z[rows, t[s]]
        np.exp(z, out=z)
        sums = z.sum(-1, keepdims=True)
        total += np.dot(np.log(sums[:, 0]) - aim, counted[s])
        if P is not None: z /= sums                      # P = softmax(Z)

    def dlogits(dy):
        w = np.where(counted, dy / n, 0).astype(P.dtype)
        for s in _blocks(len(P), V):
            p = P[s]
            if eps: p -= eps / V
            p[np.arange(len(p)), t[s]] -= 1 - eps
            p *= w[s, None]
        return P.reshape(shape)
    return Tensor.op(np.asarray(total / n, dtype=Z.dtype), (logits, dlogits))


def embedding(ids, E):
    """Rows of a table: y = E[ids].    dE[i] = Σ dy over the places where ids = i.

    ids integers (…) in [0, n), E (n, d) → (…, d). The gradient sorts the places by id and sums
    each run: the same sum as numpy.add.at, an order of magnitude faster.
    """
    ids, shape = _ids(ids, E.shape[0], "token ids"), E.shape

    def dE(dy):
        out = np.zeros(shape, dy.dtype)
        if ids.size:
            flat = ids.reshape(-1)
            order = np.argsort(flat, kind="stable")
            unique, first = np.unique(flat[order], return_index=True)
            out[unique] = np.add.reduceat(dy.reshape(-1, shape[1])[order], first, axis=0)
        return out
    return Tensor.op(E.data[ids], (E, dE))


def _generator(rng, p):
    """The Generator that dropout with probability p draws from."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: the probability must lie in [0, 1), got {p}")
    if rng is None:
        raise ValueError("dropout draws: it needs an rng, a seed or a numpy.random.Generator")
    return np.random.default_rng(rng)


def _keep_mask(shape, p, rng, dtype):
    """0 with probability p, else 1/(1 − p)."""
    keep = (rng.random(shape, dtype=np.float32) >= p).astype(dtype)
    keep *= 1 / (1 - p)
    return keep


def dropout(x, p, rng=None):
    """Each number becomes 0 with probability p, and is divided by 1 − p otherwise.    dx = mask dy."""
    if p == 0: return x
    mask = _keep_mask(x.shape, p, _generator(rng, p), x.dtype)
    return Tensor.op(x.data * mask, (x, lambda dy: np.multiply(mask, dy, out=mask)))
