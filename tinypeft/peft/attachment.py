"""The change that methods make to a model, and the way back.

The record of the change lies on the model itself, as `model.attachment`. A copy of the model has a
copy of the record, so the methods can be taken off the copy, too (`detach`).
"""
from __future__ import annotations

import contextlib
import contextvars
import zlib
from collections.abc import Iterator

import numpy as np

from ..common.hints import Array
from ..engine.nn import Module, Parameter, replace_modules
from ..engine.tensor import within
from ..models.decoder import Decoder
from .method import Method, MethodError
from .part import Methods, Part

__all__ = ["Attachment", "Loan", "bare", "detach", "restore", "same_bases"]


def detach(model: Decoder) -> Decoder:
    """Take the method off a model; return the model, which is the base again.

    For a copy of `tuned.model`, which belongs to no PeftModel; elsewhere use `tuned.detach()`.
    """
    if not isinstance(model, Decoder):
        raise TypeError(f"detach: expected a language model, got {type(model).__name__}")
    if model.attached is None:
        raise MethodError("detach: no method is on this model")
    model.attachment.take_off(model)
    return model


@contextlib.contextmanager
def bare(model: Decoder) -> Iterator[Decoder]:
    """Inside `with bare(model):`, no method is on the model; it is for reading, not for changes."""
    if model.attached is None:
        yield model
        return
    attachment = model.attachment
    before = attachment.gradients()
    attachment.take_off(model)
    try:
        yield model
    finally:
        attachment.put_on(model)
        restore(before)


class Attachment:
    """The change that methods make to one model. A Ctrl-C leaves the methods either fully on the
    model or fully off it.

    parts: name → Part, in the order in which wrappers nest. head: a classifier, or None.
    """
    error = MethodError                          # what `require_free` raises

    def __init__(self, parts: dict[str, Part], head: Module | None):
        self.parts = parts
        self.head = head
        self.snapshot = None                     # of the base, as `take_off` left it

    @property
    def method(self) -> Method | Methods:
        """The method, or all of them if there are several."""
        methods = Methods(part.method for part in self.parts.values())
        return methods[0] if len(methods) == 1 else methods

    @property
    def reason(self) -> str:
        """Why nothing else may change the model."""
        return (f"{self.method} is attached to this model already; call .detach() or .merge() on "
                "the PeftModel that attach returned. (Is this a copy of its model? Then "
                "tinypeft.peft.detach(copy) takes the method off.)")

    def put_on(self, model: Decoder) -> None:
        """Change the model; note what `take_off` must know."""
        self.used = [part for part in self.parts.values() if part.on]
        self.replaced = {path: model.get(path) for part in self.used for path in part.wrappers}
        self.flags = [(p, p.requires_grad) for p in model.parameters()]
        self.base = {name: p.data for part in self.used for name, p in part.trained.items()}
        self.base_head = model.head
        try:
            self._put_on(model)
        except BaseException:
            self.take_off(model)
            raise

    def _put_on(self, model):
        model.attachment = self
        for p in model.parameters():
            p.requires_grad = False
        for part in self.used:
            for name, p in part.trained.items():
                p.requires_grad = True
                p.assign(part.learned[name].astype(p.dtype, copy=False))
        replace_modules(model, self._nested())
        model.head = self.head or model.head
        for part in self.used:
            part.learned = {}                    # these arrays are the parameters' now

    def _nested(self):
        """Find the outermost wrapper of each path, the deepest path first: a module that contains
        another one may have a wrapper, too."""
        outermost = dict(self.replaced)
        for part in self.used:
            for path, wrapper in part.wrappers.items():
                if not wrapper.innermost:
                    wrapper.base = outermost[path]
                outermost[path] = wrapper
        return {path: outermost[path] for path in sorted(outermost, key=_depth, reverse=True)}

    def take_off(self, model: Decoder, note: bool = True) -> None:
        """Change the model back: the same objects, the same arrays. note: keep checksums of the
        base, by which `changes` finds what is done to it."""
        try:
            self._take_off(model, note)
        except BaseException:
            self._take_off(model, note)          # each step may run twice
            raise

    def _take_off(self, model, note):
        for path in sorted(self.replaced, key=_depth):   # the outer first: it hides paths inside
            replace_modules(model, {path: self.replaced[path]})
        model.head = self.base_head
        for part in self.used:
            for name, p in part.trained.items():
                array = self.base[name].astype(p.dtype, copy=False)                  # after `to`
                self.base[name] = array
                if p.data is not array:
                    part.learned[name] = p.data
                    p.assign(array)
        for p, flag in self.flags:
            p.grad = None
            p.requires_grad = flag
        if note:
            self.snapshot = contents(model)
        model.attachment = None

    def gradients(self) -> list[tuple[Parameter, bool, Array | None]]:
        """List (p, does it require a gradient?, its gradient) of the base's parameters, all of
        which `take_off` changes; `restore` takes the list."""
        return [(p, p.requires_grad, p.grad) for p, _ in self.flags]

    def forget(self) -> None:
        """Let go of the base, to which the methods will not return as it was."""
        self.used = []
        self.replaced = {}
        self.flags = []
        self.base = {}
        self.snapshot = None

    def changes(self, model: Decoder) -> list[str]:
        """Say what became different in the base since `take_off`; [] if it may be put on."""
        if self.snapshot is None:                    # `put_on` was interrupted: nothing was noted
            return []
        before, now, changes = self.snapshot, contents(model), []
        for name in {**before, **now}:
            if name not in now:
                changes.append(f"{name} is gone")
            elif name not in before:
                changes.append(f"{name} is new")
            elif now[name] != before[name]:
                is_class = isinstance(now[name], str)
                changes.append(f"{name} was of class {before[name]} and is {now[name]}" if is_class
                               else f"{name} has other numbers")
        return changes or [f"{path} is another object" for path, module in self.replaced.items()
                           if model.get(path) is not module]


