"""The protocol of a fine-tuning method, and of the modules that it puts on a model.

A `Method` says what to put where, and `train` calls its hooks. A `Wrapper` takes a module's place
in the model; `VirtualTokens` enter beside the text. Everything has a default, so a method of your
own overrides only what it needs.
"""
from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ..common.hints import Array, Rng
from ..common.hyper import Hyperparameters
from ..engine.nn import Linear, Module, copy_modules
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import match_targets

__all__ = ["Layers", "Method", "MethodError", "VirtualTokens", "Wrapper"]


class MethodError(ValueError):
    """A method cannot do what was asked; the message says why."""


class Wrapper(Module):
    """A module that takes the place of another one in a model, keeps it as `base`, and calls it.

    base: the module that it adapts, which may be another wrapper. shared: what `Method.shared` made
    for all wrappers of the method; it is set when the wrapper is put on a model. rank: that of the
    change of the base's weight, or nan if a weight does not say it all. only_to_train: names of the
    buffers that only further training needs, so `save` leaves them out. innermost: does it work on
    the insides of `base`, so that no other wrapper can stand between them? is_low_rank: is it
    base(x) + ΔW x and no more? Then `combine` takes it. merged_by: the names of what decides the
    merged layer; a class that overrides `forward` alone would merge as its parent does.
    """
    base: Module
    shared: dict[str, Array]
    rank: float = math.nan
    only_to_train: ClassVar[tuple[str, ...]] = ()
    innermost: ClassVar[bool] = False
    is_low_rank: bool = False
    merged_by: ClassVar[tuple[str, ...]] = ("merge",)

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        merges = cls.merge is not Wrapper.merge
        if merges and "forward" in vars(cls) and vars(cls).keys().isdisjoint(cls.merged_by):
            raise TypeError(f"{cls.__name__} overrides `forward` and would still merge as before; "
                            f"override {' or '.join(cls.merged_by)}, too")
        for name in vars(cls):
            near = difflib.get_close_matches(name, ["only_to_train", "innermost"], 1, 0.8)
            if near and name not in near:
                raise TypeError(f"{cls.__name__} has {name}; did you mean {near[0]}?")

    d_in = property(lambda self: self.base.d_in)
    d_out = property(lambda self: self.base.d_out)

    def dense_weight(self) -> Array:
        """Refuse: the weight that this wrapper computes with is its base's and what is learned."""
        raise MethodError(f"a {type(self).__name__} has no weight that another method could read; "
                          "let the class that reads it say `innermost = True`, and attach it first")

    def on(self, base: Module | None, made: dict[int, Any] | None = None) -> Self:
        """Make this wrapper once more, around the same Parameters, with another `base`: a twin of
        the module that `wrap` saw. made: as in `copy_modules`."""
        made = {} if made is None else made
        made[id(self.base)] = base
        new = copy_modules(self, made)
        new.base = base
        return new

    def merge(self) -> Linear:
        """Return a plain layer that computes the same as this wrapper and its base."""
        raise MethodError(f"merge: a {type(self).__name__} changes more than a weight, so no plain "
                          "layer can replace it; keep the method attached")

    @property
    def is_mergeable(self) -> bool:
        """Does the class have a `merge` of its own?"""
        return type(self).merge is not Wrapper.merge

    def check_parts(self) -> None:
        """Raise ValueError if arrays that a file gave do not fit together."""


Layers = Mapping[str, Wrapper]                   # path → what `wrap` put there


class VirtualTokens(Module):
    """What enters a model by a seam: `length` vectors by "prompt" or "prefix", or by "hook" a
    function that changes states, of length 0."""
    length: int
    seam: ClassVar[str] = "prompt"
    is_table = True

    def seams(self, tokens: Array, lengths: Array | None = None) -> dict[str, Any]:
        """Arguments of the model beside `tokens` (B, T). lengths (B,) is given to classify rows."""
        raise NotImplementedError


class Method(Hyperparameters):
    """A fine-tuning method: a frozen dataclass of hyperparameters that can be put on a model.

    It never changes. What training changes is in modules: Parameters, or ndarrays (not trained).
    learning_rate: for AdamW, used unless `train` is given another. It was chosen for the shipped
    base, which is 128 wide, and `train` multiplies it by √(128/d) for a model that is d wide
    (`training/rates.py` says how well that fits). Papers train longer, at smaller rates: LoRA's
    for GPT-2 is 2e-4. `find_rate` measures the rate for a model and a task.
    ranks: those that `set_rank` takes; none for a method that learns at one rank only.
    needs_data: does `begin` need tokens?
    wrapper: the class that `wrap` puts on each layer that `targets` name, as wrapper(base, method,
    rng); None for a method that wraps nothing, or has a `wrap` of its own.
    """
    error: ClassVar[type[ValueError]] = MethodError
    learning_rate: ClassVar[float] = 1e-3
    ranks: ClassVar[Sequence[int]] = ()
    needs_data: ClassVar[bool] = False
    wrapper: ClassVar[type[Wrapper] | None] = None

    def shared(self, model: Decoder, rng: Rng) -> dict[str, Array]:
        """Make frozen arrays that all wrappers of the method read: name → array. They exist once,
        and each wrapper gets the same dict as its `shared`. `wrap` is called next. `to` does not
        cast them; a wrapper casts what it reads."""
        return {}

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        """Make a wrapper for every module that the method adapts: path → wrapper. What is called
        later are these once more, on the model of the PeftModel (`Wrapper.on`)."""
        if self.wrapper is None:
            return {}
        return {path: self.wrapper(base, self, rng)
                for path, base in match_targets(model, self.targets)}

    def virtual(self, model: Decoder, rng: Rng) -> VirtualTokens | None:
        """Make the module that gives the model virtual tokens or a hook, or return None."""

    def begin(self, layers: Layers, tuned: Module, batches: list[Array]) -> None:
        """Compute a start that depends on weights or data. `attach` and `add` call it when the
        wrappers are on the model; a file holds what it computed, so loading does not.

        tuned: the model with all methods on it. batches: tokens (B, T), none unless `calibration=`
        was given."""

    def fold(self, virtual: VirtualTokens | None) -> tuple[Method, VirtualTokens | None]:
        """Return the method and its virtual module without a reparameterization."""
        return self, virtual

    def trained(self, model: Decoder) -> list[str]:
        """Name the base's own parameters that the method trains."""
        return []

    def set_rank(self, layers: Layers, rank: int) -> None:
        """Use `rank`, one of `ranks`, from now on."""

    def before_step(self, layers: Layers, step: int, total: int, rng: Rng) -> None:
        """Prepare the forward pass of step 0 … total − 1. layers: the wrappers on the model. rng:
        it is seeded anew for each step."""

    def penalty(self, layers: Layers) -> Tensor | None:
        """Return a term to add to the loss, or None."""

    def after_step(self, layers: Layers, step: int, total: int) -> None:
        """Do what follows the optimizer's step."""

    def end_training(self, layers: Layers) -> None:
        """Drop what held for one step. Training ends here, also by an error or Ctrl-C."""
