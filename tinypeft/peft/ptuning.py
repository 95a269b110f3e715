"""P-tuning (Liu et al., arXiv 2103.10385): trained pseudo-tokens between the parts of the input.

A template says where they go, for example around the context x and before the target y that is to
be predicted. An encoder computes their vectors from trained embeddings. Sections 3.1 and 3.2:

    T = { [P_{0:i}], x, [P_{i+1:m}], y }   →   { h_0, …, h_i, e(x), h_{i+1}, …, h_m, e(y) }
    h_i = MLP([→h_i : ←h_i]),   the two directions of an LSTM over the pseudo-tokens' embeddings

    paper       here          shape
    P_{0:i}…    template      (3, "context", 3, "target"): numbers of pseudo-tokens, names of parts
    [P_i]       embedding     (P, d), starts at N(0, 1)
    LSTM, MLP   encoder       P × d → P × d; `fold` drops it and keeps the h_i
    h_i         prompt()      (P, d)

Every part except the last ends with the token `separator`. When rows are classified, the last part
begins after the end of the row, so the head reads the last pseudo-token. Without a separator all
parts before the target are empty, and all pseudo-tokens come before the text. This is PEFT's
P-tuning: it has no template, and differs from prompt tuning only by the encoder.

Trained parameters with encoder "lstm", n = `hidden` in each direction:
    P d + [8 (n d + n² + 2 n) + 8 (3 n² + 2 n)] + [4 n² + 2 n] + [2 n d + d]
with "mlp": P d + (n d + n) + (n² + n) + (n d + d). Stored: P d.

Where implementations differ. The paper's encoder is a two-layer bidirectional LSTM with n = d/2,
then two linear maps with a ReLU between them (`encoder="lstm"`, the default). PEFT's default is
three linear maps (`"mlp"`, n = d). The authors' code writes templates as numbers: (3, 3, 3) around
mask and context for BERT, and (3, 3, 0) for GPT, the default here. GPT sees pseudo-tokens after the
target too late, so they are refused. For SuperGLUE the authors tune the model; here it is frozen.
"""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..common.hints import Array, Rng
from ..common.hyper import Limit, declared, one_of, whole
from ..engine.nn import Linear, Module, Parameter
from ..engine.tensor import Tensor, no_grad
from ..models.decoder import Decoder
from .lstm import BiLSTM
from .method import Method, MethodError, VirtualTokens
from .virtual import check_room, token_ids

__all__ = ["PTuning", "PseudoTokens", "places"]

COUNT = whole(0, least=0).metadata["limit"]


def is_token(x):
    """Is x a str or a count?"""
    return isinstance(x, str) or COUNT.holds(x)


def is_template(x):
    """Is x a tuple of strs and counts?"""
    return isinstance(x, tuple) and all(map(is_token, x))


TOKEN = Limit(is_token, "a token id or a str")
TEMPLATE = Limit(is_template, "a tuple of counts and names of parts, such as "
                 "(3, 'context', 3, 'target')")


