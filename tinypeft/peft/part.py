"""A part: what one method puts on a model. Several parts, each with a name, may be on one model.

    tuned = attach(model, LoRA(rank=8), PrefixTuning(length=5))
    tuned.parts                          # {"LoRA": …, "PrefixTuning": …}

Wrappers of several parts at one place nest. The first part is innermost: the second adapts the
layer as the first one changed it. Virtual tokens join if they enter by different seams.
"""
from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..common.hints import Array, Rng
from ..engine.nn import Module, Parameter, replace_modules
from ..models.decoder import Decoder
from .method import Method, MethodError, VirtualTokens

__all__ = ["JoinedTokens", "Methods", "Part", "check_fit", "free_name", "joined", "named"]


class Methods(tuple):
    """The methods on one model; in a message they read "A + B"."""
    __slots__ = ()

    def __str__(self): return " + ".join(map(str, self))


def named(methods: Sequence[Any], taken: Mapping[str, Any] | None = None) -> dict[str, Method]:
    """name → method for the arguments of `attach`: methods, or dicts that name them.

    A method without a name is called as its class, a second one "LoRA 2". taken: names in use.
    """
    found, taken = {}, taken or {}
    for given in methods:
        for name, method in given.items() if isinstance(given, Mapping) else [(None, given)]:
            if not isinstance(method, Method):
                hint = f"; call it, {method.__name__}()" if isinstance(method, type) else ""
                raise TypeError("attach: expected a method such as LoRA(rank=8), "
                                f"got {method!r}{hint}")
            if name is None: name = free_name(type(method).__name__, {**taken, **found})
            if not isinstance(name, str) or not name or "/" in name:
                raise MethodError(f"attach: a method's name is a str without '/', got {name!r}")
            if name in found or name in taken:
                raise MethodError(f"attach: there are two methods called {name!r}")
            found[name] = method
    if not found: raise TypeError("attach: expected a method such as LoRA(rank=8), got none")
    return found


