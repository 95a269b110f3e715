"""Two smaller bases, of the same architecture, tokenizer, text and recipe as the shipped one.

    name      d    layers   parameters
    "small"   32   2            66,432
    "medium"  64   3           232,000
    "base"    128  5         1,155,456     the one that `load_base` reads

All three were trained for 16,000 steps of 8 × 256 tokens (`pretrained/make.py`), and the package ships their weights.
`python -m tinypeft.pretrained.make small` trains one of them again.
"""
import dataclasses
import functools

import numpy as np

from ..files import check_fields, load_arrays, made, naming
from ..models.gpt import GPT, GPTConfig
from ..pretrained import FOLDER, load_base, load_tokenizer
from ..text import corpus
from ..text.tasks import LanguageModelling

__all__ = ["SIZES", "base_text", "small_base"]

SIZES = "small", "medium", "base"


def small_base(name: str) -> GPT:
    """A fresh copy of the base `name` of SIZES, in float32, with its tokenizer. Raises ValueError for another name."""
    if name not in SIZES:
        raise ValueError(f"small_base: there is no base {name!r}; there are {', '.join(SIZES)}")
    if name == "base": return load_base()
    arrays, meta = load_arrays(path := FOLDER / f"{name}.safetensors")
    with naming(path):
        check_fields(meta, {"config": dict, "key": str, "validation": float})
        model = GPT.from_arrays(made(GPTConfig, meta["config"]), {n: a.astype(np.float32) for n, a in arrays.items()})
    model.tokenizer = load_tokenizer()
    return model


@functools.cache
def base_text(splits: tuple[str, ...] = ("train", "validation"), context: int = 256, every: int = 1) -> LanguageModelling:
    """The text of the bases as a task, every `every`-th document of it; they have never seen "validation" and "test"."""
    text = corpus.base_corpus()
    text = dataclasses.replace(text, **{split: getattr(text, split)[::every] for split in splits})
    return LanguageModelling.of_corpus("base", text, load_tokenizer(), context, splits)
