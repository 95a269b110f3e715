"""AdapterFusion (Pfeiffer et al., arXiv 2005.00247): an attention over adapters of several tasks.

Each adapter was trained on a task of its own, on the same frozen base. Fusion puts all of them
behind the same sublayers, frozen, and trains an attention that mixes what they say. Position by
position it asks which adapters help with the hidden state h that the sublayer gives. Section 3:

    zₙ = W_uₙ f(W_dₙ h + b_dₙ) + b_uₙ              adapter n's change of h, see `adapter.py`
    α  = softmax over n of (Q h)ᵀ (K zₙ)
    h  ← h + Σ αₙ V zₙ
    loss + c Σ ‖V − I‖²_F over the layers

    paper     here            shape
    N         adapters        how many adapters there are
    Q, K      Q, K            (d, d), start at N(0, 0.02²)
    V         V               (d, d), starts at 1 on the diagonal and 10⁻⁶ elsewhere
    c         regularization

V starts, and is held, near the identity, so that a fusion starts as an average of its adapters.
Trained: 3 d² for each layer that has adapters. Only the fusion learns, so what one adapter knows is
not overwritten by another task. The adapters themselves are saved with the fusion.

The code uses that V and K are linear: Σ αₙ V zₙ = V Σ αₙ zₙ, and (Q h)ᵀ (K zₙ) = (Kᵀ Q h)ᵀ zₙ. That
is one product with V, and one with K, instead of N.

Where implementations differ. The paper's V starts with small random numbers off the diagonal, and
it names an l2 norm without a factor; the `adapters` library has 10⁻⁶, and c = 0.01 on the distance
from the identity. This file follows the library in these numbers. It differs in four things. The
library gives Q and K biases (the one of K has no influence). It drops out scores in training, with
the base's probability for attention. Its adapters of Pfeiffer's place read x + h, the sum with the
residual stream, in BERT after the norm (`original_ln_before=True`); here they read h. Its query is
made of the same sum (`query_before_ln=False`); here it is Q h. The paper fuses adapters behind the
feed-forward part, `placement="pfeiffer"`; those of Houlsby's placement can be fused here, too.
`norms=True` trains the base's norms for one task. A base has only one set of norms, so such
adapters cannot be fused.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Rng, Seed
from ..common.hyper import Limit, declared, real
from ..engine import functional as F
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor, stack
from ..files import made
from ..models.decoder import Decoder
from .adapter import Bottleneck, BottleneckAdapter, check_narrower
from .combine import Adapter, free_base, on_base
from .folders import attach_with
from .method import Layers, Method, MethodError, Wrapper
from .model import PeftModel
from .part import own_state

__all__ = ["AdapterFusion", "FusedAdapters", "fuse"]


def are_adapters(x):
    """Is x a tuple of BottleneckAdapters, and not an empty one?"""
    return isinstance(x, (tuple, list)) and {type(a) for a in x} == {BottleneckAdapter}


SEVERAL = Limit(are_adapters, "a tuple of BottleneckAdapters")


def fuse(adapters: Iterable[Adapter], *, regularization: float = 0.01, model: Decoder | None = None,
         head: int | None = None, head_bias: bool = True, rng: Seed = 0) -> PeftModel:
    """Put an `AdapterFusion` of trained adapters on their base, to be trained on another task.

    adapters: PeftModels or folders, each with a `BottleneckAdapter(…, norms=False)` of one base and
    placement. One that is on the base is detached; all stay as they are, and are copied. Their
    heads are left out: head, head_bias, rng are as in `attach`. model: the base, if all adapters
    are folders. Raises MethodError, and leaves all as it was, if that is not possible.
    """
    adapters = list(adapters)
    with free_base("fuse", adapters, model) as base:
        opened = [on_base("fuse", adapter, base) for adapter in adapters]
        for tuned in opened:
            tuned.check_none_off("fuse")
            if type(tuned.method) is not BottleneckAdapter:
                raise MethodError(f"fuse: expected a BottleneckAdapter, got {tuned.method}")
        method = AdapterFusion(tuple(tuned.method for tuned in opened), regularization)
        state = {f"AdapterFusion/{path}.adapters.{i}.{name}": array
                 for i, tuned in enumerate(opened) for path, adapter in tuned.wrappers.items()
                 for name, array in own_state(adapter).items()}
        return attach_with(base, method, state, strict=False, head=head, head_bias=head_bias,
                           rng=rng)


@dataclass(frozen=True)
class AdapterFusion(Method):
    """Train an attention over frozen adapters. `fuse` makes one from adapters that were trained."""
    adapters: tuple[BottleneckAdapter, ...] = declared((), SEVERAL)
    regularization: float = real(0.01, least=0)
    learning_rate = 5e-3

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Method:
        adapters = fields.get("adapters")
        if isinstance(adapters, list):                   # a file holds the fields of each
            adapters = [made(BottleneckAdapter, adapter) for adapter in adapters]
        return made(cls, fields | {"adapters": adapters})

    def check(self) -> None:
        if any(a.norms for a in self.adapters):
            raise MethodError("AdapterFusion: an adapter with norms=True trains the norms of the "
                              "base as well, and a base has one set of norms for all adapters; "
                              "train BottleneckAdapter(norms=False)")
        if len({a.placement for a in self.adapters}) > 1:
            raise MethodError("AdapterFusion: all adapters must have the same placement, got "
                              f"{', '.join(a.placement for a in self.adapters)}")

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        for adapter in self.adapters:
            check_narrower(adapter, model)
        return {path: FusedAdapters(model.get(path), self, rng)
                for path in self.adapters[0].paths(model)}

    def penalty(self, layers: Layers) -> Tensor | None:
        """Compute c Σ ‖V − I‖²_F over the layers."""
        if not self.regularization:
            return None
        D = [layer.V - np.eye(layer.d_out) for layer in layers.values()]
        return self.regularization * sum((d * d).sum() for d in D)


class FusedAdapters(Wrapper):
    """h + Σ αₙ V zₙ, for the output h of the layer `base`."""

    def __init__(self, base: Module, method: AdapterFusion, rng: Rng):
        d = base.d_out
        self.base = base
        self.adapters = [Bottleneck(d, adapter, rng) for adapter in method.adapters]
        for adapter in self.adapters:
            for p in adapter.parameters():
                p.requires_grad = False
        self.Q = Parameter(0.02 * rng.standard_normal((d, d)))
        self.K = Parameter(0.02 * rng.standard_normal((d, d)))
        V = np.full((d, d), 1e-6)
        self.V = Parameter(V + (1 - 1e-6) * np.eye(d))

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)                                                      # (B, T, d)
        z = stack([adapter.z(h) for adapter in self.adapters], 2)             # (B, T, N, d)
        mixed = (self.attention(h, z) * z).sum(2)                             # (B, T, d)
        return h + F.linear(mixed, self.V)

    def attention(self, h: Tensor, z: Tensor) -> Tensor:
        """Compute α, (B, T, N, 1), of h (B, T, d) and z (B, T, N, d)."""
        B, T, N, d = z.shape
        KQh = F.linear(F.linear(h, self.Q), self.K.T)                         # (B, T, d)
        scores = (z * KQh.reshape(B, T, 1, d)).sum(3)                         # (B, T, N)
        return F.softmax(scores).reshape(B, T, N, 1)

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, {len(self.adapters)} adapters)"
