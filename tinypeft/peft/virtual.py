"""What methods of virtual tokens share: how many a model has room for, and which real words they start as.

A random start puts a prompt where no word is, and makes a random prefix worse than none. Lester et al. (arXiv
2104.08691, section 3.2) start prompts from embeddings of common words or of the class labels, Li & Liang
(arXiv 2101.00190, section 7.4) start prefixes from what the model computes for real words.
"""
import numpy as np

from ..nn import Module
from .model import MethodError

__all__ = ["VirtualTokens", "check_length", "check_words", "starting_words"]

COMMON = 5000                                    # Lester et al. draw from the 5,000 most common tokens


class VirtualTokens(Module):
    """Vectors that enter a model by its seams; `length` of them."""

    def seams(self, tokens, lengths=None):
        """What to call the model with besides `tokens` (B, T); `lengths` (B,) is given when rows are classified."""
        raise NotImplementedError


def check_length(name, P, model=None):
    """Raise MethodError unless P is a positive integer and `model` has room for P virtual tokens and a real one."""
    if isinstance(P, bool) or not isinstance(P, (int, np.integer)) or P < 1:
        raise MethodError(f"{name}: the number of virtual tokens must be a positive integer, got {P!r}")
    if model is not None and P >= model.config.context_length:
        raise MethodError(f"{name}: {P} virtual tokens leave no room for text in a context of "
                          f"{model.config.context_length}")


def check_words(name, init, text):
    """Raise MethodError unless `init` and `text` go together."""
    if init not in ("vocabulary", "text", "random"):
        raise MethodError(f"{name}: init must be 'vocabulary', 'text' or 'random', got {init!r}")
    if text is not None and not isinstance(text, (str, tuple)):
        raise MethodError(f"{name}: text must be a str or a tuple of token ids, got a {type(text).__name__}")
    if (init == "text") != (text is not None):
        raise MethodError(f"{name}: init='text' and text=… belong together, got init={init!r}, text={text!r}")


def starting_words(model, P, text, rng):
    """P token ids: those of `text` (a str, or ids), cut or said again to fill P; or drawn from common tokens if None.

    Byte-level BPE numbers the 256 single bytes first and then words from frequent to rare: tokens 256 … 4,999 are
    the common ones. A smaller vocabulary, which cannot be of that kind, is drawn from as a whole.
    """
    V = model.config.vocab_size
    if text is None:
        return rng.integers(256 if V > 512 else 0, min(V, COMMON), P)
    if isinstance(text, str):
        if model.tokenizer is None:
            raise MethodError("init='text' needs model.tokenizer, and this model has none; give token ids instead")
        text = model.tokenizer.encode(text)
    ids = np.asarray(text)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= V:
        raise MethodError(f"text must be a str or ids in [0, {V}), and not empty, got {ids.tolist()}")
    return np.resize(ids, P)
