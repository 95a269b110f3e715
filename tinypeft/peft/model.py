"""attach: put methods on a model. PeftModel: a model with methods on it.

There are two ways to attach. A *wrapper* is a module that holds the module it adapts as `base` and
takes its place in the model. A *virtual* module emits vectors for the model's seams `prompt=` and
`prefix=`. A method may also train some of the base's own parameters. Everything else is frozen.
What one method puts on a model is a *part* (`part.py`); a model may have several.
"""
from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array, Rng, Seed
from ..engine.nn import Linear, Module, Parameter, check_state
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.generation import KVCache, generate
from .attachment import Attachment, Loan, detach
from .formats import FORMATS
from .method import Method, MethodError
from .part import Methods, Part, check_fit, free_name, joined, load, named, own_parameters
from .summary import Summary

__all__ = ["PeftModel", "attach", "check_free"]


def attach(model: Decoder, *methods: Method | Mapping[str, Method], rng: Seed = 0,
           head: int | None = None, head_bias: bool = True) -> PeftModel:
    """Put methods on `model`, in place, freeze everything else, and return a `PeftModel`.

    methods: one, or several, each a part with a name: its class's, or the key in a dict, such as
    {"style": LoRA(8)}. Wrappers nest: the first is innermost. rng: seed or Generator. head: a
    number of classes; adds a linear classifier on the final hidden state, trained and saved with
    the methods, with a bias if head_bias (transformers has none). Raises MethodError if a method
    fits neither the model nor the other methods, or if the model has one already, on or disabled.
    """
    check_free(model)
    return PeftModel(model, named(methods), np.random.default_rng(rng), head, head_bias)


def check_free(model: Decoder) -> None:
    """Raise TypeError for anything but a `Decoder`, MethodError if it has a method, on or off."""
    if isinstance(model, PeftModel): model.model.check_free("attach")
    if not isinstance(model, Decoder):
        raise TypeError(f"attach: expected a language model, got {type(model).__name__}")
    model.check_free("attach")


