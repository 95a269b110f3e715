"""GPT-2's architecture (Radford et al. 2019).

    h₀ = E[tokens] + P[positions]
    h ← h + Attention(LayerNorm(h)),   h ← h + MLP(LayerNorm(h))          in every block
    logits = LayerNorm(h) Eᵀ                                              the head is tied to E

Query, key and value are three projections and not one fused matrix, so that a method can adapt each
separately. `decoder.py` has what a GPT shares with other language models.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from . import functional as F
from .decoder import Decoder, attend, heads
from .generate import LayerCache
from .hints import Array, Seed
from .hyper import Checked, real, whole
from .nn import Dropout, Embedding, LayerNorm, Linear, Module, Parameter, check_names
from .tensor import Tensor

__all__ = ["GPT", "GPTConfig", "parameter_shapes"]


@dataclass(frozen=True)
class GPTConfig(Checked):
    """The sizes of a GPT. d_model must divide into n_heads; the MLP is 4 d_model wide."""
    vocab_size: int = whole(1024, least=1)
    context_length: int = whole(256, least=1, also=("n_positions", "n_ctx", "block_size"))
    d_model: int = whole(128, least=1, also=("n_embd", "hidden_size"))
    n_layers: int = whole(6, least=1, also=("n_layer", "num_hidden_layers"))
    n_heads: int = whole(4, least=1, also=("n_head", "num_attention_heads"))
    dropout: float = real(0.0, least=0, below=1)
    norm_eps: float = real(1e-5, least=0, most=1, also=("layer_norm_epsilon",))

    # The start of a layer whose output joins the residual stream, to which 2 L layers add.
    residual_std = property(lambda self: 0.02 / (2 * self.n_layers) ** 0.5)
    d_head = property(lambda self: self.d_model // self.n_heads)
    n_kv_heads = property(lambda self: self.n_heads)

    def check(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"GPTConfig: d_model {self.d_model} does not divide into "
                             f"{self.n_heads} heads")


class Attention(Module):
    """Multi-head causal self-attention."""

    def __init__(self, c, rng):
        self.n_heads, d = c.n_heads, c.d_model
        self.query, self.key, self.value = (Linear(d, d, rng=rng) for _ in range(3))
        self.output = Linear(d, d, rng=rng, std=c.residual_std)
        self.dropout, self.residual_dropout = Dropout(c.dropout), Dropout(c.dropout)

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None,
                cache: LayerCache | None = None) -> Tensor:
        q, k, v = (heads(project(x), self.n_heads)
                   for project in (self.query, self.key, self.value))
        drop = self.dropout
        o = attend(q, k, v, prefix, cache, dropout=drop.p if drop.training else 0.0, rng=drop.rng)
        return self.residual_dropout(self.output(o))


class MLP(Module):
    """down(GELU(up(x))), GELU in its tanh form."""

    def __init__(self, c, rng):
        self.up = Linear(c.d_model, 4 * c.d_model, rng=rng)
        self.down = Linear(4 * c.d_model, c.d_model, rng=rng, std=c.residual_std)
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(x))))


class Block(Module):
    """x + Attention(LayerNorm(x)), and to that + MLP(LayerNorm(·))."""

    def __init__(self, c, rng):
        self.norm1, self.attention = LayerNorm(c.d_model, c.norm_eps), Attention(c, rng)
        self.norm2, self.mlp = LayerNorm(c.d_model, c.norm_eps), MLP(c, rng)

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None,
                cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), prefix, cache)
        return x + self.mlp(self.norm2(x))


class GPT(Decoder):
    """A GPT with random weights. `interop/gpt2.py` adds `from_huggingface` and `to_huggingface`."""

    def __init__(self, config: GPTConfig, rng: Seed = 0):
        if not isinstance(config, GPTConfig):
            raise TypeError(f"GPT: expected a GPTConfig, got {type(config).__name__}")
        rng = np.random.default_rng(rng)
        self.config, self.tokenizer = config, None
        self.attachment = None                           # what `peft.attach` changed here
        d = config.d_model
        self.token_embedding = Embedding(config.vocab_size, d, rng=rng)
        self.position_embedding = Embedding(config.context_length, d, rng=rng, std=0.01)
        self.dropout = Dropout(config.dropout)
        self.blocks = [Block(config, rng) for _ in range(config.n_layers)]
        self.final_norm = LayerNorm(d, config.norm_eps)
        self.head = None                                 # a classifier, where a task needs one

    @classmethod
    def from_arrays(cls, config: GPTConfig, arrays: Mapping[str, Array],
                    layers: Mapping[str, Module] | None = None) -> GPT:
        """A GPT whose parameters are `arrays`, which have the names of `state_dict`.

        It takes no memory beside the arrays. layers: path → the layer to have there in place of a
        `Linear`, with its weight and bias. The model has a head if there is a "head.weight".
        Raises KeyError for names missing or unknown, ValueError for shapes that do not fit
        `config`, and for arrays that are not all float32, or all float64."""
        layers = layers or {}
        if 4 * config.n_layers > len(arrays):            # its norms alone are 4 arrays per block
            raise ValueError(f"{len(arrays)} arrays are too few for {config.n_layers} layers")
        shapes = parameter_shapes(config)
        for path, layer in layers.items():
            expected, _ = shapes.pop(f"{path}.weight", None), shapes.pop(f"{path}.bias", None)
            if (layer.d_out, layer.d_in) != expected:
                raise ValueError(f"{path} has a weight of shape {(layer.d_out, layer.d_in)}, "
                                 f"expected {expected or 'none: a GPT has no such layer'}")
        if "head.weight" in arrays:
            shapes["head.weight"] = (*arrays["head.weight"].shape[:1], config.d_model)
            if "head.bias" in arrays: shapes["head.bias"] = shapes["head.weight"][:1]
        check_names(shapes, arrays)
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
        if (kinds := {a.dtype.name for a in arrays.values()}) not in ({"float32"}, {"float64"}):
            raise ValueError(f"the arrays are {' and '.join(sorted(kinds))}, expected float32 or "
                             "float64 for all")
        model = cls(replace(config, vocab_size=1, context_length=1, d_model=1, n_heads=1))
        model.config = config                            # a tiny model costs next to nothing
        for block in model.blocks: block.attention.n_heads = config.n_heads
        if "head.weight" in arrays: model.head = Linear(1, 1, bias="head.bias" in arrays)
        modules = dict(model.named_modules())
        for name, part in [*layers.items(), *((n, Parameter(a)) for n, a in arrays.items())]:
            path, _, kind = name.rpartition(".")
            setattr(modules[path], kind, part)
        return model

    def embed(self, x: Tensor, past: int) -> Tensor:
        return self.dropout(x + self.position_embedding(np.arange(past, past + x.shape[1])))


def parameter_shapes(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """name → shape of every parameter of a GPT without a head."""
    d = c.d_model
    block = {"attention.query": (d, d), "attention.key": (d, d), "attention.value": (d, d),
             "attention.output": (d, d), "mlp.up": (4 * d, d), "mlp.down": (d, 4 * d),
             "norm1": (d,), "norm2": (d,)}
    layers = {f"blocks.{i}.{name}": shape for i in range(c.n_layers)
              for name, shape in block.items()} | {"final_norm": (d,)}
    shapes = {"token_embedding.weight": (c.vocab_size, d),
              "position_embedding.weight": (c.context_length, d)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes
