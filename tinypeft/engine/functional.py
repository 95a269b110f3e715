"""The fused operations of a transformer, each with its backward beside it.

`plain.py` has the same operations composed from primitives: read them there first. Here each is one
operation with a backward written by hand, which saves memory and is several times faster. GELU,
cross-entropy and attention work on slices whose temporary arrays stay in a core's cache.
Notation: `dx` is ∂L/∂x, the gradient of the loss L with respect to x; weights are (d_out, d_in).
Shapes: B batch, T tokens, S keys (S − T of them from a prefix or cache), H heads, V vocabulary.
An array in place of a Tensor is a constant.
"""
import copy
import functools
import math

import numpy as np

from ..common.hints import Array, Seed
from ..common.threads import slices
from .tensor import RowGradient, Tensor, accepts_arrays, gated, recording

__all__ = ["IGNORED", "attention", "cross_entropy", "dropout", "embedding", "geglu", "gelu",
           "layer_norm", "linear", "linear_cross_entropy", "log_softmax", "rms_norm", "rotary",
           "softmax", "swiglu"]

IGNORED = -100        # the target of a position that does not count; PyTorch's number
LOGITS = 1 << 22      # about how many logits `linear_cross_entropy` holds


def _rows(a):
    """Flatten (…, d) to (N, d): one large two-dimensional product beats many small ones."""
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])  # −1 would fail where d = 0


def _flat(a):
    """Return a as a contiguous array of one axis."""
    return np.ascontiguousarray(a).reshape(-1)


def _column_sums(a):
    """Return Σ over the rows of a (N, d), as a product: BLAS adds twice as fast as `sum`."""
    return np.ones(len(a), a.dtype) @ a


def _row_sums(a):
    """Return Σ over the last axis of a (…, d), as a product: (…, 1)."""
    return (a @ np.ones(a.shape[-1], a.dtype))[..., None]


def _mean(a):
    """Return the mean of a (…, d) over the last axis: (…, 1)."""
    return _row_sums(a) / max(1, a.shape[-1])


def _mean_product(a, b):
    """Return the mean of a b over the last axis: (…, 1)."""
    return np.vecdot(a, b)[..., None] / max(1, a.shape[-1])


def _sum_product(a, b):
    """Return Σ a b over all axes but the last: (d,)."""
    return np.einsum("ij,ij->j", _rows(a), _rows(b))


def checked_ids(ids, n, name):
    """Return `ids` as an integer array. Raise TypeError or ValueError unless each is in [0, n)."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got an array of {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        outside = ids[(ids < 0) | (ids >= n)]
        raise ValueError(f"{name} must lie in [0, {n}), got {outside[0]}")
    return ids


FEW, LARGE = 32, 2**16                                       # rows of X, numbers of M


def _product(X, M):
    """Return X Mᵀ. For few rows of X and a large M, OpenBLAS takes 1.2 to 1.6 times as long as for
    (M Xᵀ)ᵀ, because it copies M first. Training keeps one form, so that its bits do not depend on
    the number of rows."""
    if 1 < len(X) <= FEW and M.size >= LARGE and not recording():
        return np.ascontiguousarray((M @ X.T).T)
    return X @ M.T


@accepts_arrays
def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b.    dx = dy W,   dW = dyᵀ x,   db = Σ dy.

    x (…, d_in), W (d_out, d_in), b (d_out,) or None → (…, d_out).
    """
    M = W.data
    shape = x.data.shape
    fits = M.ndim == 2 and shape[-1:] == M.shape[1:]
    if not fits or b is not None and b.shape != M.shape[:1]:
        raise ValueError(f"linear: x {x.shape}, W {W.shape}, b {None if b is None else b.shape}; "
                         "expected x (…, d_in), W (d_out, d_in), b (d_out,)")
    X = _rows(x.data)
    Y = _product(X, M)
    if b is not None:
        Y += b.data
    return Tensor.op(Y.reshape(*shape[:-1], len(M)),
                     (x, lambda dy: (_rows(dy) @ M).reshape(shape)),
                     (W, lambda dy: _rows(dy).T @ X),        # a frozen W drops this, and X with it
                     (b, lambda dy: _column_sums(_rows(dy))))


