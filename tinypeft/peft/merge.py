"""After training: methods become weights, a reparameterization its output, a rank is chosen.

Each function does what the method of `PeftModel` with its name says; `tuned` is that PeftModel.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from ..common.signals import HeldSignals
from ..models.decoder import Decoder
from .method import MethodError
from .part import joined, picked
from .switching import Switched

__all__ = ["fold", "merge", "ranks", "set_rank"]


def merge(tuned: Switched, names: Sequence[str], activations: str,
          in_place: bool) -> Switched | Decoder:
    """Merge parts, all that are on or those in `names`, into a copy of the model or in place.

    Return a PeftModel if parts stay, else the plain model. The parts that are not in `names` stay,
    and in place those that are off.
    """
    tuned.check_active()
    if activations not in ("kept", "exact"):
        raise MethodError(f"merge: activations must be 'kept' or 'exact', got {activations!r}")
    parts = picked(tuned.parts, names or [n for n, part in tuned.parts.items() if part.on])
    staying = {}
    if names or in_place:
        staying = {name: part for name, part in tuned.parts.items() if name not in parts}
    check_mergeable(tuned, parts, staying, activations)
    if not in_place:
        base = tuned.attachment.base
        unused = [base[name] for part in parts.values() for name in part.trained]
        tuned = copy.deepcopy(tuned, {id(array): array for array in unused})   # these not
    return merge_in_place(tuned, list(parts), list(staying))


def check_mergeable(tuned, parts, staying, activations):
    """Raise MethodError unless these parts can be merged while others stay."""
    for part in parts.values():
        if not part.on:
            raise MethodError(f"merge: {part.method} is detached; reattach it")
        if part.virtual is not None:
            means = "virtual tokens" if part.virtual.length else "a hook on states"
            raise MethodError(f"merge: {part.method} works by {means}; no weights can replace that")
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
        theirs = other.wrappers.get(path)
        if wrapper.base is theirs:
            raise MethodError(f"merge: {part.method} changes {path} as {name} gives it, and "
                              f"{name} stays; merge both, or detach {name}")
        if theirs and theirs.innermost and not other.on:
            raise MethodError(f"merge: {name} is off and works on the layer {path} itself, which "
                              f"{part.method} would replace; reattach({name!r}) and merge both, "
                              "or call merge() for a copy without it")


def check_affine(path, base):
    """Raise MethodError unless `base` is a layer y = x Wᵀ + b; only layers say whether they are."""
    if not getattr(base, "is_affine", False):
        raise MethodError(
            f"merge: {path} is a {type(base).__name__}, which does more than multiply by a weight: "
            "it rounds its inputs or outputs, and no weights do that. Keep the method attached, or "
            "merge with activations 'exact', whose merged layers round nothing")


def merge_in_place(tuned, names, staying):
    """Change the base's weights as the parts in `names` do; then put those in `staying` on again.

    An error puts on what is not merged yet."""
    model, parts = tuned.model, tuned.parts
    tuned.attachment.take_off(model, note=False)
    tuned.attachment.forget()                    # or the layers that are replaced would all stay
    try:
        merge_parts(model, parts, names)
    except BaseException:
        put_on_again(tuned)
        raise
    if staying:
        put_on_again(tuned)
        return tuned
    parts.clear()
    model.head = tuned.head or model.head
    for p in model.parameters():
        p.requires_grad = True
        p.grad = None
    return model


def merge_parts(model, parts, names):
    """Merge the parts in `names` into the base, layer by layer, and remove them from `parts`. A
    Ctrl-C acts when a layer is done."""
    staying = [part for name, part in parts.items() if name not in names]
    with HeldSignals() as signals:
        for name in names:                       # before a wrapper copies them
            parts[name].merge_trained()
        for name in names:
            for path in list(parts[name].wrappers):
                parts[name].merge_layer(path, model, staying)
                signals.deliver()
            del parts[name]


def put_on_again(tuned):
    """Put the parts on a base of which some layers, and so their parameters, are new."""
    base = dict(tuned.model.named_parameters())
    for part in tuned.parts.values():
        part.trained = {name: base[name] for name in part.trained}
    tuned.put_on()


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
    if not total and tuned.off:
        tuned.check_none_off("ranks")
    if not total or any(map(math.isnan, total.values())):
        raise MethodError(f"ranks: {tuned.method} does not change weights by a product B A")
    return total


def set_rank(tuned: Switched, rank: int) -> None:
    """Tell the rank to each method that is on and has several; MethodError if none has."""
    several = {name: part for name, part in tuned.parts.items() if part.method.ranks}
    if not several:
        raise MethodError(f"set_rank: {tuned.method} has no other rank to use; "
                          "DyLoRA learns all ranks at once")
    used = [part for part in several.values() if part.on]
    if not used:
        raise MethodError(f"set_rank: {', '.join(several)} is switched off; reattach it by its "
                          "name first")
    for part in used:
        part.method.set_rank(part.wrappers, rank)
