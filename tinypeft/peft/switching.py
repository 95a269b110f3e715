"""Methods on a model, and off it: taken off, put back, exchanged, and more of them added.

`attachment.py` changes the model, and changes it back; here is who does that when. While the
methods are off, the base is free, but inside `disabled` it is on loan. When they return, it must be
the base that they learned on.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from ..common.hints import Calibration, Rng, Seed
from ..engine.nn import Linear, Module, Parameter
from ..models.calibration import as_batches
from ..models.decoder import Decoder, require_free
from .attachment import Attachment, Loan, detach, restore
from .method import Method, MethodError, Wrapper
from .part import Methods, Part, check_fit, free_name, joined, named, picked

__all__ = ["Switched"]


class Switched(Module):
    """A model with methods that can be switched on and off; `PeftModel` is one.

    parts: name → Part, what each method put on the model. virtual: the module of virtual tokens, or
    None. head: the classifier, or None. rng: what the methods draw from in training.
    """

    def __init__(self, model: Decoder, parts: Mapping[str, Part], head: Linear | None, rng: Rng):
        self.model = model
        self.rng = rng
        self.parts = {}
        self.head = head
        self.attachment = Attachment(self.parts, head)
        self.loan = None                         # the model's mark while the methods are disabled
        self._take_in(parts, "attach")

    # -- the parts ------------------------------------------------------------------------------
    def _take_in(self, new, verb):
        """Put more parts on the model, which has none on it now."""
        for part in new.values():
            if not (part.wrappers or part.virtual or part.trained or self.head):
                raise MethodError(f"attach: {part.method} would train nothing; give head=n_classes")
        together = {**self.parts, **new}
        on = {name: part for name, part in together.items() if part.on}
        check_fit(on, new, self.model, verb)
        self.parts.update(new)
        self.put_on()

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
        return self.attachment.method

    @property
    def wrappers(self) -> dict[str, Wrapper]:
        """path → the outermost module of those that took this place in the model."""
        return {path: wrapper for part in self.used() for path, wrapper in part.wrappers.items()}

    @property
    def trained(self) -> dict[str, Parameter]:
        """name → Parameter of the base that a method trains."""
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

        A detached PeftModel of the same model gives its parts away, with all that they learned."""
        self.check_active()
        givers = [item for item in methods if isinstance(item, Switched)]
        if self in givers:
            raise MethodError("add: expected another PeftModel, got this one itself")
        if len(set(givers)) < len(givers):
            raise MethodError("add: a PeftModel gives its parts away once, got the same one twice")
        self.attachment.take_off(self.model, note=False)
        before = dict(self.parts)
        try:
            new = self._new_parts(methods, np.random.default_rng(rng))
            self._take_in(new, "add")
            given = [part for giver in givers for part in giver.parts.values()]
            self.begin([part for part in new.values() if part not in given], calibration, "add")
        except BaseException:
            if self.active:
                self.attachment.take_off(self.model, note=False)
            self.parts.clear()
            self.parts.update(before)
            self.put_on()
            raise
        for giver in givers:
            giver.parts.clear()
        return self

    def _new_parts(self, methods, rng):
        """Make parts of methods, and take those of other PeftModels: name → Part."""
        new = {}
        for item in methods:
            taken = {**self.parts, **new}
            if isinstance(item, Switched):
                for name, part in item._given_away(self.model).items():
                    new[free_name(name, {**taken, **new})] = part
            else:
                for name, method in named([item], taken).items():
                    new[name] = Part(method, self.model, rng)
        return new

    def _given_away(self, model):
        """Return the parts if another PeftModel of `model` may have them."""
        self._check_parts()
        if self.model is not model:
            raise MethodError("add: the other PeftModel is on another model")
        if self.head is not None:
            raise MethodError("add: this PeftModel has a classification head, and a model has one; "
                              "add the other methods to this one")
        self.check_base("add")
        return self.parts

    def _switch(self, names, on):
        """Take parts off the model, or put them back; the others stay."""
        parts = picked(self.parts, names)
        self.check_active()
        if on:
            together = {name: part for name, part in self.parts.items() if part.on or name in parts}
            new = [name for name in parts if not parts[name].on]
            check_fit(together, new, self.model, "reattach")
        self.attachment.take_off(self.model, note=False)
        for part in parts.values():
            part.on = on
        self.put_on()
        return self

    # -- on and off -----------------------------------------------------------------------------
    def put_on(self) -> None:
        """Put the parts that are on on the model, in its dtype and its mode."""
        self.follow_model()
        self.attachment.put_on(self.model)

    def follow_model(self) -> None:
        """Give all parts the model's dtype and mode, and join the virtual tokens that are on."""
        dtype = self.model.dtype
        if self.head and self.head.weight.dtype != dtype:
            self.head.to(dtype)
        self.training = self.model.training
        for part in self.parts.values():
            part.cast(dtype)
            part.set_mode(self.training)
        self.virtual = joined(self.used())

    def to(self, dtype: Any) -> Self:
        """Cast the model and all parts, also those that are off, to float32 or float64."""
        super().to(dtype)
        self.follow_model()
        return self

    @property
    def active(self) -> bool:
        """Is the method on the model now?"""
        return self.model.attachment is self.attachment

    @property
    def is_disabled(self) -> bool:
        """Is this inside `with tuned.disabled():`?"""
        return self.loan is not None and self.model.attachment is self.loan

    def _check_parts(self):
        if not self.parts:
            raise MethodError("this PeftModel has no methods any more: they were merged into its "
                              "model, or given to another PeftModel")

    def check_active(self) -> None:
        """Raise MethodError unless the methods are on the model."""
        self._check_parts()
        if self.is_disabled:
            raise MethodError(f"{self.method} is disabled; leave `with tuned.disabled():`, or "
                              "call reattach()")
        if not self.active:
            raise MethodError(f"{self.method} is detached; call reattach()")

    def check_none_off(self, verb: str) -> None:
        """Raise MethodError if a part is switched off, for a verb that cannot keep it so."""
        if self.off:
            name = self.off[0]
            raise MethodError(f"{verb}: the part {name!r}, {self.parts[name].method}, is switched "
                              f"off; reattach({name!r}) first")

    def check_base(self, verb: str) -> None:
        """Raise MethodError if the base is not what it was when the method was last taken off."""
        changes = self.attachment.changes(self.model)
        if changes:
            more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise MethodError(
                f"{verb}: {self.method} learned on a base that was changed (quantized, folded, "
                f"trained or loaded) since it was taken off: {'; '.join(changes[:3])}{more}. Undo "
                "the change, or save the method and use load_adapter on the model as it is now")

    def detach(self, *parts: str) -> Decoder:
        """Take the methods off; return the base model: the same objects, bit for bit as before.

        With names of parts, take only these off. The model that is returned has the others on it.
        What is off stays part of this PeftModel; see the table in `part.py`.
        """
        if parts:
            return self._switch(parts, on=False).model
        self.check_active()
        return detach(self.model)

    def reattach(self, *parts: str) -> Self:
        """Put detached methods, or parts by name, back on the model, with all that they learned.

        Raises MethodError if the base has changed since `detach`, because the learned numbers fit
        no other base. Only `to` may have cast it, so numbers count as they are in float32: a change
        of a float64 base that float32 cannot show goes unnoticed. For a base that was quantized,
        folded or trained since, save the method, and `load_adapter` it on the base as it is. Raises
        MethodError, too, for a part that cannot be on beside the others, such as a second prompt;
        it then stays off.
        """
        if parts:
            return self._switch(parts, on=True)
        self._check_parts()
        if self.is_disabled:
            self.loan = self.model.attachment = None
        require_free(self.model, "reattach")
        self.check_base("reattach")
        self.put_on()
        return self

    def activate(self) -> Self:
        """Switch tasks: put the methods on in place of those that another PeftModel of the same
        model has on it. What those have learned stays with them."""
        if self.active:
            return self
        self._check_parts()
        other = self.model.attachment if self.model.attached is not None else None
        if other is not None:
            detach(self.model)
        try:
            return self.reattach()
        except BaseException:
            if other is not None and not self.active:
                other.put_on(self.model)
            raise

    @contextlib.contextmanager
    def disabled(self) -> Iterator[Decoder]:
        """Inside `with tuned.disabled():`, model and `tuned` compute what the base computes.

        The base is on loan there: `attach`, `quantize` and other verbs that change a model refuse
        it. If it was changed all the same, MethodError names the change at the end of the block,
        and the method stays off. Blocks may be nested.
        """
        if self.is_disabled:
            yield self.model
            return
        gradients = self.attachment.gradients()
        self.detach()
        self.loan = self.model.attachment = Loan(self.method)
        try:
            yield self.model
        finally:
            if self.is_disabled:
                self.reattach()
                restore(gradients)
