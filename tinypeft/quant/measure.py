"""The cost of a quantization: bytes, errors of weights and outputs, and the price of merging.

Two errors are easily confused. GPTQ makes the first larger than round to nearest does, and the
second smaller:

    weight error    ‖Ŵ − W‖ / ‖W‖               Frobenius norms
    output error    ‖(Ŵ − W) X‖ / ‖W X‖         X: a layer's inputs in the original model

Merging. A LoRA on a quantized base was trained with Ŵ. It can be kept apart, or merged into Ŵ in
floating point (`PeftModel.merge`). This is exact where a layer rounds nothing but its weight; one
that also rounds its inputs does not. Merging it into W adds W − Ŵ, which training never saw.
Quantizing Ŵ + ΔW again loses changes below a step: most of ΔW at 4 bits (`requantize_error`).
"""
from collections.abc import Iterable, Iterator

import numpy as np

from ..common.hints import Array
from ..engine.nn import Module
from ..models.decoder import Decoder
from .calibration import capture
from .linear import QuantizedLinear
from .readers import channels, readers
from .scheme import Scheme


def bits_per_weight(model: Decoder) -> float:
    """8 · bytes / weights over the quantized layers, with their scales and all else they store."""
    layers = [m for _, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    return 8 * sum(m.nbytes for m in layers) / sum(m.weight.size for m in layers)


def output_error(W: Array, W_hat: Array, H: Array) -> float:
    """‖(Ŵ − W)X‖/‖WX‖ from H = (2/n) X Xᵀ."""
    D = W_hat - W
    return float(np.sqrt(max(0.0, np.vdot(D @ H, D)) / np.vdot(W @ H, W)))


def weight_error(before: Decoder, after: Decoder, trained: bool = False) -> float:
    """‖Ŵ − W‖/‖W‖ over all quantized layers of `after`; `before`: the same model in floating point.
    trained: True if norms and biases were trained in between; they then show no folded scales."""
    pairs = [(W, W_hat) for _, W, W_hat in unfolded(before, after, trained)]
    error = sum(np.square(W_hat - W).sum() for W, W_hat in pairs)
    return float(np.sqrt(error / sum(np.square(W).sum() for W, _ in pairs)))


def layer_errors(before: Decoder, after: Decoder, batches: Array | Iterable[Array],
                 trained: bool = False) -> dict[str, tuple[float, float]]:
    """path → (weight error, output error) of the quantized layers; `trained` as in `weight_error`.
    batches: int (B, T) or an iterable of such arrays."""
    seen, norm = capture(before, batches, hessian=True), np.linalg.norm
    return {path: (float(norm(W_hat - W) / norm(W)), output_error(W, W_hat, seen[path].H))
            for path, W, W_hat in unfolded(before, after, trained)}


def unfolded(before: Decoder, after: Decoder, trained: bool = False
             ) -> Iterator[tuple[str, Array, Array]]:
    """(path, W, Ŵ) of the quantized layers; scales that were folded into Ŵ are taken out again."""
    for i, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        folded = {} if trained else folded_scales(old, new)
        for source, names in readers(old).items():
            columns = channels(old, source)
            for name in names:
                if isinstance(layer := new.get(name), QuantizedLinear):
                    s = folded.get(source)
                    W_hat = layer.dense_weight() / (1 if s is None else s[columns])
                    W_hat = (W_hat.T * folded.get(name, 1)).T
                    yield f"blocks.{i}.{name}", old.get(name).dense_weight(), W_hat


def folded_scales(old: Module, new: Module) -> dict[str, Array]:
    """Path in a block → the s (d,) that divided what this norm or layer computes.

    γ and β of a norm, or the bias of a layer, show it, unless they are 0 or missing (`ratio`). The
    weights around s then show it, up to about their error/√d."""
    both, folds, s = lambda path: (old.get(path), new.get(path)), readers(old), {}
    for norm in ("norm1", "norm2"):
        a, b = both(norm)
        s[norm] = ratio(gain(a), gain(b), ratio(bias(a), bias(b), 1))
        for source in folds[norm]:                       # a layer that reads the norm and is read
            if source not in folds: continue
            a, b = both(source)
            V, V_hat = a.dense_weight(), b.dense_weight() / s[norm]
            order = np.argsort(channels(old, source), kind="stable")      # columns of one channel
            W, W_hat = (m.dense_weight().T[order].reshape(len(V), -1)     # make one row of Wᵀ
                        for m in both(*folds[source]))
            s[source] = ratio(bias(a), bias(b), scale_between(V, V_hat, W.T, W_hat.T))
    return s


def gain(norm: Module) -> Array: return norm.weight.data + getattr(norm, "offset", 0)


def bias(module: Module) -> Array | None:
    return None if (b := getattr(module, "bias", None)) is None else b.data


def ratio(a: Array | None, b: Array | None, otherwise: Array | float) -> Array:
    """a/b, or `otherwise` where b is 0 or missing."""
    if b is None: return otherwise
    return np.divide(a, b, out=np.zeros_like(a) + otherwise, where=b != 0)


def scale_between(V: Array, V_hat: Array, W: Array, W_hat: Array) -> Array:
    """The s (d,) for which V ≈ s ⊙ V̂ by rows and W s ≈ Ŵ by columns, or 1 if there is none.

    Rounding shrinks or stretches a matrix, too: it moves the two least squares in opposite
    directions, so their geometric mean is s; and without a scale they do not go together."""
    def log_slope(X, Y):
        XX, XY = (X * X).sum(1), (X * Y).sum(1)
        return np.log(np.divide(XY, XX, where=(XX > 0) & (XY > 0), out=np.ones(len(X))))

    rows, columns = log_slope(V_hat, V), log_slope(W.T, W_hat.T)
    a, b = rows - rows.mean(), columns - columns.mean()
    together = a @ b > 0.5 * np.sqrt((a @ a) * (b @ b))
    return np.exp((rows + columns) / 2 if together else 0 * rows).astype(V.dtype)


def requantize_error(tuned: Module, scheme: Scheme) -> tuple[float, float]:
    """The price of merging a LoRA on a quantized base and quantizing the result M = Ŵ + ΔW again:
    ‖Q(M) − M‖/‖M‖ and ‖Q(M) − M‖/‖ΔW‖ over all layers of the PeftModel. The second says how much
    of the training is lost: near 1, almost all. ValueError if no weight has changed."""
    squares = np.zeros(3)
    for path, wrapper in tuned.wrappers.items():
        if not wrapper.is_mergeable or not getattr(wrapper.base, "is_affine", False):
            raise ValueError(f"requantize_error: {tuned.method} does not change weights at {path} "
                             "by one change that can be merged")
        M = wrapper.merge().dense_weight()
        parts = scheme.quantize(M).dequantize() - M, M, M - wrapper.base.dense_weight()
        squares += [np.square(part).sum() for part in parts]
    if not squares[2]:
        raise ValueError(f"requantize_error: {tuned.method} changes no weight (yet)")
    return tuple(np.sqrt(squares[0] / squares[1:]).tolist())
