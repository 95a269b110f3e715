"""LoftQ: start a quantized base and the LoRA on it as close as possible to the original weights.

QLoRA starts from Q + 0, so training begins with the whole quantization error. LoftQ first spends
the LoRA's rank on that error (Li et al., arXiv 2310.08659, Algorithm 1):

    min ‖W − Q − A Bᵀ‖,   alternating for t = 1 … T, from A₀ B₀ᵀ = 0:
        Qₜ = quant(W − Aₜ₋₁ Bₜ₋₁ᵀ),   Aₜ = U_r √Σ_r,  Bₜ = V_r √Σ_r   of the SVD W − Qₜ = U Σ Vᵀ

    paper   here         shape
    A       B            (d_out, r)      the paper's A is LoRA's B, and its Bᵀ is LoRA's A
    Bᵀ      A            (r, d_in)
    Q       Q            a QTensor (d_out, d_in)
    T       iterations

Where the paper and this file differ. The paper keeps the last round, this file the best one. On
min-max grids of 2 and 3 bits the error rises again after a few rounds, because W − A Bᵀ gets larger
outliers. With NF4 the first rounds gain the most. LoRA scales its product by s = α/r. The paper
leaves s out. The authors' code sets α = r, except for causal models of 4 bits, where α = 16
whatever the rank, and neither it nor PEFT corrects for s. Here both factors are divided by √s, so
W ≈ Q + s B A.
"""
import math
from collections.abc import Callable, Iterator

import numpy as np

from ..common.hints import Array, Seed
from ..engine.nn import Linear
from ..models.decoder import Decoder
from ..peft.lora import LoRA
from ..peft.method import MethodError
from ..peft.model import PeftModel, attach
from ..peft.starts import STARTS
from .model import quantize
from .qtensor import QTensor
from .scheme import Scheme, checked

__all__ = ["loftq", "loftq_factors", "loftq_rounds"]


def loftq(model: Decoder, lora: LoRA, scheme: Scheme, iterations: int = 5, *, rng: Seed = 0,
          head: int | None = None) -> PeftModel:
    """Quantize the blocks of `model` by `scheme`, in place, and attach `lora`, started by LoftQ.

    scheme: one that needs only the weight (`NF4`, `Uniform`, `FloatFormat`, `GGUF`). iterations:
    T ≥ 1. rng, head: as in `attach`. Save the base too: it is Q now, which fits this LoRA alone.
    Raises MethodError and ValueError as `attach` and `quantize` do, with nothing changed."""
    if type(lora) is not LoRA or lora.init in STARTS:
        raise MethodError("loftq: expected a LoRA without a start of its own, whose factors LoftQ "
                          f"initialises, got {lora!r}")
    kind = type(scheme)
    if not (issubclass(kind, Scheme) and kind.layer is Scheme.layer and kind.apply is Scheme.apply):
        raise ValueError("loftq: expected a scheme that needs nothing but the weight, such as "
                         f"tinypeft.NF4(), got {scheme!r}")
    if not isinstance(iterations, (int, np.integer)) or iterations < 1:
        raise ValueError(f"loftq: iterations must be a positive integer, got {iterations!r}; "
                         "attach(quantize(model, scheme), lora) starts a LoRA at zero")
    trial = attach(model, lora, rng=0, head=head)        # its checks, targets and ranks
    ranks = trial.ranks()
    layers = {path: wrapper.base for path, wrapper in trial.wrappers.items()}
    factors = {path: loftq_factors(layer.weight.data, scheme, ranks[path], iterations)
               for path, layer in layers.items() if isinstance(layer, Linear)}
    del trial, layers                                    # they hold the float weights
    quantize(model, scheme)
    for path, (Q, _, _) in factors.items():
        model.get(path).weight = Q
    tuned = attach(model, lora, rng=rng, head=head)
    for path, (_, B, A) in factors.items():
        wrapper = tuned.wrappers[path]
        root = math.sqrt(wrapper.scale)
        wrapper.B.assign((B / root).astype(wrapper.B.dtype))
        wrapper.A.assign((A / root).astype(wrapper.A.dtype))
    return tuned


def loftq_factors(W: Array, scheme: Scheme, r: int,
                  iterations: int = 5) -> tuple[QTensor, Array, Array]:
    """Return Q, B (d_out, r) and A (r, d_in) with W ≈ Q + B A: the best of T rounds, in float32."""
    W = checked(W)

    def error(factors):
        Q, B, A = factors
        return np.linalg.norm(W - Q.dequantize() - B @ A)
    return min(loftq_rounds(W, scheme.quantize, r, iterations, QTensor.dequantize), key=error)


def loftq_rounds(W: Array, quant: Callable, r: int, iterations: int,
                 dense: Callable = lambda Q: Q) -> Iterator[tuple]:
    """Algorithm 1: yield Q, B (d_out, r) and A (r, d_in) after each of T rounds. quant: a matrix →
    Q. dense: Q → the rounded matrix, which by default is Q itself."""
    BA = 0
    for _ in range(iterations):
        Q = quant(W - BA)
        R = W - dense(Q)
        if not np.isfinite(R).all():
            raise ValueError("loftq: the scheme decodes a weight to infinity or NaN; use one whose "
                             "range holds all weights")
        U, S, Vt = np.linalg.svd(R, full_matrices=False)
        root = np.sqrt(S[:r])
        B = U[:, :r] * root
        A = root[:, None] * Vt[:r]
        BA = B @ A
        yield Q, B, A
