"""After training: methods become weights, a reparameterization its output, a rank is chosen.

Each function does what the method of `PeftModel` with its name says; `tuned` is that PeftModel.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from ..common.signals import HeldSignals
from ..engine.nn import are_twins, own_arrays, replace_modules, set_parameter, twin
from ..models.decoder import Decoder
from .method import MethodError
from .part import picked
from .switching import Switched, frozen_twin, hold

__all__ = ["fold", "merge", "ranks", "set_rank"]


def merge(tuned: Switched, names: Sequence[str], activations: str,
          in_place: bool) -> Switched | Decoder:
    """Merge parts, all that are on or those in `names`, into a copy of the base or in place.

    Return a PeftModel if parts stay, else the plain model. The parts that are not in `names` stay,
    and in place those that are off.
    """
    tuned.check_parts_there()
    if activations not in ("kept", "exact"):
        raise MethodError(f"merge: activations must be 'kept' or 'exact', got {activations!r}")
    parts = picked(tuned.parts, names or [n for n, part in tuned.parts.items() if part.on])
    staying = {}
    if names or in_place:
        staying = {name: part for name, part in tuned.parts.items() if name not in parts}
    check_mergeable(tuned, parts, staying, activations)
    if in_place:
        return merge_in_place(tuned, parts, staying)
    model = twin(tuned.frozen)
    staying = {name: part.copied() for name, part in staying.items()}
    parts = {name: copy.copy(part) for name, part in parts.items()}
    for _ in merging([model], parts, staying):
        pass
    if staying:
        after = copy.copy(tuned)
        vars(after).update(base=owned(model), frozen=frozen_twin(model),
                           head=copy.deepcopy(tuned.head), rng=copy.deepcopy(tuned.rng))
        hold({after: after.record(staying, "merge")})
        after.enlist()
        return after
    model.head = copy.deepcopy(tuned.head) or model.head
    return owned(model)


def merge_in_place(tuned, parts, staying):
    """Merge into the base itself, and into its twin, layer by layer. A Ctrl-C acts when a layer is
    done; the parts then stay on the other layers."""
    base, frozen = tuned.base, tuned.frozen
    if not are_twins(base, frozen):                      # it was changed: become what it was
        vars(base).update(vars(twin(frozen)), attached=None)
    tuned.model = frozen                                 # the twin would keep the old weights
    try:
        with HeldSignals() as signals:
            for _ in merging([base, frozen], parts, staying):
                signals.deliver()
    finally:
        rest = {name: part for name, part in tuned.parts.items()
                if name in staying or part.wrappers or part.trained}
        if rest:
            hold({tuned: tuned.record(rest, "merge")})
    if rest:
        return tuned
    base.head = tuned.head or base.head
    hold({tuned: {"parts": {}, "model": base}})
    return freed(base)


def owned(model):
    """Give a model arrays of its own, and free it."""
    own_arrays(model)
    return freed(model)


def freed(model):
    """Make a plain model, all of which can be trained, of a twin."""
    for p in model.parameters():
        p.requires_grad = True
        p.grad = None
    model.attached = None
    return model


def check_mergeable(tuned, parts, staying, activations):
    """Raise MethodError unless these parts can be merged while others stay."""
    for part in parts.values():
        if not part.on:
            raise MethodError(f"merge: {part.method} is switched off; reattach it")
        if part.virtual is not None:
            means = "virtual tokens" if part.virtual.length else "a hook on states"
            raise MethodError(f"merge: {part.method} works by {means}; no weights can replace that")
        for path, wrapper in part.wrappers.items():
            check_wrapper(part, path, wrapper, staying)
            if activations == "kept":
                check_affine(path, tuned.frozen.get(path))


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


def merging(models, parts, staying):
    """Merge parts into each of `models`, which are alike, and empty them; yield after each layer.
    """
    for part in parts.values():                          # before a wrapper copies them
        for name, p in part.trained.items():
            for model in models:
                set_parameter(model, name, p.twin())
        part.trained = {}
    for part in parts.values():
        left = part.wrappers = dict(part.wrappers)
        for path in list(left):
            layer = merged_layer(models[0].get(path), path, left[path], staying.values())
            for model in models:
                replace_modules(model, {path: layer})
                layer = twin(layer)                      # of two models, the second has a twin
            del left[path], layer
            yield


def merged_layer(layer, path, wrapper, staying):
    """Make the layer that `wrapper` makes of `layer`. What a part that stays trains of it is
    merged, too: it takes the place of the base's weight or bias."""
    for part in staying:
        names = {name: f"{path}.{name}" for name in ("weight", "bias")
                 if f"{path}.{name}" in part.trained}
        if names:
            changed = copy.copy(layer)
            for name, full_name in names.items():
                setattr(changed, name, part.trained[full_name])
            merged = wrapper.on(changed).merge()
            for name, full_name in names.items():
                part.trained[full_name].assign(getattr(merged, name).data)
    return wrapper.on(layer).merge()


def fold(tuned: Switched) -> None:
    """Replace each part's reparameterization; MethodError if there is none."""
    tuned.check_parts_there()
    parts = {name: copy.copy(part) for name, part in tuned.parts.items()}
    if not any([part.fold() for part in parts.values()]):
        raise MethodError(f"fold: {tuned.method} has no reparameterization to drop")
    hold({tuned: tuned.record(parts, "fold")})


def ranks(tuned: Switched) -> dict[str, int]:
    """Add up the ranks of the wrappers of each path."""
    tuned.check_parts_there()
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
    tuned.check_parts_there()
    several = {name: part for name, part in tuned.parts.items() if part.method.ranks}
    if not several:
        raise MethodError(f"set_rank: {tuned.method} has no other rank to use; "
                          "DyLoRA learns all ranks at once")
    used = [part for part in several.values() if part.on]
    if not used:
        raise MethodError(f"set_rank: {', '.join(several)} is switched off; reattach it by its "
                          "name first")
    record = tuned.record(tuned.parts, "set_rank")
    for name, part in record["parts"].items():
        if several.get(name) in used:
            part.method.set_rank(part.wrappers, rank)
    hold({tuned: record})
