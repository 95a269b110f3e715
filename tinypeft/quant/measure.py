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

from ..gpt import GPT
from ..hints import Array
from ..nn import Module
from .calibration import READERS, capture
from .linear import QuantizedLinear
from .scheme import Scheme


def bits_per_weight(model: GPT) -> float:
    """8 · bytes / weights over the quantized layers, with their scales and all else they store."""
    layers = [m for _, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    return 8 * sum(m.nbytes for m in layers) / sum(m.weight.size for m in layers)


def output_error(W: Array, W_hat: Array, H: Array) -> float:
    """‖(Ŵ − W)X‖/‖WX‖ from H = (2/n) X Xᵀ."""
    D = W_hat - W
    return float(np.sqrt(max(0.0, np.vdot(D @ H, D)) / np.vdot(W @ H, W)))


def weight_error(before: GPT, after: GPT, trained: bool = False) -> float:
    """‖Ŵ − W‖/‖W‖ over all quantized layers of `after`; `before`: the same model in floating point.
    trained: True if norms and biases were trained in between; they then show no folded scales."""
    pairs = [(W, W_hat) for _, W, W_hat in unfolded(before, after, trained)]
    error = sum(np.square(W_hat - W).sum() for W, W_hat in pairs)
    return float(np.sqrt(error / sum(np.square(W).sum() for W, _ in pairs)))


def layer_errors(before: GPT, after: GPT, batches: Array | Iterable[Array],
                 trained: bool = False) -> dict[str, tuple[float, float]]:
    """path → (weight error, output error) of the quantized layers; `trained` as in `weight_error`.
    batches: int (B, T) or an iterable of such arrays."""
    seen, norm = capture(before, batches, hessian=True), np.linalg.norm
    return {path: (float(norm(W_hat - W) / norm(W)), output_error(W, W_hat, seen[path].H))
            for path, W, W_hat in unfolded(before, after, trained)}


def unfolded(before: GPT, after: GPT, trained: bool = False) -> Iterator[tuple[str, Array, Array]]:
    """(path, W, Ŵ) of the quantized layers; scales that were folded into Ŵ are taken out again."""
    for i, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        sources = () if trained else filter(None, READERS)
        folded = {source: folded_scale(old.get(source), new.get(source)) for source in sources}
        for source, readers in READERS.items():
            for name in readers:
                if isinstance(layer := new.get(name), QuantizedLinear):
                    W_hat = layer.dense_weight() / folded.get(source, 1)
                    W_hat = (W_hat.T * folded.get(name, 1)).T
                    yield f"blocks.{i}.{name}", old.get(name).dense_weight(), W_hat


def folded_scale(old: Module, new: Module) -> Array:
    """The s (d,) that divided a norm's γ, or the bias of a linear layer; 1 where this is 0."""
    a, b = ((m.bias if hasattr(m, "d_in") else m.weight).data for m in (old, new))
    return np.divide(a, b, out=np.ones_like(a), where=b != 0)


def requantize_error(tuned: Module, scheme: Scheme) -> tuple[float, float]:
    """The price of merging a LoRA on a quantized base and quantizing the result M = Ŵ + ΔW again:
    ‖Q(M) − M‖/‖M‖ and ‖Q(M) − M‖/‖ΔW‖ over all layers of the PeftModel. The second says how much
    of the training is lost: near 1, almost all. ValueError if no weight has changed."""
    squares = np.zeros(3)
    for path, wrapper in tuned.wrappers.items():
        if not hasattr(wrapper, "merge"):
            raise ValueError(f"requantize_error: {tuned.method} does not change weights at {path}")
        M = wrapper.merge().dense_weight()
        parts = scheme.quantize(M).dequantize() - M, M, M - wrapper.base.dense_weight()
        squares += [np.square(part).sum() for part in parts]
    if not squares[2]:
        raise ValueError(f"requantize_error: {tuned.method} changes no weight (yet)")
    return tuple(np.sqrt(squares[0] / squares[1:]).tolist())
