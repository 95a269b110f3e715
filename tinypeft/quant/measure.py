"""What a quantization costs, in numbers: bytes, weights, outputs; and what merging an adapter into it would cost.

Two errors that are easily confused. GPTQ makes the first larger than round to nearest does, and the second smaller:

    weight error    ‖Ŵ − W‖ / ‖W‖                         Frobenius norms
    output error    ‖(Ŵ − W) X‖ / ‖W X‖                   X: a layer's inputs in the model as it was

Merging. A LoRA trained on a quantized base was trained on Ŵ, so it may be merged into Ŵ in floating point, exactly
(`PeftModel.merge`), or kept apart. Merging it into the original W adds W − Ŵ, which the training never saw. Quantizing
Ŵ + ΔW anew rounds away changes that are smaller than a step; on 4 bits that is most of ΔW (`requantize_error`).
"""
import numpy as np

from ..nn import Linear
from .calibration import capture
from .folding import READS
from .linear import QuantizedLinear

__all__ = ["bits_per_weight", "layer_errors", "output_error", "requantize_error", "weight_error"]


def bits_per_weight(model):
    """8 · bytes / weights over the quantized layers of a model, with their scales and whatever else they store."""
    layers = [m for _, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    return 8 * sum(m.nbytes for m in layers) / sum(m.weight.size for m in layers)


def output_error(W, W_hat, H):
    """‖(Ŵ − W)X‖/‖WX‖ from H = (2/n) X Xᵀ."""
    D = W_hat - W
    return float(np.sqrt(max(0.0, np.vdot(D @ H, D)) / np.vdot(W @ H, W)))


def weight_error(before, after, trained=False):
    """‖Ŵ − W‖/‖W‖ over all quantized layers of `after`; `before`: the same model in floating point.

    trained: whether norms and biases have been trained in between, so that they do not tell what was folded into them.
    """
    pairs = [(W, W_hat) for _, W, W_hat in unfolded(before, after, trained)]
    return float(np.sqrt(sum(np.square(W_hat - W).sum() for W, W_hat in pairs) / sum(np.square(W).sum() for W, _ in pairs)))


def layer_errors(before, after, batches, trained=False):
    """path → (weight error, output error) of every quantized layer; batches: tokens (B, T) or several such arrays.
    trained: as in `weight_error`."""
    seen = capture(before, batches, hessian=True)
    return {path: (float(np.linalg.norm(W_hat - W) / np.linalg.norm(W)), output_error(W, W_hat, seen[path].H))
            for path, W, W_hat in unfolded(before, after, trained)}


def unfolded(before, after, trained=False):
    """(path, W, Ŵ) of the quantized layers, Ŵ without the scales that were folded into what computes its input."""
    for i, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        folded = {} if trained else {source: ratio(old.get(source), new.get(source)) for source, _ in READS if source}
        for source, readers in READS:
            for name in readers:
                layer = new.get(name)
                if isinstance(layer, QuantizedLinear):
                    W_hat = layer.dense_weight() / folded.get(source, 1)
                    yield f"blocks.{i}.{name}", old.get(name).dense_weight(), (W_hat.T * folded.get(name, 1)).T


def ratio(old, new):
    """By what (d,) the output of a norm or a projection was divided, as its bias, or a norm's γ, tells; 1 if it is 0."""
    a, b = (m.bias.data if isinstance(m, (Linear, QuantizedLinear)) else m.weight.data for m in (old, new))
    return np.divide(a, b, out=np.ones_like(a), where=b != 0)


def requantize_error(tuned, scheme):
    """What is lost when a LoRA on a quantized base is merged and the result quantized by `scheme`, two relative errors:

    (‖Q(M) − M‖/‖M‖, ‖Q(M) − M‖/‖ΔW‖), M = Ŵ + ΔW, over all layers it is on. The second says how much of what was
    learned is lost: near 1, about all of it. ValueError where nothing is merged, or nothing was learned.
    """
    squares = np.zeros(3)
    for path, wrapper in tuned.wrappers.items():
        if not hasattr(wrapper, "merge"):
            raise ValueError(f"requantize_error: {tuned.method} is not a change of weights at {path}")
        M = wrapper.merge().dense_weight()
        squares += [np.square(scheme.quantize(M).dequantize() - M).sum(), np.square(M).sum(),
                    np.square(M - wrapper.base.dense_weight()).sum()]
    if not squares[2]:
        raise ValueError(f"requantize_error: {tuned.method} changes no weight (yet)")
    return float(np.sqrt(squares[0] / squares[1])), float(np.sqrt(squares[0] / squares[2]))
