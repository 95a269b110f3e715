"""A memo for one computation: an array that is needed several times is made once.

A quantized layer decodes its weight for every token, which takes longer than the product of the
weight and one token. So generation keeps decoded weights until it returns, of the layers that come
first, at most KEPT bytes in all: those of a small model, and a small part of a large one.
"""
import contextvars
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

from ..common.hints import Array
from .tensor import Tensor, within

__all__ = ["keeping", "kept"]

KEPT = 2**23                                                 # bytes
_kept = contextvars.ContextVar("kept", default=None)


def keeping(arrays: dict[Hashable, Array | Tensor] | None = None,
            ) -> AbstractContextManager[dict[Hashable, Array | Tensor]]:
    """Inside `with keeping():` `kept` returns an array again. No weight may change there. arrays:
    those that were kept before, to which more are added."""
    return within(_kept, {} if arrays is None else arrays)


def kept(source: Hashable, make: Callable[[], Any]) -> Any:
    """Return make(), an array or a Tensor, to be read only. Inside `keeping()` it is made once for
    each `source`, as long as all of them take at most KEPT bytes."""
    arrays = _kept.get()
    if arrays is None:
        return make()
    if source in arrays:
        return arrays[source]
    array = make()
    if array.nbytes + sum(a.nbytes for a in arrays.values()) <= KEPT:
        arrays[source] = array
    return array
