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
from ..engine.nn import Linear, Module
from ..models.decoder import Decoder
from .calibration import capture
from .linear import QuantizedLinear
from .readers import channels, readers
from .scheme import Scheme


def bits_per_weight(model: Decoder) -> float:
    """8 · bytes / weights over the quantized layers, with their scales and all else they store.

    The rest of the model does not count: embeddings, norms, heads and layers that are not
    quantized. In a small model they take more bytes than the layers do. ValueError if no layer is
    quantized."""
    layers = [module for path, module in model.named_modules()
              if isinstance(module, QuantizedLinear) and not path.endswith("lm_head")]
    if not layers:
        raise ValueError("bits_per_weight: no layer holds codes; `quantize` the model, or, after "
                         "quantization-aware training, `convert` it")
    return 8 * sum(layer.nbytes for layer in layers) / sum(layer.weight.size for layer in layers)


def output_error(W: Array, W_hat: Array, H: Array) -> float:
    """‖(Ŵ − W)X‖/‖WX‖ from H = (2/n) X Xᵀ."""
    D = W_hat - W
    error = max(0.0, np.vdot(D @ H, D))
    return float(np.sqrt(error / np.vdot(W @ H, W)))


def weight_error(before: Decoder, after: Decoder, trained: bool = False) -> float:
    """‖Ŵ − W‖/‖W‖ over all quantized layers of `after`; `before`: the same model in floating point.
    trained: True if norms and biases were trained in between; they then show no folded scales.
    ValueError if a method is on one of the models, or if no layer is quantized."""
    pairs = [(W, W_hat) for _, W, W_hat in unfolded(before, after, trained)]
    if not pairs:
        raise ValueError("weight_error: no layer of the second model is quantized")
    error = sum(np.square(W_hat - W).sum() for W, W_hat in pairs)
    size = sum(np.square(W).sum() for W, _ in pairs)
    return float(np.sqrt(error / size))


def layer_errors(before: Decoder, after: Decoder, batches: Array | Iterable[Array],
                 trained: bool = False) -> dict[str, tuple[float, float]]:
    """Map each quantized layer's path to its weight error and output error. `trained` and errors
    as in `weight_error`. batches: int (B, T) or an iterable of such arrays."""
    seen = capture(before, batches, hessian=True)
    errors = {}
    for path, W, W_hat in unfolded(before, after, trained):
        of_weight = np.linalg.norm(W_hat - W) / np.linalg.norm(W)
        errors[path] = float(of_weight), output_error(W, W_hat, seen[path].H)
    return errors


def unfolded(before: Decoder, after: Decoder, trained: bool = False
             ) -> Iterator[tuple[str, Array, Array]]:
    """Yield (path, W, Ŵ) of the quantized layers; take scales that were folded into Ŵ out again."""
    check_bare(before)
    check_bare(after)
    for i, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        folded = {} if trained else folded_scales(old, new)
        for source, names in readers(old).items():
            for name in names:
                layer = new.get(name)
                if isinstance(layer, Linear):            # it is not quantized
                    continue
                W_hat = layer.dense_weight()
                if source in folded:
                    W_hat = W_hat / folded[source][channels(old, source)]
                W_hat = (W_hat.T * folded.get(name, 1)).T
                yield f"blocks.{i}.{name}", old.get(name).dense_weight(), W_hat


def check_bare(model: Decoder) -> None:
    """Raise ValueError if a method is on the model."""
    if not isinstance(model, Decoder):
        raise TypeError(f"expected a language model, got {type(model).__name__}")
    if model.attached:
        raise ValueError(f"{model.attached} is on the model, so its layers are not those that were"
                         " quantized; measure the base, which detach() returns, or merge it")