def restore(gradients: list[tuple[Parameter, bool, Array | None]]) -> None:
    """Give parameters their flags and gradients back; a parameter that was cast has none."""
    for p, flag, gradient in gradients:
        p.requires_grad = flag
        if gradient is None or gradient.dtype == p.dtype:
            p.grad = gradient


class Loan:
    """The mark on a base inside `with tuned.disabled():`. Nothing is on it, but the method returns.

    The base may run and be copied, not changed. A copy is free: it has no mark.
    """
    error = MethodError
    method = None                                # none is on the model

    def __init__(self, absent: Method | Methods):
        self.reason = (f"this model is on loan: {absent} is disabled, and returns to it at the end "
                       "of the `with` block; leave the block, or take a copy of the model "
                       "(copy.deepcopy)")

    def __reduce__(self) -> tuple:
        return type(None), ()                    # copy and pickle call this: the copy is None


def _depth(path):
    return path.count(".")


_known = contextvars.ContextVar("known", default=None)


def same_bases() -> contextlib.AbstractContextManager[dict]:
    """Inside `with same_bases():` each base is read once, however often methods come and go.

    For a function that puts methods on and takes them off in turns, and lets nobody else change a
    base in between. Elsewhere it is read each time: a NumPy array counts no versions, and who has a
    view of it can write to it, so only its numbers tell whether it changed.
    """
    return within(_known, {})


def contents(model):
    """Describe every part of a model: name → class of a module, or shape and checksum of an array.
    """
    known = _known.get()
    if known is None:
        return described(model)
    if id(model) not in known:
        known[id(model)] = described(model)
    return known[id(model)]


def described(model):
    """Read the model for `contents`."""
    classes = {path: type(module).__name__ for path, module in model.named_modules() if path}
    return classes | {name: checksum(array) for name, array in model.state_dict().items()}


def checksum(array):
    """Return the shape, and a checksum of the numbers in float32: a cast model is no other one."""
    if array.dtype == np.float64:
        with np.errstate(over="ignore", under="ignore"):
            array = array.astype(np.float32)
    return array.shape, zlib.crc32(np.ascontiguousarray(array))
