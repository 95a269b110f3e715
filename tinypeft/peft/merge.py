"""After training: methods become weights, a reparameterization its output, a rank is chosen.

Each function does what the method of `PeftModel` with its name says; `tuned` is that PeftModel.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from ..models.decoder import Decoder
from .method import MethodError
from .part import joined, picked
from .switching import Switched

__all__ = ["fold", "merge", "ranks", "set_rank"]


def merge(tuned: Switched, names: Sequence[str], activations: str,
          in_place: bool) -> Switched | Decoder:
    """Merge parts, all that are on or those in `names`, into a copy of the model or in place.

    Return a PeftModel with the other parts if `names` are given, else the plain model.
    """
    tuned.check_active()
    if activations not in ("kept", "exact"):
        raise MethodError(f"merge: activations must be 'kept' or 'exact', got {activations!r}")
    parts = picked(tuned.parts, names or [n for n, part in tuned.parts.items() if part.on])
    check_mergeable(tuned, parts, activations)
    if not in_place:
        base = tuned.attachment.base
        unused = [base[name] for part in parts.values() for name in part.trained]
        tuned = copy.deepcopy(tuned, {id(array): array for array in unused})   # these not
    return merge_in_place(tuned, list(parts), keep=bool(names))


def check_mergeable(tuned, parts, activations):
    """Raise MethodError unless these parts can be merged while the others stay."""
    staying = {name: part for name, part in tuned.parts.items() if name not in parts}
    for part in parts.values():
        if not part.on:
            raise MethodError(f"merge: {part.method} is detached; reattach it")
        if part.virtual is not None:
            raise MethodError(f"merge: {part.method} works by virtual tokens; no weights can "
                              "replace that")
        for path, wrapper in part.wrappers.items():
            check_wrapper(part, path, wrapper, staying)
            if activations == "kept":
                check_affine(path, tuned.attachment.replaced[path])


def check_wrapper(part, path, wrapper, staying):
    """Raise MethodError if a wrapper of `part` cannot be merged, or is outside one that stays."""
    if not wrapper.is_mergeable:
        raise MethodError(f"merge: {part.method} puts a {type(wrapper).__name__} at {path}, which "
                          "has no `merge`; keep the method attached")
    for name, other in staying.items():
        if wrapper.base is other.wrappers.get(path):
            raise MethodError(f"merge: {part.method} changes {path} as {name} gives it, and "
                              f"{name} stays; merge both, or detach {name}")


def check_affine(path, base):
    """Raise MethodError unless `base` is a layer y = x Wᵀ + b; only layers say whether they are."""
    if not getattr(base, "is_affine", False):
        raise MethodError(
            f"merge: {path} is a {type(base).__name__}, which does more than multiply by a weight: "
            "it rounds its inputs or outputs, and no weights do that. Keep the method attached, or "
            'call merge(activations="exact"), whose merged layers round nothing')


def merge_in_place(tuned, names, keep):
    """Change the base's weights as the parts do. keep: then put the other parts on again."""
    model, parts = tuned.model, tuned.parts
    tuned.attachment.take_off(model, note=False)
    tuned.attachment.forget()                    # or the layers that are replaced would all stay
    merged = [parts.pop(name) for name in names]
    for part in merged:                          # before a wrapper copies them
        for name, array in part.learned.items():
            part.trained[name].assign(array)
    for part in merged:
        part.merge_into(model, staying=list(parts.values()))
    if parts and keep:
        base = dict(model.named_parameters())
        for part in parts.values():
            part.trained = {name: base[name] for name in part.trained}
        tuned.put_on()
        return tuned
    parts.clear()
    model.head = tuned.head or model.head
    for p in model.parameters():
        p.requires_grad = True
        p.grad = None
    return model


def fold(tuned: Switched) -> None:
    """Replace each part's reparameterization; MethodError if there is none."""
    folded = [part.fold() for part in tuned.parts.values()]
    if not any(folded):
        raise MethodError(f"fold: {tuned.method} has no reparameterization to drop")
    tuned.virtual = joined(tuned.used())


def ranks(tuned: Switched) -> dict[str, int]:
    """Add up the ranks of the wrappers of each path."""
    total = {}
    for part in tuned.used():
        for path, wrapper in part.wrappers.items():
            total[path] = total.get(path, 0) + wrapper.rank
    if not total or any(map(math.isnan, total.values())):
        raise MethodError(f"ranks: {tuned.method} does not give weights a low-rank change")
    return total


def set_rank(tuned: Switched, rank: int) -> None:
    """Tell the rank to each method that has several; MethodError if none has."""
    several = [part for part in tuned.used() if part.method.ranks]
    if not several:
        raise MethodError(f"set_rank: {tuned.method} has no other rank to use; "
                          "DyLoRA learns all ranks at once")
    for part in several:
        part.method.set_rank(part.wrappers, rank)
