"""What methods of virtual tokens share: room in the context, and the real words they start as.

A random start places the prompt far from any word's embedding, and makes a random prefix worse than
none. Lester et al. (arXiv 2104.08691, section 3.2) start prompts from embeddings of common words or
of the class labels. Li & Liang (arXiv 2101.00190, section 7.4) start prefixes from what the model
computes for real words.
"""
from typing import Any

import numpy as np

from ..gpt import GPT
from ..hints import Array, Rng
from ..hyper import Limit, declared
from ..nn import Module
from .method import Method, MethodError

__all__ = ["VirtualTokens", "check_room", "check_words", "starting_words", "words"]

COMMON = 5000                        # Lester et al. draw from the 5,000 most common tokens


class VirtualTokens(Module):
    """`length` vectors that enter a model by its seams."""

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        """The arguments to call the model with, beside `tokens` (B, T).

        lengths: (B,) of the rows, given when they are classified.
        """
        raise NotImplementedError


def words(**options: Any) -> Any:
    """A field for words to start from."""
    ids = lambda x: isinstance(x, tuple) and all(isinstance(i, (int, np.integer)) for i in x)
    holds = lambda x: isinstance(x, str) or ids(x)
    limit = Limit(holds, "a str or a tuple of token ids", (3, [1], (0.5,)))
    return declared(None, limit, or_none=True, **options)


def check_words(method: Method) -> None:
    """Raise MethodError unless the method's fields `init` and `text` go together."""
    if (method.init == "text") != (method.text is not None):
        raise MethodError(f"{type(method).__name__}: init='text' and text=… belong together, got "
                          f"init={method.init!r}, text={method.text!r}")


def check_room(method: Method, P: int, model: GPT) -> None:
    """Raise MethodError unless `model` has room for P virtual tokens and a real one."""
    if P >= model.config.context_length:
        raise MethodError(f"{type(method).__name__}: {P} virtual tokens leave no room for text in "
                          f"a context of {model.config.context_length}")


def starting_words(model: GPT, P: int, text: str | tuple[int, ...] | None,
                   rng: Rng) -> Array:
    """P token ids: those of `text`, cut or repeated to fill P, or common tokens drawn at random.

    Byte-level BPE numbers the 256 single bytes first and then words from frequent to rare, so
    tokens 256 … 4,999 are the common ones. A vocabulary of up to 512 tokens is not of that kind; it
    is drawn from as a whole. Raises MethodError for ids outside the vocabulary, and for a str
    without a tokenizer.
    """
    V = model.config.vocab_size
    if text is None:
        return rng.integers(256 if V > 512 else 0, min(V, COMMON), P)
    if isinstance(text, str):
        if model.tokenizer is None:
            raise MethodError("init='text' needs model.tokenizer, and this model has none; "
                              "give token ids instead")
        text = model.tokenizer.encode(text)
    ids = np.asarray(text)
    if not ids.size or ids.min() < 0 or ids.max() >= V:
        raise MethodError(f"text must be a str or ids in [0, {V}), and not empty, "
                          f"got {ids.tolist()}")
    return np.resize(ids, P)