@accepts_arrays
def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """y = γ x̂ + β,   x̂ = (x − mean) / √(var + ε), over the last axis.

    dx = (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) / √(var + ε),  dx̂ = γ dy;   dγ = Σ dy x̂;   dβ = Σ dy.
    """
    if not gamma.shape == beta.shape == x.shape[-1:] != ():
        raise ValueError(f"layer_norm: x {x.shape}, gamma {gamma.shape}, beta {beta.shape}; "
                         "expected (…, d), (d,), (d,)")
    xhat = x.data - _mean(x.data)
    r = _normalize(xhat, eps)                                # 1/σ  (…, 1)
    g = gamma.data
    y = xhat * g
    y += beta.data

    def dx(dy):
        dx = dy * g                                          # dx̂, then dx in place
        m = _mean_product(dx, xhat)
        dx -= _mean(dx)
        dx -= np.multiply(xhat, m, out=xhat)                 # x̂ is used up: this edge runs last
        dx *= r
        return dx
    return Tensor.op(y,
                     (gamma, lambda dy: _sum_product(dy, xhat)),
                     (beta, lambda dy: _column_sums(_rows(dy))),
                     (x, dx))


@accepts_arrays
def rms_norm(x: Tensor, gamma: Tensor, eps: float = 1e-6) -> Tensor:
    """y = γ x̂,   x̂ = x / √(mean x² + ε), over the last axis (Zhang & Sennrich, arXiv 1910.07467).

    dx = (dx̂ − x̂ mean(dx̂ x̂)) / √(mean x² + ε),   dx̂ = γ dy;   dγ = Σ dy x̂.
    """
    if not gamma.shape == x.shape[-1:] != ():
        raise ValueError(f"rms_norm: x {x.shape}, gamma {gamma.shape}; expected (…, d), (d,)")
    xhat = x.data.copy()
    r = _normalize(xhat, eps)                                # 1/√(mean x² + ε)  (…, 1)
    g = gamma.data

    def dx(dy):
        dx = dy * g                                          # dx̂, then dx in place
        m = _mean_product(dx, xhat)
        dx -= np.multiply(xhat, m, out=xhat)                 # x̂ is used up: this edge runs last
        dx *= r
        return dx
    return Tensor.op(xhat * g, (gamma, lambda dy: _sum_product(dy, xhat)), (x, dx))


@np.errstate(over="ignore")
def _normalize(x, eps):
    """x ← x / √(mean x² + ε) in place, over the last axis; return 1 / √(mean x² + ε), (…, 1)."""
    r = 1 / np.sqrt(_mean_product(x, x) + eps)               # 0 where x² is infinite
    if r.all():
        x *= r
        return r
    s = np.where(r == 0, np.abs(x).max(-1, keepdims=True), 1)    # divide by s first
    x /= s
    r = 1 / np.sqrt(_mean_product(x, x) + eps / s / s)
    x *= r
    return r / s


@accepts_arrays
def rotary(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Rotate every pair (x_i, x_{i + d/2}) of position t by an angle φ_{t,i} (RoPE).

    y₁ = x₁ cos φ − x₂ sin φ,   y₂ = x₂ cos φ + x₁ sin φ      x₁, x₂: the two halves of x
    dx is dy, rotated by −φ.

    x (…, T, d), cos and sin (T, d/2) → (…, T, d). Su et al. (arXiv 2104.09864) pair neighbours,
    (x_{2i}, x_{2i+1}): the same function after the columns are put into another order.
    """
    T, d = x.shape[-2:]
    if d % 2 or not cos.shape == sin.shape == (T, d // 2):
        raise ValueError(f"rotary: x {x.shape}, cos {cos.shape}, sin {sin.shape}; "
                         "expected (…, T, d), (T, d/2), (T, d/2)")

    def rotated(x, sin):
        y = np.empty_like(x)
        x1, x2 = x[..., :d // 2], x[..., d // 2:]
        y1, y2 = y[..., :d // 2], y[..., d // 2:]
        np.multiply(x1, cos, out=y1)
        y1 -= x2 * sin
        np.multiply(x2, cos, out=y2)
        y2 += x1 * sin
        return y
    return Tensor.op(rotated(x.data, sin), (x, lambda dy: rotated(dy, -sin)))


@accepts_arrays
def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """y = x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel, arXiv 1606.08415).

    approximate="tanh", as GPT-2: Φ(x) ≈ (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³);
    approximate="none": Φ(x) = (1 + erf(x/√2))/2.
    The forward pass keeps the slope y′ = Φ + x Φ′ in place of x, and dx = dy y′.
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f"gelu: approximate must be 'tanh' or 'none', got {approximate!r}")
    curve = _tanh_gelu if approximate == "tanh" else _erf_gelu
    y = np.empty(x.shape, x.dtype)
    slope = np.empty_like(y) if x.requires_grad else None
    X = _flat(x.data)
    for s in slices(X.shape):
        curve(X[s], _part(y, s), _part(slope, s))
    return Tensor.op(y, (x, lambda dy: _into(slope, dy)))


