"""A model with methods is a base and parts.

    model = base ⊕ parts          `assembled`: the base's modules once more, with parts in them

A PeftModel keeps a *frozen twin* of the base as it was when `attach` was called: modules of its own
around the same arrays, copied when one of the two is written. Whatever is done to the base, and
whatever is switched, starts from that twin. A verb makes new modules around the same Parameters and
changes none that exist; at its end one assignment (`hold`) puts all of them in force.
"""
from __future__ import annotations

import collections
import contextlib
import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from ..common.hints import Calibration, Rng, Seed
from ..engine.nn import (
    Linear,
    Module,
    Parameter,
    are_twins,
    copy_modules,
    replace_modules,
    set_parameter,
    twin,
)
from ..models.calibration import as_batches
from ..models.decoder import TUNINGS, Decoder
from .method import Method, MethodError, Wrapper
from .part import Methods, Part, check_fit, free_name, joined, named, picked

__all__ = ["Switched", "assembled", "frozen_twin", "hold", "plain_twin"]


def assembled(base: Decoder, parts: Mapping[str, Part],
              head: Module | None = None) -> tuple[Decoder, dict[str, Part]]:
    """Make base ⊕ those parts that are on: a model, and the parts around the same Parameters, with
    wrappers that stand on it; of two, the first part's is inside. Nothing that exists changes."""
    model = copy_modules(base, {})
    made, new, outermost = {}, {}, {}
    for name, part in parts.items():
        below = model if part.on else base               # what is off stands beside the model
        inside = outermost if part.on else {}
        new[name] = copy.copy(part)
        new[name].wrappers = {path: wrapper.on(inside.get(path) or below.get(path), made)
                              for path, wrapper in part.wrappers.items()}
        inside |= new[name].wrappers
        for parameter, p in part.trained.items() if part.on else ():
            set_parameter(model, parameter, p)
    for path in sorted(outermost, key=lambda path: -path.count(".")):     # the inner ones first
        replace_modules(model, {path: outermost[path]})
    model.head = head or model.head
    methods = Methods(part.method for part in parts.values() if part.on)
    model.attached = methods[0] if len(methods) == 1 else methods
    return model, new


def hold(records: Mapping[Switched, Mapping[str, Any]]) -> None:
    """Give each PeftModel its new attributes. Ctrl-C acts between two lines of Python, and this one
    call runs none: `deque` draws dict.update(vars(tuned), record) from `map` until it is through.
    """
    collections.deque(map(dict.update, map(vars, records), records.values()), maxlen=0)


def frozen_twin(base: Decoder) -> Decoder:
    """Make the twin that a PeftModel keeps of its base, which no verb may write."""
    frozen = twin(base)
    frozen.attached = Methods()
    return frozen


def plain_twin(model: Decoder) -> Decoder:
    """Make a model without methods around the arrays of a base, or of the twin of one."""
    plain = twin(model)
    plain.attached = None
    return plain


