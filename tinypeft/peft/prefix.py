"""Prefix tuning (Li & Liang, arXiv 2101.00190): P trained keys and values before every layer's own.

Every token attends to them as if P tokens preceded it; the model stays frozen. The paper trains a
small matrix P′ and an MLP that computes the prefix from it, and keeps only the prefix. Section 4.3:

    P_θ[i, :] = MLP_θ(P′_θ[i, :]),      MLP(x) = W₂ tanh(W₁ x + b₁) + b₂
    K ← [P_K; K],   V ← [P_V; V]        in every layer

For one head (He et al., arXiv 2110.04366, equations 7, 8; λ is the prefix's share of the softmax):

    head = (1 − λ(x)) Attn(x W_q, C W_k, C W_v) + λ(x) Attn(x W_q, P_K, P_V)

    paper           here            shape
    P_θ             table()         (P, 2 L w): per layer keys, then values, each of H heads
    P_K, P_V        seams           (H, P, d_head) in each of L layers
    P′_θ            P_small         (P, w)              in the paper (P, k)
    W₁, b₁          W1              (m, w), (m,)        m = `hidden`, w/2
    W₂, b₂          W2              (2 L w, m), (2 L w,)

Here H counts the heads that have keys of their own, `n_kv_heads`, and w = H d_head is the width of
one layer's keys. In GPT-2 w is the model's width d; in a Llama with grouped heads it is smaller.

Trained parameters: 2 P L w, or P w + (w m + m) + (2 L w m + 2 L w) with the MLP. Stored: 2 P L w
either way, which the paper counts as "0.1 %". `tuned.fold()` drops the MLP and `save` stores the
folded prefix; checkpoints of `train` keep the MLP, so that training resumes exactly.

Positions. The text starts at position P. A rotary model rotates the text's queries and keys by
their positions, but P_K enters as it is stored: training learns keys that are rotated already, and
`activations` takes them after the rotation. PEFT does both in the same way, since it gives the
prefix to the model as a cache of P positions.

Where implementations differ. The paper uses the MLP because training P_θ directly was unstable;
PEFT trains it directly by default (`reparameterize=False`). In the paper P′ is narrow, (P, k), with
k = 512 for GPT-2 and 800 for BART (footnote 4). In the authors' code P′ is (P, w), and 512 or 800
is the width m of the hidden layer. This file follows the code: GPT-2 medium is 1,024 wide, hence
m = w/2. The paper starts at random, or, where data is scarce, from the activations of real words.
The latter is the default here (`init="vocabulary"`: P common words; `init="text"`: `text`):
training starts as if these words preceded the input. With the MLP, W₂ and b₂ start at the
least-squares solution for these activations. `init="random"` draws P_θ from N(0, 1) as PEFT does.
With the MLP, P′ is from N(0, 1) as in PEFT, but W₁ and W₂ are from N(0, 1/d_in) and the biases 0,
where PEFT draws all of them from U(±1/√d_in): the table starts at a standard deviation of 0.62, and
PEFT's at 0.28. The first loss is above that of no prefix. A zero prefix is not a no-op: it takes
part of the softmax and shifts positions by P. PEFT, unlike the authors, has no dropout.
"""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..common.hints import Array, Rng
from ..common.hyper import flag, one_of, real, whole
from ..engine.nn import Dropout, Linear, Parameter
from ..engine.tensor import Tensor, no_grad
from ..models.cache import KVCache
from ..models.decoder import Decoder
from .method import Method, VirtualTokens
from .virtual import check_room, check_words, starting_words, words

__all__ = ["Prefix", "PrefixTuning", "ReparameterizedPrefix", "activations"]


