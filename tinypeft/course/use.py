"""Puts a student's function to work inside the package, for the length of a block.

    with use(LoRALinear, forward=lambda self, x: mine(x, self.base.weight, self.A, self.B, 16)):
        tp.train(tuned, task, 20)                        every LoRALinear calls mine
    with use(F, softmax=mine): ...                       whoever calls F.softmax calls mine

What was there before is put back at the end, after an exception as well. Blocks may be nested.
"""
from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterator
from typing import Any

__all__ = ["use"]

WRAPPED = staticmethod, classmethod, property


@contextlib.contextmanager
def use(owner: Any, **replacements: Any) -> Iterator[None]:
    """Replace attributes of a class, a module or an object inside a `with` block.

    A method's replacement takes `self` first, and in the place of a property, a static method or a
    class method it becomes the same. On a single object it is called without `self`. A name that
    another module has imported from `owner` keeps its old value there.

    Raises AttributeError if `owner` has no such attribute, and TypeError if nothing is replaced, if
    something that cannot be called would stand in a function's place, or if `owner` refuses.
    """
    if not replacements:
        raise TypeError(f"use: nothing is replaced; write use({_named(owner)}, name=function)")
    there = {name: _there(owner, name) for name in replacements}
    for name, new in replacements.items(): _fits(owner, name, there[name], new)
    own = {name: _stored(owner, name, old) for name, old in there.items()}
    with contextlib.ExitStack() as stack:
        for name, new in replacements.items():
            old = there[name]
            if inspect.isclass(owner) and isinstance(old, WRAPPED) and not isinstance(new, WRAPPED):
                new = type(old)(new)
            try: setattr(owner, name, new)
            except (AttributeError, TypeError) as e:
                raise TypeError(f"use: {name} of {_named(owner)} cannot be replaced ({e}); replace "
                                "it in a class or a module of Python") from e
            if own[name]: stack.callback(setattr, owner, name, *own[name])
            else:         stack.callback(delattr, owner, name)
        yield


def _there(owner, name):
    """The attribute as it is stored, unbound; AttributeError, which names what exists."""
    getattr(owner, name, None)                           # a lazy package imports it now
    try: return inspect.getattr_static(owner, name)
    except AttributeError: pass
    names = [n for n in dir(owner) if not n.startswith("_")]
    near = difflib.get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names) or 'none'}"
    raise AttributeError(f"use: {_named(owner)} has no attribute {name!r}; {hint}", name=name,
                         obj=owner)


def _stored(owner, name, old):
    """(value,) if `owner` itself holds the attribute, () if it has it from its class or a base."""
    if name in getattr(owner, "__dict__", ()): return (vars(owner)[name],)
    in_a_slot = not inspect.isclass(owner) and hasattr(type(old), "__set__")
    return (getattr(owner, name),) if in_a_slot else ()


def _fits(owner, name, old, new):
    if callable(old) or isinstance(old, WRAPPED):
        if not callable(new) and not isinstance(new, WRAPPED):
            raise TypeError(f"use: {name} of {_named(owner)} is a function; got {new!r}, which "
                            "cannot be called")


def _named(owner): return getattr(owner, "__name__", None) or f"the {type(owner).__name__}"
