"""The papers' algorithms as one reads them: the same letters, in the papers' order.

Other files compute the same numbers faster, in less memory, or with more options. Tests compare the
two: codes, scales and decoded numbers are equal to the last bit (`tests/README.md` has the table).
Read this file first. A weight W is (d_out, d_in), inputs X are (n, d_in): one a row.
"""
import numpy as np

from ..common.hints import Array
from .awq import AWQ
from .codebooks import codebook
from .gptq import GPTQ
from .kv_cache import half
from .qtensor import QTensor
from .uniform import Grid

__all__ = ["awq", "decode", "double_quantize", "gptq", "gptq_step", "kivi", "kivi_round",
           "llm_int8", "nf4", "nf4_decode", "pack", "unpack"]


def gptq(W: Array, H: Array, scheme: GPTQ) -> Array:
    """Algorithm 1 of GPTQ (arXiv 2210.17323), column after column → codes (d_out, d_in).

    H (d_in, d_in) is 2XXᵀ with the paper's X, whose columns are inputs: 2 X.T @ X here. Any factor
    will do. `scheme` has the grid, the group size g, the damping and B. Not here are fresh scales,
    static groups and dead inputs (H_jj = 0); for `act_order`, sort the columns of W and H first."""
    d = W.shape[1]
    g = scheme.group_size or d
    lam = scheme.damping * H.diagonal().mean()
    inverse = np.linalg.inv(H + lam * np.eye(d))
    U = np.linalg.cholesky(inverse).T                    # upper
    W = W.astype(np.float64)
    q = np.empty(W.shape, np.uint8)
    E = np.empty(W.shape)
    for i in range(0, d, scheme.block_size):
        end = min(i + scheme.block_size, d)
        before = W.astype(np.float32)           # scales are fitted to W as it was before this block
        for j in range(i, end):
            if j % g == 0:
                grid = scheme.nearest.fit(before[:, j:j + g])
            q[:, j], E[:, j] = gptq_step(W, U, j, end, grid)
        W[:, end:] -= E[:, i:end] @ U[i:end, end:]
    return q


def gptq_step(W: Array, U: Array, j: int, end: int, grid: Grid
              ) -> tuple[Array, Array]:
    """Round column j of W, in place, and correct the columns j + 1 … end − 1 for its error. Return
    the codes of column j, and E_:j."""
    q = grid.encode(W[:, [j]].astype(np.float32))
    Q = grid.decode(q)[:, 0]
    E = (W[:, j] - Q) / U[j, j]
    W[:, j] = Q
    W[:, j + 1:end] -= np.outer(E, U[j, j + 1:end])
    return q[:, 0], E


def awq(W: Array, X: Array, scheme: AWQ) -> tuple[Array, float]:
    """Equations (4) and (5) of AWQ (arXiv 2306.00978) for a layer of its own → s (d_in,) and α.

    `scheme` has the number of α, and the bits and groups of Q, round to nearest."""
    s_X = np.abs(X).mean(0, dtype=np.float64).astype(np.float32)
    best = np.inf
    for i in range(scheme.n_ratios):
        alpha = i / scheme.n_ratios
        s = np.maximum(s_X**np.float32(alpha), np.float32(1e-4))
        s = s / np.sqrt(s.max() * s.min())               # as in the authors' code
        Q = scheme.nearest.quantize(W * s).dequantize()
        L = np.square((Q / s - W) @ X.T).sum()
        if L < best:
            best = L
            best_s = s
            best_alpha = alpha
    return best_s, best_alpha


def nf4(x: Array) -> tuple[Array, Array]:
    """QLoRA (arXiv 2305.14314) §3, one block x (B,): s = max|x|, q_i = argmin_k |x_i/s − c_k|.

    Return q and s. As in bitsandbytes, x is multiplied by 1/s, and a block of zeros gets the code
    of 0. Only a number exactly at a midpoint as float32 rounds it may get the other neighbour in
    `nf4.py`."""
    s = np.abs(x).max()
    v = x * (1 / s) if s > 0 else x
    return nearest(v, codebook("nf4")), s


def nearest(v: Array, values: Array) -> Array:
    """Return the place of the nearest of `values` for each number of v, uint8 (n,)."""
    distances = np.abs(v[:, None].astype(np.float64) - values)
    return distances.argmin(1).astype(np.uint8)


def nf4_decode(q: Array, s: Array) -> Array:
    """x̂ = s c_q."""
    return s * codebook("nf4")[q]


