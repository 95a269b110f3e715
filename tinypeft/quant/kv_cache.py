"""KIVI: the generation cache in a few bits, keys quantized per channel and values per token.

Some channels of the keys are large for every token, so a group of tokens shares one scale in each
channel. Values have no such channels, so the channels of a token share a scale. The most recent
tokens are not rounded (Liu et al., arXiv 2402.02750, §3 and Algorithm 1):

    x̂ = s·q + m,   q = round((x − m)/s),   m = min x,  s = (max x − min x)/(2ᵇ − 1)   over a group

    paper   here           what
    b       bits           1 … 8
    G       group_size     32: tokens of a channel of K; channels of a token of V, at most d_head
    R       residual       tokens that keep the model's precision, the recent ones; a multiple of G

`plain.kivi` is this for a head, token after token; read it first. Keys move to codes R at a time,
as soon as R are waiting, so fewer than R are recent. Values leave a window of R eight at a time,
which are whole bytes, so R to R + 7 are recent.
Tokens attend in full precision to those fed in the same call, hence a prompt to itself. Stored:
b + 32/G bits per number (s and m in float16), and the recent tokens. A layer is decoded when it
attends and dropped again, so memory is `nbytes` plus the cache of one layer. A layer with a window
drops the groups that its window has passed.

A single token, as in generation, attends to the integers themselves: s and m move to the query and
to the probabilities, which are G times fewer numbers. For a query x and probabilities p,

    keys per channel   x·k̂_t = Σ_d (x_d s_d) q_td + Σ_d x_d m_d       s, m: of t's group of tokens
    values per token   Σ_t p_t v̂_t = Σ_t (p_t s_t) q_t + Σ_t p_t m_t  s, m: of a group of channels

A byte holds L = 8/b codes, of numbers that follow each other in a group. `planes` brings the first
code of every byte, then the second: a shift and a mask each, and no look-up. Every plane is
multiplied by itself, and its results go to every L-th place.

Where things differ. The paper has R = 128 for contexts of thousands of tokens; here it is 32, for
contexts of some hundred. The range need not contain 0 as in `uniform.py`: some key channels are far
from it. A small model may have no such channels; then `keys="token"` does as well. With rotary
embeddings the keys are stored after the rotation, as in the authors' code. It turns each pair of
channels by an angle that depends on the position, so a channel's range is that of its pair.
"""
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.hyper import Checked, one_of, whole
from ..engine import functional as F
from ..engine.tensor import Tensor
from ..models.cache import KVCache
from .decoding import expand
from .packing import pack, unpack

__all__ = ["QuantizedKVCache"]


@dataclass(frozen=True)
class CacheOptions(Checked):
    """What a `QuantizedKVCache` can be told. keys, values: "channel" or "token", within which
    numbers share a scale."""
    bits: int = whole(4, least=1, most=8)
    group_size: int = whole(32, least=1)
    residual: int = whole(32)
    keys: str = one_of("channel", "token")
    values: str = one_of("token", "channel")

    def check(self) -> None:
        is_whole = self.residual and self.residual % self.group_size == 0
        if "channel" in (self.keys, self.values) and not is_whole:
            raise ValueError("QuantizedKVCache: residual must be a positive multiple of group_size "
                             f"(tokens leave it in whole groups), got residual={self.residual} and "
                             f"group_size={self.group_size}")


class QuantizedKVCache(KVCache):
    """A cache for `generate(…, cache=QuantizedKVCache(model.config, bits=4))`, of `nbytes` bytes.
    options: see `CacheOptions`. Raises ValueError for others, for groups that divide neither a head
    nor the residual, and, when used, for keys or values outside the range of float16."""

    def __init__(self, config: Any, bits: int = 4, group_size: int = 32, residual: int = 32,
                 keys: str = "channel", values: str = "token"):
        o = CacheOptions(bits, group_size, residual, keys, values)
        channels = min(o.group_size, config.d_head)
        if "token" in (o.keys, o.values) and config.d_head % channels:
            raise ValueError(f"QuantizedKVCache: group_size={o.group_size} does not divide a head "
                             f"of {config.d_head}")

        def history(kind):
            group = channels if kind == "token" else o.group_size
            return History(kind, o.bits, group, o.residual)
        super().__init__(config.n_layers,
                         lambda: QuantizedLayerCache(history(o.keys), history(o.values)))


