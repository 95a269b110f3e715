"""Where the memory of fine-tuning goes: a formula per term, tested against bytes that were traced, then asked about 7 B.

Numbers (not bytes), for a batch of B rows of T tokens, N = B·T, in a transformer of L blocks, d wide, with H heads, h hidden
units in an MLP and V tokens in the vocabulary:

    weights       L·(4 d² + m d h) + V d + …        m = 2 matrices in an MLP, 3 if it is gated; biases, norms, positions
    gradients     n                                 n: trained parameters
    optimizer     2 n                               AdamW's two moments
    activations   what the forward pass keeps for the backward pass:
                  L·N·(2 d                          x̂ of both norms
                       + 4 d                        Q, K, V and the attention's output O
                       + H·(T + 64)/2               softmax(Q Kᵀ), of which blocks of 64 queries leave out the future
                       + h                          GELU's slope (gated: the slope, and both factors of the product)
                       + inputs                     x of every layer y = W x with something to train: its dW is dyᵀ x
                       + method)                    what the method itself keeps
    working       the larger of 2 N V               the logits and their softmax, when the loss has just been computed, and of
                  N·(2 h + 2 d) + scratch           the last MLP's values less what is kept anyway, a decoded matrix (d h),
                                                    and what GELU works with, 3·2¹⁸ at most

A frozen W needs no x, which is what a LoRA saves besides gradients and moments; x̂, Q, K, V, P and the slope are needed to
pass gradients on, whatever is trained. Memory is largest at one of two moments. At the end of the forward pass all
activations are there, and no gradient; at that of the backward pass all gradients, and activations of one block at most.

    peak = weights + optimizer + max(activations + working, gradients + activations/L)

This engine works in float32; so does the test. For large models `Precision` says how wide each kind of number is. Not
counted: what Python and a framework take for themselves, kernels' workspaces, fragmentation. No activation is computed twice
(checkpointing), and nothing is paged out.
"""
import inspect
import math
import tracemalloc
from dataclasses import dataclass

import numpy as np

from .. import functional as F
from ..gpt import GPT
from ..optim import AdamW
from ..peft import METHODS as PEFT_METHODS
from ..peft import LoRA, attach
from ..quant import NF4, quantize

__all__ = ["FLOAT32", "METHODS", "MIXED", "SHAPES", "Precision", "Shape", "compared", "estimate", "shape_of", "table", "traced"]


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer. hidden: h (None: 4 d). gated: an MLP of three matrices without biases, RMS norms and no
    learned positions, as in LLaMA; else GPT-2's. tied: the head is the embedding."""
    layers: int
    d: int
    heads: int
    vocab: int
    context: int
    hidden: int | None = None
    gated: bool = False
    tied: bool = True

    h = property(lambda self: self.hidden or 4 * self.d)
    matrices = property(lambda self: self.layers * (4 * self.d**2 + (3 if self.gated else 2) * self.d * self.h))
    biases = property(lambda self: 0 if self.gated else self.layers * (5 * self.d + self.h))
    norms = property(lambda self: (1 if self.gated else 2) * self.d * (2 * self.layers + 1))
    positions = property(lambda self: 0 if self.gated else self.context * self.d)
    embeddings = property(lambda self: self.vocab * self.d * (1 if self.tied else 2) + self.positions)
    parameters = property(lambda self: self.matrices + self.biases + self.norms + self.embeddings)

    @classmethod
    def of(cls, config):
        """That of a GPTConfig."""
        return cls(config.n_layers, config.d_model, config.n_heads, config.vocab_size, config.context_length)


SHAPES = {
    "base": Shape(5, 128, 4, 1024, 256),                                     # the shipped one
    "gpt2": Shape(12, 768, 12, 50257, 1024),
    "llama-7b": Shape(32, 4096, 32, 32000, 2048, 11008, gated=True, tied=False),      # Touvron et al., arXiv 2302.13971
}