def double_quantize(s: Array, o: Array) -> tuple[Array, Array]:
    """QLoRA's second quantization, of at most 256 scales s. Return r and t: s ≈ t d_r + o.

    t = max|s − o|,  r_i = argmin_k |(s_i − o)/t − d_k|. o is the mean of all scales of W."""
    t = np.abs(s - o).max()
    v = (s - o) * (1 / t)
    return nearest(v, codebook("dynamic")), t


def llm_int8(X: Array, W: Array, threshold: float = 6.0) -> Array:
    """Equation (8) of LLM.int8() (arXiv 2208.07339): X Wᵀ (n, d_out). With the threshold ∞ it is
    the paper's vector-wise quantization, `W8A8(weights="channel")`."""
    outlier = (np.abs(X) >= threshold).any(0)                            # h ∈ O, (d_in,)
    X_usual = X[:, ~outlier]
    W_usual = W[:, ~outlier]
    s_x = np.abs(X_usual).max(1, keepdims=True) / np.float32(127)
    s_w = np.abs(W).max(1) / np.float32(127)             # W is stored once, with all of its columns
    q_x = np.rint(X_usual / s_x).astype(np.int64)
    q_w = np.rint(W_usual / s_w[:, None]).astype(np.int64)
    product = (q_x @ q_w.T).astype(np.float32)
    integers = product * s_x * s_w
    W_f16 = W[:, outlier].astype(np.float16)
    return integers + X[:, outlier] @ W_f16.astype(np.float32).T


def kivi(Q: Array, K: Array, V: Array, bits: int, G: int, R: int) -> Array:
    """Algorithm 1 of KIVI (arXiv 2402.02750) for a head: the outputs (T, d) of T tokens, which come
    one after the other. Queries, keys and values (T, d).

    As in the authors' code, a token attends before others are rounded. Values are rounded eight at
    a time, as in `kv_cache.py`; in that code one at a time."""
    K = K.copy()                                         # rounded in place: K̂ of the old tokens
    V = V.copy()
    d = K.shape[1]
    root = np.float32(np.sqrt(d))
    old_keys = 0                                         # how many tokens are rounded
    old_values = 0
    outputs = []
    for n in range(1, len(K) + 1):
        scores = K[:n] @ Q[n - 1] / root
        p = np.exp(scores - scores.max())
        p /= p.sum()
        outputs.append(p @ V[:n])
        if n - old_keys == R:
            for t in range(old_keys, n, G):
                for c in range(d):
                    group = K[t:t + G, c]                # G tokens of a channel
                    group[:] = kivi_round(group, bits)
            old_keys = n
        if n - old_values == R + 8:
            for t in range(old_values, old_values + 8):
                for c in range(0, d, G):
                    group = V[t, c:c + G]                # G channels of a token
                    group[:] = kivi_round(group, bits)
            old_values += 8
    return np.array(outputs)


def kivi_round(x: Array, bits: int) -> Array:
    """x̂ = s·q + m for a group x (G,). A group of one number has s = 1."""
    top = 2**bits - 1                                    # the largest code
    m = np.float32(-half(-x.min()))
    s = np.float32(half((x.max() - m) / top))
    if s == 0:
        s = np.float32(1)
    q = np.clip(np.rint((x - m) / s), 0, top)
    return s * q + m


def decode(q: QTensor) -> Array:
    """x̂ = s · (c[q] − z) + o, block after block, in the shape of q."""
    codes = q.unpack()
    c = codes.astype(np.float32) if q.codebook is None else codebook(q.codebook)[codes]
    n = q.n_blocks
    s = np.ones(n) if q.scale is None else q.scales()
    z = np.full(n, q.zero) if isinstance(q.zero, int) else q.zeros()
    o = np.zeros(n) if q.offset is None else np.broadcast_to(q.offsets(), n)
    s, z, o = np.float32([s, z, o])
    x = np.empty(q.size, np.float32)
    for i in range(n):
        block = slice(i * q.block_size, (i + 1) * q.block_size)
        x[block] = s[i] * (c[block] - z[i]) + o[i]
    x = x.reshape(q.shape)
    return x if q.order is None else x[..., np.argsort(q.order)]


def pack(codes: Array, bits: int) -> Array:
    """Write codes (n,) as bytes. The first code is in the high bits of the first byte."""
    places = np.arange(bits)[::-1]
    return np.packbits(codes[:, None] >> places & 1)


def unpack(packed: Array, bits: int, n: int) -> Array:
    """Read the first n codes of an array of bytes."""
    places = np.arange(bits)[::-1]
    stream = np.unpackbits(packed)[:n * bits].reshape(n, bits)
    return (stream << places).sum(1)
