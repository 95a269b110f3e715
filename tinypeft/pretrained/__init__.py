"""The shipped base model: its weights, its tokenizer, and how it was trained.

`weights.npz` holds float16 arrays under the names of `GPT.state_dict`, `tokenizer.json` the byte-level
BPE, `training.json` the configuration, the loss curve and what was measured. `python -m tinypeft pretrain`
makes all three (`make.py`).
"""
import functools
import json
from pathlib import Path

import numpy as np

from ..files import load_arrays
from ..gpt import GPT, GPTConfig
from ..text.tokenizer import BPETokenizer

__all__ = ["load_pretrained", "load_tokenizer", "training_record"]

FOLDER = Path(__file__).parent


def load_pretrained(folder=None):
    """The base model, with its tokenizer as `.tokenizer`. Offline; a fresh copy at every call.

    folder: another one that `python -m tinypeft pretrain --out FOLDER` wrote. Raises FileNotFoundError or ValueError.
    """
    folder = FOLDER if folder is None else Path(folder)
    arrays, meta = load_arrays(folder / "weights.npz")
    model = GPT(GPTConfig(**meta["config"]))
    model.load_state_dict({name: a.astype(np.float32) for name, a in arrays.items()})
    model.tokenizer = load_tokenizer(folder)
    return model


@functools.cache
def load_tokenizer(folder=FOLDER):
    """The base's tokenizer."""
    return BPETokenizer.load(folder / "tokenizer.json")


def training_record():
    """How the base was trained and what it reached: the content of training.json."""
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