def shape_of(parameters):
    """A GPT of about so many parameters: heads of 128, as many blocks as heads, a vocabulary of 32,000, 2,048 positions."""
    shapes = [Shape(k, 128 * k, k, 32000, 2048) for k in range(1, 300)]
    return min(shapes, key=lambda s: abs(math.log(s.parameters / parameters)))


@dataclass(frozen=True)
class Precision:
    """Bytes per number. frozen: weights that stay as they are and are not quantized; trained: weights that do not;
    moments: both of AdamW's."""
    frozen: float = 2
    trained: float = 4
    gradients: float = 4
    moments: float = 8
    activations: float = 2
    logits: float = 4


FLOAT32 = Precision(4, 4, 4, 8, 4, 4)                 # this engine
MIXED = Precision()                                      # frozen weights and activations in 16 bits, the rest in 32


@dataclass(frozen=True)
class Method:
    """n: trained parameters. inputs: widths of the x kept for dW, per block, mlp: those of them in the MLP. extra: numbers per
    token and block that the method keeps. virtual: tokens it adds to a row. lowest: it trains something at or below the
    first norm."""
    n: int
    inputs: int = 0
    mlp: int = 0
    extra: int = 0
    virtual: int = 0
    lowest: bool = False
    full: bool = False


def full(s):
    return Method(s.parameters, inputs=3 * s.d + s.h, mlp=s.d + s.h, lowest=True, full=True)


def lora(s, rank=8, targets=("query", "value")):
    """On queries and values, or on "all" matrices: r (d_in + d_out) parameters each; A x, r numbers, is kept for dB."""
    if targets == "all":
        matrices = 3 if s.gated else 2
        n = s.layers * rank * (8 * s.d + matrices * (s.d + s.h))
        return Method(n, inputs=3 * s.d + s.h, mlp=s.d + s.h, extra=rank * (4 + matrices))
    return Method(s.layers * rank * 4 * s.d, inputs=s.d, extra=2 * rank)


def adapter(s, bottleneck=64):
    """Houlsby's, two per block: h, the slope in the bottleneck, and what comes out of it are kept; norms are trained."""
    n = 2 * s.layers * (2 * s.d * bottleneck + bottleneck + s.d) + s.norms
    return Method(n, extra=2 * (s.d + 2 * bottleneck), lowest=True)


def prefix(s, length=10):
    """Keys and values in every block, trained directly."""
    return Method(2 * length * s.layers * s.d, virtual=length)


def prompt(s, length=20):
    """Vectors before the input: as tokens, they pass through everything."""
    return Method(length * s.d, virtual=length, lowest=True)


METHODS = {"full": full, "lora": lora, "qlora": lora, "adapter": adapter, "prefix": prefix, "prompt": prompt}


