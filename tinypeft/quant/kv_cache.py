"""KIVI: the generation cache in a few bits, keys quantized per channel and values per token.

Some channels of the keys are large for every token, so a group of tokens shares one scale in each
channel. Values have no such channels, so the channels of a token share a scale. The most recent
tokens are not rounded (Liu et al., arXiv 2402.02750, §3 and Algorithm 1):

    x̂ = s·q + m,   q = round((x − m)/s),   m = min x,  s = (max x − min x)/(2ᵇ − 1)   over a group

    paper   here           what
    b       bits           1 … 8
    G       group_size     32: tokens of a channel of K; channels of a token of V, at most d_head
    R       residual       at most so many recent tokens keep the model's precision; a multiple of G

Keys move to codes R at a time, as soon as R are waiting; values when they leave the window of R.
Tokens attend in full precision to those fed in the same call, hence a prompt to itself. Stored:
b + 32/G bits per number (s and m in float16), and the recent tokens. A layer is decoded when it
attends and dropped again, so memory is `nbytes` plus the cache of one layer.

A single token, as in generation, attends to the integers themselves: s and m move to the query and
to the probabilities, which are G times fewer numbers. For a query x and probabilities p,

    keys per channel   x·k̂_t = Σ_d (x_d s_d) q_td + Σ_d x_d m_d       s, m: of t's group of tokens
    values per token   Σ_t p_t v̂_t = Σ_t (p_t s_t) q_t + Σ_t p_t m_t  s, m: of a group of channels

Where things differ. The paper has R = 128 for contexts of thousands of tokens; here it is 32, for
contexts of some hundred. The range need not contain 0 as in `uniform.py`: some key channels are far
from it. A small model may have no such channels; then `keys="token"` does as well. With rotary
embeddings the keys are stored after the rotation, as in the authors' code. It turns each pair of
channels by an angle that depends on the position, so a channel's range is that of its pair.
"""
import math
from typing import Any

import numpy as np

from ..common.hints import Array
from ..engine import functional as F
from ..engine.tensor import Tensor
from ..models.generation import KVCache
from .decoding import expand
from .packing import pack, unpack

__all__ = ["QuantizedKVCache"]

WIDE = 2**16                     # from so many codes on, two bytes are expanded at a time


class QuantizedKVCache(KVCache):
    """A cache for `generate(…, cache=QuantizedKVCache(model.config, bits=4))`, of `nbytes` bytes.
    keys, values: "channel" or "token", within which numbers share a scale. Raises ValueError for
    other options, for groups that divide neither a head nor the residual, and, when used, for keys
    or values outside the range of float16."""

    def __init__(self, config: Any, bits: int = 4, group_size: int = 32, residual: int = 32,
                 keys: str = "channel", values: str = "token"):
        kinds = {"channel": ChannelHistory, "token": TokenHistory}
        got = f"got bits={bits!r}, keys={keys!r}, values={values!r}, {group_size=} and {residual=}"
        if bits not in range(1, 9) or keys not in kinds or values not in kinds:
            raise ValueError("QuantizedKVCache: bits must be 1 … 8, keys and values 'channel' or "
                             f"'token'; {got}")
        least = 1 if "channel" in (keys, values) else 0
        if group_size < 1 or residual < least or least and residual % group_size:
            raise ValueError("QuantizedKVCache: residual must be a positive multiple of group_size "
                             f"(tokens leave it in whole groups); {got}")
        d_head = config.d_head
        size = {"channel": group_size, "token": min(group_size, d_head)}
        if "token" in (keys, values) and d_head % size["token"]:
            raise ValueError(f"QuantizedKVCache: {group_size=} does not divide a head of {d_head}")
        history = lambda kind: kinds[kind](bits, size[kind], residual)
        super().__init__(config.n_layers,
                         lambda: QuantizedLayerCache(history(keys), history(values)))


