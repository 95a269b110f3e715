"""Rotary embeddings (RoPE; Su et al., arXiv 2104.09864), and how they are stretched to long texts.

The numbers x_i and x_{i + d/2} of a head form a pair, i = 0 … d/2 − 1. Position t rotates the pair
by the angle φ = t f_i. Then q·k depends only on the distance of the two positions.

    default   f_i = θ^(−2i/d)
    linear    f_i / s                                                      Chen et al., 2306.15595
    dynamic   the same as default, with θ (s n/L − (s − 1))^(d/(d−2)) in place of θ, where n is the
              length of the text, or L if it is shorter
    llama3    γ_i f_i + (1 − γ_i) f_i / s,   γ_i = (n_i − low)/(high − low) in [0, 1]      Llama 3.1
    yarn      the same, but γ_i falls linearly with i, from 1 at the i where n_i = high to 0 where
              n_i = low; cos and sin are multiplied by 0.1 ln s + 1        Peng et al., 2309.00071

    symbol      here       what
    θ           theta      the base of the angles
    s           factor     how much longer texts become
    L           context    the length that the model was trained at
    n_i         –          L f_i/(2π), how often the pair turns round within L
    low, high   low, high  pairs that turn less than low times are slowed down by s, and those that
                           turn more than high times stay: 1 and 4 in Llama 3.1, 1 and 32 in YaRN

Linear stretching slows all pairs down, also the fast ones that tell neighbours apart. The later
forms leave those alone. `dynamic` has no paper; transformers computes it.

Where things differ. Transformers computes the angles in float32; this file uses float64. YaRN's
two places are rounded outwards to whole i, as the authors' code does. With a cache, `dynamic`
rotates each key by the length at its time, here and in transformers, so it is not the function of
the whole text.
"""
import functools
import math
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array

__all__ = ["Rotary", "angles"]

KINDS = "default", "linear", "dynamic", "yarn", "llama3"


@dataclass(frozen=True)
class Rotary:
    """The angles of one kind of layer, for heads of width d. magnitude: a factor on cos and sin."""
    theta: float
    d: int
    kind: str = "default"
    factor: float = 1.0
    context: int | None = None
    low: float = 1.0
    high: float = 4.0
    magnitude: float = 1.0


@functools.lru_cache(maxsize=8)
def angles(rotary: Rotary, start: int, stop: int, dtype: np.dtype) -> tuple[Array, Array]:
    """Return cos φ and sin φ, (n, d/2) each, for the positions t = start … stop − 1."""
    t = np.arange(start, stop)[:, None]
    phi = t * frequencies(rotary, stop)
    cos, sin = np.cos(phi), np.sin(phi)
    if rotary.magnitude != 1:
        cos *= rotary.magnitude
        sin *= rotary.magnitude
    return cos.astype(dtype), sin.astype(dtype)


def frequencies(rotary: Rotary, length: int) -> Array:
    """Return f_i for a text of `length` tokens, float64 (d/2,)."""
    d, s = rotary.d, rotary.factor
    i = np.arange(d // 2)
    theta = rotary.theta
    if rotary.kind == "dynamic":
        longer = max(length, rotary.context) / rotary.context
        theta *= (s * longer - (s - 1)) ** (d / (d - 2))
    f = theta ** (-2 * i / d)
    if rotary.kind == "linear":
        return f / s
    if rotary.kind not in ("llama3", "yarn"):
        return f
    gamma = kept_by_turns(rotary, f) if rotary.kind == "llama3" else kept_by_place(rotary, i)
    return gamma * f + (1 - gamma) * (f / s)


def kept_by_turns(rotary: Rotary, f: Array) -> Array:
    """Return γ_i of Llama 3.1."""
    turns = rotary.context * f / (2 * math.pi)
    gamma = (turns - rotary.low) / (rotary.high - rotary.low)
    return np.clip(gamma, 0, 1)


def kept_by_place(rotary: Rotary, i: Array) -> Array:
    """Return γ_i of YaRN."""
    def place(turns):
        """The i whose pair turns so often."""
        longest = rotary.context / (2 * math.pi * turns)
        return rotary.d / 2 * math.log(longest) / math.log(rotary.theta)
    first = max(math.floor(place(rotary.high)), 0)
    last = min(math.ceil(place(rotary.low)), rotary.d - 1)
    if first == last:
        last += 0.001                                    # as in the authors' code: no division by 0
    return 1 - np.clip((i - first) / (last - first), 0, 1)
