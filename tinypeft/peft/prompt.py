"""Prompt tuning (Lester, Al-Rfou & Constant, arXiv 2104.08691): P trained vectors before the input.

They are as wide as a token's embedding, and nothing else is trained: conditioned on them, the
frozen model does the task. Trained parameters: P d. Section 2:

    Pr_{θ; θ_P}(Y | [P_e; X_e])

    paper    here          shape
    X_e      embeddings    (B, T, d), of the input
    P_e      P_e           (P, d), trained

Where implementations differ. The paper draws a random start from U(−0.5, 0.5), `init="random"`;
PEFT draws from N(0, 1). Both can start from words: `init="vocabulary"`, the default here, uses
common tokens; `init="text"` uses the words of `text`, for example the class labels. The paper takes
P = 100 and finds little gain beyond 20, the default here. PEFT also returns logits for the prompt
and trains on the first token's prediction from it; here virtual tokens never show.
"""
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.hints import Array, Rng
from ..common.hyper import one_of, whole
from ..engine.nn import Parameter
from ..models.decoder import Decoder
from .method import Method, VirtualTokens
from .virtual import check_room, check_words, starting_words, words

__all__ = ["Prompt", "PromptTuning"]


@dataclass(frozen=True)
class PromptTuning(Method):
    """Train `length` vectors that start as common words, as `text` (a str or ids) or at random."""
    length: int = whole(20, least=1, also=("num_virtual_tokens", "P"))
    init: str = one_of("vocabulary", "text", "random", also=("prompt_tuning_init",))
    text: str | tuple[int, ...] | None = words(also=("prompt_tuning_init_text",))
    learning_rate = 3e-2
    shown = ("length",)

    check = check_words

    def virtual(self, model: Decoder, rng: Rng) -> "Prompt":
        check_room(self, self.length, model)
        if self.init == "random":
            return Prompt(rng.uniform(-0.5, 0.5, (self.length, model.config.d_model)))
        ids = starting_words(model, self.length, self.text, rng)
        return Prompt(model.token_embedding(ids).data)      # as the words themselves enter


class Prompt(VirtualTokens):
    """P_e, before the input of every row."""

    def __init__(self, P_e: Array):
        self.P_e = Parameter(np.array(P_e))                                   # (P, d)
        self.length = len(P_e)

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        return {"prompt": self.P_e}

    def describe(self) -> str:
        return f"({self.length} vectors)"