def free_name(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, or with a number behind it if it is taken."""
    return next(n for n in (name, *(f"{name} {i}" for i in range(2, len(taken) + 3)))
                if n not in taken)


class Part:
    """A method, and what it put on a model.

    wrappers: path → module that takes a place in the model. virtual: module of virtual tokens, or
    None. trained: name → Parameter of the model that the method trains. on: is the part on the
    model whenever its PeftModel is? learned: name → array of `trained`, while the part is off.
    """

    def __init__(self, method: Method, model: Decoder, rng: Rng):
        base = dict(model.named_parameters())
        self.method, self.on = method, True
        self.wrappers, self.virtual = method.wrap(model, rng), method.virtual(model, rng)
        self.trained = {name: base[name] for name in method.trained(model)}
        self.learned = {name: p.data.copy() for name, p in self.trained.items()}

    def modules(self) -> Iterator[tuple[str, Module]]:
        """(path, module) of all that is added to the base. A wrapper contains its `base`, too."""
        yield from self.wrappers.items()
        if self.virtual is not None: yield "virtual", self.virtual

    def added(self) -> list[Parameter]:
        """Every Parameter that is added to the base."""
        return own_parameters(self.modules())

    def parameters(self) -> list[Parameter]:
        """The parameters that training changes."""
        return [p for p in [*self.added(), *self.trained.values()] if p.requires_grad]

    def state_dict(self, to_train: bool = True) -> dict[str, Array]:
        """As `PeftModel.state_dict`, for this part."""
        state = {name: self.learned.get(name, p.data) for name, p in self.trained.items()}
        for path, module in self.modules():
            if path == "virtual" and not to_train: module = self.method.fold(module)[1]
            skipped = () if to_train else getattr(module, "only_to_train", ())
            state |= {f"{path}.{n}": a for n, a in module.state_dict().items()
                      if not n.startswith("base.") and n not in skipped}
        return state

    def optional(self) -> set[str]:
        """Names in `state_dict` that only further training needs."""
        return {f"{at}.{n}" for at, m in self.modules() for n in getattr(m, "only_to_train", ())}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Load those arrays of `state` that this part has."""
        for name, p in self.trained.items():
            if name not in state: continue
            new = np.array(state[name], dtype=p.dtype)
            if name in self.learned: self.learned[name] = new
            else: p.assign(new)
        for path, module in self.modules(): load(module, path, state)

    def fold(self) -> bool:
        """Replace a reparameterization by its output; was there one?"""
        before = self.virtual
        self.method, self.virtual = self.method.fold(before)
        return self.virtual is not before

    def set_mode(self, training: bool) -> None:
        """As `Module.train`, for what this part added and not for what its wrappers adapt."""
        for _, module in self.modules():
            for path, inner in module.named_modules():
                if path.partition(".")[0] != "base": inner.training = training

    def fuse(self, model: Decoder, staying: Iterable[Part] = ()) -> None:
        """Merge the wrappers into `model`, a base without a method. The part is then spent: each
        layer is given up as it is replaced, so that no more than one exists twice.

        staying: other parts. What they learned for a merged layer's weight or bias takes the base's
        place when they are put on, so it is merged, too."""
        for path in list(self.wrappers):
            wrapper = self.wrappers.pop(path)
            if not innermost(wrapper): wrapper.base = model.get(path)
            replace_modules(model, {path: wrapper.merge()})
            for part in staying: part.merge_learned(path, wrapper)

    def merge_learned(self, path: str, wrapper: Module) -> None:
        """Change what this part learned for the layer at `path` as merging `wrapper` does."""
        learned = {name: self.learned[f"{path}.{name}"] for name in ("weight", "bias")
                   if f"{path}.{name}" in self.learned}
        if not learned: return
        wrapper.base = copy.copy(wrapper.base)
        for name, array in learned.items(): setattr(wrapper.base, name, Parameter(array))
        merged = wrapper.merge()
        for name in learned: self.learned[f"{path}.{name}"] = getattr(merged, name).data


def own_parameters(modules: Iterable[tuple[str, Module]]) -> list[Parameter]:
    """The Parameters of modules, without those of what a wrapper adapts."""
    return [p for _, module in modules for n, p in module.named_parameters()
            if not n.startswith("base.")]


def load(module: Module, path: str, state: Mapping[str, Array]) -> None:
    """Load the arrays of `state` whose names start with `path` into a module."""
    own = {n.removeprefix(f"{path}."): a for n, a in state.items() if n.startswith(f"{path}.")}
    module.load_state_dict(own, strict=False)


def innermost(wrapper: Module) -> bool:
    """Does the wrapper compute with the insides of its `base`, so that it can adapt no other?"""
    return getattr(wrapper, "innermost", False)


def check_fit(parts: Mapping[str, Part], model: Decoder) -> None:
    """Raise MethodError for parts that cannot be on one model together."""
    places, trained = {}, {}
    for name, part in parts.items():
        for path, wrapper in part.wrappers.items():
            if innermost(wrapper) and path in places:
                raise MethodError(f"attach: {name} works on the layer {path} itself, which "
                                  f"{places[path]} changes before it; name {name} first")
            places[path] = name
        for weight in part.trained:
            if weight in trained:
                raise MethodError(f"attach: {trained[weight]} and {name} both train {weight}; "
                                  "leave it to one of them")
            trained[weight] = name
    tokens = {name: part.virtual for name, part in parts.items() if part.virtual is not None}
    seams = {}
    for name, virtual in tokens.items():
        if virtual.seam in seams:
            raise MethodError(f"attach: {seams[virtual.seam]} and {name} both give the model a "
                              f"{virtual.seam}, and it takes one")
        seams[virtual.seam] = name
    length, context = sum(v.length for v in tokens.values()), model.config.context_length
    if length >= context:
        raise MethodError(f"attach: {length} virtual tokens leave no room for text in a context "
                          f"of {context}")


# -- virtual tokens of several parts ---------------------------------------------------------------
def joined(modules: Iterable[VirtualTokens | None]) -> VirtualTokens | None:
    """One module for the virtual tokens of several parts; None for none."""
    modules = [m for m in modules if m is not None]
    return JoinedTokens(modules) if len(modules) > 1 else modules[0] if modules else None


class JoinedTokens(VirtualTokens):
    """Virtual tokens of several modules, each of which uses another seam."""

    def __init__(self, modules: list[VirtualTokens]):
        self.modules, self.length = modules, sum(m.length for m in modules)

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        each = [m.seams(tokens, lengths) for m in self.modules]
        return {argument: given for seams in each for argument, given in seams.items()}

    def describe(self) -> str: return f"({self.length} tokens)"
