"""The shipped base model, which `python -m tinypeft pretrain` makes (`make.py`).

`weights.npz` holds float16 arrays under the names of `GPT.state_dict`, `tokenizer.json` the
byte-level BPE, `training.json` the configuration, the loss curve and the measurements.
"""
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..files import load_arrays
from ..gpt import GPT, GPTConfig
from ..text.tokenizer import BPETokenizer

__all__ = ["load_pretrained", "load_tokenizer", "training_record"]

FOLDER = Path(__file__).parent


def load_pretrained(folder: str | Path | None = None) -> GPT:
    """Load a fresh copy of the base model, with its tokenizer as `.tokenizer`, offline.

    folder: from `pretrain --out`; None is the shipped one. Raises FileNotFoundError, ValueError."""
    folder = FOLDER if folder is None else Path(folder)
    arrays, meta = load_arrays(folder / "weights.npz")
    model = GPT(GPTConfig(**meta["config"]))
    model.load_state_dict({name: a.astype(np.float32) for name, a in arrays.items()})
    model.tokenizer = load_tokenizer(folder)
    return model


@functools.cache
def load_tokenizer(folder: Path = FOLDER) -> BPETokenizer:
    """Load the base's tokenizer. Calls share one object."""
    return BPETokenizer.load(folder / "tokenizer.json")


def training_record() -> dict[str, Any]:
    """Load training.json: the base's recipe, its loss curve and its results."""
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
