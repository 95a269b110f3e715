"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751): small MLPs in every layer, each around a skip connection.

An adapter maps d features to m ≪ d, bends them, and maps them back; added to its input, and started near zero,
it leaves the model nearly as it was. Section 2.1:

    h ← h + W_u f(W_d h + b_d) + b_u

    paper    here                shape
    W_d      W_d                 (m, d), starts at N(0, 0.01²) cut off at two standard deviations, b_d at 0
    W_u      W_u                 (d, m), the same
    m        bottleneck
    f        activation          GELU in the authors' code

`placement="houlsby"`: twice per layer, after the attention's output projection and after the feed-forward's, each
before the residual addition. `placement="pfeiffer"`: after the feed-forward alone (Pfeiffer et al., arXiv
2005.00247). With `norms` the layer norms are trained as well, as Houlsby does and Pfeiffer does not.

Trained parameters: n (2 d m + d + m) for n = 2 L adapters (pfeiffer: L), and 2 d (2 L + 1) of layer norms.
The function is not linear in h: adapters cannot be merged.

Where things differ. The paper starts at a standard deviation of 0.01, the authors' code at 0.001 (`init_std`). The
survey (Matarazzo & Torlone, arXiv 2501.04040) writes z = σ(W_u y + b_u), with an activation on the way up as well,
which neither paper nor code has: `activation_up=True`. BERT normalizes after the addition, GPT-2 before each
sublayer: the adapter's place, between projection and addition, is the same in both.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..nn import Module, Parameter
from .method import Method, MethodError

__all__ = ["ACTIVATIONS", "Adapter", "BottleneckAdapter", "check_bottleneck", "truncated_normal"]

ACTIVATIONS = {"gelu": F.gelu, "relu": lambda x: x.relu(), "tanh": lambda x: x.tanh(),
               "silu": lambda x: x * x.sigmoid()}


@dataclass(frozen=True)
class BottleneckAdapter(Method):
    """bottleneck m, placement "houlsby" or "pfeiffer", activation "gelu", "relu", "tanh" or "silu".

    activation_up: also on the way up, the survey's form. init_std: of both matrices at the start. norms: train the
    layer norms too.
    """
    bottleneck: int = 64
    placement: str = "houlsby"
    activation: str = "gelu"
    activation_up: bool = False
    init_std: float = 1e-2
    norms: bool = True
    learning_rate: ClassVar[float] = 5e-3
    shown: ClassVar[tuple] = ("bottleneck",)

    def __post_init__(self):
        check_bottleneck("BottleneckAdapter", self.bottleneck, self.activation)
        if self.placement not in ("houlsby", "pfeiffer"):
            raise MethodError(f"BottleneckAdapter: placement must be 'houlsby' or 'pfeiffer', got {self.placement!r}")
        if not self.init_std > 0:
            raise MethodError(f"BottleneckAdapter: init_std must be positive, got {self.init_std!r}; "
                              "with both matrices at 0 neither would ever get a gradient")

    def wrap(self, model, rng):
        check_bottleneck("BottleneckAdapter", self.bottleneck, self.activation, model)
        places = ("attention.output", "mlp.down") if self.placement == "houlsby" else ("mlp.down",)
        paths = [f"blocks.{i}.{place}" for i in range(model.config.n_layers) for place in places]
        return {path: Adapter(model.get(path), self, rng) for path in paths}

    def trained(self, model):
        return [n for n, _ in model.named_parameters() if "norm" in n] if self.norms else []


class Adapter(Module):
    """h + W_u f(W_d h + b_d) + b_u, for the output h of the layer `base`."""

    def __init__(self, base, method, rng):
        d, m = base.d_out, method.bottleneck
        self.base, self.f, self.activation_up = base, ACTIVATIONS[method.activation], method.activation_up
        self.W_d, self.b_d = Parameter(truncated_normal((m, d), method.init_std, rng)), Parameter(np.zeros(m))
        self.W_u, self.b_u = Parameter(truncated_normal((d, m), method.init_std, rng)), Parameter(np.zeros(d))

    d_in = property(lambda self: self.base.d_in)
    d_out = property(lambda self: self.base.d_out)

    def forward(self, x):
        h = self.base(x)                                                      # (B, T, d)
        y = self.f(F.linear(h, self.W_d, self.b_d))                           # (B, T, m)
        z = F.linear(y, self.W_u, self.b_u)                                   # (B, T, d)
        return h + (self.f(z) if self.activation_up else z)

    def describe(self):
        return "({1} → {0} → {1})".format(*self.W_d.shape)


def check_bottleneck(name, m, activation, model=None):
    """Raise MethodError unless m is a positive integer below the model's width and the activation is known."""
    if isinstance(m, bool) or not isinstance(m, (int, np.integer)) or m < 1:
        raise MethodError(f"{name}: bottleneck must be a positive integer, got {m!r}")
    if activation not in ACTIVATIONS:
        raise MethodError(f"{name}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if model is not None and m >= model.config.d_model:
        raise MethodError(f"{name}: a bottleneck of {m} does not narrow a model that is {model.config.d_model} wide")


def truncated_normal(shape, std, rng):
    """N(0, std²) without its tails: what falls beyond two standard deviations is drawn again."""
    z = rng.standard_normal(shape)
    while (far := np.abs(z) > 2).any():
        z[far] = rng.standard_normal(far.sum())
    return std * z