class QuantizedLayerCache:
    """The keys and values of one layer, in place of a `LayerCache`."""

    def __init__(self, keys: "History", values: "History"):
        self.keys = keys
        self.values = values
        self.positions = 0

    @property
    def length(self) -> int:
        """Count the positions so far, also those that were dropped."""
        return self.positions

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add Tensors (B, H, T, d_head); return Tensors of everything held."""
        self.positions += k.shape[2]
        keys = self.keys.append(k.data)
        values = self.values.append(v.data)
        held = min(keys.shape[2], values.shape[2])       # they are dropped at different times
        return Tensor(keys[:, :, -held:]), Tensor(values[:, :, -held:])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Attend as `LayerCache.attend`, with the codes of the past as before this call."""
        one_token = q.shape[2] == 1
        window = options.get("window")
        plain = not window and not options.get("dropout")
        if one_token and plain and self.keys.n and self.values.n:
            return self.attend_to_codes(q, k, v, options.get("scale"))
        o = F.attention(q, *self.append(k, v), **options)
        if window:
            self.keys.drop_before(window - 1)
            self.values.drop_before(window - 1)
        return o

    def attend_to_codes(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Let one token attend to the integers themselves, by the equations of this file."""
        B, H, _, d = q.shape
        scale = scale or 1 / math.sqrt(d)
        Q = q.data.reshape(B, k.shape[1], -1, d) * scale                  # (B, G, R, d)
        K = self.keys.after(k.data)                                       # recent ones, unrounded
        V = self.values.after(v.data)
        recent = Q @ K.swapaxes(2, 3)
        P = np.concatenate([self.keys.scores(Q), recent], axis=3)         # (B, G, R, S)
        P -= P.max(3, keepdims=True)
        np.exp(P, out=P)
        P /= P.sum(3, keepdims=True)
        old = P.shape[3] - V.shape[2]
        past = self.values.mean(P[..., :old], d)
        O = past + P[..., old:] @ V
        self.keys.keep(K)
        self.values.keep(V)
        self.positions += 1
        return Tensor(O.reshape(q.shape))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class Growing:
    """A flat array, `array`, to which numbers are added; its memory doubles when it is full."""

    def __init__(self, dtype: type):
        self.memory = np.empty(0, dtype)
        self.array = self.memory

    def write(self, x: Array, start: int | None = None) -> None:
        """Replace the numbers from `start` on (by default: none) by x (n,)."""
        if start is None:
            start = self.array.size
        end = start + x.size
        if end > self.memory.size:
            self.memory = np.empty(2 * end, x.dtype)
            self.memory[:start] = self.array[:start]
        self.memory[start:end] = x
        self.array = self.memory[:end]

    def drop(self, n: int) -> None:
        """Remove the first n numbers, and the memory that waits for more."""
        self.array = self.array[n:].copy()
        self.memory = self.array


class History:
    """Vectors (B, H, S, d): the old ones as codes, in order of time, the recent ones unrounded.

    kind: "token": a group is G channels of one token, and tokens beyond the R most recent ones
    leave, 8 at a time. "channel": a group is G tokens of one channel, and R tokens leave together,
    as soon as R are waiting.

    Of codes (B, H, C, N, G), N rows have groups of G numbers in C columns: rows are the tokens, and
    columns cut the channels, or rows are the channels, and columns cut the tokens. So a product of
    queries and keys of one kind is a product of probabilities and values of the other kind: `along`
    sums over the rows, `within` over the columns and what is in them.
    """

    def __init__(self, kind: str, bits: int, group: int, residual: int):
        self.per_token = kind == "token"
        self.bits = bits
        self.group = group
        self.residual = residual
        self.n = 0                                       # the number of codes
        self.codes = Growing(np.uint8)                   # packed
        self.scale = Growing(np.float16)                 # s of every group
        self.low = Growing(np.float16)                   # m of every group
        self.recent = np.zeros(0)                        # then (B, H, r, d)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, scales and recent vectors; the memory that waits for more takes up to
        as many again."""
        arrays = self.codes.array, self.scale.array, self.low.array, self.recent
        return sum(array.nbytes for array in arrays)

    def append(self, x: Array) -> Array:
        """Add x (B, H, T, d); return everything so far: decoded codes, recent vectors, x."""
        recent = self.after(x)
        everything = recent
        if self.n:
            everything = np.concatenate([self.decode(x), recent], axis=2)
        self.keep(recent)
        return everything

    def after(self, x: Array) -> Array:
        """Return the recent vectors, and x (B, H, T, d) after them."""
        return np.concatenate([self.recent, x], axis=2) if self.recent.size else x

    def keep(self, recent: Array) -> None:
        """Encode those of the recent vectors (B, H, r, d) that leave; keep the others."""
        leaving = self.leaving(recent.shape[2])
        if leaving:
            self.encode(self.groups(recent[:, :, :leaving]))
        self.recent = recent[:, :, leaving:].copy()

    def leaving(self, r: int) -> int:
        """Return how many of r recent vectors leave now."""
        if self.per_token:
            n = max(0, r - self.residual)
            return n - n % 8
        return r - r % self.residual

    def groups(self, x: Array) -> Array:
        """Cut x (B, H, S, d) into groups (n, G), in order of time."""
        if self.per_token:
            return x.transpose(2, 0, 1, 3).reshape(-1, self.group)
        B, H, _, d = x.shape
        x = x.reshape(B, H, -1, self.group, d)
        return x.transpose(2, 0, 1, 4, 3).reshape(-1, self.group)

    def vectors(self, groups: Array, B: int, H: int, d: int) -> Array:
        """Join groups (n, G) to vectors (B, H, S, d)."""
        if self.per_token:
            return groups.reshape(-1, B, H, d).transpose(1, 2, 0, 3)
        groups = groups.reshape(-1, B, H, d, self.group)
        return groups.transpose(1, 2, 0, 4, 3).reshape(B, H, -1, d)

    def drop_before(self, last: int) -> None:
        """Drop the codes of tokens before the `last` ones, in whole groups and whole bytes."""
        B, H, recent, d = self.recent.shape
        token = B * H * d                                # codes of a token
        n = min(self.n, self.n - (last - recent) * token)
        n -= n % math.lcm(8, token if self.per_token else token * self.group)
        if n <= 0:
            return
        self.n -= n
        self.codes.drop(n * self.bits // 8)
        self.scale.drop(n // self.group)
        self.low.drop(n // self.group)

    def encode(self, x: Array) -> None:
        """Append groups x (n, G) to the codes."""
        low = x.min(1)
        high = x.max(1)
        top = 2**self.bits - 1
        m = -half(-low)
        s = half((high - m) / top)
        if not np.isfinite(m).all() or not np.isfinite(s).all():
            raise ValueError(f"QuantizedKVCache: keys or values from {low.min()} to {high.max()} "
                             "exceed float16 scales")
        s[s == 0] = 1
        self.scale.write(s)
        self.low.write(m)
        m = m.astype(x.dtype)[:, None]
        s = s.astype(x.dtype)[:, None]
        q = np.clip(np.rint((x - m) / s), 0, top)
        q = q.astype(np.uint8).reshape(-1)
        begun = self.n % 8                               # codes in a byte that is not full
        whole = self.n // 8 * self.bits                  # bytes that stay
        self.n += q.size
        if begun:
            q = np.append(unpack(self.codes.array[whole:], self.bits, begun), q)
        self.codes.write(pack(q, self.bits), whole)

    def decode(self, like: Array) -> Array:
        """Return the decoded vectors (B, H, n, d), of the dtype of `like` (B, H, ·, d)."""
        x = self.numbers(like.dtype)
        s = single(self.scale.array).astype(like.dtype, copy=False)
        m = single(self.low.array).astype(like.dtype, copy=False)
        x *= s[:, None]
        x += m[:, None]
        B, H, _, d = like.shape
        return self.vectors(x, B, H, d)

    def numbers(self, dtype: type) -> Array:
        """Return q (n, G) of all n groups, in floating point."""
        q = np.empty(self.n, np.float32)
        expand(self.codes.array, self.bits, q)
        return q.astype(dtype, copy=False).reshape(-1, self.group)

    def scores(self, x: Array) -> Array:
        """Return x·k̂ of queries x (B, H, R, d) and all S decoded vectors, (B, H, R, S)."""
        d = x.shape[3]
        return self.within(x, d) if self.per_token else self.along(x, d)

    def mean(self, p: Array, d: int) -> Array:
        """Return Σ_t p_t v̂_t, p (B, H, R, S) → (B, H, R, d)."""
        return self.along(p, d) if self.per_token else self.within(p, d)

    def along(self, x: Array, d: int) -> Array:
        """Sum x (B, H, R, N) times the numbers over the rows, (B, H, R, C·G)."""
        B, H, R, _ = x.shape
        s, m = self.scales(x, d)
        x = x[:, :, None]
        xs = x * s                                                        # (B, H, C, R, N)
        sums = np.empty((*xs.shape[:4], self.group), x.dtype)
        for places, q in self.planes(x, d):
            sums[..., places] = xs @ q
        sums += (x * m).sum(4, keepdims=True)
        return sums.swapaxes(2, 3).reshape(B, H, R, -1)

    def within(self, x: Array, d: int) -> Array:
        """Sum x (B, H, R, C·G) times the numbers over the columns, (B, H, R, N)."""
        B, H, R, _ = x.shape
        s, m = self.scales(x, d)
        x = x.reshape(B, H, R, -1, self.group)
        x = x.swapaxes(2, 3)                                              # (B, H, C, R, G)
        sums = x.sum(4, keepdims=True) * m                                # (B, H, C, R, N)
        for places, q in self.planes(x, d):
            sums += x[..., places] @ q.swapaxes(3, 4) * s
        return sums.sum(2)

    def columns(self, stored: Array, like: Array, d: int) -> Array:
        """View what is stored (n, …) of each group as (B, H, C, N, …), for `like` (B, H, …)."""
        B, H = like.shape[:2]
        rest = stored.shape[1:]
        if self.per_token:
            stored = stored.reshape(-1, B, H, d // self.group, *rest)
            return np.moveaxis(stored, 0, 3)
        stored = stored.reshape(-1, B, H, d, *rest)
        return np.moveaxis(stored, 0, 2)

    def scales(self, like: Array, d: int) -> tuple[Array, Array]:
        """Return s and m, each (B, H, C, 1, N), of the dtype of `like` (B, H, …)."""
        s = single(self.scale.array).astype(like.dtype, copy=False)
        m = single(self.low.array).astype(like.dtype, copy=False)
        s = self.columns(s, like, d)
        m = self.columns(m, like, d)
        return s[:, :, :, None], m[:, :, :, None]

    def planes(self, like: Array, d: int) -> Iterator[tuple[slice, Array]]:
        """Yield places in a group, such as every other one, and the codes there (B, H, C, N, G/L),
        of the dtype of `like` (B, H, …)."""
        n_lanes = 8 // self.bits
        if 8 % self.bits or self.group % n_lanes:        # a byte holds more than codes of a group
            yield np.s_[:], self.columns(self.numbers(like.dtype), like, d)
            return
        octets = self.codes.array.reshape(-1, self.group // n_lanes)
        for lane in range(n_lanes):
            shift = 8 - self.bits * (lane + 1)           # the first code has the highest bits
            codes = octets >> shift & 2**self.bits - 1
            yield np.s_[lane::n_lanes], self.columns(codes.astype(like.dtype), like, d)


def half(x: Array) -> Array:
    """Return x in float16, rounded up, so that a range still covers its group."""
    with np.errstate(over="ignore"):
        y = x.astype(np.float16)
    return np.where(y < x, np.nextafter(y, np.float16(np.inf)), y)


def single(x: Array) -> Array:
    """Return finite float16 as float32: exponent and mantissa move 13 bits, and the biases differ
    by 112. NumPy's `astype` is slower, because it converts one number at a time."""
    bits = x.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= ~0x70000000                                  # the copies of the sign
    return bits.view(np.float32) * np.float32(2.0**112)
