"""SmoothQuant: 8-bit weights and inputs, after the outliers of the inputs were moved half-way into the weights.

Outliers sit in a few channels of the activations, the same for every token, while weights are easy to quantize.
Dividing channel j of the input by s_j, and multiplying column j of the weight by it, changes nothing in the product
and evens the two out (Xiao et al., arXiv 2211.10438, equations (3) and (4)):

    Y = (X diag(s)⁻¹) · (diag(s) W) = X̂ Ŵ,        s_j = max|X_j|^α / max|W_j|^(1−α)

    paper   here                    shape
    X_j     channel j of the input  max over the calibration tokens: Statistics.max_abs (d,)
    W_j     column j of the weight  here W is (d_out, d_in), and the max runs over all layers that read the same norm
    s       s                       (d,)
    α       alpha                   0 leaves all of the difficulty to the activations, 1 moves all of it to the weights

diag(s)⁻¹ costs nothing at run time where it folds into the layer norm before (`folding.py`); the inputs of
`attention.output` and `mlp.down` come from no norm and stay as they are. Then everything is quantized as `W8A8`:

    O1   activations="token"    one step per token, found at run time
    O2   activations="tensor"   one step per call, found at run time
    O3   activations="static"   one step for all, found in calibration

with one step per weight matrix (Table 2). Their repository defaults to one per output channel: weights="channel".
There, as here, s and max|W_j| are at least 1e-5; torchao adds 1.2e-7 to both maxima instead. α: 0.5 for OPT and
BLOOM, 0.75 for GLM-130B; the repository uses 0.8 for Mistral and 0.85 or 0.9 for Llama."""
from dataclasses import dataclass

import numpy as np

from ..hyper import one_of
from .calibration import capture
from .folding import fold, followers
from .int8 import W8A8

FLOOR = np.float32(1e-5)


@dataclass(frozen=True)
class SmoothQuant(W8A8):
    """alpha α in [0, 1]; activations "token" (O1), "tensor" (O2) or "static" (O3); weights "tensor" or "channel".

    Needs calibration. `targets` of `quantize` choose what is quantized; a norm that feeds any of it is folded into all
    of its readers. Storage is W8A8's: 8 bits per weight.
    """
    activations: str = one_of("token", "tensor", "static")
    alpha: float = 0.5
    shown = ("alpha", "activations")
    calibrated = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"SmoothQuant: alpha must lie in [0, 1], got {self.alpha!r}")

    def apply(self, model, layers, batches):
        folded = {norm: readers for norm, readers in followers(model).items() if not layers.keys().isdisjoint(readers)}
        seen = capture(model, batches, [readers[0] for readers in folded.values()])
        for norm, readers in folded.items():
            linears = [model.get(path) for path in readers]
            s = smoothing_factors(seen[readers[0]].max_abs, [linear.dense_weight() for linear in linears], self.alpha)
            fold(model.get(norm), linears, s)
        super().apply(model, layers, batches)


def smoothing_factors(max_abs, weights, alpha):
    """s (d,) = max|X_j|^α / max|W_j|^(1−α); max_abs: max|X_j| (d,); weights: of all that read X, each (·, d)."""
    W = np.maximum(np.max([np.abs(w).max(0) for w in weights], axis=0), FLOOR)
    return np.maximum(max_abs**alpha / W**(1 - alpha), FLOOR)
