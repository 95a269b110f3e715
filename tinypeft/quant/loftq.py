"""LoftQ: a quantized base and a LoRA on it that start, together, as close to the original weights as they can.

QLoRA starts from Q + 0, so that training begins with the whole error of quantization. LoftQ spends the LoRA's rank on that
error first (Li et al., arXiv 2310.08659, equation 6 and Algorithm 1):

    min ‖W − Q − A Bᵀ‖,   by turns, t = 1 … T, from A₀ B₀ᵀ = 0:
        Qₜ = quant(W − Aₜ₋₁ Bₜ₋₁ᵀ),       Aₜ = U_r √Σ_r,   Bₜ = V_r √Σ_r       of the SVD W − Qₜ = U Σ Vᵀ

    paper   here         shape
    A       B            (d_out, r)      the paper's A is LoRA's B, and its Bᵀ is LoRA's A
    Bᵀ      A            (r, d_in)
    Q       Q            a QTensor (d_out, d_in)
    T       iterations

The second half-step is optimal for its Q, but the first need not improve on the round before: on grids of 2 and 3 bits from
min to max the error rises again after a few, as what is left for Q has larger outliers. The paper keeps the last round;
here the best one is kept, so that more rounds never do harm. (NF4, r = 16, a Gaussian 320 × 160: 8.0 % after one, 7.0 % after
five, 6.8 % after ten, of 9.2 % without.)
LoRA's product is scaled by s = α/r, which the paper leaves out (its code sets α = r, and PEFT does not correct for s):
here both factors are divided by √s, so that W ≈ Q + s B A whatever α is. Trained parameters: those of the LoRA.

It names a method and a scheme, as QLoRA does, and is one of the two files here that know both.
"""
import math

import numpy as np

from ..nn import Linear
from ..peft.lora import LoRA
from ..peft.method import MethodError
from ..peft.model import attach
from .model import quantize
from .scheme import Scheme, checked

__all__ = ["loftq", "loftq_factors"]


def loftq(model, lora, scheme, iterations=5, *, rng=0, head=None):
    """Quantize the blocks of `model` by `scheme`, in place, and attach `lora` started by LoftQ → PeftModel.

    lora: a `LoRA`; its targets get the factors, other layers are quantized as `quantize` would. scheme: one that needs the
    weight alone (`NF4`, `Uniform`, `FloatFormat`, `GGUF`). iterations: T ≥ 1. rng, head: as in `attach`.
    The base that `detach` gives back is Q, meant for this LoRA: save both. Raises MethodError and ValueError as `attach`
    and `quantize` do, before anything is changed.
    """
    if type(lora) is not LoRA:
        raise MethodError(f"loftq: expected a LoRA, got {lora!r}; its factors are what LoftQ initialises")
    if not isinstance(scheme, Scheme) or type(scheme).layer is not Scheme.layer or type(scheme).apply is not Scheme.apply:
        raise ValueError(f"loftq: expected a scheme that needs nothing but the weight, such as tinypeft.NF4(), got {scheme!r}")
    if not isinstance(iterations, (int, np.integer)) or iterations < 1:
        raise ValueError(f"loftq: iterations must be a positive integer, got {iterations!r}; "
                         "attach(quantize(model, scheme), lora) is a LoRA that starts at zero")
    trial = attach(model, lora, rng=0, head=head)
    ranks = trial.ranks()
    layers = {path: wrapper.base for path, wrapper in trial.wrappers.items()}
    trial.detach()
    factors = {path: loftq_factors(layer.weight.data, scheme, ranks[path], iterations)
               for path, layer in layers.items() if isinstance(layer, Linear)}
    tuned = attach(quantize(model, scheme), lora, rng=rng, head=head)
    for path, (Q, B, A) in factors.items():
        wrapper = tuned.wrappers[path]
        wrapper.base.weight, root = Q, math.sqrt(wrapper.scale)
        wrapper.B.data, wrapper.A.data = (B / root).astype(wrapper.B.dtype), (A / root).astype(wrapper.A.dtype)
    return tuned


def loftq_factors(W, scheme, r, iterations=5):
    """Q (QTensor), B (d_out, r) and A (r, d_in) with W ≈ Q + B A: the best of T rounds of the algorithm, float32."""
    W, BA, least = checked(W), 0, math.inf
    for _ in range(iterations):
        Q = scheme.quantize(W - BA)
        R = W - Q.dequantize()
        U, S, Vt = np.linalg.svd(R, full_matrices=False)
        B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]
        BA = B @ A
        error = np.linalg.norm(R - BA)
        if error < least: least, best = error, (Q, B, A)
    return best
