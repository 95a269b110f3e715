"""A quantized model in a file: the bytes that it holds in memory, and JSON that describes them.

`state_dict` has every array under its name, but neither the class of a layer nor its scalar fields
(bits, shape, block size). The JSON adds both, from which a layer is restored without running its
constructor. A file has an entry of a hundred bytes for every array, so arrays of one type are
joined into one, and equal layers share a description. This keeps the file within one percent of
its arrays.

    family     the class of the model, such as "Llama"; without it, it is a GPT
    config     the fields of its `Config`
    index      type → {name: shape}: the arrays that are joined, in their order
    kinds      the descriptions: attribute → number, string, null or array; and the class
    layers     path → the number of its description

A file is not trusted. Each class says which attributes it has (`parts`) and which values fit
(`check_parts`). No layer is made before its arrays are there, and no model before its shapes fit.
"""
import dataclasses
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..engine.nn import Parameter
from ..files import check_fields, load_arrays, made, naming, parse_json, save_arrays
from ..models.decoder import Decoder
from ..models.gemma import Gemma
from ..models.gpt import GPT
from ..models.llama import Llama
from .awq import InputScaledLinear
from .fake_quant import RoundedLinear
from .int8 import Int8Linear
from .linear import QuantizedLinear
from .llm_int8 import LLMInt8Linear
from .qtensor import QTensor

FAMILIES = {cls.__name__: cls for cls in (GPT, Llama, Gemma)}
LAYERS = (QuantizedLinear, InputScaledLinear, Int8Linear, LLMInt8Linear, RoundedLinear)
LONGEST_LAYOUT = 1 << 22                                 # bytes, unpacked; of files of format 1


def save_quantized(model: Decoder, path: str | Path) -> None:
    """Write a model with its quantized layers to one file, atomically. `load_quantized` reads it.
    ValueError while a method is attached or layers are still to be converted (see `convert`);
    TypeError for a layer whose attributes are not arrays, QTensors, Parameters or JSON values."""
    if model.attached is not None:
        raise ValueError(f"save_quantized: {model.attached} is attached; save and detach it first")
    if training := [p for p, m in model.named_modules() if hasattr(m, "convert")]:
        raise ValueError(f"save_quantized: {training[0]} is a layer for training; call convert")
    state, kinds, layers, index = model.state_dict(), [], {}, {}
    for p, m in model.named_modules():
        if not isinstance(m, QuantizedLinear): continue
        kind = {name: described(value, f"{p}.{name}") for name, value in vars(m).items()
                if name != "training"} | {"class": type(m).__name__}
        if kind not in kinds: kinds.append(kind)
        layers[p] = kinds.index(kind)
    for name, a in state.items(): index.setdefault(a.dtype.name, {})[name] = list(a.shape)
    joined = {dtype: np.concatenate([state[name].reshape(-1) for name in names])
              for dtype, names in index.items()}
    save_arrays(path, joined, {"format": 2, "family": type(model).__name__,
                               "config": dataclasses.asdict(model.config),
                               "index": index, "kinds": kinds, "layers": layers})


def load_quantized(path: str | Path, layers: Iterable[type[QuantizedLinear]] = ()) -> Decoder:
    """The model that `save_quantized` wrote to `path`: same codes, same function, but no tokenizer.
    layers: your own layer classes, if any. Raises FileNotFoundError, and ValueError or KeyError,
    naming the file, if it is damaged, of another kind, or does not fit together."""
    joined, meta = load_arrays(path)
    with naming(path):
        formats = {1: _read_first_format, 2: _read_format}
        read = formats.get(n) if type(n := meta.get("format")) is int else None
        if read is None or "config" not in meta or "parts" in meta:
            raise ValueError("it holds no quantized model that save_quantized wrote")
        state, kinds = read(joined, meta)
        family = meta.get("family", "GPT")
        if not isinstance(family, str) or family not in FAMILIES:
            raise ValueError(f"its family is {str(family)[:80]!r}; there are {', '.join(FAMILIES)}")
        config = made(FAMILIES[family].Config, meta["config"])
        classes = {cls.__name__: cls for cls in (*LAYERS, *layers)}
        of_layer: dict[str, dict[str, Array]] = {path: {} for path in kinds}
        rest = {}
        for name, array in state.items():                # "blocks.0.mlp.up.weight.codes"
            at = ".".join(name.split(".")[:4])
            if at in of_layer: of_layer[at][name.removeprefix(f"{at}.")] = array
            else:              rest[name] = array
        made_layers = {}
        for at, kind in kinds.items():
            with naming(at): made_layers[at] = _layer(kind, of_layer[at], classes)
        dtype = {a.dtype for a in rest.values()}
        for at, layer in made_layers.items():
            if layer.bias is not None and layer.bias.dtype not in dtype:
                raise ValueError(f"the bias of {at} is {layer.bias.dtype}, the model is not")
        return FAMILIES[family].from_arrays(config, rest, made_layers)


