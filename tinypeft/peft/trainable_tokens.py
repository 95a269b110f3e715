"""Trainable tokens: some rows of the token embedding are trained, and nothing else.

A model that learns a new role for a few tokens, such as the markers of a chat, needs their vectors
alone. Training the whole embedding would change, copy and store all others with them. There is no
paper; PEFT has the method as TrainableTokensConfig.

    e_t ← rows[t] if t ∈ tokens else E_t          (n, d) numbers are trained, and start at E's

    here      shape
    E         (V, d), the frozen table
    tokens    (n,), ids in ascending order
    rows      (n, d), trained

Where the output head is tied to the embedding, the logits of these tokens are the products with the
new rows; where the head is a matrix of its own, it stays as it is. `merge` writes the rows into a
copy of E.

Where implementations differ. PEFT multiplies with a copy of the table that has the new rows, and
the gradient of the whole copy is computed in each step; here only that of the rows is. Both
multiply what is looked up as the model does, by √d in Gemma. Neither adds rows for new tokens.
"""
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng
from ..common.hyper import Limit, declared, whole
from ..engine import functional as F
from ..engine.nn import Embedding, Parameter, shapes_only
from ..engine.tensor import Tensor, where
from ..models.decoder import Decoder
from .method import Method, MethodError, Wrapper
from .virtual import token_ids

__all__ = ["TrainableTokens", "TrainedRows"]


ID = whole(0).metadata["limit"]


def is_token(x):
    """Is x a str or an id?"""
    return isinstance(x, str) or ID.holds(x)


def is_tokens(x):
    """Is x a tuple or list of tokens, of one at least?"""
    return isinstance(x, (tuple, list)) and len(x) > 0 and all(map(is_token, x))


TOKENS = Limit(is_tokens, "a tuple of token ids and strs, such as (0, '<|user|>')")


@dataclass(frozen=True)
class TrainableTokens(Method):
    """Train the rows of the token embedding of `tokens`: ids, or strs that are one token each."""
    tokens: tuple[int | str, ...] = declared((0,), TOKENS, also=("token_indices",))
    learning_rate = 1e-2
    shown = ("tokens",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        ids = [token_id(model, token) for token in self.tokens]
        return {"token_embedding": TrainedRows(model.token_embedding, np.unique(ids))}


class TrainedRows(Wrapper):
    """An embedding with other rows for some tokens; it is called, and scores, as one."""
    is_table = True

    def __init__(self, base: Embedding, tokens: Array):
        self.base = base
        self.tokens = tokens
        self.rows = Parameter(np.array(base.vectors(tokens).data))

    weight = property(lambda self: self.base.weight)     # E, or its codes, without the rows
    scale = property(lambda self: self.base.scale)
    forward = Embedding.forward

    def vectors(self, ids: Array) -> Tensor:
        """Look up ids (…) in the rows, or in E: (…, d)."""
        last = len(self.tokens) - 1
        place = np.searchsorted(self.tokens, ids).clip(max=last)
        is_trained = self.tokens[place] == ids
        own = F.embedding(place, self.rows)
        return where(is_trained[..., None], own, self.base.vectors(ids))

    def scores(self, h: Tensor) -> Tensor:
        """Multiply h (…, d) with every vector: (…, V). Only what changed is computed anew."""
        change = self.rows - self.base.vectors(self.tokens)
        return plus_columns(self.base.scores(h), self.tokens, F.linear(h, change))

    def dense_weight(self) -> Array:
        """Copy E, (V, d), in the type of the rows, and write them into it."""
        E = self.base.dense_weight().astype(self.rows.dtype)
        E[self.tokens] = self.rows.data
        return E

    def merge(self) -> Embedding:
        """Make an embedding with the rows in its table; of a table of codes, a decoded one."""
        with shapes_only():
            merged = Embedding(*self.weight.shape, scale=self.scale)
        merged.weight = Parameter(self.dense_weight())
        return merged

    def check_parts(self) -> None:
        is_ascending = (np.diff(self.tokens) > 0).all()
        n = self.weight.shape[0]
        if not is_ascending or self.tokens[0] < 0 or self.tokens[-1] >= n:
            raise ValueError(f"token_embedding.tokens must be ascending ids in [0, {n}), "
                             f"got {self.tokens[:8]}")

    def describe(self) -> str:
        return f"({len(self.tokens)} rows)"


def token_id(model, token):
    """Look up one of the field's tokens; MethodError for an id or a str that is none."""
    text = token if isinstance(token, str) else (token,)
    ids = token_ids(model, "tokens", text, allow_special=True).tolist()
    if len(ids) > 1:
        raise MethodError(f"TrainableTokens: {token!r} is not one token but {len(ids)}, {ids}; "
                          "name those that you mean by their ids")
    return ids[0]


def plus_columns(y, columns, z):
    """Add z (…, n) to some columns of y (…, V)."""
    total = y.data.copy()
    total[..., columns] += z.data
    return Tensor.op(total, (y, lambda dy: dy), (z, lambda dy: dy[..., columns]))
