"""P-tuning (Liu et al., arXiv 2103.10385): trained pseudo-tokens between the parts of the input, made by an encoder.

A template says where they go, in a cloze or, in a left-to-right model, around the context x and before the target y
that is to be predicted. Section 3.1 and 3.2:

    T = { [P_{0:i}], x, [P_{i+1:m}], y }   →   { h_0, …, h_i, e(x), h_{i+1}, …, h_m, e(y) }
    h_i = MLP([→h_i : ←h_i]),   the two directions of an LSTM over the pseudo-tokens' own embeddings

    paper       here          shape
    P_{0:i}…    template      (3, "context", 3, "target"): numbers of pseudo-tokens between named parts
    [P_i]       embedding     (P, d), starts at N(0, 1)
    LSTM, MLP   encoder       P × d → P × d; `fold` drops it and keeps the h_i
    h_i         prompt()      (P, d)

The parts of a row are told apart by a token, `separator`, with which each part but the last ends; where rows are
classified, the last part begins after the row's end, so that the head reads the last pseudo-token. Without a
separator all parts before the target are empty, and the pseudo-tokens stand together before the text: PEFT's
P-tuning, which has no template and differs from prompt tuning by the encoder alone.

Trained parameters with encoder "lstm", n = `hidden` in each direction:
    P d + [8 (n d + n² + 2 n) + 8 (3 n² + 2 n)] + [4 n² + 2 n] + [2 n d + d]
with "mlp": P d + (n d + n) + (n² + n) + (n d + d). Stored: P d.

Where things differ. The paper's encoder is a two-layer bidirectional LSTM with n = d/2 and two linear maps with a
ReLU between (`encoder="lstm"`, the default); PEFT's default has three linear maps instead (`"mlp"`, n = d). The
authors' code writes templates as numbers: (3, 3, 3) around mask and context for BERT, (3, 3, 0) for GPT, which is the
default here; pseudo-tokens after the target, which a left-to-right model never sees in time, are refused. In their
SuperGLUE runs the model is tuned as well; here it is frozen.
"""
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..nn import Linear, Module, Parameter
from ..tensor import no_grad
from .lstm import BiLSTM
from .method import Method, MethodError
from .virtual import VirtualTokens, check_length

__all__ = ["PTuning", "PseudoTokens", "places"]