class QuantizedLayerCache:
    """The keys and values of one layer, in place of a `generate.LayerCache`."""

    def __init__(self, keys: "History", values: "History"):
        self.keys, self.values, self.length = keys, values, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add Tensors (B, H, T, d_head); return Tensors of everything so far."""
        self.length += k.shape[2]
        return Tensor(self.keys.append(k.data)), Tensor(self.values.append(v.data))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """As `LayerCache.attend`, with the codes of the past as they were before this call."""
        alone = q.shape[2] == 1 and self.keys.n and self.values.n
        if not alone or options.get("window") or options.get("dropout"):
            return F.attention(q, *self.append(k, v), **options)
        B, H, _, d = q.shape
        Q = q.data.reshape(B, k.shape[1], -1, d) * (options.get("scale") or 1 / math.sqrt(d))
        K, V = self.keys.after(k.data), self.values.after(v.data)         # recent ones, unrounded
        P = np.concatenate([self.keys.scores(Q), Q @ K.swapaxes(2, 3)], axis=3)     # (B, G, R, S)
        P -= P.max(3, keepdims=True)
        np.exp(P, out=P)
        P /= P.sum(3, keepdims=True)
        old = P.shape[3] - V.shape[2]
        O = self.values.mean(P[..., :old], d) + P[..., old:] @ V
        self.keys.keep(K)
        self.values.keep(V)
        self.length += 1
        return Tensor(O.reshape(q.shape))

    nbytes = property(lambda self: self.keys.nbytes + self.values.nbytes)


class Growing:
    """A flat array, `array`, to which numbers are added; its memory doubles when it is full."""

    def __init__(self, dtype: type):
        self.memory, self.array = np.empty(0, dtype), np.empty(0, dtype)

    def write(self, x: Array, start: int | None = None) -> None:
        """Replace the numbers from `start` on (by default: none) by x (n,)."""
        start = self.array.size if start is None else start
        if start + x.size > self.memory.size:
            self.memory = np.empty(2 * (start + x.size), x.dtype)
            self.memory[:start] = self.array[:start]
        self.memory[start:start + x.size] = x
        self.array = self.memory[:start + x.size]


class History:
    """Vectors (B, H, S, d): the old ones as codes, in order of time, the recent ones unrounded."""

    def __init__(self, bits: int, group: int, residual: int):
        self.bits, self.group, self.residual = bits, group, residual
        self.packed, self.n = Growing(np.uint8), 0                        # codes, and their number
        self.scales, self.lows = Growing(np.float16), Growing(np.float16)     # s, m of every group
        self.recent = np.zeros(0)                                         # then (B, H, r, d)

    codes = property(lambda self: self.packed.array)
    scale = property(lambda self: self.scales.array)
    low = property(lambda self: self.lows.array)

    @property
    def nbytes(self) -> int:
        """Bytes of what is held; the memory that waits for more takes up to as many again."""
        return sum(a.nbytes for a in (self.codes, self.scale, self.low, self.recent))

    def append(self, x: Array) -> Array:
        """Add x (B, H, T, d); return everything so far: decoded codes, recent vectors, x."""
        recent = self.after(x)
        everything = recent if not self.n else np.concatenate([self.decode(x), recent], axis=2)
        self.keep(recent)
        return everything

    def after(self, x: Array) -> Array:
        """The recent vectors, and x (B, H, T, d) after them."""
        return np.concatenate([self.recent, x], axis=2) if self.recent.size else x

    def keep(self, recent: Array) -> None:
        """Encode those of the recent vectors (B, H, r, d) that leave; keep the others."""
        leaving = self.leaving(recent.shape[2])
        if leaving: self.encode(self.grouped(recent[:, :, :leaving]))
        self.recent = recent[:, :, leaving:].copy()

    def encode(self, x: Array) -> None:
        """Append groups x (n, G) to the codes."""
        low, high = x.min(1), x.max(1)
        m = -half(-low)
        s = half((high - m) / (2**self.bits - 1))
        if not (np.isfinite(m) & np.isfinite(s)).all():
            raise ValueError(f"QuantizedKVCache: keys or values from {low.min()} to {high.max()} "
                             "exceed float16 scales")
        s[s == 0] = 1
        q = np.rint((x - m[:, None].astype(x.dtype)) / s[:, None].astype(x.dtype))
        q = np.minimum(np.maximum(q, 0), 2**self.bits - 1).astype(np.uint8).reshape(-1)
        n, whole = q.size, self.n // 8 * self.bits                        # bytes that stay
        if begun := self.n % 8: q = np.append(unpack(self.codes[whole:], self.bits, begun), q)
        self.packed.write(pack(q, self.bits), whole)
        self.n += n
        self.scales.write(s)
        self.lows.write(m)

    def decode(self, like: Array) -> Array:
        """The decoded vectors (B, H, n, d), of the dtype of `like` (B, H, ·, d)."""
        x, s, m = self.parts(like.dtype)
        x *= s[:, None]
        x += m[:, None]
        return self.ungrouped(x, *like.shape[:2], like.shape[3])

    def parts(self, dtype: type) -> tuple[Array, Array, Array]:
        """q (n, G), s and m (n,) of all n groups, in floating point."""
        q = np.empty(self.n, np.float32)
        expand(self.codes, self.bits, q, wide=self.n >= WIDE)
        s, m = (single(a).astype(dtype, copy=False) for a in (self.scale, self.low))
        return q.astype(dtype, copy=False).reshape(-1, self.group), s, m


def half(x: Array) -> Array:
    """x in float16, rounded up, so that a range still covers its group."""
    with np.errstate(over="ignore"):
        y = x.astype(np.float16)
    return np.where(y < x, np.nextafter(y, np.float16(np.inf)), y)


def single(x: Array) -> Array:
    """Finite float16 as float32: exponent and mantissa move 13 bits, and the biases differ by 112.
    NumPy's `astype` converts one number at a time and takes three times as long."""
    bits = x.view(np.uint16).astype(np.uint32)
    bits = (bits & 0x7FFF) << 13 | (bits & 0x8000) << 16
    return bits.view(np.float32) * np.float32(2.0**112)


