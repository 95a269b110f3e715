"""What calibrated quantizers know of the activations: streaming statistics, taken by wrappers that are put on and off.

    capture(model, batches, paths)      one pass over the model, a `Statistics` of the input of every layer named
    walk(model, batches)                block after block, each with its inputs as the blocks before it produce them now

For the inputs x ∈ ℝᵈ of a layer, one for each of n tokens, `Statistics` keeps

    H         (2/n) Σ x xᵀ      (d, d)   the Hessian of ‖WX − ŴX‖²/n in a row of Ŵ (OBQ, GPTQ); only if asked for
    mean_abs  (1/n) Σ |x|       (d,)     how large a channel usually is (AWQ)
    max_abs   max |x|           (d,)     how large it ever is (SmoothQuant)
    low, high min x, max x      (d,)     its range, made to contain 0 (LSQ's offsets)

and never the inputs: memory is O(d²) for a layer, or O(d) without H, however many tokens there are. `walk` does hold the
hidden states between two blocks, O(n d), instead of running the model from its start for every block.
"""
import contextlib

import numpy as np

from ..nn import Module, replace_modules
from ..tensor import Tensor, no_grad

__all__ = ["Statistics", "capture", "walk"]


class Statistics:
    """Running statistics of vectors x (d,); see the top of the file. `n` counts them. Sums are kept in float64."""

    def __init__(self, d, hessian=False):
        self.n, self.low, self.high = 0, np.zeros(d, np.float32), np.zeros(d, np.float32)
        self._abs, self._outer = np.zeros(d), np.zeros((d, d)) if hessian else None

    def update(self, X):
        """Take in X (n, d). ValueError if a number in it is not finite."""
        if not np.isfinite(X).all():
            raise ValueError("calibration: an activation is not finite; the model's weights or its input are broken")
        A = np.abs(X)
        self.n += len(X)
        self.low = np.minimum(self.low, X.min(0)).astype(np.float32)
        self.high = np.maximum(self.high, X.max(0)).astype(np.float32)
        self._abs += A.sum(0, dtype=np.float64)
        if self._outer is not None:
            self._outer += X.T @ X

    max_abs = property(lambda self: np.maximum(-self.low, self.high))
    mean_abs = property(lambda self: (self._abs / self.n).astype(np.float32))

    @property
    def H(self):
        """(2/n) Σ x xᵀ, float64 (d, d)."""
        if self._outer is None:
            raise ValueError("these statistics were taken without a Hessian: capture(…, hessian=True)")
        return self._outer * (2 / self.n)


class Observed(Module):
    """A layer whose input is looked at on its way in."""

    def __init__(self, base, statistics):
        self.base, self.statistics = base, statistics

    def forward(self, x):
        self.statistics.update(x.data.reshape(-1, x.shape[-1]))
        return self.base(x)


@contextlib.contextmanager
def observed(root, paths, hessian=False):
    """`with observed(root, paths) as found:` — whatever runs inside fills found, path → Statistics."""
    layers = {path: root.get(path) for path in paths}
    found = {path: Statistics(layer.d_in, hessian) for path, layer in layers.items()}
    replace_modules(root, {path: Observed(layer, found[path]) for path, layer in layers.items()})
    try:
        yield found
    finally:
        replace_modules(root, layers)


def capture(model, batches, paths=None, hessian=False):
    """Run `model` on the batches once; return path → `Statistics` of the inputs of its linear layers.

    batches: int (B, T) or an iterable of such arrays. paths: full paths of layers that have `d_in`; default
    all in the blocks. Raises ValueError for no tokens at all and for activations that are not finite.
    """
    batches = as_batches(model, batches)
    if not batches:
        raise ValueError("capture: no tokens to calibrate on")
    if paths is None:
        paths = [p for p, m in model.named_modules() if p.startswith("blocks.") and hasattr(m, "d_in")]
    with calibrating(model), observed(model, paths, hessian) as found:
        for tokens in batches:
            model.hidden(tokens)
    return found


def walk(model, batches, quantized=True):
    """Yield (path, block, inputs) for every block in order, inputs a list of Tensors (B, T, d), one per batch.

    What the consumer does to a block before asking for the next is seen by all that follow: with `quantized`, a
    block's inputs come from blocks that are quantized already; without, from the blocks as they were.
    """
    hs = [model.token_embedding(tokens) + model.position_embedding(np.arange(tokens.shape[1])) for tokens in batches]
    for i, block in enumerate(model.blocks):
        outputs = None if quantized else [block(h) for h in hs]
        yield f"blocks.{i}", block, hs
        hs = outputs or [block(h) for h in hs]


def checked_hessian(H, d, who):
    """A float64 copy of H (d, d). ValueError, in the name of `who`, when it is missing, zero, or no Σ x xᵀ at all."""
    if H is None:
        raise ValueError(f"{who}: H is missing, (2/n) Σ x xᵀ over the layer's inputs; capture(model, batches, "
                         "hessian=True) takes it")
    H = np.array(H, np.float64)
    if H.shape != (d, d):
        raise ValueError(f"{who}: a weight with {d} inputs needs H of shape {(d, d)}, got {H.shape}")
    skew = np.abs(H.sum(0) - H.sum(1)).max()                              # cheaper to see than H − Hᵀ
    if not np.isfinite(H).all() or (H.diagonal() < 0).any() or skew > 1e-3 * np.abs(H).sum(0).max():
        raise ValueError(f"{who}: H is no sum of x xᵀ; it must be finite and symmetric, its diagonal not negative")
    if not H.any():
        raise ValueError(f"{who}: H is zero: the layer has seen no input but zeros; calibrate on real tokens")
    return H


def as_batches(model, calibration):
    """Calibration tokens as a list of integer arrays (B, T); [] for None. ValueError or TypeError for anything else."""
    if calibration is None:
        return []
    if isinstance(calibration, Tensor):
        raise TypeError("calibration: tokens are integers, got a Tensor of floats")
    batches = [calibration] if isinstance(calibration, np.ndarray) else list(calibration)
    checked = []
    for tokens in map(np.asarray, batches):
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ValueError(f"calibration: expected integers of shape (B, T), got {tokens.dtype} {tokens.shape}")
        if tokens.shape[1] > model.config.context_length:
            raise ValueError(f"calibration: rows of {tokens.shape[1]} tokens exceed the context of "
                             f"{model.config.context_length}; cut them")
        if tokens.size:
            checked.append(tokens)
    if not checked:
        raise ValueError("calibration: there is not one token in it")
    return checked


@contextlib.contextmanager
def calibrating(model):
    """Inside, nothing is recorded and dropout is off."""
    training = {module: module.training for _, module in model.named_modules()}
    try:
        with no_grad():
            yield model.eval()
    finally:
        for module, flag in training.items():
            module.training = flag
