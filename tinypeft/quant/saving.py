"""A quantized model in a file: the bytes that it holds in memory, and JSON that describes them.

`state_dict` has every array under its name, but neither the class of a layer nor its scalar fields
(bits, shape, block size). The JSON adds both, from which a layer is restored without running its
constructor. Any viewer of safetensors shows the arrays by their names.

    family     the class of the model, such as "Llama"
    config     the fields of its `Config`
    layers     path → the class of a layer, and attribute → number, string, null or array
    tokenizer  the content of `Tokenizer.save`; absent if the model has none

A file is not trusted. Each class says which attributes it has (`parts`) and which values fit
(`check_parts`). No layer is made before its arrays are there, and no model before its shapes fit.
Files of format 2 are read, too: there the arrays of one type were joined into one.
"""
import dataclasses
import itertools
import json
import math
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..engine.nn import Parameter
from ..files import check_fields, load_arrays, made, naming, save_arrays
from ..models.decoder import Decoder, require_free
from ..models.gemma import Gemma
from ..models.gpt import GPT
from ..models.llama import Llama
from ..text.sentencepiece import SentencePieceTokenizer
from ..text.tokenizer import BPETokenizer, Tokenizer
from .awq import InputScaledLinear
from .fake_quant import RoundedLinear
from .int8 import Int8Linear
from .linear import QuantizedEmbedding, QuantizedLinear
from .llm_int8 import LLMInt8Linear
from .qtensor import QTensor

FORMAT = 3
FAMILIES = {cls.__name__: cls for cls in (GPT, Llama, Gemma)}
LAYERS = (QuantizedLinear, QuantizedEmbedding, InputScaledLinear, Int8Linear, LLMInt8Linear,
          RoundedLinear)
SETTINGS = bool, int, float, str, dict
TOKENIZERS = BPETokenizer, SentencePieceTokenizer


def save_quantized(model: Decoder, path: str | Path) -> None:
    """Write a model with its quantized layers, and its tokenizer, to one file, atomically.
    `load_quantized` and `load_model` read it.

    Nothing is written unless the file would load as the same model. TypeError for anything but a
    language model, and for a layer whose attributes are not arrays, QTensors, Parameters or JSON
    values. ValueError for the model inside a PeftModel, or if layers are still to be converted (see
    `convert`); ValueError or KeyError for anything else that the file cannot hold."""
    require_free(model, "save_quantized")
    arrays, meta = packed(model)
    classes = {type(module) for _, module in model.named_modules()}
    with naming("save_quantized: load_quantized could not read this model"):
        check_same(model, unpacked(arrays, meta, classes))        # around the same arrays
    save_arrays(path, arrays, meta)


