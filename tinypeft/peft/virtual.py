"""What methods of virtual tokens share: a check that the model has room, and starting from real words.

A random start places the prompt far from any word's embedding, and makes a random prefix worse than
none. Lester et al. (arXiv 2104.08691, section 3.2) start prompts from embeddings of common words or
of the class labels. Li & Liang (arXiv 2101.00190, section 7.4) start prefixes from the activations
of real words.
"""
from __future__ import annotations

import numpy as np

from ..gpt import GPT
from ..hints import Array
from ..nn import Module
from .method import MethodError

__all__ = ["VirtualTokens", "check_length", "check_words", "starting_words"]

COMMON = 5000                                    # Lester et al. draw from the 5,000 most common tokens


class VirtualTokens(Module):
    """A module that emits `length` vectors for one of a model's seams."""
    length: int

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict:
        """What `GPT.hidden` is called with besides `tokens` (B, T).

        {"prompt": …, "prompt_at": …} or {"prefix": [(K, V), …]}. lengths (B,) are those of `classify`.
        """
        raise NotImplementedError


def check_length(name: str, P: int, model: GPT | None = None) -> None:
    """Raise MethodError unless P is a positive integer, and `model` has room for P virtual tokens and one more."""
    if isinstance(P, bool) or not isinstance(P, (int, np.integer)) or P < 1:
        raise MethodError(f"{name}: the number of virtual tokens must be a positive integer, got {P!r}")
    if model is not None and P >= model.config.context_length:
        raise MethodError(f"{name}: {P} virtual tokens leave no room for text in a context of "
                          f"{model.config.context_length}")


def check_words(name: str, init: str, text: str | tuple[int, ...] | None) -> None:
    """Raise MethodError unless `init` and `text` go together."""
    if init not in ("vocabulary", "text", "random"):
        raise MethodError(f"{name}: init must be 'vocabulary', 'text' or 'random', got {init!r}")
    if text is not None and not isinstance(text, (str, tuple)):
        raise MethodError(f"{name}: text must be a str or a tuple of token ids, got a {type(text).__name__}")
    if (init == "text") != (text is not None):
        raise MethodError(f"{name}: init='text' and text=… belong together, got init={init!r}, text={text!r}")


def starting_words(model: GPT, P: int, text: str | tuple[int, ...] | None,
                   rng: np.random.Generator) -> Array:
    """P token ids: those of `text`, cut or repeated to fill P; common tokens drawn at random if None.

    Byte-level BPE numbers the 256 single bytes first, and then words from frequent to rare, so the
    common tokens are 256 … 4,999. A vocabulary of up to 512 tokens is drawn from as a whole.
    """
    V = model.config.vocab_size
    if text is None:
        return rng.integers(256 if V > 512 else 0, min(V, COMMON), P)
    if isinstance(text, str):
        if model.tokenizer is None:
            raise MethodError("init='text' needs model.tokenizer, and this model has none; give token ids "
                              "instead")
        text = model.tokenizer.encode(text)
    ids = np.asarray(text)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= V:
        raise MethodError(f"text must be a str or ids in [0, {V}), and not empty, got {ids.tolist()}")
    return np.resize(ids, P)
