"""to_low_rank: what a method changed in the weights of linear layers becomes one LoRA.

    ΔW ≈ B A,     B = U_r √S_r,     A = √S_r V_rᵀ     of ΔW = U S Vᵀ

No product of rank r is nearer to ΔW (Eckart and Young). Tools that know nothing but LoRA can so
take the change of any method that changes weights. The relative error of a layer is

    ‖ΔW − B A‖/‖ΔW‖ = √(S²_{r+1} + …)/√(S²₁ + S²₂ + …)
"""
from __future__ import annotations

import numpy as np

from ..common.hints import Array
from ..models.targets import match_targets
from .changed import ChangedLinear
from .combine import with_pairs
from .full import FullFineTuning
from .low_rank import halves
from .method import MethodError, Wrapper
from .model import PeftModel

__all__ = ["to_low_rank"]


def to_low_rank(tuned: PeftModel, rank: int) -> PeftModel:
    """Return a PeftModel with the LoRA of `rank` that is nearest to the change of each layer.

    tuned: it has no part that is off, and stays as it is. What it trained beside weights of linear
    layers in the blocks (biases, norms, embeddings) becomes a part "FullFineTuning", and a head is
    copied: of both nothing is lost. rank: a layer that is too small for it gets the largest that it
    can have.
    `relative_errors` of the result: path → the error of the layer's change.
    Raises MethodError for methods that change states, rows of an embedding, or more than a weight.
    """
    if not isinstance(tuned, PeftModel):
        raise TypeError("to_low_rank: expected what attach returns, got a "
                        f"{type(tuned).__name__}")
    if not isinstance(rank, (int, np.integer)) or isinstance(rank, bool) or rank < 1:
        raise MethodError(f"to_low_rank: rank must be a positive integer, got {rank!r}")
    tuned.check_parts_there()
    tuned.check_none_off("to_low_rank")
    check_weights_only(tuned)
    weights = [f"{path}.weight" for path, _ in match_targets(tuned.model, "all")]
    trained = [name.removesuffix(".weight") for name in tuned.trained if name in weights]
    pairs, errors = {}, {}
    for path in dict.fromkeys([*tuned.wrappers, *trained]):
        U, S, Vt = np.linalg.svd(change_of(tuned, path), full_matrices=False)
        pairs[path] = halves(U, S, Vt, rank)
        errors[path] = float(norm(S[rank:]) / (norm(S) or 1))
    if not pairs:
        raise MethodError(f"to_low_rank: {tuned.method} changes no weight of a linear layer")
    rest = {name: p.data.copy() for name, p in tuned.trained.items() if name not in weights}
    beside = {"FullFineTuning": FullFineTuning(tuple(rest))} if rest else {}
    state = {f"FullFineTuning/{name}": array for name, array in rest.items()}
    result = with_pairs(tuned, pairs, tuned.head, beside, state)
    result.relative_errors = errors
    return result


def check_weights_only(tuned: PeftModel) -> None:
    """Raise MethodError unless all that was added to the base are changes of weights."""
    linear = dict(match_targets(tuned.model, "all"))
    for part in tuned.parts.values():
        if part.virtual is not None:
            raise MethodError(f"to_low_rank: {part.method} changes states or the context; no "
                              "change of weights can replace that")
        for path, wrapper in part.wrappers.items():
            if path not in linear:
                raise MethodError(f"to_low_rank: {part.method} changes {path}, which is no linear "
                                  "layer of a block; keep it as it is")
            if type(wrapper).dense_weight is Wrapper.dense_weight:
                raise MethodError(f"to_low_rank: {part.method} puts a {type(wrapper).__name__} at "
                                  f"{path}, which changes more than a weight; keep it as it is")


def change_of(tuned: PeftModel, path: str) -> Array:
    """Compute by how much the layer at `path` differs from the base's, (d_out, d_in), in float64.
    """
    layer = tuned.model.get(path)
    is_one_change = isinstance(layer, ChangedLinear) and not isinstance(layer.base, Wrapper)
    if is_one_change and f"{path}.weight" not in tuned.trained:
        return layer.delta().astype(float)               # without the error of a difference
    return layer.dense_weight().astype(float) - tuned.frozen.get(path).dense_weight()


def norm(S):
    """Return √Σ S²."""
    return np.linalg.norm(S)
