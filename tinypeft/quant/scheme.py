"""The base of all quantizers, and the check of the arrays that they quantize."""
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..common.hyper import Hyperparameters, whole
from ..engine.nn import Linear, Module, replace_modules
from ..models.decoder import Decoder
from .linear import QuantizedLinear
from .qtensor import QTensor


@dataclass(frozen=True)
class Scheme(Hyperparameters):
    """A quantizer is a value: a frozen dataclass whose fields are the paper's hyperparameters.

    A subclass defines `quantize(W)`, which first passes W through `checked`. It overrides `layer`
    if it quantizes inputs, and `apply` if it is calibrated or changes several layers together."""
    shown: ClassVar[tuple[str, ...]] = ("bits",)
    calibrated: ClassVar[bool] = False           # must be given batches of tokens
    trains: ClassVar[bool] = False               # leaves layers for training, to be converted later

    def quantize(self, W: Array) -> QTensor:
        """Round W, a floating-point array of ≥ 1 axes. ValueError for an array that does not
        fit."""
        raise NotImplementedError(f"{type(self).__name__} does not define quantize(W)")

    def layer(self, linear: Linear) -> Module:
        """Make the module that replaces `linear`."""
        return QuantizedLinear(self.quantize(linear.weight.data), linear.bias)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        """Replace `layers` (path → Linear). batches: int (B, T), [] if none were given. Parameters
        may be assigned new arrays, too; `quantize` undoes both if this raises."""
        replace_modules(model, {path: self.layer(linear) for path, linear in layers.items()})


def code_bits(default: int, least: int = 1, **options: Any) -> Any:
    """Declare the bits of a code, from `least` to 8."""
    also = "wbits", "w_bit", "w_bits", "nbits", "n_bits", "num_bits", "weight_bits"
    return whole(default, least=least, most=8, also=also, **options)


def weights_per_scale(default: int | None = None) -> Any:
    """Declare how many weights of a row share a scale; the class says what None means."""
    return whole(default, least=1, or_none=True, also=("groupsize", "q_group_size"))


def checked(x: Any, name: str = "W") -> Array:
    """Return x as a C-contiguous float32 array. ValueError unless x is floats, not empty and
    finite."""
    kind = type(x).__name__
    x = np.asarray(x)
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be a floating-point array, got {kind} of dtype {x.dtype} "
                         "(a Tensor's array is its .data)")
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"{name} must have at least one axis and one element, got shape {x.shape}")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, np.float32)
    places = np.argwhere(~np.isfinite(x))
    if len(places):
        first = tuple(places[0].tolist())
        raise ValueError(f"{name} {x.shape} has {len(places)} elements that are not finite in "
                         f"float32, the first at {first}: {x[first]}")
    return x
