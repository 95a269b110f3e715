"""A part: what one method adds to a base. A PeftModel may have several, each with a name.

    tuned = attach(model, LoRA(rank=8), PrefixTuning(length=5))
    tuned.parts                          # {"LoRA": …, "PrefixTuning": …}

Wrappers of several parts at one place nest. The first part is innermost: the second adapts the
layer as the first one changed it. Virtual tokens join if they enter by different seams.

A part is off after `detach(name)`. `reattach(name)` puts it on again, and `reattach()` all. What is
off stays part of the PeftModel, and nothing of it is lost:

    verb                               what it does with a part that is off
    call, classify, generate           leave it out
    tp.train, find_rate, penalty       leave it out: it does not learn
    mixed_batch, mixed_classify        leave it out
    ranks, set_rank                    leave it out; MethodError names it if no other has a rank
    summary                            counts it as stored, not as trained
    eval, train, to, fold              reach it
    state_dict, load_state_dict        hold it as if it were on
    save, load_adapter                 hold it, and which parts are off
    checkpoints of tp.train            hold it; a run goes on only with the same parts off
    copy.deepcopy, pickle              hold it
    merge()                            leaves it where it is; the plain copy has nothing of it
    merge(other), merge(in_place=True) keep it: they return a PeftModel
    merge(name), combine,              refuse it by its name: reattach(name) first
    save(format="peft"),
    export_training
    attach, add, reattach(name)        count only parts that are on: of two prompts, two prefixes or
                                       two trainings of a weight one can be on. The second one is
                                       refused: detach(name) the first one
    detach()                           returns the base as it is now, and changes nothing

Arrays that all wrappers of a method read (`Method.shared`), such as VeRA's random matrices, belong
to the part. It holds them once, and saves, loads and copies them, whether it is on or off. They
keep their dtype. A wrapper refers to the part's dict, and so reads what was loaded there.

A start of LoRA (`starts.py`) is the layer's own, and no verb moves the base for it:

    verb                               what it does with a start B₀, A₀
    attach, add                        compute it, from weights or from calibration=
    load_adapter, copy, pickle,        hold it: nothing is computed again, and no data are needed
    checkpoints of tp.train
    disabled                           computes as the base did at attach
    merge                              add s (B A − B₀ A₀) to the weight
    ranks, combine, save(format="peft"), to_low_rank
                                       take it for a LoRA of rank 2r, B′ = [B, −B₀], A′ = [A; A₀]
    loftq, export_training             refuse it; export_training takes eva

No verb drops a gradient but `to`: the parts keep their Parameters when they are switched.
"""
from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..common.hints import Array, Rng
from ..engine.nn import Module, Parameter, check_state
from ..models.decoder import Decoder
from .method import Method, MethodError, VirtualTokens, Wrapper

__all__ = ["JoinedTokens", "Methods", "Part", "check_fit", "free_name", "joined", "named", "picked"]


class Methods(tuple):
    """The methods on one model; in a message they read "A + B"."""
    __slots__ = ()

    def __str__(self):
        return " + ".join(map(str, self))


# -- names -----------------------------------------------------------------------------------------
def named(methods: Sequence[Any], taken: Iterable[str] = ()) -> dict[str, Method]:
    """Give each argument of `attach`, a method or a dict that names some, a name: name → method.

    A method without a name is called as its class, a second one "LoRA 2". taken: names in use.
    """
    names = dict.fromkeys(taken)           # name → method, or None for one in use
    for item in methods:
        if isinstance(item, Mapping):
            pairs = item.items()
        else:
            pairs = [(free_name(type(item).__name__, names), item)]
        for name, method in pairs:
            check_named(name, method, names)
            names[name] = method
    new = {name: method for name, method in names.items() if method is not None}
    if not new:
        raise TypeError("attach: expected a method such as LoRA(rank=8), got none")
    return new


