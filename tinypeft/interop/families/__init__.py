"""What transformers calls the parts of each family of models, and of its config.json.

    family.py         what every table says: a `Family`
    gpt2.py           GPT-2 ↔ `GPT`
    llama.py          Llama, SmolLM2, TinyLlama, Mistral and Qwen3 ↔ `Llama`
    gemma.py          Gemma 3 for text ↔ `Gemma`
"""
from ...models.decoder import Decoder
from .family import Family
from .gemma import GemmaFamily
from .gpt2 import GPT2
from .llama import LlamaFamily

__all__ = ["FAMILIES", "GPT2", "Family", "GemmaFamily", "LlamaFamily", "family_of"]

FAMILIES: tuple[Family, ...] = GPT2(), LlamaFamily(), GemmaFamily()


def family_of(model: Decoder) -> Family:
    """Return the family of a model. ValueError if transformers has none for its class."""
    for family in FAMILIES:
        if type(model) is family.model: return family
    raise ValueError(f"expected a {' or '.join(f.model.__name__ for f in FAMILIES)}, got a "
                     f"{type(model).__name__}")
