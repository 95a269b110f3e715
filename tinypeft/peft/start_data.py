"""What a start of LoRA may learn from data: inputs of layers, and gradients of their weights.

Both run the model, with all methods on it, on tokens. A module stands in the place of the `base`
of each wrapper meanwhile, so a quantized base and a layer inside another wrapper are no special
cases. Memory, in float64: d_in² numbers a layer for inputs; for gradients, in the model's dtype,
3 d_out d_in numbers a layer, as many as full fine-tuning without an optimizer has.
"""
import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from ..common.hints import Array
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor, enable_grad
from ..models.calibration import Listener, calibrating
from .changed import ChangedLinear
from .method import Layers, MethodError

__all__ = ["Inputs", "inputs_of", "weight_gradients"]


class Inputs:
    """Sums over n vectors x (d,), in float64."""

    def __init__(self, d: int):
        self.n = 0
        self.total = np.zeros(d)
        self.outer = np.zeros((d, d))

    def add(self, X: Array) -> None:
        """Add the vectors of X (…, d)."""
        X = X.reshape(-1, X.shape[-1]).astype(float)
        self.n += len(X)
        self.total += X.sum(0)
        self.outer += X.T @ X

    @property
    def second_moment(self) -> Array:
        """(1/n) Σ x xᵀ, (d, d)."""
        return self.outer / self.n

    @property
    def covariance(self) -> Array:
        """(1/n) Σ (x − μ)(x − μ)ᵀ, (d, d), of the mean μ."""
        mean = self.total / self.n
        return self.second_moment - np.outer(mean, mean)


class ChangeOfZero(ChangedLinear):
    """y = base(x) + Z x with Z = 0: the gradient of Z is that of the base's weight."""

    def __init__(self, base: Module, dtype: np.dtype):
        super().__init__(base, 0.0, 0)
        self.Z = Parameter(np.zeros((base.d_out, base.d_in), dtype))

    def change(self) -> Tensor:
        return self.Z


@contextlib.contextmanager
def replaced_bases(layers: Layers, modules: Mapping[str, Module]) -> Iterator[None]:
    """Inside the block, `modules` are the bases of the wrappers `layers`."""
    bases = {path: layer.base for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            layer.base = modules[path]
        yield
    finally:
        for path, layer in layers.items():
            layer.base = bases[path]


def inputs_of(layers: Layers, tuned: Module, batches: list[Array]) -> dict[str, Inputs]:
    """Run `tuned` on the batches; return path → the inputs of the layer. MethodError if they are
    not finite."""
    inputs = {path: Inputs(layer.d_in) for path, layer in layers.items()}
    listeners = {path: Listener(layer.base, inputs[path].add) for path, layer in layers.items()}
    with calibrating(tuned), replaced_bases(layers, listeners):
        for tokens in batches:
            tuned(tokens)
    for path, seen in inputs.items():
        check_finite(f"an input of {path}", seen.outer)
    return inputs


def weight_gradients(layers: Layers, tuned: Module, batches: list[Array]) -> dict[str, Array]:
    """Return path → the gradient G (d_out, d_in) of the layer's weight: of the mean loss of the
    next token, averaged over the batches. MethodError if it is not finite."""
    if min(tokens.shape[1] for tokens in batches) < 2:
        raise MethodError("calibration: a row of one token has no next token; give longer rows")
    changes = {path: ChangeOfZero(layer.base, layer.A.dtype) for path, layer in layers.items()}
    G = {change.Z: np.zeros_like(change.Z.data) for change in changes.values()}
    with calibrating(tuned), enable_grad(), replaced_bases(layers, changes):
        for tokens in batches:
            loss = tuned.loss(tokens[:, :-1], tokens[:, 1:])
            for leaf, gradient in loss.gradients():
                if leaf in G:
                    G[leaf] += gradient / len(batches)
    for path, change in changes.items():
        check_finite(f"the gradient of {path}", G[change.Z])
    return {path: G[change.Z] for path, change in changes.items()}


def check_finite(name: str, array: Array) -> None:
    """Raise MethodError for NaN or infinity."""
    if not np.isfinite(array).all():
        raise MethodError(f"calibration: {name} is not finite; look at weights and tokens")