def _read_format(joined, meta):
    """(name → array, path → description)."""
    check_fields(meta, {"format": int, "config": dict, "index": dict, "kinds": list,
                        "layers": dict}, {"family": str})
    kinds = meta["kinds"]
    for path, i in meta["layers"].items():
        if type(i) is not int or not 0 <= i < len(kinds):
            raise ValueError(f"{path} has the description {i!r} of {len(kinds)}")
    if meta["index"].keys() != joined.keys():
        raise ValueError(f"the index has {sorted(meta['index'])}, the file {sorted(joined)}")
    check_fields(meta["index"], dict.fromkeys(meta["index"], dict))
    state = {}
    for dtype, shapes in meta["index"].items():
        check_fields(shapes, dict.fromkeys(shapes, list))
        if twice := state.keys() & shapes.keys(): raise ValueError(f"two arrays {sorted(twice)}")
        state |= cut(joined[dtype], shapes)
    return state, {path: kinds[i] for path, i in meta["layers"].items()}


def _read_first_format(joined, meta):
    """As `_read_format`, of files with a compressed layout, which earlier versions wrote."""
    if "layout" not in joined: raise ValueError("it has no layout")
    unpack, packed = zlib.decompressobj(), joined.pop("layout").tobytes()
    try:
        text = unpack.decompress(packed, LONGEST_LAYOUT)
    except zlib.error as e: raise ValueError(f"its layout is damaged: {e}") from e
    if not unpack.eof: raise ValueError(f"its layout has more than {LONGEST_LAYOUT:,} bytes")
    layout = check_fields(parse_json(text, infinity=True), {"layers": dict, "index": list})
    index = {}
    for entry in layout["index"]:
        match entry:
            case [str(name), str(dtype), list(shape)] if name not in index.get(dtype, {}):
                index.setdefault(dtype, {})[name] = shape
            case _: raise ValueError(f"the index has an entry {str(entry)[:80]}")
    if index.keys() != joined.keys():
        raise ValueError(f"the index has {sorted(index)}, the file {sorted(joined)}")
    state = {}
    for dtype, shapes in index.items(): state |= cut(joined[dtype], shapes)
    return state, layout["layers"]


def cut(joined: Array, shapes: dict[str, list[int]]) -> dict[str, Array]:
    """name → array: an array of one axis cut into pieces of these shapes. ValueError unless they
    fill it."""
    pieces, at = {}, 0
    for name, shape in shapes.items():
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} has the shape {str(shape)[:80]}, expected whole numbers ≥ 0")
        n = math.prod(shape)
        if at + n > joined.size:
            raise ValueError(f"{name} ends at number {at + n:,} of {joined.size:,}")
        pieces[name] = joined[at:at + n].reshape(shape)
        at += n
    if at != joined.size:
        raise ValueError(f"the arrays end at number {at:,} of {joined.size:,}")
    return pieces


def described(value: Any, name: str) -> Any:
    """What the file's JSON says about one attribute of a layer."""
    if isinstance(value, QTensor): return {"QTensor": value.metadata()}
    if isinstance(value, (Parameter, np.ndarray)): return {"array": type(value).__name__}
    if value == math.inf: return {"number": "inf"}               # which JSON does not have
    if value is None or isinstance(value, (bool, int, float, str)): return value
    raise TypeError(f"save_quantized: {name} is a {type(value).__name__}, expected an array, a "
                    "QTensor, a Parameter or a JSON value")


def restored(told: Any, name: str, arrays: dict[str, Array]) -> Any:
    """The inverse of `described`; takes what it uses out of the layer's `arrays`."""
    match told:
        case None | bool() | int() | float() | str(): return told
        case {"number": "inf"}: return math.inf
        case {"QTensor": dict(metadata)}:
            own = [n for n in arrays if n.startswith(f"{name}.")]
            return QTensor.from_arrays({n.removeprefix(f"{name}."): arrays.pop(n) for n in own},
                                       metadata)
        case {"array": "Parameter" | "ndarray" as kind}:
            if name not in arrays: raise KeyError(f"there is no array {name}")
            array = arrays.pop(name)
            if kind == "ndarray": return array
            if array.dtype not in (np.float32, np.float64):
                raise ValueError(f"{name} is {array.dtype}, expected float32 or float64")
            return Parameter(array)
        case _: raise ValueError(f"{name} is {str(told)[:80]}, which describes nothing")


def _layer(kind, arrays, classes):
    """The layer that a description and its arrays make up. Its attributes are its class's `parts`;
    a class of your own may have others, unless they hide something of the class."""
    if not isinstance(kind, dict) or type(name := kind.get("class")) is not str:
        raise ValueError(f"expected a description with a class, got {str(kind)[:80]}")
    kind = {n: v for n, v in kind.items() if n not in ("class", "training")}
    cls = classes.get(name)
    if cls is None: raise ValueError(f"it is a {name[:80]}; give its class in layers=")
    values = {attribute: restored(told, attribute, arrays) for attribute, told in kind.items()}
    more = {a: type(v) if v is not None else None for a, v in values.items()
            if cls not in LAYERS and a not in cls.parts and a.isidentifier()
            and not hasattr(cls, a)}
    check_fields(values, cls.parts, more)
    if arrays: raise KeyError(f"unknown arrays {sorted(arrays)[:8]}")
    layer = object.__new__(cls)
    vars(layer).update(values)
    layer.check_parts()
    return layer