class PeftModel(Module):
    """A model with methods on it, made by `attach`. It is called as the model is.

    parts: name → Part, what each method put on the model. virtual: the module of virtual tokens, or
    None.

    `copy.deepcopy` of a PeftModel copies all: model, methods, and what they had learned. A copy of
    `tuned.model` has the methods on it, and `peft.detach` takes them off. A copy of a base without
    a method, or inside `disabled`, is a plain model.
    """

    def __init__(self, model: Decoder, methods: Mapping[str, Method], rng: Rng, head: int | None,
                 head_bias: bool):
        self.model, self.rng, self.parts, self.head = model, rng, {}, None
        new = {name: Part(method, model, rng) for name, method in methods.items()}
        if head is not None:
            if not isinstance(head, (int, np.integer)) or head < 2:
                raise MethodError(f"attach: head is a number of classes, at least 2, got {head!r}")
            self.head = Linear(model.config.d_model, int(head), bias=head_bias, rng=rng)
        self.attachment = Attachment(self.parts, self.head)
        self.loan = None                         # the model's mark while the methods are disabled
        self._take_in(new)

    # -- the parts ------------------------------------------------------------------------------
    def _take_in(self, new):
        """Put more parts on the model, which has none on it now."""
        for part in new.values():
            if not (part.wrappers or part.virtual or part.trained or self.head):
                raise MethodError(f"attach: {part.method} would train nothing; give head=n_classes")
        check_fit({**self.parts, **new}, self.model)
        self.parts.update(new)
        self._put_on()

    def _used(self):
        """The parts that are on."""
        return [part for part in self.parts.values() if part.on]

    @property
    def method(self) -> Method | Methods:
        """The method, or all of them if there are several."""
        return self.attachment.method
    @property
    def wrappers(self) -> dict[str, Module]:
        """path → the outermost module of those that took this place in the model."""
        return {path: wrapper for part in self._used() for path, wrapper in part.wrappers.items()}
    @property
    def trained(self) -> dict[str, Parameter]:
        """name → Parameter of the base that a method trains."""
        return {name: p for part in self._used() for name, p in part.trained.items()}

    def add(self, *methods: Method | Mapping[str, Method] | PeftModel, rng: Seed = 0) -> PeftModel:
        """Put more methods on the model, beside those that are there; see `attach`.

        A detached PeftModel of the same model gives its parts away, with all that they learned."""
        self._check_active()
        givers = [given for given in methods if isinstance(given, PeftModel)]
        if self in givers:
            raise MethodError("add: expected another PeftModel, got this one itself")
        if len({*givers}) < len(givers):
            raise MethodError("add: a PeftModel gives its parts away once, got the same one twice")
        self.attachment.take_off(self.model, note=False)
        rng, new = np.random.default_rng(rng), {}
        try:
            for given in methods:
                if isinstance(given, PeftModel): parts = given._given_away(self.model)
                else: parts = {name: Part(method, self.model, rng)
                               for name, method in named([given], {**self.parts, **new}).items()}
                for name, part in parts.items(): new[free_name(name, {**self.parts, **new})] = part
            self._take_in(new)
        except BaseException:
            if self.active: self.attachment.take_off(self.model, note=False)
            for name in new: self.parts.pop(name, None)
            self._put_on()
            raise
        for giver in givers: giver.parts.clear()
        return self

    def _given_away(self, model):
        """The parts, if another PeftModel of `model` may have them."""
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
        chosen = self._chosen(names)
        self._check_active()
        self.attachment.take_off(self.model, note=False)
        for part in chosen: part.on = on
        self._put_on()
        return self

    def _chosen(self, names):
        for name in names:
            if name not in self.parts:
                raise MethodError(f"no method is called {name!r}; there are "
                                  f"{', '.join(map(repr, self.parts))}")
        return [self.parts[name] for name in names]

    # -- on and off -----------------------------------------------------------------------------
    def _put_on(self):
        dtype = self.model.token_embedding.weight.dtype
        for p in self._added():
            if p.dtype != dtype: p.assign(p.data.astype(dtype))
        self.training = self.model.training
        for part in self.parts.values(): part.set_mode(self.training)
        self.virtual = joined(part.virtual for part in self._used())
        self.attachment.put_on(self.model)

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

    def _check_active(self):
        self._check_parts()
        if self.is_disabled:
            raise MethodError(f"{self.method} is disabled; leave `with tuned.disabled():`, or "
                              "call reattach()")
        if not self.active: raise MethodError(f"{self.method} is detached; call reattach()")

    def detach(self, *parts: str) -> Decoder:
        """Take the methods off; return the base model: the same objects, bit for bit as before.

        With names of parts, take only these off. The model that is returned has the others on it.
        """
        if parts: return self._switch(parts, on=False).model
        self._check_active()
        return detach(self.model)

    def reattach(self, *parts: str) -> PeftModel:
        """Put detached methods, or parts by name, back on the model, with all that they learned.

        Raises MethodError if the base has changed since `detach`, because the learned numbers fit
        no other base. Only `to` may have cast it. For a base that was quantized, folded or trained
        since, save the method, and `load_adapter` it on the base as it is.
        """
        if parts: return self._switch(parts, on=True)
        self._check_parts()
        if self.is_disabled: self.loan = self.model.attachment = None
        self.model.check_free("reattach")
        self.check_base("reattach")
        self._put_on()
        return self

    def activate(self) -> PeftModel:
        """Switch tasks: put the methods on in place of those that another PeftModel of the same
        model has on it. What those have learned stays with them."""
        if self.active: return self
        self._check_parts()
        other = self.model.attachment if self.model.attached is not None else None
        if other: detach(self.model)
        try: return self.reattach()
        except BaseException:
            if other and not self.active: other.put_on(self.model)
            raise

    def check_base(self, verb: str) -> None:
        """Raise MethodError if the base is not what it was when the method was last taken off."""
        if found := self.attachment.changes(self.model):
            more = f", and {len(found) - 3} more" if len(found) > 3 else ""
            raise MethodError(
                f"{verb}: {self.method} learned on a base that was changed (quantized, folded, "
                f"trained or loaded) since it was taken off: {'; '.join(found[:3])}{more}. Undo "
                "the change, or save the method and use load_adapter on the model as it is now")

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
        self.detach()
        self.loan = self.model.attachment = Loan(self.method)
        try:
            yield self.model
        finally:
            if self.is_disabled: self.reattach()

    def train(self, training: bool = True) -> PeftModel:
        """As `Module.train`. The end of training also ends a step that was not finished."""
        super().train(training)
        for part in () if training else self._used(): part.method.end_training(part.wrappers)
        return self

    # -- what a model does ----------------------------------------------------------------------
    @property
    def config(self) -> Any: return self.model.config
    @property
    def tokenizer(self) -> Any: return self.model.tokenizer
    @property
    def learning_rate(self) -> float:
        """The rate of the first method."""
        self._check_parts()
        return next(iter(self.parts.values())).method.learning_rate
    @property
    def virtual_length(self) -> int:
        return self.virtual.length if self.virtual and self.active else 0

    def _seams(self, tokens, cache=None, lengths=None):
        """The virtual module's input to the model's seams; none if the cache holds it already."""
        if self.is_disabled: return {}
        self._check_active()
        if self.virtual is None or (cache is not None and cache.length): return {}
        return self.virtual.seams(np.asarray(tokens), lengths)

    def forward(self, tokens: Array, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """tokens (B, T) → logits (B, T, V); with `last`, those of the last position, (B, 1, V)."""
        return self.model(tokens, cache=cache, last=last, **self._seams(tokens, cache))

    def classify(self, tokens: Array, lengths: Array) -> Tensor:
        """tokens (B, T), of which the first lengths[b] count in row b → class logits (B, C)."""
        return self.model.classify(tokens, lengths, **self._seams(tokens, lengths=lengths))

    def generate(self, tokens: Array, max_new_tokens: int, **options: Any) -> Array:
        """As `Decoder.generate`."""
        return generate(self, tokens, max_new_tokens, **options)

    def before_step(self, step: int, total: int) -> None:
        for part in self._used():
            part.method.before_step(part.wrappers, step, total, self.rng)

    def penalty(self) -> Tensor | None:
        terms = [part.method.penalty(part.wrappers) for part in self._used()]
        terms = [term for term in terms if term is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def after_step(self, step: int, total: int) -> None:
        for part in self._used(): part.method.after_step(part.wrappers, step, total)

    # -- what was added -------------------------------------------------------------------------
    def _head(self):
        """[("head", module)], or [] without a classifier."""
        return [("head", self.head)] if self.head else []

    def _added(self):
        """Every Parameter that was added to the base."""
        parts = [p for part in self.parts.values() for p in part.added()]
        return parts + own_parameters(self._head())

    def prefixes(self) -> Iterator[tuple[str, Part]]:
        """(prefix, part): what the names of a part's arrays begin with. A part that is alone and
        has its class's name needs none."""
        for name, part in self.parts.items():
            alone = len(self.parts) == 1 and name == type(part.method).__name__
            yield "" if alone else f"{name}/", part

    def trainable_parameters(self) -> list[Parameter]:
        """The parameters that training changes."""
        added = [p for part in self._used() for p in part.added()] + own_parameters(self._head())
        return [p for p in [*added, *self.trained.values()] if p.requires_grad]

    def state_dict(self, to_train: bool = True) -> dict[str, Array]:
        """name → array of everything that belongs to the methods, and nothing of the base. If there
        are several, the names begin with that of the part: "LoRA/blocks.0.attention.query.A".

        `to_train=False` omits what only further training needs: the buffers that a wrapper lists in
        `only_to_train`, and a reparameterization, whose output takes its place (see `fold`).
        """
        state = {f"{prefix}{name}": array for prefix, part in self.prefixes()
                 for name, array in part.state_dict(to_train).items()}
        for path, head in self._head():
            state |= {f"{path}.{name}": array for name, array in head.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Array], strict: bool = True) -> PeftModel:
        """Load what `state_dict` gave, or raise KeyError (names) or ValueError (shapes)."""
        self._check_active()
        optional = {f"{prefix}{name}" for prefix, part in self.prefixes()
                    for name in part.optional()}
        check_state(self.state_dict(), state, strict, optional)
        for prefix, part in self.prefixes():
            part.load_state_dict({name.removeprefix(prefix): array for name, array in state.items()
                                  if name.startswith(prefix)})
        for path, head in self._head(): load(head, path, state)
        return self

    def save(self, folder: str | Path, format: str = "tinypeft") -> None:
        """Write the method and what it learned to `folder`; `load_adapter` reads either format.

        "tinypeft": adapter.safetensors, exact for every method. "peft": adapter_config.json and
        adapter_model.safetensors, for `peft.PeftModel.from_pretrained` on transformers' model with
        the base's weights; MethodError for anything that PEFT cannot hold (see `interop.adapters`).
        Neither stores what only training needs; a checkpoint of `train` does. A part that is
        switched off is loaded so. Raises MethodError if there are no methods any more.
        """
        self._check_parts()
        if format not in FORMATS:
            raise MethodError(f"save: unknown format {format!r}; there are {', '.join(FORMATS)}")
        FORMATS[format].functions().save(self, Path(folder))

    # -- after training -------------------------------------------------------------------------
    def summary(self) -> Summary:
        """Counts of trained, stored and all parameters, and bytes; a table in a notebook."""
        self._check_active()
        arrays = self.state_dict(to_train=False).values()
        return Summary(
            str(self.method), trained=sum(p.size for p in self.trainable_parameters()),
            stored=sum(a.size for a in arrays if a.dtype.kind == "f"),
            total=self.model.n_parameters() + (self.virtual.n_parameters() if self.virtual else 0),
            nbytes=sum(a.nbytes for a in arrays),
            parts={name: sum(p.size for p in part.parameters())
                   for name, part in self.parts.items() if part.on and len(self.parts) > 1})

    def ranks(self) -> dict[str, int]:
        """path → rank of the change ΔW there; MethodError if the changes are not low-rank."""
        found = {}
        for part in self._used():
            for path, w in part.wrappers.items():
                found[path] = found.get(path, 0) + getattr(w, "rank", math.nan)
        if not found or any(map(math.isnan, found.values())):
            raise MethodError(f"ranks: {self.method} does not give weights a low-rank change")
        return found

    def set_rank(self, rank: int) -> PeftModel:
        """Use `rank` from now on, without more training; MethodError for all methods but DyLoRA."""
        ranked = [part for part in self._used() if hasattr(part.method, "set_rank")]
        if not ranked:
            raise MethodError(f"set_rank: {self.method} has no other rank to use; "
                              "DyLoRA learns all ranks at once")
        for part in ranked: part.method.set_rank(part.wrappers, rank)
        return self

    def merge(self, *parts: str, activations: str = "kept",
              in_place: bool = False) -> Decoder | PeftModel:
        """A plain model, with its own weights, that computes the same; MethodError if none can.

        parts: names; only these are merged, and a PeftModel with the others is returned. They must
        be innermost, since a change cannot move into a weight past another change.
        in_place: change this model instead of a copy, layer by layer, so that no more than one
        layer's weights exist twice. What was merged cannot be detached any more, and a Ctrl-C half
        way leaves a model that is partly merged.

        A layer that rounds its inputs (`W8A8`, `SmoothQuant`, `ZeroQuant`, `LLMInt8`, `FakeQuant`
        and `LLMQAT` with activation bits) has no such weights: the change ΔW reads the inputs that
        are not rounded. `activations="exact"` merges all the same. The merged layers are then plain
        and round nothing, which is another function. Layers without a change stay as they are, so a
        merged quantized model has both kinds; `quantize(…, skip_quantized=True)` rounds the rest.
        """
        self._check_active()
        if activations not in ("kept", "exact"):
            raise MethodError(f"merge: activations must be 'kept' or 'exact', got {activations!r}")
        names = [name for name, part in self.parts.items()
                 if (name in parts if parts else part.on)]
        self._check_mergeable(parts or names, activations)
        if in_place: return self._fuse(names, keep=bool(parts))
        replaced = [self.attachment.base[name] for part in self._chosen(names)
                    for name in part.trained]
        memo = {id(array): array for array in replaced}          # of no use to the copy
        return copy.deepcopy(self, memo)._fuse(names, keep=bool(parts))

    def _check_mergeable(self, names, activations):
        """Raise MethodError unless the parts can be merged."""
        for part in self._chosen(names):
            if not part.on: raise MethodError(f"merge: {part.method} is detached; reattach it")
            if part.virtual is not None:
                raise MethodError(f"merge: {part.method} works by virtual tokens; no weights can "
                                  "replace that")
            for path, wrapper in part.wrappers.items():
                if not hasattr(wrapper, "merge"):
                    raise MethodError(f"merge: {part.method} puts a {type(wrapper).__name__} at "
                                      f"{path}, which has no `merge`; keep the method attached")
                if inner := next((name for name, other in self.parts.items()
                                  if wrapper.base is other.wrappers.get(path)
                                  and name not in names), None):
                    raise MethodError(f"merge: {part.method} changes {path} as {inner} gives it, "
                                      f"and {inner} stays; merge both, or detach {inner}")
                base = self.attachment.replaced[path]
                if activations == "kept" and not getattr(base, "is_affine", False):
                    raise MethodError(
                        f"merge: {path} is a {type(base).__name__}, which does more than multiply "
                        "by a weight: it rounds its inputs or outputs, and no weights do that. "
                        'Keep the method attached, or call merge(activations="exact"), whose '
                        "merged layers round nothing")

    def _fuse(self, names, keep):
        """Change the base's weights as the parts do. keep: then put the other parts on again."""
        self.attachment.take_off(self.model, note=False)
        self.attachment.forget()                 # or the layers that are replaced would all stay
        merged = [self.parts.pop(name) for name in names]
        for part in merged:                      # before a wrapper copies them
            for name, array in part.learned.items(): part.trained[name].assign(array)
        for part in merged: part.fuse(self.model, staying=[*self.parts.values()])
        if self.parts and keep:
            base = dict(self.model.named_parameters())
            for part in self.parts.values():
                part.trained = {name: base[name] for name in part.trained}
            self._put_on()
            return self
        self.parts.clear()
        self.model.head = self.head or self.model.head
        for p in self.model.parameters(): p.requires_grad, p.grad = True, None
        return self.model

    def fold(self) -> PeftModel:
        """Replace a reparameterization (prefix tuning's MLP, P-tuning's encoder) by its output.

        The function stays the same, bit for bit. Further training changes the vectors themselves.
        """
        if not any([part.fold() for part in self.parts.values()]):
            raise MethodError(f"fold: {self.method} has no reparameterization to drop")
        self.virtual = joined(part.virtual for part in self._used())
        return self

    def describe(self) -> str: return f"({self.method})"

