"""Prompt tuning (Lester, Al-Rfou & Constant, arXiv 2104.08691): P vectors before the embedded input, nothing else.

They are as wide as a token's embedding and trained instead of chosen, so that the frozen model, conditioned on
them, does the task. Section 2:

    Pr_{θ; θ_P}(Y | [P_e; X_e])

    paper    here          shape
    X_e      embeddings    (B, T, d), of the input
    P_e      P_e           (P, d), trained

Trained parameters: P d.

Where things differ. The paper draws a random start from U(−0.5, 0.5) (`init="random"`), PEFT from N(0, 1). Both
can start from words instead: `init="vocabulary"`, the default here, from common tokens; `init="text"` from the
words of `text`, for example the class labels. The paper uses P = 100 and finds little gain beyond 20, which is
the default here. PEFT returns logits for the prompt as well and trains on the first token's prediction from it;
here virtual tokens never show.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..nn import Parameter
from .method import Method
from .virtual import VirtualTokens, check_length, check_words, starting_words

__all__ = ["Prompt", "PromptTuning"]


@dataclass(frozen=True)
class PromptTuning(Method):
    """length P virtual tokens; init: "vocabulary", "text" (with text: a str, or token ids) or "random"."""
    length: int = 20
    init: str = "vocabulary"
    text: str | tuple | None = None
    learning_rate: ClassVar[float] = 3e-2
    shown: ClassVar[tuple] = ("length",)

    def __post_init__(self):
        check_length("PromptTuning", self.length)
        check_words("PromptTuning", self.init, self.text)

    def virtual(self, model, rng):
        check_length("PromptTuning", self.length, model)
        if self.init == "random":
            return Prompt(rng.uniform(-0.5, 0.5, (self.length, model.config.d_model)))
        words = starting_words(model, self.length, self.text, rng)
        return Prompt(model.token_embedding.weight.data[words])


class Prompt(VirtualTokens):
    """P_e, before the input of every row."""

    def __init__(self, P_e):
        self.P_e = Parameter(np.array(P_e))                                   # (P, d)

    length = property(lambda self: len(self.P_e))

    def seams(self, tokens, lengths=None):
        return {"prompt": self.P_e}

    def describe(self):
        return f"({self.length} vectors)"