def folded_scales(old: Module, new: Module) -> dict[str, Array]:
    """Map a path in a block to the s (d,) that divided the output of this norm or layer.

    γ and β of a norm, or the bias of a layer, show it, unless they are 0 or missing (`ratio`). The
    weights around s then show it, up to about their error/√d."""
    scales = {}
    reads = readers(old)
    for norm in "norm1", "norm2":
        a = old.get(norm)
        b = new.get(norm)
        s = ratio(gain(a), gain(b), ratio(bias(a), bias(b), 1))
        scales[norm] = s
        for source in reads[norm]:                       # a layer that reads the norm and is read
            if source not in reads:
                continue
            a = old.get(source)
            b = new.get(source)
            V = a.dense_weight()
            V_hat = b.dense_weight() / s
            reader, = reads[source]
            columns = np.argsort(channels(old, source), kind="stable")
            W = by_channel(old.get(reader), columns, len(V))
            W_hat = by_channel(new.get(reader), columns, len(V))
            s = scale_between(V, V_hat, W, W_hat)
            scales[source] = ratio(bias(a), bias(b), s)
    return scales


def by_channel(layer: Module, columns: Array, d: int) -> Array:
    """Return Wᵀ with one row for each of d channels: all `columns` of W that read the channel."""
    return layer.dense_weight().T[columns].reshape(d, -1)


def gain(norm: Module) -> Array:
    return norm.weight.data + getattr(norm, "offset", 0)


def bias(module: Module) -> Array | None:
    parameter = getattr(module, "bias", None)
    return None if parameter is None else parameter.data


def ratio(a: Array | None, b: Array | None, otherwise: Array | float) -> Array:
    """Return a/b, or `otherwise` where b is 0 or missing."""
    if b is None:
        return otherwise
    return np.divide(a, b, out=np.zeros_like(a) + otherwise, where=b != 0)


def scale_between(V: Array, V_hat: Array, W: Array, W_hat: Array) -> Array:
    """Return the s (d,) for which V ≈ s ⊙ V̂ and s ⊙ W ≈ Ŵ by rows, W and Ŵ (d, n) transposed, or 1
    if there is none.

    Rounding shrinks or stretches a matrix, too: it moves the two least squares in opposite
    directions, so their geometric mean is s; and without a scale they do not go together."""
    of_V = log_slope(V_hat, V)
    of_W = log_slope(W, W_hat)
    a = of_V - of_V.mean()
    b = of_W - of_W.mean()
    together = a @ b > 0.5 * np.sqrt((a @ a) * (b @ b))
    return np.exp((of_V + of_W) / 2 if together else 0 * of_V).astype(V.dtype)


def log_slope(X: Array, Y: Array) -> Array:
    """Return log a (d,) of the least squares Y ≈ a ⊙ X by rows; 0 where a is not positive."""
    XX = (X * X).sum(1)
    XY = (X * Y).sum(1)
    positive = (XX > 0) & (XY > 0)
    return np.log(np.divide(XY, XX, where=positive, out=np.ones(len(X))))


def requantize_error(tuned: Module, scheme: Scheme) -> tuple[float, float]:
    """Measure what is lost when a LoRA is merged into a quantized base and the result M = Ŵ + ΔW is
    quantized again: return ‖Q(M) − M‖/‖M‖ and ‖Q(M) − M‖/‖ΔW‖ over all layers of the PeftModel.
    Near 1, the second says that almost all of the training is lost. ValueError if no weight has
    changed."""
    squares = np.zeros(3)                                # of Q(M) − M, M, ΔW
    for path, wrapper in tuned.wrappers.items():
        if not wrapper.is_mergeable or not getattr(wrapper.base, "is_affine", False):
            raise ValueError(f"requantize_error: {tuned.method} does not change weights at {path} "
                             "by one change that can be merged")
        M = wrapper.merge().dense_weight()
        error = scheme.quantize(M).dequantize() - M
        change = M - wrapper.base.dense_weight()
        squares += [np.square(matrix).sum() for matrix in (error, M, change)]
    if not squares[2]:
        raise ValueError(f"requantize_error: {tuned.method} changes no weight (yet)")
    return tuple(np.sqrt(squares[0] / squares[1:]).tolist())
