"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751): small MLPs inside every layer.

An adapter projects d features down to m ≪ d, applies a nonlinearity, and projects back up. It adds
the result, which starts near zero, to its input: the model starts nearly unchanged. Section 2.1:

    h ← h + W_u f(W_d h + b_d) + b_u

    paper    here                shape
    W_d      W_d                 (m, d), starts at N(0, 0.01²), truncated at two standard deviations
    W_u      W_u                 (d, m), the same; b_d and b_u start at 0
    m, f     bottleneck, activation; f is GELU in the authors' code

`placement="houlsby"` puts two adapters into every layer, after the output projection of the
attention and after that of the feed-forward part, each before the residual addition.
`placement="pfeiffer"` uses only the second, which is the place of Pfeiffer et al. (arXiv
2005.00247). `norms` also trains the layer norms, as Houlsby does and Pfeiffer does not. It is on by
default in both placements. Trained: n (2 d m + d + m) for n = 2 L adapters (pfeiffer: L), and the
norms: 2 d (2 L + 1) in GPT-2. An adapter is not linear, so it cannot be merged.

Where implementations differ. The paper starts at a standard deviation of 0.01, the authors' code at
0.001 (`init_std`). The survey (Matarazzo & Torlone, arXiv 2501.04040, equation 23) writes
z = σ(W_u y + b_u), with an activation on the way up, which neither paper nor code has:
`activation_up=True`. The `adapters` library of Pfeiffer's authors (`SeqBnConfig`) has ReLU and
starts at N(0, 0.02²), not truncated: `activation="relu", init_std=0.02, norms=False` come near. Its
adapter also reads another thing. Here it reads h, the sublayer's output. There it reads x + h, the
sum with the residual stream (`original_ln_before=True`), in BERT after the norm. Both add their
output to h. BERT normalizes after the addition, GPT-2 and Llama before each sublayer; the
adapter's place is the same in all. Gemma 3 also normalizes a sublayer's output before the addition:
the adapter comes before that norm, so it reads and changes what the projection gives. `norms` then
trains all norms of the model, and with Qwen3's and Gemma's also those of queries and keys.
"""
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng
from ..common.hyper import flag, one_of, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from .method import Method, MethodError, Wrapper

__all__ = ["ACTIVATIONS", "Adapter", "BottleneckAdapter", "truncated_normal"]


def silu(x: Tensor) -> Tensor:
    """y = x σ(x)."""
    return x * x.sigmoid()


# functions with names, because pickle writes a function as its name
ACTIVATIONS = {"gelu": F.gelu, "relu": Tensor.relu, "tanh": Tensor.tanh, "silu": silu}
PLACES = {"houlsby": ("attention.output", "mlp.down"), "pfeiffer": ("mlp.down",)}


@dataclass(frozen=True)
class BottleneckAdapter(Method):
    """Train MLPs of `bottleneck` hidden units after sublayers and, if `norms`, the layer norms."""
    bottleneck: int = whole(64, least=1, also=("m", "adapter_size", "bottleneck_size"))
    placement: str = one_of(*PLACES)
    activation: str = one_of(*ACTIVATIONS, also=("non_linearity",))
    activation_up: bool = flag(False)
    init_std: float = real(1e-2, above=0)            # at 0 neither matrix would ever get a gradient
    norms: bool = flag(True)
    learning_rate = 5e-3
    shown = ("bottleneck",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        check_narrower(self, model)
        layers = PLACES[self.placement]
        paths = [f"blocks.{i}.{layer}" for i in range(model.config.n_layers) for layer in layers]
        return {path: Adapter(model.get(path), self, rng) for path in paths}

    def trained(self, model: Decoder) -> list[str]:
        if not self.norms:
            return []
        return [name for name, _ in model.named_parameters() if "norm" in name]


class Adapter(Wrapper):
    """h + W_u f(W_d h + b_d) + b_u, for the output h of the layer `base`."""

    def __init__(self, base: Module, method: BottleneckAdapter, rng: Rng):
        d = base.d_out
        m, std = method.bottleneck, method.init_std
        self.base = base
        self.f = ACTIVATIONS[method.activation]
        self.activation_up = method.activation_up
        self.W_d = Parameter(truncated_normal((m, d), std, rng))
        self.b_d = Parameter(np.zeros(m))
        self.W_u = Parameter(truncated_normal((d, m), std, rng))
        self.b_u = Parameter(np.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)                                                      # (B, T, d)
        y = self.f(F.linear(h, self.W_d, self.b_d))                           # (B, T, m)
        z = F.linear(y, self.W_u, self.b_u)                                   # (B, T, d)
        return h + (self.f(z) if self.activation_up else z)

    def describe(self) -> str:
        m, d = self.W_d.shape
        return f"({d} → {m} → {d})"


def check_narrower(method, model):
    """Raise MethodError unless the method's bottleneck is narrower than the model."""
    m, d = method.bottleneck, model.config.d_model
    if m >= d:
        raise MethodError(f"{type(method).__name__}: bottleneck {m} does not narrow a width of {d}")


def truncated_normal(shape: tuple[int, ...], std: float, rng: Rng) -> Array:
    """Draw from N(0, std²), and anew what lies beyond two standard deviations."""
    z = rng.standard_normal(shape)
    while (far := np.abs(z) > 2).any():
        z[far] = rng.standard_normal(far.sum())
    return std * z
