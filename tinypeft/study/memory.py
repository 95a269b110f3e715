"""The memory of fine-tuning: one formula per term, tested against traced bytes, then applied to a model of 7 B.

The formulas count numbers, not bytes, for a batch of B rows of T tokens, N = B·T, in a transformer of L blocks and width d,
with H heads, h hidden units in an MLP and V tokens in the vocabulary. The H queries of a token have q numbers, its keys w:
q = w = d in GPT-2; w is smaller if heads share keys.

    weights       L·(2 d (q + w) + m d h) + V d + … m = 2 matrices in an MLP, 3 if it is gated; biases, norms, positions
    gradients     n                                 n: trained parameters
    optimizer     2 n                               AdamW's two moments
    activations   what the forward pass keeps for the backward pass:
                  L·N·(2 d                          x̂ of both norms
                       + q + 2 w                    Q, K and V; with norms of q, k, their x̂ as well, q + w
                       + 2 H                        the largest score of a query and softmax's sum, to compute P again
                       + h                          GELU's slope (gated, 2 h: both slopes of silu(g) u)
                       + inputs                     x of every trained layer y = W x, because dW = dyᵀ x
                       + method)                    what the method itself keeps
    working       the larger of two: N V            the logits, whose place their softmax takes, while the loss is computed
                                                    (at most about 2²², or 256 rows of them); or
                  N·(2 h + 2 d) + scratch           the last MLP's values that are not kept anyway (gated: 3 h), and the larger
                                                    of a decoded matrix (d h) with as many indices, at most 2¹⁸, to look it up,
                                                    and GELU's scratch space, about 2·2¹⁷ at most (gated: 2¹⁷);
                  and OBJECTS bytes of a block      the graph: Tensors, nodes and functions

A frozen W needs no x; LoRA saves these inputs, and the gradients and moments of W. The other terms, x̂, Q, K, V and slope, are
needed to pass gradients on, whatever is trained. Attention's P is computed twice, so that nothing grows with T². Memory is
largest at one of two moments: at the end of the forward pass all activations exist and no gradient; at the end of the backward
pass all gradients exist, and the activations of at most one block.

    peak = weights + optimizer + max(activations + working, gradients + activations/L)

This engine and its test work in float32. For large models `Precision` gives the width of each kind of number. The formulas
do not count the memory of the framework beyond this graph, workspaces of kernels, or fragmentation. They assume that no block
is computed twice (checkpointing) and that nothing is paged out.
"""
from __future__ import annotations

import inspect
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..common.hyper import one_of, real, whole
from ..engine.functional import LOGITS
from ..engine.optim import AdamW
from ..models.gpt import GPT, GPTConfig
from ..models.llama import Llama, LlamaConfig
from ..peft import METHODS, LoRA, Method, attach
from ..quant import NF4, quantize
from .markdown import aligned