@dataclass(frozen=True)
class PTuning(Method):
    """template: numbers of pseudo-tokens and names of the input's parts, in order; the last part is predicted.

    separator: the token that ends a part, an id or a str that is one token; None for text without parts.
    encoder: "lstm", "mlp", or None for the pseudo-tokens themselves. hidden: n, default d/2 ("lstm") or d ("mlp").
    """
    template: tuple = (3, "context", 3, "target")
    separator: int | str | None = None
    encoder: str | None = "lstm"
    hidden: int | None = None
    learning_rate: ClassVar[float] = 3e-3
    shown: ClassVar[tuple] = ("template", "encoder")

    def __post_init__(self):
        check_length("PTuning", sum(self.counts))
        if self.encoder not in ("lstm", "mlp", None):
            raise MethodError(f"PTuning: encoder must be 'lstm', 'mlp' or None, got {self.encoder!r}")
        if self.hidden is not None and (not isinstance(self.hidden, (int, np.integer)) or self.hidden < 1):
            raise MethodError(f"PTuning: hidden must be a positive integer or None, got {self.hidden!r}")

    @property
    def counts(self):
        """How many pseudo-tokens stand before each part, from the template."""
        counts, here = [], 0
        if not isinstance(self.template, tuple):
            raise MethodError("PTuning: template must be a tuple such as (3, 'context', 3, 'target'), "
                              f"got {self.template!r}")
        for item in self.template:
            if isinstance(item, str):
                counts.append(here)
                here = 0
            elif isinstance(item, (int, np.integer)) and not isinstance(item, bool) and item >= 0:
                here += item
            else:
                raise MethodError(f"PTuning: a template has names of parts and numbers of pseudo-tokens, got {item!r}")
        if not counts:
            raise MethodError(f"PTuning: the template {self.template} names no part of the input")
        if here:
            raise MethodError(f"PTuning: in {self.template} {here} pseudo-tokens follow the last part, "
                              "which is predicted from left to right and would never see them")
        return tuple(counts)

    def virtual(self, model, rng):
        counts, d = self.counts, model.config.d_model
        check_length("PTuning", sum(counts), model)
        n = self.hidden or {"lstm": max(1, d // 2), "mlp": d, None: 0}[self.encoder]
        encoder = None if self.encoder is None else {"lstm": LSTMEncoder, "mlp": MLPEncoder}[self.encoder](d, n, rng)
        return PseudoTokens(rng.standard_normal((sum(counts), d)), encoder, counts, self.separator_id(model))

    def separator_id(self, model):
        """The separator as a token id."""
        sep, V = self.separator, model.config.vocab_size
        if isinstance(sep, str):
            if model.tokenizer is None:
                raise MethodError("PTuning: a separator that is text needs model.tokenizer; give a token id instead")
            ids = model.tokenizer.encode(sep, allow_special=True).tolist()
            if len(ids) != 1:
                raise MethodError(f"PTuning: the separator must be one token, {sep!r} is {len(ids)}: {ids}")
            return ids[0]
        if sep is not None and not (isinstance(sep, (int, np.integer)) and 0 <= sep < V):
            raise MethodError(f"PTuning: separator must be a token id in [0, {V}), or text, got {sep!r}")
        return sep

    def fold(self, virtual):
        if self.encoder is None:
            return self, virtual
        with no_grad():
            h = virtual.prompt().data
        return replace(self, encoder=None, hidden=None), PseudoTokens(h, None, virtual.counts, virtual.separator)


class PseudoTokens(VirtualTokens):
    """Pseudo-tokens, their encoder, and the places they take."""

    def __init__(self, embedding, encoder, counts, separator):
        self.embedding, self.encoder = Parameter(np.array(embedding)), encoder
        self.counts, self.separator = counts, separator

    length = property(lambda self: len(self.embedding))

    def prompt(self):
        return self.embedding if self.encoder is None else self.encoder(self.embedding)      # (P, d)

    def seams(self, tokens, lengths=None):
        return {"prompt": self.prompt(), "prompt_at": places(tokens, self.counts, self.separator, lengths)}

    def describe(self):
        return f"({' + '.join(map(str, self.counts))} pseudo-tokens)"


def places(tokens, counts, separator, lengths=None):
    """Where the pseudo-tokens go, (B, P), in the lengthened sequence: counts[j] of them before part j of every row.

    Every part but the last ends with a separator; without one they are empty. Where `lengths` (B,) are given the last
    part begins there, whatever ended before. Raises ValueError for a row with too few separators.
    """
    (B, T), k = tokens.shape, len(counts) - 1
    needed = k if lengths is None else max(k - 1, 0)
    if separator is None:
        part = np.full((B, T), k if lengths is None else 0)                   # the part that each token is in
    else:
        ended = np.cumsum(tokens == separator, axis=1)
        if (ended[:, -1] < needed).any():
            b = int((ended[:, -1] < needed).argmax())
            raise ValueError(f"P-tuning: row {b} has {ended[b, -1]} of the {needed} separators (token {separator}) "
                             f"that a template of {k + 1} parts needs")
        part = np.minimum(ended - (tokens == separator), needed)
    if lengths is not None:
        part = np.where(np.arange(T) < np.reshape(lengths, (B, 1)), part, k)
    real = np.arange(T) + np.cumsum(counts)[part]                             # the places of tokens
    free = np.ones((B, T + sum(counts)), bool)
    np.put_along_axis(free, real, False, axis=1)
    return np.nonzero(free)[1].reshape(B, -1)


def _dense(d_in, d_out, rng):
    return Linear(d_in, d_out, rng=rng, std=(3 * d_in) ** -0.5)               # PyTorch's spread


class LSTMEncoder(Module):
    """h = W₂ relu(W₁ BiLSTM(x) + b₁) + b₂, the paper's."""

    def __init__(self, d, n, rng):
        self.lstm = BiLSTM(d, n, 2, rng)
        self.W1, self.W2 = _dense(2 * n, 2 * n, rng), _dense(2 * n, d, rng)

    def forward(self, x):
        return self.W2(self.W1(self.lstm(x)).relu())


class MLPEncoder(Module):
    """h = W₃ relu(W₂ relu(W₁ x + b₁) + b₂) + b₃, PEFT's."""

    def __init__(self, d, n, rng):
        self.W1, self.W2, self.W3 = _dense(d, n, rng), _dense(n, n, rng), _dense(n, d, rng)

    def forward(self, x):
        return self.W3(self.W2(self.W1(x).relu()).relu())