def check_named(name, method, taken):
    """Raise TypeError for anything but a method, MethodError for a name that it cannot have."""
    if not isinstance(method, Method):
        hint = f"; call it, {method.__name__}()" if isinstance(method, type) else ""
        raise TypeError(f"attach: expected a method such as LoRA(rank=8), got {method!r}{hint}")
    if not isinstance(name, str) or not name or "/" in name:
        raise MethodError(f"attach: a method's name is a str without '/', got {name!r}")
    if name in taken:
        raise MethodError(f"attach: there are two methods called {name!r}")


def free_name(name: str, taken: Mapping[str, Any]) -> str:
    """Return `name`, or with a number behind it if it is taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free


def picked(parts: Mapping[str, Part], names: Iterable[str]) -> dict[str, Part]:
    """Pick parts by name: name → Part, in the order of `parts`."""
    for name in names:
        if name not in parts:
            raise MethodError(f"no method is called {name!r}; there are "
                              f"{', '.join(map(repr, parts))}")
    return {name: part for name, part in parts.items() if name in names}


# -- one part --------------------------------------------------------------------------------------
class Part:
    """A method, and what it put on a model.

    shared: name → frozen array that all wrappers read. wrappers: path → module that takes a place
    in the model. virtual: module of virtual tokens, or None. trained: name → Parameter that takes
    the place of the base's. on: is the part on the model?
    """

    def __init__(self, method: Method, model: Decoder, rng: Rng):
        base = dict(model.named_parameters())
        self.method = method
        self.on = True
        self.shared = dict(method.shared(model, rng))
        self.wrappers = method.wrap(model, rng)
        self.virtual = method.virtual(model, rng)
        self.trained = {name: base[name].twin(True) for name in method.trained(model)}
        for path, wrapper in self.wrappers.items():
            if not isinstance(wrapper, Wrapper):
                raise TypeError(f"attach: {method} puts a {type(wrapper).__name__} at {path}; "
                                "let that class inherit from tinypeft.peft.method.Wrapper")
            if self.shared:
                wrapper.shared = self.shared

    def modules(self) -> Iterator[tuple[str, Module]]:
        """Yield (path, module) of all that is added. A wrapper contains its `base`, too."""
        yield from self.wrappers.items()
        if self.virtual is not None:
            yield "virtual", self.virtual

    def added(self) -> list[Parameter]:
        """List every Parameter that is added to the base."""
        return [p for _, module in self.modules() for p in own_parameters(module)]

    def parameters(self) -> list[Parameter]:
        """List the parameters that training changes."""
        return [p for p in [*self.added(), *self.trained.values()] if p.requires_grad]

    # -- its arrays --------------------------------------------------------------------------------
    def state_dict(self, to_train: bool = True) -> dict[str, Array]:
        """Name the part's arrays by their paths; for to_train see `PeftModel.state_dict`."""
        state = {name: p.data for name, p in self.trained.items()}
        for path, wrapper in self.wrappers.items():
            state |= {f"{path}.{name}": array for name, array in own_state(wrapper).items()}
        state |= {f"shared.{name}": array for name, array in self.shared.items()}
        if not to_train:
            for name in self.optional():
                state.pop(name, None)
        if self.virtual is not None:
            virtual = self.virtual if to_train else self.method.fold(self.virtual)[1]
            state |= {f"virtual.{name}": array for name, array in virtual.state_dict().items()}
        return state

    def optional(self) -> set[str]:
        """Names in `state_dict` that only further training needs."""
        return {f"{path}.{name}" for path, wrapper in self.wrappers.items()
                for name in wrapper.only_to_train}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Load those arrays of `state` that this part has."""
        for name, p in self.trained.items():
            if name in state:
                p.assign(np.array(state[name], dtype=p.dtype))
        self.shared.update(check_state(self.shared, below("shared.", state), strict=False))
        for path, module in self.modules():
            module.load_state_dict(below(f"{path}.", state), strict=False)
        for wrapper in self.wrappers.values():
            wrapper.check_parts()

    def fold(self) -> bool:
        """Replace a reparameterization by its output; was there one?"""
        before = self.virtual
        self.method, self.virtual = self.method.fold(before)
        return self.virtual is not before

    def switched(self, on: bool) -> Part:
        """Make this part once more, on or off, around the same modules."""
        new = copy.copy(self)
        new.on = on
        return new

    def copied(self) -> Part:
        """Copy the part without what its wrappers adapt."""
        new = copy.copy(self)
        new.wrappers = {path: wrapper.on(None) for path, wrapper in self.wrappers.items()}
        return copy.deepcopy(new)

    def cast(self, dtype: Any) -> None:
        """Cast what the part holds. A gradient of another dtype would not fit, so it is dropped."""
        for p in [*self.added(), *self.trained.values()]:
            if p.dtype != dtype:
                p.assign(p.data.astype(dtype))
                p.grad = None


def own_parameters(module):
    """List the module's own Parameters; those of a wrapper's `base` are left out."""
    return [p for name, p in module.named_parameters() if not name.startswith("base.")]


def own_state(module):
    """Name the module's own arrays, without those of a wrapper's `base`."""
    return {name: array for name, array in module.state_dict().items()
            if not name.startswith("base.")}


def below(prefix, state):
    """Pick the arrays whose names start with `prefix`, and cut it off."""
    return {name.removeprefix(prefix): array for name, array in state.items()
            if name.startswith(prefix)}


# -- several parts ---------------------------------------------------------------------------------
def check_fit(parts: Mapping[str, Part], new: Iterable[str], model: Decoder, verb: str) -> None:
    """Raise MethodError for parts that cannot be on one model together. new: those that `verb` puts
    there; the others are on it already."""
    places, trained, seams, length = {}, {}, {}, 0
    for name, part in parts.items():
        for path, wrapper in part.wrappers.items():
            if wrapper.innermost and path in places:
                raise MethodError(f"{verb}: {name} works on the layer {path} itself, which "
                                  f"{places[path]} changes before it; name {name} first, or "
                                  f"{way_out(verb, new, places[path], name)}")
            places[path] = name
        for weight in part.trained:
            if weight in trained:
                raise clash(verb, new, trained[weight], name, f"train {weight}")
            trained[weight] = name
        if part.virtual is not None:
            seam = part.virtual.seam
            if seam in seams:
                raise clash(verb, new, seams[seam], name, f"give the model a {seam}")
            seams[seam] = name
            length += part.virtual.length
    context = model.config.context_length
    if length >= context:
        raise MethodError(f"{verb}: {length} virtual tokens leave no room for text in a context "
                          f"of {context}")


def clash(verb, new, first, second, deed):
    """Make the error about two parts, by name, of which only one can be on."""
    return MethodError(f"{verb}: {first} and {second} both {deed}; only one of them can be on, so "
                       f"{way_out(verb, new, first, second)}")


def way_out(verb, new, first, second):
    """Say what to do about two parts of which one at least is new."""
    for name in first, second:
        if name not in new:
            return f"detach({name!r}) first"
    return f"{verb} one of them"


def joined(parts: Iterable[Part]) -> VirtualTokens | None:
    """Make one module of the virtual tokens of several parts; None for none."""
    modules = [part.virtual for part in parts if part.virtual is not None]
    if len(modules) > 1:
        return JoinedTokens(modules)
    return modules[0] if modules else None


class JoinedTokens(VirtualTokens):
    """Virtual tokens of several modules, each of which uses another seam."""

    def __init__(self, modules: list[VirtualTokens]):
        self.modules = modules
        self.length = sum(module.length for module in modules)

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        arguments = {}
        for module in self.modules:
            arguments |= module.seams(tokens, lengths)
        return arguments

    def describe(self) -> str:
        return f"({self.length} tokens)"