__all__ = ["FLOAT32", "FORMULAS", "MIXED", "SHAPES", "Precision", "Shape", "compared", "estimate", "shape_of", "table",
           "traced"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer. hidden: h (None: 4 d). gated: as in LLaMA, an MLP of three matrices without
    biases, RMS norms and no learned positions; if not, as in GPT-2. tied: the head is the embedding. kv_heads: heads that
    have keys of their own (None: all). d_head: the width of a head (None: d/H). qk_norm: queries and keys have norms."""
    layers: int
    d: int
    heads: int
    vocab: int
    context: int
    hidden: int | None = None
    gated: bool = False
    tied: bool = True
    kv_heads: int | None = None
    d_head: int | None = None
    qk_norm: bool = False

    h = property(lambda self: self.hidden or 4 * self.d)
    head = property(lambda self: self.d_head or self.d // self.heads)
    q = property(lambda self: self.heads * self.head)
    w = property(lambda self: (self.kv_heads or self.heads) * self.head)
    attention = property(lambda self: 2 * self.d * (self.q + self.w))
    matrices = property(lambda self: self.layers * (self.attention + (3 if self.gated else 2) * self.d * self.h))
    biases = property(lambda self: 0 if self.gated else self.layers * (5 * self.d + self.h))
    norms = property(lambda self: (1 if self.gated else 2) * self.d * (2 * self.layers + 1)
                     + self.qk_norm * 2 * self.head * self.layers)
    positions = property(lambda self: 0 if self.gated else self.context * self.d)
    embeddings = property(lambda self: self.vocab * self.d * (1 if self.tied else 2) + self.positions)
    parameters = property(lambda self: self.matrices + self.biases + self.norms + self.embeddings)

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of a GPTConfig or a LlamaConfig. Raises ValueError for another family."""
        c = config
        if not isinstance(c, (GPTConfig, LlamaConfig)):
            raise ValueError(f"memory: the formulas are for a GPTConfig or a LlamaConfig, got a {type(c).__name__}")
        shape = cls(c.n_layers, c.d_model, c.n_heads, c.vocab_size, c.context_length)
        if isinstance(c, GPTConfig): return shape
        return replace(shape, hidden=c.d_mlp, gated=True, tied=c.tied, kv_heads=c.n_kv_heads, d_head=c.d_head,
                       qk_norm=c.qk_norm)


SHAPES = {
    "base": Shape(5, 128, 4, 1024, 256),                                     # the shipped base
    "gpt2": Shape(12, 768, 12, 50257, 1024),
    "llama-7b": Shape(32, 4096, 32, 32000, 2048, 11008, gated=True, tied=False),      # Touvron et al., arXiv 2302.13971
}


def shape_of(parameters: float) -> Shape:
    """A GPT with about this many parameters: heads of width 128, as many blocks as heads, 32,000 tokens, 2,048 positions.

    Raises ValueError where no such shape comes within a factor of 2."""
    shapes = [Shape(k, 128 * k, k, 32000, 2048) for k in range(1, 300)]
    if not shapes[0].parameters / 2 <= parameters <= 2 * shapes[-1].parameters:
        raise ValueError(f"memory: expected {shapes[0].parameters / 2:.0e} to {2 * shapes[-1].parameters:.0e} parameters, "
                         f"got {parameters:g}")
    return min(shapes, key=lambda s: abs(math.log(s.parameters / parameters)))


@dataclass(frozen=True)
class Precision:
    """Bytes per number. frozen: weights that are neither trained nor quantized. trained: weights that are trained.
    moments: both moments of AdamW together."""
    frozen: float = 2
    trained: float = 4
    gradients: float = 4
    moments: float = 8
    activations: float = 2
    logits: float = 4


FLOAT32 = Precision(4, 4, 4, 8, 4, 4)                    # this engine
MIXED = Precision()                                      # frozen weights and activations in 16 bits, the rest in 32


@dataclass(frozen=True)
class Counts:
    """What a method adds to the formulas. n: trained parameters. inputs: widths of the x that a block keeps for dW. mlp: the
    part of them in the MLP. extra: numbers per token and block that the method keeps. virtual: tokens that it adds to a row.
    lowest: it trains something at or below the first norm. full: it trains every weight."""
    n: int
    inputs: int = 0
    mlp: int = 0
    extra: int = 0
    virtual: int = 0
    lowest: bool = False
    full: bool = False


def full(s: Shape) -> Counts:
    return Counts(s.parameters, inputs=2 * s.d + s.q + s.h, mlp=s.d + s.h, lowest=True, full=True)


def lora(s: Shape, rank: int = 8, targets: tuple[str, ...] | str = ("query", "value")) -> Counts:
    """On query and value, or on "all" matrices: r (d_in + d_out) parameters each; the r numbers A x are kept for dB."""
    if targets == "all":
        matrices = 3 if s.gated else 2
        n = s.layers * rank * (4 * s.d + 2 * (s.q + s.w) + matrices * (s.d + s.h))
        return Counts(n, inputs=2 * s.d + s.q + s.h, mlp=s.d + s.h, extra=rank * (4 + matrices))
    return Counts(s.layers * rank * (2 * s.d + s.q + s.w), inputs=s.d, extra=2 * rank)


def adapter(s: Shape, bottleneck: int = 64) -> Counts:
    """Houlsby's adapters, two per block: each keeps h, the slope in its bottleneck and the bottleneck's output; norms are
    trained."""
    n = 2 * s.layers * (2 * s.d * bottleneck + bottleneck + s.d) + s.norms
    return Counts(n, extra=2 * (s.d + 2 * bottleneck), lowest=True)


def prefix(s: Shape, length: int = 10) -> Counts:
    """Keys and values in every block, trained directly."""
    return Counts(2 * length * s.layers * s.w, virtual=length)


def prompt(s: Shape, length: int = 20) -> Counts:
    """Vectors before the input; they pass through every layer, as tokens do."""
    return Counts(length * s.d, virtual=length, lowest=True)


FORMULAS = {"full": full, "lora": lora, "qlora": lora, "adapter": adapter, "prefix": prefix, "prompt": prompt}


LIMITS = {"rank": whole(8, least=1), "bottleneck": whole(64, least=1), "length": whole(10, least=1),
          "targets": one_of(("query", "value"), "all"), "bits": real(None, above=0, most=32, or_none=True)}


def formula(method: str) -> Callable[..., Counts]:
    """The formula of a method. Raises ValueError if there is none."""
    if method not in FORMULAS:
        raise ValueError(f"memory: unknown method {method!r}; expected one of {', '.join(FORMULAS)}")
    return FORMULAS[method]


OBJECTS = 2**14                                          # as traced where blocks are small and many


def estimate(shape: Shape, method: str, batch: int = 1, tokens: int = 512, precision: Precision = MIXED,
             bits: float | None = None, **options) -> dict[str, float]:
    """Bytes by name: the parts weights, optimizer, gradients, activations and working; forward and backward, the sums at the
    end of either pass; peak, the larger sum.

    method: a name in FORMULAS; options: its keywords. bits: per weight of the blocks' matrices if they are frozen and
    quantized; the default is 4.127 for "qlora" (NF4, double quantization) and no quantization for the others. Raises
    ValueError for an unknown method, for sizes below 1, and for `bits` where no weight is frozen.
    """
    if batch < 1 or tokens < 1:
        raise ValueError(f"memory: batch and tokens must be at least 1, got {batch} and {tokens}")
    for name, value in {**options, "bits": bits}.items():
        limit = LIMITS[name].metadata["limit"]
        if not limit.holds(value): raise ValueError(f"memory: {name} must be {limit.expected}, got {value!r}")
    s, p, m = shape, precision, formula(method)(shape, **options)
    if bits is None and method == "qlora": bits = NF4_DOUBLE
    if bits is not None and m.full:
        raise ValueError("memory: full fine-tuning freezes no weight, so none can be quantized; leave bits out")
    L, d, H, V = s.layers, s.d, s.heads, s.vocab
    Q = tokens + (m.virtual if method == "prompt" else 0)                    # positions of a row that are computed
    S = tokens + m.virtual                                                   # positions that can be attended to
    N = batch * Q

    matrices = 0 if m.full else s.matrices * (p.frozen if bits is None else bits / 8)
    others = 0 if m.full else (s.parameters - s.matrices) * p.frozen
    weights = matrices + others + m.n * p.trained
    optimizer = m.n * p.moments
    gradients = m.n * p.gradients

    hidden = 2 * s.h if s.gated else s.h
    norms = s.q + s.w if s.qk_norm else 0
    block = N * (2 * d + s.q + 2 * s.w + 2 * H + norms + hidden + m.inputs + m.extra)
    keys = 2 * batch * (S - Q) * s.w                                         # keys and values of a prefix
    first = 0 if m.lowest else N * d                                         # x̂ of a norm below which nothing is trained
    last = N * d * (2 if m.full else 1)                                      # x̂ of the final norm, and the head's x
    activations = (L * (block + keys) - first + last) * p.activations
    logits = min(batch * tokens * V, max(LOGITS, 256 * V)) * p.logits
    values, scratch = (3, 1) if s.gated else (2, 2)                          # of h: gate(x), up(x) and their product
    mlp = N * (values * s.h + 2 * d - m.mlp) * p.activations
    scratch = scratch * min(N * s.h, 2**17) * p.activations
    decoded = 0 if bits is None else d * s.h * p.frozen + 4 * min(d * s.h, 2**18)            # and the indices of look-ups
    working = max(logits, mlp + max(scratch, decoded)) + OBJECTS * L

    forward = weights + optimizer + activations + working
    backward = weights + optimizer + gradients + activations / L
    return {"weights": weights, "optimizer": optimizer, "gradients": gradients, "activations": activations, "working": working,
            "forward": forward, "backward": backward, "peak": max(forward, backward)}


NF4_DOUBLE = 4 + 8 / 64 + 32 / (64 * 256)                # bits per weight (`quant/nf4.py`)


def compared(shape: Shape, batch: int = 1, tokens: int = 512, precision: Precision = MIXED,
             methods: tuple[str, ...] = ("full", "lora", "qlora"), **options) -> dict[str, dict[str, float]]:
    """method → `estimate`, the rows of the table. Each option goes to the methods that have it; an option that none of the
    methods has raises ValueError."""
    takes = lambda name: [*list(inspect.signature(formula(name)).parameters)[1:], *(["bits"] if name != "full" else [])]
    unknown = [o for o in options if not any(o in takes(name) for name in methods)]
    if unknown:
        options = ", ".join(dict.fromkeys(option for name in methods for option in takes(name))) or "none"
        raise ValueError(f"memory: none of {', '.join(methods)} has an option {unknown[0]!r}; there are {options}")
    mine = lambda name: {o: v for o, v in options.items() if o in takes(name)}
    return {name: estimate(shape, name, batch, tokens, precision, **mine(name)) for name in methods}


# -- what this engine really takes ---------------------------------------------------------------
def traced(config: Any, method: str, batch: int, tokens: int, seed: int = 0, **options) -> int:
    """Peak bytes that this engine holds in one training step: model, method, AdamW and graph together.

    The model is random. The second step is measured, because AdamW has its moments then. tracemalloc counts the bytes; NumPy
    reports every array to it.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, config.vocab_size, (2, batch, tokens))
    tracemalloc.start()
    try:
        model = {GPTConfig: GPT, LlamaConfig: Llama}[type(config)](config, rng=seed)
        tuned = model if method == "full" else attach(
            quantize(model, NF4(double_quant=True)) if method == "qlora" else model, attachable(method, options), rng=seed)
        optimizer = AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(2):
            tracemalloc.reset_peak()
            optimizer.zero_grad()
            tuned.loss(x, y).backward()
            optimizer.step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attachable(method: str, options: dict) -> Method:
    """The method that `attach` takes, for a name in FORMULAS and its options."""
    if method in ("lora", "qlora"):
        return LoRA(**options | {"targets": options.get("targets", ("query", "value"))})
    return METHODS[method](**options, **({"reparameterize": False} if method == "prefix" else {}))


# -- the table -----------------------------------------------------------------------------------
PARTS = "weights", "optimizer", "gradients", "activations", "working"


def table(rows: dict[str, dict[str, float]]) -> str:
    """Estimates as text, in GiB, or in MiB if the largest is below one GiB. rows: label → `estimate`."""
    unit, name = (2**30, "GiB") if max(r["peak"] for r in rows.values()) >= 2**30 else (2**20, "MiB")
    head = ["method", *PARTS, "after forward", "after backward", "peak"]
    body = [[label, *(f"{row[k] / unit:.2f}" for k in (*PARTS, "forward", "backward", "peak"))] for label, row in rows.items()]
    first, *others = aligned([head, *body])
    return "\n".join([f"{first}   ({name})", *others])