def estimate(shape, method, batch=1, tokens=512, precision=MIXED, bits=None, **options):
    """Bytes, a dict: weights, optimizer, gradients, activations, working; "forward" and "backward", what is there at the end
    of either pass; "peak", the larger.

    method: a name in METHODS, its options as keywords. bits: per weight of the blocks' matrices where these are frozen and
    quantized; default 4.127 for "qlora" (NF4, double quantization), else none.
    """
    if method not in METHODS:
        raise ValueError(f"memory: unknown method {method!r}; there are {', '.join(METHODS)}")
    if batch < 1 or tokens < 1:
        raise ValueError(f"memory: batch and tokens must be at least 1, got {batch} and {tokens}")
    s, p, m = shape, precision, METHODS[method](shape, **options)
    if bits is None and method == "qlora": bits = NF4_DOUBLE
    if bits is not None and m.full:
        raise ValueError("memory: full fine-tuning leaves no weight frozen that could be quantized; leave bits out")
    L, d, H, V = s.layers, s.d, s.heads, s.vocab
    Q = tokens + (m.virtual if method == "prompt" else 0)                    # positions in a row that are computed
    S = tokens + m.virtual                                                   # and that can be attended to
    N = batch * Q

    matrices = 0 if m.full else s.matrices * (p.frozen if bits is None else bits / 8)
    others = 0 if m.full else (s.parameters - s.matrices) * p.frozen
    weights = matrices + others + m.n * p.trained
    optimizer = m.n * p.moments
    gradients = m.n * p.gradients

    hidden = 3 * s.h if s.gated else s.h
    block = N * (2 * d + 4 * d + hidden + m.inputs + m.extra)
    scores = H * batch * (S**2 - (S - Q)**2 + 64 * Q) / 2
    keys = 2 * batch * (S - Q) * d                                           # of a prefix, and its values
    first = 0 if m.lowest else N * d                                         # x̂ of a norm below which nothing is trained
    last = N * d * (2 if m.full else 1)                                      # x̂ of the final norm, and the head's x
    activations = (L * (block + scores + keys) - first + last) * p.activations
    logits = 2 * batch * tokens * V * p.logits
    mlp = (N * (2 * s.h + 2 * d - m.mlp) + 3 * min(N * s.h, 2**18)) * p.activations
    decoded = 0 if bits is None else d * s.h * p.frozen
    working = max(logits, mlp + decoded)

    forward = weights + optimizer + activations + working
    backward = weights + optimizer + gradients + activations / L
    return {"weights": weights, "optimizer": optimizer, "gradients": gradients, "activations": activations, "working": working,
            "forward": forward, "backward": backward, "peak": max(forward, backward)}


NF4_DOUBLE = 4 + 8 / 64 + 32 / (64 * 256)                # bits per weight (`quant/nf4.py`)


def compared(shape, batch=1, tokens=512, precision=MIXED, methods=("full", "lora", "qlora"), **options):
    """method → `estimate`, what the table prints and the picture stacks. options: each for the methods that have it."""
    takes = lambda name: inspect.signature(METHODS[name]).parameters
    unknown = [o for o in options if o != "bits" and not any(o in takes(name) for name in methods)]
    if unknown:
        raise ValueError(f"memory: none of {', '.join(methods)} has an option {unknown[0]!r}")
    mine = lambda name: {o: v for o, v in options.items() if o in takes(name) or o == "bits" and name != "full"}
    return {name: estimate(shape, name, batch, tokens, precision, **mine(name)) for name in methods}


# -- against what is true ------------------------------------------------------------------------
def traced(config, method, batch, tokens, seed=0, **options):
    """Peak bytes that this engine holds in one training step, everything included: model, method, AdamW, graph.

    The model is random; the step is the second, so that all state is there. Counted by tracemalloc, which NumPy tells of
    every array.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, config.vocab_size, (2, batch, tokens))
    tracemalloc.start()
    try:
        model = GPT(config, rng=seed)
        tuned = model if method == "full" else attach(
            quantize(model, NF4(double_quant=True)) if method == "qlora" else model, attachable(method, options), rng=seed)
        optimizer = AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(2):
            tracemalloc.reset_peak()
            optimizer.zero_grad()
            F.cross_entropy(tuned(x), y).backward()
            optimizer.step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attachable(method, options):
    """The value that `attach` takes for a name and options of METHODS."""
    if method in ("lora", "qlora"):
        return LoRA(**options | {"targets": options.get("targets", ("query", "value"))})
    return PEFT_METHODS[method](**options, **({"reparameterize": False} if method == "prefix" else {}))


# -- shown ---------------------------------------------------------------------------------------
PARTS = "weights", "optimizer", "gradients", "activations", "working"


def table(rows):
    """rows: label → what `estimate` gave. Text, in GiB (MiB where the largest is below one GiB)."""
    unit, name = (2**30, "GiB") if max(r["peak"] for r in rows.values()) >= 2**30 else (2**20, "MiB")
    head = ["method", *PARTS, "after forward", "after backward", "peak"]
    body = [[label, *(f"{row[k] / unit:.2f}" for k in (*PARTS, "forward", "backward", "peak"))] for label, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    line = lambda row: "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
    return "\n".join([f"{line(head)}   ({name})", *map(line, body)])