@dataclass(frozen=True)
class PTuning(Method):
    """Train pseudo-tokens at the places that `template` says; the last part it names is predicted.

    separator: the token that ends a part, an id or a str that is one token; None if the text has no
    parts. encoder: None trains the h_i directly. hidden: n; None for d/2 ("lstm") or d ("mlp").
    """
    template: tuple[int | str, ...] = declared((3, "context", 3, "target"), TEMPLATE,
                                               also=("num_virtual_tokens",))
    separator: int | str | None = declared(None, TOKEN, or_none=True)
    encoder: str | None = one_of("lstm", "mlp", None, also=("encoder_reparameterization_type",))
    hidden: int | None = whole(None, least=1, or_none=True, also=("encoder_hidden_size",))
    learning_rate = 3e-3
    shown = ("template", "encoder")

    def check(self) -> None:
        P = sum(item for item in self.template if not isinstance(item, str))
        before = sum(self.counts)
        if not self.counts or not P:
            raise MethodError("PTuning: template must name a part of the input and have a positive "
                              f"number of pseudo-tokens, got {self.template}")
        if P > before:
            raise MethodError(f"PTuning: {P - before} pseudo-tokens follow the last part of "
                              f"{self.template}, which never sees them; put them before it")

    @property
    def counts(self) -> tuple[int, ...]:
        """Count the pseudo-tokens before each part: (3, "context", 2, "target") gives (3, 2)."""
        counts, count = [], 0
        for item in self.template:
            if isinstance(item, str):
                counts.append(count)
                count = 0
            else:
                count += item
        return tuple(counts)

    def virtual(self, model: Decoder, rng: Rng) -> "PseudoTokens":
        P, d, encoder = sum(self.counts), model.config.d_model, None
        check_room(self, P, model)
        if self.encoder == "lstm":
            encoder = LSTMEncoder(d, self.hidden or max(1, d // 2), rng)
        if self.encoder == "mlp":
            encoder = MLPEncoder(d, self.hidden or d, rng)
        h = rng.standard_normal((P, d))
        return PseudoTokens(h, encoder, self.counts, self.separator_id(model))

    def separator_id(self, model: Decoder) -> int | None:
        """Look up the separator's token id."""
        if self.separator is None:
            return None
        ids = token_ids(model, "separator", self.separator, allow_special=True).tolist()
        if len(ids) != 1:
            raise MethodError(f"PTuning: separator must be one token, {self.separator!r} is {ids}")
        return ids[0]

    def fold(self, virtual: "PseudoTokens") -> tuple["PTuning", "PseudoTokens"]:
        if self.encoder is None:
            return self, virtual
        with no_grad():
            h = virtual.prompt().data
        folded = PseudoTokens(h, None, virtual.counts, virtual.separator)
        return replace(self, encoder=None, hidden=None), folded


class PseudoTokens(VirtualTokens):
    """Pseudo-tokens, their encoder, and the places they take."""

    def __init__(self, embedding: Array, encoder: Module | None, counts: tuple[int, ...],
                 separator: int | None):
        self.embedding = Parameter(np.array(embedding))
        self.encoder = encoder
        self.counts = counts
        self.separator = separator
        self.length = len(embedding)

    def prompt(self) -> Tensor:
        """Compute the vectors h_i, (P, d)."""
        return self.embedding if self.encoder is None else self.encoder(self.embedding)

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        at = places(tokens, self.counts, self.separator, lengths)
        return {"prompt": self.prompt(), "prompt_at": at}

    def describe(self) -> str:
        return f"({' + '.join(map(str, self.counts))} pseudo-tokens)"


def places(tokens: Array, counts: tuple[int, ...], separator: int | None,
           lengths: Array | None = None) -> Array:
    """Find the places (B, P) of pseudo-tokens in the lengthened rows: counts[j] precede part j.

    Example: with counts (2, 1) and the separator |, the row "c c | t t" has the parts "c c |" and
    "t t". It becomes "P P c c | P t t", so the places are 0, 1 and 5.

    tokens (B, T). lengths (B,), of rows to classify: the last part begins there, whatever ended
    before. Raises ValueError for a row with too few separators.
    """
    (B, T), last = tokens.shape, len(counts) - 1
    needed, is_text = last, True                         # the numbers of separators in a row
    if lengths is not None:
        needed = max(last - 1, 0)
        is_text = np.arange(T) < np.reshape(lengths, (B, 1))               # (B, T), no padding
    if separator is None:
        part = np.full((B, T), last if lengths is None else 0)             # the part of each token
    else:
        ends = (tokens == separator) & is_text
        ended = np.cumsum(ends, axis=1)
        check_separators(ended[:, -1], needed, separator, len(counts))
        part = np.minimum(ended - ends, needed)
    part = np.where(is_text, part, last)
    real = np.arange(T) + np.cumsum(counts)[part]                          # the places of tokens
    free = np.ones((B, T + sum(counts)), bool)
    np.put_along_axis(free, real, False, axis=1)
    return np.nonzero(free)[1].reshape(B, -1)


def check_separators(numbers, needed, separator, n_parts):
    """Raise ValueError unless each row has the separators that it needs; numbers (B,): it has."""
    for b, number in enumerate(numbers):
        if number < needed:
            raise ValueError(f"P-tuning: row {b} has {number} of the {needed} separators "
                             f"(token {separator}) that a template of {n_parts} parts needs")


def _dense(d_in, d_out, rng):
    """Make a linear layer with the spread of PyTorch's."""
    return Linear(d_in, d_out, rng=rng, std=(3 * d_in) ** -0.5)


class LSTMEncoder(Module):
    """h = W₂ relu(W₁ BiLSTM(x) + b₁) + b₂, the paper's."""

    def __init__(self, d: int, n: int, rng: Rng):
        self.lstm = BiLSTM(d, n, 2, rng)
        self.W1 = _dense(2 * n, 2 * n, rng)
        self.W2 = _dense(2 * n, d, rng)

    def forward(self, x: Tensor) -> Tensor:
        x = self.W1(self.lstm(x)).relu()
        return self.W2(x)


class MLPEncoder(Module):
    """h = W₃ relu(W₂ relu(W₁ x + b₁) + b₂) + b₃, PEFT's."""

    def __init__(self, d: int, n: int, rng: Rng):
        self.W1 = _dense(d, n, rng)
        self.W2 = _dense(n, n, rng)
        self.W3 = _dense(n, d, rng)

    def forward(self, x: Tensor) -> Tensor:
        x = self.W1(x).relu()
        x = self.W2(x).relu()
        return self.W3(x)