@accepts_arrays
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = silu(g) u,   silu(g) = g σ(g)   (Shazeer, arXiv 2002.05202).

    du = dy silu(g),   dg = dy u silu′(g),   silu′ = σ + silu (1 − σ);   g and u (…) → (…).
    """
    return _glu(gate, up, _silu, "swiglu")


@accepts_arrays
def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = GELU(g) u, GELU in its tanh form   (Shazeer, arXiv 2002.05202).

    du = dy GELU(g),   dg = dy u GELU′(g),   GELU′ = Φ + g Φ′;   g and u (…) → (…).
    """
    return _glu(gate, up, _tanh_gelu, "geglu")


def _glu(gate, up, curve, name):
    """y = a(g) u.   du = dy a,   dg = dy a′ u; a and a′ u are kept in place of g and u."""
    if gate.shape != up.shape:
        raise ValueError(f"{name}: gate {gate.shape} and up {up.shape} must have the same shape")
    y = np.empty(up.shape, up.dtype)
    a = slope = None
    if gate.requires_grad or up.requires_grad:
        a = np.empty_like(y)
        slope = np.empty_like(y)
    G, U = _flat(gate.data), _flat(up.data)
    for s in slices(G.shape):
        Y = _part(y, s)
        A = Y if a is None else _part(a, s)
        D = _part(slope, s)
        curve(G[s], A, D)
        if D is not None:
            D *= U[s]
        np.multiply(A, U[s], out=Y)
    return Tensor.op(y,
                     (gate, lambda dy: _into(slope, dy)),
                     (up, lambda dy: _into(a, dy)))


def _into(a, dy):
    """a ← a dy in place: an array that was saved for backward has no other use."""
    a *= dy
    return a


def _part(a, s):
    """Return the numbers `s` of a contiguous array, to write into; None for None."""
    return None if a is None else a.reshape(-1)[s]


# Each curve writes a(x) into y and, unless it is None, a′(x) into slope. All are flat arrays. The
# steps are written one by one, so that each has its result where the last one is still in cache.

def _silu(x, y, slope):
    """a = x σ,   a′ = σ + a (1 − σ)."""
    sigma = np.negative(x)
    with np.errstate(over="ignore"):                         # ∞ makes σ = 0
        np.exp(sigma, out=sigma)
    sigma += 1
    np.divide(1, sigma, out=sigma)
    np.multiply(x, sigma, out=y)
    if slope is None:
        return
    np.multiply(y, sigma, out=slope)
    np.subtract(y, slope, out=slope)
    slope += sigma


C, A = math.sqrt(2 / math.pi), 0.044715                      # u = C (x + A x³)


def _tanh_gelu(x, y, slope):
    """a = x Φ,   Φ = (1 + tanh u)/2,   a′ = Φ + a (1 − Φ) 2u′."""
    xx = np.clip(x, -50, 50)                                 # further out Φ is 0 or 1
    xx *= xx
    phi = xx * (C * A)
    phi += C
    phi *= x
    np.tanh(phi, out=phi)
    phi *= 0.5
    phi += 0.5
    np.multiply(x, phi, out=y)
    if slope is None:
        return
    np.multiply(y, phi, out=slope)
    np.subtract(y, slope, out=slope)
    xx *= 6 * C * A
    xx += 2 * C
    slope *= xx
    slope += phi


def _erf_gelu(x, y, slope):
    """a = x Φ,   Φ = (1 + erf(x/√2))/2,   a′ = Φ + x e^(−x²/2) / √(2π)."""
    from scipy.special import erf
    phi = (erf(x * math.sqrt(0.5)) + 1) * 0.5
    np.multiply(x, phi, out=y)
    if slope is None:
        return
    x = np.clip(x, -50, 50)                                  # further out Φ′ = 0, and x² overflows
    np.multiply(x, np.exp(-0.5 * x * x), out=slope)
    slope *= 1 / math.sqrt(2 * math.pi)
    slope += phi