def packed(model: Decoder) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays of a file, and its JSON."""
    layers = {}
    for path, module in model.named_modules():
        if hasattr(module, "convert"):
            raise ValueError(f"save_quantized: {path} is a layer for training; call convert")
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            fields = {name: described(value, f"{path}.{name}")
                      for name, value in vars(module).items() if name != "training"}
            layers[path] = {"class": type(module).__name__, **fields}
    meta = {"format": FORMAT, "family": type(model).__name__,
            "config": dataclasses.asdict(model.config), "layers": layers}
    if model.tokenizer is not None:
        meta["tokenizer"] = model.tokenizer.content()
    return model.state_dict(), json.loads(json.dumps(meta))


def check_same(model: Decoder, loaded: Decoder) -> None:
    """ValueError unless the modules of both have the same classes and settings."""
    twins = dict(loaded.named_modules())
    for path, module in model.named_modules():
        twin = twins.get(path)
        if type(twin) is not type(module):
            raise ValueError(f"{path} would be a {type(twin).__name__}")
        for name, value in vars(module).items():
            expected = getattr(twin, name, value)
            is_setting = isinstance(value, SETTINGS) and name not in ("training", "source")
            if is_setting and value != expected:
                raise ValueError(f"{path}.{name} is {value}, and would be {expected}")


def load_quantized(path: str | Path, layers: Iterable[type[QuantizedLinear]] = ()) -> Decoder:
    """Load the model that `save_quantized` wrote to `path`: same codes, same function, same
    tokenizer. layers: your own layer classes, if any. Raises FileNotFoundError, and ValueError or
    KeyError, naming the file, if it is damaged, of another kind, or does not fit together."""
    arrays, meta = load_arrays(path)
    with naming(path):
        if meta.get("format") == 2 and "kinds" in meta:
            arrays, meta = of_format_2(arrays, meta)
        if meta.get("format") != FORMAT or "config" not in meta:
            raise ValueError("it holds no quantized model that save_quantized wrote")
        return unpacked(arrays, meta, layers)


def of_format_2(joined: dict[str, Array], meta: dict
                ) -> tuple[dict[str, Array], dict[str, Any]]:
    """Cut the joined arrays of an older file, and give each layer its description."""
    arrays, layers = {}, {}
    try:
        for dtype, shapes in meta["index"].items():
            ends = list(itertools.accumulate(map(math.prod, shapes.values())))
            pieces = np.split(joined[dtype], ends[:-1])
            for name, piece in zip(shapes, pieces, strict=True):
                arrays[name] = piece.reshape(shapes[name])
        for path, i in meta["layers"].items():
            layers[path] = meta["kinds"][i]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = shortened(str(error), 80)
        raise ValueError(f"its index does not fit its arrays: {reason}") from None
    meta = {**meta, "format": FORMAT, "layers": layers}
    del meta["index"], meta["kinds"]
    return arrays, meta


def unpacked(arrays: dict[str, Array], meta: dict, layers: Iterable[type[QuantizedLinear]]
             ) -> Decoder:
    """Invert `packed`, and believe nothing. layers: as in `load_quantized`."""
    check_fields(meta, {"format": int, "family": str, "config": dict, "layers": dict},
                 {"tokenizer": dict})
    name = meta["family"]
    if name not in FAMILIES:
        raise ValueError(f"its family is {brief(name)}; there are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    config = made(family.Config, meta["config"])
    classes = {cls.__name__: cls for cls in (*LAYERS, *layers)}
    own = {path: {} for path in meta["layers"]}
    rest = {}
    for name, array in arrays.items():
        path = layer_of(name, own)
        if path is None:
            rest[name] = array
        else:
            own[path][name.removeprefix(f"{path}.")] = array
    quantized = {}
    for layer, kind in meta["layers"].items():
        with naming(layer):
            quantized[layer] = restored_layer(kind, own[layer], classes)
    dtypes = {array.dtype for array in rest.values()}
    for layer, module in quantized.items():
        if module.bias is not None and module.bias.dtype not in dtypes:
            raise ValueError(f"the bias of {layer} is {module.bias.dtype}, the model is not")
        if isinstance(module, QuantizedEmbedding) and np.dtype(module.dtype) not in dtypes:
            raise ValueError(f"the vectors of {layer} are {module.dtype}, the model is not")
    model = family.from_arrays(config, rest, quantized)
    model.tokenizer = tokenizer_in(meta.get("tokenizer"), config.vocab_size)
    return model


def tokenizer_in(content: dict | None, rows: int) -> Tokenizer | None:
    """Make the tokenizer that a file describes; None if it describes none. ValueError for one that
    has more ids than the model has rows."""
    if content is None:
        return None
    kinds = {cls._format: cls for cls in TOKENIZERS}
    with naming("the tokenizer"):
        kind = content.get("format")
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"its format is {brief(kind)}; there are {', '.join(kinds)}")
        tokenizer = kinds[kind].from_content(content)
    if tokenizer.vocab_size > rows:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size:,} ids, the model only {rows:,}")
    return tokenizer


def layer_of(name: str, paths: Container[str]) -> str | None:
    """Return the path of the layer that an array belongs to, or None."""
    while name:
        name = name.rpartition(".")[0]
        if name in paths:
            return name
    return None


def described(value: Any, name: str) -> Any:
    """Describe one attribute of a layer for the file's JSON. TypeError for other types."""
    if isinstance(value, QTensor):
        return {"QTensor": value.metadata()}
    if isinstance(value, (Parameter, np.ndarray)):
        return {"array": type(value).__name__}
    if value == math.inf:
        return {"number": "inf"}                         # which JSON does not have
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"save_quantized: {name} is a {type(value).__name__}, expected an array, a "
                    "QTensor, a Parameter or a JSON value")


def restored(description: Any, name: str, arrays: dict[str, Array]) -> Any:
    """Invert `described`, and remove the arrays that this takes from the layer's `arrays`."""
    match description:
        case None | bool() | int() | float() | str():
            return description
        case {"number": "inf"}:
            return math.inf
        case {"QTensor": dict(metadata)}:
            names = [key for key in arrays if key.startswith(f"{name}.")]
            own = {key.removeprefix(f"{name}."): arrays.pop(key) for key in names}
            return QTensor.from_arrays(own, metadata)
        case {"array": "Parameter" | "ndarray" as kind}:
            if name not in arrays:
                raise KeyError(f"there is no array {shortened(name, 80)}")
            array = arrays.pop(name)
            if kind == "ndarray":
                return array
            if array.dtype not in (np.float32, np.float64):
                raise ValueError(f"{name} is {array.dtype}, expected float32 or float64")
            return Parameter(array)
    raise ValueError(f"{name} is {brief(description)}, which describes nothing")


def restored_layer(kind: Any, arrays: dict[str, Array], classes: dict[str, type]
                   ) -> QuantizedLinear | QuantizedEmbedding:
    """Make the layer of a description and its arrays. Its attributes are its class's `parts`; a
    class of your own may have others, unless they hide something of the class."""
    if not isinstance(kind, dict) or not isinstance(name := kind.get("class"), str):
        raise ValueError(f"expected a description with a class, got {brief(kind)}")
    if name not in classes:
        raise ValueError(f"it is a {shortened(name, 80)}; give its class in layers=")
    cls = classes[name]
    values = {attribute: restored(description, attribute, arrays)
              for attribute, description in kind.items() if attribute not in ("class", "training")}
    own = {}
    for attribute, value in values.items():
        hides = attribute in cls.parts or hasattr(cls, attribute)
        if cls not in LAYERS and attribute.isidentifier() and not hides:
            own[attribute] = None if value is None else type(value)
    check_fields(values, cls.parts, own)
    if arrays:
        raise KeyError(f"unknown arrays {brief(sorted(arrays))}")
    layer = object.__new__(cls)
    vars(layer).update(values)
    layer.check_parts()
    return layer