class Switched(Module):
    """A model with methods that can be switched on and off; `PeftModel` is one.

    base: the user's model, which no verb changes but `merge(in_place=True)`. frozen: its twin, as
    it was. model: its modules once more, around the same Parameters, with the parts that are on.
    parts: name → Part, what each method adds. virtual: the module of virtual tokens, or None. head:
    the classifier, or None. rng: what the methods draw from in training.
    """

    def __init__(self, base: Decoder, frozen: Decoder, parts: Mapping[str, Part],
                 head: Linear | None, rng: Rng):
        self.model = None                                # first, so that its parameters come first
        self.base = base
        self.frozen = frozen
        self.training = frozen.training
        self.rng = rng
        self.head = head and head.to(self.frozen.dtype)
        self.is_disabled = False
        self.parts = {}
        hold({self: self.record(parts, "attach")})
        self.enlist()

    def enlist(self) -> None:
        """Tell `train` that the base has this PeftModel."""
        TUNINGS.setdefault(self.base, weakref.WeakSet()).add(self)

    def __getstate__(self):
        return vars(self) | {"is_disabled": False}       # a copy is in no `with` block

    def __setstate__(self, state):
        vars(self).update(state)
        self.enlist()

    def children(self) -> Iterator[tuple[str, Module]]:
        return ((name, child) for name, child in super().children()
                if name not in ("base", "frozen"))

    def record(self, parts: Mapping[str, Part], verb: str) -> dict[str, Any]:
        """Make what this PeftModel holds with these parts, without holding it."""
        for part in parts.values():
            if not (part.wrappers or part.virtual or part.trained or self.head):
                raise MethodError(f"attach: {part.method} would train nothing; give head=n_classes")
            part.cast(self.frozen.dtype)
        on = {name: part for name, part in parts.items() if part.on}
        new = [name for name in on if not (name in self.parts and self.parts[name].on)]
        check_fit(on, new, self.frozen, verb)
        model, parts = assembled(self.frozen, parts, self.head)
        virtual = joined(part for part in parts.values() if part.on)
        for module in filter(None, [self.frozen, model, virtual, *modules_of(parts)]):
            module.train(self.training)
        return {"parts": parts, "model": model, "virtual": virtual}

    def train(self, training: bool = True) -> Self:
        for module in [self.frozen, *modules_of(self.parts)]:    # they are no children
            module.train(training)
        return super().train(training)

    def used(self) -> list[Part]:
        """List the parts that are on."""
        return [part for part in self.parts.values() if part.on]

    @property
    def off(self) -> list[str]:
        """Names of the parts that were switched off."""
        return [name for name, part in self.parts.items() if not part.on]

    @property
    def method(self) -> Method | Methods:
        """The method, or all of them if there are several."""
        methods = Methods(part.method for part in self.parts.values())
        return methods[0] if len(methods) == 1 else methods

    @property
    def wrappers(self) -> dict[str, Wrapper]:
        """path → the outermost module of those that took this place in the model."""
        return {path: wrapper for part in self.used() for path, wrapper in part.wrappers.items()}

    @property
    def trained(self) -> dict[str, Parameter]:
        """name → Parameter in place of one of the base, which a method trains."""
        return {name: p for part in self.used() for name, p in part.trained.items()}

    def begin(self, parts: Iterable[Part], calibration: Calibration, verb: str) -> None:
        """Compute the starts of new parts, which are on the model; see `Method.begin`."""
        batches = as_batches(self.model, calibration)
        for part in parts:
            if part.method.needs_data and not batches:
                raise MethodError(f"{verb}: {part.method} starts from what the model does on text; "
                                  "give calibration=, tokens (B, T) or a list of such arrays")
            part.method.begin(part.wrappers, self, batches)

    def add(self, *methods: Method | Mapping[str, Method] | Switched, rng: Seed = 0,
            calibration: Calibration = None) -> Self:
        """Put more methods on the model, beside those that are there; see `attach`.

        Another PeftModel of the same base gives its parts away, with all that they learned."""
        givers = [item for item in methods if isinstance(item, Switched)]
        if self in givers or len(set(givers)) < len(givers):
            raise MethodError("add: expected other PeftModels, each of them once")
        rng = np.random.default_rng(rng)
        parts, fresh = dict(self.parts), []
        for item in methods:
            if isinstance(item, Switched):
                for name, part in item._given_away(self.frozen).items():
                    parts[free_name(name, parts)] = part
            else:
                for name, method in named([item], parts).items():
                    parts[name] = Part(method, self.frozen, rng)
                    fresh.append(name)
        after = copy.copy(self)
        hold({after: self.record(parts, "add")})
        after.begin([after.parts[name] for name in fresh], calibration, "add")
        empty = {giver: giver.record({}, "add") for giver in givers}
        hold({self: vars(after) | {"is_disabled": self.is_disabled}, **empty})
        return self

    def _given_away(self, frozen):
        """Return the parts if another PeftModel of the same base may have them."""
        self.check_parts_there()
        if not are_twins(self.frozen, frozen):
            raise MethodError("add: the other PeftModel is on another model")
        if self.head is not None:
            raise MethodError("add: this PeftModel has a classification head, and a model has one; "
                              "add the other methods to this one")
        return self.parts

    # -- on and off -----------------------------------------------------------------------------
    def detach(self, *parts: str) -> Decoder:
        """Return the base as it is now, and change nothing: the parts stay on this PeftModel. With
        names, take these parts off it, and return its model without them."""
        self.check_parts_there()
        return self._switch(parts, on=False).model if parts else self.base

    def reattach(self, *parts: str) -> Self:
        """Put parts back on the model, all of them without names, with all that they learned.
        MethodError for a part that cannot be on beside the others, such as a second prompt."""
        self.check_parts_there()
        return self._switch(parts or self.parts, on=True)

    def _switch(self, names, on):
        chosen = picked(self.parts, names)
        hold({self: self.record({name: part.switched(on) if name in chosen else part
                                 for name, part in self.parts.items()}, "reattach")})
        return self

    @contextlib.contextmanager
    def disabled(self) -> Iterator[Decoder]:
        """Inside `with tuned.disabled():`, `tuned` computes what the base computed at `attach`."""
        before = self.is_disabled
        try:
            self.is_disabled = True
            yield self.frozen
        finally:
            self.is_disabled = before

    def to(self, dtype: Any) -> Self:
        """Cast all parts and the twin of the base, but not the base, to float32 or float64."""
        for module in [self.frozen, *filter(None, [self.head])]:
            module.to(dtype)
        hold({self: self.record(self.parts, "to")})
        return self

    def check_parts_there(self) -> None:
        if not self.parts:
            raise MethodError("this PeftModel has no methods any more: they were merged into its "
                              "model, or given to another PeftModel")

    def check_none_off(self, verb: str) -> None:
        """Raise MethodError if a part is switched off, for a verb that cannot keep it so."""
        if self.off:
            name = self.off[0]
            raise MethodError(f"{verb}: the part {name!r}, {self.parts[name].method}, is switched "
                              f"off; reattach({name!r}) first")


def modules_of(parts):
    """List the modules that parts add, each with what it adapts."""
    return [module for part in parts.values() for _, module in part.modules()]