@np.errstate(over="ignore")
def _softmax(x, axis):
    """Replace an array by its softmax; return it. An empty axis has the empty softmax."""
    x -= x.max(axis, keepdims=True, initial=-math.inf)       # −∞ makes eˣ = 0
    np.exp(x, out=x)
    x /= x.sum(axis, keepdims=True)
    return x


@accepts_arrays
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """p = eˣ / Σ eˣ.    dx = p (dp − Σ p dp)."""
    p = _softmax(x.data.copy(), axis)

    def dx(dp):
        dx = p * dp
        dx -= p * dx.sum(axis, keepdims=True)
        return dx
    return Tensor.op(p, (x, dx))


@accepts_arrays
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """y = x − log Σ eˣ.    dx = dy − eʸ Σ dy."""
    y = x.data - x.data.max(axis, keepdims=True, initial=-math.inf)
    if y.size:
        y -= np.log(np.exp(y).sum(axis, keepdims=True))

    def dx(dy):
        return dy - np.exp(y) * dy.sum(axis, keepdims=True)
    return Tensor.op(y, (x, dx))


@accepts_arrays
def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: float = 0.0,
              rng: Seed | None = None, scale: float | None = None,
              window: int | None = None) -> Tensor:
    """Scaled dot-product attention: O = P V,   P = softmax(s Q Kᵀ),   s = 1/√d if `scale` is None.

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ⊙ (dP − rowsum(P ⊙ dP)),   dQ = s dS K,   dK = s dSᵀ Q.

    q (…, H, T, d), k and v (…, G, S, d) → (…, H, T, d), d being a head's width. G divides H: in
    *grouped-query attention* H/G consecutive heads of q read one head of k and v. With `causal`,
    query i sees the keys up to i + S − T: all see the first S − T keys (a prefix, or a cache of
    past tokens); with `window`, only the last `window` of them. `dropout` is the probability that
    an entry of P is dropped; it needs an `rng`.

    P has T S numbers for each head, Q and K only (T + S) d. So nothing of the size of P is kept:
    the backward pass computes P again, as FlashAttention does (Dao et al., arXiv 2205.14135). It
    needs two numbers for each query, max S and Z, to get the same P without a search for the
    maximum. `plain.flash_attention` is the same idea in a few lines.

    A block of 64 queries skips the keys that all its rows are hidden from. The rows of the heads
    that share a key come after each other, in one product. Heads go in groups that fit in cache.
    P = E / Z, E = exp(S − max S), Z = rowsum(E): dividing the rows of O and of dO by Z, which are
    narrow, spares a walk through P. Then dP / Z takes the place of dP.
    """
    R = _check_attention(q, k, v, causal, window)                       # H/G
    q_shape, k_shape = q.shape, k.shape
    T, d = q_shape[-2:]
    S = k_shape[-2]
    pairs = math.prod(k_shape[:-2])                                     # B·G
    if scale is None:
        scale = 1 / math.sqrt(max(1, d))
    Q = np.multiply(q.data, q.dtype.type(scale), order="C")
    Q = Q.reshape(pairs, R, T, d)                                       # s Q
    K = k.data.reshape(pairs, S, d)
    V = v.data.reshape(pairs, S, d)
    O = np.empty_like(Q)
    q_trained, k_trained, v_trained = (x.requires_grad for x in (q, k, v))
    hides = causal and (window or T > 1)                                # one query sees all keys

    def pieces(rng):
        """Give heads, queries and keys of one product after another, and dropout's mask or None."""
        for start in range(0, T, 64):
            t = slice(start, min(start + 64, T))
            s = _seen(t, S - T, window) if causal else slice(0, S)
            shape = pairs, R * (t.stop - t.start), s.stop - s.start
            mask = _keep_mask(shape, dropout, rng, Q.dtype) if dropout else None
            for h in slices(shape):
                yield h, t, s, None if mask is None else mask[h]

    def numerators(h, t, s, largest=None):
        """Return E = exp(S − max S) and max S, which is searched for unless it is given."""
        E = _stacked(Q[h, :, t]) @ K[h, s].swapaxes(1, 2)
        if hides:
            n = t.stop - t.start
            m = s.stop - s.start if window else n                       # all see the keys before
            _hide(E, _bound(n, m, window or n, E.dtype))
        if largest is None:
            largest = E.max(-1, keepdims=True, initial=-math.inf)
        E -= largest
        return np.exp(E, out=E), largest

    if dropout and rng is not None:
        rng = np.random.default_rng(rng)                                # one for all blocks
    same_rng = copy.deepcopy(rng) if dropout else None                  # draws the same masks again
    rows = []                                                           # (max S, Z) of each piece
    for h, t, s, keep in pieces(rng):
        E, largest = numerators(h, t, s)
        Z = _row_sums(E) if S else 1                                    # no keys: O = 0
        o = _times(E, keep) @ V[h, s]
        o /= Z
        O[h, :, t] = _unstacked(o, R)
        if q_trained or k_trained or v_trained:
            rows.append((largest, Z))

    def vjp(dO):
        dO = dO.reshape(Q.shape)
        dK = np.zeros_like(K) if k_trained else None
        dV = np.zeros_like(V) if v_trained else None
        for piece, (largest, Z) in zip(pieces(same_rng), rows, strict=True):
            h, t, s, keep = piece
            E, _ = numerators(h, t, s, largest)
            do = _stacked(dO[h, :, t]) / Z
            if v_trained:
                dV[h, s] += _times(E, keep).swapaxes(1, 2) @ do
            if not (q_trained or k_trained):
                continue
            dS = _times(do @ V[h, s].swapaxes(1, 2), keep)              # dP / Z, then dS in place
            dS -= np.vecdot(E, dS)[..., None] / Z
            dS *= E
            if k_trained:
                dK[h, s] += dS.swapaxes(1, 2) @ _stacked(Q[h, :, t])
            if q_trained:
                Q[h, :, t] = _unstacked(dS @ K[h, s], R)                # these rows are used up
        dQ = np.multiply(Q, scale, out=Q) if q_trained else None
        return [None if dx is None else dx.reshape(shape)
                for dx, shape in ((dQ, q_shape), (dK, k_shape), (dV, k_shape))]
    return Tensor.fused(O.reshape(q_shape), (q, k, v), vjp)


