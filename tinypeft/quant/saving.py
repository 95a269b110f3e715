"""A quantized model in a file: the bytes that it holds in memory, and JSON that describes them.

`state_dict` has every array under its name, but neither the class of a layer nor its scalar fields
(bits, shape, block size). The JSON adds class and `vars(layer)`, from which a layer is restored
without running its constructor. Arrays of one dtype are joined into one, and the JSON is
compressed: this keeps the file within one percent of its arrays.
"""
import dataclasses
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..files import load_arrays, save_arrays
from ..gpt import GPT, GPTConfig
from ..hints import Array
from ..nn import Linear, Parameter, replace_modules
from .awq import InputScaledLinear
from .calibration import below
from .fake_quant import RoundedLinear
from .int8 import Int8Linear
from .linear import QuantizedLinear
from .llm_int8 import LLMInt8Linear
from .qtensor import QTensor

LAYERS = (QuantizedLinear, InputScaledLinear, Int8Linear, LLMInt8Linear, RoundedLinear)


def save_quantized(model: GPT, path: str | Path) -> None:
    """Write a GPT with its quantized layers to one file, atomically. `load_quantized` reads it.
    ValueError while a method is attached or layers are still to be converted (see `convert`);
    TypeError for a layer whose attributes are not arrays, QTensors, Parameters or JSON values."""
    if model.attached is not None:
        raise ValueError(f"save_quantized: {model.attached} is attached; save and detach it first")
    if training := [p for p, m in model.named_modules() if hasattr(m, "convert")]:
        raise ValueError(f"save_quantized: {training[0]} is a layer for training; call convert")
    state = model.state_dict()
    layers = {p: {"class": type(m).__name__}
              | {name: described(value, f"{p}.{name}") for name, value in vars(m).items()}
              for p, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    index = [[name, a.dtype.name, list(a.shape)] for name, a in state.items()]
    joined = {dtype: np.concatenate([state[name].reshape(-1) for name, d, _ in index if d == dtype])
              for dtype in dict.fromkeys(d for _, d, _ in index)}   # in a fixed order
    layout = zlib.compress(json.dumps({"layers": layers, "index": index}).encode())
    save_arrays(path, joined | {"layout": np.frombuffer(layout, np.uint8)},
                {"format": 1, "config": dataclasses.asdict(model.config),
                 "head": None if model.head is None else model.head.d_out})


def load_quantized(path: str | Path, layers: Iterable[type[QuantizedLinear]] = ()) -> GPT:
    """The GPT that `save_quantized` wrote to `path`: same codes, same function, but no tokenizer.
    layers: your own layer classes, if any. ValueError if the file is damaged or of another kind."""
    joined, meta = load_arrays(path)
    if meta.get("format") != 1 or "layout" not in joined:
        raise ValueError(f"{path} holds no quantized model that save_quantized wrote")
    layout = json.loads(zlib.decompress(joined["layout"]))
    state = {}
    for name, dtype, shape in layout["index"]:
        first, joined[dtype] = np.split(joined[dtype], [math.prod(shape)])
        state[name] = first.reshape(shape)
    model = GPT(GPTConfig(**meta["config"]))
    if meta["head"] is not None: model.head = Linear(model.config.d_model, meta["head"])
    classes = {cls.__name__: cls for cls in (*LAYERS, *layers)}
    for p, parts in layout["layers"].items():
        if (kind := parts.pop("class")) not in classes:
            raise ValueError(f"load_quantized: {p} is a {kind}; give its class in layers=")
        layer = object.__new__(classes[kind])
        for name, value in parts.items():
            setattr(layer, name, restored(value, f"{p}.{name}", state))
        replace_modules(model, {p: layer})
    return model.load_state_dict(state)


def described(value: Any, name: str) -> Any:
    """What the file's JSON says about one attribute of a layer."""
    if isinstance(value, QTensor): return {"QTensor": value.metadata()}
    if isinstance(value, (Parameter, np.ndarray)): return {"array": type(value).__name__}
    if value is None or isinstance(value, (bool, int, float, str)): return value
    raise TypeError(f"save_quantized: {name} is a {type(value).__name__}, expected an array, a "
                    "QTensor, a Parameter or a JSON value")


def restored(value: Any, name: str, state: dict[str, Array]) -> Any:
    """The inverse of `described`."""
    if not isinstance(value, dict): return value
    if "QTensor" in value: return QTensor.from_arrays(below(name, state), value["QTensor"])
    return Parameter(state[name]) if value["array"] == "Parameter" else state[name]
