"""A model of given arrays, such as those of a file: checked before use, and none is copied."""
from collections.abc import Mapping
from typing import Any

from ..common.hints import Array
from ..engine.nn import Linear, Module, Parameter, check_names, replace_modules, shapes_only

__all__ = ["assembled", "unfilled"]


def unfilled(cls: type[Module], config: Any) -> Any:
    """Make a model whose parameters have shapes and no memory."""
    try:
        with shapes_only():
            return cls(config)
    except (ValueError, OverflowError) as e:
        raise ValueError(f"no array has the shapes of {config}") from e


def assembled(cls: type[Module], config: Any, arrays: Mapping[str, Array],
              layers: Mapping[str, Module]) -> Any:
    """Make a model of class `cls` from arrays and layers; `Decoder.from_arrays` says what of."""
    if 2 * config.n_layers > len(arrays):                # its norms alone are 2 arrays per block
        raise ValueError(f"{len(arrays)} arrays are too few for {config.n_layers} layers")
    model = unfilled(cls, config)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for path, layer in layers.items():
        expected = shapes.pop(f"{path}.weight", f"none: a {cls.__name__} has no such layer")
        shapes.pop(f"{path}.bias", None)
        if (layer.d_out, layer.d_in) != expected:
            raise ValueError(f"{path} has a weight of shape {(layer.d_out, layer.d_in)}, "
                             f"expected {expected}")
        old = model.get(path)
        if hasattr(layer, "scores") != hasattr(old, "scores"):           # which embeddings have
            raise ValueError(f"{path} is a {type(layer).__name__} in place of an "
                             f"{type(old).__name__}")
    if "head.weight" in arrays:
        has_bias = "head.bias" in arrays
        n_classes = arrays["head.weight"].shape[:1]
        shapes["head.weight"] = (*n_classes, config.d_model)
        if has_bias:
            shapes["head.bias"] = n_classes
        with shapes_only():
            model.head = Linear(config.d_model, 1, has_bias)
    _check(shapes, arrays)
    replace_modules(model, layers)
    for full_name, array in arrays.items():
        path, _, name = full_name.rpartition(".")
        setattr(model.get(path), name, Parameter(array))
    return model


def _check(shapes, arrays):
    """Raise KeyError or ValueError unless the arrays have these names and shapes, and one dtype."""
    check_names(shapes, arrays)
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
    dtypes = {array.dtype.name for array in arrays.values()}
    if dtypes not in ({"float32"}, {"float64"}):
        raise ValueError(f"the arrays are {' and '.join(sorted(dtypes))}, expected float32 or "
                         "float64 for all")
