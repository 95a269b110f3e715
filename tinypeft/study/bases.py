"""Two smaller bases, of the same architecture, tokenizer, text and recipe as the shipped one.

    name      d    layers   parameters
    "small"   32   2            66,432
    "medium"  64   3           232,000
    "base"    128  5         1,155,456     the one that `load_base` reads

All three were trained for 16,000 steps of 8 × 256 tokens (`pretrained/make.py`), and the package ships their weights.
`python -m tinypeft.pretrained.make small` trains one of them again.

What is said of sizes must hold for more than one base of a size. Others are drawn with other seeds for the initialisation and
the batches: `python -m tinypeft.pretrained.make small:1`, and `small_base("small:1")` reads it. Such weights are not shipped;
results name them by a hash. DRAWS lists the seeds that the study has measured.
"""
import dataclasses
import functools
from pathlib import Path

import numpy as np

from ..files import check_fields, load_arrays, made, naming
from ..models.gpt import GPT, GPTConfig
from ..pretrained import FOLDER, load_base, load_tokenizer
from ..pretrained.base import drawn_bases, drawn_name
from ..text import corpus
from ..text.tasks import LanguageModelling

__all__ = ["DRAWS", "SIZES", "draws_of", "kept_text", "read_base", "small_base"]

SIZES = "small", "medium", "base"
DRAWS = 0, 1, 2                                          # seeds of the pretrainings of each size; 0 is the shipped one


def small_base(name: str) -> GPT:
    """A fresh copy of a base, in float32, with its tokenizer. name: a size of SIZES, or a size and a seed: "small:1".

    Raises ValueError for another name, and FileNotFoundError, which names the command that trains it, for a draw that is not in
    the cache.
    """
    size, _, seed = name.partition(":")
    if size not in SIZES or not (seed or "0").isdigit():
        raise ValueError(f"small_base: there is no base {name!r}; there are {', '.join(SIZES)}, and their draws, as small:1")
    if name == "base": return load_base()
    path = (drawn_bases() if seed else FOLDER) / f"{drawn_name(size, int(seed or 0))}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; `python -m tinypeft.pretrained.make {name}` trains it")
    return read_base(path)


def read_base(path: Path) -> GPT:
    """The base that `pretrained.make.pretrain_size` wrote to a file, in float32, with its tokenizer."""
    arrays, meta = load_arrays(path)
    with naming(path):
        check_fields(meta, {"config": dict, "key": str, "validation": float})
        model = GPT.from_arrays(made(GPTConfig, meta["config"]), {n: a.astype(np.float32) for n, a in arrays.items()})
    model.tokenizer = load_tokenizer()
    return model


def draws_of(size: str) -> list[str]:
    """The names of a size's bases in the study: "small", "small:1", …"""
    return [f"{size}:{seed}" if seed else size for seed in DRAWS]


@functools.cache
def kept_text() -> LanguageModelling:
    """Test text of the bases' own kind, every fourth document: what fine-tuning forgets is measured on it."""
    text = corpus.base_corpus()
    fourth = dataclasses.replace(text, test=text.test[::4])
    return LanguageModelling.of_corpus("base", fourth, load_tokenizer(), 128, ("test",))