class TokenHistory(History):
    """A group is G channels of one token. Tokens beyond the R most recent ones leave."""

    def leaving(self, r): return max(0, r - self.residual)
    def grouped(self, x): return x.transpose(2, 0, 1, 3).reshape(-1, self.group)
    def ungrouped(self, x, B, H, d): return x.reshape(-1, B, H, d).transpose(1, 2, 0, 3)

    def per_token(self, B, H, d, dtype):
        """q (B, H, d/G, S, G), s and m (B, H, d/G, 1, S), S tokens."""
        q, s, m = self.parts(dtype)
        groups = lambda a: a.reshape(-1, B, H, d // self.group, *a.shape[1:])
        by_token = lambda a: groups(a).transpose(1, 2, 3, 0)[..., None, :]
        return groups(q).transpose(1, 2, 3, 0, 4), by_token(s), by_token(m)

    def scores(self, x: Array) -> Array:
        """x·k̂ of queries x (B, H, R, d) and all S decoded vectors, (B, H, R, S)."""
        q, s, m = self.per_token(*x.shape[:2], x.shape[3], x.dtype)
        x = x.reshape(*x.shape[:3], -1, self.group).swapaxes(2, 3)        # (B, H, d/G, R, G)
        return (x @ q.swapaxes(3, 4) * s + x.sum(4, keepdims=True) * m).sum(2)

    def mean(self, p: Array, d: int) -> Array:
        """Σ_t p_t v̂_t, p (B, H, R, S) → (B, H, R, d)."""
        q, s, m = self.per_token(*p.shape[:2], d, p.dtype)
        p = p[:, :, None]
        o = (p * s) @ q + (p * m).sum(4, keepdims=True)                   # (B, H, d/G, R, G)
        return o.swapaxes(2, 3).reshape(*p.shape[:2], -1, d)


class ChannelHistory(History):
    """A group is G tokens of one channel. R tokens leave together, as soon as R are waiting."""

    def leaving(self, r): return r - r % self.residual

    def grouped(self, x):
        x = x.reshape(*x.shape[:2], -1, self.group, x.shape[3])
        return x.transpose(2, 0, 1, 4, 3).reshape(-1, self.group)

    def ungrouped(self, x, B, H, d):
        return x.reshape(-1, B, H, d, self.group).transpose(1, 2, 0, 4, 3).reshape(B, H, -1, d)

    def per_channel(self, B, H, d, dtype):
        """q (n, B, H, d, G), s and m (n, B, H, 1, d), n groups of tokens."""
        q, s, m = self.parts(dtype)
        by_channel = lambda a: a.reshape(-1, B, H, 1, d)
        return q.reshape(-1, B, H, d, self.group), by_channel(s), by_channel(m)

    def scores(self, x: Array) -> Array:
        """x·k̂ of queries x (B, H, R, d) and all S decoded vectors, (B, H, R, S)."""
        B, H, R, d = x.shape
        q, s, m = self.per_channel(B, H, d, x.dtype)
        found = (x * s) @ q + (x * m).sum(4, keepdims=True)               # (n, B, H, R, G)
        return found.transpose(1, 2, 3, 0, 4).reshape(B, H, R, -1)

    def mean(self, p: Array, d: int) -> Array:
        """Σ_t p_t v̂_t, p (B, H, R, S) → (B, H, R, d)."""
        q, s, m = self.per_channel(*p.shape[:2], d, p.dtype)
        p = p.reshape(*p.shape[:3], -1, self.group).transpose(3, 0, 1, 2, 4)      # (n, B, H, R, G)
        return (p @ q.swapaxes(3, 4) * s + p.sum(4, keepdims=True) * m).sum(0)
