"""(IA)³: Infused Adapter by Inhibiting and Amplifying Inner Activations.

(IA)³ freezes all weights and learns three vectors per block, which rescale keys, values and the
inner activations of the feed-forward network (Liu et al., arXiv 2205.05638). Section 3.3, where ⊙
multiplies elementwise:

    h = softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V),        ffn(x) = W₂ (l_ff ⊙ γ(W₁ x))

    paper      here                    shape
    l_k, l_v   l of `key` and `value`  (w,), starts at 1; w = n_kv_heads d_head, which is d in GPT-2
    l_ff       l of `down`             (h,), starts at 1; h is the MLP's width, 4 d in GPT-2
    W₁, W₂     `up`, `down`            (h, d) and (d, h), frozen, quantized or not
    γ          GELU

In a gated MLP, such as Llama's, the inner activations are silu(gate(x)) ⊙ up(x). They are the input
of `down` there as well, so l_ff scales the product. The authors' code scales the output of `up`
instead (`wi_1` in T5), which is the same function.
Keys and values are outputs of linear layers, so l scales an output: l ⊙ (W x + b). The inner
activations are the input of `down`, so l scales an input: W (l ⊙ x) + b. Both are linear in x, so
both can be merged: the first into the rows of W and into b, the second into the columns of W. With
l = 1 the model starts unchanged, bit for bit. Trained: L (2 w + h) numbers for L blocks.

Where implementations differ. The paper's equation has one head; here and in PEFT a vector spans all
heads, so each head has its own part. PEFT lists layers by name, and this file does the same:
`targets` have vectors, and those that are in `feedforward`, too, have them at the input. On l_ff
the paper, PEFT and this file agree. On GPT-2's attention they do not: PEFT's default target is the
fused `c_attn`, whose output holds the queries as well. The paper leaves queries alone, and so does
this file; `targets=("query", "key", "value", "down")` is PEFT's. On Llama PEFT's defaults are the
paper's, but on Qwen3 and Gemma 3 they are query, value and down. T5, the paper's model, has no
biases. Here, as in PEFT, l multiplies the bias of a key or a value with the rest. The losses of the
paper's recipe T-Few, and its pretraining of l, are not part of (IA)³ and not here.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import layer_names
from ..engine.nn import Linear, Module, Parameter
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import chosen, match_targets
from .changed import linear_of
from .method import Method, Wrapper

__all__ = ["IA3", "ScaledInput", "ScaledOutput"]


@dataclass(frozen=True)
class IA3(Method):
    """Train a vector l for each linear layer named in `targets`; it scales the layer's output.

    feedforward: those of the targets whose input is scaled instead, or None.
    """
    targets: Targets = layer_names(("key", "value", "down"))
    feedforward: Targets | None = layer_names(("down",), or_none=True,
                                              also=("feedforward_modules",))
    learning_rate: ClassVar[float] = 3e-2

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        layers = dict(match_targets(model, self.targets))
        inner = self.inner(layers)
        return {path: ScaledInput(layer) if path in inner else ScaledOutput(layer)
                for path, layer in layers.items()}

    def inner(self, paths: Iterable[str]) -> list[str]:
        """Choose the targets' paths that `feedforward` names."""
        if self.feedforward is None:
            return []
        return chosen(paths, self.feedforward, "feedforward", "targets")


class Scaled(Wrapper):
    """A frozen linear layer `base` and a vector `l` of n ones, which is trained."""

    def __init__(self, base: Module, n: int):
        self.base = base
        self.l = Parameter(np.ones(n, np.float32))

    def scaled(self, scale_W: Array, scale_b: Array | float) -> Linear:
        """Make a Linear: weight W ⊙ scale_W (W dequantized if need be) and bias b ⊙ scale_b."""
        weight = self.base.dense_weight() * scale_W
        bias = self.base.bias
        return linear_of(weight, None if bias is None else bias.data * scale_b)


class ScaledOutput(Scaled):
    """l ⊙ (W x + b), l (d_out,)."""

    def __init__(self, base: Module):
        super().__init__(base, base.d_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.l

    def merge(self) -> Linear:
        """Multiply the rows of W, and b, by l."""
        l = self.l.data
        return self.scaled(l[:, None], l)

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, output scaled)"


class ScaledInput(Scaled):
    """W (l ⊙ x) + b, l (d_in,)."""

    def __init__(self, base: Module):
        super().__init__(base, base.d_in)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x * self.l)

    def merge(self) -> Linear:
        """Multiply the columns of W by l."""
        return self.scaled(self.l.data, 1)

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, input scaled)"
