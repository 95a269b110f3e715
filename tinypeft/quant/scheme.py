"""What every quantizer is, and what every quantizer asks of its input."""

from typing import ClassVar

import numpy as np

from ..hyper import Hyperparameters
from ..nn import replace_modules
from .linear import QuantizedLinear
from .qtensor import QTensor


class Scheme(Hyperparameters):
    """A quantizer is a value: a frozen dataclass whose fields are the paper's hyperparameters.

    A subclass defines `quantize(W) -> QTensor`; what it quantizes it first passes through `checked`. Its `repr`, which
    tables print, names the bits or the format, and whatever else is not at its default. What it does to a model, when
    `tinypeft.quantize` is called, is one of two further methods:

        layer(linear)                   the module that stands for one Linear: overridden when inputs are quantized too
        apply(model, layers, batches)   putting them in place: overridden when activations are looked at, or several
                                        layers change together; `calibration.py` has what is needed for that
    """

    shown = ("bits",)
    calibrated = False           # must be given batches of tokens
    trains: ClassVar[bool] = False

    def quantize(self, W: np.ndarray) -> QTensor:
        raise NotImplementedError(f"{type(self).__name__} does not define quantize(W)")

    def layer(self, linear) -> QuantizedLinear:
        return QuantizedLinear(self.quantize(linear.weight.data), linear.bias)

    def apply(self, model, layers: dict, batches: list):
        """layers: path → Linear, those to replace in `model`. batches: int arrays (B, T); empty if none were given.

        It may give a Parameter new `data` (never write into the old array): `quantize` undoes both if this raises.
        """
        replace_modules(model, {path: self.layer(linear) for path, linear in layers.items()})


def checked(x, what: str = "W") -> np.ndarray:
    """x as a C-contiguous float32 array. ValueError unless it is floating point, of ≥ 1 axes, not empty and finite."""
    got, x = type(x).__name__, np.asarray(x)
    if x.dtype.kind != "f":
        raise ValueError(f"{what} must be a floating-point array, got {got} of dtype {x.dtype} "
                         "(a Tensor's array is its .data)")
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"{what} must have at least one axis and one element, got shape {x.shape}")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():
        bad = np.argwhere(~np.isfinite(x))
        first = tuple(map(int, bad[0]))
        raise ValueError(f"{what} {x.shape} has {len(bad)} elements that are not finite in float32, "
                         f"the first at {first}: {x[first]}")
    return x


def check_choice(name: str, value, choices: tuple):
    """ValueError unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
