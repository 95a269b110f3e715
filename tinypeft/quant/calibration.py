"""Calibration: running a model on tokens, block by block, and statistics of its layers' inputs.

`capture` runs the model once. `block_by_block` takes each block's inputs from the blocks before it,
quantized already. `Statistics` keeps, for n input vectors x ∈ ℝᵈ of a layer, one per token,

    H          (2/n) Σ x xᵀ    (d, d)   if asked for: the Hessian of ‖WX − ŴX‖²/n in a row of Ŵ
    mean_abs   (1/n) Σ |x|     (d,)     the usual size of a channel (AWQ)
    max_abs    max |x|         (d,)     the largest size of a channel (SmoothQuant)
    mean_square (1/n) Σ x²     (d,)     the importance of a channel (GGUF)
    low, high  min x, max x    (d,)     the range of a channel, made to contain 0 (LSQ+'s offsets)

and never the inputs: memory per layer is O(d), or O(d²) with H, for any number of tokens.
`block_by_block` holds the hidden states between two blocks, O(n d), because otherwise every block
would need a run of the model from its start.
"""
import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array, Calibration
from ..common.hyper import flag
from ..engine.nn import Module, replace_modules
from ..engine.tensor import Tensor
from ..models.calibration import Listener, as_batches, calibrating
from ..models.decoder import Decoder
from ..models.targets import match_targets
from .scheme import Scheme, code_bits, weights_per_scale
from .uniform import Uniform, group_width

showing = contextvars.ContextVar("showing", default=None)    # the `Progress` of `quantize`


class Statistics:
    """Running statistics of n vectors x (d,). Each batch is summed in its own dtype, and
    added to sums in float64."""

    def __init__(self, d: int, hessian: bool = False):
        self.n = 0
        self.low = np.zeros(d, np.float32)
        self.high = np.zeros(d, np.float32)
        self._abs = np.zeros(d)
        self._square = np.zeros(d)
        self._outer = np.zeros((d, d)) if hessian else None

    def update(self, X: Array) -> None:
        """Add the vectors of X (…, d). ValueError if a number in it is not finite."""
        X = X.reshape(-1, X.shape[-1])
        if not np.isfinite(X).all():
            raise ValueError("calibration: an activation is not finite; look at weights and tokens")
        self.n += len(X)
        self.low = np.minimum(self.low, X.min(0)).astype(np.float32)
        self.high = np.maximum(self.high, X.max(0)).astype(np.float32)
        self._abs += np.abs(X).sum(0, dtype=np.float64)
        self._square += np.square(X, dtype=np.float64).sum(0)
        if self._outer is not None:
            self._outer += X.T @ X

    @property
    def max_abs(self) -> Array:
        return np.maximum(-self.low, self.high)

    @property
    def mean_abs(self) -> Array:
        return (self._abs / self.n).astype(np.float32)

    @property
    def mean_square(self) -> Array:
        return (self._square / self.n).astype(np.float32)

    @property
    def H(self) -> Array:
        """(2/n) Σ x xᵀ, float64 (d, d)."""
        if self._outer is None:
            raise ValueError("these statistics have no H; take them by capture(…, hessian=True)")
        return self._outer * (2 / self.n)


def inputs_of(block: Module, name: str, hs: list[Tensor]) -> list[Tensor]:
    """Return the inputs of the module `name` of a block, one for each input in `hs` of the
    block."""
    module = block.get(name)
    inputs = []
    replace_modules(block, {name: Listener(module, inputs.append)})
    try:
        for h in hs:
            block(h)
    finally:
        replace_modules(block, {name: module})
    return [Tensor(x) for x in inputs]


@contextlib.contextmanager
def recording_inputs(root: Module, paths: Iterable[str], hessian: bool = False
                     ) -> Iterator[dict[str, Statistics]]:
    """`with recording_inputs(root, paths) as seen:` fills seen, path → `Statistics`, inside."""
    layers = {path: root.get(path) for path in paths}
    seen = {path: Statistics(layer.d_in, hessian) for path, layer in layers.items()}
    replace_modules(root, {path: Listener(layer, seen[path].update)
                           for path, layer in layers.items()})
    try:
        yield seen
    finally:
        replace_modules(root, layers)


