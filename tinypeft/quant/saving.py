"""A quantized model in a file: the bytes that it holds in memory, and a little JSON that says what they are.

`state_dict` has every array under its name; what it lacks is of which kind a layer is, and the numbers that are no
arrays (bits, shape, block size). A layer is what `vars(layer)` says, so that is what is written, and read back without
running anybody's constructor. All arrays of one dtype are joined into one, and the JSON is compressed: the file is
then within one percent of its arrays, where 100 headers would not be.
"""
import dataclasses
import json
import zlib

import numpy as np

from ..files import load_arrays, save_arrays
from ..gpt import GPT, GPTConfig
from ..nn import Linear, Parameter, replace_modules
from .linear import QuantizedLinear
from .qtensor import QTensor

__all__ = ["load_quantized", "save_quantized"]


def save_quantized(model, path):
    """Write a GPT, quantized layers and all, to one file, atomically. `load_quantized` reads it.

    Raises ValueError while a method is attached (save that by its own `save`) or layers are still to be converted (see
    `convert`), TypeError for a layer that holds something other than arrays, QTensors, Parameters and JSON values.
    """
    if model.attached is not None:
        raise ValueError(f"save_quantized: {model.attached} is attached; detach it first, and save it with its own .save")
    if training := [path for path, m in model.named_modules() if hasattr(m, "convert")]:
        raise ValueError(f"save_quantized: {training[0]} is still a layer for training; call tinypeft.convert(model) first")
    state = model.state_dict()
    layers = {p: {"class": type(m).__name__} | {name: described(value, f"{p}.{name}") for name, value in vars(m).items()}
              for p, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    index = [[name, a.dtype.name, list(a.shape)] for name, a in state.items()]
    joined = {dtype: np.concatenate([state[name].reshape(-1) for name, d, _ in index if d == dtype])
              for dtype in {d for _, d, _ in index}}
    layout = zlib.compress(json.dumps({"layers": layers, "index": index}).encode())
    save_arrays(path, joined | {"layout": np.frombuffer(layout, np.uint8)},
                {"format": 1, "config": dataclasses.asdict(model.config),
                 "head": None if model.head is None else model.head.d_out})


def load_quantized(path):
    """The GPT that `save_quantized` wrote to `path`: the same codes, the same function. It has no tokenizer.

    Raises FileNotFoundError, or ValueError for a file that is damaged or something else.
    """
    joined, meta = load_arrays(path)
    if meta.get("format") != 1 or "layout" not in joined:
        raise ValueError(f"{path} holds no quantized model; load_quantized reads what save_quantized wrote")
    layout = json.loads(zlib.decompress(joined["layout"]))
    state, at = {}, dict.fromkeys(joined, 0)
    for name, dtype, shape in layout["index"]:
        n = int(np.prod(shape))
        state[name] = joined[dtype][at[dtype]:at[dtype] + n].reshape(shape)
        at[dtype] += n
    model = GPT(GPTConfig(**meta["config"]))
    if meta["head"] is not None:
        model.head = Linear(model.config.d_model, meta["head"])
    kinds = subclasses(QuantizedLinear)
    for p, parts in layout["layers"].items():
        layer = object.__new__(kinds[parts.pop("class")])
        for name, value in parts.items():
            setattr(layer, name, restored(value, f"{p}.{name}", state))
        replace_modules(model, {p: layer})
    return model.load_state_dict(state)


def described(value, name):
    """What the file's JSON says of one attribute of a layer."""
    if isinstance(value, QTensor):
        return {"QTensor": value.metadata()}
    if isinstance(value, (Parameter, np.ndarray)):
        return {"array": type(value).__name__}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"save_quantized: {name} is a {type(value).__name__}, which it does not know how to write")


def restored(value, name, state):
    """The inverse of `described`."""
    if not isinstance(value, dict):
        return value
    if "QTensor" in value:
        arrays = {k.removeprefix(f"{name}."): a for k, a in state.items() if k.startswith(f"{name}.")}
        return QTensor.from_arrays(arrays, value["QTensor"])
    return Parameter(state[name]) if value["array"] == "Parameter" else state[name]


def subclasses(cls):
    """name → class, of a class and all that derive from it."""
    return {cls.__name__: cls} | {name: c for sub in cls.__subclasses__() for name, c in subclasses(sub).items()}