def _check_attention(q, k, v, causal, window):
    """Return H/G, or 1. Raise ValueError unless shapes and options fit."""
    H = q.shape[-3] if q.ndim > 2 else 1
    G = k.shape[-3] if k.ndim > 2 else 1
    fit = (min(q.ndim, k.ndim) > 1
           and k.shape == v.shape
           and q.shape[-1] == k.shape[-1]
           and q.shape[:-3] == k.shape[:-3])
    if not fit or H != G and (H * G == 0 or H % G):
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape}; expected "
                         "(…, H, T, d), (…, G, S, d), (…, G, S, d), and G a divisor of H")
    T, S = q.shape[-2], k.shape[-2]
    if causal and S < T:
        raise ValueError(f"attention: {T} queries but only {S} keys; causal attention needs S ≥ T")
    if window is not None and not (causal and window >= 1):
        raise ValueError(f"attention: a window is at least 1 and causal, got {window=}, {causal=}")
    return H // G if G else 1


def _seen(t, past, window):
    """Return the slice of keys that some query of the slice t sees."""
    start = past + t.start + 1 - window if window else 0
    return slice(max(0, start), past + t.stop)


@functools.lru_cache(maxsize=64)
def _bound(n, m, window, dtype):
    """Return an upper bound for each score (n, m) of the last n queries and m keys up to them.

    It is ∞ where the query may see the key, −∞ where it may not.
    """
    i = np.arange(m - n, m)[:, None]
    j = np.arange(m)
    seen = (j <= i) & (j > i - window)
    return np.where(seen, np.inf, -np.inf).astype(dtype)


def _hide(scores, bound):
    """Set those of the scores (h, R n, m) to −∞ that the bound (n, m) hides."""
    n, m = bound.shape
    heads, _, keys = scores.shape
    last = scores.reshape(heads, -1, n, keys)[..., -m:]
    np.fmin(last, bound, out=last)


def _stacked(a):
    """Put the rows of the heads that share a key after each other: (h, R, n, d) → (h, R n, d)."""
    h, R, n, d = a.shape
    return a.reshape(h, R * n, d)


