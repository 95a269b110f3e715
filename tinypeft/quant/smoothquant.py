"""SmoothQuant: 8-bit weights and inputs, after outliers of the inputs have moved into the weights.

Outliers sit in a few channels of the activations, the same for every token; weights are easy to
quantize. Dividing channel j of the input and multiplying column j of the weight by s_j keeps the
product and evens the two out (Xiao et al., arXiv 2211.10438, equations (3) and (4)):

    Y = (X diag(s)⁻¹) · (diag(s) W) = X̂ Ŵ,        s_j = max|X_j|^α / max|W_j|^(1−α)

    paper   here         shape
    X_j     max_abs[j]   (d,): channel j of the input, its maximum over the calibration tokens
    W_j     W[:, j]      W is (d_out, d_in) here; the max is over all layers that read the norm
    s       s            (d,)
    α       alpha        0 leaves all of the difficulty in the activations, 1 in the weights

diag(s)⁻¹ is folded into the layer norm before (`folding.py`), where it costs nothing at run time.
The inputs of `attention.output` and `mlp.down` come from no norm and stay as they are. Then
everything is quantized as `W8A8`, with one scale per weight matrix (Table 2) and for inputs

    O1   activations="token"    one scale per token, found at run time
    O2   activations="tensor"   one scale per call, found at run time
    O3   activations="static"   one scale for all calls, found in calibration

The authors' repository defaults to one scale per output channel: weights="channel". There, as here,
s and max|W_j| are at least 1e-5; torchao adds 1.2e-7 to both maxima instead. α is 0.5 for OPT and
BLOOM, 0.75 for GLM-130B, and in the repository 0.8 for Mistral and 0.85 or 0.9 for Llama.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..common.hints import Array
from ..common.hyper import one_of, real
from ..engine.nn import Linear
from ..models.decoder import Decoder
from .calibration import capture
from .folding import fold_scale, followers
from .int8 import W8A8


@dataclass(frozen=True)
class SmoothQuant(W8A8):
    """activations: "token" (O1), "tensor" (O2) or "static" (O3), as in `W8A8`, which says what
    "tensor" does to the rows of a batch. weights: "tensor" or "channel".
    `targets` of `quantize` choose what is quantized; a norm that feeds any of these layers is
    folded into all of its readers. Storage is that of W8A8: 8 bits per weight."""
    activations: str = one_of("token", "tensor", "static", also=("act_quant",))
    alpha: float = real(0.5, least=0, most=1, also=("migration_strength", "smoothing_strength"))
    shown: ClassVar[tuple[str, ...]] = ("alpha", "activations")
    calibrated: ClassVar[bool] = True

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        folded = {norm: paths for norm, paths in followers(model).items()
                  if not layers.keys().isdisjoint(paths)}
        seen = capture(model, batches, [paths[0] for paths in folded.values()])
        for norm, paths in folded.items():
            linears = [model.get(path) for path in paths]
            weights = [linear.dense_weight() for linear in linears]
            s = smoothing_factors(seen[paths[0]].max_abs, weights, self.alpha)
            fold_scale(model.get(norm), linears, s)
        super().apply(model, layers, batches)


def smoothing_factors(max_abs: Array, weights: list[Array], alpha: float) -> Array:
    """Return s (d,) from max|X_j| (d,) and the weights (d_out, d) of all layers that read X."""
    least = np.float32(1e-5)
    max_w = np.max([np.abs(W).max(0) for W in weights], axis=0)
    max_w = np.maximum(max_w, least)
    return np.maximum(max_abs**alpha / max_w**(1 - alpha), least)
