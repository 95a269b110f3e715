"""What is fine-tuned: language models, and the text that they write.

    decoder.py     what all of them share: blocks, attention, the three seams for methods
    gpt.py         GPT-2
    llama.py       Llama, and what has its form: SmolLM2, TinyLlama, Qwen 2.5, Qwen 3
    rotary.py      their positions: rotary embeddings, also stretched to longer texts
    gemma.py       Gemma 3
    plain.py       generation as one reads it
    generation.py  the same, fast, and for prompts of unequal lengths
    cache.py       the keys and values that attention has seen
    in_words.py    a model's verbs for text: generate, stream, chat, classify
    assembly.py    a model of given arrays
    targets.py     the one rule by which names choose layers
    calibration.py tokens on which a model is run to look at its layers

A name is imported when it is first used.
"""
from typing import TYPE_CHECKING

from ..common.lazy import lazily

lazily(__name__)
if TYPE_CHECKING:
    from .cache import KVCache
    from .decoder import Decoder, attend
    from .gemma import Gemma, GemmaConfig
    from .generation import sample
    from .gpt import GPT, GPTConfig
    from .in_words import generate, stream
    from .llama import Llama, LlamaConfig
    from .targets import TargetError, match_targets
