"""The shipped base model, as `python -m tinypeft pretrain` made it (`make.py`).

`weights.safetensors` holds float16 arrays under the names of `GPT.state_dict`, `tokenizer.json` the
byte-level BPE, `training.json` the configuration, the loss curve and the measurements.
"""
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files import cache_directory, check_fields, load_arrays, made, naming
from ..models.gpt import GPT, GPTConfig
from ..text.tokenizer import BPETokenizer

__all__ = ["WEIGHTS", "drawn_bases", "drawn_name", "load_base", "load_tokenizer", "read_weights",
           "training_record"]

FOLDER = Path(__file__).parent
WEIGHTS = "weights.safetensors"


def load_base(folder: str | Path | None = None) -> GPT:
    """Load a fresh copy of the base model, with its tokenizer as `.tokenizer`, offline.

    folder: from `pretrain --out`; None is the shipped one. Raises FileNotFoundError, and ValueError
    for a folder whose files are damaged or do not fit together."""
    folder = FOLDER if folder is None else Path(folder)
    if not os.path.lexists(folder / WEIGHTS):            # a link that leads nowhere is damage
        raise FileNotFoundError(f"there is no {WEIGHTS} in {folder}")
    model = read_weights(folder / WEIGHTS)
    model.tokenizer = load_tokenizer(folder)
    if model.tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {model.tokenizer.vocab_size} tokens, the "
                         f"model only {model.config.vocab_size}; they belong to different models")
    return model


def read_weights(path: Path) -> GPT:
    """Return the model in a file of weights, in float32, without a tokenizer. Raises
    FileNotFoundError, KeyError or ValueError, naming the file, before the model takes memory."""
    arrays, meta = load_arrays(path)
    with naming(path):
        check_fields(meta, {"config": dict}, {"validation": float})
        for name, array in arrays.items():
            if array.dtype.kind != "f": raise ValueError(f"{name} is {array.dtype}, not floats")
        wide = {name: array.astype(np.float32) for name, array in arrays.items()}
        return GPT.from_arrays(made(GPTConfig, meta["config"]), wide)


@functools.cache
def load_tokenizer(folder: Path = FOLDER) -> BPETokenizer:
    """Load the base's tokenizer. Calls share one object."""
    return BPETokenizer.load(folder / "tokenizer.json")


def drawn_name(size: str, seed: int) -> str:
    """Name a base by its size and, unless it is the shipped one (seed 0), its seed."""
    return f"{size}-{seed}" if seed else size


def drawn_bases() -> Path:
    """Return the folder of the user's cache for bases that the package does not ship."""
    return cache_directory() / "bases"


def training_record() -> dict[str, Any]:
    """Load training.json: the base's recipe, its loss curve and its results."""
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