@dataclass(frozen=True)
class PrefixTuning(Method):
    """Train `length` keys and values per layer. They start as common words, `text` or at random.

    reparameterize: by P′ and an MLP of `hidden` units (None: w/2). text: a str or token ids.
    """
    length: int = whole(10, least=1, also=("num_virtual_tokens", "P"))
    reparameterize: bool = flag(True, also=("prefix_projection",))
    hidden: int | None = whole(None, least=1, or_none=True, also=("encoder_hidden_size", "m"))
    dropout: float = real(0.0, least=0, below=1)
    init: str = one_of("vocabulary", "text", "random")
    text: str | tuple[int, ...] | None = words()
    shown = ("length", "reparameterize")

    check = check_words

    @property
    def learning_rate(self) -> float:
        """Each weight of the MLP moves many numbers of the table; alone, it needs larger steps."""
        return 3e-3 if self.reparameterize else 6e-2

    def virtual(self, model: Decoder, rng: Rng) -> "Prefix":
        check_room(self, self.length, model)
        c, P, table = model.config, self.length, None
        w = c.n_kv_heads * c.d_head
        if self.init != "random":
            ids = starting_words(model, P, self.text, rng)
            table = activations(model, ids)
        if self.reparameterize:
            m = self.hidden or max(1, w // 2)
            return ReparameterizedPrefix(table, P, w, m, c.n_layers, c.n_kv_heads, self.dropout,
                                         rng)
        if table is None:
            table = rng.standard_normal((P, 2 * c.n_layers * w))
        return Prefix(table, c.n_layers, c.n_kv_heads, self.dropout, rng)

    def fold(self, virtual: "Prefix") -> tuple["PrefixTuning", "Prefix"]:
        if not self.reparameterize:
            return self, virtual
        with no_grad():
            table = virtual.table().data
        folded = Prefix(table, virtual.n_layers, virtual.n_heads, self.dropout, virtual.dropout.rng)
        return replace(self, reparameterize=False), folded.train(virtual.training)


def activations(model: Decoder, ids: Array) -> Array:
    """Compute the keys and values of words, ids (P,), as a table (P, 2 L w) of `Prefix`."""
    cache = KVCache(model.config.n_layers)
    with no_grad():
        model.hidden(np.asarray(ids)[None], cache=cache)
    buffers = [a[0] for layer in cache.layers for a in (layer.k, layer.v)]
    P = len(ids)                                         # a window drops none before the next call
    kv = np.stack(buffers)[:, :, :P]                                      # (2L, H, P, d_head)
    return kv.transpose(2, 0, 1, 3).reshape(P, -1)


class Prefix(VirtualTokens):
    """A table (P, 2 L w) of keys and values, each of n_heads heads."""
    seam = "prefix"

    def __init__(self, table: Array, n_layers: int, n_heads: int, dropout: float, rng: Rng):
        self.P = Parameter(np.array(table))                                   # (P, 2Lw)
        self.length = len(table)
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.dropout = Dropout(dropout, rng)

    def table(self) -> Tensor:
        """Return P_θ, (P, 2 L w)."""
        return self.P

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        table, L = self.table(), self.n_layers
        if self.training and self.dropout.p:                                  # drawn for each row
            table = self.dropout(table + np.zeros((len(tokens), 1, 1)))       # (B, P, 2Lw)
        kv = table.reshape(*table.shape[:-1], 2 * L, self.n_heads, -1)    # (B?, P, 2L, H, d_head)
        n = kv.ndim
        kv = kv.transpose(n - 3, *range(n - 4), n - 2, n - 4, n - 1)      # (2L, B?, H, P, d_head)
        pairs = [(kv[i], kv[i + 1]) for i in range(0, 2 * L, 2)]
        return {"prefix": pairs}

    def describe(self) -> str:
        return f"({self.length} keys and values in {self.n_layers} layers)"


class ReparameterizedPrefix(Prefix):
    """A table that an MLP computes from P′. It starts as `table`, or at random if that is None."""

    def __init__(self, table: Array | None, P: int, w: int, m: int, n_layers: int,
                 n_heads: int, dropout: float, rng: Rng):
        self.P_small = Parameter(rng.standard_normal((P, w)))
        self.length = P
        self.W1 = Linear(w, m, rng=rng, std=w ** -0.5)
        self.W2 = Linear(m, 2 * n_layers * w, rng=rng, std=m ** -0.5)
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.dropout = Dropout(dropout, rng)
        if table is not None:
            self.start_at(table)

    def start_at(self, table: Array) -> None:
        """Choose W₂ and b₂ for which the MLP gives `table`, exactly if m ≥ P."""
        hidden = np.tanh(self.P_small.data @ self.W1.weight.data.T)           # (P, m)
        mean = table.mean(0)
        self.W2.bias.data = mean
        self.W2.weight.data = (np.linalg.pinv(hidden) @ (table - mean)).T

    def table(self) -> Tensor:
        return self.W2(self.W1(self.P_small).tanh())                          # (P, 2Lw)
