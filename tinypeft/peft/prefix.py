"""Prefix tuning (Li & Liang, arXiv 2101.00190): P keys and values before every layer's own, trained.

Every token attends to them as if P tokens had gone before; no other parameter of the model changes. The paper
trains a small matrix P′ and an MLP that makes the prefix of it, and keeps the prefix alone. Section 4.3:

    P_θ[i, :] = MLP_θ(P′_θ[i, :]),      MLP(x) = W₂ tanh(W₁ x + b₁) + b₂
    K ← [P_K; K],   V ← [P_V; V]        in every layer

What that does to a head (He et al., arXiv 2110.04366, equations 7 and 8, where λ is the prefix's share of the
softmax; a test holds it):

    head = (1 − λ(x)) Attn(x W_q, C W_k, C W_v) + λ(x) Attn(x W_q, P_K, P_V)

    paper           here            shape
    P_θ             table()         (P, 2 L d): per layer keys, then values, each of H heads
    P_K, P_V        seams           (H, P, d_head) in each of L layers
    P′_θ            P_small         (P, d)
    W₁, b₁          W1              (m, d), (m,)        m = `hidden`, d/2
    W₂, b₂          W2              (2 L d, m), (2 L d,)

Trained parameters: 2 P L d, or P d + (d m + m) + (2 L d m + 2 L d) with the MLP; stored 2 P L d either way: the
"0.1 %" of the paper counts what is stored. `tuned.fold()` drops the MLP; `save` stores the folded prefix, while
checkpoints of `train` keep the MLP, so that training resumes exactly.

Where things differ. The paper reparameterizes, since training P_θ directly was unstable; PEFT trains it directly
unless told otherwise (`reparameterize=False`). The paper's m is 512 in GPT-2 medium, 1,024 wide: hence d/2. The
paper starts at random, and where data is scarce from the activations of real words, which is the default here
(`init="vocabulary"`: P common words, `init="text"`: those of `text`): the model starts as if these words had gone
before. With the MLP, W₂ and b₂ are then the least-squares solution that makes it give these activations.
`init="random"` draws P_θ, or P′ and the MLP, from unit normals as PEFT does, and begins with a loss above that of
no prefix at all. Nor is a zero prefix one that does nothing: its keys take softmax mass, and the tokens' positions
move by P. Dropout on the prefix is the authors', not PEFT's.
"""
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..generate import KVCache
from ..nn import Dropout, Linear, Parameter
from ..tensor import no_grad
from .method import Method, MethodError
from .virtual import VirtualTokens, check_length, check_words, starting_words

__all__ = ["Prefix", "PrefixTuning", "ReparameterizedPrefix", "activations"]


@dataclass(frozen=True)
class PrefixTuning(Method):
    """length P; reparameterize: train P′ and the MLP of `hidden` units (default d/2); dropout on the prefix, for each
    row its own; init: "vocabulary", "text" (with text: a str, or token ids) or "random".
    """
    length: int = 10
    reparameterize: bool = True
    hidden: int | None = None
    dropout: float = 0.0
    init: str = "vocabulary"
    text: str | tuple | None = None
    learning_rate: ClassVar[float] = 3e-3
    shown: ClassVar[tuple] = ("length", "reparameterize")

    def __post_init__(self):
        name = type(self).__name__
        check_length(name, self.length)
        check_words(name, self.init, self.text)
        if self.hidden is not None and (not isinstance(self.hidden, (int, np.integer)) or self.hidden < 1):
            raise MethodError(f"{name}: hidden must be a positive integer or None, got {self.hidden!r}")
        if not 0 <= self.dropout < 1:
            raise MethodError(f"{name}: dropout must lie in [0, 1), got {self.dropout!r}")
        # every number of the table moves by the steps of many of the MLP's weights: the table itself takes larger ones
        object.__setattr__(self, "learning_rate", 3e-3 if self.reparameterize else 6e-2)

    def virtual(self, model, rng):
        check_length(type(self).__name__, self.length, model)
        c, P, random = model.config, self.length, self.init == "random"
        table = None if random else activations(model, starting_words(model, P, self.text, rng))
        shared = c.n_layers, c.n_heads, self.dropout, rng
        if self.reparameterize:
            return ReparameterizedPrefix(table, P, c.d_model, self.hidden or max(1, c.d_model // 2), *shared)
        return Prefix(rng.standard_normal((P, 2 * c.n_layers * c.d_model)) if random else table, *shared)

    def fold(self, virtual):
        if not self.reparameterize:
            return self, virtual
        with no_grad():
            table = virtual.table().data
        plain = Prefix(table, virtual.n_layers, virtual.n_heads, self.dropout, virtual.dropout.rng)
        return replace(self, reparameterize=False), plain.train(virtual.training)


def activations(model, words):
    """Keys and values that the model computes for `words` (P,): a table (P, 2 L d), laid out as `Prefix.table`."""
    cache = KVCache(model.config.n_layers)
    with no_grad():
        model.hidden(np.asarray(words)[None], cache=cache)
    kv = [a[0, :, :cache.length] for layer in cache.layers for a in (layer.k, layer.v)]   # 2L times (H, P, d_head)
    return np.stack(kv).transpose(2, 0, 1, 3).reshape(len(words), -1)


class Prefix(VirtualTokens):
    """A table of keys and values."""

    def __init__(self, table, n_layers, n_heads, dropout, rng):
        self.P = Parameter(np.array(table))                                   # (P, 2Ld)
        self.n_layers, self.n_heads, self.dropout = n_layers, n_heads, Dropout(dropout, rng)

    length = property(lambda self: len(self.P))

    def table(self):
        return self.P

    def seams(self, tokens, lengths=None):
        table = self.table()
        if self.training and self.dropout.p:                                  # every row drops its own
            table = self.dropout(table + np.zeros((len(tokens), 1, 1)))       # (B, P, 2Ld)
        batch, n = table.shape[:-2], table.ndim - 2
        kv = table.reshape(*batch, self.length, 2 * self.n_layers, self.n_heads, -1)
        kv = kv.transpose(n + 1, *range(n), n + 2, n, n + 3)                  # (2L, B?, H, P, d_head)
        return {"prefix": [(kv[i], kv[i + 1]) for i in range(0, 2 * self.n_layers, 2)]}

    def describe(self):
        return f"({self.length} keys and values in {self.n_layers} layers)"


class ReparameterizedPrefix(Prefix):
    """A table that an MLP makes of P′; it starts as `table`, or at random where that is None."""

    def __init__(self, table, P, d, m, n_layers, n_heads, dropout, rng):
        width = 2 * n_layers * d
        self.P_small = Parameter(rng.standard_normal((P, d)))
        self.W1, self.W2 = Linear(d, m, rng=rng, std=d ** -0.5), Linear(m, width, rng=rng, std=m ** -0.5)
        self.n_layers, self.n_heads, self.dropout = n_layers, n_heads, Dropout(dropout, rng)
        if table is not None:                                                 # exactly `table` where m ≥ P
            hidden = np.tanh(self.P_small.data @ self.W1.weight.data.T)       # (P, m)
            self.W2.bias.data = table.mean(0)
            self.W2.weight.data = (np.linalg.pinv(hidden) @ (table - table.mean(0))).T

    length = property(lambda self: len(self.P_small))

    def table(self):
        return self.W2(self.W1(self.P_small).tanh())                          # (P, 2Ld)
