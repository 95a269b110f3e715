"""KIVI: the generation cache in a few bits, keys quantized per channel and values per token.

Keys have channels that are large for every token, so the numbers that share a step are those of one channel, over a
group of tokens; values have none, and a token is the unit in which attention mixes them. The most recent tokens stay
as they are (Liu et al., arXiv 2402.02750, §3 and Algorithm 1):

    x̂ = s·q + m,    q = round((x − m)/s),    m = min x,  s = (max x − min x)/(2ᵇ − 1)        over one group

    paper   here           what
    b       bits           1 … 8
    G       group_size     32: tokens of one channel of K; channels of one token of V (d_head if that is less)
    R       residual       how many recent tokens at most are kept in the model's precision; a multiple of G. 128 in the
                           paper, for contexts of thousands; its ablation starts at 32, the default here

Keys move to codes R at a time, when R are waiting; values one at a time, as they leave the window of R. What is being
fed attends to itself, and a prompt thereby to all of itself, in full precision. Unlike in `uniform.py` the range need
not contain 0 (m is stored, not an integer zero point): keys have channels far from it. (Keys of a small model may have
no such channels; they are then as well off per token, `keys="token"`.)

Stored: b + 32/G bits per number (s and m in float16), codes packed, and the recent tokens in full. All of a layer is
decoded when the layer attends, and dropped again: memory at rest is `nbytes`, at work one layer's cache more.
"""
import numpy as np

from ..generate import KVCache
from ..tensor import Tensor
from .packing import pack, unpack
from .scheme import check_choice

__all__ = ["QuantizedKVCache"]


class QuantizedKVCache(KVCache):
    """A cache for `generate(…, cache=QuantizedKVCache(model.config, bits=4))`. `nbytes`: all it holds now.

    keys, values: "channel" or "token", what shares a step. Raises ValueError for options that make no sense, for groups
    that do not divide a head or the residual, and, when used, for keys or values that float16 cannot bound.
    """

    def __init__(self, config, bits=4, group_size=32, residual=32, keys="channel", values="token"):
        check_choice("bits", bits, tuple(range(1, 9)))
        check_choice("keys", keys, ("channel", "token"))
        check_choice("values", values, ("channel", "token"))
        d_head = config.d_model // config.n_heads
        channels = min(group_size, d_head)
        if group_size < 1 or residual < 0 or "channel" in (keys, values) and (residual < 1 or residual % group_size):
            raise ValueError("QuantizedKVCache: groups of tokens leave the residual whole, so it must be a positive "
                             f"multiple of group_size; got residual={residual} and group_size={group_size}")
        if "token" in (keys, values) and d_head % channels:
            raise ValueError(f"QuantizedKVCache: group_size={group_size} does not divide a head of {d_head} channels")
        history = lambda kind: ChannelHistory(bits, group_size, residual) if kind == "channel" else \
            TokenHistory(bits, channels, residual)
        super().__init__(config.n_layers, lambda: QuantizedLayerCache(history(keys), history(values)))


class QuantizedLayerCache:
    """Keys and values of one layer, as `generate.LayerCache` keeps them."""

    def __init__(self, keys, values):
        self.keys, self.values, self.length = keys, values, 0

    def append(self, k, v):
        """Add Tensors (B, H, T, d_head); return Tensors of everything so far."""
        self.length += k.shape[2]
        return Tensor(self.keys.append(k.data)), Tensor(self.values.append(v.data))

    nbytes = property(lambda self: self.keys.nbytes + self.values.nbytes)


class History:
    """Vectors (B, H, S, d): the old ones as codes, in groups and in order of time, the last ones as they came."""

    def __init__(self, bits, group, residual):
        self.bits, self.group, self.residual = bits, group, residual
        self.codes, self.n = np.zeros(0, np.uint8), 0                              # packed; how many
        self.scale = self.low = np.zeros(0, np.float16)                            # s and m of every group
        self.recent = None                                                         # (B, H, r, d)

    @property
    def nbytes(self):
        return sum(a.nbytes for a in (self.codes, self.scale, self.low, self.recent) if a is not None)

    def append(self, x):
        """Add x (B, H, T, d); return everything so far, what was quantized before this call as it decodes."""
        recent = x if self.recent is None else np.concatenate([self.recent, x], axis=2)
        everything = recent if not self.n else np.concatenate([self.decode(x), recent], axis=2)
        leaving = self.leaving(recent.shape[2])
        if leaving: self.encode(self.grouped(recent[:, :, :leaving]))
        self.recent = recent[:, :, leaving:].copy()
        return everything

    def encode(self, x):
        """Append groups x (n, G) to the codes."""
        low, high = x.min(1), x.max(1)
        m = -half(-low)
        s = half((high - m) / (2**self.bits - 1))
        if not (np.isfinite(m) & np.isfinite(s)).all():
            raise ValueError(f"QuantizedKVCache: keys or values from {low.min()} to {high.max()} exceed float16 scales")
        s[s == 0] = 1
        q = np.rint((x - m[:, None].astype(x.dtype)) / s[:, None].astype(x.dtype))
        q = np.clip(q, 0, 2**self.bits - 1).astype(np.uint8).reshape(-1)
        self.codes = pack(np.concatenate([unpack(self.codes, self.bits, self.n), q]), self.bits)
        self.n += q.size
        self.scale, self.low = np.concatenate([self.scale, s]), np.concatenate([self.low, m])

    def decode(self, like):
        """What the codes stand for, (B, H, n, d), of the dtype of `like` (B, H, ·, d)."""
        x = unpack(self.codes, self.bits, self.n).astype(like.dtype).reshape(-1, self.group)
        x *= self.scale[:, None]
        x += self.low[:, None]
        return self.ungrouped(x, *like.shape[:2], like.shape[3])


def half(x):
    """x in float16, rounded up, so that a range keeps covering its group."""
    with np.errstate(over="ignore"):
        y = x.astype(np.float16)
    return np.where(y < x, np.nextafter(y, np.float16(np.inf)), y)


class TokenHistory(History):
    """A group is G channels of one token. One token leaves for every one that comes once R are there."""

    def leaving(self, r): return max(0, r - self.residual)
    def grouped(self, x): return x.transpose(2, 0, 1, 3).reshape(-1, self.group)
    def ungrouped(self, x, B, H, d): return x.reshape(-1, B, H, d).transpose(1, 2, 0, 3)


class ChannelHistory(History):
    """A group is G tokens of one channel. R tokens leave together once they are there."""

    def leaving(self, r): return r - r % self.residual

    def grouped(self, x):
        B, H, n, d = x.shape
        return x.reshape(B, H, n // self.group, self.group, d).transpose(2, 0, 1, 4, 3).reshape(-1, self.group)

    def ungrouped(self, x, B, H, d):
        return x.reshape(-1, B, H, d, self.group).transpose(1, 2, 0, 4, 3).reshape(B, H, -1, d)