def _unstacked(a, R):
    """Undo `_stacked`: (h, R n, d) → (h, R, n, d)."""
    h, rows, d = a.shape
    return a.reshape(h, R, rows // R, d)


def _times(a, mask):
    """Return a times the mask, or `a` itself if there is none."""
    return a if mask is None else a * mask


@accepts_arrays
def cross_entropy(logits: Tensor, targets: Array, ignore_index: int = IGNORED,
                  label_smoothing: float = 0.0) -> Tensor:
    """Mean of −log softmax(logits)[target], in nats.    dlogits = (softmax(logits) − onehot) / n.

    logits (…, V), targets (…) integers in [0, V) → a single number. The n positions whose target is
    not `ignore_index` count; ValueError when none does. With `label_smoothing` ε the aim is
    (1 − ε) onehot + ε/V in place of onehot, as in PyTorch.
    """
    shape = logits.shape
    eps = label_smoothing
    if not 0 <= eps < 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie in [0, 1), got {eps}")
    t, counted = _checked_targets(targets, shape, ignore_index)
    n = int(counted.sum())
    Z = logits.data.reshape(-1, shape[-1])
    E = np.empty_like(Z) if logits.requires_grad else None
    total, sums = _surprise(Z, E, t, counted, eps)

    def dlogits(dy):
        return _dlogits(E, sums, t, counted, dy / n, eps).reshape(shape)
    return Tensor.op(np.asarray(total / n, dtype=Z.dtype), (logits, dlogits))


@accepts_arrays
def linear_cross_entropy(x: Tensor, W: Tensor, targets: Array,
                         ignore_index: int = IGNORED) -> Tensor:
    """cross_entropy(linear(x, W), targets), with few logits z = x Wᵀ in memory.

    dz = (softmax(z) − onehot) / n,   dx = dz W,   dW = dzᵀ x.

    x (…, d), W (V, d), targets (…) → a single number. With a large vocabulary the N V logits are
    the largest array of a step. Up to about LOGITS are computed at once, and the numerators of
    their softmax take their place. If there are more, it goes piece by piece (`_in_pieces`).
    """
    if W.ndim != 2 or x.shape[-1:] != W.shape[1:]:
        raise ValueError(f"linear_cross_entropy: x {x.shape}, W {W.shape}; "
                         "expected x (…, d), W (V, d)")
    shape = x.shape
    V = len(W)
    t, counted = _checked_targets(targets, (*shape[:-1], V), ignore_index)
    pieces = slices((len(t), V), max(LOGITS, 256 * V))
    if len(pieces) > 1:
        return _in_pieces(x, W, np.where(counted, t, ignore_index), ignore_index, pieces)
    n = int(counted.sum())
    X = _rows(x.data)
    M = W.data
    E = _product(X, M)
    total, sums = _surprise(E, E, t, counted)
    x_trained, W_trained = x.requires_grad, W.requires_grad
    rows = [X] if W_trained else []                      # only dW needs them
    del X

    def vjp(dy):
        dz = _dlogits(E, sums, t, counted, dy / n)
        dW = dz.T @ rows.pop() if W_trained else None    # x is freed before there is a dx
        dx = (dz @ M).reshape(shape) if x_trained else None
        return dx, dW
    return Tensor.fused(np.asarray(total / n, dtype=E.dtype), (x, W), vjp)


def _in_pieces(x, W, targets, ignore_index, pieces):
    """linear_cross_entropy of some rows after others. Each piece is differentiated at once, for
    dy = 1, and its logits are gone. What stays until the backward pass is dx and dW."""
    n = int((targets != ignore_index).sum())
    shape = x.shape
    X = _rows(x.data)
    dx = np.zeros_like(X) if x.requires_grad else None
    dW = np.zeros_like(W.data) if W.requires_grad else None
    total = 0.0
    for s in pieces:
        count = int((targets[s] != ignore_index).sum())
        if count == 0:
            continue
        rows = Tensor(X[s], x.requires_grad)
        head = Tensor(W.data, W.requires_grad)
        loss = linear_cross_entropy(rows, head, targets[s], ignore_index)
        total += count / n * loss.item()
        if not loss.requires_grad:                       # nothing is trained, or within no_grad()
            continue
        for leaf, gradient in loss.gradients(count / n):
            if leaf is head:
                dW += gradient
            else:
                dx[s] = gradient

    def vjp(dy):
        if dx is not None:
            np.multiply(dx, dy, out=dx)
        if dW is not None:
            np.multiply(dW, dy, out=dW)
        return dx if dx is None else dx.reshape(shape), dW
    return Tensor.fused(np.asarray(total, dtype=X.dtype), (x, W), vjp)


def _checked_targets(targets, shape, ignore_index):
    """Return the targets of logits of this shape, 0 for those that do not count, and which count:
    two arrays (N,). Raise TypeError or ValueError unless they fit and one counts."""
    targets = np.asarray(targets)
    if len(shape) < 1 or targets.shape != shape[:-1]:
        raise ValueError(f"cross_entropy: logits {shape}, targets {targets.shape}; "
                         "expected (…, V) and (…)")
    t = targets.reshape(-1)
    counted = t != ignore_index
    checked_ids(t[counted], shape[-1], "cross_entropy: targets")
    if not counted.any():
        raise ValueError("cross_entropy: no target counts; all are ignore_index, or the batch is "
                         "empty")
    return np.where(counted, t, 0), counted


def _surprise(Z, E, t, counted, eps=0.0):
    """Return Σ −log softmax(Z)[t] over the rows that count, and the sums (N,) of softmax's
    numerators. Write the numerators to E, which may be Z, unless it is None."""
    sums = np.empty(len(Z), Z.dtype)
    total = 0.0
    for s in slices(Z.shape, 1 << 18):
        largest = Z[s].max(-1, keepdims=True)
        z = np.subtract(Z[s], largest, out=None if E is None else E[s])
        aim = z[np.arange(len(z)), t[s]]
        if eps:
            aim = (1 - eps) * aim + eps * z.mean(-1)
        np.exp(z, out=z)
        sums[s] = _row_sums(z)[:, 0]
        surprise = np.log(sums[s]) - aim
        total += np.dot(np.where(counted[s], surprise, 0), counted[s])
    return total, sums


def _dlogits(E, sums, t, counted, weight, eps=0.0):
    """E ← weight (softmax − aim) in place, where softmax = E / sums; 0 for rows that do not
    count."""
    w = np.where(counted, weight, 0).astype(E.dtype)
    for s in slices(E.shape, 1 << 18):
        e = E[s]
        e *= (w[s] / sums[s])[:, None]
        if eps:
            e -= (w[s] * (eps / E.shape[-1]))[:, None]
        e[np.arange(len(e)), t[s]] -= w[s] * (1 - eps)
        if not counted.all():
            e[~counted[s]] = 0                           # not 0·∞, if a row's logits are infinite
    return E


@accepts_arrays
def embedding(ids: Array, E: Tensor) -> Tensor:
    """Rows of a table: y = E[ids].    dE[i] = Σ dy over the places where ids = i.

    ids integers (…) in [0, n), E (n, d) → (…, d). dE is 0 but for the rows that were looked up, and
    only these are computed.
    """
    n, d = E.shape
    ids = checked_ids(ids, n, "token ids")

    def dE(dy):
        rows, places = np.unique(ids, return_inverse=True)
        sums = np.zeros((len(rows), d), dy.dtype)
        numbers = places.reshape(-1, 1) * d + np.arange(d)   # their places in the flat array
        np.add.at(sums.reshape(-1), numbers.reshape(-1), dy.reshape(-1))     # fast for one axis
        return RowGradient((n, d), rows, sums)
    return Tensor.op(E.data[ids], (E, dE))


@accepts_arrays
def dropout(x: Tensor, p: float, rng: Seed | None = None) -> Tensor:
    """Set each number to 0 with probability p and divide the others by 1 − p.    dx = mask dy."""
    if p == 0:
        return x
    mask = _keep_mask(x.shape, p, rng, x.dtype)
    return Tensor.op(x.data * mask, (x, lambda dy: gated(dy, mask)))


def _keep_mask(shape, p, rng, dtype):
    """Draw a mask: 0 with probability p, else 1/(1 − p)."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: the probability must lie in [0, 1), got {p}")
    if rng is None:
        raise ValueError("dropout draws random numbers: give rng, a seed or a Generator")
    kept = np.random.default_rng(rng).random(shape, dtype=np.float32) >= p
    mask = kept.astype(dtype)
    mask *= 1 / (1 - p)
    return mask
