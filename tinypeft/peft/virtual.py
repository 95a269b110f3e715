"""What methods of virtual tokens share: room in the context, and the real words they start as.

A random start places a prompt far from any word's embedding, and makes a prefix worse than none.
Lester et al. (arXiv 2104.08691, section 3.2) start prompts from embeddings of common words or class
labels, Li & Liang (arXiv 2101.00190, section 7.4) prefixes from the activations of real words.
"""
from typing import Any

import numpy as np

from ..common.hints import Array, Rng
from ..common.hyper import Limit, declared
from ..models.decoder import Decoder
from .method import Method, MethodError

__all__ = ["check_room", "check_words", "starting_words", "token_ids", "words"]


def words(**options: Any) -> Any:
    """Declare a field for words to start from."""
    limit = Limit(is_text, "a str or a tuple of token ids")
    return declared(None, limit, or_none=True, **options)


def is_text(x):
    """Is x a str, or a tuple of integers?"""
    if isinstance(x, tuple):
        return all(isinstance(i, (int, np.integer)) for i in x)
    return isinstance(x, str)


def check_words(method: Method) -> None:
    """Raise MethodError unless `init` and `text` go together; the `check` of methods with both."""
    if (method.init == "text") != (method.text is not None):
        raise MethodError(f"init='text' and text=… belong together, got {method}")


def check_room(method: Method, P: int, model: Decoder) -> None:
    """Raise MethodError unless `model` has room for P virtual tokens and a real one."""
    if P >= model.config.context_length:
        raise MethodError(f"{type(method).__name__}: {P} virtual tokens leave no room for text in "
                          f"a context of {model.config.context_length}")


def starting_words(model: Decoder, P: int, text: str | tuple | None, rng: Rng) -> Array:
    """Choose P token ids: those of `text`, cut or repeated, or common tokens drawn at random.

    A BPE vocabulary numbers the 256 single bytes first, after a few special tokens if at all, and
    then words from frequent to rare. Lester et al. draw from the first 5,000 tokens. A vocabulary
    of up to 512 is drawn from as a whole.
    """
    V = model.config.vocab_size
    if text is None:
        first = 256 if V > 512 else 0
        return rng.integers(first, min(V, 5000), P)
    return np.resize(token_ids(model, "text", text), P)


def token_ids(model: Decoder, field: str, text: str | tuple[int, ...], **options: Any) -> Array:
    """Look up the ids of a field's `text`; MethodError if one does not exist. options: of `encode`.
    """
    if isinstance(text, str):
        if model.tokenizer is None:
            raise MethodError(f"{field}: a str needs model.tokenizer; without one, give ids")
        text = model.tokenizer.encode(text, **options)
    ids = np.asarray(text).reshape(-1)
    V = model.config.vocab_size
    if not ids.size or ids.min() < 0 or ids.max() >= V:
        raise MethodError(f"{field} must be words or ids in [0, {V}), got {ids.tolist()}")
    return ids