def capture(model: Decoder, batches: Calibration,
            paths: Iterable[str] | None = None,
            hessian: bool = False) -> dict[str, Statistics]:
    """Run `model` once on the batches; return path → `Statistics` of its linear layers' inputs.
    batches: int (B, T) or an iterable of such arrays. paths: full paths of layers that have `d_in`,
    by default all in the blocks, with what methods put around them. ValueError for no tokens or
    activations that are not finite."""
    batches = as_batches(model, batches)
    if not batches:
        raise ValueError("capture: there are no tokens to calibrate on")
    if paths is None:
        paths = [path for path, _ in match_targets(model, "all")]
    with calibrating(model), recording_inputs(model, paths, hessian) as seen:
        for tokens in counted(batches, "batches"):
            model.hidden(tokens)
    return seen


def block_by_block(model: Decoder, batches: list[Array], quantized: bool = True
                   ) -> Iterator[tuple[str, Module, list[Tensor]]]:
    """Yield (path, block, inputs) for every block; inputs: Tensors (B, T, d), one per batch, from
    the blocks before: as the caller has changed them if `quantized`, otherwise as they were."""
    hs = [model.embed(model.token_embedding(tokens), past=0) for tokens in batches]
    for i, block in enumerate(counted(model.blocks, "blocks")):
        outputs = None if quantized else [block(h) for h in hs]
        yield f"blocks.{i}", block, hs
        hs = outputs or [block(h) for h in hs]


def counted(items: Sequence, kind: str) -> Iterator:
    """Yield the items. Inside `quantize`, show how many are done. kind: "blocks" or "batches"."""
    bar = showing.get()
    for done, item in enumerate(items, 1):
        yield item
        if bar:
            bar.total = len(items)
            bar(done, kind)


def below(path: str, named: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `named` below `path` by their names inside it: {"mlp.up": layer, …}."""
    start = f"{path}."
    return {name.removeprefix(start): value for name, value in named.items()
            if name.startswith(start)}


@dataclass(frozen=True)
class CalibratedWeights(Scheme):
    """The base of GPTQ and AWQ: weights on a uniform grid per group, rounded with H at hand.

    Each of them has a field `scale_dtype`: how scales are stored."""
    bits: int = code_bits(4)
    group_size: int | None = weights_per_scale()
    symmetric: bool = flag(False, also=("sym", "zero_point"))
    calibrated: ClassVar[bool] = True

    def check(self) -> None:
        _ = self.nearest                         # raises for bits that a symmetric grid cannot have

    @property
    def nearest(self) -> Uniform:
        """Round to nearest on the same grid, whatever the inputs."""
        return Uniform(self.bits, self.symmetric, "group" if self.group_size else "channel",
                       self.group_size, scale_dtype=self.scale_dtype)

    def width(self, d_in: int) -> int:
        """Return how many of a row's d_in weights share a scale. ValueError if groups do not divide
        it."""
        return group_width(d_in, self.group_size or d_in)

    def hessian(self, H: Array | None, d: int) -> Array:
        """Copy H (d, d) as float64. ValueError when it is missing, zero, or no sum of x xᵀ."""
        scheme = type(self).__name__
        if H is None:
            raise ValueError(f"{scheme}: H is missing; capture(model, batches, hessian=True) takes "
                             "it")
        H = np.array(H, np.float64)
        if H.shape != (d, d):
            raise ValueError(f"{scheme}: {d} inputs need an H of shape {(d, d)}, got {H.shape}")
        rows = H.sum(1)
        size = np.linalg.norm(H)                 # infinite if any number is
        skew = np.abs(H.sum(0) - rows).max()
        if not np.isfinite(size) or (H.diagonal() < 0).any() or skew > 1e-3 * size:
            raise ValueError(f"{scheme}: H must be a sum of x xᵀ: finite, symmetric, its diagonal "
                             "≥ 0")
        if not size:
            raise ValueError(f"{scheme}: H is zero, as all inputs were; calibrate on real tokens")
        return H
